//! Keys, tokens and a scripted provider for tests.

#![expect(clippy::needless_pass_by_value, reason = "`json!` arguments read better without a borrow")]

use std::{
    collections::HashMap,
    convert::Infallible,
    path::Path,
    pin::Pin,
    sync::{Arc, LazyLock, Mutex},
    task,
    time::Duration,
};

use aws_lc_rs::{
    rand::SystemRandom,
    rsa::KeySize,
    signature::{
        self, ECDSA_P256_SHA256_FIXED_SIGNING, ECDSA_P384_SHA384_FIXED_SIGNING, EcdsaKeyPair, Ed25519KeyPair, KeyPair,
        RsaEncoding, RsaKeyPair,
    },
};
use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
use bytes::Bytes;
use http::{Request, Response};
use http_body_util::{BodyExt, Full, combinators::BoxBody};
use hyper::{
    body::{Frame, Incoming},
    service::service_fn,
};
use hyper_util::rt::TokioIo;
use serde_json::{Value, json};
use tokio::{net::TcpListener, runtime::Handle};

use super::{Accepts, Context, Issuers, Metrics};
use crate::{
    authn::Principal,
    clock::{Clock, Timestamp},
    config::{raw, report::At, resolver::Resolver},
    egress::Egress,
    error::{Reason, Rejection},
};

/// The time at which tests begin.
pub const START: i64 = 1_800_000_000;

pub fn b64(bytes: impl AsRef<[u8]>) -> String {
    URL_SAFE_NO_PAD.encode(bytes)
}

/// A private key, of any kind.
pub enum TestKey {
    Rsa(RsaKeyPair),
    Ecdsa(EcdsaKeyPair, &'static str),
    Ed25519(Ed25519KeyPair),
}

pub static RSA: LazyLock<TestKey> = LazyLock::new(rsa);
pub static OTHER_RSA: LazyLock<TestKey> = LazyLock::new(rsa);
pub static P256: LazyLock<TestKey> =
    LazyLock::new(|| TestKey::Ecdsa(EcdsaKeyPair::generate(&ECDSA_P256_SHA256_FIXED_SIGNING).unwrap(), "P-256"));
pub static P384: LazyLock<TestKey> =
    LazyLock::new(|| TestKey::Ecdsa(EcdsaKeyPair::generate(&ECDSA_P384_SHA384_FIXED_SIGNING).unwrap(), "P-384"));
pub static ED25519: LazyLock<TestKey> = LazyLock::new(|| TestKey::Ed25519(Ed25519KeyPair::generate().unwrap()));

fn rsa() -> TestKey {
    TestKey::Rsa(RsaKeyPair::generate(KeySize::Rsa2048).unwrap())
}

impl TestKey {
    /// The public key, with a `kid` and other members.
    pub fn jwk(&self, kid: &str, more: Value) -> Value {
        let mut jwk = match self {
            Self::Rsa(pair) => {
                let public = pair.public_key();
                json!({"kty": "RSA", "n": b64(public.modulus().big_endian_without_leading_zero()), "e": b64(public.exponent().big_endian_without_leading_zero())})
            }
            Self::Ecdsa(pair, curve) => {
                let (x, y) = pair.public_key().as_ref()[1..].split_at((pair.public_key().as_ref().len() - 1) / 2);
                json!({"kty": "EC", "crv": curve, "x": b64(x), "y": b64(y)})
            }
            Self::Ed25519(pair) => json!({"kty": "OKP", "crv": "Ed25519", "x": b64(pair.public_key())}),
        };
        jwk["kid"] = kid.into();
        for (name, value) in more.as_object().unwrap() {
            jwk[name] = value.clone();
        }
        jwk
    }

    /// A signature with the usual algorithm of the key.
    pub fn sign(&self, message: &[u8]) -> Vec<u8> {
        match self {
            Self::Rsa(_) => self.sign_rsa(&signature::RSA_PKCS1_SHA256, message),
            Self::Ecdsa(pair, _) => pair.sign(&SystemRandom::new(), message).unwrap().as_ref().to_vec(),
            Self::Ed25519(pair) => pair.sign(message).as_ref().to_vec(),
        }
    }

    pub fn sign_rsa(&self, encoding: &'static dyn RsaEncoding, message: &[u8]) -> Vec<u8> {
        let Self::Rsa(pair) = self else { panic!("not an RSA key") };
        let mut signature = vec![0; pair.public_modulus_len()];
        pair.sign(encoding, &SystemRandom::new(), message, &mut signature).unwrap();
        signature
    }

    /// A token of exactly these texts.
    pub fn token(&self, header: &str, payload: &str) -> String {
        let signed = format!("{}.{}", b64(header), b64(payload));
        format!("{signed}.{}", b64(self.sign(signed.as_bytes())))
    }
}

/// The claims of a valid access token of `issuer` for the audience `doorward`, changed by `changes`; a `null` there
/// removes a claim.
pub fn claims(issuer: &str, changes: Value) -> String {
    let claims = json!({
        "iss": issuer, "sub": "alice", "aud": "doorward", "client_id": "cli", "jti": "t1",
        "iat": START, "exp": START + 600, "scope": "tekton:read tekton:run", "groups": ["dev"],
    });
    changed(claims, &changes).to_string()
}

/// `value` with the members of `changes`; a `null` removes one.
pub fn changed(mut value: Value, changes: &Value) -> Value {
    for (name, change) in changes.as_object().unwrap() {
        match change {
            Value::Null => _ = value.as_object_mut().unwrap().remove(name),
            change => value[name] = change.clone(),
        }
    }
    value
}

/// The response of a provider to a request.
#[derive(Clone)]
pub enum Reply {
    Answer(u16, &'static str, Bytes),
    /// JSON with an entity tag, and 304 if the client has it already.
    Versioned(&'static str, Bytes),
    Redirect(String),
    /// Sends nothing.
    Hang,
    /// Sends the head and then occasional bytes.
    Drip,
    /// Sends an endless body without a length.
    Endless,
    /// Announces a length above any limit.
    Promise(u64),
}

impl Reply {
    pub fn json(value: &Value) -> Self {
        Self::Answer(200, "application/json", value.to_string().into())
    }

    pub fn keys(keys: &[Value]) -> Self {
        Self::json(&json!({"keys": keys}))
    }
}

/// A request that a provider received.
#[derive(Clone, Debug)]
pub struct Got {
    pub path: String,
    pub headers: http::HeaderMap,
    pub body: String,
}

/// A provider on loopback, with a script by path.
#[derive(Clone)]
pub struct Provider {
    pub url: String,
    script: Arc<Mutex<HashMap<String, Reply>>>,
    got: Arc<Mutex<Vec<Got>>>,
}

type ReplyBody = BoxBody<Bytes, Infallible>;

impl Provider {
    pub async fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let provider = Self {
            url: format!("http://{}", listener.local_addr().unwrap()),
            script: Arc::default(),
            got: Arc::default(),
        };
        let serving = provider.clone();
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let provider = serving.clone();
                let service = service_fn(move |request| {
                    let provider = provider.clone();
                    async move { provider.answer(request).await }
                });
                let connection =
                    hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(stream), service);
                tokio::spawn(async move { _ = connection.await });
            }
        });
        provider
    }

    /// A provider with a discovery document and these keys.
    pub async fn with_keys(keys: &[Value]) -> Self {
        let provider = Self::start().await;
        provider.on("/.well-known/openid-configuration", Reply::json(&provider.metadata()));
        provider.on("/jwks", Reply::keys(keys));
        provider
    }

    pub fn metadata(&self) -> Value {
        json!({
            "issuer": self.url, "jwks_uri": format!("{}/jwks", self.url),
            "introspection_endpoint": format!("{}/introspect", self.url),
            "id_token_signing_alg_values_supported": ["none", "HS256", "RS256"],
        })
    }

    pub fn on(&self, path: &str, reply: Reply) {
        self.script.lock().unwrap().insert(path.to_owned(), reply);
    }

    pub fn hits(&self, path: &str) -> usize {
        self.got.lock().unwrap().iter().filter(|got| got.path == path).count()
    }

    pub fn got(&self) -> Vec<Got> {
        self.got.lock().unwrap().clone()
    }

    async fn answer(&self, request: Request<Incoming>) -> Result<Response<ReplyBody>, Infallible> {
        let (parts, body) = request.into_parts();
        let body = String::from_utf8_lossy(&body.collect().await.unwrap().to_bytes()).into_owned();
        let path = parts.uri.path().to_owned();
        let reply = self.script.lock().unwrap().get(&path).cloned();
        let condition = parts.headers.get("if-none-match").cloned();
        self.got.lock().unwrap().push(Got { path, headers: parts.headers, body });
        let respond = |status: u16, kind: &str, body: ReplyBody| {
            Ok(Response::builder().status(status).header("content-type", kind).body(body).unwrap())
        };
        match reply {
            None => respond(404, "text/plain", Full::new(Bytes::new()).boxed()),
            Some(Reply::Answer(status, kind, body)) => respond(status, kind, Full::new(body).boxed()),
            Some(Reply::Versioned(tag, body)) => {
                let known = condition.is_some_and(|condition| condition == tag);
                Ok(Response::builder()
                    .status(if known { 304 } else { 200 })
                    .header("content-type", "application/json")
                    .header("etag", tag)
                    .body(Full::new(if known { Bytes::new() } else { body }).boxed())
                    .unwrap())
            }
            Some(Reply::Redirect(to)) => Ok(Response::builder()
                .status(302)
                .header("location", to)
                .body(Full::new(Bytes::new()).boxed())
                .unwrap()),
            Some(Reply::Hang) => std::future::pending().await,
            Some(Reply::Drip) => {
                respond(200, "application/json", trickle(Bytes::from_static(b" "), Duration::from_millis(20)))
            }
            Some(Reply::Endless) => {
                respond(200, "application/json", trickle(Bytes::from(vec![b' '; 1 << 16]), Duration::ZERO))
            }
            Some(Reply::Promise(length)) => Ok(Response::builder()
                .header("content-type", "application/json")
                .header("content-length", length)
                .body(Full::new(Bytes::from_static(b"{}")).boxed())
                .unwrap()),
        }
    }
}

/// An endless body of the same bytes, with pauses.
struct Trickle {
    bytes: Bytes,
    pause: Duration,
    timer: Pin<Box<tokio::time::Sleep>>,
}

fn trickle(bytes: Bytes, pause: Duration) -> ReplyBody {
    Trickle { bytes, pause, timer: Box::pin(tokio::time::sleep(pause)) }.boxed()
}

impl http_body::Body for Trickle {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut task::Context<'_>,
    ) -> task::Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        task::ready!(self.timer.as_mut().poll(context));
        self.timer = Box::pin(tokio::time::sleep(self.pause));
        task::Poll::Ready(Some(Ok(Frame::data(self.bytes.clone()))))
    }
}

/// Waits until a condition holds.
pub async fn until(what: &str, mut holds: impl FnMut() -> bool) {
    let waiting = async {
        while !holds() {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(20), waiting).await.unwrap_or_else(|_| panic!("never happened: {what}"));
}

/// A client that trusts only an unused authority.
pub fn egress() -> Egress {
    static CLIENT_CA: LazyLock<tempfile::NamedTempFile> = LazyLock::new(|| {
        let authority = rcgen::generate_simple_self_signed(vec!["authority.test".to_owned()]).unwrap();
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), authority.cert.pem()).unwrap();
        file
    });
    Egress::direct(Some(&std::fs::read(CLIENT_CA.path()).unwrap()), None).unwrap()
}

pub fn context() -> Context {
    let clock = Clock::manual(Timestamp::from_secs(START));
    Context {
        refetches: Context::refetches(&clock),
        clock,
        control: Handle::current(),
        egress: egress(),
        metrics: Metrics::default(),
    }
}

/// The issuers of a configuration that must be valid, and what a route without a list of issuers accepts.
pub fn resolve(root: &Value, previous: Option<&Issuers>, context: &Context) -> (Issuers, Accepts) {
    let root: raw::Root = serde_json::from_value(root.clone()).unwrap();
    let mut resolver = Resolver::new(Path::new("/"));
    let issuers = Issuers::resolve(&root, &mut resolver, previous, context);
    let accepts = issuers.accepts(&[], &At::root(), &mut resolver);
    assert!(!resolver.report.has_errors(), "{:#?}", resolver.report);
    issuers.start();
    (issuers, accepts)
}

/// Issuers with fetched keys.
pub async fn ready(root: &Value, context: &Context) -> (Issuers, Accepts) {
    let (issuers, accepts) = resolve(root, None, context);
    until("all keys are fetched", || issuers.iter().all(|issuer| issuer.keys().status().usable)).await;
    (issuers, accepts)
}

/// The outcome of a token at a route that accepts these.
pub async fn outcome(issuers: &Issuers, token: &str, accepts: &Accepts) -> Result<(), Reason> {
    let outcome = issuers.authenticate(token, accepts, &nothing).await;
    outcome.map(|_| ()).map_err(|rejection| rejection.reason())
}

/// Nothing is revoked.
pub fn nothing(_: &Principal) -> bool {
    false
}

/// The refusal with its precise reason, for messages of tests.
pub fn precise(rejection: &Rejection) -> String {
    let source = std::error::Error::source(rejection).map(ToString::to_string).unwrap_or_default();
    format!("{rejection} / {source}")
}
