//! What an engine does with a mask, and with a grammar: fixture models, whose answers are noise.

use crate::support::fixture;
use emberlm_model::engine::{
    DraftOptions, DraftSource, Engine, EngineOptions, Event, EventKind, Finish, Request, TokenMask,
};
use emberlm_model::sampling::{LogitsProcessors, SamplingConfig};
use emberlm_model::text::{StopSet, TextProcessor};
use emberlm_model::{CausalLm, Error, Pretrained, Result};

type Cpu = burn_ndarray::NdArray<f32>;

fn load(name: &str) -> (CausalLm<Cpu>, TextProcessor) {
    let pretrained = Pretrained::open(fixture(name)).unwrap();
    let model = pretrained.load(&Default::default()).unwrap();
    (model, pretrained.text().unwrap())
}

/// Lists of ids, one for each token to come; an empty list allows all.
#[derive(Clone, Debug)]
struct Lists {
    lists: Vec<Vec<u32>>,
    at: usize,
    /// Tokens after which the text may end.
    complete: usize,
    words: Vec<u32>,
}

fn lists(lists: &[&[u32]], complete: usize) -> Lists {
    Lists { lists: lists.iter().map(|list| list.to_vec()).collect(), at: 0, complete, words: Vec::new() }
}

impl TokenMask for Lists {
    fn allowed(&mut self) -> Result<Option<&[u32]>> {
        let list = self.lists.get(self.at).filter(|list| !list.is_empty());
        let Some(list) = list else { return Ok(None) };
        // As long as the list needs: what is beyond is not allowed.
        self.words = vec![0; *list.iter().max().unwrap() as usize / 32 + 1];
        list.iter().for_each(|id| self.words[*id as usize / 32] |= 1 << (id % 32));
        Ok(Some(&self.words))
    }

    fn accept(&mut self, token: u32) -> Result<()> {
        let list = self.lists.get(self.at).filter(|list| !list.is_empty());
        assert!(list.is_none_or(|list| list.contains(&token)), "{token} of {list:?}");
        self.at += 1;
        Ok(())
    }

    fn is_complete(&self) -> bool {
        self.at >= self.complete
    }

    fn is_at_end(&self) -> bool {
        self.at >= self.complete && self.at >= self.lists.len()
    }

    fn boxed_clone(&self) -> Box<dyn TokenMask> {
        Box::new(self.clone())
    }
}

/// What became of a request.
#[derive(Debug)]
struct Outcome {
    ids: Vec<u32>,
    text: String,
    end: std::result::Result<Finish, Error>,
}

fn run(engine: &mut Engine<'_, Cpu>) -> Vec<Outcome> {
    let mut outcomes = std::collections::BTreeMap::new();
    while !engine.is_idle() {
        for Event { sequence, kind } in engine.step() {
            let outcome = outcomes.entry(sequence).or_insert(Outcome {
                ids: vec![],
                text: String::new(),
                end: Ok(Finish::Cancelled),
            });
            match kind {
                EventKind::Token(piece) => {
                    outcome.ids.extend(piece.token);
                    outcome.text += &piece.text;
                }
                EventKind::Finished(finished) => outcome.end = Ok(finished.summary.finish),
                EventKind::Failed(error) => outcome.end = Err(error),
                _ => {}
            }
        }
    }
    outcomes.into_values().collect()
}

fn one(model: &CausalLm<Cpu>, text: &TextProcessor, request: Request) -> Outcome {
    let mut engine = Engine::new(model, text, EngineOptions::default());
    engine.submit(request).unwrap();
    run(&mut engine).remove(0)
}

fn masked(mask: Lists, sampling: SamplingConfig) -> Request {
    let stop_tokens = StopSet::union([vec![60, 61]]);
    Request { sampling, max_tokens: 12, stop_tokens, grammar: Some(Box::new(mask)), ..Request::new(vec![5, 17, 40, 9]) }
}

fn samplings() -> [SamplingConfig; 3] {
    let drawn = SamplingConfig { temperature: 1.5, seed: Some(3), ..SamplingConfig::default() };
    [SamplingConfig::greedy(), drawn, SamplingConfig { top_k: 4, repetition_penalty: 1.2, ..drawn }]
}

#[test]
fn tokens_are_those_that_the_mask_allows() {
    let (model, text) = load("nano_compact");
    for sampling in samplings() {
        // `accept` compares. The last list is of ids that the model would hardly choose.
        let mask = lists(&[&[3, 70, 300], &[33], &[], &[500, 501]], 4);
        let outcome = one(&model, &text, masked(mask, sampling));
        assert_eq!(outcome.ids.len(), 4, "{outcome:?}");
        assert_eq!(outcome.end.unwrap(), Finish::Stop);
    }
}

#[test]
fn a_mask_that_allows_all_changes_nothing() {
    let (model, text) = load("leanllama");
    for sampling in samplings() {
        // Nothing is stopped at, because that is where masks differ.
        let request = |grammar| Request { stop_tokens: StopSet::default(), grammar, ..masked(lists(&[], 0), sampling) };
        let endless = Lists { lists: vec![vec![]; 100], ..lists(&[], 0) };
        let with = one(&model, &text, request(Some(Box::new(endless) as Box<dyn TokenMask>)));
        let without = one(&model, &text, request(None));
        assert_eq!((with.ids.len(), with.ids, with.text), (12, without.ids, without.text));
    }
}

#[test]
fn stop_tokens_come_where_the_text_is_complete_and_nowhere_else() {
    let (model, text) = load("nano_compact");
    // A bias makes the stop token the choice wherever it is allowed.
    let processors = LogitsProcessors { sequence_bias: vec![(vec![60], 1e4)], ..LogitsProcessors::default() };
    for sampling in samplings() {
        for complete in 0..4 {
            let mask = lists(&[&[], &[2, 60], &[], &[], &[], &[]], complete);
            let outcome = one(&model, &text, Request { processors: processors.clone(), ..masked(mask, sampling) });
            assert_eq!((outcome.ids.len(), outcome.end.unwrap()), (complete, Finish::Stop));
        }
    }
}

/// Drafts go through the mask like every token: texts, their ends and what is refused are those without.
#[test]
fn drafts_change_nothing() {
    for (name, sources) in [
        ("nano_compact", &[DraftSource::PromptLookup][..]),
        ("crest_k4", &[DraftSource::PromptLookup, DraftSource::Steps(1)]),
    ] {
        let (model, text) = load(name);
        for &source in sources {
            let (mut drafted, mut accepted) = (0, 0);
            for (sampling, complete) in samplings().into_iter().flat_map(|s| [3, 8, 99].map(|complete| (s, complete))) {
                // Few tokens, so that the text repeats itself; then one alone, and then what the model likes.
                let few: &[&[u32]] =
                    &[&[3, 70, 60], &[3, 70], &[3, 70], &[70, 3], &[3, 70], &[3, 70], &[5], &[3, 70, 60, 61], &[]];
                let request = || Request { max_tokens: 20, ..masked(lists(few, complete), sampling) };
                let plain = one(&model, &text, request());
                let options = EngineOptions { draft: Some(DraftOptions::new(source)), ..EngineOptions::default() };
                let mut engine = Engine::new(&model, &text, options);
                engine.submit(request()).unwrap();
                let outcome = run(&mut engine).remove(0);
                assert_eq!((&outcome.ids, &outcome.text), (&plain.ids, &plain.text), "{name} {source:?} {sampling:?}");
                assert_eq!(outcome.end.unwrap(), plain.end.unwrap());
                drafted += engine.totals().drafted_tokens;
                accepted += engine.totals().accepted_tokens;
            }
            // What the model drafts goes through the mask too, so that most of it can be accepted.
            let fewest = if source == DraftSource::PromptLookup { 0 } else { drafted / 2 };
            assert!(accepted > fewest && accepted < drafted, "{name} {source:?}: {accepted} of {drafted}");
        }
    }
}

#[test]
fn a_text_that_cannot_go_on_ends_or_fails_with_the_reason() {
    let (model, text) = load("nano_compact");
    // Complete: the end needs no stop token.
    let request = Request {
        stop_tokens: StopSet::default(),
        ..masked(lists(&[&[7], &[1_000_000]], 1), SamplingConfig::greedy())
    };
    let outcome = one(&model, &text, request);
    assert_eq!((outcome.ids.as_slice(), outcome.end.unwrap()), ([7].as_slice(), Finish::Stop));
    // Not complete: no token of the vocabulary, and nothing but a stop token.
    for list in [&[1_000_000][..], &[60, 61]] {
        let outcome = one(&model, &text, masked(lists(&[&[7], list], 2), SamplingConfig::greedy()));
        assert!(matches!(&outcome.end, Err(Error::Grammar(message)) if message.contains("no token")), "{outcome:?}");
        assert_eq!(outcome.ids, [7]);
    }
}

#[test]
fn a_stop_string_ends_a_text_under_a_mask() {
    let (model, text) = load("nano_compact");
    let ids = text.encode("{\"a\": 1}", false).unwrap();
    let each: Vec<&[u32]> = ids.chunks(1).collect();
    let mask = lists(&each, ids.len());
    let request =
        Request { stop_strings: vec!["\":".to_owned()], max_tokens: 100, ..masked(mask, SamplingConfig::greedy()) };
    let outcome = one(&model, &text, request);
    assert_eq!((outcome.text.as_str(), outcome.end.unwrap()), ("{\"a", Finish::Stop));
}

#[test]
fn a_fork_has_a_mask_of_its_own() {
    let (model, text) = load("nano_compact");
    let mut engine = Engine::new(&model, &text, EngineOptions::default());
    let id = engine.submit(masked(lists(&[&[3], &[4], &[5], &[6]], 4), SamplingConfig::greedy())).unwrap();
    engine.step();
    engine.step();
    engine.fork(id).unwrap();
    let outcomes = run(&mut engine);
    let ids: Vec<&[u32]> = outcomes.iter().map(|outcome| outcome.ids.as_slice()).collect();
    assert_eq!(ids, [&[5, 6], &[5, 6]]);
}

#[cfg(feature = "grammar")]
#[test]
fn answers_of_fixture_models_are_json_of_the_schema_side_by_side() {
    use emberlm_model::grammar::GrammarCompiler;
    use serde_json::{Value, json};

    let schema = json!({
        "type": "object",
        "properties": {"a": {"enum": ["x", "yy"]}, "b": {"type": "integer", "minimum": -5, "maximum": 5}, "c": {"type": "string", "maxLength": 3}},
        "required": ["a", "b"],
        "additionalProperties": false,
    });
    for name in ["nano_compact", "leanllama", "crest_k4"] {
        let (model, text) = load(name);
        let grammar = GrammarCompiler::new(&text).unwrap().json_schema(&schema, "schema").unwrap();
        let mut engine = Engine::new(&model, &text, EngineOptions::default());
        for seed in 0..12 {
            let sampling =
                SamplingConfig { temperature: seed as f32 / 4.0, seed: Some(seed), ..SamplingConfig::default() };
            let stop_tokens = StopSet::union([text.eos_id()]);
            let prompt = vec![seed as u32 + 1, 30, 31];
            let grammar = Some(grammar.boxed_clone());
            engine.submit(Request { sampling, stop_tokens, grammar, max_tokens: 120, ..Request::new(prompt) }).unwrap();
        }
        let mut ended = 0;
        for outcome in run(&mut engine) {
            // Space between values can take all tokens.
            if outcome.end.unwrap() == Finish::Length {
                continue;
            }
            ended += 1;
            let value: Value =
                serde_json::from_str(&outcome.text).unwrap_or_else(|e| panic!("{name} {:?}: {e}", outcome.text));
            assert!(["x", "yy"].contains(&value["a"].as_str().unwrap_or_default()), "{name} {value}");
            // -0 is an integer, but not one of Rust's.
            assert!(
                value["b"].as_f64().is_some_and(|b| b.fract() == 0.0 && b.abs() <= 5.0),
                "{name} {:?}",
                outcome.text
            );
            assert!(
                value.get("c").is_none_or(|c| c.as_str().unwrap().chars().count() <= 3),
                "{name} {value} {:?}",
                outcome.text
            );
        }
        assert!(ended >= 8, "{name}: {ended} of 12 ended");
    }
}
