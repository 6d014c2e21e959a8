//! Layers and tensors that share a launch: the bits of a launch each, and the numbers of their twins.

use emberlm_backends::cpu::plain;
use emberlm_backends::cube::{self, Buffer, Linear, LinearOfX, RotaryHeads};
use emberlm_backends::types::RotaryShape;

use crate::common::{Kind, Rng, Stored, close, kinds};
use crate::device::{Client, Float, download, with_all_instructions};
use crate::linear::upload;
use crate::spans::{bits, launches};

/// A layer on both sides.
struct Layer {
    stored: Stored,
    weight: cube::Weight,
    bias: Option<(Vec<f32>, Buffer)>,
}

impl Layer {
    fn new(client: &Client, rng: &mut Rng, kind: Kind, n: usize, k: usize, with_bias: bool) -> Self {
        let stored = Stored::tight(rng, kind, n, k);
        let weight = upload(client, &stored.weight());
        let bias = with_bias.then(|| rng.floats(n, 1.0));
        let bias = bias.map(|values| (values.clone(), Float::F32.upload(client, &values)));
        Self { stored, weight, bias }
    }

    fn bias(&self) -> Option<&Buffer> {
        self.bias.as_ref().map(|(_, buffer)| buffer)
    }
}

/// Checks the results of layers together, and says how many launches they took.
fn check(client: &Client, rng: &mut Rng, float: Float, m: usize, layers: &[Layer]) -> u64 {
    let k = layers[0].stored.k;
    let values = float.rounded(&rng.floats(m * k, 1.7));
    let x = float.upload(client, &values);
    let outputs: Vec<[Buffer; 2]> =
        layers.iter().map(|layer| [(); 2].map(|()| float.unwritten(client, m * layer.stored.n))).collect();
    let together = layers.iter().zip(&outputs);
    let together = together.map(|(layer, [y, _])| LinearOfX { weight: &layer.weight, bias: layer.bias(), y });
    let together: Vec<_> = together.collect();
    let count = launches(|| cube::linears(client, &x, m, &together));
    for (i, (layer, [y, alone])) in layers.iter().zip(&outputs).enumerate() {
        let p = Linear { bias: layer.bias(), active: None };
        cube::linear(client, &x, m, &layer.weight, alone, p);
        let (got, alone) = (download(client, y), download(client, alone));
        let (n, weight) = (layer.stored.n, layer.stored.weight());
        let what = format!("layer {i} [{n}, {k}] x {m} in {float:?}, bias {}", layer.bias.is_some());
        assert_eq!(bits(&got), bits(&alone), "{what}");
        let mut want = vec![0.0; m * n];
        plain::linear(&values, m, &weight, layer.bias.as_ref().map(|(values, _)| &values[..]), &mut want);
        close(&what, &got, &want, float.bound(1e-5));
    }
    count
}

/// Outputs of queries, keys and values, of two layers of any width, and of a wide one beside narrow ones (more rows to a cube). All have rows
/// of both widths where a storage has two.
const OUTPUTS: [&[usize]; 3] = [&[67, 33, 33], &[4, 130], &[2051, 5, 4, 7]];

/// Inputs: units of eight, a row that ends inside one, more units than a cube of the smallest kind.
const INPUTS: [usize; 3] = [88, 37, 520];

#[test]
fn layers_of_one_storage_share_a_launch() {
    with_all_instructions(|client| {
        let mut rng = Rng(71);
        for (i, kind) in kinds().into_iter().enumerate() {
            // Every number of rows meets every width and number of layers; a kernel is compiled for each.
            for (j, m) in [1, [3, 5, 8][i % 3]].into_iter().enumerate() {
                let (outputs, k) = (OUTPUTS[(i + j) % 3], INPUTS[(i + 2 * j + i / 3) % 3]);
                let biases = |layer: usize| [false, true, layer % 2 == 1][(i + j + i / 3) % 3];
                let layers = outputs.iter().enumerate();
                let layers = layers.map(|(l, &n)| Layer::new(client, &mut rng, kind, n, k, biases(l)));
                let layers: Vec<_> = layers.collect();
                let count = check(client, &mut rng, Float::F32, m, &layers);
                // Six buffers of a weight, a result and a bias; x, and what holds the scalars.
                let buffers = 2 + layers.iter().map(|layer| 7 + usize::from(layer.bias.is_some())).sum::<usize>();
                let fits = buffers <= client.properties().hardware.max_bindings as usize;
                assert_eq!(count, if fits { 1 } else { 2 }, "{kind:?} {outputs:?} x {m}: {buffers} buffers");
            }
        }
    });
}

#[test]
fn layers_share_a_launch_in_half_precision() {
    with_all_instructions(|client| {
        let mut rng = Rng(72);
        for float in Float::available(client) {
            for (kind, k) in [(Kind::Double { block: 64, nested: 256 }, 128), (Kind::F16, 37)] {
                for m in [1, 4] {
                    let layers = [40, 9, 9].map(|n| Layer::new(client, &mut rng, kind, n, k, n == 9));
                    assert_eq!(check(client, &mut rng, float, m, &layers), 1, "{kind:?} in {float:?}");
                }
            }
        }
    });
}

/// Each storage has a launch, and so have layers beyond those that a kernel is compiled for; many rows go in tiles, layer by layer.
#[test]
fn layers_that_cannot_share_a_launch_have_their_own() {
    with_all_instructions(|client| {
        let mut rng = Rng(73);
        let (nf4, bf16) = (Kind::Single { block: 64 }, Kind::Bf16);
        for (kinds, m, launches) in [
            (&[nf4, bf16, nf4, bf16][..], 1, 2),
            (&[nf4, nf4, bf16, Kind::Int8], 2, 3),
            (&[bf16; 5], 1, 2),
            (&[nf4], 3, 1),
            (&[nf4, nf4, nf4], 9, 3),
        ] {
            let layers = kinds.iter().enumerate();
            let layers = layers.map(|(i, &kind)| Layer::new(client, &mut rng, kind, 20 + 7 * i, 128, i % 2 == 0));
            let layers: Vec<_> = layers.collect();
            assert_eq!(check(client, &mut rng, Float::F32, m, &layers), launches, "{kinds:?} x {m}");
        }
    });
}

#[test]
fn tensors_of_the_same_tokens_are_rotated_in_a_launch() {
    with_all_instructions(|client| {
        let mut rng = Rng(74);
        for float in Float::available(client) {
            for (batch, seq, heads, head_dim, half) in [
                (1, 1, &[32, 8][..], 128, 64),
                (2, 3, &[5, 1], 80, 20),
                (1, 7, &[3], 6, 3),
                (1, 5, &[1, 4, 2], 12, 0),
                (1, 2, &[2; 9], 6, 2),
            ] {
                let angles = rng.floats(seq * half, 3.2);
                let (cos, sin): (Vec<f32>, Vec<f32>) = angles.iter().map(|a| (a.cos(), a.sin())).unzip();
                let [on_cos, on_sin] = [&cos, &sin].map(|table| Float::F32.upload(client, table));
                let shape = |heads| RotaryShape { batch, seq, heads, head_dim, half };
                let inputs = heads.iter().map(|heads| float.rounded(&rng.floats(batch * seq * heads * head_dim, 3.0)));
                let inputs: Vec<_> = inputs.collect();
                let buffers = inputs.iter().map(|x| {
                    let [together, alone] = [(); 2].map(|()| float.unwritten(client, x.len()));
                    [float.upload(client, x), together, alone]
                });
                let buffers: Vec<_> = buffers.collect();
                let tensors = buffers.iter().zip(heads).map(|([x, y, _], &heads)| RotaryHeads { x, heads, y });
                let tensors: Vec<_> = tensors.collect();
                let count = launches(|| cube::rotary_all(client, &tensors, &on_cos, &on_sin, shape(0)));
                assert!(count == 1 || heads.len() > 8, "{count} launches of {heads:?} heads");
                for (([x, y, alone], &heads), mut want) in buffers.iter().zip(heads).zip(inputs) {
                    cube::rotary(client, x, &on_cos, &on_sin, alone, shape(heads));
                    plain::rotary(&mut want, &cos, &sin, &shape(heads));
                    let what = format!("rotary {half} of {head_dim}, {heads} heads in {float:?}");
                    let got = download(client, y);
                    assert_eq!(bits(&got), bits(&download(client, alone)), "{what}");
                    close(&what, &got, &want, float.bound(1e-6));
                }
            }
        }
    });
}
