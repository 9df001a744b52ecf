//! A real nginx, as people use it in front.

use std::{
    net::SocketAddr,
    path::Path,
    process::{Child, Command, Stdio},
};

use tempfile::TempDir;
use tokio::net::TcpStream;

use super::{found, free_port};
use crate::fixture::Change;

/// The settings that differ from those of users: the location of files, and to stay in the foreground.
const HERE: &str = "
daemon off;
master_process off;
pid {dir}/nginx.pid;
error_log stderr;
";
const FILES: &str = "http {
    log_format asked '$request';
    access_log {dir}/access.log asked;
    client_body_temp_path {dir}/body;
    proxy_temp_path {dir}/proxy;
    fastcgi_temp_path {dir}/fastcgi;
    uwsgi_temp_path {dir}/uwsgi;
    scgi_temp_path {dir}/scgi;
";

/// A running nginx, killed when dropped.
pub struct Nginx {
    child: Child,
    pub address: SocketAddr,
    folder: TempDir,
}

impl Nginx {
    /// Starts it with the configuration that `config` returns for an address to listen on.
    pub async fn start(config: impl Fn(&str) -> String) -> Self {
        // Another test may take the port between its choice and its use.
        for _ in 0..5 {
            if let Some(nginx) = Self::start_at(free_port(), &config).await {
                return nginx;
            }
        }
        panic!("nginx does not start");
    }

    /// `None` if it ends before it listens.
    async fn start_at(port: u16, config: impl Fn(&str) -> String) -> Option<Self> {
        let folder = tempfile::tempdir().unwrap();
        let address = SocketAddr::from(([127, 0, 0, 1], port));
        let config = HERE.to_owned() + &config(&address.to_string()).replacen("http {\n", FILES, 1);
        let file = folder.path().join("nginx.conf");
        std::fs::write(&file, config.replace("{dir}", &folder.path().display().to_string())).unwrap();
        let child = Command::new("nginx")
            .arg("-c")
            .arg(&file)
            .arg("-p")
            .arg(folder.path())
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn();
        let child = child.unwrap_or_else(|error| panic!("nginx cannot be run ({error}); `scripts/test` installs it"));
        let mut nginx = Self { child, address, folder };
        let serves = found(async || match nginx.child.try_wait().unwrap() {
            Some(_) => Some(false),
            None => TcpStream::connect(address).await.is_ok().then_some(true),
        });
        serves.await.then_some(nginx)
    }

    /// The request lines that it received, in the order in which requests ended: `GET /version HTTP/2.0`.
    pub fn requests(&self) -> Vec<String> {
        let log = std::fs::read_to_string(self.folder.path().join("access.log")).unwrap();
        log.lines().map(str::to_owned).collect()
    }

    /// Set up as in `deploy/examples/nginx.conf`, at this port in front of a TLS listener. `folder` has `server.pem`
    /// and `server.key`, which Doorward uses too, and `ca.pem`, which signed them.
    pub async fn in_front_of(doorward: SocketAddr, folder: &Path, port: u16) -> Self {
        let shipped = Path::new(env!("CARGO_MANIFEST_DIR")).join("deploy/examples/nginx.conf");
        let shipped = std::fs::read_to_string(shipped).unwrap();
        let file = |name: &str| folder.join(name).display().to_string();
        let config = |address: &str| {
            let mut config = shipped.clone();
            for (there, here) in [
                ("listen 443 ", format!("listen {address} ")),
                ("doorward.doorward.svc:443", doorward.to_string()),
                ("tekton.example.com k8s.example.com hooks.example.com", "localhost".to_owned()),
                ("proxy_ssl_name tekton.example.com;", "proxy_ssl_name localhost;".to_owned()),
                ("/etc/nginx/tls/tls.crt", file("server.pem")),
                ("/etc/nginx/tls/tls.key", file("server.key")),
                ("/etc/nginx/tls/ca.crt", file("ca.pem")),
            ] {
                config = config.change(there, &here);
            }
            config
        };
        Self::start_at(port, config).await.expect("nginx does not start")
    }
}

impl Drop for Nginx {
    fn drop(&mut self) {
        // It may have ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
