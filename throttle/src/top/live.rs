//! The live table on a terminal.
//!
//! Three threads bring it what happens, so that none waits for another: one looks
//! at the throttles and asks for names, one reads the keyboard, one hears
//! signals.

use std::{
    io,
    sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel},
    thread,
    time::{Duration, Instant},
};

use crossterm::event::{self, Event, KeyEvent};
use nix::sys::signal::{Signal, raise};
use ratatui::DefaultTerminal;
use tokio::signal::unix::{SignalKind, signal};

use super::{
    rows::{Key, Looker, Row, Snapshot},
    screen,
    view::{Action, View},
};
use crate::{Error, Result, event::Who};

/// Ends a program: its process id (tgid), and when it started, in nanoseconds since
/// boot. What it did, for people; or why it could not.
pub type End = fn(u32, u64) -> Result<String>;

/// How long nothing is drawn at most: a terminal that is gone shows when something is
/// drawn.
const DRAW_AT_LEAST: Duration = Duration::from_secs(1);

/// What happens.
enum Message {
    Key(KeyEvent),
    Resized,
    /// There is no keyboard any more.
    Deaf,
    /// A signal asks to end.
    Ended,
    /// One of the threads is no more.
    Broken,
    Answer(Box<Answer>),
    /// What came of ending a program.
    EndTold(Result<String>),
}

/// What is asked of the thread that looks.
struct Request {
    /// Whether it is to look.
    look: bool,
    /// Rows of which all is to be found out.
    rows: Vec<Row>,
}

struct Answer {
    look: Option<Result<Snapshot>>,
    named: Vec<(Key, Who)>,
    /// How long it took.
    took: Duration,
}

/// Shows `view` until somebody quits.
///
/// # Errors
///
/// When there is no terminal, or it is gone.
pub fn run(looker: Looker, mut view: View, end: End) -> Result<()> {
    let (messages, happens) = channel();
    let (requests, asked) = channel();
    let mut screen = Screen::enter().map_err(|error| Error::failed("use the terminal", error))?;
    hear_signals(messages.clone()).map_err(|error| Error::failed("listen for signals", error))?;
    read_keys(messages.clone());
    answer(looker, asked, messages.clone());
    let mut live = Live {
        messages,
        requests,
        is_asking: false,
        due: Instant::now() + view.interval,
        end,
    };
    let result = live.show(&mut view, &mut screen, &happens);
    screen.leave();
    result
}

struct Live {
    messages: Sender<Message>,
    requests: Sender<Request>,
    /// Whether an answer is awaited.
    is_asking: bool,
    /// When to look next.
    due: Instant,
    end: End,
}

impl Live {
    fn show(
        &mut self,
        view: &mut View,
        screen: &mut Screen,
        happens: &Receiver<Message>,
    ) -> Result<()> {
        loop {
            self.ask(view);
            screen
                .draw(view)
                .map_err(|error| Error::failed("draw on the terminal", error))?;
            let patience = if view.is_live() && !self.is_asking {
                self.due.saturating_duration_since(Instant::now())
            } else {
                DRAW_AT_LEAST
            };
            let mut next = match happens.recv_timeout(patience.min(DRAW_AT_LEAST)) {
                Ok(message) => Some(message),
                Err(RecvTimeoutError::Timeout) => None,
                Err(RecvTimeoutError::Disconnected) => return Ok(()),
            };
            // What has come together is shown together.
            while let Some(message) = next {
                if self.take(message, view, screen)? {
                    return Ok(());
                }
                next = happens.try_recv().ok();
            }
        }
    }

    /// Asks for what is wanted next, one thing at a time.
    fn ask(&mut self, view: &View) {
        if self.is_asking {
            return;
        }
        let look = view.is_live() && Instant::now() >= self.due;
        let rows: Vec<Row> = view
            .in_sight()
            // Who is known may have ended since.
            .filter(|row| look || row.who.is_none())
            .cloned()
            .collect();
        if !look && rows.is_empty() {
            return;
        }
        if look {
            self.due = Instant::now() + view.interval;
        }
        // The thread is there as long as this is.
        self.is_asking = self.requests.send(Request { look, rows }).is_ok();
    }

    /// Takes up what happened. Whether that is the end.
    fn take(&mut self, message: Message, view: &mut View, screen: &mut Screen) -> Result<bool> {
        match message {
            Message::Key(key) => match view.key(key) {
                Action::None => {}
                Action::Quit => return Ok(true),
                Action::Suspend => {
                    screen.leave();
                    // It goes on here when it is continued.
                    let _ = raise(Signal::SIGTSTP);
                    *screen = Screen::enter()
                        .map_err(|error| Error::failed("use the terminal again", error))?;
                }
                Action::Look => self.due = Instant::now(),
                Action::End(target) => {
                    view.say(&format!("ending {} (pid {}) …", target.name, target.pid));
                    let (end, messages) = (self.end, self.messages.clone());
                    thread::spawn(move || {
                        let _alarm = Alarm(messages.clone());
                        let told = end(target.pid, target.start_ns);
                        // Nobody waits for it after the end.
                        let _ = messages.send(Message::EndTold(told));
                    });
                }
            },
            // The size is asked for when it is drawn.
            Message::Resized => {}
            Message::Deaf | Message::Ended => return Ok(true),
            Message::Broken => {
                return Err(Error::Refused(
                    "go on: a part of the program has panicked".into(),
                ));
            }
            Message::Answer(answer) => {
                self.is_asking = false;
                // A look that takes long is not followed by the next one at once.
                self.due = self.due.max(Instant::now() + answer.took);
                match answer.look {
                    Some(Ok(snapshot)) => view.show(snapshot),
                    Some(Err(error)) => view.fail(&error.to_string()),
                    None => {}
                }
                view.learn(answer.named);
            }
            Message::EndTold(Ok(told)) => {
                view.say(&told);
                self.due = Instant::now();
            }
            Message::EndTold(Err(error)) => view.say(&error.to_string()),
        }
        Ok(false)
    }
}

/// Says so if its thread panics: the panic has left the screen.
struct Alarm(Sender<Message>);

impl Drop for Alarm {
    fn drop(&mut self) {
        if thread::panicking() {
            let _ = self.0.send(Message::Broken);
        }
    }
}

/// Starts the thread that looks.
fn answer(mut looker: Looker, asked: Receiver<Request>, messages: Sender<Message>) {
    thread::spawn(move || {
        let _alarm = Alarm(messages.clone());
        while let Ok(request) = asked.recv() {
            let start = Instant::now();
            let look = request.look.then(|| looker.look());
            let rows = request.rows.iter();
            let named = rows.map(|row| (row.key.clone(), looker.who(row))).collect();
            let answer = Box::new(Answer {
                look,
                named,
                took: start.elapsed(),
            });
            if messages.send(Message::Answer(answer)).is_err() {
                return;
            }
        }
    });
}

/// Starts the thread that reads the keyboard.
fn read_keys(messages: Sender<Message>) {
    thread::spawn(move || {
        let _alarm = Alarm(messages.clone());
        loop {
            let message = match event::read() {
                Ok(Event::Key(key)) => Message::Key(key),
                Ok(Event::Resize(..)) => Message::Resized,
                Ok(Event::FocusGained | Event::FocusLost | Event::Mouse(_) | Event::Paste(_)) => {
                    continue;
                }
                Err(_) => {
                    let _ = messages.send(Message::Deaf);
                    return;
                }
            };
            if messages.send(message).is_err() {
                return;
            }
        }
    });
}

/// Starts the thread that hears the signals that ask to end.
fn hear_signals(messages: Sender<Message>) -> io::Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_io()
        .build()?;
    let (mut interrupt, mut terminate, mut hangup) = {
        let _in_it = runtime.enter();
        (
            signal(SignalKind::interrupt())?,
            signal(SignalKind::terminate())?,
            signal(SignalKind::hangup())?,
        )
    };
    thread::spawn(move || {
        runtime.block_on(async {
            tokio::select! {
                _ = interrupt.recv() => {}
                _ = terminate.recv() => {}
                _ = hangup.recv() => {}
            }
        });
        let _ = messages.send(Message::Ended);
    });
    Ok(())
}

/// The terminal while the table is on it. However this ends, the terminal is as it
/// was before.
struct Screen {
    terminal: DefaultTerminal,
    is_left: bool,
}

impl Screen {
    fn enter() -> io::Result<Self> {
        // It leaves the screen before a panic is told of.
        let terminal = ratatui::try_init().inspect_err(|_| ratatui::restore())?;
        Ok(Self {
            terminal,
            is_left: false,
        })
    }

    fn draw(&mut self, view: &mut View) -> io::Result<()> {
        self.terminal.autoresize()?;
        let size = self.terminal.size()?;
        view.resize(size.width, size.height);
        self.terminal.draw(|frame| screen::draw(view, frame))?;
        Ok(())
    }

    fn leave(&mut self) {
        if !std::mem::replace(&mut self.is_left, true) {
            // If the terminal is gone, there is nothing to put right.
            let _ = self.terminal.show_cursor();
            let _ = ratatui::try_restore();
        }
    }
}

impl Drop for Screen {
    fn drop(&mut self) {
        self.leave();
    }
}
