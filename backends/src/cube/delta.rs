//! The gated delta rule, token by token, with the state in registers.
//!
//! The columns of a state do not see each other. A cube takes 32 columns of one head; eight units share a column, each
//! with every eighth row. Queries and keys of a few tokens at a time are normalised into shared memory. With the state
//! `S` before a token, `Sᵀk` and `Sᵀq` are summed in one go, since `o = e^g Sᵀq + (k·q) d`.

use cubecl::ir::StorageType;
use cubecl::prelude::*;

use super::instructions::plane_size;
use super::launch::{Buffer, MAX_ELEMENTS, UNITS, grid};
use super::reduce::{Lanes, sum_of_lanes};
use super::spans::{Places, PlacesLaunch, buffers, is_span, numbers, of_span, span_at, spans_per_launch, starts};
use crate::check::elements;
use crate::types::{DeltaRuleInputs, DeltaRuleShape};

/// Units that share a column.
const LANES: u32 = 8;

/// Elements of the longest key that [`gated_delta_rule`] takes: it lies in shared memory.
pub const MAX_KEY_DIM: usize = 1024;

/// Columns of a cube.
const COLUMNS: u32 = UNITS / LANES;

/// Runs the gated delta rule over `s` tokens and leaves the state after the last one in place.
///
/// With `k` and `q` normalised to unit length (`x * rsqrt(sum x² + 1e-6)`) and `q` divided by `sqrt(dk)`, per token and
/// value head: `S *= e^g; d = beta (v - Sᵀ k); S += k dᵀ; o = Sᵀ q`. All f32.
///
/// # Shapes
/// `q, k [b, s, hk, dk]`, not normalised; `v, o [b, s, hv, dv]`, these four of one type; `g` (log decay), `beta [b, s, hv]`
/// of one type; `state [b, hv, dk, dv]`. `token_strides` are the elements from a token of q, k and v to the next: views into one
/// tensor need no copy.
///
/// # Panics
/// If a buffer does not have its shape and type, `key_heads` does not divide `value_heads`, or `key_dim` exceeds
/// [`MAX_KEY_DIM`].
pub fn gated_delta_rule<R: Runtime>(
    client: &ComputeClient<R>,
    rule: DeltaRuleInputs<&Buffer>,
    state: &Buffer,
    o: &Buffer,
    p: DeltaRuleShape,
    token_strides: [usize; 3],
) {
    gated_delta_rule_spans(client, rule, &[DeltaSpan { state, shape: p }], o, token_strides);
}

/// One sequence of a call over several.
#[derive(Clone, Copy, Debug)]
pub struct DeltaSpan<'a> {
    /// Of the sequence, updated in place.
    pub state: &'a Buffer,
    /// The shape of this sequence alone.
    pub shape: DeltaRuleShape,
}

/// [`gated_delta_rule`] of several sequences, whose tokens follow one another, to the last bit: in one launch for as many as the
/// device has arguments for, sequences of one token apart from longer ones.
///
/// # Shapes
/// As there, with `n` for `b` and `s`, the tokens of all batches of all sequences; all states of one type.
///
/// # Panics
/// As [`gated_delta_rule`], or if sequences have other heads or widths.
pub fn gated_delta_rule_spans<R: Runtime>(
    client: &ComputeClient<R>,
    rule: DeltaRuleInputs<&Buffer>,
    spans: &[DeltaSpan<'_>],
    o: &Buffer,
    token_strides: [usize; 3],
) {
    let DeltaRuleInputs { q, k, v, g, beta } = rule;
    let Some(DeltaSpan { state: first_state, shape }) = spans.first() else { return };
    let &DeltaRuleShape { key_heads, value_heads, key_dim, value_dim, .. } = shape;
    assert!(key_heads > 0 && value_heads % key_heads == 0, "{key_heads} key heads do not divide {value_heads}");
    assert!(key_dim <= MAX_KEY_DIM, "keys of {key_dim} numbers, at most {MAX_KEY_DIM}");
    let mut tokens = 0usize;
    let firsts = spans.iter().map(|DeltaSpan { state, shape: p }| {
        let same = DeltaRuleShape { batch: shape.batch, seq: shape.seq, ..*p };
        assert!(same == *shape, "sequences of {p:?} and of {shape:?} in one call");
        state.check("state", &[p.batch, value_heads, key_dim, value_dim]);
        state.check_type("state", first_state.dtype);
        let first = tokens;
        tokens = tokens.saturating_add(elements("the tokens of a sequence", &[p.batch, p.seq]));
        first
    });
    let firsts: Vec<usize> = firsts.collect();
    o.check("o", &[tokens, value_heads, value_dim]);
    g.check("g", &[tokens, value_heads]);
    beta.check("beta", &[tokens, value_heads]);
    [("k", k), ("v", v), ("o", o)].iter().for_each(|(name, buffer)| buffer.check_type(name, q.dtype));
    beta.check_type("beta", g.dtype);
    if g.len == 0 || key_dim == 0 || value_dim == 0 {
        return;
    }
    // Of g and the states there is something, so that their sides are bounded.
    let widths = shape.dense_strides();
    for (((name, buffer), stride), width) in [("q", q), ("k", k), ("v", v)].iter().zip(token_strides).zip(widths) {
        let needed = (tokens - 1).checked_mul(stride).and_then(|before| before.checked_add(width));
        let enough = needed.is_some_and(|needed| buffer.len >= needed);
        assert!(enough && stride <= MAX_ELEMENTS, "{name} has {} elements, not {needed:?}", buffer.len);
    }
    // Tokens staged at once: within shared memory, and none for nothing.
    let most = (MAX_KEY_DIM / key_dim).clamp(1, 8);
    let spans = spans.iter().zip(firsts).filter(|(span, _)| span.shape.batch * span.shape.seq > 0);
    let (short, long): (Vec<_>, Vec<_>) = spans.partition(|(span, _)| span.shape.seq == 1);
    for (spans, staged) in [(short, 1), (long, 1 << most.ilog2())] {
        // All but the states are of all.
        for spans in spans.chunks(spans_per_launch(client, 1, 6)) {
            let cubes_of = |span: &DeltaSpan<'_>| span.shape.batch * value_heads * value_dim.div_ceil(COLUMNS as usize);
            let cubes = spans.iter().fold(0usize, |sum, (span, _)| sum.saturating_add(cubes_of(span)));
            let places = PlacesLaunch::new(
                starts(spans.iter().map(|(span, _)| cubes_of(span))),
                numbers(spans.iter().map(|(_, first)| *first)),
                numbers(spans.iter().map(|(span, _)| span.shape.seq)),
            );
            // SAFETY: the lengths were checked, and the kernel stays inside them.
            unsafe {
                delta_kernel::launch_unchecked::<R>(
                    client,
                    grid(cubes),
                    CubeDim::new_1d(UNITS),
                    arg(rule, token_strides),
                    buffers(spans.iter().map(|(span, _)| span.state)),
                    o.arg(),
                    places,
                    cubes as u32,
                    key_heads as u32,
                    value_heads as u32,
                    value_dim as u32,
                    key_dim as u32,
                    staged,
                    plane_size(client),
                    q.dtype,
                    g.dtype,
                    first_state.dtype,
                );
            }
        }
    }
}

/// [`DeltaRuleInputs`] as the argument of a kernel, and the elements from a token of each to the next.
#[derive(CubeType, CubeLaunch)]
struct Rule<F: Float, G: Float> {
    q: Array<F>,
    k: Array<F>,
    v: Array<F>,
    g: Array<G>,
    beta: Array<G>,
    q_stride: u32,
    k_stride: u32,
    v_stride: u32,
}

fn arg<F: Float, G: Float, R: Runtime>(
    rule: DeltaRuleInputs<&Buffer>,
    token_strides: [usize; 3],
) -> RuleLaunch<F, G, R> {
    let DeltaRuleInputs { q, k, v, g, beta } = rule;
    let [q_stride, k_stride, v_stride] = token_strides.map(|stride| stride as u32);
    RuleLaunch::new(q.arg(), k.arg(), v.arg(), g.arg(), beta.arg(), q_stride, k_stride, v_stride)
}

#[cube(launch_unchecked)]
#[allow(clippy::too_many_arguments)]
fn delta_kernel<F: Float, G: Float, S: Float>(
    rule: &Rule<F, G>,
    states: &mut Sequence<Array<S>>,
    o: &mut Array<F>,
    places: &Places,
    cubes: u32,
    key_heads: u32,
    value_heads: u32,
    value_dim: u32,
    #[comptime] key_dim: u32,
    #[comptime] staged: u32,
    #[comptime] plane: u32,
    #[define(F)] _activations_type: StorageType,
    #[define(G)] _gates_type: StorageType,
    #[define(S)] _state_type: StorageType,
) {
    let cube = CUBE_POS as u32;
    if cube >= cubes {
        terminate!();
    }
    let span = span_at(&places.starts, cube);
    let cube = cube - of_span(&places.starts, span);
    let seq = of_span(&places.seq, span);
    let first_token = of_span(&places.tokens, span);
    let rows = comptime!(key_dim.div_ceil(LANES)); // of a unit
    let padded = comptime!(key_dim.next_multiple_of(LANES));
    let by_plane = comptime!(plane >= LANES);
    let in_registers = comptime!(in_registers(key_dim));

    let mut keys = SharedMemory::<f32>::new(comptime!((staged * padded) as usize));
    let mut queries = SharedMemory::<f32>::new(comptime!((staged * padded) as usize));
    let mut values = SharedMemory::<f32>::new(comptime!((staged * COLUMNS) as usize));
    let mut products = SharedMemory::<f32>::new(staged as usize); // k·q
    let mut decays = SharedMemory::<f32>::new(staged as usize);
    let mut strengths = SharedMemory::<f32>::new(staged as usize);
    let mut scratch = SharedMemory::<f32>::new(comptime!((4 * UNITS) as usize));

    // Of a sequence, cube = (b * value_heads + head) * blocks + column block
    let blocks = value_dim.div_ceil(COLUMNS);
    let first_column = cube % blocks * COLUMNS;
    let b_head = cube / blocks;
    let head = b_head % value_heads;
    let b = b_head / value_heads;
    let key_head = head / (value_heads / key_heads);

    let lane = UNIT_POS % LANES;
    let column = first_column + UNIT_POS / LANES;
    let known = column < value_dim;
    let own = Column { start: b_head * key_dim * value_dim + column, lane, known, value_dim };

    let mut s = Array::<f32>::new(rows as usize);
    #[unroll]
    for i in 0..comptime!(states.len()) {
        if is_span(span, i, comptime!(states.len())) {
            load_column::<S>(&states[i], &mut s, &own, key_dim);
        }
    }

    let mut first = 0u32;
    while first < seq {
        let count = min(staged, seq - first);
        let token = first_token + b * seq + first; // the first staged one

        // Unit keys and queries: each vector by `share` units, keys by the first half of the cube.
        let share = comptime!(UNITS / (2 * staged));
        let vector = UNIT_POS / share;
        let part = UNIT_POS % share;
        let is_query = vector >= staged;
        let t = vector % staged;
        let here = t < count;
        let mut squares = 0.0f32;
        let mut i = part;
        while i < padded {
            let mut value = 0.0f32;
            if here && i < key_dim {
                let at = key_head * key_dim + i;
                if is_query {
                    value = f32::cast_from(rule.q[((token + t) * rule.q_stride + at) as usize]);
                } else {
                    value = f32::cast_from(rule.k[((token + t) * rule.k_stride + at) as usize]);
                }
            }
            squares += value * value;
            if is_query {
                queries[(t * padded + i) as usize] = value;
            } else {
                keys[(t * padded + i) as usize] = value;
            }
            i += share;
        }
        let squares = sum_of_lanes(squares, &mut scratch, comptime!(Lanes { count: share, plane }));
        let scale = 1.0 / f32::sqrt(squares + 1e-6);
        let mut i = part;
        while i < padded {
            let at = (t * padded + i) as usize;
            if is_query {
                queries[at] *= scale / f32::sqrt(f32::cast_from(key_dim));
            } else {
                keys[at] *= scale;
            }
            i += share;
        }
        let mut i = UNIT_POS;
        while i < comptime!(staged * COLUMNS) {
            let t = i / COLUMNS;
            let c = first_column + i % COLUMNS;
            if t < count && c < value_dim {
                let at = (token + t) * rule.v_stride + head * value_dim + c;
                values[i as usize] = f32::cast_from(rule.v[at as usize]);
            }
            i += UNITS;
        }
        if UNIT_POS < count {
            let at = (token + UNIT_POS) * value_heads + head;
            decays[UNIT_POS as usize] = f32::exp(f32::cast_from(rule.g[at as usize]));
            strengths[UNIT_POS as usize] = f32::cast_from(rule.beta[at as usize]);
        }
        sync_cube();

        let share = comptime!(UNITS / staged);
        let t = UNIT_POS / share;
        let part = UNIT_POS % share;
        let mut product = 0.0f32;
        let mut i = part;
        while i < padded {
            let at = (t * padded + i) as usize;
            product += keys[at] * queries[at];
            i += share;
        }
        let product = sum_of_lanes(product, &mut scratch, comptime!(Lanes { count: share, plane }));
        if part == 0 {
            products[t as usize] = product;
        }
        sync_cube();

        for t in 0..count {
            let mut recalled = 0.0f32; // Sᵀk
            let mut read = 0.0f32; // Sᵀq
            #[unroll(in_registers)]
            for r in 0..rows {
                let at = (t * padded + lane + r * LANES) as usize;
                recalled += s[r as usize] * keys[at];
                read += s[r as usize] * queries[at];
            }
            if by_plane {
                #[unroll]
                for step in 0..comptime!(LANES.ilog2()) {
                    recalled += plane_shuffle_xor(recalled, comptime!(1u32 << step));
                    read += plane_shuffle_xor(read, comptime!(1u32 << step));
                }
            } else {
                // Two halves of the scratch by turns: one barrier per token is enough.
                let half = t % 2 * comptime!(2 * UNITS);
                scratch[(half + UNIT_POS) as usize] = recalled;
                scratch[(half + UNITS + UNIT_POS) as usize] = read;
                sync_cube();
                recalled = 0.0f32;
                read = 0.0f32;
                #[unroll]
                for i in 0..LANES {
                    let at = half + UNIT_POS - lane + i;
                    recalled += scratch[at as usize];
                    read += scratch[(at + UNITS) as usize];
                }
            }
            let decay = decays[t as usize];
            let value = values[(t * COLUMNS + UNIT_POS / LANES) as usize];
            let d = strengths[t as usize] * (value - decay * recalled);
            #[unroll(in_registers)]
            for r in 0..rows {
                let at = (t * padded + lane + r * LANES) as usize;
                s[r as usize] = s[r as usize] * decay + keys[at] * d;
            }
            if lane == 0 && known {
                let out = decay * read + products[t as usize] * d;
                o[(((token + t) * value_heads + head) * value_dim + column) as usize] = F::cast_from(out);
            }
        }
        sync_cube();
        first += staged;
    }

    #[unroll]
    for i in 0..comptime!(states.len()) {
        if is_span(span, i, comptime!(states.len())) {
            store_column::<S>(states.index_mut(i), &s, &own, key_dim);
        }
    }
}

/// Whether the rows of a unit are unrolled: then the state stays in registers; a very long one would only make the kernel long.
fn in_registers(key_dim: u32) -> bool {
    key_dim.div_ceil(LANES) <= 32
}

/// The column of a state that a unit shares, of which it has every [`LANES`]th row from row `lane` on.
#[derive(CubeType)]
struct Column {
    /// Where its first row is.
    start: u32,
    lane: u32,
    /// Whether the state has it.
    known: bool,
    value_dim: u32,
}

/// The rows of a unit in its column of a state.
#[cube]
fn load_column<S: Float>(state: &Array<S>, s: &mut Array<f32>, at: &Column, #[comptime] key_dim: u32) {
    #[unroll(in_registers(key_dim))]
    for r in 0..comptime!(key_dim.div_ceil(LANES)) {
        let row = at.lane + r * LANES;
        let mut value = 0.0f32;
        if at.known && row < key_dim {
            value = f32::cast_from(state[(at.start + row * at.value_dim) as usize]);
        }
        s[r as usize] = value;
    }
}

/// The reverse of [`load_column`].
#[cube]
fn store_column<S: Float>(state: &mut Array<S>, s: &Array<f32>, at: &Column, #[comptime] key_dim: u32) {
    #[unroll(in_registers(key_dim))]
    for r in 0..comptime!(key_dim.div_ceil(LANES)) {
        let row = at.lane + r * LANES;
        if at.known && row < key_dim {
            state[(at.start + row * at.value_dim) as usize] = S::cast_from(s[r as usize]);
        }
    }
}
