//! Flags of other programs.

#[cfg(feature = "serve")]
use crate::program::Scratch;
use crate::program::{Ended, ember};

fn story(flags: &[&str]) -> Ended {
    ember([&["generate", "-p", "Once"], flags].concat())
}

#[test]
fn flags_of_other_programs_are_translated_and_named() {
    let wanted = story(&["-n", "6", "--greedy"]).with_code(0).stdout;
    for (flags, note) in [
        (&["--n-predict", "6", "--greedy"][..], "--n-predict is --max-tokens here"),
        (&["--max_new_tokens=6", "--greedy"], "--max_new_tokens is --max-tokens here"),
        (&["-n", "6", "-ngl", "99", "--greedy"], "-ngl changes nothing: a whole model runs on one device"),
        (&["-n", "6", "-t", "2", "--greedy"], "-t is --threads here"),
        (&["-n", "6", "-c", "512", "--greedy"], "-c changes nothing: the context grows by itself"),
        (&["-n", "6", "-no-cnv", "--mlock", "--greedy"], "-no-cnv changes nothing"),
        (&["-n", "6", "--no-do-sample"], "--no-do-sample is --greedy here"),
        (&["-n", "6", "--repetition-penalty", "1", "--greedy"], "--repetition-penalty is --repeat-penalty here"),
    ] {
        let ended = story(flags).with_code(0);
        assert_eq!(ended.stdout, wanted, "{flags:?}");
        assert!(ended.stderr.contains(&format!("note: {note}")), "{flags:?}: {}", ended.stderr);
    }
    assert!(story(&["-n", "1", "--seed", "-1", "--temp", "1"]).with_code(0).stderr.contains(", seed "));
}

#[test]
fn what_other_programs_have_and_this_has_not_is_explained() {
    for (flags, part) in [
        (&["-f", "prompt.txt"][..], "from stdin: -p - < FILE"),
        (&["--dtype", "float16"], "--activations"),
        (&["--num_beams", "4"], "the samplers are"),
        (&["-hff", "a.gguf"], "-m org/name"),
        (&["--rope-freq-base", "10000"], "rope_parameters in its config.json"),
        (&["--repeat-last-n", "64"], "--repeat-penalty counts all tokens"),
    ] {
        let ended = story(flags).with_code(2);
        assert!(ended.stderr.starts_with(&format!("error: {} is not a flag of emberlm", flags[0])), "{}", ended.stderr);
        assert!(
            ended.stderr.contains(part) && ended.stderr.contains("--help") && ended.stdout.is_empty(),
            "{}",
            ended.stderr
        );
    }
    let flags = ["bench", "-p", "4", "-n", "2", "-r", "1", "-t", "1", "-ngl", "99", "-fa", "1"];
    assert!(ember(flags).with_code(0).stderr.contains("note: -ngl changes nothing"));
    let info = ember(["info", "-c", "512"]).with_code(0);
    assert_eq!(info.stdout, ember(["info", "--context", "512"]).with_code(0).stdout);
    assert!(ember(["-m", "x", "-p", "y"]).with_code(2).stderr.contains("a command comes first"));
    assert!(ember(["run"]).with_code(2).stderr.contains("ember chat"));
}

/// A flag that other commands have is not taken for one that is spelled alike.
#[test]
fn a_flag_of_other_commands_is_told_as_such() {
    let model = "tests/fixtures/leanllama";
    for command in [&["dump", "-m", model, "--input", "x", "--out", "y"][..], &["probe", "-m", model, "-f", "x"]] {
        let ended = ember([command, &["--cache-type", "q8"]].concat()).with_code(2);
        assert!(ended.stderr.contains("tip: --cache-type is a flag of other commands: generate, "), "{}", ended.stderr);
        assert!(!ended.stderr.contains("--cache-hidden"), "{}", ended.stderr);
    }
    let ended = ember(["generate", "-p", "x", "--parallel", "2"]).with_code(2);
    assert!(ended.stderr.contains("tip: --parallel is a flag of other commands: "), "{}", ended.stderr);
    // It tells all of them.
    for (flag, value) in [("--cache-type", "q8"), ("-ctk", "q8"), ("-ctv", "q4_0")] {
        let info = ember(["info", model, flag, value]).with_code(0);
        assert_eq!(info.stdout, ember(["info", model]).with_code(0).stdout);
        let note = format!("note: {flag} {value} changes nothing: memory is told for");
        assert!(info.stderr.contains(&note), "{}", info.stderr);
        // What comes next is no value of it.
        let json = ember(["info", model, flag, "--json"]).with_code(0);
        assert_eq!(json.stdout, ember(["info", model, "--json"]).with_code(0).stdout);
        assert_eq!(info.stdout, ember(["info", flag, model]).with_code(0).stdout);
    }
    // One that was cut short is not taken for a flag of another meaning.
    let cut = ember(["dump", "-m", model, "--input", "x", "--out", "y", "--cache-typ", "q8"]).with_code(2);
    assert!(cut.stderr.contains("tip: --cache-type is a flag of other commands: "), "{}", cut.stderr);
    let own = ember(["generate", "-p", "x", "--cache-typ", "q8"]).with_code(2);
    assert!(!own.stderr.contains("other commands") && own.stderr.contains("'--cache-type'"), "{}", own.stderr);
    let diff = ember(["diff", "-m", model, model]).with_code(2);
    assert!(diff.stderr.contains("two models are compared: ember diff A B"), "{}", diff.stderr);
    let bench = ember(["bench", "-pg", "16,4"]).with_code(2);
    assert!(bench.stderr.contains("-p N measures a prompt"), "{}", bench.stderr);
}

/// A model and a prompt without their flags, as in some other programs.
#[test]
fn words_without_a_flag_are_taken_or_explained() {
    let model = "tests/fixtures/crest_k4";
    let info = ember(["info", model]).with_code(0);
    assert_eq!(info.stdout, ember(["info", "-m", model]).with_code(0).stdout);
    assert!(ember(["info", model, "-m", model]).with_code(2).stderr.contains("cannot be used with"));
    for (flags, tip) in [
        (&["generate", "a story"][..], "tip: a text comes after -p, in quotes where it has spaces: ember generate -p"),
        (&["generate", "-p", "a", "story"], "tip: a text comes after -p, in quotes"),
        (&["generate", model, "-p", "a"], "tip: a model directory comes after -m: ember generate -m tests/"),
        (&["bench", model], "tip: a model directory comes after -m: ember bench -m tests/"),
        (&["depth", "a story"], "tip: a text comes after -p"),
        (&["eval", "story.txt"], "tip: a file with the text comes after -f: ember eval -f story.txt"),
    ] {
        let ended = ember(flags).with_code(2);
        assert!(ended.stderr.contains(tip) && ended.stdout.is_empty(), "{flags:?}: {}", ended.stderr);
    }
}

/// The number of tokens in the cache of a measurement, under the names that it had and that llama-bench has.
#[test]
fn bench_takes_the_context_under_its_older_names() {
    for flag in ["--context", "-d", "--depth", "--n-depth"] {
        let ended = ember(["bench", "-p", "4", "-n", "0", "-r", "1", "-t", "1", flag, "8", "--json"]).with_code(0);
        let report: serde_json::Value = serde_json::from_str(&ended.stdout).expect("JSON");
        assert_eq!(report["results"][0]["n_depth"], 8, "{flag}: {report}");
    }
    for flag in ["--random-context", "--random-depth"] {
        ember(["bench", "-p", "4", "-n", "0", "-r", "1", "-t", "1", "-d", "8", flag]).with_code(0);
    }
}

/// What users of llama-server and vLLM type; a port that is taken ends the program before it serves.
#[test]
#[cfg(feature = "serve")]
fn flags_of_other_servers_are_translated_or_explained() {
    let taken = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
    let port = taken.local_addr().expect("an address").port().to_string();
    let serve = |flags: &[&str]| ember([&["serve", "--port", &port], flags].concat());
    for (flags, note) in [
        (&["-np", "4", "-c", "512"][..], "-np is --parallel here"),
        (&["--served-model-name", "x", "-ngl", "99"], "--served-model-name is --alias here"),
        (&["--max-model-len", "512", "--host", "localhost"], "--max-model-len is --ctx-size here"),
        (&["-c", "0", "--no-webui", "-cb", "--jinja", "-fa", "on", "--metrics"], "--no-webui changes nothing"),
        (&["--verbose", "--slots", "--threads-http", "4"], "--verbose changes nothing: every request is one"),
        (&["--log-disable"], "--log-disable is --log-level error here"),
        (&["--uvicorn-log-level", "warning"], "--uvicorn-log-level is --log-level here"),
    ] {
        let ended = serve(flags).with_code(1);
        assert!(ended.stderr.contains(&format!("note: {note}")), "{flags:?}: {}", ended.stderr);
        assert!(ended.stderr.contains("cannot listen on 127.0.0.1"), "{flags:?}: {}", ended.stderr);
    }
    for (flags, part) in [
        (&["--embeddings"][..], "generates text from text"),
        (&["--ssl-key-file", "key.pem"], "a proxy with TLS"),
        (&["--tool-call-parser", "hermes"], "leave it out"),
        (&["-n", "64"], "a request says max_tokens"),
        (&["--gpu-memory-utilization", "0.9"], "--cache-bytes"),
        (&["--models-dir", "models"], "a server has one model"),
        (&["--host", "example.org"], "expected an address of this machine"),
    ] {
        let ended = serve(flags).with_code(2);
        assert!(ended.stderr.contains(part) && ended.stdout.is_empty(), "{flags:?}: {}", ended.stderr);
    }
    let ended = serve(&["--cache-bytes", "1"]).with_code(1);
    assert!(ended.stderr.contains("has no room for a text; 256 tokens of this model take"), "{}", ended.stderr);
    let scratch = Scratch::new();
    let file = scratch.path("key");
    for (text, part) in
        [("one\ntwo\n", "holds several lines"), (" \n", "holds no key"), (&"x".repeat(5000), "longer than 4096")]
    {
        std::fs::write(&file, text).expect("written");
        let ended = serve(&["--api-key-file", file.to_str().expect("UTF-8")]).with_code(1);
        assert!(ended.stderr.contains(part), "{}", ended.stderr);
    }
    assert!(serve(&["--api-key-file", "no/file"]).with_code(1).stderr.contains("--api-key-file no/file: "));
    assert!(serve(&["--api-key-file", "a", "--api-key", "b"]).with_code(2).stderr.contains("cannot be used with"));
}
