//! Sign-in with GitHub. Its OAuth apps and GitHub Apps issue a token that does not say whose it is, so its API is asked
//! who the person is, whether they are a member of the configured organisation, and which of its teams they are in.
//! Each recheck of a session asks again, as GitHub does not notify anybody when somebody leaves.
//!
//! Sources: GitHub's REST API (`/user`, `/user/memberships/orgs`, `/user/teams`, `/user/emails`) and its documentation
//! of "Authorizing OAuth apps" and of "GitHub authentication discovery endpoints".

use std::{fmt, sync::Arc, time::Duration};

use bytes::Bytes;
use http::{HeaderMap, Request, Response, StatusCode, header};
use serde::{Deserialize, de::DeserializeOwned};
use serde_json::{Map, Value, json};
use url::Url;

use super::{Metadata, Provider, bounded};
use crate::{
    egress::{self, Bounds},
    error::Rejection,
};

/// The bounds of one request.
const BOUNDS: Bounds = Bounds { timeout: Duration::from_secs(10), max_body: 2 << 20 };

/// The time for all requests about one person: with a renewal of the token, it must be less than the lease of a
/// refresh.
const PATIENCE: Duration = Duration::from_secs(15);

/// Entries per page, the maximum that GitHub allows.
const PAGE: usize = 100;

/// The maximum number of pages that are read.
const MAX_PAGES: usize = 10;

/// The organisation whose members may sign in, and the addresses of the GitHub server.
#[derive(Clone, Debug)]
pub struct Github {
    organisation: Organisation,
    /// The root of the API, with a trailing slash.
    api: Url,
    probe: Url,
    /// The issuer that the server names in its authorization responses (RFC 9207), which is not its address.
    named: Url,
    pub(super) metadata: Arc<Metadata>,
}

/// The identifier of an organisation.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Organisation {
    /// Its number, which is never reused.
    Number(u64),
    /// Its name, compared without case. Anybody can take a name that was given up.
    Name(Box<str>),
}

/// Why the person is not known. No variant carries a secret.
#[derive(Debug, thiserror::Error)]
pub enum GithubError {
    #[error("GitHub no longer accepts the access token")]
    TokenRefused,
    /// The person is known and may not sign in.
    #[error("{0}")]
    NotMember(String),
    /// The person is a member, but `required_claims` excludes them.
    #[error("{0}")]
    Outsider(Rejection),
    /// The result is unknown; it may be retried.
    #[error("GitHub gave no answer: {0}")]
    Unanswered(String),
}

/// `GET /user`.
#[derive(Deserialize)]
struct User {
    id: u64,
    login: String,
    #[serde(rename = "type")]
    kind: String,
    name: Option<String>,
}

#[derive(Deserialize)]
struct Named {
    id: u64,
    login: String,
}

/// An entry of `GET /user/memberships/orgs`.
#[derive(Deserialize)]
struct Membership {
    state: String,
    role: String,
    organization: Named,
}

/// An entry of `GET /user/teams`.
#[derive(Deserialize)]
struct Team {
    slug: String,
    organization: Named,
}

/// An entry of `GET /user/emails`.
#[derive(Deserialize)]
struct Email {
    email: String,
    primary: bool,
    verified: bool,
}

impl Organisation {
    /// Digits only are a number; an organisation with such a name must be given by its number.
    fn parse(tenant: &str) -> Self {
        tenant.parse().map_or_else(|_| Self::Name(tenant.into()), Self::Number)
    }

    fn is(&self, other: &Named) -> bool {
        match self {
            Self::Number(number) => *number == other.id,
            Self::Name(name) => name.eq_ignore_ascii_case(&other.login),
        }
    }
}

impl fmt::Display for Organisation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Number(number) => write!(f, "{number}"),
            Self::Name(name) => f.write_str(name),
        }
    }
}

impl Github {
    /// `issuer` is the address of the server, `tenant` the name or the number of the organisation. `None` for an
    /// invalid address.
    pub fn new(issuer: &str, tenant: &str) -> Option<Self> {
        let server = Url::parse(issuer).ok()?;
        let host = server.host_str()?;
        let api = if host == "github.com" || host.ends_with(".ghe.com") {
            Url::parse(&format!("https://api.{host}/")).ok()?
        } else {
            server.join("/api/v3/").ok()?
        };
        let metadata = Arc::new(Metadata {
            authorization_endpoint: server.join("/login/oauth/authorize").ok()?,
            token_endpoint: server.join("/login/oauth/access_token").ok()?,
            end_session_endpoint: None,
            userinfo_endpoint: None,
            introspection_endpoint: None,
            revocation_endpoint: None,
            iss_parameter_supported: false,
        });
        Some(Self {
            organisation: Organisation::parse(tenant),
            probe: api.join("meta").ok()?,
            api,
            named: server.join("/login/oauth").ok()?,
            metadata,
        })
    }

    /// Whether an authorization response that names this issuer is from this server.
    pub fn is_named(&self, issuer: &str) -> bool {
        issuer == self.named.as_str()
    }

    /// A public resource of the API, to probe whether it can be reached.
    pub fn probe(&self) -> &Url {
        &self.probe
    }

    /// The page on which people sign in.
    pub fn authorization_endpoint(&self) -> &Url {
        &self.metadata.authorization_endpoint
    }

    /// The person of the access token `access`, as claims like those of an ID token: `sub` is the number of the
    /// account, `groups` are `ORGANISATION:TEAM`.
    pub(super) async fn person(
        &self,
        provider: &dyn Provider,
        access: &str,
    ) -> Result<Map<String, Value>, GithubError> {
        let asking = async {
            let ask = Ask { provider, api: &self.api, access };
            tokio::try_join!(ask.one::<User>("user"), self.membership(ask), self.teams(ask), ask.verified_email())
        };
        let (user, Membership { role, organization, .. }, groups, email) =
            tokio::time::timeout(PATIENCE, asking).await.unwrap_or_else(|_| {
                Err(GithubError::Unanswered(format!("it did not answer everything within {} s", PATIENCE.as_secs())))
            })?;
        if user.kind != "User" {
            return Err(GithubError::NotMember(format!("the account is not a person but a {}", bounded(&user.kind))));
        }
        let mut claims = Map::from_iter([
            ("iss".to_owned(), provider.issuer().into()),
            ("sub".to_owned(), user.id.to_string().into()),
            ("preferred_username".to_owned(), user.login.into()),
            ("organization".to_owned(), json!({"id": organization.id, "login": organization.login, "role": role})),
            ("groups".to_owned(), groups.into()),
        ]);
        claims.extend(user.name.map(|name| ("name".to_owned(), name.into())));
        if let Some(email) = email {
            claims.extend([("email".to_owned(), email.into()), ("email_verified".to_owned(), true.into())]);
        }
        provider.check_required(&claims).map_err(GithubError::Outsider)?;
        Ok(claims)
    }

    /// The person's active membership in the organisation. Billing managers are not members.
    async fn membership(&self, ask: Ask<'_>) -> Result<Membership, GithubError> {
        let all: Vec<Membership> = ask.all("user/memberships/orgs?state=active&").await?;
        let fits = |membership: &Membership| {
            self.organisation.is(&membership.organization)
                && membership.state == "active"
                && matches!(&*membership.role, "admin" | "member")
        };
        all.into_iter().find(fits).ok_or_else(|| {
            GithubError::NotMember(format!(
                "GitHub does not say that you are a member of the organisation `{}`. If you are, the organisation may have \
                 to approve this application, or wants you to sign in to it first",
                self.organisation
            ))
        })
    }

    async fn teams(&self, ask: Ask<'_>) -> Result<Vec<String>, GithubError> {
        let all: Vec<Team> = ask.all("user/teams?").await?;
        let ours = all.into_iter().filter(|team| self.organisation.is(&team.organization));
        Ok(ours.map(|team| format!("{}:{}", team.organization.login, team.slug)).collect())
    }
}

/// API requests with one person's token.
#[derive(Clone, Copy)]
struct Ask<'a> {
    provider: &'a dyn Provider,
    api: &'a Url,
    access: &'a str,
}

impl Ask<'_> {
    async fn one<T: DeserializeOwned>(self, path: &str) -> Result<T, GithubError> {
        let answer = self.send(path).await?;
        if answer.status() == StatusCode::OK {
            let of = |error| GithubError::Unanswered(format!("`/{path}` cannot be understood: {error}"));
            return serde_json::from_slice(answer.body()).map_err(of);
        }
        Err(refusal(path, &answer))
    }

    /// Reads all pages of a list. The page number is appended to `path`.
    async fn all<T: DeserializeOwned>(self, path: &str) -> Result<Vec<T>, GithubError> {
        let mut all = Vec::new();
        for page in 1..=MAX_PAGES {
            let mut more: Vec<T> = self.one(&format!("{path}per_page={PAGE}&page={page}")).await?;
            let last = more.len() < PAGE;
            all.append(&mut more);
            if last {
                return Ok(all);
            }
        }
        Err(GithubError::NotMember(format!(
            "you have {} organisations or teams there or more, which is more than is read",
            PAGE * MAX_PAGES
        )))
    }

    /// The person's verified primary address; `None` if there is none or the application may not read addresses.
    async fn verified_email(self) -> Result<Option<String>, GithubError> {
        match self.all::<Email>("user/emails?").await {
            Ok(all) => Ok(all.into_iter().find(|email| email.primary && email.verified).map(|email| email.email)),
            Err(GithubError::NotMember(_)) => Ok(None),
            Err(error) => Err(error),
        }
    }

    async fn send(self, path: &str) -> Result<Response<Bytes>, GithubError> {
        let unanswered = |why: String| GithubError::Unanswered(why);
        let url = self.api.join(path).map_err(|error| unanswered(error.to_string()))?;
        let bearer = egress::bearer(self.access.as_bytes()).ok_or(GithubError::TokenRefused)?;
        let request = Request::get(url.as_str())
            .header(header::AUTHORIZATION, bearer)
            .header(header::ACCEPT, "application/vnd.github+json")
            // GitHub refuses requests without it.
            .header(header::USER_AGENT, "doorward")
            .header("x-github-api-version", "2022-11-28")
            .body(Bytes::new())
            .map_err(|error| unanswered(error.to_string()))?;
        self.provider.egress().send(request, BOUNDS).await.map_err(|error| unanswered(error.to_string()))
    }
}

/// The meaning of an answer other than 200. GitHub answers 403 both for a rate limit and for what is not allowed.
fn refusal(path: &str, answer: &Response<Bytes>) -> GithubError {
    let said = serde_json::from_slice::<Value>(answer.body()).ok();
    let message = said.as_ref().and_then(|said| said.get("message")?.as_str()).unwrap_or_default();
    let text = format!("`/{path}` answers {} {}", answer.status(), bounded(message));
    match answer.status() {
        StatusCode::UNAUTHORIZED => GithubError::TokenRefused,
        StatusCode::FORBIDDEN if is_limit(answer.headers(), message) => GithubError::Unanswered(text),
        StatusCode::FORBIDDEN | StatusCode::NOT_FOUND => {
            GithubError::NotMember(format!("GitHub refused to answer: {text}"))
        }
        _ => GithubError::Unanswered(text),
    }
}

fn is_limit(headers: &HeaderMap, message: &str) -> bool {
    let used_up = headers.get("x-ratelimit-remaining").is_some_and(|left| left.as_bytes() == b"0");
    used_up || headers.contains_key(header::RETRY_AFTER) || message.contains("rate limit")
}

#[cfg(test)]
mod tests {
    use super::*;

    /// GitHub's secondary limits are recognised by one of these signs only. If they were taken for a refusal, the
    /// person would be signed out.
    #[test]
    fn a_refusal_for_a_limit_says_nothing_of_the_person() {
        for (headers, message, is_limit) in [
            (&[("x-ratelimit-remaining", "4999")][..], "Forbidden", false),
            (&[("x-ratelimit-remaining", "0")], "Forbidden", true),
            (&[("x-ratelimit-remaining", "4999"), ("retry-after", "60")], "Forbidden", true),
            (&[("x-ratelimit-remaining", "4999")], "You have exceeded a secondary rate limit", true),
            (&[], "Forbidden", false),
        ] {
            let mut answer = Response::builder().status(StatusCode::FORBIDDEN);
            for (name, value) in headers {
                answer = answer.header(*name, *value);
            }
            let answer = answer.body(Bytes::from(json!({"message": message}).to_string())).unwrap();
            let refused = refusal("user", &answer);
            let (limited, left) =
                (matches!(refused, GithubError::Unanswered(_)), matches!(refused, GithubError::NotMember(_)));
            assert_eq!((limited, left), (is_limit, !is_limit), "{headers:?} {message}: {refused}");
        }
    }

    #[test]
    fn github_names_itself_in_answers_by_the_address_of_its_sign_in() {
        for (server, named) in [
            ("https://github.com", "https://github.com/login/oauth"),
            ("https://acme.ghe.com", "https://acme.ghe.com/login/oauth"),
            ("https://github.acme.example/", "https://github.acme.example/login/oauth"),
        ] {
            let github = Github::new(server, "acme").unwrap();
            assert!(github.is_named(named), "{server}");
            for other in ["https://evil.example/login/oauth", "https://github.com.evil.example/login/oauth"] {
                assert!(!github.is_named(other), "{server}: {other}");
            }
            assert!(!github.is_named(&format!("{named}/")), "{server}");
        }
        assert!(!Github::new("https://github.com", "acme").unwrap().is_named("https://acme.ghe.com/login/oauth"));
    }
}
