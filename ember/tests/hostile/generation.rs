//! What a model computes and how tokens are chosen.

use serde_json::{Value, json};

use super::limits::Run;
use super::model::Place;
use super::table::*;
use super::tensors::Tensor;

const F16_NAN: [u8; 2] = [0, 0x7e];
/// Rows of the head: the vocabulary.
const ROWS: usize = 544;
/// Its columns: the hidden size.
const COLUMNS: usize = 64;
/// Close to the largest number of F32.
const HUGE: f32 = 3e38;

/// Weights must be finite, so that logits are not because sums overflow: these two hidden values are large, and so are some numbers
/// of the head that are multiplied with them.
const LARGE: [usize; 2] = [9, 42];

/// Sets the numbers of the head beside the large hidden values, by row.
fn head(name: &str, must: Must, numbers: fn(usize) -> [f32; 2]) -> Case {
    case(name, must, move |place| {
        place.tensors(|tensors| {
            let norm = tensors.get_mut("model.norm.weight").expect("a norm");
            let mut large = [1.0f32; COLUMNS];
            for column in LARGE {
                large[column] = 1e6;
            }
            *norm = f32s(&[COLUMNS], &large);
            let mut head = vec![0.0f32; ROWS * COLUMNS];
            for (row, row_numbers) in head.chunks_exact_mut(COLUMNS).enumerate() {
                for (column, number) in LARGE.into_iter().zip(numbers(row)) {
                    row_numbers[column] = number;
                }
            }
            tensors.insert("lm_head.weight".into(), f32s(&[ROWS, COLUMNS], &head));
        });
    })
}

fn f32s(shape: &[usize], numbers: &[f32]) -> Tensor {
    Tensor("F32".into(), shape.into(), numbers.iter().flat_map(|x| x.to_le_bytes()).collect())
}

/// Logits that are no numbers are an error that names the step, never token 0; with every way to choose.
#[test]
fn logits_that_are_not_finite() {
    const STEP: Must = Fail(&["token 0", "not finite"]);
    let cases = vec![
        // Of the signs of the two hidden values, one combination of these gives Inf - Inf.
        head("all Inf, -Inf or NaN", STEP, |_| [HUGE, HUGE]),
        head("all Inf, -Inf or NaN, the other sum", STEP, |_| [HUGE, -HUGE]),
        head("all Inf or -Inf", STEP, |_| [HUGE, 0.0]),
        head("all -Inf or Inf", STEP, |_| [-HUGE, 0.0]),
        head("two, one of them NaN", STEP, |row| match row {
            300 => [HUGE, HUGE],
            301 => [HUGE, -HUGE],
            _ => [0.0, 0.0],
        }),
        head("the first two, one of them NaN", STEP, |row| match row {
            0 => [HUGE, HUGE],
            1 => [-HUGE, HUGE],
            _ => [0.0, 0.0],
        }),
        head("the last two, one of them +Inf", STEP, |row| match row {
            542 => [HUGE, 0.0],
            543 => [-HUGE, 0.0],
            _ => [0.0, 0.0],
        }),
        // What is -Inf alone is a token that cannot be drawn.
        head("one Inf or -Inf", WorkOrFail(&["token 0", "not finite"]), |row| [if row == 7 { HUGE } else { 0.0 }, 0.0]),
        head("one -Inf or Inf", WorkOrFail(&["token 0", "not finite"]), |row| {
            [if row == 7 { -HUGE } else { 0.0 }, 0.0]
        }),
        case("a norm that overflows", STEP, |place| {
            place.tensors(|tensors| {
                tensors.insert("model.norm.weight".into(), f32s(&[COLUMNS], &[HUGE; COLUMNS]));
            });
        }),
    ];
    let choices: [&[&str]; 4] =
        [&["--greedy"], &["--temp", "1"], &["--temp", "1", "--top-k", "5"], &["--temp", "0.7", "--top-p", "0.9"]];
    let one = ["generate", "-p", "The river", "-n", "1", "--threads", "2", "--seed", "1"];
    let commands: Vec<Vec<&str>> = choices.iter().map(|choice| [&one, *choice].concat()).collect();
    let commands: Vec<&[&str]> = commands.iter().map(Vec::as_slice).collect();
    run("leanllama", &commands, cases);
}

/// Weights that are no numbers are told before anything is computed.
#[test]
fn weights_that_are_not_finite() {
    let set = |tensor: &'static str, at: usize, bytes: [u8; 2]| {
        case(format!("{tensor}[{at}]"), Fail(&["/model", "is not a finite number"]), move |place| {
            place.tensors(|tensors| {
                let stored = &mut tensors.get_mut(tensor).expect("it").2;
                stored[2 * at..2 * at + 2].copy_from_slice(&bytes);
            });
        })
    };
    let cases = vec![
        set("lm_head.weight", 0, F16_NAN),
        set("lm_head.weight", ROWS * COLUMNS - 1, [0, 0x7c]),
        set("model.embed_tokens.weight", 77, [0, 0xfc]),
        set("model.norm.weight", 63, F16_NAN),
        set("model.layers.3.self_attn.v_compressor.encoder.weight", 5, F16_NAN),
        set("model.layers.5.mlp.down_proj.weight", 1, [1, 0x7c]),
    ];
    run("leanllama", &[GENERATE], cases);
}

/// An error in the middle of a text names the token that it happened at. A logit of -Inf is only a token that cannot be drawn; with
/// one of the two signs it is that at first, and +Inf as soon as the hidden value changes its sign.
#[test]
fn logits_that_are_not_finite_later() {
    let steps = [HUGE, -HUGE].map(|huge| {
        let place = Place::with("leanllama");
        let (_, _, change) = head(
            "",
            Work,
            if huge > 0.0 {
                |row| [if row == 7 { HUGE } else { row as f32 }, 0.0]
            } else {
                |row| [if row == 7 { -HUGE } else { row as f32 }, 0.0]
            },
        );
        change(&place);
        let run = on_model(
            &place,
            &["generate", "-p", "The river", "-n", "64", "--temp", "3e7", "--seed", "1", "--ignore-eos"],
        );
        let ended = run.ended(&place.logs());
        assert_eq!(ended.decent(), Ok(1), "{}", ended.stderr);
        let (_, told) = ended.stderr.split_once("logits of generated token ").expect("the error");
        let (step, rest) = told.split_once(' ').expect("a number");
        assert!(rest.starts_with("are not finite: 1 of 544"), "{rest}");
        step.parse::<usize>().expect("a number")
    });
    assert!(steps.contains(&0) && steps.iter().any(|&step| step > 0), "{steps:?}");
}

/// Flags of choosing, each with what must come of it.
#[test]
fn flags_of_sampling() {
    let place = Place::with("leanllama");
    let model = place.model();
    let refused = |part: &'static [&'static str]| Fail(part);
    let cases: Vec<(&[&str], Must)> = vec![
        (&["--temp", "0"], Work),
        (&["--temp", "1e-6"], Work),
        (&["--temp", "1e-45"], Work),
        (&["--temp", "1e30"], WorkOrFail(&["temp"])),
        (&["--temp", "NaN"], refused(&["temp"])),
        (&["--temp", "-1"], refused(&["temp"])),
        (&["--temp", "inf"], refused(&["temp"])),
        (&["--temp", "x"], refused(&["--temp"])),
        (&["--top-p", "0"], WorkOrFail(&["--top-p"])),
        (&["--top-p", "1"], Work),
        (&["--top-p", "1e-9"], Work),
        (&["--top-p", "2"], refused(&["--top-p"])),
        (&["--top-p", "NaN"], refused(&["--top-p"])),
        (&["--top-p", "-0.5"], refused(&["--top-p"])),
        (&["--top-k", "0"], Work),
        (&["--top-k", "-1"], Work),
        (&["--top-k", "1"], Work),
        (&["--top-k", "1000000"], Work),
        (&["--top-k", "18446744073709551615"], Work),
        (&["--top-k", "18446744073709551616"], refused(&["--top-k"])),
        (&["--min-p", "2"], refused(&["--min-p"])),
        (&["--min-p", "NaN"], refused(&["--min-p"])),
        (&["--repeat-penalty", "0"], refused(&["--repeat-penalty"])),
        (&["--repeat-penalty", "NaN"], refused(&["--repeat-penalty"])),
        (&["--repeat-penalty", "1e-30"], WorkOrFail(&["--repeat-penalty"])),
        (&["--repeat-penalty", "1e-45"], refused(&["--repeat-penalty"])),
        (&["-n", "0"], Work),
        (&["-n", "-2"], refused(&["--max-tokens"])),
        (&["-n", "1.5"], refused(&["--max-tokens"])),
        (&["-n", "18446744073709551616"], refused(&["--max-tokens"])),
        (&["--chunk", "0"], refused(&["--chunk"])),
        (&["--chunk", "1"], Work),
        (&["--chunk", "4294967295"], Work),
        (&["--stop", ""], refused(&["stop"])),
        (&["--stop", "a", "--stop", "b", "--stop", "\n"], Work),
        (&["--threads", "0"], refused(&["--threads"])),
        (&["--threads", "65536"], refused(&["--threads"])),
    ];
    let mut wrong = Vec::new();
    for (flags, must) in cases {
        let mut args = vec!["generate", "-m", model.to_str().expect("UTF-8"), "-p", "The river"];
        args.extend(
            [["-n", "3"], ["--threads", "2"], ["--seed", "1"]].iter().filter(|f| !flags.contains(&f[0])).flatten(),
        );
        args.extend(flags);
        if let Err(message) = check(&place, &Run::new(args), must) {
            wrong.push(format!("{flags:?}: {message}"));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

/// Runs with `--json`; the report.
fn report(place: &Place, flags: &[&str]) -> Value {
    let model = place.model();
    let args = [&["generate", "-m", model.to_str().expect("UTF-8"), "--json", "--threads", "2"], flags].concat();
    let ended = check(place, &Run::new(args), Work).unwrap_or_else(|e| panic!("{flags:?}: {e}"));
    serde_json::from_str(&ended.stdout).expect("JSON")
}

#[test]
fn prompts_and_ends() {
    let place = Place::with("leanllama");
    // The tokenizer puts a token before every text, so that nothing is a prompt too.
    assert_eq!(report(&place, &["-p", "", "-n", "2", "--ignore-eos"])["tokens"].as_array().map(Vec::len), Some(2));
    let nothing = report(&place, &["-p", "a", "-n", "0"]);
    assert_eq!((&nothing["tokens"], &nothing["text"], &nothing["finish"]), (&json!([]), &json!(""), &json!("length")));

    // One seed gives one text, however the prompt is cut.
    let drawn = |chunk: &str| {
        let flags =
            ["-p", "The river", "-n", "12", "--temp", "1.5", "--seed", "7", "--chunk", chunk, "--activations", "f32"];
        report(&place, &flags)["tokens"].clone()
    };
    assert_eq!(drawn("512"), drawn("512"));
    assert_eq!(drawn("512"), drawn("1"));

    // A stop string that begins in one token and ends in another ends the text before it.
    let greedy = ["-p", "The river", "-n", "16", "--greedy", "--ignore-eos"];
    let whole = report(&place, &greedy);
    let text = whole["text"].as_str().expect("a text");
    let cut: Vec<usize> = text.char_indices().map(|(at, _)| at).collect();
    let mut stopped = 0;
    for pair in cut.windows(5).step_by(2) {
        let stop = &text[pair[0]..pair[4]];
        let ended = report(&place, &[&greedy[..], &["--stop", stop]].concat());
        let expected = &text[..text.find(stop).expect("it is there")];
        assert_eq!((ended["text"].as_str(), &ended["finish"]), (Some(expected), &json!("stop")), "{stop:?}");
        stopped += 1;
    }
    assert!(stopped > 3, "{text:?} is too short");

    // An end token that comes first leaves an empty text.
    place.edit("generation_config.json", |json| json["eos_token_id"] = json!((0..544).collect::<Vec<_>>()));
    let ended = report(&place, &["-p", "The river", "-n", "5", "--temp", "1"]);
    assert_eq!((&ended["text"], &ended["finish"]), (&json!(""), &json!("stop")));

    // A prompt as long as the context, and one token longer.
    place.edit("config.json", |json| json["max_position_embeddings"] = json!(9));
    assert_eq!(report(&place, &["-p", "aaaaaaaa", "-n", "-1", "--ignore-eos"])["prompt_tokens"], json!(9));
    let model = place.model();
    for prompt in ["aaaaaaaaa", &"a".repeat(100_000)] {
        let args = ["generate", "-m", model.to_str().expect("UTF-8"), "-p", prompt, "--threads", "2"];
        check(&place, &Run::new(args), Fail(&["prompt", "context", "9"])).unwrap_or_else(|e| panic!("{e}"));
    }
    // Without such a token nothing is no prompt.
    let crest = Place::with("crest_k4");
    let model = crest.model();
    let args = ["generate", "-m", model.to_str().expect("UTF-8"), "-p", ""];
    check(&crest, &Run::new(args), Fail(&["prompt", "no tokens"])).unwrap_or_else(|e| panic!("{e}"));
}
