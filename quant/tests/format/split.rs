//! Weights cut along their rows: no number changes, and no buffer is larger than was asked for.

use emberlm_quant::Error;
use emberlm_quant::format::{
    BufferLimit, check, dequantize, largest_buffer, quantize_int8, quantize_int8_rows, quantize_nf4,
    quantize_truequant, split_rows,
};
use emberlm_quant::host::{FloatType, HostStorage, HostWeight};
use half::bf16;
use proptest::prelude::*;

fn dense(n: usize, k: usize, float: FloatType) -> HostWeight {
    let values = (0..n * k).map(|i| ((i * 7919 + 13) % 1009) as f32 / 504.5 - 1.0);
    let data: Vec<u8> = match float {
        FloatType::F32 => values.flat_map(f32::to_le_bytes).collect(),
        _ => values.flat_map(|v| bf16::from_f32(v).to_le_bytes()).collect(),
    };
    HostWeight { n, k, storage: HostStorage::Dense(float, data.into()) }
}

/// Every storage; rows in the order of the outputs, and not.
fn storages(n: usize, k: usize) -> Vec<HostWeight> {
    let source = dense(n, k, FloatType::F32);
    let mut weights = vec![
        dense(n, k, FloatType::Bf16),
        quantize_nf4(&source, false).expect("finite"),
        quantize_nf4(&source, true).expect("finite"),
        quantize_int8_rows(&source).expect("finite"),
        quantize_truequant(&source, 4, n / 3).expect("finite"),
        quantize_truequant(&source, 2, n / 3).expect("finite"),
    ];
    let mut ordered = weights[4].clone();
    if let HostStorage::Rows(rows) = &mut ordered.storage {
        rows.slots = None;
    }
    weights.extend([ordered, quantize_int8(&source).expect("finite"), source]);
    weights
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn parts_are_the_whole(n in 1usize..400, k in 1usize..70, limit in 4usize..6000) {
        for weight in storages(n, k) {
            let whole = dequantize(&weight);
            match split_rows(weight.clone(), limit) {
                Ok(parts) => {
                    prop_assert_eq!(parts.len() == 1, largest_buffer(&weight) <= limit);
                    let mut numbers = Vec::new();
                    for part in &parts {
                        check(part).expect("a sound part");
                        prop_assert!(largest_buffer(part) <= limit, "{} beyond {limit}", largest_buffer(part));
                        prop_assert_eq!(part.k, k);
                        numbers.extend(dequantize(part));
                    }
                    prop_assert_eq!(numbers, whole);
                }
                Err(Error::RowsBeyondBuffer { rows, bytes, limit: stated }) => {
                    prop_assert!(rows > 0 && bytes > limit && stated == limit && largest_buffer(&weight) > limit);
                }
                Err(other) => panic!("{other}"),
            }
        }
    }

    /// Kernels that count elements in fewer bits than the buffers have bytes: NF4 has two elements to a byte.
    #[test]
    fn parts_are_no_longer_than_kernels_count(n in 1usize..400, k in 1usize..70, elements in 64usize..20_000) {
        for weight in storages(n, k) {
            let limit = BufferLimit { bytes: usize::MAX, elements };
            match split_rows(weight.clone(), limit) {
                Ok(parts) => {
                    prop_assert_eq!(parts.len() == 1, n * k <= elements);
                    prop_assert!(parts.iter().all(|part| part.n * part.k <= elements && limit.holds(part)));
                    prop_assert_eq!(parts.iter().flat_map(dequantize).collect::<Vec<_>>(), dequantize(&weight));
                }
                Err(Error::RowsBeyondCount { rows, elements: found, limit: stated }) => {
                    prop_assert!(found == rows * k && found > elements && stated == elements && n * k > elements);
                }
                Err(other) => panic!("{other}"),
            }
        }
    }
}
