//! The model that is trained: its config, its first weights, and how it is written as a checkpoint.

use std::path::Path;

use anyhow::{Context, Result};
use burn_store::{ModuleSnapshot, SafetensorsStore};
use emberlm::model::checkpoint::StorageKind;
use emberlm::model::config::{CrestOptions, GateInput, ModelConfig, StepInput};
use emberlm::model::{Architecture, CausalLm, SourceEntry, WeightOptions, WeightSource};
use emberlm::quant::CompactBackend;
use emberlm::quant::host::{FloatType, HostStorage, HostWeight};
use half::bf16;
use safetensors::tensor::TensorView;
use safetensors::{Dtype, SafeTensors};
use serde::{Deserialize, Serialize};
use serde_json::json;

use crate::random::{Random, hash};
use crate::tokenizer::VOCABULARY;

const HIDDEN: usize = 64;
const LAYERS: usize = 4;

/// What differs between runs.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Shape {
    /// MLPs per layer, K.
    pub steps: usize,
    /// What each step reads: parallel, refine, sequential or chained.
    pub step_input: String,
    /// What the gates read: state or input.
    pub gate_input: String,
    /// The bias that gates begin with.
    pub gate_bias: f32,
    /// Inner width of each MLP.
    pub ffn: usize,
}

impl Shape {
    fn config(&self) -> serde_json::Value {
        json!({
            "architectures": ["SkyCRESTForCausalLM"],
            "model_type": "sky-crest",
            "dtype": "bfloat16",
            "vocab_size": VOCABULARY,
            "hidden_size": HIDDEN,
            "intermediate_size": self.ffn,
            "num_hidden_layers": LAYERS,
            "layer_types": ["linear_attention", "full_attention", "linear_attention", "full_attention"],
            "num_attention_heads": 2,
            "num_key_value_heads": 2,
            "head_dim": 32,
            "attn_output_gate": true,
            "linear_conv_kernel_dim": 4,
            "linear_num_key_heads": 2,
            "linear_num_value_heads": 2,
            "linear_key_head_dim": 32,
            "linear_value_head_dim": 32,
            "max_position_embeddings": 1024,
            "rms_norm_eps": 1e-6,
            "hidden_act": "silu",
            "tie_word_embeddings": true,
            "rope_parameters": { "rope_type": "default", "rope_theta": 10000.0, "partial_rotary_factor": 0.5 },
            "eos_token_id": [VOCABULARY - 3, VOCABULARY - 1],
            "pad_token_id": VOCABULARY - 3,
            "crest": {
                "num_steps": self.steps,
                "step_input": self.step_input,
                "gate_input": self.gate_input,
                "gate_shared": false,
                "gate_hidden": null,
                "gate_bias": true,
                "halt_mode": "cumulative",
                "halt_threshold": 0.9,
                "halt_weights": "remainder",
                "halt_enabled": true,
            },
        })
    }

    fn architecture(&self) -> Result<Architecture> {
        let json = serde_json::to_vec(&self.config())?;
        let config = ModelConfig::from_json("config.json".as_ref(), &json)?;
        let stated = config.crest.clone().unwrap_or_default();
        let crest = CrestOptions {
            num_steps: self.steps,
            step_input: stated.step_input.unwrap_or(StepInput::Parallel),
            gate_input: stated.gate_input.unwrap_or(GateInput::State),
            gate_shared: false,
            ..CrestOptions::default()
        };
        Ok(Architecture { config, crest: Some(crest), kv_compression: None, tied_head: true })
    }

    /// A model with random weights, in which every step runs for every token.
    pub fn init<B: CompactBackend>(&self, seed: u64, device: &B::Device) -> Result<CausalLm<B>> {
        let architecture = self.architecture()?;
        let initial = Initial { seed, gate_bias: self.gate_bias };
        let options = WeightOptions::default();
        let plan = CausalLm::<B>::plan(&architecture, &initial, options, device)?;
        let mut model = CausalLm::load(architecture, &initial, options, &plan, device, None)?;
        model.set_depth(self.steps, false, 1.0)?;
        Ok(model)
    }

    /// Writes `config.json`, `generation_config.json` and `model.safetensors` in BF16.
    pub fn save<B: CompactBackend>(&self, model: &CausalLm<B>, directory: &Path) -> Result<()> {
        let write = |name: &str, value: serde_json::Value| -> Result<()> {
            Ok(std::fs::write(directory.join(name), serde_json::to_string_pretty(&value)? + "\n")?)
        };
        write("config.json", self.config())?;
        let eos = [VOCABULARY - 3, VOCABULARY - 1];
        write("generation_config.json", json!({ "do_sample": true, "temperature": 0.7, "eos_token_id": eos }))?;

        let store = SafetensorsStore::from_bytes(None).skip_enum_variants(true);
        let names = model.architecture().field_names();
        let mut store =
            names.iter().fold(store, |store, (field, name)| store.with_key_remapping(field.replace('.', r"\."), name));
        model.save_into(&mut store).context("cannot collect the weights")?;
        let bytes = store.get_bytes().context("cannot collect the weights")?;
        let file = SafeTensors::deserialize(&bytes)?;
        let halves: Vec<(String, Vec<usize>, Vec<u8>)> = file
            .iter()
            .map(|(name, tensor)| {
                let numbers = tensor.data().as_chunks::<4>().0.iter().map(|&bytes| f32::from_le_bytes(bytes));
                let halves = numbers.flat_map(|x| bf16::from_f32(x).to_le_bytes()).collect();
                (name.to_owned(), tensor.shape().to_vec(), halves)
            })
            .collect();
        let views = halves
            .iter()
            .map(|(name, shape, data)| Ok((name, TensorView::new(Dtype::BF16, shape.clone(), data)?)))
            .collect::<Result<Vec<_>>>()?;
        let metadata = [("format".to_owned(), "pt".to_owned())].into();
        Ok(safetensors::serialize_to_file(views, Some(metadata), &directory.join("model.safetensors"))?)
    }
}

/// Random weights as the families' authors begin with, by the name of the tensor.
struct Initial {
    seed: u64,
    gate_bias: f32,
}

impl Initial {
    fn stream(&self, name: &str) -> Random {
        Random::new(self.seed, hash(name))
    }
}

impl WeightSource for Initial {
    fn entry(&self, _name: &str, expected: &[usize]) -> Option<SourceEntry> {
        let bytes = 4 * expected.iter().product::<usize>();
        Some(SourceEntry { shape: expected.to_vec(), storage: StorageKind::F32, bytes })
    }

    fn matrix(&self, name: &str, n: usize, k: usize) -> emberlm::model::Result<HostWeight> {
        let into_the_stream = ["o_proj", "out_proj", "down_proj"].iter().any(|part| name.contains(part));
        let later = name.contains(".steps.") && !name.contains(".steps.0.");
        let scale = match name {
            name if name.contains("embed_tokens") => 0.08,
            name if name.contains("halt_gate") => 0.02,
            // Steps after the first change nothing at first.
            name if later && name.contains("down_proj") => 0.0,
            // What is added to the residual stream is small at first, so that all layers matter from the start.
            _ if into_the_stream => (2 * LAYERS * k) as f32,
            _ => k as f32,
        };
        let scale = if scale < 1.0 { scale } else { scale.powf(-0.5) };
        let mut random = self.stream(name);
        let bytes: Vec<u8> = (0..n * k).flat_map(|_| (random.normal() * scale).to_le_bytes()).collect();
        Ok(HostWeight { n, k, storage: HostStorage::Dense(FloatType::F32, bytes.into()) })
    }

    fn vector(&self, name: &str, len: usize) -> emberlm::model::Result<Vec<f32>> {
        let mut random = self.stream(name);
        let mut each = |f: &dyn Fn(f32) -> f32| (0..len).map(|_| f(random.unit())).collect();
        Ok(match name {
            // As Mamba2 and Gated DeltaNet begin, but for texts of a hundred tokens: memories fade by half within 9 to 700.
            name if name.ends_with("A_log") => each(&|u| (1.0 + 3.0 * u).ln()),
            name if name.ends_with("dt_bias") => each(&|u| {
                let dt = 0.001 * 20f32.powf(u);
                dt.exp_m1().ln()
            }),
            name if name.contains("conv1d") => each(&|u| u - 0.5),
            name if name.contains("halt_gate") => vec![self.gate_bias; len],
            name if name.ends_with("linear_attn.norm.weight") => vec![1.0; len],
            _ => vec![0.0; len],
        })
    }
}
