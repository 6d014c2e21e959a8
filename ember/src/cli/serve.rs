//! `ember serve`: a model behind OpenAI's API.

use std::fs::File;
use std::io::Read;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener};
use std::num::NonZeroUsize;
use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use clap::{Args, ValueEnum};
use emberlm::model::cache::GROWTH;
use emberlm::model::engine::{EngineHandle, EngineOptions, HandleOptions};
use emberlm::model::text::{AnswerFormat, AnswerMarkers, ChatOptions, ChatTemplate, TextProcessor};
use emberlm::model::{Architecture, LoadPlan, Pretrained};
use emberlm::quant::kv::KvFormat;
use emberlm::quant::{Activations, CompactBackend};
use tokio::sync::Semaphore;
use tracing_subscriber::filter::LevelFilter;

use super::args::{ModelArgs, PassArgs, by_flag};
use super::backend::{OpenDevice, WithBackend, on_device};
use super::estimate::{cache_bytes_per_token, cache_tokens, caches_hidden, draft_bytes};
use super::generate::warn_of_unsupported;
use super::generation_args::GenerationArgs;
use super::{load, output};
use crate::server::{self, Access, App, CacheKind, Compiler, Defaults, Ended, Key, Metrics, ModelCard, Shutdown};

/// Holds the key where no flag does: a command line is seen by everybody on the machine.
const KEY_VARIABLE: &str = "EMBER_API_KEY";

/// Bytes of a file with a key at most.
const MAX_KEY_FILE: u64 = 4096;

/// Tokens of a usual conversation: the default budget of the caches has room for so many in each of the parallel ones.
const USUAL_CONTEXT: usize = 4096;

const ABOUT: &str = "\
Endpoints: /v1/chat/completions, /v1/completions, /v1/responses, /v1/models, and Anthropic's /v1/messages with count_tokens; \
/tokenize, /detokenize, /tokenizer_info, /health, /metrics, and a page at /.

  ember serve -m DIR
  curl http://127.0.0.1:8080/v1/chat/completions -d '{\"messages\": [{\"role\": \"user\", \"content\": \"hello\"}]}'

A request may choose how tokens are drawn (temperature, top_p, top_k, min_p, seed, ...); what it leaves open comes from the flags \
here, and then from generation_config.json. Requests beyond --parallel wait, those beyond --max-queue are refused with 503 and \
Retry-After, and one for more answers than both have places with 400. Every request is one line on stderr, which holds no text of it; \
those that succeed at /health, /metrics and /v1/models, which clients repeat, are told with --log-level debug alone.

The same request with the same seed can have another answer: which requests are answered at once, and what is kept of former prompts, \
changes how sums are added up, and rounding makes more of their last bits: that of activations, the default beside quantised and BF16 \
weights, and that of the cache. With --activations f32 --cache-type f32 neither is rounded, and log-probabilities move by about 1e-5.

Requests are answered on this machine alone unless --host says otherwise. Those that name another host than an address, localhost \
or --allow-host, and those of other sites' pages, are refused. Beyond this machine, set an API key, and put a proxy with TLS in \
front.

SIGTERM: /health turns 503, requests are still taken for --drain-delay, then answers that are being generated have \
--drain-limit to end. Exit code 0 then, and 130 after Ctrl-C, which takes no more requests at once. A second signal ends the \
server at once.";

/// Told of the model that is part of the program.
const BOXED: &str = "this is the small model of the program, for trying things: 225 thousand parameters that were taught short stories, sums, \
copying and sorting (examples/train_tiny.md), and know nothing else; -m serves another one";

/// Told of a model without a chat template.
const CHATLESS: &str = "warning: this model has no chat template: chats are refused with 400 (/v1/chat/completions, /v1/responses, \
/v1/messages); /v1/completions continues texts";

/// Flags of `ember serve`.
#[derive(Debug, Args)]
#[command(after_long_help = ABOUT)]
pub struct ServeArgs {
    #[command(flatten)]
    model: ModelArgs,

    /// Address to listen on; 0.0.0.0 for every machine that reaches this one
    #[arg(long, value_name = "ADDRESS", default_value = "127.0.0.1", value_parser = host_of)]
    host: IpAddr,

    /// Port to listen on; 0 takes a free one, which is told on stderr
    #[arg(long, value_name = "N", default_value_t = 8080)]
    port: u16,

    /// Ask every client for this key [default: EMBER_API_KEY of the environment, or none]
    #[arg(long, value_name = "KEY")]
    api_key: Option<String>,

    /// Ask every client for the key in this file, which holds one line
    #[arg(long, value_name = "FILE", conflicts_with = "api_key")]
    api_key_file: Option<PathBuf>,

    /// A name under which clients may call this machine, and whose pages may call it (may be repeated)
    #[arg(long, value_name = "NAME")]
    allow_host: Vec<String>,

    /// Name of the model in requests and answers (may be repeated; the first is told) [default: the name of its directory]
    #[arg(long, value_name = "NAME")]
    alias: Vec<String>,

    /// Answers that are generated at once
    #[arg(long, value_name = "N", default_value = "8")]
    parallel: NonZeroUsize,

    /// Requests that wait beyond those; more are refused
    #[arg(long, value_name = "N", default_value_t = 64)]
    max_queue: usize,

    /// Tokens of a prompt and its answer at most; 0: what the model was trained for
    #[arg(short, long, value_name = "N", default_value_t = 0)]
    ctx_size: usize,

    /// Bytes of all caches together, such as 2GiB or 800M [default: two whole contexts, since a cache that grows is there twice for
    /// a moment, and 4096 tokens of every other answer]
    #[arg(long, value_name = "BYTES", value_parser = bytes_of)]
    cache_bytes: Option<usize>,

    /// Keep nothing of what was read for prompts that begin alike
    #[arg(long)]
    no_prefix_cache: bool,

    #[command(flatten)]
    passes: PassArgs,

    /// Seconds between comments that keep a silent stream open; 0 sends none
    #[arg(long, value_name = "SECONDS", default_value_t = 15)]
    keep_alive: u64,

    /// Seconds that a pass of the model may take before /health says that the engine is stalled
    #[arg(long, value_name = "SECONDS", default_value = "120", value_parser = seconds_of)]
    stall_limit: Duration,

    /// Seconds after SIGTERM in which requests are still taken
    #[arg(long, value_name = "SECONDS", default_value_t = 0)]
    drain_delay: u64,

    /// Seconds that answers then have to end
    #[arg(long, value_name = "SECONDS", default_value_t = 60)]
    drain_limit: u64,

    /// What is told on stderr once the server is there
    #[arg(long, value_enum, default_value = "info", value_name = "LEVEL")]
    pub log_level: LogLevel,

    #[command(flatten)]
    generation: GenerationArgs,
}

/// What the log of a server tells.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum LogLevel {
    /// Errors alone
    Error,
    /// Warnings too
    #[value(alias = "warning")]
    Warn,
    /// A line for every request too
    Info,
    /// Also what clients repeat: /health, /metrics and /v1/models
    Debug,
}

impl From<LogLevel> for LevelFilter {
    fn from(level: LogLevel) -> Self {
        match level {
            LogLevel::Error => Self::ERROR,
            LogLevel::Warn => Self::WARN,
            LogLevel::Info => Self::INFO,
            LogLevel::Debug => Self::DEBUG,
        }
    }
}

/// A count of bytes with a unit of 1024: `2GiB`, `2G`, `800M`, `4096`.
fn bytes_of(text: &str) -> Result<usize, String> {
    let digits = text.trim_end_matches(|c: char| c.is_ascii_alphabetic());
    let unit: usize = match text.get(digits.len()..).unwrap_or_default().to_ascii_lowercase().as_str() {
        "" | "b" => 1,
        "k" | "kib" => 1 << 10,
        "m" | "mib" => 1 << 20,
        "g" | "gib" => 1 << 30,
        _ => return Err("expected bytes, such as 2GiB, 800M or 4096".to_owned()),
    };
    let number: usize = digits.parse().map_err(|_| "expected bytes, such as 2GiB, 800M or 4096".to_owned())?;
    number.checked_mul(unit).filter(|&bytes| bytes > 0).ok_or_else(|| "is no amount of memory".to_owned())
}

/// An address of this machine.
fn host_of(text: &str) -> Result<IpAddr, String> {
    if text.eq_ignore_ascii_case("localhost") {
        return Ok(Ipv4Addr::LOCALHOST.into());
    }
    text.parse().map_err(|_| "expected an address of this machine, such as 127.0.0.1, 0.0.0.0 or ::1".to_owned())
}

/// A time: `120`, `0.5`.
fn seconds_of(text: &str) -> Result<Duration, String> {
    let seconds: f64 = text.parse().map_err(|_| "expected seconds, such as 120 or 0.5".to_owned())?;
    Duration::try_from_secs_f64(seconds).map_err(|_| "is no length of time".to_owned())
}

/// The key of a file: its one line.
fn key_of(path: &Path) -> Result<String> {
    let shown = || format!("--api-key-file {}", path.display());
    let mut text = String::new();
    let file = File::open(path).with_context(shown)?;
    file.take(MAX_KEY_FILE + 1).read_to_string(&mut text).with_context(shown)?;
    ensure!(
        text.len() as u64 <= MAX_KEY_FILE,
        "{}: is longer than {MAX_KEY_FILE} bytes; it is to hold one key",
        shown()
    );
    let mut lines = text.lines().map(str::trim).filter(|line| !line.is_empty());
    match (lines.next(), lines.next()) {
        (Some(key), None) => Ok(key.to_owned()),
        (None, _) => bail!("{}: holds no key", shown()),
        (Some(_), Some(_)) => bail!("{}: holds several lines; this server has one key", shown()),
    }
}

/// Runs the command. False when it was interrupted.
pub fn run(args: &ServeArgs) -> Result<bool> {
    let device = &args.generation.device;
    on_device(device, Activations::Auto, args)
}

impl WithBackend for &ServeArgs {
    type Output = bool;

    fn run<B: CompactBackend>(self, device: &OpenDevice<B>) -> Result<bool> {
        serve(self, device)
    }
}

fn serve<B: CompactBackend>(args: &ServeArgs, device: &OpenDevice<B>) -> Result<bool> {
    let pretrained = load::open_prepared(&args.model, &args.generation.depth, args.passes.hidden, device)?;
    let architecture = pretrained.architecture();
    let trained = architecture.config.max_position_embeddings;
    let context = if args.ctx_size == 0 { trained } else { args.ctx_size };
    ensure!(
        context <= trained,
        "--ctx-size {context} is more than the {trained} tokens that this model was trained for"
    );
    let text = load::text(&pretrained)?;
    let (sampling, line) = args.generation.sampling.config(&pretrained.generation_config().defaults);
    sampling.validate().map_err(by_flag)?;
    warn_of_unsupported(pretrained.generation_config(), &sampling);
    let plan = load::plan::<B>(&pretrained, &device.device)?;
    let options = engine_options(args, architecture, context)?;
    let context = match args.cache_bytes {
        Some(budget) => within_budget(budget, &options, architecture, context)?,
        None => context,
    };
    let app = app(args, &pretrained, &plan, &text, context)?;
    let app = Arc::new(app);

    // Whoever waits for the port sees it before the weights are there, and is told to wait.
    let listener = TcpListener::bind((args.host, args.port))
        .with_context(|| format!("cannot listen on {} port {}; choose another --port", args.host, args.port))?;
    let address = listener.local_addr().context("the address that is listened on cannot be told")?;
    output::note(&format!("listening on http://{address}"));
    if app.access.open && app.access.key.is_none() {
        output::note("warning: everybody who reaches this address can use the model; set --api-key");
    }
    let shutdown =
        Shutdown { delay: Duration::from_secs(args.drain_delay), finish: Duration::from_secs(args.drain_limit) };
    let serving = {
        let app = app.clone();
        std::thread::Builder::new()
            .name("ember-serve".into())
            .spawn(move || server::run(&app, listener, shutdown))
            .context("the thread that serves cannot be started")?
    };
    let caches = |cache: usize| {
        let parallel = args.parallel.get();
        let told =
            format!("all answers together (--cache-bytes; --parallel {parallel}, {context} tokens each at most)");
        (options.cache_bytes.unwrap_or(cache), Some(told))
    };
    let model = load::load_for_text(&pretrained, device, &text, &args.passes, context, caches)?;
    drop(pretrained);
    output::note(&format!("sampling where a request says nothing: {line}"));
    let engine = EngineHandle::spawn(model, &text, options, HandleOptions { max_waiting: args.max_queue })?;
    let _ = app.engine.set(engine);
    if args.model.model.is_none() {
        output::note(BOXED);
    }
    if !app.card.has_chat_template {
        output::note(CHATLESS);
    }
    output::note(&format!("page for a browser: {}", page_at(address)));
    output::note(&format!("ready: {}", output::printable(&app.model)));
    let ended = match serving.join() {
        Ok(ended) => ended.context("the server has no sockets or signals")?,
        Err(_) => bail!("the thread that serves has panicked"),
    };
    Ok(ended == Ended::Terminated)
}

/// Where a browser on this machine finds the page: an address that stands for all of them is none to open.
fn page_at(listening: SocketAddr) -> String {
    let host = match listening.ip() {
        IpAddr::V4(ip) if ip.is_unspecified() => Ipv4Addr::LOCALHOST.into(),
        IpAddr::V6(ip) if ip.is_unspecified() => Ipv6Addr::LOCALHOST.into(),
        ip => ip,
    };
    format!("http://{}/", SocketAddr::new(host, listening.port()))
}

fn engine_options(args: &ServeArgs, architecture: &Architecture, context: usize) -> Result<EngineOptions> {
    let kv_format: KvFormat = args.passes.cache_type.into();
    let draft = args.generation.draft.of(architecture)?;
    let parallel = args.parallel.get();
    let usual = {
        let (per_token, fixed) = cache_bytes_per_token(architecture, kv_format);
        let fixed = fixed.saturating_add(draft_bytes(architecture, draft));
        let others = (parallel - 1).saturating_mul(context.min(USUAL_CONTEXT));
        let tokens = context.saturating_add(others);
        // A cache that grows is for a moment there twice.
        let growing = context.saturating_mul(per_token);
        tokens.saturating_mul(per_token).saturating_add(growing).saturating_add(parallel.saturating_mul(fixed))
    };
    let budget = args.cache_bytes.unwrap_or(usual);
    Ok(EngineOptions {
        kv_format,
        tokens_per_step: args.passes.chunk as usize,
        max_running: parallel,
        cache_bytes: Some(budget),
        // What running answers leave; they come first.
        prefix_cache_bytes: if args.no_prefix_cache { 0 } else { budget },
        draft,
        ..EngineOptions::default()
    })
}

/// The context that one answer has in so many bytes for all caches.
///
/// # Errors
/// When they have room for none.
fn within_budget(budget: usize, options: &EngineOptions, architecture: &Architecture, context: usize) -> Result<usize> {
    let (per_token, fixed) = cache_bytes_per_token(architecture, options.kv_format);
    let fixed = fixed.saturating_add(draft_bytes(architecture, options.draft));
    let least = fixed.saturating_add(GROWTH.saturating_mul(per_token));
    let tokens = cache_tokens(budget, per_token, fixed);
    ensure!(
        tokens > 0,
        "--cache-bytes {} has no room for a text; {GROWTH} tokens of this model take {}",
        output::bytes(budget),
        output::bytes(least)
    );
    if tokens < context {
        output::note(&format!("--cache-bytes {} has room for a context of {tokens} tokens", output::bytes(budget)));
    }
    Ok(context.min(tokens))
}

fn app(
    args: &ServeArgs,
    pretrained: &Pretrained,
    plan: &LoadPlan,
    text: &TextProcessor,
    context: usize,
) -> Result<App> {
    let architecture = pretrained.architecture();
    let config = &architecture.config;
    let mut names = args.alias.clone();
    ensure!(names.iter().all(|name| !name.is_empty()), "--alias: a name is empty");
    names.push(load::name(pretrained));
    names.dedup();
    let key = match (&args.api_key, &args.api_key_file) {
        (Some(key), _) => Some(key.clone()),
        (None, Some(path)) => Some(key_of(path)?),
        (None, None) => std::env::var(KEY_VARIABLE).ok().filter(|key| !key.is_empty()),
    };
    ensure!(key.as_ref().is_none_or(|key| !key.is_empty()), "--api-key: is empty");
    let depth = architecture.crest.as_ref();
    let format = KvFormat::from(args.passes.cache_type).as_str();
    let cache = CacheKind { cache_type: format, cache_hidden: caches_hidden(architecture) };
    let template = text.chat_template(&ChatOptions::prompt()).ok();
    Ok(App {
        text: text.clone(),
        stop_tokens: pretrained.stop_tokens(text),
        format: AnswerFormat::detect(config.family, template.map(ChatTemplate::source)),
        markers: AnswerMarkers::of(text),
        compiler: compiler(text),
        model: names.first().map(String::as_str).unwrap_or_default().into(),
        names,
        card: ModelCard {
            family: config.family.to_string(),
            parameters: plan.parameters(),
            trained_context: config.max_position_embeddings,
            depth: depth.map(|crest| (config.num_hidden_layers, crest.num_steps, crest.halt_threshold)),
            has_chat_template: text.has_chat_template(),
            cache,
        },
        created: server::now(),
        context,
        defaults: Defaults {
            flags: args.generation.sampling.clone(),
            file: pretrained.generation_config().clone(),
            adaptive_depth: depth.is_some(),
            vocabulary: config.vocab_size,
        },
        access: Access {
            hosts: args.allow_host.iter().map(|host| host.to_ascii_lowercase()).collect(),
            open: !args.host.is_loopback(),
            key: key.as_deref().map(Key::new),
        },
        stall_limit: args.stall_limit,
        keep_alive: (args.keep_alive > 0).then(|| Duration::from_secs(args.keep_alive)),
        metrics: Metrics::new(cache),
        engine: OnceLock::new(),
        phase: Arc::default(),
        preparing: Semaphore::new(server::PREPARING),
    })
}

/// Made once: it goes through the whole vocabulary.
#[cfg(feature = "grammar")]
fn compiler(text: &TextProcessor) -> Option<Compiler> {
    match Compiler::new(text) {
        Ok(compiler) => Some(compiler),
        Err(error) => {
            output::note(&format!("warning: answers cannot be kept to a JSON schema: {error}"));
            None
        }
    }
}

#[cfg(not(feature = "grammar"))]
fn compiler(_: &TextProcessor) -> Option<Compiler> {
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_page_is_told_at_an_address_that_can_be_opened() {
        for (listening, page) in [
            ("127.0.0.1:8080", "http://127.0.0.1:8080/"),
            ("0.0.0.0:8451", "http://127.0.0.1:8451/"),
            ("[::]:80", "http://[::1]:80/"),
            ("192.168.1.7:80", "http://192.168.1.7:80/"),
        ] {
            assert_eq!(page_at(listening.parse().unwrap()), page, "{listening}");
        }
    }

    #[test]
    fn amounts_have_units() {
        for (text, bytes) in [("4096", 4096), ("2k", 2048), ("800M", 800 << 20), ("2GiB", 2 << 30), ("3gib", 3 << 30)] {
            assert_eq!(bytes_of(text), Ok(bytes), "{text}");
        }
        assert_eq!(host_of("localhost"), Ok(Ipv4Addr::LOCALHOST.into()));
        assert!(host_of("::").is_ok() && host_of("example.org").is_err());
        for (text, seconds) in [("120", 120.0), ("0.5", 0.5), ("0", 0.0)] {
            assert_eq!(seconds_of(text), Ok(Duration::from_secs_f64(seconds)), "{text}");
        }
        for text in ["", "-1", "NaN", "inf", "1e300", "2m"] {
            assert!(seconds_of(text).is_err(), "{text}");
        }
        for text in ["", "0", "GiB", "-1", "1.5G", "2TB", "99999999999999999999", "18446744073709551615G"] {
            assert!(bytes_of(text).is_err(), "{text}");
        }
    }
}
