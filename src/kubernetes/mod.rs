//! What Doorward knows of Kubernetes: the attributes of a request, the bytes of impersonation, and
//! what somebody may do there.
//!
//! | file | holds |
//! |---|---|
//! | `attributes` | what a request asks, as the API server reads it |
//! | `impersonation` | as whom it runs there |
//! | `access_review` | what somebody may do, asked as that person |
//! | `policy_rule` | a rule of a role |
//! | `listed`, `named` | what `kubectl get` writes, and objects by their names |

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

/// Reads a member that is null, as one is that YAML leaves empty, like one that is not there. So does Go.
pub(crate) fn null_as_default<'de, T: Default + Deserialize<'de>, D: Deserializer<'de>>(
    deserializer: D,
) -> Result<T, D::Error> {
    Option::deserialize(deserializer).map(Option::unwrap_or_default)
}
