//! Weights whose bytes lie anywhere in a file, or in memory: read in place or copied, they are the same.

use burn::tensor::TensorData;
use bytes::Bytes;
use emberlm::model::WeightOptions;
use emberlm::quant::CompactBackend;
use emberlm::quant::host::{FloatType, HostScales, HostStorage, HostWeight};
use emberlm::quant::packed::PackedWeight;
use emberlm::quant::reference;

use super::fixture::{Fixture, all_logits};
use super::kernels::{storages, tensor};
use super::random::Random;

/// Every storage, its buffers at each place within a word; of a length that is no whole number of words, too.
pub fn weights_at_odd_places<B: CompactBackend>(device: &B::Device) {
    let mut random = Random::new(47);
    for [n, k] in [[7, 9], [40, 128], [96, 192]] {
        for (name, host) in storages(&mut random, n, k) {
            let aligned = PackedWeight::<B>::from_host(moved(&host, 0), device);
            for place in 0..4 {
                let what = format!("{name} [{n}, {k}] at {place}");
                let host = moved(&host, place);
                let element = if let HostStorage::Dense(float, _) = &host.storage { float.size() } else { 1 };
                let in_place = B::SHARES_HOST_MEMORY && place % element == 0;
                assert_eq!(PackedWeight::<B>::shares(&host), in_place, "{what}: shared");
                let weight = PackedWeight::<B>::from_host(host.clone(), device);
                for m in [1, 3, 17] {
                    let x = tensor::<B, 2>(&mut random, [m, k], device);
                    let expected = numbers(B::packed_linear(x.clone(), &aligned, None).into_data());
                    assert_eq!(numbers(B::packed_linear(x, &weight, None).into_data()), expected, "{what}: m={m}");
                }
                let expected = numbers(reference::dequantize(&aligned).into_data());
                assert_eq!(numbers(reference::dequantize(&weight).into_data()), expected, "{what}: dequantised");
                let back = weight.to_host(FloatType::F32).expect("numbers");
                assert_eq!(buffers(&back), buffers(&host), "{what}: on its way back");
            }
        }
    }
}

/// Models of every family whose weights are copied from their files.
pub fn models_in_memory<B: CompactBackend>(device: &B::Device) {
    let mut random = Random::new(48);
    for (name, host) in storages(&mut random, 96, 192) {
        let copy = host.clone().copied();
        for (copied, stored) in buffers(&copy).iter().zip(buffers(&host)) {
            assert_eq!(copied, &stored, "{name}");
            assert!(stored.is_empty() || copied.as_ptr() != stored.as_ptr(), "{name}: not copied");
        }
    }
    for fixture in Fixture::all() {
        let options = WeightOptions { in_memory: true, ..WeightOptions::default() };
        let copied = fixture.load_from::<B>(fixture.open().weight_options(options), device);
        let ids = &fixture.case("text").ids()[0];
        let stored = all_logits(&fixture.load::<B>(device), ids);
        all_logits(&copied, ids).assert_close(&format!("{}: in memory", fixture.name()), &stored, 0.0);
    }
}

fn numbers(data: TensorData) -> Vec<u32> {
    data.convert::<f32>().to_vec::<f32>().expect("floats").into_iter().map(f32::to_bits).collect()
}

/// The same weight, its buffers `place` bytes behind an address that is a multiple of 64.
fn moved(weight: &HostWeight, place: usize) -> HostWeight {
    let mut weight = weight.clone();
    let at = |data: &mut Bytes| {
        let mut room = vec![0u8; data.len() + 128];
        let start = room.as_ptr().align_offset(64) + place;
        room[start..start + data.len()].copy_from_slice(data);
        *data = Bytes::from(room).slice(start..start + data.len());
    };
    match &mut weight.storage {
        HostStorage::Dense(_, data) => at(data),
        HostStorage::CodeBook4(w) => {
            at(&mut w.codes);
            match &mut w.scales {
                HostScales::Single(data) | HostScales::Double { codes: data, .. } => at(data),
            }
        }
        HostStorage::Int8(w) => [&mut w.codes, &mut w.scales].into_iter().for_each(at),
        HostStorage::Rows(w) => [&mut w.wide, &mut w.narrow].into_iter().for_each(at),
    }
    weight
}

fn buffers(weight: &HostWeight) -> Vec<Bytes> {
    match &weight.storage {
        HostStorage::Dense(_, data) => vec![data.clone()],
        HostStorage::CodeBook4(w) => match &w.scales {
            HostScales::Single(data) | HostScales::Double { codes: data, .. } => vec![w.codes.clone(), data.clone()],
        },
        HostStorage::Int8(w) => vec![w.codes.clone(), w.scales.clone()],
        HostStorage::Rows(w) => vec![w.wide.clone(), w.narrow.clone()],
    }
}
