//! Text: tokenizers, chat templates, answers taken apart, and how tokens are chosen.

mod answer;
mod conversation;
mod decode_stream;
mod engine_masks;
mod golden;
mod hostile_templates;
mod hostile_tokenizer;
mod literal;
mod logits_processors;
mod properties;
mod sampling_rules;
mod special_tokens;
mod stop;
mod support;
mod templates;
