//! The device, its instructions, and numbers there and back.

use std::io::Write;

use cubecl::features::Plane;
use cubecl::ir::{ElemType, FloatKind, StorageType};
use cubecl::prelude::*;
#[cfg(feature = "wgpu")]
use cubecl::wgpu::{AutoGraphicsApi, GraphicsApi};
use emberlm_backends::cube::{Buffer, CacheBuffer, Instructions, matrix_types, with_instructions};
use emberlm_backends::types::KvFormat;
use half::{bf16, f16};

use crate::common::Eighths;

#[cfg(all(feature = "cuda", not(feature = "wgpu")))]
type Tested = cubecl::cuda::CudaRuntime;
#[cfg(feature = "wgpu")]
type Tested = cubecl::wgpu::WgpuRuntime;

pub type Client = ComputeClient<Tested>;

pub fn client() -> Client {
    Tested::client(&Default::default())
}

/// Runs a test with no instructions of planes, and with all that the device has.
pub fn with_all_instructions(test: impl Fn(&Client)) {
    let client = client();
    with_instructions(Instructions::Plain, || test(&client));
    match best_instructions(&client) {
        Instructions::Plain => {}
        best => with_instructions(best, || test(&client)),
    }
}

/// The most that the device has. Of planes on software devices the runtime keeps silent, so the adapter is asked.
pub fn best_instructions(client: &Client) -> Instructions {
    let best = if !matrix_types(client).is_empty() {
        Instructions::Matrices
    } else if client.properties().features.plane.contains(Plane::Ops) || planes_can_add() {
        Instructions::Planes
    } else {
        Instructions::Plain
    };
    static SAID: std::sync::Once = std::sync::Once::new();
    // Past the test harness, which keeps what passing tests print to itself.
    SAID.call_once(|| {
        let sizes = &client.properties().hardware;
        let (least, most) = (sizes.plane_size_min, sizes.plane_size_max);
        let cmma = &client.properties().features.matmul.cmma;
        let shapes: Vec<_> = cmma.iter().filter(|c| c.a_type == Float::F16.dtype()).map(|c| [c.m, c.n, c.k]).collect();
        let what =
            format!("kernels run plain and with {best:?}; planes of {least} to {most}; matrices of F16 {shapes:?}");
        let _ = writeln!(std::io::stderr(), "{what}");
    });
    best
}

/// CUDA tells.
#[cfg(not(feature = "wgpu"))]
fn planes_can_add() -> bool {
    false
}

/// Whether every adapter has plane operations.
#[cfg(feature = "wgpu")]
fn planes_can_add() -> bool {
    let backends = wgpu::Backends::from(AutoGraphicsApi::backend());
    let descriptor = wgpu::InstanceDescriptor::new_without_display_handle();
    let instance = wgpu::Instance::new(wgpu::InstanceDescriptor { backends, ..descriptor });
    let adapters = cubecl::future::block_on(instance.enumerate_adapters(backends));
    adapters.iter().all(|adapter| adapter.features().contains(wgpu::Features::SUBGROUP))
}

/// A type of activations on the device.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Float {
    F32,
    F16,
    Bf16,
}

impl Float {
    /// Those that the device can compute with.
    pub fn available(client: &Client) -> Vec<Float> {
        let computes = |float: &Float| {
            client.properties().type_usage(float.dtype()).contains(cubecl::features::TypeUsage::Arithmetic)
        };
        [Float::F32, Float::F16, Float::Bf16].into_iter().filter(computes).collect()
    }

    pub fn dtype(self) -> StorageType {
        ElemType::Float(match self {
            Float::F32 => FloatKind::F32,
            Float::F16 => FloatKind::F16,
            Float::Bf16 => FloatKind::BF16,
        })
        .into()
    }

    /// `values` as this type can hold them.
    pub fn rounded(self, values: &[f32]) -> Vec<f32> {
        match self {
            Float::F32 => values.to_vec(),
            Float::F16 => values.iter().map(|&x| f16::from_f32(x).to_f32()).collect(),
            Float::Bf16 => values.iter().map(|&x| bf16::from_f32(x).to_f32()).collect(),
        }
    }

    /// The bound of an error in this type when that in f32 is `bound`.
    pub fn bound(self, bound: f32) -> f32 {
        match self {
            Float::F32 => bound,
            Float::F16 => 1e-3,  // a result is rounded to 11 bits
            Float::Bf16 => 8e-3, // to 8 bits
        }
    }

    pub fn upload(self, client: &Client, values: &[f32]) -> Buffer {
        let handle = match self {
            Float::F32 => client.create_from_slice(f32::as_bytes(values)),
            Float::F16 => {
                let halves: Vec<f16> = values.iter().map(|&x| f16::from_f32(x)).collect();
                client.create_from_slice(f16::as_bytes(&halves))
            }
            Float::Bf16 => {
                let halves: Vec<bf16> = values.iter().map(|&x| bf16::from_f32(x)).collect();
                client.create_from_slice(bf16::as_bytes(&halves))
            }
        };
        Buffer::new(handle, values.len(), self.dtype())
    }

    /// A buffer of NaN: what a kernel does not write shows.
    pub fn unwritten(self, client: &Client, len: usize) -> Buffer {
        self.upload(client, &vec![f32::NAN; len])
    }
}

pub fn upload_words(client: &Client, words: &[u32]) -> Buffer {
    let dtype = ElemType::UInt(cubecl::ir::UIntKind::U32);
    Buffer::new(client.create_from_slice(u32::as_bytes(words)), words.len(), dtype)
}

/// Numbers as a store in rows of `width`.
pub fn upload_cache(client: &Client, format: KvFormat, numbers: &[f32], width: usize) -> CacheBuffer {
    match format {
        KvFormat::F32 => CacheBuffer::F32(Float::F32.upload(client, numbers)),
        KvFormat::F16 => {
            let bits: Vec<u16> = numbers.iter().map(|&x| f16::from_f32(x).to_bits()).collect();
            let words: Vec<u32> = bits.chunks(2).map(|p| u32::from(p[0]) | u32::from(p[1]) << 16).collect();
            CacheBuffer::F16(upload_words(client, &words))
        }
        KvFormat::Q8 => {
            let eighths = Eighths::new(numbers, width);
            let scales = Float::F32.upload(client, &eighths.scales);
            CacheBuffer::Q8 { codes: upload_words(client, &eighths.words()), scales }
        }
    }
}

/// What a store holds: its words, and the bits of its scales.
pub fn download_cache(client: &Client, store: &CacheBuffer) -> (Vec<u32>, Vec<u32>) {
    match store {
        CacheBuffer::F32(words) | CacheBuffer::F16(words) => (download_words(client, words), Vec::new()),
        CacheBuffer::Q8 { codes, scales } => (download_words(client, codes), download_words(client, scales)),
    }
}

pub fn download(client: &Client, buffer: &Buffer) -> Vec<f32> {
    let bytes = client.read_one(buffer.handle().clone()).expect("the device answers");
    if buffer.dtype() == Float::F16.dtype() {
        f16::from_bytes(&bytes)[..buffer.len()].iter().map(|x| x.to_f32()).collect()
    } else if buffer.dtype() == Float::Bf16.dtype() {
        bf16::from_bytes(&bytes)[..buffer.len()].iter().map(|x| x.to_f32()).collect()
    } else {
        f32::from_bytes(&bytes)[..buffer.len()].to_vec()
    }
}

pub fn download_words(client: &Client, buffer: &Buffer) -> Vec<u32> {
    let bytes = client.read_one(buffer.handle().clone()).expect("the device answers");
    u32::from_bytes(&bytes)[..buffer.len()].to_vec()
}

pub fn upload_ints(client: &Client, ints: &[usize]) -> Buffer {
    let ints: Vec<i32> = ints.iter().map(|&i| i as i32).collect();
    let dtype = ElemType::Int(cubecl::ir::IntKind::I32);
    Buffer::new(client.create_from_slice(i32::as_bytes(&ints)), ints.len(), dtype)
}
