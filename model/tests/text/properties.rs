//! Properties for any input: what other programs write is read as it was, and streams do not depend on how they are cut.

use std::collections::BTreeMap;
use std::path::Path;

use crate::support::stop_strings::shown_and_stop;
use emberlm_model::checkpoint::Checkpoint;
use emberlm_model::text::{TextFiles, TextProcessor};
use proptest::collection::{btree_map, vec};
use proptest::prelude::*;
use safetensors::Dtype;
use safetensors::tensor::TensorView;

/// Element types, the number of bytes of an element, and the name that the reader gives them.
const TYPES: [(Dtype, usize, &str); 15] = [
    (Dtype::BOOL, 1, "Bool"),
    (Dtype::U8, 1, "U8"),
    (Dtype::I8, 1, "I8"),
    (Dtype::F8_E4M3, 1, "F8E4M3"),
    (Dtype::F8_E5M2, 1, "F8E5M2"),
    (Dtype::I16, 2, "I16"),
    (Dtype::U16, 2, "U16"),
    (Dtype::F16, 2, "F16"),
    (Dtype::BF16, 2, "Bf16"),
    (Dtype::I32, 4, "I32"),
    (Dtype::U32, 4, "U32"),
    (Dtype::F32, 4, "F32"),
    (Dtype::I64, 8, "I64"),
    (Dtype::U64, 8, "U64"),
    (Dtype::F64, 8, "F64"),
];

/// Which type, shape, data.
type Tensor = (usize, Vec<usize>, Vec<u8>);

fn tensor() -> impl Strategy<Value = Tensor> {
    (0..TYPES.len(), vec(0usize..5, 0..5)).prop_flat_map(|(kind, shape)| {
        let bytes = TYPES[kind].1 * shape.iter().product::<usize>();
        (Just(kind), Just(shape), vec(any::<u8>(), bytes))
    })
}

/// Names that a header may hold: any text without control characters.
fn name() -> impl Strategy<Value = String> {
    prop_oneof!["[a-z0-9_.]{1,40}", "\\PC{1,20}"].prop_filter("reserved", |name| name != "__metadata__")
}

fn serialize(tensors: &BTreeMap<String, Tensor>) -> Vec<u8> {
    let views = tensors.iter().map(|(name, (kind, shape, data))| {
        (name, TensorView::new(TYPES[*kind].0, shape.clone(), data).expect("a shape that fits"))
    });
    safetensors::serialize(views, None).expect("a file")
}

/// What is read from a file: as it was written.
fn assert_read(checkpoint: &Checkpoint, tensors: &BTreeMap<String, Tensor>) {
    assert!(checkpoint.names().eq(tensors.keys().map(String::as_str)));
    for (name, (kind, shape, data)) in tensors {
        let info = checkpoint.info(name).expect("listed");
        assert_eq!((format!("{:?}", info.dtype).as_str(), &info.shape), (TYPES[*kind].2, shape), "{name}");
        assert_eq!(checkpoint.data(name).expect("listed"), data, "{name}");
    }
}

/// A text cut at these places, given in percent.
fn cut<'a>(text: &'a str, places: &[usize]) -> Vec<&'a str> {
    let mut places: Vec<usize> = places.iter().map(|p| text.floor_char_boundary(text.len() * p / 100)).collect();
    places.extend([0, text.len()]);
    places.sort_unstable();
    places.windows(2).map(|pair| &text[pair[0]..pair[1]]).collect()
}

fn tokenizers() -> [TextProcessor; 3] {
    let fixtures = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/fixtures");
    ["crest_k4", "leanllama", "nano_compact"].map(|name| {
        let files = TextFiles::read(&fixtures.join(name)).expect("files");
        TextProcessor::from_files(&files).expect("a tokenizer")
    })
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(128) })]

    #[test]
    fn files_are_read_as_they_were_written(tensors in btree_map(name(), tensor(), 1..12)) {
        let dir = tempfile::tempdir().expect("tempdir");
        std::fs::write(dir.path().join("model.safetensors"), serialize(&tensors)).expect("written");
        assert_read(&Checkpoint::open(dir.path()).expect("a good file"), &tensors);
    }

    /// In shards, with an index.
    #[test]
    fn shards_are_read_as_they_were_written(
        tensors in btree_map(name(), (tensor(), 0usize..3), 1..12),
    ) {
        let dir = tempfile::tempdir().expect("tempdir");
        let shard = |number: usize| format!("model-{number}.safetensors");
        let weight_map: BTreeMap<&String, String> = tensors.iter().map(|(name, (_, at))| (name, shard(*at))).collect();
        let index = serde_json::json!({ "metadata": {}, "weight_map": weight_map }).to_string();
        std::fs::write(dir.path().join("model.safetensors.index.json"), index).expect("written");
        for number in 0..3 {
            let here = tensors.iter().filter(|(_, (_, at))| *at == number);
            let here: BTreeMap<String, Tensor> = here.map(|(name, (tensor, _))| (name.clone(), tensor.clone())).collect();
            if !here.is_empty() {
                std::fs::write(dir.path().join(shard(number)), serialize(&here)).expect("written");
            }
        }
        let all = tensors.into_iter().map(|(name, (tensor, _))| (name, tensor)).collect();
        assert_read(&Checkpoint::open(dir.path()).expect("good files"), &all);
    }

    /// One byte of the header changed: refused, or read without a crash.
    #[test]
    fn a_changed_header_is_refused_or_read(
        tensors in btree_map(name(), tensor(), 1..6), at in any::<prop::sample::Index>(), byte in any::<u8>(),
    ) {
        let mut file = serialize(&tensors);
        let header = 8 + u64::from_le_bytes(*file.first_chunk().expect("a length")) as usize;
        file[at.index(header)] = byte;
        let dir = tempfile::tempdir().expect("tempdir");
        std::fs::write(dir.path().join("model.safetensors"), &file).expect("written");
        if let Ok(checkpoint) = Checkpoint::open(dir.path()) {
            for name in checkpoint.names() {
                let info = checkpoint.info(name).expect("listed");
                prop_assert_eq!(checkpoint.data(name).expect("listed").len(), info.bytes);
            }
        }
    }

    /// However a text is cut into pieces, the result is that of the whole text: the stop string that is complete first.
    #[test]
    fn stop_strings_do_not_depend_on_the_pieces(
        text in "[ab日<]{0,24}", stops in vec("[ab日<]{1,4}", 0..4), places in vec(0usize..=100, 0..8),
    ) {
        let whole = shown_and_stop(&stops, &[&text]);
        prop_assert_eq!(shown_and_stop(&stops, &cut(&text, &places)), whole.clone());
        let (shown, stop) = whole;
        match stop {
            None => {
                prop_assert!(stops.iter().all(|stop| !text.contains(stop.as_str())));
                prop_assert_eq!(shown, text);
            }
            Some(stop) => {
                let end = shown.len() + stop.len();
                prop_assert_eq!(&text[..end], shown + &stop);
                // None is complete earlier.
                let last = text[..end].char_indices().next_back().map_or(0, |(at, _)| at);
                prop_assert!(stops.iter().all(|stop| !text[..last].contains(stop.as_str())));
            }
        }
    }

    /// The pieces of a stream joined are the text of all ids; nothing is held when the text is whole.
    #[test]
    fn streams_give_the_text_of_all_ids(ids in vec(0u32..600, 0..40), skip_special in any::<bool>()) {
        for text in tokenizers() {
            let mut stream = text.decode_stream(skip_special);
            let mut pieces = String::new();
            for &id in &ids {
                pieces.push_str(&stream.push(id).expect("a piece"));
            }
            pieces.push_str(&stream.finish().expect("the rest"));
            prop_assert_eq!(pieces, text.decode(&ids, skip_special).expect("a text"));
        }
    }

    /// A text, its tokens, a stream: the same text, without anything held at the end.
    #[test]
    fn texts_come_back_through_a_stream(sample in "\\PC{0,24}") {
        for text in tokenizers() {
            let ids = text.encode(&sample, false).expect("ids");
            let mut stream = text.decode_stream(false);
            let mut pieces = String::new();
            for &id in &ids {
                pieces.push_str(&stream.push(id).expect("a piece"));
            }
            prop_assert_eq!(&pieces, &text.decode(&ids, false).expect("a text"));
            prop_assert_eq!(stream.finish().expect("the rest"), "");
        }
    }
}
