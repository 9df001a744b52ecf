//! `doorward rbac`: what Kubernetes must allow for a configuration to work, and no more.

use std::io::Write;

use clap::Args;

use super::{ConfigArgs, Failure};
use crate::{
    config,
    rbac::{self, Account, Form},
};

/// Print the RBAC objects that the configuration needs, for `kubectl apply -f -`: the least right to impersonate, and the roles of
/// Tekton that grants give.
#[derive(Debug, Args)]
pub struct RbacArgs {
    #[command(flatten)]
    pub config: ConfigArgs,
    /// How impersonation is allowed. Constrained needs Kubernetes 1.36; bind one of both, never the two.
    #[arg(long, value_enum, default_value_t = Form::Classic)]
    form: Form,
    /// The service account whose token is the credential of the upstream.
    #[arg(long, value_name = "NAMESPACE/NAME", default_value = "doorward/doorward", value_parser = account)]
    service_account: Account,
}

fn account(text: &str) -> Result<Account, String> {
    match text.split_once('/') {
        Some((namespace, name)) if !namespace.is_empty() && !name.is_empty() && !name.contains('/') => {
            Ok(Account { namespace: namespace.to_owned(), name: name.to_owned() })
        }
        _ => Err("write NAMESPACE/NAME, such as `doorward/doorward`".to_owned()),
    }
}

pub fn run(args: &RbacArgs, out: &mut impl Write) -> Result<u8, Failure> {
    let (loaded, _) = super::load_policy(&args.config.sources())?;
    let root: &config::raw::Root = &loaded.raw;
    out.write_all(rbac::manifest(root, args.form, &args.service_account)?.as_bytes())?;
    Ok(0)
}
