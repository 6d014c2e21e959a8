//! `verify`: damage of every kind is planted in good checkpoints, and must be found; good checkpoints must have none.

mod checkpoint_support;

use std::fs;
use std::path::Path;

use checkpoint_support::{Copy, Tensor, Tensors, container, fixture, read_tensors, write_tensors};
use emberlm_model::checkpoint::OpenOptions;
use emberlm_model::verify::{Check, Finding, Severity, Verification, VerifyOptions, verify};
use half::{bf16, f16};
use serde_json::{Value, json};
use sha1::Digest as _;

const FIXTURES: [&str; 7] =
    ["crest_k2", "crest_k4", "crest_k4_nf4", "leanllama", "leanllama_kv", "leanllama_nf4", "nano_compact"];

fn look(path: &Path) -> Verification {
    verify(path, OpenOptions::default(), VerifyOptions::default(), &|_| ()).expect("a directory")
}

fn listed(findings: &[Finding]) -> String {
    let line = |f: &Finding| {
        let (severity, check) = (f.severity.as_str(), f.check.as_str());
        format!("{severity} {check} {:?} {:?}: {} (expected {})", f.file, f.place, f.found, f.expected)
    };
    findings.iter().map(line).collect::<Vec<_>>().join("\n")
}

/// A damage, and what must be said of it: severity, check, a part of file or place, a part of what was found.
struct Case {
    name: &'static str,
    fixture: &'static str,
    damage: fn(&Copy),
    told: (Severity, Check, &'static str, &'static str),
}

macro_rules! case {
    ($name:literal, $fixture:literal, $severity:ident $check:ident $place:literal $found:literal, $damage:expr) => {
        Case {
            name: $name,
            fixture: $fixture,
            damage: $damage,
            told: (Severity::$severity, Check::$check, $place, $found),
        }
    };
}

const GATE: &str = "model.layers.2.mlp.gate_proj.weight";
const NORM: &str = "model.layers.1.input_layernorm.weight";
const CODES: &str = "model.layers.0.mlp.ffns.0.up_proj.weight";

fn table() -> Vec<Case> {
    [files(), containers(), indexes(), hashes(), configs(), numbers(), book_codes(), rows(), texts()]
        .into_iter()
        .flatten()
        .collect()
}

fn files() -> Vec<Case> {
    vec![
        case!("git-lfs pointer for weights", "leanllama", Error Container "model.safetensors" "git-lfs", |copy| {
            write(copy, "model.safetensors", b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 1\n");
        }),
        case!("git-lfs pointer for the tokenizer", "leanllama", Error Tokenizer "tokenizer.json" "git-lfs", |copy| {
            write(copy, "tokenizer.json", b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 1\n");
        }),
        case!("web page for a config", "leanllama", Error File "tokenizer_config.json" "web page", |copy| {
            write(copy, "tokenizer_config.json", b"<!DOCTYPE html><title>Log in</title>");
        }),
        case!("empty file", "leanllama", Error Container "model.safetensors" "shorter than 8 bytes", |copy| {
            write(copy, "model.safetensors", b"");
        }),
        case!("a file of zeros", "leanllama", Error File "generation_config.json" "zeros alone", |copy| {
            write(copy, "generation_config.json", &[0; 512]);
        }),
        case!("no weights", "leanllama", Error File "" "no model.safetensors", |copy| {
            fs::remove_file(copy.weights()).expect("removed");
        }),
        case!("the beginning of a download", "leanllama", Warning File "model-2.safetensors.incomplete" "cut off", |copy| {
            write(copy, "model-2.safetensors.incomplete", b"12345678");
        }),
        case!("pickle under the name of weights", "leanllama", Error Container "model.safetensors" "zip file", |copy| {
            write(copy, "model.safetensors", b"PK\x03\x04and a pickle");
        }),
    ]
}

fn containers() -> Vec<Case> {
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

fn indexes() -> Vec<Case> {
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

fn hashes() -> Vec<Case> {
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
        case!("small file that git knows", "leanllama", Error Hash "generation_config.json" "git sha1", |copy| {
            let bytes = fs::read(copy.path().join("generation_config.json")).expect("a config");
            metadata(copy, "generation_config.json", &git(&bytes));
            change_json(copy, "generation_config.json", |config| config["top_p"] = json!(0.8));
        }),
    ]
}

fn configs() -> Vec<Case> {
    vec![
        case!("config cut off", "leanllama", Error Config "config.json" "not valid JSON", |copy| {
            let bytes = fs::read(copy.path().join("config.json")).expect("a config");
            write(copy, "config.json", &bytes[..bytes.len() / 2]);
        }),
        case!("vocabulary of another size", "leanllama", Error Tensors "embed_tokens" "[544, 64]", |copy| {
            copy.change_config(|config| config["vocab_size"] = json!(512));
        }),
        case!("too few layers", "crest_k4_nf4", Error Tensors "" "are none of this model", |copy| {
            copy.change_config(|config| {
            config["num_hidden_layers"] = json!(3);
            config["layer_types"].as_array_mut().expect("a list").pop();
            });
        }),
        case!("too many layers", "leanllama", Error Tensors "model.layers.6." "is missing", |copy| {
            copy.change_config(|config| config["num_hidden_layers"] = json!(7));
        }),
        case!("width of another model", "leanllama", Error Tensors "gate_proj" "[128, 64]", |copy| {
            copy.change_config(|config| config["intermediate_size"] = json!(96));
        }),
        case!("activation that is not computed", "leanllama", Error Config "hidden_act" "gelu", |copy| {
            copy.change_config(|config| config["hidden_act"] = json!("gelu"));
        }),
        case!("value of the wrong type", "leanllama", Error Config "rms_norm_eps" "the string", |copy| {
            copy.change_config(|config| config["rms_norm_eps"] = json!("1e-5"));
        }),
        case!("key of another family", "leanllama", Warning Key "config.json" "attn_logit_softcapping", |copy| {
            copy.change_config(|config| config["attn_logit_softcapping"] = json!(30.0));
        }),
        case!("key that is not known", "leanllama", Warning Key "attention_sinks" "does not know", |copy| {
            copy.change_config(|config| config["attention_sinks"] = json!(4));
        }),
        case!("key that is not known inside an object", "leanllama_kv", Warning Key "rope_parameters.tempo" "does not know", |copy| {
            copy.change_config(|config| config["rope_parameters"]["tempo"] = json!(2));
        }),
        case!("scaling of positions that is not computed", "leanllama_kv", Error Config "rope_type" "not supported", |copy| {
            copy.change_config(|config| config["rope_parameters"]["rope_type"] = json!("spiral"));
        }),
        case!("sampling that cannot be", "leanllama", Error Generation "generation_config.json" "temperature", |copy| {
            change_json(copy, "generation_config.json", |config| config["temperature"] = json!("hot"));
        }),
        case!("end token beyond the vocabulary", "leanllama", Error Generation "eos_token_id" "128009", |copy| {
            change_json(copy, "generation_config.json", |config| config["eos_token_id"] = json!(128_009));
        }),
        case!("end token that the tokenizer lacks", "leanllama", Warning Generation "eos_token_id" "token 543", |copy| {
            change_json(copy, "generation_config.json", |config| config["eos_token_id"] = json!([523, 543]));
        }),
    ]
}

fn numbers() -> Vec<Case> {
    vec![
        case!("NaN in a norm", "leanllama", Error Numbers "layers.1.input_layernorm" "1 NaN of 64 numbers, the first at [5]", |copy| {
            halves(copy, NORM, |values| values[5] = f16::NAN);
        }),
        case!("infinity in a matrix", "leanllama", Error Numbers "layers.2.mlp.gate_proj" "1 infinite of 8192 numbers, the first at [3, 8]", |copy| {
            halves(copy, GATE, |values| values[200] = f16::NEG_INFINITY);
        }),
        case!("flipped bit of an exponent", "crest_k4", Error Numbers "embed_tokens" "1 beyond 1e6", |copy| {
            copy.change_tensors(|tensors| {
                let (name, Tensor(_, _, data)) = tensors.iter_mut().find(|(name, _)| name.ends_with("embed_tokens.weight")).expect("it");
                assert!(!name.is_empty());
                data[101] ^= 0x40;
            });
        }),
        case!("number that stands out", "leanllama", Warning Numbers "gate_proj" "at [0, 17] is 6e2", |copy| {
            halves(copy, GATE, |values| values[17] = f16::from_f32(600.0));
        }),
        case!("tensor of zeros", "leanllama", Warning Numbers "gate_proj" "all 8192 numbers are 0", |copy| {
            halves(copy, GATE, |values| values.fill(f16::ZERO));
        }),
        case!("hole of zeros", "leanllama", Warning Numbers "gate_proj" "3000 zeros one after the other, from [15, 40] on", |copy| {
            halves(copy, GATE, |values| values[1000..4000].fill(f16::ZERO));
        }),
        case!("row of one value", "leanllama", Warning Numbers "gate_proj" "1 rows hold one value alone, the first is row 2", |copy| {
            halves(copy, GATE, |values| values[128..192].fill(f16::ONE));
        }),
        case!("rows of the embedding lost", "leanllama", Warning Numbers "embed_tokens" "rows of ordinary tokens are 0", |copy| {
            halves(copy, "model.embed_tokens.weight", |values| values[6400..9600].fill(f16::ZERO));
        }),
        case!("norm below 0", "leanllama", Warning Numbers "layers.1.input_layernorm" "the mean of this norm", |copy| {
            halves(copy, NORM, |values| values.iter_mut().for_each(|x| *x = -*x));
        }),
        case!("norm far off", "leanllama", Warning Numbers "layers.1.input_layernorm" "the mean of this norm", |copy| {
            halves(copy, NORM, |values| values.iter_mut().for_each(|x| *x = f16::from_f32(x.to_f32() * 3000.0)));
        }),
        case!("scale applied twice", "leanllama", Warning Layers "layers.2.mlp.gate_proj" "the root mean square is", |copy| {
            halves(copy, GATE, |values| values.iter_mut().for_each(|x| *x = f16::from_f32(x.to_f32() * 200.0)));
        }),
        case!("layer copied over another", "leanllama", Warning Layers "model.layers.1" "layers 1 and 2 hold the same bytes", |copy| {
            copy.change_tensors(|tensors| {
                let copied: Vec<_> = tensors.iter().filter(|(name, _)| name.contains("layers.1.")).collect();
                let copied = copied.into_iter().map(|(name, t)| (name.replace("layers.1.", "layers.2."), t.clone()));
                let copied: Tensors = copied.filter(|(name, _)| !name.contains("compressor")).collect();
                tensors.extend(copied);
            });
        }),
        case!("matrix copied over another", "leanllama", Warning Layers "layers.0.mlp.gate_proj" "the same bytes as in layer 2", |copy| {
            copy.change_tensors(|tensors| {
                let one = tensors["model.layers.0.mlp.gate_proj.weight"].clone();
                tensors.insert(GATE.into(), one);
            });
        }),
        case!("data shifted by a byte", "crest_k4", Error Numbers "in_proj_qkv" "beyond 1e6", |copy| {
            copy.change_tensors(|tensors| {
                let tensor = tensors.iter_mut().find(|(name, _)| name.ends_with("in_proj_qkv.weight")).expect("it").1;
                tensor.2.rotate_left(1);
            });
        }),
    ]
}

fn book_codes() -> Vec<Case> {
    vec![
        case!("code book changed", "crest_k4_nf4", Error Scales "ffns.0.up_proj.weight.quant_map" "code 3 is -0.5", |copy| {
            floats(copy, &format!("{CODES}.quant_map"), |values| values[3] = -0.5);
        }),
        case!("negative scale", "crest_k4_nf4", Error Scales "ffns.0.up_proj.weight.absmax" "1 of 259 scales are negative, the first at [7]", |copy| {
            floats(copy, &format!("{CODES}.absmax"), |values| values[7] = -values[7]);
        }),
        case!("NaN scale", "crest_k4_nf4", Error Numbers "ffns.0.up_proj.weight.absmax" "1 NaN", |copy| {
            floats(copy, &format!("{CODES}.absmax"), |values| values[7] = f32::NAN);
        }),
        case!("scales lost", "crest_k4_nf4", Error Scales "ffns.0.up_proj.weight.absmax" "all scales are 0", |copy| {
            floats(copy, &format!("{CODES}.absmax"), |values| values.fill(0.0));
        }),
        case!("scale missing", "crest_k4_nf4", Error Tensors "ffns.0.up_proj.weight.absmax" "expected 259 elements", |copy| {
            copy.change_tensors(|tensors| {
                let Tensor(_, shape, data) = tensors.get_mut(&format!("{CODES}.absmax")).expect("it");
                *shape = vec![258];
                data.truncate(258 * 4);
            });
        }),
        case!("quant state missing", "crest_k4_nf4", Error Tensors "ffns.0.up_proj" "no quant_state", |copy| {
            copy.change_tensors(|tensors| drop(tensors.remove(&format!("{CODES}.quant_state.bitsandbytes__nf4"))));
        }),
        case!("quant state of another shape", "crest_k4_nf4", Error Tensors "ffns.0.up_proj" "[8272, 1]", |copy| {
            state(copy, CODES, |state| state["shape"] = json!([188, 90]));
        }),
        case!("hole in the codes", "crest_k4_nf4", Error Codes "ffns.0.up_proj" "bytes of zeros, from byte 4000 on", |copy| {
            copy.change_tensors(|tensors| tensors.get_mut(CODES).expect("it").2[4000..4300].fill(0));
        }),
        case!("codes of a block changed", "crest_k4_nf4", Warning Codes "ffns.0.up_proj" "1 of 259 blocks have no code of the largest magnitude, the first is block 10", |copy| {
            copy.change_tensors(|tensors| tensors.get_mut(CODES).expect("it").2[320..352].fill(0x88));
        }),
        case!("map of scales changed", "leanllama_nf4", Error Scales "up_proj.weight.nested_quant_map" "code 200", |copy| {
            floats(copy, "model.layers.0.mlp.up_proj.weight.nested_quant_map", |values| values[200] += 0.01);
        }),
        case!("offset of scales with the wrong sign", "leanllama_nf4", Error Scales "up_proj.weight.absmax" "scales are negative", |copy| {
            state(copy, "model.layers.0.mlp.up_proj.weight", |state| {
                state["nested_offset"] = json!(-state["nested_offset"].as_f64().expect("a number"));
            });
        }),
        case!("nested scales missing", "leanllama_nf4", Error Tensors "up_proj.weight" "double-quantised by its quant state", |copy| {
            copy.change_tensors(|tensors| {
                tensors.remove("model.layers.0.mlp.up_proj.weight.nested_absmax");
                tensors.remove("model.layers.0.mlp.up_proj.weight.nested_quant_map");
            });
        }),
    ]
}

fn rows() -> Vec<Case> {
    const GATE: &str = "model.layers.0.mlp.gate_proj";
    vec![
        case!("row stored twice", "nano_compact", Error Codes "layers.0.mlp.gate_proj" "is stored twice", |copy| {
            integers(copy, &format!("{GATE}.prot_idx"), |rows| rows[1] = rows[0]);
        }),
        case!("row number beyond the rows", "nano_compact", Error Codes "layers.0.mlp.gate_proj.deg_idx" "entry 4 is not one of the 128 rows", |copy| {
            integers(copy, &format!("{GATE}.deg_idx"), |rows| rows[4] = 128);
        }),
        case!("NaN scale of a row", "nano_compact", Error Numbers "gate_proj.prot_scale" "1 NaN", |copy| {
            halves(copy, &format!("{GATE}.prot_scale"), |scales| scales[3] = f16::NAN);
        }),
        case!("negative scale of a row", "nano_compact", Error Scales "gate_proj.prot_scale" "1 of 48 scales are negative, the first at [3]", |copy| {
            halves(copy, &format!("{GATE}.prot_scale"), |scales| scales[3] = -scales[3]);
        }),
        case!("2-bit code beyond the range", "nano_compact", Error Codes "gate_proj" "1 rows have codes of 2 bits above 1", |copy| {
            copy.change_tensors(|t| t.get_mut(&format!("{GATE}.deg_q_packed")).expect("it").2[20] |= 3);
        }),
        case!("8-bit code beyond the range", "nano_compact", Error Codes "o_proj" "1 codes of 8 bits are -128", |copy| {
            copy.change_tensors(|t| t.get_mut("model.layers.0.self_attn.o_proj.q").expect("it").2[20] = 0x80);
        }),
        case!("codes of a row changed", "nano_compact", Warning Codes "o_proj" "1 of 64 rows have no code at the end of the range", |copy| {
            copy.change_tensors(|t| t.get_mut("model.layers.0.self_attn.o_proj.q").expect("it").2[..64].fill(1));
        }),
        case!("spec with another number of bits", "nano_compact", Error Config "layers.0.mlp.gate_proj.bits" "3", |copy| {
            copy.change_config(|config| config["nanollm_modules"][GATE]["bits"] = json!(3));
        }),
        case!("spec whose rows do not add up", "nano_compact", Error Config "deg_rows" "do not add up", |copy| {
            copy.change_config(|config| config["nanollm_modules"][GATE]["deg_rows"] = json!(79));
        }),
        case!("scales of a module missing", "nano_compact", Error Tensors "o_proj.scale" "is missing", |copy| {
            copy.change_tensors(|t| drop(t.remove("model.layers.0.self_attn.o_proj.scale")));
        }),
    ]
}

fn texts() -> Vec<Case> {
    vec![
        case!("tokenizer of another model", "crest_k4", Error Tokenizer "tokenizer.json" "tokens have ids from 520 on", |copy| {
            for file in ["tokenizer.json", "tokenizer_config.json"] {
                fs::copy(fixture("nano_compact").join(file), copy.path().join(file)).expect("a copy");
            }
        }),
        case!("token added beyond the embedding", "crest_k4", Warning Tokenizer "tokenizer.json" "<|extra|> is 520", |copy| {
            change_json(copy, "tokenizer_config.json", |config| {
                let mut token = config["added_tokens_decoder"]["505"].clone();
                token["content"] = json!("<|extra|>");
                for id in 512..520 {
                    let mut filler = token.clone();
                    filler["content"] = json!(format!("<|filler_{id}|>"));
                    config["added_tokens_decoder"][id.to_string()] = filler;
                }
                config["added_tokens_decoder"]["520"] = token;
            });
        }),
        case!("tokenizer cut off", "crest_k4", Error Tokenizer "tokenizer.json" "tokenizer", |copy| {
            let bytes = fs::read(copy.path().join("tokenizer.json")).expect("a tokenizer");
            write(copy, "tokenizer.json", &bytes[..bytes.len() / 2]);
        }),
        case!("tokenizer missing", "crest_k4", Error Tokenizer "tokenizer.json" "no such file", |copy| {
            fs::remove_file(copy.path().join("tokenizer.json")).expect("removed");
        }),
        case!("template that does not parse", "crest_k4", Error Template "chat_template" "line", |copy| {
            write(copy, "chat_template.jinja", b"{% for message in messages %}{{ message.content ");
        }),
        case!("template that fails", "crest_k4", Error Template "chat_template" "no_such_function", |copy| {
            write(copy, "chat_template.jinja", b"{{ no_such_function(messages) }}");
        }),
        case!("template without the question", "crest_k4", Error Template "chat_template" "the prompt of one question", |copy| {
            write(copy, "chat_template.jinja", b"<|im_start|>user\n<|im_end|>\n");
        }),
        case!("template of another model", "crest_k4", Warning Template "chat_template" "<|begin_of_turn|>", |copy| {
            let template = fs::read_to_string(copy.path().join("chat_template.jinja")).expect("a template");
            write(copy, "chat_template.jinja", template.replace("<|im_start|>", "<|begin_of_turn|>").as_bytes());
        }),
    ]
}

fn found(verified: &Verification, (severity, check, place, text): (Severity, Check, &str, &str)) -> bool {
    verified.findings.iter().any(|finding| {
        let places = finding.file.iter().chain(&finding.place).any(|at| at.contains(place));
        let here = places || place.is_empty();
        finding.severity == severity && finding.check == check && here && finding.found.contains(text)
    })
}

/// Every kind of damage is found, said at its place, and with something to do.
#[test]
fn every_planted_damage_is_found() {
    let table = table();
    assert!(table.len() >= 30, "{} kinds", table.len());
    let mut missed = Vec::new();
    for Case { name, fixture, damage, told } in &table {
        let copy = Copy::whole(fixture);
        damage(&copy);
        let verified = look(copy.path());
        if !found(&verified, *told) {
            missed.push(format!("{name}: expected {told:?}, found\n{}\n", listed(&verified.findings)));
        }
        for finding in verified.findings.iter().filter(|finding| finding.severity > Severity::Note) {
            assert!(!finding.advice.is_empty(), "{name}: nothing to do about {}", finding.found);
        }
    }
    assert!(missed.is_empty(), "{} of {} missed\n{}", missed.len(), table.len(), missed.join("\n"));
}

/// No finding ends the search: damage of several kinds in one checkpoint is all found.
#[test]
fn all_of_several_damages_are_found() {
    type Part = fn() -> Vec<Case>;
    for (fixture, parts) in [
        ("leanllama", &[numbers as Part][..]),
        ("crest_k4_nf4", &[book_codes as Part]),
        ("nano_compact", &[rows as Part]),
    ] {
        // Of those that would hide each other, the first.
        let hidden = [
            "tensor of zeros",
            "hole of zeros",
            "row of one value",
            "number that stands out",
            "scale applied twice",
            "norm below 0",
            "norm far off",
            "layer copied over another",
            "matrix copied over another",
            "NaN scale",
            "negative scale",
            "scales lost",
            "scale missing",
            "quant state missing",
            "quant state of another shape",
            "codes of a block changed",
            "NaN scale of a row",
            "row number beyond the rows",
            "negative scale of a row",
            "2-bit code beyond the range",
            "spec with another number of bits",
            "spec whose rows do not add up",
            "scales of a module missing",
            "codes of a row changed",
        ];
        let cases: Vec<Case> = parts.iter().flat_map(|part| part()).collect();
        let cases: Vec<&Case> =
            cases.iter().filter(|case| case.fixture == fixture && !hidden.contains(&case.name)).collect();
        assert!(cases.len() >= 2, "{fixture}");
        let copy = Copy::whole(fixture);
        cases.iter().for_each(|case| (case.damage)(&copy));
        write(&copy, "generation_config.json", b"{\"temperature\": \"hot\", \"top_p\": 7}");
        copy.change_config(|config| config["attention_sinks"] = json!(4));
        let verified = look(copy.path());
        for case in cases {
            assert!(found(&verified, case.told), "{fixture}: {}\n{}", case.name, listed(&verified.findings));
        }
        for told in [
            (Severity::Error, Check::Generation, "", "temperature"),
            (Severity::Error, Check::Generation, "", "top_p"),
            (Severity::Warning, Check::Key, "attention_sinks", ""),
        ] {
            assert!(found(&verified, told), "{fixture}: {told:?}\n{}", listed(&verified.findings));
        }
    }
}

/// Several values of one config are named at once, and the numbers are looked at all the same.
#[test]
fn every_value_of_a_config_is_named() {
    let copy = Copy::whole("leanllama");
    copy.change_config(|config| {
        config["hidden_act"] = json!("gelu");
        config["rms_norm_eps"] = json!(-1.0);
        config["head_dim"] = json!("x");
    });
    halves(&copy, NORM, |values| values[5] = f16::NAN);
    let verified = look(copy.path());
    for key in ["hidden_act", "rms_norm_eps", "head_dim"] {
        assert!(found(&verified, (Severity::Error, Check::Config, key, "")), "{key}\n{}", listed(&verified.findings));
    }
    assert!(found(&verified, (Severity::Error, Check::Numbers, "input_layernorm", "1 NaN")));
}

/// Of a checkpoint in three files of which one is cut off, the other two are looked at.
#[test]
fn one_damaged_shard_hides_no_other() {
    let copy = Copy::whole("crest_k2");
    change_shard(&copy, "model-00001-of-00003.safetensors", |tensors| {
        let Tensor(_, _, data) = tensors.values_mut().next().expect("a tensor");
        data[..2].copy_from_slice(&bf16::NAN.to_le_bytes());
    });
    let path = copy.path().join("model-00003-of-00003.safetensors");
    let bytes = fs::read(&path).expect("a shard");
    fs::write(&path, &bytes[..bytes.len() - 100]).expect("written");
    let verified = look(copy.path());
    assert!(
        found(&verified, (Severity::Error, Check::Numbers, "model-00001", "1 NaN")),
        "{}",
        listed(&verified.findings)
    );
    assert!(found(&verified, (Severity::Error, Check::Container, "model-00003", "are not in the")));
}

/// Good checkpoints have neither errors nor warnings, in whatever layout they are kept.
#[test]
fn good_checkpoints_have_no_findings() {
    let mut good: Vec<_> = FIXTURES.into_iter().map(fixture).collect();
    good.push(Path::new(env!("CARGO_MANIFEST_DIR")).join("../demo"));
    for path in good {
        let verified = look(&path);
        let (seen, name) = (&verified.looked_at, path.display());
        assert!(verified.worst() <= Some(Severity::Note), "{name}\n{}", listed(&verified.findings));
        assert!(seen.tensors > 60 && seen.bytes > 200_000 && seen.tokens > 500 && seen.chats == 4, "{name}: {seen:?}");
        assert!(seen.family.is_some(), "{name}");
    }
}

/// A snapshot of a hub's cache: names of blobs are hashes, a link to nothing is found.
#[cfg(unix)]
#[test]
fn blobs_of_a_cache_are_compared_with_their_names() {
    let copy = Copy::whole("leanllama");
    let cache = tempfile::tempdir().expect("tempdir");
    let repository = cache.path().join("models--org--name");
    let (blobs, snapshot) = (repository.join("blobs"), repository.join("snapshots/0123456789abcdef"));
    fs::create_dir_all(&blobs).expect("a directory");
    fs::create_dir_all(&snapshot).expect("a directory");
    let mut names = Vec::new();
    for entry in fs::read_dir(copy.path()).expect("a copy") {
        let path = entry.expect("an entry").path();
        let bytes = fs::read(&path).expect("a file");
        let large = path.extension().is_some_and(|extension| extension == "safetensors");
        let hash = if large { sha256(&bytes) } else { git(&bytes) };
        fs::write(blobs.join(&hash), bytes).expect("written");
        let name = path.file_name().expect("a name");
        std::os::unix::fs::symlink(Path::new("../../blobs").join(&hash), snapshot.join(name)).expect("a link");
        names.push((name.to_string_lossy().into_owned(), hash));
    }
    let verified = look(&snapshot);
    assert_eq!(verified.looked_at.hashed, names.len());
    assert!(verified.worst() <= Some(Severity::Note), "{}", listed(&verified.findings));

    let blob = |file: &str| blobs.join(&names.iter().find(|(name, _)| name == file).expect("a file").1);
    let mut bytes = fs::read(blob("model.safetensors")).expect("a blob");
    let at = bytes.len() - 1000;
    bytes[at] ^= 1;
    fs::write(blob("model.safetensors"), bytes).expect("written");
    fs::write(blob("generation_config.json"), b"{}").expect("written");
    fs::remove_file(blob("tokenizer_config.json")).expect("removed");
    let verified = look(&snapshot);
    for told in [
        (Severity::Error, Check::Hash, "model.safetensors", "sha256"),
        (Severity::Error, Check::Hash, "generation_config.json", "git sha1"),
        (Severity::Error, Check::File, "tokenizer_config.json", "link to a file that does not exist"),
    ] {
        assert!(found(&verified, told), "{told:?}\n{}", listed(&verified.findings));
    }
    // Without reading them, nothing is known of the contents.
    let quick = VerifyOptions { hashes: false, numbers: false };
    let verified = verify(&snapshot, OpenOptions::default(), quick, &|_| ()).expect("a directory");
    assert_eq!((verified.looked_at.hashed, verified.looked_at.tensors), (0, 0));
    assert!(verified.findings.iter().all(|finding| finding.check != Check::Hash));
}

/// Progress ends where it says that it ends.
#[test]
fn progress_reaches_its_total() {
    use std::sync::atomic::{AtomicUsize, Ordering};
    let (done, total) = (AtomicUsize::new(0), AtomicUsize::new(0));
    let progress = |progress: emberlm_model::Progress| {
        done.fetch_max(progress.done, Ordering::Relaxed);
        total.store(progress.total, Ordering::Relaxed);
    };
    let verified =
        verify(&fixture("crest_k2"), OpenOptions::default(), VerifyOptions::default(), &progress).expect("a directory");
    assert_eq!(done.load(Ordering::Relaxed), verified.looked_at.bytes);
    assert_eq!(total.load(Ordering::Relaxed), verified.looked_at.bytes);
}

fn write(copy: &Copy, name: &str, bytes: &[u8]) {
    fs::write(copy.path().join(name), bytes).expect("written");
}

fn change_json(copy: &Copy, name: &str, change: impl FnOnce(&mut Value)) {
    let path = copy.path().join(name);
    let mut json: Value = serde_json::from_slice(&fs::read(&path).expect("a file")).expect("JSON");
    change(&mut json);
    fs::write(path, json.to_string()).expect("written");
}

fn change_weights(copy: &Copy, change: impl FnOnce(&mut Vec<u8>)) {
    let mut bytes = fs::read(copy.weights()).expect("weights");
    change(&mut bytes);
    fs::write(copy.weights(), bytes).expect("written");
}

fn change_shard(copy: &Copy, name: &str, change: impl FnOnce(&mut Tensors)) {
    let path = copy.path().join(name);
    let mut tensors = read_tensors(&path);
    change(&mut tensors);
    write_tensors(&path, &tensors);
}

fn change_header(copy: &Copy, change: impl FnOnce(&mut Value)) {
    change_weights(copy, |bytes| {
        let length = u64::from_le_bytes(bytes[..8].try_into().expect("8 bytes")) as usize;
        let mut header: Value = serde_json::from_slice(&bytes[8..8 + length]).expect("JSON");
        change(&mut header);
        *bytes = container(&header.to_string(), &bytes[8 + length..]);
    });
}

/// Moves a tensor in the header, by so many bytes.
fn shift(header: &mut Value, tensor: &str, by: i64) {
    for end in 0..2 {
        let place = &mut header[tensor]["data_offsets"][end];
        *place = json!(place.as_i64().expect("a place") + by);
    }
}

fn halves(copy: &Copy, name: &str, change: impl FnOnce(&mut [f16])) {
    copy.change_tensors(|tensors| {
        let Tensor(dtype, _, data) = tensors.get_mut(name).expect("it");
        assert_eq!(dtype, "F16");
        let mut values: Vec<f16> = data.as_chunks().0.iter().map(|b| f16::from_le_bytes(*b)).collect();
        change(&mut values);
        *data = values.into_iter().flat_map(f16::to_le_bytes).collect();
    });
}

fn floats(copy: &Copy, name: &str, change: impl FnOnce(&mut [f32])) {
    copy.change_tensors(|tensors| {
        let Tensor(dtype, _, data) = tensors.get_mut(name).expect("it");
        assert_eq!(dtype, "F32");
        let mut values: Vec<f32> = data.as_chunks().0.iter().map(|b| f32::from_le_bytes(*b)).collect();
        change(&mut values);
        *data = values.into_iter().flat_map(f32::to_le_bytes).collect();
    });
}

fn integers(copy: &Copy, name: &str, change: impl FnOnce(&mut [i64])) {
    copy.change_tensors(|tensors| {
        let Tensor(dtype, _, data) = tensors.get_mut(name).expect("it");
        assert_eq!(dtype, "I64");
        let mut values: Vec<i64> = data.as_chunks().0.iter().map(|b| i64::from_le_bytes(*b)).collect();
        change(&mut values);
        *data = values.into_iter().flat_map(i64::to_le_bytes).collect();
    });
}

/// Changes the quant state of a 4-bit tensor.
fn state(copy: &Copy, name: &str, change: impl FnOnce(&mut Value)) {
    copy.change_tensors(|tensors| {
        let Tensor(_, shape, data) =
            tensors.get_mut(&format!("{name}.quant_state.bitsandbytes__nf4")).expect("a quant state");
        let mut state: Value = serde_json::from_slice(data).expect("JSON");
        change(&mut state);
        *data = state.to_string().into_bytes();
        *shape = vec![data.len()];
    });
}

/// What a download into a directory leaves beside it.
fn metadata(copy: &Copy, name: &str, hash: &str) {
    let folder = copy.path().join(".cache/huggingface/download");
    fs::create_dir_all(&folder).expect("a directory");
    fs::write(folder.join(format!("{name}.metadata")), format!("0123abcd\n{hash}\n99999999999.5\n")).expect("written");
}

fn sha256(bytes: &[u8]) -> String {
    hex(&sha2::Sha256::digest(bytes))
}

fn git(bytes: &[u8]) -> String {
    hex(&sha1::Sha1::digest([format!("blob {}\0", bytes.len()).as_bytes(), bytes].concat()))
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
