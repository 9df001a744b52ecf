//! `doorward interceptor`: the ClusterInterceptor by which EventListeners ask this Doorward.

use std::{
    io::{self, Write},
    path::PathBuf,
};

use base64::{Engine, engine::general_purpose::STANDARD};
use clap::Args;
use rustls_pki_types::{CertificateDer, pem::PemObject};
use serde_json::json;

use crate::{config::resolve::is_label, doctor::is_authority};

/// Print the Tekton ClusterInterceptor that leads to a running Doorward.
///
/// Pipe it to `kubectl apply -f -`. The configuration must have `interceptor`.
#[derive(Debug, Args)]
pub struct InterceptorArgs {
    /// The Service in front of Doorward: `host` of `interceptor` without its ending `.NAMESPACE.svc`.
    #[arg(long, default_value = "doorward-interceptor", value_parser = label)]
    service: String,
    /// The namespace of the Service.
    #[arg(long, default_value = "doorward", value_parser = label)]
    namespace: String,
    /// The port of the Service.
    #[arg(long, default_value_t = 8443)]
    port: u16,
    /// The authorities of the listener's certificate, in PEM. The certificate must be for `SERVICE.NAMESPACE.svc`.
    #[arg(long)]
    ca: PathBuf,
}

/// A name that Kubernetes gives a Service or a namespace.
fn label(text: &str) -> Result<String, String> {
    match is_label(text) {
        true => Ok(text.to_owned()),
        false => Err("write 1 to 63 lower case letters, digits and dashes, with no dash at an end".to_owned()),
    }
}

/// Prints it. The file is checked first, because an object with the TLS label and without valid authorities would stop
/// every EventListener of the cluster. Returns the exit status.
pub fn run(args: &InterceptorArgs, out: &mut impl Write) -> io::Result<u8> {
    print(args, out, &mut io::stderr().lock())
}

fn print(args: &InterceptorArgs, out: &mut impl Write, stderr: &mut impl Write) -> io::Result<u8> {
    let pem = std::fs::read(&args.ca)
        .map_err(|error| io::Error::new(error.kind(), format!("{} cannot be read: {error}", args.ca.display())))?;
    let certificates: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&pem).collect();
    let certificates = certificates.unwrap_or_default();
    if certificates.is_empty() {
        let what = format!("{} holds no certificate in PEM", args.ca.display());
        return Err(io::Error::new(io::ErrorKind::InvalidData, what));
    }
    // The whole file goes into the object, which every EventListener's account may read.
    if memchr::memmem::find(&pem, b"PRIVATE KEY").is_some() {
        let what = format!(
            "{} holds a private key, which everybody who may read ClusterInterceptors could read; name a file with \
             only certificates",
            args.ca.display()
        );
        return Err(io::Error::new(io::ErrorKind::InvalidData, what));
    }
    let object = json!({
        "apiVersion": "triggers.tekton.dev/v1alpha1",
        "kind": "ClusterInterceptor",
        "metadata": {"name": "doorward", "labels": {"server/type": "https"}},
        "spec": {"clientConfig": {
            "caBundle": STANDARD.encode(&pem),
            "service": {"name": args.service, "namespace": args.namespace, "path": "interceptor", "port": args.port},
        }},
    });
    writeln!(out, "{object:#}")?;
    if !certificates.iter().any(is_authority) {
        writeln!(
            stderr,
            "doorward: warning: {} holds no certificate of an authority (`CA:TRUE`): once the listener's certificate \
             is renewed, EventListeners make no runs until this is done again; name a file with the authority that \
             signs it, if there is one",
            args.ca.display()
        )?;
    }
    Ok(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_good_authorities_make_an_object() {
        let dir = tempfile::tempdir().unwrap();
        let ca = dir.path().join("ca.pem");
        let args = InterceptorArgs { service: "s".into(), namespace: "n".into(), port: 1, ca: ca.clone() };
        assert!(run(&args, &mut Vec::new()).is_err(), "no file");
        std::fs::write(&ca, "nothing").unwrap();
        assert!(run(&args, &mut Vec::new()).is_err(), "no certificate");
        let pem = rcgen::generate_simple_self_signed(vec!["s.n.svc".to_owned()]).unwrap().cert.pem();
        std::fs::write(&ca, &pem).unwrap();
        let mut out = Vec::new();
        run(&args, &mut out).unwrap();
        let object: serde_json::Value = serde_json::from_slice(&out).unwrap();
        assert_eq!(object["metadata"]["labels"]["server/type"], "https");
        assert_eq!(object["spec"]["clientConfig"]["caBundle"], STANDARD.encode(pem));
    }

    /// The certificate itself is trusted until it is renewed, and then no EventListener makes a run.
    #[test]
    fn a_file_without_an_authority_is_warned_about() {
        let dir = tempfile::tempdir().unwrap();
        let ca = dir.path().join("tls.crt");
        let args = InterceptorArgs { service: "s".into(), namespace: "n".into(), port: 1, ca: ca.clone() };
        let key = rcgen::KeyPair::generate().unwrap();
        let pem = |is_ca: rcgen::IsCa| {
            let mut params = rcgen::CertificateParams::new(["s.n.svc".to_owned()]).unwrap();
            params.is_ca = is_ca;
            params.self_signed(&key).unwrap().pem()
        };
        let leaf = pem(rcgen::IsCa::ExplicitNoCa);
        let authority = pem(rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained));
        for (certificates, is_warned) in [(leaf.clone(), true), (authority.clone(), false), (leaf + &authority, false)]
        {
            std::fs::write(&ca, &certificates).unwrap();
            let (mut out, mut stderr) = (Vec::new(), Vec::new());
            print(&args, &mut out, &mut stderr).unwrap();
            let warned = String::from_utf8(stderr).unwrap();
            assert_eq!(warned.contains("holds no certificate of an authority"), is_warned, "{warned}");
            assert!(!out.is_empty());
        }
    }

    /// The key went into the object with the certificates.
    #[test]
    fn a_private_key_beside_the_certificates_is_not_sent_to_the_cluster() {
        let dir = tempfile::tempdir().unwrap();
        let ca = dir.path().join("combined.pem");
        let made = rcgen::generate_simple_self_signed(vec!["s.n.svc".to_owned()]).unwrap();
        std::fs::write(&ca, made.cert.pem() + &made.signing_key.serialize_pem()).unwrap();
        let (args, mut out) = (InterceptorArgs { service: "s".into(), namespace: "n".into(), port: 1, ca }, Vec::new());
        let refused = run(&args, &mut out).unwrap_err().to_string();
        assert!(refused.contains("holds a private key") && out.is_empty(), "{refused}");
    }

    #[test]
    fn a_service_or_namespace_must_be_a_dns_label() {
        #[derive(clap::Parser)]
        struct Cli {
            #[command(flatten)]
            args: InterceptorArgs,
        }
        let parse = |service: &str, namespace: &str| {
            let line = ["x", "--ca", "ca.crt", "--service", service, "--namespace", namespace];
            <Cli as clap::Parser>::try_parse_from(line).map(|cli| (cli.args.service, cli.args.namespace))
        };
        assert_eq!(parse("a-1", "b").unwrap(), ("a-1".to_owned(), "b".to_owned()));
        for bad in ["", "a\"b", "A", "a.b", "a-", &"a".repeat(64)] {
            assert!(parse(bad, "b").is_err(), "{bad}");
            assert!(parse("a", bad).is_err(), "{bad}");
        }
    }
}
