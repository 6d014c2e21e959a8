//! `ember`: compact language models on the command line.

mod cli;

fn main() -> std::process::ExitCode {
    cli::main()
}
