//! The Unix socket for operator commands: one JSON object per line in, and one per line out.
//!
//! The kernel identifies the peer (SO_PEERCRED); only Doorward's own user, root and listed users may send commands.
//! Each command names a person and a reason, and is recorded before it runs; refused peers are recorded as well, as long
//! as there are not too many.

use std::{
    future::Future,
    io,
    os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt},
    path::{Path, PathBuf},
    pin::Pin,
    str::FromStr,
    sync::Arc,
    time::Duration,
};

use arc_swap::ArcSwap;
use serde::{Deserialize, Serialize, de::DeserializeOwned};
use serde_json::Value;
use tokio::{
    io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader},
    net::{UnixListener, UnixStream},
    sync::Semaphore,
    time::timeout,
};
use tokio_util::sync::CancellationToken;

use crate::{audit::HeldDelivery, store::StoreError};

/// The most bytes of a command, with its newline.
const MAX_COMMAND: u64 = 64 << 10;
/// The most bytes of an answer that a client reads.
const MAX_ANSWER: u64 = 64 << 20;
/// The most connections of operators.
const MAX_CONNECTIONS: usize = 16;
/// The most connections of others while their refusals are recorded. They have places of their own, as every user of the
/// machine may be able to connect.
const MAX_STRANGERS: usize = 4;
/// How long such a place stays taken after a refusal. Without this, anybody could fill the disk of the trail.
const AFTER_REFUSAL: Duration = Duration::from_secs(10);
/// How long a connection may be silent.
const IDLE_TIMEOUT: Duration = Duration::from_secs(60);
/// The help for a command that failed because of the store.
pub const SEE_TO_THE_STORE: &str = "check the store and try again";
/// The help for a user who may not send commands.
const NOT_LISTED: &str = "list your user id in `admin.socket_users`, or become Doorward's own user";
const MAX_WHO: usize = 256;
const MAX_WHY: usize = 1024;

/// A command of an operator.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Command {
    /// Its name, as in [`CommandName`].
    pub command: String,
    /// The person, according to themselves. The audit trail also has the user id from the kernel.
    pub who: String,
    /// The reason, for the audit trail.
    pub why: String,
    #[serde(default)]
    pub arguments: Value,
}

impl Command {
    /// Deserializes its arguments.
    pub fn arguments<T: DeserializeOwned>(&self) -> Result<T, CommandError> {
        T::deserialize(&self.arguments)
            .map_err(|error| CommandError::new(format!("the arguments cannot be read: {error}")))
    }
}

/// The known commands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CommandName {
    DropHook,
    DropTokenKeys,
    EndSessions,
    Hooks,
    Reload,
    RetryHook,
    Revocations,
    Revoke,
    Rollout,
    Sessions,
    ShowHook,
    Status,
}

impl CommandName {
    pub const ALL: [Self; 12] = [
        Self::DropHook,
        Self::DropTokenKeys,
        Self::EndSessions,
        Self::Hooks,
        Self::Reload,
        Self::RetryHook,
        Self::Revocations,
        Self::Revoke,
        Self::Rollout,
        Self::Sessions,
        Self::ShowHook,
        Self::Status,
    ];

    /// Returns the name on the wire and in the audit trail.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::DropHook => "drop-hook",
            Self::DropTokenKeys => "drop-token-keys",
            Self::EndSessions => "end-sessions",
            Self::Hooks => "hooks",
            Self::Reload => "reload",
            Self::RetryHook => "retry-hook",
            Self::Revocations => "revocations",
            Self::Revoke => "revoke",
            Self::Rollout => "rollout",
            Self::Sessions => "sessions",
            Self::ShowHook => "show-hook",
            Self::Status => "status",
        }
    }
}

impl FromStr for CommandName {
    type Err = CommandError;

    fn from_str(text: &str) -> Result<Self, CommandError> {
        Self::ALL.into_iter().find(|name| name.as_str() == text).ok_or_else(|| {
            let known = Self::ALL.map(Self::as_str).join(", ");
            CommandError::new(format!("there is no command `{text}`")).help(format!("known: {known}"))
        })
    }
}

/// The peer, as identified by the kernel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Peer {
    pub uid: u32,
    pub gid: u32,
    pub pid: Option<i32>,
}

/// The answer on the wire.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Answer {
    Result(Value),
    Error(CommandError),
}

/// The reason why a command failed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[error("{message}")]
pub struct CommandError {
    pub message: String,
    /// What to do about it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub help: Option<String>,
    /// The held deliveries that it tried or dropped before it failed, only for the audit trail.
    #[serde(skip)]
    pub deliveries: Option<Vec<HeldDelivery>>,
}

impl CommandError {
    pub fn new(message: impl Into<String>) -> Self {
        Self { message: message.into(), help: None, deliveries: None }
    }

    /// Returns the error for a failed read of the store; `what` says what did not happen.
    pub fn store(what: &str, error: &StoreError) -> Self {
        Self::new(format!("{what}: {error}")).help(SEE_TO_THE_STORE)
    }

    /// Returns the error for a failed write to the store: `unknown` says that it may have happened, and `undone` that
    /// it has not.
    pub fn write(undone: &str, unknown: &str, error: &StoreError, is_shared: bool) -> Self {
        Self::store(if error.is_undone(is_shared) { undone } else { unknown }, error)
    }

    #[must_use]
    pub fn help(mut self, help: impl Into<String>) -> Self {
        self.help = Some(help.into());
        self
    }

    /// Adds the held deliveries that it tried or dropped before it failed.
    #[must_use]
    pub fn after(mut self, deliveries: Vec<HeldDelivery>) -> Self {
        self.deliveries = Some(deliveries);
        self
    }
}

/// The result of a command.
#[derive(Clone, Debug, PartialEq)]
pub struct Done {
    pub answer: Value,
    /// The held deliveries that it tried or dropped, only for the audit trail: the answer may name fewer.
    pub deliveries: Option<Vec<HeldDelivery>>,
}

impl From<Value> for Done {
    fn from(answer: Value) -> Self {
        Self { answer, deliveries: None }
    }
}

/// An event for the audit trail.
#[derive(Clone, Copy, Debug)]
pub enum Record<'a> {
    /// A user that is not allowed connected.
    PeerRefused(Peer),
    /// A command is about to run.
    Begun(Peer, &'a Command),
    /// A command has ended.
    Ended(Peer, &'a Command, &'a Result<Done, CommandError>),
}

pub type CommandFuture<'a, T> = Pin<Box<dyn Future<Output = Result<T, CommandError>> + Send + 'a>>;

/// The handler of commands from the socket.
pub trait Commands: Send + Sync + 'static {
    /// Writes to the audit trail. A command whose beginning cannot be recorded does not run.
    fn record<'a>(&'a self, record: Record<'a>) -> CommandFuture<'a, ()>;

    /// Runs a command. An unknown name is an error that lists the known ones.
    fn run<'a>(&'a self, peer: Peer, command: &'a Command) -> CommandFuture<'a, Done>;
}

/// The socket, bound but not yet serving. Its file is removed when it is dropped.
#[derive(Debug)]
pub struct CommandSocket {
    listener: UnixListener,
    users: SocketUsers,
}

/// The users that may send commands. Clones belong to the same socket, so that a new generation can change the list.
#[derive(Clone, Debug)]
pub struct SocketUsers(Arc<Users>);

#[derive(Debug)]
struct Users {
    file: SocketFile,
    /// Doorward's own user, and root.
    always: Vec<u32>,
    listed: ArcSwap<Vec<u32>>,
}

#[derive(Debug)]
struct SocketFile {
    path: PathBuf,
    inode: u64,
}

impl SocketFile {
    /// Whether the file is still the one that was bound, and not a replacement by another process.
    fn is_there(&self) -> bool {
        std::fs::symlink_metadata(&self.path).is_ok_and(|found| found.ino() == self.inode)
    }
}

impl Drop for CommandSocket {
    fn drop(&mut self) {
        let file = &self.users.0.file;
        if file.is_there() {
            let _ = std::fs::remove_file(&file.path);
        }
    }
}

impl SocketUsers {
    /// Sets the listed users, from the next command on, also for open connections.
    pub fn set(&self, users: &[u32]) {
        if **self.0.listed.load() != users {
            self.0.listed.store(Arc::new(users.to_vec()));
        }
        let file = &self.0.file;
        if file.is_there()
            && let Err(error) = std::fs::set_permissions(&file.path, mode(users))
        {
            tracing::warn!(%error, "the mode of the operator socket cannot be changed for the listed users");
        }
    }

    fn may(&self, uid: u32) -> bool {
        self.0.always.contains(&uid) || self.0.listed.load().contains(&uid)
    }
}

/// Returns the file mode. If users are listed, everybody can connect who may enter the folder, as a listed user need not
/// be of Doorward's group; the peer is checked in any case.
fn mode(users: &[u32]) -> std::fs::Permissions {
    std::fs::Permissions::from_mode(if users.is_empty() { 0o600 } else { 0o666 })
}

impl CommandSocket {
    /// Binds the socket with mode 0600, or 0666 if others may use it too. The file of a process that has died is
    /// replaced; anything else in its place is an error.
    pub async fn bind(path: &Path, users: &[u32]) -> io::Result<Self> {
        remove_stale(path).await?;
        let own = UnixStream::pair()?.0.peer_cred()?.uid();
        let listener = UnixListener::bind(path).map_err(|error| explain(path, "cannot be bound", &error))?;
        // Until here the umask determined the mode.
        std::fs::set_permissions(path, mode(users))?;
        let inode = std::fs::symlink_metadata(path)?.ino();
        let file = SocketFile { path: path.to_owned(), inode };
        let users = Users { file, always: vec![own, 0], listed: ArcSwap::from_pointee(users.to_vec()) };
        Ok(Self { listener, users: SocketUsers(Arc::new(users)) })
    }

    pub fn users(&self) -> SocketUsers {
        self.users.clone()
    }

    /// Serves until `stop` is cancelled. It does not wait for a running command then.
    pub async fn serve(&self, commands: Arc<dyn Commands>, stop: CancellationToken) {
        let [operators, strangers] = [MAX_CONNECTIONS, MAX_STRANGERS].map(|most| Arc::new(Semaphore::new(most)));
        loop {
            let accepted = tokio::select! {
                () = stop.cancelled() => return,
                accepted = self.listener.accept() => accepted,
            };
            let mut stream = match accepted {
                Ok((stream, _)) => stream,
                Err(error) => {
                    tracing::warn!(%error, "operator socket cannot accept");
                    tokio::time::sleep(Duration::from_millis(100)).await;
                    continue;
                }
            };
            let peer = stream.peer_cred().map(|peer| Peer { uid: peer.uid(), gid: peer.gid(), pid: peer.pid() });
            let is_operator = peer.as_ref().is_ok_and(|peer| self.users.may(peer.uid));
            let places = if is_operator { &operators } else { &strangers };
            let Ok(permit) = Arc::clone(places).try_acquire_owned() else {
                let error = match is_operator {
                    true => CommandError::new(format!("{MAX_CONNECTIONS} operators are connected already")).help(
                        "nothing was done; stop a command that waits, such as `doorward rollout status`, and try again",
                    ),
                    false => {
                        CommandError::new("too many users who may not send commands have connected").help(NOT_LISTED)
                    }
                };
                // Nothing was sent on it before, so there is room for a line and this does not block.
                let _ = answer(&mut stream, &Answer::Error(error)).await;
                continue;
            };
            let (commands, stop, users) = (Arc::clone(&commands), stop.clone(), self.users.clone());
            tokio::spawn(async move {
                let talk = async {
                    match peer {
                        Ok(peer) if is_operator => converse(stream, peer, &users, &*commands).await,
                        Ok(peer) => {
                            let refused = refuse(stream, peer, &*commands).await;
                            tokio::time::sleep(AFTER_REFUSAL).await;
                            refused
                        }
                        Err(error) => Err(error),
                    }
                };
                tokio::select! {
                    () = stop.cancelled() => {}
                    ended = talk => if let Err(error) = ended {
                        tracing::debug!(%error, "operator connection ended");
                    }
                }
                drop(permit);
            });
        }
    }
}

/// Sends one command, for the command line.
pub async fn send(path: &Path, command: &Command) -> io::Result<Answer> {
    let mut stream = UnixStream::connect(path).await.map_err(|error| unreachable(path, &error))?;
    let mut line = serde_json::to_vec(command)?;
    line.push(b'\n');
    // A refused client may find the connection closed while it still writes; the answer says why.
    let _ = stream.write_all(&line).await;
    let mut answer = Vec::new();
    match BufReader::new(stream.take(MAX_ANSWER)).read_until(b'\n', &mut answer).await {
        Err(error) if error.kind() != io::ErrorKind::ConnectionReset => {
            Err(explain(path, "sent an unreadable answer", &error))
        }
        _ if answer.last() == Some(&b'\n') => Ok(serde_json::from_slice(&answer)?),
        _ => {
            let why =
                "Doorward is stopping or has stopped; the command may have taken effect, so check before you repeat it";
            let error = io::Error::new(io::ErrorKind::UnexpectedEof, why);
            Err(explain(path, "was closed before the answer", &error))
        }
    }
}

async fn refuse(mut stream: impl AsyncWriteExt + Unpin, peer: Peer, commands: &dyn Commands) -> io::Result<()> {
    tracing::warn!(uid = peer.uid, "operator command refused: this user is not allowed");
    if let Err(error) = commands.record(Record::PeerRefused(peer)).await {
        tracing::error!(%error, "a refused operator could not be recorded");
    }
    let error = CommandError::new(format!("user id {} may not send commands to Doorward", peer.uid)).help(NOT_LISTED);
    answer(&mut stream, &Answer::Error(error)).await
}

async fn converse(stream: UnixStream, peer: Peer, users: &SocketUsers, commands: &dyn Commands) -> io::Result<()> {
    let (reader, mut writer) = stream.into_split();
    let mut reader = BufReader::new(reader);
    let mut line = Vec::new();
    loop {
        line.clear();
        let read = timeout(IDLE_TIMEOUT, (&mut reader).take(MAX_COMMAND).read_until(b'\n', &mut line)).await;
        let Ok(read) = read else { return Ok(()) };
        if read? == 0 {
            return Ok(());
        }
        if line.last() != Some(&b'\n') {
            let error = CommandError::new("the command is cut short or longer than 64 KiB");
            return answer(&mut writer, &Answer::Error(error)).await;
        }
        if !users.may(peer.uid) {
            return refuse(writer, peer, commands).await;
        }
        let result = match parse(&line) {
            Ok(command) => execute(peer, &command, commands).await,
            Err(error) => Err(error),
        };
        answer(&mut writer, &result.map_or_else(Answer::Error, Answer::Result)).await?;
    }
}

async fn execute(peer: Peer, command: &Command, commands: &dyn Commands) -> Result<Value, CommandError> {
    commands.record(Record::Begun(peer, command)).await?;
    let result = commands.run(peer, command).await;
    if let Err(error) = commands.record(Record::Ended(peer, command, &result)).await {
        tracing::error!(%error, command = command.command, "the end of an operator command could not be recorded");
    }
    result.map(|done| done.answer)
}

fn parse(line: &[u8]) -> Result<Command, CommandError> {
    let command: Command =
        serde_json::from_slice(line).map_err(|error| CommandError::new(format!("this is not a command: {error}")))?;
    for (name, value, most) in
        [("command", &command.command, MAX_WHO), ("who", &command.who, MAX_WHO), ("why", &command.why, MAX_WHY)]
    {
        if value.trim().is_empty() || value.len() > most || value.chars().any(char::is_control) {
            return Err(CommandError::new(format!("`{name}` must be 1 to {most} bytes without control characters"))
                .help("say who you are and why, for the audit trail"));
        }
    }
    Ok(command)
}

async fn answer(writer: &mut (impl AsyncWriteExt + Unpin), answer: &Answer) -> io::Result<()> {
    let mut line = serde_json::to_vec(answer)?;
    line.push(b'\n');
    timeout(IDLE_TIMEOUT, writer.write_all(&line)).await.map_err(|_| io::ErrorKind::TimedOut)?
}

/// Whether a socket is in this place. Anything else that is there is an error, as it would not be replaced.
pub fn is_there(path: &Path) -> io::Result<bool> {
    // Any error but a missing file is reported by the attempt to bind.
    let Ok(found) = std::fs::symlink_metadata(path) else { return Ok(false) };
    if found.file_type().is_socket() {
        return Ok(true);
    }
    let error = io::Error::new(io::ErrorKind::AlreadyExists, "it is not a socket; move it away, or give another path");
    Err(explain(path, "is not replaced", &error))
}

async fn remove_stale(path: &Path) -> io::Result<()> {
    if !is_there(path)? {
        return Ok(());
    }
    match UnixStream::connect(path).await {
        Ok(_) => {
            let error = io::Error::new(io::ErrorKind::AddrInUse, "another process serves it");
            Err(explain(path, "is in use", &error))
        }
        Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => std::fs::remove_file(path),
        Err(error) => Err(explain(path, "exists and cannot be tried", &error)),
    }
}

fn unreachable(path: &Path, error: &io::Error) -> io::Error {
    let next = match error.kind() {
        io::ErrorKind::PermissionDenied => {
            "run this as Doorward's own user or root, or as a user in `admin.socket_users` who may enter its folder"
        }
        _ => "check that Doorward runs here, and that this is what its `admin.socket` names",
    };
    let explained = explain(path, "cannot be reached", error);
    io::Error::new(error.kind(), format!("{explained}; {next}"))
}

fn explain(path: &Path, what: &str, error: &io::Error) -> io::Error {
    io::Error::new(error.kind(), format!("operator socket {} {what}: {error}", path.display()))
}

#[cfg(test)]
mod tests;
