//! Broken and hostile input, as the program meets it: tables of what may come from a stranger, and what must happen.
//!
//! Every case runs `ember` in a process of its own whose memory, time and files are bounded (`hostile/limits.rs`), so that an abort,
//! an endless loop, a huge allocation or a file opened outside the model directory is a failure of the case. `EMBERLM_PROGRAM`
//! names another build of the program: CI runs the tables against the release build too, where integers wrap.
#![cfg(unix)]

#[path = "hostile/command.rs"]
mod command;
#[path = "hostile/config.rs"]
mod config;
#[path = "hostile/container.rs"]
mod container;
#[path = "hostile/generation.rs"]
mod generation;
#[path = "hostile/index.rs"]
mod index;
#[path = "hostile/limits.rs"]
mod limits;
#[path = "hostile/model.rs"]
mod model;
#[path = "support/project.rs"]
mod project;
#[path = "hostile/quantised.rs"]
mod quantised;
#[path = "hostile/table.rs"]
mod table;
#[path = "../../tests/support/tensors.rs"]
mod tensors;
#[path = "hostile/text.rs"]
mod text;
