//! The measurements: repetitions of prompts and generations, alternating between the numbers of CREST steps and the formats of the cache.

use std::collections::BTreeMap;
use std::time::Instant;

use anyhow::{Context, Result};
use emberlm::demo;
use emberlm::model::cache::Cache;
use emberlm::model::engine::{
    DraftOptions, DraftSource, Engine, EngineOptions, EngineTotals, Event, EventKind, Request,
};
use emberlm::model::sampling::{Sampler, SamplingConfig};
use emberlm::model::{CausalLm, DepthOptions, ForwardOptions, LoadPlan, LogitsFor, ModelPart, Span};
use emberlm::quant::CompactBackend;
use emberlm::quant::kv::KvFormat;
use emberlm::quant::read::reads;

use super::args::BenchArgs;
use super::report::{Drafts, Measurement};
use crate::cli::backend::OpenDevice;

/// Kernels launched and reads from the device, since the process began.
#[derive(Clone, Copy, Default)]
struct Counts {
    launches: u64,
    read_backs: u64,
}

/// Measures one model at one thread count.
pub struct Bench<'a, B: CompactBackend> {
    pub args: &'a BenchArgs,
    pub model: &'a mut CausalLm<B>,
    pub plan: &'a LoadPlan,
    /// Ids below this may be read.
    pub known_ids: usize,
    pub threads: usize,
    pub device: &'a OpenDevice<B>,
}

/// What is repeated.
#[derive(Clone, Copy)]
enum Test {
    /// One pass over so many tokens from an empty cache, logits of the last.
    Prompt(usize),
    /// So many greedy tokens of each of several sequences, one of each at a time.
    Generation { tokens: usize, parallel: usize },
    /// As many with drafts, by an engine.
    Drafted { tokens: usize, parallel: usize, draft: DraftOptions },
}

impl Test {
    /// Tokens that a sequence gets.
    fn tokens(self) -> usize {
        match self {
            Test::Prompt(tokens) | Test::Generation { tokens, .. } | Test::Drafted { tokens, .. } => tokens,
        }
    }

    /// Sequences that take part.
    fn sequences(self) -> usize {
        match self {
            Test::Prompt(_) => 1,
            Test::Generation { parallel, .. } | Test::Drafted { parallel, .. } => parallel,
        }
    }
}

/// What alternates within each repetition, so that a drift of the machine's speed affects all of it alike.
#[derive(Clone, Copy)]
struct Setting {
    /// CREST steps to force, or the model's own rule.
    steps: Option<usize>,
    format: KvFormat,
}

/// The repetitions of one test in one setting, those for [warming up](Bench::warm_ups) included.
#[derive(Default)]
struct Samples {
    seconds: Vec<f64>,
    /// Of the last one.
    before: Counts,
    after: Counts,
    ids: Vec<u32>,
    cache_bytes: usize,
    /// Of the engine, with drafts.
    totals: EngineTotals,
}

impl<B: CompactBackend> Bench<'_, B> {
    /// Every test in every setting, sorted by these.
    pub fn run_all(&mut self) -> Result<Vec<Measurement>> {
        let tests = self.tests()?;
        let settings = self.settings();
        let mut measurements: Vec<Vec<Measurement>> = settings.iter().map(|_| Vec::new()).collect();
        for &context in &self.args.context {
            for &test in &tests {
                let mut samples: Vec<Samples> = settings.iter().map(|_| Samples::default()).collect();
                // Numbers of steps share the caches of a format.
                let mut caches =
                    self.formats().map(|format| (format, self.new_caches(test, format))).collect::<Vec<_>>();
                for _ in 0..self.args.repetitions as usize + self.warm_ups() {
                    for (format, caches) in &mut caches {
                        for (setting, samples) in settings.iter().zip(&mut samples) {
                            if setting.format == *format {
                                self.set_steps(setting.steps)?;
                                self.run_once(test, (context, *format), caches, samples)?;
                            }
                        }
                    }
                }
                // Steps are counted with a cache of their own, and the peak of memory is told.
                drop(caches);
                for ((setting, samples), measurements) in settings.iter().zip(&samples).zip(&mut measurements) {
                    self.set_steps(setting.steps)?;
                    measurements.push(self.measurement(test, (context, setting.format), samples)?);
                }
            }
        }
        Ok(measurements.into_iter().flatten().collect())
    }

    /// What is asked for, prompts first.
    fn tests(&self) -> Result<Vec<Test>> {
        let prompts = self.args.n_prompt.iter().filter(|&&n| n > 0).map(|&n| Test::Prompt(n));
        let lengths = self.args.n_gen.iter().copied().filter(|&tokens| tokens > 0);
        let several = lengths.flat_map(|tokens| self.args.parallel.iter().map(move |&parallel| (tokens, parallel)));
        let num_steps = self.model.architecture().crest.as_ref().map(|crest| crest.num_steps);
        let draft = self.args.draft(num_steps)?;
        let generations = several.flat_map(|(tokens, parallel)| {
            let parallel = parallel.into();
            let drafted = draft.map(|draft| Test::Drafted { tokens, parallel, draft });
            [Test::Generation { tokens, parallel }].into_iter().chain(drafted)
        });
        Ok(prompts.chain(generations).collect())
    }

    /// Every format of the cache with every number of steps.
    fn settings(&self) -> Vec<Setting> {
        let steps = self.step_counts();
        self.formats().flat_map(|format| steps.iter().map(move |&steps| Setting { steps, format })).collect()
    }

    /// The formats of the cache, each once.
    fn formats(&self) -> impl Iterator<Item = KvFormat> {
        let asked = &self.args.cache_type;
        let first =
            asked.iter().enumerate().filter(|(at, format)| !asked.iter().take(*at).any(|before| before == *format));
        first.map(|(_, &format)| format.into())
    }

    /// An empty cache for each sequence.
    fn new_caches(&self, test: Test, format: KvFormat) -> Vec<Cache<B>> {
        (0..test.sequences()).map(|_| self.model.new_cache(format)).collect()
    }

    /// Repetitions that are not counted: the first, unless asked otherwise.
    fn warm_ups(&self) -> usize {
        usize::from(!self.args.no_warmup)
    }

    /// The steps to force, at most where sequences differ, or the model's own rule.
    fn step_counts(&self) -> Vec<Option<usize>> {
        let forced = &self.args.force_steps;
        match self.args.mixed_steps {
            true => vec![forced.iter().copied().max()],
            false if forced.is_empty() => vec![None],
            false => forced.iter().copied().map(Some).collect(),
        }
    }

    /// How deep each sequence goes.
    fn depths(&self) -> impl Iterator<Item = DepthOptions> {
        let mixed = self.args.force_steps.iter().filter(|_| self.args.mixed_steps);
        let mixed = mixed.map(|&steps| DepthOptions { steps: Some(steps), ..DepthOptions::default() });
        mixed.cycle().chain(std::iter::repeat(DepthOptions::default()))
    }

    fn set_steps(&mut self, steps: Option<usize>) -> Result<()> {
        Ok(steps.map_or(Ok(()), |steps| self.model.set_depth(steps, false, 1.0))?)
    }

    fn run_once(
        &self,
        test: Test,
        (context, format): (usize, KvFormat),
        caches: &mut [Cache<B>],
        samples: &mut Samples,
    ) -> Result<()> {
        caches.iter_mut().try_for_each(|cache| self.fill(test, context, cache))?;
        let prompt = match test {
            Test::Prompt(n) => self.ids(n),
            Test::Generation { parallel, .. } | Test::Drafted { parallel, .. } => self.ids(parallel),
        };
        let mut sampler = Sampler::new(&SamplingConfig::greedy())?;
        samples.ids.clear();
        samples.before = self.finished();
        let start = Instant::now();
        match test {
            Test::Prompt(_) => {
                for cache in caches.iter_mut() {
                    self.model.prefill(&prompt, cache, self.args.chunk as usize)?;
                }
                samples.ids = prompt;
            }
            Test::Generation { tokens, .. } => {
                let mut ids = prompt;
                for _ in 0..tokens {
                    ids = self.decode(&ids, caches, &mut sampler)?;
                    samples.ids.extend(ids.first());
                }
            }
            Test::Drafted { tokens, draft, .. } => {
                (samples.ids, samples.totals) = self.generate_drafted((&prompt, tokens), draft, format, caches)?;
            }
        }
        samples.after = self.finished();
        samples.seconds.push(start.elapsed().as_secs_f64());
        samples.cache_bytes = caches.iter().map(Cache::bytes).sum();
        Ok(())
    }

    /// One token of every sequence, and the token that follows it.
    fn decode(&self, ids: &[u32], caches: &mut [Cache<B>], sampler: &mut Sampler) -> Result<Vec<u32>> {
        let spans = caches.iter_mut().zip(self.depths());
        let mut spans: Vec<_> = spans.map(|(cache, depth)| Span { depth, ..Span::new(1, cache) }).collect();
        let options = ForwardOptions { logits: LogitsFor::Last, hidden: false };
        let logits = self.model.forward(self.model.ids(ids)?, &mut spans, options)?.logits;
        let logits = logits.context("the pass gave no logits")?;
        (0..spans.len()).map(|row| Ok(sampler.choose(logits.clone().slice_dim(0, row..row + 1), &[])?)).collect()
    }

    /// So many tokens of every sequence with drafts: those of the first one, and what the engine counted.
    fn generate_drafted(
        &self,
        (first, max_tokens): (&[u32], usize),
        draft: DraftOptions,
        kv_format: KvFormat,
        caches: &mut [Cache<B>],
    ) -> Result<(Vec<u32>, EngineTotals)> {
        let options = EngineOptions { kv_format, max_running: caches.len(), draft: Some(draft), ..Default::default() };
        // A vocabulary that fits the weights is not needed: nobody reads the text.
        let text = demo::open()?.text()?;
        let mut engine = Engine::new(self.model, &text, options);
        let mut places = BTreeMap::new();
        for (((at, cache), &id), depth) in caches.iter_mut().enumerate().zip(first).zip(self.depths()) {
            let cache = std::mem::replace(cache, self.model.new_cache(kv_format));
            let history = self.ids(cache.len());
            let request = Request { max_tokens, depth, ..Request::new(vec![id]) };
            places.insert(engine.resume(cache, history, request)?, at);
        }
        let mut ids = Vec::new();
        while !engine.is_idle() {
            for Event { sequence, kind } in engine.step() {
                match kind {
                    EventKind::Token(piece) if places.get(&sequence) == Some(&0) => ids.extend(piece.token),
                    EventKind::Finished(finished) => {
                        let cache = places.get(&sequence).and_then(|&at| caches.get_mut(at));
                        if let Some(cache) = cache {
                            *cache = finished.cache;
                        }
                    }
                    EventKind::Failed(error) => return Err(error.into()),
                    _ => {}
                }
            }
        }
        Ok((ids, engine.totals()))
    }

    /// Waits until the device has finished, and returns the number of kernels launched and of reads from the device so far.
    fn finished(&self) -> Counts {
        // An error shows in whatever is read next.
        let _ = B::sync(&self.device.device);
        Counts { launches: self.device.gpu.as_ref().map_or(0, |gpu| (gpu.launches)()), read_backs: reads() }
    }

    /// Launches and read-backs per pass.
    fn counts(&self, before: Counts, after: Counts, passes: usize) -> Option<[f64; 2]> {
        let launches = after.launches - before.launches;
        let read_backs = after.read_backs - before.read_backs;
        self.device.gpu.as_ref().map(|_| [launches, read_backs].map(|count| count as f64 / passes as f64))
    }

    /// What a measurement starts from: so many tokens of context and nothing else. Where the one before has left them there, and what it
    /// added can be taken off, they stay. An engine may have laid them out in another way.
    fn fill(&self, test: Test, context: usize, cache: &mut Cache<B>) -> Result<()> {
        if context > 0 && cache.len() > context && !cache.is_recurrent() && !matches!(test, Test::Drafted { .. }) {
            return Ok(cache.truncate(context)?);
        }
        cache.reset();
        // As an engine does for a request: a cache that grew while it is measured would be another one than that of a long text.
        let end = context.saturating_add(test.tokens());
        cache.check_room(end)?;
        cache.reserve(end);
        if self.args.random_context {
            cache.append_random(context)?;
        } else if context > 0 {
            self.model.prefill(&self.ids(context), cache, self.args.chunk as usize)?;
        }
        Ok(())
    }

    fn ids(&self, n: usize) -> Vec<u32> {
        let vocabulary = self.known_ids;
        (0..n)
            .map(|i| ((i * 7919 + 13) % vocabulary.saturating_sub(300).max(1) + 300.min(vocabulary / 2)) as u32)
            .collect()
    }

    /// Steps per layer and token when these tokens are run, or those that the sequences were told.
    fn mean_steps(&self, ids: &[u32], sequences: usize, format: KvFormat) -> Result<Option<f64>> {
        if self.model.architecture().crest.is_none() {
            return Ok(None);
        }
        if self.args.mixed_steps {
            let steps = self.depths().take(sequences).filter_map(|depth| depth.steps);
            return Ok(Some(steps.sum::<usize>() as f64 / sequences as f64));
        }
        let mut cache = self.model.new_cache(format);
        let options = ForwardOptions { logits: LogitsFor::Nothing, hidden: false };
        let mut steps: Vec<f64> = Vec::new();
        // In the passes that were measured.
        for ids in ids.chunks(self.args.chunk as usize) {
            let mut spans = [Span::new(ids.len(), &mut cache)];
            for layer in self.model.forward(self.model.ids(ids)?, &mut spans, options)?.depth {
                steps.extend(layer.steps.to_data().convert::<f64>().into_vec::<f64>().unwrap_or_default());
            }
        }
        Ok(Some(steps.iter().sum::<f64>() / steps.len().max(1) as f64))
    }

    /// Bytes of weights that one pass reads: all but the rows of an untied embedding that are not looked up, and of CREST's MLPs
    /// the share that runs.
    fn weight_bytes(&self, mean_steps: Option<f64>) -> f64 {
        let architecture = self.model.architecture();
        let steps = architecture.crest.as_ref().map_or(1, |crest| crest.num_steps) as f64;
        let share = mean_steps.map_or(1.0, |mean| mean / steps);
        let read = self.plan.tensors.iter().map(|tensor| {
            let bytes = tensor.bytes as f64;
            match tensor.part {
                ModelPart::Embedding if !architecture.tied_head => 0.0,
                ModelPart::FeedForward => bytes * share,
                _ => bytes,
            }
        });
        read.sum()
    }

    fn measurement(&self, test: Test, (context, format): (usize, KvFormat), samples: &Samples) -> Result<Measurement> {
        let (name, n_prompt, n_gen) = match test {
            Test::Prompt(n) => (format!("pp{n}"), n, 0),
            Test::Generation { tokens, parallel: 1 } => (format!("tg{tokens}"), 0, tokens),
            Test::Generation { tokens, parallel } => (format!("tg{tokens}x{parallel}"), 0, tokens),
            Test::Drafted { tokens, parallel: 1, .. } => (format!("tg{tokens} drafted"), 0, tokens),
            Test::Drafted { tokens, parallel, .. } => (format!("tg{tokens}x{parallel} drafted"), 0, tokens),
        };
        let parallel = test.sequences();
        let tokens = ((n_prompt + n_gen) * parallel) as f64;
        let passes = match test {
            Test::Prompt(n) => n.div_ceil(self.args.chunk as usize),
            Test::Generation { tokens, .. } => tokens,
            Test::Drafted { .. } => samples.totals.steps as usize,
        };
        let counted = if n_gen > 0 { passes } else { 1 };
        let counts = self.counts(samples.before, samples.after, counted);
        let mean_steps = self.mean_steps(&samples.ids, parallel, format)?;
        // The deepest of mixed sequences reads every step that was loaded.
        let read = mean_steps.filter(|_| !self.args.mixed_steps);
        let mut bytes = self.weight_bytes(read) * passes as f64;
        if let Test::Drafted { draft: DraftOptions { source: DraftSource::Steps(steps), .. }, .. } = test {
            bytes += self.weight_bytes(Some(steps as f64)) * samples.totals.draft_steps as f64;
        }
        let bytes_per_token = bytes / tokens;
        let drafts = match test {
            Test::Drafted { draft, .. } => Some(Drafts {
                drafted: samples.totals.drafted_tokens,
                accepted: samples.totals.accepted_tokens,
                forced_acceptance: draft.forced_acceptance,
            }),
            _ => None,
        };
        let mut seconds: Vec<f64> = samples.seconds.iter().skip(self.warm_ups()).copied().collect();
        seconds.sort_by(f64::total_cmp);
        let tokens_per_second = tokens / median(&seconds);
        Ok(Measurement {
            test: name,
            n_prompt,
            n_gen,
            n_parallel: parallel,
            n_depth: context,
            cache_type: format.as_str(),
            threads: self.threads,
            tokens_per_second,
            tokens_per_second_each: tokens_per_second / parallel as f64,
            best_tokens_per_second: tokens / seconds.first().copied().unwrap_or(f64::NAN),
            bytes_per_token,
            gb_per_second: tokens_per_second * bytes_per_token / 1e9,
            mean_steps,
            drafts,
            cache_bytes: samples.cache_bytes,
            launches: counts.map(|[launches, _]| launches),
            read_backs: counts.map(|[_, read_backs]| read_backs),
        })
    }
}

/// The middle of sorted numbers, or the mean of the two in the middle.
fn median(sorted: &[f64]) -> f64 {
    let middle = |i: usize| sorted.get(i).copied().unwrap_or(f64::NAN);
    match sorted.len() {
        count if count.is_multiple_of(2) => (middle((count / 2).wrapping_sub(1)) + middle(count / 2)) / 2.0,
        count => middle(count / 2),
    }
}

#[cfg(test)]
mod tests {
    use super::median;

    #[test]
    fn the_median_of_an_even_count_is_the_mean_of_the_middle_two() {
        for (sorted, wanted) in
            [(&[2.0][..], 2.0), (&[1.0, 4.0], 2.5), (&[1.0, 2.0, 9.0], 2.0), (&[1.0, 2.0, 4.0, 9.0], 3.0)]
        {
            assert_eq!(median(sorted), wanted, "{sorted:?}");
        }
        assert!(median(&[]).is_nan());
    }
}
