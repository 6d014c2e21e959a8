//! Configs, tokenizers and templates.

use std::fs;

use serde_json::json;

use super::{Case, case, change_json, write};
use crate::support::fixture;

pub fn configs() -> Vec<Case> {
    vec![
        case!("config that contradicts the tensors", "leanllama_kv", Error Config "kv_compression.hidden_dim" "is stated as 40", |copy| {
            change_json(copy, "config.json", |config| config["kv_compression"]["hidden_dim"] = json!(40));
        }),
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
        case!("far too many layers", "leanllama", Error Tensors "" "more tensors are missing", |copy| {
            copy.change_config(|config| config["num_hidden_layers"] = json!(12));
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

pub fn texts() -> Vec<Case> {
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
        case!("token put around a text that the embedding lacks", "leanllama", Error Tokenizer "post_processor" "id 99999", |copy| {
            change_json(copy, "tokenizer.json", |tokenizer| {
                let around = &mut tokenizer["post_processor"]["processors"][1]["special_tokens"]["<|begin_of_text|>"];
                around["ids"] = json!([99_999]);
            });
        }),
        case!("token put around a text that nobody declares", "leanllama", Error Tokenizer "post_processor" "cannot be used", |copy| {
            change_json(copy, "tokenizer.json", |tokenizer| {
                tokenizer["post_processor"]["processors"][1]["single"][0]["SpecialToken"]["id"] = json!("<|other|>");
            });
        }),
        case!("one id for two tokens", "crest_k4", Error Tokenizer "tokenizer.json" "1 ids belong to two tokens: 70 (", |copy| {
            change_json(copy, "tokenizer.json", |tokenizer| {
                let vocabulary = tokenizer["model"]["vocab"].as_object_mut().expect("a vocabulary");
                let token = vocabulary.iter().find(|(_, id)| **id == json!(71)).expect("a token").0.clone();
                vocabulary[&token] = json!(70);
            });
        }),
        case!("tokenizer cut off", "crest_k4", Error Tokenizer "tokenizer.json" "tokenizer", |copy| {
            let bytes = fs::read(copy.path().join("tokenizer.json")).expect("a tokenizer");
            write(copy, "tokenizer.json", &bytes[..bytes.len() / 2]);
        }),
        case!("tokenizer missing", "crest_k4", Error Tokenizer "tokenizer.json" "no such file", |copy| {
            fs::remove_file(copy.path().join("tokenizer.json")).expect("removed");
        }),
        case!("template that does not parse", "crest_k4", Error Template "chat_template" "line", "chat_template.jinja" = b"{% for message in messages %}{{ message.content "),
        case!("template that fails", "crest_k4", Error Template "chat_template" "no_such_function", "chat_template.jinja" = b"{{ no_such_function(messages) }}"),
        case!("template that knows one question", "crest_k4", Error Template "chat_template" "one at a time", |copy| {
            let template = "{% if messages|length > 2 %}{{ raise_exception('one at a time') }}{% endif %}{{ messages[-1].content }}";
            write(copy, "chat_template.jinja", template.as_bytes());
        }),
        case!("template without the question", "crest_k4", Error Template "chat_template" "the prompt of one question", "chat_template.jinja" = b"<|im_start|>user\n<|im_end|>\n"),
        case!("template of another model", "crest_k4", Warning Template "chat_template" "<|begin_of_turn|>", |copy| {
            let template = fs::read_to_string(copy.path().join("chat_template.jinja")).expect("a template");
            write(copy, "chat_template.jinja", template.replace("<|im_start|>", "<|begin_of_turn|>").as_bytes());
        }),
    ]
}
