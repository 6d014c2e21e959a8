//! One step of adaptive depth.

use burn::tensor::backend::DeviceOps;
use burn::tensor::{Bool, DType, Tensor};
use burn_cubecl::CubeRuntime;
use burn_cubecl::tensor::CubeTensor;
use emberlm_backends::cube;

use super::tensor::{Cube, bool_tensor, buffer, flags, float_tensor, floats, int_tensor, ints, own, unset};
use crate::halting::{HaltRecord, HaltState, HaltStep};

pub(super) fn start_halting<R: CubeRuntime>(m: usize, h: usize, device: &R::Device) -> HaltState<Cube<R>>
where
    R::Device: DeviceOps,
{
    // Nothing is launched for tensors that are not set.
    let active = Tensor::<Cube<R>, 1, Bool>::empty([m], device);
    let flag_type = active.dtype();
    let active = flags(active);
    let [remaining, cumulative] = [(); 2].map(|()| unset(&active, [m], DType::F32));
    let (steps, output) = (unset(&active, [m], DType::I32), unset(&active, [m, h], DType::F32));
    let state = Unwrapped { active, flag_type, remaining, cumulative, steps, output };
    cube::start_halting(&state.active.client, &state.buffers(), m, h);
    state.wrap()
}

/// The tensors of a [`HaltState`], row-major, the flags as U32.
struct Unwrapped<R: CubeRuntime> {
    active: CubeTensor<R>,
    /// What burn takes the flags for.
    flag_type: DType,
    remaining: CubeTensor<R>,
    cumulative: CubeTensor<R>,
    steps: CubeTensor<R>,
    output: CubeTensor<R>,
}

impl<R: CubeRuntime> Unwrapped<R>
where
    R::Device: DeviceOps,
{
    fn buffers(&self) -> cube::HaltState {
        cube::HaltState {
            active: buffer(&self.active),
            remaining: buffer(&self.remaining),
            cumulative: buffer(&self.cumulative),
            steps: buffer(&self.steps),
            output: buffer(&self.output),
        }
    }

    fn wrap(self) -> HaltState<Cube<R>> {
        HaltState {
            active: bool_tensor(self.active, self.flag_type),
            remaining: float_tensor(self.remaining),
            cumulative: float_tensor(self.cumulative),
            steps: int_tensor(self.steps),
            output: float_tensor(self.output),
        }
    }
}

pub(super) fn halt_step<R: CubeRuntime>(
    state: HaltState<Cube<R>>,
    step: HaltStep<'_, Cube<R>>,
) -> (HaltState<Cube<R>>, HaltRecord<Cube<R>>)
where
    R::Device: DeviceOps,
{
    let HaltStep { state: step_state, logit, rule, rows } = step;
    let [m, h] = step_state.dims();
    let flag_type = state.active.dtype();
    let active = own(flags(state.active));
    let [remaining, cumulative] = [state.remaining, state.cumulative].map(|t| own(floats(t)));
    let (steps, output) = (own(ints(state.steps)), own(floats(state.output)));
    let (step_state, logit) = (floats(step_state), logit.map(floats));
    let weight = unset(&step_state, [m], DType::F32);
    let probability = logit.is_some().then(|| unset(&step_state, [m], DType::F32));

    let rows = rows.map(|rows| cube::HaltRows {
        threshold: buffer(&floats(rows.threshold.clone())),
        steps: buffer(&ints(rows.steps.clone())),
    });
    let gate = match (&logit, &probability) {
        (Some(logit), Some(probability)) => Some((buffer(logit), buffer(probability))),
        _ => None,
    };
    let state = Unwrapped { active, flag_type, remaining, cumulative, steps, output };
    cube::halt_step(
        &step_state.client,
        &state.buffers(),
        &buffer(&step_state),
        gate.as_ref().map(|(logit, probability)| cube::HaltGate { logit, probability, rows: rows.as_ref() }),
        &buffer(&weight),
        cube::HaltStep { m, h, rule },
    );
    (state.wrap(), HaltRecord { probability: probability.map(float_tensor), weight: float_tensor(weight) })
}
