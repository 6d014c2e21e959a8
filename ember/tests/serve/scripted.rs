//! A model that says what it is told to, token by token: its tokens are one-hot vectors that no layer changes, and its head has for each of
//! them the one that follows. What a trained model says only now and then can be tested so.

use std::collections::HashMap;
use std::path::Path;

use safetensors::tensor::{Dtype, TensorView};
use serde_json::{Map, Value, json};
use tempfile::TempDir;

/// Rows of the embedding, and its width: a dimension for each token.
const SIZE: usize = 384;

/// The token before the answer: a template, or a prompt, ends with it.
pub const ANSWER: &str = "<|answer|>";

/// The special tokens, whose ids come after those of the vocabulary.
const SPECIAL: [&str; 3] = [ANSWER, "<|end|>", "<|python_tag|>"];

/// A directory with a model that answers with these pieces, one token each. A piece may end inside a character; none may be there twice.
pub fn model(template: &str, pieces: &[&[u8]]) -> TempDir {
    let special = |piece: &[u8]| SPECIAL.iter().position(|name| name.as_bytes() == piece);
    let mut vocabulary = bytes();
    for piece in pieces.iter().filter(|piece| special(piece).is_none()) {
        let next = vocabulary.len();
        vocabulary.entry(spelled(piece)).or_insert(next);
    }
    let id = |piece: &[u8]| special(piece).map_or_else(|| vocabulary[&spelled(piece)], |at| vocabulary.len() + at);
    let said = pieces.iter().copied();
    let ids: Vec<usize> = [ANSWER.as_bytes()].into_iter().chain(said).chain([&b"<|end|>"[..]]).map(id).collect();
    for (i, id) in ids.iter().enumerate() {
        assert!(!ids[..i].contains(id) && *id < SIZE, "there twice, or one too many: {pieces:?}");
    }
    let directory = TempDir::new().unwrap();
    write_texts(directory.path(), template, &vocabulary);
    write_weights(directory.path(), &ids);
    directory
}

/// A vocabulary of single bytes.
fn bytes() -> HashMap<String, usize> {
    (0..=255).map(|byte| (spelled(&[byte]), usize::from(byte))).collect()
}

/// Bytes as vocabularies of bytes write them: in the 256 printable characters of GPT-2.
fn spelled(bytes: &[u8]) -> String {
    let printable = |byte: u32| matches!(byte, 33..=126 | 161..=172 | 174..=255);
    let character = |byte: u32| {
        if printable(byte) { byte } else { 256 + (0..byte).filter(|&before| !printable(before)).count() as u32 }
    };
    bytes.iter().map(|&byte| char::from_u32(character(byte.into())).unwrap()).collect()
}

fn write(directory: &Path, name: &str, value: &Value) {
    std::fs::write(directory.join(name), value.to_string()).unwrap();
}

fn write_texts(directory: &Path, template: &str, vocabulary: &HashMap<String, usize>) {
    let added = SPECIAL.into_iter().zip(vocabulary.len()..).map(|(content, id)| {
        json!({"id": id, "content": content, "single_word": false, "lstrip": false, "rstrip": false, "normalized": false, "special": true})
    });
    let bytes = json!({"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": true});
    let tokenizer = json!({
        "version": "1.0", "truncation": null, "padding": null, "added_tokens": added.collect::<Vec<_>>(), "normalizer": null,
        "pre_tokenizer": bytes, "post_processor": null, "decoder": bytes,
        "model": {"type": "BPE", "dropout": null, "unk_token": null, "continuing_subword_prefix": null, "end_of_word_suffix": null,
            "fuse_unk": false, "byte_fallback": false, "vocab": vocabulary, "merges": []},
    });
    write(directory, "tokenizer.json", &tokenizer);
    write(directory, "tokenizer_config.json", &json!({"chat_template": template, "eos_token": "<|end|>"}));
    let config = json!({
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": SIZE, "intermediate_size": 64, "num_hidden_layers": 1,
        "num_attention_heads": 6, "num_key_value_heads": 6, "head_dim": 64, "vocab_size": SIZE, "hidden_act": "silu",
        "max_position_embeddings": 2048, "rms_norm_eps": 1e-5, "rope_theta": 10000.0, "tie_word_embeddings": false,
        "torch_dtype": "float32", "eos_token_id": vocabulary.len() + 1,
    });
    write(directory, "config.json", &config);
}

/// The tokens follow each other; what follows any other is the last one.
fn write_weights(directory: &Path, ids: &[usize]) {
    let row = |hot: usize| (0..SIZE).map(move |i| f32::from(u8::from(i == hot)));
    let embedding: Vec<f32> = (0..SIZE).flat_map(row).collect();
    let mut head = vec![0.0; SIZE * SIZE];
    for id in 0..SIZE {
        let at = ids.iter().position(|&known| known == id).and_then(|at| ids.get(at + 1));
        head[at.unwrap_or(&ids[ids.len() - 1]) * SIZE + id] = 1.0;
    }
    let mut tensors = vec![
        ("model.embed_tokens.weight".to_owned(), vec![SIZE, SIZE], embedding),
        ("lm_head.weight".to_owned(), vec![SIZE, SIZE], head),
        ("model.norm.weight".to_owned(), vec![SIZE], vec![1.0; SIZE]),
    ];
    let layer = |name: &str| format!("model.layers.0.{name}.weight");
    for name in ["input_layernorm", "post_attention_layernorm"] {
        tensors.push((layer(name), vec![SIZE], vec![1.0; SIZE]));
    }
    for name in ["q_proj", "k_proj", "v_proj", "o_proj"] {
        tensors.push((layer(&format!("self_attn.{name}")), vec![SIZE, SIZE], vec![0.0; SIZE * SIZE]));
    }
    for (name, shape) in [("gate_proj", [64, SIZE]), ("up_proj", [64, SIZE]), ("down_proj", [SIZE, 64])] {
        tensors.push((layer(&format!("mlp.{name}")), shape.to_vec(), vec![0.0; 64 * SIZE]));
    }
    let bytes: Vec<Vec<u8>> =
        tensors.iter().map(|(_, _, numbers)| numbers.iter().flat_map(|x| x.to_le_bytes()).collect()).collect();
    let views = tensors
        .iter()
        .zip(&bytes)
        .map(|((name, shape, _), bytes)| (name.as_str(), TensorView::new(Dtype::F32, shape.clone(), bytes).unwrap()));
    safetensors::serialize_to_file(views, None, &directory.join("model.safetensors")).unwrap();
}

/// A model of zeros that takes a while: to load where it is quantised, and to compute, some hundredths of a second a token and thousands of
/// tokens a text. Its file of 190 MB is holes.
pub fn slow() -> TempDir {
    const WIDTH: usize = 1536;
    const KV_WIDTH: usize = 64;
    const LAYERS: usize = 4;
    let directory = TempDir::new().unwrap();
    write_texts(directory.path(), "{{ messages[0].content }}", &bytes());
    let path = directory.path().join("config.json");
    let mut config: Map<String, Value> = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
    for (name, value) in [
        ("hidden_size", WIDTH),
        ("intermediate_size", 2 * WIDTH),
        ("num_hidden_layers", LAYERS),
        ("num_attention_heads", WIDTH / 64),
        ("num_key_value_heads", KV_WIDTH / 64),
        ("max_position_embeddings", 8192),
    ] {
        config.insert(name.into(), value.into());
    }
    std::fs::write(path, Value::Object(config).to_string()).unwrap();
    let mut shapes = vec![
        ("model.embed_tokens.weight".to_owned(), vec![SIZE, WIDTH]),
        ("lm_head.weight".to_owned(), vec![SIZE, WIDTH]),
        ("model.norm.weight".to_owned(), vec![WIDTH]),
    ];
    for layer in 0..LAYERS {
        let mut add =
            |name: &str, shape: &[usize]| shapes.push((format!("model.layers.{layer}.{name}.weight"), shape.to_vec()));
        for name in ["input_layernorm", "post_attention_layernorm"] {
            add(name, &[WIDTH]);
        }
        for (name, rows) in [("q_proj", WIDTH), ("k_proj", KV_WIDTH), ("v_proj", KV_WIDTH), ("o_proj", WIDTH)] {
            add(&format!("self_attn.{name}"), &[rows, WIDTH]);
        }
        for (name, shape) in
            [("gate_proj", [2 * WIDTH, WIDTH]), ("up_proj", [2 * WIDTH, WIDTH]), ("down_proj", [WIDTH, 2 * WIDTH])]
        {
            add(&format!("mlp.{name}"), &shape);
        }
    }
    let mut header = Map::new();
    let mut end = 0;
    for (name, shape) in shapes {
        let bytes = 2 * shape.iter().product::<usize>();
        header.insert(name, json!({"dtype": "BF16", "shape": shape, "data_offsets": [end, end + bytes]}));
        end += bytes;
    }
    let header = Value::Object(header).to_string();
    let mut file = (header.len() as u64).to_le_bytes().to_vec();
    file.extend_from_slice(header.as_bytes());
    let path = directory.path().join("model.safetensors");
    std::fs::write(&path, &file).unwrap();
    std::fs::OpenOptions::new().write(true).open(path).unwrap().set_len((file.len() + end) as u64).unwrap();
    directory
}
