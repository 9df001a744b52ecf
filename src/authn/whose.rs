//! The principal of a request to one of Doorward's own paths, and its place in the audit trail: both are there only once it is answered.

use std::sync::{Arc, Mutex};

use super::Principal;
use crate::{audit::Reservation, lock::lock};

/// The principal of a request to one of Doorward's own paths, for its line in the audit trail, and the place of that line. No scheme of a
/// route looks for one there, so the endpoint that answers sets both.
#[derive(Clone, Debug, Default)]
pub struct Whose(Arc<Mutex<Found>>);

#[derive(Debug, Default)]
struct Found {
    principal: Option<Arc<Principal>>,
    place: Option<Reservation>,
}

impl Whose {
    /// Sets the principal, in place of the one before: a login may end with somebody else than it began with.
    pub fn is(&self, principal: &Arc<Principal>) {
        lock(&self.0).principal = Some(Arc::clone(principal));
    }

    pub fn known(&self) -> Option<Arc<Principal>> {
        lock(&self.0).principal.clone()
    }

    /// Keeps the place that was taken for its line.
    pub fn holds(&self, place: Reservation) {
        lock(&self.0).place = Some(place);
    }

    /// Gives that place to who writes the line.
    pub fn take_place(&self) -> Option<Reservation> {
        lock(&self.0).place.take()
    }
}
