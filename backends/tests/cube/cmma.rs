//! Products of many rows of halves: on matrix instructions where the device has them.

use emberlm_backends::cpu::plain;
use emberlm_backends::cube::{self, Instructions, Linear};

use crate::common::{Kind, Rng, Stored, kinds};
use crate::device::{Client, Float, best_instructions, client, download, upload_words, with_all_instructions};
use crate::linear::upload;

/// Half a unit in the last place of a type, relative, and of its subnormal numbers.
fn half_unit(float: Float) -> (f64, f64) {
    match float {
        Float::F32 => (2f64.powi(-24), 2f64.powi(-150)),
        Float::F16 => (2f64.powi(-11), 2f64.powi(-25)),
        Float::Bf16 => (2f64.powi(-8), 2f64.powi(-134)),
    }
}

/// Whether a product with halves of a type rounds no weight: the elements of the storage, up to a factor of their row, are numbers of that type.
pub fn is_exact(kind: Kind, float: Float) -> bool {
    match kind {
        // Weights of F32 are not multiplied by matrix instructions.
        Kind::F32 | Kind::Rows { .. } => true,
        Kind::F16 => float == Float::F16,
        Kind::Bf16 => float == Float::Bf16,
        _ => false,
    }
}

/// The product and how far a result may be from it: each weight rounded once to the type of `x` (where it is not exact), sums in f32,
/// the result rounded to that type.
pub fn product(float: Float, x: &[f32], m: usize, weights: &[f32], [n, k]: [usize; 2], exact: bool) -> Vec<(f64, f64)> {
    let (half, least) = half_unit(float);
    let rounding = if exact { (0.0, 0.0) } else { (half, least) };
    (0..m * n)
        .map(|at| {
            let (row, column) = (at / n, at % n);
            let (mut sum, mut bound, mut size) = (0.0, 0.0, 0.0);
            for (x, w) in x[row * k..(row + 1) * k].iter().zip(&weights[column * k..(column + 1) * k]) {
                let (x, w) = (f64::from(*x), f64::from(*w));
                sum += x * w;
                size += (x * w).abs();
                bound += x.abs() * (rounding.0 * w.abs()).max(rounding.1);
            }
            let sums = (k + 2) as f64 * f64::from(f32::EPSILON) * size;
            (sum, bound + sums + half * (sum.abs() + bound) + least)
        })
        .collect()
}

/// Fails at the first number farther than its bound from what it should be.
pub fn within(what: &str, got: &[f32], want: &[(f64, f64)]) {
    for (i, (got, (want, bound))) in got.iter().zip(want).enumerate() {
        let off = (f64::from(*got) - want).abs();
        assert!(off <= *bound, "{what}[{i}]: {got}, expected {want}, off by {off}, may be by {bound}");
    }
}

/// Rows of `x`: a few more than are streamed, a tile and one more, a large tile and one more.
const ROWS: [usize; 6] = [9, 17, 64, 65, 128, 129];

/// Outputs and inputs: one, not a multiple of a tile, of a fragment, of a unit of eight, blocks that cross rows, several passes.
const SHAPES: [(usize, usize); 6] = [(1, 8), (5, 37), (67, 72), (3, 53), (64, 520), (130, 188)];

fn check(client: &Client, rng: &mut Rng, kind: Kind, [m, n, k]: [usize; 3], bias: bool) {
    let stored = Stored::tight(rng, kind, n, k);
    let mut weights = vec![0.0; n * k];
    plain::dequantize_rows(&stored.weight(), 0, n, &mut weights);
    let added = rng.floats(n, 1.0);
    let x = Float::F16.rounded(&rng.floats(m * k, 1.7));
    let mut want = product(Float::F16, &x, m, &weights, [n, k], is_exact(kind, Float::F16));
    if bias {
        want.iter_mut().enumerate().for_each(|(i, (want, bound))| {
            let added = f64::from(added[i % n]);
            *want += added;
            *bound += (half_unit(Float::F16).0 + f64::from(f32::EPSILON)) * added.abs();
        });
    }
    let y = Float::F16.unwritten(client, m * n);
    let (x, added) = (Float::F16.upload(client, &x), Float::F32.upload(client, &added));
    let p = Linear { bias: bias.then_some(&added), active: None };
    cube::linear(client, &x, m, &upload(client, &stored.weight()), &y, p);
    within(&format!("{kind:?} [{n}, {k}] x {m}"), &download(client, &y), &want);
}

#[test]
fn a_product_of_halves_rounds_each_weight_once() {
    if !Float::available(&client()).contains(&Float::F16) {
        return;
    }
    with_all_instructions(|client| {
        let mut rng = Rng(47);
        for (storage, kind) in kinds().into_iter().enumerate() {
            // Kernels are many: each storage meets two of three pairs of shapes, one of whole units of eight and one not.
            for (i, (n, k)) in SHAPES.into_iter().enumerate().filter(|(i, _)| i / 2 % 3 != storage % 3) {
                for m in [ROWS[i], ROWS[(i + 3) % 6]] {
                    check(client, &mut rng, kind, [m, n, k], storage % 2 == 0);
                }
            }
        }
    });
}

/// Rows of a list: their number is known to the device alone, and those that are not listed are 0.
#[test]
fn halves_of_active_rows_are_multiplied() {
    if !Float::available(&client()).contains(&Float::F16) {
        return;
    }
    with_all_instructions(|client| {
        let mut rng = Rng(48);
        let kind = Kind::Rows { wide: 3, bits: 4, slots: true };
        for ((n, k), m) in [((67, 72), 129), ((5, 37), 200), ((130, 264), 20)] {
            let stored = Stored::tight(&mut rng, kind, n, k);
            let mut weights = vec![0.0; n * k];
            plain::dequantize_rows(&stored.weight(), 0, n, &mut weights);
            let x = Float::F16.rounded(&rng.floats(m * k, 1.7));
            let on_device = upload(client, &stored.weight());
            for share in [2, 3, m as u64] {
                let flags: Vec<u32> = (0..m).map(|_| u32::from(rng.word().is_multiple_of(share))).collect();
                let mut want = product(Float::F16, &x, m, &weights, [n, k], true);
                want.iter_mut().enumerate().filter(|(i, _)| flags[i / n] == 0).for_each(|(_, want)| *want = (0.0, 0.0));
                let y = Float::F16.unwritten(client, m * n);
                let p = Linear { bias: None, active: Some(&upload_words(client, &flags)) };
                cube::linear(client, &Float::F16.upload(client, &x), m, &on_device, &y, p);
                within(&format!("[{n}, {k}] x {m}, one row of {share}"), &download(client, &y), &want);
            }
        }
    });
}

/// Matrix instructions leave their mark: they round weights that a plain product keeps as they are.
#[test]
fn matrix_instructions_are_used_where_the_device_has_them() {
    let client = client();
    if best_instructions(&client) < Instructions::Matrices {
        return;
    }
    let (m, n, k) = (40, 70, 96);
    // 2⁻³⁰ twice: a number of BF16 that is 0 in F16.
    let data = cube::Matrix::Bf16(upload_words(&client, &vec![0x3080_3080; n * k / 2]));
    let tiny = cube::Weight { n, k, data };
    let x = Float::F16.upload(&client, &vec![1024.0; m * k]);
    let results = [Instructions::Plain, Instructions::Matrices].map(|instructions| {
        cube::with_instructions(instructions, || {
            let y = Float::F16.unwritten(&client, m * n);
            cube::linear(&client, &x, m, &tiny, &y, Linear::default());
            download(&client, &y)
        })
    });
    assert!(results[0].iter().all(|&y| y > 5e-5), "{:?}", results[0][0]);
    assert!(results[1].iter().all(|&y| y == 0.0), "{:?}", results[1][0]);
}
