//! Linear layers, embeddings and the SwiGLU block against their plain twins, at every level of this machine.

mod common;

use common::{Kind, Rng, Stored, close, kinds};
use emberlm_backends::cpu::{self, Level, Mlp, plain};

/// Inputs below, at and above the vector, group, block and tile sizes.
const INPUTS: [usize; 12] = [1, 3, 31, 50, 64, 65, 128, 192, 256, 320, 513, 1088];

#[test]
fn linear_matches_its_twin() {
    let mut rng = Rng(1);
    for kind in kinds() {
        for (i, k) in INPUTS.into_iter().enumerate() {
            let n = [1, 2, 5, 7, 13, 64, 29][i % 7];
            let stored = Stored::new(&mut rng, kind, n, k);
            let bias = rng.floats(n, 1.0);
            for m in [1, 2, 3, 4, 5, 6, 7, 8, 9, 17, 33, 129] {
                let x = rng.floats(m * k, 1.7);
                let bias = (m % 2 == 1).then_some(&bias[..]);
                let mut want = vec![0.0; m * n];
                plain::linear(&x, m, &stored.weight(), bias, &mut want);
                for level in Level::available() {
                    let mut got = vec![f32::NAN; m * n];
                    cpu::with_level(level, || cpu::linear(&x, m, &stored.weight(), bias, &mut got));
                    close(&format!("{kind:?} [{n}, {k}] x {m} on {}", level.name()), &got, &want, 1e-5);
                }
            }
        }
    }
}

#[test]
fn a_matrix_split_over_threads_matches_its_twin() {
    let mut rng = Rng(2);
    for kind in [Kind::Double { block: 64, nested: 256 }, Kind::Bf16, Kind::Rows { wide: 100, bits: 4, slots: true }] {
        let (n, k) = (1003, 512);
        let stored = Stored::new(&mut rng, kind, n, k);
        for m in [1, 4, 40] {
            let x = rng.floats(m * k, 1.7);
            let (mut got, mut want) = (vec![f32::NAN; m * n], vec![0.0; m * n]);
            cpu::linear(&x, m, &stored.weight(), None, &mut got);
            plain::linear(&x, m, &stored.weight(), None, &mut want);
            close(&format!("{kind:?} x {m}"), &got, &want, 1e-5);
        }
    }
}

#[test]
fn dequantised_rows_are_exact() {
    let mut rng = Rng(3);
    for kind in kinds() {
        for k in INPUTS {
            let stored = Stored::new(&mut rng, kind, 9, k);
            let ids = [8, 0, 3, 3, 7];
            let mut want = vec![0.0; 9 * k];
            plain::dequantize_rows(&stored.weight(), 0, 9, &mut want);
            for level in Level::available() {
                let name = format!("{kind:?} k = {k} on {}", level.name());
                let (mut rows, mut gathered) = (vec![f32::NAN; 4 * k], vec![f32::NAN; ids.len() * k]);
                cpu::with_level(level, || {
                    cpu::dequantize_rows(&stored.weight(), 2, 4, &mut rows);
                    cpu::embed(&ids, &stored.weight(), &mut gathered);
                });
                assert_eq!(rows, want[2 * k..6 * k], "{name}");
                for (id, row) in ids.iter().zip(gathered.chunks_exact(k)) {
                    assert_eq!(row, &want[id * k..(id + 1) * k], "{name}, row {id}");
                }
            }
        }
    }
}

#[test]
fn a_nan_stays_in_its_row() {
    let mut rng = Rng(4);
    for kind in kinds() {
        let (n, k) = (5, 320);
        let stored = Stored::new(&mut rng, kind, n, k);
        for m in [1, 2, 5, 20] {
            let mut x = rng.floats(m * k, 1.0);
            x[(m - 1) * k + 7] = f32::NAN;
            for level in Level::available() {
                let mut y = vec![0.0; m * n];
                cpu::with_level(level, || cpu::linear(&x, m, &stored.weight(), None, &mut y));
                let (clean, hit) = y.split_at((m - 1) * n);
                assert!(clean.iter().all(|y| y.is_finite()), "{kind:?} x {m} on {}", level.name());
                assert!(hit.iter().all(|y| y.is_nan()), "{kind:?} x {m} on {}", level.name());
            }
        }
    }
}

#[test]
fn empty_sizes_are_no_error() {
    let stored = Stored::new(&mut Rng(5), Kind::F32, 3, 0);
    let mut y = [f32::NAN; 6];
    cpu::linear(&[], 2, &stored.weight(), Some(&[1.0, 2.0, 3.0]), &mut y);
    assert_eq!(y, [1.0, 2.0, 3.0, 1.0, 2.0, 3.0]);
    cpu::linear(&[], 0, &stored.weight(), None, &mut []);
}

#[test]
#[should_panic(expected = "bytes of codes")]
fn codes_one_byte_short_are_refused() {
    let stored = Stored::new(&mut Rng(6), Kind::Single { block: 64 }, 3, 65);
    let mut w = stored.weight();
    w.k = 67;
    cpu::linear(&[0.0; 67], 1, &w, None, &mut [0.0; 3]);
}

#[test]
fn swiglu_matches_its_twin_on_the_active_rows() {
    let mut rng = Rng(7);
    for kind in [Kind::F32, Kind::Double { block: 64, nested: 256 }, Kind::Rows { wide: 3, bits: 4, slots: true }] {
        let (hidden, inner) = (64, 192);
        let gate = Stored::new(&mut rng, kind, inner, hidden);
        let up = Stored::new(&mut rng, kind, inner, hidden);
        let down = Stored::new(&mut rng, kind, hidden, inner);
        let mlp = Mlp { gate: gate.weight(), up: up.weight(), down: down.weight() };
        for m in [1, 3, 17, 40] {
            let x = rng.floats(m * hidden, 3.0);
            let some: Vec<bool> = (0..m).map(|i| i % 3 == 1).collect();
            for active in [None, Some(&some[..])] {
                let mut want = vec![0.0; m * hidden];
                plain::swiglu_mlp(&x, m, &mlp, active, &mut want);
                for level in Level::available() {
                    let mut got = vec![f32::NAN; m * hidden];
                    cpu::with_level(level, || cpu::swiglu_mlp(&x, m, &mlp, active, &mut got));
                    close(&format!("{kind:?} x {m} on {}", level.name()), &got, &want, 1e-5);
                }
            }
        }
    }
}

#[test]
fn swiglu_without_an_active_row_is_zero() {
    // Weights of NaN: reading one would show.
    let nan = vec![f32::NAN; 64];
    let w = cpu::Weight { n: 8, k: 8, data: cpu::Matrix::F32(&nan) };
    let mut y = [1.0; 16];
    cpu::swiglu_mlp(&[1.0; 16], 2, &Mlp { gate: w, up: w, down: w }, Some(&[false; 2]), &mut y);
    assert_eq!(y, [0.0; 16]);
}
