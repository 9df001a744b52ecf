//! The principal and the audit reservation of a request to one of Doorward's own paths, both of which exist only once
//! it is answered.

use std::sync::{Arc, Mutex};

use super::Principal;
use crate::{audit::Reservation, lock::lock};

/// What an endpoint reports for the audit record of its request: the principal and the reservation. Requests to
/// Doorward's own paths do not pass `authn::schemes`, so the endpoint sets both while it answers.
#[derive(Clone, Debug, Default)]
pub struct EndpointAudit(Arc<Mutex<Found>>);

#[derive(Debug, Default)]
struct Found {
    principal: Option<Arc<Principal>>,
    reservation: Option<Reservation>,
}

impl EndpointAudit {
    /// Sets the principal, replacing an earlier one: a login may end with another person than it began with.
    pub fn set_principal(&self, principal: &Arc<Principal>) {
        lock(&self.0).principal = Some(Arc::clone(principal));
    }

    pub fn principal(&self) -> Option<Arc<Principal>> {
        lock(&self.0).principal.clone()
    }

    /// Stores the reservation for its audit record.
    pub fn set_reservation(&self, reservation: Reservation) {
        lock(&self.0).reservation = Some(reservation);
    }

    /// Takes the reservation, to write the record with it.
    pub fn take_reservation(&self) -> Option<Reservation> {
        lock(&self.0).reservation.take()
    }
}
