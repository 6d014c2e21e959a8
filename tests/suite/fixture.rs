//! Fixture folders: checkpoints with what a correct implementation computes from them.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use burn::tensor::Tensor;
use emberlm::model::cache::Cache;
use emberlm::model::config::Family;
use emberlm::model::{CausalLm, ForwardOptions, ForwardOutput, LogitsFor, Pretrained, Span};
use emberlm::quant::CompactBackend;
use emberlm::quant::kv::KvFormat;
use safetensors::{Dtype, SafeTensors};

/// Named tensors of a `.safetensors` file, as numbers.
pub struct Tensors(BTreeMap<String, Numbers>);

/// Numbers in row-major order.
#[derive(Clone, Debug)]
pub struct Numbers {
    pub shape: Vec<usize>,
    pub values: Vec<f32>,
}

impl Tensors {
    pub fn read(path: &Path) -> Self {
        let bytes = std::fs::read(path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
        let file = SafeTensors::deserialize(&bytes).expect("a safetensors file");
        let numbers = |view: &safetensors::tensor::TensorView<'_>| -> Vec<f32> {
            let data = view.data();
            match view.dtype() {
                Dtype::F32 => data.as_chunks().0.iter().map(|&b| f32::from_le_bytes(b)).collect(),
                Dtype::F16 => data.as_chunks().0.iter().map(|&b| half::f16::from_le_bytes(b).to_f32()).collect(),
                Dtype::BF16 => data.as_chunks().0.iter().map(|&b| half::bf16::from_le_bytes(b).to_f32()).collect(),
                Dtype::I32 => data.as_chunks().0.iter().map(|&b| i32::from_le_bytes(b) as f32).collect(),
                Dtype::I64 => data.as_chunks().0.iter().map(|&b| i64::from_le_bytes(b) as f32).collect(),
                Dtype::U8 => data.iter().map(|&b| f32::from(b)).collect(),
                Dtype::I8 => data.iter().map(|&b| f32::from(b as i8)).collect(),
                other => panic!("a golden of {other:?}"),
            }
        };
        let tensors = file.tensors().into_iter();
        Self(tensors.map(|(name, v)| (name, Numbers { shape: v.shape().to_vec(), values: numbers(&v) })).collect())
    }

    pub fn get(&self, name: &str) -> Option<&Numbers> {
        self.0.get(name)
    }

    pub fn need(&self, name: &str) -> &Numbers {
        self.get(name).unwrap_or_else(|| panic!("no golden {name}"))
    }

    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.0.keys().map(String::as_str)
    }
}

impl Numbers {
    pub fn of<B: CompactBackend, const D: usize>(t: &Tensor<B, D>) -> Self {
        let values = t.to_data().convert::<f32>().into_vec().expect("floats");
        Self { shape: t.dims().to_vec(), values }
    }

    pub fn ids(&self) -> Vec<u32> {
        self.values.iter().map(|&x| x as u32).collect()
    }

    pub fn indices(&self) -> Vec<usize> {
        self.values.iter().map(|&x| x as usize).collect()
    }

    /// The slices at `positions` of dimension 1 of `[b, t, d]`.
    pub fn at_positions(&self, positions: &[usize]) -> Self {
        let [b, t, d] = self.shape[..] else { panic!("a tensor of rank 3, not {:?}", self.shape) };
        let rows = (0..b).flat_map(|b| positions.iter().map(move |p| (b * t + p) * d));
        let values = rows.flat_map(|start| self.values[start..start + d].iter().copied()).collect();
        Self { shape: vec![b, positions.len(), d], values }
    }

    /// `[tokens, ..]` of sequences one after the other as `[b, t, ..]`, each at the end of its row of `t`, 0 before it.
    pub fn in_rows(&self, lengths: &[usize], t: usize) -> Self {
        let width: usize = self.shape[1..].iter().product();
        let mut values = Vec::with_capacity(lengths.len() * t * width);
        let mut rest = self.values.as_slice();
        for length in lengths {
            let (row, after) = rest.split_at(length * width);
            values.extend(std::iter::repeat_n(0.0, (t - length) * width).chain(row.iter().copied()));
            rest = after;
        }
        assert!(rest.is_empty(), "{} numbers too many", rest.len());
        let shape = [&[lengths.len(), t], &self.shape[1..]].concat();
        Self { shape, values }
    }

    pub fn largest(&self) -> f32 {
        self.values.iter().fold(0.0, |a, x| a.max(x.abs()))
    }

    /// Panics, naming the tensor and how far it is off, when an element differs by more than `tolerance`.
    pub fn assert_close(&self, what: &str, expected: &Self, tolerance: f32) {
        assert_eq!(self.shape, expected.shape, "{what}: shape");
        let worst = self.values.iter().zip(&expected.values).enumerate().map(|(i, (a, b))| (i, (a - b).abs()));
        let worst = worst.max_by(|a, b| a.1.partial_cmp(&b.1).unwrap_or(std::cmp::Ordering::Greater));
        if let Some((i, difference)) = worst {
            let (got, expected) = (self.values[i], expected.values[i]);
            assert!(
                difference <= tolerance,
                "{what} drifts: element {i} of {:?} is {got}, expected {expected}; off by {difference:e}, allowed {tolerance:e}",
                self.shape
            );
        }
    }
}

/// A file of the fixtures that come with the project.
pub fn own(file: &str) -> PathBuf {
    // The package is the root of the project, or a directory in it. A test binary that was copied to another machine runs in the root
    // of a copy of the project.
    let package = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut roots = package.ancestors().take(2).chain([Path::new("")]).map(|root| root.join("tests/fixtures"));
    roots.find(|folder| folder.exists()).expect("tests/fixtures").join(file)
}

/// A folder with a checkpoint and its goldens.
pub struct Fixture {
    pub path: PathBuf,
    pub golden: Tensors,
}

impl Fixture {
    /// The project's fixtures, and the folders below the one that `EMBERLM_FIXTURES` names.
    pub fn all() -> Vec<Self> {
        let own = own("");
        let further = std::env::var_os("EMBERLM_FIXTURES").filter(|path| !path.is_empty()).map(PathBuf::from);
        let mut folders: Vec<PathBuf> = [Some(own), further]
            .into_iter()
            .flatten()
            .flat_map(|root| std::fs::read_dir(&root).unwrap_or_else(|e| panic!("{}: {e}", root.display())))
            .map(|entry| entry.expect("a directory entry").path())
            .filter(|path| path.join("golden.safetensors").exists())
            .collect();
        folders.sort();
        assert!(folders.len() >= 7, "the fixtures are missing: {folders:?}");
        folders.into_iter().map(|path| Self { golden: Tensors::read(&path.join("golden.safetensors")), path }).collect()
    }

    pub fn name(&self) -> String {
        self.path.file_name().unwrap_or_default().to_string_lossy().into_owned()
    }

    pub fn open(&self) -> Pretrained {
        Pretrained::open(&self.path).unwrap_or_else(|e| panic!("{}: {e}", self.name()))
    }

    pub fn load<B: CompactBackend>(&self, device: &B::Device) -> CausalLm<B> {
        self.load_from(self.open(), device)
    }

    /// With other options, which `pretrained` has.
    pub fn load_from<B: CompactBackend>(&self, pretrained: Pretrained, device: &B::Device) -> CausalLm<B> {
        pretrained.load(device).unwrap_or_else(|e| panic!("{}: {e}", self.name()))
    }

    /// Names of the prompts, as `chat` or `long`.
    pub fn cases(&self) -> Vec<String> {
        let names = self.golden.names().filter_map(|name| name.strip_suffix(".input_ids"));
        names.map(str::to_string).collect()
    }

    pub fn case(&self, name: &str) -> Case<'_> {
        Case { fixture: self, name: name.to_string() }
    }
}

/// One prompt of a fixture with its goldens.
pub struct Case<'a> {
    pub fixture: &'a Fixture,
    pub name: String,
}

impl Case<'_> {
    pub fn label(&self, what: &str) -> String {
        format!("{} {} {what}", self.fixture.name(), self.name)
    }

    pub fn get(&self, key: &str) -> Option<&Numbers> {
        self.fixture.golden.get(&format!("{}.{key}", self.name))
    }

    pub fn need(&self, key: &str) -> &Numbers {
        self.fixture.golden.need(&format!("{}.{key}", self.name))
    }

    /// Rows of token ids, all of one length.
    pub fn ids(&self) -> Vec<Vec<u32>> {
        let ids = self.need("input_ids");
        ids.ids().chunks(ids.shape[1]).map(<[u32]>::to_vec).collect()
    }

    /// The tokens of each row without its padding.
    pub fn sequences(&self) -> Vec<Vec<u32>> {
        self.ids().iter().zip(self.left_pad()).map(|(row, pad)| row[pad..].to_vec()).collect()
    }

    /// 1 for a token, 0 for padding: `[b * t]`.
    pub fn mask(&self) -> Vec<f32> {
        self.need("attention_mask").values.clone()
    }

    /// Leading padding of each row.
    pub fn left_pad(&self) -> Vec<usize> {
        let mask = self.need("attention_mask");
        mask.values.chunks(mask.shape[1]).map(|row| row.iter().take_while(|&&x| x == 0.0).count()).collect()
    }
}

/// Passes over several sequences, one span for each that takes part.
pub struct Rows<'a, B: CompactBackend> {
    pub model: &'a CausalLm<B>,
    pub caches: Vec<Cache<B>>,
}

impl<'a, B: CompactBackend> Rows<'a, B> {
    /// Empty caches; the positions of sequence `i` begin at `begin[i]`.
    pub fn new(model: &'a CausalLm<B>, format: KvFormat, begin: &[usize]) -> Self {
        let cache = |&position: &usize| {
            let mut cache = model.new_cache(format);
            cache.begin_at(position).expect("an empty cache");
            cache
        };
        Self { model, caches: begin.iter().map(cache).collect() }
    }

    /// Feeds each sequence these tokens, some of them none.
    pub fn pass(&mut self, tokens: &[&[u32]], options: ForwardOptions) -> ForwardOutput<B> {
        let spans = self.caches.iter_mut().zip(tokens).filter(|(_, tokens)| !tokens.is_empty());
        let mut spans: Vec<_> = spans.map(|(cache, tokens)| Span::new(tokens.len(), cache)).collect();
        let ids = self.model.ids(&tokens.concat()).expect("ids");
        self.model.forward(ids, &mut spans, options).expect("a pass")
    }
}

/// Logits of every token of a text, `[1, n, vocabulary]`.
pub fn all_logits<B: CompactBackend>(model: &CausalLm<B>, ids: &[u32]) -> Numbers {
    let options = ForwardOptions { logits: LogitsFor::All, hidden: false };
    let out = Rows::new(model, KvFormat::F32, &[0]).pass(&[ids], options);
    Numbers::of(&out.logits.expect("logits")).in_rows(&[ids.len()], ids.len())
}

/// Bound of absolute differences of logits, by the fixtures' README; devices sum in other orders.
pub fn logit_tolerance<B: CompactBackend>(family: Family) -> f32 {
    match family {
        Family::Crest => 1e-3,
        _ if B::SHARES_HOST_MEMORY => 1e-4,
        _ => 2e-4,
    }
}
