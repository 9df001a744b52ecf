//! `issuers`: who is trusted to say who somebody is, how their tokens look, and how people log in there.

use std::{collections::BTreeMap, path::PathBuf};

use schemars::{JsonSchema, Schema};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::config::values::{SecretSource, Span};

/// An OAuth 2.0 or OpenID Connect issuer, or a Kubernetes cluster, whose tokens are accepted.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Issuer {
    /// The name by which rules, grants and routes speak of this issuer.
    pub name: String,
    /// The issuer identifier, compared byte for byte with the `iss` claim. The presets `google`, `github_actions` and
    /// `github_oauth` know it, others from `tenant`. For a GitHub server of your own, its address.
    #[serde(default)]
    pub issuer: String,
    /// Defaults for a known kind of issuer; what is set here beside it wins.
    #[serde(default)]
    pub preset: Option<Preset>,
    /// In place of `issuer`: the directory (tenant) id for `entra`, the id of the pool for `cognito`, the domain for
    /// `auth0`, `okta` and `zitadel`. For `google` the Workspace domain whose accounts may sign in; for `github_oauth` the
    /// organisation whose members may, by name or, better, as names change hands, by its number.
    #[serde(default)]
    pub tenant: Option<String>,
    /// In place of `tenant`, for `entra` alone: the directory ids of the tenants whose people may sign in, by one application
    /// that is registered for several. Tokens of all others are refused.
    #[serde(default)]
    pub tenants: Vec<String>,
    /// Values of `aud` that mean us. At least one must be in the token, or in what introspection says of it unless `clients` lists its
    /// client.
    #[serde(default)]
    pub audiences: Vec<String>,
    /// Signature algorithms accepted. Default: RS256 and ES256.
    #[serde(default)]
    pub algorithms: Option<Vec<Algorithm>>,
    /// Values of the `typ` header accepted, compared without case; `""` stands for an absent one.
    /// Default: `at+jwt` and `application/at+jwt`. A token of these two has `client_id` and `jti` (RFC 9068), unless the preset's
    /// provider leaves them out or `claims.client` names another place. One of another type is refused where it looks like an ID
    /// token: with `nonce`, or, unless `typ: Bearer` or `token_use: access` stands in it, with `c_hash`, and but for `dex` with `at_hash`,
    /// or with `sid` or `auth_time` and none of `client_id`, `cid`, `appid`, `scope` and `scp`.
    #[serde(default)]
    pub token_types: Option<Vec<String>>,
    /// Where the facts about a principal stand in the token.
    #[serde(default)]
    pub claims: ClaimPaths,
    /// The Kubernetes user name: text with `{issuer}`, `{sub}` or `{claim:/path}`. Default: `{issuer}#{sub}`.
    #[serde(default)]
    pub username: Option<String>,
    /// What its principals are, unless `clients` or `login` says otherwise. Default: an agent; with the presets
    /// `github_actions`, `gitlab_ci` and `kubernetes` a workload.
    #[serde(default)]
    pub kind: Option<Kind>,
    /// The clients (applications) known at this issuer. What introspection says of a token of one of them need not name an `aud`, if
    /// its `token_type` is `Bearer`.
    #[serde(default)]
    pub clients: Vec<Client>,
    /// Refuse bearer tokens of clients that `clients` does not list; whoever logs in comes by the client of `login`. Default:
    /// off, unless the audience is shared.
    #[serde(default)]
    pub listed_clients_only: bool,
    /// Claims that must be present with one of these exact values.
    #[serde(default)]
    pub required_claims: BTreeMap<String, Vec<Value>>,
    /// How far clocks may differ. Default: 30 s, for Doorward's own tokens 5 s; at most 60 s.
    #[serde(default)]
    pub clock_skew: Option<Span>,
    /// The longest time between `iat` and `exp`, of opaque tokens too where introspection names an `exp`. Default: 24 h.
    #[serde(default)]
    pub max_lifetime: Option<Span>,
    /// Whether and how tokens are introspected (RFC 7662).
    #[serde(default)]
    pub introspection: Option<Introspection>,
    /// How people log in here with a browser. Without it: no login at this issuer.
    #[serde(default)]
    pub login: Option<Login>,
    /// How the key set is fetched and kept.
    #[serde(default)]
    pub keys: KeySet,
    /// Certificates of the authority that the issuer's own endpoints are trusted by. Default: the system's.
    #[serde(default)]
    pub ca: Option<PathBuf>,
    /// Kubernetes only: ask the API server about each token that is new to us.
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
    /// Google accounts. `tenant` names your Workspace domain, or `required_claims` people by `sub`.
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
    /// People of one organisation of GitHub, or of a GitHub server of your own, for logins. `tenant` names the organisation.
    GithubOauth,
    /// Doorward's own tokens, which the section `tokens` says more of.
    Doorward,
}

/// A signature algorithm of RFC 7518. `Ed25519` (RFC 9864) may be written for `EdDSA`, which means the same here.
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

/// A name that the schema does not have is refused, whatever `serde` takes.
fn with_newer_name(algorithm: &mut Schema) {
    if let Some(Value::Array(names)) = algorithm.get_mut("enum") {
        names.push("Ed25519".into());
    }
}

/// Where facts stand in a token: the name of a claim, or a JSON pointer (`/realm_access/roles`).
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct ClaimPaths {
    /// The groups of the principal: an array of strings. Default: `groups`.
    pub groups: Option<String>,
    /// The granted scopes: a space separated string or an array of strings. Default: `scope`, else `scp`.
    pub scopes: Option<String>,
    /// The client that the token was issued to. Default: `client_id`, else `azp`, `cid` or `appid`.
    pub client: Option<String>,
}

/// What a principal is. Rules ask for it, and only a human can approve.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Kind {
    /// A person.
    Human,
    /// A bot or an AI agent. Also everything whose kind nothing tells.
    Agent,
    /// A pod or a CI job.
    Workload,
}

impl Issuer {
    /// Whether people log in here, and no bearer token is taken: one that is for us would have to be so by what introspection says of
    /// it and of its client, as there are no `audiences`.
    pub fn only_logs_in(&self) -> bool {
        let introspects = self.introspection.as_ref().is_some_and(|asked| asked.mode != IntrospectionMode::Never);
        let is_for_us_by_client = introspects && !self.clients.is_empty();
        let signs_nothing = self.preset == Some(Preset::GithubOauth);
        signs_nothing || (self.login.is_some() && self.audiences.is_empty() && !is_for_us_by_client)
    }
}

impl Kind {
    /// The word for it, as it is written.
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
    /// What principals that come with it are.
    #[serde(default)]
    pub kind: Option<Kind>,
    /// The `sub` of tokens that it has for itself, as by the grant `client_credentials`: with those it acts for others
    /// (`actor_token`). Where it is written, what introspection says of a token of this client need name no `sub`: with no `username`
    /// either it is the client's own. Not for a client with which people sign in, at a provider that tells neither of them. Default: its
    /// client id.
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
    /// Who we are at the endpoint.
    pub client: ClientCredentials,
    /// Ask for answers that the issuer signed (RFC 9701), and take no others. The issuer must sign them for this client
    /// (`introspection_signed_response_alg`), with a key of its set, and not encrypt them. Default: off.
    #[serde(default)]
    pub signed: bool,
    /// How long a positive answer is used, at most until the token's `exp`. Default: 30 s, at most 60 s.
    #[serde(default)]
    pub cache: Option<Span>,
    /// How long the answer that a token is not good is used. Default: 10 s; 1 s to 60 s.
    #[serde(default)]
    pub negative_cache: Option<Span>,
    /// The time for one try. Default: 1 s; 50 ms to 10 s.
    #[serde(default)]
    pub timeout: Option<Span>,
    /// How often one question is asked until there is an answer. Default: 2, at most 5.
    #[serde(default)]
    pub tries: Option<u8>,
    /// When the issuer is given a pause. Tokens never seen before have a count of their own.
    #[serde(default)]
    pub circuit_breaker: CircuitBreaker,
}

/// When somebody who gives no answer is not asked for a while. Whoever needs one meanwhile is refused at once (503).
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct CircuitBreaker {
    /// How many questions in a row have to fail, 1 to 1000.
    pub failures: u32,
    /// How long nothing is asked then, 100 ms to 1 m, in `tokens.onward` to 5 m. After it one question shows whether all is well again.
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
    /// Those that are not JWTs.
    Opaque,
    /// All; the signature and the claims of a JWT are checked as well: one that does not name its audience is refused, whatever the
    /// answer says of it. Not for providers that are asked about no JWTs, as some answer with an error (`unsupported_token_type`).
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
    /// In place of secret and key: a file with an assertion that another issuer signed for this client and somebody
    /// replaces before it expires, such as a service-account token that is projected for the provider's audience.
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
    /// An assertion that we sign (RFC 7523).
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
    /// Who we are at the provider.
    pub client: ClientCredentials,
    /// Where the provider sends browsers back to, at each browser host. Default: `shared`; where there are several
    /// providers, `own` for each that does not announce to name itself in its answers
    /// (`authorization_response_iss_parameter_supported`, RFC 9207).
    #[serde(default)]
    pub redirect: Option<Redirect>,
    /// What those are who log in here, unless `clients` says otherwise of this client. Default: the `kind` of the issuer;
    /// where that is not written, a preset of a provider says human, and without a preset it has to be written.
    #[serde(default)]
    pub kind: Option<Kind>,
    /// What people read where they choose between several providers. Default: the name of the issuer.
    #[serde(default)]
    pub label: Option<String>,
    /// Scopes that the login requests. `openid` is always among them, at GitHub `read:org`. Default: those of the preset.
    #[serde(default)]
    pub scopes: Vec<String>,
    /// What the provider asks even of somebody who is signed in there.
    #[serde(default)]
    pub prompt: Option<Prompt>,
    /// Whom the provider should expect: a user name or a part of one, as it understands it.
    #[serde(default)]
    pub login_hint: Option<String>,
    /// The organisation whose people sign in, for providers that take it: `domain_hint`, or `hd` at Google.
    #[serde(default)]
    pub domain_hint: Option<String>,
    /// How strong the authentication must be: one of these values of `acr`. A login that was weaker is refused.
    #[serde(default)]
    pub acr_values: Vec<String>,
    /// The values of `acr` by which the provider is asked for more than one factor, where a rule needs that; where there are
    /// `acr_values`, those of them that are among these. Default: those of the preset; without any, it is asked for a fresh
    /// login, and must say in `amr` how the person came in.
    #[serde(default)]
    pub mfa_acr_values: Vec<String>,
    /// How long ago the person may have authenticated at the provider. A login that is older is refused.
    #[serde(default)]
    pub max_age: Option<Span>,
    /// Whether the userinfo endpoint is asked, at each login and refresh, for claims that the ID token does not have: some providers
    /// tell of groups and addresses there alone. A login for which it tells nothing is refused. Default: false.
    #[serde(default)]
    pub userinfo: bool,
}

/// Where a provider sends browsers back to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Redirect {
    /// `https://HOST/oauth2/callback`.
    Shared,
    /// `https://HOST/oauth2/callback/NAME`, with the name of the issuer.
    Own,
}

/// What a provider asks of somebody who is signed in there (OpenID Connect Core 1.0 section 3.1.2.1).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Prompt {
    /// To authenticate again.
    Login,
    /// To consent again.
    Consent,
    /// Which of their accounts they want to use.
    SelectAccount,
}

/// How the key set of an issuer is fetched and kept.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct KeySet {
    /// The address of the key set. Default: `jwks_uri` of the discovery document.
    pub url: Option<String>,
    /// How long a key set is used after its last successful fetch. Default: 12 h; `0` turns stale use off.
    pub max_stale: Option<Span>,
    /// The time for one fetch, of the set as of the discovery document. Default: 5 s; 50 ms to 10 s.
    pub timeout: Option<Span>,
    /// How long a key that the set did not have, when it was fetched for a token that names it, has it fetched no more.
    /// Default: 60 s; 30 s to 1 h.
    pub negative_cache: Option<Span>,
    /// A folder where the last good set and discovery document are kept for a start during an outage. Default: none.
    pub keep_in: Option<PathBuf>,
    /// The token that the fetch presents, such as the pod's own for a cluster that wants one.
    pub bearer: Option<SecretSource>,
}

/// TokenReview (`authentication.k8s.io/v1`) at the API server.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct TokenReview {
    /// The upstream, by name, that is the API server.
    pub upstream: String,
    /// The token that authorises the review. It needs `create` on `tokenreviews`, and is not the data path's.
    pub bearer: SecretSource,
    /// How long a positive answer is used. Default: 10 s.
    #[serde(default)]
    pub cache: Option<Span>,
    /// How long the answer that a token is not good is used. Default: 10 s; 1 s to 60 s.
    #[serde(default)]
    pub negative_cache: Option<Span>,
    /// The time for one review. Default: 2 s; 50 ms to 10 s.
    #[serde(default)]
    pub timeout: Option<Span>,
    /// When the API server is given a pause.
    #[serde(default)]
    pub circuit_breaker: CircuitBreaker,
}
