//! Products with x in 8 bits: against a loop of the same integers, and their error against exact arithmetic.

#[path = "../common/mod.rs"]
mod common;
mod twin;

use common::{Kind, Rng, Stored, close};
use emberlm_backends::cpu::{self, BlockScales, CodeBook4, Level, Matrix, Mlp, Precision, Weight, plain};
use half::f16;
use twin::{HEAD, OUTLIER, blocks_in_order, rounded, twin};

/// The book of NF4.
const NF4: [f32; 16] = [
    -1.0,
    -0.696_192_8,
    -0.525_073_05,
    -0.394_917_5,
    -0.284_441_4,
    -0.184_773_43,
    -0.091_050_036,
    0.0,
    0.079_580_3,
    0.160_930_2,
    0.246_112_3,
    0.337_915_24,
    0.440_709_83,
    0.562_617,
    0.722_956_84,
    1.0,
];

/// Whether a level has the kernels; elsewhere the option changes nothing, which is tested too.
fn rounds(level: Level) -> bool {
    let has = |name| cpu::features().contains(&name);
    match level {
        Level::Scalar => false,
        Level::Neon => has("dotprod"),
        Level::Avx2 | Level::AvxVnni | Level::Avx512 => true,
    }
}

fn int8(x: &[f32], m: usize, w: &Weight, bias: Option<&[f32]>) -> Vec<f32> {
    let mut y = vec![f32::NAN; m * w.n];
    cpu::with_precision(Precision::Int8Activations, || cpu::linear(x, m, w, bias, &mut y));
    y
}

fn int8_head(x: &[f32], m: usize, w: &Weight, bias: Option<&[f32]>) -> Vec<f32> {
    let mut y = vec![f32::NAN; m * w.n];
    cpu::with_precision(Precision::Int8Activations, || cpu::head(x, m, w, bias, &mut y));
    y
}

const KINDS: [Kind; 10] = [
    Kind::Single { block: 64 },
    Kind::Single { block: 128 },
    Kind::Double { block: 64, nested: 256 },
    Kind::Double { block: 64, nested: 3 },
    // The fewest scales per absmax of which a table is made.
    Kind::Double { block: 64, nested: 64 },
    // Another absmax within a row.
    Kind::Double { block: 64, nested: 4 },
    Kind::Int8,
    Kind::Rows { wide: usize::MAX, bits: 4, slots: false },
    Kind::Rows { wide: 3, bits: 4, slots: true },
    Kind::Rows { wide: 2, bits: 2, slots: true },
];

#[test]
fn linear_matches_a_loop_of_the_same_integers() {
    let mut rng = Rng(11);
    for kind in KINDS {
        for (i, k) in [64, 128, 192, 256, 320, 448, 512, 576, 1088, 64].into_iter().enumerate() {
            // The last is large enough for a head; every second product is one.
            let n = if i == 9 { 519 } else { [1, 5, 13, 64, 29][i % 5] };
            let stored = Stored::new(&mut rng, kind, n, k);
            let bias = rng.floats(n, 1.0);
            for m in [1, 2, 3, 4, 5, 6, 7, 8, 9, 16, 17, 32, 33, 50] {
                let mut x = rng.floats(m * k, 1.7);
                // An outlier channel, in one row larger than 15 bits hold beside the others, and one elsewhere in each row.
                for (row, x) in x.chunks_exact_mut(k).enumerate().filter(|_| m % 4 != 0) {
                    x[k / 2 + 3] *= if row == 3 { 1e4 } else { 150.0 };
                    x[(37 * row + 5) % k] *= 60.0;
                }
                let bias = (m % 2 == 1).then_some(&bias[..]);
                let is_head = (i + m) % 2 == 0;
                let (want, size) = twin(&x, m, &stored.weight(), bias, if is_head { HEAD } else { OUTLIER });
                for level in Level::available() {
                    let product = if is_head { int8_head } else { int8 };
                    let got = cpu::with_level(level, || product(&x, m, &stored.weight(), bias));
                    if !rounds(level) {
                        let mut exact = vec![f32::NAN; m * n];
                        cpu::with_level(level, || cpu::linear(&x, m, &stored.weight(), bias, &mut exact));
                        assert_eq!(got, exact, "{kind:?} [{n}, {k}] x {m} on {}", level.name());
                        continue;
                    }
                    for (j, ((got, want), size)) in got.iter().zip(&want).zip(&size).enumerate() {
                        // A lane adds a few f32 terms that may be larger than a block's sum.
                        assert!(
                            (f64::from(*got) - want).abs() <= 1e-6 * size.max(want.abs()).max(0.5),
                            "{kind:?} [{n}, {k}] x {m} [{j}] on {}: {got}, expected {want} of terms {size}",
                            level.name()
                        );
                    }
                }
            }
        }
    }
}

#[test]
fn the_error_against_exact_products_is_small() {
    let mut rng = Rng(12);
    let (n, k, m) = (512, 2048, 16);
    // Normal weights as NF4 stores them, normal activations.
    let mut normal =
        |len: usize| -> Vec<f32> { (0..len).map(|_| (0..12).map(|_| rng.float(0.5)).sum::<f32>()).collect() };
    let (weights, x) = (normal(n * k), normal(m * k));
    let (mut scales, mut codes) = (Vec::new(), vec![0u8; n * k / 2]);
    for (b, block) in weights.chunks_exact(64).enumerate() {
        let largest = block.iter().fold(0.0f32, |largest, w| largest.max(w.abs()));
        scales.push(largest);
        for (e, w) in block.iter().enumerate() {
            let off = |code: &usize| (NF4[*code] - w / largest).abs();
            let code = (0..16).min_by(|a, b| off(a).total_cmp(&off(b))).unwrap() as u8;
            codes[(b * 64 + e) / 2] |= code << (4 * (1 - e % 2));
        }
    }
    let data = cpu::CodeBook4 { codes: &codes, code_book: &NF4, block: 64, scales: cpu::BlockScales::Single(&scales) };
    let w = Weight { n, k, data: Matrix::CodeBook4(data) };
    let mut exact = vec![0.0; m * n];
    plain::linear(&x, m, &w, None, &mut exact);
    let mut full = vec![0.0; m * n];
    plain::linear(&x, m, &Weight { n, k, data: Matrix::F32(&weights) }, None, &mut full);
    let rms = |v: &[f32]| (v.iter().map(|v| f64::from(*v).powi(2)).sum::<f64>() / v.len() as f64).sqrt();
    let error = |a: &[f32], b: &[f32]| -> Vec<f32> { a.iter().zip(b).map(|(a, b)| a - b).collect() };
    let size = rms(&exact);
    for m in [1, 16] {
        let off = error(&int8(&x[..m * k], m, &w, None), &exact[..m * n]);
        let largest = off.iter().fold(0.0f32, |largest, e| largest.max(e.abs()));
        let relative = (rms(&off) / size, f64::from(largest) / size);
        println!(
            "x {m}: rms {:.5}, max {:.5} of the rms result; NF4 itself {:.5}; book {:?}",
            relative.0,
            relative.1,
            rms(&error(&exact, &full)) / size,
            rounded(&NF4)
        );
        assert!(relative.0 < 0.012 && relative.1 < 0.06, "{relative:?}");
        // Not exact by accident: the option was taken.
        assert_eq!(relative.0 > 1e-4, rounds(cpu::level()));
    }
}

/// The root of the mean square of the difference, as a part of that of `exact`.
fn relative_error(got: &[f32], exact: &[f32]) -> f64 {
    let square = |v: f64| v * v;
    let off: f64 = got.iter().zip(exact).map(|(got, exact)| square(f64::from(got - exact))).sum();
    (off / exact.iter().map(|exact| square(f64::from(*exact))).sum::<f64>()).sqrt()
}

#[test]
fn a_channel_100_times_the_others_does_not_coarsen_its_neighbours() {
    let mut rng = Rng(21);
    for kind in KINDS {
        let (n, k) = (96, 512);
        let stored = Stored::new(&mut rng, kind, n, k);
        let w = stored.weight();
        // What the channel adds is exact on both sides: its weights times itself.
        let mut values = vec![0.0; n * k];
        plain::dequantize_rows(&w, 0, n, &mut values);
        for m in [1, 4, 40] {
            for level in Level::available().into_iter().filter(|&level| rounds(level)) {
                let usual = rng.floats(m * k, 1.0);
                let mut outlier = usual.clone();
                outlier.chunks_exact_mut(k).for_each(|x| x[70] = 100.0);
                let mut silent = usual.clone();
                silent.chunks_exact_mut(k).for_each(|x| x[70] = 0.0);
                let error = |x: &[f32], channel: f32| {
                    let mut exact = vec![0.0; m * n];
                    plain::linear(x, m, &w, None, &mut exact);
                    let mut got = cpu::with_level(level, || int8(x, m, &w, None));
                    let mut rest = exact.clone();
                    for i in 0..m * n {
                        rest[i] -= channel * values[i % n * k + 70];
                        got[i] -= exact[i] - rest[i];
                    }
                    relative_error(&got, &rest)
                };
                let (with, without) = (error(&outlier, 100.0), error(&silent, 0.0));
                // The channel itself has the rounding of a code book in bytes, 0.2 % of the largest weight.
                let book = if matches!(w.data, Matrix::CodeBook4(_)) { 0.03 } else { 0.0 };
                assert!(with <= 1.3 * without + book, "{kind:?} x {m} on {}: {with} and {without}", level.name());
            }
        }
    }
}

#[test]
fn a_row_becomes_the_same_integers_alone_and_among_others() {
    let mut rng = Rng(22);
    for kind in KINDS {
        let (n, k, m) = (40, 576, 30);
        let stored = Stored::new(&mut rng, kind, n, k);
        let mut x = rng.floats(m * k, 1.0);
        for (row, x) in x.chunks_exact_mut(k).enumerate() {
            x[17 * row % k] *= 40.0;
        }
        for level in Level::available().into_iter().filter(|&level| rounds(level)) {
            let together = cpu::with_level(level, || int8(&x, m, &stored.weight(), None));
            for (row, x) in x.chunks_exact(k).enumerate() {
                let alone = cpu::with_level(level, || int8(x, 1, &stored.weight(), None));
                // Only sums in another order, far below what rounding x changes (0.4 %).
                close("alone", &alone, &together[row * n..(row + 1) * n], 1e-5);
            }
        }
    }
}

#[test]
fn from_some_number_of_rows_on_a_row_has_the_same_bits_whatever_the_others_are() {
    // Fewer rows have kernels that add up in another order; the tiles of all processors give the same bits, and so do AVX-512's strips and
    // AVX2's octets.
    let has = |name| cpu::features().contains(&name);
    let least = |level| match level {
        Level::Avx512 if has("avx512vnni") && has("avx512vbmi") => 2,
        _ => 5,
    };
    let mut rng = Rng(24);
    for kind in KINDS {
        for (n, k) in [(40, 576), (17, 1024)] {
            let stored = Stored::new(&mut rng, kind, n, k);
            let bias = rng.floats(n, 1.0);
            let mut x = rng.floats(70 * k, 1.0);
            for (row, x) in x.chunks_exact_mut(k).enumerate() {
                x[17 * row % k] *= 40.0;
            }
            for product in [int8, int8_head] {
                let rows = |level, rows: &[f32]| -> Vec<u32> {
                    let run = || product(rows, rows.len() / k, &stored.weight(), Some(&bias));
                    cpu::with_level(level, run).into_iter().map(f32::to_bits).collect()
                };
                let levels = Level::available().into_iter().filter(|&level| rounds(level));
                let mut all: Option<Vec<u32>> = None;
                for level in levels {
                    let all = all.get_or_insert_with(|| rows(level, &x));
                    const PARTS: [(usize, usize); 13] = [
                        (9, 2),
                        (4, 3),
                        (11, 4),
                        (3, 5),
                        (2, 6),
                        (7, 8),
                        (8, 9),
                        (0, 16),
                        (20, 25),
                        (38, 32),
                        (5, 33),
                        (19, 51),
                        (0, 70),
                    ];
                    for (first, m) in PARTS.into_iter().filter(|&(_, m)| m >= least(level)) {
                        let some = rows(level, &x[first * k..(first + m) * k]);
                        let name = format!("{kind:?} [{n}, {k}], {m} rows from {first} on with {}", level.name());
                        assert!(some == all[first * n..(first + m) * n], "{name}");
                    }
                }
            }
        }
    }
}

#[test]
fn several_rows_have_the_bits_of_a_loop_over_blocks_on_every_processor() {
    let mut rng = Rng(25);
    for kind in KINDS {
        // Fewer have products of their own.
        let few: &[usize] = if cfg!(target_arch = "aarch64") || matches!(kind, Kind::Int8) { &[] } else { &[3, 4] };
        for (n, k) in [(67, 576), (17, 1024)] {
            let stored = Stored::new(&mut rng, kind, n, k);
            let bias = rng.floats(n, 1.0);
            for &m in few.iter().chain(&[5, 6, 7, 8, 9, 12, 13, 16, 17, 33]) {
                let mut x = rng.floats(m * k, 1.0);
                for (row, x) in x.chunks_exact_mut(k).enumerate() {
                    x[17 * row % k] *= 40.0;
                }
                for outlier in [OUTLIER, HEAD] {
                    let product = if outlier == HEAD { int8_head } else { int8 };
                    let want = blocks_in_order(&x, m, &stored.weight(), &bias, outlier);
                    for level in Level::available().into_iter().filter(|&level| rounds(level)) {
                        let got = cpu::with_level(level, || product(&x, m, &stored.weight(), Some(&bias)));
                        let off = (0..m * n).find(|&i| got[i] != want[i]).map(|i| (i, got[i], want[i]));
                        assert_eq!(off, None, "{kind:?} [{n}, {k}] x {m} on {}", level.name());
                    }
                }
            }
        }
    }
}

#[test]
fn sums_of_the_largest_codes_and_elements_do_not_overflow() {
    let (n, k) = (13, 192);
    for bits in [4, 2] {
        let stored = Stored::new(&mut Rng(31), Kind::Rows { wide: 0, bits, slots: false }, n, k);
        let bias = vec![0.0; n];
        let mut w = stored.weight();
        let Matrix::IntegerRows(rows) = &mut w.data else { panic!("integer rows") };
        let largest = vec![0xff; rows.narrow.len()];
        rows.narrow = &largest;
        for m in [5, 8, 24, 25, 33] {
            for x in [1.0, -1.0] {
                let x = vec![x; m * k];
                for outlier in [OUTLIER, HEAD] {
                    let product = if outlier == HEAD { int8_head } else { int8 };
                    let want = blocks_in_order(&x, m, &w, &bias, outlier);
                    for level in Level::available().into_iter().filter(|&level| rounds(level)) {
                        let got = cpu::with_level(level, || product(&x, m, &w, Some(&bias)));
                        assert!(got == want, "{bits} bits x {m} on {}: {got:?}, expected {want:?}", level.name());
                    }
                }
            }
        }
    }
}

#[test]
fn what_does_not_fit_stays_exact() {
    let mut rng = Rng(13);
    let kinds = [(Kind::Single { block: 64 }, 96), (Kind::Single { block: 48 }, 192), (Kind::Bf16, 128)];
    let rows = Kind::Rows { wide: 2, bits: 2, slots: true };
    for (kind, k) in kinds.into_iter().chain([(rows, 65)]) {
        let stored = Stored::new(&mut rng, kind, 7, k);
        for m in [1, 3, 20] {
            let x = rng.floats(m * k, 1.0);
            let mut want = vec![0.0; m * 7];
            cpu::with_precision(Precision::Exact, || cpu::linear(&x, m, &stored.weight(), None, &mut want));
            assert_eq!(int8(&x, m, &stored.weight(), None), want, "{kind:?} x {m}");
        }
    }
}

#[test]
fn portable_code_stays_exact() {
    let stored = Stored::new(&mut Rng(14), KINDS[0], 7, 128);
    let x = Rng(15).floats(128, 1.0);
    let mut want = vec![0.0; 7];
    plain::linear(&x, 1, &stored.weight(), None, &mut want);
    let got = cpu::with_level(Level::Scalar, || int8(&x, 1, &stored.weight(), None));
    close("scalar", &got, &want, 1e-5);
}

#[test]
fn a_value_that_is_not_finite_stays_in_its_row() {
    let mut rng = Rng(16);
    for kind in KINDS {
        let (n, k) = (5, 320);
        let stored = Stored::new(&mut rng, kind, n, k);
        for m in [1, 2, 5, 20] {
            for bad in [f32::NAN, f32::INFINITY] {
                let mut x = rng.floats(m * k, 1.0);
                x[(m - 1) * k + 7] = bad;
                for level in Level::available() {
                    let y = cpu::with_level(level, || int8(&x, m, &stored.weight(), None));
                    let (clean, hit) = y.split_at((m - 1) * n);
                    assert!(clean.iter().all(|y| y.is_finite()), "{kind:?} x {m} on {}", level.name());
                    assert!(hit.iter().all(|y| !y.is_finite()), "{kind:?} x {m} on {}", level.name());
                }
            }
        }
    }
}

#[test]
fn a_scale_that_is_not_finite_stays_in_its_row() {
    let mut rng = Rng(18);
    // Rows of 9 and 14 blocks: the scales of the next row are in the same vector.
    for (kind, k) in [(KINDS[0], 576), (KINDS[0], 896), (Kind::Int8, 576), (Kind::Int8, 896)] {
        let n = 19;
        let stored = Stored::new(&mut rng, kind, n, k);
        let mut w = stored.weight();
        let bad = n / 2;
        let blocks = bad * k / 64..(bad + 1) * k / 64;
        let (mut floats, mut halves) = (Vec::new(), Vec::new());
        match &mut w.data {
            Matrix::CodeBook4(CodeBook4 { scales: BlockScales::Single(scales), .. }) => {
                floats.extend_from_slice(scales);
                floats[blocks].fill(f32::NAN);
                *scales = &floats;
            }
            Matrix::Int8(w) => {
                halves.extend_from_slice(w.scales);
                halves[blocks].fill(f16::INFINITY.to_bits());
                w.scales = &halves;
            }
            _ => panic!("{kind:?} has no such scales"),
        }
        for m in [1, 2, 3, 4, 5, 8, 20] {
            let x = rng.floats(m * k, 1.0);
            for level in Level::available() {
                let [got, want] = [&w, &stored.weight()].map(|w| cpu::with_level(level, || int8(&x, m, w, None)));
                for (j, (got, want)) in got.iter().zip(&want).enumerate() {
                    let name = format!("{kind:?} {k} x {m}, row {} on {}", j % n, level.name());
                    assert!(if j % n == bad { !got.is_finite() } else { got == want }, "{name}: {got}, {want}");
                }
            }
        }
    }
}

#[test]
fn zeros_give_the_bias() {
    for kind in KINDS {
        let stored = Stored::new(&mut Rng(17), kind, 3, 192);
        for m in [1, 20] {
            for level in Level::available() {
                let run = || int8(&vec![0.0; m * 192], m, &stored.weight(), Some(&[1.0, 2.0, 3.0]));
                let y = cpu::with_level(level, run);
                assert!(y.chunks_exact(3).all(|y| y == [1.0, 2.0, 3.0]), "{kind:?} x {m} on {}: {y:?}", level.name());
            }
        }
    }
}

#[test]
fn the_mlp_matches_a_loop_of_the_same_integers() {
    let mut rng = Rng(23);
    for kind in KINDS {
        let [gate, up] = [(); 2].map(|()| Stored::new(&mut rng, kind, 192, 128));
        let down = Stored::new(&mut rng, kind, 96, 192);
        let mlp = Mlp { gate: gate.weight(), up: up.weight(), down: down.weight() };
        for m in [1, 3, 20, 33] {
            let mut x = rng.floats(m * 128, 3.0);
            x.chunks_exact_mut(128).for_each(|x| x[9] *= 50.0);
            let wide = |w: &Weight| -> Vec<f64> { twin(&x, m, w, None, OUTLIER).0 };
            let silu = |x: f64| x / (1.0 + (-x).exp());
            let inner: Vec<f32> =
                wide(&mlp.gate).iter().zip(wide(&mlp.up)).map(|(gate, up)| (silu(*gate) * up) as f32).collect();
            let want = twin(&inner, m, &mlp.down, None, 8.0).0;
            let size = want.iter().fold(0.0f64, |a, b| a.max(b.abs()));
            for level in Level::available().into_iter().filter(|&level| rounds(level)) {
                let mut got = vec![f32::NAN; m * 96];
                cpu::with_level(level, || {
                    cpu::with_precision(Precision::Int8Activations, || cpu::swiglu_mlp(&x, m, &mlp, None, &mut got));
                });
                let off = got.iter().zip(&want).map(|(got, want)| f64::from(*got) - want);
                let error = (off.map(|e| e * e).sum::<f64>() / want.len() as f64).sqrt();
                // Here and there an element between two steps goes the other way: one step of 254 in one of 192 elements.
                assert!(error <= 2e-4 * size, "{kind:?} x {m} on {}: {error} of {size}", level.name());
            }
        }
    }
}

#[test]
fn the_mlp_takes_the_precision_along() {
    let mut rng = Rng(18);
    let [gate, up] = [(); 2].map(|()| Stored::new(&mut rng, KINDS[0], 192, 64));
    let down = Stored::new(&mut rng, KINDS[0], 64, 192);
    let mlp = Mlp { gate: gate.weight(), up: up.weight(), down: down.weight() };
    let x = rng.floats(3 * 64, 3.0);
    let run = |precision| {
        let mut y = vec![0.0; 3 * 64];
        cpu::with_precision(precision, || cpu::swiglu_mlp(&x, 3, &mlp, None, &mut y));
        y
    };
    let (exact, rounded) = (run(Precision::Exact), run(Precision::Int8Activations));
    assert_eq!(exact != rounded, rounds(cpu::level()));
    close("int8", &rounded, &exact, 0.05);
}
