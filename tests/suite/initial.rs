//! Models and layers with initial values: their tensors are those of checkpoints, and layers by themselves compute what they do in a
//! model, and learn.

use std::collections::BTreeMap;

use burn::module::AutodiffModule;
use burn::optim::{AdamWConfig, GradientsParams, Optimizer};
use burn::tensor::backend::Backend;
use burn::tensor::{Distribution, Int, Tensor, TensorData};
use burn_autodiff::Autodiff;
use burn_store::ModuleSnapshot;
use emberlm::model::config::{CodeActivation, CrestOptions, KStage, KvCodec, RopeConfig};
use emberlm::model::{CausalLm, ForwardOptions, LogitsFor};
use emberlm::nn::{AttentionConfig, CrestFfnConfig, GatedDeltaNetConfig, LinearConfig, RotaryEmbedding, SwiGluConfig};
use emberlm::quant::CompactBackend;
use safetensors::SafeTensors;

use super::fixture::{Fixture, Numbers};
use super::store::saving;

/// Every tensor of the list, and no other.
pub fn initial_models_have_the_tensors_of_checkpoints<B: CompactBackend>(device: &B::Device) {
    for fixture in Fixture::all() {
        let architecture = fixture.open().architecture().clone();
        let needed = architecture.tensors().into_iter().filter(|tensor| !tensor.optional);
        let needed: BTreeMap<String, Vec<usize>> = needed.map(|tensor| (tensor.name, tensor.shape)).collect();
        let model = CausalLm::<B>::init(architecture.clone(), device).expect("a model");
        let mut store = saving(&architecture);
        model.save_into(&mut store).expect("saved");
        let bytes = store.get_bytes().expect("a file");
        let file = SafeTensors::deserialize(&bytes).expect("a safetensors file");
        let found = file.iter().map(|(name, view)| (name.to_owned(), view.shape().to_vec())).collect();
        assert_eq!(needed, found, "{}", fixture.name());
    }
}

/// What the layers of a model make one after the other is what the model makes.
pub fn layers_by_themselves_are_the_model<B: CompactBackend>(device: &B::Device) {
    for fixture in Fixture::all() {
        let architecture = fixture.open().architecture().clone();
        let rotary = RotaryEmbedding::new(&architecture.config.rope);
        let vocabulary = architecture.config.vocab_size as i64;
        B::seed(device, 3);
        let model = CausalLm::<B>::init(architecture, device).expect("a model");
        let ids: Vec<i64> = (0..18).map(|i| (7 * i * i + 3) % vocabulary).collect();
        let ids = Tensor::<B, 2, Int>::from_data(TensorData::new(ids, [2, 9]), device);
        let options = ForwardOptions { logits: LogitsFor::All, hidden: false };
        let out = model.forward_uncached(ids.clone(), options).expect("a pass");
        let mut x = model.model.embed_tokens.forward(ids);
        for layer in &model.model.layers {
            x = layer.forward_uncached(x, &rotary).expect("a layer").0;
        }
        let [b, s, h] = x.dims();
        let x = model.model.norm.forward(x).reshape([b * s, h]);
        let (got, expected) = (Numbers::of(&x).values, Numbers::of(&out.final_hidden).values);
        assert!(expected.iter().all(|x| x.is_finite()) && expected.iter().any(|x| *x != 0.0), "{}", fixture.name());
        // The model adds a term in the norm that reads the sum.
        let distance = got.iter().zip(&expected).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
        assert!(distance <= 1e-5, "{}: off by {distance}", fixture.name());
    }
}

const HIDDEN: usize = 16;

/// Every layer learns to give the mean of the vectors seen so far, plus 1: the loss of 30 steps falls to a half.
pub fn initial_layers_learn<B: CompactBackend>(device: &B::Device) {
    Autodiff::<B>::seed(device, 1);
    let rotary = RotaryEmbedding::new(&RopeConfig { theta: 1e4, rotary_dim: 8, scaling: None });
    let rows = |x: Tensor<Autodiff<B>, 3>, f: &dyn Fn(Tensor<Autodiff<B>, 2>) -> Tensor<Autodiff<B>, 2>| {
        let dims = x.dims();
        f(x.reshape([dims[0] * dims[1], HIDDEN])).reshape(dims)
    };

    learns(
        "linear",
        LinearConfig::new(HIDDEN, HIDDEN).init::<Autodiff<B>>(device),
        |layer, x| layer.forward(x),
        device,
    );
    let swiglu = SwiGluConfig::new(HIDDEN, 24).with_bias(true).init::<Autodiff<B>>(device);
    learns("swiglu", swiglu, |layer, x| rows(x, &|x| layer.forward(x)), device);

    let plain = AttentionConfig::new(HIDDEN, 2, 1, 8).with_o_bias(true);
    let attend = |layer: &emberlm::nn::Attention<Autodiff<B>>, x| layer.forward_uncached(x, &rotary).expect("a pass");
    learns("attention", plain.init::<Autodiff<B>>(device), attend, device);
    let gated = plain.clone().with_qkv_bias(true).with_qk_norm(true).with_output_gate(true);
    learns("gated attention", gated.init::<Autodiff<B>>(device), attend, device);
    let codec = KvCodec { code_dim: 4, width: 8, hidden_dim: Some(6), encoder_bias: true, decoder_bias: true };
    let codec = || Some(codec.init::<Autodiff<B>>(CodeActivation::Gelu, device));
    let compressed = plain.init::<Autodiff<B>>(device).with_compressors(codec(), codec(), KStage::PreRope);
    learns("compressed attention", compressed, attend, device);

    let delta_net = GatedDeltaNetConfig::new(HIDDEN, 1, 2, 8, 8).init::<Autodiff<B>>(device);
    learns("delta net", delta_net, |layer, x| layer.forward_uncached(x).expect("a pass"), device);
    for gate_shared in [true, false] {
        let options = CrestOptions { num_steps: 3, gate_shared, gate_hidden: Some(4), ..CrestOptions::default() };
        let crest = CrestFfnConfig::new(HIDDEN, 24, options).init::<Autodiff<B>>(device).expect("a block");
        learns("crest", crest, |layer, x| rows(x, &|x| layer.forward(x).0), device);
    }
}

fn learns<B: CompactBackend, M: AutodiffModule<Autodiff<B>>>(
    name: &str,
    mut layer: M,
    forward: impl Fn(&M, Tensor<Autodiff<B>, 3>) -> Tensor<Autodiff<B>, 3>,
    device: &B::Device,
) {
    let x = Tensor::<Autodiff<B>, 3>::random([2, 6, HIDDEN], Distribution::Normal(0.0, 1.0), device);
    let seen = Tensor::<Autodiff<B>, 1>::from_floats([1.0, 2.0, 3.0, 4.0, 5.0, 6.0], device).reshape([1, 6, 1]);
    let wanted = x.clone().cumsum(1) / seen + 1.0;
    let mut optimizer = AdamWConfig::new().init();
    let mut losses = Vec::new();
    for _ in 0..30 {
        let loss = (forward(&layer, x.clone()) - wanted.clone()).square().mean();
        losses.push(Numbers::of(&loss.clone().inner()).values[0]);
        let gradients = GradientsParams::from_grads(loss.backward(), &layer);
        layer = optimizer.step(0.03, layer, gradients);
    }
    assert!(losses[29] < losses[0] / 2.0, "{name}: {losses:?}");
}
