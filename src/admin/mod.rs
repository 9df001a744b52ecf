//! Health, metrics and the socket for operator commands. None of it is on the path of a proxied request, except the
//! counters.

mod connections;
pub mod health;
pub mod health_metric;
pub mod metrics;
pub mod server;
pub mod socket;
