//! GELU by table: `gelu(x) = max(x, 0) - g(|x|)` with `g(z) = z Φ(-z)`, which is smooth, at most 0.17, and gone from 5.5 on.

use super::{Lookup, Simd};

/// `g` in pieces, minimax fits that are off by 1e-7 at most.
struct Table<const PIECES: usize, const POWERS: usize> {
    /// Pieces per unit of `z`: piece `i` reaches from `(i - 0.5) / scale` to `(i + 0.5) / scale`, the last is 0 from 5.5 on.
    scale: f32,
    /// The middle of the last piece.
    end: f32,
    /// Coefficients of `t^0`, `t^1` and so on for each piece, `t` from its middle, -0.5 to 0.5. The first is exactly 0 at 0.
    coefficients: [[f32; PIECES]; POWERS],
}

/// Where one instruction looks up 16 floats.
#[rustfmt::skip]
const SIXTEEN: Table<16, 6> = Table {
    scale: 2.636_363_7,
    end: 5.689_655_3,
    coefficients: [
        [0.0, 1.3360399e-1, 1.6996118e-1, 1.4517115e-1, 9.801816e-2, 5.4892965e-2, 2.6006576e-2, 1.05234925e-2, 3.6557699e-3, 1.0935267e-3, 2.8216187e-4, 6.287629e-5, 1.2109502e-5, 2.0167033e-6, 2.9053052e-7, 0.0],
        [1.8965515e-1, 8.018976e-2, -1.1108505e-3, -4.173343e-2, -4.8119746e-2, -3.653422e-2, -2.150757e-2, -1.0330391e-2, -4.1400758e-3, -1.4008364e-3, -4.0296963e-4, -9.898917e-5, -2.082741e-5, -3.7612863e-6, -5.839387e-7, 0.0],
        [-5.7397723e-2, -4.957113e-2, -3.065947e-2, -1.0591949e-2, 2.7412707e-3, 7.5873123e-3, 6.8473467e-3, 4.2687277e-3, 2.0710672e-3, 8.1648276e-4, 2.6705212e-4, 7.332411e-5, 1.7025139e-5, 3.3594451e-6, 5.653124e-7, 0.0],
        [-5.838114e-6, 4.93884e-3, 7.0693693e-3, 5.8460343e-3, 2.957133e-3, 4.593668e-4, -7.3090906e-4, -8.654964e-4, -5.7413947e-4, -2.794188e-4, -1.0740453e-4, -3.36647e-5, -8.752426e-6, -1.9071455e-6, -3.506785e-7, 0.0],
        [1.3999313e-3, 9.586736e-4, 8.096856e-5, -6.025283e-4, -7.365124e-4, -4.6892025e-4, -1.422122e-4, 4.2228447e-5, 8.304818e-5, 5.9026548e-5, 2.8685248e-5, 1.0701687e-5, 3.2044106e-6, 7.8765595e-7, 1.610598e-7, 0.0],
        [-4.323771e-5, -1.498331e-4, -1.7668266e-4, -8.430774e-5, 2.448369e-5, 6.99462e-5, 5.39631e-5, 2.028363e-5, -9.921768e-7, -6.646561e-6, -4.958644e-6, -2.3554478e-6, -8.3728054e-7, -2.3558653e-7, -5.3920143e-8, 0.0],
    ],
};

/// Where one instruction looks up eight: a power more takes less time than a second table for each.
#[rustfmt::skip]
const EIGHT: Table<8, 7> = Table {
    scale: 1.181_818_1,
    end: 5.923_077,
    coefficients: [
        [0.0, 1.681591e-1, 7.665081e-2, 1.4131745e-2, 1.206245e-3, 4.926594e-5, 9.737104e-7, 0.0],
        [4.2307684e-1, -3.152061e-2, -9.8117925e-2, -2.9462038e-2, -3.4163755e-3, -1.7550164e-4, -4.1753788e-6, 0.0],
        [-2.8563055e-1, -1.2819861e-1, 2.9468399e-2, 2.5309637e-2, 4.3944246e-3, 2.946809e-4, 8.591503e-6, 0.0],
        [-3.322544e-5, 7.821341e-2, 1.8524973e-2, -9.968258e-3, -3.3106233e-3, -3.0696424e-4, -1.1168162e-5, 0.0],
        [3.426935e-2, -2.9547315e-3, -1.5967846e-2, 1.3685992e-4, 1.5280014e-3, 2.201687e-4, 1.0460396e-5, 0.0],
        [-4.947814e-4, -8.769974e-3, 2.8674682e-3, 1.6829426e-3, -3.4650645e-4, -1.1561695e-4, -8.141127e-6, 0.0],
        [-3.1089196e-3, 1.4115486e-3, 9.924077e-4, -6.737951e-4, -2.9550516e-5, 3.966508e-5, 4.31471e-6, 0.0],
    ],
};

/// `x Φ(x)`, with an absolute error of 1.2e-7 beside the rounding of the result.
///
/// # Safety
/// `S` must be enabled.
#[inline(always)]
pub(crate) unsafe fn gelu<S: Simd>(x: S::V) -> S::V {
    // SAFETY: `S` is enabled; tables have as many pieces as it looks up.
    unsafe {
        match S::TABLE {
            Lookup::Sixteen => by_table::<S, 16, 6>(x, &SIXTEEN),
            Lookup::Eight => by_table::<S, 8, 7>(x, &EIGHT),
        }
    }
}

/// # Safety
/// `S` must be enabled, and look up as many floats as there are pieces.
#[inline(always)]
unsafe fn by_table<S: Simd, const PIECES: usize, const POWERS: usize>(x: S::V, table: &Table<PIECES, POWERS>) -> S::V {
    /// 1.5 * 2^23: what is added to it is rounded to a whole number, which stands in the low bits.
    const WHOLE: f32 = 12_582_912.0;
    // SAFETY: `S` is enabled, and nothing here touches memory but the tables.
    unsafe {
        let z = S::max(S::sub(S::splat(0.0), x), x);
        // A NaN may become the end; the result is max(0, NaN), which is NaN.
        let scaled = S::mul(S::min(z, S::splat(table.end)), S::splat(table.scale));
        let piece = S::add(scaled, S::splat(WHOLE));
        let t = S::sub(scaled, S::sub(piece, S::splat(WHOLE)));
        let coefficient = |power: usize| S::permute(table.coefficients[power].as_ptr(), piece);
        let mut g = coefficient(POWERS - 1);
        for power in (0..POWERS - 1).rev() {
            g = S::fma(g, t, coefficient(power));
        }
        S::sub(S::max(S::splat(0.0), x), g)
    }
}
