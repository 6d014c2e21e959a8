//! The model families of emberlm.
