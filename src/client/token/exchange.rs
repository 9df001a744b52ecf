//! Exchanges the pod's token for one of Doorward's (RFC 8693), and revokes that (RFC 7009).

use std::{
    fs::File,
    io::{self, Read as _},
    path::{Path, PathBuf},
    time::Duration,
};

use bytes::Bytes;
use futures_util::{FutureExt as _, future::LocalBoxFuture};
use http::{HeaderMap, HeaderValue, Request, Response, StatusCode, header, request};
use serde::Deserialize;
use serde_json::Value;
use url::form_urlencoded::Serializer;
use zeroize::Zeroizing;

use super::shape::password;
use crate::{
    client::{self, CertificateFault, RENEW, login::Address, tell},
    clock::Timestamp,
    egress::{Bounds, Egress, EgressError, NO_SERVERS},
    issuers::REVOKED,
    sessions::ACCESS_REVOKED,
    sts, terminal,
};

const BOUNDS: Bounds = Bounds { timeout: Duration::from_secs(15), max_body: 64 << 10 };

/// How long a token request in flight is waited for at the end.
const LAST: Duration = Duration::from_secs(5);

/// The largest pod token that is sent.
const MAX_SUBJECT: u64 = 32 << 10;

/// Where tokens are exchanged, and for what.
#[derive(Debug)]
pub struct Swap {
    server: Address,
    egress: Egress,
    subject: PathBuf,
    audience: String,
    wish: Wish,
}

/// The kind of token to request.
#[derive(Debug)]
pub enum Wish {
    /// A token with these scopes, or with all that rules give by name. `or_other`: or what is given instead of a token,
    /// such as AWS credentials.
    Token { scope: Option<String>, or_other: bool },
    /// Only whether a registry's clients get anything for the pod's token. They name the scopes, some of which rules
    /// may give by a pattern.
    Login,
}

/// Exchanges, one after the other. An exchange that nobody waits for any more is not aborted, since its token could not
/// be revoked then.
pub struct Swaps<'a> {
    swap: &'a Swap,
    under_way: Option<LocalBoxFuture<'a, Result<Issued, NoToken>>>,
}

/// A token that was issued.
#[derive(Debug)]
pub struct Issued {
    pub token: Zeroizing<String>,
    /// By this machine's clock.
    pub ends: Timestamp,
    pub lasts: Duration,
    /// Its scopes, according to the response.
    pub scope: String,
}

/// Why there is no token.
#[derive(Debug, thiserror::Error)]
pub enum NoToken {
    /// It may work later; after this long, if given.
    #[error("{0}")]
    Passing(String, Option<Duration>),
    /// The pod's token is missing or empty. The kubelet fills a volume before any container starts and replaces its
    /// content atomically, so this passes only if something else writes the file.
    #[error("{0}")]
    NoSubject(String),
    /// The server has no certificate that is trusted for the address. This persists until somebody changes one of them.
    #[error("{0}")]
    Untrusted(String),
    /// The request is not granted. Retrying is useless unless somebody changes rules or configuration.
    #[error("{0}")]
    Refused(String),
    /// A provider gave a token that is not passed on, and gives another at each request, until somebody changes its
    /// settings.
    #[error("{0}")]
    Unfit(String),
    /// The pod's token is not valid there. Tokens that were given for it may have ended too.
    #[error("{0}")]
    BadSubject(String),
    /// There will be no more tokens, and those that were given are no longer valid: the run has ended, or they were
    /// revoked.
    #[error("{}", over(.0))]
    Over(String),
}

/// Adds that it is over, unless `said` contains that.
fn over(said: &str) -> String {
    match said.contains(sts::OVER) {
        true => said.to_owned(),
        false => format!("{}: {said}", sts::OVER),
    }
}

#[derive(Deserialize)]
struct Answer {
    access_token: String,
    #[serde(default)]
    token_type: String,
    expires_in: u64,
    #[serde(default)]
    scope: String,
}

impl Swap {
    /// Trusts the authorities in `ca`, or else those of the system.
    pub fn new(
        server: Address,
        ca: Option<&Path>,
        subject: PathBuf,
        audience: String,
        wish: Wish,
    ) -> Result<Self, String> {
        Ok(Self { egress: client::egress(&server, ca)?, server, subject, audience, wish })
    }

    pub fn audience(&self) -> &str {
        &self.audience
    }

    /// Requests a token. The pod's token is read each time, since the kubelet replaces it.
    pub async fn token(&self) -> Result<Issued, NoToken> {
        let subject = self.read_subject()?;
        let now = now();
        let answer = match &self.wish {
            Wish::Token { scope, .. } => self.swap(subject.trim(), scope.as_deref()).await?,
            Wish::Login => self.log_in(subject.trim()).await?,
        };
        if answer.status() != StatusCode::OK {
            return Err(self.refused(&answer));
        }
        self.issued(answer.body(), now)
    }

    /// The token in a response to a request of `now`.
    fn issued(&self, body: &[u8], now: Timestamp) -> Result<Issued, NoToken> {
        let unfit = || {
            NoToken::Refused(format!("{} answered with something that is not a token: is it a Doorward?", self.server))
        };
        let answer: Answer = serde_json::from_slice(body).map_err(|_| unfit())?;
        // RFC 8693 section 2.2.1. Programs would send it to another host as a token.
        if answer.token_type.eq_ignore_ascii_case("N_A") && !matches!(self.wish, Wish::Token { or_other: true, .. }) {
            return Err(NoToken::Refused(format!(
                "{} gives credentials and not a token, and this form cannot hold those; leave `--as` out (in the step action, `form`), and \
                 let a `credential_process` of AWS read them",
                self.audience
            )));
        }
        let is_token =
            !answer.access_token.is_empty() && answer.access_token.bytes().all(|byte| byte.is_ascii_graphic());
        if !is_token || answer.expires_in == 0 {
            return Err(unfit());
        }
        let lasts = Duration::from_secs(answer.expires_in.min(86_400));
        Ok(Issued { token: Zeroizing::new(answer.access_token), ends: now + lasts, lasts, scope: answer.scope })
    }

    async fn swap(&self, subject: &str, scope: Option<&str>) -> Result<Response<Bytes>, NoToken> {
        let mut form = Serializer::new(String::new());
        form.append_pair("grant_type", "urn:ietf:params:oauth:grant-type:token-exchange");
        form.append_pair("subject_token_type", "urn:ietf:params:oauth:token-type:jwt");
        form.append_pair("subject_token", subject);
        form.append_pair("audience", &self.audience);
        if let Some(scope) = scope {
            form.append_pair("scope", scope);
        }
        self.post("/oauth2/token", form.finish()).await
    }

    /// As `docker login` does.
    async fn log_in(&self, subject: &str) -> Result<Response<Bytes>, NoToken> {
        let query = Serializer::new(String::new()).append_pair("service", &self.audience).finish();
        let basic = HeaderValue::try_from(format!("Basic {}", password(subject)));
        let mut basic = basic.map_err(|error| NoToken::Refused(error.to_string()))?;
        basic.set_sensitive(true);
        let request = Request::get(format!("{}/oauth2/registry?{query}", self.server));
        self.send(request.header(header::AUTHORIZATION, basic), Bytes::new()).await
    }

    /// Revokes a token that nobody needs any more.
    pub async fn revoke(&self, token: &str) -> Result<(), NoToken> {
        let answer =
            self.post("/oauth2/revoke", Serializer::new(String::new()).append_pair("token", token).finish()).await?;
        if answer.status() == StatusCode::OK { Ok(()) } else { Err(self.refused(&answer)) }
    }

    /// Reads the pod's own token.
    pub fn read_subject(&self) -> Result<Zeroizing<String>, NoToken> {
        let told = |error: &dyn std::fmt::Display| {
            format!(
                "the pod's token cannot be read: {}: {error}; project a `serviceAccountToken` into the pod, with the audience {}, \
                 and name its file with `--subject-token-file`",
                self.subject.display(),
                self.server
            )
        };
        let mut token = Zeroizing::new(String::new());
        let read = File::open(&self.subject).and_then(|file| file.take(MAX_SUBJECT + 1).read_to_string(&mut token));
        match read {
            Err(error) if error.kind() == io::ErrorKind::NotFound => match self.missing_folder() {
                Some(folder) => Err(NoToken::Refused(told(&format!(
                    "there is no folder {}, so no volume is mounted there",
                    folder.display()
                )))),
                None => Err(NoToken::NoSubject(told(&error))),
            },
            Err(error) => Err(NoToken::Refused(told(&error))),
            Ok(size) if size as u64 > MAX_SUBJECT => {
                Err(NoToken::Refused(told(&format!("it has more than {MAX_SUBJECT} bytes, which is no token"))))
            }
            Ok(_) if token.trim().is_empty() => Err(NoToken::NoSubject(told(&"it is empty"))),
            Ok(_) => Ok(token),
        }
    }

    /// The folder of the pod's token, if it does not exist. A volume is mounted before a container starts, and stays as
    /// long as that runs.
    fn missing_folder(&self) -> Option<&Path> {
        let folder = self.subject.parent().filter(|folder| !folder.as_os_str().is_empty())?;
        (!folder.exists()).then_some(folder)
    }

    async fn post(&self, path: &str, form: String) -> Result<Response<Bytes>, NoToken> {
        let request = Request::post(format!("{}{path}", self.server));
        self.send(request.header(header::CONTENT_TYPE, "application/x-www-form-urlencoded"), form.into()).await
    }

    async fn send(&self, request: request::Builder, body: Bytes) -> Result<Response<Bytes>, NoToken> {
        let request = request.header(header::ACCEPT, "application/json").body(body);
        let request = request.map_err(|error| NoToken::Refused(error.to_string()))?;
        self.egress.send(request, BOUNDS).await.map_err(|error| {
            let said = format!("{}: {error}", self.server);
            match untrusted(&error) {
                Some(fix) => NoToken::Untrusted(format!("{said}; {fix}")),
                // A server that speaks TLS answers with an alert, which is not HTTP.
                None if self.server.as_str().starts_with("http://") && matches!(error, EgressError::Exchange(_)) => {
                    NoToken::Passing(format!("{said}; if it speaks TLS, write `https://`"), None)
                }
                None => NoToken::Passing(said, None),
            }
        })
    }

    fn refused(&self, answer: &Response<Bytes>) -> NoToken {
        let status = answer.status();
        let told: Option<Value> = serde_json::from_slice(answer.body()).ok();
        let text = |pointer: &str| {
            let text: String = told.as_ref()?.pointer(pointer)?.as_str()?.chars().take(600).collect();
            Some(terminal::line(&text))
        };
        // In the form of OAuth, or in that of registries.
        let error = text("/error").or_else(|| text("/errors/0/code"));
        let description = text("/error_description").or_else(|| text("/errors/0/message"));
        // The response may come from a route of Doorward's, or from another server, instead of the token endpoint.
        let elsewhere = match status {
            StatusCode::UNAUTHORIZED
            | StatusCode::FORBIDDEN
            | StatusCode::NOT_FOUND
            | StatusCode::METHOD_NOT_ALLOWED
            | StatusCode::MISDIRECTED_REQUEST => {
                "; `--server` must be the address that its configuration has as `external_host`"
            }
            _ => "",
        };
        let said = match (&error, description.clone().or_else(|| text("/detail"))) {
            (Some(error), Some(description)) => format!("{error}: {description}"),
            (None, Some(detail)) => format!("{} answered with {status}: {detail}{elsewhere}", self.server),
            _ => format!("{} answered with {status}: is it a Doorward?{elsewhere}", self.server),
        };
        // A proxy on the way does not answer with this error.
        if error.as_deref() == Some("server_error") {
            return NoToken::Unfit(said);
        }
        if status.is_server_error() || status == StatusCode::TOO_MANY_REQUESTS {
            return NoToken::Passing(said, retry_after(answer.headers()));
        }
        match error.as_deref() {
            Some("invalid_grant") => NoToken::Over(said),
            Some("invalid_request" | "UNAUTHORIZED") => match description.as_deref().is_some_and(tells_the_end) {
                true => NoToken::Over(said),
                false => NoToken::BadSubject(said),
            },
            _ => NoToken::Refused(said),
        }
    }
}

impl<'a> Swaps<'a> {
    pub fn new(swap: &'a Swap) -> Self {
        Self { swap, under_way: None }
    }

    /// Requests a token. If this is dropped before the response arrives, [`last`](Self::last) takes over.
    pub async fn token(&mut self) -> Result<Issued, NoToken> {
        let swap = self.swap;
        let answer = self.under_way.get_or_insert_with(|| swap.token().boxed_local()).await;
        self.under_way = None;
        answer
    }

    /// The token of a request in flight, if it arrives soon.
    pub async fn last(self) -> Option<Issued> {
        match tokio::time::timeout(LAST, self.under_way?).await {
            Ok(answer) => answer.ok(),
            Err(_) => {
                tell(format_args!(
                    "a token request was still in flight at the end, and {} did not answer within {LAST:?}; if it gives a token, that expires by \
                     itself",
                    self.swap.server
                ));
                None
            }
        }
    }
}

/// What to do about a certificate, if that is why a call failed.
fn untrusted(error: &EgressError) -> Option<&'static str> {
    Some(match CertificateFault::of(error)? {
        CertificateFault::Time => RENEW,
        CertificateFault::Name => "`--server` must be a name in its certificate",
        CertificateFault::NoServers => NO_SERVERS,
        CertificateFault::Authority => {
            "name the file with the authority that signed its certificate by `--ca`, or DOORWARD_CA_FILE"
        }
    })
}

/// Whether the problem of the subject token (`invalid_request`, RFC 8693 section 2.2.2) is that its run has ended, as
/// worded by [`sts`](crate::sts), or that it was revoked. The standard has no code for either.
fn tells_the_end(description: &str) -> bool {
    let of = ["the run ", "pod ", "TaskRun ", "PipelineRun "];
    let said = |end: &&str| description.contains(end.trim_start_matches("it "));
    let has_ended = of.iter().any(|of| description.starts_with(of)) && sts::ENDS.iter().any(said);
    has_ended || [REVOKED, ACCESS_REVOKED].iter().any(|revoked| description.contains(revoked))
}

fn retry_after(headers: &HeaderMap) -> Option<Duration> {
    let seconds = headers.get(header::RETRY_AFTER)?.to_str().ok()?.trim().parse().ok()?;
    Some(Duration::from_secs(std::cmp::min(seconds, 60)))
}

pub(super) fn now() -> Timestamp {
    Timestamp::from(std::time::SystemTime::now())
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use rustls::pki_types::PrivateKeyDer;

    use super::*;

    /// It was tried again for a minute, and only said that the version of HTTP was invalid.
    #[tokio::test]
    async fn a_server_that_speaks_tls_where_http_is_written_is_told_from_one_that_is_away() {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let server = format!("http://{}", listener.local_addr().unwrap()).parse().unwrap();
        let swap = Swap::new(server, None, PathBuf::new(), "a".to_owned(), Wish::Login).unwrap();
        let answers = std::thread::spawn(move || {
            let (mut client, _) = listener.accept().unwrap();
            assert!(io::Read::read(&mut client, &mut [0; 1024]).unwrap() > 0);
            // The alert `unexpected_message`.
            io::Write::write_all(&mut client, &[21, 3, 1, 0, 2, 2, 10]).unwrap();
        });
        let said = swap.post("/oauth2/token", String::new()).await.unwrap_err().to_string();
        assert!(said.ends_with("if it speaks TLS, write `https://`"), "{said}");
        answers.join().unwrap();
        let said = swap.post("/oauth2/token", String::new()).await.unwrap_err().to_string();
        assert!(!said.contains("https://"), "nothing listens there any more: {said}");
    }

    #[test]
    fn a_wrong_host_is_distinguished_from_a_refusal() {
        let server = "https://door.test".parse().unwrap();
        let swap = Swap::new(server, None, PathBuf::new(), "a".to_owned(), Wish::Login).unwrap();
        let said = |status: u16, body: &'static str| {
            let answer = Response::builder().status(status).body(Bytes::from_static(body.as_bytes())).unwrap();
            swap.refused(&answer).to_string()
        };
        for (status, body) in
            [(421, r#"{"detail":"no route is configured for this host"}"#), (401, ""), (404, "<html>")]
        {
            let said = said(status, body);
            assert!(said.contains("https://door.test answered with 4") && said.contains("`external_host`"), "{said}");
        }
        for (status, body) in [
            (400, r#"{"error":"invalid_target","error_description":"no rule gives it"}"#),
            (429, r#"{"detail":"too many requests"}"#),
            (503, r#"{"detail":"it drains"}"#),
        ] {
            let said = said(status, body);
            assert!(!said.contains("external_host"), "{said}");
        }
    }

    /// It was requested for a minute, and the provider issued another token each time.
    #[test]
    fn a_token_that_is_not_passed_on_is_requested_once() {
        let server = "https://door.test".parse().unwrap();
        let swap = Swap::new(server, None, PathBuf::new(), "a".to_owned(), Wish::Login).unwrap();
        for (status, body, passes) in [
            (502, r#"{"error":"server_error","error_description":"what the provider gives is not passed on"}"#, false),
            (502, "<html>", true),
            (503, r#"{"error":"temporarily_unavailable","error_description":"it is away"}"#, true),
            (429, "", true),
        ] {
            let answer = Response::builder().status(status).body(Bytes::from_static(body.as_bytes())).unwrap();
            match swap.refused(&answer) {
                NoToken::Passing(..) => assert!(passes, "{status} {body}"),
                NoToken::Unfit(said) => assert!(!passes && said.contains("not passed on"), "{status} {said}"),
                other => panic!("{other:?}"),
            }
        }
    }

    /// Regression: an untrusted certificate was retried for a minute, in each call.
    #[tokio::test]
    async fn an_untrusted_certificate_is_reported_at_once_with_a_remedy() {
        let key = rcgen::KeyPair::generate().unwrap();
        let authority = rcgen::KeyPair::generate().unwrap();
        let mut as_authority = rcgen::CertificateParams::new(["localhost".to_owned()]).unwrap();
        as_authority.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
        let ca = as_authority.clone().self_signed(&authority).unwrap().pem();
        let issuer = rcgen::Issuer::new(as_authority.clone(), authority);
        let of = |name: &str| rcgen::CertificateParams::new([name.to_owned()]).unwrap();
        let mut late = of("localhost");
        late.not_after = rcgen::date_time_ymd(2001, 1, 1);
        let own_ca = as_authority.self_signed(&key).unwrap();
        let folder = tempfile::tempdir().unwrap();
        for (row, certificate, trusted, fix) in [
            ("signed by nobody known", of("localhost").self_signed(&key).unwrap(), &ca, "`--ca`"),
            ("an authority as a server", own_ca.clone(), &own_ca.pem(), "CA:FALSE`"),
            ("another name", of("other.test").signed_by(&key, &issuer).unwrap(), &ca, "`--server`"),
            ("an old one", late.signed_by(&key, &issuer).unwrap(), &ca, "renew"),
        ] {
            let chain = vec![certificate.der().clone()];
            let der = PrivateKeyDer::try_from(key.serialize_der()).unwrap();
            let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
            let config = rustls::ServerConfig::builder_with_provider(provider).with_safe_default_protocol_versions();
            let config = config.unwrap().with_no_client_auth().with_single_cert(chain, der).unwrap();
            let server = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
            let address = format!("https://localhost:{}", server.local_addr().unwrap().port());
            let accept = tokio::spawn(async move {
                let (stream, _) = server.accept().await.unwrap();
                let _ = tokio_rustls::TlsAcceptor::from(Arc::new(config)).accept(stream).await;
            });
            let file = folder.path().join("ca.pem");
            std::fs::write(&file, trusted).unwrap();
            let address = address.parse().unwrap();
            let swap = Swap::new(address, Some(&file), PathBuf::new(), "a".to_owned(), Wish::Login).unwrap();
            match swap.revoke("token").await {
                Err(NoToken::Untrusted(said)) => assert!(said.contains(fix), "{row}: {said}"),
                other => panic!("{row}: {other:?}"),
            }
            accept.await.unwrap();
        }
    }

    /// AWS keys were sent to another host as a password or a token.
    #[test]
    fn credentials_that_are_no_token_are_ignored() {
        let body = br#"{"access_token":"{\"SecretAccessKey\":\"s\"}","token_type":"N_A","expires_in":900}"#;
        for (wish, is_taken) in [
            (Wish::Token { scope: None, or_other: true }, true),
            (Wish::Token { scope: None, or_other: false }, false),
            (Wish::Login, false),
        ] {
            let server = "https://door.test".parse().unwrap();
            let swap = Swap::new(server, None, PathBuf::new(), "aws".to_owned(), wish).unwrap();
            match swap.issued(body, now()) {
                Ok(_) => assert!(is_taken, "{:?}", swap.wish),
                Err(NoToken::Refused(said)) => assert!(!is_taken && said.contains("leave `--as` out"), "{said}"),
                Err(other) => panic!("{other}"),
            }
        }
    }

    #[test]
    fn the_end_of_the_run_is_reported_once() {
        for said in [
            "invalid_grant: the run has ended, or its tokens were ended: it has a successor",
            "TaskRun build: it is gone",
        ] {
            let told = NoToken::Over(said.to_owned()).to_string();
            assert!(told.matches(sts::OVER).count() == 1 && told.ends_with(said), "{told}");
        }
    }

    #[test]
    fn the_end_of_the_run_is_distinguished_from_errors_that_can_be_corrected() {
        let revoked = format!("{}: who caused it, or acted for them, has been revoked", sts::OVER);
        for (description, ended) in [
            ("pod build-pod: it is being deleted", true),
            ("TaskRun build: it has ended", true),
            ("PipelineRun release: it is cancelled", true),
            ("TaskRun build: it does not exist any more", true),
            ("pod build-pod: it is another one than is meant, under the same name", true),
            ("subject_token: the token was revoked; get a new token", true),
            ("subject_token: your access was revoked; ask whoever runs Doorward", true),
            ("the run has ended", true),
            (&*revoked, true),
            ("TaskRun build runs in pod a, not in b", false),
            ("subject_token: the token has ended", false),
            ("the cause of run build is not known", false),
        ] {
            assert_eq!(tells_the_end(description), ended, "{description}");
        }
    }
}
