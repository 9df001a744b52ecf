//! What Doorward knows of Kubernetes: the attributes of a request, the bytes of impersonation, and
//! what somebody may do there.

pub mod access_review;
pub mod attributes;
pub mod impersonation;
pub mod listed;
mod named;
mod policy_rule;

pub use attributes::Attributes;
pub use named::Named;
pub use policy_rule::PolicyRule;
