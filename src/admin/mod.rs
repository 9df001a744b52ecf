//! For those who operate Doorward: health, metrics, and the socket for commands. Nothing here is on the way of a
//! proxied request, except the counters.

mod connections;
pub mod health;
pub mod health_metric;
pub mod metrics;
pub mod server;
pub mod socket;
