//! The kinds of an issuer's principals, by its settings and those of its clients.

use std::collections::HashMap;

use serde::Deserialize as _;
use serde_json::{Map, Value};

use super::defaults::{Defaults, kind_of_logins};
use crate::{
    authn::{Kind, Scheme, principal::KIND_CLAIM},
    config::raw::{self, Preset},
};

/// The settings that determine the kind of a principal.
#[derive(Debug, Default)]
pub struct Kinds {
    /// Whether tokens have it as a claim, as Doorward's own do.
    pub is_claim: bool,
    pub of_issuer: Option<Kind>,
    /// The kind of people who log in.
    pub of_logins: Option<Kind>,
    pub clients: HashMap<Box<str>, KnownClient>,
}

/// The settings of a client.
#[derive(Debug)]
pub struct KnownClient {
    pub kind: Option<Kind>,
    /// The subject of its own tokens, if that is not its id.
    pub subject: Option<Box<str>>,
}

impl Kinds {
    /// The settings of an entry of the configuration.
    pub fn of(raw: &raw::Issuer) -> Self {
        let known = |client: &raw::Client| KnownClient {
            kind: client.kind,
            subject: client.subject.as_deref().map(Into::into),
        };
        Self {
            is_claim: raw.preset == Some(Preset::Doorward),
            of_issuer: raw.kind.or_else(|| Defaults::of(raw.preset).kind),
            of_logins: kind_of_logins(raw),
            clients: raw.clients.iter().map(|client| (client.id.as_str().into(), known(client))).collect(),
        }
    }

    /// The kind of the subject, whoever acts for them: by the settings of the client, then those of the login (for a
    /// session), then those of the issuer; without any, an agent. A token whose subject is its own client (client
    /// credentials, RFC 9068 section 2.2) is never human: it is an agent, if the settings say human. `is_acted_for`:
    /// the token may be issued to whoever acts, and the kind of that client makes no agent of a person.
    pub fn of_subject(
        &self,
        subject: &str,
        client: Option<&str>,
        scheme: Scheme,
        claims: &Map<String, Value>,
        is_acted_for: bool,
    ) -> Kind {
        if self.is_claim {
            return claims.get(KIND_CLAIM).and_then(|kind| Kind::deserialize(kind).ok()).unwrap_or(Kind::Agent);
        }
        let of_client = client.and_then(|client| self.clients.get(client)?.kind);
        let of_login = self.of_logins.filter(|_| scheme == Scheme::Session);
        let of_all = of_login.or(self.of_issuer);
        let kind = of_client.or(of_all).unwrap_or(Kind::Agent);
        let machine = client.is_some_and(|client| client == subject || self.is_client(client, subject));
        match machine {
            true if kind == Kind::Human => Kind::Agent,
            false if is_acted_for && of_all == Some(Kind::Human) => Kind::Human,
            _ => kind,
        }
    }

    /// Whether some caller of the issuer can be of a kind. `clients` limits this to callers with these clients, unless
    /// it is empty. Any issuer can have agents: a caller with an actor is one, and so is a client that acts for itself.
    pub fn may_be(&self, kind: Kind, clients: &[String]) -> bool {
        if kind == Kind::Agent || self.is_claim {
            return true;
        }
        let is_usual = self.of_issuer == Some(kind) || self.of_logins == Some(kind);
        let set = |id: &String| self.clients.get(id.as_str())?.kind;
        match clients {
            [] => is_usual || self.clients.values().any(|client| client.kind == Some(kind)),
            clients => clients.iter().any(|id| set(id).map_or(is_usual, |set| set == kind)),
        }
    }

    /// The subject of the tokens that the client has for itself, if configured.
    pub fn own_subject(&self, client: Option<&str>) -> Option<&str> {
        self.clients.get(client?)?.subject.as_deref()
    }

    /// Whether a subject is the client itself, and not a person (RFC 9068 section 2.2).
    pub fn is_client(&self, client: &str, subject: &str) -> bool {
        subject == self.own_subject(Some(client)).unwrap_or(client)
    }
}
