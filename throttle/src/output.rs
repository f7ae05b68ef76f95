//! How events get out: line by line, and never in anybody's way.
//!
//! Three threads take part, with a bounded line between each two:
//!
//! ```text
//! daemon --drafts--> naming --events--> writer
//! ```
//!
//! The daemon tells what happened and goes on at once. To make an event of it
//! may take long (names are looked up in /proc and in directories of users), and
//! so may writing it, if whoever reads is slow. What finds no room in a line is
//! lost, and so is what comes in a flood. Each loss keeps its place among the
//! events and is told of there.
//!
//! The writer numbers the events, lost ones included: the number of an event is
//! how many were told up to it.

mod backlog;
mod flood;
mod reader;

use std::{
    io::{self, Write},
    os::fd::AsFd,
    sync::{
        Arc, OnceLock,
        atomic::{AtomicU64, Ordering},
        mpsc::{Receiver, RecvTimeoutError, channel},
    },
    thread,
    time::Duration,
};

use log::{debug, warn};
use tokio::sync::Notify;

use self::{
    backlog::{Backlog, Entry},
    flood::Flood,
    reader::Reader,
};
use crate::{
    Error, Result, clock,
    encode::{Format, Host},
    event::{Event, What},
};

/// Where events go. `T` is what the daemon tells, before it is an event.
#[derive(Debug)]
pub struct Output<T> {
    drafts: Arc<Backlog<T>>,
    events: Arc<Backlog<Event>>,
    flood: Option<Flood>,
    told: u64,
    written: Arc<AtomicU64>,
    end: Arc<End>,
    reader: Option<Reader>,
    /// Breaks when the writer has ended.
    done: Receiver<()>,
    last_events: Duration,
}

/// What has become of the events so far.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Counts {
    /// Events that were told.
    pub told: u64,
    /// Of those, the ones that were written.
    pub written: u64,
    /// Of those, the ones that were not and will not be written. The rest is on
    /// its way.
    pub lost: u64,
}

impl Counts {
    /// What to say of it at the end; none if nothing was lost.
    fn complaint(&self) -> Option<String> {
        let Self { told, lost, .. } = self;
        (*lost > 0).then(|| {
            format!(
                "{lost} of {told} events were lost: they were too many, or nobody took them in time"
            )
        })
    }
}

/// What an output is bounded by.
#[derive(Debug)]
struct Bounds {
    /// Drafts that wait to be named, and events that wait to be written. Each is
    /// bounded too: so many programs, candidates and destinations, and names of
    /// [`Name::MAX`](crate::name::Name::MAX) bytes. So is the memory they take.
    backlog: usize,
    flood: Option<Flood>,
    /// How long losses are added up before they are told, if nothing comes after
    /// them.
    settling: Duration,
    /// How long the end waits for a reader to take the last events.
    last_events: Duration,
}

impl Default for Bounds {
    fn default() -> Self {
        Self {
            backlog: 1_024,
            flood: Some(Flood::default()),
            // In a flood events get through once a second.
            settling: Duration::from_secs(1),
            last_events: Duration::from_secs(1),
        }
    }
}

/// The end of all writing before its time.
#[derive(Debug, Default)]
struct End {
    /// Set once: why nothing more gets out.
    why: OnceLock<io::Error>,
    notify: Notify,
}

impl End {
    fn set(&self, why: io::Error) {
        // The first reason counts.
        let _ = self.why.set(why);
        self.notify.notify_waiters();
    }

    async fn wait(&self) -> &io::Error {
        loop {
            let notified = self.notify.notified();
            if let Some(why) = self.why.get() {
                return why;
            }
            notified.await;
        }
    }

    /// Whether it is because nobody reads any more, which is no trouble.
    fn is_without_trouble(why: &io::Error) -> bool {
        why.kind() == io::ErrorKind::BrokenPipe
    }
}

/// Does what has to be done at the end of a thread, also when it panics.
struct AtEnd<F: FnMut()>(F);

impl<F: FnMut()> Drop for AtEnd<F> {
    fn drop(&mut self) {
        (self.0)();
    }
}

impl<T: Send + 'static> Output<T> {
    /// Writes events to `to` in `format`. `name` makes the event of what was
    /// told, and none of a hint; it may take its time. The writer numbers the
    /// events.
    pub fn new(
        to: impl Write + Send + 'static,
        format: Format,
        host: Host,
        name: impl FnMut(T) -> Option<Event> + Send + 'static,
    ) -> Self {
        let line = move |event: &Event| format.line(event, &host);
        Self::start(to, None, line, name, Bounds::default())
    }

    /// As [`new`](Self::new), but notices it at once when the reader of `to`
    /// goes away.
    pub fn watched(
        to: impl Write + AsFd + Send + 'static,
        format: Format,
        host: Host,
        name: impl FnMut(T) -> Option<Event> + Send + 'static,
    ) -> Self {
        let reader = Reader::of(to.as_fd());
        let line = move |event: &Event| format.line(event, &host);
        Self::start(to, reader, line, name, Bounds::default())
    }

    /// Writes events to the standard output.
    pub fn stdout(
        format: Format,
        host: Host,
        name: impl FnMut(T) -> Option<Event> + Send + 'static,
    ) -> Self {
        Self::watched(io::stdout(), format, host, name)
    }

    fn start(
        to: impl Write + Send + 'static,
        reader: Option<Reader>,
        line: impl FnMut(&Event) -> String + Send + 'static,
        mut name: impl FnMut(T) -> Option<Event> + Send + 'static,
        bounds: Bounds,
    ) -> Self {
        let Bounds {
            backlog,
            flood,
            settling,
            last_events,
        } = bounds;
        let (finished, done) = channel();
        let output = Self {
            drafts: Arc::new(Backlog::new(backlog, settling)),
            // Losses have settled before they get here.
            events: Arc::new(Backlog::new(backlog, Duration::ZERO)),
            flood,
            told: 0,
            written: Arc::default(),
            end: Arc::default(),
            reader,
            done,
            last_events,
        };

        let (drafts, events) = (Arc::clone(&output.drafts), Arc::clone(&output.events));
        let end = Arc::clone(&output.end);
        thread::spawn(move || {
            let _end = AtEnd(|| {
                drafts.abandon();
                events.close();
                if thread::panicking() {
                    end.set(io::Error::other("the thread that names them panicked"));
                }
            });
            while !events.is_closed()
                && let Some(entry) = drafts.take()
            {
                match entry {
                    Entry::Item(draft) => {
                        if let Some(event) = name(draft) {
                            events.push(event, clock::monotonic_ns());
                        }
                    }
                    Entry::Lost(loss) => events.pass_on(loss),
                }
            }
        });

        let events = Arc::clone(&output.events);
        let (written, end) = (Arc::clone(&output.written), Arc::clone(&output.end));
        thread::spawn(move || {
            let _finished = finished;
            let _end = AtEnd(|| {
                events.abandon();
                if thread::panicking() {
                    end.set(io::Error::other("the thread that writes them panicked"));
                }
            });
            if let Err(error) = write(&events, to, line, &written) {
                events.abandon();
                end.set(error);
            }
        });
        output
    }

    /// Tells of something. It never waits. `group` says who caused it: in a flood
    /// each group has a bound of its own. `false` if it is lost in one.
    pub fn tell(&mut self, draft: T, group: u64) -> bool {
        let now_ns = clock::monotonic_ns();
        let admits = |flood: &mut Flood| flood.admits(group, now_ns);
        if self.flood.as_mut().is_none_or(admits) {
            self.tell_on(draft);
            true
        } else {
            self.lose();
            false
        }
    }

    /// Tells what belongs to something that was told: no flood holds it up. It
    /// never waits.
    pub fn tell_on(&mut self, draft: T) {
        self.told += 1;
        self.drafts.push(draft, clock::monotonic_ns());
    }

    /// Counts something as told and lost.
    pub fn lose(&mut self) {
        self.told += 1;
        self.drafts.refuse(clock::monotonic_ns());
    }

    /// Hands over what is no event, but helps to name later ones. It never waits,
    /// and if there is much to do the hint is dropped.
    pub fn hint(&self, draft: T) {
        self.drafts.push_if_idle(draft);
    }
}

impl<T> Output<T> {
    /// Waits until nothing more can be written. The runtime must do I/O if the
    /// reader is watched.
    ///
    /// # Errors
    ///
    /// When that is not because the reader has gone away, which is no trouble.
    pub async fn closed(&self) -> Result<()> {
        let gone = async {
            match &self.reader {
                Some(reader) => reader.gone().await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            biased;
            why = self.end.wait() => if End::is_without_trouble(why) {
                Ok(())
            } else {
                Err(Error::failed("write events", why.to_string()))
            },
            () = gone => Ok(()),
        }
    }

    /// What has become of the events so far.
    #[must_use]
    pub fn counts(&self) -> Counts {
        // Before the writer's count: it counts nothing after this, unless it was
        // told to stop in the middle of an event.
        let is_over = self.events.is_abandoned();
        let written = self.written.load(Ordering::SeqCst);
        Counts {
            told: self.told,
            written,
            lost: if is_over {
                self.told - written
            } else {
                self.drafts.lost() + self.events.lost()
            },
        }
    }

    /// Ends the writing, once the last events are out or the reader does not
    /// take them. What is not written then is lost.
    pub fn finish(self) -> Counts {
        self.drafts.close();
        if self.done.recv_timeout(self.last_events) == Err(RecvTimeoutError::Timeout) {
            self.drafts.abandon();
            self.events.abandon();
        }
        let counts = self.counts();
        if let Some(complaint) = counts.complaint() {
            match self.end.why.get() {
                Some(why) if End::is_without_trouble(why) => debug!("{complaint}"),
                Some(_) | None => warn!("{complaint}"),
            }
        }
        counts
    }
}

impl<T> Drop for Output<T> {
    fn drop(&mut self) {
        // The threads end when they have written what there is.
        self.drafts.close();
    }
}

/// Writes events until there are no more.
fn write(
    events: &Backlog<Event>,
    mut to: impl Write,
    mut line: impl FnMut(&Event) -> String,
    written: &AtomicU64,
) -> io::Result<()> {
    let mut sequence = 0;
    while let Some(entry) = events.take() {
        let (event, is_told) = match entry {
            Entry::Item(event) => {
                sequence += 1;
                (Event { sequence, ..event }, true)
            }
            Entry::Lost(loss) => {
                sequence += loss.items;
                let what = What::Lost { events: loss.items };
                let at_ns = clock::calendar_ns(loss.last_ns);
                (Event::new(at_ns, sequence, what), false)
            }
        };
        let line = line(&event) + "\n";
        to.write_all(line.as_bytes())?;
        to.flush()?;
        if is_told {
            written.fetch_add(1, Ordering::SeqCst);
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests;
