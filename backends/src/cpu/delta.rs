//! The gated delta rule: a fast-weight state per head, decayed and corrected by every token.

use super::level;
use super::simd::{Kernel, Simd, launch, math};
use super::spans::{ranges, total};
use crate::check::check_len;
use crate::cpu::pool::{MIN_WORK, Output, for_each_chunk, parallel};
use crate::types::{DeltaRuleInputs, DeltaRuleShape};
use std::ops::Range;

/// Runs the gated delta rule over `s` tokens and leaves the state after the last one.
///
/// With `k` and `q` normalised to unit length (`x * rsqrt(sum x² + 1e-6)`) and `q` divided by `sqrt(dk)`, per token and
/// value head: `S *= e^g; d = beta (v - Sᵀ k); S += k dᵀ; o = Sᵀ q`. All f32.
///
/// # Shapes
/// `q`, `k`: `[b, s, hk, dk]`, not normalised; `v`, `o`: `[b, s, hv, dv]`; `g` (log decay), `beta`: `[b, s, hv]`;
/// `state [b, hv, dk, dv]`.
///
/// # Panics
/// If a slice does not have its shape, or `key_heads` does not divide `value_heads`.
pub fn gated_delta_rule(rule: DeltaRuleInputs<&[f32]>, state: &mut [f32], p: &DeltaRuleShape, o: &mut [f32]) {
    check(rule, p, o);
    check_len("state", state.len(), &[p.batch, p.value_heads, p.key_dim, p.value_dim]);
    let size = state.len() / p.batch.max(1);
    let rows = state.chunks_exact_mut(size.max(1)).enumerate();
    let spans = rows.map(|(b, state)| (b * p.seq..(b + 1) * p.seq, Output::new(state, p.value_dim)));
    run(rule, &spans.collect::<Vec<_>>(), p, o);
}

/// [`gated_delta_rule`] of several sequences at once: `tokens[i]` tokens belong to the one whose state is `states[i]`.
///
/// # Shapes
/// As there with a batch of 1 and the tokens of all sequences one after the other; each of `states [hv, dk, dv]`.
///
/// # Panics
/// If a slice does not have its shape, there is not a state for each sequence, or `key_heads` does not divide `value_heads`.
pub fn gated_delta_rule_spans(
    rule: DeltaRuleInputs<&[f32]>,
    tokens: &[usize],
    states: &mut [&mut [f32]],
    p: &DeltaRuleShape,
    o: &mut [f32],
) {
    assert!(
        p.batch == 1 && total(tokens) == p.seq,
        "sequences of {tokens:?} tokens are not {} times {}",
        p.batch,
        p.seq
    );
    assert!(states.len() == tokens.len(), "{} states for {} sequences", states.len(), tokens.len());
    states.iter().for_each(|state| check_len("state", state.len(), &[p.value_heads, p.key_dim, p.value_dim]));
    check(rule, p, o);
    let spans = ranges(tokens).zip(states).map(|(tokens, state)| (tokens, Output::new(state, p.value_dim)));
    run(rule, &spans.collect::<Vec<_>>(), p, o);
}

/// Which tokens belong to a sequence, and its state, `[hv * dk, dv]`.
type DeltaSpan<'a> = (Range<usize>, Output<'a>);

fn check(rule: DeltaRuleInputs<&[f32]>, p: &DeltaRuleShape, o: &[f32]) {
    let DeltaRuleInputs { q, k, v, g, beta } = rule;
    assert!(p.key_heads > 0 && p.value_heads.is_multiple_of(p.key_heads), "key_heads must divide value_heads");
    for (name, x) in [("q", q), ("k", k)] {
        check_len(name, x.len(), &[p.batch, p.seq, p.key_heads, p.key_dim]);
    }
    for (name, x) in [("v", v), ("o", o)] {
        check_len(name, x.len(), &[p.batch, p.seq, p.value_heads, p.value_dim]);
    }
    for (name, x) in [("g", g), ("beta", beta)] {
        check_len(name, x.len(), &[p.batch, p.seq, p.value_heads]);
    }
}

/// What the functions above do when they have checked the shapes.
fn run(rule: DeltaRuleInputs<&[f32]>, spans: &[DeltaSpan], p: &DeltaRuleShape, o: &mut [f32]) {
    let DeltaRuleInputs { q, k, v, g, beta } = rule;
    if spans.is_empty() || q.is_empty() || v.is_empty() {
        return;
    }
    let level = level();
    let dk = p.key_dim;
    // [n, hk, 2, dk]: the unit q and k of a key head side by side, read by all its value heads.
    let mut unit = vec![0.0; 2 * q.len()];
    for_each_chunk(&mut unit, 2 * dk, 4 * dk, |i, unit| {
        let (to_q, to_k) = unit.split_at_mut(dk);
        let scale = 1.0 / (dk as f32).sqrt();
        launch(level, Unit { x: &q[i * dk..(i + 1) * dk], scale, y: to_q });
        launch(level, Unit { x: &k[i * dk..(i + 1) * dk], scale: 1.0, y: to_k });
    });
    let o = Output::new(o, p.value_dim);
    let head = |task: usize| {
        let (tokens, state) = &spans[task / p.value_heads];
        let (tokens, state, head) = (tokens.clone(), *state, task % p.value_heads);
        launch(level, Head { unit: &unit, v, g, beta, tokens, head, p, state, o });
    };
    let tasks = spans.len() * p.value_heads;
    if v.len().saturating_mul(dk) < MIN_WORK {
        (0..tasks).for_each(head);
    } else {
        parallel(tasks, head);
    }
}

/// `y = scale * x * rsqrt(sum x² + 1e-6)`.
struct Unit<'a> {
    x: &'a [f32],
    scale: f32,
    y: &'a mut [f32],
}

impl Kernel for Unit<'_> {
    type Output = ();
    #[inline(always)]
    unsafe fn call<S: Simd>(self) {
        // SAFETY: `S` is enabled.
        let squares = unsafe { math::dot::<S>(self.x, self.x) };
        let scale = self.scale / (squares + 1e-6).sqrt();
        for (y, x) in self.y.iter_mut().zip(self.x) {
            *y = x * scale;
        }
    }
}

/// All tokens of one value head of one sequence.
///
/// The columns of a state never meet, so a few are taken through all tokens while they stay in the L1 cache. Because
/// `Sᵀ q = e^g S'ᵀ q + d (k q)` with `S'` the state before the token, one pass per token writes the state after it and reads what the next
/// token takes from that. The chunked form would multiply about as often: per token and head of 128 x 128 `3.3 dk dv` (chunks
/// of 16) to `4.3 dk dv` (of 64), where this has `4 dk dv`.
struct Head<'a> {
    unit: &'a [f32],
    v: &'a [f32],
    g: &'a [f32],
    beta: &'a [f32],
    tokens: Range<usize>,
    head: usize,
    p: &'a DeltaRuleShape,
    state: Output<'a>,
    o: Output<'a>,
}

/// Tokens up to which a state is changed where it lies: a copy there and back would be much of so little work.
const IN_PLACE: usize = 2;

impl Kernel for Head<'_> {
    type Output = ();
    #[inline(always)]
    unsafe fn call<S: Simd>(self) {
        // SAFETY: `S` is enabled, every task has a head of a state of its own, and the shapes were checked before `run`.
        unsafe {
            if self.tokens.len() > IN_PLACE {
                self.copied::<S>(0);
            } else if S::REGISTERS >= 32 {
                // Long runs of each row.
                let rest = self.in_place::<S, 8>();
                self.copied::<S>(rest);
            } else {
                let rest = self.in_place::<S, 2>();
                self.copied::<S>(rest);
            }
        }
    }
}

impl Head<'_> {
    /// Columns in groups of `VECTORS` vectors, as many as there are; returns where the rest begins.
    ///
    /// # Safety
    /// `S` is enabled, no other task uses this head, and the slices have the shapes of [`gated_delta_rule`].
    #[inline(always)]
    unsafe fn in_place<S: Simd, const VECTORS: usize>(&self) -> usize {
        let mut from = 0;
        let dv = self.p.value_dim;
        let width = VECTORS * S::LANES;
        while from + width <= dv {
            // SAFETY: the columns exist in every row of the state, which the pointer may reach, and this task alone uses them.
            unsafe { self.tokens::<S, VECTORS>(from, width, self.state.at(self.first_row(), from), dv) };
            from += width;
        }
        from
    }

    /// Columns from `from` on, a few at a time in memory that stays in the L1 cache.
    ///
    /// # Safety
    /// As for `in_place`.
    #[inline(always)]
    unsafe fn copied<S: Simd>(&self, from: usize) {
        const VECTORS: usize = 2;
        let DeltaRuleShape { key_dim: dk, value_dim: dv, .. } = *self.p;
        if from == dv {
            return;
        }
        let width = VECTORS * S::LANES;
        let mut columns = vec![0.0f32; dk * width];
        // SAFETY: the columns exist in every row of the state, and `columns` holds `dk` rows of `width`.
        unsafe {
            for from in (from..dv).step_by(width) {
                let count = width.min(dv - from);
                for (i, row) in columns.chunks_exact_mut(width).enumerate() {
                    row[..count].copy_from_slice(self.state.row(self.first_row() + i, from, count));
                }
                self.tokens::<S, VECTORS>(from, count, columns.as_mut_ptr(), width);
                for (i, row) in columns.chunks_exact(width).enumerate() {
                    self.state.row(self.first_row() + i, from, count).copy_from_slice(&row[..count]);
                }
            }
        }
    }

    fn first_row(&self) -> usize {
        self.head * self.p.key_dim
    }

    /// Takes `count` columns from `from` on through all tokens. They lie at `columns`, `stride` floats from row to row.
    ///
    /// # Safety
    /// As for `in_place`; every row has `VECTORS` vectors there, of which `count` floats are columns.
    #[inline(always)]
    unsafe fn tokens<S: Simd, const VECTORS: usize>(
        &self,
        from: usize,
        count: usize,
        columns: *mut f32,
        stride: usize,
    ) {
        let &DeltaRuleShape { key_heads, value_heads, key_dim: dk, value_dim: dv, .. } = self.p;
        let key_head = self.head / (value_heads / key_heads);
        if self.tokens.is_empty() {
            return;
        }
        // SAFETY: the caller's promise for `columns`; loads and stores of `values` stay inside its `VECTORS * LANES` floats; tokens and
        // heads have different parts of o, which has the shape that was checked.
        unsafe {
            let unit = |t: usize| {
                let at = (t * key_heads + key_head) * 2 * dk;
                self.unit[at..at + 2 * dk].split_at(dk)
            };
            let mut recalled = [S::splat(0.0); VECTORS];
            let mut out = [S::splat(0.0); VECTORS];
            let (q, k) = unit(self.tokens.start);
            for i in 0..dk {
                let (k, q) = (S::splat(k[i]), S::splat(q[i]));
                for c in 0..VECTORS {
                    let s = S::load(columns.add(i * stride + c * S::LANES));
                    recalled[c] = S::fma(s, k, recalled[c]);
                    out[c] = S::fma(s, q, out[c]);
                }
            }
            for t in self.tokens.clone() {
                let (q, k) = unit(t);
                let at = t * value_heads + self.head;
                let decay = S::splat(self.g[at].exp());
                let mut values = [[0.0f32; 16]; VECTORS];
                let values = &mut values.as_flattened_mut()[..VECTORS * S::LANES];
                values[..count].copy_from_slice(&self.v[at * dv + from..][..count]);
                let (beta, k_q) = (S::splat(self.beta[at]), S::splat(math::dot::<S>(k, q)));
                let mut d = [S::splat(0.0); VECTORS];
                for c in 0..VECTORS {
                    let v = S::load(values.as_ptr().add(c * S::LANES));
                    d[c] = S::mul(beta, S::sub(v, S::mul(decay, recalled[c])));
                    out[c] = S::fma(d[c], k_q, S::mul(decay, out[c]));
                    S::store(values.as_mut_ptr().add(c * S::LANES), out[c]);
                }
                self.o.row(at, from, count).copy_from_slice(&values[..count]);
                if t + 1 == self.tokens.end {
                    for i in 0..dk {
                        let k = S::splat(k[i]);
                        for c in 0..VECTORS {
                            let at = columns.add(i * stride + c * S::LANES);
                            S::store(at, S::fma(k, d[c], S::mul(decay, S::load(at))));
                        }
                    }
                    return;
                }
                // What the next token reads of a state is what this one writes.
                let (next_q, next_k) = unit(t + 1);
                recalled = [S::splat(0.0); VECTORS];
                out = [S::splat(0.0); VECTORS];
                for i in 0..dk {
                    let (k, next_k, next_q) = (S::splat(k[i]), S::splat(next_k[i]), S::splat(next_q[i]));
                    for c in 0..VECTORS {
                        let at = columns.add(i * stride + c * S::LANES);
                        let s = S::fma(k, d[c], S::mul(decay, S::load(at)));
                        S::store(at, s);
                        recalled[c] = S::fma(s, next_k, recalled[c]);
                        out[c] = S::fma(s, next_q, out[c]);
                    }
                }
            }
        }
    }
}
