//! RMS norms, in f32.

use cubecl::ir::StorageType;
use cubecl::prelude::*;

use super::instructions::plane_size;
use super::launch::{Buffer, UNITS, grid};
use super::reduce::{Lanes, sum_of_lanes};
use super::spans::{buffers, is_span, numbers, of_span, set, span_at, spans_per_launch, starts};
use crate::check::elements;
use crate::types::RmsNorm;

/// `y = x * rsqrt(mean(x²) + eps) * w` per row, or `* (1 + w)` with `unit_offset`.
///
/// # Shapes
/// `x, y [m, h]` of one type, `weight [h]`.
///
/// # Panics
/// If a buffer does not have its shape and type.
pub fn rms_norm<R: Runtime>(client: &ComputeClient<R>, x: &Buffer, weight: &Buffer, y: &Buffer, p: RmsNorm) {
    rms_norm_all(client, &[NormRows { x, m: p.m, stride: p.h, weight, y }], p);
}

/// One of several tensors with rows of one length.
#[derive(Clone, Copy, Debug)]
pub struct NormRows<'a> {
    /// `[m, h]`, ending with the last element of the last row.
    pub x: &'a Buffer,
    /// Its own rows, whatever the [`RmsNorm`] says.
    pub m: usize,
    /// Elements from a row of `x` to the next.
    pub stride: usize,
    /// `[h]`
    pub weight: &'a Buffer,
    /// `[m, h]`
    pub y: &'a Buffer,
}

impl NormRows<'_> {
    fn check(&self, h: usize) {
        let Self { x, m, stride, weight, y } = *self;
        if stride == h || m == 0 {
            x.check("x", &[m, h]);
        } else {
            let end = elements("x", &[m - 1, stride]).checked_add(h);
            assert!(stride > h && end == Some(x.len), "x has {} elements, not {end:?} of rows of {h}", x.len);
        }
        y.check("y", &[m, h]);
        y.check_type("y", x.dtype);
        weight.check("weight", &[h]);
    }
}

/// [`rms_norm`] of several tensors, in one launch for as many as the device has arguments for.
///
/// # Shapes
/// Every `x` and `y` of one type, every `weight` of one type.
///
/// # Panics
/// If a buffer does not have its shape and type.
pub fn rms_norm_all<R: Runtime>(client: &ComputeClient<R>, tensors: &[NormRows<'_>], p: RmsNorm) {
    let Some(&NormRows { x, weight, .. }) = tensors.first() else { return };
    for tensor in tensors {
        tensor.check(p.h);
        tensor.x.check_type("x", x.dtype);
        tensor.weight.check_type("weight", weight.dtype);
    }
    let tensors: Vec<_> = tensors.iter().filter(|tensor| !tensor.x.is_empty()).collect();
    for tensors in tensors.chunks(spans_per_launch(client, 3, 0)) {
        let m = elements("rows", &[tensors.iter().fold(0, |sum, tensor| sum.saturating_add(tensor.m))]);
        let whole = tensors.iter().all(|tensor| tensor.stride.is_multiple_of(4));
        let Geometry { cubes, lanes, plane, vector, h } = Geometry::of(client, m, p.h, whole);
        let rows = RowsLaunch::new(
            starts(tensors.iter().map(|tensor| tensor.m)),
            numbers(tensors.iter().map(|tensor| tensor.stride / vector)),
            m as u32,
        );
        // SAFETY: the lengths were checked, and the kernel stays inside them.
        unsafe {
            rows_kernel::launch_unchecked::<R>(
                client,
                cubes,
                CubeDim::new_1d(UNITS),
                vector,
                buffers(tensors.iter().map(|tensor| tensor.x)),
                buffers(tensors.iter().map(|tensor| tensor.weight)),
                buffers(tensors.iter().map(|tensor| tensor.y)),
                rows,
                h,
                1.0 / p.h as f32,
                p.eps,
                if p.unit_offset { 1.0 } else { 0.0 },
                lanes,
                plane,
                vector as u32,
                x.dtype,
                weight.dtype,
            );
        }
    }
}

/// `y = x * rsqrt(mean(x²) + eps) * w * silu(z)` per row.
///
/// # Shapes
/// `x, z, y [m, h]` of one type, `weight [h]`.
///
/// # Panics
/// If a buffer does not have its shape and type.
pub fn rms_norm_gated<R: Runtime>(
    client: &ComputeClient<R>,
    x: &Buffer,
    z: &Buffer,
    weight: &Buffer,
    y: &Buffer,
    p: RmsNorm,
) {
    launch(client, x, Beside::Gate(z), weight, y, p);
}

/// `sum = x + z`, and `y` its [`rms_norm`].
///
/// # Shapes
/// `x, z, sum, y [m, h]` of one type, `weight [h]`.
///
/// # Panics
/// If a buffer does not have its shape and type.
pub fn add_rms_norm<R: Runtime>(
    client: &ComputeClient<R>,
    x: &Buffer,
    z: &Buffer,
    weight: &Buffer,
    sum: &Buffer,
    y: &Buffer,
    p: RmsNorm,
) {
    launch(client, x, Beside::Summand { z, sum }, weight, y, p);
}

/// What a norm takes beside its rows, of their shape and type.
#[derive(Clone, Copy)]
enum Beside<'a> {
    /// The result is multiplied by its silu.
    Gate(&'a Buffer),
    /// The norm is that of a sum, which is written too.
    Summand { z: &'a Buffer, sum: &'a Buffer },
}

fn launch<R: Runtime>(
    client: &ComputeClient<R>,
    x: &Buffer,
    beside: Beside<'_>,
    weight: &Buffer,
    y: &Buffer,
    p: RmsNorm,
) {
    let (gate, summand, sum) = match beside {
        Beside::Gate(z) => (Some(z), None, None),
        Beside::Summand { z, sum } => (None, Some(z), Some(sum)),
    };
    for (name, buffer) in [("z", gate.or(summand)), ("sum", sum)] {
        if let Some(buffer) = buffer {
            buffer.check(name, &[p.m, p.h]);
            buffer.check_type(name, x.dtype);
        }
    }
    let RmsNorm { m, h, .. } = p;
    x.check("x", &[m, h]);
    y.check("y", &[m, h]);
    y.check_type("y", x.dtype);
    weight.check("weight", &[h]);
    if x.len == 0 {
        return;
    }
    let Geometry { cubes, lanes, plane, vector, h } = Geometry::of(client, m, h, true);
    // SAFETY: the lengths were checked, and the kernel stays inside them.
    unsafe {
        norm_kernel::launch_unchecked::<R>(
            client,
            cubes,
            CubeDim::new_1d(UNITS),
            vector,
            x.arg(),
            gate.map(Buffer::arg).into(),
            summand.map(Buffer::arg).into(),
            weight.arg(),
            sum.map(Buffer::arg).into(),
            y.arg(),
            p.m as u32,
            h,
            1.0 / p.h as f32,
            p.eps,
            if p.unit_offset { 1.0 } else { 0.0 },
            lanes,
            plane,
            vector as u32,
            x.dtype,
            weight.dtype,
        );
    }
}

/// How rows are laid on units.
struct Geometry {
    cubes: CubeCount,
    /// Units that take a row.
    lanes: u32,
    plane: u32,
    /// Elements of a vector, and vectors of a row.
    vector: usize,
    h: u32,
}

impl Geometry {
    /// Of `m` rows of `h` elements, which begin at a vector where `h` is whole vectors and `whole` says so.
    fn of<R: Runtime>(client: &ComputeClient<R>, m: usize, h: usize, whole: bool) -> Geometry {
        let plane = plane_size(client);
        // Heads are short and many: then a plane takes a row.
        let lanes = if h <= 256 { plane.max(32) } else { UNITS };
        // Few units take a row: what counts is how often each of them waits for memory.
        let vector = if h.is_multiple_of(4) && whole { 4 } else { 1 };
        Geometry { cubes: grid(m.div_ceil((UNITS / lanes) as usize)), lanes, plane, vector, h: (h / vector) as u32 }
    }
}

/// `lanes` units take a row of `h` vectors. The norm of a sum is that of the sum as it is stored.
#[cube(launch_unchecked)]
#[allow(clippy::too_many_arguments)]
fn norm_kernel<F: Float, W: Float, N: Size>(
    x: &Array<Vector<F, N>>,
    gate: &ComptimeOption<Array<Vector<F, N>>>,
    summand: &ComptimeOption<Array<Vector<F, N>>>,
    weight: &Array<Vector<W, N>>,
    sum: &mut ComptimeOption<Array<Vector<F, N>>>,
    y: &mut Array<Vector<F, N>>,
    m: u32,
    h: u32,
    share: f32,
    eps: f32,
    offset: f32,
    #[comptime] lanes: u32,
    #[comptime] plane: u32,
    #[comptime] vector: u32,
    #[define(F)] _x_type: StorageType,
    #[define(W)] _weight_type: StorageType,
) {
    let mut scratch = SharedMemory::<f32>::new(UNITS as usize);
    let row = CUBE_POS as u32 * comptime!(UNITS / lanes) + UNIT_POS / lanes;
    let lane = UNIT_POS % lanes;
    let start = row * h;
    // A row past the last has no elements: its units only take part in the sum.
    let end = select(row < m, h, 0u32);

    let mut squares = 0.0f32;
    let mut i = lane;
    while i < end {
        let at = (start + i) as usize;
        #[comptime]
        let values = match summand {
            ComptimeOption::Some(summand) => {
                Vector::cast_from(Vector::<f32, N>::cast_from(x[at]) + Vector::<f32, N>::cast_from(summand[at]))
            }
            ComptimeOption::None => x[at],
        };
        #[comptime]
        if let ComptimeOption::Some(sum) = sum {
            sum[at] = values;
        }
        squares += sum_of_squares::<N>(Vector::cast_from(values), vector);
        i += lanes;
    }
    let squares = sum_of_lanes(squares, &mut scratch, comptime!(Lanes { count: lanes, plane }));
    let scale = Vector::<f32, N>::new(1.0 / f32::sqrt(squares * share + eps));
    let offset = Vector::<f32, N>::new(offset);

    let mut i = lane;
    while i < end {
        let at = (start + i) as usize;
        let weights = Vector::<f32, N>::cast_from(weight[i as usize]) + offset;
        // Each unit reads what it wrote itself.
        #[comptime]
        let values = match sum {
            ComptimeOption::Some(sum) => sum[at],
            ComptimeOption::None => x[at],
        };
        let mut values = Vector::<f32, N>::cast_from(values) * scale * weights;
        #[comptime]
        if let ComptimeOption::Some(gate) = gate {
            let z = Vector::<f32, N>::cast_from(gate[at]);
            let one = Vector::<f32, N>::new(1.0);
            // CUDA has no negative of a vector.
            let less = Vector::<f32, N>::new(0.0) - z;
            values *= z / (one + less.exp());
        }
        y[at] = Vector::cast_from(values);
        i += lanes;
    }
}

/// The rows of the tensors of a launch.
#[derive(CubeType, CubeLaunch)]
struct Rows {
    /// The first row of each tensor.
    starts: Sequence<u32>,
    /// Vectors from a row of each `x` to the next.
    strides: Sequence<u32>,
    /// Rows of all.
    m: u32,
}

/// `lanes` units take a row of `h` vectors.
#[cube(launch_unchecked)]
#[allow(clippy::too_many_arguments)]
fn rows_kernel<F: Float, W: Float, N: Size>(
    x: &Sequence<Array<Vector<F, N>>>,
    weight: &Sequence<Array<Vector<W, N>>>,
    y: &mut Sequence<Array<Vector<F, N>>>,
    rows: &Rows,
    h: u32,
    share: f32,
    eps: f32,
    offset: f32,
    #[comptime] lanes: u32,
    #[comptime] plane: u32,
    #[comptime] vector: u32,
    #[define(F)] _x_type: StorageType,
    #[define(W)] _weight_type: StorageType,
) {
    let mut scratch = SharedMemory::<f32>::new(UNITS as usize);
    let row = CUBE_POS as u32 * comptime!(UNITS / lanes) + UNIT_POS / lanes;
    let lane = UNIT_POS % lanes;
    let tensor = span_at(&rows.starts, row);
    let own = row - of_span(&rows.starts, tensor);
    let from = own * of_span(&rows.strides, tensor);
    let to = own * h;
    // A row past the last has no elements: its units only take part in the sum.
    let end = select(row < rows.m, h, 0u32);

    let mut squares = 0.0f32;
    #[unroll]
    for t in 0..comptime!(x.len()) {
        if is_span(tensor, t, comptime!(x.len())) {
            let mut i = lane;
            while i < end {
                squares += sum_of_squares::<N>(Vector::cast_from(x[t][(from + i) as usize]), vector);
                i += lanes;
            }
        }
    }
    let squares = sum_of_lanes(squares, &mut scratch, comptime!(Lanes { count: lanes, plane }));
    let scale = 1.0 / f32::sqrt(squares * share + eps);
    #[unroll]
    for t in 0..comptime!(x.len()) {
        if is_span(tensor, t, comptime!(x.len())) {
            let mut i = lane;
            while i < end {
                let values = x[t][(from + i) as usize];
                let weights = weight[t][i as usize];
                set(y.index_mut(t), to + i, normed::<F, W, N>(values, weights, scale, offset));
                i += lanes;
            }
        }
    }
}

#[cube]
fn normed<F: Float, W: Float, N: Size>(
    values: Vector<F, N>,
    weights: Vector<W, N>,
    scale: f32,
    offset: f32,
) -> Vector<F, N> {
    let weights = Vector::<f32, N>::cast_from(weights) + Vector::<f32, N>::new(offset);
    Vector::cast_from(Vector::<f32, N>::cast_from(values) * Vector::<f32, N>::new(scale) * weights)
}

#[cube]
fn sum_of_squares<N: Size>(values: Vector<f32, N>, #[comptime] vector: u32) -> f32 {
    let values = values * values;
    let mut sum = 0.0f32;
    #[unroll]
    for e in 0..vector {
        sum += values[e as usize];
    }
    sum
}
