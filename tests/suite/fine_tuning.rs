//! Training a model that was loaded: all of it takes part, whatever its storage, and what is saved loads again.

use burn::module::{AutodiffModule, Module};
use burn::nn::loss::CrossEntropyLossConfig;
use burn::optim::{AdamWConfig, GradientsParams, Optimizer};
use burn::tensor::{Int, Tensor, TensorData};
use burn_autodiff::Autodiff;
use emberlm::model::{CausalLm, Error, ForwardOptions, LogitsFor, Pretrained};
use emberlm::quant::CompactBackend;
use emberlm::quant::packed::PackedWeight;

use super::fixture::{Fixture, Numbers, all_logits};

/// As a checkpoint stores them, matrices of 16 bits and fewer have no gradients; loaded to be trained, all have.
pub fn a_loaded_model_trains_whole<B: CompactBackend>(device: &B::Device) {
    for name in ["crest_k2", "leanllama_nf4", "nano_compact"] {
        let fixture = Fixture::all().into_iter().find(|fixture| fixture.name() == name).expect(name);
        let stored = fixture.load::<B>(device);
        assert!(!matches!(stored.model.embed_tokens.weight, PackedWeight::Float(_)), "{name}");

        let pretrained = fixture.open().trainable();
        let plan = pretrained.plan::<Autodiff<B>>(device).expect("a plan");
        assert_eq!(plan.weight_bytes(), 4 * plan.parameters(), "{name}");
        let model = pretrained.load::<Autodiff<B>>(device).expect("a model");
        assert_eq!(model.num_params(), plan.parameters(), "{name}");
        let ids = &fixture.case("text").ids()[0];
        let tolerance = 1e-4 * all_logits(&stored, ids).largest();
        all_logits(&model.valid(), ids).assert_close(name, &all_logits(&stored, ids), tolerance);

        let row = &ids[..ids.len().min(24)];
        let (inputs, targets) = (&row[..row.len() - 1], &row[1..]);
        let loss_of = |model: &CausalLm<Autodiff<B>>| {
            let ids = model.ids(inputs).expect("ids").reshape([1, inputs.len()]);
            let options = ForwardOptions { logits: LogitsFor::All, hidden: false };
            let logits = model.forward_uncached(ids, options).expect("a pass").logits.expect("logits");
            let targets: Vec<i64> = targets.iter().map(|&id| i64::from(id)).collect();
            let targets = Tensor::<Autodiff<B>, 1, Int>::from_data(TensorData::from(targets.as_slice()), device);
            CrossEntropyLossConfig::new().init(device).forward(logits, targets)
        };
        let loss = loss_of(&model);
        let before = Numbers::of(&loss).values[0];
        let gradients = GradientsParams::from_grads(loss.backward(), &model);
        let trained = AdamWConfig::new().init().step(1e-3, model, gradients);
        let after = Numbers::of(&loss_of(&trained)).values[0];
        assert!(after < before - 0.05, "{name}: the loss was {before} and is {after}");

        // With the text files of the checkpoint beside it the directory is a model like others.
        let folder = tempfile::tempdir().expect("a folder");
        let to = folder.path().join("trained");
        let trained = trained.valid();
        pretrained.save(&trained, &to).expect("saved");
        let again = Pretrained::open(&to).expect("a model");
        assert_eq!(
            all_logits(&again.load::<B>(device).expect("a model"), ids).values,
            all_logits(&trained, ids).values
        );
        assert_eq!(
            again.text().expect("a tokenizer").vocabulary(),
            pretrained.text().expect("a tokenizer").vocabulary(),
            "{name}"
        );
        assert_eq!(again.generation_config(), pretrained.generation_config(), "{name}");
    }
}

/// What would not load again is not written.
pub fn numbers_that_are_none_are_not_saved<B: CompactBackend>(device: &B::Device) {
    let fixture = Fixture::all().into_iter().find(|fixture| fixture.name() == "crest_k2").expect("a fixture");
    let folder = tempfile::tempdir().expect("a folder");
    let to = folder.path().join("diverged");
    let nothing_left = || std::fs::read_dir(folder.path()).expect("a folder").next().is_none();

    let mut model = fixture.load::<B>(device);
    model.model.norm.weight = model.model.norm.weight.map(|weight| weight * f32::NAN);
    let error = model.save(&to).expect_err("NaN");
    assert!(matches!(error, Error::Tensor(_)) && error.to_string().contains("model.norm.weight"), "{error}");
    assert!(nothing_left());

    let mut model = fixture.load_from::<B>(fixture.open().trainable(), device);
    let PackedWeight::Float(weight) = &mut model.model.embed_tokens.weight else { panic!("not to be trained") };
    *weight = weight.clone().map(|weight| weight / 0.0);
    let error = model.save(&to).expect_err("infinity");
    assert!(error.to_string().contains("model.embed_tokens.weight"), "{error}");
    assert!(nothing_left());
}
