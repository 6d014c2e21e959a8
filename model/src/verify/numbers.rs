//! Every number of every tensor: read once, in pieces, on all threads.

use std::collections::BTreeMap;

use emberlm_quant::host::on_threads;
use rayon::prelude::*;

use super::finding::{Check, Finding};
use super::stats::{HUGE, Stats};
use super::{Read, Verification};
use crate::checkpoint::{Checkpoint, Dtype, TensorInfo};
use crate::pretrained::Pretrained;
use crate::tensors::{TensorRole, TensorSpec};

/// Bytes of a piece, at least.
const PIECE: usize = 4 << 20;
/// Pieces whose counts are held at once.
const TOGETHER: usize = 256;
/// Elements of a matrix that are 0 one after the other, beyond which a hole in the file is likelier than a weight.
pub(super) const HOLE: u64 = 2048;
/// A largest number so many times the others is what a flipped bit of an exponent leaves. Real models reach some hundreds.
const OUTLIER: f64 = 2000.0;
const AGAIN: &str = "download this file again; if it stays so, the author's file is damaged";
const LOOK: &str = "compare with the author's file; trained models have no such values";

/// Counts of every tensor, by its name in the file.
pub(super) type AllStats = BTreeMap<String, Stats>;

/// What a tensor of the file is to the model.
pub(super) struct Place<'a> {
    pub spec: &'a TensorSpec,
    /// What of a quantised parameter; empty for numbers that are stored as they are.
    pub side: &'a str,
}

pub(super) fn check(
    checkpoint: &Checkpoint,
    model: Option<&Pretrained>,
    read: &Read<'_>,
    out: &mut Verification,
) -> AllStats {
    let stats = scan(checkpoint, read);
    out.looked_at.tensors = stats.len();
    out.looked_at.bytes = checkpoint.total_bytes();
    let specs = model.map(|model| model.architecture().tensors()).unwrap_or_default();
    let places = places(model, &specs);
    for (name, stats) in &stats {
        let Some(info) = checkpoint.info(name) else { continue };
        let file = info.file.strip_prefix(checkpoint.dir().path()).unwrap_or(&info.file).to_string_lossy().into_owned();
        let mut found = Vec::new();
        finite(stats, info, &mut found);
        if let Some(place) = places.get(name.as_str()) {
            values(stats, info, place, &mut found);
        }
        out.findings.extend(found.into_iter().map(|finding| finding.file(&file).place(name)));
    }
    stats
}

/// The tensors of the file that the model uses.
pub(super) fn places<'a>(model: Option<&'a Pretrained>, specs: &'a [TensorSpec]) -> BTreeMap<&'a str, Place<'a>> {
    let mut places = BTreeMap::new();
    for spec in specs {
        let Some(entry) = model.and_then(|model| model.weights().entry(&spec.name)) else { continue };
        let quantised = entry.storage.is_quantized();
        for tensor in &entry.tensors {
            let side = tensor.rsplit('.').next().filter(|_| quantised).unwrap_or_default();
            places.insert(tensor.as_str(), Place { spec, side });
        }
    }
    places
}

fn scan(checkpoint: &Checkpoint, read: &Read<'_>) -> AllStats {
    let mut pieces = Vec::new();
    for name in checkpoint.names() {
        let Some(info) = checkpoint.info(name) else { continue };
        let row = width(info).unwrap_or(1).saturating_mul(info.dtype.size()).max(1);
        // Whole rows, and in all threads more than one piece of a large tensor.
        let length = row.saturating_mul((PIECE / row).max(1));
        pieces.extend((0..info.bytes.div_ceil(length)).map(|piece| (name, info, piece.saturating_mul(length), length)));
    }
    let count = |&(name, info, start, length): &(&str, &TensorInfo, usize, usize)| {
        let end = start.saturating_add(length).min(info.bytes);
        let data = checkpoint.data(name).unwrap_or_default();
        let stats = Stats::of(info.dtype, width(info), data.get(start..end).unwrap_or_default());
        checkpoint.release_part(name, start, end.saturating_sub(start));
        read.add(end.saturating_sub(start));
        stats
    };
    let mut out = AllStats::new();
    // Counts of a piece of zeros can take a hundredth of the piece: those of some pieces are put together before others are read.
    for some in pieces.chunks(TOGETHER) {
        let counted: Vec<Stats> = on_threads(|| some.par_iter().map(count).collect());
        for ((name, ..), stats) in some.iter().zip(counted) {
            let stats = match out.remove(*name) {
                Some(before) => before.followed_by(stats),
                None => stats,
            };
            out.insert((*name).to_owned(), stats);
        }
    }
    out
}

/// Elements of a row of a matrix.
fn width(info: &TensorInfo) -> Option<usize> {
    match info.shape.as_slice() {
        &[_, width] if width > 1 => Some(width),
        _ => None,
    }
}

/// `[row, column]` of a matrix, or the index of an element.
fn index(info: &TensorInfo, at: u64) -> String {
    match width(info) {
        Some(width) => format!("[{}, {}]", at / width as u64, at % width as u64),
        None => format!("[{at}]"),
    }
}

fn finite(stats: &Stats, info: &TensorInfo, found: &mut Vec<Finding>) {
    let is_float = matches!(info.dtype, Dtype::F32 | Dtype::F16 | Dtype::Bf16);
    let (true, Some(first)) = (is_float, stats.first_odd) else { return };
    let counts = [(stats.nan, "NaN"), (stats.infinite, "infinite"), (stats.huge, "beyond 1e6")];
    let counts: Vec<String> =
        counts.iter().filter(|(count, _)| *count > 0).map(|(count, what)| format!("{count} {what}")).collect();
    let text = format!("{} of {} numbers, the first at {}", counts.join(", "), stats.count, index(info, first));
    let finding = Finding::error(Check::Numbers, text).expected(format!("finite numbers up to {HUGE:e}"));
    found.push(finding.advice(AGAIN));
}

fn values(stats: &Stats, info: &TensorInfo, place: &Place<'_>, found: &mut Vec<Finding>) {
    let role = place.spec.role;
    let is_codes = !place.side.is_empty() && !matches!(info.dtype, Dtype::F32 | Dtype::F16 | Dtype::Bf16);
    match place.side {
        "" => {}
        // Judged with their code books.
        "quant_map" | "nested_quant_map" | "prot_idx" | "deg_idx" => return,
        "absmax" | "nested_absmax" | "scale" | "scales" | "prot_scale" | "deg_scale" if !is_codes => {
            if let Some(first) = stats.first_negative {
                let text = format!(
                    "{} of {} scales are negative, the first at {}",
                    stats.negative,
                    stats.count,
                    index(info, first)
                );
                found.push(Finding::error(Check::Scales, text).expected("scales from 0").advice(AGAIN));
            }
            // What quantises scales takes their mean off: of one scale nothing is left, which is judged with the codes.
            if stats.count > 0 && stats.zeros == stats.count && place.side != "nested_absmax" {
                found.push(Finding::error(Check::Scales, "all scales are 0").advice(AGAIN));
            }
            return;
        }
        _ => {}
    }
    if is_codes {
        return;
    }
    let matrix = matches!(role, TensorRole::Projection | TensorRole::Embedding | TensorRole::Head);
    let all_zero = stats.count > 0 && stats.zeros == stats.count;
    if all_zero && (matrix || matches!(role, TensorRole::Norm { unit_offset: false } | TensorRole::Convolution)) {
        let text = format!("all {} numbers are 0", stats.count);
        found.push(Finding::warning(Check::Numbers, text).expected("a trained weight").advice(LOOK));
    } else if role == TensorRole::Projection {
        let zeros = stats.zero_run;
        if zeros.longest >= HOLE {
            let text = format!("{} zeros one after the other, from {} on", zeros.longest, index(info, zeros.at));
            found.push(Finding::warning(Check::Numbers, text).expected("no hole of zeros").advice(AGAIN));
        }
        if let Some(row) = stats.first_constant_row {
            let text = format!("{} rows hold one value alone, the first is row {row}", stats.constant_rows);
            found.push(Finding::warning(Check::Numbers, text).expected("rows of several values").advice(LOOK));
        }
    }
    if role.is_matrix() && stats.count >= 256 && stats.huge == 0 && stats.is_finite() {
        let others = stats.rms_of_others();
        if f64::from(stats.largest) > OUTLIER * others && others > 0.0 {
            let text = format!(
                "the number at {} is {:e}, {:.0} times what the others are",
                index(info, stats.largest_at),
                stats.largest,
                f64::from(stats.largest) / others
            );
            found.push(Finding::warning(Check::Numbers, text).expected(format!("up to {OUTLIER} times")).advice(AGAIN));
        }
    }
    if let TensorRole::Norm { unit_offset } = role {
        norm(stats, unit_offset, found);
    }
}

/// What is applied lies around 1, or at least above 0 and below some hundreds.
fn norm(stats: &Stats, unit_offset: bool, found: &mut Vec<Finding>) {
    const RANGE: std::ops::RangeInclusive<f64> = 1e-4..=500.0;
    if stats.count == 0 || !stats.is_finite() || stats.huge > 0 || stats.zeros == stats.count {
        return;
    }
    let mean = stats.mean() + if unit_offset { 1.0 } else { 0.0 };
    if !RANGE.contains(&mean) {
        let text = format!("the mean of this norm's weights is {mean:.3e}");
        let finding =
            Finding::warning(Check::Numbers, text).expected(format!("{:e} to {}", RANGE.start(), RANGE.end()));
        found.push(finding.advice(LOOK));
    }
}
