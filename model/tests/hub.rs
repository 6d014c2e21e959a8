//! Downloads from a hub on 127.0.0.1 that has every fault.

#[path = "hub/faults.rs"]
mod faults;
#[path = "hub_support/mod.rs"]
mod hub_support;
#[path = "hub/many.rs"]
mod many;
#[path = "hub/models.rs"]
mod models;
#[path = "hub/secrets.rs"]
mod secrets;
#[path = "hub/support.rs"]
mod support;
#[path = "hub/tls.rs"]
mod tls;
