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
        // Few barriers: the lanes sum shares of 16, then each unit sums the shares.
        let share = comptime!(Ord::min(lanes, 16));
        let lane = UNIT_POS % lanes;
        let first = UNIT_POS - lane;
        scratch[UNIT_POS as usize] = value;
        sync_cube();
        let mut sum = 0.0f32;
        #[unroll]
        for i in 0..share {
            sum += scratch[(first + lane / share * share + i) as usize];
        }
        sync_cube();
        if comptime!(lanes > share) {
            scratch[UNIT_POS as usize] = sum;
            sync_cube();
            sum = 0.0f32;
            #[unroll]
            for i in 0..comptime!(lanes / share) {
                sum += scratch[(first + i * share) as usize];
            }
            sync_cube();
        }
        sum
    }
}

/// The largest over each `lanes` neighbouring units, at most 64; as [`sum_of_lanes`].
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
        let first = UNIT_POS - UNIT_POS % lanes;
        scratch[UNIT_POS as usize] = value;
        sync_cube();
        let mut most = value;
        #[unroll]
        for i in 0..lanes {
            most = max(most, scratch[(first + i) as usize]);
        }
        sync_cube();
        most
    }
}
