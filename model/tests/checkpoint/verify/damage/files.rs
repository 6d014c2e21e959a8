//! Files, their headers, the index, and hashes.

use std::fs;

use serde_json::json;

use super::{
    Case, case, change_header, change_json, change_shard, change_weights, git, metadata, sha256, shift, write,
};
use crate::support::{Tensor, read_tensors};

const GATE: &str = "model.layers.2.mlp.gate_proj.weight";

/// What git-lfs leaves where a file was not fetched.
const POINTER: &[u8] = b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 1\n";

pub fn files() -> Vec<Case> {
    vec![
        case!("git-lfs pointer for weights", "leanllama", Error Container "model.safetensors" "git-lfs", "model.safetensors" = POINTER),
        case!("git-lfs pointer for the tokenizer", "leanllama", Error Tokenizer "tokenizer.json" "git-lfs", "tokenizer.json" = POINTER),
        case!("web page for a config", "leanllama", Error File "tokenizer_config.json" "web page", "tokenizer_config.json" = b"<!DOCTYPE html><title>Log in</title>"),
        case!("empty file", "leanllama", Error Container "model.safetensors" "shorter than 8 bytes", "model.safetensors" = b""),
        case!("a file of zeros", "leanllama", Error File "generation_config.json" "zeros alone", "generation_config.json" = &[0; 512]),
        case!("no weights", "leanllama", Error File "" "no model.safetensors", |copy| {
            fs::remove_file(copy.weights()).expect("removed");
        }),
        case!("the beginning of a download", "leanllama", Warning File "model-2.safetensors.incomplete" "cut off", "model-2.safetensors.incomplete" = b"12345678"),
        case!("directory under the name of a file", "leanllama", Error File "chat_template.jinja" "", |copy| {
            fs::create_dir(copy.path().join("chat_template.jinja")).expect("a directory");
        }),
        case!("adapter beside the weights", "leanllama", Warning Tensors "" "the adapter in this directory is not applied", "adapter_config.json" = b"{}"),
        case!("pickle under the name of weights", "leanllama", Error Container "model.safetensors" "zip file", "model.safetensors" = b"PK\x03\x04and a pickle"),
    ]
}

pub fn containers() -> Vec<Case> {
    vec![
        case!("cut off", "leanllama", Error Container "model.safetensors" "are not in the", |copy| {
            change_weights(copy, |bytes| bytes.truncate(bytes.len() * 3 / 4));
        }),
        case!("cut off inside the header", "leanllama", Error Container "model.safetensors" "claims a header", |copy| {
            change_weights(copy, |bytes| bytes.truncate(500));
        }),
        case!("bytes at the end", "leanllama", Error Container "model.safetensors" "7 bytes after the last tensor", |copy| {
            change_weights(copy, |bytes| bytes.extend([0; 7]));
        }),
        case!("header that is no JSON", "leanllama", Error Container "model.safetensors" "not valid JSON", |copy| {
            change_weights(copy, |bytes| bytes[20] = b'}');
        }),
        case!("ranges that overlap", "leanllama", Error Container "down_proj" "overlaps the tensor before it", |copy| {
            change_header(copy, |header| shift(header, "model.layers.3.mlp.down_proj.weight", -16));
        }),
        case!("a gap", "leanllama", Error Container "up_proj" "leaves a gap before it", |copy| {
            // Bytes that belong to nothing, before a tensor; those behind it follow.
            change_header(copy, |header| {
                let at = header["model.layers.3.mlp.up_proj.weight"]["data_offsets"][0].as_u64().expect("a place");
                let header = header.as_object_mut().expect("an object");
                for (_, tensor) in header.iter_mut().filter(|(name, _)| *name != "__metadata__") {
                    if tensor["data_offsets"][0].as_u64().expect("a place") >= at {
                        for end in 0..2 {
                            tensor["data_offsets"][end] = json!(tensor["data_offsets"][end].as_u64().expect("a place") + 8);
                        }
                    }
                }
            });
            change_weights(copy, |bytes| bytes.extend([0; 8]));
        }),
        case!("another type in the header", "leanllama", Error Container "gate_proj" "takes 32768 bytes", |copy| {
            change_header(copy, |header| header[GATE]["dtype"] = json!("F32"));
        }),
        case!("an unknown type", "leanllama", Error Container "gate_proj" "element type F4_X is unknown", |copy| {
            change_header(copy, |header| header[GATE]["dtype"] = json!("F4_X"));
        }),
        case!("another shape in the header", "leanllama", Error Tensors "gate_proj" "[64, 128]", |copy| {
            change_header(copy, |header| header[GATE]["shape"] = json!([64, 128]));
        }),
    ]
}

pub fn indexes() -> Vec<Case> {
    const INDEX: &str = "model.safetensors.index.json";
    const FIRST: &str = "model-00001-of-00003.safetensors";
    const LAST: &str = "model-00003-of-00003.safetensors";
    vec![
        case!("missing shard", "crest_k2", Error Container "model-00002-of-00003" "is missing", |copy| {
            fs::remove_file(copy.path().join("model-00002-of-00003.safetensors")).expect("removed");
        }),
        case!("tensor of the index in no file", "crest_k2", Error Index "index.json" "in none of the files: model.extra", |copy| {
            change_json(copy, INDEX, |index| index["weight_map"]["model.extra"] = json!(FIRST));
        }),
        case!("tensor of a file not in the index", "crest_k2", Error Index "index.json" "are not in the index", |copy| {
            change_json(copy, INDEX, |index| {
                index["weight_map"].as_object_mut().expect("a map").remove("mtp.norm.weight");
            });
        }),
        case!("tensor in another file than the index says", "crest_k2", Error Index "index.json" "another file", |copy| {
            change_json(copy, INDEX, |index| index["weight_map"]["mtp.norm.weight"] = json!(FIRST));
        }),
        case!("tensor in two files", "crest_k2", Error Index "index.json" "in several files: mtp.norm", |copy| {
            let twice = read_tensors(&copy.path().join(LAST))["mtp.norm.weight"].clone();
            change_shard(copy, FIRST, |tensors| drop(tensors.insert("mtp.norm.weight".into(), twice)));
        }),
        case!("another total", "crest_k2", Warning Index "metadata.total_size" "656432 bytes", |copy| {
            change_json(copy, INDEX, |index| index["metadata"]["total_size"] = json!(656_430));
        }),
        case!("index that is no JSON", "crest_k2", Error Index "index.json" "not valid JSON", |copy| {
            write(copy, INDEX, b"{\"weight_map\": {");
        }),
        case!("tensor taken out of a shard", "crest_k2", Error Tensors "input_layernorm" "is missing", |copy| {
            let name = "model.language_model.layers.0.input_layernorm.weight";
            change_shard(copy, FIRST, |tensors| drop(tensors.remove(name)));
            change_json(copy, INDEX, |index| drop(index["weight_map"].as_object_mut().expect("a map").remove(name)));
        }),
        case!("shards of two versions", "crest_k2", Error Tensors "model.norm.weight" "[32]", |copy| {
            change_shard(copy, LAST, |tensors| {
                let name = "model.language_model.norm.weight";
                let Tensor(_, shape, data) = tensors.get_mut(name).expect("it");
                *shape = vec![32];
                data.truncate(data.len() / 2);
            });
        }),
    ]
}

pub fn hashes() -> Vec<Case> {
    vec![
        case!("bit flipped in a file that is known by its hash", "leanllama", Error Hash "model.safetensors" "sha256", |copy| {
            let bytes = fs::read(copy.weights()).expect("weights");
            metadata(copy, "model.safetensors", &sha256(&bytes));
            // A bit of a mantissa, which no other check could see.
            change_weights(copy, |bytes| {
                let at = bytes.len() - 1000;
                bytes[at] ^= 1;
            });
        }),
        case!("small file that was changed after its download", "leanllama", Warning Hash "generation_config.json" "it was changed after it was downloaded", |copy| {
            let bytes = fs::read(copy.path().join("generation_config.json")).expect("a config");
            metadata(copy, "generation_config.json", &format!("{}\n7.5\n", git(&bytes)));
            change_json(copy, "generation_config.json", |config| config["top_p"] = json!(0.8));
        }),
        case!("small file that git knows", "leanllama", Error Hash "generation_config.json" "git sha1", |copy| {
            let bytes = fs::read(copy.path().join("generation_config.json")).expect("a config");
            metadata(copy, "generation_config.json", &git(&bytes));
            change_json(copy, "generation_config.json", |config| config["top_p"] = json!(0.8));
        }),
    ]
}
