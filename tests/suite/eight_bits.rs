//! Keys and values in 8 bits on a device, beside the same on the processor.

use emberlm::model::cache::Cache;
use emberlm::model::{CausalLm, ForwardOptions, LogitsFor, Span};
use emberlm::quant::CompactBackend;
use emberlm::quant::kv::KvFormat;

use super::fixture::{Fixture, Numbers, logit_tolerance};

type Trusted = burn_ndarray::NdArray<f32>;

fn read<B: CompactBackend>(model: &CausalLm<B>, tokens: &[u32], cache: &mut Cache<B>) -> Vec<f32> {
    let options = ForwardOptions { logits: LogitsFor::All, hidden: false };
    let spans = &mut [Span::new(tokens.len(), cache)];
    let out = model.forward(model.ids(tokens).expect("ids"), spans, options).expect("a pass");
    Numbers::of(&out.logits.expect("logits")).values
}

/// The logits of a prompt, of a token after it, of a fork that is cut where it can be, and of what shares a pass.
fn logits<B: CompactBackend>(model: &CausalLm<B>, ids: &[u32], format: KvFormat) -> Vec<f32> {
    let mut cache = model.new_cache(format);
    let mut logits = read(model, &ids[..64], &mut cache);
    logits.extend(read(model, &ids[64..100], &mut cache));
    let mut fork = cache.fork().expect("a fork");
    logits.extend(read(model, &ids[100..101], &mut cache));
    if !fork.is_recurrent() {
        fork.truncate(70).expect("keys and values");
    }
    logits.extend(read(model, &ids[110..116], &mut fork));
    let options = ForwardOptions { logits: LogitsFor::All, hidden: false };
    let tokens = model.ids(&ids[120..123]).expect("ids");
    let spans = &mut [Span::new(1, &mut cache), Span::new(2, &mut fork)];
    let out = model.forward(tokens, spans, options).expect("a pass");
    logits.extend(Numbers::of(&out.logits.expect("logits")).values);
    logits
}

/// Last bits decide numbers that lie beside the middle of two codes: what they change is little beside what 8 bits do, 4 % at most where
/// it was measured.
pub fn as_on_the_processor<B: CompactBackend>(device: &B::Device) {
    let mut changed = 0;
    for fixture in Fixture::all() {
        let ids = fixture.case("long").ids().remove(0);
        let (model, trusted) = (fixture.load::<B>(device), fixture.load::<Trusted>(&Default::default()));
        let got = logits(&model, &ids, KvFormat::Q8);
        let [expected, exact] = [KvFormat::Q8, KvFormat::F32].map(|format| logits(&trusted, &ids, format));
        let apart = |a: &[f32], b: &[f32]| {
            assert_eq!(a.len(), b.len(), "{}", fixture.name());
            let sum: f64 = a.iter().zip(b).map(|(a, b)| f64::from(a - b).powi(2)).sum();
            (sum / a.len() as f64).sqrt()
        };
        let (off, rounded) = (apart(&got, &expected), apart(&expected, &exact));
        let tolerance = f64::from(logit_tolerance::<B>(model.architecture().config.family));
        println!("{}: off by {off:.2e}, 8 bits change {rounded:.2e}", fixture.name());
        assert!(off <= 0.1 * rounded + tolerance, "{}: {off:.2e}, 8 bits change {rounded:.2e}", fixture.name());
        changed += usize::from(rounded > 4.0 * tolerance);
    }
    assert!(changed > 0, "8 bits change nothing");
}
