//! The life of a request, from the listener's hands to the upstream's. Begin with [`pipeline`].

mod apply;
mod caused;
mod dashboard;
mod delivery;
pub mod exchange;
mod forward_auth;
pub mod headers;
mod held;
pub mod host;
pub mod method;
pub(crate) mod notes;
pub mod outbound;
pub mod path;
pub mod pipeline;
pub mod refusals;
pub mod respond;
pub mod route;
pub mod sanitize;
mod step_up;

pub use self::forward_auth::PATH as FORWARD_AUTH;
