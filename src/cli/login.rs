//! The commands of a person in a shell: signing in with the browser, and what goes with it.

use std::{
    io::{self, Write},
    path::PathBuf,
};

use clap::builder::NonEmptyStringValueParser;

use super::runtime;
use crate::{
    authn::NeededLogin,
    client::{
        Failure,
        login::{self, Address, BrowserMode},
    },
    config::values::Span,
};

/// Sign in from a shell, with your browser, for kubectl and other programs.
///
/// The command stores the handle of a Doorward session in a file of your own: `$XDG_STATE_HOME/doorward/sessions.json`.
/// Like the sessions of your browsers, it is shown under "Your sessions", where you can end it.
#[derive(Clone, Debug, clap::Args)]
pub struct LoginArgs {
    /// The address of Doorward, such as https://k8s.example.com. The session is valid only there.
    #[arg(value_name = "URL")]
    pub url: Address,
    /// Write a kubectl context with this name, whose server is URL, and make it the current one.
    #[arg(long, value_name = "NAME", value_parser = NonEmptyStringValueParser::new())]
    pub kubeconfig: Option<String>,
    /// Trust the authorities in this PEM file for that address, instead of those of the system.
    #[arg(long, value_name = "FILE")]
    pub ca: Option<PathBuf>,
    /// Do not open a browser; the address is printed in any case.
    #[arg(long)]
    pub no_browser: bool,
    /// Use this if there is no browser on this machine: show a code, which you type in a browser on any machine (RFC
    /// 8628).
    #[arg(long, conflicts_with = "no_browser")]
    pub device: bool,
    /// Sign in with more than one factor, no longer ago than this, such as 15m, if a rule asks for that.
    #[arg(long, value_name = "AGE")]
    pub mfa: Option<Span>,
    /// Sign in no longer ago than this, such as 1h.
    #[arg(long, value_name = "AGE")]
    pub max_age: Option<Span>,
    /// Sign in with this class (`acr`), or with one of several if the option is repeated.
    #[arg(long, value_name = "CLASS", value_parser = NonEmptyStringValueParser::new())]
    pub acr: Vec<String>,
}

/// The address of the session that is meant.
#[derive(Clone, Debug, clap::Args)]
pub struct WhereArgs {
    /// The address of Doorward; not needed if you are signed in at only one.
    #[arg(value_name = "URL")]
    pub url: Option<Address>,
}

/// Give kubectl its credential: the plugin that `doorward login --kubeconfig` sets up.
#[derive(Clone, Debug, clap::Args)]
pub struct CredentialArgs {
    /// The address of Doorward.
    #[arg(value_name = "URL")]
    pub url: Address,
}

pub fn login(args: &LoginArgs, out: &mut impl Write) -> Result<u8, Failure> {
    let ca = args.ca.as_deref();
    let mode = match (args.device, args.no_browser) {
        (true, _) => BrowserMode::Device,
        (_, true) => BrowserMode::PrintAddress,
        _ => BrowserMode::OpenBrowser,
    };
    if let Some(name) = &args.kubeconfig {
        login::check_context(name, &args.url, ca)?;
    }
    let needed = NeededLogin {
        mfa: args.mfa.map(Span::get),
        acr: args.acr.iter().map(|acr| acr.as_str().into()).collect(),
        fresh: args.max_age.map(Span::get),
    };
    // Not on standard output, which is reserved for what programs read.
    runtime()?.block_on(login::login(&args.url, ca, mode, &needed, &mut io::stderr()))?;
    if let Some(name) = &args.kubeconfig {
        let file = login::write_context(name, &args.url, ca)?;
        writeln!(out, "kubectl now uses the context `{name}`, in {}.", file.display())?;
    }
    Ok(0)
}

pub fn whoami(args: &WhereArgs) -> Result<u8, Failure> {
    runtime()?.block_on(login::whoami(args.url.as_ref(), &mut io::stdout()))?;
    Ok(0)
}

pub fn logout(args: &WhereArgs) -> Result<u8, Failure> {
    runtime()?.block_on(login::logout(args.url.as_ref(), &mut io::stdout()))?;
    Ok(0)
}

pub fn credential(args: &CredentialArgs, out: &mut impl Write) -> Result<u8, Failure> {
    runtime()?.block_on(login::credential(&args.url, out))?;
    Ok(0)
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use crate::cli::Cli;

    /// A script whose variable is not set took away the current context of kubectl, which takes an empty name for none.
    #[test]
    fn a_login_refuses_an_empty_name_of_a_context_or_class() {
        for option in ["--kubeconfig", "--acr"] {
            let parsed =
                |value: &str| Cli::try_parse_from(["doorward", "login", "https://k8s.example.com", option, value]);
            let refused = parsed("").unwrap_err().to_string();
            assert!(refused.contains(option) && refused.contains("a value is required"), "{refused}");
            assert!(parsed("build").is_ok(), "{option}");
        }
    }
}
