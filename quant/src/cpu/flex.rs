//! The operations on burn-flex, in f32.

use std::borrow::Cow;

use burn::tensor::ops::{BoolTensor, FloatTensor, IntTensor};
use burn::tensor::{Bool, DType, Int, Shape, Tensor, TensorData, TensorMetadata};
use burn_flex::{Flex, FlexTensor};

use super::{HostTensors, host_operations, operations};
use crate::CompactBackend;
use crate::halting::{HaltRecord, HaltRule, HaltState};
use crate::kv::{KeyValue, KvStore, Rotary};
use crate::modules::SwiGlu;
use crate::ops::{AttentionShape, DeltaRule};
use crate::packed::PackedWeight;

impl CompactBackend for Flex {
    host_operations!();
}
