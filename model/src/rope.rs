//! Rotary position embedding: plain, partial, and with Llama 3's frequency scaling.

use std::f64::consts::PI;

use burn::tensor::backend::Backend;
use burn::tensor::{DType, Tensor, TensorData};
use emberlm_quant::kv::Rotary;

use crate::config::RopeConfig;

/// The inverse frequencies of a model, from which the angles of any position follow.
#[derive(Clone, Debug)]
pub struct RotaryEmbedding {
    inverse_frequencies: Vec<f64>,
}

impl RotaryEmbedding {
    /// Frequencies `theta^(-2i / rotary_dim)`, scaled where the config says so.
    pub fn new(config: &RopeConfig) -> Self {
        let dim = config.rotary_dim;
        let plain = (0..dim / 2).map(|i| config.theta.powf(-2.0 * i as f64 / dim as f64));
        let inverse_frequencies = match &config.scaling {
            None => plain.collect(),
            Some(scaling) => {
                // Long wavelengths are stretched by `factor`, short ones kept, those between interpolated.
                let original = scaling.original_max_position_embeddings as f64;
                plain
                    .map(|f| {
                        let turns = original * f / (2.0 * PI);
                        if turns < scaling.low_freq_factor {
                            f / scaling.factor
                        } else if turns > scaling.high_freq_factor {
                            f
                        } else {
                            let smooth = (turns - scaling.low_freq_factor)
                                / (scaling.high_freq_factor - scaling.low_freq_factor);
                            (1.0 - smooth) * f / scaling.factor + smooth * f
                        }
                    })
                    .collect()
            }
        };
        Self { inverse_frequencies }
    }

    /// Cosines and sines of positions `start..start + count`, computed in f64.
    pub fn at<B: Backend>(&self, start: usize, count: usize, device: &B::Device) -> Rotary<B> {
        let r = self.inverse_frequencies.len();
        let (mut cos, mut sin) = (Vec::with_capacity(count * r), Vec::with_capacity(count * r));
        for position in start..start + count {
            for frequency in &self.inverse_frequencies {
                let (s, c) = (position as f64 * frequency).sin_cos();
                cos.push(c as f32);
                sin.push(s as f32);
            }
        }
        let tensor = |values| Tensor::from_data(TensorData::new(values, [count, r]), (device, DType::F32));
        Rotary { cos: tensor(cos), sin: tensor(sin) }
    }
}
