//! Saving to and loading from burn-store: modules of plain floats have the names of checkpoints.

use std::collections::BTreeSet;

use burn::module::{Module, ModuleMapper, Param};
use burn::tensor::{Int, Tensor};
use burn_store::{ModuleSnapshot, SafetensorsStore};
use emberlm::model::checkpoint::{StorageKind, Weights};
use emberlm::model::{Architecture, CausalLm, Pretrained, Result, SourceEntry, WeightOptions, WeightSource};
use emberlm::quant::CompactBackend;
use emberlm::quant::host::{FloatType, HostStorage, HostWeight};
use safetensors::SafeTensors;

use super::fixture::{Fixture, all_logits};

/// The tensors of a checkpoint as F32, whatever they are stored as.
struct Widened<'a>(&'a Weights);

impl WeightSource for Widened<'_> {
    fn entry(&self, name: &str, _expected: &[usize]) -> Option<SourceEntry> {
        let shape = self.0.entry(name)?.shape.clone();
        let bytes = 4 * shape.iter().product::<usize>();
        Some(SourceEntry { shape, storage: StorageKind::F32, bytes })
    }

    fn optional(&self, name: &str) -> Option<Vec<usize>> {
        Some(self.0.entry(name)?.shape.clone())
    }

    fn matrix(&self, name: &str, n: usize, k: usize) -> Result<HostWeight> {
        let bytes: Vec<u8> = self.0.vector(name)?.into_iter().flat_map(f32::to_le_bytes).collect();
        Ok(HostWeight { n, k, storage: HostStorage::Dense(FloatType::F32, bytes.into()) })
    }

    fn vector(&self, name: &str, _len: usize) -> Result<Vec<f32>> {
        self.0.vector(name)
    }
}

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
        let (architecture, weights) = (pretrained.architecture(), Widened(pretrained.weights()));
        let options = WeightOptions::default();
        let plan = CausalLm::<B>::plan(architecture, &weights, options, device).expect("a plan");
        let model = CausalLm::<B>::load(architecture.clone(), &weights, options, &plan, device, None).expect("a model");
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
