//! `ember serve`: OpenAI's API, and Anthropic's messages, in front of one engine.
//!
//! Every endpoint turns its body into the same requests of the engine ([`generate`]), and what the engine says into deltas
//! ([`mod@run`]); a stream and a whole answer are made of the same deltas. One thread serves all connections, a few prepare requests
//! (parse, render, tokenise), and the engine has its own. A client that goes away drops its body or its handler, and with it the
//! tickets of what is generated for it.
//!
//! # Untrusted input
//! Every body is bounded ([`limits`]) before it is parsed and every field checked as it is taken ([`fields`]). Who may ask is
//! checked first ([`access`]). Texts of models and clients leave as JSON alone, and are in no log.

#![cfg_attr(not(test), deny(clippy::expect_used, clippy::indexing_slicing, clippy::panic, clippy::unwrap_used))]

mod access;
mod anthropic;
mod anthropic_in;
mod app;
mod blocks;
mod chat;
mod completions;
mod error;
mod fields;
mod form;
mod generate;
mod ids;
mod limits;
mod listen;
mod messages_in;
mod metrics;
mod models;
mod options;
mod places;
mod prompt;
mod record;
mod responses;
mod responses_echo;
mod responses_in;
mod routes;
mod run;
mod sse;
mod tokens;
mod tools;

pub use access::{Access, Key};
pub use app::{App, ModelCard};
pub use form::Compiler;
pub use ids::now;
pub use limits::PREPARING;
pub use listen::{Ended, Shutdown, run};
pub use metrics::{CacheKind, Metrics};
pub use options::Defaults;
