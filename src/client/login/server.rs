//! The Doorward at which a program signs in, as seen from the person's machine.

use std::{
    path::{Path, PathBuf},
    time::Duration,
};

use bytes::Bytes;
use http::{Method, Request, Response, StatusCode, header};
use serde_json::Value;
use url::form_urlencoded::Serializer;

use super::{Address, again, session_file::Entry};
use crate::{
    authn::NeededLogin,
    client::{self, CertificateFault, RENEW},
    clock::Timestamp,
    egress::{self, Bounds, Egress, EgressError, NO_SERVERS},
    endpoints::WHO_AM_I,
    oidc::program::{self, UserCode},
    terminal,
};

/// The bounds of a call. Doorward may wait for a provider itself.
const BOUNDS: Bounds = Bounds { timeout: Duration::from_secs(40), max_body: 256 << 10 };

/// The bounds of a check that a session goes on, while another program waits.
const GLANCE: Bounds = Bounds { timeout: Duration::from_secs(3), max_body: 256 << 10 };

/// The bounds of a check of the page that a person will be sent to.
const PAGE_BOUNDS: Bounds = Bounds { timeout: Duration::from_secs(15), max_body: 1 << 20 };

/// The bounds of the polling interval, whatever Doorward asks for.
const SHORTEST: Duration = Duration::from_secs(1);
const LONGEST: Duration = Duration::from_secs(60);

/// Requests of programs are forms, even empty ones.
const FORM: &str = "application/x-www-form-urlencoded";

/// The Doorward at an address.
pub struct Server {
    pub address: Address,
    /// The file with the authorities that are trusted there.
    pub ca: Option<PathBuf>,
    egress: Egress,
}

/// Why a call failed.
#[derive(Debug, thiserror::Error)]
pub enum Refused {
    /// 401: the session is over.
    #[error("{0}")]
    Ended(String),
    /// An error of RFC 6749 section 5.2 or RFC 8628 section 3.5, by its code and in words.
    #[error("{1}")]
    Told(String, String),
    /// No response, or one that is not Doorward's.
    #[error("{0}")]
    Other(String),
}

/// The device authorization response (RFC 8628 section 3.2).
pub struct Waiting {
    pub code: String,
    pub user_code: UserCode,
    pub expires: Duration,
    pub interval: Duration,
}

impl Refused {
    /// The message with a remedy, if the authorities in `ca` are trusted.
    pub fn advise(self, address: &Address, ca: Option<&Path>) -> String {
        match self {
            Self::Ended(why) => format!("{why}; run `{}`", again(address, ca)),
            Self::Told(_, why) | Self::Other(why) => why,
        }
    }
}

impl Server {
    /// Trusts the authorities in `ca`, or else those of the system.
    pub fn new(address: &Address, ca: Option<&Path>) -> Result<Self, String> {
        let egress = client::egress(address, ca)?;
        Ok(Self { address: address.clone(), ca: ca.map(Path::to_owned), egress })
    }

    /// The page that asks the person.
    pub fn page(&self, port: u16, state: &str, challenge: &str, machine: &str, needed: &NeededLogin) -> String {
        let mut query = Serializer::new(String::new());
        query.append_pair("port", &port.to_string()).append_pair("state", state);
        query.append_pair("code_challenge", challenge).append_pair("machine", machine);
        query.extend_pairs(needed.parameters());
        format!("{}{}?{}", self.address, program::PAGE, query.finish())
    }

    /// Checks that the page exists and is Doorward's, which shows this code, before a person is sent there.
    pub async fn has_page(&self, page: &str, confirmation: &str) -> Result<(), Refused> {
        let request = Request::get(page).header(header::ACCEPT, "application/json").body(Bytes::new());
        let answer = self.ask(request, PAGE_BOUNDS).await?;
        let shows = |part: &str| answer.body().windows(part.len()).any(|window| window == part.as_bytes());
        match answer.status() {
            StatusCode::OK if shows(confirmation) => Ok(()),
            _ => Err(self.refusal(&answer)),
        }
    }

    /// Redeems a code for a session.
    pub async fn redeem(&self, code: &str, verifier: &str) -> Result<Entry, Refused> {
        let form = [("grant_type", "authorization_code"), ("code", code), ("code_verifier", verifier)];
        self.entry(&self.submit(program::TOKEN, &form).await?)
    }

    /// Requests a code for a person to type at [`Self::device_page`].
    pub async fn begin_device(&self, challenge: &str, machine: &str, needed: &NeededLogin) -> Result<Waiting, Refused> {
        let needed = needed.parameters();
        let mut form = vec![("code_challenge", challenge), ("machine", machine)];
        form.extend(needed.iter().map(|(name, value)| (*name, value.as_str())));
        let told = self.submit(program::DEVICE_REQUEST, &form).await?;
        let seconds = |name: &str| told.get(name).and_then(Value::as_u64).map(Duration::from_secs);
        let waiting = || {
            Some(Waiting {
                code: told.get("device_code")?.as_str()?.to_owned(),
                user_code: UserCode::parse(told.get("user_code")?.as_str()?)?,
                expires: seconds("expires_in")?,
                interval: seconds("interval")?.clamp(SHORTEST, LONGEST),
            })
        };
        waiting().ok_or_else(not_understood)
    }

    pub fn device_page(&self) -> String {
        format!("{}{}", self.address, program::DEVICE)
    }

    /// Redeems the typed code of a program for its session.
    pub async fn redeem_device(&self, code: &str, verifier: &str) -> Result<Entry, Refused> {
        let form = [("grant_type", program::DEVICE_GRANT), ("device_code", code), ("code_verifier", verifier)];
        self.entry(&self.submit(program::TOKEN, &form).await?)
    }

    /// The entry for a response with a session.
    fn entry(&self, told: &Value) -> Result<Entry, Refused> {
        let text = |name: &str| told.get(name).and_then(Value::as_str).map(str::to_owned);
        let entry = || {
            let (handle, expires, username) = (text("access_token")?, text("expires")?, text("username")?);
            Timestamp::from_rfc3339(&expires)?;
            Some(Entry { handle, expires, username, ca: self.ca.clone() })
        };
        entry().ok_or_else(not_understood)
    }

    async fn submit(&self, path: &str, form: &[(&str, &str)]) -> Result<Value, Refused> {
        let request = Request::builder()
            .method(Method::POST)
            .header(header::CONTENT_TYPE, FORM)
            .uri(format!("{}{path}", self.address))
            .body(Bytes::from(Serializer::new(String::new()).extend_pairs(form).finish()));
        self.send(request, BOUNDS).await
    }

    pub async fn who_am_i(&self, handle: &str) -> Result<Value, Refused> {
        self.call(Method::GET, WHO_AM_I, handle, BOUNDS).await
    }

    /// Whether the session of this handle has certainly ended: `false` if the server cannot be reached.
    pub async fn has_ended(&self, handle: &str) -> bool {
        matches!(self.call(Method::GET, WHO_AM_I, handle, GLANCE).await, Err(Refused::Ended(_)))
    }

    pub async fn end(&self, handle: &str) -> Result<(), Refused> {
        match self.call(Method::POST, program::END, handle, BOUNDS).await {
            // If it has ended already, nothing is left to do.
            Ok(_) | Err(Refused::Ended(_)) => Ok(()),
            Err(refused) => Err(refused),
        }
    }

    async fn call(&self, method: Method, path: &str, handle: &str, bounds: Bounds) -> Result<Value, Refused> {
        let bearer = egress::bearer(handle.as_bytes())
            .ok_or_else(|| Refused::Other("the handle that was kept is damaged".to_owned()))?;
        let request = Request::builder()
            .method(method)
            .uri(format!("{}{path}", self.address))
            .header(header::ACCEPT, "application/json")
            .header(header::CONTENT_TYPE, FORM)
            .header(header::AUTHORIZATION, bearer)
            .body(Bytes::new());
        self.send(request, bounds).await
    }

    async fn send(&self, request: http::Result<Request<Bytes>>, bounds: Bounds) -> Result<Value, Refused> {
        let answer = self.ask(request, bounds).await?;
        match serde_json::from_slice(answer.body()) {
            Ok(told) if answer.status() == StatusCode::OK => Ok(told),
            _ => Err(self.refusal(&answer)),
        }
    }

    async fn ask(&self, request: http::Result<Request<Bytes>>, bounds: Bounds) -> Result<Response<Bytes>, Refused> {
        let request = request.map_err(|error| Refused::Other(error.to_string()))?;
        self.egress.send(request, bounds).await.map_err(|error| {
            let advice = self.advice(&error).map(|advice| format!("; {advice}")).unwrap_or_default();
            Refused::Other(format!("{}: {error}{advice}", self.address))
        })
    }

    /// What to do if there was no response.
    fn advice(&self, error: &EgressError) -> Option<String> {
        match (CertificateFault::of(error), error.of_tls(), error) {
            (Some(CertificateFault::Time), ..) => Some(RENEW.to_owned()),
            (Some(CertificateFault::Name), ..) => Some("use a name that is in its certificate".to_owned()),
            (Some(CertificateFault::NoServers), ..) => Some(NO_SERVERS.to_owned()),
            (Some(CertificateFault::Authority), ..) => Some(format!(
                "name the file with the authority that signed its certificate: `doorward login {} --ca FILE`",
                self.address
            )),
            (None, Some(rustls::Error::InvalidMessage(_)), _) => Some(
                "what answers there speaks no TLS: is it the right port, or for this machine `http://`?".to_owned(),
            ),
            (None, None, EgressError::Exchange(_)) => self.may_be_tls(),
            _ => None,
        }
    }

    /// A server that speaks TLS closes such a connection, or answers with an error.
    fn may_be_tls(&self) -> Option<String> {
        let rest = self.address.as_str().strip_prefix("http://")?;
        Some(format!("if it speaks TLS, write `https://{rest}`"))
    }

    /// Why a response is not the expected one.
    fn refusal(&self, answer: &Response<Bytes>) -> Refused {
        let (status, told) = (answer.status(), serde_json::from_slice::<Value>(answer.body()));
        let text = |name: &str| {
            let said: String = told.as_ref().ok()?.get(name)?.as_str()?.chars().take(400).collect();
            Some(terminal::line(&said))
        };
        let said = text("error_description").or_else(|| text("detail"));
        match (status, said, text("error")) {
            (StatusCode::UNAUTHORIZED, Some(said), _) => Refused::Ended(said),
            (_, Some(said), Some(error)) => Refused::Told(error, said),
            (_, Some(said), None) => Refused::Other(said),
            _ => {
                let hint = self.may_be_tls().map(|hint| format!(" {hint}")).unwrap_or_default();
                Refused::Other(format!("{} answered with {status}: is it a Doorward?{hint}", self.address))
            }
        }
    }
}

fn not_understood() -> Refused {
    Refused::Other("the answer of Doorward cannot be understood".to_owned())
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use rustls::pki_types::{PrivateKeyDer, pem::PemObject};
    use tokio::{
        io::{AsyncReadExt, AsyncWriteExt},
        net::{TcpListener, TcpStream},
    };

    use super::*;

    const PAGE: &str = "HTTP/1.1 200 OK\r\nContent-Length: 24\r\n\r\n<p>BCDF-GHJK</p>        ";

    /// The result of `has_page` if each connection is served in this way.
    async fn said<F: Future<Output = ()>>(scheme: &str, ca: Option<&Path>, serve: impl Fn(TcpStream) -> F) -> String {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address: Address =
            format!("{scheme}://localhost:{}", listener.local_addr().unwrap().port()).parse().unwrap();
        let server = Server::new(&address, ca).unwrap();
        let serving = async {
            loop {
                serve(listener.accept().await.unwrap().0).await;
            }
        };
        let page = format!("{address}/.doorward/login?port=7000");
        let outcome = tokio::select! {
            outcome = server.has_page(&page, "BCDF-GHJK") => outcome,
            () = serving => unreachable!("it serves for ever"),
        };
        outcome.map_or_else(|refused| refused.to_string(), |()| "good".to_owned())
    }

    /// Regression: the command failed when it was run as printed, as it left out the authority.
    #[test]
    fn the_command_to_sign_in_again_trusts_what_was_trusted() {
        let address = "https://door.test".parse().unwrap();
        for (ca, again) in [
            (None, "doorward login https://door.test"),
            (Some("/home/ada/ca.pem"), "doorward login https://door.test --ca /home/ada/ca.pem"),
            (Some("/home/a b/it's.pem"), r"doorward login https://door.test --ca '/home/a b/it'\''s.pem'"),
        ] {
            let told = Refused::Ended("it has ended".to_owned()).advise(&address, ca.map(Path::new));
            assert_eq!(told, format!("it has ended; run `{again}`"));
        }
    }

    #[tokio::test]
    async fn a_wrong_address_or_untrusted_certificate_is_reported_before_the_login() {
        let answer = |answer: &'static str| {
            move |mut stream: TcpStream| async move {
                let mut read = [0; 1024];
                let _ = stream.read(&mut read).await;
                let _ = stream.write_all(answer.as_bytes()).await;
            }
        };
        assert_eq!(said("http", None, answer(PAGE)).await, "good");
        let other = said("http", None, answer("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}")).await;
        assert!(other.contains("200 OK: is it a Doorward? if it speaks TLS, write `https://localhost:"), "{other}");
        let closed = said("http", None, answer("")).await;
        assert!(closed.contains("if it speaks TLS, write `https://localhost:"), "{closed}");

        let dir = tempfile::tempdir().unwrap();
        let certificate = |file: &str, name: &str, is_ca: rcgen::IsCa| {
            let mut params = rcgen::CertificateParams::new([name.to_owned()]).unwrap();
            params.is_ca = is_ca;
            let key = rcgen::KeyPair::generate().unwrap();
            let own = params.self_signed(&key).unwrap();
            let file = dir.path().join(file);
            std::fs::write(&file, own.pem()).unwrap();
            let key = PrivateKeyDer::from_pem_slice(key.serialize_pem().as_bytes()).unwrap();
            let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
            let tls = rustls::ServerConfig::builder_with_provider(provider).with_safe_default_protocol_versions();
            let tls = tls.unwrap().with_no_client_auth().with_single_cert(vec![own.der().clone()], key);
            (file, tokio_rustls::TlsAcceptor::from(Arc::new(tls.unwrap())))
        };
        let over = |tls: &tokio_rustls::TlsAcceptor| {
            let tls = tls.clone();
            move |stream: TcpStream| {
                let tls = tls.clone();
                async move {
                    let Ok(mut stream) = tls.accept(stream).await else { return };
                    let _ = stream.read(&mut [0; 1024]).await;
                    let _ = stream.write_all(PAGE.as_bytes()).await;
                    let _ = stream.shutdown().await;
                }
            }
        };
        let (good, tls) = certificate("good", "localhost", rcgen::IsCa::NoCa);
        let (elsewhere, elsewheres) = certificate("elsewhere", "elsewhere.test", rcgen::IsCa::NoCa);
        let as_authority = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
        let (authority, authoritys) = certificate("authority", "localhost", as_authority);
        assert_eq!(said("https", Some(&good), over(&tls)).await, "good");
        for (ca, tls, advice) in [
            (&elsewhere, &tls, " --ca FILE`"),
            (&elsewhere, &elsewheres, "use a name that is in its certificate"),
            // The file named by `--ca` is known, and of no use.
            (&authority, &authoritys, "make it with `-addext basicConstraints=critical,CA:FALSE`"),
        ] {
            let told = said("https", Some(ca), over(tls)).await;
            assert!(told.contains("certificate") && told.contains(advice), "{told}");
        }
        let clear = said("https", Some(&good), answer("HTTP/1.1 400 Bad Request\r\n\r\n")).await;
        assert!(clear.contains("what answers there speaks no TLS"), "{clear}");
    }
}
