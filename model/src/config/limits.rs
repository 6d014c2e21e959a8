//! Bounds on what a config may state, one by one and together: what a sequence keeps must stay in proportion to known models, because a
//! small file can state any product of them.

use super::fields::Fields;
use super::layers::{LayerType, LinearAttentionConfig};
use crate::Result;

/// Largest `config.json`, in bytes: two hundred times the largest known one.
pub(super) const MAX_CONFIG_BYTES: u64 = 4 << 20;
/// Largest hidden or intermediate size.
pub(super) const MAX_WIDTH: usize = 1 << 22;
pub(super) const MAX_LAYERS: usize = 1024;
pub(super) const MAX_HEADS: usize = 4096;
pub(super) const MAX_HEAD_DIM: usize = 4096;
pub(super) const MAX_VOCABULARY: usize = 1 << 24;
pub(super) const MAX_POSITIONS: usize = 1 << 28;

/// Bytes that linear attention may keep per sequence, all layers together: eighty times what the largest known model keeps.
const MAX_STATE_BYTES: usize = 16 << 30;
/// Bytes of keys and values per token, all layers together and in F32: seven times what the largest known model keeps.
const MAX_TOKEN_BYTES: usize = 64 << 20;

/// The sizes of the mixers of a model.
pub(super) struct MixerSizes<'a> {
    pub(super) layer_types: &'a [LayerType],
    pub(super) linear: Option<&'a LinearAttentionConfig>,
    pub(super) heads: usize,
    pub(super) kv_heads: usize,
    pub(super) head_dim: usize,
}

/// # Errors
/// [`Error::Config`](crate::Error::Config) with the key that makes too much of it.
pub(super) fn check_mixers(text: &Fields, sizes: &MixerSizes) -> Result<()> {
    let &MixerSizes { layer_types, linear, heads, kv_heads, head_dim } = sizes;
    let count = |kind| layer_types.iter().filter(|&&layer| layer == kind).count();
    let bytes = |shape: &[usize]| shape.iter().fold(4usize, |bytes, &side| bytes.saturating_mul(side));
    let widths = |key, heads: usize, dim: usize| match heads.saturating_mul(dim) {
        width if width > MAX_WIDTH => Err(text.error(
            key,
            format!("is {heads}: with heads of {dim} that is {width} wide, at most {MAX_WIDTH} are supported"),
        )),
        _ => Ok(()),
    };
    widths("num_attention_heads", heads, head_dim)?;
    let per_token = bytes(&[2, kv_heads, head_dim, count(LayerType::FullAttention)]);
    if per_token > MAX_TOKEN_BYTES {
        let message = format!(
            "is {kv_heads}: with heads of {head_dim} every token would keep {per_token} bytes of keys and values, at most \
             {MAX_TOKEN_BYTES} are supported"
        );
        return Err(text.error("num_key_value_heads", message));
    }
    let Some(dims) = linear else { return Ok(()) };
    widths("linear_num_key_heads", dims.num_key_heads, dims.key_head_dim)?;
    widths("linear_num_value_heads", dims.num_value_heads, dims.value_head_dim)?;
    let layers = count(LayerType::LinearAttention);
    let state = bytes(&[dims.num_value_heads, dims.key_head_dim, dims.value_head_dim, layers]);
    let channels = dims.key_width().saturating_mul(2).saturating_add(dims.value_width());
    let tail = bytes(&[dims.conv_kernel_dim.saturating_sub(1), channels, layers]);
    let kept = state.saturating_add(tail);
    if kept > MAX_STATE_BYTES {
        let message = format!(
            "is {}: with keys of {} and values of {} in {layers} layers every sequence would keep {kept} bytes, at most \
             {MAX_STATE_BYTES} are supported",
            dims.num_value_heads, dims.key_head_dim, dims.value_head_dim
        );
        return Err(text.error("linear_num_value_heads", message));
    }
    Ok(())
}
