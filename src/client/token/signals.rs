//! Signals for a command that runs with a token, and for a file that is kept fresh.

use std::{fs, io, path::Path, process::ExitStatus};

use rustix::process::{Pid, Signal, getpgrp, kill_process, kill_process_group};
use tokio::{
    process::{Child, Command},
    signal::unix::{SignalKind, signal},
};

/// The program with which Tekton runs each step.
const ENTRYPOINT: &[u8] = b"/tekton/bin/entrypoint";

/// The process group of a command.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Group {
    /// Its own. A step may be stopped by a signal to the whole group that was started, as Tekton's entrypoint does; in
    /// another group the command receives it once, from here.
    Own,
    /// The one of this process, at a terminal: other groups cannot read from it, and it signals all of this one.
    Terminal,
    /// The one of this process: a signal to the group is meant for all of it.
    Shared,
}

impl Group {
    pub(super) fn find() -> Self {
        // It can be opened, as for a passphrase, whatever the descriptors are.
        match fs::File::open("/dev/tty") {
            Ok(_) => Self::Terminal,
            Err(_) => Self::led_by(getpgrp(), Path::new("/proc")),
        }
    }

    /// Decides by what started the leader of this group: a shell may have started this process within it.
    fn led_by(leader: Pid, processes: &Path) -> Self {
        let told = |pid: &str, what: &str| fs::read(processes.join(pid).join(what)).ok();
        let stat = told(&leader.as_raw_nonzero().to_string(), "stat").unwrap_or_default();
        let stat = String::from_utf8_lossy(&stat);
        let above = parent(&stat).and_then(|parent| told(parent, "cmdline"));
        Self::below(&above.unwrap_or_default())
    }

    /// Decides by the command line (`/proc/PID/cmdline`) of what started the leader of this group. Below Tekton's
    /// entrypoint, the container ends with it, so the command does not outlive a step that is killed. Anything else,
    /// including process 1, may have ended or may go on for long, so a signal that kills the group must reach the
    /// command.
    fn below(command_line: &[u8]) -> Self {
        let program = command_line.split(|byte| *byte == 0).next();
        if program == Some(ENTRYPOINT) { Self::Own } else { Self::Shared }
    }

    pub(super) fn spawn(self, command: &mut Command) -> io::Result<Child> {
        if self == Self::Own {
            command.process_group(0);
        }
        command.spawn()
    }
}

/// Signals that end a process by default: the command must receive them, and no token must be left behind.
pub(super) struct Signals(Vec<(SignalKind, tokio::signal::unix::Signal)>);

impl Signals {
    pub(super) fn take() -> io::Result<Self> {
        let kinds = [
            SignalKind::terminate(),
            SignalKind::interrupt(),
            SignalKind::hangup(),
            SignalKind::quit(),
            SignalKind::alarm(),
            SignalKind::user_defined1(),
            SignalKind::user_defined2(),
        ];
        // The parent may have this process ignore the others, as `nohup` does with a hang-up.
        let ignored = fs::read_to_string("/proc/self/status").map_or(0, |status| ignored(&status));
        let is_heard = |kind: &SignalKind| *kind == SignalKind::terminate() || !is_among(ignored, *kind);
        kinds.into_iter().filter(is_heard).map(|kind| Ok((kind, signal(kind)?))).collect::<io::Result<_>>().map(Self)
    }

    /// The next signal.
    pub(super) async fn next(&mut self) -> SignalKind {
        let each = self.0.iter_mut().map(|(kind, signal)| {
            Box::pin(async move {
                signal.recv().await;
                *kind
            })
        });
        futures_util::future::select_all(each).await.0
    }

    /// Waits for the command and forwards signals to it; if it has a group of its own, to the whole group.
    pub(super) async fn pass_on(mut self, child: &mut Child, group: Group) -> io::Result<ExitStatus> {
        loop {
            let kind = tokio::select! {
                status = child.wait() => return status,
                kind = self.next() => kind,
            };
            let pid = child.id().and_then(|pid| i32::try_from(pid).ok()).and_then(Pid::from_raw);
            if let (Some(pid), Some(signal)) = (pid, Signal::from_named_raw(kind.as_raw_value())) {
                // If it has ended meanwhile, there is nobody to signal.
                let _ = match group {
                    Group::Own => kill_process_group(pid, signal),
                    Group::Terminal if [Signal::INT, Signal::QUIT].contains(&signal) => Ok(()),
                    Group::Terminal | Group::Shared => kill_process(pid, signal),
                };
            }
        }
    }
}

/// The parent of a process, from `/proc/PID/stat`.
fn parent(stat: &str) -> Option<&str> {
    // A name may contain brackets and spaces; the state and the parent follow it.
    stat.rsplit_once(')')?.1.split_whitespace().nth(1)
}

/// The signals that a process ignores, one bit each, from `/proc/PID/status`.
fn ignored(status: &str) -> u64 {
    let set = status.lines().find_map(|line| line.strip_prefix("SigIgn:"));
    set.and_then(|set| u64::from_str_radix(set.trim(), 16).ok()).unwrap_or(0)
}

fn is_among(set: u64, kind: SignalKind) -> bool {
    let bit = u32::try_from(kind.as_raw_value()).ok().and_then(|number| number.checked_sub(1));
    bit.and_then(|bit| set.checked_shr(bit)).is_some_and(|rest| rest & 1 == 1)
}

/// Resolves on a signal that must end this process.
pub(super) fn until_told() -> io::Result<impl Future<Output = ()>> {
    let mut signals = Signals::take()?;
    Ok(async move {
        signals.next().await;
    })
}

#[cfg(test)]
mod tests {
    use std::process::Stdio;

    use rustix::process::{getpgid, getpid};
    use tokio::io::{AsyncBufReadExt as _, BufReader};

    use super::*;

    /// A hang-up removed what `nohup doorward token --keep` kept.
    #[test]
    fn signals_that_are_ignored_from_the_start_are_known() {
        let (hangup, interrupt, quit) = (SignalKind::hangup(), SignalKind::interrupt(), SignalKind::quit());
        for (status, expected) in [
            ("Name:\tdoorward\nSigIgn:\t0000000000001001\nSigCgt:\t0000000000000006\n", [true, false, false]),
            ("SigIgn:\t0000000000000006\n", [false, true, true]),
            ("SigIgn:\t0000000000001000\n", [false; 3]),
            ("Name:\tdoorward\n", [false; 3]),
        ] {
            let set = ignored(status);
            assert_eq!([hangup, interrupt, quit].map(|kind| is_among(set, kind)), expected, "{status}");
        }
    }

    /// The command outlived a signal to the group that it had been started in: anywhere, and later where process 1 had
    /// adopted it.
    #[test]
    fn a_command_has_a_group_of_its_own_below_the_entrypoint_of_tekton_alone() {
        for (above, group) in [
            (&b"/tekton/bin/entrypoint\0-wait_file\0/tekton/downward/ready\0"[..], Group::Own),
            (b"/tekton/bin/entrypoint\0", Group::Own),
            (b"/sbin/init\0", Group::Shared),
            (b"/pause\0", Group::Shared),
            (b"sh\0/tekton/bin/entrypoint\0", Group::Shared),
            (b"/tekton/bin/entrypoint-of-another\0", Group::Shared),
            (b"", Group::Shared),
        ] {
            assert_eq!(Group::below(above), group, "{}", above.escape_ascii());
        }
        for (stat, expected) in [
            ("17 (sh) S 1 17 1 0 -1", Some("1")),
            ("17 (a) b) (c) S 12 17 1 0 -1", Some("12")),
            ("17 (sh)", None),
            ("", None),
        ] {
            assert_eq!(parent(stat), expected, "{stat}");
        }
    }

    #[test]
    fn the_process_group_of_a_command_depends_on_what_started_the_leader_of_ours() {
        let processes = tempfile::tempdir().unwrap();
        let process = |pid: i32, parent: i32, command_line: &str| {
            let of = processes.path().join(pid.to_string());
            fs::create_dir(&of).unwrap();
            fs::write(of.join("stat"), format!("{pid} (a) b) S {parent} {pid} 1 0 -1")).unwrap();
            fs::write(of.join("cmdline"), command_line).unwrap();
        };
        process(1, 0, "/tekton/bin/entrypoint\0-wait_file\0");
        process(7, 1, "sh\0");
        process(8, 7, "sh\0");
        process(9, 66, "sh\0");
        let led_by = |pid| Group::led_by(Pid::from_raw(pid).unwrap(), processes.path());
        assert_eq!(led_by(7), Group::Own);
        assert_eq!(led_by(8), Group::Shared, "below a shell");
        assert_eq!(led_by(9), Group::Shared, "what started it is gone");
        assert_eq!(led_by(10), Group::Shared, "it is gone itself");
    }

    #[tokio::test]
    async fn a_command_with_its_own_process_group_gets_the_signal_there() {
        let kind = SignalKind::alarm();
        let signals = Signals(vec![(kind, signal(kind).unwrap())]);
        let mut command = Command::new("sh");
        let script = "trap 'echo told; exit 3' ALRM; echo ready; while :; do sleep 0.01; done";
        command.args(["-c", script]).stdout(Stdio::piped()).kill_on_drop(true);
        let mut child = Group::Own.spawn(&mut command).unwrap();
        let pid = Pid::from_raw(i32::try_from(child.id().unwrap()).unwrap()).unwrap();
        assert_eq!(getpgid(Some(pid)).unwrap(), pid);
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
        assert_eq!(lines.next_line().await.unwrap().as_deref(), Some("ready"));
        // Nothing else in this test process waits for this signal.
        kill_process(getpid(), Signal::ALARM).unwrap();
        assert_eq!(signals.pass_on(&mut child, Group::Own).await.unwrap().code(), Some(3));
        assert_eq!(lines.next_line().await.unwrap().as_deref(), Some("told"));
    }
}
