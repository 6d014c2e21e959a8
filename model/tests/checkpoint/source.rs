//! Weights from a source of one's own: what does not have the shape or the bytes that it should is an error that names the tensor.

use burn_ndarray::NdArray;
use emberlm_model::checkpoint::StorageKind;
use emberlm_model::{CausalLm, Error, Pretrained, Result, SourceEntry, WeightOptions, WeightSource};
use emberlm_quant::host::{FloatType, HostStorage, HostWeight};

use crate::support::fixture;

type Backend = NdArray<f32>;

const MATRIX: &str = "model.layers.0.mlp.down_proj.weight";
const VECTOR: &str = "model.norm.weight";

/// Outputs, inputs and bytes of a matrix that should have these outputs and inputs.
type Given = fn(usize, usize) -> (usize, usize, usize);

/// Zeros, but for one tensor.
struct Source {
    matrix: Given,
    vector: fn(usize) -> usize,
}

fn f32s(n: usize, k: usize, bytes: usize) -> HostWeight {
    HostWeight { n, k, storage: HostStorage::Dense(FloatType::F32, vec![0; bytes].into()) }
}

impl WeightSource for Source {
    fn entry(&self, _name: &str, expected: &[usize]) -> Option<SourceEntry> {
        let bytes = 4 * expected.iter().product::<usize>();
        Some(SourceEntry { shape: expected.to_vec(), storage: StorageKind::F32, bytes })
    }

    fn matrix(&self, name: &str, n: usize, k: usize) -> Result<HostWeight> {
        let (n, k, bytes) = if name == MATRIX { (self.matrix)(n, k) } else { (n, k, 4 * n * k) };
        Ok(f32s(n, k, bytes))
    }

    fn vector(&self, name: &str, len: usize) -> Result<Vec<f32>> {
        Ok(vec![0.0; if name == VECTOR { (self.vector)(len) } else { len }])
    }
}

fn load(source: &Source) -> Result<CausalLm<Backend>> {
    let architecture = Pretrained::open(fixture("leanllama")).expect("a model").architecture().clone();
    let (options, device) = (WeightOptions::default(), Default::default());
    let plan = CausalLm::<Backend>::plan(&architecture, source, options, &device).expect("a plan");
    CausalLm::load(architecture, source, options, &plan, &device, None)
}

#[test]
fn sources_are_not_trusted() {
    let whole = Source { matrix: |n, k| (n, k, 4 * n * k), vector: |len| len };
    load(&whole).expect("a model");
    let matrices: [Given; 4] =
        [|n, k| (k, n, 4 * n * k), |n, k| (n / 2, k, 2 * n * k), |n, k| (n, k, 8), |n, k| (n, k, 4 * n * k + 4)];
    let sources = matrices.map(|matrix| (MATRIX, Source { matrix, ..whole }));
    let vectors: [fn(usize) -> usize; 3] = [|_| 0, |len| len - 1, |len| len + 1];
    let vectors = vectors.map(|vector| (VECTOR, Source { vector, ..whole }));
    for (name, source) in sources.into_iter().chain(vectors) {
        let error = load(&source).expect_err(name);
        assert!(matches!(error, Error::Tensor(_)) && error.to_string().contains(name), "{error}");
    }
}
