//! Issuers: what they publish, whether it agrees with the configuration, and whether they know Doorward as a client.

use std::{sync::Arc, time::Duration};

use bytes::Bytes;
use futures_util::future::join_all;
use http::{HeaderMap, HeaderValue, Request, Response, header};
use serde_json::Value;
use time::{OffsetDateTime, format_description::well_known::Rfc2822};
use url::Url;
use uuid::Uuid;

use super::{Check, Doctor, Finding};
use crate::{
    clock::{Clock, Timestamp},
    egress::{Bounds, Egress},
    issuers::{
        Issuer, KEY_SET_TYPES, KeySource, Keys, MAX_KEY_SET, MAX_METADATA, Metadata, Quoted, discovery_location,
    },
    oidc::{Client, Github, LoginClient, Protocol, redirect},
    sessions::Origin,
};

const PATIENCE: Duration = Duration::from_secs(10);

/// `Date` has whole seconds, and servers renew it once a second.
const UNSHARP: Duration = Duration::from_secs(2);

/// The maximum size of a page of a provider.
const MAX_PAGE: usize = 1 << 20;

/// As a browser requests it.
const PAGE_TYPES: &str = "text/html, application/json;q=0.5";

/// The errors of a provider that knows the client and the address, if nobody is signed in (OpenID Connect Core 1.0
/// section 3.1.2.6).
const NOBODY: [&str; 4] = ["login_required", "interaction_required", "consent_required", "account_selection_required"];

pub(super) async fn examine(doctor: &Doctor<'_>, wants: impl Fn(Check) -> bool) -> Vec<Finding> {
    let origins = if wants(Check::Redirect) { doctor.origins() } else { Vec::new() };
    let asks_introspection = wants(Check::Introspection);
    let issuers = doctor.resolved.issuers().iter().filter(|issuer| issuer.keys().settings().source != KeySource::Own);
    let several = doctor.resolved.clients().len() > 1;
    let looks = issuers.map(async |issuer: &Arc<Issuer>| {
        let client = doctor.resolved.clients().iter().find(|client| client.issuer == *issuer.name());
        let subject = format!("issuer `{}`", issuer.name());
        let checks =
            IssuerChecks { issuer, clock: &doctor.clock, asks_introspection, several, subject, findings: Vec::new() };
        checks.all(client, &origins).await
    });
    join_all(looks).await.concat()
}

/// The checks of one issuer.
struct IssuerChecks<'a> {
    issuer: &'a Issuer,
    clock: &'a Clock,
    asks_introspection: bool,
    /// Whether people sign in at other issuers, too.
    several: bool,
    subject: String,
    findings: Vec<Finding>,
}

impl IssuerChecks<'_> {
    async fn all(mut self, client: Option<&LoginClient>, origins: &[Origin]) -> Vec<Finding> {
        let settings = self.issuer.keys().settings();
        let github = client.and_then(|known| match &known.client.protocol {
            Protocol::Github(github) => Some(github),
            Protocol::OpenId => None,
        });
        let signs_in = client.is_some() && github.is_none();
        let metadata = if settings.discover { self.discovery(signs_in).await } else { None };
        if let Some(document) = settings.url.as_ref().filter(|_| !settings.discover).and_then(of_cluster) {
            self.cluster(&document).await;
        }
        let keys = settings.url.clone().or_else(|| metadata.as_ref()?.jwks_uri.clone());
        match (keys, github) {
            (Some(url), _) => self.keys(&url).await,
            (None, Some(github)) => self.api(github).await,
            (None, None) => {
                let message = "its discovery document does not say where its keys are";
                self.findings.push(Finding::skipped(Check::Algorithms, &self.subject, message));
            }
        }
        if self.asks_introspection {
            self.introspection(metadata.as_ref()).await;
        }
        let asks_userinfo = client.is_some_and(|known| known.client.asks_userinfo);
        if asks_userinfo && metadata.as_ref().is_some_and(|metadata| metadata.userinfo_endpoint.is_none()) {
            let message = "it announces no userinfo endpoint with an https address, which each login must query \
                           because of `login.userinfo`";
            let fix = "have it announce one, or remove `userinfo`: until then nobody can sign in there";
            self.findings.push(Finding::fault(Check::Discovery, &self.subject, message, fix));
        }
        if let Some(LoginClient { client, .. }) = client {
            let names_itself = metadata.as_ref().is_some_and(|metadata| metadata.iss_parameter_supported);
            let of_github = github.map(|github| github.authorization_endpoint().clone());
            match metadata.and_then(|metadata| metadata.authorization_endpoint).or(of_github) {
                Some(endpoint) => {
                    let path = redirect::path(self.issuer.name(), redirect::is_own(client, names_itself, self.several));
                    for origin in origins {
                        self.redirect(&endpoint, client, &origin.url(&path)).await;
                    }
                    if !origins.is_empty() && redirect::is_at_risk(client, names_itself, self.several) {
                        let message = "it shares its redirect address with other providers, and does not name itself \
                                       in its answers: codes of another provider could be taken for its own";
                        let own = redirect::path(self.issuer.name(), true);
                        let fix = format!("remove `redirect: shared`, and register `https://HOST{own}` there");
                        self.findings.push(Finding::warning(Check::Redirect, &self.subject, message, fix));
                    }
                }
                None => {
                    let message = "its discovery document does not say where people sign in";
                    self.findings.push(Finding::skipped(Check::Redirect, &self.subject, message));
                }
            }
        }
        self.findings
    }

    /// `signs_in`: whether people sign in with what it announces.
    async fn discovery(&mut self, signs_in: bool) -> Option<Metadata> {
        let settings = self.issuer.keys().settings();
        let location = discovery_location(&settings.issuer);
        let asked = self.clock.now();
        let answer = match Url::parse(&location) {
            Ok(url) => self.get(&url, true, MAX_METADATA).await,
            Err(error) => Err(format!("{location} is not an address: {error}")),
        };
        let answer = match answer {
            Ok(answer) => answer,
            Err(why) => {
                self.unreadable(why);
                return None;
            }
        };
        self.compare_clocks(asked, answer.headers());
        let document = serde_json::from_slice::<Value>(answer.body()).ok();
        let named = document.as_ref().and_then(|document| document.get("issuer")?.as_str());
        let called = settings.document_issuer();
        if let Some(named) = named.filter(|named| **named != *called) {
            self.findings.push(Finding::good(Check::Discovery, &self.subject, format!("{location} can be read")));
            self.findings.push(Finding::fault(
                Check::Issuer,
                &self.subject,
                told_otherwise(named, &called),
                AS_IT_DOES,
            ));
            return None;
        }
        match Metadata::parse(answer.body(), &called) {
            Ok(metadata) => {
                self.findings.push(Finding::good(Check::Discovery, &self.subject, format!("{location} can be read")));
                let message = format!("it calls itself {called}, as the configuration does");
                self.findings.push(Finding::good(Check::Issuer, &self.subject, message));
                for endpoint in &metadata.ignored {
                    let message =
                        format!("the `{endpoint}` of its discovery document is not an https address, and is not used");
                    let fix = "have the provider announce its public address, if people sign in there or its tokens are \
                               introspected; the keys are used in any case";
                    let is_needed = signs_in && matches!(*endpoint, "authorization_endpoint" | "token_endpoint");
                    self.findings.push(if is_needed {
                        let message = format!("{message}: nobody can sign in there");
                        Finding::fault(Check::Discovery, &self.subject, message, fix)
                    } else {
                        Finding::warning(Check::Discovery, &self.subject, message, fix)
                    });
                }
                if let Some(why) = self.issuer.introspection_trouble(&metadata) {
                    let fix = "its manual says where it answers (RFC 7662); until that is configured, no token can be \
                               introspected";
                    self.findings.push(Finding::fault(Check::Discovery, &self.subject, why, fix));
                }
                Some(metadata)
            }
            Err(why) => {
                self.unreadable(format!("{location}: {why}"));
                None
            }
        }
    }

    /// The name of a cluster (`--service-account-issuer`) is usually not an address at which it can be reached; the
    /// place of its keys is.
    async fn cluster(&mut self, location: &Url) {
        let called = self.issuer.keys().settings().document_issuer();
        let answer = match self.get(location, true, MAX_METADATA).await {
            Ok(answer) => answer,
            Err(why) => {
                let message = format!("the name of the cluster cannot be read: {why}");
                self.findings.push(Finding::skipped(Check::Issuer, &self.subject, message));
                return;
            }
        };
        let document = serde_json::from_slice::<Value>(answer.body()).ok();
        let finding = match document.as_ref().and_then(|document| document.get("issuer")?.as_str()) {
            Some(named) if *named == *called => Finding::good(
                Check::Issuer,
                &self.subject,
                format!("it calls itself {called}, as the configuration does"),
            ),
            Some(named) => Finding::fault(Check::Issuer, &self.subject, told_otherwise(named, &called), AS_IT_DOES),
            None => Finding::skipped(Check::Issuer, &self.subject, format!("{location} names no issuer")),
        };
        self.findings.push(finding);
    }

    /// Reports that the discovery document, or what is used in its place, cannot be read.
    fn unreadable(&mut self, why: String) {
        let fix = "open that address from where Doorward runs; check `issuer`, `ca`, the proxy and the network in \
                   between: in a cluster the NetworkPolicy `doorward` needs an entry for it (docs/install.md, \"Where \
                   Doorward may go\")";
        self.findings.push(Finding::fault(Check::Discovery, &self.subject, why, fix));
    }

    /// GitHub has no discovery document; what matters is whether it answers questions about people.
    async fn api(&mut self, github: &Github) {
        let asked = self.clock.now();
        match self.get(github.probe(), false, MAX_PAGE).await {
            Ok(answer) => {
                self.compare_clocks(asked, answer.headers());
                let message = format!("its API answers at {}", github.probe());
                self.findings.push(Finding::good(Check::Discovery, &self.subject, message));
            }
            Err(why) => self.unreadable(why),
        }
    }

    async fn keys(&mut self, url: &Url) {
        let settings = self.issuer.keys().settings();
        let own = Url::parse(&settings.issuer).is_ok_and(|issuer| issuer.origin() == url.origin());
        let asked = self.clock.now();
        let answer = match self.get(url, settings.url.is_some() || own, MAX_KEY_SET).await {
            Ok(answer) => answer,
            Err(why) => {
                let fix = "open that address from where Doorward runs; check `keys`, `ca` and the network in between: \
                           in a cluster the NetworkPolicy `doorward` needs an entry for it (docs/install.md, \"Where \
                           Doorward may go\")";
                self.findings.push(Finding::fault(Check::Algorithms, &self.subject, why, fix));
                return;
            }
        };
        if self.findings.iter().all(|finding| finding.check != Check::Clock) {
            self.compare_clocks(asked, answer.headers());
        }
        let names: Vec<String> = settings.algorithms.iter().map(|algorithm| format!("{algorithm:?}")).collect();
        let accepted = names.join(", ");
        let finding = match Keys::parse(answer.body(), &settings.algorithms) {
            Ok(keys) => {
                let passed_over = keys.skipped().len();
                let message = format!("{} keys for {accepted}, {passed_over} others are ignored", keys.count());
                Finding::good(Check::Algorithms, &self.subject, message)
            }
            Err(why) => Finding::fault(
                Check::Algorithms,
                &self.subject,
                format!("{url}: {why}; accepted is {accepted}"),
                "add the algorithm with which it signs to `algorithms` if that is supported, or let it sign with one \
                 of those",
            ),
        };
        self.findings.push(finding);
    }

    /// Queries a token that nobody has issued.
    async fn introspection(&mut self, metadata: Option<&Metadata>) {
        let Some(told) = self.issuer.probe_introspection(metadata).await else { return };
        self.findings.push(match told {
            Ok(Some(false)) => Finding::good(Check::Introspection, &self.subject, "it says which tokens are active"),
            Ok(None) => {
                let message = "it answers with a signed response, which is only verified while Doorward runs";
                Finding::good(Check::Introspection, &self.subject, message)
            }
            Ok(Some(true)) => {
                let fix = "do not use it: any made-up text would be accepted as a token";
                Finding::fault(Check::Introspection, &self.subject, "it reports a made-up token as active", fix)
            }
            Err(why) => {
                let fix = "check `introspection.client` and `introspection.endpoint`, what the client is allowed \
                           there, `ca` and the network in between; until then requests with tokens that need \
                           introspection get 503";
                Finding::fault(Check::Introspection, &self.subject, why, fix)
            }
        });
    }

    /// Compares the clock here with that of an answer to what was `asked` then. When it was made in between is unknown.
    fn compare_clocks(&mut self, asked: Timestamp, headers: &HeaderMap) {
        let now = self.clock.now();
        let Some(there) = date(headers) else {
            let message = "it does not report its time";
            self.findings.push(Finding::skipped(Check::Clock, &self.subject, message));
            return;
        };
        let (ahead, behind) = (asked.since(there), there.since(now));
        let apart = ahead.max(behind);
        let which = if ahead > behind { "ahead of" } else { "behind" };
        let message = format!("the clock here is {} s {which} its own", apart.as_secs());
        let fix = "synchronise this machine, or theirs, with NTP";
        self.findings.push(if apart <= UNSHARP {
            Finding::good(Check::Clock, &self.subject, "the clocks agree")
        } else if apart <= self.issuer.skew() {
            Finding::warning(Check::Clock, &self.subject, format!("{message}, which is still tolerated"), fix)
        } else {
            let skew = self.issuer.skew().as_secs();
            Finding::fault(
                Check::Clock,
                &self.subject,
                format!("{message}, and {skew} s are tolerated: valid tokens are refused, or expired ones accepted"),
                fix,
            )
        });
    }

    /// Requests a sign-in without interaction (`prompt=none`): a provider that knows the client and the address sends
    /// the browser back there with an error.
    async fn redirect(&mut self, endpoint: &Url, client: &Client, back: &str) {
        let mut url = endpoint.clone();
        let any = Uuid::new_v4().simple().to_string();
        url.query_pairs_mut()
            .append_pair("response_type", "code")
            .append_pair("client_id", client.id())
            .append_pair("redirect_uri", back)
            // No login there goes without this scope.
            .append_pair("scope", client.scopes.first().map_or("openid", |scope| scope))
            .append_pair("prompt", "none")
            .append_pair("state", &any)
            .append_pair("nonce", &any)
            // It belongs to no verifier, as no code is ever redeemed.
            .append_pair("code_challenge", "doorward-doctor-doorward-doctor-doorward-do")
            .append_pair("code_challenge_method", "S256");
        let finding = match send(self.issuer.keys().egress(), &url, PAGE_TYPES, None, MAX_PAGE).await {
            Ok(answer) => self.judge(&answer, &url, back, client.id()),
            Err(why) => {
                let fix = "open that address from where Doorward runs; check `ca` and the network in between";
                Finding::fault(Check::Redirect, &self.subject, why, fix)
            }
        };
        self.findings.push(finding);
    }

    fn judge(&self, answer: &Response<Bytes>, asked: &Url, back: &str, client: &str) -> Finding {
        let status = answer.status();
        let unknown = |message: String| {
            let fix = format!("sign in once; if the provider complains, register {back} with the client `{client}`");
            Finding::warning(
                Check::Redirect,
                &self.subject,
                format!("{message}, which does not show whether it knows {back}"),
                fix,
            )
        };
        if status.is_client_error() {
            return Finding::fault(
                Check::Redirect,
                &self.subject,
                format!("it refuses {back} with {status}"),
                format!("register exactly that address at the provider, with the client `{client}`"),
            );
        }
        if !status.is_redirection() {
            return unknown(format!("it answers with {status} and a page"));
        }
        let to = answer.headers().get(header::LOCATION).and_then(|to| asked.join(to.to_str().ok()?).ok());
        let Some(to) = to else { return unknown(format!("it answers with {status} and no address")) };
        if to.as_str().split(['?', '#']).next() != Some(back) {
            return unknown(format!("it redirects to {}", Quoted::text(to.host_str().unwrap_or_default())));
        }
        let told = |name: &str| to.query_pairs().find(|(other, _)| other == name).map(|(_, text)| text.into_owned());
        let why = told("error_description").map(|text| format!(", {}", Quoted::text(&text))).unwrap_or_default();
        match told("error") {
            Some(error) if !NOBODY.contains(&error.as_str()) => Finding::warning(
                Check::Redirect,
                &self.subject,
                format!("it knows {back}, but refuses the request: {}{why}", Quoted::text(&error)),
                format!("check what the client `{client}` is allowed there: code with PKCE, and the scope `openid`"),
            ),
            _ => Finding::good(Check::Redirect, &self.subject, format!("it knows {back}")),
        }
    }

    /// Sends the bearer token for the keys only to trusted addresses.
    async fn get(&self, url: &Url, trusted: bool, max: usize) -> Result<Response<Bytes>, String> {
        let bearer = self.issuer.keys_bearer().filter(|_| trusted).cloned();
        let answer = send(self.issuer.keys().egress(), url, KEY_SET_TYPES, bearer, max).await?;
        if answer.status().is_success() { Ok(answer) } else { Err(format!("{url} answers with {}", answer.status())) }
    }
}

const AS_IT_DOES: &str = "write `issuer` exactly as it does, including a final slash; until then none of its tokens is \
                          accepted";

fn told_otherwise(named: &str, called: &str) -> String {
    format!("it calls itself {}, and the configuration {called}", Quoted::text(named))
}

/// Returns the address at which an API server describes itself, from the address of its keys.
fn of_cluster(keys: &Url) -> Option<Url> {
    let base = keys.as_str().strip_suffix("/openid/v1/jwks")?;
    Url::parse(&format!("{base}/.well-known/openid-configuration")).ok()
}

async fn send(
    egress: &Egress,
    url: &Url,
    types: &'static str,
    bearer: Option<HeaderValue>,
    max: usize,
) -> Result<Response<Bytes>, String> {
    let mut request = Request::get(url.as_str())
        .header(header::ACCEPT, types)
        // GitHub refuses requests without one.
        .header(header::USER_AGENT, "doorward");
    if let Some(bearer) = bearer {
        request = request.header(header::AUTHORIZATION, bearer);
    }
    let request = request.body(Bytes::new()).map_err(|error| error.to_string())?;
    let bounds = Bounds { timeout: PATIENCE, max_body: max };
    let place = url.origin().ascii_serialization() + url.path();
    egress.send(request, bounds).await.map_err(|error| format!("{place}: {error}"))
}

/// Returns the time at which an answer was made: `Date`, and `Age` if it waited in a cache (RFC 9110 section 6.6.1, RFC
/// 9111 section 5.1).
fn date(headers: &HeaderMap) -> Option<Timestamp> {
    let text = |name| headers.get(name)?.to_str().ok();
    let date = OffsetDateTime::parse(text(header::DATE)?, &Rfc2822).ok()?;
    let age = text(header::AGE).and_then(|age| age.parse().ok()).unwrap_or(0);
    Some(Timestamp::from_secs(date.unix_timestamp()) + Duration::from_secs(age))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_time_of_an_answer_is_its_date_and_its_age() {
        let at = |lines: &[(&'static str, &'static str)]| {
            let headers = lines
                .iter()
                .map(|(name, value)| (http::HeaderName::from_static(name), HeaderValue::from_static(value)));
            date(&headers.collect()).map(Timestamp::as_secs)
        };
        assert_eq!(at(&[("date", "Sun, 06 Nov 1994 08:49:37 GMT")]), Some(784_111_777));
        assert_eq!(at(&[("date", "Sun, 06 Nov 1994 08:49:37 GMT"), ("age", "60")]), Some(784_111_837));
        for bad in ["", "yesterday", "784111777"] {
            assert_eq!(at(&[("date", bad)]), None, "{bad}");
        }
        assert_eq!(at(&[]), None);
    }
}
