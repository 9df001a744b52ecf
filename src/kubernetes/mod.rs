//! Kubernetes: the attributes of a request, impersonation headers, and access reviews.
//!
//! | file | holds |
//! |---|---|
//! | `attributes` | the attributes of a request, as the API server reads them |
//! | `impersonation` | the identity that a request has at the API server |
//! | `access_review` | what a principal may do, asked under their identity |
//! | `policy_rule` | a rule of a role |
//! | `listed`, `named` | output of `kubectl get`, and objects by name |

pub mod access_review;
pub mod attributes;
pub mod impersonation;
pub mod listed;
mod named;
mod policy_rule;

use serde::{Deserialize, Deserializer};

pub use attributes::Attributes;
pub use named::{Named, ObjectRef};
pub use policy_rule::PolicyRule;

/// Deserializes `null`, such as an empty value in YAML, like an absent member, as Go does.
pub(crate) fn null_as_default<'de, T: Default + Deserialize<'de>, D: Deserializer<'de>>(
    deserializer: D,
) -> Result<T, D::Error> {
    Option::deserialize(deserializer).map(Option::unwrap_or_default)
}
