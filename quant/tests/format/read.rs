//! The readers against what bitsandbytes and the Nano runtime read from the same bytes.

use crate::fixtures::{Fixture, assert_same_bits, dense_bytes};
use bytes::Bytes;
use emberlm_quant::Error;
use emberlm_quant::format::{check, dequantize, dequantize_rounded};
use emberlm_quant::host::{FloatType, HostCodeBook4, HostInt8, HostRows, HostScales, HostStorage, HostWeight};

#[test]
fn nf4_values_are_those_of_bitsandbytes() {
    let cases = Fixture::open().nf4();
    assert_eq!(cases.len(), 26);
    for case in cases {
        check(&case.packed).unwrap();
        assert_same_bits(&case.name, &dequantize(&case.packed), &case.dequantized);
    }
}

#[test]
fn nf4_rounded_values_are_those_of_bitsandbytes() {
    for case in Fixture::open().nf4() {
        let rounded = dequantize_rounded(&case.packed);
        assert_eq!((rounded.n, rounded.k), (case.source.n, case.source.k), "{}", case.name);
        assert_eq!(dense_bytes(&rounded), dense_bytes(&case.dequantized_stored), "{}", case.name);
    }
}

#[test]
fn nano_values_are_the_products() {
    let cases = Fixture::open().nano();
    assert_eq!(cases.len(), 9);
    for case in cases {
        check(&case.packed).unwrap();
        assert_same_bits(&case.name, &dequantize(&case.packed), &case.dequantized);
    }
}

#[test]
fn nano_rounded_values_are_those_of_the_runtime() {
    for case in Fixture::open().nano() {
        let rounded = dequantize_rounded(&case.packed);
        assert_eq!(dense_bytes(&rounded), dense_bytes(&case.dequantized_f16), "{}", case.name);
    }
}

#[test]
fn dense_values_are_widened_and_kept() {
    for case in Fixture::open().nf4() {
        let (float, data) = dense_bytes(&case.source);
        let values: Vec<f32> = match float {
            FloatType::F32 => data.as_chunks::<4>().0.iter().map(|&b| f32::from_le_bytes(b)).collect(),
            FloatType::F16 => data.as_chunks::<2>().0.iter().map(|&b| half::f16::from_le_bytes(b).to_f32()).collect(),
            FloatType::Bf16 => data.as_chunks::<2>().0.iter().map(|&b| half::bf16::from_le_bytes(b).to_f32()).collect(),
        };
        assert_same_bits(&case.name, &dequantize(&case.source), &values);
        assert_eq!(dense_bytes(&dequantize_rounded(&case.source)), dense_bytes(&case.source));
    }
}

/// Blocks of an odd length start in the middle of a byte; so does every second task of a matrix of odd width.
#[test]
fn odd_blocks_and_unaligned_buffers_read_the_same() {
    let (n, k, block) = (301, 333, 7);
    let elements: usize = n * k;
    let codes: Vec<u8> = (0..elements.div_ceil(2)).map(|i| (i * 37 + i / 11) as u8).collect();
    let code_book: [f32; 16] = std::array::from_fn(|i| i as f32 - 5.0);
    let mut scales = vec![0u8]; // one byte of offset, so that no scale is aligned
    scales.extend((0..elements.div_ceil(block)).flat_map(|i| (1.0 + i as f32).to_le_bytes()));
    let weight = HostWeight {
        n,
        k,
        storage: HostStorage::CodeBook4(HostCodeBook4 {
            codes: codes.clone().into(),
            code_book,
            block,
            scales: HostScales::Single(Bytes::from(scales).slice(1..)),
            stored: FloatType::F32,
        }),
    };
    let expected: Vec<f32> = (0..elements)
        .map(|e| {
            let code = if e % 2 == 0 { codes[e / 2] >> 4 } else { codes[e / 2] & 15 };
            code_book[usize::from(code)] * (1.0 + (e / block) as f32)
        })
        .collect();
    assert_same_bits("odd blocks", &dequantize(&weight), &expected);
    assert_same_bits("odd blocks, rounded", &dequantize(&dequantize_rounded(&weight)), &expected);
}

/// Changes map, absmax, block and offset of double-quantised scales.
type Change<'a> = &'a dyn Fn(&mut Vec<f32>, &mut Vec<f32>, &mut usize, &mut f32);

fn int8_rows() -> (HostWeight, HostRows) {
    let rows = HostRows {
        wide: vec![1; 6].into(),
        wide_rows: 2,
        narrow: vec![0; 2].into(),
        narrow_bits: 4,
        scales: vec![1.0; 3],
        slots: Some(vec![2, 0, 1]),
    };
    (HostWeight { n: 3, k: 3, storage: HostStorage::Rows(rows.clone()) }, rows)
}

#[test]
fn check_names_what_does_not_fit() {
    let (mut weight, rows) = int8_rows();
    check(&weight).unwrap();
    let mut refused = |change: &dyn Fn(&mut HostRows)| {
        let mut changed = rows.clone();
        change(&mut changed);
        weight.storage = HostStorage::Rows(changed);
        check(&weight).unwrap_err().to_string()
    };
    assert!(refused(&|r| r.wide = vec![1; 5].into()).starts_with("8-bit codes has 5"));
    assert!(refused(&|r| r.narrow = vec![1; 3].into()).starts_with("packed codes has 3"));
    assert!(refused(&|r| r.wide_rows = 4).contains("4 of 3 rows"));
    assert!(refused(&|r| r.narrow_bits = 3).contains("3 bits"));
    assert!(refused(&|r| r.scales[1] = f32::NAN).contains("entry 1 is NaN"));
    assert!(refused(&|r| r.scales.push(1.0)).starts_with("row scales has 4"));
    assert!(refused(&|r| r.slots = Some(vec![0, 1, 1])).contains("slot 1 holds two rows"));
    assert!(refused(&|r| r.slots = Some(vec![0, 1, 3])).contains("row 2 is in slot 3"));

    let int8 = |codes: usize, scales: &[f32]| {
        let scales: Vec<u8> = scales.iter().flat_map(|&s| half::f16::from_f32(s).to_le_bytes()).collect();
        let storage = HostStorage::Int8(HostInt8 { codes: vec![1; codes].into(), scales: scales.into() });
        check(&HostWeight { n: 2, k: 65, storage }).map_err(|error| error.to_string())
    };
    int8(130, &[1.0; 4]).unwrap();
    assert!(int8(129, &[1.0; 4]).unwrap_err().starts_with("8-bit codes has 129"));
    assert!(int8(130, &[1.0; 3]).unwrap_err().starts_with("block scale bytes has 6"));
    assert!(int8(130, &[1.0, 1.0, f32::NAN, 1.0]).unwrap_err().contains("entry 2 is not finite"));

    let case = Fixture::open().nf4().into_iter().find(|c| c.name == "nf4.2.float16.double.weight").unwrap();
    let HostStorage::CodeBook4(packed) = case.packed.storage else { panic!() };
    let refused = |change: &dyn Fn(&mut HostCodeBook4)| {
        let mut changed = packed.clone();
        change(&mut changed);
        check(&HostWeight { n: 33, k: 50, storage: HostStorage::CodeBook4(changed) }).unwrap_err().to_string()
    };
    assert!(refused(&|w| w.codes = w.codes.slice(1..)).starts_with("codes has 824"));
    assert!(refused(&|w| w.code_book[3] = f32::INFINITY).contains("entry 3 is inf"));
    assert!(refused(&|w| w.block = 0).starts_with("block size"));
    assert!(refused(&|w| w.block = 63).starts_with("absmax codes"));
    assert!(refused(&|w| w.scales = HostScales::Single(vec![0; 25 * 4].into())).starts_with("absmax bytes"));
    assert!(refused(&|w| w.scales = HostScales::Single([255; 26 * 4].to_vec().into())).contains("not finite"));
    let double = |w: &mut HostCodeBook4, change: Change| {
        let HostScales::Double { map, absmax, block, offset, .. } = &mut w.scales else { panic!() };
        change(map, absmax, block, offset);
    };
    assert!(refused(&|w| double(w, &|map, _, _, _| map.truncate(255))).starts_with("nested quant map has 255"));
    assert!(refused(&|w| double(w, &|map, _, _, _| map[7] = f32::NAN)).contains("entry 7 is NaN"));
    assert!(refused(&|w| double(w, &|_, absmax, _, _| absmax.push(0.0))).starts_with("nested absmax has 2"));
    assert!(refused(&|w| double(w, &|_, _, block, _| *block = 0)).starts_with("nested block size"));
    assert!(refused(&|w| double(w, &|_, _, _, offset| *offset = f32::NAN)).starts_with("nested offset"));

    let huge = HostWeight { n: 1 << 40, k: 1 << 40, storage: HostStorage::Dense(FloatType::F16, Bytes::new()) };
    assert_eq!(check(&huge).unwrap_err(), Error::TooLarge { n: 1 << 40, k: 1 << 40 });
}
