//! The log: to the standard error, and in nobody's way.

use std::{
    env,
    io::{self, IsTerminal as _, Write, stderr},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
        mpsc::{Receiver, SyncSender, TrySendError, sync_channel},
    },
    thread,
    time::{Duration, Instant},
};

use env_logger::{Builder, Env, Target, WriteStyle};
use log::warn;
use throttle::privileges;

/// Lines that wait for whoever reads the standard error. What comes on top is
/// lost, and counted.
const BACKLOG: usize = 4_096;

/// What is logged unless `RUST_LOG` says otherwise. What netlink's crate cannot
/// read (a name that is not UTF-8) it would tell byte by byte.
const FILTER: &str = "info,netlink_proto=off";

/// How long the end waits for the last lines to be read.
const LAST_LINES: Duration = Duration::from_secs(1);

enum Note {
    Line(Vec<u8>),
    /// All lines before it are to be written, then this is to be told.
    Flush(SyncSender<()>),
}

/// What the logger writes to: a thread of its own passes it on, so a reader that
/// stalls stalls nothing else.
struct Lines {
    notes: SyncSender<Note>,
    lost: Arc<AtomicU64>,
}

impl Write for Lines {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        // The logger writes a whole line at once.
        if self.notes.try_send(Note::Line(bytes.to_vec())).is_err() {
            self.lost.fetch_add(1, Ordering::Relaxed);
        }
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

fn pass_on(notes: &Receiver<Note>, lost: &AtomicU64) {
    while let Ok(note) = notes.recv() {
        // There is nowhere to complain.
        if let Note::Line(line) = &note {
            let _ = stderr().write_all(line);
        }
        let lost = lost.swap(0, Ordering::Relaxed);
        if lost > 0 {
            let line = format!("{lost} lines of the log were lost: nobody read it\n");
            let _ = stderr().write_all(line.as_bytes());
        }
        if let Note::Flush(done) = note {
            let _ = done.send(());
        }
    }
}

/// Writes out what was logged when it is dropped, if somebody reads it.
pub(super) struct Log(SyncSender<Note>);

impl Log {
    /// Has everything that is logged from now on written to the standard error.
    pub(super) fn start() -> Self {
        let (notes, waiting) = sync_channel(BACKLOG);
        let lost = Arc::new(AtomicU64::new(0));
        let lines = Lines {
            notes: notes.clone(),
            lost: Arc::clone(&lost),
        };
        let (started, starting) = sync_channel(1);
        thread::spawn(move || {
            // It is there before the command gives privileges up, and needs none.
            let _ = started.send(privileges::keep_nothing());
            pass_on(&waiting, &lost);
        });
        let given_up = starting.recv();
        let mut logger = Builder::from_env(Env::default().default_filter_or(FILTER));
        if has_colours() {
            logger.write_style(WriteStyle::Always);
        }
        logger
            .target(Target::Pipe(Box::new(lines)))
            .format_target(false)
            .init();
        if let Ok(Err(error)) = given_up {
            warn!("the thread that writes the log keeps its privileges: {error}");
        }
        Self(notes)
    }

    /// Writes a line of its own, if somebody reads it. Nothing else may write to
    /// the standard error: it would wait for whoever reads it, for ever.
    pub(super) fn say(&self, line: &str) {
        self.put(Note::Line(format!("{line}\n").into_bytes()));
    }

    /// Puts a note at the end, if there is room for it soon.
    fn put(&self, mut note: Note) {
        let deadline = Instant::now() + LAST_LINES;
        // There is no waiting for room with a limit.
        while let Err(TrySendError::Full(back)) = self.0.try_send(note) {
            if Instant::now() > deadline {
                return;
            }
            note = back;
            thread::sleep(Duration::from_millis(10));
        }
    }
}

/// Whether lines get colours, if `RUST_LOG_STYLE` does not say: on a terminal
/// that has them, unless they are not wanted (`NO_COLOR`).
fn has_colours() -> bool {
    let is_set = |name: &str| env::var_os(name).is_some_and(|value| !value.is_empty());
    stderr().is_terminal()
        && !is_set("RUST_LOG_STYLE")
        && !is_set("NO_COLOR")
        && env::var_os("TERM").is_none_or(|term| term != "dumb")
}

impl Drop for Log {
    fn drop(&mut self) {
        let (done, flushed) = sync_channel(1);
        self.put(Note::Flush(done));
        let _ = flushed.recv_timeout(LAST_LINES);
    }
}
