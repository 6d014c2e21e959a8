//! The example that trains the demo model: its text, and a short run.

#[allow(dead_code)]
#[path = "../examples/train_tiny/data.rs"]
mod data;
#[allow(dead_code)]
#[path = "../examples/train_tiny/exercises.rs"]
mod exercises;
#[allow(dead_code)]
#[path = "../examples/train_tiny/model.rs"]
mod model;
#[allow(dead_code)]
#[path = "../examples/train_tiny/random.rs"]
mod random;
#[path = "../examples/train_tiny/story.rs"]
mod story;
#[allow(dead_code)]
#[path = "../examples/train_tiny/tokenizer.rs"]
mod tokenizer;
#[allow(dead_code)]
#[path = "../examples/train_tiny/train.rs"]
mod train;

use std::collections::BTreeSet;
use std::path::PathBuf;

use clap::Parser;
use data::{Class, Document, Split, document};
use emberlm::prelude::*;
use random::Random;
use tokenizer::Tokenizer;
use train::{Batch, Run};

type Backend = burn_ndarray::NdArray<f32>;

fn documents(seed: u64, split: Split, count: u64) -> Vec<Document> {
    (0..count).map(|i| document(&mut Random::new(seed, i), split)).collect()
}

/// Exercises and stories; what is asked in chats is left to the lines.
fn pieces(documents: &[Document]) -> BTreeSet<String> {
    let lines = documents.iter().filter(|document| !document.text.contains("<|im_start|>"));
    let lines = lines.flat_map(|document| document.text.lines().map(|line| line.replace(data::END, "")));
    lines.filter(|line| !line.contains('?')).collect()
}

#[test]
fn held_out_text_shares_nothing_with_the_training_text() {
    let (train, held_out) = (pieces(&documents(1, Split::Train, 3000)), pieces(&documents(2, Split::HeldOut, 1000)));
    assert!(train.len() > 5000 && held_out.len() > 1000, "{} and {}", train.len(), held_out.len());
    let shared: Vec<&String> = train.intersection(&held_out).collect();
    assert!(shared.is_empty(), "{shared:?}");
}

#[test]
fn sums_are_right_and_carries_are_known() {
    let mut checked = 0;
    for piece in pieces(&documents(3, Split::Train, 400)) {
        let Some((sum, result)) = piece.strip_suffix('.').and_then(|piece| piece.split_once('=')) else { continue };
        let numbers: Vec<usize> = sum.split('+').filter_map(|number| number.parse().ok()).collect();
        assert_eq!(result.parse(), Ok(numbers.iter().sum::<usize>()), "{piece}");
        checked += 1;
    }
    assert!(checked > 100, "{checked} sums");

    let classes = |a, b| {
        let mut document = Document::default();
        exercises::add(&mut document, a, b);
        (1..=document.text.len()).map(|end| document.class_at(end)).collect::<Vec<_>>()
    };
    assert_eq!(classes(21, 34), [Class::Sum, Class::Sum]);
    assert_eq!(classes(27, 48), [Class::Carry, Class::Sum]);
    assert_eq!(classes(95, 5), [Class::Carry, Class::Carry, Class::Sum]);
    assert_eq!(classes(70, 40), [Class::Carry, Class::Sum, Class::Sum]);
}

#[test]
fn tokens_have_the_classes_of_their_text() {
    let tokenizer = Tokenizer::train(1).expect("a tokenizer");
    assert_eq!(tokenizer.vocab_size(), tokenizer::VOCABULARY);
    let mut document = Document::default();
    document.sentence("Once had a");
    document.push(Class::Open, " kite");
    document.sentence(". 2+2=");
    exercises::add(&mut document, 2, 2);
    let (ids, classes) = tokenizer.encode(&document).expect("tokens");
    use Class::{Open, Punctuation, Sum, Word};
    assert_eq!(classes, [Word, Word, Word, Open, Punctuation, Word, Word, Word, Word, Sum], "{ids:?}");
    assert_eq!(
        tokenizer.encode(&document).expect("tokens"),
        Tokenizer::train(1).expect("a tokenizer").encode(&document).expect("tokens")
    );
}

#[derive(Parser)]
struct Flags {
    #[command(flatten)]
    run: Run,
}

fn flags(name: &str, flags: &[&str]) -> Run {
    let out = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join(format!("train-{name}-{}", std::process::id()));
    let args = ["train", "--out", out.to_str().expect("UTF-8")].into_iter().chain(flags.iter().copied());
    Flags::parse_from(args).run
}

fn losses(run: &Run) -> Vec<f64> {
    let log = std::fs::read_to_string(run.out.join("log.jsonl")).expect("a log");
    let loss = |line: &str| serde_json::from_str::<serde_json::Value>(line).ok()?["loss"].as_f64();
    log.lines().filter_map(loss).collect()
}

/// A new model knows nothing: its loss is about ln 640 = 6.46. 48 small batches later it has learned the commonest tokens, and what was
/// written is a model that loads and writes.
#[test]
fn a_short_training_lowers_the_loss() {
    let run = flags("smoke", &["--iterations", "48", "--batch", "2", "--length", "32", "--log-every", "12"]);
    let last = train::train::<Backend>(&run, &Default::default()).expect("a model");
    let losses = losses(&run);
    assert_eq!(losses.len(), 4);
    assert!(losses[0] > 4.5, "{losses:?}");
    assert!(last < losses[0] - 1.0, "the loss should fall by 1 nat per token: {losses:?}");

    let pretrained = Pretrained::open(&run.out).expect("a checkpoint");
    let text = pretrained.text().expect("a tokenizer");
    let model = pretrained.load::<Backend>(&Default::default()).expect("weights");
    let generator = Generator::new(&model, &text, GenerateOptions { max_tokens: 8, ..Default::default() });
    let pieces = generator.expect("a generator").run(&text.encode("Once", true).expect("ids")).expect("a run");
    assert_eq!(pieces.filter_map(|piece| piece.expect("a piece").token).count(), 8);
    std::fs::remove_dir_all(&run.out).expect("removed");
}

/// The checkpoint holds everything: a run that was interrupted ends where it would have ended.
#[test]
fn a_run_that_was_interrupted_goes_on() {
    let small = ["--iterations", "4", "--batch", "1", "--length", "8", "--log-every", "1", "--save-every", "2"];
    let whole = flags("whole", &small);
    train::train::<Backend>(&whole, &Default::default()).expect("a model");
    let parts = flags("parts", &[&small[..], &["--stop-after", "2"]].concat());
    train::train::<Backend>(&parts, &Default::default()).expect("half a model");
    assert_eq!(losses(&parts).len(), 2);
    let rest = Run { stop_after: None, ..parts };
    train::train::<Backend>(&rest, &Default::default()).expect("a model");
    assert_eq!(losses(&rest), losses(&whole));
    let weights = |run: &Run| std::fs::read(run.out.join("model.safetensors")).expect("weights");
    assert!(weights(&rest) == weights(&whole), "the weights differ");
    [whole, rest].iter().for_each(|run| std::fs::remove_dir_all(&run.out).expect("removed"));
}

#[test]
fn batches_follow_from_the_seed() {
    let tokenizer = Tokenizer::train(1).expect("a tokenizer");
    let draw = |seed, first| Batch::draw(&tokenizer, seed, first, Split::Train, 2, 64).expect("a batch");
    let (batch, same) = (draw(1, 4), draw(1, 4));
    assert_eq!(batch.rows, same.rows);
    assert_eq!(batch.rows[1], draw(1, 5).rows[0]);
    assert_ne!(batch.rows, draw(2, 4).rows);
    assert!(batch.rows.iter().all(|row| row.len() == 65) && batch.targets().count() == 128);
}
