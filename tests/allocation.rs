//! A decoded token must not allocate anything as large as a weight or a cache.

use std::alloc::{GlobalAlloc, Layout, System};
use std::sync::atomic::{AtomicUsize, Ordering};

use burn_ndarray::NdArray;
use emberlm::model::config::CrestOverrides;
use emberlm::model::{CausalLm, QuantizeOnLoad, WeightOptions};
use emberlm::quant::kv::KvFormat;
use emberlm_random::{RandomWeights, shapes};

/// The system's allocator, which notes the largest request.
struct Watching;

static LARGEST: AtomicUsize = AtomicUsize::new(0);

// SAFETY: everything is left to the system's allocator.
unsafe impl GlobalAlloc for Watching {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        LARGEST.fetch_max(layout.size(), Ordering::Relaxed);
        // SAFETY: the caller's promise.
        unsafe { System.alloc(layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        LARGEST.fetch_max(layout.size(), Ordering::Relaxed);
        // SAFETY: the caller's promise.
        unsafe { System.alloc_zeroed(layout) }
    }

    unsafe fn realloc(&self, from: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        LARGEST.fetch_max(size, Ordering::Relaxed);
        // SAFETY: the caller's promise.
        unsafe { System.realloc(from, layout, size) }
    }

    unsafe fn dealloc(&self, at: *mut u8, layout: Layout) {
        // SAFETY: the caller's promise.
        unsafe { System.dealloc(at, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Watching = Watching;

/// The largest request while `f` runs.
fn largest(f: impl FnOnce()) -> usize {
    LARGEST.store(0, Ordering::Relaxed);
    f();
    LARGEST.load(Ordering::Relaxed)
}

/// Few, so that few tokens may be the first of a thread.
const THREADS: usize = 2;

#[test]
fn a_decoded_token_allocates_only_its_activations() {
    // One layer of each kind, all families' operations but compression; every matrix and cache is at least 128 KiB.
    let config = r#"{
        "architectures": ["SkyCRESTForCausalLM"], "model_type": "sky-crest", "hidden_size": 512,
        "intermediate_size": 1024, "num_hidden_layers": 2, "full_attention_interval": 2,
        "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 128, "vocab_size": 2048,
        "rms_norm_eps": 1e-6, "max_position_embeddings": 4096, "tie_word_embeddings": true,
        "linear_num_key_heads": 4, "linear_num_value_heads": 4,
        "linear_key_head_dim": 128, "linear_value_head_dim": 128, "linear_conv_kernel_dim": 4,
        "rope_parameters": {"rope_type": "default", "rope_theta": 1e7, "partial_rotary_factor": 0.25},
        "crest": {"num_steps": 2, "gate_shared": true, "gate_hidden": null, "gate_bias": true}
    }"#;
    assert!(emberlm_backends::cpu::set_threads(THREADS));
    let path = std::env::temp_dir().join(format!("emberlm-allocation-{}.json", std::process::id()));
    std::fs::write(&path, config).unwrap();
    let architecture = shapes::shape(path.to_str().unwrap(), &CrestOverrides::default());
    std::fs::remove_file(&path).unwrap();
    let architecture = architecture.unwrap();

    for quantize in [Some(QuantizeOnLoad::Nf4Double), Some(QuantizeOnLoad::Int8), None] {
        let weights = RandomWeights::new(&architecture, quantize, quantize, 7);
        let options = WeightOptions::default();
        let device = Default::default();
        let plan = CausalLm::<NdArray<f32>>::plan(&architecture, &weights, options, &device).unwrap();
        let model =
            CausalLm::<NdArray<f32>>::load(architecture.clone(), &weights, options, &plan, &device, None).unwrap();
        let mut cache = model.new_cache(KvFormat::F16);
        cache.reserve(1024);
        model.prefill(&[1, 2, 3], &mut cache, 512).unwrap();
        model.decode(4, &mut cache).unwrap(); // what is made once, such as the threads
        // A thread makes its scratch at its first task, in whichever token that is.
        let mut tokens: Vec<usize> = (5..13 + THREADS as u32)
            .map(|id| {
                largest(|| {
                    model.decode(id, &mut cache).unwrap();
                })
            })
            .collect();
        tokens.sort_unstable();
        let most = tokens[7];
        // Logits are 8 KiB, the widest activation 6 KiB.
        assert!(most <= 32 << 10, "{quantize:?}: a token allocates {most} bytes at once");
        assert!(most >= 4 * 2048, "{quantize:?}: logits of {most} bytes were not noticed");
    }
}
