//! `doorward demo`: everything on loopback, to try it out. Nothing here is reachable from any other command.

mod page;
pub mod provider;
pub(crate) mod samples;

use std::{
    fs::{self, Permissions},
    io,
    io::Write,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
};

use axum::Router;
use data_encoding::HEXLOWER;
use tempfile::TempDir;
use tokio::{net::TcpListener, runtime::Runtime};

use self::{
    provider::{AGENT_CLIENT, AUDIENCE, DOORWARD_CLIENT, Provider},
    samples::Sample,
};
use crate::{
    app::{self, StartError},
    clock::Clock,
    config::Sources,
    downstream,
    sessions::keyring::random,
    webhooks::github_signature,
};

/// Run everything on loopback.
#[derive(Clone, Debug, clap::Args)]
pub struct DemoArgs {
    /// The port of Doorward.
    #[arg(long, default_value_t = 8080, value_parser = clap::value_parser!(u16).range(1..))]
    pub port: u16,
    /// The port of the development provider.
    #[arg(long, default_value_t = 8081, value_parser = clap::value_parser!(u16).range(1..))]
    pub provider_port: u16,
}

const CONFIGURATION: &str = include_str!("doorward.yaml");
const DELIVERY: &str = r#"{"ref":"refs/heads/main","before":"0000000000000000000000000000000000000000","after":"89abcdef0123456789abcdef0123456789abcdef","repository":{"id":1296269,"full_name":"acme/app","owner":{"login":"acme"}},"sender":{"id":583231,"login":"octocat","type":"User"},"commits":[]}"#;

/// Runs the demo until Ctrl-C.
pub fn run(args: &DemoArgs) -> Result<(), StartError> {
    if args.port == args.provider_port {
        return Err(cannot("--port and --provider-port must differ")(io::Error::other("both are the same")));
    }
    let folder = folder().map_err(cannot("a folder for the demo cannot be made"))?;
    let runtime = crate::runtime::control().map_err(cannot("a runtime cannot be started"))?;
    let origin = format!("http://localhost:{}", args.port);
    let issuer = format!("http://localhost:{}", args.provider_port);

    let provider = Provider::new(issuer.clone(), std::slice::from_ref(&origin), Clock::default()).map_err(|_| {
        StartError::Io { what: "the provider's key".to_owned(), error: io::Error::other("cannot be made") }
    })?;
    let loopbacks = loopbacks();
    for loopback in &loopbacks {
        serve(&runtime, (*loopback, args.provider_port).into(), provider.router())?;
    }
    let mut addresses = Vec::new();
    for sample in [Sample::EventListener, Sample::Dashboard, Sample::Kubernetes] {
        addresses.push(serve(&runtime, (Ipv4Addr::LOCALHOST, 0).into(), sample.router())?);
    }

    let secret = HEXLOWER.encode(&random::<20>());
    let files = [
        ("webhook.secret", secret.clone()),
        ("client.secret", DOORWARD_CLIENT.1.to_owned()),
        ("cluster.token", HEXLOWER.encode(&random::<20>())),
    ];
    for (name, text) in files {
        write(folder.path(), name, &text)?;
    }
    let mut configuration = CONFIGURATION
        .replace("{listeners}", &listeners(&loopbacks, args.port))
        .replace("{issuer}", &issuer)
        .replace("{audience}", AUDIENCE)
        .replace("{client}", DOORWARD_CLIENT.0)
        .replace("{agent}", AGENT_CLIENT.0);
    for (name, address) in ["{event_listener}", "{dashboard}", "{kubernetes}"].iter().zip(&addresses) {
        configuration = configuration.replace(name, &address.to_string());
    }
    let path = write(folder.path(), "doorward.yaml", &configuration)?;
    let sources = Sources { path: path.clone(), ..Sources::default() };
    app::run(&sources, || {
        // A demo whose output nobody reads continues to run.
        let _ = write!(io::stdout().lock(), "{}", welcome(&origin, &issuer, &secret, &path));
    })
}

fn cannot(what: &'static str) -> impl FnOnce(io::Error) -> StartError {
    move |error| StartError::Io { what: what.to_owned(), error }
}

/// Returns the addresses that `localhost` may mean on this machine. Clients try one after the other, so if another
/// program had our port at only one of them, some clients would take its answers for ours.
fn loopbacks() -> Vec<IpAddr> {
    let ipv6 = IpAddr::from(Ipv6Addr::LOCALHOST);
    let has_ipv6 = std::net::TcpListener::bind((ipv6, 0)).is_ok();
    std::iter::once(IpAddr::from(Ipv4Addr::LOCALHOST)).chain(has_ipv6.then_some(ipv6)).collect()
}

/// Returns a listener for each of `loopbacks`, as the configuration writes them.
fn listeners(loopbacks: &[IpAddr], port: u16) -> String {
    let listener = |loopback: &IpAddr| {
        let name = if loopback.is_ipv6() { "public-ipv6" } else { "public" };
        format!("{{name: {name}, address: \"{}\"}}", SocketAddr::from((*loopback, port)))
    };
    loopbacks.iter().map(listener).collect::<Vec<_>>().join(", ")
}

/// Serves at an address. Port 0 lets the system choose.
fn serve(runtime: &Runtime, address: SocketAddr, router: Router) -> Result<SocketAddr, StartError> {
    let bound =
        runtime.block_on(TcpListener::bind(address)).and_then(|listener| Ok((listener.local_addr()?, listener)));
    let (address, listener) = bound.map_err(|error| {
        let owner = downstream::owner_of(address).map(|owner| format!("; {owner} has it")).unwrap_or_default();
        StartError::Io {
            what: format!(
                "the development provider cannot listen on port {} ({}){owner}: stop that, or choose another with \
                 `--provider-port`",
                address.port(),
                address.ip()
            ),
            error,
        }
    })?;
    runtime.spawn(async move { axum::serve(listener, router).await });
    Ok(address)
}

fn welcome(origin: &str, issuer: &str, secret: &str, configuration: &Path) -> String {
    let signature = github_signature(secret.as_bytes(), DELIVERY.as_bytes());
    let runs = format!("{origin}/apis/tekton.dev/v1/namespaces");
    let token = format!(
        "$(curl -s -u {}:{} -d grant_type=client_credentials {issuer}/token | sed 's/.*\"access_token\":\"\\([^\"]*\\)\".*/\\1/')",
        AGENT_CLIENT.0, AGENT_CLIENT.1
    );
    let delivery = |signature: &str| {
        format!(
            "curl -i {origin}/hooks/github -H 'Content-Type: application/json' -H 'X-GitHub-Event: push' \\\n    -H 'X-GitHub-Delivery: {}' \\\n    -H 'X-Hub-Signature-256: {signature}' \\\n    -d '{DELIVERY}'",
            uuid::Uuid::new_v4()
        )
    };
    format!(
        "
Doorward is running. Open

    {origin}/

in Firefox or a Chromium browser (Safari and other WebKit browsers do not keep the cookies of http://localhost),
and choose who you want to be. Alice is a developer, Bob makes releases, Carol is an auditor. Then try
{origin}/apis/tekton.dev/v1/namespaces/prod/pipelineruns as each of them.

Or paste these:

# 1. A bot requests what its rules do not allow: 403
curl -i -H \"Authorization: Bearer {token}\" {runs}/prod/pipelineruns

# 2. The same bot where it may: 200, and the API server sees who it is
curl -i -H \"Authorization: Bearer {token}\" {runs}/ci/pipelineruns

# 3. A signed webhook: 202 (and 200 \"duplicate\" if you send it again)
{}

# 4. A forged one: 401
{}

The configuration is {}, and the audit trail is beside it. Ctrl-C stops the demo.

",
        delivery(&signature),
        delivery(&format!("sha256={}", "0".repeat(64))),
        configuration.display()
    )
}

/// Creates a folder for the demo, which is removed with it. Its secrets are for nobody else on this machine.
fn folder() -> io::Result<TempDir> {
    tempfile::Builder::new().prefix("doorward-demo-").permissions(Permissions::from_mode(0o700)).tempdir()
}

fn write(folder: &Path, name: &str, text: &str) -> Result<PathBuf, StartError> {
    let path = folder.join(name);
    fs::write(&path, text).map_err(cannot("a file of the demo cannot be written"))?;
    Ok(path)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn other_users_cannot_read_the_folder_of_the_demo() {
        let folder = folder().unwrap();
        assert_eq!(fs::metadata(folder.path()).unwrap().permissions().mode() & 0o777, 0o700);
    }
}
