//! The largest numbers of long rows.

use std::cmp::Ordering;

use cubecl::ir::{ElemType, IntKind};
use emberlm_backends::cube::{self, Buffer, TopK};

use crate::common::Rng;
use crate::device::{Client, Float, client, download, download_words};

/// Values and columns on the device, of rows of `n`.
fn found(client: &Client, float: Float, x: &[f32], n: usize, k: usize) -> (Vec<f32>, Vec<u32>) {
    let m = x.len() / n;
    let values = Float::F32.unwritten(client, m * k);
    // Ones everywhere: no column.
    let columns = Float::F32.unwritten(client, m * k);
    let columns = Buffer::new(columns.handle().clone(), m * k, ElemType::Int(IntKind::I32));
    cube::top_k(client, &float.upload(client, x), &values, &columns, TopK { m, n, k });
    (download(client, &values), download_words(client, &columns))
}

/// The same by a sort of the whole row.
fn expected(x: &[f32], n: usize, k: usize) -> (Vec<f32>, Vec<u32>) {
    let (mut values, mut columns) = (Vec::new(), Vec::new());
    for row in x.chunks(n) {
        let mut order: Vec<usize> = (0..n).collect();
        let largest_first = |&a: &usize, &b: &usize| match (row[a].is_nan(), row[b].is_nan()) {
            (true, true) => Ordering::Equal,
            (a_is, b_is) if a_is || b_is => b_is.cmp(&a_is),
            _ => row[b].partial_cmp(&row[a]).expect("numbers"),
        };
        order.sort_by(largest_first); // stable: the lowest column among equals comes first
        values.extend(order[..k].iter().map(|&column| row[column]));
        columns.extend(order[..k].iter().map(|&column| column as u32));
    }
    (values, columns)
}

#[track_caller]
fn assert_found(client: &Client, float: Float, x: &[f32], n: usize, k: usize) {
    let what = format!("{k} of {n} in {} rows of {float:?}", x.len() / n);
    let (values, columns) = found(client, float, x, n, k);
    let (want_values, want_columns) = expected(x, n, k);
    assert_eq!(columns, want_columns, "{what}");
    for (got, want) in values.iter().zip(&want_values) {
        assert!(got == want || (got.is_nan() && want.is_nan()), "{what}: {got} for {want}");
    }
}

#[test]
fn the_largest_are_those_of_a_sort() {
    let client = client();
    let mut rng = Rng(51);
    for float in Float::available(&client) {
        for (n, m) in [(1, 1), (1, 3), (37, 2), (1024, 1), (1025, 2), (32_000, 1), (70_000, 3)] {
            for k in [1, 5, 40, 64, 256] {
                if k > n {
                    continue;
                }
                let x = float.rounded(&rng.floats(m * n, 9.0));
                assert_found(&client, float, &x, n, k);
                // Many equal ones: at the border between those found and the rest too.
                let coarse: Vec<f32> = x.iter().map(|x| x.round()).collect();
                assert_found(&client, float, &coarse, n, k);
            }
        }
    }
}

#[test]
fn numbers_that_are_none_come_first() {
    let client = client();
    let (nan, infinity) = (f32::NAN, f32::INFINITY);
    let mut x = vec![-infinity; 3000];
    assert_found(&client, Float::F32, &x, 3000, 5);
    x[2999] = -3.0;
    x[1500] = f32::MIN_POSITIVE;
    x[1501] = -0.0;
    x[1502] = 0.0;
    x[7] = f32::MAX;
    assert_found(&client, Float::F32, &x, 3000, 8);
    x[2500] = infinity;
    assert_found(&client, Float::F32, &x, 3000, 8);
    x[1100] = nan;
    x[1101] = -nan;
    assert_found(&client, Float::F32, &x, 3000, 8);
}
