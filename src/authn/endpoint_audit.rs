//! Facts for the audit record of a request to one of Doorward's own paths, which are known only once it is answered.

use std::sync::{Arc, Mutex};

use super::Principal;
use crate::{
    audit::{FailedLogin, Reservation},
    error::Rejection,
    lock::lock,
};

/// What an endpoint reports for the audit record of its request: the principal, the reservation, and why a login
/// failed. Requests to Doorward's own paths do not pass `authn::schemes`, so the endpoint sets them while it answers.
#[derive(Clone, Debug, Default)]
pub struct EndpointAudit(Arc<Mutex<Found>>);

#[derive(Debug, Default)]
struct Found {
    principal: Option<Arc<Principal>>,
    reservation: Option<Reservation>,
    issuer: Option<Arc<str>>,
    failed_login: Option<(FailedLogin, Option<Rejection>)>,
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

    /// Sets the issuer of the login that the request belongs to.
    pub fn set_issuer(&self, issuer: &Arc<str>) {
        lock(&self.0).issuer = Some(Arc::clone(issuer));
    }

    pub fn issuer(&self) -> Option<Arc<str>> {
        lock(&self.0).issuer.clone()
    }

    /// Sets why the login failed, with the refusal if there was one.
    pub fn set_failed_login(&self, failed: FailedLogin, refusal: Option<Rejection>) {
        lock(&self.0).failed_login = Some((failed, refusal));
    }

    pub fn take_failed_login(&self) -> Option<(FailedLogin, Option<Rejection>)> {
        lock(&self.0).failed_login.take()
    }
}
