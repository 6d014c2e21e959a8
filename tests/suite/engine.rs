//! The engine: what a sequence gets does not depend on who else is there.

use std::collections::{BTreeMap, BTreeSet};

use emberlm::model::engine::{Engine, EngineOptions, EventKind, Finish, Request, SequenceId, Trace};
use emberlm::model::sampling::{LogitsProcessors, Sampler, SamplingConfig, log_softmax};
use emberlm::model::text::TextProcessor;
use emberlm::model::{CausalLm, Error, Pretrained};
use emberlm::quant::CompactBackend;
use emberlm::quant::kv::KvFormat;

use super::fixture::{Fixture, Numbers};
use super::random::Random;

/// Runs of random sequences per fixture; `EMBERLM_ENGINE_RUNS` asks for more.
const RUNS: usize = 1;
const SEQUENCES: usize = 32;

pub(super) struct Loaded<B: CompactBackend> {
    pub name: String,
    pub model: CausalLm<B>,
    pub text: TextProcessor,
    /// Tokens that prompts are cut from.
    pub ids: Vec<u32>,
}

pub(super) fn loaded<B: CompactBackend>(device: &B::Device) -> impl Iterator<Item = Loaded<B>> {
    Fixture::all().into_iter().map(|fixture| Loaded::new(fixture.name(), &fixture, &fixture.open(), device))
}

/// Those whose caches can hold hidden values of decoders, with these.
pub(super) fn loaded_with_hidden_values<B: CompactBackend>(device: &B::Device) -> impl Iterator<Item = Loaded<B>> {
    Fixture::all().into_iter().filter_map(|fixture| {
        let pretrained = fixture.open().cache_hidden().ok()?;
        Some(Loaded::new(format!("{} with hidden values", fixture.name()), &fixture, &pretrained, device))
    })
}

impl<B: CompactBackend> Loaded<B> {
    fn new(name: String, fixture: &Fixture, pretrained: &Pretrained, device: &B::Device) -> Self {
        let model = pretrained.load(device).expect("a model");
        let text = pretrained.text().expect("a tokenizer");
        Self { name, model, text, ids: fixture.case("long").ids().remove(0) }
    }
}

/// An exact cache: rounded keys would turn the last bits of sums into differences that show.
pub(super) fn options() -> EngineOptions {
    EngineOptions {
        kv_format: KvFormat::F32,
        tokens_per_step: 48,
        prompt_tokens_beside_decoding: 12,
        ..Default::default()
    }
}

/// What became of a sequence.
#[derive(Debug, Default, PartialEq)]
pub(super) struct Outcome {
    pub text: String,
    pub generated: Vec<u32>,
    pub finish: Option<Finish>,
}

/// Runs steps until nothing is left to do; what became of each sequence.
fn run<B: CompactBackend>(engine: &mut Engine<'_, B>, outcomes: &mut BTreeMap<SequenceId, Outcome>) {
    while !engine.is_idle() {
        step(engine, outcomes);
    }
}

fn step<B: CompactBackend>(engine: &mut Engine<'_, B>, outcomes: &mut BTreeMap<SequenceId, Outcome>) {
    for event in engine.step() {
        let outcome = outcomes.entry(event.sequence).or_default();
        match event.kind {
            EventKind::PromptRead { tokens, .. } => assert!(tokens > 0),
            EventKind::Started { .. } => {}
            EventKind::Token(piece) => {
                outcome.text.push_str(&piece.text);
                outcome.generated.extend(piece.token);
            }
            EventKind::Finished(finished) => {
                assert_eq!(finished.summary.generated, outcome.generated);
                assert_eq!(finished.cache.len(), finished.tokens.len());
                outcome.finish = Some(finished.summary.finish);
            }
            EventKind::Failed(error) => panic!("{error}"),
            other => panic!("{other:?}"),
        }
    }
}

/// What an engine without a prefix cache gives one that is alone.
pub(super) fn alone<B: CompactBackend>(loaded: &Loaded<B>, request: &Request) -> Outcome {
    let mut engine = Engine::new(&loaded.model, &loaded.text, options());
    let id = engine.submit(request.clone()).expect("a request");
    let mut outcomes = BTreeMap::new();
    run(&mut engine, &mut outcomes);
    outcomes.remove(&id).expect("an outcome")
}

/// How near what a request gave alone and what it gave here are to each other.
#[derive(Debug)]
pub(super) struct Nearness {
    /// The least distance of a halting probability from the threshold, at any token and layer.
    halting: f32,
    /// How far the logits of the text up to where the two part are from each other when it is read in other passes, at most, relative
    /// to the largest; none where the two part at no token.
    noise: Option<f32>,
    /// Whether logits that differ by so much make the sampler give both tokens at which the two part.
    either: bool,
}

impl Nearness {
    pub fn of<B: CompactBackend>(
        loaded: &Loaded<B>,
        (request, kv_format): (&Request, KvFormat),
        expected: &Outcome,
        got: &Outcome,
    ) -> Self {
        let halting = nearest_halt(loaded, request);
        let shared = expected.generated.iter().zip(&got.generated).take_while(|(a, b)| a == b).count();
        let (Some(&one), Some(&other)) = (expected.generated.get(shared), got.generated.get(shared)) else {
            return Self { halting, noise: None, either: false };
        };
        let text = [request.prompt.as_slice(), &expected.generated[..shared]].concat();
        let logits = |chunk: usize| {
            let mut cache = loaded.model.new_cache(kv_format);
            Numbers::of(&loaded.model.prefill(&text, &mut cache, chunk).expect("a text")).values
        };
        let whole = logits(text.len());
        let largest = whole.iter().fold(0.0f32, |largest, logit| largest.max(logit.abs()));
        let differences = [1, 2, 3, 5, 8, 13].into_iter().flat_map(|chunk| {
            let other = logits(chunk);
            whole.iter().zip(other).map(|(a, b)| (a - b).abs()).collect::<Vec<_>>()
        });
        let noise = differences.fold(0.0, f32::max) / largest;
        // Every token before took one random number.
        let mut sampler = Sampler::new(&request.sampling)
            .expect("options")
            .with_processors(request.processors.clone(), request.stop_tokens.ids());
        for _ in 0..shared {
            sampler.sample(&mut vec![0.0; whole.len()], &[]).expect("a token");
        }
        let mut random = Random::new(0);
        let chosen: BTreeSet<u32> = (0..500)
            .map(|_| {
                let numbers = random.normal(whole.len());
                let noisy = whole.iter().zip(numbers).map(|(logit, number)| logit + largest * noise * number);
                sampler.clone().sample(&mut noisy.collect::<Vec<_>>(), &text).expect("a token")
            })
            .collect();
        Self { halting, noise: Some(noise), either: chosen.contains(&one) && chosen.contains(&other) }
    }

    /// Whether sums in another order decide. They are a thousandth of the logits at most, else something is wrong.
    pub fn hangs_on_last_bits(&self) -> bool {
        self.halting < 1e-5 || self.either && self.noise.is_some_and(|noise| noise < 1e-3)
    }
}

/// The least distance from the threshold at which a token halts, or goes on.
fn nearest_halt<B: CompactBackend>(loaded: &Loaded<B>, request: &Request) -> f32 {
    let Some(crest) = &loaded.model.architecture().crest else { return f32::INFINITY };
    let mut engine = Engine::new(&loaded.model, &loaded.text, options());
    engine.submit(Request { trace: Trace::All, ..request.clone() }).expect("a request");
    let mut depths = Vec::new();
    while !engine.is_idle() {
        for event in engine.step() {
            match event.kind {
                EventKind::PromptRead { depth, .. } => depths.extend(depth),
                EventKind::Token(piece) => depths.extend(piece.depth),
                _ => {}
            }
        }
    }
    // Halting probabilities by themselves, and added up, as the rule may be.
    let probabilities = depths.iter().flat_map(|depth| &depth.halt).flat_map(|halt| {
        let sums = halt.iter().scan(0.0, |sum, p| {
            *sum += p;
            Some(*sum)
        });
        halt.iter().copied().chain(sums)
    });
    probabilities.map(|p: f32| (p - crest.halt_threshold).abs()).fold(f32::INFINITY, f32::min)
}

pub(super) fn request(random: &mut Random, ids: &[u32]) -> Request {
    let length = 1 + random.below(60);
    let start = random.below(ids.len() - length);
    let seed = random.below(1000) as u64;
    let sampling = match random.below(3) {
        0 => SamplingConfig::greedy(),
        1 => SamplingConfig { temperature: 0.8, top_k: 20, seed: Some(seed), ..SamplingConfig::default() },
        _ => SamplingConfig { top_p: 0.9, repetition_penalty: 1.1, seed: Some(seed), ..SamplingConfig::default() },
    };
    let max_tokens = random.below(24);
    Request { sampling, max_tokens, ..Request::new(ids[start..start + length].to_vec()) }
}

/// Sequences that join, leave, are cancelled and forked in random order get the texts that they get alone, and leave no memory. In every
/// other run, and where there is one run on every other fixture, they begin alike, and there is a prefix cache.
pub fn sequences_are_as_alone<B: CompactBackend>(device: &B::Device) {
    let runs = std::env::var("EMBERLM_ENGINE_RUNS").ok().map_or(RUNS, |runs| runs.parse().expect("a number"));
    for (nth, loaded) in loaded::<B>(device).enumerate() {
        let mut seen = Seen::default();
        let mut prefixes = false;
        for seed in 0..runs {
            let with_prefixes = (seed + nth).is_multiple_of(2);
            prefixes |= with_prefixes;
            seen = seen + one_run(&loaded, seed as u64, with_prefixes);
        }
        println!("{}: {runs} runs of {SEQUENCES} sequences: {seen:?}", loaded.name);
        assert!(seen.undecided * 100 <= runs * SEQUENCES, "{}: {seen:?}", loaded.name);
        assert!(seen.forks > 0 && seen.cancelled > 0, "{}: {seen:?}", loaded.name);
        assert_eq!(seen.prefix_hits > 0, prefixes, "{}: {seen:?}", loaded.name);
    }
}

/// What happened in runs.
#[derive(Clone, Copy, Debug, Default)]
struct Seen {
    forks: usize,
    cancelled: usize,
    prefix_hits: usize,
    /// Sequences that hang on last bits, and came out otherwise.
    undecided: usize,
}

impl std::ops::Add for Seen {
    type Output = Self;

    fn add(self, other: Self) -> Self {
        Self {
            forks: self.forks + other.forks,
            cancelled: self.cancelled + other.cancelled,
            prefix_hits: self.prefix_hits + other.prefix_hits,
            undecided: self.undecided + other.undecided,
        }
    }
}

fn one_run<B: CompactBackend>(loaded: &Loaded<B>, seed: u64, prefixes: bool) -> Seen {
    let mut random = Random::new(seed);
    let shapes = loaded.model.architecture().cache_shapes();
    let per_token: usize = shapes.iter().map(|shape| shape.bytes_per_token(KvFormat::F32)).sum();
    let fixed: usize = shapes.iter().map(|shape| shape.fixed_bytes()).sum();
    // Room for about ten of them, or for eight and some prefixes.
    let budget = 10 * (256 * per_token + fixed);
    let prefix_cache_bytes = if prefixes { budget / 5 } else { 0 };
    let limits = EngineOptions { max_running: 12, cache_bytes: Some(budget), prefix_cache_bytes, ..options() };
    let mut engine = Engine::new(&loaded.model, &loaded.text, limits);
    let (mut requests, mut outcomes) = (BTreeMap::new(), BTreeMap::new());
    let (mut cancelled, mut forks) = (Vec::new(), 0);
    while requests.len() < SEQUENCES {
        match random.below(8) {
            0..3 => {
                let mut request = request(&mut random, &loaded.ids);
                if prefixes {
                    let length = request.prompt.len();
                    request.prompt = loaded.ids[..40].iter().copied().chain(request.prompt).collect();
                    request.prompt.drain(..random.below(3) * 20);
                    request.prefix_boundaries = vec![random.below(42), request.prompt.len() - length / 3];
                }
                requests.insert(engine.submit(request.clone()).expect("a request"), request);
            }
            3 if !requests.is_empty() => {
                let nth = random.below(requests.len());
                let id = *requests.keys().nth(nth).expect("one");
                engine.cancel(id);
                cancelled.push(id);
            }
            4 if !requests.is_empty() => {
                let nth = random.below(requests.len());
                let (id, request) = requests.iter().nth(nth).map(|(id, request)| (*id, request.clone())).expect("one");
                match engine.fork(id) {
                    Ok(fork) => {
                        // What it has said so far was said by the other one.
                        let said: &Outcome = outcomes.entry(id).or_default();
                        let said = Outcome { text: said.text.clone(), generated: said.generated.clone(), finish: None };
                        outcomes.insert(fork, said);
                        requests.insert(fork, request);
                        forks += 1;
                    }
                    Err(Error::Option { message, .. }) => assert!(message.contains("has ended"), "{message}"),
                    Err(Error::Memory { bytes, limit, .. }) => assert!(bytes > limit),
                    Err(error) => panic!("{error}"),
                }
            }
            _ => {
                step(&mut engine, &mut outcomes);
                assert!(engine.cache_bytes() <= budget, "{} bytes of {budget}", engine.cache_bytes());
                assert!(engine.prefix_cache_bytes() <= prefix_cache_bytes);
                assert!(engine.sequences().0 <= 12);
            }
        }
    }
    run(&mut engine, &mut outcomes);
    let what = format!("{} seed {seed}", loaded.name);
    let prefix_hits = engine.totals().prefix_hits as usize;
    assert!(prefixes || prefix_hits == 0, "{what}: {:?}", engine.totals());
    engine.clear_prefix_cache();
    assert_eq!((engine.cache_bytes(), engine.sequences()), (0, (0, 0)), "{what}: something is left");
    let mut undecided = 0;
    for (id, request) in &requests {
        let what = format!("{what}, {id:?}");
        let (got, expected) = (&outcomes[id], alone(loaded, request));
        let right = match got.finish == Some(Finish::Cancelled) {
            true => cancelled.contains(id) && expected.generated.starts_with(&got.generated),
            false => *got == expected,
        };
        if !right {
            let near = Nearness::of(loaded, (request, options().kv_format), &expected, got);
            assert!(near.hangs_on_last_bits(), "{what}: {got:?}, expected {expected:?}; {near:?}");
            undecided += 1;
        }
    }
    Seen { forks, cancelled: cancelled.len(), prefix_hits, undecided }
}

/// One whose every token is banned fails; the others go on and get what they get alone.
pub fn one_that_fails_fails_alone<B: CompactBackend>(device: &B::Device) {
    for loaded in loaded::<B>(device) {
        let vocabulary = loaded.model.architecture().config.vocab_size as u32;
        let good = Request { max_tokens: 6, ..Request::new(loaded.ids[..9].to_vec()) };
        let processors = LogitsProcessors { suppress_tokens: (0..vocabulary).collect(), ..Default::default() };
        let bad = Request { processors, ..Request::new(loaded.ids[3..8].to_vec()) };
        let limits = EngineOptions { explain_failures: false, ..options() };
        let mut engine = Engine::new(&loaded.model, &loaded.text, limits);
        let ids = [&good, &bad, &good].map(|request| engine.submit(request.clone()).expect("a request"));
        let (mut failed, mut generated) = (Vec::new(), BTreeMap::<SequenceId, Vec<u32>>::new());
        while !engine.is_idle() {
            for event in engine.step() {
                match event.kind {
                    EventKind::Failed(error) => {
                        assert!(matches!(error, Error::NonFinite { step: 0, .. }), "{error}");
                        failed.push(event.sequence);
                    }
                    EventKind::Token(piece) => generated.entry(event.sequence).or_default().extend(piece.token),
                    _ => {}
                }
            }
        }
        assert_eq!(failed, [ids[1]], "{}", loaded.name);
        let expected = alone(&loaded, &good).generated;
        assert_eq!(generated.into_values().collect::<Vec<_>>(), [expected.clone(), expected], "{}", loaded.name);
    }
}

/// Against the logits of the passes that chose the tokens; penalties and temperature do not change them.
pub fn log_probabilities_are_those_of_the_model<B: CompactBackend>(device: &B::Device) {
    for loaded in loaded::<B>(device) {
        let sampling =
            SamplingConfig { temperature: 0.5, repetition_penalty: 1.3, seed: Some(3), ..SamplingConfig::default() };
        let prompt = loaded.ids[..7].to_vec();
        let request = Request { sampling, max_tokens: 4, log_probabilities: Some(3), ..Request::new(prompt.clone()) };
        let mut engine = Engine::new(&loaded.model, &loaded.text, options());
        engine.submit(request).expect("a request");
        let mut cache = loaded.model.new_cache(KvFormat::F32);
        let mut logits = loaded.model.prefill(&prompt, &mut cache, 512).expect("a prompt");
        let mut tokens = 0;
        while !engine.is_idle() {
            for event in engine.step() {
                let EventKind::Token(piece) = event.kind else { continue };
                let Some(token) = piece.token else { continue };
                let got = piece.log_probabilities.expect("asked for");
                let all = log_softmax(&Numbers::of(&logits).values, tokens).expect("numbers");
                assert!((got.chosen - all[token as usize]).abs() < 1e-3, "{}: {got:?}", loaded.name);
                let mut order: Vec<usize> = (0..all.len()).collect();
                order.sort_by(|&a, &b| all[b].total_cmp(&all[a]));
                assert_eq!(got.top.len(), 3);
                for ((id, value), expected) in got.top.iter().zip(order) {
                    assert!((value - all[expected]).abs() < 1e-3, "{}: {got:?}", loaded.name);
                    assert!((all[*id as usize] - value).abs() < 1e-3, "{}: {got:?}", loaded.name);
                }
                logits = loaded.model.decode(token, &mut cache).expect("a token");
                tokens += 1;
            }
        }
        assert_eq!(tokens, 4, "{}", loaded.name);
    }
}

/// A long prompt is read in chunks while others generate, and a short one beside it does not wait for its end.
pub fn nobody_waits_for_a_long_prompt<B: CompactBackend>(device: &B::Device) {
    let loaded = loaded::<B>(device).find(|loaded| loaded.name == "leanllama").expect("a fixture");
    let mut engine = Engine::new(&loaded.model, &loaded.text, options());
    let first = engine.submit(Request { max_tokens: 40, ..Request::new(loaded.ids[..5].to_vec()) }).expect("a request");
    engine.step();
    let long = engine.submit(Request { max_tokens: 1, ..Request::new(loaded.ids[..200].to_vec()) }).expect("a request");
    engine.step();
    let short = engine.submit(Request { max_tokens: 1, ..Request::new(loaded.ids[..6].to_vec()) }).expect("a request");
    let (mut steps, mut short_done, mut long_done) = (0, None, None);
    while short_done.is_none() || long_done.is_none() {
        steps += 1;
        let (mut tokens, mut read) = (0, BTreeMap::new());
        for event in engine.step() {
            match event.kind {
                EventKind::PromptRead { tokens, .. } => drop(read.insert(event.sequence, tokens)),
                EventKind::Token(piece) if event.sequence == first => tokens += usize::from(piece.token.is_some()),
                EventKind::Finished(_) if event.sequence == short => short_done = Some(steps),
                EventKind::Finished(_) if event.sequence == long => long_done = Some(steps),
                _ => {}
            }
        }
        assert_eq!(tokens, 1, "the one that generates waits in step {steps}");
        assert!(read.values().sum::<usize>() <= 12, "step {steps}: {read:?}");
        assert!(long_done.is_some() || read.contains_key(&long), "the long one waits in step {steps}");
    }
    assert_eq!(short_done, Some(1));
    assert!(long_done > Some(15), "{long_done:?}");
}

/// A budget of bytes that holds one sequence: others wait for it, and what alone is beyond it is refused.
pub fn memory_is_asked_for_first<B: CompactBackend>(device: &B::Device) {
    for loaded in loaded::<B>(device) {
        let shapes = loaded.model.architecture().cache_shapes();
        let per_token: usize = shapes.iter().map(|shape| shape.bytes_per_token(KvFormat::F32)).sum();
        let fixed: usize = shapes.iter().map(|shape| shape.fixed_bytes()).sum();
        let budget = 256 * per_token + fixed;
        let limits = EngineOptions { cache_bytes: Some(budget), ..options() };
        let mut engine = Engine::new(&loaded.model, &loaded.text, limits);
        let request = Request { max_tokens: 4, ..Request::new(loaded.ids[..20].to_vec()) };
        let ids = [0; 3].map(|_| engine.submit(request.clone()).expect("a request"));
        let mut outcomes = BTreeMap::new();
        while !engine.is_idle() {
            step(&mut engine, &mut outcomes);
            assert!(engine.sequences().0 <= 1 && engine.cache_bytes() <= budget, "{}", loaded.name);
        }
        let expected = alone(&loaded, &request);
        assert!(ids.iter().all(|id| outcomes[id] == expected), "{}: {outcomes:?}", loaded.name);

        let tiny = EngineOptions { cache_bytes: Some(fixed + per_token), ..options() };
        let mut engine = Engine::new(&loaded.model, &loaded.text, tiny);
        match engine.submit(request) {
            Err(Error::Memory { bytes, limit, .. }) => assert!(bytes > limit && limit == fixed + per_token),
            other => panic!("{}: {other:?}", loaded.name),
        }
        assert!(engine.is_idle());
    }
}

/// Where texts have grown until none has room for its next token, the youngest is set aside and waits: none fails, and each gets what it gets
/// alone, told once. One that is alone ends with what it has.
pub fn a_text_that_has_begun_is_not_lost_for_want_of_room<B: CompactBackend>(device: &B::Device) {
    for loaded in loaded::<B>(device) {
        let shapes = loaded.model.architecture().cache_shapes();
        let per_token: usize = shapes.iter().map(|shape| shape.bytes_per_token(KvFormat::F32)).sum();
        let fixed: usize = shapes.iter().map(|shape| shape.fixed_bytes()).sum();
        // Room for 256 tokens of both, or 512 of one.
        let budget = 2 * (256 * per_token + fixed);
        let limits = EngineOptions { cache_bytes: Some(budget), explain_failures: false, ..options() };
        let requests = [240, 230].map(|length| Request {
            max_tokens: 40,
            log_probabilities: Some(0),
            prompt_log_probabilities: Some(0),
            ..Request::new(loaded.ids[..length].to_vec())
        });
        let mut engine = Engine::new(&loaded.model, &loaded.text, limits);
        // While it is there the first of the two gets no more than its prompt needs.
        let short = Request { max_tokens: 1, ..Request::new(loaded.ids[..5].to_vec()) };
        engine.submit(short).expect("a request");
        let ids = requests.clone().map(|request| engine.submit(request).expect("a request"));
        let (mut outcomes, mut scored) = (BTreeMap::<SequenceId, Outcome>::new(), BTreeMap::<SequenceId, usize>::new());
        let (mut started, mut set_aside) = (0, false);
        while !engine.is_idle() {
            for event in engine.step() {
                let outcome = outcomes.entry(event.sequence).or_default();
                match event.kind {
                    EventKind::Started { .. } => started += 1,
                    EventKind::PromptRead { log_probabilities, .. } => {
                        *scored.entry(event.sequence).or_default() += log_probabilities.len();
                    }
                    EventKind::Token(piece) => {
                        outcome.text.push_str(&piece.text);
                        outcome.generated.extend(piece.token);
                    }
                    EventKind::Finished(finished) => outcome.finish = Some(finished.summary.finish),
                    other => panic!("{}: {other:?}", loaded.name),
                }
            }
            set_aside |= started == 3 && engine.sequences() == (1, 1);
            assert!(engine.cache_bytes() <= budget, "{}: {} of {budget}", loaded.name, engine.cache_bytes());
        }
        assert!(set_aside && started == 3, "{}: both went on to their ends", loaded.name);
        for (id, request) in ids.iter().zip(&requests) {
            let (got, expected) = (&outcomes[id], alone(&loaded, request));
            assert_eq!((scored[id], &got.finish), (request.prompt.len() - 1, &Some(Finish::Length)), "{}", loaded.name);
            assert_eq!(got.generated.len(), 40, "{}", loaded.name);
            if *got != expected {
                let near = Nearness::of(&loaded, (request, options().kv_format), &expected, got);
                assert!(near.hangs_on_last_bits(), "{}: {got:?}, expected {expected:?}; {near:?}", loaded.name);
            }
        }
    }
}
