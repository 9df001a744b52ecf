//! A real nginx, as people have it in front.

use std::{
    net::SocketAddr,
    path::Path,
    process::{Child, Command, Stdio},
};

use tempfile::TempDir;
use tokio::net::TcpStream;

use super::{free_port, within};

/// How nginx is set up as users do it, less where it keeps its files and that it stays in front.
const HERE: &str = "
daemon off;
master_process off;
pid {dir}/nginx.pid;
error_log stderr;
";
const FILES: &str = "http {
    access_log off;
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
    _folder: TempDir,
}

impl Nginx {
    /// With the configuration that `config` gives for an address to listen on.
    pub async fn start(config: impl Fn(&str) -> String) -> Self {
        // The port may be taken by another test between its choice and its use.
        for _ in 0..5 {
            let (folder, port) = (tempfile::tempdir().unwrap(), free_port());
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
            let mut child =
                child.unwrap_or_else(|error| panic!("nginx cannot be run ({error}); `scripts/test` installs it"));
            let serves = within(async {
                loop {
                    if child.try_wait().unwrap().is_some() {
                        return false;
                    }
                    if TcpStream::connect(address).await.is_ok() {
                        return true;
                    }
                    tokio::task::yield_now().await;
                }
            });
            if serves.await {
                return Self { child, address, _folder: folder };
            }
        }
        panic!("nginx does not start");
    }

    /// As `deploy/examples/nginx.conf` sets it up, in front of a listener with TLS. `folder` has `server.pem` and `server.key`,
    /// which are Doorward's as well, and `ca.pem`, which signed them.
    pub async fn in_front_of(doorward: SocketAddr, folder: &Path) -> Self {
        let shipped = Path::new(env!("CARGO_MANIFEST_DIR")).join("deploy/examples/nginx.conf");
        let shipped = std::fs::read_to_string(shipped).unwrap();
        let file = |name: &str| folder.join(name).display().to_string();
        Self::start(|address| {
            let mut config = shipped.clone();
            for (there, here) in [
                ("listen 443 ", format!("listen {address} ")),
                ("doorward.doorward.svc:443", doorward.to_string()),
                ("tekton.example.com k8s.example.com hooks.example.com", "localhost".to_owned()),
                ("/etc/nginx/tls/tls.crt", file("server.pem")),
                ("/etc/nginx/tls/tls.key", file("server.key")),
                ("/etc/nginx/tls/ca.crt", file("ca.pem")),
            ] {
                assert!(config.contains(there), "the example has no {there}");
                config = config.replace(there, &here);
            }
            config
        })
        .await
    }
}

impl Drop for Nginx {
    fn drop(&mut self) {
        // One that has ended already is what is wanted.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
