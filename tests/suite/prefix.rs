//! The prefix cache: what comes from it is what would have been computed, and nothing else comes from it.

use std::cmp::Reverse;
use std::collections::BTreeMap;

use emberlm::model::engine::{Engine, EngineOptions, EventKind, Finish, Request, SequenceId, Trace};
use emberlm::model::sampling::SamplingConfig;
use emberlm::model::{CausalLm, DepthOptions, Error, Pretrained};
use emberlm::quant::CompactBackend;
use emberlm::quant::kv::KvFormat;
use serde_json::json;

use super::bodies::with_config;
use super::engine::{Loaded, Nearness, Outcome, alone, loaded, loaded_with_hidden_values, options};
use super::fixture::own;

fn with_prefixes() -> EngineOptions {
    EngineOptions { prefix_cache_bytes: 1 << 30, ..options() }
}

fn is_recurrent<B: CompactBackend>(loaded: &Loaded<B>) -> bool {
    loaded.model.new_cache(KvFormat::F32).is_recurrent()
}

/// What became of a request: its text, and how many tokens of its prompt were cached.
struct Told {
    outcome: Outcome,
    cached: usize,
    /// Tokens of its prompt that were computed.
    read: usize,
}

/// Runs requests together, to the end.
fn run<B: CompactBackend>(engine: &mut Engine<'_, B>, requests: &[Request]) -> Vec<Told> {
    run_joining(engine, requests, requests.len())
}

/// Runs requests to the end, of which so many, or one, join in every step.
fn run_joining<B: CompactBackend>(engine: &mut Engine<'_, B>, requests: &[Request], per_step: usize) -> Vec<Told> {
    let mut to_come = requests.chunks(per_step.max(1));
    let mut ids = Vec::<SequenceId>::new();
    let mut told = BTreeMap::<SequenceId, Told>::new();
    loop {
        for request in to_come.next().unwrap_or_default() {
            ids.push(engine.submit(request.clone()).expect("a request"));
        }
        if engine.is_idle() {
            break;
        }
        for event in engine.step() {
            let entry = told.entry(event.sequence);
            let told = entry.or_insert_with(|| Told { outcome: Outcome::default(), cached: usize::MAX, read: 0 });
            match event.kind {
                EventKind::Started { prompt, cached } => {
                    assert!(cached < prompt, "nothing is left to compute");
                    told.cached = cached;
                }
                EventKind::PromptRead { tokens, .. } => told.read += tokens,
                EventKind::Token(piece) => {
                    told.outcome.text.push_str(&piece.text);
                    told.outcome.generated.extend(piece.token);
                }
                EventKind::Finished(finished) => {
                    assert_eq!(finished.summary.cached_tokens, told.cached);
                    assert_eq!(finished.summary.prompt_tokens, told.cached + told.read);
                    told.outcome.finish = Some(finished.summary.finish);
                }
                other => panic!("{other:?}"),
            }
        }
    }
    ids.iter().map(|id| told.remove(id).expect("an outcome")).collect()
}

fn run_one<B: CompactBackend>(engine: &mut Engine<'_, B>, request: &Request) -> Told {
    run(engine, std::slice::from_ref(request)).remove(0)
}

/// Another token than this one.
fn other(token: u32) -> u32 {
    if token == 5 { 6 } else { 5 }
}

/// Boundaries, sizes of chunks, formats of the cache: a prompt that begins like one that was read gets what it gets alone,
/// and only what comes after the boundary is computed. `EMBERLM_ENGINE_RUNS` asks for more boundaries.
pub fn cached_is_uncached<B: CompactBackend>(device: &B::Device) {
    let all = std::env::var_os("EMBERLM_ENGINE_RUNS").is_some();
    for loaded in loaded::<B>(device) {
        let text = &loaded.ids[..48];
        let boundaries = if all { (1..=48).collect() } else { vec![1, 7, 32, 47, 48] };
        let runs = match (all, B::SHARES_HOST_MEMORY) {
            (false, false) => vec![(KvFormat::F32, 5)],
            (false, true) => vec![(KvFormat::F32, 5), (KvFormat::F16, 48), (KvFormat::Q8, 48)],
            (true, _) => [1, 5, 16, 48].into_iter().flat_map(|n| [(KvFormat::F32, n), (KvFormat::F16, n)]).collect(),
        };
        let mut expected = BTreeMap::<(String, usize), Outcome>::new();
        for (kv_format, tokens_per_step) in runs {
            let limits = EngineOptions { kv_format, tokens_per_step, ..with_prefixes() };
            let mut engine = Engine::new(&loaded.model, &loaded.text, limits);
            let first = Request { max_tokens: 3, ..Request::new(text.to_vec()) };
            let first = Request { prefix_boundaries: boundaries.clone(), ..first };
            assert_eq!(run_one(&mut engine, &first).cached, 0);
            for &boundary in &boundaries {
                let what = format!("{} at {boundary}, {tokens_per_step} at once, {kv_format:?}", loaded.name);
                let mut prompt = text[..boundary].to_vec();
                // Of the last one the same again: at least one token is computed.
                let repeated = boundary == text.len();
                if !repeated {
                    prompt.push(other(text[boundary]));
                    prompt.extend(&loaded.ids[100..103]);
                }
                let request = Request { max_tokens: 4, ..Request::new(prompt) };
                let told = run_one(&mut engine, &request);
                let cached = if repeated { boundary - 1 } else { boundary };
                assert_eq!(told.cached, cached, "{what}");
                // Rounded keys are not exact ones: each is compared with its own.
                let expected = expected.entry((format!("{kv_format:?}"), boundary)).or_insert_with(|| {
                    let limits = EngineOptions { kv_format, ..options() };
                    run_one(&mut Engine::new(&loaded.model, &loaded.text, limits), &request).outcome
                });
                assert_eq!(told.outcome, *expected, "{what}");
            }
            assert!(engine.prefix_cache_bytes() > 0 && engine.cache_bytes() == engine.prefix_cache_bytes());
            engine.clear_prefix_cache();
            assert_eq!(engine.cache_bytes(), 0, "{}: something is left", loaded.name);
        }
    }
}

/// Tokens of the text whose every boundary is tried: a whole tile of the cache and more.
const GRID: usize = 72;
/// Tokens of a prompt of the grid after its boundary.
const AFTER: usize = 4;

/// Every boundary of a text, read in chunks of every size, on every fixture and in every format: what goes on from what is kept gets
/// what it gets alone. Takes long; `EMBERLM_GRID_CHUNKS` names some sizes of chunks (`1,16,72`) instead of all.
///
/// Keys and values are cut at the boundary, wherever in a chunk it is. A state has to be kept there, so that a chunk ends there: of the
/// chunks as long as what is before the boundary, and longer, which make the same passes, the shortest is tried.
pub fn cached_is_uncached_everywhere<B: CompactBackend>(device: &B::Device) {
    let sizes = std::env::var("EMBERLM_GRID_CHUNKS").ok();
    let chunks: Vec<usize> = match sizes {
        Some(sizes) => sizes.split(',').map(|size| size.parse().expect("a number of tokens")).collect(),
        None => (1..=GRID).collect(),
    };
    for loaded in loaded::<B>(device).chain(loaded_with_hidden_values(device)) {
        let began = std::time::Instant::now();
        let (mut compared, mut undecided) = (0, 0);
        let recurrent = is_recurrent(&loaded);
        for kv_format in [KvFormat::F32, KvFormat::F16] {
            let points: Vec<GridPoint> =
                (1..=GRID).map(|boundary| GridPoint::new(&loaded, boundary, kv_format)).collect();
            for &chunk in &chunks {
                let differs = |point: &&GridPoint| !recurrent || chunk <= point.boundary.max(AFTER);
                let points: Vec<&GridPoint> = points.iter().filter(differs).collect();
                let limits = EngineOptions {
                    kv_format,
                    tokens_per_step: chunk,
                    prompt_tokens_beside_decoding: chunk,
                    max_running: GRID,
                    ..with_prefixes()
                };
                let mut engine = Engine::new(&loaded.model, &loaded.text, limits);
                match recurrent {
                    true => leave_states(&mut engine, &points, chunk),
                    false => {
                        let text = Request { max_tokens: 1, ..Request::new(loaded.ids[..=GRID].to_vec()) };
                        assert_eq!(run_one(&mut engine, &text).read, GRID + 1);
                    }
                }
                // As many at once as are read in whole chunks.
                let requests: Vec<Request> = points.iter().map(|point| point.request.clone()).collect();
                let told = run_joining(&mut engine, &requests, chunk / AFTER);
                for (point, told) in points.into_iter().zip(told) {
                    let what = format!("{} at {}, {chunk} at once, {kv_format:?}", loaded.name, point.boundary);
                    assert_eq!(told.cached, point.boundary, "{what}");
                    compared += 1;
                    if told.outcome != point.expected {
                        let near = Nearness::of(&loaded, (&point.request, kv_format), &point.expected, &told.outcome);
                        let (got, expected) = (&told.outcome, &point.expected);
                        assert!(near.hangs_on_last_bits(), "{what}: {got:?}, expected {expected:?}; {near:?}");
                        undecided += 1;
                    }
                }
                engine.clear_prefix_cache();
                assert_eq!(engine.cache_bytes(), 0, "{}, {chunk} at once: something is left", loaded.name);
            }
        }
        println!("{}: {compared} compared, {undecided} hang on last bits, {:.0?}", loaded.name, began.elapsed());
        assert!(undecided * 100 <= compared, "{}: {undecided} of {compared}", loaded.name);
    }
}

/// A boundary, a prompt that goes on from it in its own way, and what becomes of that prompt alone.
struct GridPoint {
    boundary: usize,
    request: Request,
    expected: Outcome,
    /// The tokens before the boundary, where a state is to be kept, and one more.
    first: Request,
}

impl GridPoint {
    fn new<B: CompactBackend>(loaded: &Loaded<B>, boundary: usize, kv_format: KvFormat) -> Self {
        let (before, next) = (&loaded.ids[..boundary], loaded.ids[boundary]);
        let first = Request {
            max_tokens: 1,
            prefix_boundaries: vec![boundary],
            ..Request::new([before, &[other(next)]].concat())
        };
        let after = [if next == 7 { 8 } else { 7 }, loaded.ids[100], loaded.ids[101], loaded.ids[102]];
        let request = Request { max_tokens: 4, ..Request::new([before, &after[..AFTER]].concat()) };
        let limits = EngineOptions { kv_format, ..options() };
        let expected = run_one(&mut Engine::new(&loaded.model, &loaded.text, limits), &request).outcome;
        Self { boundary, request, expected, first }
    }
}

/// Reads the text in chunks up to every boundary, where a state is kept: from the one where the last whole chunk before it ends, which
/// was read in the same chunks.
fn leave_states<B: CompactBackend>(engine: &mut Engine<'_, B>, points: &[&GridPoint], chunk: usize) {
    // The longest first of those whose last chunks begin together: none goes on from another of them.
    let mut points = points.to_vec();
    points.sort_by_key(|point| (point.boundary.div_ceil(chunk), Reverse(point.boundary)));
    for point in points {
        let whole_chunks = (point.boundary - 1) / chunk * chunk;
        assert_eq!(run_one(engine, &point.first).cached, whole_chunks, "{} in chunks of {chunk}", point.boundary);
    }
}

/// Twelve turns: each computes what it adds and no more, whether old answers come back whole or, as where thoughts are left out,
/// changed.
pub fn a_conversation_computes_its_last_turn<B: CompactBackend>(device: &B::Device) {
    for name in ["crest_k4", "leanllama"] {
        let loaded = loaded::<B>(device).find(|loaded| loaded.name == name).expect("a fixture");
        for rewritten in [false, true] {
            let mut engine = Engine::new(&loaded.model, &loaded.text, with_prefixes());
            let mut history = loaded.ids[..40].to_vec();
            for turn in 0..12 {
                let what = format!("{name}, turn {turn}, rewritten {rewritten}");
                history.extend(&loaded.ids[50 + 6 * turn..][..6]);
                let before_tail = history.len();
                history.extend([3, 4]);
                let request = Request {
                    max_tokens: 5,
                    prefix_boundaries: vec![40, before_tail],
                    ..Request::new(history.clone())
                };
                let told = run_one(&mut engine, &request);
                // What is new in this turn: six tokens and the tail; the last answer too where it was rewritten, else its last token,
                // which was chosen and never fed.
                let fresh = match (turn, rewritten) {
                    (0, _) => 48,
                    (_, false) => 6 + 2 + 1,
                    (_, true) => 6 + 2 + 2 + 3,
                };
                assert!(told.read <= fresh, "{what}: {} computed of {}", told.read, request.prompt.len());
                assert_eq!(told.outcome, alone(&loaded, &request), "{what}");
                match rewritten {
                    false => history.extend(&told.outcome.generated),
                    true => {
                        // Without the tail of the template, and with another answer.
                        history.truncate(before_tail);
                        history.extend([4, 3, 7, 8, 9]);
                    }
                }
            }
            let bytes = engine.prefix_cache_bytes();
            assert!(bytes > 0 && engine.cache_bytes() == bytes);
        }
    }
}

/// The second prompt that leaves an entry asks for a state there, from which a third goes on; keys and values alone need none.
pub fn where_a_request_leaves_an_entry<B: CompactBackend>(device: &B::Device) {
    for name in ["crest_k2", "nano_compact"] {
        let loaded = loaded::<B>(device).find(|loaded| loaded.name == name).expect("a fixture");
        let mut engine = Engine::new(&loaded.model, &loaded.text, with_prefixes());
        let prompts = [100, 120, 140].map(|rest| [&loaded.ids[..60], &loaded.ids[rest..][..9]].concat());
        let recurrent = is_recurrent(&loaded);
        for (prompt, cached) in prompts.into_iter().zip([0, if recurrent { 0 } else { 60 }, 60]) {
            let request = Request { max_tokens: 4, ..Request::new(prompt) };
            let told = run_one(&mut engine, &request);
            assert_eq!((told.cached, told.read), (cached, 69 - cached), "{name}");
            assert_eq!(told.outcome, alone(&loaded, &request), "{name}");
        }
        // Short texts are not worth a place.
        let bytes = engine.prefix_cache_bytes();
        run_one(&mut engine, &Request { max_tokens: 4, ..Request::new(loaded.ids[200..210].to_vec()) });
        assert_eq!(engine.prefix_cache_bytes(), bytes);
    }
}

/// Requests with one prompt and different seeds, all at once: the prompt is read once, and each gets what it gets alone.
pub fn choices_read_their_prompt_once<B: CompactBackend>(device: &B::Device) {
    for name in ["crest_k2", "leanllama_kv"] {
        let loaded = loaded::<B>(device).find(|loaded| loaded.name == name).expect("a fixture");
        let mut engine = Engine::new(&loaded.model, &loaded.text, with_prefixes());
        let requests: Vec<Request> = (0..4)
            .map(|seed| {
                let sampling = SamplingConfig { seed: Some(seed), ..SamplingConfig::default() };
                Request { sampling, max_tokens: 6, ..Request::new(loaded.ids[..70].to_vec()) }
            })
            .collect();
        let told = run(&mut engine, &requests);
        assert_eq!(told.iter().map(|told| told.cached).collect::<Vec<_>>(), [0, 69, 69, 69], "{name}");
        for (told, request) in told.iter().zip(&requests) {
            assert_eq!(told.outcome, alone(&loaded, request), "{name}");
        }
        assert!(told.iter().any(|one| one.outcome != told[0].outcome), "{name}: seeds make no difference");
        // Without a prefix cache each reads it for itself.
        let told = run(&mut Engine::new(&loaded.model, &loaded.text, options()), &requests);
        assert!(told.iter().all(|told| told.cached == 0));
    }
}

/// Eight conversations that begin alike and are told different words, of different lengths; some end early, some are cancelled. None
/// sees the tokens of another, in both turns.
pub fn conversations_keep_their_secrets<B: CompactBackend>(device: &B::Device) {
    for loaded in loaded::<B>(device) {
        // Room for a few of them: prefixes come and go.
        let shapes = loaded.model.architecture().cache_shapes();
        let per_token: usize = shapes.iter().map(|shape| shape.bytes_per_token(KvFormat::F32)).sum();
        let fixed: usize = shapes.iter().map(|shape| shape.fixed_bytes()).sum();
        let budget = 6 * (256 * per_token + fixed);
        let limits = EngineOptions { cache_bytes: Some(budget), max_running: 5, ..with_prefixes() };
        let mut engine = Engine::new(&loaded.model, &loaded.text, limits);
        let mut histories: Vec<Vec<u32>> = (0..8u32)
            .map(|i| {
                let word = [20 + 3 * i, 21 + 5 * i, 22 + 7 * i];
                let rest = &loaded.ids[60..][..4 + 5 * i as usize];
                [&loaded.ids[..36], &word, rest].concat()
            })
            .collect();
        for turn in 0..2 {
            let requests: Vec<Request> = histories
                .iter()
                .enumerate()
                .map(|(i, history)| Request {
                    max_tokens: 2 + i,
                    prefix_boundaries: vec![36, history.len() - 2],
                    ..Request::new(history.clone())
                })
                .collect();
            let ids: Vec<SequenceId> =
                requests.iter().map(|request| engine.submit(request.clone()).expect("a request")).collect();
            let mut outcomes = BTreeMap::<SequenceId, Outcome>::new();
            let mut steps = 0;
            while !engine.is_idle() {
                // In the queue, while the prompt is read, and while tokens come.
                match steps {
                    0 => engine.cancel(ids[7]),
                    1 => engine.cancel(ids[1]),
                    6 => engine.cancel(ids[4]),
                    _ => {}
                }
                steps += 1;
                for event in engine.step() {
                    let outcome = outcomes.entry(event.sequence).or_default();
                    match event.kind {
                        EventKind::Token(piece) => {
                            outcome.text.push_str(&piece.text);
                            outcome.generated.extend(piece.token);
                        }
                        EventKind::Finished(finished) => outcome.finish = Some(finished.summary.finish),
                        EventKind::Failed(error) => panic!("{error}"),
                        _ => {}
                    }
                }
                assert!(engine.cache_bytes() <= budget, "{} of {budget}", engine.cache_bytes());
            }
            for (i, (id, request)) in ids.iter().zip(&requests).enumerate() {
                let what = format!("{}, turn {turn}, conversation {i}", loaded.name);
                let (got, expected) = (&outcomes[id], alone(&loaded, request));
                if got.finish == Some(Finish::Cancelled) {
                    assert!([1, 4, 7].contains(&i), "{what}");
                    assert!(expected.generated.starts_with(&got.generated), "{what}: {got:?}, expected {expected:?}");
                } else {
                    assert_eq!(*got, expected, "{what}");
                }
                histories[i].extend(&expected.generated);
                histories[i].extend([30 + i as u32, 31]);
            }
        }
        assert!(engine.totals().prefix_hits >= 4, "{}: {:?}", loaded.name, engine.totals());
    }
}

/// A depth of its own makes another state and other keys: nothing is taken over from a text of another depth. Of what is computed the
/// trace is that of a text computed whole.
pub fn depth_is_part_of_a_prefix<B: CompactBackend>(device: &B::Device) {
    let loaded = loaded::<B>(device).find(|loaded| loaded.name == "crest_k4").expect("a fixture");
    let mut engine = Engine::new(&loaded.model, &loaded.text, with_prefixes());
    let shallow = DepthOptions { steps: Some(1), ..DepthOptions::default() };
    let request = Request { max_tokens: 3, prefix_boundaries: vec![40], ..Request::new(loaded.ids[..50].to_vec()) };
    for (depth, cached) in [(DepthOptions::default(), 0), (shallow, 0), (DepthOptions::default(), 40), (shallow, 40)] {
        let request = Request { depth, ..request.clone() };
        let told = run_one(&mut engine, &request);
        assert_eq!(told.cached, cached, "{depth:?}");
        assert_eq!(told.outcome, alone(&loaded, &request), "{depth:?}");
    }
    let request = Request { trace: Trace::All, ..request };
    let mut traces = [engine, Engine::new(&loaded.model, &loaded.text, options())].map(|mut engine| {
        engine.submit(request.clone()).expect("a request");
        let mut steps = Vec::new();
        while !engine.is_idle() {
            for event in engine.step() {
                match event.kind {
                    EventKind::PromptRead { depth, .. } => steps.extend(depth.into_iter().map(|depth| depth.steps)),
                    EventKind::Token(piece) => steps.extend(piece.depth.map(|depth| depth.steps)),
                    _ => {}
                }
            }
        }
        steps
    });
    let whole = traces[1].split_off(40);
    assert_eq!((traces[0].len(), &traces[0]), (10 + 3, &whole));
}

/// Where rotary frequencies depend on the length of a text, a longer text has other keys from its beginning on.
pub fn frequencies_by_length_are_not_shared<B: CompactBackend>(device: &B::Device) {
    let text = Pretrained::open(own("leanllama")).and_then(|p| p.text());
    let text = text.expect("a tokenizer");
    let (short, long) = (vec![1.0; 8], vec![2.0; 8]);
    let by_length = json!({"type": "longrope", "short_factor": short, "long_factor": long,
        "original_max_position_embeddings": 32, "factor": 2.0});
    let scalings = [
        (json!({"type": "linear", "factor": 2.0}), 32, true),
        (json!({"type": "dynamic", "factor": 2.0}), 32, false),
        (by_length, 64, false),
    ];
    for (scaling, context, shared) in scalings {
        let dir = with_config(&json!({"max_position_embeddings": context, "rope_scaling": scaling}));
        let pretrained = Pretrained::open(dir.path()).expect("a config");
        let model: CausalLm<B> = pretrained.load(device).expect("a model");
        let ids: Vec<u32> = (0..50).map(|i| (i * 7 + 3) % 60).collect();
        let request = |length: usize| {
            let max_tokens = if length > 32 { 3 } else { 8 };
            Request { max_tokens, prefix_boundaries: vec![20], ..Request::new(ids[..length].to_vec()) }
        };
        // Short ones share, the first of them up to its boundary alone. One that is long when it comes shares with nobody, and nor does
        // one that became long.
        for (lengths, cached) in [
            (&[24, 28, 44][..], [0, 20, if shared { 28 } else { 0 }].as_slice()),
            (&[44, 28], &[0, if shared { 27 } else { 0 }]),
        ] {
            let mut engine = Engine::new(&model, &text, with_prefixes());
            for (&length, &cached) in lengths.iter().zip(cached) {
                let request = request(length);
                let told = run_one(&mut engine, &request);
                let expected = run_one(&mut Engine::new(&model, &text, options()), &request);
                assert_eq!(told.outcome, expected.outcome, "{length} tokens, {scaling}");
                assert_eq!(told.cached, cached, "{length} tokens, {scaling}");
            }
        }
    }
}

/// Keys and values can be cut after any token and go on as if nothing had followed; a state cannot.
pub fn caches_are_cut<B: CompactBackend>(device: &B::Device) {
    for loaded in loaded::<B>(device) {
        let mut cache = loaded.model.new_cache(KvFormat::F16);
        loaded.model.prefill(&loaded.ids[..30], &mut cache, 16).expect("a prompt");
        match cache.truncate(31) {
            Err(Error::Option { message, .. }) => assert!(message.contains("30 tokens"), "{message}"),
            other => panic!("{other:?}"),
        }
        cache.truncate(30).expect("nothing to do");
        if is_recurrent(&loaded) {
            assert!(cache.truncate(29).expect_err("a state").to_string().contains("rolled back"));
            assert_eq!(cache.len(), 30);
            continue;
        }
        for cut in [17, 9, 0] {
            cache.truncate(cut).expect("keys and values");
            assert_eq!(cache.len(), cut);
            let mut whole = loaded.model.new_cache(KvFormat::F16);
            let text = [&loaded.ids[..cut], &loaded.ids[60..66]].concat();
            let expected = loaded.model.prefill(&text, &mut whole, 16).expect("a prompt");
            let mut cut = cache.clone();
            let got = loaded.model.prefill(&loaded.ids[60..66], &mut cut, 16).expect("a prompt");
            let [got, expected] = [got, expected].map(|logits| super::fixture::Numbers::of(&logits));
            got.assert_close(&loaded.name, &expected, 1e-4);
        }
    }
}
