//! The suite on wgpu: WGSL with feature `wgpu`, SPIR-V with feature `vulkan`.

// The parts that are not for GPUs.
#![allow(dead_code)]

#[macro_use]
mod suite;

use emberlm_backends::device::{AutoGraphicsApi, DeviceError, WgpuDevice, init_setup, open_wgpu, wgpu_devices};

type Backend = emberlm::quant::cube::Wgpu;

whole_suite!(gpu, long: "takes minutes where the card is software: for cards");

#[test]
#[ignore = "72 boundaries by 72 sizes of chunks take two hours on a processor beside builds: by hand when caches change, CONTRIBUTING.md says how; five boundaries always run"]
fn cached_is_uncached_everywhere() {
    suite::prefix::cached_is_uncached_everywhere::<Backend>(&Default::default());
}

#[test]
fn a_table_beyond_a_buffer() {
    suite::split::a_table_beyond_a_buffer::<Backend>(&Default::default());
}

/// What one pass over a token of each sequence launches does not depend on how many they are, up to as many as a launch takes. Codes of a
/// compressed side are decoded for each sequence by itself: two products and an activation a side, and a rotation of keys.
#[test]
fn sequences_share_their_launches() {
    use emberlm::model::{ForwardOptions, LogitsFor, Span};
    use emberlm::quant::kv::KvFormat;
    use emberlm_backends::cube::launches_of_thread;

    let names = ["crest_k2", "leanllama", "leanllama_kv", "nano_compact"];
    for fixture in suite::fixture::Fixture::all().into_iter().filter(|fixture| names.contains(&fixture.name().as_str()))
    {
        let model = fixture.open().load::<Backend>(&Default::default()).expect("a model");
        let options = ForwardOptions { logits: LogitsFor::Last, hidden: false };
        let counts = [KvFormat::F16, KvFormat::Q8].map(|format| {
            [1, 2, 8].map(|count| {
                let mut caches: Vec<_> = (0..count).map(|_| model.new_cache(format)).collect();
                for (i, cache) in caches.iter_mut().enumerate() {
                    model.prefill(&[1, 2, 3][..1 + i % 3], cache, 8).expect("a pass");
                }
                let mut spans: Vec<_> = caches.iter_mut().map(|cache| Span::new(1, cache)).collect();
                let ids = model.ids(&vec![7; count]).expect("ids");
                let before = launches_of_thread();
                let _ = model.forward(ids, &mut spans, options).expect("a pass");
                launches_of_thread() - before
            })
        });
        // Scales are buffers of their own: of eight sequences some devices bind half at once.
        assert_eq!(counts[0][..2], counts[1][..2], "{}: in F16 and in 8 bits", fixture.name());
        let counts = counts[0];
        println!("{}: {counts:?} launches for 1, 2 and 8 sequences", fixture.name());
        let architecture = model.architecture();
        let decoders =
            if architecture.kv_compression.is_some() { 7 * architecture.config.num_hidden_layers as u64 } else { 0 };
        for (count, sequences) in counts.iter().zip([1, 2, 8]) {
            assert!(*count <= counts[0] + (sequences - 1) * decoders, "{}: {counts:?}", fixture.name());
        }
    }
}

#[test]
fn a_device_that_is_not_there_is_an_error() {
    let count = wgpu_devices().len();
    let error = open_wgpu(count).expect_err("one more than there are");
    match &error {
        DeviceError::Index { index, names, .. } => assert_eq!((*index, names.len()), (count, count)),
        other => panic!("{other}"),
    }
    assert!(error.to_string().contains(&format!("no wgpu device {count}")), "{error}");
    let (found, _, limits) = open_wgpu(0).expect("the device of these tests");
    assert!(!found.name.is_empty() && limits.max_buffer > 0 && limits.types.contains(&"f32"), "{found:?} {limits:?}");
}

/// A card that is pulled out, or whose driver starts anew, ends what was computed on it: with an error, no panic and no endless wait.
#[test]
fn a_lost_device_is_an_error() {
    use emberlm::model::Error;
    use emberlm::model::engine::{Engine, EngineOptions, EventKind, Request};
    use suite::fixture::Fixture;

    // In a process of its own: the tests of this one share their device.
    const INSIDE: &str = "LOSES_ITS_DEVICE";
    if std::env::var_os(INSIDE).is_none() {
        let mut again = std::process::Command::new(std::env::current_exe().expect("this program"));
        let output = again.args(["--exact", "a_lost_device_is_an_error"]).env(INSIDE, "1").output().expect("it runs");
        let text = String::from_utf8_lossy(&output.stdout);
        assert!(
            output.status.success() && text.contains("1 passed"),
            "{text}{}",
            String::from_utf8_lossy(&output.stderr)
        );
        return;
    }
    let device = WgpuDevice::default();
    let setup = init_setup::<AutoGraphicsApi>(&device, Default::default());
    let fixture = Fixture::all().remove(0);
    let (model, text) = (fixture.load::<Backend>(&device), fixture.open().text().expect("a tokenizer"));
    let mut engine = Engine::new(&model, &text, EngineOptions::default());
    let request = || Request { max_tokens: 8, ..Request::new(fixture.case("long").ids().remove(0)) };
    let failures = |engine: &mut Engine<'_, Backend>| -> Vec<Error> {
        let kinds = engine.step().into_iter().map(|event| event.kind);
        kinds.filter_map(|kind| if let EventKind::Failed(error) = kind { Some(error) } else { None }).collect()
    };
    engine.submit(request()).expect("room for a request");
    assert!(failures(&mut engine).is_empty(), "the device works");
    setup.device.destroy();
    // What was under way fails, and what comes later.
    for _ in 0..2 {
        let errors = failures(&mut engine);
        assert!(matches!(errors[..], [Error::Device(_)]), "{errors:?}");
        engine.submit(request()).expect("room for a request");
    }
}

/// Sizes that configs may have and kernels may not are refused by name when a model is planned, not by a panic when it runs.
#[test]
fn sizes_beyond_the_kernels_are_refused_when_a_model_is_planned() {
    use emberlm::model::{CausalLm, Error, WeightOptions};
    use emberlm_random::{RandomWeights, shapes};

    let folder = std::env::temp_dir().join(format!("emberlm-limits-{}", std::process::id()));
    std::fs::create_dir_all(&folder).expect("a folder");
    let plan = |changes: &[(&str, usize)]| {
        let mut config: serde_json::Value =
            serde_json::from_str(&shapes::shape_json("crest-2b").expect("a known shape")).expect("JSON");
        for (key, value) in changes {
            config[key] = (*value).into();
        }
        let path = folder.join("config.json");
        std::fs::write(&path, config.to_string()).expect("written");
        let architecture = shapes::shape(path.to_str().expect("UTF-8"), &Default::default()).expect("a valid config");
        let weights = RandomWeights::new(&architecture, None, None, 1);
        CausalLm::<Backend>::plan(&architecture, &weights, WeightOptions::default(), &Default::default())
    };
    for (key, most, beyond) in [("head_dim", 1024, 1032), ("head_dim", 512, 514), ("linear_key_head_dim", 1024, 1032)] {
        plan(&[(key, most)]).unwrap_or_else(|error| panic!("{key} {most}: {error}"));
        let error = plan(&[(key, beyond)]).expect_err("beyond the kernels");
        assert!(matches!(&error, Error::Limit { size, found, .. } if *size == key && *found == beyond), "{error}");
        assert!(error.to_string().contains("1024") && error.to_string().contains("the processor takes it"), "{error}");
    }
    std::fs::remove_dir_all(&folder).expect("removed");
}
