//! Numbers to the device and back.

use cubecl::ir::{ElemType, FloatKind, StorageType};
use cubecl::prelude::*;
use emberlm_backends::cube::Buffer;
use half::{bf16, f16};

#[cfg(all(feature = "cuda", not(feature = "wgpu")))]
type Tested = cubecl::cuda::CudaRuntime;
#[cfg(feature = "wgpu")]
type Tested = cubecl::wgpu::WgpuRuntime;

pub type Client = ComputeClient<Tested>;

pub fn client() -> Client {
    Tested::client(&Default::default())
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

pub fn download(client: &Client, buffer: &Buffer) -> Vec<f32> {
    let bytes = client.read_one(buffer.handle.clone()).expect("the device answers");
    if buffer.dtype == Float::F16.dtype() {
        f16::from_bytes(&bytes)[..buffer.len].iter().map(|x| x.to_f32()).collect()
    } else if buffer.dtype == Float::Bf16.dtype() {
        bf16::from_bytes(&bytes)[..buffer.len].iter().map(|x| x.to_f32()).collect()
    } else {
        f32::from_bytes(&bytes)[..buffer.len].to_vec()
    }
}

pub fn download_words(client: &Client, buffer: &Buffer) -> Vec<u32> {
    let bytes = client.read_one(buffer.handle.clone()).expect("the device answers");
    u32::from_bytes(&bytes)[..buffer.len].to_vec()
}

pub fn upload_ints(client: &Client, ints: &[usize]) -> Buffer {
    let ints: Vec<i32> = ints.iter().map(|&i| i as i32).collect();
    let dtype = ElemType::Int(cubecl::ir::IntKind::I32);
    Buffer::new(client.create_from_slice(i32::as_bytes(&ints)), ints.len(), dtype)
}
