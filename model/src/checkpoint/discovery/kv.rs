//! Finding LeanLlama's cache compressors: their names are not published, their shapes are.
//!
//! In a layer, what is not part of the Llama body is a compressor. `k` or `v` in the path says of what; of the matrices of one
//! target, `[r, w]` is the encoder, `[h, r]` and `[w, h]` a GELU decoder, `[w, r]` a linear decoder, where the width `w` is all
//! kv heads of a token or a single head. Exactly one reading must fit.

use std::collections::BTreeMap;

use super::{Discovered, LayerTensors, Rename};
use crate::checkpoint::names::{list, owner, shown};
use crate::checkpoint::problem::{CheckpointError, TensorProperty};
use crate::config::{DiscoveredKvCompression, KvCodec, KvTarget};
use crate::{Error, Result};

/// Parts of a layer that belong to the body.
const BODY: [&str; 9] = [
    "self_attn.q_proj.",
    "self_attn.k_proj.",
    "self_attn.v_proj.",
    "self_attn.o_proj.",
    "mlp.gate_proj.",
    "mlp.up_proj.",
    "mlp.down_proj.",
    "input_layernorm.",
    "post_attention_layernorm.",
];

/// One way to read the matrices of a target: the codec and the name of each matrix, encoder first.
struct Reading<'a> {
    codec: KvCodec,
    parts: Vec<(&'static str, &'a str, usize)>,
}

/// Finds the compressors of every layer.
pub(in crate::checkpoint) fn discover(
    layers: &LayerTensors,
    kv_dim: usize,
    head_dim: usize,
) -> Result<Discovered<DiscoveredKvCompression>> {
    let mut out = Discovered { renames: Vec::new(), spare: Vec::new(), found: None };
    let mut found = DiscoveredKvCompression::default();
    for (&layer, tensors) in layers {
        let mut targets: BTreeMap<KvTarget, BTreeMap<&str, &[usize]>> = BTreeMap::new();
        for (name, shape) in tensors {
            if BODY.iter().any(|part| name.starts_with(part)) {
                continue;
            }
            let target = target(name).ok_or_else(|| {
                let message = format!(
                    "layer {layer}: {} {shape:?} is not part of the Llama body, and its name does not say whether it compresses keys or values",
                    shown(name)
                );
                let found = TensorProperty::group([(name.as_str(), shape.as_slice())]);
                Error::discovery(CheckpointError::of_layer(layer, message).found(found))
            })?;
            targets.entry(target).or_default().insert(name, shape);
        }
        for (target, shapes) in targets {
            let fail = |message: &str| {
                let found = TensorProperty::group(shapes.iter().map(|(&name, &shape)| (name, shape)));
                let message = format!(
                    "cannot tell the {target} compressor of layer {layer} (width {kv_dim}, or {head_dim} per head): {message}. Found: {found}",
                );
                Error::discovery(CheckpointError::of_layer(layer, message).found(found))
            };
            let mut readings = readings(&shapes, kv_dim);
            if head_dim != kv_dim {
                readings.extend(self::readings(&shapes, head_dim));
            }
            let reading = match readings.len() {
                1 => readings.remove(0),
                0 => {
                    return Err(fail("no encoder and decoder of matching sizes (an encoder is [code, width])"));
                }
                _ => return Err(fail("several readings fit")),
            };
            let codec = place(&mut out.renames, layer, target, &shapes, &reading).map_err(|message| fail(&message))?;
            found.layers.entry(layer).or_default().insert(target, codec);
        }
    }
    out.found = (!found.layers.is_empty()).then_some(found);
    Ok(out)
}

/// `k` or `v` in the path: a word of its own, or else the first letter of a word before an underscore.
fn target(name: &str) -> Option<KvTarget> {
    let bare = name.strip_prefix("self_attn.").unwrap_or(name);
    let words = || bare.split(['.', '_']);
    let says = |names: &[&str]| words().any(|word| names.contains(&word));
    match (says(&["k", "key", "keys"]), says(&["v", "val", "value", "values"])) {
        (true, false) => return Some(KvTarget::Key),
        (false, true) => return Some(KvTarget::Value),
        (true, true) => return None,
        (false, false) => {}
    }
    bare.split('.').filter(|part| part.contains('_') && !part.starts_with("kv")).find_map(|part| {
        match part.chars().next() {
            Some('k') => Some(KvTarget::Key),
            Some('v') => Some(KvTarget::Value),
            _ => None,
        }
    })
}

/// Every way to read the matrices as an encoder and a decoder of width `w`.
fn readings<'a>(shapes: &BTreeMap<&'a str, &[usize]>, w: usize) -> Vec<Reading<'a>> {
    let matrices: Vec<(&'a str, usize, usize)> = shapes
        .iter()
        .filter_map(|(name, shape)| match shape {
            &[n, k] => Some((*name, *n, *k)),
            _ => None,
        })
        .collect();
    let mut out = Vec::new();
    for &(encoder, r, inputs) in &matrices {
        if inputs != w || r == 0 || r >= w {
            continue;
        }
        let codec = KvCodec { code_dim: r, width: w, hidden_dim: None, encoder_bias: false, decoder_bias: false };
        let rest: Vec<_> = matrices.iter().filter(|(name, ..)| *name != encoder).collect();
        match rest.as_slice() {
            [decoder] if (decoder.1, decoder.2) == (w, r) => {
                out.push(Reading { codec, parts: vec![("encoder", encoder, r), ("decoder", decoder.0, w)] });
            }
            [a, b] => {
                for (first, second) in [(a, b), (b, a)] {
                    let h = first.1;
                    if h > 0 && first.2 == r && (second.1, second.2) == (w, h) {
                        let parts =
                            vec![("encoder", encoder, r), ("decoder.0", first.0, h), ("decoder.2", second.0, w)];
                        out.push(Reading { codec: KvCodec { hidden_dim: Some(h), ..codec }, parts });
                    }
                }
            }
            _ => {}
        }
    }
    out
}

/// Records the canonical names of a compressor; its codec with the biases.
fn place(
    renames: &mut Vec<Rename>,
    layer: usize,
    target: KvTarget,
    shapes: &BTreeMap<&str, &[usize]>,
    reading: &Reading,
) -> std::result::Result<KvCodec, String> {
    let home = format!("model.layers.{layer}.self_attn.{target}_compressor");
    let mut add = |from: &str, to: String, shape: &[usize]| {
        renames.push(Rename {
            from: format!("model.layers.{layer}.{from}"),
            to: format!("{home}.{to}"),
            shape: shape.to_vec(),
            rows: None,
        });
    };
    let mut codec = reading.codec;
    let mut used = Vec::new();
    let mut decoder_biases = Vec::new();
    for (part, name, outputs) in &reading.parts {
        add(name, format!("{part}.weight"), shapes.get(name).copied().unwrap_or_default());
        used.push(*name);
        let bias = shapes.iter().find(|(bias, shape)| shape.len() == 1 && owner(bias) == owner(name));
        if let Some((bias, shape)) = bias {
            if **shape != [*outputs] {
                return Err(format!("{} {shape:?} is not the bias of {outputs} outputs", shown(bias)));
            }
            add(bias, format!("{part}.bias"), shape);
            used.push(bias);
        }
        if *part == "encoder" {
            codec.encoder_bias = bias.is_some();
        } else {
            decoder_biases.push(bias.is_some());
        }
    }
    codec.decoder_bias = decoder_biases.contains(&true);
    if codec.decoder_bias && decoder_biases.contains(&false) {
        return Err("one layer of the decoder has a bias, the other has none".into());
    }
    let left: Vec<&str> = shapes.keys().copied().filter(|name| !used.contains(name)).collect();
    if left.is_empty() { Ok(codec) } else { Err(format!("{} belongs to no layer of it", list(&left))) }
}
