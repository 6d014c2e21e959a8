//! The largest numbers of long rows, as choosing a token among a vocabulary needs them.
//!
//! A cube sorts a chunk of a row in shared memory and keeps its first `k`; what is kept is cut into chunks again, until one is
//! left. Numbers are compared as unsigned integers that order as they do, NaN above all others, so that one is never overlooked.

use cubecl::ir::{ElemType, IntKind, StorageType, UIntKind};
use cubecl::prelude::*;

use super::launch::{Buffer, UNITS, f32_type, grid};
use crate::check::elements;

/// Numbers that a cube sorts: a power of two.
const CHUNK: u32 = 1024;

/// The most numbers of a row that are found: every pass must leave a fraction of what it read.
pub const MAX_TOP_K: usize = CHUNK as usize / 4;

/// The shape of a search.
#[derive(Clone, Copy, Debug)]
pub struct TopK {
    /// Rows.
    pub m: usize,
    /// Numbers of a row.
    pub n: usize,
    /// Numbers wanted of each row.
    pub k: usize,
}

/// The `k` largest numbers of each row, largest first, and their columns; among equals the lowest column comes first, and NaN
/// counts as larger than infinity.
///
/// # Shapes
/// `x [m, n]`, `values [m, k]` F32, `columns [m, k]` I32, `1 <= k <= n`, `k <=` [`MAX_TOP_K`]
///
/// # Panics
/// If a buffer does not have its shape, or `k` is out of range.
pub fn top_k<R: Runtime>(client: &ComputeClient<R>, x: &Buffer, values: &Buffer, columns: &Buffer, p: TopK) {
    let TopK { m, n, k } = p;
    x.check("x", &[m, n]);
    values.check("values", &[m, k]);
    columns.check("columns", &[m, k]);
    assert!((1..=n.min(MAX_TOP_K)).contains(&k), "the {k} largest of {n}");
    assert!(values.dtype == f32_type(), "values of {:?}", values.dtype);
    assert!(columns.dtype == ElemType::Int(IntKind::I32).into(), "columns of {:?}", columns.dtype);
    if m == 0 {
        return;
    }
    let mut len = n;
    let mut kept: Option<(Buffer, Buffer)> = None;
    loop {
        let chunks = len.div_ceil(CHUNK as usize);
        let last = chunks == 1;
        let (to_keys, to_columns) = if last {
            (values.clone(), columns.clone())
        } else {
            let len = elements("what is kept", &[m, chunks, k]);
            let words = || Buffer::new(client.empty(4 * len), len, ElemType::UInt(UIntKind::U32));
            (words(), words())
        };
        let (keys, from_columns) = kept.as_ref().map_or((x, x), |(keys, columns)| (keys, columns));
        // SAFETY: the lengths were checked, and the kernel stays inside them.
        unsafe {
            chunk_kernel::launch_unchecked::<R>(
                client,
                grid(m * chunks),
                CubeDim::new_1d(UNITS),
                x.arg(),
                keys.arg(),
                from_columns.arg(),
                to_keys.arg(),
                to_columns.arg(),
                m as u32,
                len as u32,
                k as u32,
                chunks as u32,
                kept.is_none(),
                last,
                x.dtype,
            );
        }
        if last {
            break;
        }
        len = chunks * k;
        kept = Some((to_keys, to_columns));
    }
}

/// The first `k` of each chunk, in order. `first` reads numbers, else keys and columns; `last` writes numbers.
#[cube(launch_unchecked)]
#[allow(clippy::too_many_arguments)]
fn chunk_kernel<F: Float>(
    x: &Array<F>,
    from_keys: &Array<u32>,
    from_columns: &Array<u32>,
    to_keys: &mut Array<u32>,
    to_columns: &mut Array<u32>,
    m: u32,
    len: u32,
    k: u32,
    chunks: u32,
    #[comptime] first: bool,
    #[comptime] last: bool,
    #[define(F)] _x_type: StorageType,
) {
    let cube = CUBE_POS as u32;
    if cube >= m * chunks {
        terminate!();
    }
    let (row, start) = (cube / chunks, cube % chunks * CHUNK);
    let mut keys = SharedMemory::<u32>::new(CHUNK as usize);
    let mut columns = SharedMemory::<u32>::new(CHUNK as usize);
    let mut i = UNIT_POS;
    while i < CHUNK {
        // Past the end of the row: after everything else.
        let mut key = 0u32;
        let mut column = 0xffff_ffffu32.runtime();
        if start + i < len {
            let at = (row * len + start + i) as usize;
            if comptime!(first) {
                key = order_key(f32::cast_from(x[at]));
                column = start + i;
            } else {
                key = from_keys[at];
                column = from_columns[at];
            }
        }
        keys[i as usize] = key;
        columns[i as usize] = column;
        i += UNITS;
    }
    sync_cube();
    sort(&mut keys, &mut columns);
    let mut i = UNIT_POS;
    while i < k {
        let at = (cube * k + i) as usize;
        let key = keys[i as usize];
        to_keys[at] = if comptime!(last) { key_bits(key) } else { key };
        to_columns[at] = columns[i as usize];
        i += UNITS;
    }
}

/// Bitonic sort: the largest key first, among equals the lowest column.
#[cube]
fn sort(keys: &mut SharedMemory<u32>, columns: &mut SharedMemory<u32>) {
    let mut size = 2u32;
    while size <= CHUNK {
        let mut stride = size / 2;
        while stride > 0 {
            let mut pair = UNIT_POS;
            while pair < comptime!(CHUNK / 2) {
                // Remainders of powers of two that only the device knows, without a division.
                let low = (2 * pair - (pair & (stride - 1))) as usize;
                let high = low + stride as usize;
                let (low_key, high_key) = (keys[low], keys[high]);
                let (low_column, high_column) = (columns[low], columns[high]);
                let later = low_key < high_key || (low_key == high_key && low_column > high_column);
                let falling = low as u32 & size == 0;
                if later == falling {
                    keys[low] = high_key;
                    keys[high] = low_key;
                    columns[low] = high_column;
                    columns[high] = low_column;
                }
                pair += UNITS;
            }
            sync_cube();
            stride /= 2;
        }
        size *= 2;
    }
}

/// An integer above 0 that orders as the number does; both zeros are one, and every NaN is the largest.
#[cube]
fn order_key(x: f32) -> u32 {
    let bits = u32::reinterpret(x);
    let magnitude = bits & 0x7fff_ffffu32;
    let negative = magnitude != 0 && bits > 0x7fff_ffffu32;
    let key = select(negative, !bits, magnitude | 0x8000_0000u32);
    select(magnitude > 0x7f80_0000u32, 0xffff_ffffu32.runtime(), key)
}

/// The bits of the number that has this key.
#[cube]
fn key_bits(key: u32) -> u32 {
    select(key > 0x7fff_ffffu32, key & 0x7fff_ffffu32, !key)
}
