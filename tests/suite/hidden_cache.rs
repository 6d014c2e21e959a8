//! Hidden values of compressed keys and values in the cache, beside codes.

use emberlm::model::config::KStage;
use emberlm::model::{CausalLm, ForwardOptions, LogitsFor, Pretrained, Span};
use emberlm::quant::CompactBackend;
use emberlm::quant::kv::KvFormat;

use super::fixture::{Fixture, Numbers, logit_tolerance};

/// The logits of all tokens, read in one pass, or in one of many tokens, two of seven and then one at a time.
fn logits<B: CompactBackend>(model: &CausalLm<B>, ids: &[u32], format: KvFormat, in_pieces: bool) -> Numbers {
    let mut cache = model.new_cache(format);
    let options = ForwardOptions { logits: LogitsFor::All, hidden: false };
    let pieces = match in_pieces {
        true => vec![ids.len() - 18, 7, 7, 1, 1, 1, 1],
        false => vec![ids.len()],
    };
    let mut rest = ids;
    let passes = pieces.into_iter().map(|tokens| {
        let (ids, after) = rest.split_at(tokens);
        rest = after;
        let spans = &mut [Span::new(tokens, &mut cache)];
        let out = model.forward(model.ids(ids).expect("ids"), spans, options).expect("a pass");
        out.logits.expect("logits")
    });
    let passes: Vec<_> = passes.collect();
    Numbers::of(&burn::tensor::Tensor::cat(passes, 0))
}

fn bytes_per_token(pretrained: &Pretrained, format: KvFormat) -> usize {
    pretrained.architecture().cache_shapes().iter().map(|shape| shape.bytes_per_token(format)).sum()
}

/// Root mean square of the differences, beside that of the numbers.
fn apart(a: &Numbers, b: &Numbers) -> f64 {
    let square = |x: f32| f64::from(x).powi(2);
    let sum: f64 = a.values.iter().zip(&b.values).map(|(&a, &b)| square(a - b)).sum();
    (sum / b.values.iter().map(|&b| square(b)).sum::<f64>()).sqrt()
}

/// In F32 hidden values give what codes give, and in F16 and 8 bits what rounding leaves of it; one token or many at a time.
pub fn hidden_values_are_codes<B: CompactBackend>(device: &B::Device) {
    let mut checked = 0;
    for fixture in Fixture::all() {
        let pretrained = fixture.open();
        let with_codes = bytes_per_token(&pretrained, KvFormat::F16);
        let Ok(hidden) = pretrained.cache_hidden() else {
            assert!(!fixture.name().contains("leanllama"), "{}", fixture.name());
            continue;
        };
        assert!(bytes_per_token(&hidden, KvFormat::F16) > with_codes, "{}: more is cached", fixture.name());
        let (codes, hidden) = (fixture.load::<B>(device), hidden.load::<B>(device).expect("a model"));
        let tolerance = logit_tolerance::<B>(hidden.architecture().config.family);
        let ids = &fixture.case("long").ids()[0][..80];
        let expected = logits(&codes, ids, KvFormat::F32, false);
        for in_pieces in [false, true] {
            let got = logits(&hidden, ids, KvFormat::F32, in_pieces);
            got.assert_close(&format!("{}, in pieces: {in_pieces}", fixture.name()), &expected, tolerance);
        }
        for (format, most) in [(KvFormat::F16, F16), (KvFormat::Q8, Q8)] {
            let expected = logits(&codes, ids, format, false);
            for in_pieces in [false, true] {
                let off = apart(&logits(&hidden, ids, format, in_pieces), &expected);
                let what = format!("{}, {format:?}, in pieces: {in_pieces}: off by {off:.2e}", fixture.name());
                println!("{what}");
                assert!(off > 0.0 && off < most, "{what}");
            }
        }
        checked += 1;
    }
    assert_eq!(checked, 3, "models with compressed caches");
}

/// A model with initial values caches what its architecture says.
pub fn initial_models_cache_hidden_values<B: CompactBackend>(device: &B::Device) {
    let fixture = Fixture::all().into_iter().find(|fixture| fixture.name().ends_with("leanllama")).expect("a fixture");
    let hidden = fixture.open().cache_hidden().expect("hidden values");
    let model = CausalLm::<B>::init(hidden.architecture().clone(), device).expect("a model");
    let ids = &fixture.case("long").ids()[0][..40];
    let whole = logits(&model, ids, KvFormat::F32, false);
    logits(&model, ids, KvFormat::F32, true).assert_close(
        "in pieces",
        &whole,
        logit_tolerance::<B>(hidden.architecture().config.family),
    );
}

/// Beside codes, in proportion to the logits: twice the largest that was measured.
const F16: f64 = 7e-4;
const Q8: f64 = 1.7e-2;

/// Keys that are rotated after they are decoded.
pub fn hidden_values_before_rotation<B: CompactBackend>(device: &B::Device) {
    let fixture =
        Fixture::all().into_iter().find(|fixture| fixture.name().ends_with("leanllama_kv")).expect("a fixture");
    let plan = fixture.open().plan::<B>(device).expect("a plan");
    let load = |pretrained: Pretrained| {
        let mut architecture = pretrained.architecture().clone();
        architecture.kv_compression.as_mut().expect("compression").k_stage = KStage::PreRope;
        CausalLm::<B>::load(architecture, pretrained.weights(), Default::default(), &plan, device, None)
            .expect("a model")
    };
    let (codes, hidden) = (load(fixture.open()), load(fixture.open().cache_hidden().expect("hidden values")));
    // Numbers and angles of the keys of one layer; rotated keys are decoded where they are read.
    let config = &codes.architecture().config;
    let decoded = 10 * 4 * (config.kv_dim() + config.rope.rotary_dim);
    assert_eq!(codes.architecture().decoded_bytes(10), decoded);
    assert_eq!(fixture.open().architecture().decoded_bytes(10), 0);
    let ids = &fixture.case("text").ids()[0];
    let expected = logits(&codes, ids, KvFormat::F32, false);
    let tolerance = logit_tolerance::<B>(hidden.architecture().config.family);
    for in_pieces in [false, true] {
        let got = logits(&hidden, ids, KvFormat::F32, in_pieces);
        got.assert_close(&format!("before rotation, in pieces: {in_pieces}"), &expected, tolerance);
    }
}
