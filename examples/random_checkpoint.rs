//! Writes a checkpoint of a known shape with random weights, in the layout that transformers and bitsandbytes write: for trying
//! the loader, the memory estimate and the speed at full size without a download.
//!
//! ```sh
//! cargo run --release --example random_checkpoint -- crest-2b /tmp/crest-2b tests/fixtures/crest_k4 nf4
//! ```
//! The third argument is a directory whose tokenizer files are copied (the vocabulary of the model may be larger); the fourth is
//! `bf16`, `nf4`, `nf4-dq` or `nano` (for Qwen2 shapes: the rows of Nano compact).

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use anyhow::{Context, Result, bail};
use emberlm::model::config::CrestOverrides;
use emberlm::model::{CausalLm, QuantizeOnLoad, WeightOptions, WeightSource};
use emberlm::quant::host::{FloatType, HostRows, HostScales, HostStorage};
use emberlm_random::{RandomWeights, shapes};
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
        bail!("usage: random_checkpoint SHAPE OUT_DIR TOKENIZER_DIR bf16|nf4|nf4-dq|nano");
    };
    let quantize = match storage.as_str() {
        "bf16" | "nano" => None,
        "nf4" => Some(QuantizeOnLoad::Nf4),
        "nf4-dq" => Some(QuantizeOnLoad::Nf4Double),
        other => bail!("storage {other}: use bf16, nf4, nf4-dq or nano"),
    };
    let architecture = shapes::shape(shape, &CrestOverrides::default())?;
    let weights = match storage.as_str() {
        "nano" => RandomWeights::nano(&architecture, 42),
        _ => RandomWeights::new(&architecture, quantize, None, 42),
    };
    let plan = CausalLm::<Backend>::plan(&architecture, &weights, WeightOptions::default(), &Default::default())?;

    let out = Path::new(out);
    fs::create_dir_all(out).with_context(|| out.display().to_string())?;
    for name in ["tokenizer.json", "tokenizer_config.json", "chat_template.jinja", "generation_config.json"] {
        let from = Path::new(tokenizer).join(name);
        if from.exists() {
            fs::copy(&from, out.join(name)).with_context(|| from.display().to_string())?;
        }
    }
    // One file per gibibyte, so that writing does not hold the whole model either.
    let (mut map, mut part, mut bytes, mut index) = (serde_json::Map::new(), BTreeMap::new(), 0, 1);
    let mut modules = serde_json::Map::new();
    for (i, planned) in plan.tensors.iter().enumerate() {
        for (name, tensor) in stored(&weights, &planned.name, &planned.shape, &mut modules)? {
            bytes += tensor.data.len();
            map.insert(name.clone(), format!("model-{index:05}.safetensors").into());
            part.insert(name, tensor);
        }
        if bytes > 1 << 30 || i + 1 == plan.tensors.len() {
            write(&out.join(format!("model-{index:05}.safetensors")), &part)?;
            (part, bytes, index) = (BTreeMap::new(), 0, index + 1);
        }
    }
    let mut config: serde_json::Value = serde_json::from_str(&shapes::shape_json(shape)?)?;
    if !modules.is_empty() {
        config["architectures"] = serde_json::json!(["NanoQwenForCausalLM"]);
        config["nanollm_modules"] = modules.into();
    }
    fs::write(out.join("config.json"), serde_json::to_vec_pretty(&config)?)?;
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

/// The tensors of the file that hold one tensor of the model; rows are entered in `modules`, as Nano compact's config has them.
fn stored(
    weights: &RandomWeights,
    name: &str,
    shape: &[usize],
    modules: &mut serde_json::Map<String, serde_json::Value>,
) -> Result<Vec<(String, Tensor)>> {
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
        HostStorage::Int8(_) => bail!("{name}: no checkpoint has 8-bit blocks"),
        HostStorage::Rows(w) => {
            let path = name.strip_suffix(".weight").unwrap_or(name);
            return Ok(rows(path, &w, n, k, modules));
        }
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

/// Nano compact's tensors of a matrix: the wide rows are the protected ones, in order.
fn rows(
    path: &str,
    w: &HostRows,
    n: usize,
    k: usize,
    modules: &mut serde_json::Map<String, serde_json::Value>,
) -> Vec<(String, Tensor)> {
    let halves = |scales: &[f32]| Tensor {
        dtype: Dtype::F16,
        shape: vec![scales.len()],
        data: scales.iter().flat_map(|&x| half::f16::from_f32(x).to_le_bytes()).collect(),
    };
    let numbers = |range: std::ops::Range<usize>| Tensor {
        dtype: Dtype::I64,
        shape: vec![range.len()],
        data: range.flat_map(|i| (i as i64).to_le_bytes()).collect(),
    };
    let codes = |dtype, rows: usize, data: &[u8]| Tensor {
        dtype,
        shape: vec![rows, data.len().checked_div(rows).unwrap_or(k)],
        data: data.to_vec(),
    };
    let wide = w.wide_rows;
    let named =
        |tensors: Vec<(&str, Tensor)>| tensors.into_iter().map(|(leaf, t)| (format!("{path}.{leaf}"), t)).collect();
    if wide == n {
        let spec = if path.ends_with("embed_tokens") {
            serde_json::json!({ "kind": "embedding", "num_embeddings": n, "embedding_dim": k })
        } else {
            serde_json::json!({ "kind": "int8_linear", "in_features": k, "out_features": n, "has_bias": false })
        };
        modules.insert(path.to_string(), spec);
        return named(vec![("q", codes(Dtype::I8, n, &w.wide)), ("scale", halves(&w.scales))]);
    }
    let spec = serde_json::json!({
        "kind": "truequant_linear", "in_features": k, "out_features": n, "prot_rows": wide, "deg_rows": n - wide,
        "bits": w.narrow_bits, "has_bias": false,
    });
    modules.insert(path.to_string(), spec);
    named(vec![
        ("prot_q", codes(Dtype::I8, wide, &w.wide)),
        ("prot_scale", halves(&w.scales[..wide])),
        ("prot_idx", numbers(0..wide)),
        ("deg_q_packed", codes(Dtype::U8, n - wide, &w.narrow)),
        ("deg_scale", halves(&w.scales[wide..])),
        ("deg_idx", numbers(wide..n)),
    ])
}
