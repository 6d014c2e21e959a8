//! tokenizer.json, and tokenizer_config.json after the first NUL byte.
#![no_main]

use emberlm_model::text::{TextFiles, TextProcessor};
use libfuzzer_sys::fuzz_target;

fuzz_target!(
    // The tokenizer library panics on some files; that is contained, and so no finding. A panic that is not ends the run all the same.
    init: std::panic::set_hook(Box::new(|_| {})),
    |data: &[u8]| {
        let mut parts = data.splitn(2, |&b| b == 0);
        let tokenizer_json = parts.next().unwrap_or_default().to_vec();
        let tokenizer_config = parts.next().map(<[u8]>::to_vec);
        let Ok(text) = TextProcessor::from_files(&TextFiles { tokenizer_json, tokenizer_config, ..TextFiles::default() }) else {
            return;
        };
        for sample in ["", "The river bends twice.", "<|im_end|>é\u{1f642} 17"] {
            let Ok(ids) = text.encode(sample, true) else { continue };
            let _ = text.decode(&ids, true);
            let mut stream = text.decode_stream(false);
            for id in ids {
                let _ = stream.push(id);
            }
            let _ = stream.finish();
        }
    }
);
