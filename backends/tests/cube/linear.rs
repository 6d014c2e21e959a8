//! Linear layers, embeddings and the SwiGLU block in every storage.

use emberlm_backends::cpu::{self, plain};
use emberlm_backends::cube::{self, Buffer, Linear};

use crate::cmma::{is_exact, product, within};
use crate::common::{Kind, Rng, Stored, close, kinds};
use crate::device::{Client, Float, client, download, upload_ints, upload_words, with_all_instructions};

/// Bytes as U32 words, the last filled up.
fn upload_bytes(client: &Client, bytes: &[u8]) -> Buffer {
    let words: Vec<u32> =
        bytes.chunks(4).map(|b| b.iter().enumerate().fold(0, |word, (i, &b)| word | u32::from(b) << (8 * i))).collect();
    upload_words(client, &words)
}

fn upload_halves(client: &Client, halves: &[u16]) -> Buffer {
    upload_bytes(client, &halves.iter().flat_map(|h| h.to_le_bytes()).collect::<Vec<u8>>())
}

pub fn upload(client: &Client, weight: &cpu::Weight<'_>) -> cube::Weight {
    let floats = |values: &[f32]| Float::F32.upload(client, values);
    let data = match weight.data {
        cpu::Matrix::F32(w) => cube::Matrix::F32(floats(w)),
        cpu::Matrix::F16(w) => cube::Matrix::F16(upload_halves(client, w)),
        cpu::Matrix::Bf16(w) => cube::Matrix::Bf16(upload_halves(client, w)),
        cpu::Matrix::CodeBook4(w) => cube::Matrix::CodeBook4(cube::CodeBook4 {
            codes: upload_bytes(client, w.codes),
            code_book: floats(w.code_book),
            block: w.block,
            scales: match w.scales {
                cpu::BlockScales::Single(scales) => cube::BlockScales::Single(floats(scales)),
                cpu::BlockScales::Double { codes, map, absmax, block, offset } => cube::BlockScales::Double {
                    codes: upload_bytes(client, codes),
                    map: floats(map),
                    absmax: floats(absmax),
                    block,
                    offset,
                },
            },
        }),
        cpu::Matrix::Int8(w) => cube::Matrix::Int8(cube::Int8 {
            codes: upload_bytes(client, w.codes),
            scales: upload_halves(client, w.scales),
        }),
        cpu::Matrix::IntegerRows(w) => cube::Matrix::IntegerRows(cube::IntegerRows {
            wide: (!w.wide.is_empty()).then(|| upload_bytes(client, w.wide)),
            wide_rows: w.wide_rows,
            narrow: (!w.narrow.is_empty()).then(|| upload_bytes(client, w.narrow)),
            narrow_stride: w.narrow_stride,
            narrow_bits: w.narrow_bits,
            scales: floats(w.scales),
            slots: w.slots.map(|slots| upload_words(client, slots)),
        }),
    };
    cube::Weight { n: weight.n, k: weight.k, data }
}

/// Outputs and inputs: units of eight and not, blocks that cross rows, more than a tile, fewer than a cube.
const SHAPES: [(usize, usize); 6] = [(1, 8), (5, 88), (67, 72), (3, 37), (70, 188), (2050, 64)];

/// Rows of `x`: one, not a power of two, one tile and more.
const ROWS: [usize; 5] = [1, 3, 8, 17, 129];

#[test]
fn linear_matches_its_twin() {
    with_all_instructions(|client| {
        let mut rng = Rng(41);
        for kind in kinds() {
            for (shape, (n, k)) in SHAPES.into_iter().enumerate() {
                let stored = Stored::tight(&mut rng, kind, n, k);
                let on_device = upload(client, &stored.weight());
                let bias = rng.floats(n, 1.0);
                let bias_on_device = Float::F32.upload(client, &bias);
                // Every number of rows meets every storage; a kernel is compiled for each pair.
                for (i, m) in [ROWS[shape % 5], ROWS[(shape + 2) % 5]].into_iter().enumerate() {
                    let with_bias = i == shape % 2;
                    let x = rng.floats(m * k, 1.7);
                    let mut want = vec![0.0; m * n];
                    plain::linear(&x, m, &stored.weight(), with_bias.then_some(&bias), &mut want);
                    let y = Float::F32.unwritten(client, m * n);
                    let x = Float::F32.upload(client, &x);
                    let p = Linear { bias: with_bias.then_some(&bias_on_device), active: None };
                    cube::linear(client, &x, m, &on_device, &y, p);
                    close(&format!("{kind:?} [{n}, {k}] x {m}"), &download(client, &y), &want, 1e-5);
                }
            }
        }
    });
}

#[test]
fn rows_with_bytes_between_them_are_read() {
    with_all_instructions(|client| {
        let mut rng = Rng(42);
        for bits in [2, 4] {
            let (n, k) = (9, 72);
            let stored = Stored::new(&mut rng, Kind::Rows { wide: 2, bits, slots: true }, n, k);
            for m in [1, 20] {
                let x = rng.floats(m * k, 1.7);
                let mut want = vec![0.0; m * n];
                plain::linear(&x, m, &stored.weight(), None, &mut want);
                let y = Float::F32.unwritten(client, m * n);
                let x = Float::F32.upload(client, &x);
                cube::linear(client, &x, m, &upload(client, &stored.weight()), &y, Linear::default());
                close(&format!("{bits} bits x {m}"), &download(client, &y), &want, 1e-5);
            }
        }
    });
}

#[test]
fn linear_in_half_precision_matches_its_twin() {
    with_all_instructions(|client| {
        let mut rng = Rng(43);
        for float in Float::available(client) {
            for kind in [
                Kind::Double { block: 64, nested: 256 },
                Kind::F16,
                Kind::Int8,
                Kind::Rows { wide: 3, bits: 4, slots: true },
            ] {
                for (n, k) in [(33, 128), (5, 37)] {
                    let stored = Stored::tight(&mut rng, kind, n, k);
                    let mut weights = vec![0.0; n * k];
                    plain::dequantize_rows(&stored.weight(), 0, n, &mut weights);
                    for m in [1, 5, 70] {
                        let x = float.rounded(&rng.floats(m * k, 1.7));
                        // Many rows may be multiplied by matrix instructions.
                        let want = product(float, &x, m, &weights, [n, k], m <= 8 || is_exact(kind, float));
                        let (x, y) = (float.upload(client, &x), float.unwritten(client, m * n));
                        cube::linear(client, &x, m, &upload(client, &stored.weight()), &y, Linear::default());
                        let what = format!("{kind:?} [{n}, {k}] x {m} in {float:?}");
                        within(&what, &download(client, &y), &want);
                    }
                }
            }
        }
    });
}

#[test]
fn embedded_rows_are_exact() {
    let client = client();
    let mut rng = Rng(44);
    for kind in kinds() {
        for k in [8, 37, 88, 1088] {
            let n = 11;
            let stored = Stored::tight(&mut rng, kind, n, k);
            let ids = [10, 0, 3, 3, 7];
            let mut rows = vec![0.0; n * k];
            plain::dequantize_rows(&stored.weight(), 0, n, &mut rows);
            let want: Vec<f32> = ids.iter().flat_map(|&id| rows[id * k..(id + 1) * k].to_vec()).collect();
            let y = Float::F32.unwritten(&client, ids.len() * k);
            cube::embed(&client, &upload_ints(&client, &ids), &upload(&client, &stored.weight()), &y);
            // Quantised scales are a product and a sum, which a device may fuse.
            close(&format!("{kind:?} k = {k}"), &download(&client, &y), &want, 1e-7);
        }
    }
}

/// Gate and up in one kernel, down in another; rows that are not active are 0.
#[test]
fn swiglu_matches_its_twin() {
    with_all_instructions(|client| {
        let mut rng = Rng(45);
        let rows = Kind::Rows { wide: 3, bits: 4, slots: true };
        let kinds = [
            Kind::F32,
            Kind::Bf16,
            Kind::Single { block: 64 },
            Kind::Double { block: 64, nested: 256 },
            Kind::Int8,
            rows,
        ];
        let mut cases: Vec<_> = kinds.into_iter().map(|kind| (Float::F32, kind)).collect();
        if Float::available(client).contains(&Float::F16) {
            // Every storage is unpacked by the same code for every type of x.
            cases.extend([Kind::Double { block: 64, nested: 256 }, rows].map(|kind| (Float::F16, kind)));
        }
        for (float, kind) in cases {
            for (h, inner) in [(72, 136), (37, 50)] {
                let [gate, up] = [0, 1].map(|_| Stored::tight(&mut rng, kind, inner, h));
                let down = Stored::tight(&mut rng, kind, h, inner);
                let mlp = cpu::Mlp { gate: gate.weight(), up: up.weight(), down: down.weight() };
                let [gate, up, down] = [&gate, &up, &down].map(|stored| upload(client, &stored.weight()));
                for m in [1, 3, 17, 129] {
                    let x = float.rounded(&rng.floats(m * h, 1.7));
                    let some: Vec<bool> = (0..m).map(|_| !rng.word().is_multiple_of(3)).collect();
                    for flags in [None, Some(some), Some(vec![false; m])] {
                        let mut want = vec![0.0; m * h];
                        plain::swiglu_mlp(&x, m, &mlp, flags.as_deref(), &mut want);
                        let x = float.upload(client, &x);
                        let active = flags.as_ref().map(|flags| {
                            upload_words(client, &flags.iter().map(|&flag| u32::from(flag)).collect::<Vec<u32>>())
                        });
                        let inner_state = float.unwritten(client, m * inner);
                        let y = float.unwritten(client, m * h);
                        let layers = cube::GatedLinear { gate: &gate, up: &up, active: active.as_ref() };
                        cube::gated_linear(client, &x, m, layers, &inner_state);
                        let p = Linear { bias: None, active: active.as_ref() };
                        cube::linear(client, &inner_state, m, &down, &y, p);
                        let what = format!("{float:?} {kind:?} {h} -> {inner}, {m} rows, {flags:?}");
                        // Where the inner state is rounded, a sum has errors of its terms, however small it is itself.
                        let rounded = float != Float::F32;
                        let largest = want.iter().filter(|_| rounded).fold(1f32, |a, x| a.max(x.abs()));
                        let scaled = |values: &[f32]| values.iter().map(|x| x / largest).collect::<Vec<f32>>();
                        close(&what, &scaled(&download(client, &y)), &scaled(&want), float.bound(1e-5));
                    }
                }
            }
        }
    });
}

/// More rows than a grid has cubes along one dimension.
#[test]
fn a_large_vocabulary_is_covered() {
    let client = client();
    let mut rng = Rng(46);
    let (n, k) = (300_000, 8);
    let stored = Stored::tight(&mut rng, Kind::Rows { wide: usize::MAX, bits: 4, slots: false }, n, k);
    let x = rng.floats(k, 1.7);
    let mut want = vec![0.0; n];
    plain::linear(&x, 1, &stored.weight(), None, &mut want);
    let y = Float::F32.unwritten(&client, n);
    let x = Float::F32.upload(&client, &x);
    cube::linear(&client, &x, 1, &upload(&client, &stored.weight()), &y, Linear::default());
    close("300,000 rows", &download(&client, &y), &want, 1e-5);
}
