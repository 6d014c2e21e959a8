//! Answers and calls of tools that follow a schema.

mod answers;
mod references;
#[path = "../text/support/mod.rs"]
mod support;
mod tags;
