//! Tensors of safetensors files as tests change them.

use std::collections::BTreeMap;

use serde_json::{Value, json};

/// Element type, shape, data.
#[derive(Clone, Debug)]
pub struct Tensor(pub String, pub Vec<usize>, pub Vec<u8>);

pub type Tensors = BTreeMap<String, Tensor>;

/// Drops elements from the end of a vector, or repeats its last one.
pub fn resize(tensor: &mut Tensor, length: usize) {
    let size = tensor.2.len() / tensor.1.iter().product::<usize>();
    let last = tensor.2[tensor.2.len() - size..].to_vec();
    tensor.2.truncate(length * size);
    while tensor.2.len() < length * size {
        tensor.2.extend(&last);
    }
    tensor.1 = vec![length];
}

pub fn set_f32(tensor: &mut Tensor, at: usize, x: f32) {
    tensor.2[4 * at..4 * at + 4].copy_from_slice(&x.to_le_bytes());
}

/// Changes the state of a matrix of bitsandbytes in NF4.
pub fn change_state(tensors: &mut Tensors, weight: &str, change: impl FnOnce(&mut Value)) {
    let tensor = tensors.get_mut(&format!("{weight}.quant_state.bitsandbytes__nf4")).expect("a state");
    let mut json: Value = serde_json::from_slice(&tensor.2).expect("JSON");
    change(&mut json);
    tensor.2 = json.to_string().into_bytes();
    tensor.1 = vec![tensor.2.len()];
}

/// The bytes of a safetensors file with this header text.
pub fn container(header: &str, data: &[u8]) -> Vec<u8> {
    [&(header.len() as u64).to_le_bytes(), header.as_bytes(), data].concat()
}

/// The bytes of a safetensors file.
pub fn safetensors(tensors: &Tensors) -> Vec<u8> {
    let (mut header, mut data) = (serde_json::Map::new(), Vec::new());
    for (name, Tensor(dtype, shape, bytes)) in tensors {
        let range = [data.len(), data.len() + bytes.len()];
        header.insert(name.clone(), json!({ "dtype": dtype, "shape": shape, "data_offsets": range }));
        data.extend(bytes);
    }
    container(&Value::Object(header).to_string(), &data)
}
