//! Adaptive depth: how a token's halting probabilities turn into steps run and mixing weights.
//!
//! With gate values `h_k`, `p_k = h_k prod_{j<k}(1 - h_j)`; the last step has `h = 1`.

use burn::tensor::backend::Backend;
use burn::tensor::{Bool, DType, Int, Tensor, TensorData};

pub use emberlm_backends::types::{HaltMode, HaltRule, HaltWeights};

/// The state of `m` tokens between steps.
#[derive(Clone, Debug)]
pub struct HaltState<B: Backend> {
    /// `[m]`: the token has not stopped.
    pub active: Tensor<B, 1, Bool>,
    /// `[m]`: `prod (1 - h_j)` over the steps run.
    pub remaining: Tensor<B, 1>,
    /// `[m]`: `sum p_j` over the steps run.
    pub cumulative: Tensor<B, 1>,
    /// `[m]`: steps run.
    pub steps: Tensor<B, 1, Int>,
    /// `[m, h]`: the mixture so far.
    pub output: Tensor<B, 2>,
}

impl<B: Backend> HaltState<B> {
    /// `m` tokens of width `h` before the first step.
    pub fn new(m: usize, h: usize, device: &B::Device) -> Self {
        Self {
            active: Tensor::<B, 1, Int>::ones([m], device).bool(),
            remaining: Tensor::ones([m], (device, DType::F32)),
            cumulative: Tensor::zeros([m], (device, DType::F32)),
            steps: Tensor::zeros([m], device),
            output: Tensor::zeros([m, h], (device, DType::F32)),
        }
    }
}

/// What each token of a call follows, where they do not all follow the threshold of one [`HaltRule`].
#[derive(Clone, Debug)]
pub struct HaltRows<B: Backend> {
    /// `[m]` F32: in `[0, 1]`, or [`NEVER`](Self::NEVER).
    pub threshold: Tensor<B, 1>,
    /// `[m]`: the step, counted from 1, that is the token's last one: `h = 1` there, whatever its gate says.
    pub steps: Tensor<B, 1, Int>,
}

impl<B: Backend> HaltRows<B> {
    /// A threshold that no token reaches: it runs all of its steps.
    pub const NEVER: f32 = f32::MAX;

    /// Of one threshold and one number of steps per token.
    ///
    /// # Panics
    /// When there are not as many of the one as of the other.
    pub fn new(threshold: Vec<f32>, steps: Vec<i64>, device: &B::Device) -> Self {
        assert_eq!(threshold.len(), steps.len(), "a threshold and a number of steps per token");
        let m = steps.len();
        Self {
            threshold: Tensor::from_data(TensorData::new(threshold, [m]), (device, DType::F32)),
            steps: Tensor::from_data(TensorData::new(steps, [m]), device),
        }
    }
}

/// One step of `m` tokens of width `h`, and when they stop.
#[derive(Clone, Debug)]
pub struct HaltStep<'a, B: Backend> {
    /// `[m, h]`: the state of the step.
    pub state: Tensor<B, 2>,
    /// `[m]`: the gate before its sigmoid; none on the last step.
    pub logit: Option<Tensor<B, 1>>,
    /// When tokens stop, and how states are mixed.
    pub rule: HaltRule,
    /// A threshold and a last step for every token; those of the rule do not count then.
    pub rows: Option<&'a HaltRows<B>>,
}

/// What one step did to `m` tokens; zeros for tokens that had stopped before.
#[derive(Clone, Debug)]
pub struct HaltRecord<B: Backend> {
    /// `[m]`: `h_k`, 0 at the last step of a token; absent after the last step of all.
    pub probability: Option<Tensor<B, 1>>,
    /// `[m]`: the mixing weight of this step's state.
    pub weight: Tensor<B, 1>,
}
