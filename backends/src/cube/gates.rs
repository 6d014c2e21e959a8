//! Gates and other functions of single numbers: small vectors, for which a launch costs more than the arithmetic.

use cubecl::ir::StorageType;
use cubecl::prelude::*;

use super::launch::{Buffer, UNITS, f32_type, grid_of_units};
use crate::check::elements;
use crate::types::CodeActivation;

/// `y = x * sigmoid(gate)`.
///
/// # Shapes
/// `x, gate, y [m, n]` of one type; `gate_stride` are the elements from a row of the gate to the next, and it ends with the last row.
///
/// # Panics
/// If a buffer does not have its shape and type.
pub fn sigmoid_gate<R: Runtime>(
    client: &ComputeClient<R>,
    x: &Buffer,
    gate: &Buffer,
    y: &Buffer,
    [m, n]: [usize; 2],
    gate_stride: usize,
) {
    x.check("x", &[m, n]);
    y.check("y", &[m, n]);
    y.check_type("y", x.dtype);
    gate.check_type("gate", x.dtype);
    if x.len == 0 {
        return;
    }
    let end = elements("gate", &[m - 1, gate_stride]).checked_add(n);
    assert!(gate_stride >= n && end == Some(gate.len), "the gate has {} elements, not {end:?}", gate.len);
    // SAFETY: the lengths were checked, and the kernel stays inside them.
    unsafe {
        sigmoid_kernel::launch_unchecked::<R>(
            client,
            grid_of_units(x.len),
            CubeDim::new_1d(UNITS),
            x.arg(),
            gate.arg(),
            y.arg(),
            x.len as u32,
            n as u32,
            gate_stride as u32,
            x.dtype,
        );
    }
}

#[cube(launch_unchecked)]
#[allow(clippy::too_many_arguments)]
fn sigmoid_kernel<F: Float>(
    x: &Array<F>,
    gate: &Array<F>,
    y: &mut Array<F>,
    len: u32,
    n: u32,
    gate_stride: u32,
    #[define(F)] _type: StorageType,
) {
    let i = ABSOLUTE_POS as u32;
    if i < len {
        let at = i as usize;
        let gate = f32::cast_from(gate[(i / n * gate_stride + i % n) as usize]);
        let open = 1.0 / (1.0 + f32::exp(-gate));
        y[at] = F::cast_from(f32::cast_from(x[at]) * open);
    }
}

/// `y = f(x)`.
///
/// # Shapes
/// `x, y [n]` of one type
///
/// # Panics
/// If a buffer does not have its shape and type.
pub fn activate<R: Runtime>(client: &ComputeClient<R>, x: &Buffer, f: CodeActivation, y: &Buffer) {
    y.check("y", &[x.len]);
    y.check_type("y", x.dtype);
    if x.len == 0 {
        return;
    }
    // SAFETY: the lengths were checked, and the kernel stays inside them.
    unsafe {
        activation_kernel::launch_unchecked::<R>(
            client,
            grid_of_units(x.len),
            CubeDim::new_1d(UNITS),
            x.arg(),
            y.arg(),
            x.len as u32,
            f,
            x.dtype,
        );
    }
}

#[cube(launch_unchecked)]
fn activation_kernel<F: Float>(
    x: &Array<F>,
    y: &mut Array<F>,
    len: u32,
    #[comptime] f: CodeActivation,
    #[define(F)] _type: StorageType,
) {
    let i = ABSOLUTE_POS as u32;
    if i < len {
        let x = f32::cast_from(x[i as usize]);
        let value = match comptime!(f) {
            CodeActivation::Gelu => 0.5 * x * (1.0 + erf::<f32>(x * comptime!(std::f32::consts::FRAC_1_SQRT_2))),
            // The hyperbolic tangent by an exponential, which some devices' own overflows in.
            CodeActivation::GeluTanh => {
                let u = comptime!((2.0f32 / std::f32::consts::PI).sqrt()) * (x + 0.044715 * x * x * x);
                x / (1.0 + f32::exp(-2.0 * u))
            }
            CodeActivation::Silu => x / (1.0 + f32::exp(-x)),
            CodeActivation::Relu => max(x, 0.0),
        };
        y[i as usize] = F::cast_from(value);
    }
}

/// By way of a type parameter: the standard library is about to have one for `f32`.
#[cube]
fn erf<F: Float>(x: F) -> F {
    F::erf(x)
}

/// `g = -e^a_log softplus(dt + dt_bias)`, `beta = sigmoid(b)`.
///
/// # Shapes
/// `dt, b [m, heads]` of one type, `dt_bias, a_log [heads]` F32, `g, beta [m, heads]` F32
///
/// # Panics
/// If a buffer does not have its shape and type.
#[allow(clippy::too_many_arguments)]
pub fn delta_gates<R: Runtime>(
    client: &ComputeClient<R>,
    dt: &Buffer,
    b: &Buffer,
    dt_bias: &Buffer,
    a_log: &Buffer,
    g: &Buffer,
    beta: &Buffer,
    heads: usize,
) {
    let len = dt.len;
    [("b", b), ("g", g), ("beta", beta)].iter().for_each(|(name, buffer)| buffer.check(name, &[len]));
    let floats = [("dt_bias", dt_bias), ("a_log", a_log), ("g", g), ("beta", beta)];
    floats.iter().for_each(|(name, buffer)| buffer.check_type(name, f32_type()));
    dt_bias.check("dt_bias", &[heads]);
    a_log.check("a_log", &[heads]);
    b.check_type("b", dt.dtype);
    assert!(len == 0 || (heads > 0 && len % heads == 0), "dt has {len} elements, not [m, {heads}]");
    if len == 0 {
        return;
    }
    // SAFETY: the lengths were checked, and the kernel stays inside them.
    unsafe {
        gates_kernel::launch_unchecked::<R>(
            client,
            grid_of_units(len),
            CubeDim::new_1d(UNITS),
            dt.arg(),
            b.arg(),
            dt_bias.arg(),
            a_log.arg(),
            g.arg(),
            beta.arg(),
            len as u32,
            heads as u32,
            dt.dtype,
        );
    }
}

#[cube(launch_unchecked)]
#[allow(clippy::too_many_arguments)]
fn gates_kernel<F: Float>(
    dt: &Array<F>,
    b: &Array<F>,
    dt_bias: &Array<f32>,
    a_log: &Array<f32>,
    g: &mut Array<f32>,
    beta: &mut Array<f32>,
    len: u32,
    heads: u32,
    #[define(F)] _dt_type: StorageType,
) {
    let i = ABSOLUTE_POS as u32;
    if i < len {
        let head = (i % heads) as usize;
        let at = i as usize;
        let x = f32::cast_from(dt[at]) + dt_bias[head];
        // log(1 + e^x), without an exponential that overflows.
        let softplus = max(x, 0.0) + f32::ln(1.0 + f32::exp(-f32::abs(x)));
        g[at] = -f32::exp(a_log[head]) * softplus;
        beta[at] = 1.0 / (1.0 + f32::exp(-f32::cast_from(b[at])));
    }
}
