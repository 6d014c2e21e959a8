//! Checkpoints on their way to disk, the mirror of the readers beside this folder: which tensors hold a weight ([`stored`]), files of
//! them ([`shard`], [`record`]), and a directory that appears when it is complete ([`output`]).

mod output;
mod record;
mod rows;
mod shard;
mod space;
mod stored;
#[cfg(test)]
mod tests;

pub(crate) use output::{Job, OutputDir, check_target};
pub(crate) use record::{RecordFile, record_header_bytes};
pub(crate) use rows::RowLayout;
pub(crate) use shard::{ShardFile, header_bytes};
pub(crate) use space::{check_space, free_space};
pub(crate) use stored::{CodeBookLayout, Slot, StoredTensor, code_book_slots, dense_slots, encode, int8_slots};
