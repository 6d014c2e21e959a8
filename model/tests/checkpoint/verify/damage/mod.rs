//! Kinds of damage, and how they are planted.

mod files;
mod numbers;
mod quantised;
mod texts;

use std::fs;

use emberlm_model::verify::{Check, Severity};
use half::f16;
use serde_json::{Value, json};
use sha1::Digest as _;

use crate::support::{Copy, Tensor, Tensors, container, read_tensors, write_tensors};

pub use numbers::{NORM, numbers};
pub use quantised::{book_codes, rows};

/// A damage, and what must be said of it: severity, check, a part of file or place, a part of what was found.
pub struct Case {
    pub name: &'static str,
    pub fixture: &'static str,
    pub damage: fn(&Copy),
    pub told: (Severity, Check, &'static str, &'static str),
}

/// A row of the table. The damage is a function, or other bytes of a file: `"name" = bytes`.
macro_rules! case {
    ($name:literal, $fixture:literal, $severity:ident $check:ident $place:literal $found:literal, $file:literal = $bytes:expr) => {
        case!($name, $fixture, $severity $check $place $found, |copy| write(copy, $file, $bytes))
    };
    ($name:literal, $fixture:literal, $severity:ident $check:ident $place:literal $found:literal, $damage:expr) => {
        Case {
            name: $name,
            fixture: $fixture,
            damage: $damage,
            told: (emberlm_model::verify::Severity::$severity, emberlm_model::verify::Check::$check, $place, $found),
        }
    };
}
pub(crate) use case;

/// Every kind.
pub fn table() -> Vec<Case> {
    [
        files::files(),
        files::containers(),
        files::indexes(),
        files::hashes(),
        texts::configs(),
        numbers(),
        book_codes(),
        rows(),
        texts::texts(),
    ]
    .into_iter()
    .flatten()
    .collect()
}

pub fn write(copy: &Copy, name: &str, bytes: &[u8]) {
    fs::write(copy.path().join(name), bytes).expect("written");
}

pub fn change_json(copy: &Copy, name: &str, change: impl FnOnce(&mut Value)) {
    let path = copy.path().join(name);
    let mut json: Value = serde_json::from_slice(&fs::read(&path).expect("a file")).expect("JSON");
    change(&mut json);
    fs::write(path, json.to_string()).expect("written");
}

pub fn change_weights(copy: &Copy, change: impl FnOnce(&mut Vec<u8>)) {
    let mut bytes = fs::read(copy.weights()).expect("weights");
    change(&mut bytes);
    fs::write(copy.weights(), bytes).expect("written");
}

pub fn change_shard(copy: &Copy, name: &str, change: impl FnOnce(&mut Tensors)) {
    let path = copy.path().join(name);
    let mut tensors = read_tensors(&path);
    change(&mut tensors);
    write_tensors(&path, &tensors);
}

pub fn change_header(copy: &Copy, change: impl FnOnce(&mut Value)) {
    change_weights(copy, |bytes| {
        let length = u64::from_le_bytes(bytes[..8].try_into().expect("8 bytes")) as usize;
        let mut header: Value = serde_json::from_slice(&bytes[8..8 + length]).expect("JSON");
        change(&mut header);
        *bytes = container(&header.to_string(), &bytes[8 + length..]);
    });
}

/// Moves a tensor in the header, by so many bytes.
pub fn shift(header: &mut Value, tensor: &str, by: i64) {
    for end in 0..2 {
        let place = &mut header[tensor]["data_offsets"][end];
        *place = json!(place.as_i64().expect("a place") + by);
    }
}

pub fn halves(copy: &Copy, name: &str, change: impl FnOnce(&mut [f16])) {
    copy.change_tensors(|tensors| {
        let Tensor(dtype, _, data) = tensors.get_mut(name).expect("it");
        assert_eq!(dtype, "F16");
        let mut values: Vec<f16> = data.as_chunks().0.iter().map(|b| f16::from_le_bytes(*b)).collect();
        change(&mut values);
        *data = values.into_iter().flat_map(f16::to_le_bytes).collect();
    });
}

pub fn floats(copy: &Copy, name: &str, change: impl FnOnce(&mut [f32])) {
    copy.change_tensors(|tensors| {
        let Tensor(dtype, _, data) = tensors.get_mut(name).expect("it");
        assert_eq!(dtype, "F32");
        let mut values: Vec<f32> = data.as_chunks().0.iter().map(|b| f32::from_le_bytes(*b)).collect();
        change(&mut values);
        *data = values.into_iter().flat_map(f32::to_le_bytes).collect();
    });
}

pub fn integers(copy: &Copy, name: &str, change: impl FnOnce(&mut [i64])) {
    copy.change_tensors(|tensors| {
        let Tensor(dtype, _, data) = tensors.get_mut(name).expect("it");
        assert_eq!(dtype, "I64");
        let mut values: Vec<i64> = data.as_chunks().0.iter().map(|b| i64::from_le_bytes(*b)).collect();
        change(&mut values);
        *data = values.into_iter().flat_map(i64::to_le_bytes).collect();
    });
}

/// Changes the quant state of a 4-bit tensor.
pub fn state(copy: &Copy, name: &str, change: impl FnOnce(&mut Value)) {
    copy.change_tensors(|tensors| {
        let Tensor(_, shape, data) =
            tensors.get_mut(&format!("{name}.quant_state.bitsandbytes__nf4")).expect("a quant state");
        let mut state: Value = serde_json::from_slice(data).expect("JSON");
        change(&mut state);
        *data = state.to_string().into_bytes();
        *shape = vec![data.len()];
    });
}

/// What a download into a directory leaves beside it.
pub fn metadata(copy: &Copy, name: &str, hash: &str) {
    let folder = copy.path().join(".cache/huggingface/download");
    fs::create_dir_all(&folder).expect("a directory");
    fs::write(folder.join(format!("{name}.metadata")), format!("0123abcd\n{hash}\n99999999999.5\n")).expect("written");
}

pub fn sha256(bytes: &[u8]) -> String {
    hex(&sha2::Sha256::digest(bytes))
}

pub fn git(bytes: &[u8]) -> String {
    hex(&sha1::Sha1::digest([format!("blob {}\0", bytes.len()).as_bytes(), bytes].concat()))
}

pub fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
