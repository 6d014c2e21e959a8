//! How many bytes of a text each of its tokens stands for.

use super::byte_tokens::{is_byte_level, is_byte_token, push_token_bytes};
use super::tokenizer::TextProcessor;

impl TextProcessor {
    /// Bytes of `text` that each of its tokens stands for, `ids` being those that [`encode`](Self::encode) gives without special
    /// tokens around. A token inside a character has the bytes that it spells. The sum is the length of the text: where the
    /// tokenizer normalises a text before it cuts it, the bytes are those of the normalised text, scaled.
    pub fn bytes_of_tokens(&self, text: &str, ids: &[u32]) -> Vec<f64> {
        let byte_level = is_byte_level(self.tokenizer());
        let mut spelled: Vec<Vec<u8>> = ids.iter().map(|&id| self.spelled(id, byte_level)).collect();
        // Many tokenizers put a space before the first word.
        if let Some(first) = spelled.first_mut().filter(|first| first.starts_with(b" ") && !text.starts_with(' ')) {
            first.remove(0);
        }
        let sum: usize = spelled.iter().map(Vec::len).sum();
        let scale = if sum == text.len() { 1.0 } else { text.len() as f64 / sum.max(1) as f64 };
        spelled.iter().map(|bytes| bytes.len() as f64 * scale).collect()
    }

    fn spelled(&self, id: u32, byte_level: bool) -> Vec<u8> {
        let added = self.tokenizer().get_added_vocabulary().get_added_tokens_decoder().get(&id);
        let token = added.map(|added| added.content.clone()).or_else(|| self.token(id)).unwrap_or_default();
        let mut bytes = Vec::new();
        match (added.is_some(), byte_level) {
            (false, true) => push_token_bytes(&token, &mut bytes),
            (false, false) if is_byte_token(&token) => bytes.push(0),
            (false, false) => bytes.extend(token.replace('\u{2581}', " ").bytes()),
            (true, _) => bytes.extend(token.bytes()),
        }
        bytes
    }
}
