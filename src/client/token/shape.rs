//! The forms in which programs need a token.

use std::path::{Path, PathBuf};

use base64::{Engine as _, prelude::BASE64_STANDARD};
use serde_json::{Map, Value, json};
use url::Url;

use super::{Failure, exchange::Issued};

/// A form.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Shape {
    /// The token alone.
    Token,
    /// The token alone, for the web identity of AWS (AWS_WEB_IDENTITY_TOKEN_FILE, beside which AWS_ROLE_ARN must be set).
    Aws,
    /// A `config.json` of docker, for the registry that is the audience, or `--registry`.
    Docker,
    /// A `config.json` of docker with the pod's own token as the password, for a program that runs longer than a registry token lasts.
    /// It asks Doorward for registry tokens itself, and gets all that the rules give the task.
    DockerLogin,
    /// A kubeconfig, for the cluster behind Doorward.
    Kubeconfig,
    /// The answer of an exec plugin of kubectl (ExecCredential).
    ExecCredential,
    /// The answer of a helper of `git credential`, for the host that is the audience.
    Git,
}

/// Where a token is used.
#[derive(Clone, Copy, Debug)]
pub struct Target<'a> {
    /// The audience of the token.
    pub audience: &'a str,
    /// The host of the registry, if the audience has another name.
    pub registry: Option<&'a str>,
    /// Where kubectl finds the cluster.
    pub server: &'a str,
    /// The authorities that are trusted there (PEM).
    pub ca: Option<&'a str>,
    /// The pod's own token.
    pub subject: &'a str,
    /// The version in which kubectl asks its exec plugin.
    pub exec_api: &'a str,
}

impl Target<'_> {
    /// A docker `config.json` with this entry for the registry. Programs look up the host as an image names it, with or
    /// without the port of `https`.
    fn config(&self, entry: &Value) -> Result<String, Failure> {
        let host = host(self.registry.unwrap_or(self.audience))?;
        let short = host.strip_suffix(DEFAULT_PORT).map(str::to_owned);
        let auths: Map<String, Value> = short.into_iter().chain([host]).map(|host| (host, entry.clone())).collect();
        Ok(pretty(&json!({"auths": auths})))
    }
}

impl Shape {
    /// The name of its file, if a command is run with it.
    pub fn file(self) -> &'static str {
        match self {
            Self::Docker | Self::DockerLogin => "config.json",
            Self::Kubeconfig => "kubeconfig",
            Self::ExecCredential => "credential.json",
            Self::Token | Self::Aws | Self::Git => "token",
        }
    }

    /// The variable by which a command finds it, and whether that names the folder.
    pub fn variable(self) -> (&'static str, bool) {
        match self {
            Self::Docker | Self::DockerLogin => ("DOCKER_CONFIG", true),
            Self::Kubeconfig => ("KUBECONFIG", false),
            Self::Aws => ("AWS_WEB_IDENTITY_TOKEN_FILE", false),
            Self::Token | Self::ExecCredential | Self::Git => ("DOORWARD_TOKEN_FILE", false),
        }
    }

    /// Another variable without which a command cannot use it.
    pub fn needs(self) -> Option<&'static str> {
        (self == Self::Aws).then_some("AWS_ROLE_ARN")
    }

    /// Whether docker reads it.
    pub fn is_of_docker(self) -> bool {
        matches!(self, Self::Docker | Self::DockerLogin)
    }

    /// The file beside `file` that has the token, if `file` only refers to it: kubectl re-reads a `tokenFile`, but
    /// reads a kubeconfig once.
    pub fn token_file(self, file: &Path) -> Option<PathBuf> {
        if self != Self::Kubeconfig {
            return None;
        }
        let mut name = file.file_name()?.to_owned();
        name.push(".token");
        Some(file.with_file_name(name))
    }

    pub fn write(self, issued: &Issued, to: Target<'_>) -> Result<String, Failure> {
        let (token, Target { server, ca, .. }) = (issued.token.as_str(), to);
        Ok(match self {
            Self::Token | Self::Aws => token.to_owned(),
            // The first for clients that ask the address which the registry names, the second for those that send it as
            // it is.
            Self::Docker => to.config(&json!({"auth": password(token), "registrytoken": token}))?,
            Self::DockerLogin => to.config(&json!({"auth": password(to.subject)}))?,
            Self::Kubeconfig => pretty(&kubeconfig(&json!({"token": token}), server, ca)),
            Self::ExecCredential => pretty(&json!({
                "apiVersion": to.exec_api,
                "kind": "ExecCredential",
                "status": {"token": token, "expirationTimestamp": issued.ends.to_string()},
            })),
            // Another helper that has stored it ignores it after that end, if it stores the end too, as git's `cache`
            // does.
            Self::Git => {
                let ends = issued.ends.as_secs();
                format!("username=oauth2\npassword={token}\npassword_expiry_utc={ends}\n")
            }
        })
    }
}

/// The repositories that a token permits to push to only. A push first checks which layers exist, which is a pull.
pub fn pushes_alone(scope: &str) -> Vec<&str> {
    let pulls = |name: &str| scope.split(' ').any(|scope| scope.strip_prefix("pull:") == Some(name));
    let pushed = scope.split(' ').filter_map(|scope| scope.strip_prefix("push:"));
    pushed.filter(|name| !pulls(name)).collect()
}

/// Name and password in docker's form. The name has no meaning.
pub fn password(token: &str) -> String {
    BASE64_STANDARD.encode(format!("doorward:{token}"))
}

fn pretty(value: &Value) -> String {
    format!("{value:#}\n")
}

/// A kubeconfig whose token is in a file in the same folder, where kubectl resolves a relative path.
pub fn kubeconfig_beside(token_file: &Path, server: &str, ca: Option<&str>) -> Result<String, Failure> {
    let name = token_file.file_name().and_then(|name| name.to_str());
    let name = name.ok_or_else(|| format!("{}: a kubeconfig cannot have this name", token_file.display()))?;
    Ok(pretty(&kubeconfig(&json!({"tokenFile": name}), server, ca)))
}

fn kubeconfig(user: &Value, server: &str, ca: Option<&str>) -> Value {
    let cluster = match ca {
        Some(ca) => json!({"server": server, "certificate-authority-data": BASE64_STANDARD.encode(ca)}),
        None => json!({"server": server}),
    };
    json!({
        "apiVersion": "v1",
        "kind": "Config",
        "clusters": [{"name": "doorward", "cluster": cluster}],
        "users": [{"name": "doorward", "user": user}],
        "contexts": [{"name": "doorward", "context": {"cluster": "doorward", "user": "doorward"}}],
        "current-context": "doorward",
    })
}

/// The port of `https`, as written behind a host.
const DEFAULT_PORT: &str = ":443";

/// The host of an audience or a registry, with its port: `registry.example.com`, or that of a URL. The port of `https`
/// is kept if it is written, as the name of an image may have it.
pub fn host(audience: &str) -> Result<String, Failure> {
    let plain = !audience.contains('/') && !audience.contains("://");
    let url = if plain { Url::parse(&format!("https://{audience}")) } else { Url::parse(audience) };
    let found = url.ok().and_then(|url| {
        let host = url.host_str()?;
        Some(match url.port() {
            Some(port) => format!("{host}:{port}"),
            None if audience.split('/').any(|part| part.ends_with(DEFAULT_PORT)) => format!("{host}{DEFAULT_PORT}"),
            None => host.to_owned(),
        })
    });
    found.ok_or_else(|| {
        format!(
            "`{}` names no host, which this form needs; give that of a registry with `--registry`",
            audience.escape_debug()
        )
        .into()
    })
}

/// Whether git asks for the host of the audience over TLS (`git help credential`, input format). The token is given to
/// no other.
pub fn is_asked_for(question: &str, audience: &str) -> Result<bool, Failure> {
    let value =
        |name: &str| question.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix('=')).map(str::to_owned);
    let (host, asked) = (host(audience)?.to_ascii_lowercase(), value("host").unwrap_or_default().to_ascii_lowercase());
    // git names the port of `https` if the address of the repository does.
    let [host, asked] = [&host, &asked].map(|host| host.strip_suffix(DEFAULT_PORT).unwrap_or(host));
    Ok(value("protocol").as_deref() == Some("https") && host == asked)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use clap::ValueEnum as _;
    use zeroize::Zeroizing;

    use super::*;
    use crate::clock::Timestamp;

    fn issued() -> Issued {
        Issued {
            token: Zeroizing::new("t.t.t".to_owned()),
            ends: Timestamp::from_secs(1_700_000_000),
            lasts: Duration::from_secs(600),
            scope: String::new(),
        }
    }

    fn target(audience: &str) -> Target<'_> {
        Target {
            audience,
            registry: None,
            server: "https://k8s.example",
            ca: Some("PEM"),
            subject: "p.o.d",
            exec_api: "client.authentication.k8s.io/v1",
        }
    }

    #[test]
    fn each_program_gets_what_it_reads() {
        let read = |shape: Shape, audience: &str| -> Value {
            serde_json::from_str(&shape.write(&issued(), target(audience)).unwrap()).unwrap()
        };
        assert_eq!(
            read(Shape::Docker, "https://registry.example:5000")["auths"]["registry.example:5000"]["registrytoken"],
            "t.t.t"
        );
        assert_eq!(read(Shape::Docker, "registry.example")["auths"]["registry.example"]["registrytoken"], "t.t.t");
        // Nothing of it ends before the pod's token does.
        let login = json!({"auths": {"registry.example": {"auth": BASE64_STANDARD.encode("doorward:p.o.d")}}});
        assert_eq!(read(Shape::DockerLogin, "registry.example"), login);
        let config = read(Shape::Kubeconfig, "x");
        assert_eq!(config["users"][0]["user"]["token"], "t.t.t");
        assert_eq!(
            config["clusters"][0]["cluster"],
            json!({"server": "https://k8s.example", "certificate-authority-data": "UEVN"})
        );
        assert_eq!(read(Shape::ExecCredential, "x")["status"]["expirationTimestamp"], "2023-11-14T22:13:20.000Z");
        assert_eq!(Shape::Aws.write(&issued(), target("sts.amazonaws.com")).unwrap(), "t.t.t");
        let answer = "username=oauth2\npassword=t.t.t\npassword_expiry_utc=1700000000\n";
        assert_eq!(Shape::Git.write(&issued(), target("git.example")).unwrap(), answer);
        assert!(Shape::Docker.write(&issued(), target("urn:x")).is_err());
    }

    #[test]
    fn a_registry_whose_service_has_another_name_is_found_by_its_host() {
        for (audience, registry, hosts) in [
            ("images", Some("registry.example.com"), &["registry.example.com"][..]),
            ("images", Some("registry.example.com:8443"), &["registry.example.com:8443"]),
            // Names of images, by which programs look, have it either way.
            ("images", Some("registry.example.com:443"), &["registry.example.com", "registry.example.com:443"]),
            ("registry.example.com:443", None, &["registry.example.com", "registry.example.com:443"]),
            (
                "urn:registry",
                Some("https://registry.example.com:443"),
                &["registry.example.com", "registry.example.com:443"],
            ),
            ("https://registry.example.com:443/v2/", None, &["registry.example.com", "registry.example.com:443"]),
            ("urn:registry", Some("https://registry.example.com"), &["registry.example.com"]),
            ("images", None, &["images"]),
        ] {
            for shape in [Shape::Docker, Shape::DockerLogin] {
                let text = shape.write(&issued(), Target { registry, ..target(audience) }).unwrap();
                let config: Value = serde_json::from_str(&text).unwrap();
                let found: Vec<&String> = config["auths"].as_object().unwrap().keys().collect();
                assert_eq!(found, hosts, "{shape:?} {audience} {registry:?}");
            }
        }
    }

    /// For AWS it had the file alone, which no tool uses.
    #[test]
    fn the_guide_and_the_step_action_name_each_variable_that_a_command_needs() {
        let (_, guide) = include_str!("../../../docs/workload-identity.md").split_once("## Forms").unwrap();
        let action = include_str!("../../../deploy/tekton/step-action.yaml");
        let form = action.lines().find(|line| line.contains("In which form")).unwrap();
        for shape in Shape::value_variants() {
            let name = shape.to_possible_value().unwrap();
            let row = guide.lines().find(|line| line.starts_with(&format!("| `{}`", name.get_name()))).unwrap();
            assert!(shape.needs().is_none_or(|needed| row.contains(needed)), "{row}");
            // If another step runs the command, nobody checks whether it has them.
            assert!(shape.needs().is_none_or(|needed| form.contains(needed)), "{form}");
        }
        assert!(Shape::Aws.needs().is_some());
    }

    #[test]
    fn a_token_that_can_push_and_not_pull_is_known() {
        for (scope, alone) in [
            ("push:acme/app", &["acme/app"][..]),
            ("push:a pull:b push:b push:reg:5000/c", &["a", "reg:5000/c"]),
            ("pull:a", &[]),
            ("", &[]),
        ] {
            assert_eq!(pushes_alone(scope), alone, "{scope}");
        }
    }

    /// git asks for it as the address of the repository has it, and got nothing.
    #[test]
    fn git_gets_the_token_for_its_host_in_whichever_case() {
        for (host, audience) in [("GIT.Example", "git.example"), ("git.example", "https://GIT.Example:443")] {
            assert!(is_asked_for(&format!("protocol=https\nhost={host}\n"), audience).unwrap(), "{host} {audience}");
        }
    }

    #[test]
    fn git_gets_the_token_for_its_host_alone() {
        for (question, asked) in [
            ("protocol=https\nhost=git.example\n", true),
            ("protocol=https\nhost=git.example\npath=a/b.git\n", true),
            ("protocol=http\nhost=git.example\n", false),
            ("protocol=https\nhost=git.example.evil\n", false),
            ("protocol=https\nhost=git.example:443\n", true),
            ("protocol=https\nhost=git.example:444\n", false),
            ("host=git.example\n", false),
            ("", false),
        ] {
            for audience in ["https://git.example", "git.example:443", "https://git.example:443"] {
                assert_eq!(is_asked_for(question, audience).unwrap(), asked, "{audience} {question:?}");
            }
        }
    }
}
