//! The largest numbers of a row, by a sort on the host.

use burn::tensor::backend::Backend;
use burn::tensor::{DType, Int, Tensor, TensorData};

/// See [`CompactBackend::top_k`](crate::CompactBackend::top_k).
pub fn top_k<B: Backend>(x: Tensor<B, 2>, k: usize) -> (Tensor<B, 2>, Tensor<B, 2, Int>) {
    let ([m, n], device) = (x.dims(), x.device());
    assert!((1..=n).contains(&k), "the {k} largest of {n}");
    let numbers: Vec<f32> = x.into_data().convert::<f32>().into_vec().unwrap_or_default();
    let (mut values, mut columns) = (Vec::with_capacity(m * k), Vec::with_capacity(m * k));
    for row in numbers.chunks_exact(n) {
        let mut order: Vec<usize> = (0..n).collect();
        // Stable, so that the lowest column comes first among equals; adding 0 makes one zero of the two.
        order.sort_by(|&a, &b| {
            let key = |x: f32| if x.is_nan() { f32::NAN } else { x + 0.0 };
            key(row[b]).total_cmp(&key(row[a]))
        });
        values.extend(order[..k].iter().map(|&column| row[column]));
        columns.extend(order[..k].iter().map(|&column| column as i64));
    }
    let values = Tensor::from_data(TensorData::new(values, [m, k]), (&device, DType::F32));
    (values, Tensor::from_data(TensorData::new(columns, [m, k]), &device))
}
