//! What the socket accepts, records and refuses.

use std::sync::Mutex;

use serde_json::json;

use super::*;

#[derive(Default)]
struct Recorder {
    records: Mutex<Vec<String>>,
    full: bool,
    /// Whether the record of a refused peer is never finished.
    stuck: bool,
}

impl Recorder {
    fn records(&self) -> Vec<String> {
        self.records.lock().unwrap().clone()
    }
}

impl Commands for Recorder {
    fn record<'a>(&'a self, record: Record<'a>) -> CommandFuture<'a, ()> {
        let text = match record {
            Record::PeerRefused(_) => "refused".to_owned(),
            Record::Begun(_, command) => format!("begun {} {} {}", command.command, command.who, command.why),
            Record::Ended(_, command, result) => format!("ended {} {}", command.command, result.is_ok()),
        };
        self.records.lock().unwrap().push(text);
        let (full, stuck) = (self.full, self.stuck && matches!(record, Record::PeerRefused(_)));
        Box::pin(async move {
            if stuck {
                std::future::pending::<()>().await;
            }
            if full { Err(CommandError::new("audit is full")) } else { Ok(()) }
        })
    }

    fn run<'a>(&'a self, _: Peer, command: &'a Command) -> CommandFuture<'a, Done> {
        Box::pin(async move {
            match command.command.as_str() {
                "status" => Ok(json!({"generation": 7, "arguments": command.arguments}).into()),
                name => Err(CommandError::new(format!("there is no command `{name}`")).help("known: status")),
            }
        })
    }
}

fn command(name: &str) -> Command {
    Command { command: name.into(), who: "alice".into(), why: "drill".into(), arguments: json!({"id": 1}) }
}

/// A serving socket, with the usual users or none.
struct Serving {
    folder: tempfile::TempDir,
    recorder: Arc<Recorder>,
    users: SocketUsers,
    stop: CancellationToken,
    task: tokio::task::JoinHandle<()>,
}

impl Serving {
    async fn start(recorder: Recorder, nobody: bool) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let mut socket = CommandSocket::bind(&folder.path().join("s"), &[]).await.unwrap();
        if nobody {
            Arc::get_mut(&mut socket.users.0).unwrap().always.clear();
        }
        let users = socket.users();
        let (recorder, stop) = (Arc::new(recorder), CancellationToken::new());
        let task = tokio::spawn({
            let (recorder, stop) = (Arc::clone(&recorder), stop.clone());
            async move { socket.serve(recorder, stop).await }
        });
        Self { folder, recorder, users, stop, task }
    }

    fn path(&self) -> PathBuf {
        self.folder.path().join("s")
    }

    async fn send(&self, command: &Command) -> Answer {
        send(&self.path(), command).await.unwrap()
    }

    async fn raw(&self, line: &[u8]) -> String {
        let mut stream = UnixStream::connect(self.path()).await.unwrap();
        stream.write_all(line).await.unwrap();
        stream.shutdown().await.unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.unwrap();
        answer
    }
}

#[test]
fn a_command_is_known_by_its_name_alone() {
    for name in CommandName::ALL {
        assert_eq!(name.as_str().parse(), Ok(name));
    }
    let unknown = CommandError::new("there is no command `explain`").help(
        "known: drop-hook, drop-token-keys, end-sessions, hooks, reload, retry-hook, revocations, revoke, rollout, sessions, show-hook, status",
    );
    assert_eq!("explain".parse::<CommandName>(), Err(unknown));
}

/// An operator who had to revoke somebody was told that the outcome is unknown, although the store had said that it
/// wrote nothing.
#[test]
fn a_command_that_a_full_server_refused_reports_no_effect_and_others_an_unknown_one() {
    let full = StoreError::Full("OOM".to_owned());
    for (error, is_shared, said) in [
        (&full, true, "nothing was revoked: the store is full: OOM"),
        (&full, false, "it is not known: the store is full: OOM"),
        (&StoreError::Timeout, true, "it is not known: the store did not answer in time"),
        (&StoreError::Unavailable("away".to_owned()), true, "it is not known: the store is not reachable: away"),
    ] {
        let told = CommandError::write("nothing was revoked", "it is not known", error, is_shared);
        assert_eq!((&*told.message, told.help.as_deref()), (said, Some(SEE_TO_THE_STORE)));
    }
}

#[tokio::test]
async fn attacks_z13_commands_are_recorded_and_strangers_refused() {
    let serving = Serving::start(Recorder::default(), false).await;
    let answer = serving.send(&command("status")).await;
    assert_eq!(answer, Answer::Result(json!({"generation": 7, "arguments": {"id": 1}})));
    assert_eq!(serving.recorder.records(), ["begun status alice drill", "ended status true"]);

    let serving = Serving::start(Recorder::default(), true).await;
    let Answer::Error(error) = serving.send(&command("status")).await else { panic!("it was allowed") };
    assert!(error.message.contains("may not send commands"), "{error}");
    assert_eq!(serving.recorder.records(), ["refused"]);
}

#[tokio::test]
async fn an_operator_removed_from_the_list_is_refused_on_open_connections_too() {
    let serving = Serving::start(Recorder::default(), true).await;
    let mode = || std::fs::metadata(serving.path()).unwrap().permissions().mode() & 0o777;
    let own = UnixStream::pair().unwrap().0.peer_cred().unwrap().uid();
    serving.users.set(&[own]);
    assert_eq!(mode(), 0o666, "whoever is listed can connect");
    let (reader, mut writer) = UnixStream::connect(serving.path()).await.unwrap().into_split();
    let mut answers = BufReader::new(reader).lines();
    let line = format!("{}\n", serde_json::to_string(&command("status")).unwrap());
    writer.write_all(line.as_bytes()).await.unwrap();
    assert!(answers.next_line().await.unwrap().unwrap().contains("generation"));
    serving.users.set(&[]);
    assert_eq!(mode(), 0o600);
    writer.write_all(line.as_bytes()).await.unwrap();
    assert!(answers.next_line().await.unwrap().unwrap().contains("may not send commands"));
    assert_eq!(answers.next_line().await.unwrap(), None, "the connection is closed");
    let Answer::Error(error) = serving.send(&command("status")).await else { panic!("it was allowed") };
    assert!(error.message.contains("may not send commands"), "{error}");
    assert_eq!(serving.recorder.records(), ["begun status alice drill", "ended status true", "refused", "refused"]);
}

#[tokio::test]
async fn one_operator_too_many_is_refused_without_any_effect() {
    let serving = Serving::start(Recorder::default(), false).await;
    let mut others = Vec::new();
    for _ in 0..MAX_CONNECTIONS {
        others.push(UnixStream::connect(serving.path()).await.unwrap());
    }
    let Answer::Error(error) = serving.send(&command("status")).await else { panic!("there was room") };
    assert_eq!(error.message, "16 operators are connected already");
    assert!(error.help.unwrap().contains("nothing was done"));
    assert!(serving.recorder.records().is_empty());
}

#[tokio::test]
async fn refused_users_take_no_places_of_operators() {
    let serving = Serving::start(Recorder { stuck: true, ..Recorder::default() }, true).await;
    let mut strangers = Vec::new();
    for _ in 0..MAX_CONNECTIONS {
        strangers.push(UnixStream::connect(serving.path()).await.unwrap());
    }
    let Answer::Error(error) = serving.send(&command("status")).await else { panic!("it was allowed") };
    assert_eq!(error.message, "too many users who may not send commands have connected");
    serving.users.set(&[UnixStream::pair().unwrap().0.peer_cred().unwrap().uid()]);
    assert!(matches!(serving.send(&command("status")).await, Answer::Result(_)));
    assert_eq!(serving.recorder.records().len(), MAX_STRANGERS + 2);
}

/// Every user of the machine may be able to connect, and could fill the disk of the trail.
#[tokio::test]
async fn few_refusals_are_recorded_however_often_somebody_connects() {
    let serving = Serving::start(Recorder::default(), true).await;
    let refusal = async || match serving.send(&command("status")).await {
        Answer::Error(error) => error.message,
        Answer::Result(_) => panic!("it was allowed"),
    };
    for _ in 0..MAX_STRANGERS {
        assert!(refusal().await.contains("may not send commands to Doorward"));
    }
    assert_eq!(refusal().await, "too many users who may not send commands have connected");
    assert_eq!(serving.recorder.records().len(), MAX_STRANGERS);
    tokio::time::pause();
    tokio::time::advance(AFTER_REFUSAL + Duration::from_secs(1)).await;
    tokio::time::resume();
    assert!(refusal().await.contains("may not send commands to Doorward"));
    assert_eq!(serving.recorder.records().len(), MAX_STRANGERS + 1);
}

#[tokio::test]
async fn a_client_cut_off_before_the_answer_learns_that_the_command_may_have_run() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("s");
    let listener = UnixListener::bind(&path).unwrap();
    let command = command("status");
    for reads in [true, false] {
        let (sent, ()) = tokio::join!(send(&path, &command), async {
            let (mut stream, _) = listener.accept().await.unwrap();
            // A connection that is closed with unread data is reset.
            stream.readable().await.unwrap();
            if reads {
                stream.read_exact(&mut [0; 20]).await.unwrap();
                while stream.try_read(&mut [0; 1024]).is_ok() {}
            }
        });
        let error = sent.unwrap_err().to_string();
        assert!(error.contains("was closed before the answer") && error.contains("may have taken effect"), "{error}");
    }
}

#[tokio::test]
async fn a_command_that_cannot_be_recorded_is_not_run() {
    let serving = Serving::start(Recorder { full: true, ..Recorder::default() }, false).await;
    assert_eq!(serving.send(&command("status")).await, Answer::Error(CommandError::new("audit is full")));
    assert_eq!(serving.recorder.records().len(), 1);
}

#[tokio::test]
async fn bad_commands_get_an_error() {
    let serving = Serving::start(Recorder::default(), false).await;
    let Answer::Error(error) = serving.send(&command("statsu")).await else { panic!("it was run") };
    assert_eq!(error.help.as_deref(), Some("known: status"));
    for (line, message) in [
        (b"{}\n".to_vec(), "not a command"),
        (b"nonsense\n".to_vec(), "not a command"),
        (br#"{"command":"status","who":"a","why":"b","x":1}"#.iter().chain(b"\n").copied().collect(), "not a command"),
        (b"{\"command\":\"status\",\"who\":\" \",\"why\":\"b\"}\n".to_vec(), "`who` must be"),
        (b"{\"command\":\"status\",\"who\":\"a\",\"why\":\"\\u001b[0m\"}\n".to_vec(), "`why` must be"),
        (b"{\"command\":\"status\"".to_vec(), "cut short"),
    ] {
        let answer = serving.raw(&line).await;
        assert!(answer.contains(message), "{answer}");
    }
    let answer = serving.raw(&vec![b' '; 64 << 10]).await;
    assert!(answer.contains("longer than 64 KiB"), "{answer}");
    assert_eq!(serving.recorder.records(), ["begun statsu alice drill", "ended statsu false"]);
}

#[tokio::test]
async fn a_socket_that_cannot_be_reached_is_explained_by_what_to_check() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("s");
    let absent = send(&path, &command("status")).await.unwrap_err();
    assert!(absent.to_string().contains("check that Doorward runs here"), "{absent}");
    drop(std::os::unix::net::UnixListener::bind(&path).unwrap());
    let refused = send(&path, &command("status")).await.unwrap_err();
    assert!(refused.to_string().contains("check that Doorward runs here"), "{refused}");
    let denied = unreachable(&path, &io::ErrorKind::PermissionDenied.into());
    assert!(denied.to_string().contains("`admin.socket_users`"), "{denied}");
}

#[tokio::test]
async fn files_in_the_way() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("s");
    let socket = CommandSocket::bind(&path, &[]).await.unwrap();
    assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
    let second = CommandSocket::bind(&path, &[]).await.unwrap_err();
    assert_eq!(second.kind(), io::ErrorKind::AddrInUse, "{second}");
    drop(socket);
    assert!(!path.exists());

    // The file of a process that was killed.
    drop(std::os::unix::net::UnixListener::bind(&path).unwrap());
    assert!(path.exists());
    let socket = CommandSocket::bind(&path, &[65_534]).await.unwrap();
    assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o666);
    drop(socket);

    std::fs::write(&path, "precious").unwrap();
    let error = CommandSocket::bind(&path, &[]).await.unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::AlreadyExists, "{error}");
    assert_eq!(std::fs::read_to_string(&path).unwrap(), "precious");
}

#[tokio::test]
async fn it_stops() {
    let serving = Serving::start(Recorder::default(), false).await;
    let idle = UnixStream::connect(serving.path()).await.unwrap();
    serving.stop.cancel();
    serving.task.await.unwrap();
    assert!(!serving.folder.path().join("s").exists());
    drop(idle);
}
