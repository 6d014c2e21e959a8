//! Saving to and loading from burn-store: modules of plain floats have the names of checkpoints.

use std::collections::BTreeSet;

use burn::module::{Module, ModuleMapper, Param};
use burn::tensor::{Int, Tensor};
use burn_store::{BurnpackStore, ModuleSnapshot, SafetensorsStore};
use emberlm::model::export::{ExportContainer, ExportOptions, MatrixFormat};
use emberlm::model::{Architecture, CausalLm, Pretrained};
use emberlm::quant::CompactBackend;
use emberlm::quant::host::FloatType;
use emberlm::quant::packed::PackedWeight;
use safetensors::SafeTensors;

use super::fixture::{Fixture, all_logits};

/// Sets every number to 0.
struct Erase;

impl<B: CompactBackend> ModuleMapper<B> for Erase {
    fn map_float<const D: usize>(&mut self, param: Param<Tensor<B, D>>) -> Param<Tensor<B, D>> {
        param.map(|t| t.zeros_like())
    }

    fn map_int<const D: usize>(&mut self, param: Param<Tensor<B, D, Int>>) -> Param<Tensor<B, D, Int>> {
        param.map(|t| t.zeros_like())
    }
}

/// A store in memory under checkpoint names.
pub fn saving(architecture: &Architecture) -> SafetensorsStore {
    let store = SafetensorsStore::from_bytes(None).skip_enum_variants(true);
    let names = architecture.field_names();
    names.iter().fold(store, |store, (field, name)| store.with_key_remapping(escaped(field), name))
}

/// What was saved, on its way back to the modules.
fn loading(architecture: &Architecture, bytes: Vec<u8>) -> SafetensorsStore {
    let store = SafetensorsStore::from_bytes(Some(bytes)).skip_enum_variants(true);
    let names = architecture.field_names();
    names.iter().fold(store, |store, (field, name)| store.with_key_remapping(escaped(name), field))
}

fn escaped(name: &str) -> String {
    name.replace('.', r"\.")
}

fn logits<B: CompactBackend>(model: &CausalLm<B>, ids: &[u32]) -> Vec<f32> {
    all_logits(model, ids).values
}

/// Models of plain floats: the names in the file are those of the checkpoint, what is loaded is what was saved, and the file
/// is a checkpoint.
pub fn plain_weights_have_checkpoint_names<B: CompactBackend>(device: &B::Device) {
    for fixture in Fixture::all() {
        let pretrained = fixture.open();
        let architecture = pretrained.architecture();
        let model = fixture.load_from::<B>(fixture.open().trainable(), device);
        let ids = &fixture.case("text").ids()[0];
        let expected = logits(&model, ids);

        let mut store = saving(architecture);
        model.save_into(&mut store).expect("saved");
        let bytes = store.get_bytes().expect("a file");
        let file = SafeTensors::deserialize(&bytes).expect("a safetensors file");
        let found: BTreeSet<&str> = file.names().into_iter().collect();
        let tied = |name: &&str| architecture.tied_head && name.starts_with("lm_head");
        let named: BTreeSet<&str> = pretrained.weights().canonical_names().filter(|name| !tied(name)).collect();
        assert_eq!(found, named, "{}", fixture.name());

        let mut restored = model.clone().map(&mut Erase);
        assert_ne!(logits(&restored, ids), expected, "{}: erased", fixture.name());
        let result = restored.load_from(&mut loading(architecture, bytes.clone())).expect("loaded");
        assert_eq!((result.applied.len(), result.missing.len()), (named.len(), 0), "{}: {result}", fixture.name());
        assert!(result.errors.is_empty() && result.unused.is_empty(), "{}: {result}", fixture.name());
        assert_eq!(logits(&restored, ids), expected, "{}: restored", fixture.name());

        if architecture.config.quantization.is_none() && architecture.config.nanollm_modules.is_empty() {
            let folder = std::env::temp_dir().join(format!("emberlm-store-{}-{}", std::process::id(), fixture.name()));
            std::fs::create_dir_all(&folder).expect("a folder");
            std::fs::copy(fixture.path.join("config.json"), folder.join("config.json")).expect("copied");
            std::fs::write(folder.join("model.safetensors"), &bytes).expect("written");
            let opened = Pretrained::open(&folder).and_then(|p| p.load::<B>(device));
            let got = opened.map(|model| logits(&model, ids)).unwrap_or_else(|e| panic!("{}: {e}", fixture.name()));
            std::fs::remove_dir_all(&folder).expect("removed");
            assert_eq!(got, expected, "{}: opened as a checkpoint", fixture.name());
        }
    }
}

/// Packed weights: words and side data under names of their own.
pub fn packed_weights_come_back<B: CompactBackend>(device: &B::Device) {
    for fixture in Fixture::all() {
        let model = fixture.load::<B>(device);
        let architecture = model.architecture();
        let ids = &fixture.case("text").ids()[0];
        let expected = logits(&model, ids);
        let mut store = saving(architecture);
        model.save_into(&mut store).expect("saved");
        let bytes = store.get_bytes().expect("a file");
        let mut restored = model.clone().map(&mut Erase);
        let result = restored.load_from(&mut loading(architecture, bytes)).expect("loaded");
        assert!(result.errors.is_empty() && result.unused.is_empty(), "{}: {result}", fixture.name());
        assert_eq!(logits(&restored, ids), expected, "{}: restored", fixture.name());
    }
}

/// A record that is exported is read by burn into a model that was never loaded, and one that burn writes is a model directory.
pub fn records_go_both_ways<B: CompactBackend>(device: &B::Device) {
    let scratch = tempfile::tempdir().expect("a directory");
    for fixture in Fixture::all() {
        let name = fixture.name();
        let ids = &fixture.case("text").ids()[0];
        let source = fixture.open();
        let export = |from: &Pretrained, folder: &str, container| {
            let to = scratch.path().join(format!("{name}-{folder}"));
            let options = ExportOptions { dense: Some(FloatType::F32), container, ..ExportOptions::default() };
            let plan = from.export(&options, |_| MatrixFormat::Dense(FloatType::F32)).expect("a plan");
            plan.write(&to, &mut |_| ()).expect("written");
            let written: u64 = std::fs::read_dir(&to)
                .expect("a directory")
                .map(|f| f.expect("a file").metadata().expect("a size").len())
                .sum();
            assert!(written.abs_diff(plan.bytes()) < 2048, "{name}: {written} of {}", plan.bytes());
            to
        };
        let load = |folder: &std::path::Path| {
            let pretrained = Pretrained::open(folder).unwrap_or_else(|error| panic!("{name}: {error}"));
            let model = pretrained.load::<B>(device).unwrap_or_else(|error| panic!("{name}: {error}"));
            (pretrained, model)
        };
        let expected = logits(&load(&export(&source, "dense", ExportContainer::Safetensors)).1, ids);
        let record = export(&source, "record", ExportContainer::Burnpack);
        let (pretrained, model) = load(&record);
        assert_eq!(logits(&model, ids), expected, "{name}: a record as a model directory");

        let mut restored = CausalLm::<B>::init(pretrained.architecture().clone(), device).expect("a model");
        assert_ne!(logits(&restored, ids), expected, "{name}: initial values");
        let result =
            restored.load_from(&mut BurnpackStore::from_file(record.join("model.bpk"))).expect("loaded by burn");
        assert!(result.errors.is_empty() && result.unused.is_empty() && result.missing.is_empty(), "{name}: {result}");
        assert_eq!(logits(&restored, ids), expected, "{name}: a record in burn's hands");

        let saved = scratch.path().join(format!("{name}-saved"));
        std::fs::create_dir(&saved).expect("a folder");
        std::fs::copy(record.join("config.json"), saved.join("config.json")).expect("copied");
        restored.save_into(&mut BurnpackStore::from_file(saved.join("model.bpk"))).expect("saved by burn");
        let (from_burn, model) = load(&saved);
        assert_eq!(logits(&model, ids), expected, "{name}: a record of burn as a model directory");
        let back = export(&from_burn, "back", ExportContainer::Safetensors);
        assert_eq!(logits(&load(&back).1, ids), expected, "{name}: and as safetensors");

        if fixture.load::<B>(device).lm_head.as_ref().is_some_and(|head| !matches!(head.weight, PackedWeight::Float(_)))
        {
            let packed = scratch.path().join(format!("{name}-packed"));
            std::fs::create_dir(&packed).expect("a folder");
            std::fs::copy(record.join("config.json"), packed.join("config.json")).expect("copied");
            fixture
                .load::<B>(device)
                .save_into(&mut BurnpackStore::from_file(packed.join("model.bpk")))
                .expect("saved");
            let error = Pretrained::open(&packed).expect_err("packed words").to_string();
            assert!(
                error.contains("model.bpk") && error.contains("packed weight") && error.contains("CausalLm::save"),
                "{error}"
            );
        }
    }
}
