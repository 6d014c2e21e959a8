//! Known model shapes with random weights: for benchmarks, estimates and tests that need a model of a size and no checkpoint.

mod random_weights;
pub mod shapes;

pub use random_weights::RandomWeights;
