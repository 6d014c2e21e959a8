//! `/v1/models`.

use emberlm::model::sampling::SamplingConfig;
use serde_json::{Value, json};

use super::app::App;

/// The list of one model, under each of its names.
pub fn list(app: &App) -> Value {
    let data: Vec<Value> = app.names.iter().map(|name| one(app, name)).collect();
    json!({"object": "list", "data": data})
}

/// The model under one of its names.
pub fn one(app: &App, name: &str) -> Value {
    let card = &app.card;
    let depth = card
        .depth
        .map(|(layers, steps, threshold)| json!({"layers": layers, "steps": steps, "threshold": short(threshold)}));
    json!({
        "id": name, "object": "model", "created": app.created, "owned_by": "emberlm",
        // As vLLM and as OpenRouter call it.
        "max_model_len": app.context, "context_length": app.context,
        "depth": depth,
        "meta": {
            "family": card.family, "n_params": card.parameters, "n_vocab": app.defaults.vocabulary,
            "n_ctx_train": card.trained_context, "chat_template": card.has_chat_template,
            "cache_type": card.cache.cache_type, "cache_hidden": card.cache.cache_hidden,
            "sampling": sampling(&app.defaults.sampling()),
        },
    })
}

/// How tokens are chosen where a request says nothing.
fn sampling(config: &SamplingConfig) -> Value {
    json!({
        "do_sample": !config.is_greedy(), "temperature": short(config.temperature), "top_k": config.top_k,
        "top_p": short(config.top_p), "min_p": short(config.min_p),
    })
}

/// The number that its digits say, and not what they become in 64 bits.
fn short(x: f32) -> f64 {
    x.to_string().parse().unwrap_or(f64::from(x))
}
