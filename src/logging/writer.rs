//! A writer that never blocks: whole lines go to a thread, and lines that do not fit into its queue are counted.

use std::{
    io::{self, Write},
    sync::mpsc::{Receiver, SyncSender, TrySendError, channel, sync_channel},
    thread::{Builder, JoinHandle},
    time::Duration,
};

use prometheus_client::metrics::counter::Counter;
use tracing_subscriber::fmt::MakeWriter;

use super::redact::redact;

/// The most queued lines.
const QUEUE: usize = 4096;

/// The most bytes of a line. With the queue: 64 MiB at most.
const MAX_LINE: usize = 16 << 10;

/// How long the end waits for queued lines to be written, as the reader of the log may have stalled for good.
const PATIENCE: Duration = Duration::from_secs(1);

/// The queue and its thread. Dropping it writes the queued lines, for at most a second.
#[derive(Debug)]
pub(super) struct Lines {
    sender: Option<SyncSender<Item>>,
    dropped: Counter,
    thread: Option<JoinHandle<()>>,
}

#[derive(Debug)]
enum Item {
    Line(Vec<u8>),
    End,
}

impl Lines {
    pub(super) fn new(sink: impl Write + Send + 'static) -> io::Result<Self> {
        let (sender, receiver) = sync_channel(QUEUE);
        let thread = Builder::new().name("log".to_owned()).spawn(move || write_lines(&receiver, sink))?;
        Ok(Self { sender: Some(sender), dropped: Counter::default(), thread: Some(thread) })
    }

    pub(super) fn writer(&self) -> LineWriter {
        LineWriter { sender: self.sender.clone(), dropped: self.dropped.clone() }
    }

    pub(super) fn dropped(&self) -> Counter {
        self.dropped.clone()
    }
}

impl Drop for Lines {
    fn drop(&mut self) {
        let (Some(sender), Some(thread)) = (self.sender.take(), self.thread.take()) else { return };
        let (done, is_done) = channel::<()>();
        // Both may block on the reader.
        let end = move || {
            // The global subscriber keeps its sender for ever, so the end is signalled explicitly.
            let _ = sender.send(Item::End);
            let _ = thread.join();
            drop(done);
        };
        if Builder::new().name("log-end".to_owned()).spawn(end).is_ok() {
            let _ = is_done.recv_timeout(PATIENCE);
        }
    }
}

fn write_lines(receiver: &Receiver<Item>, mut sink: impl Write) {
    while let Ok(Item::Line(line)) = receiver.recv() {
        // There is nowhere to report that the log cannot be written.
        let _ = sink.write_all(&line);
    }
    let _ = sink.flush();
}

/// A writer that creates one buffer per event.
#[derive(Clone, Debug)]
pub(super) struct LineWriter {
    sender: Option<SyncSender<Item>>,
    dropped: Counter,
}

impl<'a> MakeWriter<'a> for LineWriter {
    type Writer = Line<'a>;

    fn make_writer(&'a self) -> Line<'a> {
        Line { to: self, bytes: Vec::new() }
    }
}

/// One line, sent when it is dropped.
#[derive(Debug)]
pub(super) struct Line<'a> {
    to: &'a LineWriter,
    bytes: Vec<u8>,
}

impl Write for Line<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let room = MAX_LINE.saturating_sub(self.bytes.len());
        self.bytes.extend(bytes.iter().take(room));
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Drop for Line<'_> {
    fn drop(&mut self) {
        let Some(sender) = &self.to.sender else { return };
        let text = String::from_utf8_lossy(&self.bytes);
        let text = redact(text.trim_end_matches('\n'));
        let mut line = if text.contains(char::is_control) { escape(&text) } else { text.into_owned() }.into_bytes();
        line.push(b'\n');
        if let Err(TrySendError::Full(_)) = sender.try_send(Item::Line(line)) {
            self.to.dropped.inc();
        }
    }
}

/// Escapes control characters, so that text of strangers in an event stays on its line and sends nothing to a terminal.
fn escape(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len() + 16);
    for c in text.chars() {
        if c.is_control() { escaped.extend(c.escape_default()) } else { escaped.push(c) }
    }
    escaped
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Mutex, MutexGuard};

    use super::*;

    #[derive(Clone, Default)]
    struct Sink(Arc<Mutex<Vec<u8>>>);

    impl Sink {
        fn lock(&self) -> MutexGuard<'_, Vec<u8>> {
            self.0.lock().unwrap()
        }
    }

    impl Write for Sink {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.lock().extend(bytes);
            Ok(bytes.len())
        }
        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn lines_are_whole_redacted_and_bounded() {
        let sink = Sink::default();
        let lines = Lines::new(sink.clone()).unwrap();
        let writer = lines.writer();
        writer.make_writer().write_all(b"Bearer 0123456789abcdef\n").unwrap();
        writer.make_writer().write_all(&vec![b'x'; 2 * MAX_LINE]).unwrap();
        writer.make_writer().write_all("forged\nline \u{1b}[2Jé\n".as_bytes()).unwrap();
        drop(lines);
        let written = String::from_utf8(sink.lock().clone()).unwrap();
        let lengths: Vec<_> = written.lines().map(str::len).collect();
        assert_eq!(lengths.get(..2), Some(&["Bearer [redacted]".len(), MAX_LINE][..]));
        assert_eq!(written.lines().nth(2), Some(r"forged\nline \u{1b}[2Jé"));
        assert_eq!(lengths.len(), 3);
    }

    #[test]
    fn a_stalled_reader_of_the_log_blocks_nobody() {
        let sink = Sink::default();
        let still = sink.0.lock().unwrap();
        let lines = Lines::new(sink.clone()).unwrap();
        let writer = lines.writer();
        // The thread has at most one line, the queue holds the others.
        for _ in 0..QUEUE + 10 {
            writer.make_writer().write_all(b"line\n").unwrap();
        }
        assert!((9..=10).contains(&lines.dropped().get()));
        drop(still);
        drop(lines);
        assert!(sink.lock().len() >= QUEUE * "line\n".len());
    }

    /// The process never ended, and kept its store open.
    #[test]
    fn a_stalled_reader_of_the_log_does_not_prevent_the_exit() {
        for (row, queued) in [("the thread waits for the reader", 1), ("and the queue is full", QUEUE + 10)] {
            let sink = Sink::default();
            let still = sink.0.lock().unwrap();
            let lines = Lines::new(sink.clone()).unwrap();
            let writer = lines.writer();
            for _ in 0..queued {
                writer.make_writer().write_all(b"line\n").unwrap();
            }
            let (ended, has_ended) = channel();
            std::thread::spawn(move || {
                drop(lines);
                ended.send(())
            });
            assert!(has_ended.recv_timeout(10 * PATIENCE).is_ok(), "{row}");
            drop(still);
        }
    }
}
