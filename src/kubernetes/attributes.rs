//! The attributes of a Kubernetes API request, as the API server's own request-info resolver reads them
//! (`k8s.io/apiserver/pkg/endpoints/request/requestinfo.go`). The request that Doorward decides and the one that the
//! API server authorizes must be the same, so the resolver's quirks are reproduced, and ambiguous requests are refused.

mod query;

use std::fmt::Write as _;

use http::Method;
use percent_encoding::percent_decode_str;
use serde::Deserialize;

use query::{BOOLEANS, IDENTIFYING, Query};

use crate::error::{Reason, Rejection};

/// The attributes of a request to Kubernetes.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub struct Attributes {
    /// Whether the path names a resource. If not, only `verb` (the method in lower case) and `path` are meaningful.
    pub is_resource: bool,
    /// `get`, `list`, `watch`, `create`, `update`, `patch`, `delete`, `deletecollection`, `proxy`. Empty: unknown,
    /// deny.
    pub verb: String,
    /// `""` is the core group.
    pub api_group: String,
    pub api_version: String,
    pub namespace: String,
    pub resource: String,
    pub subresource: String,
    pub name: String,
    /// The path. It is not used for resources.
    #[serde(skip)]
    pub path: String,
    /// Whether the request is for a log that is followed (`?follow`).
    #[serde(skip)]
    pub follow: bool,
    /// Whether it is a patch that creates the object if it does not exist: server-side apply.
    pub apply: bool,
}

/// Why the attributes of a request are not certain.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum InvalidAttributes {
    #[error("the path ends where a resource is expected")]
    NoResource,
    #[error(
        "the path contains a percent-encoding that is malformed, or that hides a slash, a NUL or bytes that are not UTF-8"
    )]
    Encoding,
    #[error("the query gives `{0}` more than once, in different ways")]
    Ambiguous(&'static str),
    #[error("the query gives `{0}` a value that is not ASCII, which parsers interpret differently")]
    NotAscii(&'static str),
    #[error("the query has more than {0} parts, and the API server would ignore all of them")]
    TooManyParts(usize),
    #[error("a POST to the path of an object creates the object that its body names, whatever name is in the path")]
    NamedCreate,
}

impl From<InvalidAttributes> for Rejection {
    fn from(error: InvalidAttributes) -> Self {
        match error {
            // The API server's answer for resources that it serves itself.
            InvalidAttributes::NamedCreate => {
                Self::method_not_allowed("GET, HEAD, PUT, PATCH, DELETE", error.to_string())
                    .fix("send it to the path without the name, or send a PUT or a PATCH")
            }
            _ => Self::new(Reason::BadRequest, format!("the request to Kubernetes is ambiguous: {error}"))
                .fix("send an unambiguous path and query"),
        }
    }
}

/// Subresources that carry bytes to and from a container or a service. They are writes whatever the method is: a
/// WebSocket `exec` is a GET (kubernetes/kubernetes#78741).
const TUNNELS: [&str; 4] = ["exec", "attach", "portforward", "proxy"];

impl Attributes {
    /// Reads the attributes of a request. `path` is the canonical path that is forwarded, still percent-encoded.
    pub fn parse(method: &Method, path: &str, query: Option<&str>) -> Result<Self, InvalidAttributes> {
        let decoded = decode(path)?;
        let segments: Vec<&str> = match decoded.trim_matches('/') {
            "" => Vec::new(),
            trimmed => trimmed.split('/').collect(),
        };
        let query = |telling: &[&'static str]| Query::parse(query.unwrap_or_default(), telling);

        let (api_group, api_version, rest) = match segments.as_slice() {
            ["api", version, rest @ ..] if !rest.is_empty() => ("", *version, rest),
            ["apis", group, version, rest @ ..] if !rest.is_empty() => (*group, *version, rest),
            _ => {
                query(&[])?;
                return Ok(Self { verb: method.as_str().to_ascii_lowercase(), path: decoded, ..Self::default() });
            }
        };

        // The deprecated verbs in the path, before the resource.
        let (mut verb, rest) = match rest {
            ["watch" | "proxy"] => return Err(InvalidAttributes::NoResource),
            [verb @ ("watch" | "proxy"), rest @ ..] => (*verb, rest),
            rest => (verb_of(method), rest),
        };

        // A namespace is a prefix of the path of its contents, and a resource itself.
        let (namespace, rest) = match rest {
            ["namespaces", namespace] | ["namespaces", namespace, "status" | "finalize", ..] => (*namespace, rest),
            ["namespaces", namespace, rest @ ..] => (*namespace, rest),
            rest => ("", rest),
        };
        let resource = rest.first().copied().unwrap_or_default();
        let mut name = rest.get(1).copied().unwrap_or_default();
        let subresource = if verb == "proxy" { "" } else { rest.get(2).copied().unwrap_or_default() };
        // The query of a proxied request is for its destination; the API server does not read it.
        let query = match (verb == "proxy" || subresource == "proxy", name.is_empty()) {
            (true, _) => query(&[]),
            (false, true) => query(&IDENTIFYING),
            (false, false) => query(&BOOLEANS),
        }?;

        if name.is_empty() {
            match verb {
                "get" => {
                    verb = if query.watch { "watch" } else { "list" };
                    name = query.name.as_deref().unwrap_or_default();
                }
                "delete" => verb = "deletecollection",
                _ => {}
            }
        } else if verb == "create" && subresource.is_empty() {
            // For a custom resource the API server creates what the body names, and ignores the name that rules would
            // see.
            return Err(InvalidAttributes::NamedCreate);
        }

        Ok(Self {
            is_resource: true,
            verb: verb.to_owned(),
            api_group: api_group.to_owned(),
            api_version: api_version.to_owned(),
            namespace: namespace.to_owned(),
            resource: resource.to_owned(),
            subresource: subresource.to_owned(),
            name: name.to_owned(),
            follow: query.follow,
            path: decoded,
            apply: false,
        })
    }

    /// Determines from the content types whether it is server-side apply. Only a patch of a whole object is, for which
    /// the API server asks its authorizer as for a create (`handlers/patch.go`).
    #[must_use]
    pub fn sent_as<'t>(self, types: impl IntoIterator<Item = &'t [u8]>) -> Self {
        // In YAML or CBOR.
        const APPLY: &[u8] = b"application/apply-patch";
        let is_apply = |media: &[u8]| {
            let begins = media.trim_ascii_start().get(..APPLY.len());
            begins.is_some_and(|begins| begins.eq_ignore_ascii_case(APPLY))
        };
        let may_create = self.is_resource && self.verb == "patch" && self.subresource.is_empty();
        let apply = may_create && types.into_iter().any(is_apply);
        Self { apply, ..self }
    }

    /// Whether it carries bytes to or from a container or a service: exec, attach, port-forward and proxy.
    pub fn is_tunnel(&self) -> bool {
        self.is_resource && (self.verb == "proxy" || TUNNELS.contains(&self.subresource.as_str()))
    }

    /// Whether the request reaches another server through the API server.
    pub fn is_proxy(&self) -> bool {
        self.is_resource && (self.verb == "proxy" || self.subresource == "proxy")
    }

    /// Whether the request may change something: everything that is not known to be read-only, and tunnels whatever the
    /// method.
    pub fn is_write(&self) -> bool {
        let reads = match self.is_resource {
            true => matches!(self.verb.as_str(), "get" | "list" | "watch"),
            false => matches!(self.verb.as_str(), "get" | "head" | "options"),
        };
        !reads || self.is_tunnel()
    }

    /// Whether its body contains an object or a part of one. A deletion does not count.
    pub fn brings_object(&self) -> bool {
        matches!(self.verb.as_str(), "create" | "update" | "patch")
    }

    /// Whether the response is long-lived: watches, followed logs and tunnels.
    pub fn is_long_running(&self) -> bool {
        self.is_resource && (self.verb == "watch" || self.is_tunnel() || (self.subresource == "log" && self.follow))
    }

    /// Whether the connection may be upgraded: for everything long-lived, and for logs that are not followed, which
    /// some programs also read over a WebSocket.
    pub fn is_upgradable(&self) -> bool {
        self.is_long_running() || (self.is_resource && self.subresource == "log")
    }

    /// The request in words: `get pods/log "x" in namespace "a"`.
    pub fn in_words(&self) -> String {
        if !self.is_resource {
            return format!("{} {}", self.verb, self.path);
        }
        let mut text =
            format!("{} {}", if self.verb.is_empty() { "(unknown verb)" } else { &self.verb }, self.resource);
        if !self.subresource.is_empty() {
            let _ = write!(text, "/{}", self.subresource);
        }
        if !self.api_group.is_empty() {
            let _ = write!(text, ".{}", self.api_group);
        }
        if !self.name.is_empty() {
            let _ = write!(text, " {:?}", self.name);
        }
        if !self.namespace.is_empty() {
            let _ = write!(text, " in namespace {:?}", self.namespace);
        }
        text
    }
}

fn verb_of(method: &Method) -> &'static str {
    match *method {
        Method::POST => "create",
        Method::GET | Method::HEAD => "get",
        Method::PUT => "update",
        Method::PATCH => "patch",
        Method::DELETE => "delete",
        _ => "",
    }
}

/// Decodes a path as Go's `url.Parse` does. An encoded slash would become a separator there; canonical paths have none.
fn decode(path: &str) -> Result<String, InvalidAttributes> {
    if !path.contains('%') {
        return Ok(path.to_owned());
    }
    let is_hidden = |after: &str| ["2f", "2F", "00"].iter().any(|hidden| after.starts_with(hidden));
    let well_formed = path.split('%').skip(1).all(|after| is_escape(after) && !is_hidden(after));
    match percent_decode_str(path).decode_utf8() {
        Ok(decoded) if well_formed => Ok(decoded.into_owned()),
        _ => Err(InvalidAttributes::Encoding),
    }
}

/// Whether a text begins with the two hex digits of a percent-encoded byte.
fn is_escape(after: &str) -> bool {
    matches!(after.as_bytes(), [a, b, ..] if a.is_ascii_hexdigit() && b.is_ascii_hexdigit())
}

#[cfg(test)]
mod tests;
