//! The operations that processors and GPUs have kernels for.

/// Overrides operations of [`CompactBackend`](crate::CompactBackend) with the functions of the same name in a module.
macro_rules! kernel_operations {
    ($functions:ident) => {
        fn packed_linear(x: Tensor<Self, 2>, w: &PackedWeight<Self>, bias: Option<Tensor<Self, 1>>) -> Tensor<Self, 2> {
            $functions::packed_linear(x, w, bias)
        }

        fn packed_linears<const N: usize>(x: Tensor<Self, 2>, layers: [&Linear<Self>; N]) -> [Tensor<Self, 2>; N] {
            $functions::packed_linears(x, layers)
        }

        fn packed_embed(ids: Tensor<Self, 1, Int>, w: &PackedWeight<Self>) -> Tensor<Self, 2> {
            $functions::packed_embed(ids, w)
        }

        fn swiglu_mlp(
            x: Tensor<Self, 2>,
            mlp: &SwiGlu<Self>,
            active: Option<Tensor<Self, 1, Bool>>,
        ) -> Tensor<Self, 2> {
            $functions::swiglu_mlp(x, mlp, active)
        }

        fn rms_norm(x: Tensor<Self, 2>, norm: Norm<Self>) -> Tensor<Self, 2> {
            $functions::rms_norm(x, norm)
        }

        fn add_rms_norm(
            x: Tensor<Self, 2>,
            y: Tensor<Self, 2>,
            norm: Norm<Self>,
        ) -> (Tensor<Self, 2>, Tensor<Self, 2>) {
            $functions::add_rms_norm(x, y, norm)
        }

        fn rms_norm_gated(x: Tensor<Self, 2>, z: Tensor<Self, 2>, norm: Norm<Self>) -> Tensor<Self, 2> {
            $functions::rms_norm_gated(x, z, norm)
        }

        fn sigmoid_gate(x: Tensor<Self, 2>, gate: Tensor<Self, 2>) -> Tensor<Self, 2> {
            $functions::sigmoid_gate(x, gate)
        }

        fn rotary(x: Tensor<Self, 4>, rotary: &Rotary<Self>) -> Tensor<Self, 4> {
            $functions::rotary(x, rotary)
        }

        fn store_kv(store: KvStore<Self>, new: Tensor<Self, 4>, at: usize) -> KvStore<Self> {
            $functions::store_kv(store, new, at)
        }

        fn cached_attention(q: Tensor<Self, 4>, kv: CachedKv<'_, Self>) -> Tensor<Self, 4> {
            $functions::cached_attention(q, kv)
        }

        fn cached_attention_spans(q: Tensor<Self, 4>, spans: &[AttentionSpan<'_, Self>]) -> Tensor<Self, 4> {
            $functions::cached_attention_spans(q, spans)
        }

        fn causal_conv1d_silu(conv: CausalConv<Self>, tail: Tensor<Self, 3>) -> (Tensor<Self, 3>, Tensor<Self, 3>) {
            $functions::causal_conv1d_silu(conv, tail)
        }

        fn causal_conv1d_silu_spans(
            conv: CausalConv<Self>,
            tokens: &[usize],
            tails: Vec<Tensor<Self, 3>>,
        ) -> (Tensor<Self, 3>, Vec<Tensor<Self, 3>>) {
            $functions::causal_conv1d_silu_spans(conv, tokens, tails)
        }

        fn delta_gates(gates: DeltaGates<Self>) -> (Tensor<Self, 3>, Tensor<Self, 3>) {
            $functions::delta_gates(gates)
        }

        fn gated_delta_rule(rule: DeltaRule<Self>, state: Tensor<Self, 4>) -> (Tensor<Self, 4>, Tensor<Self, 4>) {
            $functions::gated_delta_rule(rule, state)
        }

        fn gated_delta_rule_spans(
            rule: DeltaRule<Self>,
            tokens: &[usize],
            states: Vec<Tensor<Self, 4>>,
        ) -> (Tensor<Self, 4>, Vec<Tensor<Self, 4>>) {
            $functions::gated_delta_rule_spans(rule, tokens, states)
        }

        fn start_halting(m: usize, h: usize, device: &Self::Device) -> HaltState<Self> {
            $functions::start_halting(m, h, device)
        }

        fn halt_step(state: HaltState<Self>, step: HaltStep<'_, Self>) -> (HaltState<Self>, HaltRecord<Self>) {
            $functions::halt_step(state, step)
        }
    };
}
pub(crate) use kernel_operations;
