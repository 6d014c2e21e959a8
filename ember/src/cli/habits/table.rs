//! Flags and commands of llama.cpp, mlx-lm and transformers, and what they are here.

/// What a foreign flag is here.
#[derive(Clone, Copy)]
pub enum Equivalent {
    /// This flag, with the value of the foreign one.
    Flag(&'static str),
    /// These words, whatever the foreign flag takes.
    Words(&'static [&'static str]),
    /// Nothing that is needed, for this reason; a value that is a number or a setting is passed over too.
    NoEffect(&'static str),
    /// As [`NoEffect`](Self::NoEffect), with a value whatever it is.
    NoEffectOf(&'static str),
    /// Not there: what to do instead.
    Instead(&'static str),
}
use Equivalent::{Flag, Instead, NoEffect, NoEffectOf, Words};

/// The spellings of a flag in other programs, and its equivalent.
pub type ForeignFlag = (&'static [&'static str], Equivalent);

const ONE_FILE: Equivalent = Instead(
    "a model is more than one file, and GGUF is not read: -m org/name downloads the safetensors files of a model",
);
const DEVICES: Equivalent = Instead("--device chooses the device; a model runs on one");
const PROMPT_FILES: Equivalent = Instead("a prompt comes from -p, or from stdin: -p - < FILE");
const TEMPLATE: Equivalent = Instead("the template is that of the model; edit chat_template.jinja in its directory");
const TOKEN_RULES: Equivalent = Instead("state it in the model's generation_config.json, where it is obeyed");
const SAMPLERS: Equivalent =
    Instead("the samplers are --repeat-penalty, --temp, --top-k, --top-p and --min-p, in this order");
const PLAIN: Equivalent = NoEffect("a prompt is plain text unless --chat is given");
const WHOLE: Equivalent = NoEffect("a whole model runs on one device; --device chooses it");
const MEMORY: Equivalent = NoEffect("weights are mapped from their files and packed in memory as they are");
const GROWS: Equivalent = NoEffect("the context grows by itself, up to that of the model");
const ALWAYS: Equivalent = NoEffect("it is always so");
const HARMLESS: Equivalent = NoEffect("there is no such choice");
const QUIET: Equivalent = NoEffect("only the text goes to stdout, and the prompt is not printed");

/// Flags that mean something else in one command than in the others.
pub const OF_A_COMMAND: &[(&str, &[ForeignFlag])] = &[
    (
        "bench",
        &[
            (&["--n-predict", "--predict", "--max-tokens", "--max-new-tokens"], Flag("--n-gen")),
            (
                &["-pg"],
                Instead(
                    "-p N measures a prompt, -n N tokens that are generated, and --context N what comes after others",
                ),
            ),
            (&["-o", "--output"], Instead("--json prints one JSON object, else it is a table")),
            (&["-c", "--ctx-size", "--n-ctx"], Instead("--context N fills the cache with N tokens first")),
        ],
    ),
    (
        "eval",
        &[
            (&["--file", "--prompt-file", "--corpus", "--dataset"], Flag("--text")),
            (&["-p", "--prompt"], Instead("the text is a file, or stdin: -f -")),
            (&["-c", "--ctx-size", "--n-ctx", "--max-length", "--window"], Flag("--context")),
            (&["--ppl-stride"], Flag("--stride")),
            (
                &["--chunks"],
                Instead("the whole text is read; give a part of it: head -c 100000 FILE | ember eval -f -"),
            ),
            (&["--perplexity"], NoEffect("it is what this command measures")),
            (&["-b", "--batch-size", "-ub", "--ubatch-size"], NoEffect("passes are as long as memory allows")),
        ],
    ),
    (
        "chat",
        &[
            (
                &["-cnv", "--conversation", "--chat", "--apply-chat-template", "--use-default-chat-template"],
                NoEffect("it is always a conversation"),
            ),
            (&["-i", "--interactive", "-if", "--interactive-first"], NoEffect("it is always a conversation")),
            (&["-mli", "--multiline-input"], NoEffect("a line that ends with \\ goes on in the next one")),
            (
                &["-p", "--prompt", "--message", "--user-prompt", "-f", "--file"],
                Instead("messages are typed, or piped: ember chat < FILE"),
            ),
            (&["-st", "--single-turn"], Instead("`ember generate --chat -p TEXT` answers one message")),
            (&["--json"], Instead("/save FILE writes the conversation as JSON")),
        ],
    ),
    (
        "serve",
        &[
            (&["--n-ctx", "--context", "--context-length", "--max-model-len", "--max-seq-len"], Flag("--ctx-size")),
            (
                &["-np", "--n-parallel", "--max-num-seqs", "--num-parallel", "--max-running-requests"],
                Flag("--parallel"),
            ),
            (&["-a", "--served-model-name", "--model-alias"], Flag("--alias")),
            (&["--max-queue-size", "--max-waiting"], Flag("--max-queue")),
            (&["--max-num-batched-tokens", "--chunked-prefill-size"], Flag("--chunk")),
            (
                &["--no-cache-prompt", "--no-enable-prefix-caching", "--disable-radix-cache"],
                Words(&["--no-prefix-cache"]),
            ),
            (&["--cache-prompt", "--enable-prefix-caching", "--enable-chunked-prefill"], ALWAYS),
            (&["-cb", "--cont-batching", "--continuous-batching", "--metrics"], ALWAYS),
            (&["--enable-auto-tool-choice", "--enable-reasoning", "--kv-unified", "-kvu"], ALWAYS),
            (&["--swa-full", "--no-context-shift"], HARMLESS),
            (&["--webui", "--ui", "--no-webui", "--no-ui"], NoEffect("the page at / is always there")),
            (
                &["--slots", "--no-slots", "--props", "--no-props"],
                NoEffect("/metrics and /v1/models tell what there is to tell"),
            ),
            (&["--log-disable"], Words(&["--log-level", "error"])),
            (&["--uvicorn-log-level"], Flag("--log-level")),
            (&["--disable-uvicorn-access-log"], Words(&["--log-level", "warn"])),
            (
                &["--verbose", "-v", "-lv", "--log-verbosity", "--verbosity", "--verbose-prompt"],
                NoEffect("every request is one line on stderr; --log-level debug tells a little more"),
            ),
            (&["--log-file"], Instead("the log goes to stderr: 2> FILE")),
            (
                &["--models-dir", "--models-preset", "--models-max"],
                Instead("a server has one model; start another one with another --port"),
            ),
            (&["--threads-http", "--log-timestamps", "--disable-log-requests", "--api-server-count"], HARMLESS),
            (&["--sps", "-sps", "--slot-prompt-similarity", "--cache-reuse", "--ctx-checkpoints"], HARMLESS),
            (
                &["--cache-ram", "-cram", "--gpu-memory-utilization", "--mem-fraction-static"],
                Instead("--cache-bytes is the budget of all caches"),
            ),
            (&["--max-kv-size"], Instead("--cache-bytes is the budget of all caches, --ctx-size the length of one")),
            (
                &["--tool-call-parser", "--reasoning-parser", "--reasoning-format"],
                Instead("the model's chat template tells the format; leave it out"),
            ),
            (
                &["--reasoning-budget", "--reasoning"],
                Instead("a request turns thinking off: \"reasoning_effort\": \"none\", or \"enable_thinking\": false"),
            ),
            (
                &["--timeout", "-to", "--timeout-keep-alive"],
                Instead("--keep-alive keeps silent streams open; a reader that takes nothing for 60 s is given up"),
            ),
            (
                &["--cors-allow-origin", "--allowed-origins", "--allowed-hosts", "--cors"],
                Instead("--allow-host NAME answers pages of that site"),
            ),
            (
                &["--ssl-key-file", "--ssl-cert-file", "--ssl-keyfile", "--ssl-certfile"],
                Instead("put a proxy with TLS in front"),
            ),
            (&["--path", "--api-prefix", "--root-path"], Instead("put a proxy in front that maps the paths")),
            (&["--slot-save-path", "--prompt-cache"], Instead("no cache of prompts is kept on disk")),
            (
                &["--embedding", "--embeddings", "--rerank", "--reranking", "--mmproj", "-mm"],
                Instead("this server generates text from text"),
            ),
            (
                &["--n-predict", "--predict", "-n", "--max-tokens", "--max-new-tokens"],
                Instead("a request says max_tokens; one that does not has the rest of the context"),
            ),
            (&["-r", "--stop", "--reverse-prompt"], Instead("a request says stop")),
            (
                &["-p", "--prompt", "--chat", "-cnv", "--system", "-sys", "--system-prompt"],
                Instead("clients send the messages; `ember chat` is a conversation here"),
            ),
        ],
    ),
    ("diff", &[(&["-m", "--model"], Instead("two models are compared: ember diff A B"))]),
    (
        "info",
        &[
            (&["-c", "--ctx-size", "--n-ctx", "--max-model-len"], Flag("--context")),
            (
                &["--cache-type", "-ctk", "--ctk", "--cache-type-k", "-ctv", "--ctv", "--cache-type-v"],
                NoEffectOf("memory is told for every number format of the cache"),
            ),
        ],
    ),
];

/// Flags of all commands.
pub const EVERYWHERE: &[ForeignFlag] = &[
    (&["--n-predict", "--predict", "--num-predict", "--max-new-tokens", "--max-gen-toks"], Flag("--max-tokens")),
    (&["--max-length"], Instead("--max-tokens counts the tokens of the output alone")),
    (&["-t", "--n-threads", "--num-threads", "--cpu-threads"], Flag("--threads")),
    (&["-tb", "--threads-batch"], NoEffect("--threads counts for prompts too")),
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
    (
        &["--json-schema", "--json-schema-file", "-j", "-jf"],
        Instead("`ember serve` answers by a JSON schema (response_format); this command does not restrict the output"),
    ),
    (&["--grammar", "--grammar-file"], Instead("no grammar restricts the output; `ember serve` takes JSON schemas")),
    (&["--do-sample", "--sample"], Instead("--temp, --top-k, --top-p or --min-p ask for draws, --temp 1 plainly")),
    (&["--no-do-sample", "--no-sample"], Words(&["--greedy"])),
    (&["-s", "--random-seed"], Flag("--seed")),
    (&["-r", "--reverse-prompt", "--stop-string", "--stop-strings", "--stop-word", "--stop-words"], Flag("--stop")),
    (&["--stop-sequence", "--extra-eos-token", "--eos-token"], Flag("--stop")),
    (&["-sys", "--system-prompt", "--system-message"], Flag("--system")),
    (&["--input", "--input-text", "--message", "--user-prompt"], Flag("--prompt")),
    (&["-cnv", "--conversation", "--apply-chat-template", "--use-default-chat-template"], Words(&["--chat"])),
    (&["-no-cnv", "--no-conversation", "-no-conv", "--ignore-chat-template", "--no-chat-template"], PLAIN),
    (&["-st", "--single-turn"], NoEffect("one prompt gets one answer")),
    (
        &["-i", "--interactive", "-if", "--interactive-first", "-mli", "--multiline-input"],
        Instead("`ember chat -m DIR` is a conversation; --chat answers one prompt"),
    ),
    (&["--jinja"], NoEffect("the chat template is always rendered")),
    (&["--chat-template", "--chat-template-file", "--chat-template-config", "--chat-template-args"], TEMPLATE),
    (&["--chat-template-kwargs", "--no-jinja"], TEMPLATE),
    (
        &["-e", "--escape"],
        Instead("a prompt is taken as it is; let the shell write it, as in $'two\\nlines', or use stdin"),
    ),
    (&["--no-escape"], NoEffect("a prompt is taken as it is")),
    (&["-b", "--batch-size", "-ub", "--ubatch-size", "--prefill-step-size"], Flag("--chunk")),
    (
        &["--rope-freq-base", "--rope-freq-scale", "--rope-scaling", "--rope-scale", "--yarn-orig-ctx", "--rope-theta"],
        Instead("the rotary embedding is that of the model; rope_parameters in its config.json change it"),
    ),
    (&["-fa", "--flash-attn", "--attn-implementation"], NoEffect("there is one attention, which works in blocks")),
    (&["--mmap", "--mlock", "--numa", "--no-repack", "--low-cpu-mem-usage", "--low-vram"], MEMORY),
    (
        &["--warmup", "--no-warmup", "--perf", "--no-perf", "--prio", "--poll", "--use-cache"],
        NoEffect("there is no such choice"),
    ),
    (&["--log-disable", "--simple-io", "--no-display-prompt", "--verbose-prompt", "-co"], QUIET),
    (&["--verbose", "-v", "--stream", "--no-stream", "--special"], QUIET),
    (&["--trust-remote-code"], NoEffect("code of a model is never run")),
    (&["--offline"], NoEffect("this command downloads nothing")),
    (&["--local-files-only"], Flag("--offline")),
    (&["-ctk", "--ctk", "--cache-type-k", "-ctv", "--ctv", "--cache-type-v"], Flag("--cache-type")),
    (
        &["--kv-bits", "--kv-group-size", "--quantized-kv-start"],
        Instead("--cache-type q8, f16 or f32 holds for keys and values"),
    ),
    (
        &["--dtype", "--torch-dtype", "--precision", "--bf16", "--fp16"],
        Instead(
            "weights keep the type they are stored in; --quant changes it, --activations is the type between operations",
        ),
    ),
    (&["--load-in-4bit", "--4bit"], Words(&["--quant", "nf4"])),
    (&["--load-in-8bit", "--8bit"], Words(&["--quant", "int8"])),
    (
        &["--quantize", "--quantization", "--q-bits", "--bits"],
        Instead("--quant nf4, nf4-dq or int8 quantises at load, ember quantize writes a model directory"),
    ),
    (&["--model-path", "--model-name-or-path", "--model-name", "--model-id", "--pretrained"], Flag("--model")),
    (&["-hf", "-hfr", "--hf-repo"], Flag("--model")),
    (&["-hff", "--hf-file", "--model-url"], ONE_FILE),
    (&["--hf-token", "--token"], Instead("set HF_TOKEN: a command line is seen by everyone on the machine")),
    (&["--cache-dir"], Instead("HF_HUB_CACHE says where downloads are kept")),
    (
        &["--lora", "--lora-scaled", "--adapter-path", "--adapter"],
        Instead("merge the adapter into its base model first"),
    ),
    (
        &["--model-draft", "--draft-model", "-md"],
        Instead("no second model drafts: --draft prompt-lookup and --draft-steps K do it with the model itself"),
    ),
    (&["--num-draft-tokens", "--prompt-lookup-num-tokens", "--draft-n"], Flag("--draft-max")),
    (&["--prompt-cache", "--prompt-cache-file", "--session"], Instead("no cache of prompts is kept on disk")),
    (&["-np", "--num-return-sequences", "--best-of"], Instead("one run makes one text")),
];

/// Flags of pairs of which one alone is a flag here: what counts where both are given with different values. Of a batch the part that is
/// computed in one pass.
pub const OF_A_PAIR: &[&str] = &["-ub", "--ubatch-size"];

/// Words that flags which change nothing take as values, besides numbers.
pub const SETTINGS: &[&str] = &[
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
    "q8",
    "q8_0",
    "f16",
    "f32",
];

/// Names of other programs' commands.
pub const COMMANDS: &[(&[&str], &str)] = &[
    (
        &["run", "cli", "complete", "completion"],
        "`ember chat` is a conversation; `ember generate -p TEXT` continues a text, with --chat it answers",
    ),
    (&["server", "api"], "`ember serve` answers OpenAI's and Anthropic's APIs"),
    (&["perplexity", "ppl", "evaluate"], "`ember eval -f FILE` measures the perplexity of a text"),
    (&["benchmark"], "`ember bench` measures speed"),
    (&["download"], "`ember pull NAME` downloads a model"),
    (&["list", "ls"], "`ember models` lists the models in the cache"),
    (&["rm", "remove", "delete"], "`ember models` lists the folders of the cache; a model is gone when its folder is"),
    (&["version"], "`ember --version` says it"),
];
