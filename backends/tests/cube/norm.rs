use emberlm_backends::cpu::plain;
use emberlm_backends::cube;
use emberlm_backends::types::RmsNorm;

use crate::common::{Rng, close};
use crate::device::{Float, download, with_all_instructions};

#[test]
fn gates_match_their_twin() {
    with_all_instructions(|client| {
        let mut rng = Rng(12);
        for float in Float::available(client) {
            for n in [1, 255, 70_001] {
                let [x, gate] = [4.0, 60.0].map(|range| float.rounded(&rng.floats(n, range)));
                let [on_x, on_gate] = [&x, &gate].map(|values| float.upload(client, values));
                let y = float.unwritten(client, n);
                cube::sigmoid_gate(client, &on_x, &on_gate, &y);
                let mut want = x;
                plain::sigmoid_gate(&mut want, &gate);
                close(&format!("sigmoid gate of {n} {float:?}"), &download(client, &y), &want, float.bound(1e-6));
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
