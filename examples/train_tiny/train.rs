//! The training loop.

use std::fs::OpenOptions;
use std::io::Write;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, anyhow};
use burn::grad_clipping::GradientClippingConfig;
use burn::lr_scheduler::LrScheduler;
use burn::lr_scheduler::cosine::CosineAnnealingLrSchedulerConfig;
use burn::module::{AutodiffModule, Module};
use burn::optim::{AdamWConfig, GradientsParams, Optimizer};
use burn::record::{BinFileRecorder, FullPrecisionSettings, Recorder};
use burn::tensor::activation::log_softmax;
use burn::tensor::backend::{AutodiffBackend, Backend};
use burn::tensor::{Int, Tensor, TensorData};
use burn_autodiff::Autodiff;
use clap::Args;
use emberlm::model::{CausalLm, FeedForward, ForwardOptions, LogitsFor};
use emberlm::quant::CompactBackend;
use emberlm::quant::packed::PackedWeight;
use indicatif::{ProgressBar, ProgressStyle};
use serde::{Deserialize, Serialize};

use crate::data::{Class, Split, document};
use crate::model::Shape;
use crate::random::Random;
use crate::tokenizer::Tokenizer;

/// Flags of a run; kept beside its checkpoints.
#[derive(Args, Clone, Debug, Serialize, Deserialize)]
pub struct Run {
    /// Directory of the checkpoint, the log and the model; a run that was interrupted goes on
    #[arg(long)]
    pub out: PathBuf,
    /// Seed of text, weights and order
    #[arg(long, default_value_t = 1)]
    pub seed: u64,
    /// Batches to train on
    #[arg(long, default_value_t = 6000)]
    pub iterations: usize,
    /// Texts per batch
    #[arg(long, default_value_t = 6)]
    pub batch: usize,
    /// Tokens per text
    #[arg(long, default_value_t = 192)]
    pub length: usize,
    /// MLPs per layer, K
    #[arg(long, default_value_t = 4)]
    pub steps: usize,
    /// Inner width of each MLP
    #[arg(long, default_value_t = 32)]
    pub ffn: usize,
    /// What each step reads
    #[arg(long, default_value = "refine")]
    pub step_input: String,
    /// What the gates read
    #[arg(long, default_value = "input")]
    pub gate_input: String,
    /// Bias that gates begin with
    #[arg(long, default_value_t = -2.0, allow_negative_numbers = true)]
    pub gate_bias: f32,
    /// Price of one expected step of one layer, in nats per token
    #[arg(long, default_value_t = 0.004)]
    pub ponder: f32,
    /// Part of the training before the price is asked, and over which it then rises
    #[arg(long, default_value_t = 0.6)]
    pub warm_up: f32,
    /// Part of the training in which the first step runs alone; the others are added without a change of what is computed
    #[arg(long, default_value_t = 0.3)]
    pub alone: f32,
    /// Part of the training before the gates learn; until then they say what they began with
    #[arg(long, default_value_t = 0.6)]
    pub gates_from: f32,
    /// Highest learning rate
    #[arg(long, default_value_t = 5e-3)]
    pub rate: f64,
    /// Batches per line of the log
    #[arg(long, default_value_t = 25)]
    pub log_every: usize,
    /// Batches per checkpoint
    #[arg(long, default_value_t = 200)]
    pub save_every: usize,
    /// Stop at a checkpoint after so many batches, as if interrupted
    #[arg(long)]
    pub stop_after: Option<usize>,
}

/// Batches over which the learning rate rises, at most a tenth of all.
const RISE: usize = 100;
const WEIGHT_DECAY: f32 = 0.05;
/// Per parameter.
const CLIP_NORM: f32 = 1.0;
/// Token ids `[batch, length + 1]` and the class of each.
pub struct Batch {
    pub rows: Vec<Vec<u32>>,
    pub classes: Vec<Vec<Class>>,
}

impl Batch {
    /// Texts that begin with a document and are cut at the end; each has a stream of random numbers of its own.
    pub fn draw(
        tokenizer: &Tokenizer,
        seed: u64,
        first: u64,
        split: Split,
        batch: usize,
        length: usize,
    ) -> Result<Self> {
        let mut out = Self { rows: Vec::new(), classes: Vec::new() };
        for row in 0..batch as u64 {
            let mut random = Random::new(seed, first + row);
            let (mut ids, mut classes) = (Vec::new(), Vec::new());
            while ids.len() <= length {
                let (more, kinds) = tokenizer.encode(&document(&mut random, split))?;
                ids.extend(more);
                classes.extend(kinds);
            }
            ids.truncate(length + 1);
            classes.truncate(length + 1);
            out.rows.push(ids);
            out.classes.push(classes);
        }
        Ok(out)
    }

    /// The class of every token that is predicted.
    pub fn targets(&self) -> impl Iterator<Item = Class> {
        self.classes.iter().flat_map(|row| row[1..].iter().copied())
    }
}

/// What a model says about a batch, one number per token that is predicted: `[batch * length]`.
pub struct Told<B: Backend> {
    /// Minus the logarithm of its probability.
    pub loss: Tensor<B, 1>,
    /// Expected steps, summed over the layers: `sum_k k p_k`.
    pub steps: Tensor<B, 1>,
    /// Its probability is the highest.
    pub right: Tensor<B, 1, Int>,
    /// Steps run, per layer.
    pub run: Vec<Tensor<B, 1, Int>>,
}

pub fn tell<B: CompactBackend>(model: &CausalLm<B>, batch: &Batch) -> Told<B> {
    let inputs: Vec<&[u32]> = batch.rows.iter().map(|row| &row[..row.len() - 1]).collect();
    let targets: Vec<i64> = batch.rows.iter().flat_map(|row| row[1..].iter().map(|&id| i64::from(id))).collect();
    let (b, m) = (inputs.len(), targets.len());
    let ids = model.ids(&inputs.concat()).expect("ids of the vocabulary").reshape([b, m / b]);
    let options = ForwardOptions { logits: LogitsFor::All, hidden: false };
    let out = model.forward_uncached(ids, options).expect("room for a batch");
    let logits = out.logits.expect("asked for");
    let targets = Tensor::<B, 2, Int>::from_data(TensorData::new(targets, [m, 1]), &logits.device());
    let right = logits.clone().argmax(1).equal(targets.clone()).int().squeeze_dim(1);
    let loss = log_softmax(logits, 1).gather(1, targets).neg().squeeze_dim(1);

    let expected = out.depth.iter().flat_map(|layer| (1..).zip(&layer.weights));
    let steps = expected.map(|(k, p)| p.clone() * f64::from(k)).reduce(|a, b| a + b);
    let run = out.depth.iter().map(|layer| layer.steps.clone()).collect();
    let steps = steps.unwrap_or_else(|| loss.zeros_like());
    Told { loss, steps, right, run }
}

/// Sums over tokens by class.
#[derive(Clone, Default)]
pub struct ByClass(Vec<[f64; 3]>);

impl ByClass {
    pub fn add(&mut self, classes: impl Iterator<Item = Class>, loss: &[f32], steps: &[f32]) {
        self.0.resize(Class::ALL.len(), [0.0; 3]);
        for ((class, &loss), &steps) in classes.zip(loss).zip(steps) {
            let [count, losses, depths] = &mut self.0[class as usize];
            *count += 1.0;
            *losses += f64::from(loss);
            *depths += f64::from(steps);
        }
    }

    /// Tokens, mean loss and mean steps, of one class or of all.
    pub fn mean(&self, class: Option<Class>) -> [f64; 3] {
        let rows = self.0.iter().enumerate().filter(|(i, _)| class.is_none_or(|class| class as usize == *i));
        let [count, loss, steps] = rows.fold([0.0; 3], |sum, (_, row)| [0, 1, 2].map(|i| sum[i] + row[i]));
        [count, loss / count, steps / count]
    }
}

pub fn numbers<B: Backend>(tensor: Tensor<B, 1>) -> Vec<f32> {
    tensor.into_data().convert::<f32>().into_vec().unwrap_or_default()
}

type Files = BinFileRecorder<FullPrecisionSettings>;

/// Trains a model, or goes on where a checkpoint was left.
pub fn train<B: CompactBackend>(run: &Run, device: &B::Device) -> Result<f64> {
    std::fs::create_dir_all(&run.out)?;
    std::fs::write(run.out.join("run.json"), serde_json::to_string_pretty(run)?)?;
    let tokenizer = Tokenizer::train(run.seed)?;
    tokenizer.save(&run.out)?;
    let shape = run.shape();
    let mut model = shape.init::<Autodiff<B>>(run.seed, device)?;
    let clip = GradientClippingConfig::Norm(CLIP_NORM);
    let config = AdamWConfig::new().with_beta_2(0.98).with_epsilon(1e-8).with_weight_decay(WEIGHT_DECAY);
    let mut optimizer = config.with_grad_clipping(Some(clip)).init::<Autodiff<B>, CausalLm<Autodiff<B>>>();
    let cosine = CosineAnnealingLrSchedulerConfig::new(run.rate, run.iterations).with_min_lr(run.rate * 0.02);
    let mut schedule = cosine.init().map_err(|e| anyhow!("learning rate: {e}"))?;

    let mut done = 0;
    let state = run.out.join("done");
    if let Ok(text) = std::fs::read_to_string(&state) {
        done = text.trim().parse().context("the file \"done\" is damaged")?;
        let at = |what: &str| run.out.join(format!("{what}-{done}"));
        model = model.load_record(Files::new().load(at("model"), device)?);
        optimizer = optimizer.load_record(Files::new().load(at("optimizer"), device)?);
        (0..done).for_each(|_| {
            schedule.step();
        });
    }
    let parameters = model.num_params();
    println!("{parameters} parameters, {} tokens known, {done} batches done", tokenizer.vocab_size());
    let bar = ProgressBar::new(run.iterations as u64).with_position(done as u64);
    if let Ok(style) = ProgressStyle::with_template("[{bar:40}] {pos}/{len} {eta} {msg}") {
        bar.set_style(style);
    }
    let mut log = OpenOptions::new().create(true).append(true).open(run.out.join("log.jsonl"))?;
    let mut seen = ByClass::default();
    let mut last = f64::NAN;
    let started = std::time::Instant::now();
    while done < run.iterations {
        let first = (done * run.batch) as u64;
        let batch = Batch::draw(&tokenizer, run.seed, first, Split::Train, run.batch, run.length)?;
        model.set_depth(run.steps_at(done), false, 1.0)?;
        let told = tell(&model, &batch);
        let (loss, steps) = (numbers(told.loss.clone()), numbers(told.steps.clone()));
        seen.add(batch.targets(), &loss, &steps);
        let price = run.price(done);
        let total = told.loss.mean() + told.steps.mean() * f64::from(price);
        let mut gradients = GradientsParams::from_grads(total.backward(), &model);
        if (done as f32) < run.gates_from * run.iterations as f32 {
            hold_gates(&model, &mut gradients);
        }
        let rise = ((done + 1) as f64 / RISE.min(run.iterations.div_ceil(10)) as f64).min(1.0);
        model = optimizer.step(schedule.step() * rise, model, gradients);
        done += 1;
        bar.inc(1);
        if done.is_multiple_of(run.log_every) || done == run.iterations {
            let [_, loss, _] = seen.mean(None);
            last = loss;
            let layers = model.model.layers.len() as f64;
            let classes: serde_json::Map<_, _> = Class::ALL
                .iter()
                .map(|&class| {
                    let [_, loss, steps] = seen.mean(Some(class));
                    (class.name().to_owned(), serde_json::json!({ "loss": loss, "steps": steps / layers }))
                })
                .collect();
            let seconds = started.elapsed().as_secs_f64();
            let steps = seen.mean(None)[2] / layers;
            let line = serde_json::json!({
                "batch": done, "loss": loss, "steps": steps, "price": price, "seconds": seconds, "classes": classes
            });
            writeln!(log, "{line}")?;
            bar.set_message(format!("loss {loss:.3}, {steps:.2} steps"));
            seen = ByClass::default();
        }
        if done.is_multiple_of(run.save_every) || done == run.iterations {
            checkpoint::<B>(run, &state, done, &model, optimizer.to_record())?;
            if run.stop_after.is_some_and(|last| done >= last) {
                break;
            }
        }
    }
    bar.finish();
    shape.save(&model.valid(), &run.out)?;
    Ok(last)
}

/// Leaves the gates as they are. They learn faster than what they choose among, and would close the later steps for good while those
/// are still noise.
fn hold_gates<B: AutodiffBackend>(model: &CausalLm<B>, gradients: &mut GradientsParams) {
    for layer in &model.model.layers {
        let FeedForward::Crest(mlp) = &layer.mlp else { continue };
        for gate in &mlp.halt_gates {
            if let PackedWeight::Float(weight) = &gate.output.weight {
                gradients.remove::<B::InnerBackend, 2>(weight.id);
            }
            if let Some(bias) = &gate.output.bias {
                gradients.remove::<B::InnerBackend, 1>(bias.id);
            }
        }
    }
}

/// Writes a checkpoint, and removes the one before once the new one is in force.
fn checkpoint<B: CompactBackend>(
    run: &Run,
    state: &Path,
    done: usize,
    model: &CausalLm<Autodiff<B>>,
    optimizer: impl burn::record::Record<Autodiff<B>>,
) -> Result<()> {
    let at = |what: &str, done: usize| run.out.join(format!("{what}-{done}"));
    let files = Files::new();
    Recorder::<Autodiff<B>>::record(&files, model.clone().into_record(), at("model", done))?;
    Recorder::<Autodiff<B>>::record(&files, optimizer, at("optimizer", done))?;
    let before = std::fs::read_to_string(state).ok().and_then(|text| text.trim().parse().ok());
    std::fs::write(state, done.to_string())?;
    if let Some(before) = before.filter(|&before| before != done) {
        for what in ["model", "optimizer"] {
            let _ = std::fs::remove_file(at(what, before).with_extension("bin"));
        }
    }
    Ok(())
}

impl Run {
    pub fn shape(&self) -> Shape {
        Shape {
            steps: self.steps,
            step_input: self.step_input.clone(),
            gate_input: self.gate_input.clone(),
            ffn: self.ffn,
            gate_bias: self.gate_bias,
        }
    }

    /// How many of the MLPs run, after `done` batches.
    fn steps_at(&self, done: usize) -> usize {
        if (done as f32) < self.alone * self.iterations as f32 { 1 } else { self.steps }
    }

    /// Of one expected step of one layer, after `done` batches.
    fn price(&self, done: usize) -> f32 {
        let warm_up = self.warm_up * self.iterations as f32;
        self.ponder * ((done as f32 - warm_up) / warm_up.max(1.0)).clamp(0.0, 1.0)
    }
}

/// A model whose inner backend is `B`, as it is after a run.
pub fn trained<B: CompactBackend>(run: &Run, device: &B::Device) -> Result<CausalLm<B>>
where
    Autodiff<B>: AutodiffBackend<InnerBackend = B> + CompactBackend,
{
    let done = std::fs::read_to_string(run.out.join("done")).context("the run has no checkpoint")?;
    let path = run.out.join(format!("model-{}", done.trim()));
    let model = run.shape().init::<B>(run.seed, device)?;
    Ok(model.load_record(Files::new().load(path, device)?))
}
