//! Several sequences in one launch.
//!
//! Each sequence has buffers of its own, and a kernel cannot choose a buffer by number: it has those of a few sequences as arguments
//! and compares. So that few kernels are compiled, there are arguments for 1, 2, 4 or 8 sequences, and those that are too many repeat
//! the last sequence, which no unit takes them for.

use cubecl::prelude::*;

use super::launch::Buffer;

/// Sequences of one launch at most.
const MAX_SPANS: usize = 8;

/// How many sequences a launch takes on this device, where each has `each` buffers of its own beside `shared` of all.
pub(super) fn spans_per_launch<R: Runtime>(client: &ComputeClient<R>, each: usize, shared: usize) -> usize {
    // One more holds the scalars.
    let free = (client.properties().hardware.max_bindings as usize).saturating_sub(shared + 1);
    1 << (free / each).clamp(1, MAX_SPANS).ilog2()
}

/// A buffer of each sequence.
pub(super) fn buffers<'a, R: Runtime, E: CubePrimitive>(
    buffers: impl IntoIterator<Item = &'a Buffer>,
) -> SequenceArg<R, Array<E>> {
    filled(buffers, |last| *last).map(Buffer::arg).collect()
}

/// A number of each sequence.
pub(super) fn numbers<R: Runtime>(numbers: impl IntoIterator<Item = usize>) -> SequenceArg<R, u32> {
    filled(numbers, |last| *last).map(|number| number as u32).collect()
}

/// Where each sequence begins if they have so many places one after the other.
pub(super) fn starts<R: Runtime>(places: impl IntoIterator<Item = usize>) -> SequenceArg<R, u32> {
    let starts = places.into_iter().scan(0, |end, places| {
        let start = *end;
        *end += places;
        Some(start)
    });
    // No place is as far as this.
    filled(starts, |_| u32::MAX as usize).map(|start| start as u32).collect()
}

/// Where the sequences of a launch begin, and how long they are.
#[derive(CubeType, CubeLaunch)]
pub(super) struct Places {
    /// The first of what a kernel counts: cubes or rows.
    pub(super) starts: Sequence<u32>,
    /// The first token.
    pub(super) tokens: Sequence<u32>,
    /// New tokens.
    pub(super) seq: Sequence<u32>,
}

/// Up to the next power of two what follows the last one.
fn filled<T>(values: impl IntoIterator<Item = T>, next: impl Fn(&T) -> T) -> impl Iterator<Item = T> {
    let mut values: Vec<T> = values.into_iter().collect();
    for _ in values.len()..values.len().next_power_of_two() {
        values.extend(values.last().map(&next));
    }
    values.into_iter()
}

/// The sequence of a place, by where each begins.
#[cube]
pub(super) fn span_at(starts: &Sequence<u32>, place: u32) -> u32 {
    let mut span = 0u32.runtime();
    #[unroll]
    for i in 1..comptime!(starts.len()) {
        span = select(place >= starts[i], comptime!(i as u32), span);
    }
    span
}

/// The number of one sequence.
#[cube]
pub(super) fn of_span(numbers: &Sequence<u32>, span: u32) -> u32 {
    let mut number = numbers[0];
    #[unroll]
    for i in 1..comptime!(numbers.len()) {
        number = select(span == comptime!(i as u32), numbers[i], number);
    }
    number
}

/// Whether `span` is sequence `i` of so many; of one alone it is known, and kernels are compiled without the question.
#[cube]
pub(super) fn is_span(span: u32, #[comptime] i: usize, #[comptime] spans: usize) -> bool {
    if comptime!(spans == 1) { true.runtime() } else { span == comptime!(i as u32) }
}

/// Element `at` of the array of one sequence.
#[cube]
pub(super) fn read<E: Numeric>(arrays: &Sequence<Array<E>>, span: u32, at: u32) -> E {
    let mut value = E::from_int(0);
    #[unroll]
    for i in 0..comptime!(arrays.len()) {
        if is_span(span, i, comptime!(arrays.len())) {
            value = arrays[i][at as usize];
        }
    }
    value
}

/// Sets element `at` of the array of one sequence.
#[cube]
pub(super) fn write<E: Numeric>(arrays: &mut Sequence<Array<E>>, span: u32, at: u32, value: E) {
    #[unroll]
    for i in 0..comptime!(arrays.len()) {
        if is_span(span, i, comptime!(arrays.len())) {
            set(arrays.index_mut(i), at, value);
        }
    }
}

#[cube]
pub(super) fn set<E: CubePrimitive>(array: &mut Array<E>, at: u32, value: E) {
    array[at as usize] = value;
}
