//! Sums and maxima over units that work together.

use cubecl::prelude::*;

/// The sum over each `lanes` neighbouring units, known to all of them.
///
/// `lanes` is a power of two up to the cube's units, `plane` the units of a plane or 0 where planes cannot add, `scratch` has
/// an element for each unit. All units of the cube must come here together; `scratch` is free again afterwards.
#[cube]
pub(super) fn sum_of_lanes(
    value: f32,
    scratch: &mut SharedMemory<f32>,
    #[comptime] lanes: u32,
    #[comptime] plane: u32,
) -> f32 {
    if comptime!(plane > 0 && lanes == plane) {
        plane_sum(value)
    } else if comptime!(plane > 0 && lanes < plane) {
        let mut sum = value;
        #[unroll]
        for step in 0..comptime!(lanes.ilog2()) {
            sum += plane_shuffle_xor(sum, comptime!(1u32 << step));
        }
        sum
    } else if comptime!(plane > 0) {
        let part = plane_sum(value);
        if UNIT_POS % plane == 0 {
            scratch[(UNIT_POS / plane) as usize] = part;
        }
        sync_cube();
        let first = UNIT_POS / lanes * (lanes / plane);
        let mut sum = 0.0f32;
        #[unroll]
        for i in 0..comptime!(lanes / plane) {
            sum += scratch[(first + i) as usize];
        }
        sync_cube();
        sum
    } else {
        let lane = UNIT_POS % lanes;
        scratch[UNIT_POS as usize] = value;
        sync_cube();
        #[unroll]
        for step in 0..comptime!(lanes.ilog2()) {
            let half = comptime!(lanes >> (step + 1));
            if lane < half {
                let other = scratch[(UNIT_POS + half) as usize];
                scratch[UNIT_POS as usize] += other;
            }
            sync_cube();
        }
        let sum = scratch[(UNIT_POS - lane) as usize];
        sync_cube();
        sum
    }
}

/// The largest over each `lanes` neighbouring units; as [`sum_of_lanes`].
#[cube]
pub(super) fn max_of_lanes(
    value: f32,
    scratch: &mut SharedMemory<f32>,
    #[comptime] lanes: u32,
    #[comptime] plane: u32,
) -> f32 {
    if comptime!(plane > 0 && lanes == plane) {
        plane_max(value)
    } else {
        let lane = UNIT_POS % lanes;
        scratch[UNIT_POS as usize] = value;
        sync_cube();
        #[unroll]
        for step in 0..comptime!(lanes.ilog2()) {
            let half = comptime!(lanes >> (step + 1));
            if lane < half {
                let other = scratch[(UNIT_POS + half) as usize];
                let own = scratch[UNIT_POS as usize];
                scratch[UNIT_POS as usize] = max(own, other);
            }
            sync_cube();
        }
        let most = scratch[(UNIT_POS - lane) as usize];
        sync_cube();
        most
    }
}
