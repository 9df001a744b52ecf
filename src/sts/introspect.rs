//! Introspection by resource servers (RFC 7662): whether a token is valid at this moment, which its signature cannot
//! say.

use aws_lc_rs::constant_time::verify_slices_are_equal;
use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Response, StatusCode, header};
use serde_json::{Map, Value, json};
use url::form_urlencoded;

use super::{
    OwnIssuer,
    exchange::Exchanger,
    form::{Form, basic},
    refusal::{Refusal, answer},
};
use crate::{
    audit,
    authn::{CredentialId, Principal, Scheme},
    clock::Timestamp,
    config::{
        raw,
        report::{At, Report},
        resolver::{Resolver, Secret},
    },
    error::Reason,
    issuers::{RUN_CLAIM, acting, exchanged, lives_with, on_behalf_of},
    request::{exchange::Exchange, sanitize::CleanRequest},
    sha256::sha256,
};

/// Members of a response besides `active`: what a resource server may know about a token that is for it.
const TOLD: [&str; 12] =
    ["scope", "client_id", "exp", "iat", "sub", "aud", "iss", "jti", "act", "kind", "origin", RUN_CLAIM];

/// A server that may introspect the tokens that are for it.
#[derive(Debug)]
pub struct ResourceServer {
    id: String,
    secret: Secret,
    audiences: Vec<String>,
}

impl ResourceServer {
    pub fn resolve_all(raw: &[raw::ResourceServer], at: &At, resolver: &mut Resolver) -> Vec<Self> {
        let mut servers: Vec<Self> = Vec::with_capacity(raw.len());
        for (index, server) in raw.iter().enumerate() {
            let at = at.index(index);
            let is_taken = raw.iter().take(index).any(|other| other.id == server.id);
            check(server, is_taken, &at, &mut resolver.report);
            let Some(secret) = resolver.secret(&at.key("secret"), &server.secret) else { continue };
            if secret.expose().len() < 16 {
                resolver
                    .error(&at.key("secret"), "the secret is shorter than 16 bytes")
                    .help("make one with `openssl rand -hex 32`");
            }
            servers.push(Self { id: server.id.clone(), secret, audiences: server.audiences.clone() });
        }
        servers
    }
}

fn check(raw: &raw::ResourceServer, is_taken: bool, at: &At, report: &mut Report) {
    if raw.id.is_empty() || raw.id.contains(':') || is_taken {
        report.error(&at.key("id"), format!("`{}` is empty, has a colon, or is listed twice", raw.id));
    }
    if raw.audiences.is_empty() {
        report
            .error(&at.key("audiences"), "it may ask about no token")
            .help("list the audiences of the tokens that are for it");
    }
}

impl Exchanger<'_> {
    pub async fn introspect(
        &self,
        request: &CleanRequest<()>,
        body: &[u8],
        exchange: &mut Exchange,
    ) -> Result<Response<Bytes>, Refusal> {
        let Some(server) = self.own_issuer.resource_server(request.headers()) else {
            let detail = "only servers in `tokens.resource_servers` may ask about tokens".into();
            exchange.record().refusal = Some(audit::Refusal { reason: Reason::CredentialMissing, detail });
            return Ok(unknown_client());
        };
        let form = Form::parse(request.headers(), body)?;
        let token = form.need("token")?;
        self.check_revocations()?;
        let claims = self.keys.verify(token);
        let active = claims.as_ref().is_some_and(|claims| self.is_active(claims, server));
        if let Some(jti) = claims.as_ref().and_then(|claims| claims.get("jti")?.as_str()) {
            let (token, server) = (jti.to_owned(), server.id.clone());
            exchange.record().introspected = Some(Box::new(audit::Introspected { token, server, active }));
        }
        let Some(claims) = claims.filter(|_| active) else {
            return Ok(answer(StatusCode::OK, &json!({"active": false})));
        };
        let mut told = Map::from_iter([("active".to_owned(), json!(true)), ("token_type".to_owned(), json!("Bearer"))]);
        told.insert("username".to_owned(), claims.get("sub").cloned().unwrap_or_default());
        told.extend(claims.into_iter().filter(|(name, _)| TOLD.contains(&name.as_str())));
        Ok(answer(StatusCode::OK, &Value::Object(told)))
    }

    /// Whether a token that Doorward signed is for this server and valid now.
    fn is_active(&self, claims: &Map<String, Value>, server: &ResourceServer) -> bool {
        let audience = claims.get("aud").and_then(Value::as_str);
        let is_for = audience.is_some_and(|audience| server.audiences.iter().any(|ours| *ours == audience));
        is_for && self.holder(claims).is_some()
    }

    /// The holder of a token that Doorward signed, if it is valid now.
    pub(super) fn holder(&self, claims: &Map<String, Value>) -> Option<Principal> {
        let text = |name: &str| claims.get(name).and_then(Value::as_str);
        let expires = Timestamp::from_secs(claims.get("exp").and_then(Value::as_i64)?);
        let (jti, subject) = (text("jti")?, text("sub")?);
        let principal = Principal {
            credential: CredentialId::Token(jti.into()),
            lives_with: lives_with(claims),
            on_behalf_of: on_behalf_of(claims),
            acting: acting(claims),
            exchanged: exchanged(claims),
            expires,
            ..Principal::new(Scheme::Bearer, self.own_issuer.name(&self.snapshot.issuers), subject, subject)
        };
        let is_ours = text("iss") == Some(self.own_issuer.issuer()) && self.app.clock.now() < expires;
        let is_seen = self.snapshot.issuers.see_run_in(claims);
        (is_ours && is_seen && self.app.revocations.is_revoked(&principal).is_none()).then_some(principal)
    }
}

impl OwnIssuer {
    /// The server that a request authenticates as, by `client_secret_basic` (RFC 6749 section 2.3.1).
    fn resource_server(&self, headers: &HeaderMap) -> Option<&ResourceServer> {
        let (id, secret) = id_and_secret(headers)?;
        let called = |id: &str| self.settings.resource_servers.iter().find(|server| server.id == id);
        let known = called(&id.plain).or_else(|| called(&id.decoded))?;
        secret.is(known.secret.expose()).then_some(known)
    }
}

/// A value that a client sent. The standard requires form encoding, but most clients send it unencoded.
#[cfg_attr(test, derive(Debug, PartialEq, Eq))]
struct Sent {
    plain: String,
    decoded: String,
}

impl Sent {
    fn new(text: &str) -> Self {
        // All of it is one name, whatever characters it has.
        let name = text.replace('&', "%26").replace('=', "%3D");
        let decoded = form_urlencoded::parse(name.as_bytes()).next().map(|(name, _)| name.into_owned());
        Self { plain: text.to_owned(), decoded: decoded.unwrap_or_default() }
    }

    /// Whether it is this secret in either form. Both are compared in constant time.
    fn is(&self, secret: &[u8]) -> bool {
        let ours = sha256(&[secret]);
        // Hashes have equal length, so the comparison does not reveal that of the secret.
        let fits = |text: &str| verify_slices_are_equal(&ours, &sha256(&[text.as_bytes()])).is_ok();
        fits(&self.plain) | fits(&self.decoded)
    }
}

/// Id and secret.
fn id_and_secret(headers: &HeaderMap) -> Option<(Sent, Sent)> {
    let plain = basic(headers)?;
    let (id, secret) = plain.split_once(':')?;
    Some((Sent::new(id), Sent::new(secret)))
}

fn unknown_client() -> Response<Bytes> {
    let why = "authenticate as one of `tokens.resource_servers`, with HTTP Basic";
    let mut response = answer(StatusCode::UNAUTHORIZED, &json!({"error": "invalid_client", "error_description": why}));
    let challenge = HeaderValue::from_static("Basic realm=\"doorward\"");
    response.headers_mut().insert(header::WWW_AUTHENTICATE, challenge);
    response
}

#[cfg(test)]
mod tests {
    use base64::{Engine, prelude::BASE64_STANDARD};

    use super::*;

    #[test]
    fn a_client_authenticates_in_one_way_only() {
        let read = |values: &[&str]| {
            let values = values.iter().map(|value| (header::AUTHORIZATION, value.parse().unwrap()));
            id_and_secret(&values.collect())
        };
        let encoded = |plain: &str| format!("Basic {}", BASE64_STANDARD.encode(plain));
        let pair = |id: &str, secret: &str| Some((Sent::new(id), Sent::new(secret)));
        assert_eq!(read(&[&encoded("api:s")]), pair("api", "s"));
        assert_eq!(read(&[&encoded("a%3Ab:s%25+t")]).unwrap().0.decoded, "a:b");
        for (what, values) in [
            ("nothing", vec![]),
            ("two", vec![encoded("api:s"), encoded("api:s")]),
            ("bearer", vec!["Bearer x".to_owned()]),
            ("no colon", vec![encoded("api")]),
            ("not base64", vec!["Basic ???".to_owned()]),
        ] {
            let values: Vec<&str> = values.iter().map(String::as_str).collect();
            assert_eq!(read(&values), None, "{what}");
        }
    }

    #[test]
    fn a_secret_counts_as_it_is_and_form_encoded_and_no_part_of_it_does() {
        for (sent, secret, is_it) in [
            ("ab=", "ab=", true),
            ("ab%3D", "ab=", true),
            ("ab", "ab=", false),
            ("a+b", "a+b", true),
            ("a%2Bb", "a+b", true),
            ("a+b", "a b", true),
            ("a&b", "a&b", true),
            ("a%26b", "a&b", true),
            ("s=x", "s", false),
            ("s&x", "s", false),
            ("=s", "s", false),
            ("", "s", false),
            ("s%25+t", "s% t", true),
        ] {
            assert_eq!(Sent::new(sent).is(secret.as_bytes()), is_it, "{sent} {secret}");
        }
    }
}
