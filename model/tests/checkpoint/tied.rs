//! Heads and embeddings that a config ties or does not tie, against the tensors that are stored.

use crate::support::*;
use emberlm_model::checkpoint::{Checkpoint, Weights};
use emberlm_model::{Pretrained, Result};
use serde_json::json;

const HEAD: &str = "lm_head.weight";
const EMBEDDING: &str = "model.embed_tokens.weight";

fn open(copy: &Copy) -> Result<Pretrained> {
    Pretrained::open(copy.path())
}

fn tie(copy: &Copy, tied: bool) {
    copy.change_config(|config| config["tie_word_embeddings"] = json!(tied));
}

/// The numbers that the model's head and embedding would be read from; no head where it is the embedding.
fn numbers(pretrained: &Pretrained) -> (Vec<f32>, Option<Vec<f32>>) {
    let weights = pretrained.weights();
    let head = weights.entry(HEAD).map(|_| weights.vector(HEAD).expect("head"));
    assert_eq!(head.is_none(), pretrained.architecture().tied_head);
    (weights.vector(EMBEDDING).expect("embedding"), head)
}

fn has_note(pretrained: &Pretrained, word: &str) -> bool {
    pretrained.notes().iter().any(|note| note.contains(word))
}

/// Renames or copies a parameter with all its side tensors.
fn place(tensors: &mut Tensors, from: &str, to: &str, keep: bool) {
    let names: Vec<String> = tensors.keys().filter(|name| name.starts_with(from)).cloned().collect();
    assert!(!names.is_empty(), "no {from}");
    for name in names {
        let tensor = tensors[&name].clone();
        tensors.insert(name.replace(from, to), tensor);
        if !keep {
            tensors.remove(&name);
        }
    }
}

/// F16 (`leanllama`) and NF4 with double quantisation (`leanllama_nf4`), both with a head of their own.
const FIXTURES: [&str; 2] = ["leanllama", "leanllama_nf4"];

#[test]
fn a_stored_head_that_differs_counts_although_the_config_ties() {
    for name in FIXTURES {
        let copy = Copy::of(name);
        let (embedding, head) = numbers(&open(&copy).expect(name));
        assert!(head.is_some() && head.as_ref() != Some(&embedding), "{name} has a head of its own");
        tie(&copy, true);
        let tied = open(&copy).expect(name);
        assert_eq!(numbers(&tied), (embedding, head), "{name}");
        assert!(has_note(&tied, "ties the head to the embedding"), "{:?}", tied.notes());
        assert!(!tied.weights().ignored().contains(&HEAD.to_owned()), "{name}");
    }
}

#[test]
fn a_difference_in_the_last_number_is_a_difference() {
    let copy = Copy::of("leanllama");
    tie(&copy, true);
    copy.change_tensors(|tensors| {
        place(tensors, EMBEDDING, HEAD, true);
        let last = tensors.get_mut(HEAD).and_then(|head| head.2.last_mut()).expect("bytes");
        *last ^= 1;
    });
    assert!(numbers(&open(&copy).expect("open")).1.is_some());
}

#[test]
fn an_equal_head_is_shared() {
    for name in FIXTURES {
        let copy = Copy::of(name);
        copy.change_tensors(|tensors| {
            tensors.retain(|name, _| !name.starts_with(HEAD));
            place(tensors, EMBEDDING, HEAD, true);
        });
        tie(&copy, true);
        let shared = open(&copy).expect(name);
        assert_eq!(numbers(&shared).1, None, "{name}");
        assert!(shared.weights().ignored().contains(&HEAD.to_owned()), "{name}: info counts it");
        assert!(!has_note(&shared, "embedding"), "{:?}", shared.notes());
        // A config that does not tie keeps both.
        tie(&copy, false);
        assert!(numbers(&open(&copy).expect(name)).1.is_some(), "{name}");
    }
}

/// As `torch.equal` after loading: the same numbers in another float type, and 0 beside -0.
#[test]
fn equal_numbers_are_equal_in_any_float_type() {
    let copy = Copy::of("leanllama");
    tie(&copy, true);
    let half = |x: f32| if x == 0.0 { [0, 0x80] } else { [0, 0x3c] };
    for (kind, zero) in [("F32", 0.0f32), ("F16", -0.0), ("F16", 0.0)] {
        copy.change_tensors(|tensors| {
            let shape = tensors[EMBEDDING].1.clone();
            let count: usize = shape.iter().product();
            let ones = |i: usize| if i == 5 { zero } else { 1.0 };
            let bytes = |i: usize| if i == 5 { [0, 0] } else { half(1.0) };
            tensors.insert(EMBEDDING.into(), Tensor("F16".into(), shape.clone(), (0..count).flat_map(bytes).collect()));
            let head = match kind {
                "F32" => f32s(&shape, &(0..count).map(ones).collect::<Vec<_>>()),
                _ => {
                    let bytes = |i: usize| {
                        if i != 5 {
                            half(1.0)
                        } else if zero.is_sign_negative() {
                            half(0.0)
                        } else {
                            [0, 0]
                        }
                    };
                    Tensor("F16".into(), shape, (0..count).flat_map(bytes).collect())
                }
            };
            tensors.insert(HEAD.into(), head);
        });
        assert_eq!(numbers(&open(&copy).expect(kind)).1, None, "{kind} {zero:?}");
    }
}

#[test]
fn a_tied_model_whose_only_copy_is_the_head_loads() {
    for name in FIXTURES {
        for prefix in ["", "model.", "language_model.", "model.language_model."] {
            let copy = Copy::of(name);
            tie(&copy, true);
            let (embedding, _) = numbers(&open(&copy).expect(name));
            copy.change_tensors(|tensors| {
                tensors.retain(|name, _| !name.starts_with(HEAD));
                place(tensors, EMBEDDING, &format!("{prefix}{HEAD}"), false);
            });
            let loaded = open(&copy).unwrap_or_else(|e| panic!("{name} with {prefix}: {e}"));
            assert_eq!(numbers(&loaded), (embedding, None), "{name} with {prefix}");
            assert_eq!(loaded.notes(), [""; 0], "{name} with {prefix}");
        }
    }
}

#[test]
fn a_model_without_a_head_says_so_where_its_config_does_not_tie() {
    let copy = Copy::of("leanllama");
    copy.change_tensors(|tensors| tensors.retain(|name, _| name != HEAD));
    tie(&copy, false);
    let loaded = open(&copy).expect("open");
    assert_eq!(numbers(&loaded).1, None);
    assert!(has_note(&loaded, "no lm_head.weight is stored"), "{:?}", loaded.notes());
    // Nano is published like that.
    let nano = open(&Copy::of("nano_compact")).expect("nano");
    assert!(nano.architecture().tied_head && nano.notes().is_empty(), "{:?}", nano.notes());
}

/// Files are compared in blocks: a difference far from the start, and blocks of elements of different sizes.
#[test]
fn large_parameters_are_compared_to_the_end() {
    let shape = [40_000, 64];
    let count = shape[0] * shape[1];
    let number = |i: usize| (i % 1024) as f32;
    // 0 to 1023 in F16: exact.
    let half = |i: usize| -> [u8; 2] {
        let bits = number(i).to_bits();
        let (exponent, mantissa) = ((bits >> 23) as i32 - 127, bits >> 13 & 0x3ff);
        let half = if number(i) == 0.0 { 0 } else { ((exponent + 15) as u32) << 10 | mantissa };
        (half as u16).to_le_bytes()
    };
    let halves = Tensor("F16".into(), shape.into(), (0..count).flat_map(half).collect());
    let singles = f32s(&shape, &(0..count).map(number).collect::<Vec<_>>());
    let copy = Copy::of("leanllama");
    let same = |head: &Tensor| {
        let tensors = Tensors::from([(EMBEDDING.into(), halves.clone()), (HEAD.into(), head.clone())]);
        write_tensors(&copy.weights(), &tensors);
        let checkpoint = Checkpoint::open(copy.path()).expect("open");
        let weights = Weights::resolve(&checkpoint, &checkpoint.config().expect("config")).expect("resolve");
        weights.same(EMBEDDING, HEAD).expect("read")
    };
    for mut head in [halves.clone(), singles] {
        assert!(same(&head), "{}", head.0);
        let last = head.2.len() - 2;
        head.2[last] ^= 0x40;
        assert!(!same(&head), "{} with another last number", head.0);
    }
}
