//! From a GGUF file of a Llama model to a Hugging Face folder in F32: the numbers as gguf-py decodes them.
//!
//! Format: <https://github.com/ggml-org/ggml/blob/master/docs/gguf.md>. The file is one of our own choice, so what is odd panics.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{BufWriter, Write};
use std::path::Path;

use half::f16;
use serde_json::{Value, json};

/// Reads little-endian values one after another.
struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    fn bytes(&mut self, count: usize) -> &'a [u8] {
        let (bytes, rest) = self.0.split_at(count);
        self.0 = rest;
        bytes
    }

    fn array<const N: usize>(&mut self) -> [u8; N] {
        self.bytes(N).try_into().expect("N bytes")
    }

    fn u32(&mut self) -> u32 {
        u32::from_le_bytes(self.array())
    }

    fn u64(&mut self) -> u64 {
        u64::from_le_bytes(self.array())
    }

    fn text(&mut self) -> String {
        let length = self.u64() as usize;
        String::from_utf8(self.bytes(length).to_vec()).expect("UTF-8")
    }

    /// A value of metadata of this type.
    fn value(&mut self, kind: u32) -> Value {
        match kind {
            0 => json!(self.array::<1>()[0]),
            1 => json!(i8::from_le_bytes(self.array())),
            2 => json!(u16::from_le_bytes(self.array())),
            3 => json!(i16::from_le_bytes(self.array())),
            4 => json!(self.u32()),
            5 => json!(i32::from_le_bytes(self.array())),
            // As it is written in decimal, so that 1e-5 stays that.
            6 => json!(f32::from_le_bytes(self.array()).to_string().parse::<f64>().expect("a number")),
            7 => json!(self.array::<1>()[0] != 0),
            8 => json!(self.text()),
            9 => {
                let (kind, count) = (self.u32(), self.u64());
                (0..count).map(|_| self.value(kind)).collect()
            }
            10 => json!(self.u64()),
            11 => json!(i64::from_le_bytes(self.array())),
            12 => json!(f64::from_le_bytes(self.array())),
            other => panic!("metadata of type {other}"),
        }
    }
}

/// Numbers of a tensor of this GGML type.
fn decode(kind: u32, count: usize, data: &[u8]) -> Vec<f32> {
    let half = |bytes: &[u8]| f16::from_le_bytes([bytes[0], bytes[1]]).to_f32();
    match kind {
        0 => data[..4 * count].chunks_exact(4).map(|b| f32::from_le_bytes(b.try_into().expect("4 bytes"))).collect(),
        // Q4_1: scale, minimum, 16 bytes; the low halves are elements 0 to 15, the high halves 16 to 31.
        3 => {
            let blocks = data[..count / 32 * 20].chunks_exact(20);
            blocks
                .flat_map(|block| {
                    let (scale, least) = (half(block), half(&block[2..]));
                    let codes = block[4..].iter().map(|b| b & 15).chain(block[4..].iter().map(|b| b >> 4));
                    codes.map(move |code| scale * f32::from(code) + least)
                })
                .collect()
        }
        // Q8_0: scale, 32 bytes.
        8 => {
            let blocks = data[..count / 32 * 34].chunks_exact(34);
            blocks
                .flat_map(|block| {
                    let scale = half(block);
                    block[2..].iter().map(move |&code| scale * f32::from(code as i8))
                })
                .collect()
        }
        other => panic!("a tensor of type {other}"),
    }
}

/// Rows of a query or key projection in the order of rotate-half: GGUF has the two numbers of a rotation side by side.
fn split_pairs(rows: &[f32], columns: usize, head: usize) -> Vec<f32> {
    let count = rows.len() / columns;
    let from = |row: usize| {
        let (first, within) = (row / head * head, row % head);
        first + within % (head / 2) * 2 + within / (head / 2)
    };
    (0..count).flat_map(|row| &rows[from(row) * columns..][..columns]).copied().collect()
}

/// Name of a tensor in a Hugging Face checkpoint.
fn name(gguf: &str) -> String {
    let Some((layer, rest)) = gguf.strip_prefix("blk.").and_then(|rest| rest.split_once('.')) else {
        return match gguf {
            "token_embd.weight" => "model.embed_tokens.weight".into(),
            "output_norm.weight" => "model.norm.weight".into(),
            other => panic!("{other}"),
        };
    };
    let module = match rest.strip_suffix(".weight").expect("a weight") {
        "attn_q" => "self_attn.q_proj",
        "attn_k" => "self_attn.k_proj",
        "attn_v" => "self_attn.v_proj",
        "attn_output" => "self_attn.o_proj",
        "ffn_gate" => "mlp.gate_proj",
        "ffn_up" => "mlp.up_proj",
        "ffn_down" => "mlp.down_proj",
        "attn_norm" => "input_layernorm",
        "ffn_norm" => "post_attention_layernorm",
        other => panic!("{other}"),
    };
    format!("model.layers.{layer}.{module}.weight")
}

/// Writes config, tokenizer, template and weights.
pub fn convert(file: &Path, to: &Path) {
    let bytes = fs::read(file).expect("the GGUF file");
    let mut reader = Reader(&bytes);
    assert_eq!((reader.bytes(4), reader.u32()), (&b"GGUF"[..], 3));
    let (tensors, keys) = (reader.u64(), reader.u64());
    let mut metadata = BTreeMap::new();
    for _ in 0..keys {
        let (key, kind) = (reader.text(), reader.u32());
        metadata.insert(key, reader.value(kind));
    }
    let infos: Vec<(String, Vec<usize>, u32, usize)> = (0..tensors)
        .map(|_| {
            let (name, rank) = (reader.text(), reader.u32());
            // The innermost dimension comes first.
            let mut shape: Vec<usize> = (0..rank).map(|_| reader.u64() as usize).collect();
            shape.reverse();
            (name, shape, reader.u32(), reader.u64() as usize)
        })
        .collect();
    let start = (bytes.len() - reader.0.len()).next_multiple_of(32);

    write_texts(&metadata, to);
    let number = |key: &str| metadata[&format!("llama.{key}")].as_u64().expect("a number") as usize;
    let head = number("embedding_length") / number("attention.head_count");
    let mut header = serde_json::Map::new();
    let mut end = 0;
    for (gguf, shape, ..) in &infos {
        let begin = end;
        end += 4 * shape.iter().product::<usize>();
        header.insert(name(gguf), json!({ "dtype": "F32", "shape": shape, "data_offsets": [begin, end] }));
    }
    let header = Value::Object(header).to_string();
    let mut out = BufWriter::new(File::create(to.join("model.safetensors")).expect("a file"));
    out.write_all(&(header.len() as u64).to_le_bytes()).expect("written");
    out.write_all(header.as_bytes()).expect("written");
    for (gguf, shape, kind, offset) in &infos {
        let mut numbers = decode(*kind, shape.iter().product(), &bytes[start + offset..]);
        if gguf.ends_with("attn_q.weight") || gguf.ends_with("attn_k.weight") {
            numbers = split_pairs(&numbers, shape[1], head);
        }
        for x in numbers {
            out.write_all(&x.to_le_bytes()).expect("written");
        }
    }
    out.flush().expect("written");
}

/// config.json, tokenizer.json, tokenizer_config.json and the chat template.
fn write_texts(metadata: &BTreeMap<String, Value>, to: &Path) {
    let write = |name: &str, json: Value| fs::write(to.join(name), json.to_string()).expect("written");
    let llama = |key: &str| &metadata[&format!("llama.{key}")];
    let tokenizer = |key: &str| &metadata[&format!("tokenizer.ggml.{key}")];
    write(
        "config.json",
        json!({
            "architectures": ["LlamaForCausalLM"], "model_type": "llama", "dtype": "float32",
            "hidden_size": llama("embedding_length"), "intermediate_size": llama("feed_forward_length"),
            "num_hidden_layers": llama("block_count"), "num_attention_heads": llama("attention.head_count"),
            "num_key_value_heads": llama("attention.head_count_kv"), "vocab_size": llama("vocab_size"),
            "max_position_embeddings": llama("context_length"), "hidden_act": "silu", "tie_word_embeddings": true,
            "rms_norm_eps": llama("attention.layer_norm_rms_epsilon"), "rope_theta": llama("rope.freq_base"),
            "bos_token_id": tokenizer("bos_token_id"), "eos_token_id": tokenizer("eos_token_id"),
        }),
    );
    let tokens = tokenizer("tokens").as_array().expect("a list");
    let kinds = tokenizer("token_type").as_array().expect("a list");
    const CONTROL: u64 = 3;
    let added: Vec<Value> = tokens
        .iter()
        .zip(kinds)
        .enumerate()
        .filter(|(_, (_, kind))| kind.as_u64() == Some(CONTROL))
        .map(|(id, (text, _))| {
            json!({ "id": id, "content": text, "single_word": false, "lstrip": false, "rstrip": false,
                "normalized": false, "special": true })
        })
        .collect();
    let vocabulary = tokens.iter().enumerate().map(|(id, text)| (text.as_str().expect("a text").to_owned(), json!(id)));
    let vocabulary: serde_json::Map<String, Value> = vocabulary.collect();
    // "smollm" splits every digit off, then as GPT-2 does.
    assert_eq!(tokenizer("pre"), "smollm");
    write(
        "tokenizer.json",
        json!({
            "version": "1.0", "truncation": null, "padding": null, "added_tokens": added, "normalizer": null,
            "pre_tokenizer": { "type": "Sequence", "pretokenizers": [
                { "type": "Digits", "individual_digits": true },
                { "type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": true },
            ] },
            "post_processor": null,
            "decoder": { "type": "ByteLevel", "add_prefix_space": true, "trim_offsets": true, "use_regex": true },
            "model": { "type": "BPE", "dropout": null, "unk_token": null, "continuing_subword_prefix": null,
                "end_of_word_suffix": null, "fuse_unk": false, "byte_fallback": false, "ignore_merges": false,
                "vocab": vocabulary, "merges": tokenizer("merges") },
        }),
    );
    let token = |key: &str| &tokens[tokenizer(key).as_u64().expect("an id") as usize];
    write("tokenizer_config.json", json!({ "bos_token": token("bos_token_id"), "eos_token": token("eos_token_id") }));
    let template = metadata["tokenizer.chat_template"].as_str().expect("a template");
    fs::write(to.join("chat_template.jinja"), template).expect("written");
}
