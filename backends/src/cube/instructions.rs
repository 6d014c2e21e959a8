//! Instructions that the units of a plane execute together, where a device has them.

use std::cell::Cell;
use std::sync::OnceLock;

use crate::variable::GPU;
use cubecl::features::Plane;
use cubecl::ir::{ElemType, FloatKind, StorageType};
use cubecl::prelude::*;

/// What kernels are compiled with; each includes those before it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Instructions {
    /// Units work together over shared memory alone.
    Plain,
    /// Sums, maxima and shuffles within a plane.
    Planes,
    /// Products of small matrices (tensor cores, cooperative matrices).
    Matrices,
}

impl Instructions {
    const ALL: [Self; 3] = [Self::Plain, Self::Planes, Self::Matrices];

    /// As in the environment variable `EMBERLM_GPU`.
    pub fn name(self) -> &'static str {
        GPU.names[self as usize]
    }
}

thread_local! {
    static LOCAL: Cell<Option<Instructions>> = const { Cell::new(None) };
}

/// Calls `f`, and the kernels that this thread launches meanwhile are compiled with `instructions`, whatever the runtime says
/// of planes: some runtimes keep silent about those of software devices. A device without them gives wrong results. Matrix
/// instructions are used in the shapes that the runtime names and nowhere else.
pub fn with_instructions<T>(instructions: Instructions, f: impl FnOnce() -> T) -> T {
    struct Restore(Option<Instructions>);
    impl Drop for Restore {
        fn drop(&mut self) {
            LOCAL.set(self.0);
        }
    }
    let _restore = Restore(LOCAL.replace(Some(instructions)));
    f()
}

/// What is forced: by [`with_instructions`], else by `EMBERLM_GPU` (read once).
///
/// # Panics
/// If that names nothing; [`crate::environment::check`] tells before.
fn forced() -> Option<Instructions> {
    static NAMED: OnceLock<Option<Instructions>> = OnceLock::new();
    LOCAL.get().or_else(|| {
        *NAMED.get_or_init(|| {
            let place = GPU.index(&GPU.names).unwrap_or_else(|error| panic!("{error}"));
            place.map(|place| Instructions::ALL[place])
        })
    })
}

/// Units of a plane where planes can add, and all planes are of that size; else 0.
pub(super) fn plane_size<R: Runtime>(client: &ComputeClient<R>) -> u32 {
    let reported = client.properties().features.plane.contains(Plane::Ops);
    if forced().map_or(reported, |most| most >= Instructions::Planes) { units_of_plane(client).unwrap_or(0) } else { 0 }
}

/// Units of every plane, where one size is known.
fn units_of_plane<R: Runtime>(client: &ComputeClient<R>) -> Option<u32> {
    let hardware = &client.properties().hardware;
    let (least, most) = (hardware.plane_size_min, hardware.plane_size_max);
    (least == most && (8..=64).contains(&most) && most.is_power_of_two()).then_some(most)
}

/// A product that planes compute with one instruction: `[m, k]` by `[k, n]`, added to `[m, n]` in f32.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct MatrixShape {
    pub m: u32,
    pub n: u32,
    pub k: u32,
    /// Units of the plane.
    pub plane: u32,
}

/// The largest product of two matrices of halves `dtype` that the device has an instruction for. In MSL it was never tried.
pub(super) fn matrix_shape<R: Runtime>(client: &ComputeClient<R>, dtype: StorageType) -> Option<MatrixShape> {
    let f32 = StorageType::from(ElemType::Float(FloatKind::F32));
    let halves = [FloatKind::F16, FloatKind::BF16].map(|kind| StorageType::from(ElemType::Float(kind)));
    let known = matches!(R::name(client), "wgpu<spirv>" | "cuda") && halves.contains(&dtype);
    if !known || forced().is_some_and(|most| most < Instructions::Matrices) {
        return None;
    }
    let plane = units_of_plane(client)?;
    let shapes = client.properties().features.matmul.cmma.iter();
    shapes
        .filter(|config| config.a_type == dtype && config.b_type == dtype && config.cd_type == f32)
        .map(|config| MatrixShape { m: config.m, n: config.n, k: config.k, plane })
        .filter(|shape| [shape.m, shape.n, shape.k].iter().all(|side| matches!(side, 8 | 16)))
        .max_by_key(|shape| (shape.m * shape.n * shape.k, shape.m))
}

/// The types of activations, by name, that are multiplied by matrix instructions.
pub fn matrix_types<R: Runtime>(client: &ComputeClient<R>) -> Vec<&'static str> {
    let kinds = [("f16", FloatKind::F16), ("bf16", FloatKind::BF16)];
    let has = |kind: FloatKind| matrix_shape(client, ElemType::Float(kind).into()).is_some();
    kinds.into_iter().filter(|(_, kind)| has(*kind)).map(|(name, _)| name).collect()
}
