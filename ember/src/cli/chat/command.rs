//! The commands of a chat.

use std::path::PathBuf;

use anyhow::{Result, bail, ensure};

/// What `/help` tells.
pub const HELP: &str = "\
/system [TEXT]       set the system message, - for none; alone: show it
/reset               begin anew; the system message stays
/retry               another answer to the last message
/save FILE           write the conversation as JSON
/load FILE           go on with a conversation from a file
/depth               colour answers by steps per token (CREST), or not
/think on|off        let the model think first, or not
/set [NAME VALUE]    change temp, top-p, top-k, min-p, seed, max-tokens,
                     repeat-penalty, threshold or steps; the value default
                     takes it back; alone: show what is in force
/help                this list
/exit                leave, as Ctrl-D does

A line that ends with \\ goes on in the next one. Between lines of \"\"\"
everything is one message, also a line that begins with /.
Ctrl-C stops an answer.";

/// Something to do that is no message.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Command {
    /// Show the system message.
    ShowSystem,
    /// Set it, or remove it.
    System(Option<String>),
    Reset,
    Retry,
    Save(PathBuf),
    Load(PathBuf),
    Depth,
    ShowThink,
    Think(bool),
    ShowSettings,
    /// A setting and its new value.
    Set(String, String),
    Help,
    Exit,
}

/// Whether a line is a command.
pub fn is_command(line: &str) -> bool {
    line.starts_with('/')
}

/// Reads a command.
///
/// # Errors
/// When there is no such command, or it cannot take what follows its name.
pub fn parse(line: &str) -> Result<Command> {
    let line = line.trim_end();
    let (name, rest) = line.split_once(char::is_whitespace).unwrap_or((line, ""));
    let rest = rest.trim_start();
    let alone = |command| {
        ensure!(rest.is_empty(), "{name} takes nothing after it, and there is {rest:?}");
        Ok(command)
    };
    match name {
        "/system" => Ok(match rest {
            "" => Command::ShowSystem,
            "-" => Command::System(None),
            text => Command::System(Some(text.to_owned())),
        }),
        "/reset" => alone(Command::Reset),
        "/retry" => alone(Command::Retry),
        "/save" | "/load" if rest.is_empty() => bail!("{name} needs the name of a file: {name} chat.json"),
        "/save" => Ok(Command::Save(path(rest))),
        "/load" => Ok(Command::Load(path(rest))),
        "/depth" => alone(Command::Depth),
        "/think" => match rest {
            "" => Ok(Command::ShowThink),
            "on" => Ok(Command::Think(true)),
            "off" => Ok(Command::Think(false)),
            _ => bail!("/think takes on or off, not {rest:?}"),
        },
        "/set" => match rest.split_whitespace().collect::<Vec<_>>().as_slice() {
            [] => Ok(Command::ShowSettings),
            [name, value] => Ok(Command::Set((*name).to_owned(), (*value).to_owned())),
            _ => bail!("/set takes a name and a value: /set temp 0.7"),
        },
        "/help" | "/?" => alone(Command::Help),
        "/exit" | "/quit" => alone(Command::Exit),
        _ => bail!("there is no command {name}; /help lists them, and between lines of \"\"\" it is a message"),
    }
}

/// A file by the name that a user types: `~/` is the home directory, as in a shell.
fn path(name: &str) -> PathBuf {
    let home = std::env::var_os("HOME").filter(|home| !home.is_empty());
    match (name.strip_prefix("~/"), home) {
        (Some(rest), Some(home)) => PathBuf::from(home).join(rest),
        _ => PathBuf::from(name),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn commands_are_read() {
        let text = |text: &str| text.to_owned();
        for (line, command) in [
            ("/system  Be brief. ", Command::System(Some(text("Be brief.")))),
            ("/system", Command::ShowSystem),
            ("/system -", Command::System(None)),
            ("/save my chat.json", Command::Save("my chat.json".into())),
            ("/think off", Command::Think(false)),
            ("/set temp   0.7", Command::Set(text("temp"), text("0.7"))),
            ("/set", Command::ShowSettings),
            ("/quit", Command::Exit),
        ] {
            assert_eq!(parse(line).unwrap(), command, "{line}");
        }
        for (line, part) in [
            ("/sytem x", "there is no command /sytem"),
            ("/", "there is no command /"),
            ("/load", "/load needs the name of a file"),
            ("/set temp", "/set takes a name and a value"),
            ("/think maybe", "on or off"),
            ("/reset all", "nothing after it"),
        ] {
            let error = parse(line).unwrap_err().to_string();
            assert!(error.contains(part), "{line}: {error}");
        }
    }
}
