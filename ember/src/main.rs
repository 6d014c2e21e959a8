//! `ember`: compact language models on the command line.

mod cli;
mod out_of_memory;
#[cfg(feature = "serve")]
mod server;

fn main() -> std::process::ExitCode {
    #[cfg(all(feature = "wgpu", target_os = "linux"))]
    quiet_display_lookup();
    cli::main()
}

/// Without this variable (on servers, in containers) a layer of Mesa's Vulkan drivers, which looks for a display to choose a GPU
/// by, writes a line that starts with `error: ` at every look.
#[cfg(all(feature = "wgpu", target_os = "linux"))]
fn quiet_display_lookup() {
    const NAME: &str = "XDG_RUNTIME_DIR";
    if std::env::var_os(NAME).is_none() {
        // SAFETY: no other thread runs yet.
        unsafe { std::env::set_var(NAME, std::env::temp_dir()) };
    }
}
