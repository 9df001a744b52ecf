//! Whose a request to one of Doorward's own paths is.

use std::sync::{Arc, Mutex, PoisonError};

use super::Principal;

/// Whose a request to one of Doorward's own paths turns out to be, for its line in the audit trail. The endpoint that answers finds
/// it out, as no scheme of a route does there.
#[derive(Clone, Debug, Default)]
pub struct Whose(Arc<Mutex<Option<Arc<Principal>>>>);

impl Whose {
    /// It is of `principal`, whoever it seemed to be of before: a login ends with somebody else than it began with.
    pub fn is(&self, principal: &Arc<Principal>) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Some(Arc::clone(principal));
    }

    pub fn known(&self) -> Option<Arc<Principal>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}
