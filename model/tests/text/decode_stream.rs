//! Streamed decoding: the pieces joined are the whole, and no piece ends inside a character.

use std::path::Path;

use emberlm_model::text::{TextFiles, TextProcessor};

/// A fixed sequence of numbers that looks random.
struct Numbers(u64);

impl Numbers {
    fn below(&mut self, bound: u64) -> u64 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) % bound
    }
}

fn stream(text: &TextProcessor, ids: &[u32], skip_special: bool) -> (Vec<String>, String) {
    let mut stream = text.decode_stream(skip_special);
    let pieces = ids.iter().map(|&id| stream.push(id).unwrap()).collect();
    (pieces, stream.finish().unwrap())
}

fn check(text: &TextProcessor, ids: &[u32]) {
    for skip_special in [false, true] {
        let (pieces, rest) = stream(text, ids, skip_special);
        let whole = text.decode(ids, skip_special).unwrap();
        assert_eq!(pieces.concat() + &rest, whole, "{ids:?}, skip_special {skip_special}");
    }
}

fn fixture(name: &str) -> TextProcessor {
    let fixtures = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/fixtures");
    TextProcessor::from_dir(&fixtures.join(name)).unwrap()
}

#[test]
fn characters_of_several_tokens_come_whole() {
    let text = fixture("crest_k4");
    let sample = "é数🙂👩\u{200d}🚀!";
    let ids = text.encode(sample, false).unwrap();
    assert!(ids.len() > sample.chars().count());
    let (pieces, rest) = stream(&text, &ids, false);
    assert_eq!(pieces.concat(), sample);
    assert_eq!(rest, "");
    assert!(pieces.iter().any(String::is_empty));
    assert!(pieces.iter().all(|p| !p.contains(char::REPLACEMENT_CHARACTER)));
    // Text comes as soon as its last token, not later.
    assert!(!pieces.last().unwrap().is_empty());
}

#[test]
fn a_character_cut_off_at_the_end_is_not_lost() {
    let text = fixture("crest_k4");
    let ids = text.encode("a🙂", false).unwrap();
    let cut = &ids[..ids.len() - 1];
    let (pieces, rest) = stream(&text, cut, false);
    assert_eq!(pieces.concat(), "a");
    assert_eq!(rest, "\u{fffd}");
    check(&text, cut);
}

/// The beginning of a character is no text of an answer; bytes that no others could complete stay visible.
#[test]
fn a_text_that_is_cut_ends_with_a_whole_character() {
    let whole = |text: &TextProcessor, ids: &[u32]| {
        let mut stream = text.decode_stream(true);
        let pieces: String = ids.iter().map(|&id| stream.push(id).unwrap()).collect();
        let all = pieces + &stream.finish_whole().unwrap();
        assert_eq!(stream.finish().unwrap(), "", "{ids:?}");
        all
    };
    let (levels, fallback) = (fixture("crest_k4"), byte_fallback());
    let ids = levels.encode("aé🙂", false).unwrap();
    assert_eq!(whole(&levels, &ids), "aé🙂");
    for cut in 1..=3 {
        assert_eq!(whole(&levels, &ids[..ids.len() - cut]), "aé", "{cut}");
    }
    let byte = |b: &u8| 10 + u32::from(*b);
    let run = |bytes: &[u8]| [1, 3].into_iter().chain(bytes.iter().map(byte)).collect::<Vec<u32>>();
    let bytes = "é🙂".as_bytes();
    assert_eq!(whole(&fallback, &run(bytes)), "Helloé🙂");
    for cut in 1..=3 {
        assert_eq!(whole(&fallback, &run(&bytes[..bytes.len() - cut])), "Helloé", "{cut}");
    }
    assert_eq!(whole(&fallback, &run(&bytes[..1])), "Hello");
    assert_eq!(whole(&fallback, &run(&[0xff])), "Hello\u{fffd}");
    let ended = [run(&bytes[..3]), vec![5]].concat();
    assert_eq!(whole(&fallback, &ended), fallback.decode(&ended, true).unwrap());
}

#[test]
fn any_ids_of_byte_level_tokenizers() {
    for name in ["crest_k4", "leanllama", "nano_compact"] {
        let text = fixture(name);
        let mut numbers = Numbers(7);
        for length in 0..60 {
            // Single bytes, which are often no text, then the whole vocabulary and ids beyond it.
            let single: Vec<u32> = (0..length).map(|_| numbers.below(256) as u32).collect();
            check(&text, &single);
            let any: Vec<u32> = (0..length).map(|_| numbers.below(600) as u32).collect();
            check(&text, &any);
        }
    }
}

fn byte_fallback() -> TextProcessor {
    let files = TextFiles { tokenizer_json: crate::support::byte_fallback::byte_fallback(), ..TextFiles::default() };
    TextProcessor::from_files(&files).unwrap()
}

#[test]
fn byte_fallback_tokens_come_whole() {
    let text = byte_fallback();
    let byte = |b: u8| 10 + u32::from(b);
    let mut ids = vec![1, 3, 4, 5, 6, 7];
    ids.extend("🙂é".bytes().map(byte));
    ids.push(8);
    assert_eq!(text.decode(&ids, true).unwrap(), "Hello world!🙂é日");
    let (pieces, rest) = stream(&text, &ids, true);
    assert_eq!(pieces[..6], ["", "Hello", " w", "or", "ld", "!"]);
    // A run of bytes decodes as a whole or not at all, so it comes with the token after it.
    assert_eq!(pieces[6..12].concat(), "");
    assert_eq!((pieces[12].as_str(), rest.as_str()), ("🙂é日", ""));
    // Ended inside the last character, the whole run is no text.
    check(&text, &ids[..11]);
    check(&text, &ids[..8]);
}

#[test]
fn any_ids_of_a_byte_fallback_tokenizer() {
    let text = byte_fallback();
    let mut numbers = Numbers(3);
    for length in 0..200 {
        let ids: Vec<u32> = (0..length % 24)
            .map(|_| match numbers.below(3) {
                0 => numbers.below(10) as u32,
                1 => 10 + 0x80 + numbers.below(0x80) as u32,
                _ => numbers.below(270) as u32,
            })
            .collect();
        check(&text, &ids);
    }
}

#[test]
fn a_finished_stream_is_as_new() {
    for text in [fixture("crest_k4"), byte_fallback()] {
        let ids: Vec<u32> = (0..9).collect();
        let mut stream = text.decode_stream(false);
        let mut run = || {
            let pieces: String = ids.iter().map(|&id| stream.push(id).unwrap()).collect();
            pieces + &stream.finish().unwrap()
        };
        let first = run();
        assert_eq!(run(), first);
        assert_eq!(first, text.decode(&ids, false).unwrap());
    }
}

/// A token such as `<0xC3>` is one byte of the text, however its name is spelled.
#[test]
fn byte_tokens_count_as_one_byte() {
    let text = byte_fallback();
    let ids = text.encode("日é", false).unwrap();
    assert_eq!(text.bytes_of_tokens("日é", &ids), [3.0, 1.0, 1.0], "{ids:?}");
}
