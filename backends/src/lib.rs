//! CPU kernels and device discovery of emberlm.
