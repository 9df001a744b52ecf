//! `issuers`: who is trusted to identify callers, what their tokens look like, and how people log in there.

use std::{collections::BTreeMap, path::PathBuf};

use schemars::{JsonSchema, Schema};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::config::values::{SecretSource, Span};

/// An OAuth 2.0 or OpenID Connect issuer, or a Kubernetes cluster, whose tokens are accepted.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Issuer {
    /// The name that rules, grants and routes use for this issuer.
    pub name: String,
    /// The issuer identifier, compared byte for byte with the `iss` claim. The presets `google`, `github_actions` and
    /// `github_oauth` set it; `entra`, `cognito`, `auth0`, `okta` and `zitadel` derive it from `tenant`, and `doorward`
    /// from `external_host`. For a self-hosted GitHub server, its address.
    #[serde(default)]
    pub issuer: String,
    /// Defaults for a known kind of issuer; settings beside it override them.
    #[serde(default)]
    pub preset: Option<Preset>,
    /// In place of `issuer`: the directory (tenant) id for `entra`, the id of the pool for `cognito`, the domain for
    /// `auth0`, `okta` and `zitadel`. For `google` the Workspace domain whose accounts may sign in; for `github_oauth`
    /// the organisation whose members may sign in, by name or, preferably, by number, as names can change owners.
    #[serde(default)]
    pub tenant: Option<String>,
    /// In place of `tenant`, for `entra` only: the directory ids of the tenants whose people may sign in, with an
    /// application that is registered for several tenants. Tokens of all other tenants are refused.
    #[serde(default)]
    pub tenants: Vec<String>,
    /// Values of `aud` that identify Doorward. At least one must be in the token. For an opaque token it must be in the
    /// introspection response, unless `clients` lists the client of the token.
    #[serde(default)]
    pub audiences: Vec<String>,
    /// Accepted signature algorithms. Default: those of the preset; without one RS256 and ES256.
    #[serde(default)]
    pub algorithms: Option<Vec<Algorithm>>,
    /// Accepted values of the `typ` header, compared without case; `""` accepts an absent header.
    /// Default: those of the preset; without one `at+jwt` and `application/at+jwt`. A token of these two types must
    /// have `client_id` and `jti` (RFC 9068), unless the preset's provider leaves them out or `claims.client` names
    /// another place. A token of another type is refused if it looks like an ID token: if it has `nonce`; or, unless it
    /// has `typ: Bearer` or `token_use: access`, if it has `c_hash`, and except with the preset `dex` also if it has
    /// `at_hash`, or has `sid` or `auth_time` and none of `client_id`, `cid`, `appid`, `scope` and `scp`.
    #[serde(default)]
    pub token_types: Option<Vec<String>>,
    /// The places of the facts about a principal in the token.
    #[serde(default)]
    pub claims: ClaimPaths,
    /// The Kubernetes user name: text with `{issuer}`, `{sub}` or `{claim:/path}`. Default: that of the preset; without
    /// one `{issuer}#{sub}`.
    #[serde(default)]
    pub username: Option<String>,
    /// The kind of its principals, unless `clients` or `login` sets another. Default: an agent; with the presets
    /// `github_actions`, `gitlab_ci` and `kubernetes` a workload.
    #[serde(default)]
    pub kind: Option<Kind>,
    /// The clients (applications) that are known at this issuer. An introspection response for a token of one of them
    /// needs no `aud` if its `token_type` is `Bearer`.
    #[serde(default)]
    pub clients: Vec<Client>,
    /// Refuse bearer tokens of clients that `clients` does not list. It does not affect logins, which use the client of
    /// `login`. Default: off, unless the audience is shared.
    #[serde(default)]
    pub listed_clients_only: bool,
    /// Claims that must be present with one of these exact values.
    #[serde(default)]
    pub required_claims: BTreeMap<String, Vec<Value>>,
    /// The clock difference that is tolerated. Default: 30 s, for Doorward's own tokens 5 s; at most 60 s.
    #[serde(default)]
    pub clock_skew: Option<Span>,
    /// The longest time between `iat` and `exp`, also for opaque tokens whose introspection response has an `exp`.
    /// Default: 24 h; with the preset `kubernetes` 1 h, with `doorward` 10 m.
    #[serde(default)]
    pub max_lifetime: Option<Span>,
    /// Whether and how tokens are introspected (RFC 7662).
    #[serde(default)]
    pub introspection: Option<Introspection>,
    /// How people log in at this issuer with a browser. Without it: no login at this issuer.
    #[serde(default)]
    pub login: Option<Login>,
    /// How the key set is fetched and cached.
    #[serde(default)]
    pub keys: KeySet,
    /// Certificate authorities (CAs) that the issuer's endpoints are verified against. Default: the system's.
    #[serde(default)]
    pub ca: Option<PathBuf>,
    /// Kubernetes only: ask the API server about each token that is not cached.
    #[serde(default)]
    pub token_review: Option<TokenReview>,
}

/// A known kind of issuer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Preset {
    /// GitHub Actions (`https://token.actions.githubusercontent.com`).
    GithubActions,
    /// GitLab CI job tokens (`id_tokens`).
    GitlabCi,
    /// Projected service-account tokens of a Kubernetes cluster.
    Kubernetes,
    /// Okta.
    Okta,
    /// Microsoft Entra ID, one tenant or several.
    Entra,
    /// A user pool of Amazon Cognito.
    Cognito,
    /// Google accounts. `tenant` names your Workspace domain, or `required_claims` lists people by `sub`.
    Google,
    /// A realm of Keycloak.
    Keycloak,
    /// A tenant of Auth0.
    Auth0,
    /// Dex.
    Dex,
    /// An instance of Zitadel.
    Zitadel,
    /// An environment of PingOne, or PingFederate.
    Ping,
    /// GitHub or a self-hosted GitHub server, for logins of the members of one organisation. `tenant` names the
    /// organisation.
    GithubOauth,
    /// Doorward's own tokens; see the section `tokens`.
    Doorward,
}

/// A signature algorithm of RFC 7518. `Ed25519` (RFC 9864) can be written in place of `EdDSA` and means the same here.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize, JsonSchema)]
#[schemars(transform = with_newer_name)]
pub enum Algorithm {
    RS256,
    RS384,
    RS512,
    PS256,
    PS384,
    PS512,
    ES256,
    ES384,
    #[serde(alias = "Ed25519")]
    EdDSA,
}

/// Adds the newer name: a name that is not in the schema is refused, even if `serde` accepts it.
fn with_newer_name(algorithm: &mut Schema) {
    if let Some(Value::Array(names)) = algorithm.get_mut("enum") {
        names.push("Ed25519".into());
    }
}

/// Places of facts in a token: the name of a claim, or a JSON pointer (`/realm_access/roles`).
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct ClaimPaths {
    /// The groups of the principal: an array of strings. Default: that of the preset; without one `groups`.
    pub groups: Option<String>,
    /// The granted scopes: a space separated string or an array of strings. Default: `scope`, else `scp`.
    pub scopes: Option<String>,
    /// The client that the token was issued to. Default: `client_id`, else `azp`, `cid` or `appid`.
    pub client: Option<String>,
}

/// The kind of a principal. Rules can require it, and only a human can approve.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Kind {
    /// A person.
    Human,
    /// A bot or an AI agent. Also any principal of unknown kind.
    Agent,
    /// A pod or a CI job.
    Workload,
}

impl Issuer {
    /// Whether the issuer is only for logins and its bearer tokens are not accepted. Without `audiences`, a token could
    /// only be for Doorward according to its introspection response and its client.
    pub fn only_logs_in(&self) -> bool {
        let introspects = self.introspection.as_ref().is_some_and(|asked| asked.mode != IntrospectionMode::Never);
        let is_for_us_by_client = introspects && !self.clients.is_empty();
        let signs_nothing = self.preset == Some(Preset::GithubOauth);
        signs_nothing || (self.login.is_some() && self.audiences.is_empty() && !is_for_us_by_client)
    }
}

impl Kind {
    /// The name as it is written in the configuration.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Human => "human",
            Self::Agent => "agent",
            Self::Workload => "workload",
        }
    }
}

/// A client (application) of an issuer.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Client {
    /// Its client id.
    pub id: String,
    /// The kind of principals that use it.
    #[serde(default)]
    pub kind: Option<Kind>,
    /// The `sub` of tokens that it gets for itself, as with the grant `client_credentials`; with these it acts for
    /// others (`actor_token`). If it is set, an introspection response for a token of this client needs no `sub`: with
    /// no `username` either, the token is the client's own. Do not set it for a client with which people sign in if the
    /// provider returns neither of the two. Default: its client id.
    #[serde(default)]
    pub subject: Option<String>,
}

/// Token introspection (RFC 7662).
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Introspection {
    /// Which tokens are introspected.
    pub mode: IntrospectionMode,
    /// The endpoint. Default: the one that discovery names.
    #[serde(default)]
    pub endpoint: Option<String>,
    /// Doorward's client credentials at the endpoint.
    pub client: ClientCredentials,
    /// Request signed responses (RFC 9701), and accept no others. The issuer must sign them for this client
    /// (`introspection_signed_response_alg`), with a key of its set, and not encrypt them. Default: off.
    #[serde(default)]
    pub signed: bool,
    /// How long a positive response is cached, at most until the token's `exp`. Default: 30 s, at most 60 s.
    #[serde(default)]
    pub cache: Option<Span>,
    /// How long a negative response is cached. Default: 10 s; 1 s to 60 s.
    #[serde(default)]
    pub negative_cache: Option<Span>,
    /// The time for one attempt. Default: 1 s; 50 ms to 10 s.
    #[serde(default)]
    pub timeout: Option<Span>,
    /// The number of attempts per request until there is a response. Default: 2, at most 5.
    #[serde(default)]
    pub tries: Option<u8>,
    /// When the issuer is not asked for a while. Tokens that were never seen before are counted separately.
    #[serde(default)]
    pub circuit_breaker: CircuitBreaker,
}

/// A circuit breaker for a server that does not respond. While it is open, requests that need a response are refused at
/// once (503).
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct CircuitBreaker {
    /// The number of consecutive failures that open it, 1 to 1000.
    pub failures: u32,
    /// How long it stays open, 100 ms to 1 m, in `tokens.onward` up to 5 m. After that a single request tests whether
    /// the server has recovered.
    pub pause: Span,
}

impl Default for CircuitBreaker {
    fn default() -> Self {
        Self { failures: 5, pause: Span::from_secs(5) }
    }
}

/// Which tokens are introspected.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum IntrospectionMode {
    /// None: tokens that are not JWTs are refused.
    Never,
    /// Those that are not signed JWTs, such as encrypted ones (JWE).
    Opaque,
    /// All. The signature and the claims of a JWT are checked as well: a JWT without an audience is refused, whatever
    /// the response says. Not for providers that do not introspect JWTs, of which some respond with an error
    /// (`unsupported_token_type`).
    Always,
}

/// How Doorward authenticates as a client of the issuer.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct ClientCredentials {
    /// The client id.
    pub id: String,
    /// The method. Default: `basic` with a secret, `private_key_jwt` with a key, `assertion` with an assertion.
    #[serde(default)]
    pub method: Option<ClientAuthMethod>,
    /// The client secret.
    #[serde(default)]
    pub secret: Option<SecretSource>,
    /// The private key of `private_key_jwt`, PEM (PKCS #8).
    #[serde(default)]
    pub key: Option<SecretSource>,
    /// The `kid` of that key.
    #[serde(default)]
    pub key_id: Option<String>,
    /// In place of secret and key: a file with an assertion that another issuer signed for this client and that is
    /// replaced before it expires, such as a service-account token that is projected for the provider's audience.
    #[serde(default)]
    pub assertion: Option<SecretSource>,
}

/// Client authentication methods (RFC 6749 section 2.3, RFC 7523).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum ClientAuthMethod {
    /// HTTP Basic.
    Basic,
    /// Client id and secret in the form.
    Post,
    /// An assertion that Doorward signs (RFC 7523).
    PrivateKeyJwt,
    /// An assertion that another issuer signed (RFC 7523 section 2.2).
    Assertion,
    /// None: a public client (PKCE only).
    None,
}

/// Browser login with OpenID Connect: authorization code, PKCE, nonce, state.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Login {
    /// Doorward's client credentials at the provider.
    pub client: ClientCredentials,
    /// The path that the provider redirects browsers back to, on each host that people open in a browser.
    /// Default: `shared`; with several providers, `own` for each that does not announce that it identifies itself in
    /// its responses (`authorization_response_iss_parameter_supported`, RFC 9207).
    #[serde(default)]
    pub redirect: Option<Redirect>,
    /// The kind of principals that log in here, unless `clients` sets another for this client. Default: the `kind` of
    /// the issuer; if that is not set, human with the preset of a provider. Without a preset it must be set.
    #[serde(default)]
    pub kind: Option<Kind>,
    /// The name that people see when they choose between several providers. Default: the name of the issuer.
    #[serde(default)]
    pub label: Option<String>,
    /// Scopes that the login requests. `openid` is always included, at GitHub `read:org`. Default: those of the preset.
    #[serde(default)]
    pub scopes: Vec<String>,
    /// What the provider asks people even if they are signed in there.
    #[serde(default)]
    pub prompt: Option<Prompt>,
    /// A hint about who signs in: a user name or a part of one, as the provider understands it.
    #[serde(default)]
    pub login_hint: Option<String>,
    /// The organisation whose people sign in, for providers that support it: `domain_hint`, or `hd` at Google.
    #[serde(default)]
    pub domain_hint: Option<String>,
    /// The required strength of the authentication: one of these values of `acr`. A weaker login is refused.
    #[serde(default)]
    pub acr_values: Vec<String>,
    /// The values of `acr` that ask the provider for more than one factor when a rule needs that; if `acr_values` is
    /// set, only those that are in both lists. Default: those of the preset; without any, the provider is asked for a
    /// fresh login and must report in `amr` how the person authenticated.
    #[serde(default)]
    pub mfa_acr_values: Vec<String>,
    /// How long ago the person may have authenticated at the provider. An older login is refused.
    #[serde(default)]
    pub max_age: Option<Span>,
    /// Whether the userinfo endpoint is called, at each login and refresh, for claims that the ID token does not have:
    /// some providers return groups and addresses only there. A login for which it returns nothing is refused.
    /// Default: false.
    #[serde(default)]
    pub userinfo: bool,
}

/// The path that a provider redirects browsers back to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Redirect {
    /// `https://HOST/oauth2/callback`.
    Shared,
    /// `https://HOST/oauth2/callback/NAME`, with the name of the issuer.
    Own,
}

/// What a provider asks people who are signed in there (OpenID Connect Core 1.0 section 3.1.2.1).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Prompt {
    /// To authenticate again.
    Login,
    /// To consent again.
    Consent,
    /// To choose one of their accounts.
    SelectAccount,
}

/// How the key set of an issuer is fetched and cached.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct KeySet {
    /// The URL of the key set. Default: `jwks_uri` of the discovery document.
    pub url: Option<String>,
    /// How long a key set is used after its last successful fetch. Default: 12 h; `0` disables the use of stale key
    /// sets.
    pub max_stale: Option<Span>,
    /// The time for one fetch, of the key set or of the discovery document. Default: 5 s; 50 ms to 10 s.
    pub timeout: Option<Span>,
    /// How long an unknown key causes no further fetch, after the set was fetched for a token that names it and did not
    /// have it.
    /// Default: 60 s; 30 s to 1 h.
    pub negative_cache: Option<Span>,
    /// A folder where the last good key set and discovery document are stored, for a start during an outage.
    /// Default: none.
    pub keep_in: Option<PathBuf>,
    /// The token that the fetch presents, such as the pod's own for a cluster that requires one.
    pub bearer: Option<SecretSource>,
}

/// TokenReview (`authentication.k8s.io/v1`) at the API server.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct TokenReview {
    /// The upstream, by name, that is the API server.
    pub upstream: String,
    /// The token that authorizes the review. Its account needs `create` on `tokenreviews`. Do not use that of the data
    /// path.
    pub bearer: SecretSource,
    /// How long a positive response is cached. Default: 10 s, which is also the maximum.
    #[serde(default)]
    pub cache: Option<Span>,
    /// How long a negative response is cached. Default: 10 s; 1 s to 60 s.
    #[serde(default)]
    pub negative_cache: Option<Span>,
    /// The time for one review. Default: 2 s; 50 ms to 10 s.
    #[serde(default)]
    pub timeout: Option<Span>,
    /// When the API server is not asked for a while.
    #[serde(default)]
    pub circuit_breaker: CircuitBreaker,
}
