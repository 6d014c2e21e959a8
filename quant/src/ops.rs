//! The operations that models are made of, as an extension of burn's [`Backend`].
//!
//! Each is one equation and has a default body in plain burn operations ([`crate::reference`]): that body is what kernels are
//! tested against, what trains under `Autodiff`, and what a backend without kernels runs.

use burn::module::Param;
use burn::tensor::backend::Backend;
use burn::tensor::{Bool, Int, Tensor};

use crate::activations::Activations;
use crate::halting::{HaltRecord, HaltState, HaltStep};
use crate::host::FloatType;
use crate::kv::{KeyValue, KvStore, Rotary};
use crate::layers::{Linear, SwiGlu};
use crate::packed::PackedWeight;
use crate::{Result, reference, spans};

/// The weight and the constants of an RMS norm.
#[derive(Clone, Debug)]
pub struct Norm<B: Backend> {
    /// `[h]`.
    pub weight: Tensor<B, 1>,
    /// Added to the mean of squares.
    pub eps: f64,
    /// The factor is `1 + weight`.
    pub unit_offset: bool,
}

/// Geometry of an [`cached_attention`](CompactBackend::cached_attention) call that its tensors do not show.
#[derive(Clone, Copy, Debug)]
pub struct AttentionShape {
    /// Tokens in the cache before the new ones.
    pub past: usize,
    /// Key and value heads; query head `h` reads `h / (heads / kv_heads)`.
    pub kv_heads: usize,
    /// Applied to every score, `head_dim^-1/2`.
    pub scale: f64,
}

/// What [attention](CompactBackend::cached_attention) reads of a cache.
#[derive(Debug)]
pub struct CachedKv<'a, B: Backend> {
    /// Keys, those of the new tokens included.
    pub k: KeyValue<'a, B>,
    /// Values, those of the new tokens included.
    pub v: KeyValue<'a, B>,
    /// What the tensors do not show.
    pub shape: AttentionShape,
}

// Derived ones would ask them of the backend.
impl<B: Backend> Clone for CachedKv<'_, B> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<B: Backend> Copy for CachedKv<'_, B> {}

/// The tokens of one sequence in [attention of several](CompactBackend::cached_attention_spans).
#[derive(Clone, Copy, Debug)]
pub struct AttentionSpan<'a, B: Backend> {
    /// How many.
    pub tokens: usize,
    /// Keys and values of the sequence, `[1, ..]`; their heads are as many for all.
    pub kv: CachedKv<'a, B>,
}

/// The new tokens of one sequence in [appends to several](CompactBackend::store_kv_spans).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NewTokens {
    /// How many.
    pub tokens: usize,
    /// The slot of the first one.
    pub at: usize,
}

/// A size of a model that the kernels of a device may have a limit on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ModelSize {
    /// Elements of a head of [attention](CompactBackend::cached_attention).
    AttentionHead(usize),
    /// Elements of a key of the [gated delta rule](CompactBackend::gated_delta_rule).
    DeltaKey(usize),
}

/// Inputs of the [causal convolution](CompactBackend::causal_conv1d_silu) beside what came before them.
#[derive(Clone, Debug)]
pub struct CausalConv<B: Backend> {
    /// `[b, s, c]`.
    pub u: Tensor<B, 3>,
    /// `[c, 1, w]`.
    pub weight: Tensor<B, 3>,
}

/// Inputs of the [gates of the delta rule](CompactBackend::delta_gates), for `hv` value heads.
#[derive(Clone, Debug)]
pub struct DeltaGates<B: Backend> {
    /// `[b, s, hv]`: the time step, before its bias and softplus.
    pub dt: Tensor<B, 3>,
    /// `[b, s, hv]`: the writing strength, before its sigmoid.
    pub b: Tensor<B, 3>,
    /// `[hv]`.
    pub dt_bias: Tensor<B, 1>,
    /// `[hv]`.
    pub a_log: Tensor<B, 1>,
}

/// Inputs of the [gated delta rule](CompactBackend::gated_delta_rule), for `hk` key and `hv` value heads.
#[derive(Clone, Debug)]
pub struct DeltaRule<B: Backend> {
    /// `[b, s, hk, dk]`, not yet normalised.
    pub q: Tensor<B, 4>,
    /// `[b, s, hk, dk]`, not yet normalised.
    pub k: Tensor<B, 4>,
    /// `[b, s, hv, dv]`.
    pub v: Tensor<B, 4>,
    /// `[b, s, hv]`: logarithm of the decay, at most 0.
    pub g: Tensor<B, 3>,
    /// `[b, s, hv]`: writing strength in `(0, 1)`.
    pub beta: Tensor<B, 3>,
}

/// A backend that runs compact models.
///
/// Every method has a default body; a backend overrides those where a kernel pays.
///
/// Activations (`x` and what else has its shape, queries, keys and values) are F32, or of another type that the backend
/// [`computes_with`](Self::computes_with); results have their type. Everything else is F32 always: embedded rows, biases,
/// weights of norms, cosines and sines, decays, recurrent and halting states, the tail of a convolution. So are all sums.
pub trait CompactBackend: Backend {
    /// Whether tensors made from host buffers keep reading them: then a mapped file must stay mapped and resident, and packed weights may be
    /// tensors of U8 instead of U32 words, where their bytes lie at odd places.
    const SHARES_HOST_MEMORY: bool = false;

    /// Up to how many of a row's largest numbers [`top_k`](Self::top_k) finds for less than reading the row back; 0 where the row
    /// is in the memory of the host.
    const TOP_K_ON_DEVICE: usize = 0;

    /// Whether attention reads a cache in parts as it is. Elsewhere it gathers them for every call: there a cache had better be in one.
    const READS_KV_PARTS: bool = false;

    /// Bytes of the largest buffer of a device, where something beside its memory limits it: a larger weight is held in parts.
    fn max_buffer(_device: &Self::Device) -> Option<usize> {
        None
    }

    /// Elements of the largest tensor or matrix that kernels count: a larger weight is held in parts.
    fn max_elements(_device: &Self::Device) -> Option<usize> {
        None
    }

    /// Bytes of memory that all tensors of a device share, where that is known.
    fn memory(_device: &Self::Device) -> Option<usize> {
        None
    }

    /// Why the operations cannot take a size of a model, as what the limit is; `None` where they can.
    fn limit(_device: &Self::Device, _size: ModelSize) -> Option<String> {
        None
    }

    /// The first id that is not below `rows`, where the host can tell without waiting for the device.
    fn first_unknown_id<const D: usize>(_ids: &Tensor<Self, D, Int>, _rows: usize) -> Option<i64> {
        None
    }

    /// The numbers of an F32 tensor, where it is in the memory of the host; none where they have to be read from a device. (Where other
    /// tensors share the buffer, burn-ndarray reads them one by one, which takes as long per row of logits as a layer.)
    fn host_floats<const D: usize>(_x: &Tensor<Self, D>) -> Option<Vec<f32>> {
        None
    }

    /// Whether a model may compute so.
    fn computes_with(_device: &Self::Device, activations: Activations) -> bool {
        activations == Activations::F32
    }

    /// The type of activations between operations in a model that computes so.
    fn between_operations(activations: Activations) -> FloatType {
        activations.float()
    }

    /// Runs `f`, a whole pass of a model, in this arithmetic and where its operations cost least to start: on the CPU inside the thread
    /// pool of the kernels, elsewhere on the calling thread.
    ///
    /// # Errors
    /// [`Error::Device`](crate::Error::Device) when the device is lost; what `f` has changed must not be used then.
    fn run_pass<T: Send>(_activations: Activations, f: impl FnOnce() -> T + Send) -> Result<T> {
        Ok(f())
    }

    /// The same numbers in another shape. (Where a backend's own reshape copies them, this does not.)
    ///
    /// # Panics
    /// When the shapes have different sizes.
    fn reshape<const D: usize, const E: usize>(x: Tensor<Self, D>, shape: [usize; E]) -> Tensor<Self, E> {
        x.reshape(shape)
    }

    /// `y = x Wᵀ + b`.
    ///
    /// # Shapes
    /// `x [m, k]`, `w [n, k]`, `bias [n]` `-> [m, n]`
    fn packed_linear(x: Tensor<Self, 2>, w: &PackedWeight<Self>, bias: Option<Tensor<Self, 1>>) -> Tensor<Self, 2> {
        reference::linear(x, w, bias)
    }

    /// [`packed_linear`](Self::packed_linear) of a head: logits, which are compared with each other. Where products round x, they round
    /// it finer here.
    ///
    /// # Shapes
    /// `x [m, k]`, `w [n, k]`, `bias [n]` `-> [m, n]`
    fn packed_head(x: Tensor<Self, 2>, w: &PackedWeight<Self>, bias: Option<Tensor<Self, 1>>) -> Tensor<Self, 2> {
        Self::packed_linear(x, w, bias)
    }

    /// Several [`packed_linear`](Self::packed_linear)s of the same `x`, in order.
    ///
    /// # Shapes
    /// `x [m, k]`, each layer `[n, k]` `-> [m, n]`
    fn packed_linears<const N: usize>(x: Tensor<Self, 2>, layers: [&Linear<Self>; N]) -> [Tensor<Self, 2>; N] {
        layers.map(|layer| Self::packed_linear(x.clone(), &layer.weight, layer.bias.as_ref().map(Param::val)))
    }

    /// Rows of a table; NaN for an id that has none.
    ///
    /// # Shapes
    /// `ids [m]`, `w [n, k]` `-> [m, k]`
    fn packed_embed(ids: Tensor<Self, 1, Int>, w: &PackedWeight<Self>) -> Tensor<Self, 2> {
        reference::embed(ids, w)
    }

    /// `down(silu(gate x) * up x)` for the rows whose `active` flag is set; the others are 0 and cost nothing where the
    /// backend can help it. The flags stay on the device.
    ///
    /// # Shapes
    /// `x [m, h]`, `active [m]` `-> [m, h]`
    fn swiglu_mlp(x: Tensor<Self, 2>, mlp: &SwiGlu<Self>, active: Option<Tensor<Self, 1, Bool>>) -> Tensor<Self, 2> {
        reference::swiglu_mlp(x, mlp, active)
    }

    /// `x * rsqrt(mean(x^2) + eps) * w`, or `* (1 + w)` with a unit offset, over the last dimension, in f32.
    ///
    /// # Shapes
    /// `x [m, h]` `-> [m, h]`
    fn rms_norm(x: Tensor<Self, 2>, norm: Norm<Self>) -> Tensor<Self, 2> {
        reference::rms_norm(x, norm)
    }

    /// The [`rms_norm`](Self::rms_norm)s of several tensors, in order.
    ///
    /// # Shapes
    /// each `[m, h]` `-> [m, h]`
    fn rms_norm_all<const N: usize>(tensors: [(Tensor<Self, 2>, Norm<Self>); N]) -> [Tensor<Self, 2>; N] {
        tensors.map(|(x, norm)| Self::rms_norm(x, norm))
    }

    /// The sum `x + y`, and its [`rms_norm`](Self::rms_norm).
    ///
    /// # Shapes
    /// `x, y [m, h]` `-> ([m, h], [m, h])`
    fn add_rms_norm(x: Tensor<Self, 2>, y: Tensor<Self, 2>, norm: Norm<Self>) -> (Tensor<Self, 2>, Tensor<Self, 2>) {
        reference::add_rms_norm(x, y, norm)
    }

    /// The [`rms_norm`](Self::rms_norm) of `x`, times `silu(z)`, in f32.
    ///
    /// # Shapes
    /// `x, z [m, h]` `-> [m, h]`
    fn rms_norm_gated(x: Tensor<Self, 2>, z: Tensor<Self, 2>, norm: Norm<Self>) -> Tensor<Self, 2> {
        reference::rms_norm_gated(x, z, norm)
    }

    /// Rotates the first `2 r` numbers of each head, the first `r` against the second.
    ///
    /// # Shapes
    /// `x [b, s, heads, head_dim]`, `rotary [s, r]` `-> x`
    fn rotary(x: Tensor<Self, 4>, rotary: &Rotary<Self>) -> Tensor<Self, 4> {
        reference::rotary(x, rotary)
    }

    /// [`rotary`](Self::rotary) of several tensors of the same tokens, in order.
    ///
    /// # Shapes
    /// each `x [b, s, heads, head_dim]`, `rotary [s, r]` `-> x`
    fn rotary_all<const N: usize>(x: [Tensor<Self, 4>; N], rotary: &Rotary<Self>) -> [Tensor<Self, 4>; N] {
        x.map(|x| Self::rotary(x, rotary))
    }

    /// Writes new tokens into a store from slot `at` on, in place where the store is not shared.
    ///
    /// F16 ends at 65504. Where a finite number of `new` is too large for it, the store that comes back is F32; a GPU, which
    /// would have to wait for the numbers to know, stores NaN instead, so that logits are never silently wrong.
    ///
    /// # Shapes
    /// `new [b, s, heads, width]`, `store [b, heads, capacity, width]`
    ///
    /// # Panics
    /// When `at + s` exceeds the capacity.
    fn store_kv(store: KvStore<Self>, new: Tensor<Self, 4>, at: usize) -> KvStore<Self> {
        reference::store_kv(store, new, at)
    }

    /// [`store_kv`](Self::store_kv) of the keys `new[0]` and values `new[1]` of several sequences, whose tokens follow one another:
    /// those of `spans[i]` into the stores of keys and values `stores[i]`.
    ///
    /// # Shapes
    /// each of `new [1, n, heads, width]`, each of `stores [1, heads, capacity, width]`
    ///
    /// # Panics
    /// As there.
    fn store_kv_spans(
        stores: Vec<[KvStore<Self>; 2]>,
        new: [Tensor<Self, 4>; 2],
        spans: &[NewTokens],
    ) -> Vec<[KvStore<Self>; 2]> {
        store_kv_one_by_one(stores, new, spans)
    }

    /// Causal grouped-query attention of `s` new tokens over the `past + s` of the cache, softmax in f32.
    ///
    /// # Shapes
    /// `q [b, s, heads, head_dim] -> [b, s, heads, head_dim]`
    fn cached_attention(q: Tensor<Self, 4>, kv: CachedKv<'_, Self>) -> Tensor<Self, 4> {
        reference::attention(q, kv)
    }

    /// [`cached_attention`](Self::cached_attention) of several sequences, whose tokens follow one another.
    ///
    /// # Shapes
    /// `q [1, n, heads, head_dim] -> [1, n, heads, head_dim]`, `n` the tokens of all spans
    fn cached_attention_spans(q: Tensor<Self, 4>, spans: &[AttentionSpan<'_, Self>]) -> Tensor<Self, 4> {
        cached_attention_one_by_one(q, spans)
    }

    /// `x * sigmoid(gate)`.
    ///
    /// # Shapes
    /// `x, gate [m, n]` `-> [m, n]`
    fn sigmoid_gate(x: Tensor<Self, 2>, gate: Tensor<Self, 2>) -> Tensor<Self, 2> {
        reference::sigmoid_gate(x, gate)
    }

    /// Depthwise causal convolution and SiLU: `y_t = silu(sum_j W[:, j] u_{t-(w-1)+j})`. Returns `y` and the last `w - 1`
    /// inputs, oldest first.
    ///
    /// # Shapes
    /// `tail [b, w - 1, c]` `-> ([b, s, c], [b, w - 1, c])`
    fn causal_conv1d_silu(conv: CausalConv<Self>, tail: Tensor<Self, 3>) -> (Tensor<Self, 3>, Tensor<Self, 3>) {
        reference::causal_conv1d_silu(conv, tail)
    }

    /// [`causal_conv1d_silu`](Self::causal_conv1d_silu) of several sequences, whose tokens follow one another: `tokens[i]` of the one
    /// with `tails[i]`.
    ///
    /// # Shapes
    /// Of `conv` as there with a batch of 1, each of `tails [1, w - 1, c]` `-> ([1, n, c], tails)`
    fn causal_conv1d_silu_spans(
        conv: CausalConv<Self>,
        tokens: &[usize],
        tails: Vec<Tensor<Self, 3>>,
    ) -> (Tensor<Self, 3>, Vec<Tensor<Self, 3>>) {
        let CausalConv { u, weight } = conv;
        let convs = spans::split(u, tokens).into_iter().map(|u| CausalConv { u, weight: weight.clone() });
        let (y, tails) = convs.zip(tails).map(|(conv, tail)| Self::causal_conv1d_silu(conv, tail)).unzip();
        (spans::join(y), tails)
    }

    /// Decay and writing strength of the [gated delta rule](Self::gated_delta_rule): `g = -e^a_log softplus(dt + dt_bias)` and
    /// `beta = sigmoid(b)`.
    ///
    /// # Shapes
    /// `-> ([b, s, hv], [b, s, hv])`
    fn delta_gates(gates: DeltaGates<Self>) -> (Tensor<Self, 3>, Tensor<Self, 3>) {
        reference::delta_gates(gates)
    }

    /// Gated DeltaNet (linear attention of Qwen3.5). With q, k l2-normed and q scaled by `dk^-1/2`, per token
    /// `S <- e^g S; d = beta (v - Sᵀ k); S <- S + k dᵀ; o = Sᵀ q`. Returns `o` and the new state.
    ///
    /// # Shapes
    /// `state [b, hv, dk, dv]` `-> ([b, s, hv, dv], state)`
    fn gated_delta_rule(rule: DeltaRule<Self>, state: Tensor<Self, 4>) -> (Tensor<Self, 4>, Tensor<Self, 4>) {
        reference::gated_delta_rule(rule, state)
    }

    /// [`gated_delta_rule`](Self::gated_delta_rule) of several sequences, whose tokens follow one another: `tokens[i]` of the one with
    /// `states[i]`.
    ///
    /// # Shapes
    /// Of `rule` as there with a batch of 1, each of `states [1, hv, dk, dv]` `-> ([1, n, hv, dv], states)`
    fn gated_delta_rule_spans(
        rule: DeltaRule<Self>,
        tokens: &[usize],
        states: Vec<Tensor<Self, 4>>,
    ) -> (Tensor<Self, 4>, Vec<Tensor<Self, 4>>) {
        let [q, k, v] = [rule.q, rule.k, rule.v].map(|t| spans::split(t, tokens));
        let [g, beta] = [rule.g, rule.beta].map(|t| spans::split(t, tokens));
        let rules = q.into_iter().zip(k).zip(v).zip(g.into_iter().zip(beta));
        let rules = rules.map(|(((q, k), v), (g, beta))| DeltaRule { q, k, v, g, beta });
        let (o, states) = rules.zip(states).map(|(rule, state)| Self::gated_delta_rule(rule, state)).unzip();
        (spans::join(o), states)
    }

    /// `m` tokens of width `h` before their first step.
    fn start_halting(m: usize, h: usize, device: &Self::Device) -> HaltState<Self> {
        HaltState::new(m, h, device)
    }

    /// Mixes the state of one step into the output and decides which tokens go on.
    fn halt_step(state: HaltState<Self>, step: HaltStep<'_, Self>) -> (HaltState<Self>, HaltRecord<Self>) {
        reference::halt_step(state, step)
    }

    /// The `k` largest numbers of each row, the largest first, and their columns. Among equals the lowest column comes first;
    /// NaN counts as larger than infinity.
    ///
    /// # Shapes
    /// `x [m, n]`, `1 <= k <= n` `-> ([m, k] F32, [m, k])`
    fn top_k(x: Tensor<Self, 2>, k: usize) -> (Tensor<Self, 2>, Tensor<Self, 2, Int>) {
        reference::top_k(x, k)
    }
}

/// See [`CompactBackend::store_kv_spans`]: one sequence after the other.
pub(crate) fn store_kv_one_by_one<B: CompactBackend>(
    stores: Vec<[KvStore<B>; 2]>,
    new: [Tensor<B, 4>; 2],
    of: &[NewTokens],
) -> Vec<[KvStore<B>; 2]> {
    let tokens: Vec<usize> = of.iter().map(|span| span.tokens).collect();
    let [k, v] = new.map(|new| spans::split(new, &tokens));
    let new = k.into_iter().zip(v).zip(of);
    let stored = stores.into_iter().zip(new).map(|([k_store, v_store], ((k, v), span))| {
        [B::store_kv(k_store, k, span.at), B::store_kv(v_store, v, span.at)]
    });
    stored.collect()
}

/// See [`CompactBackend::cached_attention_spans`]: one sequence after the other.
pub(crate) fn cached_attention_one_by_one<B: CompactBackend>(
    q: Tensor<B, 4>,
    of: &[AttentionSpan<'_, B>],
) -> Tensor<B, 4> {
    let tokens: Vec<usize> = of.iter().map(|span| span.tokens).collect();
    let queries = spans::split(q, &tokens).into_iter().zip(of);
    spans::join(queries.map(|(q, span)| B::cached_attention(q, span.kv)).collect())
}
