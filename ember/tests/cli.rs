//! The program `ember`, run as a user runs it.

#[cfg(target_os = "linux")]
#[path = "cli/bench.rs"]
mod bench;
#[path = "cli/chat.rs"]
mod chat;
#[cfg(target_os = "linux")]
#[path = "cli/chat_terminal.rs"]
mod chat_terminal;
#[path = "cli/demo.rs"]
mod demo;
#[path = "cli/depth.rs"]
mod depth;
#[path = "cli/diff.rs"]
mod diff;
#[path = "cli/doctor.rs"]
mod doctor;
#[path = "cli/dump.rs"]
mod dump;
#[path = "cli/errors.rs"]
mod errors;
#[path = "cli/eval.rs"]
mod eval;
#[path = "../../tests/support/files.rs"]
mod files;
#[allow(dead_code)]
#[path = "../../tests/suite/fixture.rs"]
mod fixture;
#[path = "cli/generate.rs"]
mod generate;
#[path = "cli/habits.rs"]
mod habits;
#[cfg(feature = "hub")]
#[path = "cli/hub.rs"]
mod hub;
#[cfg(feature = "hub")]
#[path = "../../model/tests/hub_support/mod.rs"]
mod hub_support;
#[path = "cli/info.rs"]
mod info;
#[path = "cli/limits.rs"]
mod limits;
#[path = "cli/pages.rs"]
mod pages;
#[path = "cli/probe.rs"]
mod probe;
#[path = "cli/program.rs"]
mod program;
#[allow(dead_code)]
#[path = "support/project.rs"]
mod project;
#[path = "cli/quantize.rs"]
mod quantize;
#[path = "cli/sampling.rs"]
mod sampling;
#[path = "cli/tokenize.rs"]
mod tokenize;
#[path = "cli/verify.rs"]
mod verify;
