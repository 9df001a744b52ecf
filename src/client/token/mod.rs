//! `doorward token`. Runs on the caller's machine, the pod of a task: exchanges the pod's own token for a short-lived
//! one of Doorward's, in the form that a program requires, and keeps a file fresh with it for as long as the step needs
//! it. The server side is [`sts`](crate::sts).

mod exchange;
mod fresh;
mod shape;
mod signals;

use std::{
    io::{Read, Write},
    path::{Path, PathBuf},
    time::Duration,
};

use zeroize::Zeroizing;

pub use self::shape::Shape;
use self::{
    exchange::{Issued, NoToken, Swap, Swaps, Wish},
    shape::Target,
};
use super::{
    Failure,
    login::{Address, EXEC_API, MODE, exec_api},
    tell,
};
use crate::atomic_file::could_replace;

/// How long temporary failures are retried before the first token.
const PATIENCE: Duration = Duration::from_secs(60);

/// How long a missing pod token is waited for.
const PATIENCE_FOR_SUBJECT: Duration = Duration::from_secs(3);

/// The first pause between two attempts.
const FIRST_PAUSE: Duration = Duration::from_millis(500);

/// The longest pause between two attempts.
const MAX_PAUSE: Duration = Duration::from_secs(15);

/// The largest request of git.
const MAX_QUESTION: u64 = 64 << 10;

/// The options of the command.
#[derive(Debug)]
pub struct Wanted {
    pub server: Address,
    /// The authorities that are trusted there.
    pub ca: Option<PathBuf>,
    /// The pod's token.
    pub subject: PathBuf,
    pub audience: String,
    pub scope: Option<String>,
    pub shape: Shape,
    pub out: Option<PathBuf>,
    /// Where kubectl finds the cluster. Default: at `server`.
    pub cluster: Option<String>,
    /// The host of the registry. Default: that of the audience.
    pub registry: Option<String>,
}

/// A token in its form, and its target.
struct Delivery {
    swap: Swap,
    shape: Shape,
    cluster: String,
    registry: Option<String>,
    /// The authorities of the cluster, for a kubeconfig.
    authorities: Option<String>,
    /// The version in which kubectl asks its exec plugin.
    exec_api: &'static str,
}

impl Delivery {
    fn new(wanted: Wanted) -> Result<(Self, Option<PathBuf>), Failure> {
        let Wanted { server, ca, subject, audience, scope, shape, out, cluster, registry } = wanted;
        if registry.is_some() && !shape.is_of_docker() {
            return Err("`--registry` is only for the forms of docker".into());
        }
        // Before a token is issued that could not be written.
        if shape.is_of_docker() {
            shape::host(registry.as_deref().unwrap_or(&audience))?;
        }
        if let Some(out) = &out {
            for file in [Some(out.clone()), shape.token_file(out)].into_iter().flatten() {
                fresh::check(&file)?;
                could_replace(&file, MODE)?;
            }
        }
        let authorities = match &ca {
            Some(ca) if shape == Shape::Kubeconfig => {
                Some(std::fs::read_to_string(ca).map_err(|error| format!("{}: {error}", ca.display()))?)
            }
            _ => None,
        };
        let exec_api = if shape == Shape::ExecCredential { exec_api()? } else { EXEC_API };
        let cluster = cluster.unwrap_or_else(|| server.to_string());
        let wish = match shape {
            Shape::DockerLogin => Wish::Login,
            _ => Wish::Token { scope, or_other: shape == Shape::Token },
        };
        let swap = Swap::new(server, ca.as_deref(), subject, audience, wish)?;
        Ok((Self { swap, shape, cluster, registry, authorities, exec_api }, out))
    }

    fn text(&self, issued: &Issued) -> Result<String, Failure> {
        let subject = match self.shape {
            Shape::DockerLogin => self.swap.read_subject()?,
            _ => Zeroizing::default(),
        };
        let to = Target {
            subject: subject.trim(),
            audience: self.swap.audience(),
            registry: self.registry.as_deref(),
            server: &self.cluster,
            ca: self.authorities.as_deref(),
            exec_api: self.exec_api,
        };
        self.shape.write(issued, to)
    }

    /// Writes the token to `file`, or to a file beside it that `file` refers to.
    fn write(&self, file: &Path, issued: &Issued) -> Result<(), Failure> {
        let Some(beside) = self.shape.token_file(file) else { return fresh::write(file, &self.text(issued)?) };
        fresh::write(&beside, &issued.token)?;
        fresh::write(file, &shape::kubeconfig_beside(&beside, &self.cluster, self.authorities.as_deref())?)
    }

    /// Removes what [`write`](Self::write) wrote.
    fn remove(&self, file: &Path) {
        fresh::remove(file);
        if let Some(beside) = self.shape.token_file(file) {
            fresh::remove(&beside);
        }
    }

    /// Warns of a token that a registry will refuse for a push. With `docker-login` the program requests what it needs
    /// itself.
    fn warn(&self, issued: &Issued) {
        if self.shape != Shape::Docker {
            return;
        }
        for name in shape::pushes_alone(&issued.scope) {
            let name = name.escape_debug();
            tell(format_args!(
                "the token may push to {name} but not pull from it, which a push does first; ask for both: `--scope push:{name} \
                 --scope pull:{name}`"
            ));
        }
    }

    /// The first token. Temporary trouble is waited for: a pod runs before its controller has recorded that.
    async fn first(&self, swaps: &mut Swaps<'_>) -> Result<Issued, Failure> {
        let start = tokio::time::Instant::now();
        let mut pause = FIRST_PAUSE;
        loop {
            let failed = match swaps.token().await {
                Ok(issued) => {
                    self.warn(&issued);
                    return Ok(issued);
                }
                Err(failed) => failed,
            };
            let (patience, after) = match &failed {
                NoToken::Passing(_, after) => (PATIENCE, *after),
                NoToken::NoSubject(_) => (PATIENCE_FOR_SUBJECT, None),
                NoToken::Untrusted(_)
                | NoToken::Refused(_)
                | NoToken::Unfit(_)
                | NoToken::BadSubject(_)
                | NoToken::Over(_) => {
                    return Err(failed.into());
                }
            };
            let next = tokio::time::Instant::now() + after.unwrap_or(pause).max(FIRST_PAUSE);
            if next > start + patience {
                return Err(failed.into());
            }
            tell(format_args!("{failed}; trying again"));
            tokio::time::sleep_until(next).await;
            pause = (pause * 2).min(MAX_PAUSE);
        }
    }
}

/// Exchanges once, and writes the token to `out`, or to its file. A token that cannot be written is revoked.
pub async fn once(wanted: Wanted, out: &mut (dyn Write + Send)) -> Result<(), Failure> {
    let (delivery, file) = Delivery::new(wanted)?;
    let mut swaps = Swaps::new(&delivery.swap);
    let issued = delivery.first(&mut swaps).await?;
    let delivered = match &file {
        Some(file) => delivery.write(file, &issued),
        None => delivery.text(&issued).and_then(|text| {
            out.write_all(text.as_bytes())?;
            Ok(out.flush()?)
        }),
    };
    if delivered.is_err() {
        fresh::finish(&delivery, vec![issued], swaps).await;
    }
    delivered
}

/// Answers git's request on standard input: with nothing if it asks for another host.
pub async fn answer_git(wanted: Wanted, operation: &str, out: &mut (dyn Write + Send)) -> Result<(), Failure> {
    // What git wants stored or erased is not stored here.
    if operation != "get" {
        return Ok(());
    }
    let mut question = String::new();
    std::io::stdin().take(MAX_QUESTION).read_to_string(&mut question)?;
    if !shape::is_asked_for(&question, &wanted.audience)? {
        return Ok(());
    }
    once(Wanted { out: None, ..wanted }, out).await
}

/// Keeps the file fresh until a signal ends it, such as SIGTERM.
pub async fn keep(wanted: Wanted) -> Result<(), Failure> {
    let (delivery, file) = Delivery::new(wanted)?;
    let file = file.ok_or("name the file that is kept fresh with `--out`")?;
    fresh::keep(&delivery, &file, signals::until_told()?).await
}

/// Runs a command with a fresh token, and returns its exit status.
pub async fn run(wanted: Wanted, command: &[String]) -> Result<u8, Failure> {
    let (delivery, file) = Delivery::new(wanted)?;
    let is_unset = |name: &&str| std::env::var_os(name).is_none_or(|value| value.is_empty());
    if let Some(name) = delivery.shape.needs().filter(is_unset) {
        tell(format_args!(
            "{name} is not set here, and AWS's tools do not read the token without it; unless the command sets it, set it to the ARN of \
             the role"
        ));
    }
    fresh::run(&delivery, file, command).await
}
