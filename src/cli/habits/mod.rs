//! Flags that users of llama.cpp, mlx-lm and transformers type by habit.
//!
//! They are looked at before the command line is parsed, since a short flag of several letters, such as `-ngl`, would be read as a
//! short flag here with a value. What exists under another name is translated, what changes nothing is passed over (both with a
//! note), and what does not exist is an error that says what to do instead.

use std::collections::VecDeque;
use std::ffi::OsString;

use clap::Command;

/// A command line without foreign flags, and what was done about them.
#[derive(Debug, Default, PartialEq)]
pub struct Translated {
    /// As clap takes it.
    pub args: Vec<OsString>,
    /// One line for each flag that was translated or passed over.
    pub notes: Vec<String>,
}

/// What a foreign flag is here.
#[derive(Clone, Copy)]
enum Here {
    /// This flag, with the value of the foreign one.
    Flag(&'static str),
    /// These words, whatever the foreign flag takes.
    Words(&'static [&'static str]),
    /// Nothing that is needed, for this reason; a value is passed over too.
    Needless(&'static str),
    /// Not there: what to do instead.
    Instead(&'static str),
}
use Here::{Flag, Instead, Needless, Words};

type Habit = (&'static [&'static str], Here);

const DOWNLOADS: Here = Instead("nothing is downloaded here; run `hf download REPO --local-dir DIR`, then use -m DIR");
const DEVICES: Here = Instead("--device chooses the device; a model runs on one");
const PROMPT_FILES: Here = Instead("a prompt comes from -p, or from stdin: -p - < FILE");
const TEMPLATE: Here = Instead("the template is that of the model; edit chat_template.jinja in its directory");
const TOKEN_RULES: Here = Instead("state it in the model's generation_config.json, where it is obeyed");
const SAMPLERS: Here =
    Instead("the samplers are --repeat-penalty, --temp, --top-k, --top-p and --min-p, in this order");
const PLAIN: Here = Needless("a prompt is plain text unless --chat is given");
const WHOLE: Here = Needless("a whole model runs on one device; --device chooses it");
const MEMORY: Here = Needless("weights are mapped from their files and packed in memory as they are");
const GROWS: Here = Needless("the context grows by itself, up to that of the model");
const QUIET: Here = Needless("only the text goes to stdout, and the prompt is not printed");

/// Flags that mean something else in one command than in the others.
const OF_A_COMMAND: &[(&str, &[Habit])] = &[
    (
        "bench",
        &[
            (&["--n-predict", "--predict", "--max-tokens", "--max-new-tokens"], Flag("--n-gen")),
            (&["-o", "--output"], Instead("--json prints one JSON object, else it is a table")),
            (&["-c", "--ctx-size", "--n-ctx", "--context"], Instead("--depth N fills the cache with N tokens first")),
            (&["--ctk", "-ctk", "--ctv", "-ctv", "--cache-type-k", "--cache-type-v"], Flag("--cache-type")),
        ],
    ),
    (
        "eval",
        &[
            (&["--file", "--prompt-file", "--corpus", "--dataset"], Flag("--text")),
            (&["-p", "--prompt"], Instead("the text is a file, or stdin: -f -")),
            (&["-c", "--ctx-size", "--n-ctx", "--max-length", "--window"], Flag("--context")),
            (
                &["--ppl-stride", "--stride", "--chunks"],
                Instead("windows of --context tokens follow each other and do not overlap"),
            ),
            (&["--perplexity"], Needless("it is what this command measures")),
            (&["-b", "--batch-size", "-ub", "--ubatch-size"], Needless("passes are as long as memory allows")),
        ],
    ),
    ("info", &[(&["-c", "--ctx-size", "--n-ctx", "--max-model-len"], Flag("--context"))]),
];

/// Flags of all commands.
const EVERYWHERE: &[Habit] = &[
    (&["--n-predict", "--predict", "--num-predict", "--max-new-tokens", "--max-gen-toks"], Flag("--max-tokens")),
    (&["--max-length"], Instead("--max-tokens counts the tokens of the output alone")),
    (&["-t", "--n-threads", "--num-threads", "--cpu-threads"], Flag("--threads")),
    (&["-tb", "--threads-batch"], Needless("--threads counts for prompts too")),
    (&["-c", "--ctx-size", "--n-ctx", "--context", "--context-length", "--context-size"], GROWS),
    (&["--max-model-len", "--max-seq-len", "--no-context-shift", "--context-shift"], GROWS),
    (&["--max-kv-size"], Instead("the cache is never cut; it grows up to the context of the model")),
    (&["-f", "--file", "--prompt-file", "-bf", "--binary-file", "--input-file"], PROMPT_FILES),
    (&["-sysf", "--system-prompt-file"], Instead("give the message itself: --system \"$(cat FILE)\"")),
    (&["-ngl", "--n-gpu-layers", "--gpu-layers", "--num-gpu-layers", "-nkvo", "--no-kv-offload"], WHOLE),
    (&["-dev", "-mg", "--main-gpu", "-sm", "--split-mode", "-ts", "--tensor-split", "--device-map"], DEVICES),
    (&["--gpu", "--cuda", "--use-gpu", "--use-cpu", "--cpu", "--tensor-parallel-size"], DEVICES),
    (&["--repetition-penalty", "--rep-penalty", "--rep-pen"], Flag("--repeat-penalty")),
    (
        &["--repeat-last-n", "--repetition-context-size"],
        Instead("--repeat-penalty counts all tokens of prompt and output"),
    ),
    (&["--samplers", "--sampler-seq", "--sampling-seq", "--sampling-order"], SAMPLERS),
    (&["--presence-penalty", "--frequency-penalty", "--typical", "--typical-p", "--tfs", "--mirostat"], SAMPLERS),
    (&["--mirostat-lr", "--mirostat-ent", "--dynatemp-range", "--dynatemp-exp", "--top-nsigma", "--top-h"], SAMPLERS),
    (&["--xtc-probability", "--xtc-threshold", "--dry-multiplier", "--dry-base", "--dry-allowed-length"], SAMPLERS),
    (&["--epsilon-cutoff", "--eta-cutoff", "--penalty-alpha", "--min-tokens-to-keep"], SAMPLERS),
    (&["--num-beams", "--num-beam-groups", "--length-penalty", "--early-stopping"], SAMPLERS),
    (&["--no-repeat-ngram-size", "--bad-words-ids", "--suppress-tokens", "--begin-suppress-tokens"], TOKEN_RULES),
    (&["--min-length", "--min-new-tokens", "--sequence-bias", "--logit-bias", "-l"], TOKEN_RULES),
    (&["--grammar", "--grammar-file", "--json-schema", "-j", "-jf"], Instead("no grammar restricts the output")),
    (&["--do-sample", "--sample"], Instead("--temp, --top-k, --top-p or --min-p ask for draws, --temp 1 plainly")),
    (&["--no-do-sample", "--no-sample"], Words(&["--greedy"])),
    (&["-s", "--random-seed"], Flag("--seed")),
    (&["-r", "--reverse-prompt", "--stop-string", "--stop-strings", "--stop-word", "--stop-words"], Flag("--stop")),
    (&["--stop-sequence", "--extra-eos-token", "--eos-token"], Flag("--stop")),
    (&["-sys", "--system-prompt", "--system-message"], Flag("--system")),
    (&["--input", "--input-text", "--message", "--user-prompt"], Flag("--prompt")),
    (&["-cnv", "--conversation", "--apply-chat-template", "--use-default-chat-template"], Words(&["--chat"])),
    (&["-no-cnv", "--no-conversation", "-no-conv", "--ignore-chat-template", "--no-chat-template"], PLAIN),
    (&["-st", "--single-turn"], Needless("one prompt gets one answer")),
    (
        &["-i", "--interactive", "-if", "--interactive-first", "-mli", "--multiline-input"],
        Instead("there is no interactive mode; --chat answers one prompt"),
    ),
    (&["--jinja"], Needless("the chat template is always rendered")),
    (&["--chat-template", "--chat-template-file", "--chat-template-config", "--chat-template-args"], TEMPLATE),
    (&["--chat-template-kwargs", "--no-jinja"], TEMPLATE),
    (
        &["-e", "--escape"],
        Instead("a prompt is taken as it is; let the shell write it, as in $'two\\nlines', or use stdin"),
    ),
    (&["--no-escape"], Needless("a prompt is taken as it is")),
    (&["-b", "--batch-size", "-ub", "--ubatch-size", "--prefill-step-size"], Flag("--chunk")),
    (&["-fa", "--flash-attn", "--attn-implementation"], Needless("there is one attention, which works in blocks")),
    (&["--mmap", "--no-mmap", "--mlock", "--numa", "--no-repack", "--low-cpu-mem-usage", "--low-vram"], MEMORY),
    (
        &["--warmup", "--no-warmup", "--perf", "--no-perf", "--prio", "--poll", "--use-cache"],
        Needless("there is no such choice"),
    ),
    (&["--log-disable", "--simple-io", "--no-display-prompt", "--verbose-prompt", "-co"], QUIET),
    (&["--verbose", "-v", "--stream", "--no-stream", "--special"], QUIET),
    (&["--trust-remote-code"], Needless("code of a model is never run")),
    (&["--offline", "--local-files-only"], Needless("nothing is ever downloaded")),
    (
        &["-ctk", "--cache-type-k", "-ctv", "--cache-type-v", "--kv-bits", "--kv-group-size", "--quantized-kv-start"],
        Instead("--cache-type f16 or f32 holds for keys and values"),
    ),
    (
        &["--dtype", "--torch-dtype", "--precision", "--bf16", "--fp16"],
        Instead(
            "weights keep the type they are stored in; --quant changes it, --activations is the type between operations",
        ),
    ),
    (&["--load-in-4bit", "--4bit"], Words(&["--quant", "nf4"])),
    (&["--load-in-8bit", "--8bit"], Words(&["--quant", "int8"])),
    (&["--quantize", "--quantization", "--q-bits", "--bits"], Instead("--quant nf4, nf4-dq or int8 quantises at load")),
    (&["--model-path", "--model-name-or-path", "--model-name", "--model-id", "--pretrained"], Flag("--model")),
    (&["-hf", "-hfr", "--hf-repo", "-hff", "--hf-file", "--model-url", "--revision", "--hf-token"], DOWNLOADS),
    (
        &["--lora", "--lora-scaled", "--adapter-path", "--adapter"],
        Instead("merge the adapter into its base model first"),
    ),
    (
        &["--model-draft", "--draft-model", "--num-draft-tokens", "--draft-max", "--draft"],
        Instead("there is no speculative decoding"),
    ),
    (&["--prompt-cache", "--prompt-cache-file", "--session"], Instead("no cache of prompts is kept on disk")),
    (&["-np", "--parallel", "--num-return-sequences", "--best-of"], Instead("one run makes one text")),
];

/// Words that flags which change nothing take as values, besides numbers.
const SETTINGS: &[&str] = &[
    "on",
    "off",
    "auto",
    "true",
    "false",
    "all",
    "distribute",
    "isolate",
    "numactl",
    "eager",
    "sdpa",
    "flash_attention_2",
];

/// Names of other programs' commands.
const COMMANDS: &[(&[&str], &str)] = &[
    (
        &["chat", "run", "cli", "complete", "completion"],
        "`ember generate -p TEXT` continues a text, with --chat it answers",
    ),
    (&["serve", "server", "api"], "there is no server"),
    (&["perplexity", "ppl", "evaluate"], "`ember eval -f FILE` measures the perplexity of a text"),
    (&["quantize", "convert"], "--quant quantises at load; nothing is written"),
    (&["benchmark"], "`ember bench` measures speed"),
    (&["download", "pull"], "nothing is downloaded here; run `hf download REPO --local-dir DIR`, then use -m DIR"),
];

/// Translates a whole command line, the program's name first.
///
/// # Errors
/// What to do instead of a flag that is not there.
pub fn translate(args: Vec<OsString>, program: &Command) -> Result<Translated, String> {
    let mut words: VecDeque<OsString> = args.into();
    let mut out = Translated { args: words.pop_front().into_iter().collect(), notes: Vec::new() };
    let Some(first) = words.front().map(|word| word.to_string_lossy().into_owned()) else { return Ok(out) };
    let Some(command) = program.find_subcommand(&first) else {
        if let Some((_, hint)) = COMMANDS.iter().find(|(names, _)| names.contains(&first.as_str())) {
            return Err(format!("there is no command {first}: {hint}"));
        }
        if first.starts_with('-') && !["-h", "--help", "-V", "--version"].contains(&first.as_str()) {
            return Err(format!("{first}: a command comes first, as in `ember generate -m DIR -p TEXT`"));
        }
        out.args.extend(words);
        return Ok(out);
    };
    out.args.extend(words.pop_front());
    while let Some(word) = words.pop_front() {
        if word == "--" {
            out.args.push(word);
            out.args.extend(words);
            break;
        }
        let Some(flag) = Flagged::read(&word) else {
            out.args.push(word);
            continue;
        };
        // Known flags keep their values, which may look like flags.
        if let Some(takes_value) = known(command, &flag.name) {
            out.args.push(word);
            if takes_value && flag.value.is_none() {
                out.args.extend(words.pop_front());
            }
            continue;
        }
        let spelled = if flag.name.starts_with("--") { flag.name.replace('_', "-") } else { flag.name.clone() };
        match lookup(command, &spelled).or_else(|| known(command, &spelled).map(|_| Same)) {
            None => out.args.push(word),
            Some(found) => replace(command, &flag, &spelled, found, &mut words, &mut out)?,
        }
    }
    Ok(out)
}

/// What was found about a flag.
#[derive(Clone, Copy)]
enum Found {
    Habit(Here),
    /// It is a flag here when it is spelled with hyphens.
    Same,
}
use Found::Same;

/// A word that is a flag, and the value after its `=`.
struct Flagged {
    name: String,
    value: Option<String>,
}

impl Flagged {
    fn read(word: &OsString) -> Option<Self> {
        let word = word.to_str().filter(|word| word.starts_with('-') && *word != "-" && !is_number(word))?;
        Some(match word.split_once('=') {
            Some((name, value)) if word.starts_with("--") => {
                Self { name: name.to_owned(), value: Some(value.to_owned()) }
            }
            _ => Self { name: word.to_owned(), value: None },
        })
    }
}

fn is_number(word: &str) -> bool {
    word.parse::<f64>().is_ok()
}

/// Whether a command has a flag, and whether it takes a value.
fn known(command: &Command, name: &str) -> Option<bool> {
    let is = |arg: &&clap::Arg| match (name.strip_prefix("--"), name.strip_prefix('-')) {
        (Some(long), _) => {
            let aliases = arg.get_all_aliases().unwrap_or_default();
            arg.get_long() == Some(long) || aliases.contains(&long)
        }
        (None, Some(short)) => arg.get_short().is_some_and(|c| short.chars().eq([c])),
        (None, None) => false,
    };
    command.get_arguments().find(is).map(|arg| arg.get_action().takes_values())
}

fn lookup(command: &Command, name: &str) -> Option<Found> {
    let find = |habits: &[Habit]| habits.iter().find(|(names, _)| names.contains(&name)).map(|&(_, here)| here);
    let own = OF_A_COMMAND.iter().find(|(of, _)| *of == command.get_name()).and_then(|(_, habits)| find(habits));
    own.or_else(|| find(EVERYWHERE)).map(Found::Habit)
}

fn replace(
    command: &Command,
    flag: &Flagged,
    spelled: &str,
    found: Found,
    words: &mut VecDeque<OsString>,
    out: &mut Translated,
) -> Result<(), String> {
    let name = &flag.name;
    let here = |target: &str| match known(command, target) {
        Some(_) => Ok(()),
        None => Err(format!("{name} is {target} here, which `ember {}` does not have", command.get_name())),
    };
    match found {
        Same => {
            out.args.push(with_value(spelled, flag));
            out.notes.push(format!("{name} is {spelled} here"));
        }
        Found::Habit(Flag(target)) => {
            here(target)?;
            out.args.push(with_value(target, flag));
            if flag.value.is_none() {
                out.args.extend(words.pop_front());
            }
            out.notes.push(format!("{name} is {target} here"));
        }
        Found::Habit(Words(target)) => {
            here(target.first().copied().unwrap_or_default())?;
            out.args.extend(target.iter().map(OsString::from));
            out.notes.push(format!("{name} is {} here", target.join(" ")));
        }
        Found::Habit(Needless(reason)) => {
            let value = |word: &OsString| word.to_str().is_some_and(|word| is_number(word) || SETTINGS.contains(&word));
            if flag.value.is_none() && words.front().is_some_and(value) {
                words.pop_front();
            }
            out.notes.push(format!("{name} changes nothing: {reason}"));
        }
        Found::Habit(Instead(hint)) => return Err(format!("{name} is not a flag of emberlm: {hint}")),
    }
    Ok(())
}

fn with_value(target: &str, flag: &Flagged) -> OsString {
    match &flag.value {
        Some(value) => format!("{target}={value}").into(),
        None => target.into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::{Arg, ArgAction};

    /// Some flags of the real commands.
    fn program() -> Command {
        let flag = |name: &'static str| Arg::new(name).long(name).action(ArgAction::SetTrue);
        let value = |name: &'static str| Arg::new(name).long(name);
        let model = || value("model").short('m');
        let generate = Command::new("generate").args([
            model(),
            value("prompt").short('p').allow_hyphen_values(true),
            value("max-tokens").short('n'),
            value("threads"),
            value("temp").visible_alias("temperature"),
            value("top-k"),
            value("repeat-penalty"),
            value("stop"),
            value("quant"),
            flag("chat"),
            flag("greedy"),
        ]);
        let eval = Command::new("eval").args([model(), value("text").short('f'), value("context").short('c')]);
        Command::new("ember").subcommands([generate, eval])
    }

    fn run(line: &str) -> Result<(String, Vec<String>), String> {
        let args = line.split(' ').map(OsString::from).collect();
        let translated = translate(args, &program())?;
        let words: Vec<&str> = translated.args.iter().filter_map(|word| word.to_str()).collect();
        Ok((words.join(" "), translated.notes))
    }

    #[test]
    fn what_has_another_name_is_translated_with_a_note() {
        for (line, wanted) in [
            ("ember generate -p x --n-predict 8", "ember generate -p x --max-tokens 8"),
            ("ember generate -p x --max_new_tokens=8", "ember generate -p x --max-tokens=8"),
            ("ember generate -p x -t 2 --top_k 5", "ember generate -p x --threads 2 --top-k 5"),
            ("ember generate -p x --repetition-penalty 1.1", "ember generate -p x --repeat-penalty 1.1"),
            ("ember generate -p x --n-predict -1", "ember generate -p x --max-tokens -1"),
            ("ember generate -p x -cnv -r <|a|>", "ember generate -p x --chat --stop <|a|>"),
            ("ember generate -p x --load-in-4bit", "ember generate -p x --quant nf4"),
            ("ember generate --model_name_or_path d -p x", "ember generate --model d -p x"),
            ("ember eval -m d --file x --ctx-size 512", "ember eval -m d --text x --context 512"),
            ("ember generate -p x -n 8 -ngl 99", "ember generate -p x -n 8"),
            ("ember generate -p x -no-cnv -fa --no-mmap -c 512 -n 8", "ember generate -p x -n 8"),
            ("ember eval -f x -ngl -1 -m d", "ember eval -f x -m d"),
            ("ember generate -fa on --numa distribute -p x -ngl auto", "ember generate -p x"),
            // A word that is no setting is left for an error.
            ("ember generate -p x --no-mmap file", "ember generate -p x file"),
        ] {
            let (got, notes) = run(line).unwrap();
            assert_eq!(got, wanted, "{line}");
            assert!(!notes.is_empty(), "{line}");
        }
        assert_eq!(run("ember generate -p x --n-predict 8").unwrap().1, ["--n-predict is --max-tokens here"]);
    }

    #[test]
    fn what_is_not_there_says_what_to_do_instead() {
        for (line, parts) in [
            ("ember generate -p x -f prompt.txt", ["-f ", "-p - < FILE"]),
            ("ember generate -p x --num_beams 4", ["--num_beams", "--top-k"]),
            ("ember generate -p x --dtype bfloat16", ["--dtype", "--activations"]),
            ("ember generate -p x --max-kv-size 512", ["--max-kv-size", "never cut"]),
            ("ember generate -hf a/b -p x", ["-hf", "hf download"]),
            ("ember eval -f x --n-predict 5", ["--n-predict", "`ember eval` does not have"]),
            ("ember eval -f x --prompt y", ["--prompt", "-f -"]),
            ("ember -m d -p x", ["-m", "ember generate"]),
            ("ember chat -m d", ["chat", "--chat"]),
        ] {
            let error = run(line).unwrap_err();
            assert!(parts.iter().all(|part| error.contains(part)), "{line}: {error}");
        }
    }

    /// Values are never read as flags, nor flags that are known.
    #[test]
    fn command_lines_of_this_program_stay_as_they_are() {
        for line in [
            "ember",
            "ember --help",
            "ember -V",
            "ember sing -t 2",
            "ember generate -p -t -n 8",
            "ember generate -p -ngl --temperature 0.5 --chat -n8 -mdir",
            "ember generate --prompt=--n-predict -n -1 --temp -1",
            "ember generate --stop -r --unknown -x",
            "ember generate -p x -- -t 2",
            "ember eval -f - -c 512 -m d",
        ] {
            assert_eq!(run(line).unwrap(), (line.to_owned(), Vec::new()), "{line}");
        }
    }

    #[test]
    fn no_name_is_in_two_places() {
        for (of, habits) in OF_A_COMMAND.iter().copied().chain([("all", EVERYWHERE)]) {
            let mut names: Vec<&str> = habits.iter().flat_map(|(names, _)| names.iter().copied()).collect();
            names.sort_unstable();
            let all = names.len();
            names.dedup();
            assert_eq!(names.len(), all, "{of}");
        }
    }
}
