//! Products of many rows of x with BF16 weights where x may be rounded.

mod common;

use common::{Kind, Rng, Stored};
use emberlm_backends::cpu::{self, Level, Precision, Weight, plain};
use half::bf16;

/// Whether a level rounds so many rows of x to BF16; elsewhere the option changes nothing, which is tested too.
fn rounds(level: Level, m: usize) -> bool {
    level == Level::Avx512 && cpu::features().contains(&"avx512bf16") && m > 32
}

fn product(precision: Precision, x: &[f32], m: usize, w: &Weight, bias: Option<&[f32]>) -> Vec<f32> {
    let mut y = vec![f32::NAN; m * w.n];
    cpu::with_precision(precision, || cpu::linear(x, m, w, bias, &mut y));
    y
}

#[test]
fn linear_matches_a_loop_over_rounded_rows() {
    let mut rng = Rng(31);
    for (i, k) in [1, 2, 3, 31, 64, 65, 255, 256, 257, 513, 1088].into_iter().enumerate() {
        let n = [1, 5, 12, 13, 29, 97, 200][i % 7];
        let stored = Stored::new(&mut rng, Kind::Bf16, n, k);
        let (w, bias) = (stored.weight(), rng.floats(n, 1.0));
        let mut weights = vec![0.0; n * k];
        plain::dequantize_rows(&w, 0, n, &mut weights);
        for m in [1, 32, 33, 40, 48, 49, 64, 100] {
            let x = rng.floats(m * k, 1.7);
            let bias = (m % 2 == 1).then_some(&bias[..]);
            for level in Level::available() {
                let name = format!("[{n}, {k}] x {m} on {}", level.name());
                let run = |precision| cpu::with_level(level, || product(precision, &x, m, &w, bias));
                let got = run(Precision::Int8Activations);
                if !rounds(level, m) {
                    assert!(got == run(Precision::Exact), "{name}");
                    continue;
                }
                for (at, got) in got.into_iter().enumerate() {
                    let (row, j) = (at / n, at % n);
                    let start = bias.map_or(0.0, |bias| f64::from(bias[j]));
                    let (mut want, mut size) = (start, start.abs());
                    for (x, w) in x[row * k..(row + 1) * k].iter().zip(&weights[j * k..(j + 1) * k]) {
                        let term = bf16::from_f32(*x).to_f64() * f64::from(*w);
                        (want, size) = (want + term, size + term.abs());
                    }
                    let off = (f64::from(got) - want).abs();
                    // What sums in f32 may lose; rounding x changes a thousand times as much.
                    assert!(off <= 2e-6 * size.max(0.01), "{name}, row {row}, output {j}: {got}, expected {want}");
                }
            }
        }
    }
}

#[test]
fn a_row_has_the_same_bits_whatever_its_neighbours_are() {
    let mut rng = Rng(32);
    let (n, k) = (37, 320);
    let stored = Stored::new(&mut rng, Kind::Bf16, n, k);
    let x = rng.floats(100 * k, 1.0);
    let all = product(Precision::Int8Activations, &x, 100, &stored.weight(), None);
    for (first, m) in [(0, 33), (5, 40), (20, 49), (36, 64)] {
        let some = product(Precision::Int8Activations, &x[first * k..(first + m) * k], m, &stored.weight(), None);
        assert!(some == all[first * n..(first + m) * n], "{m} rows from {first} on");
    }
}

#[test]
fn a_head_and_a_value_that_is_not_finite() {
    let mut rng = Rng(33);
    let (n, k, m) = (5, 321, 34);
    let stored = Stored::new(&mut rng, Kind::Bf16, n, k);
    let mut x = rng.floats(m * k, 1.0);
    let (mut head, mut exact) = (vec![f32::NAN; m * n], vec![f32::NAN; m * n]);
    cpu::with_precision(Precision::Int8Activations, || cpu::head(&x, m, &stored.weight(), None, &mut head));
    cpu::head(&x, m, &stored.weight(), None, &mut exact);
    assert!(head == exact, "a head stays exact");
    for bad in [f32::NAN, f32::INFINITY] {
        x[(m - 1) * k + 320] = bad;
        let y = product(Precision::Int8Activations, &x, m, &stored.weight(), None);
        let (clean, hit) = y.split_at((m - 1) * n);
        assert!(clean.iter().all(|y| y.is_finite()) && hit.iter().all(|y| !y.is_finite()), "{bad}");
    }
}
