//! Tokens that spell bytes: those of byte-level BPE in their printable alphabet, and tokens such as `<0xE6>` of the others.

use std::sync::OnceLock;

use tokenizers::{DecoderWrapper, Tokenizer};

/// The byte that a token such as `<0xE6>` stands for.
pub(super) fn single_byte(token: &str) -> Option<u8> {
    let hex = token.strip_prefix("<0x").and_then(|t| t.strip_suffix('>'))?;
    if hex.len() == 2 { u8::from_str_radix(hex, 16).ok() } else { None }
}

/// Whether a token stands for one byte.
pub(super) fn is_byte_token(token: &str) -> bool {
    single_byte(token).is_some()
}

/// Appends the bytes that a byte-level token spells. A token with a character outside the alphabet, which only added tokens
/// have, stands for itself.
pub(super) fn push_token_bytes(token: &str, bytes: &mut Vec<u8>) {
    let start = bytes.len();
    for c in token.chars() {
        let byte = alphabet().get(c as usize).copied().flatten();
        let Some(byte) = byte else {
            bytes.truncate(start);
            bytes.extend_from_slice(token.as_bytes());
            return;
        };
        bytes.push(byte);
    }
}

/// Whether tokens are bytes in a printable alphabet.
pub(super) fn is_byte_level(tokenizer: &Tokenizer) -> bool {
    matches!(tokenizer.get_decoder(), Some(DecoderWrapper::ByteLevel(_)))
}

/// The alphabet of byte-level BPE, by code point: printable Latin-1 stands for itself, the other 68 bytes for U+0100 onwards.
fn alphabet() -> &'static [Option<u8>] {
    static TABLE: OnceLock<Vec<Option<u8>>> = OnceLock::new();
    TABLE.get_or_init(|| {
        let printable = |b: &u8| matches!(b, b'!'..=b'~' | 0xA1..=0xAC | 0xAE..=0xFF);
        let own = (0..=u8::MAX).map(|b| Some(b).filter(printable));
        let others = (0..=u8::MAX).filter(|b| !printable(b)).map(Some);
        own.chain(others).collect()
    })
}
