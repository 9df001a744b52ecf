//! Sessions that a program holds (`doorward login`): the id is a bearer token with a prefix of its own. No browser adds
//! it automatically, so the checks that bind cookies to our own pages do not apply; everything else is as with a
//! browser's session.

use std::{net::IpAddr, sync::Arc};

use http::HeaderMap;

use super::{
    NewSession, Origin, Session, Sessions, provider_gone,
    record::{HANDLE, Holder, Record, SessionId, Uncollected},
    unavailable,
};
use crate::{
    authn::{Presented, bearer},
    clock::Timestamp,
    error::{Reason, Rejection},
};

const SIGN_IN: &str = "run `doorward login` again";

/// Whether a bearer token is the handle of a program's session, valid or not.
pub fn is_handle(token: &str) -> bool {
    token.starts_with(HANDLE)
}

/// The result when a program collects its session.
#[derive(Debug)]
pub enum Collected {
    /// This is the first time.
    Now(Arc<Session>),
    /// It was collected before.
    Before,
    /// It has ended.
    Ended,
}

impl Sessions {
    /// Begins a session for a program, which must collect it before `until`. From now on it is listed, counted and
    /// ended like any other, as the person may change their mind at once. It is not valid before it is collected.
    /// Returns its handle.
    pub async fn create_for_program(
        &self,
        new: NewSession<'_>,
        machine: String,
        until: Timestamp,
    ) -> Result<(String, Arc<Session>), Rejection> {
        let (id, session) = self.create_for(new, Some((machine, Uncollected { until })), None).await?;
        Ok((id.to_handle(), session))
    }

    /// Hands a session over to the program that collects it: once, whoever else tries. An error leaves it unchanged.
    pub async fn collect(&self, handle: &str, origin: &Origin, address: IpAddr) -> Result<Collected, Rejection> {
        let inner = &*self.0;
        let Some(hash) = SessionId::parse_handle(handle).map(|id| id.hash()) else { return Ok(Collected::Ended) };
        let Some((record, version)) = self.read(hash).await.map_err(unavailable)? else { return Ok(Collected::Ended) };
        if record.uncollected.is_none() {
            return Ok(Collected::Before);
        }
        let now = self.now();
        if record.origin != origin.as_str() || record.expires(&inner.settings) <= now {
            return Ok(Collected::Ended);
        }
        let provider = self.provider_of(&record).ok_or_else(provider_gone)?;
        let record = Record { uncollected: None, last_seen: now, address: Some(address), ..record };
        let session = self.session(&**provider, hash, record.clone(), version, now)?;
        self.check_revoked(&session.principal)?;
        // The index first, as everywhere: a session that is not in it until it ends could not be ended with others.
        let index = self.index(&record);
        index.keep(&hash, &record, now).await.map_err(unavailable)?;
        if self.write(hash, &record, version).await.map_err(unavailable)? {
            inner.shared.metrics.seen(hash);
            return Ok(Collected::Now(Arc::new(session)));
        }
        // Somebody else collected it at the same moment, or ended it.
        if self.read(hash).await.map_err(unavailable)?.is_some() {
            return Ok(Collected::Before);
        }
        index.remove(&[hash], now).await.map_err(unavailable)?;
        Ok(Collected::Ended)
    }

    /// Authenticates a session handle.
    pub async fn authenticate_handle(
        &self,
        handle: &str,
        origin: &Origin,
        address: IpAddr,
    ) -> Result<Arc<Session>, Rejection> {
        let id = SessionId::parse_handle(handle).ok_or_else(|| {
            Rejection::new(Reason::CredentialMalformed, "the session handle is not one of ours").fix(SIGN_IN)
        })?;
        self.find_rechecked(id.hash(), Holder::Program, origin, address).await.map_err(|rejection| {
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
            Presented::Valid(token) if is_handle(&token.token) => {
                self.authenticate_handle(&token.token, origin, address).await.map(Some)
            }
            _ => Ok(None),
        }
    }
}
