//! Products with x in 8 bits as loops say them: the same integers, and the order in which tiles add them.

use emberlm_backends::cpu::{self, Matrix, Weight, plain};

/// Times the average size of a row, above which elements are outliers, which keep 15 bits ...
pub const OUTLIER: f64 = 5.0;
/// ... and before a head, which keeps 15 bits of everything.
pub const HEAD: f64 = 0.0;

/// A row of x as integers, and the step of every 64.
fn quantize(x: &[f32], outlier: f64) -> (Vec<i32>, Vec<f32>) {
    let average = x.iter().map(|x| f64::from(x.abs())).sum::<f64>() / x.len() as f64;
    let threshold = (outlier * average) as f32;
    let largest = |x: &[f32], limit: f32| x.iter().map(|x| x.abs()).filter(|x| *x <= limit).fold(0.0f32, f32::max);
    let (mut integers, mut steps) = (Vec::new(), Vec::new());
    for x in x.chunks_exact(64) {
        let all = largest(x, f32::INFINITY);
        let top = if all > threshold { largest(x, threshold).max(all / 128.0) } else { all };
        let inverse = if top > 1e-30 { 127.0 / top } else { 0.0 };
        integers.extend(x.iter().map(|x| (x * inverse).round_ties_even() as i32));
        steps.push(if top > 1e-30 { top / 127.0 } else { 0.0 });
    }
    (integers, steps)
}

/// A code book in bytes: `value = factor * (byte + shift)`.
#[derive(Debug)]
pub struct Book {
    bytes: [i32; 16],
    factor: f32,
    shift: f32,
}

/// The bytes with the least rounding errors among scales of 64 to 127.5 steps in eighths and zeros in sixteenths of a step.
pub fn rounded(book: &[f32; 16]) -> Book {
    let largest = f64::from(book.iter().fold(0.0f32, |largest, value| largest.max(value.abs())));
    let exact = book.map(|value| f64::from(value) / largest);
    let mean = |v: &[f64; 16]| v.iter().sum::<f64>() / 16.0;
    let mut best = (f64::INFINITY, Book { bytes: [0; 16], factor: 0.0, shift: 0.0 });
    for eighths in 512..=1020 {
        for sixteenths in -8..=8 {
            let (steps, zero) = (f64::from(eighths) / 8.0, f64::from(sixteenths) / 16.0);
            let bytes = exact.map(|value| (value * steps + zero).round_ties_even());
            if bytes.iter().any(|byte| *byte < -128.0 || *byte > 127.0) {
                continue;
            }
            let (x, y) = (mean(&bytes), mean(&exact));
            let pairs = || bytes.iter().zip(&exact);
            let slope = pairs().map(|(b, v)| (b - x) * (v - y)).sum::<f64>()
                / pairs().map(|(b, _)| (b - x).powi(2)).sum::<f64>();
            let start = y - slope * x;
            let error: f64 = pairs().map(|(b, v)| (slope * b + start - v).powi(2)).sum();
            if error < best.0 {
                let (factor, shift) = ((slope * largest) as f32, (start / slope) as f32);
                best = (error, Book { bytes: bytes.map(|byte| byte as i32), factor, shift });
            }
        }
    }
    best.1
}

/// The integer of an element of a row, from its exact value, and its scale.
fn element(w: &Weight, row: usize, column: usize, values: &[f32], book: &Book) -> (i32, f64) {
    match &w.data {
        Matrix::CodeBook4(data) => {
            let at = at(w, row, column);
            let byte = data.codes[at / 2];
            let code = if at.is_multiple_of(2) { byte >> 4 } else { byte & 15 };
            let scale = data.scales_of(at / data.block);
            (book.bytes[code as usize], f64::from(scale) * f64::from(book.factor))
        }
        Matrix::Int8(data) => {
            let scale = half::f16::from_bits(data.scales[row * w.k.div_ceil(64) + column / 64]);
            (i32::from(data.codes[at(w, row, column)] as i8), f64::from(scale))
        }
        Matrix::IntegerRows(data) => {
            let slot = data.slots.map_or(row, |slots| slots[row] as usize);
            let scale = data.scales[slot];
            ((values[at(w, row, column)] / scale).round() as i32, f64::from(scale))
        }
        _ => unreachable!(),
    }
}

fn at(w: &Weight, row: usize, column: usize) -> usize {
    row * w.k + column
}

trait ScalesOf {
    fn scales_of(&self, i: usize) -> f32;
}

impl ScalesOf for cpu::CodeBook4<'_> {
    fn scales_of(&self, i: usize) -> f32 {
        match self.scales {
            cpu::BlockScales::Single(scales) => scales[i],
            cpu::BlockScales::Double { codes, map, absmax, block, offset } => {
                map[codes[i] as usize] * absmax[i / block] + offset
            }
        }
    }
}

/// The same integers in a loop; also the sum of the sizes of the terms, the measure of what f32 sums may lose.
pub fn twin(x: &[f32], m: usize, w: &Weight, bias: Option<&[f32]>, outlier: f64) -> (Vec<f64>, Vec<f64>) {
    let book = match &w.data {
        Matrix::CodeBook4(data) => rounded(data.code_book),
        _ => Book { bytes: [0; 16], factor: 0.0, shift: 0.0 },
    };
    let mut values = vec![0.0; w.n * w.k];
    plain::dequantize_rows(w, 0, w.n, &mut values);
    let (mut y, mut size) = (vec![0.0; m * w.n], vec![0.0; m * w.n]);
    for i in 0..m {
        let (q, steps) = quantize(&x[i * w.k..(i + 1) * w.k], outlier);
        for (b, step) in steps.iter().enumerate() {
            // What the shift adds to 8 elements is rounded.
            let eights = q[64 * b..][..64].chunks_exact(8);
            let shifts: i32 =
                eights.map(|q| (book.shift * q.iter().sum::<i32>() as f32).round_ties_even() as i32).sum();
            for j in 0..w.n {
                let scale = element(w, j, 64 * b, &values, &book).1;
                let sum: i64 = (64 * b..64 * b + 64)
                    .map(|e| i64::from(q[e]) * i64::from(element(w, j, e, &values, &book).0))
                    .sum();
                let unit = f64::from(*step) * scale;
                y[i * w.n + j] += (sum + i64::from(shifts)) as f64 * unit;
                // A lane adds 4 elements or more before it is a float.
                let lanes = (64 * b..64 * b + 64).step_by(4).map(|e| {
                    (e..e + 4).map(|e| i64::from(q[e]) * i64::from(element(w, j, e, &values, &book).0)).sum::<i64>()
                });
                size[i * w.n + j] += lanes.map(|lane| (lane as f64 * unit).abs()).sum::<f64>();
            }
        }
        for j in 0..w.n {
            let bias = bias.map_or(0.0, |bias| f64::from(bias[j]));
            y[i * w.n + j] += bias;
            size[i * w.n + j] += bias.abs();
        }
    }
    (y, size)
}

/// What tiles compute: the products of a block are added as integers, blocks one after the other in f32.
pub fn blocks_in_order(x: &[f32], m: usize, w: &Weight, bias: &[f32], outlier: f64) -> Vec<f32> {
    let book = match &w.data {
        Matrix::CodeBook4(data) => rounded(data.code_book),
        _ => Book { bytes: [0; 16], factor: 1.0, shift: 0.0 },
    };
    let mut values = vec![0.0; w.n * w.k];
    plain::dequantize_rows(w, 0, w.n, &mut values);
    let mut y = Vec::new();
    for x in x.chunks_exact(w.k).take(m) {
        let (q, steps) = quantize(x, outlier);
        for (j, bias) in bias.iter().enumerate() {
            let mut total = 0.0f32;
            for (b, step) in steps.iter().enumerate() {
                let elements = 64 * b..64 * b + 64;
                let eights = q[elements.clone()].chunks_exact(8);
                let shifts: i32 =
                    eights.map(|q| (book.shift * q.iter().sum::<i32>() as f32).round_ties_even() as i32).sum();
                let sum: i32 = elements.map(|e| q[e] * element(w, j, e, &values, &book).0).sum();
                let scale = match &w.data {
                    Matrix::CodeBook4(data) => data.scales_of(at(w, j, 64 * b) / data.block),
                    _ => element(w, j, 64 * b, &values, &book).1 as f32,
                };
                total = ((sum + shifts) as f32).mul_add(scale * step, total);
            }
            y.push(total * book.factor + bias);
        }
    }
    y
}
