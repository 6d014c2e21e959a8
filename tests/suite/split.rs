//! Weights in parts: the same results as whole ones, and caches that would not fit a buffer.

use burn::tensor::{Bool, Int, Tensor, TensorData};
use emberlm::model::cache::LayerCacheShape;
use emberlm::model::config::CrestOverrides;
use emberlm::model::{CausalLm, Error, Result, SourceEntry, WeightOptions, WeightSource};
use emberlm::quant::CompactBackend;
use emberlm::quant::host::{FloatType, HostStorage, HostWeight};
use emberlm::quant::kv::KvFormat;
use emberlm::quant::modules::{Linear, SwiGlu};
use emberlm::quant::packed::PackedWeight;
use emberlm_random::{RandomWeights, shapes};

use super::fixture::{Fixture, all_logits, logit_tolerance};
use super::kernels::{storages, tensor};
use super::random::Random;

/// Of sums in another order: a device may take other rows together.
const TOLERANCE: f32 = 1e-5;

/// Every operation on every storage.
#[allow(dead_code)] // a GPU has too many kernels to compile; models and the table below use them
pub fn operations<B: CompactBackend>(device: &B::Device) {
    let mut random = Random::new(31);
    // Odd widths, blocks that cross rows, and for double quantisation enough rows for two parts (256 blocks of 64 belong together).
    for ([n, k], limit) in [([100, 10], 330), ([96, 192], 1100), ([1200, 64], 9000)] {
        let hosts = storages(&mut random, n, k);
        let down = storages(&mut random, k, n);
        for ((name, host), (_, down)) in hosts.into_iter().zip(down) {
            let what = |operation: &str| format!("{operation} {name} [{n}, {k}] in parts");
            let pair = |host: HostWeight| {
                let whole = PackedWeight::<B>::from_host(host.clone(), device);
                (whole, PackedWeight::<B>::from_host_within(host, limit, device))
            };
            let (whole, split) = pair(host);
            let Ok(split) = split else {
                assert!(name == "nf4-dq" && n * k < 1200 * 64, "{}", what("cannot hold"));
                continue;
            };
            let PackedWeight::Split(parts) = &split else { panic!("{}", what("is not")) };
            assert!(parts.parts.len() > 1, "{}", what("is not"));
            assert_eq!((split.shape(), split.device()), ([n, k], whole.device()), "{}", what("shape of"));
            for m in [1, 3, 17] {
                let x = tensor::<B, 2>(&mut random, [m, k], device);
                let bias = (m != 3).then(|| tensor(&mut random, [n], device));
                let got = B::packed_linear(x.clone(), &split, bias.clone());
                same(&what("linear"), &got, &B::packed_linear(x.clone(), &whole, bias));
                let layers = |weight: &PackedWeight<B>| Linear { weight: weight.clone(), bias: None };
                let [first, second] = B::packed_linears(x.clone(), [&layers(&split), &layers(&whole)]);
                same(&what("linears"), &first, &second);
            }
            // Both sides of every border.
            let ids: Vec<i64> = (0..n as i64).rev().collect();
            let ids = Tensor::<B, 1, Int>::from_data(TensorData::new(ids, [n]), device);
            let (got, expected) = (B::packed_embed(ids.clone(), &split), B::packed_embed(ids, &whole));
            assert_eq!(numbers(&got), numbers(&expected), "{}", what("embedding"));
            let (down, down_split) = pair(down);
            let Ok(down_split) = down_split else { continue };
            let mlp = |gate: &PackedWeight<B>, down: &PackedWeight<B>| {
                let layer = |weight: &PackedWeight<B>| Linear { weight: weight.clone(), bias: None };
                SwiGlu { gate_proj: layer(gate), up_proj: layer(gate), down_proj: layer(down) }
            };
            let x = tensor::<B, 2>(&mut random, [5, k], device);
            let flags = Tensor::<B, 1, Bool>::from_data(TensorData::from([true, false, true, true, false]), device);
            for active in [None, Some(flags)] {
                let got = B::swiglu_mlp(x.clone(), &mlp(&split, &down_split), active.clone());
                same(&what("SwiGLU"), &got, &B::swiglu_mlp(x.clone(), &mlp(&whole, &down), active));
            }
        }
    }
}

/// Models of every family, their matrices in parts.
pub fn models<B: CompactBackend>(device: &B::Device) {
    for fixture in Fixture::all() {
        // Double quantisation keeps more rows together.
        let limit = if fixture.name().contains("leanllama_nf4") { 16 << 10 } else { 4 << 10 };
        let options = WeightOptions { max_buffer: Some(limit), ..WeightOptions::default() };
        let whole = fixture.load::<B>(device);
        let split = fixture.load_from::<B>(fixture.open().weight_options(options), device);
        assert!(matches!(split.model.embed_tokens.weight, PackedWeight::Split(_)), "{}", fixture.name());
        let ids = &fixture.case("text").ids()[0];
        let what = format!("{}: logits of weights in parts", fixture.name());
        let tolerance = logit_tolerance::<B>(whole.architecture().config.family);
        all_logits(&split, ids).assert_close(&what, &all_logits(&whole, ids), tolerance);

        let options = WeightOptions { max_buffer: Some(16), ..options };
        let error = fixture.open().weight_options(options).load::<B>(device).expect_err("too small");
        let message = error.to_string();
        assert!(message.contains("tensor model.embed_tokens.weight: ") && message.contains("end at 16;"), "{message}");
    }
}

/// A cache that would outgrow a buffer is refused by name before it is made; one that just fits is not.
pub fn caches<B: CompactBackend>(device: &B::Device) {
    for fixture in Fixture::all() {
        let model = fixture.load::<B>(device);
        let mut cache = model.new_cache(KvFormat::F32);
        let ids = &fixture.case("text").ids()[0];
        // Slots that are there already always fit.
        let per_token =
            model.architecture().cache_shapes().iter().map(|shape| shape.bytes_per_token(KvFormat::F32)).max();
        let per_token = per_token.expect("layers") / 2;
        let most = 600;
        cache.limit_buffers(most * per_token);
        model.prefill(&ids[..2], &mut cache, 8).expect("room for a prompt");
        let Err(Error::Buffer { tensor, slots, bytes, limit }) = cache.check_room(10 * most) else {
            panic!("{}: room for everything", fixture.name());
        };
        assert_eq!((slots, limit), (10 * most, most * per_token), "{}", fixture.name());
        assert!(bytes > limit && tensor.contains("of layer "), "{tensor}: {bytes}");
        // Growth that would leave room to spare stays within the buffer.
        cache.check_room(most - 1).unwrap_or_else(|e| panic!("{}: {e}", fixture.name()));
        cache.append_random(most - 1 - cache.len()).expect("room");
        assert_eq!(cache.len(), most - 1, "{}", fixture.name());
        let error = model.prefill(&ids[..2], &mut cache, 8).expect_err("no room for two more");
        assert!(matches!(error, Error::Buffer { .. } | Error::Prompt(_)), "{error}");
        first_slots(&model, &ids[..2], per_token);
    }
}

/// An empty cache begins with the slots that fit, and with none where no token does.
fn first_slots<B: CompactBackend>(model: &CausalLm<B>, ids: &[u32], per_token: usize) {
    let family = model.architecture().config.family;
    let mut cache = model.new_cache(KvFormat::F32);
    let usual = cache.bytes_with_room(ids.len());
    let fixed: usize = model.architecture().cache_shapes().iter().map(LayerCacheShape::fixed_bytes).sum();
    cache.limit_buffers((40 * per_token).max(fixed));
    model.prefill(ids, &mut cache, 8).unwrap_or_else(|e| panic!("{family:?}: {e}"));
    assert!(fixed > 0 || cache.bytes() < usual, "{family:?}: {} bytes, and {usual} with room", cache.bytes());

    let mut cache = model.new_cache(KvFormat::F32);
    cache.limit_buffers(per_token / 2);
    assert_eq!(cache.bytes(), 0, "{family:?}");
    let error = model.prefill(ids, &mut cache, 8).expect_err("no room for one token");
    assert!(matches!(&error, Error::Buffer { tensor, .. } if tensor.contains("of layer ")), "{family:?}: {error}");
}

/// A table of F32 rows that repeat with a period which no part has, in place of minutes of random numbers; the rest is random.
struct TiledTable(RandomWeights);

/// Rows of the table until they repeat, a prime.
const PERIOD: usize = 997;

impl WeightSource for TiledTable {
    fn entry(&self, name: &str, expected: &[usize]) -> Option<SourceEntry> {
        self.0.entry(name, expected)
    }

    fn optional(&self, name: &str) -> Option<Vec<usize>> {
        self.0.optional(name)
    }

    fn matrix(&self, name: &str, n: usize, k: usize) -> Result<HostWeight> {
        if !name.starts_with("model.embed_tokens") {
            return self.0.matrix(name, n, k);
        }
        let tile: Vec<u8> = Random::new(5).normal(PERIOD * k).iter().flat_map(|x| (0.02 * x).to_le_bytes()).collect();
        let mut bytes = tile.repeat(n.div_ceil(PERIOD));
        bytes.truncate(4 * n * k);
        Ok(HostWeight { n, k, storage: HostStorage::Dense(FloatType::F32, bytes.into()) })
    }

    fn vector(&self, name: &str, len: usize) -> Result<Vec<f32>> {
        self.0.vector(name, len)
    }
}

/// A tied table of 70,000 rows and 143 MB: past a grid's 65,535 cubes and, on software Vulkan, past a buffer.
#[allow(dead_code)] // for devices whose buffers are that small
pub fn a_table_beyond_a_buffer<B: CompactBackend>(device: &B::Device) {
    let config = std::env::temp_dir().join(format!("emberlm-split-{}.json", std::process::id()));
    let json = r#"{"architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": 512, "intermediate_size": 64,
        "num_hidden_layers": 1, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 16, "vocab_size": 70000,
        "rms_norm_eps": 1e-5, "rope_theta": 10000.0, "max_position_embeddings": 64, "tie_word_embeddings": true}"#;
    std::fs::write(&config, json).expect("written");
    let architecture = shapes::shape(config.to_str().expect("UTF-8"), &CrestOverrides::default()).expect("a shape");
    std::fs::remove_file(&config).expect("removed");
    let source = TiledTable(RandomWeights::new(&architecture, None, None, 3));
    let limit = B::max_buffer(device).unwrap_or(usize::MAX);
    let model = {
        let plan = CausalLm::<B>::plan(&architecture, &source, WeightOptions::default(), device).expect("a plan");
        CausalLm::<B>::load(architecture.clone(), &source, WeightOptions::default(), &plan, device, None)
            .expect("a model")
    };
    let split = matches!(model.model.embed_tokens.weight, PackedWeight::Split(_));
    assert_eq!(split, 4 * 70_000 * 512 > limit, "buffers end at {limit}");
    let trusted = {
        let (options, device) = (WeightOptions::default(), Default::default());
        let plan = CausalLm::<Trusted>::plan(&architecture, &source, options, &device).expect("a plan");
        CausalLm::<Trusted>::load(architecture, &source, options, &plan, &device, None).expect("a model")
    };
    // Rows of both parts and at their border; one token, a few, and enough for tiles.
    let ids: Vec<u32> = [0, 65_535, 65_536, 69_999, 31, 65_534, 65_537, 1_000, 40_000, 69_000, 7, 66_000].into();
    for ids in [&ids[3..4], &ids[..5], &ids] {
        let what = format!("logits of {} tokens of a table of 70,000 rows", ids.len());
        let (got, expected) = (all_logits(&model, ids), all_logits(&trusted, ids));
        got.assert_close(&what, &expected, TOLERANCE);
    }
}

type Trusted = burn_ndarray::NdArray<f32>;

fn numbers<B: CompactBackend, const D: usize>(t: &Tensor<B, D>) -> Vec<f32> {
    t.to_data().convert::<f32>().into_vec().expect("floats")
}

fn same<B: CompactBackend>(what: &str, got: &Tensor<B, 2>, expected: &Tensor<B, 2>) {
    assert_eq!(got.dims(), expected.dims(), "{what}: shape");
    let (got, expected) = (numbers(got), numbers(expected));
    let scale = expected.iter().fold(1f32, |a, x| a.max(x.abs()));
    for (i, (g, e)) in got.iter().zip(&expected).enumerate() {
        assert!((g - e).abs() <= TOLERANCE * scale, "{what}: element {i} is {g}, expected {e} (scale {scale})");
    }
}
