//! Sequences of one pass that go to different depths.

use burn::tensor::Tensor;
use emberlm::model::cache::Cache;
use emberlm::model::config::CrestOverrides;
use emberlm::model::engine::{DraftOptions, DraftSource, Engine, EngineOptions, EventKind, Request, Trace};
use emberlm::model::generate::{GenerateOptions, Generator};
use emberlm::model::{CausalLm, DepthOptions, Error, ForwardOptions, ForwardOutput, LogitsFor, Result, Span};
use emberlm::quant::CompactBackend;
use emberlm::quant::kv::KvFormat;

use super::fixture::{Fixture, Numbers, logit_tolerance};

/// What a pass said about one token.
#[derive(Clone, Debug, PartialEq)]
struct Token {
    logits: Vec<f32>,
    /// Per layer: steps run, halting probabilities, mixing weights.
    layers: Vec<(f32, Vec<f32>, Vec<f32>)>,
}

fn tokens<B: CompactBackend>(out: ForwardOutput<B>) -> Vec<Token> {
    let logits = Numbers::of(&out.logits.expect("logits"));
    let columns = |columns: &[Tensor<B, 1>]| columns.iter().map(Numbers::of).collect::<Vec<_>>();
    let traces: Vec<_> = (out.depth.iter())
        .map(|trace| (Numbers::of(&trace.steps.clone().float()), columns(&trace.halt), columns(&trace.weights)))
        .collect();
    let token = |(i, logits): (usize, &[f32])| {
        let at = |columns: &[Numbers]| columns.iter().map(|column| column.values[i]).collect();
        let layers = traces.iter().map(|(steps, halt, weights)| (steps.values[i], at(halt), at(weights)));
        Token { logits: logits.to_vec(), layers: layers.collect() }
    };
    logits.values.chunks(logits.shape[1]).enumerate().map(token).collect()
}

fn pass<B: CompactBackend>(model: &CausalLm<B>, ids: &[u32], spans: &mut [Span<'_, B>]) -> Result<Vec<Token>> {
    let options = ForwardOptions { logits: LogitsFor::All, hidden: false };
    Ok(tokens(model.forward(model.ids(ids)?, spans, options)?))
}

/// A whole text by itself.
fn alone<B: CompactBackend>(model: &CausalLm<B>, ids: &[u32], depth: DepthOptions) -> Vec<Token> {
    let mut cache = model.new_cache(KvFormat::F32);
    pass(model, ids, &mut [Span { depth, ..Span::new(ids.len(), &mut cache) }]).expect("a pass")
}

fn crest_fixtures() -> Vec<Fixture> {
    let fixtures = Fixture::all().into_iter().filter(|fixture| fixture.name().starts_with("crest"));
    let fixtures: Vec<_> = fixtures.collect();
    assert!(fixtures.len() >= 3, "no fixture has adaptive depth");
    fixtures
}

fn depth(threshold: Option<f32>, steps: Option<usize>) -> DepthOptions {
    DepthOptions { threshold, steps }
}

/// A record of `n` steps beside one of more: what lies beyond is 0.
fn assert_padded(what: &str, got: &[f32], expected: &[f32], bound: f32) {
    for i in 0..got.len().max(expected.len()) {
        let [got, expected] = [got, expected].map(|values| values.get(i).copied().unwrap_or(0.0));
        assert!((got - expected).abs() <= bound, "{what} {i}: {got}, expected {expected}");
    }
}

/// Prompts in pieces of different sizes, then tokens one at a time: logits, steps, probabilities and weights are those of each
/// sequence alone. Steps are those that rows took part in, so rows cost in company what they cost alone.
pub fn spans_are_as_deep_as_alone<B: CompactBackend>(device: &B::Device) {
    for fixture in crest_fixtures() {
        let model = fixture.load::<B>(device);
        let crest = model.architecture().crest.clone().expect("options");
        let tolerance = logit_tolerance::<B>(model.architecture().config.family);
        let texts = fixture.case("batch").sequences();
        assert_eq!(texts.len(), 3);
        for depths in [
            [depth(None, None), depth(Some(0.3), None), depth(Some(1.0), Some(1))],
            [depth(Some(0.0), None), depth(Some(0.6), Some(2)), depth(None, Some(crest.num_steps))],
            [depth(None, Some(1)), depth(None, None), depth(None, Some(2))],
        ] {
            let what = format!("{} {depths:?}", fixture.name());
            let mut caches: Vec<Cache<B>> = texts.iter().map(|_| model.new_cache(KvFormat::F32)).collect();
            let mut got: Vec<Vec<Token>> = texts.iter().map(|_| Vec::new()).collect();
            loop {
                let next: Vec<&[u32]> = (texts.iter().zip(&caches).zip([7, 512, 3]))
                    .map(|((text, cache), chunk)| {
                        let rest = &text[cache.len()..];
                        let tail = if cache.is_empty() { text.len().saturating_sub(4) } else { 1 };
                        &rest[..rest.len().min(chunk).min(tail.max(1))]
                    })
                    .collect();
                let spans = caches.iter_mut().zip(&next).zip(depths).filter(|((_, ids), _)| !ids.is_empty());
                let mut spans: Vec<_> =
                    spans.map(|((cache, ids), depth)| Span { depth, ..Span::new(ids.len(), cache) }).collect();
                if spans.is_empty() {
                    break;
                }
                let mut out = pass(&model, &next.concat(), &mut spans).expect("a pass").into_iter();
                for (got, ids) in got.iter_mut().zip(&next) {
                    got.extend(out.by_ref().take(ids.len()));
                }
            }
            for (i, (text, got)) in texts.iter().zip(&got).enumerate() {
                let expected = alone(&model, text, depths[i]);
                assert_eq!(got.len(), expected.len());
                let limit = depths[i].steps.unwrap_or(crest.num_steps);
                for (t, (got, expected)) in got.iter().zip(&expected).enumerate() {
                    let what = format!("{what}: token {t} of sequence {i}");
                    for (got, expected) in got.layers.iter().zip(&expected.layers) {
                        assert_eq!(got.0, expected.0, "{what}: steps");
                        assert!(got.0 <= limit as f32, "{what}: {} steps of {limit}", got.0);
                        assert_padded(&format!("{what}: probability"), &got.1, &expected.1, tolerance);
                        assert_padded(&format!("{what}: weight"), &got.2, &expected.2, tolerance);
                    }
                    assert_padded(&format!("{what}: logit"), &got.logits, &expected.logits, tolerance);
                }
            }
        }
    }
}

/// A depth that is asked for, against the same one that the model is opened with; also where the model has halting off.
pub fn depth_asked_for_is_depth_opened<B: CompactBackend>(device: &B::Device) {
    for fixture in crest_fixtures() {
        let model = fixture.load::<B>(device);
        let stated = model.architecture().crest.clone().expect("options");
        let ids = &fixture.case("text").ids()[0];
        let off = CrestOverrides { halt_enabled: Some(false), ..Default::default() };
        let off = fixture.load_from::<B>(fixture.open().depth(&off).expect("a depth"), device);
        for (threshold, steps) in
            [(Some(0.3), None), (None, Some(1)), (Some(0.99), Some(2)), (Some(0.0), Some(2)), (Some(1.0), None)]
        {
            let overrides = CrestOverrides { num_steps: steps, halt_threshold: threshold, ..Default::default() };
            let opened = fixture.load_from::<B>(fixture.open().depth(&overrides).expect("a depth"), device);
            let expected = alone(&opened, ids, DepthOptions::default());
            let what = format!("{} {threshold:?} {steps:?}", fixture.name());
            assert_eq!(alone(&model, ids, depth(threshold, steps)), expected, "{what}");
            assert_ne!(alone(&model, ids, DepthOptions::default()), expected, "{what}: nothing has changed");
            let asked = depth(threshold.or(Some(stated.halt_threshold)), steps);
            assert_eq!(alone(&off, ids, asked), expected, "{what}: halting is off otherwise");
        }
        // One sequence with halting beside one without.
        let mut caches = [off.new_cache(KvFormat::F32), off.new_cache(KvFormat::F32)];
        let asked = [depth(Some(stated.halt_threshold), None), DepthOptions::default()];
        let spans = caches.iter_mut().zip(asked).map(|(cache, depth)| Span { depth, ..Span::new(ids.len(), cache) });
        let both = pass(&off, &[&ids[..], ids].concat(), &mut spans.collect::<Vec<_>>()).expect("a pass");
        let steps = |tokens: &[Token]| -> Vec<f32> { tokens.iter().flat_map(|t| &t.layers).map(|l| l.0).collect() };
        let (halting, all) = both.split_at(ids.len());
        assert_eq!(steps(halting), steps(&alone(&model, ids, DepthOptions::default())), "{}", fixture.name());
        assert!(steps(all).iter().all(|&steps| steps == stated.num_steps as f32), "{}", fixture.name());
    }
}

/// What cannot be is refused with what can, before anything is computed.
pub fn depths_that_cannot_be<B: CompactBackend>(device: &B::Device) {
    for fixture in Fixture::all() {
        let pretrained = fixture.open();
        let model: CausalLm<B> = pretrained.load(device).expect("a model");
        let mut engine = Engine::new(&model, &pretrained.text().expect("a tokenizer"), EngineOptions::default());
        let mut cache = model.new_cache(KvFormat::F32);
        let mut refused = |depth: DepthOptions, option: &str, words: &str| {
            let span = Span { depth, ..Span::new(1, &mut cache) };
            let by_pass = pass(&model, &[1], &mut [span]).map(|_| ());
            let by_engine = engine.submit(Request { depth, ..Request::new(vec![1]) }).map(|_| ());
            for result in [by_pass, by_engine] {
                match result {
                    Err(Error::Option { option: found, message }) => {
                        assert_eq!(found, option, "{}: {message}", fixture.name());
                        assert!(message.contains(words), "{}: {message}", fixture.name());
                    }
                    other => panic!("{}: {depth:?} gave {other:?}", fixture.name()),
                }
            }
            assert!(cache.is_empty() && engine.is_idle());
        };
        let Some(crest) = &model.architecture().crest else {
            refused(depth(Some(0.5), None), "depth", "no adaptive depth");
            refused(depth(None, Some(1)), "depth", "no adaptive depth");
            continue;
        };
        for threshold in [f32::NAN, f32::INFINITY, -0.1, 1.1] {
            refused(depth(Some(threshold), Some(1)), "depth.threshold", "expected a number from 0 to 1");
        }
        for steps in [0, crest.num_steps + 1, usize::MAX] {
            refused(depth(None, Some(steps)), "depth.steps", &format!("expected 1 to {}", crest.num_steps));
        }
    }
}

/// Requests of one engine with depths of their own: texts and traces are those that each gets alone.
pub fn requests_are_as_deep_as_alone<B: CompactBackend>(device: &B::Device) {
    for fixture in crest_fixtures() {
        let pretrained = fixture.open();
        let model: CausalLm<B> = pretrained.load(device).expect("a model");
        let text = pretrained.text().expect("a tokenizer");
        let ids = fixture.case("long").ids().remove(0);
        let request = |(i, depth): (usize, DepthOptions)| {
            let prompt = ids[11 * i..][..9 + 5 * i].to_vec();
            Request { depth, trace: Trace::All, max_tokens: 5, ..Request::new(prompt) }
        };
        let depths = [depth(None, Some(1)), depth(None, None), depth(Some(0.3), None), depth(Some(0.9), Some(2))];
        let requests: Vec<Request> = depths.into_iter().enumerate().map(request).collect();
        let run = |requests: &[Request]| {
            let options = EngineOptions { kv_format: KvFormat::F32, tokens_per_step: 24, ..Default::default() };
            let mut engine = Engine::new(&model, &text, options);
            let started = requests.iter().map(|request| engine.submit(request.clone()).expect("a request"));
            let started: Vec<_> = started.collect();
            let mut told: Vec<(Vec<u32>, Vec<_>)> = requests.iter().map(|_| Default::default()).collect();
            while !engine.is_idle() {
                for event in engine.step() {
                    let at = started.iter().position(|&id| id == event.sequence).expect("its request");
                    match event.kind {
                        EventKind::PromptRead { depth, .. } => told[at].1.extend(depth),
                        EventKind::Token(piece) => {
                            told[at].0.extend(piece.token);
                            told[at].1.extend(piece.depth);
                        }
                        EventKind::Failed(error) => panic!("{error}"),
                        _ => {}
                    }
                }
            }
            told
        };
        for (i, (got, request)) in run(&requests).into_iter().zip(&requests).enumerate() {
            let what = format!("{} request {i}", fixture.name());
            let (generated, trace) = run(std::slice::from_ref(request)).remove(0);
            assert_eq!(got.0, generated, "{what}: tokens");
            assert_eq!(got.1.len(), trace.len(), "{what}: tokens of the trace");
            for (got, expected) in got.1.iter().zip(&trace) {
                assert_eq!(got.steps, expected.steps, "{what}: steps");
                let shape = |depth: &[Vec<f32>]| depth.iter().map(Vec::len).collect::<Vec<_>>();
                assert_eq!(shape(&got.halt), shape(&expected.halt), "{what}: probabilities per layer");
                for (got, expected) in got.halt.iter().flatten().zip(expected.halt.iter().flatten()) {
                    assert!((got - expected).abs() < 1e-3, "{what}: {got}, expected {expected}");
                }
            }
        }
    }
}

/// Those of a prompt are not kept where nobody asks for them, and those of the tokens that are chosen stay the same.
pub fn depth_is_told_of_the_tokens_asked_for<B: CompactBackend>(device: &B::Device) {
    for fixture in crest_fixtures() {
        let pretrained = fixture.open();
        let model: CausalLm<B> = pretrained.load(device).expect("a model");
        let text = pretrained.text().expect("a tokenizer");
        let prompt = fixture.case("long").ids().remove(0)[..40].to_vec();
        for draft in [None, Some(DraftOptions::new(DraftSource::PromptLookup))] {
            let [off, chosen, all] = [Trace::Off, Trace::Chosen, Trace::All].map(|trace| {
                let options = GenerateOptions { trace, draft, chunk: 16, max_tokens: 8, ..GenerateOptions::default() };
                let mut pieces =
                    Generator::new(&model, &text, options).expect("options").run(&prompt).expect("a prompt");
                let told: Vec<_> = pieces.by_ref().filter_map(|piece| piece.expect("a token").depth).collect();
                let summary = pieces.summary().expect("an end");
                (pieces.prompt_depth().len(), told, summary.mean_steps, summary.generated.clone())
            });
            let what = fixture.name();
            assert_eq!((off.0, chosen.0, all.0), (0, 0, prompt.len()), "{what}");
            assert!(off.1.is_empty() && off.2.is_none() && chosen.2.is_some(), "{what}");
            assert_eq!(chosen.1.len(), chosen.3.len(), "{what}");
            assert_eq!((&chosen.1, chosen.2, &chosen.3), (&all.1, all.2, &off.3), "{what}");
        }
    }
}
