//! Gates: small vectors, for which a launch costs more than the arithmetic.

use cubecl::ir::StorageType;
use cubecl::prelude::*;

use super::launch::{Buffer, UNITS, f32_type, grid_of_units};

/// `y = x * sigmoid(gate)`.
///
/// # Shapes
/// `x, gate, y [n]` of one type.
///
/// # Panics
/// If a buffer does not have its shape and type.
pub fn sigmoid_gate<R: Runtime>(client: &ComputeClient<R>, x: &Buffer, gate: &Buffer, y: &Buffer) {
    let len = x.len;
    for (name, buffer) in [("gate", gate), ("y", y)] {
        buffer.check(name, &[len]);
        buffer.check_type(name, x.dtype);
    }
    if len == 0 {
        return;
    }
    // SAFETY: the lengths were checked, and the kernel stays inside them.
    unsafe {
        sigmoid_kernel::launch_unchecked::<R>(
            client,
            grid_of_units(len),
            CubeDim::new_1d(UNITS),
            x.arg(),
            gate.arg(),
            y.arg(),
            len as u32,
            x.dtype,
        );
    }
}

#[cube(launch_unchecked)]
fn sigmoid_kernel<F: Float>(
    x: &Array<F>,
    gate: &Array<F>,
    y: &mut Array<F>,
    len: u32,
    #[define(F)] _type: StorageType,
) {
    let i = ABSOLUTE_POS as u32;
    if i < len {
        let at = i as usize;
        let open = 1.0 / (1.0 + f32::exp(-f32::cast_from(gate[at])));
        y[at] = F::cast_from(f32::cast_from(x[at]) * open);
    }
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
