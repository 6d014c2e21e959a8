//! Passes that fail.

use burn_ndarray::NdArray;

use super::*;
use crate::cache::LayerCache;
use crate::pretrained::Pretrained;
use crate::sampling::SamplingConfig;

type Backend = NdArray<f32>;

fn model() -> (CausalLm<Backend>, TextProcessor) {
    let fixture = concat!(env!("CARGO_MANIFEST_DIR"), "/../tests/fixtures/crest_k2");
    let pretrained = Pretrained::open(fixture).expect("a fixture");
    (pretrained.load(&Default::default()).expect("a model"), pretrained.text().expect("a tokenizer"))
}

fn requests() -> [Request; 2] {
    [7, 11].map(|first| {
        let prompt = (0..20).map(|i| first + 3 * i).collect();
        Request { sampling: SamplingConfig::greedy(), max_tokens: 12, ..Request::new(prompt) }
    })
}

/// What each generates; `between` is called before every step.
fn run(
    engine: &mut Engine<'_, Backend>,
    requests: &[Request],
    mut between: impl FnMut(usize, &mut Engine<'_, Backend>),
) -> Vec<std::result::Result<Vec<u32>, String>> {
    let ids: Vec<SequenceId> = requests.iter().map(|r| engine.submit(r.clone()).expect("a request")).collect();
    let mut of = vec![Ok(Vec::new()); ids.len()];
    for step in 0.. {
        if engine.is_idle() {
            break;
        }
        between(step, engine);
        for event in engine.step() {
            let of = &mut of[ids.iter().position(|id| *id == event.sequence).expect("a sequence")];
            match event.kind {
                EventKind::Token(piece) => of.iter_mut().for_each(|tokens| tokens.extend(piece.token)),
                EventKind::Failed(error) => *of = Err(error.to_string()),
                _ => {}
            }
        }
    }
    of
}

/// A state of one layer is a pass further than those of the others.
fn tear(cache: &mut Cache<Backend>) {
    cache.begin_pass();
    for layer in &mut cache.layers {
        if let LayerCache::DeltaNet(delta) = layer {
            return delta.update_state(|state| ((), state.mul_scalar(-3.0))).expect("a state");
        }
    }
    panic!("no state");
}

#[test]
fn states_that_a_pass_left_behind_are_computed_anew() {
    let (model, text) = model();
    let limits = EngineOptions { kv_format: KvFormat::F32, ..Default::default() };
    let new = || Engine::new(&model, &text, limits);
    let expected: Vec<_> =
        requests().iter().flat_map(|r| run(&mut new(), std::slice::from_ref(r), |_, _| {})).collect();
    // In the middle of both texts, and after the first token.
    for at in [1, 5] {
        let got = run(&mut new(), &requests(), |step, engine| {
            if step == at {
                engine.running.iter_mut().for_each(|sequence| tear(&mut sequence.cache));
            }
        });
        assert_eq!(got, expected, "at step {at}");
    }
}

#[test]
fn one_whose_cache_has_lost_a_tensor_fails_alone() {
    let (model, text) = model();
    let limits = EngineOptions { kv_format: KvFormat::F32, ..Default::default() };
    let expected = run(&mut Engine::new(&model, &text, limits), &requests()[1..], |_, _| {});
    let got = run(&mut Engine::new(&model, &text, limits), &requests(), |step, engine| {
        if step == 4 {
            // The last layer that has one: every other one would have moved on before.
            let layers = engine.running[0].cache.layers.iter_mut().rev();
            let delta = layers.filter_map(|layer| layer.delta_net_mut().ok()).next().expect("a state");
            delta.lose();
        }
    });
    assert!(got[0].as_ref().is_err_and(|error| error.contains("lost a tensor")), "{got:?}");
    assert_eq!(got[1], expected[0]);
}

/// Every engine begins to count anew no more: an id that went astray must not end the text of somebody else.
#[test]
fn a_sequence_of_one_engine_is_none_of_another() {
    let (model, text) = model();
    let [mut one, mut other] = [(); 2].map(|()| Engine::new(&model, &text, EngineOptions::default()));
    let [first, second] = requests();
    let (id, others) = (one.submit(first).expect("a request"), other.submit(second).expect("a request"));
    assert_ne!(id, others);
    other.cancel(id);
    assert_eq!(other.sequences(), (0, 1));
    assert!(matches!(other.fork(id), Err(Error::Option { .. })));
    assert!(one.fork(id).expect("a copy") > id);
}
