//! Single blocks against what the reference computes: adaptive depth in every combination of its options, the delta rule in
//! one piece and in many, and the number formats.

use burn::module::{Param, ParamId};
use burn::tensor::{DType, Tensor, TensorData};
use emberlm::model::config::{CrestOptions, GateInput, HaltMode, HaltWeights, StepInput};
use emberlm::model::{CrestFfn, HaltGate};
use emberlm::quant::CompactBackend;
use emberlm::quant::host::{FloatType, HostCodeBook4, HostRows, HostScales, HostStorage, HostWeight};
use emberlm::quant::modules::{Linear, SwiGlu};
use emberlm::quant::ops::DeltaRule;
use emberlm::quant::packed::PackedWeight;
use emberlm::quant::reference;
use safetensors::SafeTensors;
use serde_json::Value;

use super::fixture::{Numbers, Tensors, own};

/// Relative to the largest magnitude, at least 1.
const BOUND: f32 = 1e-5;

fn cases(unit: &str) -> Vec<Value> {
    let text = std::fs::read_to_string(own(&format!("{unit}/cases.json"))).expect("cases.json");
    serde_json::from_str(&text).expect("a list of cases")
}

fn tensors(unit: &str) -> Tensors {
    Tensors::read(&own(&format!("{unit}/cases.safetensors")))
}

fn tensor<B: CompactBackend, const D: usize>(numbers: &Numbers, device: &B::Device) -> Tensor<B, D> {
    let data = TensorData::new(numbers.values.clone(), numbers.shape.clone());
    Tensor::from_data(data, (device, DType::F32))
}

fn close<B: CompactBackend, const D: usize>(what: &str, got: &Tensor<B, D>, expected: &Numbers) {
    Numbers::of(got).assert_close(what, expected, BOUND * expected.largest().max(1.0));
}

/// Every combination of the options of adaptive depth.
pub fn crest_ffn<B: CompactBackend>(device: &B::Device) {
    let (cases, tensors) = (cases("unit_crest_ffn"), tensors("unit_crest_ffn"));
    assert_eq!(cases.len(), 224);
    let x = tensors.need("x");
    let m = x.shape[1];
    for case in cases {
        let id = &case["id"];
        let options = crest_options(&case["options"]);
        let ffn = crest_block::<B>(&tensors, &case["gate_tensors"], options.clone(), device);
        let (output, trace) = ffn.forward(tensor::<B, 3>(x, device).reshape([m, x.shape[2]]));
        let golden = |what: &str| tensors.need(&format!("case.{id}.{what}"));
        let what = |what: &str| format!("case {id} {}: {what}", case["options"]);

        let halt = golden("halt");
        let compared: Vec<bool> = halt.values.chunks(halt.shape[2]).map(|h| !is_close_call(h, &options)).collect();
        let skipped = compared.iter().filter(|compared| !**compared).count();
        assert_eq!(skipped == 0, case["safe"].as_bool().expect("safe"), "{}", what("close calls"));
        assert!(skipped <= 1, "{}: {skipped} close calls", what("tokens"));
        // Rows of `[m, width]`, without the tokens that the last bit of a gate sends another way.
        let kept = |numbers: Numbers, width: usize| {
            let rows = numbers.values.chunks(width).zip(&compared).filter(|(_, kept)| **kept);
            let values: Vec<f32> = rows.flat_map(|(row, _)| row.to_vec()).collect();
            Numbers { shape: vec![values.len() / width, width], values }
        };
        let check = |name: &str, got: Numbers, width: usize| {
            let expected = kept(golden(name).clone(), width);
            kept(got, width).assert_close(&what(name), &expected, BOUND * expected.largest().max(1.0));
        };
        let steps =
            Numbers { shape: vec![m], values: trace.steps.to_data().convert::<f32>().into_vec().expect("steps") };
        kept(steps.clone(), 1).assert_close(&what("steps"), &kept(golden("steps").clone(), 1), 0.0);
        check("output", Numbers::of(&output), x.shape[2]);
        check("weights", by_token(&trace.weights), trace.weights.len());
        // The golden goes on after a token has stopped, the trace does not.
        let seen = by_token(&trace.halt);
        for ((token, got), expected) in seen.values.chunks(3).enumerate().zip(halt.values.chunks(3)) {
            for (k, (got, expected)) in got.iter().zip(expected).enumerate().filter(|_| compared[token]) {
                let expected = if (k as f32) < steps.values[token] { *expected } else { 0.0 };
                assert!((got - expected).abs() <= BOUND, "{}: {got}, expected {expected}", what("halt"));
            }
        }
    }
}

/// `[m, steps]` of one record per step.
fn by_token<B: CompactBackend>(steps: &[Tensor<B, 1>]) -> Numbers {
    let steps: Vec<Numbers> = steps.iter().map(Numbers::of).collect();
    let m = steps[0].values.len();
    let values = (0..m).flat_map(|i| steps.iter().map(move |step| step.values[i])).collect();
    Numbers { shape: vec![m, steps.len()], values }
}

/// Whether a gate of this token lies so close to the threshold that the order of a sum decides.
fn is_close_call(halt: &[f32], options: &CrestOptions) -> bool {
    let (mut remaining, mut cumulative) = (1.0, 0.0);
    halt.iter().any(|h| {
        cumulative += h * remaining;
        remaining *= 1.0 - h;
        let reached = match options.halt_mode {
            HaltMode::Cumulative => cumulative,
            HaltMode::Step => *h,
        };
        (reached - options.halt_threshold).abs() < 1e-4
    })
}

fn crest_options(options: &Value) -> CrestOptions {
    let text = |key: &str| options[key].as_str().unwrap_or_else(|| panic!("{key}"));
    CrestOptions {
        num_steps: options["num_steps"].as_u64().expect("num_steps") as usize,
        step_input: match text("step_input") {
            "parallel" => StepInput::Parallel,
            "refine" => StepInput::Refine,
            "sequential" => StepInput::Sequential,
            "chained" => StepInput::Chained,
            other => panic!("{other}"),
        },
        gate_input: match text("gate_input") {
            "state" => GateInput::State,
            "input" => GateInput::Input,
            other => panic!("{other}"),
        },
        gate_shared: options["gate_shared"].as_bool().expect("gate_shared"),
        gate_hidden: options["gate_hidden"].as_u64().map(|width| width as usize),
        gate_bias: true,
        halt_mode: match text("halt_mode") {
            "cumulative" => HaltMode::Cumulative,
            "step" => HaltMode::Step,
            other => panic!("{other}"),
        },
        halt_weights: match text("halt_weights") {
            "remainder" => HaltWeights::Remainder,
            "truncate" => HaltWeights::Truncate,
            "state" => HaltWeights::State,
            other => panic!("{other}"),
        },
        halt_threshold: options["halt_threshold"].as_f64().expect("halt_threshold") as f32,
        halt_enabled: options["halt_enabled"].as_bool().expect("halt_enabled"),
    }
}

fn crest_block<B: CompactBackend>(
    tensors: &Tensors,
    gates: &Value,
    options: CrestOptions,
    device: &B::Device,
) -> CrestFfn<B> {
    let linear = |name: String| {
        let weight = tensors.need(&format!("{name}.weight"));
        let bias = tensors.get(&format!("{name}.bias"));
        Linear {
            weight: PackedWeight::from_floats(weight.values.clone(), weight.shape[0], weight.shape[1], device),
            bias: bias.map(|bias| Param::initialized(ParamId::new(), tensor(bias, device))),
        }
    };
    let steps = (0..options.num_steps).map(|k| {
        let layer = |name: &str| linear(format!("weights.steps.{k}.{name}"));
        SwiGlu { gate_proj: layer("gate_proj"), up_proj: layer("up_proj"), down_proj: layer("down_proj") }
    });
    // In the order of their names: `halt_gate`, or `halt_gates.0` and on.
    let gates = gates.as_object().expect("gates").values().map(|name| {
        let name = format!("gates.{}", name.as_str().expect("a name"));
        match options.gate_hidden {
            None => HaltGate { hidden: None, output: linear(name) },
            Some(_) => HaltGate { hidden: Some(linear(format!("{name}.0"))), output: linear(format!("{name}.2")) },
        }
    });
    CrestFfn::new(steps.collect(), gates.collect(), options).expect("a block")
}

/// A block that lacks a part is refused.
pub fn crest_ffn_parts<B: CompactBackend>(device: &B::Device) {
    let tensors = tensors("unit_crest_ffn");
    let block = |gates: Value| {
        let options = CrestOptions { num_steps: 4, gate_shared: false, ..Default::default() };
        crest_block::<B>(&tensors, &gates, options, device)
    };
    let CrestFfn { steps, halt_gates, .. } =
        block(serde_json::json!({"halt_gates.0": "lin0", "halt_gates.1": "lin1", "halt_gates.2": "lin2"}));
    let options = |num_steps, gate_shared| CrestOptions { num_steps, gate_shared, ..Default::default() };
    let new = |options| {
        CrestFfn::new(steps.clone(), halt_gates[..2].to_vec(), options).map(|_| ()).map_err(|e| e.to_string())
    };
    assert_eq!(new(options(3, false)), Ok(()));
    assert_eq!(new(options(4, true)), Ok(()));
    assert_eq!(new(options(4, false)), Err("gates: has 2, expected 3".into()));
    assert_eq!(new(options(0, true)), Err("num_steps: is 0, expected 1 to 4, the MLPs given".into()));
    assert!(new(options(5, true)).is_err());
}

/// The delta rule over all tokens at once, and in two, three and many pieces.
pub fn delta_rule<B: CompactBackend>(device: &B::Device) {
    let (cases, tensors) = (cases("unit_delta_rule"), tensors("unit_delta_rule"));
    assert_eq!(cases.len(), 5);
    for case in cases {
        let id = &case["id"];
        let need = |what: &str| tensors.need(&format!("case.{id}.{what}"));
        let [q, k, v] = ["q", "k", "v"].map(|name| tensor::<B, 4>(need(name), device));
        let [g, beta] = ["g", "beta"].map(|name| tensor::<B, 3>(need(name), device));
        let initial: Tensor<B, 4> = match tensors.get(&format!("case.{id}.initial_state")) {
            Some(state) => tensor(state, device),
            None => Tensor::zeros(need("final_state").shape.clone(), (device, DType::F32)),
        };
        let s = q.dims()[1];
        let mut splits = vec![vec![s]];
        splits.extend(
            [1, 2, s / 2, s - 1, 63, 64, 65].iter().filter(|&&at| 0 < at && at < s).map(|&at| vec![at, s - at]),
        );
        splits.push([vec![7; s / 7], vec![s % 7]].concat());
        splits.push(vec![1; s]);
        for split in splits {
            let (mut state, mut start, mut outputs) = (initial.clone(), 0, Vec::new());
            for &count in split.iter().filter(|count| **count > 0) {
                let piece = |t: &Tensor<B, 4>| t.clone().slice_dim(1, start..start + count);
                let scalar = |t: &Tensor<B, 3>| t.clone().slice_dim(1, start..start + count);
                let rule = DeltaRule { q: piece(&q), k: piece(&k), v: piece(&v), g: scalar(&g), beta: scalar(&beta) };
                let (output, next) = B::gated_delta_rule(rule, state);
                outputs.push(output);
                state = next;
                start += count;
            }
            let what = |what: &str| format!("case {id}, {} pieces from {}: {what}", split.len(), split[0]);
            close(&what("output"), &Tensor::cat(outputs, 1), need("output"));
            close(&what("final_state"), &state, need("final_state"));
        }
    }
}

/// bitsandbytes' codes give bitsandbytes' numbers, to the bit, and the products of those numbers.
pub fn nf4<B: CompactBackend>(device: &B::Device) {
    let bytes = std::fs::read(own("unit_quant/cases.safetensors")).expect("cases.safetensors");
    let file = File(SafeTensors::deserialize(&bytes).expect("a safetensors file"), tensors("unit_quant"));
    let mut checked = 0;
    for case in cases("unit_quant").iter().filter(|case| case.get("double").is_some()) {
        let name = case["name"].as_str().expect("a name");
        let expected = file.1.need(&format!("{name}.dequant_f32"));
        let weight = PackedWeight::<B>::from_host(file.nf4(name, expected), device);
        let got = reference::dequantize(&weight);
        Numbers::of(&got).assert_close(&format!("{name} dequantised"), expected, 0.0);
        for m in [1, 3, 20] {
            let x = ramp::<B>(m, expected.shape[1], device);
            let product = plain_product(&Numbers::of(&x), expected);
            close(&format!("{name} of {m} rows"), &B::packed_linear(x, &weight, None), &product);
        }
        checked += 1;
    }
    assert_eq!(checked, 26);
}

/// Nano's rows give the numbers of its runtime, to the bit, and its products.
pub fn nano<B: CompactBackend>(device: &B::Device) {
    let bytes = std::fs::read(own("unit_quant/cases.safetensors")).expect("cases.safetensors");
    let file = File(SafeTensors::deserialize(&bytes).expect("a safetensors file"), tensors("unit_quant"));
    let (mut checked, mut biases) = (0, 0);
    for case in cases("unit_quant").iter().filter(|case| case.get("spec").is_some()) {
        let name = case["name"].as_str().expect("a name");
        let get = |leaf: &str| file.1.get(&format!("{name}.{leaf}"));
        let expected = get("dequant_f32").expect("dequant_f32");
        let weight = PackedWeight::<B>::from_host(file.nano(name, &case["spec"], expected), device);
        let got = reference::dequantize(&weight);
        Numbers::of(&got).assert_close(&format!("{name} dequantised"), expected, 0.0);
        let bias = get("bias").map(|bias| tensor::<B, 1>(bias, device));
        biases += usize::from(bias.is_some());
        let got = B::packed_linear(tensor(get("x").expect("x"), device), &weight, bias);
        close(&format!("{name} y"), &got, get("y").expect("y"));
        checked += 1;
    }
    assert_eq!((checked, biases), (9, 2));
}

/// Inputs that tell every column apart.
fn ramp<B: CompactBackend>(m: usize, k: usize, device: &B::Device) -> Tensor<B, 2> {
    let values = (0..m * k).map(|i| ((i * 37 + i / k) % 101) as f32 / 50.0 - 1.0).collect();
    tensor(&Numbers { shape: vec![m, k], values }, device)
}

/// `x Wᵀ` in f64.
fn plain_product(x: &Numbers, w: &Numbers) -> Numbers {
    let k = w.shape[1];
    let dot = |x: &[f32], w: &[f32]| x.iter().zip(w).map(|(&x, &w)| f64::from(x) * f64::from(w)).sum::<f64>() as f32;
    let values = x.values.chunks(k).flat_map(|x| w.values.chunks(k).map(move |w| dot(x, w))).collect();
    Numbers { shape: vec![x.shape[0], w.shape[0]], values }
}

/// The bytes of a file, and its numbers.
struct File<'a>(SafeTensors<'a>, Tensors);

impl File<'_> {
    fn bytes(&self, name: &str) -> Vec<u8> {
        self.0.tensor(name).unwrap_or_else(|e| panic!("{name}: {e}")).data().to_vec()
    }

    fn nf4(&self, name: &str, dequantized: &Numbers) -> HostWeight {
        let side = |side: &str| format!("{name}.{side}");
        let state = self.bytes(&side("quant_state.bitsandbytes__nf4"));
        let state: Value = serde_json::from_slice(&state).expect("a quant state");
        let size = |key: &str| state[key].as_u64().unwrap_or_else(|| panic!("{key}")) as usize;
        let absmax = self.bytes(&side("absmax")).into();
        let scales = match self.1.get(&side("nested_absmax")) {
            Some(nested) => HostScales::Double {
                codes: absmax,
                map: self.1.need(&side("nested_quant_map")).values.clone(),
                absmax: nested.values.clone(),
                block: size("nested_blocksize"),
                offset: state["nested_offset"].as_f64().expect("nested_offset") as f32,
            },
            None => HostScales::Single(absmax),
        };
        let code_book = self.1.need(&side("quant_map")).values.clone().try_into().expect("16 codes");
        let (codes, block, stored) = (self.bytes(name).into(), size("blocksize"), FloatType::F32);
        let storage = HostStorage::CodeBook4(HostCodeBook4 { codes, code_book, block, scales, stored });
        HostWeight { n: dequantized.shape[0], k: dequantized.shape[1], storage }
    }

    fn nano(&self, name: &str, spec: &Value, dequantized: &Numbers) -> HostWeight {
        let part = |part: &str| format!("{name}.{part}");
        let (n, k) = (dequantized.shape[0], dequantized.shape[1]);
        let rows = if spec["kind"] == "truequant_linear" {
            let protected = self.1.need(&part("prot_scale")).values.len();
            let packed = self.0.tensor(&part("deg_q_packed")).is_ok();
            let (wide, degraded) = (self.bytes(&part("prot_q")), |leaf| self.bytes(&part(leaf)));
            let (wide, narrow) = if packed {
                (wide, degraded("deg_q_packed"))
            } else {
                ([wide, degraded("deg_q")].concat(), Vec::new())
            };
            let mut slots = vec![0; n];
            let order = ["prot_idx", "deg_idx"].map(|leaf| self.1.need(&part(leaf)).indices()).concat();
            order.into_iter().enumerate().for_each(|(slot, row)| slots[row] = slot as u32);
            HostRows {
                wide: wide.into(),
                wide_rows: if packed { protected } else { n },
                narrow: narrow.into(),
                narrow_bits: if packed { spec["bits"].as_u64().expect("bits") as u32 } else { 4 },
                scales: ["prot_scale", "deg_scale"].map(|leaf| self.1.need(&part(leaf)).values.clone()).concat(),
                slots: Some(slots),
            }
        } else {
            HostRows {
                wide: self.bytes(&part("q")).into(),
                wide_rows: n,
                narrow: Vec::new().into(),
                narrow_bits: 4,
                scales: self.1.need(&part("scale")).values.clone(),
                slots: None,
            }
        };
        HostWeight { n, k, storage: HostStorage::Rows(rows) }
    }
}
