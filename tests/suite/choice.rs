//! Choosing tokens from logits on a device.

use burn::tensor::{Tensor, TensorData};
use emberlm::model::sampling::{Sampler, SamplingConfig};
use emberlm::quant::CompactBackend;

use super::random::Random;

/// Vocabularies of one token, fewer than a chunk, and more than one, two and many.
const VOCABULARIES: [usize; 5] = [1, 37, 1500, 32_000, 70_000];

fn tensor<B: CompactBackend>(rows: usize, values: &[f32], device: &B::Device) -> Tensor<B, 2> {
    Tensor::from_data(TensorData::new(values.to_vec(), [rows, values.len() / rows]), device)
}

/// The largest numbers of a row, those that are equal in the order of their columns.
pub fn top_k<B: CompactBackend>(device: &B::Device) {
    let mut random = Random::new(61);
    for n in VOCABULARIES {
        // Beyond what a kernel does, too.
        for k in [1, 5, 40, 64, 300] {
            let k = k.min(n);
            let x: Vec<f32> = random.normal(2 * n).iter().map(|x| (x * 500.0).round()).collect();
            let (values, columns) = B::top_k(tensor(2, &x, device), k);
            assert_eq!((values.dims(), columns.dims()), ([2, k], [2, k]), "{k} of {n}");
            let values: Vec<f32> = values.into_data().convert::<f32>().into_vec().expect("floats");
            let columns: Vec<i64> = columns.into_data().convert::<i64>().into_vec().expect("integers");
            for (row, x) in x.chunks(n).enumerate() {
                let mut expected: Vec<(i64, f32)> = (0..).zip(x.iter().copied()).collect();
                expected.sort_by(|(_, a), (_, b)| b.total_cmp(a));
                let found = columns[row * k..][..k].iter().copied().zip(values[row * k..][..k].iter().copied());
                for (i, (got, expected)) in found.zip(&expected).enumerate() {
                    assert_eq!(got.0, expected.0, "{k} of {n}, row {row}: column {i}");
                    assert!(got.1 == expected.1, "{k} of {n}, row {row}: {} for {}", got.1, expected.1);
                }
            }
        }
    }
}

/// A seed gives the same tokens whether all logits are looked at or only the largest.
pub fn tokens_are_those_of_all_logits<B: CompactBackend>(device: &B::Device) {
    let mut random = Random::new(62);
    let drawn = SamplingConfig { temperature: 1.7, seed: Some(9), ..SamplingConfig::default() };
    let configs = [
        SamplingConfig::greedy(),
        SamplingConfig { repetition_penalty: 1.3, ..SamplingConfig::greedy() },
        drawn,
        SamplingConfig { top_k: 40, ..drawn },
        SamplingConfig { top_k: 5, top_p: 0.7, ..drawn },
        SamplingConfig { top_k: 64, min_p: 0.1, ..drawn },
        SamplingConfig { top_k: 900, top_p: 0.7, ..drawn },
    ];
    for n in VOCABULARIES {
        for config in configs {
            let (mut here, mut there) = (Sampler::new(&config).expect("valid"), Sampler::new(&config).expect("valid"));
            for step in 0..6 {
                // Every other row has many equals.
                let rounded = |x: f32| if step % 2 == 0 { x } else { x.round() };
                let mut logits: Vec<f32> = random.normal(n).into_iter().map(rounded).collect();
                let seen = [3, 7, n as u32 - 1];
                let got = here.choose::<B>(tensor(1, &logits, device), &seen).expect("a token");
                let expected = there.sample(&mut logits, &seen).expect("a token");
                assert_eq!(got, expected, "vocabulary {n}, {config:?}, step {step}");
            }
        }
    }
}

/// The message tells of all logits.
pub fn logits_that_are_no_numbers<B: CompactBackend>(device: &B::Device) {
    for config in [SamplingConfig::greedy(), SamplingConfig { top_k: 10, ..SamplingConfig::default() }] {
        let (mut here, mut there) = (Sampler::new(&config).expect("valid"), Sampler::new(&config).expect("valid"));
        let mut logits = vec![f32::NEG_INFINITY; 1500];
        for bad in [f32::NEG_INFINITY, f32::NAN, f32::INFINITY] {
            logits[1200] = bad;
            let got = here.choose::<B>(tensor(1, &logits, device), &[]).expect_err("no token");
            let expected = there.sample(&mut logits.clone(), &[]).expect_err("no token");
            assert_eq!(got.to_string(), expected.to_string());
        }
    }
}
