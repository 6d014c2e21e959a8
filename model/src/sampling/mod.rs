//! Choosing the next token from the logits of one position.
//!
//! The order is that of transformers' `generate`: repetition penalty and other [`LogitsProcessors`], temperature, top-k, top-p,
//! min-p, then one draw. Each truncation sees what the one before it left: top-p counts probability mass among the tokens that
//! top-k kept.
//!
//! - **Repetition penalty**: for every token of prompt and output, a positive logit is divided by the penalty, any other multiplied.
//! - **Temperature** 0 is greedy: the largest logit, the lowest id among equals. Truncation then changes nothing.
//! - **top-k** keeps the `k` largest logits and everything equal to the `k`-th; 0 and `k` above the vocabulary keep all.
//! - **top-p** keeps a token when the tokens above it hold less than `top_p` of the mass, so the best token always stays.
//! - **min-p** keeps tokens of at least `min_p` times the probability of the best one.
//!
//! A seed fixes the tokens on every platform: the generator is PCG64 and the exponential is plain arithmetic of this crate,
//! not the system's mathematics library.
//!
//! # Untrusted input
//! NaN, `+Inf` and logits that are all `-Inf` are [`Error::NonFinite`](crate::Error::NonFinite), never token 0. A single `-Inf` bans that token.

mod candidates;
mod config;
mod exponential;
mod logits;
mod processors;
mod sampler;
mod shortlist;
mod truncate;

pub use config::SamplingConfig;
pub use logits::log_softmax;
pub use processors::LogitsProcessors;
pub use sampler::Sampler;
