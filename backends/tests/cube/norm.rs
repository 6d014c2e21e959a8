use emberlm_backends::cpu::plain;
use emberlm_backends::cube::{self, NormRows};
use emberlm_backends::types::{CodeActivation, RmsNorm};

use crate::common::{Rng, close};
use crate::device::{Float, download, with_all_instructions};
use crate::spans::{bits, launches};

/// Rows that lie apart, one after the other.
fn rows_of(values: &[f32], m: usize, n: usize, stride: usize) -> Vec<f32> {
    (0..m).flat_map(|row| values[row * stride..][..n].to_vec()).collect()
}

#[test]
fn activations_match_their_twin() {
    with_all_instructions(|client| {
        let mut rng = Rng(13);
        for float in Float::available(client) {
            for &f in CodeActivation::ALL {
                for range in [1.0, 6.0, 200.0] {
                    let x = float.rounded(&[&rng.floats(1000, range)[..], &[0.0, -0.0, 1e-20, -1e-20]].concat());
                    let want: Vec<f32> = x.iter().map(|&x| plain::activate(f, x.into()) as f32).collect();
                    let y = float.unwritten(client, x.len());
                    cube::activate(client, &float.upload(client, &x), f, &y);
                    let what = format!("{f} up to {range} in {float:?}");
                    close(&what, &download(client, &y), &want, float.bound(2e-6));
                }
            }
        }
    });
}

/// Rows of tensors that share a launch, and rows that are parts of wider ones: the bits of a launch each, and of rows side by side.
#[test]
fn norms_of_several_tensors_are_those_of_each() {
    with_all_instructions(|client| {
        let mut rng = Rng(14);
        for float in Float::available(client) {
            for (h, tensors) in [
                (128, &[(32, 256), (8, 128)][..]),
                (64, &[(1, 64), (5, 192), (3, 64)]),
                (7, &[(17, 9), (2, 7)]),
                (300, &[(3, 600), (1, 300)]),
                (32, &[(4, 32); 9]),
            ] {
                let p = RmsNorm { m: 0, h, eps: 1e-6, unit_offset: h == 128 };
                let inputs = tensors.iter().map(|&(m, stride)| {
                    let x = float.rounded(&rng.floats((m - 1) * stride + h, 4.0));
                    (x, rng.floats(h, 1.0))
                });
                let inputs: Vec<_> = inputs.collect();
                let buffers = inputs.iter().zip(tensors).map(|((x, weight), &(m, stride))| {
                    let dense = rows_of(x, m, h, stride);
                    let [x, dense] = [x, &dense].map(|values| float.upload(client, values));
                    let [y, alone] = [(); 2].map(|()| float.unwritten(client, m * h));
                    (x, dense, Float::F32.upload(client, weight), y, alone)
                });
                let buffers: Vec<_> = buffers.collect();
                let all = buffers.iter().zip(tensors);
                let all = all.map(|((x, _, weight, y, _), &(m, stride))| NormRows { x, m, stride, weight, y });
                let all: Vec<_> = all.collect();
                let count = launches(|| cube::rms_norm_all(client, &all, p));
                assert!(count == 1 || tensors.len() > 8, "{count} launches of {tensors:?}");
                for (((_, dense, weight, y, alone), &(m, stride)), (x, weights)) in
                    buffers.iter().zip(tensors).zip(&inputs)
                {
                    cube::rms_norm(client, dense, weight, alone, RmsNorm { m, ..p });
                    let what = format!("norm [{m}, {h}] of {float:?}, rows at {stride}");
                    let got = download(client, y);
                    assert_eq!(bits(&got), bits(&download(client, alone)), "{what}");
                    let mut want = vec![0.0; m * h];
                    plain::rms_norm(&rows_of(x, m, h, stride), weights, &RmsNorm { m, ..p }, &mut want);
                    close(&what, &got, &want, float.bound(1e-6));
                }
            }
        }
    });
}

#[test]
fn gates_match_their_twin() {
    with_all_instructions(|client| {
        let mut rng = Rng(12);
        for float in Float::available(client) {
            for (m, n, stride) in [(1, 1, 1), (1, 255, 300), (3, 17, 17), (70, 1001, 1001), (9, 64, 128), (5, 3, 10)] {
                let gates = (m - 1) * stride + n;
                let [x, gate] = [(m * n, 4.0), (gates, 60.0)].map(|(n, range)| float.rounded(&rng.floats(n, range)));
                let [on_x, on_gate] = [&x, &gate].map(|values| float.upload(client, values));
                let y = float.unwritten(client, m * n);
                cube::sigmoid_gate(client, &on_x, &on_gate, &y, [m, n], stride);
                let mut want = x;
                plain::sigmoid_gate(&mut want, &rows_of(&gate, m, n, stride));
                let what = format!("sigmoid gate [{m}, {n}] of {float:?}, rows at {stride}");
                close(&what, &download(client, &y), &want, float.bound(1e-6));
            }
        }
    });
}

#[test]
fn norms_match_their_twins() {
    with_all_instructions(|client| {
        let mut rng = Rng(11);
        for float in Float::available(client) {
            for h in [1, 7, 64, 129, 256, 300, 2560] {
                for m in [1, 3, 17, 129] {
                    let x = float.rounded(&rng.floats(m * h, 4.0));
                    let z = float.rounded(&rng.floats(m * h, 20.0));
                    let weight = rng.floats(h, 1.0);
                    let [on_x, on_z] = [&x, &z].map(|values| float.upload(client, values));
                    let on_weight = Float::F32.upload(client, &weight);
                    let mut want = vec![0.0; m * h];
                    for unit_offset in [false, true] {
                        let p = RmsNorm { m, h, eps: 1e-6, unit_offset };
                        plain::rms_norm(&x, &weight, &p, &mut want);
                        let y = float.unwritten(client, m * h);
                        cube::rms_norm(client, &on_x, &on_weight, &y, p);
                        let what = format!("norm [{m}, {h}] of {float:?}");
                        close(&what, &download(client, &y), &want, float.bound(1e-6));

                        let mut sum = x.clone();
                        sum.iter_mut().zip(&z).for_each(|(x, z)| *x += z);
                        // What is normed is the sum in its type.
                        plain::rms_norm(&float.rounded(&sum), &weight, &p, &mut want);
                        let [on_sum, y] = [(); 2].map(|()| float.unwritten(client, m * h));
                        cube::add_rms_norm(client, &on_x, &on_z, &on_weight, &on_sum, &y, p);
                        let what = format!("norm of a sum [{m}, {h}] of {float:?}");
                        close(&what, &download(client, &on_sum), &sum, float.bound(0.0));
                        close(&what, &download(client, &y), &want, float.bound(1e-6));
                    }
                    let p = RmsNorm { m, h, eps: 1e-6, unit_offset: false };
                    plain::rms_norm_gated(&x, &z, &weight, &p, &mut want);
                    let y = float.unwritten(client, m * h);
                    cube::rms_norm_gated(client, &on_x, &on_z, &on_weight, &y, p);
                    let what = format!("gated norm [{m}, {h}] of {float:?}");
                    close(&what, &download(client, &y), &want, float.bound(2e-6));
                }
            }
        }
    });
}
