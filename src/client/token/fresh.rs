//! A file that always has a valid token.

use std::{
    fs::{self, Permissions},
    io,
    os::unix::{fs::PermissionsExt, process::ExitStatusExt},
    path::{Path, PathBuf},
    process::ExitStatus,
    time::Duration,
};

use tempfile::Builder;
use tokio::process::Command;

use super::{
    Delivery, FIRST_PAUSE, Failure, MAX_PAUSE,
    exchange::{Issued, NoToken, Swaps, now},
    signals::{Group, Signals},
};
use crate::{
    atomic_file::replace,
    client::{
        login::{MODE, not_a_file},
        tell,
    },
    clock::jitter,
};

/// The pause after a token of a provider that is not passed on: such tokens are valid there, and each request adds one.
const UNFIT_PAUSE: Duration = Duration::from_secs(120);

/// Writes a file atomically, readable for its owner only.
pub fn write(file: &Path, text: &str) -> Result<(), Failure> {
    check(file)?;
    Ok(replace(file, text.as_bytes(), MODE)?)
}

/// Refuses a path that has something other than a regular file. A link is not followed: anybody else who may write in
/// its folder could choose where the token goes, and which file it replaces.
pub fn check(file: &Path) -> Result<(), Failure> {
    let found = match fs::symlink_metadata(file) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        found => found.map_err(|error| format!("{}: {error}", file.display()))?,
    };
    let Some(what) = not_a_file(&found) else { return Ok(()) };
    let file = file.display();
    Err(format!("{file} is {what}, which a token does not replace; name a file, or omit `--out` to print the token")
        .into())
}

/// Removes a file that [`write`] wrote.
pub fn remove(file: &Path) {
    if check(file).is_ok() {
        // If it is gone already, nothing is left to do.
        let _ = fs::remove_file(file);
    }
}

/// Keeps `file` fresh until `end`, then removes it and revokes the token.
pub async fn keep(delivery: &Delivery, file: &Path, end: impl Future<Output = ()>) -> Result<(), Failure> {
    let mut end = std::pin::pin!(end);
    let (mut issued, mut swaps) = (Vec::new(), Swaps::new(&delivery.swap));
    let kept = tokio::select! {
        () = &mut end => Ok(()),
        failed = async {
            issued.push(delivery.first(&mut swaps).await?);
            write_last(delivery, file, &issued)?;
            refresh(delivery, file, &mut issued, &mut swaps).await
        } => failed,
    };
    // Without a token nothing was written there.
    if !issued.is_empty() {
        delivery.remove(file);
    }
    finish(delivery, issued, swaps).await;
    kept
}

/// Runs `command` with a fresh token in `file`, or in a folder of its own.
pub async fn run(delivery: &Delivery, file: Option<PathBuf>, command: &[String]) -> Result<u8, Failure> {
    let (program, arguments) = command.split_first().ok_or("there is no command")?;
    // Nobody else may read it, and it is removed at the end.
    let folder = match file {
        Some(_) => None,
        None => Some(Builder::new().prefix("doorward-").permissions(Permissions::from_mode(0o700)).tempdir()?),
    };
    let file = match (&file, &folder) {
        (Some(file), _) => std::path::absolute(file)?,
        (None, Some(folder)) => folder.path().join(delivery.shape.file()),
        (None, None) => return Err("there is no file for the token".into()),
    };
    if delivery.shape.is_of_docker() && file.file_name().is_none_or(|name| name != "config.json") {
        return Err("docker looks for `config.json` in a folder; give `--out` that name".into());
    }
    // Before a token is requested, and before there is a command that would miss signals.
    let mut signals = Signals::take()?;
    let (mut issued, mut swaps) = (Vec::new(), Swaps::new(&delivery.swap));
    let first = tokio::select! {
        first = delivery.first(&mut swaps) => Ok(first?),
        kind = signals.next() => Err(kind),
    };
    let done = match first {
        Ok(first) => {
            issued.push(first);
            let done = attend(delivery, &file, &mut issued, &mut swaps, signals, program, arguments).await;
            delivery.remove(&file);
            done
        }
        Err(kind) => {
            tell(format_args!("it received a signal before it had a token, and `{program}` was not run"));
            Ok(ended_by(kind.as_raw_value()))
        }
    };
    finish(delivery, issued, swaps).await;
    done
}

/// Runs the command while the file is kept fresh, and returns its exit status.
async fn attend(
    delivery: &Delivery,
    file: &Path,
    issued: &mut Vec<Issued>,
    swaps: &mut Swaps<'_>,
    signals: Signals,
    program: &str,
    arguments: &[String],
) -> Result<u8, Failure> {
    write_last(delivery, file, issued)?;
    let (variable, is_folder) = delivery.shape.variable();
    let value = if is_folder { file.parent().unwrap_or(file) } else { file };
    let mut command = Command::new(program);
    command.args(arguments).env(variable, value);
    let group = Group::find();
    let mut child = match group.spawn(&mut command) {
        Ok(child) => child,
        Err(error) => {
            tell(format_args!(
                "`{program}` cannot be run: {error}; is it in the image of this step, and may its user run it?"
            ));
            return Ok(not_run(&error));
        }
    };
    let status = {
        let mut work = std::pin::pin!(signals.pass_on(&mut child, group));
        tokio::select! {
            status = &mut work => status,
            // The command goes on without a token; what it requests then is refused, and it reports that itself.
            failed = refresh(delivery, file, issued, swaps) => {
                if let Err(error) = failed {
                    tell(format_args!("{error}"));
                }
                work.await
            }
        }
    };
    Ok(code(status?))
}

/// The exit status of a shell for a command that is missing or cannot be run.
fn not_run(error: &io::Error) -> u8 {
    if error.kind() == io::ErrorKind::NotFound { 127 } else { 126 }
}

/// The exit status of a shell for this end.
fn code(status: ExitStatus) -> u8 {
    match status.code() {
        Some(code) => u8::try_from(code).unwrap_or(1),
        None => ended_by(status.signal().unwrap_or(0)),
    }
}

/// The exit status of a shell for an end by a signal.
fn ended_by(signal: i32) -> u8 {
    u8::try_from(signal).map_or(1, |signal| signal.saturating_add(128))
}

/// Renews the token again and again, each time before it ends. Returns when no further one can be had: the run has
/// ended, or the token has ended and another is refused.
async fn refresh(
    delivery: &Delivery,
    file: &Path,
    issued: &mut Vec<Issued>,
    swaps: &mut Swaps<'_>,
) -> Result<(), Failure> {
    while let Some(Issued { lasts, ends, .. }) = issued.last() {
        let ends = *ends;
        tokio::time::sleep(until_refresh(*lasts)).await;
        let mut pause = FIRST_PAUSE;
        let mut taken = false;
        let next = loop {
            let failed = match swaps.token().await {
                Ok(next) => break next,
                Err(failed) => failed,
            };
            let Some(wait) = until_retry(&failed, pause, taken) else {
                delivery.remove(file);
                return Err(format!("the token is not renewed: {failed}").into());
            };
            let before = match &failed {
                _ if taken => String::new(),
                NoToken::BadSubject(_) => "; the one before it may have ended too".to_owned(),
                _ => format!("; the one before it is good until {ends}"),
            };
            tell(format_args!("the token could not be renewed: {failed}{before}; trying again"));
            pause = (pause * 2).min(MAX_PAUSE);
            // Not beyond the end of the token in the file.
            tokio::time::sleep(if taken { wait } else { wait.min(ends.since(now())) }).await;
            if now() >= ends && !taken {
                taken = true;
                delivery.remove(file);
                tell(format_args!("the token in {} has ended, and the file was removed", file.display()));
            }
        };
        // A token that was read from the file before may still be in use.
        issued.retain(|issued| now() < issued.ends);
        issued.push(next);
        if let Err(error) = write_last(delivery, file, issued) {
            tell(format_args!("the new token cannot be written, and the one before it ends soon: {error}"));
        }
    }
    Ok(())
}

/// How long until a token is requested again after this failure; `None` if no further one can be had. `taken`: the token
/// before it has ended.
fn until_retry(failed: &NoToken, pause: Duration, taken: bool) -> Option<Duration> {
    let wait = match failed {
        NoToken::Passing(_, after) => after.unwrap_or(pause),
        NoToken::NoSubject(_) | NoToken::Untrusted(_) => pause,
        // A rule may come back, and so may another token of the pod.
        NoToken::Refused(_) | NoToken::BadSubject(_) if !taken => pause,
        NoToken::Unfit(_) if !taken => UNFIT_PAUSE,
        NoToken::Refused(_) | NoToken::Unfit(_) | NoToken::BadSubject(_) | NoToken::Over(_) => return None,
    };
    Some(wait.max(FIRST_PAUSE))
}

/// Writes the newest of the tokens.
fn write_last(delivery: &Delivery, file: &Path, issued: &[Issued]) -> Result<(), Failure> {
    match issued.last() {
        Some(issued) => delivery.write(file, issued),
        None => Ok(()),
    }
}

/// At about two thirds of its life, with jitter.
fn until_refresh(lasts: Duration) -> Duration {
    lasts.mul_f64(0.6 + 0.1 * jitter())
}

/// Revokes all tokens that have not expired, and one in flight, so that nobody can find a token that is no longer
/// needed.
pub async fn finish(delivery: &Delivery, mut issued: Vec<Issued>, swaps: Swaps<'_>) {
    issued.extend(swaps.last().await);
    for issued in issued.iter().filter(|issued| now() < issued.ends) {
        if let Err(error) = delivery.swap.revoke(&issued.token).await {
            tell(format_args!("a token could not be revoked, and expires by itself: {error}"));
        }
    }
}

#[cfg(test)]
mod tests {
    use std::{
        convert::Infallible,
        sync::{
            Arc, Mutex,
            atomic::{AtomicUsize, Ordering},
        },
    };

    use bytes::Bytes;
    use http::{Request, Response};
    use http_body_util::{BodyExt as _, Full};
    use hyper::{body::Incoming, server::conn::http1, service::service_fn};
    use hyper_util::rt::TokioIo;
    use tokio::sync::Notify;

    use super::*;
    use crate::client::token::{Shape, Wanted};

    /// Issues `token-0` and so on.
    #[derive(Default)]
    struct Issuer {
        swaps: AtomicUsize,
        is_held: Notify,
        ended: Notify,
        revoked: Mutex<Vec<String>>,
    }

    impl Issuer {
        /// The exchange numbered `held` is answered after the end, and only its token is still valid.
        async fn answer(&self, request: Request<Incoming>, held: usize) -> String {
            let is_revocation = request.uri().path() == "/oauth2/revoke";
            let body = request.into_body().collect().await.unwrap().to_bytes();
            if is_revocation {
                self.revoked.lock().unwrap().push(String::from_utf8(body.to_vec()).unwrap());
                return "{}".to_owned();
            }
            let number = self.swaps.fetch_add(1, Ordering::SeqCst);
            let lasts = if number == held { 600 } else { 1 };
            if number == held {
                self.is_held.notify_one();
                self.ended.notified().await;
            }
            format!(r#"{{"access_token": "token-{number}", "expires_in": {lasts}}}"#)
        }
    }

    /// A provider whose tokens are not passed on was asked for another four times a minute until the last one ended.
    #[test]
    fn a_failure_is_retried_at_its_own_pace_and_what_nobody_gives_only_while_there_is_a_token() {
        let (said, pause, second) = (|| "no".to_owned(), Duration::from_secs(15), Duration::from_secs(1));
        for (failed, held, ended) in [
            (NoToken::Passing(said(), None), Some(pause), Some(pause)),
            (NoToken::Passing(said(), Some(second)), Some(second), Some(second)),
            (NoToken::Passing(said(), Some(Duration::ZERO)), Some(FIRST_PAUSE), Some(FIRST_PAUSE)),
            (NoToken::NoSubject(said()), Some(pause), Some(pause)),
            (NoToken::Untrusted(said()), Some(pause), Some(pause)),
            (NoToken::Refused(said()), Some(pause), None),
            (NoToken::BadSubject(said()), Some(pause), None),
            (NoToken::Unfit(said()), Some(UNFIT_PAUSE), None),
            (NoToken::Over(said()), None, None),
        ] {
            let found = [false, true].map(|taken| until_retry(&failed, pause, taken));
            assert_eq!(found, [held, ended], "{failed:?}");
        }
    }

    /// Nobody had it, and it was valid for all its life.
    #[tokio::test]
    async fn a_token_that_arrives_at_the_end_is_revoked_too() {
        for held in [0, 1] {
            let issuer = Arc::new(Issuer::default());
            let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
            let server = format!("http://{}", listener.local_addr().unwrap()).parse().unwrap();
            let serving = Arc::clone(&issuer);
            let serving = tokio::spawn(async move {
                while let Ok((stream, _)) = listener.accept().await {
                    let issuer = Arc::clone(&serving);
                    let service = service_fn(move |request: Request<Incoming>| {
                        let issuer = Arc::clone(&issuer);
                        async move {
                            let answer = issuer.answer(request, held).await;
                            Ok::<_, Infallible>(Response::new(Full::new(Bytes::from(answer))))
                        }
                    });
                    tokio::spawn(http1::Builder::new().serve_connection(TokioIo::new(stream), service));
                }
            });
            let folder = tempfile::tempdir().unwrap();
            let [subject, file] = ["subject", "token"].map(|name| folder.path().join(name));
            fs::write(&subject, "the.pods.token").unwrap();
            let (ca, scope, out, cluster, registry) = (None, None, None, None, None);
            let (audience, shape) = ("a".to_owned(), Shape::Token);
            let wanted = Wanted { server, ca, subject, audience, scope, shape, out, cluster, registry };
            let (delivery, _) = Delivery::new(wanted).unwrap();
            let end = async {
                issuer.is_held.notified().await;
                issuer.ended.notify_one();
            };
            keep(&delivery, &file, end).await.unwrap();
            let revoked = issuer.revoked.lock().unwrap().clone();
            assert!(revoked.contains(&format!("token=token-{held}")), "{held}: {revoked:?}");
            assert!(!file.exists(), "{held}");
            serving.abort();
        }
    }

    #[test]
    fn a_file_is_written_whole_and_for_its_owner_alone() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("token");
        for text in ["one", "another"] {
            write(&file, text).unwrap();
            assert_eq!(fs::read_to_string(&file).unwrap(), text);
            assert_eq!(fs::metadata(&file).unwrap().permissions().mode() & 0o777, 0o600);
        }
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1, "no draft is left");
        assert!(write(&folder.path().join("none/token"), "x").is_err());
    }

    #[test]
    fn a_path_that_is_not_a_file_is_neither_replaced_nor_removed() {
        let folder = tempfile::tempdir().unwrap();
        let [file, link, dangling, socket, inner] =
            ["file", "link", "dangling", "socket", "folder"].map(|name| folder.path().join(name));
        fs::write(&file, "x").unwrap();
        std::os::unix::fs::symlink(&file, &link).unwrap();
        std::os::unix::fs::symlink("nowhere", &dangling).unwrap();
        let _socket = std::os::unix::net::UnixListener::bind(&socket).unwrap();
        fs::create_dir(&inner).unwrap();
        for (place, said) in [
            (&link, "is a symbolic link"),
            (&dangling, "is a symbolic link"),
            (&socket, "a socket"),
            (&inner, "is a folder"),
        ] {
            let kind = fs::symlink_metadata(place).unwrap().file_type();
            let told = write(place, "token").unwrap_err().to_string();
            assert!(told.contains(said) && told.contains("omit `--out`"), "{told}");
            remove(place);
            assert_eq!(fs::symlink_metadata(place).unwrap().file_type(), kind, "{}", place.display());
        }
        assert_eq!(fs::read_to_string(&file).unwrap(), "x");
        remove(&file);
        assert!(!file.exists());
    }

    #[test]
    fn a_token_is_renewed_well_before_its_end() {
        for _ in 0..100 {
            let after = until_refresh(Duration::from_secs(600));
            assert!(after >= Duration::from_secs(360) && after <= Duration::from_secs(420), "{after:?}");
        }
    }

    #[test]
    fn an_exit_status_is_what_a_shell_says() {
        assert_eq!(code(ExitStatus::from_raw(3 << 8)), 3);
        assert_eq!(code(ExitStatus::from_raw(15)), 143);
    }
}
