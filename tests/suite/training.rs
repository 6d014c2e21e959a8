//! Training under `Autodiff`: gradients of every operation against finite differences, and a CREST model that learns.

use burn::module::{AutodiffModule, ModuleVisitor, Param};
use burn::nn::loss::CrossEntropyLossConfig;
use burn::optim::{AdamWConfig, GradientsParams, Optimizer};
use burn::tensor::backend::AutodiffBackend;
use burn::tensor::{Bool, DType, Int, Tensor, TensorData};
use burn_autodiff::Autodiff;
use emberlm::model::checkpoint::StorageKind;
use emberlm::model::config::{CrestOptions, GateInput, ModelConfig, StepInput};
use emberlm::model::{
    Architecture, CausalLm, CrestFfn, ForwardOptions, HaltGate, LogitsFor, Result, SourceEntry, WeightOptions,
    WeightSource,
};
use emberlm::quant::CompactBackend;
use emberlm::quant::format;
use emberlm::quant::halting::{HaltMode, HaltRule, HaltState, HaltStep, HaltWeights};
use emberlm::quant::host::{FloatType, HostStorage, HostWeight};
use emberlm::quant::kv::{CodeActivation, CodeDecoder, KeyValue, KvFormat, KvStore, Rotary};
use emberlm::quant::modules::{Linear, SwiGlu};
use emberlm::quant::ops::{AttentionShape, CachedKv, CausalConv, DeltaRule, Norm};
use emberlm::quant::packed::PackedWeight;

use super::fixture::{Numbers, Rows};
use super::random::Random;

type Gradients<B> = <Autodiff<B> as AutodiffBackend>::Gradients;

/// The gradient of one input.
type ReadGradient<B> = Box<dyn Fn(&Gradients<B>) -> Vec<f32>>;

/// Step of the finite differences. Their error is `h^4` of the curve and f32 rounding divided by `h`.
const STEP: f32 = 0.02;

/// Bound of a directional derivative, relative to the length of the gradient (directions are standard normal).
const BOUND: f64 = 2e-3;

/// The inputs of an operation: made random when they are first asked for, displaced when a difference is taken.
struct Leaves<B: CompactBackend> {
    random: Random,
    device: B::Device,
    values: Vec<Vec<f32>>,
    taken: usize,
    gradients: Vec<ReadGradient<B>>,
}

impl<B: CompactBackend> Leaves<B> {
    fn normal<const D: usize>(&mut self, shape: [usize; D]) -> Tensor<Autodiff<B>, D> {
        let count = shape.iter().product();
        if self.taken == self.values.len() {
            self.values.push(self.random.normal(count));
        }
        self.next(shape)
    }

    fn given<const D: usize>(&mut self, values: &[f32], shape: [usize; D]) -> Tensor<Autodiff<B>, D> {
        if self.taken == self.values.len() {
            self.values.push(values.to_vec());
        }
        self.next(shape)
    }

    fn next<const D: usize>(&mut self, shape: [usize; D]) -> Tensor<Autodiff<B>, D> {
        let data = TensorData::new(self.values[self.taken].clone(), shape);
        let leaf = Tensor::from_data(data, (&self.device, DType::F32)).require_grad();
        let (kept, at) = (leaf.clone(), self.taken);
        self.gradients.push(Box::new(move |gradients| {
            let gradient = kept.grad(gradients).unwrap_or_else(|| panic!("input {at} has no gradient"));
            Numbers::of(&gradient).values
        }));
        self.taken += 1;
        leaf
    }

    fn linear(&mut self, n: usize, k: usize, bias: bool) -> Linear<Autodiff<B>> {
        let weight = PackedWeight::Float(Param::from_tensor(self.normal([n, k])));
        Linear { weight, bias: bias.then(|| Param::from_tensor(self.normal([n]))) }
    }

    fn rewind(&mut self) {
        self.taken = 0;
        self.gradients.clear();
    }
}

/// Outputs of an operation, flattened.
type Outputs<B> = Vec<Tensor<Autodiff<B>, 1>>;

fn flat<B: CompactBackend, const D: usize>(t: Tensor<Autodiff<B>, D>) -> Tensor<Autodiff<B>, 1> {
    let count = t.shape().num_elements();
    t.reshape([count])
}

/// Compares the gradients of a random projection of `f` with finite differences along random directions.
fn check<B: CompactBackend>(what: &str, device: &B::Device, f: impl Fn(&mut Leaves<B>) -> Outputs<B>) {
    let mut leaves = Leaves::<B> {
        random: Random::new(11),
        device: device.clone(),
        values: Vec::new(),
        taken: 0,
        gradients: Vec::new(),
    };
    let outputs = Tensor::cat(f(&mut leaves), 0);
    let mut random = Random::new(12);
    let projection = random.normal(outputs.dims()[0]);
    let weights = Tensor::<Autodiff<B>, 1>::from_data(TensorData::from(projection.as_slice()), (device, DType::F32));
    let gradients = (outputs * weights).sum().backward();
    let gradients: Vec<Vec<f32>> = leaves.gradients.iter().map(|gradient| gradient(&gradients)).collect();

    let mut loss_at = |leaf: usize, direction: &[f32], step: f32| {
        leaves.rewind();
        let kept = leaves.values[leaf].clone();
        leaves.values[leaf].iter_mut().zip(direction).for_each(|(x, d)| *x += step * d);
        let outputs = Numbers::of(&Tensor::cat(f(&mut leaves), 0)).values;
        leaves.values[leaf] = kept;
        outputs.iter().zip(&projection).map(|(&y, &w)| f64::from(y) * f64::from(w)).sum::<f64>()
    };
    for (leaf, gradient) in gradients.iter().enumerate() {
        let length = gradient.iter().map(|&g| f64::from(g).powi(2)).sum::<f64>().sqrt();
        assert!(length > 1e-3, "{what}: input {leaf} has no influence");
        for _ in 0..2 {
            let direction = random.normal(gradient.len());
            let expected: f64 = gradient.iter().zip(&direction).map(|(&g, &d)| f64::from(g) * f64::from(d)).sum();
            let mut slope =
                |h: f32| (loss_at(leaf, &direction, h) - loss_at(leaf, &direction, -h)) / (2.0 * f64::from(h));
            let difference = (4.0 * slope(STEP / 2.0) - slope(STEP)) / 3.0;
            assert!(
                (difference - expected).abs() <= BOUND * length.max(1.0),
                "{what}: along input {leaf} the slope is {difference}, the gradient says {expected} (length {length})"
            );
        }
    }
}

type Ad<B> = Autodiff<B>;

/// Linear layers, plain and over a frozen quantised weight, the embedding and the MLP.
pub fn linear_gradients<B: CompactBackend>(device: &B::Device) {
    check::<B>("linear", device, |leaves| {
        let layer = leaves.linear(5, 7, true);
        vec![flat(layer.forward(leaves.normal([3, 7])))]
    });
    check::<B>("linear over NF4", device, |leaves| {
        let bytes: Vec<u8> = Random::new(3).normal(5 * 64).iter().flat_map(|x| x.to_le_bytes()).collect();
        let source = HostWeight { n: 5, k: 64, storage: HostStorage::Dense(FloatType::F32, bytes.into()) };
        let packed = format::quantize_nf4(&source, true).expect("finite numbers");
        let weight = PackedWeight::<Ad<B>>::from_host(packed, device);
        vec![flat(Ad::<B>::packed_linear(leaves.normal([3, 64]), &weight, None))]
    });
    check::<B>("embedding", device, |leaves| {
        let table = PackedWeight::Float(Param::from_tensor(leaves.normal([6, 4])));
        let ids = Tensor::<Ad<B>, 1, Int>::from_data(TensorData::from([2i64, 5, 2]), device);
        vec![flat(Ad::<B>::packed_embed(ids, &table))]
    });
    for active in [None, Some([true, false, true])] {
        check::<B>("swiglu", device, |leaves| {
            let mlp = SwiGlu {
                gate_proj: leaves.linear(6, 5, true),
                up_proj: leaves.linear(6, 5, false),
                down_proj: leaves.linear(5, 6, false),
            };
            let active = active.map(|a| Tensor::<Ad<B>, 1, Bool>::from_data(TensorData::from(a), device));
            vec![flat(Ad::<B>::swiglu_mlp(leaves.normal([3, 5]), &mlp, active))]
        });
    }
}

/// Norms and rotary positions.
pub fn norm_gradients<B: CompactBackend>(device: &B::Device) {
    for unit_offset in [false, true] {
        check::<B>("rms_norm", device, |leaves| {
            let x = leaves.normal([3, 8]);
            vec![flat(Ad::<B>::rms_norm(x, Norm { weight: leaves.normal([8]), eps: 1e-6, unit_offset }))]
        });
    }
    check::<B>("add_rms_norm", device, |leaves| {
        let (x, y) = (leaves.normal([3, 8]), leaves.normal([3, 8]));
        let norm = Norm { weight: leaves.normal([8]), eps: 1e-6, unit_offset: true };
        let (sum, normed) = Ad::<B>::add_rms_norm(x, y, norm);
        vec![flat(sum), flat(normed)]
    });
    check::<B>("sigmoid_gate", device, |leaves| {
        vec![flat(Ad::<B>::sigmoid_gate(leaves.normal([3, 8]), leaves.normal([3, 8])))]
    });
    check::<B>("rms_norm_gated", device, |leaves| {
        let (x, z) = (leaves.normal([3, 8]), leaves.normal([3, 8]));
        let norm = Norm { weight: leaves.normal([8]), eps: 1e-6, unit_offset: false };
        vec![flat(Ad::<B>::rms_norm_gated(x, z, norm))]
    });
    check::<B>("rotary", device, |leaves| {
        let angles: Tensor<Ad<B>, 2> = leaves.normal([4, 3]);
        let rotary = Rotary { cos: angles.clone().cos(), sin: angles.sin() };
        vec![flat(Ad::<B>::rotary(leaves.normal([2, 4, 2, 8]), &rotary))]
    });
}

/// Attention over stored keys and values, and over codes.
pub fn attention_gradients<B: CompactBackend>(device: &B::Device) {
    let (b, past, s, heads, kv_heads, hd) = (2, 2, 3, 4, 2, 4);
    let t = past + s;
    let shape = AttentionShape { past, kv_heads, scale: 0.5 };
    let store = |new| Ad::<B>::store_kv(KvStore::new(KvFormat::F32, [b, kv_heads, t + 1, hd], device), new, 0);
    check::<B>("attention", device, |leaves| {
        let (k, v) = (store(leaves.normal([b, t, kv_heads, hd])), store(leaves.normal([b, t, kv_heads, hd])));
        let q = leaves.normal([b, s, heads, hd]);
        let kv = CachedKv { k: KeyValue::Plain((&k).into()), v: KeyValue::Plain((&v).into()), shape };
        vec![flat(Ad::<B>::cached_attention(q, kv))]
    });
    check::<B>("attention over codes", device, |leaves| {
        let empty = KvStore::<Ad<B>>::new(KvFormat::F32, [b, 1, t, 3], device);
        let codes = Ad::<B>::store_kv(empty, leaves.normal([b, t, 1, 3]), 0);
        let decoder = CodeDecoder {
            hidden: Some(leaves.linear(5, 3, true)),
            activation: CodeActivation::Gelu,
            output: leaves.linear(kv_heads * hd, 5, true),
        };
        let k = store(leaves.normal([b, t, kv_heads, hd]));
        let v = KeyValue::Compressed { codes: (&codes).into(), decoder: &decoder, rotary: None };
        let q = leaves.normal([b, s, heads, hd]);
        vec![flat(Ad::<B>::cached_attention(q, CachedKv { k: KeyValue::Plain((&k).into()), v, shape }))]
    });
}

/// Keys and values that are asked to be kept in half precision: halves are integers, through which no gradient passes, so they
/// are kept in F32 where gradients are recorded.
pub fn a_cache_of_halves_keeps_gradients<B: CompactBackend>(device: &B::Device) {
    let (b, past, s, heads, kv_heads, hd) = (1, 2, 3, 4, 2, 4);
    let t = past + s;
    let shape = AttentionShape { past, kv_heads, scale: 0.5 };
    let store = |new| Ad::<B>::store_kv(KvStore::new(KvFormat::F16, [b, kv_heads, t + 1, hd], device), new, 0);
    check::<B>("attention over halves", device, |leaves| {
        let (k, v) = (store(leaves.normal([b, t, kv_heads, hd])), store(leaves.normal([b, t, kv_heads, hd])));
        let q = leaves.normal([b, s, heads, hd]);
        let kv = CachedKv { k: KeyValue::Plain((&k).into()), v: KeyValue::Plain((&v).into()), shape };
        vec![flat(Ad::<B>::cached_attention(q, kv))]
    });
    // Without gradients they stay halves.
    assert!(matches!(KvStore::<B>::new(KvFormat::F16, [1, 1, 1, 2], device), KvStore::F16(_)));

    let model = new_model::<B>(device);
    let gradients = |format| {
        let options = ForwardOptions { logits: LogitsFor::All, hidden: false };
        let out = Rows::new(&model, format, &[0]).pass(&[&[3, 1, 4, 1, 5]], options);
        let gradients = GradientsParams::from_grads(out.logits.expect("logits").square().mean().backward(), &model);
        let mut found = Norms { gradients: &gradients, norms: Vec::new() };
        burn::module::Module::<Ad<B>>::visit(&model, &mut found);
        found.norms
    };
    let (exact, half) = (gradients(KvFormat::F32), gradients(KvFormat::F16));
    assert!(exact.iter().all(|&norm| norm > 0.0), "a parameter without a gradient: {exact:?}");
    assert_eq!(half, exact);
}

/// The length of the gradient of every parameter.
struct Norms<'a> {
    gradients: &'a GradientsParams,
    norms: Vec<f32>,
}

impl<B: AutodiffBackend> ModuleVisitor<B> for Norms<'_> {
    fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<B, D>>) {
        let gradient = self.gradients.get::<B::InnerBackend, D>(param.id);
        let norm =
            gradient.map(|g| g.square().sum().into_data().convert::<f32>().into_vec::<f32>().expect("a number")[0]);
        self.norms.push(norm.unwrap_or(0.0));
    }
}

/// The convolution, and the delta rule in one step and over more than one chunk.
pub fn delta_net_gradients<B: CompactBackend>(device: &B::Device) {
    check::<B>("conv", device, |leaves| {
        let (u, tail, weight) = (leaves.normal([2, 5, 3]), leaves.normal([2, 3, 3]), leaves.normal([3, 1, 4]));
        let (y, tail) = Ad::<B>::causal_conv1d_silu(CausalConv { u, weight }, tail);
        vec![flat(y), flat(tail)]
    });
    for s in [1, 2, 70] {
        check::<B>(&format!("delta rule of {s}"), device, |leaves| {
            let (b, hk, hv, dk, dv) = (1, 1, 2, 4, 3);
            let rule = DeltaRule {
                q: leaves.normal([b, s, hk, dk]),
                k: leaves.normal([b, s, hk, dk]),
                v: leaves.normal([b, s, hv, dv]),
                // Away from 0, so that a displacement does not change the sign.
                g: -(leaves.normal([b, s, hv]) * 0.1 + 0.7),
                beta: burn::tensor::activation::sigmoid(leaves.normal([b, s, hv])),
            };
            let (o, state) = Ad::<B>::gated_delta_rule(rule, leaves.normal([b, hv, dk, dv]));
            vec![flat(o), flat(state)]
        });
    }
}

/// The mixture of the steps of a token, for tokens that stop at the first, second and last step; none near its threshold.
pub fn halting_gradients<B: CompactBackend>(device: &B::Device) {
    for weights in [HaltWeights::Remainder, HaltWeights::Truncate, HaltWeights::State] {
        for enabled in [true, false] {
            // The last state alone does not depend on the gates, and without halting on no other state.
            let mixes = weights != HaltWeights::State;
            if !mixes && !enabled {
                continue;
            }
            let rule = HaltRule { mode: HaltMode::Cumulative, weights, enabled, threshold: 0.6 };
            check::<B>(&format!("halting {rule:?}"), device, |leaves| {
                let mut state = HaltState::<Ad<B>>::new(3, 4, device);
                let gates = [[2.5, -1.5, -2.0], [0.3, 2.0, -2.0]];
                for k in 0..3 {
                    let s = leaves.normal([3, 4]);
                    let logit = gates.get(k).map(|gate| match mixes {
                        true => leaves.given(gate, [3]),
                        false => Tensor::from_data(TensorData::from(*gate), (device, DType::F32)),
                    });
                    state = Ad::<B>::halt_step(state, HaltStep { state: s, logit, rule, rows: None }).0;
                }
                vec![flat(state.output)]
            });
        }
    }
}

/// A whole CREST block that runs every step, as it is trained: its output, and the expected steps of every token.
pub fn crest_gradients<B: CompactBackend>(device: &B::Device) {
    for step_input in [StepInput::Parallel, StepInput::Sequential, StepInput::Chained, StepInput::Refine] {
        for gate_input in [GateInput::State, GateInput::Input] {
            check::<B>(&format!("crest {step_input:?} {gate_input:?}"), device, |leaves| {
                let mut mlp = || SwiGlu {
                    gate_proj: leaves.linear(5, 4, false),
                    up_proj: leaves.linear(5, 4, false),
                    down_proj: leaves.linear(4, 5, false),
                };
                // Differences cannot follow more steps in a row.
                let steps = vec![mlp(), mlp()];
                let gates = vec![HaltGate { hidden: None, output: leaves.linear(1, 4, true) }];
                let options = CrestOptions {
                    num_steps: 2,
                    step_input,
                    gate_input,
                    gate_shared: false,
                    halt_enabled: false,
                    ..Default::default()
                };
                let block = CrestFfn::new(steps, gates, options).expect("a block");
                let (y, depth) = block.forward(leaves.normal([3, 4]) * 0.6);
                let expected = (1..).zip(depth.weights).map(|(k, p)| p * k as f32).reduce(|a, b| a + b);
                vec![flat(y), expected.expect("steps")]
            });
        }
    }
}

const CONFIG: &str = r#"{
    "architectures": ["SkyCRESTForCausalLM"], "model_type": "sky-crest", "vocab_size": 40, "hidden_size": 24,
    "intermediate_size": 20, "num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 16,
    "layer_types": ["linear_attention", "full_attention"], "linear_conv_kernel_dim": 4, "linear_key_head_dim": 8,
    "linear_num_key_heads": 1, "linear_num_value_heads": 2, "linear_value_head_dim": 8, "max_position_embeddings": 256,
    "rms_norm_eps": 1e-6, "tie_word_embeddings": true, "hidden_act": "silu", "attn_output_gate": true,
    "rope_parameters": {"rope_type": "default", "rope_theta": 10000, "partial_rotary_factor": 0.25}
}"#;

/// Random weights of the usual sizes: matrices by the root of their width, norms that change nothing.
struct Initial;

impl WeightSource for Initial {
    fn entry(&self, _name: &str, expected: &[usize]) -> Option<SourceEntry> {
        let bytes = 4 * expected.iter().product::<usize>();
        Some(SourceEntry { shape: expected.to_vec(), storage: StorageKind::F32, bytes })
    }

    fn matrix(&self, name: &str, n: usize, k: usize) -> Result<HostWeight> {
        let scale = (k as f32).powf(-0.5);
        let bytes: Vec<u8> = seeded(name, n * k).iter().flat_map(|x| (x * scale).to_le_bytes()).collect();
        Ok(HostWeight { n, k, storage: HostStorage::Dense(FloatType::F32, bytes.into()) })
    }

    fn vector(&self, name: &str, len: usize) -> Result<Vec<f32>> {
        Ok(match name {
            name if name.ends_with("linear_attn.norm.weight") => vec![1.0; len],
            name if name.ends_with("norm.weight") => vec![0.0; len],
            name => seeded(name, len).iter().map(|x| 0.3 * x).collect(),
        })
    }
}

fn seeded(name: &str, count: usize) -> Vec<f32> {
    Random::new(name.bytes().fold(7, |seed, byte| seed * 31 % 1_000_003 + u64::from(byte))).normal(count)
}

fn new_model<B: CompactBackend>(device: &B::Device) -> CausalLm<Ad<B>> {
    let config = ModelConfig::from_json("config.json".as_ref(), CONFIG.as_bytes()).expect("a config");
    let options =
        CrestOptions { num_steps: 3, step_input: StepInput::Refine, gate_shared: false, ..Default::default() };
    let architecture = Architecture { config, crest: Some(options), kv_compression: None, tied_head: true };
    let options = WeightOptions::default();
    let plan = CausalLm::<Ad<B>>::plan(&architecture, &Initial, options, device).expect("a plan");
    CausalLm::load(architecture, &Initial, options, &plan, device, None).expect("a model")
}

/// Logits of every position, `[b * s, vocabulary]`.
fn logits<B: CompactBackend>(model: &CausalLm<B>, rows: &[Vec<u32>]) -> Tensor<B, 2> {
    let options = ForwardOptions { logits: LogitsFor::All, hidden: false };
    let ids = model.ids(&rows.concat()).expect("ids").reshape([rows.len(), rows[0].len()]);
    model.forward_uncached(ids, options).expect("a pass").logits.expect("logits")
}

/// Parameters that an optimiser step leaves where they were.
struct Untouched<'a> {
    gradients: &'a GradientsParams,
    parameters: usize,
    without: usize,
}

impl<B: AutodiffBackend> ModuleVisitor<B> for Untouched<'_> {
    fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<B, D>>) {
        self.parameters += 1;
        let gradient = self.gradients.get::<B::InnerBackend, D>(param.id);
        let moves = gradient.is_some_and(|g| g.abs().sum().into_scalar().to_string() != "0");
        self.without += usize::from(!moves);
    }
}

/// One AdamW step on one batch, longer than a chunk of the delta rule, lowers its loss; every parameter takes part.
pub fn one_step_lowers_the_loss<B: CompactBackend>(device: &B::Device) {
    let model = new_model::<B>(device);
    let rows: Vec<Vec<u32>> = (0..2).map(|b| (0..70).map(|i| (i * i + 7 * b + i / 3) % 40).collect()).collect();
    let inputs: Vec<Vec<u32>> = rows.iter().map(|row| row[..69].to_vec()).collect();
    let targets: Vec<i64> = rows.iter().flat_map(|row| row[1..].iter().map(|&id| i64::from(id))).collect();
    let loss_of = |model: &CausalLm<Ad<B>>| {
        let targets = Tensor::<Ad<B>, 1, Int>::from_data(TensorData::from(targets.as_slice()), device);
        CrossEntropyLossConfig::new().init(device).forward(logits(model, &inputs), targets)
    };
    let loss = loss_of(&model);
    let before = Numbers::of(&loss).values[0];
    let gradients = GradientsParams::from_grads(loss.backward(), &model);

    let mut untouched = Untouched { gradients: &gradients, parameters: 0, without: 0 };
    burn::module::Module::<Ad<B>>::visit(&model, &mut untouched);
    // Two norms and the mixer, three MLPs and two gates per layer; the embedding and the last norm.
    let (delta_net, attention, mlps, gates) = (9, 6, 9, 4);
    assert_eq!(untouched.parameters, 2 * (2 + mlps + gates) + delta_net + attention + 2);
    assert_eq!(untouched.without, 0, "parameters without a gradient");

    let mut optimizer = AdamWConfig::new().init();
    let trained = optimizer.step(2e-3, model.clone(), gradients);
    let after = Numbers::of(&loss_of(&trained)).values[0];
    assert!(after < before - 0.05, "the loss was {before} and is {after}");

    // The trained model runs on the kernels as it does under `Autodiff`.
    let plain = Numbers::of(&logits(&trained.valid(), &inputs));
    let expected = Numbers::of(&logits(&trained, &inputs));
    plain.assert_close("logits of the trained model", &expected, 1e-4);
    assert_ne!(plain.values, Numbers::of(&logits(&model.valid(), &inputs)).values, "nothing was trained");
}
