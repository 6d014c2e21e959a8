//! What a terminal shows of the keys that are typed while an answer comes.

#[cfg(unix)]
use std::io;

#[cfg(unix)]
use rustix::termios::{LocalModes, OptionalActions, tcgetattr, tcsetattr};

/// While it lives, the Ctrl-C that ends an answer does not write `^C` into it; other keys are shown as ever. Without a terminal on stdin it does
/// nothing.
///
/// A program that is killed meanwhile leaves a terminal that shows no `^C` either, and nothing worse.
pub struct HiddenInterrupt {
    #[cfg(unix)]
    was_shown: bool,
}

impl HiddenInterrupt {
    /// From now on.
    pub fn new() -> Self {
        Self {
            #[cfg(unix)]
            was_shown: show_control_keys(false).unwrap_or(false),
        }
    }
}

impl Drop for HiddenInterrupt {
    fn drop(&mut self) {
        #[cfg(unix)]
        if self.was_shown {
            let _ = show_control_keys(true);
        }
    }
}

/// Whether the terminal shows control keys as `^` and a letter from now on; what it did before.
///
/// # Errors
/// When stdin is no terminal.
#[cfg(unix)]
fn show_control_keys(shown: bool) -> rustix::io::Result<bool> {
    let stdin = io::stdin();
    let mut modes = tcgetattr(&stdin)?;
    let before = modes.local_modes.contains(LocalModes::ECHOCTL);
    if before != shown {
        modes.local_modes.set(LocalModes::ECHOCTL, shown);
        tcsetattr(&stdin, OptionalActions::Now, &modes)?;
    }
    Ok(before)
}
