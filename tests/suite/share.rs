//! What sequences have in common is there once, and none sees what another writes.

use emberlm::model::cache::Cache;
use emberlm::model::engine::{Engine, EngineOptions, EventKind, Request};
use emberlm::quant::CompactBackend;
use emberlm::quant::kv::KvFormat;

use super::engine::{Loaded, alone, loaded, options};
use super::fixture::Numbers;

/// Reads tokens in chunks of 16; the logits after the last.
fn read<B: CompactBackend>(loaded: &Loaded<B>, tokens: &[u32], cache: &mut Cache<B>) -> Vec<f32> {
    Numbers::of(&loaded.model.prefill(tokens, cache, 16).expect("a prompt")).values
}

/// The two go on with different tokens, several times, in turns; each is what it would be without the other. So is one that was forked
/// from a fork, and one that goes on after the others are gone.
pub fn forks_go_on_by_themselves<B: CompactBackend>(device: &B::Device) {
    for loaded in loaded::<B>(device) {
        for format in [KvFormat::F32, KvFormat::F16] {
            // In the first tile, at the end of one, and beyond.
            for length in [40, 64, 150] {
                let what = format!("{} {format:?}, {length} tokens", loaded.name);
                let (prompt, rest) = loaded.ids[..length + 30].split_at(length);
                let [first, second, third] = [&rest[..10], &rest[10..20], &rest[20..]];
                let after = |pieces: &[&[u32]]| {
                    let mut cache = loaded.model.new_cache(format);
                    read(&loaded, prompt, &mut cache);
                    pieces.iter().fold(Vec::new(), |_, piece| read(&loaded, piece, &mut cache))
                };
                let mut original = loaded.model.new_cache(format);
                read(&loaded, prompt, &mut original);
                let bytes = original.bytes();
                let mut fork = original.fork().expect("a fork");
                assert_eq!((original.bytes(), fork.bytes(), fork.len()), (bytes, bytes, length), "{what}: sizes");
                assert_eq!(read(&loaded, first, &mut original), after(&[first]), "{what}: the original");
                assert_eq!(read(&loaded, second, &mut fork), after(&[second]), "{what}: the fork");
                let mut second_fork = fork.fork().expect("a fork");
                assert_eq!(read(&loaded, third, &mut fork), after(&[second, third]), "{what}: the fork, again");
                drop(fork);
                assert_eq!(read(&loaded, first, &mut second_fork), after(&[second, first]), "{what}: its fork");
                assert_eq!(read(&loaded, third, &mut original), after(&[first, third]), "{what}: the original, again");
                original.reset();
                read(&loaded, prompt, &mut original);
                assert_eq!(read(&loaded, third, &mut original), after(&[third]), "{what}: after a reset");
            }
        }
    }
}

/// A fork is cut before, at and after the end of what it shares, and goes on like a cache in one part that is cut there; the original
/// does not notice.
pub fn forks_are_cut<B: CompactBackend>(device: &B::Device) {
    for loaded in loaded::<B>(device) {
        for format in [KvFormat::F32, KvFormat::F16] {
            let mut original = loaded.model.new_cache(format);
            read(&loaded, &loaded.ids[..150], &mut original);
            if original.is_recurrent() {
                continue;
            }
            let mut whole = original.clone();
            let mut fork = original.fork().expect("a fork");
            for cut in [149, 130, 128, 127, 65, 64, 63, 1, 0] {
                let mut whole = whole.clone();
                for cache in [&mut whole, &mut fork] {
                    cache.truncate(cut).expect("keys and values");
                    assert_eq!(cache.len(), cut);
                }
                let next = &loaded.ids[160..166];
                let [got, expected] = [&mut fork.clone(), &mut whole].map(|cache| read(&loaded, next, cache));
                assert_eq!(got, expected, "{} {format:?}, cut after {cut}", loaded.name);
            }
            let next = &loaded.ids[150..160];
            assert_eq!(read(&loaded, next, &mut original), read(&loaded, next, &mut whole), "{}", loaded.name);
        }
    }
}

/// Bytes of a token and of a sequence, in F32.
fn bytes<B: CompactBackend>(loaded: &Loaded<B>) -> (usize, usize) {
    let shapes = loaded.model.architecture().cache_shapes();
    let per_token = shapes.iter().map(|shape| shape.bytes_per_token(KvFormat::F32)).sum();
    (per_token, shapes.iter().map(|shape| shape.fixed_bytes()).sum())
}

/// Slots of a sequence of up to 256 tokens beside three tiles that it shares.
fn own_slots<B: CompactBackend>() -> usize {
    if B::READS_KV_PARTS { 256 - 192 } else { 256 }
}

/// Two sequences that begin with what a third left behind: its bytes count once, so that both fit where two copies would not.
pub fn a_prefix_is_there_once<B: CompactBackend>(device: &B::Device) {
    for loaded in loaded::<B>(device) {
        let (per_token, fixed) = bytes(&loaded);
        let budget = 480 * per_token + 6 * fixed;
        let limits = EngineOptions { prefix_cache_bytes: budget, cache_bytes: Some(budget), ..options() };
        let mut engine = Engine::new(&loaded.model, &loaded.text, limits);
        let request = |rest: usize, max_tokens| {
            let prompt = [&loaded.ids[..200], &loaded.ids[rest..rest + 5]].concat();
            Request { max_tokens, prefix_boundaries: vec![200], ..Request::new(prompt) }
        };
        engine.submit(request(205, 2)).expect("a request");
        while !engine.is_idle() {
            engine.step();
        }
        let kept = engine.prefix_cache_bytes();
        assert!(kept >= 200 * per_token && engine.cache_bytes() == kept, "{}: {kept} bytes", loaded.name);
        let requests = [request(210, 6), request(215, 6)];
        let ids = requests.each_ref().map(|request| engine.submit(request.clone()).expect("a request"));
        let mut texts = [String::new(), String::new()];
        let mut steps = 0;
        while !engine.is_idle() {
            for event in engine.step() {
                match event.kind {
                    // Where nothing is shared the prefix makes way for the second.
                    EventKind::Started { cached, .. } => {
                        assert!(cached == 200 || !B::READS_KV_PARTS, "{}: {cached}", loaded.name);
                    }
                    EventKind::Token(piece) => {
                        texts[usize::from(event.sequence == ids[1])].push_str(&piece.text);
                    }
                    EventKind::Failed(error) => panic!("{error}"),
                    _ => {}
                }
            }
            if steps == 0 && B::READS_KV_PARTS {
                assert_eq!(engine.sequences(), (2, 0), "{}", loaded.name);
                let own = engine.cache_bytes() - engine.prefix_cache_bytes();
                assert_eq!(own, 2 * (own_slots::<B>() * per_token + fixed), "{}", loaded.name);
            }
            assert!(engine.cache_bytes() <= budget);
            steps += 1;
        }
        for (text, request) in texts.iter().zip(&requests) {
            assert_eq!(*text, alone(&loaded, request).text, "{}", loaded.name);
        }
        engine.clear_prefix_cache();
        assert_eq!(engine.cache_bytes(), 0, "{}: something is left", loaded.name);
    }
}

/// Three forks of a sequence take their own parts and no more, and what they share as long as one of them is there.
pub fn forks_share_their_bytes<B: CompactBackend>(device: &B::Device) {
    for loaded in loaded::<B>(device) {
        let (per_token, fixed) = bytes(&loaded);
        let mut engine = Engine::new(&loaded.model, &loaded.text, options());
        let request = Request { max_tokens: 12, ..Request::new(loaded.ids[..200].to_vec()) };
        let first = engine.submit(request.clone()).expect("a request");
        let mut texts = std::collections::BTreeMap::from([(first, String::new())]);
        let mut all = vec![first];
        let mut steps = 0;
        while !engine.is_idle() {
            for event in engine.step() {
                match event.kind {
                    EventKind::Token(piece) => {
                        texts.get_mut(&event.sequence).expect("one of them").push_str(&piece.text)
                    }
                    EventKind::Failed(error) => panic!("{error}"),
                    _ => {}
                }
            }
            steps += 1;
            // The prompt is read after five steps.
            if (6..9).contains(&steps) {
                let before = engine.cache_bytes();
                let fork = engine.fork(first).expect("a fork");
                texts.insert(fork, texts[&first].clone());
                all.push(fork);
                let own = engine.cache_bytes() - before;
                assert_eq!(own, own_slots::<B>() * per_token + fixed, "{}: fork {}", loaded.name, all.len());
            }
            if steps == 10 {
                let before = engine.cache_bytes();
                engine.cancel(first);
                let freed = before - engine.cache_bytes();
                assert_eq!(freed, own_slots::<B>() * per_token + fixed, "{}: the others share it", loaded.name);
            }
        }
        let expected = alone(&loaded, &request).text;
        for (id, text) in texts {
            assert!(
                if id == first { expected.starts_with(&text) } else { expected == text },
                "{}: {text}",
                loaded.name
            );
        }
        assert_eq!(engine.cache_bytes(), 0, "{}: something is left", loaded.name);
    }
}
