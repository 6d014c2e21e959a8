//! A tokenizer that the tests and the fuzzing of streams share.

/// `tokenizer.json` in the manner of SentencePiece: `▁` for spaces, `<0x..>` for bytes, a space stripped at the start.
pub fn byte_fallback() -> Vec<u8> {
    let pieces = ["<unk>", "<s>", "▁", "▁Hello", "▁w", "or", "ld", "!", "日", "▁日"];
    let bytes = (0..=255u8).map(|byte| format!("<0x{byte:02X}>"));
    let tokens = pieces.into_iter().map(String::from).chain(bytes);
    let vocab: serde_json::Map<_, _> = tokens.enumerate().map(|(id, token)| (token, serde_json::json!(id))).collect();
    let json = serde_json::json!({
        "version": "1.0",
        "added_tokens": [{"id": 1, "content": "<s>", "single_word": false, "lstrip": false, "rstrip": false,
                          "normalized": false, "special": true}],
        "decoder": {"type": "Sequence", "decoders": [
            {"type": "Replace", "pattern": {"String": "▁"}, "content": " "},
            {"type": "ByteFallback"},
            {"type": "Fuse"},
            {"type": "Strip", "content": " ", "start": 1, "stop": 0},
        ]},
        "model": {"type": "BPE", "vocab": vocab, "merges": [], "byte_fallback": true, "unk_token": "<unk>"},
    });
    json.to_string().into_bytes()
}
