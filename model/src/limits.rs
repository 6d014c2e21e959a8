//! What a device cannot do with a model, found before anything is allocated for it.

use emberlm_quant::ops::ModelSize;
use emberlm_quant::{Activations, CompactBackend};

use crate::architecture::Architecture;
use crate::config::LayerType;
use crate::error::{Error, Result};

/// Checks the sizes that kernels have limits on, and the environment that they obey.
///
/// # Errors
/// [`Error::Limit`] with the first that the device does not take; [`Error::Option`] with the name of a variable.
pub(crate) fn check_device<B: CompactBackend>(architecture: &Architecture, device: &B::Device) -> Result<()> {
    emberlm_quant::environment::check()
        .map_err(|error| Error::Option { option: error.variable.into(), message: error.to_string() })?;
    let config = &architecture.config;
    let has = |kind| config.layer_types.contains(&kind);
    let head = ("head_dim", config.head_dim, ModelSize::AttentionHead(config.head_dim));
    let head = has(LayerType::FullAttention).then_some(head);
    let key = config.linear_attention.as_ref().filter(|_| has(LayerType::LinearAttention));
    let key = key.map(|dims| ("linear_key_head_dim", dims.key_head_dim, ModelSize::DeltaKey(dims.key_head_dim)));
    for (size, found, of) in head.into_iter().chain(key) {
        if let Some(limit) = B::limit(device, of) {
            return Err(Error::Limit { size, found, limit });
        }
    }
    Ok(())
}

/// Checks that the device computes in these numbers.
///
/// # Errors
/// [`Error::Option`] with those that it has.
pub(crate) fn check_activations<B: CompactBackend>(activations: Activations, device: &B::Device) -> Result<()> {
    if B::computes_with(device, activations) {
        return Ok(());
    }
    let known: Vec<_> =
        Activations::ALL.into_iter().filter(|&a| B::computes_with(device, a)).map(|a| a.to_string()).collect();
    let message = format!("{activations} is not for this device, which computes with {}", known.join(", "));
    Err(Error::Option { option: "activations".into(), message })
}

/// Checks that the largest intermediate result of a pass over `rows * new` tokens after `past` fits the buffers and the memory of
/// the device.
///
/// # Errors
/// [`Error::Buffer`] or [`Error::Memory`].
pub(crate) fn check_pass<B: CompactBackend>(
    architecture: &Architecture,
    device: &B::Device,
    (rows, past, new): (usize, usize, usize),
    logits: usize,
) -> Result<()> {
    let config = &architecture.config;
    let gate = if config.attn_output_gate { 2 } else { 1 };
    let linear = config.linear_attention.as_ref().map_or(0, |dims| 2 * dims.key_width() + dims.value_width());
    let queries = config.num_attention_heads.saturating_mul(config.head_dim).saturating_mul(gate);
    let widest = [config.hidden_size, config.intermediate_size, queries, linear].into_iter().max().unwrap_or(0);
    let decoded = if architecture.decoded_bytes(1) > 0 { past.saturating_add(new) } else { 0 };
    let largest = [
        ("activations", new, widest),
        ("logits", logits, config.vocab_size),
        ("decoded keys or values", decoded, config.kv_dim().max(config.rope.rotary_dim)),
    ];
    let (buffer, memory) = (buffer_limit::<B>(device), B::memory(device));
    for (what, tokens, width) in largest {
        let bytes = [4, rows, tokens, width].into_iter().fold(1usize, usize::saturating_mul);
        if let Some(limit) = buffer.filter(|&limit| bytes > limit) {
            return Err(Error::Buffer { tensor: what.into(), slots: tokens, bytes, limit });
        }
        if let Some(limit) = memory.filter(|&limit| bytes > limit) {
            return Err(Error::Memory { what: format!("the {what} of {tokens} tokens"), bytes, limit });
        }
    }
    Ok(())
}

/// Bytes of the largest tensor of 32-bit numbers on a device.
pub(crate) fn buffer_limit<B: CompactBackend>(device: &B::Device) -> Option<usize> {
    let counted = B::max_elements(device).map(|elements| elements.saturating_mul(4));
    [B::max_buffer(device), counted].into_iter().flatten().min()
}
