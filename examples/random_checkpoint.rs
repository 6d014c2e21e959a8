//! Writes a checkpoint of a known shape with random weights, in the layout that transformers and bitsandbytes write: for trying
//! the loader, the memory estimate and the speed at full size without a download.
//!
//! ```sh
//! cargo run --release --example random_checkpoint -- crest-2b /tmp/crest-2b tests/fixtures/crest_k4 nf4
//! ```
//! The third argument is a directory whose tokenizer files are copied (the vocabulary of the model may be larger); the fourth is
//! `bf16`, `nf4` or `nf4-dq`.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use anyhow::{Context, Result, bail};
use emberlm::model::config::CrestOverrides;
use emberlm::model::{CausalLm, QuantizeOnLoad, RandomWeights, WeightOptions, WeightSource, shapes};
use emberlm::quant::host::{FloatType, HostScales, HostStorage};
use safetensors::tensor::{Dtype, TensorView};

type Backend = burn_ndarray::NdArray<f32>;

/// Bytes of one tensor of the file.
struct Tensor {
    dtype: Dtype,
    shape: Vec<usize>,
    data: Vec<u8>,
}

fn main() -> Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [shape, out, tokenizer, storage] = &arguments[..] else {
        bail!("usage: random_checkpoint SHAPE OUT_DIR TOKENIZER_DIR bf16|nf4|nf4-dq");
    };
    let quantize = match storage.as_str() {
        "bf16" => None,
        "nf4" => Some(QuantizeOnLoad::Nf4),
        "nf4-dq" => Some(QuantizeOnLoad::Nf4Double),
        other => bail!("storage {other}: use bf16, nf4 or nf4-dq"),
    };
    let architecture = shapes::shape(shape, &CrestOverrides::default())?;
    let weights = RandomWeights::new(&architecture, quantize, None, 42);
    let plan = CausalLm::<Backend>::plan(&architecture, &weights, WeightOptions::default(), &Default::default())?;

    let out = Path::new(out);
    fs::create_dir_all(out).with_context(|| out.display().to_string())?;
    for name in ["tokenizer.json", "tokenizer_config.json", "chat_template.jinja", "generation_config.json"] {
        let from = Path::new(tokenizer).join(name);
        if from.exists() {
            fs::copy(&from, out.join(name)).with_context(|| from.display().to_string())?;
        }
    }
    fs::write(out.join("config.json"), shapes::shape_json(shape)?)?;

    // One file per gibibyte, so that writing does not hold the whole model either.
    let (mut map, mut part, mut bytes, mut index) = (serde_json::Map::new(), BTreeMap::new(), 0, 1);
    for (i, planned) in plan.tensors.iter().enumerate() {
        for (name, tensor) in stored(&weights, &planned.name, &planned.shape)? {
            bytes += tensor.data.len();
            map.insert(name.clone(), format!("model-{index:05}.safetensors").into());
            part.insert(name, tensor);
        }
        if bytes > 1 << 30 || i + 1 == plan.tensors.len() {
            write(&out.join(format!("model-{index:05}.safetensors")), &part)?;
            (part, bytes, index) = (BTreeMap::new(), 0, index + 1);
        }
    }
    let index = serde_json::json!({ "metadata": {}, "weight_map": map });
    fs::write(out.join("model.safetensors.index.json"), serde_json::to_vec_pretty(&index)?)?;
    println!("{}: {} parameters, {} bytes of weights", out.display(), plan.parameters(), plan.weight_bytes());
    Ok(())
}

fn write(path: &Path, tensors: &BTreeMap<String, Tensor>) -> Result<()> {
    let views = tensors
        .iter()
        .map(|(name, tensor)| Ok((name, TensorView::new(tensor.dtype, tensor.shape.clone(), &tensor.data)?)));
    let views: Vec<_> = views.collect::<Result<_>>()?;
    safetensors::serialize_to_file(views, None, path).with_context(|| path.display().to_string())
}

/// The tensors of the file that hold one tensor of the model.
fn stored(weights: &RandomWeights, name: &str, shape: &[usize]) -> Result<Vec<(String, Tensor)>> {
    let &[n, k] = shape else {
        let values = weights.vector(name, shape.iter().product())?;
        let data = values.iter().flat_map(|x| x.to_le_bytes()).collect();
        return Ok(vec![(name.to_string(), Tensor { dtype: Dtype::F32, shape: shape.to_vec(), data })]);
    };
    let host = weights.matrix(name, n, k)?;
    let w = match host.storage {
        HostStorage::Dense(float, data) => {
            let dtype = if float == FloatType::F16 { Dtype::F16 } else { Dtype::BF16 };
            return Ok(vec![(name.to_string(), Tensor { dtype, shape: vec![n, k], data: data.to_vec() })]);
        }
        HostStorage::CodeBook4(w) => w,
        HostStorage::Rows(_) => bail!("{name}: rows have another layout"),
    };
    let floats = |values: &[f32]| Tensor {
        dtype: Dtype::F32,
        shape: vec![values.len()],
        data: values.iter().flat_map(|x| x.to_le_bytes()).collect(),
    };
    let bytes = |data: &[u8]| Tensor { dtype: Dtype::U8, shape: vec![data.len()], data: data.to_vec() };
    let mut state = serde_json::json!({
        "quant_type": "nf4", "blocksize": w.block, "dtype": "bfloat16", "shape": [n, k],
    });
    let packed = Tensor { dtype: Dtype::U8, shape: vec![w.codes.len(), 1], data: w.codes.to_vec() };
    let mut out = vec![(name.to_string(), packed), (format!("{name}.quant_map"), floats(&w.code_book))];
    match &w.scales {
        HostScales::Single(scales) => {
            let absmax = Tensor { dtype: Dtype::F32, shape: vec![scales.len() / 4], data: scales.to_vec() };
            out.push((format!("{name}.absmax"), absmax));
        }
        HostScales::Double { codes, map, absmax, block, offset } => {
            state["nested_blocksize"] = (*block).into();
            state["nested_dtype"] = "float32".into();
            state["nested_offset"] = (*offset).into();
            out.push((format!("{name}.absmax"), bytes(codes)));
            out.push((format!("{name}.nested_absmax"), floats(absmax)));
            out.push((format!("{name}.nested_quant_map"), floats(map)));
        }
    }
    out.push((format!("{name}.quant_state.bitsandbytes__nf4"), bytes(state.to_string().as_bytes())));
    Ok(out)
}
