//! Options that a checkpoint does not state are found by the text that its own options predict best.

use std::collections::BTreeMap;

use crate::support::{Copy, fixture};
use burn_ndarray::NdArray;
use emberlm_model::config::{CrestOverrides, KStage, KvOverrides, ModelOptions};
use emberlm_model::probe::{Axis, OpenOptions, OptionValue, ProbeText, Ranking, Verdict, probe};
use emberlm_model::{CausalLm, Pretrained};
use emberlm_quant::kv::KvFormat;
use serde_json::{Value, json};

type Cpu = NdArray<f32>;

/// Tokens of a block, and blocks.
const BLOCK: usize = 48;
const BLOCKS: usize = 24;

fn load(pretrained: &Pretrained) -> CausalLm<Cpu> {
    pretrained.load(&Default::default()).expect("a model")
}

/// Continuations of random tokens by the likeliest token, one after the other, each as long as a block.
fn continuations(model: &CausalLm<Cpu>, blocks: usize, seed: u32) -> Vec<u32> {
    let vocabulary = model.architecture().config.vocab_size as u32;
    let mut state = seed;
    let mut random = || {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (state >> 8) % vocabulary
    };
    let mut ids = Vec::new();
    for _ in 0..blocks {
        let mut cache = model.new_cache(KvFormat::F32);
        let mut token = random();
        for _ in 0..BLOCK {
            ids.push(token);
            let logits = model.decode(token, &mut cache).expect("logits").to_data().into_vec::<f32>().expect("floats");
            let best = logits.iter().enumerate().max_by(|a, b| a.1.total_cmp(b.1)).expect("a vocabulary");
            token = best.0 as u32;
        }
    }
    ids
}

/// A copy of a fixture without these keys of its `crest` or `kv_compression` object.
fn hiding(name: &str, keys: &[&str]) -> Copy {
    let copy = Copy::of(name);
    copy.change_config(|config| {
        for place in ["/crest", "/kv_compression", "/text_config/crest"] {
            if let Some(Value::Object(object)) = config.pointer_mut(place) {
                object.retain(|key, _| !keys.contains(&key.as_str()));
            }
        }
    });
    copy
}

fn rank(pretrained: &Pretrained, ids: &[u32]) -> (OpenOptions, Ranking) {
    let open = OpenOptions::of(pretrained, &ModelOptions::default(), false);
    let text = ProbeText::new(ids, Some(BLOCK), usize::MAX, Vec::new()).expect("a text");
    let mut model = load(pretrained);
    let ranking = probe(&mut model, &open, &text, |_| ()).expect("a ranking");
    assert_eq!(truth(&model, &open.axes), ranking.candidates[0].candidate.values, "the model is left with the first");
    (open, ranking)
}

/// What a model is run with.
fn value(model: &CausalLm<Cpu>, option: &str) -> OptionValue {
    let architecture = model.architecture();
    let crest = || architecture.crest.as_ref().expect("adaptive depth");
    let kv = || architecture.kv_compression.as_ref().expect("compressors");
    match option {
        "step_input" => OptionValue::StepInput(crest().step_input),
        "gate_input" => OptionValue::GateInput(crest().gate_input),
        "halt_mode" => OptionValue::HaltMode(crest().halt_mode),
        "halt_weights" => OptionValue::HaltWeights(crest().halt_weights),
        "halt_threshold" => OptionValue::HaltThreshold(crest().halt_threshold),
        "activation" => OptionValue::Activation(kv().activation),
        "k_stage" => OptionValue::KStage(kv().k_stage),
        other => panic!("{other}"),
    }
}

fn truth(model: &CausalLm<Cpu>, axes: &[Axis]) -> Vec<OptionValue> {
    axes.iter().map(|axis| value(model, axis.option)).collect()
}

const ALL: &[&str] =
    &["step_input", "gate_input", "halt_mode", "halt_weights", "halt_threshold", "activation", "k_stage"];

/// Prints how every case ended; the count of those in which the true values came first, and of all.
fn found(cases: &[(&str, &[&str])]) -> (usize, usize) {
    let mut right = 0;
    let mut of_fixture = BTreeMap::new();
    for &(name, hidden) in cases {
        let (model, ids) = of_fixture.entry(name).or_insert_with(|| {
            let model = load(&Pretrained::open(fixture(name)).expect("a fixture"));
            let ids = continuations(&model, BLOCKS, 1);
            (model, ids)
        });
        let copy = hiding(name, hidden);
        let (open, ranking) = rank(&Pretrained::open(copy.path()).expect("a copy"), ids);
        let truth = truth(model, &open.axes);
        let first = &ranking.candidates[0];
        let is_right = first.candidate.values == truth;
        right += usize::from(is_right);
        let blocks: usize = ranking.candidates.iter().map(|ranked| ranked.candidate.blocks()).sum();
        let undecided = ranking.candidates.iter().filter(|ranked| ranked.verdict == Verdict::Undecided).count();
        println!(
            "{} {name} {hidden:?}: {} candidates, {undecided} as good, {blocks} blocks, {:.1} s; first {:?}, perplexity {:.3}",
            if is_right { "right" } else { "WRONG" },
            ranking.candidates.len(),
            ranking.seconds,
            first.candidate.values.iter().map(OptionValue::value).collect::<Vec<_>>(),
            first.candidate.perplexity(),
        );
        if !is_right {
            let place = ranking.candidates.iter().position(|ranked| ranked.candidate.values == truth);
            let of = place.map(|place| &ranking.candidates[place]);
            println!(
                "   the true one is at {place:?}: {:?} {:?}",
                of.map(|of| of.verdict),
                of.and_then(|of| of.difference)
            );
        }
    }
    (right, cases.len())
}

/// One option hidden at a time, and all of them.
const CASES: &[(&str, &[&str])] = &[
    ("crest_k4", &["step_input"]),
    ("crest_k4", &["gate_input"]),
    ("crest_k4", &["halt_mode"]),
    ("crest_k4", &["halt_weights"]),
    ("crest_k4", &["halt_threshold"]),
    ("crest_k2", &["gate_input"]),
    ("crest_k2", &["halt_weights"]),
    ("leanllama", &["activation"]),
    ("leanllama_nf4", &["activation"]),
    ("leanllama_kv", ALL),
];

/// The others, which take longer.
const FURTHER: &[(&str, &[&str])] = &[
    ("crest_k4", ALL),
    ("crest_k2", &["step_input"]),
    ("crest_k2", &["halt_threshold"]),
    ("crest_k2", ALL),
    ("crest_k4_nf4", ALL),
    ("leanllama_kv", &["activation"]),
    ("leanllama_kv", &["k_stage"]),
];

#[test]
fn hidden_options_are_found() {
    let (right, all) = found(CASES);
    assert!(right * 10 >= all * 9, "{right} of {all}");
}

#[test]
#[ignore = "takes a minute: by hand when the search changes (CONTRIBUTING.md); single options always run"]
fn all_options_hidden_at_once_are_found() {
    let (right, all) = found(FURTHER);
    assert!(right * 10 >= all * 9, "{right} of {all}");
}

/// Truths of all kinds: a fixture run with other options than it states, which the probe does not know. Not all can be told by a text: of
/// those whose difference may be chance the probe says so, and keeps the defaults.
#[test]
#[ignore = "takes minutes in release, hours in debug: by hand when the search changes (CONTRIBUTING.md); single options always run"]
fn any_options_are_found() {
    let mut state = 7u32;
    let mut random = |n: usize| {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (state >> 8) as usize % n
    };
    let (mut right, mut untold, mut all, mut lowest) = (0, 0, 0, 0);
    for (name, times) in [
        ("crest_k4", 10),
        ("leanllama", 3),
        ("leanllama_nf4", 3),
        ("leanllama_kv", 6),
        ("crest_k2", 6),
        ("crest_k4_nf4", 4),
    ] {
        let copy = hiding(name, ALL);
        let pretrained = Pretrained::open(copy.path()).expect("a copy");
        for seed in 0..times {
            let mut model = load(&pretrained);
            let open = OpenOptions::of(&pretrained, &ModelOptions::default(), false);
            let truth: Vec<OptionValue> = open.axes.iter().map(|axis| axis.values[random(axis.values.len())]).collect();
            model.set_options(&OptionValue::all(&truth)).expect("options");
            let ids = continuations(&model, BLOCKS, seed);
            let text = ProbeText::new(&ids, Some(BLOCK), usize::MAX, Vec::new()).expect("a text");
            let ranking = probe(&mut model, &open, &text, |_| ()).expect("a ranking");
            let is_right = ranking.candidates[0].candidate.values == truth;
            let full =
                ranking.candidates.iter().filter(|r| r.candidate.blocks() == ranking.candidates[0].candidate.blocks());
            let best = full.min_by(|a, b| a.candidate.perplexity().total_cmp(&b.candidate.perplexity())).expect("one");
            lowest += usize::from(best.candidate.values == truth);
            right += usize::from(is_right);
            all += 1;
            let show = |values: &[OptionValue]| values.iter().map(OptionValue::value).collect::<Vec<_>>().join(" ");
            println!(
                "{} {name} truth {}: first {}, {:.1} s",
                if is_right { "right" } else { "WRONG" },
                show(&truth),
                show(&ranking.candidates[0].candidate.values),
                ranking.seconds
            );
            if !is_right {
                let of = ranking.candidates.iter().find(|ranked| ranked.candidate.values == truth);
                untold += usize::from(of.is_some_and(|of| of.verdict == Verdict::Undecided));
                println!("   the true one: {:?} {:?}", of.map(|of| of.verdict), of.and_then(|of| of.difference));
            }
        }
    }
    println!("{right} of {all} first, {untold} called undecided, {lowest} of {all} by perplexity alone");
    assert!((right + untold) * 10 >= all * 9, "{right} and {untold} of {all}");
}

fn logits(model: &CausalLm<Cpu>) -> Vec<f32> {
    let ids: Vec<u32> = (0..40).map(|i| i * 13 % 500).collect();
    let logits = model.prefill(&ids, &mut model.new_cache(KvFormat::F32), 16).expect("logits");
    logits.to_data().into_vec().expect("floats")
}

/// Options that are changed in a loaded model compute what they compute when its files state them.
#[test]
fn options_that_are_set_are_those_that_are_stated() {
    let cases = [
        (
            "crest_k4",
            "/crest",
            json!({"step_input": "refine", "gate_input": "input", "halt_mode": "step", "halt_weights": "state",
                "halt_threshold": 0.6, "num_steps": 3}),
        ),
        ("crest_k4", "/crest", json!({"halt_enabled": false})),
        ("crest_k2", "/crest", json!({"step_input": "sequential", "halt_weights": "truncate"})),
        ("leanllama", "/kv_compression", json!({"activation": "relu"})),
        ("leanllama_kv", "/kv_compression", json!({"activation": "silu", "k_stage": "pre_rope"})),
    ];
    for (name, place, options) in cases {
        let keys: Vec<&str> = options.as_object().expect("options").keys().map(String::as_str).collect();
        let stated = Copy::of(name);
        stated.change_config(|config| {
            let object = config.pointer_mut(place).and_then(Value::as_object_mut).expect("options");
            object.extend(options.as_object().cloned().expect("options"));
        });
        let expected = logits(&load(&Pretrained::open(stated.path()).expect("a copy")));

        // The same by the side file.
        let hidden = hiding(name, &keys);
        let side_file = json!({ place.trim_start_matches('/'): options });
        std::fs::write(hidden.path().join(ModelOptions::FILE), side_file.to_string()).expect("written");
        let pretrained = Pretrained::open(hidden.path()).expect("a side file");
        assert_eq!(logits(&load(&pretrained)), expected, "{name}: {options} in the side file");

        let mut model = load(&Pretrained::open(fixture(name)).expect("a fixture"));
        let before = logits(&model);
        assert_ne!(before, expected, "{name}: {options} change nothing");
        model.set_options(&pretrained.architecture().config.side_file).expect("options");
        assert_eq!(logits(&model), expected, "{name}: {options} set");
        // Back again, and what is not said stays.
        let own = hiding(name, &[]);
        let read = Pretrained::open(own.path()).expect("a copy");
        let config = &read.architecture().config;
        let crest = config.crest.clone().map(Into::into).unwrap_or_default();
        let kv = config.kv_compression.clone().unwrap_or_default();
        let kv_compression = KvOverrides { activation: kv.activation, k_stage: kv.k_stage };
        let back = ModelOptions { crest, kv_compression };
        let always = ModelOptions {
            crest: CrestOverrides { halt_enabled: Some(true), ..CrestOverrides::default() },
            ..ModelOptions::default()
        };
        let back = if name.starts_with("crest") { back.or(always) } else { back };
        model.set_options(&back).expect("options");
        model.set_options(&ModelOptions::default()).expect("nothing");
        assert_eq!(logits(&model), before, "{name}: set back");
    }
}

#[test]
fn options_that_do_not_fit_are_refused_and_change_nothing() {
    let crest = |crest| ModelOptions { crest, ..ModelOptions::default() };
    let kv = ModelOptions {
        kv_compression: KvOverrides { k_stage: Some(KStage::PreRope), activation: None },
        ..ModelOptions::default()
    };
    let steps = |n| crest(CrestOverrides { num_steps: Some(n), ..CrestOverrides::default() });
    let threshold = |t| crest(CrestOverrides { halt_threshold: Some(t), ..CrestOverrides::default() });
    let cases = [
        ("crest_k4", steps(0), "num_steps"),
        ("crest_k4", steps(5), "holds 4 steps"),
        ("crest_k4", threshold(1.5), "halt_threshold"),
        ("crest_k4", threshold(f32::NAN), "halt_threshold"),
        ("crest_k4", kv.clone(), "no compressors"),
        ("leanllama", steps(1), "no adaptive depth"),
        ("nano_compact", kv, "no compressors"),
    ];
    for (name, options, part) in cases {
        let mut model = load(&Pretrained::open(fixture(name)).expect("a fixture"));
        let before = logits(&model);
        let error = model.set_options(&options).expect_err(name).to_string();
        assert!(error.contains(part), "{name}: {error}");
        assert_eq!(logits(&model), before, "{name}");
    }
}

/// Nothing is told from too little text.
#[test]
fn too_little_text_is_refused() {
    let ids = vec![1; 255];
    let error = ProbeText::new(&ids, None, 64, Vec::new()).expect_err("too little").to_string();
    assert!(error.contains("255 tokens, which are 7 blocks of 32") && error.contains("256 tokens"), "{error}");
    assert!(ProbeText::new(&[1; 256], None, 64, Vec::new()).is_ok_and(|text| (text.blocks(), text.block()) == (8, 32)));
    assert!(ProbeText::new(&[1; 256], None, 7, Vec::new()).is_err());
    assert!(ProbeText::new(&ids, Some(15), 64, Vec::new()).is_err());
    let long = vec![1; 100_000];
    assert!(ProbeText::new(&long, None, 64, Vec::new()).is_ok_and(|text| text.tokens() == 64 * 256));
}
