//! Goldens with the arithmetic that the program runs by default: 8-bit activations beside quantised weights, and the head in int8
//! rows. The numbers say how far it may drift from what PyTorch computed exactly from the same weights.

#[path = "suite/fixture.rs"]
#[allow(dead_code)]
mod fixture;

use burn_ndarray::NdArray;
use emberlm::model::config::CrestOverrides;
use emberlm::model::{CausalLm, DEFAULT_CHUNK, ForwardOptions, LogitsFor, QuantizeOnLoad, WeightOptions};
use emberlm::quant::kv::KvFormat;
use emberlm_backends::cpu::{self, Precision};
use fixture::{Case, Fixture, Numbers};

type Backend = NdArray<f32>;

/// Fixtures whose layers are stored quantised, in matrices of whole blocks.
const FIXTURES: [&str; 2] = ["leanllama_nf4", "nano_compact"];

/// The root of the mean square error of the logits, relative to their own. Rounding x to steps of 1/127 of the largest of 32 changes a
/// product by 0.5 % (a step is 0.6 % of the root mean square of normal numbers, times 12^-1/2 for the uniform error, times 3 for what
/// is largest of 32), an NF4 book in bytes by 0.4 %; four layers add some ten such errors to the residual stream, whose squares add up.
const LOGITS: f64 = 0.02;

/// Mean KL divergence of the next token from the golden, in nats.
const KL: f64 = 5e-4;

#[test]
fn eight_bit_activations_and_an_int8_head_drift_this_far() {
    cpu::set_precision(Some(Precision::Int8Activations));
    for fixture in Fixture::all().iter().filter(|fixture| FIXTURES.contains(&fixture.name().as_str())) {
        let options = WeightOptions { quantize_head: Some(QuantizeOnLoad::Int8), ..WeightOptions::default() };
        let model = fixture.load_with::<Backend>(&CrestOverrides::default(), options, &Default::default());
        for name in ["text", "batch"] {
            prefill(&model, &fixture.case(name));
        }
        decode(&model, &fixture.case("text"));
    }
}

/// The logits of a whole prompt.
fn prefill(model: &CausalLm<Backend>, case: &Case<'_>) {
    let ids = case.ids();
    let rows: Vec<&[u32]> = ids.iter().map(Vec::as_slice).collect();
    let mut cache = model.new_batch_cache(KvFormat::F32, case.left_pad());
    let out = model
        .forward(model.ids(&rows).expect("ids"), &mut cache, ForwardOptions { logits: LogitsFor::All, hidden: false })
        .expect("a pass");
    let positions = case.need("positions").indices();
    let got = Numbers::of(out.logits.as_ref().expect("logits")).at_positions(&positions);
    // At padding there is nothing to compare.
    let [b, t] = case.need("input_ids").shape[..] else { panic!("rows of ids") };
    let (mask, golden) = (case.mask(), case.need("logits"));
    let v = golden.values.len() / (b * positions.len());
    let tokens = (0..b).flat_map(|row| positions.iter().map(move |p| row * t + p));
    let rows: Vec<(&[f32], &[f32])> = got
        .values
        .chunks(v)
        .zip(golden.values.chunks(v))
        .zip(tokens)
        .filter(|(_, token)| mask[*token] > 0.0)
        .map(|(rows, _)| rows)
        .collect();
    compare(&case.label("logits"), &rows);
}

/// The golden continuation through the cache, one token at a time.
fn decode(model: &CausalLm<Backend>, case: &Case<'_>) {
    let golden = case.need("greedy_logits");
    let v = golden.values.len() / golden.shape[..golden.shape.len() - 1].iter().product::<usize>();
    let steps = golden.values.len() / v;
    let tokens = case.need("greedy").ids();
    let mut cache = model.new_cache(KvFormat::F16);
    let mut got = Numbers::of(&model.prefill(&[&case.ids()[0]], &mut cache, DEFAULT_CHUNK).expect("a prompt")).values;
    for id in &tokens[..steps - 1] {
        got.extend(Numbers::of(&model.decode(&[*id], &mut cache).expect("a token")).values);
    }
    let rows: Vec<(&[f32], &[f32])> = got.chunks(v).zip(golden.values.chunks(v)).collect();
    compare(&case.label("greedy_logits"), &rows);
}

/// Holds logits against the bounds; the best token is another one only where the golden's lead is within the error.
fn compare(what: &str, rows: &[(&[f32], &[f32])]) {
    let (mut error, mut size, mut divergence, mut others) = (0.0, 0.0, 0.0, 0);
    for (got, golden) in rows {
        assert!(got.iter().all(|x| x.is_finite()), "{what}");
        let off: f64 = got.iter().zip(*golden).map(|(a, b)| f64::from(a - b).powi(2)).sum();
        error += off;
        size += golden.iter().map(|x| f64::from(*x).powi(2)).sum::<f64>();
        let (p, q) = (log_softmax(golden), log_softmax(got));
        divergence += p.iter().zip(&q).map(|(p, q)| p.exp() * (p - q)).sum::<f64>();
        let best = |logits: &[f32]| (0..logits.len()).max_by(|&a, &b| logits[a].total_cmp(&logits[b])).expect("logits");
        let (ours, theirs) = (best(got), best(golden));
        if ours != theirs {
            others += 1;
            // Two logits, four times their usual error each.
            let allowed = 8.0 * (off / got.len() as f64).sqrt();
            let lead = f64::from(golden[theirs] - golden[ours]);
            assert!(
                lead <= allowed,
                "{what}: {ours} is best, expected {theirs}, which leads by {lead}; allowed {allowed}"
            );
        }
    }
    let (logits, divergence) = ((error / size).sqrt(), divergence / rows.len() as f64);
    println!(
        "{what}: logits {logits:.4} of their size off, KL {divergence:.2e}, {others} of {} best tokens others",
        rows.len()
    );
    assert!(logits <= LOGITS, "{what}: logits are off by {logits}, allowed {LOGITS}");
    assert!(divergence <= KL, "{what}: KL {divergence}, allowed {KL}");
    // Not exact by accident: the option was taken where the processor has it.
    if cpu::level() != cpu::Level::Scalar {
        assert!(logits > 1e-4, "{what}: nothing was rounded");
    }
}

fn log_softmax(logits: &[f32]) -> Vec<f64> {
    let largest = logits.iter().fold(f32::NEG_INFINITY, |a, &b| a.max(b));
    let sum: f64 = logits.iter().map(|x| f64::from(x - largest).exp()).sum();
    logits.iter().map(|x| f64::from(x - largest) - sum.ln()).collect()
}
