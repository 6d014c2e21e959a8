//! The program `ember`, run as a user runs it.

#[path = "cli/dump.rs"]
mod dump;
#[allow(dead_code)]
#[path = "suite/fixture.rs"]
mod fixture;
#[path = "cli/program.rs"]
mod program;
