//! Whether a device computes what the processor does.
//!
//! A GPU kernel that does not compile ends no program: its output is zeros. So every operation is run once, on seeded numbers and
//! at small awkward sizes, and compared with the same operation on another backend. Where activations are of a smaller type, both
//! sides get the same rounded numbers, and the other backend goes on in F32.

use burn::module::{Param, ParamId};
use burn::tensor::activation::sigmoid;
use burn::tensor::{Bool, DType, Int, Tensor, TensorData};

use emberlm_backends::random::SplitMix64;

use crate::format;
use crate::halting::{HaltMode, HaltRows, HaltRule, HaltStep, HaltWeights};
use crate::host::{FloatType, HostStorage, HostWeight};
use crate::kv::{CodeActivation, CodeDecoder, KeyValue, KvFormat, KvStore, Rotary};
use crate::modules::{Linear, SwiGlu};
use crate::ops::{AttentionShape, CachedKv, CausalConv, CompactBackend, DeltaGates, DeltaRule, Norm};
use crate::packed::PackedWeight;

/// Largest error allowed in F32, relative to the largest number of a result: devices add in other orders and have other
/// exponentials.
const BOUND: f32 = 1e-4;

/// The same in another type: a result is rounded once, what goes from one kernel to the next inside an operation once more, and
/// matrix instructions round every weight.
fn bound(float: FloatType) -> f32 {
    match float {
        FloatType::F32 => BOUND,
        other => BOUND + 3.0 * other.rounding(),
    }
}

/// One operation, compared.
#[derive(Clone, Debug, PartialEq)]
pub struct Check {
    /// The operation and its sizes.
    pub name: String,
    /// Largest difference, relative to the largest number; NaN when the device gave none.
    pub error: f32,
    /// The largest that is allowed.
    pub bound: f32,
}

impl Check {
    /// Whether the device may be used.
    pub fn passed(&self) -> bool {
        self.error <= self.bound
    }
}

/// How much is tested.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Extent {
    /// Every operation, in one storage, for one token and for a prompt: these have different kernels.
    Short,
    /// Every operation, in one storage, for few tokens and for many.
    OneStorage,
    /// Every operation in every storage, for one token and for many.
    Whole,
}

/// Runs every operation on `B`, with activations of a type that it computes with, and on `C` in F32, and compares.
pub fn self_test<B: CompactBackend, C: CompactBackend>(
    device: &B::Device,
    trusted: &C::Device,
    float: FloatType,
    extent: Extent,
) -> Vec<Check> {
    let mut ours = Results::<B>::new(device, float, float);
    let mut theirs = Results::<C>::new(trusted, float, FloatType::F32);
    ours.run(extent);
    theirs.run(extent);
    compared(ours.results, theirs.results, float)
}

/// The name of an operation and what it gave; nothing where it failed.
type Result = (String, Vec<f32>);

/// One check for each operation that either side ran: what one of them lacks, or has in another place, has failed.
fn compared(ours: Vec<Result>, theirs: Vec<Result>, float: FloatType) -> Vec<Check> {
    let count = ours.len().max(theirs.len());
    let pad = |results: Vec<Result>| results.into_iter().map(Some).chain(std::iter::repeat_with(|| None)).take(count);
    let check = |(ours, theirs): (Option<Result>, Option<Result>)| {
        let same = matches!((&ours, &theirs), (Some((a, _)), Some((b, _))) if a == b);
        let (name, got) = ours.clone().or(theirs.clone()).unwrap_or_default();
        let (_, expected) = theirs.unwrap_or_default();
        Check {
            error: if same { difference(&got, &expected) } else { f32::NAN },
            name: if float == FloatType::F32 { name } else { format!("{float} {name}") },
            bound: bound(float),
        }
    };
    pad(ours).zip(pad(theirs)).map(check).collect()
}

/// NaN where there is nothing to compare: no operation gives no numbers.
fn difference(got: &[f32], expected: &[f32]) -> f32 {
    if got.len() != expected.len() || got.is_empty() {
        return f32::NAN;
    }
    let scale = expected.iter().fold(f32::MIN_POSITIVE, |a, x| a.max(x.abs()));
    got.iter().zip(expected).fold(0.0, |worst, (got, expected)| {
        let error = (got - expected).abs() / scale;
        if error > worst || error.is_nan() { error } else { worst }
    })
}

/// What the operations gave on one backend.
struct Results<'a, B: CompactBackend> {
    device: &'a B::Device,
    /// What activations are rounded to, and what they are kept in.
    rounded: FloatType,
    kept: FloatType,
    random: Random,
    results: Vec<Result>,
}

impl<'a, B: CompactBackend> Results<'a, B> {
    fn new(device: &'a B::Device, rounded: FloatType, kept: FloatType) -> Self {
        Self { device, rounded, kept, random: Random(SplitMix64::new(7)), results: Vec::new() }
    }

    fn run(&mut self, extent: Extent) {
        let rows = match extent {
            Extent::Short => &[1, 20][..],
            Extent::OneStorage | Extent::Whole => &[1, 3, 20, 70],
        };
        for &m in rows {
            self.linears(m, extent);
            self.norms(m);
            self.sequence(m, extent);
            self.halting(m);
        }
    }

    fn keep<const D: usize>(&mut self, name: String, t: Tensor<B, D>) {
        let numbers = t.try_into_data().ok().and_then(|data| data.convert::<f32>().into_vec().ok());
        self.results.push((name, numbers.unwrap_or_default()));
    }

    fn tensor<const D: usize>(&mut self, shape: [usize; D]) -> Tensor<B, D> {
        let values = self.random.floats(shape.iter().product());
        Tensor::from_data(TensorData::new(values, shape), (self.device, DType::F32))
    }

    fn activations<const D: usize>(&mut self, shape: [usize; D]) -> Tensor<B, D> {
        let round: fn(&f32) -> f32 = match self.rounded {
            FloatType::F32 => |&x| x,
            FloatType::F16 => |&x| half::f16::from_f32(x).to_f32(),
            FloatType::Bf16 => |&x| half::bf16::from_f32(x).to_f32(),
        };
        let values: Vec<f32> = self.random.floats(shape.iter().product()).iter().map(round).collect();
        Tensor::from_data(TensorData::new(values, shape), (self.device, DType::from(self.kept)))
    }

    /// Weights in the storages, `[n, k]`.
    fn weights(&mut self, n: usize, k: usize, extent: Extent) -> Vec<(&'static str, HostWeight)> {
        let floats: Vec<f32> = self.random.floats(n * k).iter().map(|x| x / (k as f32).sqrt()).collect();
        let bytes = floats.iter().flat_map(|x| x.to_le_bytes()).collect::<Vec<u8>>();
        let halves = floats.iter().flat_map(|&x| half::f16::from_f32(x).to_le_bytes()).collect::<Vec<u8>>();
        let bfloats = floats.iter().flat_map(|&x| half::bf16::from_f32(x).to_le_bytes()).collect::<Vec<u8>>();
        let dense = |float, bytes: Vec<u8>| HostWeight { n, k, storage: HostStorage::Dense(float, bytes.into()) };
        let source = dense(FloatType::F32, bytes);
        let mut weights = vec![(DEFAULT_STORAGE, format::quantize_nf4(&source, true))];
        if extent == Extent::Whole {
            weights.extend([
                ("F32", Ok(source.clone())),
                ("F16", Ok(dense(FloatType::F16, halves))),
                ("BF16", Ok(dense(FloatType::Bf16, bfloats))),
                ("NF4", format::quantize_nf4(&source, false)),
                ("int8", format::quantize_int8(&source)),
                ("int8 rows", format::quantize_int8_rows(&source)),
                ("4-bit rows", format::quantize_truequant(&source, 4, n / 3)),
                ("2-bit rows", format::quantize_truequant(&source, 2, n / 3)),
            ]);
        }
        // One that cannot be made is no reason to test less: it counts as failed.
        let failed = |name: &str| (format!("{name} [{n}, {k}]"), Vec::new());
        let mut made = Vec::with_capacity(weights.len());
        for (name, weight) in weights {
            match weight {
                Ok(weight) => made.push((name, weight)),
                Err(_) => self.results.push(failed(name)),
            }
        }
        made
    }

    fn linears(&mut self, m: usize, extent: Extent) {
        // Rows that are whole words, and rows that are not.
        for (n, k) in [(72, 136), (37, 50)] {
            let weights = self.weights(n, k, extent);
            let up = self.weights(n, k, extent);
            let down = self.weights(k, n, extent);
            for (((storage, gate), (_, up)), (_, down)) in weights.into_iter().zip(up).zip(down) {
                let what = |operation: &str| format!("{operation}, {storage} [{n}, {k}], {m} rows");
                let packed = |host| PackedWeight::<B>::from_host(host, self.device);
                let [gate, up, down] = [gate, up, down].map(packed);
                let (x, bias) = (self.activations([m, k]), self.tensor([n]));
                let ids = (0..m).map(|i| (i * 7 % n) as i32).collect::<Vec<_>>();
                let ids = Tensor::<B, 1, Int>::from_data(TensorData::new(ids, [m]), self.device);
                self.keep(what("linear"), B::packed_linear(x.clone(), &gate, Some(bias.clone())));
                self.keep(what("embedding"), B::packed_embed(ids, &gate));
                let flags: Vec<bool> = (0..m).map(|i| i % 3 != 1).collect();
                let active = Tensor::<B, 1, Bool>::from_data(TensorData::new(flags, [m]), self.device);
                let layer = |weight| Linear { weight, bias: None };
                let biased = Linear { weight: gate.clone(), bias: Some(Param::initialized(ParamId::new(), bias)) };
                let mut mlp = SwiGlu { gate_proj: layer(gate), up_proj: layer(up), down_proj: layer(down) };
                let together = B::packed_linears(x.clone(), [&mlp.gate_proj, &mlp.up_proj, &biased]);
                self.keep(what("three linears"), Tensor::cat(together.to_vec(), 1));
                self.keep(what("SwiGLU"), B::swiglu_mlp(x.clone(), &mlp, None));
                self.keep(what("SwiGLU of active rows"), B::swiglu_mlp(x.clone(), &mlp, Some(active.clone())));
                // Biases bring a block of its own, whatever the storage.
                if storage == DEFAULT_STORAGE {
                    mlp.up_proj.bias = Some(Param::initialized(ParamId::new(), self.tensor([n])));
                    self.keep(what("SwiGLU with a bias"), B::swiglu_mlp(x, &mlp, Some(active)));
                }
            }
        }
    }

    fn norms(&mut self, m: usize) {
        for h in [48, 640] {
            let (x, z, w) = (self.activations([m, h]), self.activations([m, h]), self.tensor([h]));
            let norm = |unit_offset| Norm { weight: w.clone(), eps: 1e-6, unit_offset };
            self.keep(format!("RMS norm [{m}, {h}]"), B::rms_norm(x.clone(), norm(true)));
            let both = B::rms_norm_all([(x.clone(), norm(true)), (z.clone(), norm(true))]);
            self.keep(format!("two RMS norms [{m}, {h}]"), Tensor::cat(both.to_vec(), 0));
            let (sum, normed) = B::add_rms_norm(x.clone(), z.clone(), norm(false));
            self.keep(format!("sum [{m}, {h}]"), sum);
            self.keep(format!("RMS norm of the sum [{m}, {h}]"), normed);
            self.keep(format!("sigmoid gate [{m}, {h}]"), B::sigmoid_gate(x.clone(), z.clone()));
            self.keep(format!("gated RMS norm [{m}, {h}]"), B::rms_norm_gated(x, z, norm(false)));
        }
        // Heads of queries beside those of their gates.
        let (wide, w) = (self.activations([m, 2, 256]), self.tensor([128]));
        let [x, gate] = [0, 128].map(|at| B::reshape(wide.clone().slice_dim(2, at..at + 128), [2 * m, 128]));
        self.keep(format!("sigmoid gate of {m} rows beside it"), B::sigmoid_gate(x.clone(), gate));
        let norm = Norm { weight: w, eps: 1e-6, unit_offset: true };
        self.keep(format!("RMS norm of {m} rows beside others"), B::rms_norm(x, norm));
    }

    fn sequence(&mut self, s: usize, extent: Extent) {
        let (heads, kv_heads, dim, past) = (4, 2, 32, 5);
        let angles: Tensor<B, 2> = self.tensor([s, dim / 4]);
        let positions = Rotary { cos: angles.clone().cos(), sin: angles.sin() };
        let q = self.activations([1, s, heads, dim]);
        self.keep(format!("rotary of {s} tokens"), B::rotary(q.clone(), &positions));
        let k = self.activations([1, s, kv_heads, dim]);
        let both = B::rotary_all([q.clone(), k], &positions);
        self.keep(format!("rotary of queries and keys of {s} tokens"), Tensor::cat(both.to_vec(), 2));
        for format in [KvFormat::F32, KvFormat::F16, KvFormat::Q8] {
            let mut store = || {
                let new = self.activations([1, past + s, kv_heads, dim]);
                B::store_kv(KvStore::new(format, [1, kv_heads, past + s + 2, dim], self.device), new, 0)
            };
            let (k, v) = (store(), store());
            let shape = AttentionShape { past, kv_heads, scale: (dim as f64).powf(-0.5) };
            let kv = CachedKv { k: KeyValue::Plain((&k).into()), v: KeyValue::Plain((&v).into()), shape };
            let out = B::cached_attention(q.clone(), kv);
            self.keep(format!("attention of {s} tokens, {format:?}"), out);
        }
        self.codes(s, &q, KvFormat::F32, 10);
        if extent != Extent::Short {
            self.codes(s, &q, KvFormat::Q8, 12);
        }
        let (u, tail, taps) = (self.activations([1, s, 24]), self.tensor([1, 3, 24]), self.tensor([24, 1, 4]));
        let (y, tail) = B::causal_conv1d_silu(CausalConv { u, weight: taps }, tail);
        self.keep(format!("convolution of {s} tokens"), y);
        self.keep(format!("tail of the convolution of {s} tokens"), tail);
        let (key_heads, value_heads, dk, dv) = (2, 4, 16, 32);
        let [dt, b] = [(); 2].map(|()| self.tensor([1, s, value_heads]) * 8.0);
        let (dt_bias, a_log) = (self.tensor([value_heads]), self.tensor([value_heads]));
        let (g, beta) = B::delta_gates(DeltaGates { dt, b, dt_bias, a_log });
        self.keep(format!("decay of the delta rule, {s} tokens"), g);
        self.keep(format!("writing strength of the delta rule, {s} tokens"), beta);
        let rule = DeltaRule::<B> {
            q: self.activations([1, s, key_heads, dk]),
            k: self.activations([1, s, key_heads, dk]),
            v: self.activations([1, s, value_heads, dv]),
            g: self.tensor([1, s, value_heads]).abs().neg() * 0.3,
            beta: sigmoid(self.tensor([1, s, value_heads])),
        };
        let state = self.tensor([1, value_heads, dk, dv]);
        let (o, state) = B::gated_delta_rule(rule, state);
        self.keep(format!("delta rule of {s} tokens"), o);
        self.keep(format!("state of the delta rule after {s} tokens"), state);
    }

    /// Values as codes beside keys in a format, with few queries and with many: the decoder's last layer moves.
    fn codes(&mut self, s: usize, q: &Tensor<B, 4>, format: KvFormat, inner: usize) {
        let [_, _, heads, dim] = q.dims();
        let (kv_heads, past, r) = (heads / 2, 5, 6);
        let mut store = |format, heads, width| {
            let new = self.activations([1, past + s, heads, width]);
            B::store_kv(KvStore::new(format, [1, heads, past + s, width], self.device), new, 0)
        };
        let (k, codes) = (store(format, kv_heads, dim), store(KvFormat::F32, 1, r));
        let hidden_values = store(format, 1, inner);
        let mut layer = |n: usize, k: usize| {
            let bytes: Vec<u8> = self.random.floats(n * k).iter().flat_map(|x| x.to_le_bytes()).collect();
            let weight = HostWeight { n, k, storage: HostStorage::Dense(FloatType::F32, bytes.into()) };
            let bias = Param::initialized(ParamId::new(), self.tensor([n]));
            Linear { weight: PackedWeight::<B>::from_host(weight, self.device), bias: Some(bias) }
        };
        let (hidden, output) = (Some(layer(inner, r)), layer(kv_heads * dim, inner));
        let decoder = CodeDecoder { hidden, activation: CodeActivation::Gelu, output };
        let v = KeyValue::Compressed { codes: (&codes).into(), decoder: &decoder, rotary: None };
        let shape = AttentionShape { past, kv_heads, scale: (dim as f64).powf(-0.5) };
        let out = B::cached_attention(q.clone(), CachedKv { k: KeyValue::Plain((&k).into()), v, shape });
        self.keep(format!("attention of {s} tokens to codes, keys in {format:?}"), out);
        let v = KeyValue::Hidden { values: (&hidden_values).into(), output: &decoder.output, rotary: None };
        let out = B::cached_attention(q.clone(), CachedKv { k: KeyValue::Plain((&k).into()), v, shape });
        self.keep(format!("attention of {s} tokens to hidden values in {format:?}"), out);
    }

    fn halting(&mut self, m: usize) {
        let rule =
            HaltRule { mode: HaltMode::Cumulative, weights: HaltWeights::Remainder, enabled: true, threshold: 0.7 };
        // All tokens by one threshold, then each by its own.
        for own in [false, true] {
            let thresholds = (0..m).map(|i| [0.3, 0.7, HaltRows::<B>::NEVER][i % 3]).collect();
            let steps = (0..m).map(|i| 3 - (i / 3 % 3) as i64).collect();
            let rows = own.then(|| HaltRows::new(thresholds, steps, self.device));
            let mut state = B::start_halting(m, 24, self.device);
            for step in 0..3 {
                let state_of_step = self.activations([m, 24]);
                let logit = (step < 2).then(|| self.activations([m]));
                let (next, record) =
                    B::halt_step(state, HaltStep { state: state_of_step, logit, rule, rows: rows.as_ref() });
                self.keep(format!("weights of halting step {step}, {m} tokens"), record.weight);
                state = next;
            }
            self.keep(format!("steps of {m} tokens"), state.steps.float());
            self.keep(format!("mixture of {m} tokens"), state.output);
        }
        let x = self.tensor([m, 1100]);
        let (values, columns) = B::top_k(x, 7);
        self.keep(format!("the largest of {m} rows"), values);
        self.keep(format!("columns of the largest of {m} rows"), columns.float());
    }
}

/// The storage of the short test.
const DEFAULT_STORAGE: &str = "NF4, double quant";

/// Repeatable numbers in `-1..1`.
struct Random(SplitMix64);

impl Random {
    fn floats(&mut self, count: usize) -> Vec<f32> {
        (0..count).map(|_| (self.0.next_word() >> 40) as f32 / (1u32 << 23) as f32 - 1.0).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn result(name: &str, numbers: &[f32]) -> Result {
        (name.into(), numbers.to_vec())
    }

    /// What one side lacks, what it could not read, and what stands in another place all count as failed.
    #[test]
    fn nothing_that_fails_is_dropped() {
        let good = || vec![result("a", &[1.0, 2.0]), result("b", &[3.0])];
        let failed = |ours: Vec<Result>, theirs: Vec<Result>| -> Vec<String> {
            let checks = compared(ours, theirs, FloatType::F32);
            checks.into_iter().filter(|check| !check.passed()).map(|check| check.name).collect()
        };
        let none: [&str; 0] = [];
        assert_eq!(failed(good(), good()), none);
        assert_eq!(failed(good()[..1].to_vec(), good()), ["b"]);
        assert_eq!(failed(good(), good()[..1].to_vec()), ["b"]);
        assert_eq!(failed(vec![], good()), ["a", "b"]);
        assert_eq!(failed(vec![result("a", &[]), result("b", &[3.0])], good()), ["a"]);
        assert_eq!(failed(vec![result("a", &[])], vec![result("a", &[])]), ["a"]);
        assert_eq!(failed(vec![result("b", &[1.0, 2.0])], vec![result("a", &[1.0, 2.0])]), ["b"]);
        assert_eq!(failed(vec![result("a", &[f32::NAN])], vec![result("a", &[1.0])]), ["a"]);
        assert_eq!(failed(vec![result("a", &[1.0, 2.1])], vec![result("a", &[1.0, 2.0])]), ["a"]);
    }
}
