//! An OpenID provider for tests: a real token endpoint on loopback with scripted responses.

use std::{
    collections::HashMap,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use axum::{
    Json, Router,
    extract::{Form, State},
    http::{HeaderMap, StatusCode},
    response::IntoResponse,
    routing::{get, post},
};
use jsonwebtoken::{Algorithm, DecodingKey, EncodingKey, Header, Validation};
use serde_json::{Map, Value, json};
use tokio::net::TcpListener;
use url::Url;

use super::{Client, Identity, Metadata, Protocol, Provider, ProviderFuture, VerifiedIdToken, Wishes};
use crate::{
    authn::{Kind, Principal, Scheme},
    clock::Timestamp,
    config::raw,
    egress::Egress,
    error::{Reason, Rejection},
    issuers::{ClientAuth, LogoutToken, Quoted, TokenError, login_facts, presets::Logout},
};

/// A request at the token endpoint.
#[derive(Clone, Debug)]
pub struct Exchange {
    pub form: HashMap<String, String>,
    pub authorization: Option<String>,
}

/// The responses to the next exchanges.
#[derive(Clone, Debug)]
pub struct Script {
    pub status: StatusCode,
    /// The token response; `id_token` is added if there are claims for one.
    pub answer: Value,
    pub claims: Option<Value>,
    /// Whether the ID token is signed with another key.
    pub forged: bool,
    /// The refusal of all ID tokens, if any.
    pub unverifiable: Option<Reason>,
    /// The responses of the userinfo and introspection endpoints.
    pub user_info: (StatusCode, Value),
    pub introspection: (StatusCode, Value),
}

impl Default for Script {
    fn default() -> Self {
        let nothing = || (StatusCode::NOT_FOUND, Value::Null);
        Self {
            status: StatusCode::OK,
            answer: json!({}),
            claims: None,
            forged: false,
            unverifiable: None,
            user_info: nothing(),
            introspection: nothing(),
        }
    }
}

#[derive(Debug)]
pub struct ScriptedProvider {
    pub name: Arc<str>,
    pub issuer: String,
    pub client: Client,
    pub metadata: Mutex<Option<Arc<Metadata>>>,
    /// Whether its keys are available.
    pub has_keys: AtomicBool,
    /// The required claims of people who sign in.
    pub required: Map<String, Value>,
    pub script: Arc<Mutex<Script>>,
    pub exchanges: Arc<Mutex<Vec<Exchange>>>,
    egress: Egress,
    key: DecodingKey,
}

#[derive(Clone)]
struct Endpoint {
    script: Arc<Mutex<Script>>,
    exchanges: Arc<Mutex<Vec<Exchange>>>,
    good: EncodingKey,
    evil: EncodingKey,
}

pub fn key_pair() -> (EncodingKey, DecodingKey) {
    let pair = rcgen::KeyPair::generate_for(&rcgen::PKCS_ECDSA_P256_SHA256).unwrap();
    let public = DecodingKey::from_ec_pem(pair.public_key_pem().as_bytes()).unwrap();
    (EncodingKey::from_ec_pem(pair.serialize_pem().as_bytes()).unwrap(), public)
}

impl ScriptedProvider {
    /// A provider without endpoints, for tests of sessions.
    pub fn offline(name: &str) -> Self {
        let (_, key) = key_pair();
        Self {
            name: name.into(),
            issuer: format!("https://{name}.example"),
            client: Client {
                authentication: ClientAuth::of_test("doorward", raw::ClientAuthMethod::None, None),
                protocol: Protocol::OpenId,
                scopes: ["openid", "groups"].map(Into::into).to_vec(),
                label: None,
                wishes: Wishes::default(),
                logout: Logout::RpInitiated,
                anew: raw::Prompt::Login,
                redirect: None,
                asks_userinfo: false,
            },
            metadata: Mutex::new(None),
            has_keys: AtomicBool::new(true),
            required: Map::new(),
            script: Arc::default(),
            exchanges: Arc::default(),
            egress: Egress::direct(None, None).unwrap(),
            key,
        }
    }

    /// A provider that listens on loopback.
    pub async fn start(name: &str, authentication: ClientAuth) -> Self {
        let mut provider = Self::offline(name);
        let (good, key) = key_pair();
        provider.key = key;
        provider.client.authentication = authentication;
        let listener = TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
        let base = format!("http://{}", listener.local_addr().unwrap());
        let endpoint = Endpoint {
            script: Arc::clone(&provider.script),
            exchanges: Arc::clone(&provider.exchanges),
            good,
            evil: key_pair().0,
        };
        let router = Router::new()
            .route("/token", post(token))
            .route("/userinfo", get(user_info))
            .route("/introspect", post(introspect))
            .route("/revoke", post(revoke))
            .with_state(endpoint);
        tokio::spawn(async move { axum::serve(listener, router).await });
        provider.metadata = Mutex::new(Some(Arc::new(Metadata {
            authorization_endpoint: Url::parse(&format!("{base}/authorize?tenant=t")).unwrap(),
            token_endpoint: Url::parse(&format!("{base}/token")).unwrap(),
            end_session_endpoint: Some(Url::parse(&format!("{base}/logout")).unwrap()),
            userinfo_endpoint: Some(Url::parse(&format!("{base}/userinfo")).unwrap()),
            introspection_endpoint: Some(Url::parse(&format!("{base}/introspect")).unwrap()),
            revocation_endpoint: Some(Url::parse(&format!("{base}/revoke")).unwrap()),
            iss_parameter_supported: true,
        })));
        provider
    }

    pub fn change_metadata(&self, change: impl FnOnce(&mut Metadata)) {
        let mut slot = self.metadata.lock().unwrap();
        let mut metadata = Metadata::clone(slot.as_ref().unwrap());
        change(&mut metadata);
        *slot = Some(Arc::new(metadata));
    }
}

impl Endpoint {
    fn note(&self, headers: &HeaderMap, form: HashMap<String, String>) {
        let authorization = headers.get("authorization").map(|value| value.to_str().unwrap().to_owned());
        self.exchanges.lock().unwrap().push(Exchange { form, authorization });
    }
}

async fn token(
    State(endpoint): State<Endpoint>,
    headers: HeaderMap,
    Form(form): Form<HashMap<String, String>>,
) -> impl IntoResponse {
    endpoint.note(&headers, form);
    let script = endpoint.script.lock().unwrap().clone();
    let mut answer = script.answer;
    if let Some(claims) = script.claims {
        let key = if script.forged { &endpoint.evil } else { &endpoint.good };
        answer["id_token"] = jsonwebtoken::encode(&Header::new(Algorithm::ES256), &claims, key).unwrap().into();
    }
    (script.status, Json(answer))
}

/// The request is recorded as an exchange too.
async fn user_info(State(endpoint): State<Endpoint>, headers: HeaderMap) -> impl IntoResponse {
    endpoint.note(&headers, HashMap::new());
    let (status, answer) = endpoint.script.lock().unwrap().user_info.clone();
    (status, Json(answer))
}

async fn introspect(
    State(endpoint): State<Endpoint>,
    headers: HeaderMap,
    Form(form): Form<HashMap<String, String>>,
) -> impl IntoResponse {
    endpoint.note(&headers, form);
    let (status, answer) = endpoint.script.lock().unwrap().introspection.clone();
    (status, Json(answer))
}

async fn revoke(State(endpoint): State<Endpoint>, headers: HeaderMap, Form(form): Form<HashMap<String, String>>) {
    endpoint.note(&headers, form);
}

impl Provider for ScriptedProvider {
    fn name(&self) -> &Arc<str> {
        &self.name
    }
    fn issuer(&self) -> &str {
        &self.issuer
    }
    fn client(&self) -> &Client {
        &self.client
    }
    fn metadata(&self) -> Option<Arc<Metadata>> {
        self.metadata.lock().unwrap().clone()
    }
    fn can_verify(&self) -> bool {
        self.has_keys.load(Ordering::SeqCst)
    }
    fn clock_skew(&self) -> Duration {
        Duration::from_secs(30)
    }
    fn egress(&self) -> &Egress {
        &self.egress
    }

    /// Checks only the signature and `required_claims`, so that tests cover the checks of the login itself.
    fn verify_id_token<'a>(&'a self, token: &'a str) -> ProviderFuture<'a, Result<VerifiedIdToken, Rejection>> {
        Box::pin(async move {
            let refused = self.script.lock().unwrap().unverifiable;
            if let Some(reason) = refused {
                return Err(Rejection::new(reason, "this cannot be verified"));
            }
            let mut validation = Validation::new(Algorithm::ES256);
            validation.validate_exp = false;
            validation.validate_aud = false;
            validation.required_spec_claims.clear();
            let token = jsonwebtoken::decode::<Map<String, Value>>(token, &self.key, &validation)
                .map_err(|_| Rejection::new(Reason::SignatureInvalid, "the signature does not fit"))?;
            self.check_required(&token.claims)?;
            Ok(VerifiedIdToken { claims: Arc::new(token.claims), algorithm: raw::Algorithm::ES256 })
        })
    }

    /// Checks only the signature, as above.
    fn verify_logout_token<'a>(&'a self, token: &'a str) -> ProviderFuture<'a, Result<LogoutToken, Rejection>> {
        Box::pin(async move {
            let VerifiedIdToken { claims, .. } = self.verify_id_token(token).await?;
            let text = |name: &str| claims.get(name).and_then(Value::as_str);
            Ok(LogoutToken {
                subject: text("sub").map(Into::into),
                session: text("sid").map(Into::into),
                id: text("jti").unwrap_or_default().into(),
                expires: Timestamp::from_secs(claims.get("exp").and_then(Value::as_i64).unwrap_or_default()),
            })
        })
    }

    fn check_required(&self, claims: &Map<String, Value>) -> Result<(), Rejection> {
        match self.required.iter().find(|(name, value)| claims.get(*name) != Some(*value)) {
            None => Ok(()),
            Some((name, _)) => {
                let came = Quoted::json(claims.get(name));
                Err(TokenError::RequiredClaim { name: name.as_str().into(), came, expected: Vec::new() }.into())
            }
        }
    }

    fn principal(&self, identity: Identity<'_>) -> Result<Principal, Rejection> {
        let subject = identity.claims.get("sub").and_then(Value::as_str).unwrap_or_default();
        if subject.starts_with("system:") {
            return Err(Rejection::new(
                Reason::IdentityRefused,
                "the user name begins with the reserved prefix `system:`",
            ));
        }
        if self.check_required(identity.claims).is_err() {
            return Err(Rejection::new(Reason::SessionExpired, "a claim is not what it must be"));
        }
        let groups = identity.claims.get("groups").and_then(Value::as_array).into_iter().flatten();
        Ok(Principal {
            kind: Kind::Human,
            login: login_facts(identity.claims).unwrap_or_default(),
            groups: groups.filter_map(Value::as_str).map(Into::into).collect(),
            scopes: identity.scopes.to_vec(),
            client: Some(Arc::clone(self.client.id())),
            claims: Arc::clone(identity.claims),
            credential: identity.credential,
            expires: identity.expires,
            ..Principal::new(Scheme::Session, Arc::clone(&self.name), subject, format!("{}#{subject}", self.name))
        })
    }
}
