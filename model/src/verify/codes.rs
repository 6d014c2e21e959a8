//! Quantised parameters: code books against those that define the format, and codes against the rule by which they were chosen.

use std::collections::BTreeSet;

use emberlm_quant::format::{self, FP4, NF4};
use emberlm_quant::host::{HostCodeBook4, HostRows, HostScales, HostStorage, on_threads};
use rayon::prelude::*;

use super::Verification;
use super::finding::{Check, Finding};
use super::numbers::AllStats;
use crate::checkpoint::StorageKind;
use crate::pretrained::Pretrained;
use crate::tensors::TensorRole;

/// Bytes of 0 one after the other where these are the most negative codes, which a weight has twice in a row at most here and there.
const HOLE: usize = 256;
/// Codes of 0 one after the other that stand for numbers of 0: as many as of dense numbers.
const ZEROS: usize = super::numbers::HOLE as usize;
/// A part of the blocks up to which a missing extreme is damage. Beyond it, codes were chosen by another rule.
const SOME: f64 = 0.25;
const AGAIN: &str = "download this file again; if it stays so, the author's file is damaged";

pub(super) fn check(model: &Pretrained, stats: &AllStats, out: &mut Verification) {
    let weights = model.weights();
    let specs = model.architecture().tensors();
    let projections: BTreeSet<&str> =
        specs.iter().filter(|spec| spec.role == TensorRole::Projection).map(|spec| spec.name.as_str()).collect();
    let quantised: Vec<&str> = weights
        .canonical_names()
        .filter(|name| weights.entry(name).is_some_and(|entry| entry.storage.is_quantized()))
        // Numbers that are not finite are reported already.
        .filter(|name| weights.entry(name).is_some_and(|entry| entry.tensors.iter().all(|t| is_finite(stats, t))))
        .collect();
    let found: Vec<Vec<Finding>> =
        on_threads(|| quantised.par_iter().map(|name| parameter(model, name, projections.contains(name))).collect());
    out.findings.extend(found.into_iter().flatten());
}

fn is_finite(stats: &AllStats, tensor: &str) -> bool {
    stats.get(tensor).is_none_or(|stats| stats.is_finite())
}

/// Rows of an embedding may be 0: those of tokens that training never met.
fn parameter(model: &Pretrained, name: &str, is_projection: bool) -> Vec<Finding> {
    let weights = model.weights();
    let Some(entry) = weights.entry(name) else { return Vec::new() };
    let dir = weights.checkpoint().dir().path();
    let first = entry.tensors.first().map_or(name, String::as_str);
    let file = weights.checkpoint().info(first).map(|info| {
        let path = info.file.strip_prefix(dir).unwrap_or(&info.file);
        path.to_string_lossy().into_owned()
    });
    let mut found = match weights.matrix(name) {
        Err(error) => vec![Finding::of(Check::Codes, &error, dir).advice(AGAIN)],
        Ok(weight) => match (&weight.storage, format::check(&weight)) {
            (_, Err(error)) => vec![Finding::error(Check::Codes, error.to_string()).place(first).advice(AGAIN)],
            (HostStorage::CodeBook4(w), _) => code_book(w, entry.storage, first, weight.n * weight.k),
            (HostStorage::Rows(w), _) => {
                let mut found = rows(w, first, weight.n, weight.k);
                found.extend(zeros(&w.wide, first).filter(|_| is_projection));
                found
            }
            (HostStorage::Int8(w), _) => zeros(&w.codes, first).filter(|_| is_projection).into_iter().collect(),
            (HostStorage::Dense(..), _) => Vec::new(),
        },
    };
    weights.release(name);
    if let Some(file) = file {
        found.iter_mut().for_each(|finding| finding.file = finding.file.take().or(Some(file.clone())));
    }
    found
}

fn code_book(w: &HostCodeBook4, storage: StorageKind, name: &str, elements: usize) -> Vec<Finding> {
    let mut found = Vec::new();
    let (format, book) = match storage {
        StorageKind::Fp4 { .. } => ("FP4", &FP4),
        _ => ("NF4", &NF4),
    };
    if let Some(code) = (0..16).find(|&code| w.code_book.get(code) != book.get(code)) {
        let value = |book: &[f32; 16]| book.get(code).copied().unwrap_or_default();
        let finding = Finding::error(Check::Scales, format!("code {code} is {}", value(&w.code_book)));
        let finding =
            finding.place(&format!("{name}.quant_map")).expected(format!("{}, as {format} has it", value(book)));
        found.push(finding.advice(AGAIN));
    }
    if let HostScales::Double { codes, map, absmax, block, offset } = &w.scales {
        if let Some(code) = map.iter().zip(format::dynamic_map()).position(|(a, b)| (a - b).abs() > 1e-6) {
            let value = |map: &[f32]| map.get(code).copied().unwrap_or_default();
            let finding = Finding::error(Check::Scales, format!("code {code} is {}", value(map)));
            let expected = format!("{}, as bitsandbytes has it", value(format::dynamic_map()));
            found.push(finding.place(&format!("{name}.nested_quant_map")).expected(expected).advice(AGAIN));
        } else {
            // Rounding leaves a scale of nearly 0 a little below it.
            let value = |(i, &code): (usize, &u8)| {
                let nested = absmax.get(i / block).copied().unwrap_or_default();
                map.get(usize::from(code)).copied().unwrap_or_default() * nested + offset
            };
            let slack = absmax.iter().fold(offset.abs(), |largest, x| largest.max(x.abs())) * 0.02;
            let negative = codes.iter().enumerate().filter(|scale| value(*scale) < -slack).count();
            if codes.len() > 1 && absmax.iter().all(|&scale| scale == 0.0) {
                let finding = Finding::error(Check::Scales, "all scales are 0");
                found.push(finding.place(&format!("{name}.nested_absmax")).advice(AGAIN));
            }
            if negative > 0 {
                let text = format!("{negative} of {} scales are negative", codes.len());
                let finding =
                    Finding::error(Check::Scales, text).place(&format!("{name}.absmax")).expected("scales from 0");
                found.push(finding.advice(AGAIN));
            }
        }
    }
    if book.first() == Some(&0.0) {
        // FP4: bytes of 0 are numbers of 0.
        if let Some(at) = run_of_zeros(&w.codes, ZEROS / 2) {
            found.push(hole(at, ZEROS / 2, name));
        }
    } else if let Some(at) = run_of_zeros(&w.codes, HOLE) {
        let text = format!("at least {HOLE} bytes of zeros, from byte {at} on");
        let finding = Finding::error(Check::Codes, text).place(name).expected("no hole of zeros");
        found.push(finding.advice(AGAIN));
        return found;
    }
    let (lacking, first) = blocks_without_extreme(w, elements);
    let blocks = elements.div_ceil(w.block);
    if let Some(first) = first.filter(|_| lacking as f64 <= SOME * blocks as f64) {
        let text =
            format!("{lacking} of {blocks} blocks have no code of the largest magnitude, the first is block {first}");
        let finding = Finding::warning(Check::Codes, text).place(name);
        let finding = finding.expected("one in every block, since a block is scaled by its largest number");
        found.push(finding.advice(AGAIN));
    }
    found
}

/// How many blocks are not all 0 and hold no code of the largest magnitude, and the first of them.
fn blocks_without_extreme(w: &HostCodeBook4, elements: usize) -> (usize, Option<usize>) {
    let largest = w.code_book.iter().fold(0f32, |largest, x| largest.max(x.abs()));
    let (mut extreme, mut zero) = ([false; 16], [false; 16]);
    for ((extreme, zero), value) in extreme.iter_mut().zip(&mut zero).zip(&w.code_book) {
        (*extreme, *zero) = (value.abs() == largest, *value == 0.0);
    }
    let is = |table: &[bool; 16], code: u8| table.get(usize::from(code)).copied().unwrap_or_default();
    // Of both codes of a byte.
    let any_extreme: Vec<bool> = (0..=255u8).map(|byte| is(&extreme, byte >> 4) || is(&extreme, byte & 15)).collect();
    let both_zero: Vec<bool> = (0..=255u8).map(|byte| is(&zero, byte >> 4) && is(&zero, byte & 15)).collect();
    let of = |table: &[bool], byte: u8| table.get(usize::from(byte)).copied().unwrap_or_default();
    let odd = elements % 2 == 1;
    let last = w.codes.len().saturating_sub(1);
    let lacks = |(block, codes): (usize, &[u8])| {
        let codes = match codes.split_last() {
            // The low half of the last byte of an odd count is no code.
            Some((&end, rest)) if odd && (block + 1) * (w.block / 2) > last => {
                if is(&extreme, end >> 4) {
                    return None;
                }
                rest
            }
            _ => codes,
        };
        let lacks =
            !codes.iter().any(|&byte| of(&any_extreme, byte)) && !codes.iter().all(|&byte| of(&both_zero, byte));
        lacks.then_some(block)
    };
    let blocks = w.codes.chunks((w.block / 2).max(1)).enumerate().filter_map(lacks);
    blocks.fold((0, None), |(count, first), block| (count + 1, first.or(Some(block))))
}

/// A hole in codes of 8 bits.
fn zeros(codes: &[u8], name: &str) -> Option<Finding> {
    run_of_zeros(codes, ZEROS).map(|at| hole(at, ZEROS, name))
}

fn hole(at: usize, bytes: usize, name: &str) -> Finding {
    let text = format!("at least {bytes} bytes of zeros, from byte {at} on");
    Finding::warning(Check::Codes, text).place(name).expected("no hole of zeros").advice(AGAIN)
}

fn run_of_zeros(bytes: &[u8], length: usize) -> Option<usize> {
    let mut run = 0;
    for (at, &byte) in bytes.iter().enumerate() {
        run = if byte == 0 { run + 1 } else { 0 };
        if run == length {
            return Some(at + 1 - length);
        }
    }
    None
}

/// Nano compact's rows: symmetric codes, and the largest of a row at the end of the range.
fn rows(w: &HostRows, name: &str, n: usize, k: usize) -> Vec<Finding> {
    let mut found = Vec::new();
    let mut lacking = 0usize;
    let below = w.wide.iter().filter(|&&code| code == 0x80).count();
    if below > 0 {
        let text = format!("{below} codes of 8 bits are -128");
        let finding = Finding::error(Check::Codes, text).place(name).expected("codes from -127 to 127");
        found.push(finding.advice(AGAIN));
    }
    for row in w.wide.chunks_exact(k.max(1)) {
        let largest = row.iter().map(|&code| (code as i8).unsigned_abs()).max().unwrap_or_default();
        // Rows of 6 bits are stored as bytes too.
        lacking += usize::from(!matches!(largest, 0 | 31 | 127..));
    }
    let (per_byte, offset) = if w.narrow_bits == 2 { (4, 1) } else { (2, 7) };
    let mask = if w.narrow_bits == 2 { 3 } else { 15 };
    let mut beyond = 0usize;
    for row in w.narrow.chunks_exact(k.div_ceil(per_byte).max(1)) {
        let codes = (0..k).map(|j| {
            let byte = row.get(j / per_byte).copied().unwrap_or_default();
            i32::from(byte >> (w.narrow_bits as usize * (j % per_byte)) & mask) - offset
        });
        let largest = codes.map(|code| if code > offset { i32::MAX } else { code.abs() }).max().unwrap_or_default();
        beyond += usize::from(largest == i32::MAX);
        lacking += usize::from(largest != i32::MAX && largest != 0 && largest != offset);
    }
    if beyond > 0 {
        let text = format!("{beyond} rows have codes of {} bits above {offset}", w.narrow_bits);
        let finding = Finding::error(Check::Codes, text).place(name);
        found.push(finding.expected(format!("codes from -{offset} to {offset}")).advice(AGAIN));
    }
    if lacking > 0 && lacking as f64 <= SOME * n as f64 {
        let text = format!("{lacking} of {n} rows have no code at the end of the range");
        let finding = Finding::warning(Check::Codes, text).place(name);
        found.push(finding.expected("one in every row, since a row is scaled by its largest number").advice(AGAIN));
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;
    use emberlm_quant::host::FloatType;

    fn found(storage: StorageKind, book: [f32; 16], zeros: usize) -> Vec<(&'static str, String)> {
        let mut codes = vec![0x3b; 4096];
        codes[64..64 + zeros].fill(0);
        let scales = vec![1f32; 8192 / 64].into_iter().flat_map(f32::to_le_bytes).collect::<Vec<u8>>();
        let weight = HostCodeBook4 {
            codes: codes.into(),
            code_book: book,
            block: 64,
            scales: HostScales::Single(scales.into()),
            stored: FloatType::Bf16,
        };
        let found = code_book(&weight, storage, "weight", 8192).into_iter();
        found.map(|finding| (finding.severity.as_str(), finding.found)).collect()
    }

    /// A byte of 0 is twice the most negative number of NF4, and twice 0 in FP4, where rows that were cut out have many.
    #[test]
    fn zeros_of_fp4_are_no_hole_before_they_are_many() {
        let nf4 = found(StorageKind::Nf4 { double: false }, NF4, 400);
        assert_eq!(nf4, [("error", "at least 256 bytes of zeros, from byte 64 on".to_owned())]);
        let fp4 = |zeros| found(StorageKind::Fp4 { double: false }, FP4, zeros);
        assert!(!fp4(400).iter().any(|(_, text)| text.contains("zeros")), "{:?}", fp4(400));
        assert!(fp4(1100).contains(&("warning", "at least 1024 bytes of zeros, from byte 64 on".to_owned())));
    }
}
