//! Layers beside each other: which are the same, and which have another scale than all others.

use std::collections::BTreeMap;

use super::Verification;
use super::finding::{Check, Finding};
use super::numbers::{AllStats, places};
use super::stats::Stats;
use crate::checkpoint::layer_of;
use crate::pretrained::Pretrained;
use crate::tensors::TensorRole;

/// Matrices of fewer numbers may be the same by chance, as those that were never trained.
const SMALL: u64 = 256;
/// How many times above or below the usual scale of its kind a tensor may be, and of norms, which differ more.
const MATRIX: f64 = 50.0;
const NORM: f64 = 500.0;
/// Layers from which on there is something usual.
const LAYERS: usize = 4;

/// Its number, and one tensor of it: name, counts, role.
type Layer<'a> = (usize, &'a str, &'a Stats, TensorRole);

pub(super) fn check(model: &Pretrained, stats: &AllStats, out: &mut Verification) {
    let specs = model.architecture().tensors();
    let places = places(Some(model), &specs);
    // By kind (the name without the layer, and the side of a quantised parameter): every layer that has it.
    let mut kinds: BTreeMap<(&str, &str), Vec<Layer<'_>>> = BTreeMap::new();
    for (&tensor, place) in &places {
        let (Some((layer, rest)), Some(stats)) = (layer_of(&place.spec.name), stats.get(tensor)) else { continue };
        kinds.entry((rest, place.side)).or_default().push((layer, tensor, stats, place.spec.role));
    }
    same(&kinds, out);
    for (&(kind, side), layers) in &kinds {
        let is_scale = matches!(side, "absmax" | "scale" | "scales" | "prot_scale" | "deg_scale");
        let role = layers.first().map(|(.., role)| *role);
        let times = match role {
            Some(TensorRole::Projection) if side.is_empty() || is_scale => MATRIX,
            Some(TensorRole::Norm { unit_offset: false }) => NORM,
            _ => continue,
        };
        unusual(kind, layers, times, out);
    }
}

/// Layers all of whose matrices are the same, then single matrices.
fn same(kinds: &BTreeMap<(&str, &str), Vec<Layer<'_>>>, out: &mut Verification) {
    let is_main = |side: &str| matches!(side, "" | "weight" | "q" | "prot_q" | "deg_q" | "deg_q_packed");
    // Of each layer: what its matrices are.
    let mut matrices: BTreeMap<usize, Vec<(&str, u64)>> = BTreeMap::new();
    for ((kind, side), layers) in kinds.iter().filter(|((_, side), _)| is_main(side)) {
        for (layer, _, stats, role) in layers {
            let varies = stats.zeros < stats.count;
            if *role == TensorRole::Projection && stats.count >= SMALL && varies {
                matrices.entry(*layer).or_default().push((if side.is_empty() { kind } else { side }, stats.hash));
            }
        }
    }
    let mut groups: BTreeMap<&Vec<(&str, u64)>, Vec<usize>> = BTreeMap::new();
    for (layer, all) in &matrices {
        groups.entry(all).or_default().push(*layer);
    }
    let mut equal = Vec::new();
    for layers in groups.values().filter(|layers| layers.len() > 1) {
        let names: Vec<String> = layers.iter().map(usize::to_string).collect();
        let finding = Finding::warning(Check::Layers, format!("layers {} hold the same bytes", names.join(" and ")));
        let finding = finding.place(&format!("model.layers.{}", names.first().map_or("", String::as_str)));
        let finding = finding.expected("layers that differ");
        out.push(
            finding.advice("a model that was merged from parts may be meant so; else a layer was copied over another"),
        );
        equal.push(layers);
    }
    for ((_, side), layers) in kinds.iter().filter(|((_, side), _)| is_main(side)) {
        let mut by_hash: BTreeMap<u64, Vec<(usize, &str)>> = BTreeMap::new();
        for (layer, tensor, stats, role) in layers {
            if *role == TensorRole::Projection && stats.count >= SMALL && stats.zeros < stats.count {
                by_hash.entry(stats.hash).or_default().push((*layer, tensor));
            }
        }
        for tensors in by_hash.values().filter(|tensors| tensors.len() > 1) {
            let within = |layers: &Vec<usize>| tensors.iter().all(|(layer, _)| layers.contains(layer));
            let (Some((_, first)), false) = (tensors.first(), equal.iter().any(|layers| within(layers))) else {
                continue;
            };
            let others: Vec<String> = tensors.iter().skip(1).map(|(layer, _)| layer.to_string()).collect();
            let what = if side.is_empty() { "bytes" } else { "codes" };
            let finding =
                Finding::warning(Check::Layers, format!("the same {what} as in layer {}", others.join(" and ")));
            let finding = finding.place(first).expected("matrices that differ");
            out.push(finding.advice("compare with the author's file: one may have been copied over the other"));
        }
    }
}

/// Tensors whose scale is far from that of their kind.
fn unusual(kind: &str, layers: &[Layer<'_>], times: f64, out: &mut Verification) {
    let mut scales: Vec<f64> = layers.iter().map(|(_, _, stats, _)| stats.rms()).filter(|rms| *rms > 0.0).collect();
    scales.sort_by(f64::total_cmp);
    let Some(&usual) = scales.get(scales.len() / 2).filter(|_| scales.len() >= LAYERS) else { return };
    for (_, tensor, stats, _) in layers {
        let rms = stats.rms();
        if rms > 0.0 && stats.is_finite() && !(usual / times..=usual * times).contains(&rms) {
            let text = format!("the root mean square is {rms:.2e}, in the other layers about {usual:.2e}");
            let finding = Finding::warning(Check::Layers, text).place(tensor);
            let finding = finding.expected(format!("within {times} times of the other layers' {kind}"));
            out.push(
                finding.advice("compare with the author's file: a scale may have been applied twice, or not at all"),
            );
        }
    }
}
