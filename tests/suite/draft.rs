//! Drafts: texts, what is told of them, and caches are those without.

use std::collections::{BTreeMap, BTreeSet};

use emberlm::model::cache::{Cache, LayerCacheShape};
use emberlm::model::engine::{
    DraftOptions, DraftSource, Engine, EngineOptions, EventKind, Finish, Finished, LogProbabilities, Request,
    SequenceId,
};
use emberlm::model::sampling::{LogitsProcessors, SamplingConfig};
use emberlm::model::{DepthOptions, Error};
use emberlm::quant::CompactBackend;
use emberlm::quant::kv::KvFormat;

use super::engine::{Loaded, Nearness, Outcome, loaded, options, request};
use super::fixture::{Numbers, logit_tolerance};
use super::random::Random;

/// Sequences of a run, all of them at once.
const SEQUENCES: usize = 12;

/// What one has told.
struct Told<B: CompactBackend> {
    outcome: Outcome,
    log_probabilities: Vec<LogProbabilities>,
    finished: Finished<B>,
}

fn run<B: CompactBackend>(loaded: &Loaded<B>, limits: EngineOptions, requests: &[Request]) -> (Vec<Told<B>>, [u64; 3]) {
    let mut engine = Engine::new(&loaded.model, &loaded.text, limits);
    let ids: Vec<SequenceId> =
        requests.iter().map(|request| engine.submit(request.clone()).expect("a request")).collect();
    let (mut outcomes, mut told) = (BTreeMap::<SequenceId, (Outcome, Vec<LogProbabilities>)>::new(), BTreeMap::new());
    while !engine.is_idle() {
        for event in engine.step() {
            let (outcome, log_probabilities) = outcomes.entry(event.sequence).or_default();
            match event.kind {
                EventKind::Token(piece) => {
                    outcome.text.push_str(&piece.text);
                    outcome.generated.extend(piece.token);
                    log_probabilities.extend(piece.log_probabilities);
                }
                EventKind::Finished(finished) => {
                    assert_eq!(finished.summary.generated, outcome.generated);
                    assert_eq!(finished.cache.len(), finished.tokens.len());
                    outcome.finish = Some(finished.summary.finish);
                    let (outcome, log_probabilities) = (std::mem::take(outcome), std::mem::take(log_probabilities));
                    told.insert(event.sequence, Told { outcome, log_probabilities, finished: *finished });
                }
                EventKind::Failed(error) => panic!("{error}"),
                _ => {}
            }
        }
    }
    let totals = engine.totals();
    let drafted: usize = told.values().map(|told| told.finished.summary.drafted_tokens).sum();
    assert_eq!(drafted as u64, totals.drafted_tokens);
    let counts = [totals.steps, totals.drafted_tokens, totals.accepted_tokens];
    (ids.iter().map(|id| told.remove(id).expect("an end")).collect(), counts)
}

/// Requests whose texts repeat themselves: few tokens may come. Some end at a string, some ask for log-probabilities.
fn requests(random: &mut Random, loaded: &Loaded<impl CompactBackend>) -> Vec<Request> {
    let vocabulary = loaded.model.architecture().config.vocab_size as u32;
    let requests = (0..SEQUENCES).map(|i| {
        let mut request = request(random, &loaded.ids);
        request.max_tokens += 8;
        let first = random.below(loaded.ids.len() - 4);
        let allowed = &loaded.ids[first..first + 4];
        let suppress_tokens = (0..vocabulary).filter(|id| !allowed.contains(id)).collect();
        let frequency_penalty = if i % 4 == 0 { 0.5 } else { 0.0 };
        request.processors = LogitsProcessors { suppress_tokens, frequency_penalty, ..Default::default() };
        request.log_probabilities = (i % 3 == 0).then_some(2);
        if i % 5 == 1 {
            let ids = &[allowed[0], allowed[1]];
            request.stop_strings.extend(loaded.text.decode(ids, true).ok().filter(|text| !text.is_empty()));
        }
        request
    });
    requests.collect()
}

/// Every source that the model has.
fn sources<B: CompactBackend>(loaded: &Loaded<B>) -> Vec<DraftSource> {
    let steps = loaded.model.architecture().crest.as_ref().map_or(1, |crest| crest.num_steps);
    [DraftSource::PromptLookup].into_iter().chain((1..steps).map(DraftSource::Steps)).collect()
}

fn with(source: DraftSource) -> EngineOptions {
    EngineOptions { draft: Some(DraftOptions::new(source)), ..options() }
}

/// Greedy and drawn texts, with penalties, stop strings and log-probabilities; and what they leave behind is what a text without drafts
/// leaves: the next logits are the same.
pub fn texts_are_those_without<B: CompactBackend>(device: &B::Device) {
    for loaded in loaded::<B>(device) {
        let tolerance = logit_tolerance::<B>(loaded.model.architecture().config.family);
        let requests = requests(&mut Random::new(5), &loaded);
        let (plain, [steps, none, _]) = run(&loaded, options(), &requests);
        assert_eq!(none, 0);
        for source in sources(&loaded) {
            let what = format!("{} {source:?}", loaded.name);
            let (drafted, [fewer, drafts, accepted]) = run(&loaded, with(source), &requests);
            println!("{what}: {accepted} of {drafts} accepted, {fewer} steps instead of {steps}");
            assert!(accepted > 0 && accepted < drafts, "{what}: nothing is tried");
            let mut undecided = 0;
            for (i, (request, (plain, drafted))) in requests.iter().zip(plain.iter().zip(drafted)).enumerate() {
                let what = format!("{what}, request {i}");
                if plain.outcome != drafted.outcome {
                    let near = Nearness::of(&loaded, (request, options().kv_format), &plain.outcome, &drafted.outcome);
                    assert!(
                        near.hangs_on_last_bits(),
                        "{what}: {:?}, expected {:?}; {near:?}",
                        drafted.outcome,
                        plain.outcome
                    );
                    undecided += 1;
                    continue;
                }
                assert_eq!(drafted.log_probabilities.len(), plain.log_probabilities.len(), "{what}");
                for (got, expected) in drafted.log_probabilities.iter().zip(&plain.log_probabilities) {
                    assert!((got.chosen - expected.chosen).abs() < 1e-3, "{what}: {got:?}, expected {expected:?}");
                }
                assert_eq!(drafted.finished.tokens, plain.finished.tokens, "{what}");
                let next = |cache: &Cache<B>| {
                    let mut cache = cache.clone();
                    Numbers::of(&loaded.model.prefill(&loaded.ids[..3], &mut cache, 3).expect("tokens"))
                };
                let expected = next(&plain.finished.cache);
                next(&drafted.finished.cache).assert_close(
                    &format!("{what}: logits after it"),
                    &expected,
                    4.0 * tolerance,
                );
            }
            assert!(undecided <= 1, "{what}: {undecided} hang on last bits");
        }
    }
}

/// Every text of two tokens after the first, with its probability.
fn distribution<B: CompactBackend>(loaded: &Loaded<B>, prompt: &[u32], allowed: &[u32], temperature: f32) -> Vec<f64> {
    let next = |text: &[u32]| {
        let mut cache = loaded.model.new_cache(KvFormat::F32);
        let logits = Numbers::of(&loaded.model.prefill(text, &mut cache, 512).expect("a text")).values;
        let weights: Vec<f64> = allowed.iter().map(|&id| f64::from(logits[id as usize] / temperature).exp()).collect();
        let sum: f64 = weights.iter().sum();
        weights.into_iter().map(|weight| weight / sum).collect::<Vec<_>>()
    };
    let n = allowed.len();
    let mut pairs = vec![0.0; n * n];
    for (a, p_a) in next(prompt).into_iter().enumerate() {
        let text = [prompt, &[allowed[a]]].concat();
        for (b, p_b) in next(&text).into_iter().enumerate() {
            let text = [&text[..], &[allowed[b]]].concat();
            for (c, p_c) in next(&text).into_iter().enumerate() {
                pairs[b * n + c] += p_a * p_b * p_c;
            }
        }
    }
    pairs
}

/// Chi-square of the second and third token of drawn texts, whose first one is pending when the first draft is made: about the distribution
/// of the model over many seeds. Drafts that were all accepted would give another one.
pub fn distributions_are_those_without<B: CompactBackend>(device: &B::Device) {
    const SEEDS: u64 = 400;
    const TEMPERATURE: f32 = 2.0;
    // Beyond it are 1 in 10,000 of chi-square with 15 degrees of freedom.
    const BOUND: f64 = 44.3;
    for loaded in loaded::<B>(device).filter(|loaded| ["crest_k4", "leanllama"].contains(&loaded.name.as_str())) {
        let vocabulary = loaded.model.architecture().config.vocab_size as u32;
        let allowed: Vec<u32> =
            loaded.ids[..].iter().copied().collect::<std::collections::BTreeSet<_>>().into_iter().take(4).collect();
        // Every pair of them comes before, so that lookups find something.
        let pairs = allowed.iter().flat_map(|&a| allowed.iter().flat_map(move |&b| [a, b]));
        let prompt: Vec<u32> = pairs.collect();
        let expected = distribution(&loaded, &prompt, &allowed, TEMPERATURE);
        let suppress_tokens = (0..vocabulary).filter(|id| !allowed.contains(id)).collect();
        let processors = LogitsProcessors { suppress_tokens, ..Default::default() };
        let requests: Vec<Request> = (0..SEEDS)
            .map(|seed| Request {
                sampling: SamplingConfig { temperature: TEMPERATURE, seed: Some(seed), ..SamplingConfig::default() },
                processors: processors.clone(),
                max_tokens: 4,
                prefix_boundaries: vec![prompt.len() - 1],
                ..Request::new(prompt.clone())
            })
            .collect();
        let chi_square = |draft: Option<DraftOptions>| {
            let limits = EngineOptions {
                tokens_per_step: 512,
                prompt_tokens_beside_decoding: 512,
                prefix_cache_bytes: 1 << 30,
                draft,
                ..options()
            };
            let (told, [_, drafted, accepted]) = run(&loaded, limits, &requests);
            let mut counts = vec![0.0; expected.len()];
            for told in told {
                let place =
                    |i: usize| allowed.iter().position(|id| *id == told.outcome.generated[i]).expect("an allowed one");
                counts[place(1) * allowed.len() + place(2)] += 1.0;
            }
            // Rare texts are one cell.
            let mut cells = vec![(0.0, 0.0)];
            for (p, count) in expected.iter().zip(counts) {
                match p * SEEDS as f64 {
                    expected @ 5.0.. => cells.push((expected, count)),
                    expected => cells[0] = (cells[0].0 + expected, cells[0].1 + count),
                }
            }
            assert!(cells.len() > 6, "{cells:?}");
            let terms = cells.iter().filter(|(expected, _)| *expected > 0.0);
            let sum: f64 = terms.map(|(expected, count)| (count - expected) * (count - expected) / expected).sum();
            println!("{} {draft:?}: chi-square {sum:.1}, {accepted} of {drafted} accepted", loaded.name);
            (sum, drafted)
        };
        let (plain, _) = chi_square(None);
        assert!(plain < BOUND, "{}: {plain}", loaded.name);
        for source in sources(&loaded).into_iter().take(2) {
            let (got, drafted) = chi_square(Some(DraftOptions::new(source)));
            assert!(got < BOUND && drafted > SEEDS / 2, "{} {source:?}: {got}", loaded.name);
            let all = DraftOptions { forced_acceptance: Some(1.0), ..DraftOptions::new(source) };
            let (naive, _) = chi_square(Some(all));
            assert!(naive > BOUND, "{} {source:?}: whatever is accepted would not show ({naive})", loaded.name);
        }
    }
}

/// A budget for tokens and one for bytes hold with drafts, and prompts go on beside them.
pub fn budgets_hold<B: CompactBackend>(device: &B::Device) {
    let loaded = loaded::<B>(device).find(|loaded| loaded.name == "leanllama").expect("a fixture");
    let forced = |source| DraftOptions { forced_acceptance: Some(0.7), ..DraftOptions::new(source) };
    let limits = EngineOptions { draft: Some(forced(DraftSource::PromptLookup)), ..options() };
    let mut engine = Engine::new(&loaded.model, &loaded.text, limits);
    for i in 0..4 {
        let prompt = loaded.ids[i..i + 5].to_vec();
        engine.submit(Request { max_tokens: 400, ..Request::new(prompt) }).expect("a request");
    }
    engine.step();
    let long = engine.submit(Request { max_tokens: 1, ..Request::new(loaded.ids[..200].to_vec()) }).expect("a request");
    let (mut read, mut before) = (0, engine.totals().drafted_tokens);
    while read < 200 {
        let mut now = 0;
        for event in engine.step() {
            match event.kind {
                EventKind::PromptRead { tokens, .. } if event.sequence == long => now += tokens,
                _ => {}
            }
        }
        let drafted = (engine.totals().drafted_tokens - before) as usize;
        before += drafted as u64;
        assert!(now > 0 && drafted <= 6 && now + drafted <= 12, "{now} tokens beside {drafted} drafts");
        read += now;
    }
    assert!(before > 0);

    // Bytes for the prompt and a few tokens: the text goes on as far as it does without drafts.
    let shapes = loaded.model.architecture().cache_shapes();
    let per_token: usize = shapes.iter().map(|shape| shape.bytes_per_token(KvFormat::F32)).sum();
    let request = Request { max_tokens: 600, ..Request::new(loaded.ids[..8].to_vec()) };
    let generated = |draft: Option<DraftOptions>| {
        let limits = EngineOptions { cache_bytes: Some(256 * per_token), explain_failures: false, draft, ..options() };
        let mut engine = Engine::new(&loaded.model, &loaded.text, limits);
        engine.submit(request.clone()).expect("a request");
        let (mut tokens, mut finish) = (0, None);
        while !engine.is_idle() {
            for event in engine.step() {
                match event.kind {
                    EventKind::Token(piece) => tokens += usize::from(piece.token.is_some()),
                    EventKind::Finished(finished) => finish = Some(finished.summary.finish),
                    EventKind::Failed(error) => panic!("{error}"),
                    _ => {}
                }
            }
        }
        // What was generated is not lost where a text that is alone meets the end of the budget.
        assert_eq!(finish, Some(Finish::Length));
        assert!(tokens > 0 && tokens < 600, "{tokens}");
        tokens
    };
    assert_eq!(generated(Some(forced(DraftSource::PromptLookup))), generated(None));
}

/// Guesses go before a text waits: while one that decodes has no room for its next token nobody drafts, and drafts stay in the budget.
pub fn none_are_made_while_a_text_waits<B: CompactBackend>(device: &B::Device) {
    for loaded in loaded::<B>(device) {
        let source = match loaded.name.as_str() {
            "leanllama" => DraftSource::PromptLookup,
            "crest_k4" => DraftSource::Steps(1),
            _ => continue,
        };
        let draft = DraftOptions { forced_acceptance: Some(0.7), ..DraftOptions::new(source) };
        let shapes = loaded.model.architecture().cache_shapes();
        let sum = |bytes: &dyn Fn(&LayerCacheShape) -> usize| shapes.iter().map(bytes).sum::<usize>();
        // Both texts grow beyond 256 tokens, for which there is room once.
        let block = 256 * sum(&|shape| shape.bytes_per_token(KvFormat::F32));
        let states = 2 * sum(&|shape| shape.fixed_bytes() + shape.replay_bytes(1 + DraftOptions::MAX_TOKENS));
        let budget = 3 * block + states;
        let limits = EngineOptions { cache_bytes: Some(budget), draft: Some(draft), ..options() };
        let mut engine = Engine::new(&loaded.model, &loaded.text, limits);
        for prompt in [&loaded.ids[..200], &loaded.ids[..190]] {
            engine.submit(Request { max_tokens: 120, ..Request::new(prompt.to_vec()) }).expect("a request");
        }
        let (mut decoding, mut before, mut waited) = (BTreeSet::new(), 0, 0);
        while !engine.is_idle() {
            let mut told = BTreeSet::new();
            for event in engine.step() {
                match event.kind {
                    EventKind::Token(_) => decoding.insert(event.sequence),
                    EventKind::Finished(_) => decoding.remove(&event.sequence),
                    EventKind::Failed(error) => panic!("{error}"),
                    _ => continue,
                };
                told.insert(event.sequence);
            }
            let drafted = engine.totals().drafted_tokens - before;
            before += drafted;
            assert!(engine.cache_bytes() <= budget, "{}: {} of {budget} bytes", loaded.name, engine.cache_bytes());
            if !decoding.is_subset(&told) {
                waited += 1;
                assert_eq!(drafted, 0, "{}: drafts while a text waits", loaded.name);
            }
        }
        assert!(waited > 0 && before > 0, "{}: {waited} steps waited, {before} drafts", loaded.name);
    }
}

/// What linear attention was before a draft is in the budget: without room for it there are no drafts, and a text that needs the room of one
/// gets it.
pub fn states_before_drafts_are_counted<B: CompactBackend>(device: &B::Device) {
    let loaded = loaded::<B>(device).find(|loaded| loaded.name == "crest_k4").expect("a fixture");
    let draft = DraftOptions { forced_acceptance: Some(0.7), ..DraftOptions::new(DraftSource::PromptLookup) };
    let shapes = loaded.model.architecture().cache_shapes();
    let sum = |bytes: &dyn Fn(&LayerCacheShape) -> usize| shapes.iter().map(bytes).sum::<usize>();
    let slots = 256 * sum(&|shape| shape.bytes_per_token(KvFormat::F32));
    let fixed = sum(&|shape| shape.fixed_bytes());
    let replay = |tokens| sum(&|shape| shape.replay_bytes(tokens));
    let request = |prompt, max_tokens| Request { max_tokens, ..Request::new(loaded.ids[..prompt].to_vec()) };
    // The drafted tokens, and the places of the requests in the order in which their texts ended.
    let run = |budget, requests: &[Request]| {
        let limits = EngineOptions { cache_bytes: Some(budget), draft: Some(draft), ..options() };
        let mut engine = Engine::new(&loaded.model, &loaded.text, limits);
        let ids: Vec<SequenceId> =
            requests.iter().map(|request| engine.submit(request.clone()).expect("a request")).collect();
        let mut ended = Vec::new();
        while !engine.is_idle() {
            for event in engine.step() {
                match event.kind {
                    EventKind::Finished(_) => ended.extend(ids.iter().position(|id| *id == event.sequence)),
                    EventKind::Failed(error) => panic!("{error}"),
                    _ => {}
                }
            }
            assert!(engine.cache_bytes() <= budget, "{} of {budget} bytes", engine.cache_bytes());
        }
        (engine.totals().drafted_tokens, ended)
    };
    let alone = slots + fixed;
    assert_eq!(run(alone + replay(2) - 1, &[request(12, 20)]), (0, vec![0]));
    assert!(run(alone + replay(1 + DraftOptions::MAX_TOKENS), &[request(12, 20)]).0 > 0);

    // When the second has ended, the third grows into its room or the first drafts there.
    let requests = [request(12, 100), request(5, 1), request(250, 10)];
    let (drafted, ended) = run(3 * (slots + fixed), &requests);
    assert_eq!(ended, [1, 2, 0]);
    assert!(drafted > 0);
}

/// Where there is nothing to draft with, that is said, or the text is decoded token by token.
pub fn what_cannot_be_drafted<B: CompactBackend>(device: &B::Device) {
    for loaded in loaded::<B>(device) {
        let steps = loaded.model.architecture().crest.as_ref().map(|crest| crest.num_steps);
        let request = Request { max_tokens: 12, ..Request::new([&loaded.ids[..9], &loaded.ids[..9]].concat()) };
        for bad in [0, steps.unwrap_or(1), 99] {
            let mut engine = Engine::new(&loaded.model, &loaded.text, with(DraftSource::Steps(bad)));
            let error = engine.submit(request.clone()).expect_err("too many steps");
            let Error::Option { option, message } = error else { panic!("{error}") };
            assert!(option == "draft.steps" && message.contains(&bad.to_string()), "{option} {message}");
        }
        for rate in [-0.5, 1.5, f64::NAN] {
            let draft = DraftOptions { forced_acceptance: Some(rate), ..DraftOptions::new(DraftSource::PromptLookup) };
            let mut engine =
                Engine::new(&loaded.model, &loaded.text, EngineOptions { draft: Some(draft), ..options() });
            assert!(engine.submit(request.clone()).is_err(), "{rate}");
        }
        if steps.is_none() {
            continue;
        }
        // Of the request's own steps none are left out.
        let shallow = Request { depth: DepthOptions { steps: Some(1), threshold: None }, ..request };
        let (_, [_, drafted, _]) = run(&loaded, with(DraftSource::Steps(1)), &[shallow]);
        assert_eq!(drafted, 0, "{}", loaded.name);
    }
}
