//! What must hold of any model, whatever its numbers are: how a text is cut into passes and batched changes nothing.

use burn::tensor::{Int, Tensor, TensorData};
use emberlm::model::cache::{Cache, KvShape, LayerCache, LayerCacheShape};
use emberlm::model::config::{CrestOverrides, Family, KStage, KvTarget};
use emberlm::model::{Architecture, CausalLm, DEFAULT_CHUNK, Error, ForwardOptions, LogitsFor, WeightOptions};
use emberlm::quant::CompactBackend;
use emberlm::quant::kv::KvFormat;

use super::fixture::{Fixture, Numbers, logit_tolerance};

/// Slots that a cache starts with, and the multiple in which it grows.
const SLOTS: usize = 256;

/// Logits of every token fed, `[b, s, vocabulary]`, and the steps of every token per CREST layer, `[b, s]`.
struct Fed {
    logits: Numbers,
    steps: Vec<Numbers>,
}

/// Feeds rows of one length in pieces of `chunk` tokens.
fn feed<B: CompactBackend>(model: &CausalLm<B>, rows: &[Vec<u32>], cache: &mut Cache<B>, chunk: usize) -> Fed {
    let (b, s) = (rows.len(), rows[0].len());
    let (mut logits, mut steps) = (Vec::new(), Vec::new());
    for start in (0..s).step_by(chunk) {
        let end = s.min(start + chunk);
        let piece: Vec<&[u32]> = rows.iter().map(|row| &row[start..end]).collect();
        let ids = model.ids(&piece).expect("ids");
        let options = ForwardOptions { logits: LogitsFor::All, hidden: false };
        let out = model.forward(ids, cache, options).expect("a pass");
        logits.push(out.logits.expect("logits"));
        steps.resize_with(out.depth.len(), Vec::new);
        for (layer, trace) in steps.iter_mut().zip(out.depth) {
            layer.push(trace.steps.reshape([b, end - start]));
        }
    }
    let steps = steps.into_iter().map(|layer| {
        let values = Tensor::cat(layer, 1).to_data().convert::<f32>().into_vec().expect("numbers");
        Numbers { shape: vec![b, s], values }
    });
    Fed { logits: Numbers::of(&Tensor::cat(logits, 1)), steps: steps.collect() }
}

impl Fed {
    /// Tokens `from..` of row `b`.
    fn row(&self, b: usize, from: usize) -> Self {
        let cut = |numbers: &Numbers| {
            let (s, width) = (numbers.shape[1], numbers.shape.get(2).copied().unwrap_or(1));
            let values = numbers.values[(b * s + from) * width..(b + 1) * s * width].to_vec();
            Numbers { shape: vec![1, s - from, width], values }
        };
        Self { logits: cut(&self.logits), steps: self.steps.iter().map(cut).collect() }
    }

    fn assert_close(&self, what: &str, expected: &Self, tolerance: f32) {
        for (l, (got, expected)) in self.steps.iter().zip(&expected.steps).enumerate() {
            got.assert_close(&format!("{what}: steps of CREST layer {l}"), expected, 0.0);
        }
        self.logits.assert_close(&format!("{what}: logits"), &expected.logits, tolerance);
    }
}

fn models<B: CompactBackend>(device: &B::Device) -> impl Iterator<Item = (Fixture, CausalLm<B>, f32)> {
    Fixture::all().into_iter().map(|fixture| {
        let model = fixture.load::<B>(device);
        let tolerance = logit_tolerance::<B>(model.architecture().config.family);
        (fixture, model, tolerance)
    })
}

/// One more token in the prompt, or after it.
pub fn prefill_is_prefill_and_decode<B: CompactBackend>(device: &B::Device) {
    for (fixture, model, tolerance) in models::<B>(device) {
        let ids = &fixture.case("text").ids()[0];
        for n in [1, 2, 5, ids.len() - 1] {
            let mut cache = model.new_cache(KvFormat::F32);
            let whole = model.prefill(&[&ids[..=n]], &mut cache, DEFAULT_CHUNK).expect("a prompt");
            let mut cache = model.new_cache(KvFormat::F32);
            model.prefill(&[&ids[..n]], &mut cache, DEFAULT_CHUNK).expect("a prompt");
            let step = model.decode(&[ids[n]], &mut cache).expect("a token");
            let what = format!("{}: logits after {n} + 1 tokens", fixture.name());
            Numbers::of(&step).assert_close(&what, &Numbers::of(&whole), tolerance);
            assert_eq!(cache.len(), n + 1, "{what}: slots");
        }
    }
}

/// A prompt fed in pieces of any size.
pub fn chunked_is_whole<B: CompactBackend>(device: &B::Device) {
    for (fixture, model, tolerance) in models::<B>(device) {
        for (case, chunks) in [("text", vec![1, 7]), ("long", vec![7, 64, 512])] {
            let ids = fixture.case(case).ids();
            let whole = feed(&model, &ids, &mut model.new_cache(KvFormat::F32), ids[0].len());
            for chunk in chunks {
                let pieces = feed(&model, &ids, &mut model.new_cache(KvFormat::F32), chunk);
                pieces.assert_close(&format!("{} {case} in chunks of {chunk}", fixture.name()), &whole, tolerance);
            }
        }
        // The same through `prefill`, of which only the last logits are seen.
        let ids = &fixture.case("chat").ids()[0];
        let last = |chunk| {
            let logits = model.prefill(&[ids], &mut model.new_cache(KvFormat::F32), chunk).expect("a prompt");
            Numbers::of(&logits)
        };
        for chunk in [1, 7, 64] {
            let what = format!("{}: prefill in chunks of {chunk}", fixture.name());
            last(chunk).assert_close(&what, &last(512), tolerance);
        }
    }
}

/// Keys and values are rounded once, when they are stored: the cut changes nothing beyond what a sum in another order does to
/// a number that lies between two halves.
pub fn chunked_is_whole_in_half_precision<B: CompactBackend>(device: &B::Device) {
    for (fixture, model, tolerance) in models::<B>(device) {
        if model.architecture().config.family == Family::Crest {
            continue; // one key rounded up instead of down moves a gate across its threshold
        }
        let ids = fixture.case("chat").ids();
        let whole = feed(&model, &ids, &mut model.new_cache(KvFormat::F16), 512);
        for chunk in [1, 7] {
            let pieces = feed(&model, &ids, &mut model.new_cache(KvFormat::F16), chunk);
            let what = format!("{} in chunks of {chunk}, half precision", fixture.name());
            pieces.assert_close(&what, &whole, HALF * tolerance);
        }
    }
}

/// Tolerances of half-precision caches are these times those of exact ones: 2e-3, where 6e-4 was measured.
const HALF: f32 = 20.0;

/// Rows that are padded on the left, in one pass and in chunks shorter than the padding, against each row alone.
pub fn batch_is_its_rows<B: CompactBackend>(device: &B::Device) {
    for (fixture, model, tolerance) in models::<B>(device) {
        for (chunk, format) in [(512, KvFormat::F32), (7, KvFormat::F32), (1, KvFormat::F32), (7, KvFormat::F16)] {
            let half = format == KvFormat::F16;
            if half && model.architecture().config.family == Family::Crest {
                continue; // as above
            }
            let tolerance = if half { HALF * tolerance } else { tolerance };
            // A code is a function of the rotated key, which is another at another position; rounding is one, too.
            let keeps_padding = half || compresses_rotated_keys(&model);
            check_batch(&fixture, &model, chunk, format, keeps_padding, tolerance);
        }
    }
}

fn compresses_rotated_keys<B: CompactBackend>(model: &CausalLm<B>) -> bool {
    let Architecture { config, kv_compression, .. } = model.architecture();
    kv_compression.as_ref().is_some_and(|c| {
        let keys = (0..config.num_hidden_layers).any(|layer| c.codec(layer, KvTarget::Key).is_some());
        keys && c.k_stage == KStage::PostRope
    })
}

/// The rows of the padded batch against each alone, which keeps its padding or loses it.
fn check_batch<B: CompactBackend>(
    fixture: &Fixture,
    model: &CausalLm<B>,
    chunk: usize,
    format: KvFormat,
    keeps_padding: bool,
    tolerance: f32,
) {
    let case = fixture.case("batch");
    let (ids, pads) = (case.ids(), case.left_pad());
    assert!(pads.iter().any(|&pad| pad > 7), "{}: no row is padded", fixture.name());
    let next: Vec<Vec<u32>> = ids.iter().map(|row| row[row.len() - 4..].to_vec()).collect();
    let mut cache = model.new_batch_cache(format, pads.clone());
    let batch = feed(model, &ids, &mut cache, chunk);
    let after = feed(model, &next, &mut cache, 1);
    for (b, row) in ids.iter().enumerate() {
        let what = format!("{} row {b} of a batch in chunks of {chunk}, {format:?}", fixture.name());
        let (pad, start) = if keeps_padding { (pads[b], 0) } else { (0, pads[b]) };
        let mut cache = model.new_batch_cache(format, vec![pad]);
        let alone = feed(model, &[row[start..].to_vec()], &mut cache, 512).row(0, pad);
        batch.row(b, pads[b]).assert_close(&what, &alone, tolerance);
        let alone = feed(model, &[next[b].clone()], &mut cache, 1).row(0, 0);
        after.row(b, 0).assert_close(&format!("{what}, next tokens"), &alone, tolerance);
    }
}

/// Keys that are compressed before their rotation, which no fixture has: the same tensors with that option.
pub fn keys_compressed_before_rotation<B: CompactBackend>(device: &B::Device) {
    let mut checked = 0;
    for fixture in Fixture::all() {
        let pretrained = fixture.open(&CrestOverrides::default());
        let options = WeightOptions::default();
        let rotated = pretrained.load::<B>(options, device, None).expect("a model");
        if !compresses_rotated_keys(&rotated) {
            continue;
        }
        let mut architecture = pretrained.architecture().clone();
        architecture.kv_compression.as_mut().expect("compression").k_stage = KStage::PreRope;
        let plan = pretrained.plan::<B>(options, device).expect("a plan");
        let model =
            CausalLm::<B>::load(architecture, pretrained.weights(), options, &plan, device, None).expect("a model");
        let tolerance = logit_tolerance::<B>(Family::LeanLlama);

        let ids = fixture.case("text").ids();
        let whole = feed(&model, &ids, &mut model.new_cache(KvFormat::F32), 512);
        let other = feed(&rotated, &ids, &mut rotated.new_cache(KvFormat::F32), 512);
        assert_ne!(whole.logits.values, other.logits.values, "{}: the option does nothing", fixture.name());
        for chunk in [1, 7] {
            let pieces = feed(&model, &ids, &mut model.new_cache(KvFormat::F32), chunk);
            pieces.assert_close(&format!("{} before rotation, chunks of {chunk}", fixture.name()), &whole, tolerance);
        }
        check_batch(&fixture, &model, 7, KvFormat::F32, false, tolerance);
        checked += 1;
    }
    assert!(checked > 0, "no fixture compresses keys");
}

/// What is fed to one copy of a cache is not seen by the other.
pub fn snapshot_is_untouched<B: CompactBackend>(device: &B::Device) {
    for (fixture, model, _) in models::<B>(device) {
        for format in [KvFormat::F32, KvFormat::F16] {
            let ids = fixture.case("text").ids();
            let (ours, theirs) = (vec![ids[0][3..6].to_vec()], vec![ids[0][8..14].to_vec()]);
            let after_prompt = |tokens: &[Vec<u32>]| {
                let mut cache = model.new_cache(format);
                feed(&model, &ids, &mut cache, 512);
                feed(&model, tokens, &mut cache, 1).logits.values
            };
            let mut cache = model.new_cache(format);
            feed(&model, &ids, &mut cache, 512);
            let (snapshot, mut other) = (cache.clone(), cache.clone());
            let what = format!("{} {format:?}", fixture.name());
            assert_eq!(feed(&model, &theirs, &mut cache, 1).logits.values, after_prompt(&theirs), "{what}: original");
            assert_eq!(feed(&model, &ours, &mut other, 1).logits.values, after_prompt(&ours), "{what}: copy");
            assert_eq!(snapshot.len(), ids[0].len(), "{what}: length");
            // Restored after both have moved on, and once more.
            for _ in 0..2 {
                let mut restored = snapshot.clone();
                assert_eq!(
                    feed(&model, &ours, &mut restored, 1).logits.values,
                    after_prompt(&ours),
                    "{what}: restored"
                );
            }
        }
    }
}

/// A cache that has forgotten is as good as new, whatever it held.
pub fn reset_is_new<B: CompactBackend>(device: &B::Device) {
    for (fixture, model, _) in models::<B>(device) {
        for format in [KvFormat::F32, KvFormat::F16] {
            let (long, text) = (fixture.case("long").ids(), fixture.case("text").ids());
            let mut cache = model.new_cache(format);
            assert!(cache.is_empty());
            let new = feed(&model, &text, &mut cache, 7).logits.values;
            feed(&model, &long, &mut cache, 512);
            cache.reset();
            assert!(cache.is_empty());
            let again = feed(&model, &text, &mut cache, 7).logits.values;
            assert_eq!(again, new, "{} {format:?}", fixture.name());
        }
    }
}

/// The last row of all logits, or none of them.
pub fn last_is_the_last_of_all<B: CompactBackend>(device: &B::Device) {
    for (fixture, model, tolerance) in models::<B>(device) {
        let case = fixture.case("batch");
        let (ids, pads) = (case.ids(), case.left_pad());
        let rows: Vec<&[u32]> = ids.iter().map(Vec::as_slice).collect();
        let pass = |logits| {
            let mut cache = model.new_batch_cache(KvFormat::F32, pads.clone());
            let ids = model.ids(&rows).expect("ids");
            let out = model.forward(ids, &mut cache, ForwardOptions { logits, hidden: false }).expect("a pass");
            assert!(out.hidden.is_empty());
            let next = model.decode(&[5; 3], &mut cache).expect("a token");
            (out.logits.map(|logits| Numbers::of(&logits)), Numbers::of(&next).values)
        };
        let (all, after_all) = pass(LogitsFor::All);
        let (last, after_last) = pass(LogitsFor::Last);
        let (nothing, after_nothing) = pass(LogitsFor::Nothing);
        let expected = all.expect("all logits").at_positions(&[ids[0].len() - 1]);
        last.expect("the last logits").assert_close(&case.label("last logits"), &expected, tolerance);
        assert!(nothing.is_none());
        assert_eq!(after_last, after_all, "{}", case.label("the cache after the last logits"));
        assert_eq!(after_nothing, after_all, "{}", case.label("the cache after no logits"));
    }
}

/// Room made beforehand, or when most of the slots are in use, changes no number.
pub fn reserve_changes_nothing<B: CompactBackend>(device: &B::Device) {
    for (fixture, model, _) in models::<B>(device) {
        for format in [KvFormat::F32, KvFormat::F16] {
            let ids = vec![fixture.case("long").ids()[0][..200].to_vec()];
            let mut plain = model.new_cache(format);
            let mut roomy = model.new_cache(format);
            roomy.reserve(1000);
            let mut late = model.new_cache(format);
            let expected = feed(&model, &ids, &mut plain, 64).logits.values;
            assert_eq!(feed(&model, &ids, &mut roomy, 64).logits.values, expected, "{}", fixture.name());
            feed(&model, &ids, &mut late, 64);
            late.reserve(300);
            let next = vec![ids[0][..3].to_vec()];
            let expected = feed(&model, &next, &mut plain, 1).logits.values;
            assert_eq!(feed(&model, &next, &mut roomy, 1).logits.values, expected, "{}", fixture.name());
            assert_eq!(feed(&model, &next, &mut late, 1).logits.values, expected, "{}: late", fixture.name());
            let held = roomy.bytes();
            roomy.reserve(10);
            assert_eq!(roomy.bytes(), held, "{}: a cache does not shrink", fixture.name());
        }
    }
}

/// What a cache says it holds, against sizes added up from the config.
pub fn cache_bytes_are_its_shapes<B: CompactBackend>(device: &B::Device) {
    for (fixture, model, _) in models::<B>(device) {
        let config = &model.architecture().config;
        for (format, size) in [(KvFormat::F32, 4), (KvFormat::F16, 2)] {
            let (mut per_slot, mut fixed) = (0, 0);
            for shape in model.architecture().cache_shapes() {
                match shape {
                    LayerCacheShape::Attention { k, v } => {
                        for stored in [k, v] {
                            let bytes = match stored {
                                KvShape::Heads { heads, width } => {
                                    assert_eq!([heads, width], [config.num_key_value_heads, config.head_dim]);
                                    heads * width * size
                                }
                                KvShape::Codes { count, width } => {
                                    assert!(model.architecture().kv_compression.is_some());
                                    count * width * 4
                                }
                            };
                            per_slot += bytes;
                        }
                    }
                    LayerCacheShape::DeltaNet { .. } => {
                        let dims = config.linear_attention.as_ref().expect("a hybrid model");
                        let (hv, dk, dv) = (dims.num_value_heads, dims.key_head_dim, dims.value_head_dim);
                        let channels = 2 * dims.num_key_heads * dk + hv * dv;
                        fixed += 4 * ((dims.conv_kernel_dim - 1) * channels + hv * dk * dv);
                    }
                }
                let parts = (shape.bytes_per_token(format), shape.fixed_bytes());
                assert!(parts.0 == 0 || parts.1 == 0, "{}: {parts:?}", fixture.name());
            }
            let sum = |f: &dyn Fn(&LayerCacheShape) -> usize| {
                model.architecture().cache_shapes().iter().map(f).sum::<usize>()
            };
            assert_eq!(sum(&|shape| shape.bytes_per_token(format)), per_slot, "{}: per token", fixture.name());
            assert_eq!(sum(&|shape| shape.fixed_bytes()), fixed, "{}: fixed", fixture.name());

            let mut cache = model.new_batch_cache(format, vec![0; 3]);
            assert_eq!(cache.bytes(), 3 * (SLOTS * per_slot + fixed), "{} {format:?}", fixture.name());
            let ids = vec![vec![1; SLOTS]; 3];
            feed(&model, &ids, &mut cache, SLOTS);
            assert_eq!(cache.bytes(), 3 * (SLOTS * per_slot + fixed), "{} {format:?}: full", fixture.name());
            feed(&model, &vec![vec![2]; 3], &mut cache, 1);
            assert_eq!(cache.bytes(), 3 * (2 * SLOTS * per_slot + fixed), "{} {format:?}: grown", fixture.name());
            if let LayerCache::Attention(kv) = cache.layer(model.architecture().cache_shapes().len() - 1) {
                assert_eq!(kv.k().capacity(), 2 * SLOTS, "{}: slots", fixture.name());
            }
            cache.reserve(5 * SLOTS - 3);
            assert_eq!(cache.bytes(), 3 * (5 * SLOTS * per_slot + fixed), "{} {format:?}: reserved", fixture.name());
        }
    }
}

/// Depth that is changed on a loaded model, against the same depth asked for when it is opened.
pub fn depth_set_is_depth_opened<B: CompactBackend>(device: &B::Device) {
    let mut checked = 0;
    for fixture in Fixture::all() {
        let mut model = fixture.load::<B>(device);
        let Some(stated) = model.architecture().crest.clone() else { continue };
        let ids = fixture.case("text").ids();
        let run = |model: &CausalLm<B>| {
            let fed = feed(model, &ids, &mut model.new_cache(KvFormat::F32), 512);
            (fed.logits.values, fed.steps.into_iter().map(|layer| layer.values).collect::<Vec<_>>())
        };
        let plain = run(&model);
        for (num_steps, halt_enabled, halt_threshold) in [
            (stated.num_steps, true, 0.3),
            (stated.num_steps, true, 1.0),
            (2, true, 0.99),
            (1, true, 0.5),
            (2, false, 0.0),
        ] {
            let depth = CrestOverrides {
                num_steps: Some(num_steps),
                halt_enabled: Some(halt_enabled),
                halt_threshold: Some(halt_threshold),
                ..Default::default()
            };
            let opened = run(&fixture.load_with::<B>(&depth, WeightOptions::default(), device));
            model.set_depth(num_steps, halt_enabled, halt_threshold);
            let what = format!("{} {num_steps} {halt_enabled} {halt_threshold}", fixture.name());
            assert_eq!(run(&model), opened, "{what}");
            assert_ne!(opened.0, plain.0, "{what}: nothing has changed");
        }
        model.set_depth(stated.num_steps, stated.halt_enabled, stated.halt_threshold);
        assert_eq!(run(&model), plain, "{}: set back", fixture.name());
        // More steps than there are MLPs are all of them.
        model.set_depth(100, stated.halt_enabled, stated.halt_threshold);
        assert_eq!(run(&model), plain, "{}: 100 steps", fixture.name());
        checked += 1;
    }
    assert!(checked >= 3, "no fixture has adaptive depth");
}

/// A prompt that cannot be fed is refused, and the cache is as before. The context is made short, so that its last token is
/// fed, too.
pub fn prompt_errors<B: CompactBackend>(device: &B::Device) {
    let (limit, options) = (20, WeightOptions::default());
    for fixture in Fixture::all() {
        let pretrained = fixture.open(&CrestOverrides::default());
        let mut architecture = pretrained.architecture().clone();
        architecture.config.max_position_embeddings = limit;
        let vocabulary = architecture.config.vocab_size as u32;
        let plan = pretrained.plan::<B>(options, device).expect("a plan");
        let model =
            CausalLm::<B>::load(architecture, pretrained.weights(), options, &plan, device, None).expect("a model");
        let mut cache = model.new_cache(KvFormat::F32);
        let mut pair = model.new_batch_cache(KvFormat::F32, vec![0, 1]);
        let refused = |rows: &[&[u32]], cache: &mut Cache<B>, message: &str| {
            let (len, bytes) = (cache.len(), cache.bytes());
            match model.prefill(rows, cache, 7) {
                Err(Error::Prompt(found)) => assert!(found.contains(message), "{}: {found}", fixture.name()),
                other => panic!("{}: {rows:?} gave {:?}", fixture.name(), other.map(|_| "logits")),
            }
            assert_eq!((cache.len(), cache.bytes()), (len, bytes), "{}: the cache has changed", fixture.name());
        };
        refused(&[], &mut cache, "no tokens");
        refused(&[&[]], &mut cache, "no tokens");
        refused(&[&[1], &[2]], &mut cache, "2 rows for a cache of 1");
        refused(&[&[1, 2]], &mut pair, "1 rows for a cache of 2");
        refused(&[&[1, 2], &[3]], &mut pair, "different lengths");
        refused(&[&[1], &[]], &mut pair, "different lengths");
        refused(&[&[1, vocabulary]], &mut cache, &format!("token {vocabulary}"));
        refused(&[&[u32::MAX, 1]], &mut cache, "outside the vocabulary");
        refused(&[&[1], &[vocabulary]], &mut pair, "outside the vocabulary");
        refused(&[&vec![1; limit + 1]], &mut cache, "21 tokens, but the context of this model is 20; shorten it");
        model.decode(&[vocabulary - 1], &mut cache).expect("the last id");
        refused(&[&vec![1; limit]], &mut cache, "shorten it");
        model.prefill(&[&vec![1; limit - 1]], &mut cache, 7).expect("the whole context");
        assert_eq!(cache.len(), limit);
        for id in [1, vocabulary] {
            assert!(matches!(model.decode(&[id], &mut cache), Err(Error::Prompt(_))), "{}", fixture.name());
        }
        assert!(matches!(model.decode(&[], &mut cache), Err(Error::Prompt(_))), "{}", fixture.name());
    }
}

/// A pass that cannot be computed is refused, and the cache is as before.
pub fn forward_errors<B: CompactBackend>(device: &B::Device) {
    let fixtures = Fixture::all();
    let other =
        fixtures.iter().find(|fixture| fixture.name().contains("nano")).expect("a Nano model").load::<B>(device);
    for fixture in fixtures.iter().filter(|fixture| !fixture.name().contains("nano")) {
        let model = fixture.load::<B>(device);
        let vocabulary = model.architecture().config.vocab_size;
        let mut cache = model.new_cache(KvFormat::F32);
        model.prefill(&[&[1, 2]], &mut cache, 7).expect("a prompt");
        let ids = |values: &[i64], shape: [usize; 2]| {
            Tensor::<B, 2, Int>::from_data(TensorData::new(values.to_vec(), shape), device)
        };
        let forward = |ids, cache: &mut Cache<B>| {
            let before = (cache.len(), cache.bytes());
            let out = model.forward(ids, cache, ForwardOptions { logits: LogitsFor::All, hidden: false });
            if out.is_err() {
                assert_eq!((cache.len(), cache.bytes()), before, "{}: the cache has changed", fixture.name());
            }
            out
        };
        let refused = |ids, cache: &mut Cache<B>, message: &str| match forward(ids, cache) {
            Err(error) => assert!(error.to_string().contains(message), "{}: {error}", fixture.name()),
            Ok(_) => panic!("{}: {message} was accepted", fixture.name()),
        };
        refused(ids(&[], [1, 0]), &mut cache, "no tokens");
        refused(ids(&[1, 2], [2, 1]), &mut cache, "2 rows for a cache of 1");
        refused(ids(&[1], [1, 1]), &mut other.new_cache(KvFormat::F32), "not of this model");
        let message = |rows: &[&[u32]]| model.ids(rows).expect_err("refused").to_string();
        assert!(message(&[]).contains("no tokens") && message(&[&[], &[]]).contains("no tokens"));
        assert!(message(&[&[1], &[1, 2]]).contains("different lengths"));
        assert!(message(&[&[1, vocabulary as u32]]).contains(&format!("token {vocabulary} is outside")));
        // In a tensor an unknown id is refused where the host can see it, and nowhere computed with.
        for id in [vocabulary as i64, -1, 1 << 30] {
            match forward(ids(&[1, id], [1, 2]), &mut cache.clone()) {
                Err(error) => assert!(error.to_string().contains(&format!("token {id} is outside")), "{error}"),
                Ok(out) => {
                    assert!(!B::SHARES_HOST_MEMORY, "{}: {id} was accepted", fixture.name());
                    let logits = Numbers::of(&out.logits.expect("logits")).values;
                    // Tokens before it may see it as well: a weight of 0 does not hide NaN.
                    let (_, unknown) = logits.split_at(vocabulary);
                    assert!(unknown.iter().all(|x| x.is_nan()), "{}: id {id} gave numbers", fixture.name());
                }
            }
        }
        forward(ids(&[1], [1, 1]), &mut cache).expect("the cache is as good as before");
    }
}

/// What is more than the memory of a machine is refused before it is made.
pub fn caches_beyond_memory<B: CompactBackend>(device: &B::Device) {
    for fixture in Fixture::all() {
        let model = fixture.load::<B>(device);
        let shapes = model.architecture().cache_shapes();
        let mut cache = model.new_cache(KvFormat::F32);
        cache.limit_memory(1);
        assert_eq!(cache.bytes(), 0, "{}: nothing fits", fixture.name());
        let error = model.prefill(&[&[1, 2]], &mut cache, 7).expect_err("no memory");
        assert!(matches!(&error, Error::Memory { limit: 1, .. }), "{error}");
        assert!(error.to_string().contains("the cache of 2 tokens in"), "{error}");

        let per_token: usize = shapes.iter().map(|shape| shape.bytes_per_token(KvFormat::F32)).sum();
        let fixed: usize = shapes.iter().map(|shape| shape.fixed_bytes()).sum();
        let most = 300;
        let mut cache = model.new_cache(KvFormat::F32);
        cache.limit_memory(most * per_token + fixed);
        cache.append_random(most);
        assert!(cache.bytes() <= most * per_token + fixed, "{}: {} bytes", fixture.name(), cache.bytes());
        assert!(matches!(cache.check_room(most + 1), Err(Error::Memory { .. })), "{}", fixture.name());
    }
}
