//! What Doorward knows of Kubernetes: the attributes of a request, and the bytes of impersonation.

pub mod attributes;
pub mod impersonation;

pub use attributes::Attributes;
