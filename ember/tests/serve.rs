//! `ember serve`, from outside: the program with the model in it, and clients over TCP.

#[path = "serve/access.rs"]
mod access;
#[path = "serve/api.rs"]
mod api;
#[path = "serve/bad_input.rs"]
mod bad_input;
#[path = "serve/client.rs"]
mod client;
#[path = "serve/clients.rs"]
mod clients;
#[path = "serve/conversations.rs"]
mod conversations;
#[path = "serve/echo.rs"]
mod echo;
#[cfg(feature = "grammar")]
#[path = "serve/forms.rs"]
mod forms;
#[cfg(unix)]
#[path = "serve/gateway.rs"]
mod gateway;
#[path = "real_model/gguf.rs"]
mod gguf;
#[path = "serve/lifecycle.rs"]
mod lifecycle;
#[path = "serve/log.rs"]
mod log;
#[path = "serve/prefix.rs"]
mod prefix;
#[allow(dead_code)]
#[path = "support/project.rs"]
mod project;
#[path = "serve/scoring.rs"]
mod scoring;
#[path = "serve/scripted.rs"]
mod scripted;
#[path = "serve/scripts.rs"]
mod scripts;
#[path = "serve/soak.rs"]
mod soak;
#[path = "serve/templates.rs"]
mod templates;
#[path = "serve/tokens.rs"]
mod tokens;
