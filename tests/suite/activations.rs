//! Models with activations in half precision, against the same goldens.
//!
//! Errors are counted in roundings: the largest relative error of one rounding to the type (2^-11 of F16), times the largest number
//! of the tensor. What a model makes of a rounding is its own, and F32 tells how much: on a device that only sums in another order
//! than PyTorch did, these fixtures are off by up to 29 roundings of F32, CREST, whose gates amplify, by 198. With F16 software Vulkan
//! is off by 16 and 76 roundings of F16.

use emberlm::model::config::{CrestOptions, HaltMode};
use emberlm::model::{CausalLm, DEFAULT_CHUNK, Error};
use emberlm::quant::host::FloatType;
use emberlm::quant::kv::KvFormat;
use emberlm::quant::{Activations, CompactBackend};

use super::fixture::{Case, Fixture, Numbers};
use super::golden::{BEGUN, CONTINUED, layer, whole};

/// Roundings of what a decision that came out otherwise may have hung on: the distance of a halting probability from the threshold,
/// the lead of the best logit. With BF16, where matrix instructions round weights too, a halting probability whose layer is off by 23
/// roundings has moved by 28.5.
fn close_call(float: FloatType) -> f32 {
    if float == FloatType::Bf16 { 32.0 } else { 16.0 }
}

/// Roundings that hidden states and logits may be off.
fn allowed<B: CompactBackend>(model: &CausalLm<B>) -> f32 {
    if model.architecture().crest.is_some() { 100.0 } else { 24.0 }
}

/// Every fixture in every type that the device computes with; a type that it does not compute with is refused.
pub fn half_precision<B: CompactBackend>(device: &B::Device) {
    half_precision_of::<B>(device, CONTINUED);
}

/// The same with the first tokens of a continuation, where a token takes long.
#[allow(dead_code)] // for cards that are software
pub fn half_precision_begins<B: CompactBackend>(device: &B::Device) {
    half_precision_of::<B>(device, BEGUN);
}

fn half_precision_of<B: CompactBackend>(device: &B::Device, count: usize) {
    for float in [FloatType::F16, FloatType::Bf16] {
        for fixture in Fixture::all() {
            let mut model = fixture.load::<B>(device);
            if !B::computes_with(device, float.into()) {
                let error = model.set_activations(float.into()).expect_err("the device does not have it");
                assert!(matches!(&error, Error::Option { option, .. } if option == "activations"), "{error}");
                assert!(error.to_string().contains(&format!("{float} is not for")), "{error}");
                assert_eq!(model.activations(), Activations::F32);
                continue;
            }
            model.set_activations(float.into()).expect("the device has it");
            for name in ["text", "batch"] {
                one_pass(&model, &fixture.case(name), float);
            }
            let mut exact = fixture.load::<B>(device);
            continuation(&mut model, &mut exact, &fixture.case("text"), float, count);
        }
    }
}

/// Hidden states and logits of one pass. A token of a CREST model may halt elsewhere where the golden decision was close; what
/// depends on it is not compared.
fn one_pass<B: CompactBackend>(model: &CausalLm<B>, case: &Case<'_>, float: FloatType) {
    let (out, rounding, allowed) = (whole(model, case), float.rounding(), allowed(model));
    let [b, t] = case.need("input_ids").shape[..] else { panic!("rows of ids") };
    // Tokens whose inputs are those of the golden up to here: [b * t].
    let mut known: Vec<bool> = case.mask().iter().map(|&x| x > 0.0).collect();
    let all: Vec<usize> = (0..t).collect();
    let (at_hidden, at_logits) = (case.need("hidden_positions").indices(), case.need("positions").indices());
    let (mut worst, mut moved) = (0f32, 0);
    for (l, hidden) in out.hidden.iter().enumerate() {
        let key = format!("hidden.{l}");
        let got = hidden.at_positions(&at_hidden);
        let off = off(&got, case.need(&key), &known, &at_hidden, t) / rounding;
        assert!(off <= allowed, "{float} {}: off by {off} roundings, allowed {allowed}", case.label(&key));
        worst = worst.max(off);
        if let (Some(trace), Some(options)) = (out.depth.get(l), &model.architecture().crest) {
            let steps = trace.steps.indices();
            moved += halted_elsewhere(case, l, &steps, &mut known, t, options, float);
        }
    }
    let final_hidden = off(&out.final_hidden, case.need("final_hidden"), &known, &all, t) / rounding;
    let got = out.logits.at_positions(&at_logits);
    let logits = off(&got, case.need("logits"), &known, &at_logits, t) / rounding;
    println!(
        "{float} {}: {worst:.1} roundings in the layers, {final_hidden:.1} after the norm, logits {logits:.1}; {moved} of {} \
         halted elsewhere, {} of {} tokens known",
        case.label("whole pass"),
        out.depth.len() * b * t,
        known.iter().filter(|&&known| known).count(),
        b * t
    );
    for (what, off) in [("final_hidden", final_hidden), ("logits", logits)] {
        assert!(off <= allowed, "{float} {}: off by {off} roundings, allowed {allowed}", case.label(what));
    }
}

/// The largest difference at known tokens, relative to the largest number expected. `got` and `golden` are `[b, positions, ..]`.
fn off(got: &Numbers, golden: &Numbers, known: &[bool], positions: &[usize], t: usize) -> f32 {
    assert_eq!(got.shape, golden.shape);
    let width = golden.values.len() / (golden.shape[0] * positions.len());
    let tokens = (0..golden.shape[0]).flat_map(|row| positions.iter().map(move |p| row * t + p));
    let rows = got.values.chunks(width).zip(golden.values.chunks(width)).zip(tokens);
    let known = rows.filter(|(_, token)| known[*token]);
    let differences = known.flat_map(|((got, golden), _)| got.iter().zip(golden).map(|(a, b)| (a - b).abs()));
    let worst = differences.fold(0f32, |worst, d| if d > worst || d.is_nan() { d } else { worst });
    worst / golden.largest().max(f32::MIN_POSITIVE)
}

/// Checks that the golden decision of every known token that ran another number of steps was close, and forgets the tokens that
/// depend on one. Returns how many there were.
fn halted_elsewhere(
    case: &Case<'_>,
    l: usize,
    steps: &[usize],
    known: &mut [bool],
    t: usize,
    options: &CrestOptions,
    float: FloatType,
) -> usize {
    let (golden, halt) = (layer(case.need("crest.steps"), l).indices(), layer(case.need("crest.halt"), l));
    let gates = options.num_steps - 1;
    let mut moved = 0;
    for (row, known) in known.chunks_mut(t).enumerate() {
        for i in 0..t {
            let token = row * t + i;
            if !known[i] || steps[token] == golden[token] {
                continue;
            }
            moved += 1;
            // The first gate at which one of the two stopped.
            let gate = steps[token].min(golden[token]) - 1;
            let h = &halt.values[token * gates..][..=gate];
            let reached = match options.halt_mode {
                HaltMode::Cumulative => 1.0 - h.iter().map(|h| 1.0 - h).product::<f32>(),
                HaltMode::Step => h[gate],
            };
            let close = (reached - options.halt_threshold).abs() / float.rounding();
            assert!(
                close <= close_call(float),
                "{}: token {token} of layer {l}, off by {close} roundings",
                case.label("steps")
            );
            known[i..].fill(false);
            break;
        }
    }
    moved
}

/// The golden continuation, token by token: the same best token as in F32, unless two were close. Tokens of CREST models run all
/// steps.
fn continuation<B: CompactBackend>(
    model: &mut CausalLm<B>,
    exact: &mut CausalLm<B>,
    case: &Case<'_>,
    float: FloatType,
    count: usize,
) {
    let allowed = allowed(model);
    if let Some(crest) = model.architecture().crest.clone() {
        model.set_depth(crest.num_steps, false, 1.0).expect("a depth");
        exact.set_depth(crest.num_steps, false, 1.0).expect("a depth");
    }
    let (prompt, tokens) = (&case.ids()[0], case.need("greedy").ids());
    let tokens = &tokens[..count];
    let run = |model: &CausalLm<B>| -> Vec<Vec<f32>> {
        let mut cache = model.new_cache(KvFormat::F16);
        let first = model.prefill(prompt, &mut cache, DEFAULT_CHUNK).expect("a prompt");
        let others = tokens.iter().map(|&id| model.decode(id, &mut cache).expect("a token"));
        std::iter::once(first).chain(others).map(|logits| Numbers::of(&logits).values).collect()
    };
    let (mut worst, mut others) = (0f32, 0);
    for (i, (got, expected)) in run(model).iter().zip(&run(exact)).enumerate() {
        let what = format!("{float} {}", case.label(&format!("logits {i} after the prompt")));
        let best = |logits: &[f32]| (0..logits.len()).max_by(|&a, &b| logits[a].total_cmp(&logits[b])).expect("logits");
        let largest = expected.iter().fold(0f32, |a, x| a.max(x.abs()));
        let off = got.iter().zip(expected).fold(0f32, |e, (a, b)| e.max((a - b).abs())) / largest / float.rounding();
        assert!(
            off <= allowed && got.iter().all(|x| x.is_finite()),
            "{what}: off by {off} roundings, allowed {allowed}"
        );
        worst = worst.max(off);
        let (ours, theirs) = (best(got), best(expected));
        if ours != theirs {
            others += 1;
            let lead = (expected[theirs] - expected[ours]) / largest / float.rounding();
            assert!(lead <= close_call(float), "{what}: {ours}, expected {theirs}, which leads by {lead} roundings");
        }
    }
    println!(
        "{float} {}: logits {worst:.1} roundings off, {others} of {} best tokens others",
        case.label("greedy"),
        tokens.len() + 1
    );
}
