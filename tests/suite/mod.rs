//! What must hold on every backend; each backend's test binary runs all of it.

pub mod activations;
pub mod bodies;
pub mod choice;
pub mod depth;
pub mod draft;
#[allow(dead_code)] // on the processor itself there is nothing to compare
pub mod eight_bits;
pub mod engine;
pub mod fine_tuning;
pub mod fixture;
pub mod golden;
pub mod handle;
pub mod hidden_cache;
pub mod initial;
pub mod invariants;
pub mod kernels;
#[allow(dead_code)] // a GPU has copies
pub mod places;
pub mod prefix;
mod random;
pub mod share;
pub mod split;
pub mod store;
pub mod training;
pub mod units;

use std::sync::{Mutex, PoisonError};

/// One test per function of the suite, or of the part for GPUs, on the type that the binary calls `Backend`.
macro_rules! whole_suite {
    () => {
        whole_suite! {
            each at_once:
            golden: whole_pass, greedy, prefill_cache, decode_through_the_cache, overrides, rounded, half_precision_cache;
            activations: half_precision;
            bodies: rope_scalings_and_biases, biases_by_config_and_tensors;
            units: crest_ffn, crest_ffn_parts, delta_rule, nf4, nano;
            invariants: prefill_is_prefill_and_decode, chunked_is_whole, chunked_is_whole_in_half_precision,
                spans_are_their_sequences, another_first_position, uncached_is_cached, keys_compressed_before_rotation,
                snapshot_is_untouched, reset_is_new, last_is_the_last_of_all, reserve_changes_nothing, cache_bytes_are_its_shapes, depth_set_is_depth_opened,
                prompt_errors, forward_errors, caches_beyond_memory;
            depth: spans_are_as_deep_as_alone, depth_asked_for_is_depth_opened, depths_that_cannot_be, requests_are_as_deep_as_alone,
                depth_is_told_of_the_tokens_asked_for;
            kernels: reshape, linears, linears_together, swiglu_mlp, norms, rotary, attention, attention_over_parts, store_beyond_half_precision, delta_net, spans, halting;
            training: linear_gradients, norm_gradients, attention_gradients, delta_net_gradients, halting_gradients,
                crest_gradients, one_step_lowers_the_loss, a_cache_of_halves_keeps_gradients;
            fine_tuning: a_loaded_model_trains_whole, numbers_that_are_none_are_not_saved;
            choice: top_k, tokens_are_those_of_all_logits, logits_that_are_no_numbers;
            engine: sequences_are_as_alone, one_that_fails_fails_alone, log_probabilities_are_those_of_the_model, nobody_waits_for_a_long_prompt,
                memory_is_asked_for_first, a_text_that_has_begun_is_not_lost_for_want_of_room;
            draft: texts_are_those_without, budgets_hold, none_are_made_while_a_text_waits, states_before_drafts_are_counted,
                what_cannot_be_drafted;
            hidden_cache: hidden_values_are_codes, initial_models_cache_hidden_values, hidden_values_before_rotation;
            handle: updates_are_those_of_the_engine, the_queue_is_bounded, tickets_cancel_where_the_request_is, sinks_cancel_and_may_panic,
                requests_are_checked_at_once, a_panic_stops_the_engine, a_model_without_numbers_fails_its_requests, drained_and_shut_down;
            prefix: cached_is_uncached, a_conversation_computes_its_last_turn, where_a_request_leaves_an_entry, choices_read_their_prompt_once,
                conversations_keep_their_secrets, depth_is_part_of_a_prefix, frequencies_by_length_are_not_shared, caches_are_cut;
            share: forks_go_on_by_themselves, forks_are_cut, a_prefix_is_there_once, forks_share_their_bytes;
            places: weights_at_odd_places, models_in_memory;
            split: operations, models, caches;
            store: plain_weights_have_checkpoint_names, packed_weights_come_back, records_go_both_ways;
            initial: initial_models_have_the_tensors_of_checkpoints, layers_by_themselves_are_the_model, initial_layers_learn;
        }
    };
    // On a GPU. What trains runs in burn's own operations, and so do the bodies that `kernels` compares with, whose matrix products have
    // been wrong there: in their place every operation is compared with the processor. `long`: why the longest are ignored unless asked for.
    (gpu $(, long: $why:literal)?) => {
        whole_suite! {
            each one_by_one:
            golden: whole_pass, $(#[ignore = $why])? greedy, greedy_begins, prefill_cache, decode_through_the_cache, overrides, rounded, half_precision_cache;
            activations: $(#[ignore = $why])? half_precision, half_precision_begins;
            bodies: rope_scalings_and_biases;
            units: crest_ffn, crest_ffn_parts, delta_rule, nf4, nano;
            invariants: $(#[ignore = $why])? prefill_is_prefill_and_decode, $(#[ignore = $why])? chunked_is_whole,
                $(#[ignore = $why])? spans_are_their_sequences, uncached_is_cached, keys_compressed_before_rotation,
                $(#[ignore = $why])? snapshot_is_untouched, $(#[ignore = $why])? reset_is_new, last_is_the_last_of_all, depth_set_is_depth_opened, forward_errors;
            depth: $(#[ignore = $why])? spans_are_as_deep_as_alone, $(#[ignore = $why])? depth_asked_for_is_depth_opened;
            eight_bits: as_on_the_processor;
            hidden_cache: hidden_values_are_codes, hidden_values_before_rotation;
            kernels: as_on_the_processor, attention_over_parts, store_beyond_half_precision;
            choice: top_k, tokens_are_those_of_all_logits, logits_that_are_no_numbers;
            prefix: cached_is_uncached;
            share: $(#[ignore = $why])? forks_go_on_by_themselves, $(#[ignore = $why])? a_prefix_is_there_once;
            split: models;
            store: packed_weights_come_back;
        }
    };
    (each $how:ident: $($module:ident: $($(#[$attribute:meta])* $name:ident),*;)*) => {$(
        mod $module {
            $(#[test] $(#[$attribute])* fn $name() {
                crate::suite::$how(|| crate::suite::$module::$name::<crate::Backend>(&Default::default()))
            })*
        }
    )*};
}

/// Tests beside each other, as many as the harness has threads.
pub fn at_once(test: impl FnOnce()) {
    test();
}

/// A thread that launches keeps a core while the card is behind, and where the card is software that core is missing in it.
#[allow(dead_code)] // for GPUs
pub fn one_by_one(test: impl FnOnce()) {
    static ONE: Mutex<()> = Mutex::new(());
    let _one = ONE.lock().unwrap_or_else(PoisonError::into_inner);
    test();
}
