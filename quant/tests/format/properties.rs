//! Properties of the quantisers for any weight: plain twins of the rules, error bounds, shapes, and what is refused.

use crate::fixtures::{code_book, rows};
use emberlm_backends::cpu::{Level, with_level};
use emberlm_quant::Error;
use emberlm_quant::format::{
    FP4, NF4, check, dequantize, dequantize_rounded, dynamic_map, quantize_fp4, quantize_int8, quantize_int8_rows,
    quantize_nf4, quantize_truequant,
};
use emberlm_quant::host::{FloatType, HostCodeBook4, HostScales, HostStorage, HostWeight};
use half::{bf16, f16};
use proptest::prelude::*;

fn dense(n: usize, k: usize, float: FloatType, values: &[f32]) -> HostWeight {
    let data: Vec<u8> = match float {
        FloatType::F32 => values.iter().flat_map(|v| v.to_le_bytes()).collect(),
        FloatType::F16 => values.iter().flat_map(|&v| f16::from_f32(v).to_le_bytes()).collect(),
        FloatType::Bf16 => values.iter().flat_map(|&v| bf16::from_f32(v).to_le_bytes()).collect(),
    };
    HostWeight { n, k, storage: HostStorage::Dense(float, data.into()) }
}

fn single_scales(w: &HostCodeBook4) -> Vec<f32> {
    match &w.scales {
        HostScales::Single(data) => data.as_chunks::<4>().0.iter().map(|&b| f32::from_le_bytes(b)).collect(),
        other => panic!("{other:?}"),
    }
}

/// Codes and scales of NF4 by the rule, one element at a time.
fn nf4_twin(values: &[f32]) -> (Vec<u8>, Vec<f32>) {
    let code = |v: f32| (0..15).find(|&i| v <= (NF4[i] + NF4[i + 1]) / 2.0).unwrap_or(15) as u8;
    let mut codes = Vec::new();
    let mut scales = Vec::new();
    for block in values.chunks(64) {
        let absmax = block.iter().fold(0.0, |max: f32, v| max.max(v.abs()));
        if block.len() == 64 {
            scales.push(absmax);
            let inverse = 1.0 / absmax.max(1e-38);
            codes.extend(block.iter().map(|v| code((v * inverse).clamp(-1.0, 1.0))));
        } else {
            let divisor = absmax.max(1e-38);
            scales.push(divisor);
            codes.extend(block.iter().map(|v| code((v / divisor).clamp(-1.0, 1.0))));
        }
    }
    if codes.len() % 2 == 1 {
        codes.push(7);
    }
    (codes.chunks(2).map(|pair| pair[0] << 4 | pair[1]).collect(), scales)
}

/// Integer codes of a row by the rule.
fn row_twin(row: &[f32], qmax: f32) -> (Vec<i8>, f32) {
    let absmax = row.iter().fold(0.0, |max: f32, v| max.max(v.abs()));
    let scale = (absmax / qmax).max(1e-8);
    let codes = row.iter().map(|v| (v / scale).round_ties_even().clamp(-qmax, qmax) as i8).collect();
    (codes, scale)
}

/// Moves a number by some steps of its last place.
fn nudge(value: f32, steps: i32) -> f32 {
    f32::from_bits(value.to_bits().saturating_add_signed(steps))
}

/// A shape and its values. Each stretch of 64 values is of one kind; the last two sit at the borders between codes.
fn matrix(largest: f32) -> impl Strategy<Value = (usize, usize, Vec<f32>)> {
    let shape = prop_oneof![
        Just((1, 1)),
        (Just(1usize), 1usize..300),
        (1usize..300, Just(1usize)),
        (1usize..12, 1usize..150),
        (1usize..8, (1usize..4).prop_map(|k| k * 64)),
    ];
    let size = prop_oneof![
        4 => (-8.0f32..1.0).prop_map(|e| 10f32.powf(e)),
        1 => (0.0f32..1.0).prop_map(move |v| v * largest),
        1 => 0.0f32..2e-38,
    ];
    let stretch = prop_oneof![
        Just(vec![0.0; 64]),
        prop::collection::vec(-1.0f32..1.0, 64),
        prop::collection::vec(-1e-4f32..1e-4, 64).prop_map(|mut v| {
            v[17] = -1.0;
            v
        }),
        prop::collection::vec((0usize..15, -2i32..3), 64).prop_map(|picks| {
            let mut v: Vec<f32> = picks.iter().map(|&(i, s)| nudge((NF4[i] + NF4[i + 1]) / 2.0, s)).collect();
            v[40] = 1.0;
            v
        }),
        prop::collection::vec((-127i32..127, -2i32..3), 64).prop_map(|picks| {
            let mut v: Vec<f32> = picks.iter().map(|&(q, s)| nudge((q as f32 + 0.5) / 127.0, s)).collect();
            v[3] = -1.0;
            v
        }),
    ];
    shape.prop_flat_map(move |(n, k)| {
        let stretches = prop::collection::vec((stretch.clone(), size.clone()), (n * k).div_ceil(64));
        stretches.prop_map(move |stretches| {
            let scaled = stretches.iter().flat_map(|(values, size)| values.iter().map(move |v| v * size));
            (n, k, scaled.take(n * k).collect())
        })
    })
}

fn float() -> impl Strategy<Value = FloatType> {
    prop_oneof![Just(FloatType::F32), Just(FloatType::F16), Just(FloatType::Bf16)]
}

/// Half of the widest gap between neighbours.
fn half_gap(book: &[f32]) -> f32 {
    let mut values = book.to_vec();
    values.sort_by(f32::total_cmp);
    values.windows(2).map(|pair| (pair[1] - pair[0]) / 2.0).fold(0.0, f32::max)
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn nf4_equals_its_plain_twin((n, k, values) in matrix(3e38), float in float()) {
        let largest = if float == FloatType::F16 { 60_000.0 } else { 3e38 };
        let values: Vec<f32> = values.iter().map(|v| v.clamp(-largest, largest)).collect();
        let weight = dense(n, k, float, &values);
        let packed = quantize_nf4(&weight, false).unwrap();
        check(&packed).unwrap();
        let (codes, scales) = nf4_twin(&dequantize(&weight));
        prop_assert_eq!(&code_book(&packed).codes[..], &codes[..]);
        prop_assert_eq!(single_scales(code_book(&packed)), scales);
        prop_assert_eq!(code_book(&packed).stored, float);
    }

    /// No value moves by more than half the widest gap between codes times its block's largest magnitude; blocks below the
    /// smallest divisor may vanish.
    #[test]
    fn four_bit_error_is_bounded_per_block((n, k, values) in matrix(1e30), fp4 in any::<bool>()) {
        let weight = dense(n, k, FloatType::F32, &values);
        let (packed, book) =
            if fp4 { (quantize_fp4(&weight, false), FP4) } else { (quantize_nf4(&weight, false), NF4) };
        let found = dequantize(&packed.unwrap());
        for (block, (found, values)) in found.chunks(64).zip(values.chunks(64)).enumerate() {
            let absmax = values.iter().fold(0.0, |max: f32, v| max.max(v.abs()));
            let bound = absmax * half_gap(&book) * 1.00001 + 1.2e-38;
            for (f, v) in found.iter().zip(values) {
                prop_assert!((f - v).abs() <= bound, "block {block}: {v:e} became {f:e}, bound {bound:e}");
            }
        }
    }

    /// Double quantisation keeps the codes, and moves a scale by at most half the widest gap of the map (or what lies beyond
    /// its end) and a step of the grid, of the largest distance of a scale from the mean.
    #[test]
    fn double_quantised_scales_are_bounded((n, k, values) in matrix(1e30)) {
        let weight = dense(n, k, FloatType::F32, &values);
        let (single, double) = (quantize_nf4(&weight, false).unwrap(), quantize_nf4(&weight, true).unwrap());
        check(&double).unwrap();
        let (single, double) = (code_book(&single), code_book(&double));
        prop_assert_eq!(&single.codes, &double.codes);
        let HostScales::Double { codes, map, absmax, block, offset } = &double.scales else { panic!() };
        let beyond = 1.0 + dynamic_map()[0];
        for (i, scale) in single_scales(single).into_iter().enumerate() {
            let nested = absmax[i / block];
            let found = map[usize::from(codes[i])] * nested + offset;
            let bound = nested * (half_gap(dynamic_map()).max(beyond) + 2.0 / 65535.0) + offset * 1e-6 + 1.2e-38;
            prop_assert!((found - scale).abs() <= bound, "{scale:e} became {found:e}, bound {bound:e}");
        }
    }

    /// No value moves by more than half the scale of its block, which begins anew in every row.
    #[test]
    fn int8_blocks_equal_their_plain_twin_and_are_bounded((n, k, values) in matrix(8e6), float in float()) {
        let largest = if float == FloatType::F16 { 60_000.0 } else { 8e6 };
        let values: Vec<f32> = values.iter().map(|v| v.clamp(-largest, largest)).collect();
        let weight = dense(n, k, float, &values);
        let packed = quantize_int8(&weight).unwrap();
        check(&packed).unwrap();
        let (source, found) = (dequantize(&weight), dequantize(&packed));
        let HostStorage::Int8(packed) = &packed.storage else { panic!() };
        let scales: Vec<f32> = packed.scales.as_chunks().0.iter().map(|&b| f16::from_le_bytes(b).to_f32()).collect();
        let blocks = source.chunks(k).flat_map(|row| row.chunks(64)).zip(found.chunks(k).flat_map(|row| row.chunks(64)));
        let mut codes = packed.codes.iter();
        for (b, ((source, found), scale)) in blocks.zip(&scales).enumerate() {
            let absmax = source.iter().fold(0.0, |max: f32, v| max.max(v.abs()));
            let below = f16::from_bits(f16::from_f32(*scale).to_bits().saturating_sub(1)).to_f32();
            prop_assert!(scale * 127.0 >= absmax && (absmax == 0.0 || below * 127.0 < absmax), "{absmax:e}: {scale:e}");
            for (v, f) in source.iter().zip(found) {
                let code = *codes.next().unwrap() as i8;
                let exact = if absmax == 0.0 { 0.0 } else { (v / scale).round_ties_even() };
                prop_assert_eq!(f32::from(code), exact);
                prop_assert_eq!(*f, f32::from(code) * scale);
                prop_assert!((f - v).abs() <= scale * 0.50001, "block {b}: {v:e} became {f:e}, scale {scale:e}");
            }
        }
        prop_assert_eq!(codes.count(), 0);
        prop_assert_eq!(scales.len(), n * k.div_ceil(64));
    }

    #[test]
    fn int8_rows_equal_their_plain_twin_and_are_bounded((n, k, values) in matrix(1e4), float in float()) {
        let weight = dense(n, k, float, &values);
        let packed = quantize_int8_rows(&weight).unwrap();
        check(&packed).unwrap();
        let (source, found) = (dequantize(&weight), dequantize(&packed));
        let packed = rows(&packed);
        for (r, row) in source.chunks(k).enumerate() {
            let (codes, scale) = row_twin(row, 127.0);
            let stored: Vec<i8> = packed.wide[r * k..][..k].iter().map(|&c| c as i8).collect();
            prop_assert_eq!(stored, codes);
            prop_assert_eq!(packed.scales[r], f16::from_f32(scale).to_f32());
            let bound = scale * 0.50001 + 127.0 * (scale - packed.scales[r]).abs();
            for (f, v) in found[r * k..].iter().zip(row) {
                prop_assert!((f - v).abs() <= bound, "row {r}: {v:e} became {f:e}, bound {bound:e}");
            }
        }
    }

    #[test]
    fn truequant_rows_equal_their_plain_twin(
        (n, k, values) in matrix(1e2),
        bits in prop_oneof![Just(2u32), Just(4), Just(6), Just(8)],
        keep in 0usize..20,
    ) {
        let weight = dense(n, k, FloatType::F32, &values);
        let packed = quantize_truequant(&weight, bits, keep).unwrap();
        check(&packed).unwrap();
        let found = dequantize(&packed);
        let packed = rows(&packed);
        let kept = keep.min(n);
        let slots = packed.slots.clone().unwrap();
        // The rule squares in f32: what underflows there counts as equal.
        let square = |row: &[f32]| row.iter().map(|&v| f64::from(v).powi(2)).sum::<f64>().max(1e-36);
        let (mut smallest_kept, mut largest_other) = (f64::INFINITY, 0f64);
        for (r, row) in values.chunks(k).enumerate() {
            let slot = slots[r] as usize;
            let qmax = match bits {
                _ if slot < kept => 127.0,
                2 => 1.0,
                4 => 7.0,
                6 => 31.0,
                _ => 127.0,
            };
            if slot < kept {
                smallest_kept = smallest_kept.min(square(row));
            } else {
                largest_other = largest_other.max(square(row));
            }
            let (codes, scale) = row_twin(row, qmax);
            let scale = f16::from_f32(scale).to_f32();
            let expected: Vec<f32> = codes.iter().map(|&q| f32::from(q) * scale).collect();
            prop_assert_eq!(&found[r * k..][..k], &expected[..], "row {} in slot {}", r, slot);
        }
        prop_assert!(smallest_kept >= largest_other * 0.9999, "{smallest_kept:e} kept, {largest_other:e} not");
    }

    /// The quantisers are compiled once per instruction set.
    #[test]
    fn bytes_are_the_same_on_every_level((n, k, values) in matrix(1e2), float in float(), bits in prop_oneof![Just(2u32), Just(4), Just(8)]) {
        let weight = dense(n, k, float, &values);
        let quantized = |level| {
            with_level(level, || {
                [
                    quantize_nf4(&weight, true).unwrap(),
                    quantize_fp4(&weight, false).unwrap(),
                    quantize_int8(&weight).unwrap(),
                    quantize_int8_rows(&weight).unwrap(),
                    quantize_truequant(&weight, bits, 3).unwrap(),
                ]
            })
        };
        let plain = quantized(Level::Scalar);
        for level in Level::available() {
            for (found, plain) in quantized(level).iter().zip(&plain) {
                prop_assert_eq!(format!("{found:?}"), format!("{plain:?}"), "{}", level.name());
            }
        }
    }

    /// Rounding is idempotent and never further away than a step of the stored type.
    #[test]
    fn rounded_weights_are_near((n, k, values) in matrix(1e2), float in float()) {
        let packed = quantize_nf4(&dense(n, k, float, &values), true).unwrap();
        let (exact, rounded) = (dequantize(&packed), dequantize(&dequantize_rounded(&packed)));
        let relative = match float {
            FloatType::F32 => 0.0,
            FloatType::F16 => 1.0 / 2048.0,
            FloatType::Bf16 => 1.0 / 256.0,
        };
        let smallest = if float == FloatType::F16 { 3e-8 } else { 1e-40 };
        for (e, r) in exact.iter().zip(rounded) {
            prop_assert!((e - r).abs() <= e.abs() * relative + smallest, "{e:e} became {r:e}");
        }
    }
}

/// A value half-way between two codes gets the lower one; the next larger number gets the upper one.
#[test]
fn nf4_ties_go_to_the_lower_code() {
    let middles: [f32; 15] = std::array::from_fn(|i| (NF4[i] + NF4[i + 1]) / 2.0);
    let mut values = vec![0.0; 64];
    values[0] = 1.0;
    for (i, &middle) in middles.iter().enumerate() {
        values[1 + i] = middle;
        values[32 + i] = middle.next_up();
    }
    let packed = quantize_nf4(&dense(1, 64, FloatType::F32, &values), false).unwrap();
    let codes: Vec<u8> = code_book(&packed).codes.iter().flat_map(|&b| [b >> 4, b & 15]).collect();
    let expected: Vec<u8> = (0..15).collect();
    assert_eq!(codes[1..16], expected);
    let expected: Vec<u8> = (1..16).collect();
    assert_eq!(codes[32..47], expected);
}

/// Of FP4's two zeros, code 0 stands for 0 and what is just below, code 8 for what is just above.
#[test]
fn fp4_codes_are_the_nearest() {
    let mut values: Vec<f32> = FP4.to_vec();
    values.extend([0.002, -0.002, 0.004, -0.004, 0.3, -0.3, 0.75]);
    values.resize(64, 0.0);
    let packed = quantize_fp4(&dense(8, 8, FloatType::F32, &values), false).unwrap();
    let codes: Vec<u8> = code_book(&packed).codes.iter().flat_map(|&b| [b >> 4, b & 15]).collect();
    assert_eq!(codes[..16], [0, 1, 2, 3, 4, 5, 6, 7, 0, 9, 10, 11, 12, 13, 14, 15]);
    assert_eq!(codes[16..23], [8, 0, 1, 9, 4, 12, 2]);
    assert!(codes[23..].iter().all(|&c| c == 0));
}

#[test]
fn first_number_that_is_not_finite_is_named() {
    for float in [FloatType::F32, FloatType::F16, FloatType::Bf16] {
        for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
            for (row, column) in [(0, 0), (3, 17), (6, 32)] {
                let (n, k) = (7, 33);
                let mut values = vec![0.25; n * k];
                values[row * k + column] = bad;
                values[n * k - 1] = bad;
                let weight = dense(n, k, float, &values);
                let results = [
                    quantize_nf4(&weight, false),
                    quantize_nf4(&weight, true),
                    quantize_fp4(&weight, false),
                    quantize_int8(&weight),
                    quantize_int8_rows(&weight),
                    quantize_truequant(&weight, 2, 3),
                    quantize_truequant(&weight, 8, 0),
                ];
                for result in results {
                    match result {
                        Err(Error::NonFinite { row: r, column: c, value }) => {
                            assert_eq!((r, c, value.to_bits()), (row, column, bad.to_bits()));
                        }
                        other => panic!("{other:?}"),
                    }
                }
            }
        }
    }
}

#[test]
fn what_cannot_be_quantised_is_refused() {
    let weight = dense(2, 3, FloatType::F32, &[1.0; 6]);
    let packed = quantize_nf4(&weight, true).unwrap();
    assert_eq!(quantize_int8(&packed).unwrap_err(), Error::NotDense { found: "4-bit codes" });
    let packed = quantize_int8(&weight).unwrap();
    assert_eq!(quantize_nf4(&packed, false).unwrap_err(), Error::NotDense { found: "8-bit blocks" });
    let packed = quantize_int8_rows(&weight).unwrap();
    assert_eq!(quantize_nf4(&packed, false).unwrap_err(), Error::NotDense { found: "integer rows" });
    assert_eq!(quantize_truequant(&weight, 3, 1).unwrap_err(), Error::Bits { bits: 3 });
    let short = HostWeight { n: 2, k: 4, ..weight.clone() };
    assert!(
        quantize_nf4(&short, false).unwrap_err().to_string().contains("24 entries where a weight of 2 x 4 needs 32")
    );
    let empty = HostWeight { n: 0, k: 4, ..weight };
    assert_eq!(quantize_int8(&empty).unwrap_err(), Error::Empty { n: 0, k: 4 });
    let large = dense(2, 2, FloatType::F32, &[1.0, 1.0, 1.0, -9e6]);
    for quantize in [quantize_int8, quantize_int8_rows] {
        assert_eq!(quantize(&large).unwrap_err(), Error::RowTooLarge { row: 1, absmax: 9e6 });
    }
    assert_eq!(quantize_truequant(&large, 4, 1).unwrap_err(), Error::RowTooLarge { row: 1, absmax: 9e6 });
    let large = dense(2, 64, FloatType::F32, &[f32::MAX; 128]);
    assert_eq!(quantize_nf4(&large, true).unwrap_err(), Error::ScalesTooLarge { blocks: 2 });
    check(&quantize_nf4(&large, false).unwrap()).unwrap();
}
