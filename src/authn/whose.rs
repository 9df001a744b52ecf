//! The principal of a request to one of Doorward's own paths, which is known only once it is answered.

use std::sync::{Arc, Mutex};

use super::Principal;
use crate::lock::lock;

/// The principal of a request to one of Doorward's own paths, for its line in the audit trail. No scheme of a route looks for one
/// there, so the endpoint that answers sets it.
#[derive(Clone, Debug, Default)]
pub struct Whose(Arc<Mutex<Option<Arc<Principal>>>>);

impl Whose {
    /// Sets the principal, in place of the one before: a login may end with somebody else than it began with.
    pub fn is(&self, principal: &Arc<Principal>) {
        *lock(&self.0) = Some(Arc::clone(principal));
    }

    pub fn known(&self) -> Option<Arc<Principal>> {
        lock(&self.0).clone()
    }
}
