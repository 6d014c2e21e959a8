//! What the public functions refuse before a kernel starts: kernels are launched without bounds checks.

use emberlm_backends::cube::{self, Attention, Buffer, CacheBuffer, KvRows, KvSide, MAX_ELEMENTS};
use emberlm_backends::panics::catch_quietly;
use emberlm_backends::types::{KvFormat, RmsNorm, RotaryShape, StoreKv};

use crate::device::{Float, client, download, upload_cache, upload_ints, upload_words};

#[track_caller]
fn refused(what: &str, names: &str, f: impl FnOnce()) {
    let message = catch_quietly(f).expect_err(what);
    assert!(message.contains(names), "{what}: {message}");
}

#[test]
fn a_buffer_is_not_longer_than_its_memory() {
    let client = client();
    let whole = Float::F32.upload(&client, &[1.0; 64]);
    let dtype = whole.dtype();
    refused("one more", "65 elements", || drop(Buffer::new(whole.handle().clone(), 65, dtype)));
    refused("a length that wraps", "elements", || drop(Buffer::new(whole.handle().clone(), 1 << 62, dtype)));
    let rest = whole.handle().clone().offset_start(4 * 60);
    assert_eq!(Buffer::new(rest.clone(), 4, dtype).len(), 4);
    refused("past an offset", "5 elements", || drop(Buffer::new(rest, 5, dtype)));
    refused("an offset past the end", "1 elements", || {
        drop(Buffer::new(whole.handle().clone().offset_start(4 * 65), 1, dtype));
    });
}

#[test]
fn shapes_that_wrap_around_and_types_of_another_size() {
    let client = client();
    let half = 1usize << (usize::BITS - 1);
    let (x, w) = (Float::F32.upload(&client, &[1.0; 2]), Float::F32.upload(&client, &[1.0; 2]));
    let y = Float::F32.unwritten(&client, 2);
    let p = RmsNorm { m: half + 1, h: 2, eps: 1e-6, unit_offset: false };
    refused("norm", "x [", || cube::rms_norm(&client, &x, &w, &y, p));
    let weight = |n, k| cube::Weight { n, k, data: cube::Matrix::F32(w.clone()) };
    refused("linear", "x [", || cube::linear(&client, &x, half + 1, &weight(1, 2), &y, Default::default()));
    refused("weight", "a matrix [", || cube::linear(&client, &x, 1, &weight(half + 1, 2), &y, Default::default()));
    refused("more than 32 bits", "kernels count to", || {
        cube::linear(&client, &x, 1, &weight(MAX_ELEMENTS, 2), &y, Default::default());
    });
    let shape = RotaryShape { batch: half + 1, seq: 1, heads: 1, head_dim: 2, half: 0 };
    refused("rotary", "x [", || cube::rotary(&client, &x, &w, &w, &y, shape));

    // Rows that overlap, or end elsewhere.
    let p = RmsNorm { m: 0, h: 2, eps: 1e-6, unit_offset: false };
    let rows = |x: &Buffer, m: usize, stride| {
        let (y, weight) = (Float::F32.unwritten(&client, 2 * m.min(8)), &w);
        cube::rms_norm_all(&client, &[cube::NormRows { x, m, stride, weight, y: &y }], p);
    };
    let five = Float::F32.upload(&client, &[1.0; 5]);
    rows(&five, 2, 3);
    for (m, stride) in [(2, 4), (1, 3), (4, 1), (half + 1, 4)] {
        refused("rows of a norm", "x ", || rows(&five, m, stride));
    }
    for (stride, n) in [(4, 2), (1, 2), (half, 2), (3, 3)] {
        let (x, y) = (Float::F32.upload(&client, &vec![1.0; 2 * n]), Float::F32.unwritten(&client, 2 * n));
        refused("rows of a gate", "gate ", || cube::sigmoid_gate(&client, &x, &five, &y, [2, n], stride));
    }
    let (of_two, one) = (weight(1, 2), Float::F32.unwritten(&client, 1));
    let layer = |bias, y| cube::LinearOfX { weight: &of_two, bias, y };
    for second in [layer(Some(&five), &one), layer(None, &five)] {
        refused("layers of one input", "has", || cube::linears(&client, &x, 1, &[layer(None, &one), second]));
    }

    // Two bytes each: read as words they would end in the middle.
    let words = Float::F32.upload(&client, &[1.0; 1]);
    let halves = Buffer::new(words.handle().clone(), 2, Float::F16.dtype());
    refused("flags of 16 bits", "not of 32 bits", || {
        let p = cube::Linear { bias: None, active: Some(&halves) };
        cube::linear(&client, &Float::F32.upload(&client, &[1.0; 4]), 2, &weight(1, 2), &y, p);
    });
    refused("ids of 16 bits", "not of 32 bits", || cube::embed(&client, &halves, &weight(1, 1), &y));
    refused("a weight of 16 bits", "not of 32 bits", || {
        let data = cube::Matrix::F32(halves.clone());
        cube::linear(
            &client,
            &x,
            1,
            &cube::Weight { n: 1, k: 2, data },
            &Float::F32.unwritten(&client, 1),
            Default::default(),
        );
    });
}

/// Two rows of 68 numbers have two scales each.
#[test]
fn a_cache_in_8_bits_has_all_its_scales() {
    let client = client();
    let (seq, heads, width) = (2, 1, 68);
    let p = StoreKv { batch: 1, seq, heads, capacity: seq, width, at: 0 };
    let shape = Attention { batch: 1, seq, heads, kv_heads: 1, key_dim: width, value_dim: width, past: 0, scale: 1.0 };
    let new = Float::F32.upload(&client, &[1.0; 136]);
    let whole = upload_cache(&client, KvFormat::Q8, &[1.0; 136], width);
    let CacheBuffer::Q8 { codes, scales } = whole.clone() else { unreachable!("asked for") };
    let few = CacheBuffer::Q8 { codes: codes.clone(), scales: Buffer::new(scales.handle().clone(), 3, scales.dtype()) };
    let integers = CacheBuffer::Q8 { codes: codes.clone(), scales: upload_words(&client, &[0; 4]) };
    for (store, names) in [(&few, "3 elements, not the 4"), (&integers, "is of")] {
        refused("an append", names, || cube::store_kv(&client, &new, store, p));
        let rows = KvRows::of_store(store.clone(), heads, seq, width);
        refused("attention", names, || cube::attention(&client, &new, &rows, &rows, &new, shape));
    }
    let shifted = KvRows { token_stride: 4, ..KvRows::of_store(whole.clone(), heads, seq, width) };
    refused("rows that overlap", "no rows of 68", || {
        cube::attention(&client, &new, &shifted, &shifted, &new, shape);
    });
    let floats = CacheBuffer::F32(Float::F32.upload(&client, &[1.0; 136]));
    refused("two formats", "in one call", || {
        let side = |stores| KvSide { new: &new, stores };
        cube::store_kv_spans(&client, &[side(std::slice::from_ref(&whole)), side(&[floats])], &[p]);
    });
    refused("half a word", "does not fill words", || {
        let p = StoreKv { batch: 1, seq: 1, heads: 1, capacity: 1, width: 6, at: 0 };
        cube::store_kv(&client, &Float::F32.upload(&client, &[1.0; 6]), &whole, p);
    });
}

/// An id beyond the table shows; a stored row beyond it stays inside.
#[test]
fn indices_from_memory_stay_inside() {
    let client = client();
    let table = Float::F32.upload(&client, &(0..12).map(|i| i as f32).collect::<Vec<_>>());
    let weight = cube::Weight { n: 3, k: 4, data: cube::Matrix::F32(table) };
    for k in [4, 3] {
        let weight = cube::Weight { n: 12 / k, k, ..weight.clone() };
        let ids = [1usize, 1 << 31, 12 / k, 0];
        let y = Float::F32.unwritten(&client, ids.len() * k);
        cube::embed(&client, &upload_ints(&client, &ids), &weight, &y);
        let got = download(&client, &y);
        for (i, row) in got.chunks_exact(k).enumerate() {
            let want = |j: usize| (ids[i] * k + j) as f32;
            match ids[i] {
                known if known < 12 / k => assert!(row.iter().enumerate().all(|(j, &x)| x == want(j)), "{got:?}"),
                unknown => assert!(row.iter().all(|x| x.is_nan()), "id {unknown} of {}: {got:?}", 12 / k),
            }
        }
    }
    let rows = cube::IntegerRows {
        wide: Some(upload_words(&client, &[0x0101_0101, 0x0202_0202])),
        wide_rows: 2,
        narrow: None,
        narrow_stride: 0,
        narrow_bits: 4,
        scales: Float::F32.upload(&client, &[1.0, 10.0]),
        slots: Some(upload_words(&client, &[u32::MAX, 0])),
    };
    let weight = cube::Weight { n: 2, k: 4, data: cube::Matrix::IntegerRows(rows) };
    let y = Float::F32.unwritten(&client, 2);
    cube::linear(&client, &Float::F32.upload(&client, &[1.0; 4]), 1, &weight, &y, Default::default());
    assert_eq!(download(&client, &y), [80.0, 4.0]);
}
