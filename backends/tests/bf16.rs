//! Products with BF16 weights of x in BF16: against loops over rounded rows, and a row alone against the same among others.

mod common;

use common::{Kind, Rng, Stored, kinds};
use emberlm_backends::cpu::{self, Level, Matrix, Mlp, Precision, Product, Weight, plain};
use half::bf16;

/// What f32 loses in one addition, relative to the sum.
const ROUNDING: f64 = 1.0 / (1 << 24) as f64;

/// Whether products at a level are those of an instruction; elsewhere they are those of f32.
fn multiplies(level: Level) -> bool {
    level == Level::Avx512 && cpu::features().contains(&"avx512bf16")
}

fn product(precision: Precision, x: &[f32], m: usize, w: &Weight, bias: Option<&[f32]>) -> Vec<f32> {
    let mut y = vec![f32::NAN; m * w.n];
    cpu::with_precision(precision, || cpu::linear(x, m, w, bias, &mut y));
    y
}

fn rounded(x: &[f32]) -> Vec<f32> {
    x.iter().map(|x| bf16::from_f32(*x).to_f32()).collect()
}

/// The rows of a matrix as f32.
fn values(w: &Weight) -> Vec<f32> {
    let mut values = vec![0.0; w.n * w.k];
    plain::dequantize_rows(w, 0, w.n, &mut values);
    values
}

/// One element as the instruction adds it up, which the manuals of AMD and Intel say: of each pair the second product first, each
/// addition rounded. Lane `i` of 16 takes the pairs `i`, `i + 16`, ... of 1024 elements, then lanes are added.
fn in_order(x: &[f32], w: &[f32], bias: Option<f32>) -> f32 {
    let mut total = 0.0;
    for (x, w) in x.chunks(1024).zip(w.chunks(1024)) {
        let mut lanes = [0.0f32; 16];
        for (x, w) in x.chunks(32).zip(w.chunks(32)) {
            for (lane, (x, w)) in lanes.iter_mut().zip(x.chunks(2).zip(w.chunks(2))) {
                for (x, w) in x.iter().zip(w).rev() {
                    *lane += x * w;
                }
            }
        }
        let four: [f32; 4] =
            std::array::from_fn(|i| (lanes[4 * i] + lanes[4 * i + 2]) + (lanes[4 * i + 1] + lanes[4 * i + 3]));
        total += (four[0] + four[2]) + (four[1] + four[3]);
    }
    total + bias.unwrap_or(0.0)
}

#[test]
fn linear_matches_a_loop_over_rounded_rows() {
    let mut rng = Rng(31);
    for (i, k) in [1, 2, 3, 31, 32, 33, 64, 65, 255, 513, 1023, 1024, 1056, 2049].into_iter().enumerate() {
        let n = [1, 3, 4, 5, 29, 32, 33, 71][i % 8];
        let stored = Stored::new(&mut rng, Kind::Bf16, n, k);
        let (w, bias) = (stored.weight(), rng.floats(n, 1.0));
        let weights = values(&w);
        for m in [1, 2, 3, 4, 5, 7, 8, 9, 12, 33, 128, 131] {
            let x = rng.floats(m * k, 1.7);
            let halves = rounded(&x);
            let bias = (m % 2 == 1).then_some(&bias[..]);
            for level in Level::available() {
                let name = format!("[{n}, {k}] x {m} on {}", level.name());
                let run = |precision, x: &[f32]| cpu::with_level(level, || product(precision, x, m, &w, bias));
                let got = run(Precision::Bf16Activations, &x);
                if !multiplies(level) {
                    assert!(got == run(Precision::Exact, &halves), "{name}: not exact for rounded x");
                }
                for (at, got) in got.into_iter().enumerate() {
                    let (row, j) = (at / n, at % n);
                    let (x, w) = (&halves[row * k..(row + 1) * k], &weights[j * k..(j + 1) * k]);
                    let bias = bias.map(|bias| bias[j]);
                    let terms = x.iter().zip(w).map(|(x, w)| f64::from(*x) * f64::from(*w));
                    let terms = terms.chain(bias.map(f64::from));
                    let (want, size) = terms.fold((0.0, 0.0), |(sum, size), term| (sum + term, size + term.abs()));
                    // Each product is exact in f32, and each is added, or a sum that holds it, this often at most.
                    let additions = if multiplies(level) { 64 + 4 + k.div_ceil(1024) } else { k } + 1;
                    let off = (f64::from(got) - want).abs();
                    let allowed = additions as f64 * ROUNDING * 1.001 * size;
                    assert!(off <= allowed, "{name}, row {row}, output {j}: {got}, expected {want} within {allowed:e}");
                    if multiplies(level) {
                        assert_eq!(got, in_order(x, w, bias), "{name}, row {row}, output {j}: in another order");
                    }
                }
            }
        }
    }
}

#[test]
fn a_row_has_the_same_bits_whatever_its_neighbours_are() {
    let mut rng = Rng(32);
    for (n, k) in [(37, 320), (64, 1100), (7, 77), (3, 9000)] {
        let stored = Stored::new(&mut rng, Kind::Bf16, n, k);
        let x = rng.floats(300 * k, 1.0);
        for level in Level::available().into_iter().filter(|level| multiplies(*level)) {
            for threads in [1, 3] {
                let run = |first: usize, m| {
                    let x = &x[first * k..(first + m) * k];
                    let product = || product(Precision::Bf16Activations, x, m, &stored.weight(), None);
                    cpu::with_threads(threads, || cpu::with_level(level, product)).expect("threads")
                };
                let all = run(0, 300);
                for m in [1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 31, 32, 33, 64, 127, 128, 129, 257] {
                    for first in [0, 5, 300 - m].into_iter().filter(|first| first + m <= 300) {
                        let what = format!("[{n}, {k}], {m} rows from {first} on, {threads} threads");
                        assert!(run(first, m) == all[first * n..(first + m) * n], "{what}");
                    }
                }
            }
        }
    }
}

#[test]
fn the_head_is_rounded_too_and_several_products_share_x() {
    let mut rng = Rng(33);
    let k = 320;
    let kinds = [Kind::Bf16, Kind::F16, Kind::Int8, Kind::Bf16];
    let stored: Vec<_> =
        kinds.into_iter().zip([5, 6, 7, 40]).map(|(kind, n)| Stored::new(&mut rng, kind, n, k)).collect();
    for m in [1, 6, 40] {
        let x = rng.floats(m * k, 1.0);
        for level in Level::available() {
            let want = |stored: &Stored, precision| {
                cpu::with_level(level, || product(precision, &x, m, &stored.weight(), None))
            };
            let mut head = vec![f32::NAN; m * 5];
            cpu::with_level(level, || {
                cpu::with_precision(Precision::Bf16Activations, || {
                    cpu::head(&x, m, &stored[0].weight(), None, &mut head)
                });
            });
            assert!(head == want(&stored[0], Precision::Bf16Activations), "head x {m} on {}", level.name());
            assert!(head != want(&stored[0], Precision::Exact), "head x {m} on {}", level.name());
            let mut outputs: Vec<_> = stored.iter().map(|w| vec![f32::NAN; m * w.n]).collect();
            let mut products: Vec<_> = stored
                .iter()
                .zip(&mut outputs)
                .map(|(stored, y)| Product { weight: stored.weight(), bias: None, y })
                .collect();
            cpu::with_level(level, || {
                cpu::with_precision(Precision::Bf16Activations, || cpu::linears(&x, m, &mut products));
            });
            for (stored, y) in stored.iter().zip(&outputs) {
                assert!(*y == want(stored, Precision::Bf16Activations), "{} x {m} on {}", stored.n, level.name());
            }
        }
    }
}

#[test]
fn other_weights_stay_exact() {
    let mut rng = Rng(34);
    for kind in kinds() {
        let stored = Stored::new(&mut rng, kind, 9, 192);
        for m in [1, 3, 40] {
            let x = rng.floats(m * 192, 1.0);
            for level in Level::available() {
                let run = |precision| cpu::with_level(level, || product(precision, &x, m, &stored.weight(), None));
                let same = run(Precision::Bf16Activations) == run(Precision::Exact);
                assert_eq!(same, !matches!(kind, Kind::Bf16), "{kind:?} x {m} on {}", level.name());
            }
        }
    }
}

/// ... and a matrix of few rows, as a gate is, keeps its x.
#[test]
fn by_themselves_weights_choose_what_is_faster() {
    let mut rng = Rng(35);
    for (kind, n) in kinds().into_iter().flat_map(|kind| [9, 63, 64].map(|n| (kind, n))) {
        let stored = Stored::new(&mut rng, kind, n, 192);
        for m in [1, 3, 40] {
            let x = rng.floats(m * 192, 1.0);
            for level in Level::available() {
                let run = |precision| cpu::with_level(level, || product(precision, &x, m, &stored.weight(), None));
                let like = match kind {
                    Kind::Bf16 if multiplies(level) && n >= 64 => Precision::Bf16Activations,
                    Kind::Bf16 => Precision::Exact,
                    _ => Precision::Int8Activations,
                };
                assert!(run(Precision::Auto) == run(like), "{kind:?} of {n} rows x {m} on {}", level.name());
                assert_eq!(level.multiplies_bf16(), multiplies(level));
            }
        }
    }
}

/// Bits of BF16 that are no numbers, or at the ends of what it holds.
#[test]
fn values_that_are_not_finite_stay_in_their_row_and_column() {
    let mut rng = Rng(36);
    let (n, k) = (6, 321);
    let clean: Vec<u16> = (0..n * k).map(|_| bf16::from_f32(rng.float(0.1)).to_bits()).collect();
    for m in [1, 5, 9, 34] {
        for bad in [f32::NAN, -f32::NAN, f32::INFINITY, f32::NEG_INFINITY, f32::MAX] {
            for place in [0, 5, k - 1] {
                let mut x = rng.floats(m * k, 1.0);
                x[(m - 1) * k + place] = bad;
                let mut halves = clean.clone();
                halves[2 * k + place] = bf16::from_f32(bad).to_bits();
                for level in Level::available() {
                    let run = |x: &[f32], halves: &[u16]| {
                        let w = Weight { n, k, data: Matrix::Bf16(halves) };
                        cpu::with_level(level, || product(Precision::Bf16Activations, x, m, &w, None))
                    };
                    let name = format!("{bad} at {place} x {m} on {}", level.name());
                    let y = run(&x, &clean);
                    let (others, hit) = y.split_at((m - 1) * n);
                    assert!(others.iter().all(|y| y.is_finite()), "{name}");
                    assert!(hit.iter().all(|y| !y.is_finite()), "{name}: {hit:?}");
                    let mut ones = x.clone();
                    ones[(m - 1) * k + place] = 1.0;
                    for row in run(&ones, &halves).chunks(n) {
                        let finite: Vec<bool> = row.iter().map(|y| y.is_finite()).collect();
                        assert_eq!(finite, [true, true, false, true, true, true], "{name}, in the weights");
                    }
                }
            }
        }
    }
}

#[test]
fn zeros_and_the_smallest_numbers_give_the_bias() {
    let stored = Stored::new(&mut Rng(37), Kind::Bf16, 3, 193);
    for m in [1, 20] {
        for tiny in [0.0, -0.0, 1e-45, f32::MIN_POSITIVE / 2.0] {
            for level in Level::available() {
                let x = vec![tiny; m * 193];
                let run = || product(Precision::Bf16Activations, &x, m, &stored.weight(), Some(&[1.0, 2.0, 3.0]));
                let y = cpu::with_level(level, run);
                assert!(y.chunks_exact(3).all(|y| y == [1.0, 2.0, 3.0]), "{tiny:e} x {m} on {}: {y:?}", level.name());
            }
        }
    }
}

#[test]
fn nothing_times_nothing() {
    for (m, n, k) in [(0, 3, 8), (2, 0, 8), (2, 3, 0)] {
        let halves = vec![0; n * k];
        let w = Weight { n, k, data: Matrix::Bf16(&halves) };
        for level in Level::available() {
            let run = || product(Precision::Bf16Activations, &vec![1.0; m * k], m, &w, None);
            assert_eq!(cpu::with_level(level, run), vec![0.0; m * n], "{m}, {n}, {k} on {}", level.name());
        }
    }
}

#[test]
fn the_mlp_is_made_of_such_products() {
    let mut rng = Rng(38);
    let (hidden, inner) = (96, 200);
    let [gate, up] = [(); 2].map(|()| Stored::new(&mut rng, Kind::Bf16, inner, hidden));
    let down = Stored::new(&mut rng, Kind::Bf16, hidden, inner);
    let mlp = Mlp { gate: gate.weight(), up: up.weight(), down: down.weight() };
    for m in [1, 3, 20, 33] {
        let x = rng.floats(m * hidden, 3.0);
        let active: Vec<bool> = (0..m).map(|i| i % 3 != 1).collect();
        for level in Level::available() {
            let run = |precision, active| {
                let mut y = vec![f32::NAN; m * hidden];
                let mlp = || cpu::swiglu_mlp(&x, m, &mlp, active, &mut y);
                cpu::with_level(level, || cpu::with_precision(precision, mlp));
                y
            };
            let linear =
                |x: &[f32], w: &Weight| cpu::with_level(level, || product(Precision::Bf16Activations, x, m, w, None));
            let (gate, up) = (linear(&x, &mlp.gate), linear(&x, &mlp.up));
            let middle: Vec<f32> = gate.iter().zip(up).map(|(gate, up)| gate / (1.0 + (-gate).exp()) * up).collect();
            let (want, got) = (linear(&middle, &mlp.down), run(Precision::Bf16Activations, None));
            let size = want.iter().fold(0f32, |a, b| a.max(b.abs()));
            let name = format!("x {m} on {}", level.name());
            for (got, want) in got.iter().zip(&want) {
                // The SiLU is off in the last digits, and here and there an element between two of BF16 goes the other way.
                assert!((got - want).abs() <= 2e-4 * size, "{name}: {got}, expected {want}, largest {size}");
            }
            assert!(got != run(Precision::Exact, None), "{name}: not rounded");
            let some = run(Precision::Bf16Activations, Some(&active[..]));
            for (i, active) in active.iter().enumerate() {
                let at = i * hidden..(i + 1) * hidden;
                let zeros = vec![0.0; hidden];
                let want = if *active { &got[at.clone()] } else { &zeros[..] };
                let same = if multiplies(level) {
                    some[at] == *want
                } else {
                    some[at].iter().zip(want).all(|(a, b)| (a - b).abs() <= 2e-4 * size)
                };
                assert!(same, "{name}, row {i} of those that are active");
            }
        }
    }
}
