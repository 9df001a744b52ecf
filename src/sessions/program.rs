//! Sessions that a program holds (`doorward login`): their id comes as a bearer token with a prefix of its own. No browser
//! adds it by itself, so what binds cookies to our own pages has no say; all else is as with a browser's session.

use std::{net::IpAddr, sync::Arc};

use http::HeaderMap;

use super::{
    NewSession, Origin, Session, Sessions,
    record::{HANDLE, Holder, SessionId},
};
use crate::{
    authn::{Presented, bearer},
    error::{Reason, Rejection},
};

const SIGN_IN: &str = "run `doorward login` again";

/// Whether a bearer token is the handle of a program's session, good or not.
pub fn is_handle(token: &str) -> bool {
    token.starts_with(HANDLE)
}

impl Sessions {
    /// Begins a session of a program. Gives its handle.
    pub async fn create_for_program(
        &self,
        new: NewSession<'_>,
        machine: String,
    ) -> Result<(String, Arc<Session>), Rejection> {
        let (id, session) = self.create_for(new, Some(machine)).await?;
        Ok((id.to_handle(), session))
    }

    /// Whose session a handle is.
    pub async fn authenticate_handle(
        &self,
        handle: &str,
        origin: &Origin,
        address: IpAddr,
    ) -> Result<Arc<Session>, Rejection> {
        let id = SessionId::parse_handle(handle).ok_or_else(|| {
            Rejection::new(Reason::CredentialMalformed, "the session handle is not one of ours").fix(SIGN_IN)
        })?;
        self.find_true(id.hash(), Holder::Program, origin, address).await.map_err(|rejection| {
            match rejection.reason() {
                Reason::SessionExpired => rejection.fix(SIGN_IN),
                _ => rejection,
            }
        })
    }

    /// The session whose handle these headers carry; `None` if they carry none.
    pub async fn of_program(
        &self,
        headers: &HeaderMap,
        origin: &Origin,
        address: IpAddr,
    ) -> Result<Option<Arc<Session>>, Rejection> {
        match bearer::presented(headers, None, false) {
            Presented::Good(token) if is_handle(&token.token) => {
                self.authenticate_handle(&token.token, origin, address).await.map(Some)
            }
            _ => Ok(None),
        }
    }
}
