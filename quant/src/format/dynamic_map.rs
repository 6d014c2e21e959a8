//! Scales that are quantised themselves: the dynamic 8-bit type of bitsandbytes.
//!
//! Source: Dettmers, 8-Bit Approximations for Parallelism in Deep Learning (arXiv 1511.04561). The map has a sign, up to
//! seven decimal exponents, and the finer a fraction the larger the exponent.

use std::sync::LazyLock;

use bytes::Bytes;
use rayon::prelude::*;

use super::float::absmax;
use super::sum::mean;
use crate::error::{Error, Result};
use crate::host::{HostScales, WeightBuffer};

/// Scales per nested scale.
const BLOCK: usize = 256;

/// Points of the grid to which the CPU library of bitsandbytes rounds a scaled value before it looks up the code.
const GRID: usize = 1 << 16;

/// The value of each of the 256 codes, ascending.
pub fn dynamic_map() -> &'static [f32; 256] {
    static MAP: LazyLock<[f32; 256]> = LazyLock::new(build_map);
    &MAP
}

fn build_map() -> [f32; 256] {
    const SCALES: [f32; 7] = [1e-6, 1e-5, 1e-4, 1e-3, 1e-2, 1e-1, 1.0];
    let mut values = vec![0.0, 1.0];
    for (exponent, scale) in SCALES.into_iter().enumerate() {
        let count = 1 << exponent;
        for i in 0..count {
            let middle = (boundary(i, count) + boundary(i + 1, count)) / 2.0;
            values.extend([scale * middle, -(scale * middle)]);
        }
    }
    values.sort_by(f32::total_cmp);
    let mut map = [0.0; 256];
    map.copy_from_slice(&values);
    map
}

/// Point `i` of `count + 1` from 0.1 to 1, as PyTorch's `linspace` has it: from the nearer end, with one rounding (the f64
/// arithmetic is exact for these operands).
fn boundary(i: usize, count: usize) -> f32 {
    let (start, end) = (0.1f32, 1.0f32);
    let step = f64::from((end - start) / count as f32);
    if i < count.div_ceil(2) {
        (f64::from(start) + step * i as f64) as f32
    } else {
        (f64::from(end) - step * (count - i) as f64) as f32
    }
}

/// Quantises block scales: their mean is the offset, the rest is scaled in blocks of 256 and coded in the dynamic map.
///
/// # Errors
/// If the scales are so large that their sum overflows.
pub(super) fn quantize_scales(mut scales: Vec<f32>) -> Result<HostScales> {
    let offset = mean(&scales);
    if !offset.is_finite() {
        return Err(Error::ScalesTooLarge { blocks: scales.len() });
    }
    let mut codes = WeightBuffer::new(scales.len());
    let mut nested = vec![0.0; scales.len().div_ceil(BLOCK)];
    scales.par_chunks_mut(BLOCK).zip(codes.par_chunks_mut(BLOCK)).zip(&mut nested).for_each(
        |((scales, codes), nested)| {
            for scale in &mut *scales {
                *scale -= offset;
            }
            *nested = absmax(scales);
            // A block of equal scales keeps code 0: the map's value is multiplied by 0.
            if *nested > 0.0 {
                let inverse = 1.0 / *nested;
                for (code, scale) in codes.iter_mut().zip(scales) {
                    *code = code_of(*scale * inverse);
                }
            }
        },
    );
    let codes = Bytes::from_owner(codes);
    Ok(HostScales::Double { codes, map: dynamic_map().to_vec(), absmax: nested, block: BLOCK, offset })
}

/// The code of a value in [-1, 1].
///
/// As the CPU library of bitsandbytes does it, the value goes to the nearest of 65536 grid points and gets the code
/// nearest to that point, which is not always the code nearest to the value.
fn code_of(value: f32) -> u8 {
    static CODES: LazyLock<Vec<u8>> = LazyLock::new(|| {
        let map = dynamic_map();
        let middles: [f32; 255] = std::array::from_fn(|i| 0.5 * (map[i] + map[i + 1]));
        let point = |i: usize| -1.0 + 2.0 * i as f32 / (GRID - 1) as f32;
        (0..GRID).map(|i| middles.partition_point(|&middle| middle < point(i)) as u8).collect()
    });
    let unit = (value.clamp(-1.0, 1.0) + 1.0) * 0.5;
    // Fused or not, the multiply-add reaches the same grid point for every value.
    let point = unit * (GRID - 1) as f32 + 0.5;
    CODES[(point as usize).min(GRID - 1)]
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Around 0 the map is finer than the grid, elsewhere every value of the map keeps its code.
    #[test]
    fn map_values_keep_their_codes() {
        let map = dynamic_map();
        let spacing = 2.0 / (GRID - 1) as f32;
        let coarse = |i: usize| map[i + 1] - map[i] > 2.0 * spacing && map[i] - map[i - 1] > 2.0 * spacing;
        let kept: Vec<usize> = (1..255).filter(|&i| coarse(i)).collect();
        assert!(kept.len() > 180, "{}", kept.len());
        for i in kept {
            assert_eq!(usize::from(code_of(map[i])), i, "{}", map[i]);
        }
        assert_eq!((code_of(-1.0), code_of(1.0)), (0, 255));
    }

    #[test]
    fn equal_scales_become_the_offset() {
        let HostScales::Double { codes, absmax, offset, .. } = quantize_scales(vec![0.75; 300]).unwrap() else {
            panic!()
        };
        assert_eq!((codes.as_ref(), absmax, offset), ([0; 300].as_slice(), vec![0.0; 2], 0.75));
    }

    #[test]
    fn overflowing_scales_are_refused() {
        let error = quantize_scales(vec![f32::MAX; 3]).unwrap_err();
        assert_eq!(error, Error::ScalesTooLarge { blocks: 3 });
    }
}
