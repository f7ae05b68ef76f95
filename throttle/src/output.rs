//! How events get out: line by line, and never in anybody's way.

use std::{
    io::{self, Write},
    sync::{
        Arc, OnceLock,
        atomic::{AtomicU64, Ordering},
        mpsc::{Receiver, RecvTimeoutError, SyncSender, TrySendError, channel, sync_channel},
    },
    thread,
    time::Duration,
};

use log::warn;
use tokio::sync::Notify;

use crate::{
    Error, Result,
    encode::{Format, Host},
    event::{Event, What},
};

/// Events that wait for a slow reader. What comes on top is lost, and counted.
const BACKLOG: usize = 1_024;

/// How long the end waits for a reader to take the last events.
const LAST_EVENTS: Duration = Duration::from_secs(1);

/// Where events go. A thread of its own writes them, so a reader that stalls
/// stalls nothing else.
#[derive(Debug)]
pub struct Output {
    sender: SyncSender<Event>,
    lost: Arc<AtomicU64>,
    closed: Arc<Closed>,
    /// Breaks when the thread has written everything.
    done: Receiver<()>,
    sequence: u64,
}

#[derive(Debug, Default)]
struct Closed {
    /// Set once: why nothing more gets out.
    why: OnceLock<io::Error>,
    notify: Notify,
}

impl Output {
    /// Writes events to `to` in `format`.
    pub fn new(mut to: impl Write + Send + 'static, format: Format, host: Host) -> Self {
        let (sender, events) = sync_channel::<Event>(BACKLOG);
        let (lost, closed) = (Arc::new(AtomicU64::new(0)), Arc::new(Closed::default()));
        let (losses, end) = (Arc::clone(&lost), Arc::clone(&closed));
        let (finished, done) = channel();
        thread::spawn(move || {
            let _finished = finished;
            for event in events {
                let mut lines = format.line(&event, &host) + "\n";
                let count = losses.swap(0, Ordering::SeqCst);
                if count > 0 {
                    let what = What::Lost { events: count };
                    lines += &format.line(&Event::new(event.at_ns, event.sequence, what), &host);
                    lines += "\n";
                }
                if let Err(error) = to.write_all(lines.as_bytes()).and_then(|()| to.flush()) {
                    let _ = end.why.set(error);
                    end.notify.notify_waiters();
                    return;
                }
            }
        });
        Self {
            sender,
            lost,
            closed,
            done,
            sequence: 0,
        }
    }

    /// Writes events to the standard output.
    #[must_use]
    pub fn stdout(format: Format, host: Host) -> Self {
        Self::new(io::stdout(), format, host)
    }

    /// Tells of `what`, which happened at `at_ns`.
    pub fn tell(&mut self, at_ns: u64, what: What) {
        self.sequence += 1;
        match self.sender.try_send(Event::new(at_ns, self.sequence, what)) {
            Ok(()) | Err(TrySendError::Disconnected(_)) => {}
            Err(TrySendError::Full(_)) => {
                self.lost.fetch_add(1, Ordering::SeqCst);
            }
        }
    }

    /// Waits until nothing more can be written.
    ///
    /// # Errors
    ///
    /// When that is not because the reader has gone away, which is no trouble.
    pub async fn closed(&self) -> Result<()> {
        let notified = self.closed.notify.notified();
        if self.closed.why.get().is_none() {
            notified.await;
        }
        match self.closed.why.get() {
            Some(why) if why.kind() != io::ErrorKind::BrokenPipe => {
                Err(Error::failed("write events", why.to_string()))
            }
            Some(_) | None => Ok(()),
        }
    }

    /// Ends the writing, once the last events are out or the reader does not
    /// take them.
    pub fn finish(self) {
        let Self {
            sender, lost, done, ..
        } = self;
        drop(sender);
        if done.recv_timeout(LAST_EVENTS) == Err(RecvTimeoutError::Timeout) {
            warn!("the last events are lost: nobody takes them");
        }
        let lost = lost.load(Ordering::SeqCst);
        if lost > 0 {
            warn!("{lost} events were lost: nobody took them in time");
        }
    }
}
