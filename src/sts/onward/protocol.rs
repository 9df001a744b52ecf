//! The requests to a provider: one table of parameters per kind, and how the response is read.

use bytes::Bytes;
use http::{Request, header};
use serde_json::json;
use url::{Url, form_urlencoded::Serializer};

use crate::{
    clock::Timestamp,
    config::{
        raw::{self, ClientAuthMethod, OnwardProvider},
        report::At,
        resolver::Resolver,
    },
    egress,
    issuers::{ASSERTION_TYPE, ClientAuth, form_request, secure_url},
    sts::form::{ACCESS_TOKEN, GRANT, JWT},
};

/// The grant with our assertion (RFC 7523 section 2.1).
const JWT_BEARER: &str = "urn:ietf:params:oauth:grant-type:jwt-bearer";

/// Google's addresses for exchanging tokens, and for making those of service accounts.
const GOOGLE: &str = "https://sts.googleapis.com/v1/token";
const IAM_CREDENTIALS: &str = "https://iamcredentials.googleapis.com/";

/// The only scope of the pool's token if a service account's is wanted: making that one.
pub const IAM_SCOPE: &str = "https://www.googleapis.com/auth/iam";

const AWS: &str = "https://sts.amazonaws.com/";

/// The maximum length of a session policy and of a session name, in characters (AssumeRoleWithWebIdentity, `Policy`,
/// `RoleSessionName`).
const MAX_POLICY: usize = 2048;
const MAX_SESSION: usize = 64;

/// How a provider is asked.
#[derive(Debug)]
pub struct Protocol {
    pub kind: Kind,
    pub url: Url,
    /// Parameters that are always the same, in order.
    pub fixed: Vec<(&'static str, String)>,
    client: Client,
    pub next: Option<ServiceAccount>,
    /// The audience of assertions if none is configured.
    pub default_audience: Option<String>,
}

/// A kind of provider.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    TokenExchange,
    JwtBearer,
    ClientCredentials,
    Google,
    Aws,
}

impl Kind {
    /// The name in the configuration.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::TokenExchange => "token_exchange",
            Self::JwtBearer => "jwt_bearer",
            Self::ClientCredentials => "client_credentials",
            Self::Google => "google",
            Self::Aws => "aws",
        }
    }

    /// The parameter that has the assertion.
    const fn assertion(self) -> &'static str {
        match self {
            Self::TokenExchange | Self::Google => "subject_token",
            Self::JwtBearer => "assertion",
            Self::ClientCredentials => "client_assertion",
            Self::Aws => "WebIdentityToken",
        }
    }

    /// The form of its response.
    pub const fn reads(self) -> Reads {
        match self {
            Self::TokenExchange | Self::Google => Reads::OAuth { exchanged: true },
            Self::JwtBearer | Self::ClientCredentials => Reads::OAuth { exchanged: false },
            Self::Aws => Reads::Aws,
        }
    }
}

/// How Doorward authenticates as a client, beside the assertion.
#[derive(Debug)]
enum Client {
    None,
    Known(ClientAuth),
    /// By a further assertion, with an id if the provider requires it.
    Assertion(Option<String>),
}

/// The form of a token response.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reads {
    /// RFC 6749 section 5.1; `exchanged`: with the members of RFC 8693 section 2.2.1.
    OAuth { exchanged: bool },
    /// The credentials of AssumeRoleWithWebIdentity.
    Aws,
}

/// A Google service account whose token is given in place of the pool's own.
#[derive(Debug)]
pub struct ServiceAccount {
    /// The address of `generateAccessToken`.
    pub url: Url,
}

/// The variable parts of a call.
#[derive(Debug)]
pub struct Sent<'a> {
    pub assertion: &'a str,
    /// Present if [`Protocol::wants_client_assertion`].
    pub client_assertion: Option<&'a str>,
    /// As the provider calls them.
    pub scopes: &'a [String],
    /// The name of an AWS session.
    pub session: &'a str,
}

impl Protocol {
    /// Reads the configuration. `audience` is that of assertions as configured, `lasts` the maximum lifetime of a token
    /// in seconds. Reports every problem at its place; returns `None` if there is one.
    pub fn resolve(
        raw: &OnwardProvider,
        audience: Option<&str>,
        lasts: u64,
        at: &At,
        resolver: &mut Resolver,
    ) -> Option<Self> {
        match raw {
            OnwardProvider::TokenExchange(raw) => {
                let fixed = vec![
                    ("grant_type", GRANT.to_owned()),
                    ("requested_token_type", ACCESS_TOKEN.to_owned()),
                    ("subject_token_type", JWT.to_owned()),
                ];
                Self::grant(Kind::TokenExchange, raw, fixed, audience, at, resolver)
            }
            OnwardProvider::JwtBearer(raw) => {
                let fixed = vec![("grant_type", JWT_BEARER.to_owned())];
                Self::grant(Kind::JwtBearer, raw, fixed, audience, at, resolver)
            }
            OnwardProvider::ClientCredentials(raw) => {
                let kind = Kind::ClientCredentials;
                let at = at.key(kind.as_str());
                let mut fixed = vec![
                    ("grant_type", "client_credentials".to_owned()),
                    ("client_assertion_type", ASSERTION_TYPE.to_owned()),
                ];
                fixed.extend(raw.client_id.clone().map(|id| ("client_id", id)));
                targets(&mut fixed, raw.audience.as_ref(), raw.resource.as_ref());
                Self::new(kind, &raw.token_url, fixed, &at, resolver)
            }
            OnwardProvider::Google(raw) => Self::google(raw, &at.key("google"), resolver),
            OnwardProvider::Aws(raw) => Self::aws(raw, lasts, &at.key("aws"), resolver),
        }
    }

    fn new(
        kind: Kind,
        url: &str,
        fixed: Vec<(&'static str, String)>,
        at: &At,
        resolver: &mut Resolver,
    ) -> Option<Self> {
        let url = address(url, &at.key("token_url"), resolver)?;
        Some(Self { kind, url, fixed, client: Client::None, next: None, default_audience: None })
    }

    fn grant(
        kind: Kind,
        raw: &raw::OnwardGrant,
        mut fixed: Vec<(&'static str, String)>,
        audience: Option<&str>,
        at: &At,
        resolver: &mut Resolver,
    ) -> Option<Self> {
        let at = at.key(kind.as_str());
        targets(&mut fixed, raw.audience.as_ref(), raw.resource.as_ref());
        let client = match (&raw.client, raw.client_assertion) {
            (None, false) => Some(Client::None),
            (None, true) => Some(Client::Assertion(None)),
            (Some(client), true) => {
                let proves = client.secret.is_some() || client.key.is_some() || client.assertion.is_some();
                if client.method != Some(ClientAuthMethod::None) || proves {
                    resolver
                        .error(&at.key("client"), "with `client_assertion` the client has no other credential")
                        .help("write `client: {id: ..., method: none}`, or leave `client_assertion` out");
                }
                Some(Client::Assertion(Some(client.id.clone())))
            }
            (Some(client), false) => {
                ClientAuth::resolve(client, audience.unwrap_or_default(), &at.key("client"), resolver)
                    .map(Client::Known)
            }
        };
        Some(Self { client: client?, ..Self::new(kind, &raw.token_url, fixed, &at, resolver)? })
    }

    fn google(raw: &raw::OnwardGoogle, at: &At, resolver: &mut Resolver) -> Option<Self> {
        let known = "//iam.googleapis.com/";
        if !raw.pool_provider.starts_with(known) || !raw.pool_provider.contains("/providers/") {
            resolver
                .error(&at.key("pool_provider"), format!("`{}` is not a provider of a pool", raw.pool_provider))
                .help(format!(
                    "write `{known}projects/NUMBER/locations/global/workloadIdentityPools/POOL/providers/PROVIDER`"
                ));
        }
        let fixed = vec![
            ("grant_type", GRANT.to_owned()),
            ("requested_token_type", ACCESS_TOKEN.to_owned()),
            ("subject_token_type", JWT.to_owned()),
            ("audience", raw.pool_provider.clone()),
        ];
        let next = match &raw.service_account {
            None => None,
            Some(account) => {
                let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"@.-_".contains(&byte);
                if !account.contains('@') || !account.bytes().all(plain) {
                    let at = at.key("service_account");
                    resolver.error(&at, format!("`{account}` is not the address of a service account"));
                    return None;
                }
                let base = raw.iam_credentials_url.as_deref().unwrap_or(IAM_CREDENTIALS);
                let mut url = address(base, &at.key("iam_credentials_url"), resolver)?;
                // A proxy may serve it under a path of its own.
                let below = url.path().trim_end_matches('/').to_owned();
                url.set_path(&format!("{below}/v1/projects/-/serviceAccounts/{account}:generateAccessToken"));
                Some(ServiceAccount { url })
            }
        };
        let url = raw.token_url.as_deref().unwrap_or(GOOGLE);
        let protocol = Self::new(Kind::Google, url, fixed, at, resolver)?;
        Some(Self { next, default_audience: Some(format!("https:{}", raw.pool_provider)), ..protocol })
    }

    fn aws(raw: &raw::OnwardAws, lasts: u64, at: &At, resolver: &mut Resolver) -> Option<Self> {
        let is_role = raw.role.starts_with("arn:") && raw.role.contains(":iam::") && raw.role.contains(":role/");
        if !is_role {
            resolver
                .error(&at.key("role"), format!("`{}` is not the ARN of a role", raw.role))
                .help("write `arn:aws:iam::ACCOUNT:role/NAME`");
        }
        let mut fixed = vec![
            ("Action", "AssumeRoleWithWebIdentity".to_owned()),
            ("Version", "2011-06-15".to_owned()),
            ("RoleArn", raw.role.clone()),
            ("DurationSeconds", lasts.to_string()),
        ];
        if let Some(path) = &raw.session_policy {
            let at = at.key("session_policy");
            let text = String::from_utf8(resolver.read(&at, path)?).unwrap_or_default();
            let is_json = serde_json::from_str::<serde_json::Map<_, _>>(&text).is_ok();
            if !is_json || text.chars().count() > MAX_POLICY {
                let why = format!("{} is not a JSON object of at most {MAX_POLICY} characters", path.display());
                resolver.error(&at, why);
            }
            fixed.push(("Policy", text));
        }
        let url = raw.token_url.as_deref().unwrap_or(AWS);
        let protocol = Self::new(Kind::Aws, url, fixed, at, resolver)?;
        Some(Self { default_audience: Some("sts.amazonaws.com".to_owned()), ..protocol })
    }

    /// Whether a further assertion proves the client.
    pub fn wants_client_assertion(&self) -> bool {
        matches!(self.client, Client::Assertion(_))
    }

    /// Whether the assertion itself proves a client (RFC 7523 section 2.2).
    pub fn is_client(&self) -> bool {
        self.kind == Kind::ClientCredentials
    }

    /// The client id that the provider knows, if one is sent.
    pub fn client_id(&self) -> Option<&str> {
        match &self.client {
            Client::Known(client) => Some(client.client_id()),
            Client::Assertion(id) => id.as_deref(),
            Client::None => {
                let fixed = self.fixed.iter().find(|(name, _)| *name == "client_id");
                fixed.map(|(_, id)| id.as_str())
            }
        }
    }

    /// The request for a token. The error says why it cannot be made.
    pub fn request(&self, sent: &Sent<'_>, now: Timestamp) -> Result<Request<Bytes>, String> {
        let mut form = Serializer::new(String::new());
        form.extend_pairs(self.fixed.iter().map(|(name, value)| (*name, value)));
        let scopes = if self.next.is_some() { IAM_SCOPE.to_owned() } else { sent.scopes.join(" ") };
        match self.kind {
            Kind::Aws => _ = form.append_pair("RoleSessionName", sent.session),
            _ if scopes.is_empty() => {}
            _ => _ = form.append_pair("scope", &scopes),
        }
        form.append_pair(self.kind.assertion(), sent.assertion);
        self.finish(&self.url, form, sent.client_assertion, now)
    }

    /// The request that revokes a token (RFC 7009).
    pub fn revocation(
        &self,
        url: &Url,
        token: &str,
        client_assertion: Option<&str>,
        now: Timestamp,
    ) -> Result<Request<Bytes>, String> {
        let mut form = Serializer::new(String::new());
        form.append_pair("token", token).append_pair("token_type_hint", "access_token");
        if self.is_client()
            && let Some(assertion) = client_assertion
        {
            form.extend_pairs(self.client_id().map(|id| ("client_id", id)));
            form.append_pair("client_assertion_type", ASSERTION_TYPE).append_pair("client_assertion", assertion);
        }
        self.finish(url, form, client_assertion, now)
    }

    /// Adds the client authentication.
    fn finish(
        &self,
        url: &Url,
        mut form: Serializer<'_, String>,
        client_assertion: Option<&str>,
        now: Timestamp,
    ) -> Result<Request<Bytes>, String> {
        let mut request = form_request(url, "application/json")?;
        match &self.client {
            Client::None => {}
            Client::Known(client) => client.apply(now, &mut form, request.headers_mut())?,
            Client::Assertion(id) => {
                form.extend_pairs(id.iter().map(|id| ("client_id", id)));
                form.append_pair("client_assertion_type", ASSERTION_TYPE);
                form.append_pair("client_assertion", client_assertion.ok_or("the client's assertion is missing")?);
            }
        }
        *request.body_mut() = form.finish().into();
        Ok(request)
    }
}

impl ServiceAccount {
    /// The request for the service account's token, with that of the pool. The error says why it cannot be made.
    pub fn request(&self, pool_token: &str, scopes: &[String], lasts: u64) -> Result<Request<Bytes>, String> {
        let bearer =
            egress::bearer(pool_token.as_bytes()).ok_or("the pool's token has characters that no header may have")?;
        let body = json!({"scope": scopes, "lifetime": format!("{lasts}s")}).to_string();
        Request::post(self.url.as_str())
            .header(header::AUTHORIZATION, bearer)
            .header(header::ACCEPT, "application/json")
            .header(header::CONTENT_TYPE, "application/json")
            .body(Bytes::from(body))
            .map_err(|error| error.to_string())
    }
}

/// Parses an address that tokens may be sent to.
pub fn address(text: &str, at: &At, resolver: &mut Resolver) -> Option<Url> {
    // Not repeated: it may contain a password.
    secure_url(text).map_err(|why| _ = resolver.error(at, format!("this {why}"))).ok()
}

fn targets(fixed: &mut Vec<(&'static str, String)>, audience: Option<&String>, resource: Option<&String>) {
    fixed.extend(audience.cloned().map(|audience| ("audience", audience)));
    fixed.extend(resource.cloned().map(|resource| ("resource", resource)));
}

/// A name for an AWS session: 2 to 64 permitted characters. Only the end of a longer text is used, which distinguishes
/// runs.
pub fn session_name(text: &str) -> String {
    let fits = |character: char| character.is_ascii_alphanumeric() || "_+=,.@-".contains(character);
    let plain: Vec<char> = text.chars().map(|character| if fits(character) { character } else { '-' }).collect();
    let mut name: String = plain.iter().skip(plain.len().saturating_sub(MAX_SESSION)).collect();
    while name.len() < 2 {
        name.push('-');
    }
    name
}

#[cfg(test)]
mod tests;
