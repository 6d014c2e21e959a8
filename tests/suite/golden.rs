//! Models against the goldens of their fixture folders.

use burn::tensor::Tensor;
use emberlm::model::cache::LayerCache;
use emberlm::model::config::CrestOverrides;
use emberlm::model::sampling::{Sampler, SamplingConfig};
use emberlm::model::{CausalLm, DEFAULT_CHUNK, DepthTrace, ForwardOptions, LogitsFor, WeightOptions};
use emberlm::quant::CompactBackend;
use emberlm::quant::kv::{KvFormat, KvStore};
use emberlm::quant::reference;

use super::fixture::{Case, Fixture, Numbers, Rows, logit_tolerance};

/// Bound of `crest.halt` and `crest.weights`.
const HALT: f32 = 1e-4;

/// Relative to the largest magnitude of the tensor, at least 1.
const HIDDEN: f32 = 1e-4;

/// Tokens of a golden continuation, and those of them that are compared where a token takes long.
pub(super) const CONTINUED: usize = 32;
#[allow(dead_code)] // as `greedy_begins`
pub(super) const BEGUN: usize = 8;

/// What one pass over the rows of a case gives, `[b, t, ..]` as the goldens have it; 0 in the padding.
pub(super) struct Whole {
    pub hidden: Vec<Numbers>,
    pub final_hidden: Numbers,
    pub logits: Numbers,
    pub depth: Vec<Depth>,
}

/// Of one CREST layer.
pub(super) struct Depth {
    /// `[b, t]`.
    pub steps: Numbers,
    /// `[b, t, steps - 1]`.
    pub halt: Numbers,
    /// `[b, t, steps]`.
    pub weights: Numbers,
}

/// All rows in one pass: a span each, whose positions begin where its padding ends.
pub(super) fn whole<B: CompactBackend>(model: &CausalLm<B>, case: &Case<'_>) -> Whole {
    let sequences = case.sequences();
    let tokens: Vec<&[u32]> = sequences.iter().map(Vec::as_slice).collect();
    let options = ForwardOptions { logits: LogitsFor::All, hidden: true };
    let out = Rows::new(model, KvFormat::F32, &case.left_pad()).pass(&tokens, options);
    let (lengths, t) = (sequences.iter().map(Vec::len).collect::<Vec<_>>(), case.ids()[0].len());
    let in_rows = |numbers: &Numbers| numbers.in_rows(&lengths, t);
    let depth = |trace: &DepthTrace<B>| {
        let columns = |columns: &[Tensor<B, 1>]| in_rows(&by_token(columns.iter().map(Numbers::of).collect()));
        let steps = Numbers::of(&trace.steps.clone().float());
        Depth { steps: in_rows(&steps), halt: columns(&trace.halt), weights: columns(&trace.weights) }
    };
    Whole {
        hidden: out.hidden.iter().map(|hidden| in_rows(&Numbers::of(hidden))).collect(),
        final_hidden: in_rows(&Numbers::of(&out.final_hidden)),
        logits: in_rows(&Numbers::of(&out.logits.expect("logits"))),
        depth: out.depth.iter().map(depth).collect(),
    }
}

/// `[tokens, columns]`.
fn by_token(columns: Vec<Numbers>) -> Numbers {
    let tokens = columns.first().map_or(0, |column| column.values.len());
    let values = (0..tokens).flat_map(|token| columns.iter().map(move |column| column.values[token])).collect();
    Numbers { shape: vec![tokens, columns.len()], values }
}

/// Layer `l` of a golden `[L, ..]`.
pub(super) fn layer(golden: &Numbers, l: usize) -> Numbers {
    let size = golden.values.len() / golden.shape[0];
    Numbers { shape: golden.shape[1..].to_vec(), values: golden.values[l * size..(l + 1) * size].to_vec() }
}

fn check_depth(case: &Case<'_>, prefix: &str, l: usize, depth: &Depth) {
    let at = |what: &str| case.label(&format!("{prefix}crest.{what} of layer {l}"));
    let golden = |what: &str| case.get(&format!("{prefix}crest.{what}")).map(|golden| layer(golden, l));

    if let Some(golden) = golden("halt") {
        depth.halt.assert_close(&at("halt"), &golden, HALT);
    }
    depth.steps.assert_close(&at("steps"), &golden("steps").expect("steps"), 0.0);
    if let Some(golden) = golden("weights") {
        depth.weights.assert_close(&at("weights"), &golden, HALT);
    }
}

/// Hidden states, depth and logits of one pass over each prompt; the first tensor that drifts is named.
pub fn whole_pass<B: CompactBackend>(device: &B::Device) {
    for fixture in Fixture::all() {
        let model = fixture.load::<B>(device);
        let family = model.architecture().config.family;
        for name in fixture.cases() {
            let case = fixture.case(&name);
            let (mask, out) = (case.mask(), whole(&model, &case));
            let positions = case.need("hidden_positions").indices();
            for (l, hidden) in out.hidden.iter().enumerate() {
                let key = format!("hidden.{l}");
                let golden = case.need(&key);
                let got = hidden.at_positions(&positions);
                got.assert_close(&case.label(&key), golden, HIDDEN * golden.largest().max(1.0));
                if let Some(trace) = out.depth.get(l) {
                    check_depth(&case, "", l, trace);
                }
            }
            let golden = case.need("final_hidden");
            out.final_hidden.assert_close(&case.label("final_hidden"), golden, HIDDEN * golden.largest().max(1.0));

            let tolerance = logit_tolerance::<B>(family);
            check_argmax(&case, &out.logits, &mask, tolerance);
            let kept = out.logits.at_positions(&case.need("positions").indices());
            kept.assert_close(&case.label("logits"), case.need("logits"), tolerance);
        }
    }
}

/// `argmax` where the best logit leads clearly, and `logsumexp`, at every position.
fn check_argmax(case: &Case<'_>, logits: &Numbers, mask: &[f32], tolerance: f32) {
    let v = logits.shape[2];
    let (argmax, logsumexp) = (case.need("argmax"), case.need("logsumexp"));
    for (token, row) in logits.values.chunks(v).enumerate().filter(|(token, _)| mask[*token] > 0.0) {
        let mut best: Vec<usize> = (0..v).collect();
        best.select_nth_unstable_by(1, |&a, &b| row[b].total_cmp(&row[a]));
        let (first, second) = (best[0], best[1]);
        let (first, second) = if row[first] >= row[second] { (first, second) } else { (second, first) };
        if row[first] - row[second] > 4.0 * tolerance.min(5e-4) {
            assert_eq!(first, argmax.values[token] as usize, "{}", case.label(&format!("argmax at {token}")));
        }
        let largest = f64::from(row[first]);
        let sum: f64 = row.iter().map(|&x| (f64::from(x) - largest).exp()).sum();
        let got = (largest + sum.ln()) as f32;
        let difference = (got - logsumexp.values[token]).abs();
        assert!(difference <= tolerance, "{}: off by {difference}", case.label(&format!("logsumexp at {token}")));
    }
}

/// Greedy continuations, end tokens ignored, through the cache; and the logits that chose them.
pub fn greedy<B: CompactBackend>(device: &B::Device) {
    greedy_of::<B>(device, CONTINUED);
}

/// Their first tokens, where a token takes long.
#[allow(dead_code)] // for cards that are software
pub fn greedy_begins<B: CompactBackend>(device: &B::Device) {
    greedy_of::<B>(device, BEGUN);
}

fn greedy_of<B: CompactBackend>(device: &B::Device, count: usize) {
    for fixture in Fixture::all() {
        let model = fixture.load::<B>(device);
        let tolerance = logit_tolerance::<B>(model.architecture().config.family);
        for name in fixture.cases() {
            let case = fixture.case(&name);
            let (tokens, logits) = continuation(&model, &case, 1.0, count);
            assert_eq!(tokens, rows(case.need("greedy"), count), "{}", case.label("greedy"));
            if let Some(golden) = case.get("greedy_logits") {
                let (of_one, v) = (golden.shape[1].min(count), golden.shape[2]);
                let cut = |values: &[f32]| Numbers { shape: vec![1, of_one, v], values: values[..of_one * v].to_vec() };
                cut(&logits).assert_close(&case.label("greedy_logits"), &cut(&golden.values), tolerance);
            }
            if let Some(golden) = case.get("greedy_rep1.08") {
                let (tokens, _) = continuation(&model, &case, 1.08, count);
                assert_eq!(tokens, rows(golden, count), "{}", case.label("greedy_rep1.08"));
            }
        }
    }
}

/// The first `count` ids of every row.
fn rows(golden: &Numbers, count: usize) -> Vec<Vec<u32>> {
    golden.ids().chunks(golden.shape[1]).map(|row| row[..count].to_vec()).collect()
}

/// `count` tokens per row, and the logits of the first row.
fn continuation<B: CompactBackend>(
    model: &CausalLm<B>,
    case: &Case<'_>,
    penalty: f32,
    count: usize,
) -> (Vec<Vec<u32>>, Vec<f32>) {
    let mut seen = case.sequences();
    let mut tokens = vec![Vec::new(); seen.len()];
    let mut kept = Vec::new();
    let mut rows = Rows::new(model, KvFormat::F32, &case.left_pad());
    let last = ForwardOptions { logits: LogitsFor::Last, hidden: false };
    let prompt: Vec<&[u32]> = seen.iter().map(Vec::as_slice).collect();
    let mut logits = rows.pass(&prompt, last).logits.expect("logits");
    let config = SamplingConfig { repetition_penalty: penalty, ..SamplingConfig::greedy() };
    let mut sampler = Sampler::new(&config).expect("a sampler");
    for _ in 0..count {
        let mut numbers = Numbers::of(&logits);
        let v = numbers.shape[1];
        kept.extend_from_slice(&numbers.values[..v]);
        let mut next = Vec::new();
        for ((row, seen), tokens) in numbers.values.chunks_mut(v).zip(&mut seen).zip(&mut tokens) {
            let best = sampler.sample(row, seen).expect("a token");
            seen.push(best);
            tokens.push(best);
            next.push(best);
        }
        let next: Vec<&[u32]> = next.chunks(1).collect();
        logits = rows.pass(&next, last).logits.expect("logits");
    }
    (tokens, kept)
}

/// What the cache of every layer holds after a prompt.
pub fn prefill_cache<B: CompactBackend>(device: &B::Device) {
    for fixture in Fixture::all() {
        let model = fixture.load::<B>(device);
        let case = fixture.case("text");
        let ids = case.ids();
        let kept = ids[0].len() - 6;
        let mut cache = model.new_cache(KvFormat::F32);
        model.prefill(&ids[0][..kept], &mut cache, DEFAULT_CHUNK).expect("a prompt");
        for l in 0..model.architecture().config.num_hidden_layers {
            let check = |got: Numbers, what: &str| {
                let key = format!("prefill_cache.{l}.{what}");
                let golden = case.need(&key);
                let got = Numbers { shape: golden.shape.clone(), values: got.values };
                got.assert_close(&case.label(&key), golden, HIDDEN * golden.largest().max(1.0));
            };
            match cache.layer(l) {
                LayerCache::Attention(kv) => {
                    let filled = |store: &KvStore<B>| match store {
                        KvStore::F32(t) => Numbers::of(&t.clone().slice_dim(2, 0..kept)),
                        KvStore::F16(_) | KvStore::Q8 { .. } => panic!("an F32 cache was asked for"),
                    };
                    check(filled(kv.k().expect("keys").own), "key");
                    check(filled(kv.v().expect("values").own), "value");
                }
                LayerCache::DeltaNet(delta) => {
                    // The golden holds four columns; only the last three matter.
                    let key = format!("prefill_cache.{l}.conv");
                    let golden = case.need(&key);
                    let last: Vec<f32> = golden.values.chunks(4).flat_map(|column| column[1..].to_vec()).collect();
                    let golden = Numbers { shape: vec![1, golden.shape[1], 3], values: last };
                    let got = Numbers::of(&delta.conv().expect("inputs").clone().swap_dims(1, 2));
                    got.assert_close(&case.label(&key), &golden, HIDDEN * golden.largest().max(1.0));
                    check(Numbers::of(delta.state().expect("a state")), "recurrent");
                }
            }
        }
    }
}

/// The prompt in one piece, and its end one token at a time through the cache.
pub fn decode_through_the_cache<B: CompactBackend>(device: &B::Device) {
    for fixture in Fixture::all() {
        let model = fixture.load::<B>(device);
        let tolerance = logit_tolerance::<B>(model.architecture().config.family);
        let case = fixture.case("text");
        let ids = &case.ids()[0];
        let golden = case.need("logits");
        let mut cache = model.new_cache(KvFormat::F32);
        let start = ids.len() - 6;
        model.prefill(&ids[..start], &mut cache, DEFAULT_CHUNK).expect("a prompt");
        for (i, &id) in ids.iter().enumerate().skip(start) {
            let got = Numbers::of(&model.decode(id, &mut cache).expect("a token"));
            let expected = golden.at_positions(&[i]);
            let got = Numbers { shape: expected.shape.clone(), values: got.values };
            got.assert_close(&case.label(&format!("logits decoded at {i}")), &expected, tolerance);
        }
    }
}

/// Fewer steps, and no halting.
pub fn overrides<B: CompactBackend>(device: &B::Device) {
    let mut checked = 0;
    for fixture in Fixture::all() {
        let cases = [
            ("num_steps2", CrestOverrides { num_steps: Some(2), ..Default::default() }),
            ("halt_off", CrestOverrides { halt_enabled: Some(false), ..Default::default() }),
        ];
        for (name, depth) in cases {
            let case = fixture.case("text");
            let Some(golden) = case.get(&format!("{name}.logits")) else { continue };
            let model = fixture.load_from::<B>(fixture.open().depth(&depth).expect("a depth"), device);
            let out = whole(&model, &case);
            for (l, trace) in out.depth.iter().enumerate() {
                check_depth(&case, &format!("{name}."), l, trace);
            }
            let tolerance = logit_tolerance::<B>(model.architecture().config.family);
            out.logits.assert_close(&case.label(&format!("{name}.logits")), golden, tolerance);

            // The same, changed on a model that was loaded without the override.
            let mut model = fixture.load::<B>(device);
            let options = model.architecture().crest.clone().expect("a CREST model");
            let steps = depth.num_steps.unwrap_or(options.num_steps);
            model.set_depth(steps, depth.halt_enabled.unwrap_or(true), options.halt_threshold).expect("a depth");
            whole(&model, &case).logits.assert_close(
                &case.label(&format!("{name}.logits by set_depth")),
                golden,
                tolerance,
            );
            checked += 1;
        }
    }
    assert!(checked >= 2, "no fixture has goldens for overrides");
}

/// Weights rounded to their stored type, as the original runtimes do.
pub fn rounded<B: CompactBackend>(device: &B::Device) {
    let mut checked = 0;
    for fixture in Fixture::all() {
        let case = fixture.case("text");
        let Some(golden) = case.get("logits_rounded") else { continue };
        let options = WeightOptions { round_to_stored: true, ..Default::default() };
        let model = fixture.load_from::<B>(fixture.open().weight_options(options), device);
        let tolerance = logit_tolerance::<B>(model.architecture().config.family);
        whole(&model, &case).logits.assert_close(&case.label("logits_rounded"), golden, tolerance);
        checked += 1;
    }
    assert!(checked >= 3, "no fixture has rounded goldens");
}

/// A half-precision cache is close to an exact one; how close is measured, not assumed equal.
pub fn half_precision_cache<B: CompactBackend>(device: &B::Device) {
    for fixture in Fixture::all() {
        let model = fixture.load::<B>(device);
        if model.architecture().crest.is_some() {
            continue; // one token that halts elsewhere changes everything after it
        }
        let case = fixture.case("chat");
        let ids = case.ids();
        let logits = |format| {
            let mut cache = model.new_cache(format);
            model.prefill(&ids[0], &mut cache, 7).expect("a prompt");
            let last = model.decode(ids[0][0], &mut cache).expect("a token");
            (Numbers::of(&last), cache)
        };
        let (half, half_cache) = logits(KvFormat::F16);
        let (exact, exact_cache) = logits(KvFormat::F32);
        half.assert_close(&case.label("logits of a half-precision cache"), &exact, 1e-2);
        assert_ne!(half.values, exact.values, "{}: the cache was not rounded", fixture.name());
        assert!(half_cache.bytes() < exact_cache.bytes());
        if let (LayerCache::Attention(half), LayerCache::Attention(exact)) = (half_cache.layer(0), exact_cache.layer(0))
            && let (KvStore::F16(half), KvStore::F32(exact)) =
                (half.k().expect("keys").own, exact.k().expect("keys").own)
        {
            let shape = exact.dims();
            let words = half.clone().reshape([shape.iter().product::<usize>() / 2]);
            let got = Numbers { shape: shape.to_vec(), values: Numbers::of(&reference::unpack_f16(words)).values };
            let exact = Numbers::of(exact);
            got.assert_close(&case.label("half-precision keys"), &exact, exact.largest() / 1024.0);
        }
    }
}
