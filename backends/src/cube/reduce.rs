//! Sums and maxima over units that work together.

use cubecl::prelude::*;

/// Neighbouring units that work on one number.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct Lanes {
    /// How many: a power of two up to the cube's units.
    pub(super) count: u32,
    /// Units of a plane, or 0 where planes cannot add.
    pub(super) plane: u32,
}

/// The sum over each [`Lanes`], known to all of them.
///
/// `scratch` has an element for each unit. All units of the cube must come here together; `scratch` is free again afterwards.
#[cube]
pub(super) fn sum_of_lanes(value: f32, scratch: &mut SharedMemory<f32>, #[comptime] lanes: Lanes) -> f32 {
    let plane = comptime!(lanes.plane);
    let lanes = comptime!(lanes.count);
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

/// The largest over each [`Lanes`], at most 64 units; as [`sum_of_lanes`].
#[cube]
pub(super) fn max_of_lanes(value: f32, scratch: &mut SharedMemory<f32>, #[comptime] lanes: Lanes) -> f32 {
    let plane = comptime!(lanes.plane);
    let lanes = comptime!(lanes.count);
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
