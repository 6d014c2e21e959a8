//! The program `ember`, run as a user runs it.

#[path = "cli/chat.rs"]
mod chat;
#[cfg(target_os = "linux")]
#[path = "cli/chat_terminal.rs"]
mod chat_terminal;
#[path = "cli/demo.rs"]
mod demo;
#[path = "cli/depth.rs"]
mod depth;
#[path = "cli/doctor.rs"]
mod doctor;
#[path = "cli/dump.rs"]
mod dump;
#[path = "cli/errors.rs"]
mod errors;
#[path = "cli/eval.rs"]
mod eval;
#[allow(dead_code)]
#[path = "suite/fixture.rs"]
mod fixture;
#[path = "cli/generate.rs"]
mod generate;
#[path = "cli/habits.rs"]
mod habits;
#[path = "cli/info.rs"]
mod info;
#[path = "cli/limits.rs"]
mod limits;
#[path = "cli/program.rs"]
mod program;
#[path = "cli/quantize.rs"]
mod quantize;
#[path = "cli/sampling.rs"]
mod sampling;
#[path = "cli/tokenize.rs"]
mod tokenize;
