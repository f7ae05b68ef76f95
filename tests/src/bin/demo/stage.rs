//! Running the two programs, and what was measured.

use std::{net::SocketAddr, time::Duration};

use anyhow::Result;
use serde_json::Value;
use throttle_tests::{
    Capture, Lab,
    addresses::{self, OPEN_PORT},
    capture::Frames,
    dial::Attempt,
    throttle_cmd::Running,
};

use crate::{
    page::Page,
    programs::{Dialled, Program, Talked, server},
    stop::{self, wait_for, wait_until_ns},
};

/// What the throttle is told.
pub(crate) const LIMIT: usize = 10;
pub(crate) const RATE_PER_SECOND: u32 = 5;
pub(crate) const INTERVAL: Duration = Duration::from_millis(200);

/// Long enough for any machine to start a program.
const SOON: Duration = Duration::from_secs(20);
/// Connects of the talker before the dialer starts: half a second.
const TALKED_BEFORE: usize = 25;
/// How long after its end a second is looked at: what arrived in it is there.
const LOOK_AFTER_NS: u64 = 30_000_000;
const SECOND_NS: u64 = 1_000_000_000;

/// One act.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Act {
    /// How long the dialer dials.
    pub(crate) seconds: u64,
    /// When somebody connects to a server that answers, but that nobody has
    /// talked to yet.
    newcomer_after: Option<u64>,
}

pub(crate) const WITHOUT: Act = Act {
    seconds: 15,
    newcomer_after: Some(5),
};
pub(crate) const WITH: Act = Act {
    seconds: 20,
    newcomer_after: Some(5),
};

/// What was measured in one act.
#[derive(Debug)]
pub(crate) struct Measured {
    /// When the dialer began.
    pub(crate) start_ns: u64,
    /// When it was looked at last.
    pub(crate) end_ns: u64,
    /// Connects of the talker while the dialer dialled.
    pub(crate) talked: Vec<Talked>,
    pub(crate) dialled: Vec<Dialled>,
    pub(crate) newcomer: Option<Attempt>,
    /// What arrived at the far end.
    pub(crate) frames: Frames,
}

/// Where it is played.
#[derive(Debug)]
pub(crate) struct Stage<'a> {
    lab: &'a Lab,
}

impl<'a> Stage<'a> {
    pub(crate) const fn new(lab: &'a Lab) -> Self {
        Self { lab }
    }

    /// Runs both programs, and shows what the dialer sends. `begun` is called
    /// when it has begun.
    pub(crate) fn play(
        &self,
        page: &mut Page,
        act: Act,
        begun: impl FnOnce(&mut Page) -> Result<()>,
    ) -> Result<Measured> {
        let capture = self.lab.capture();
        let mut talker = Program::talker(&self.lab.client);
        wait_for("the talker to talk", SOON, || {
            Ok((talker.talked()?.len() >= TALKED_BEFORE).then_some(()))
        })?;
        let mut dialer = Program::dialer(&self.lab.client);
        let start_ns = wait_for("the dialer to dial", SOON, || {
            Ok(dialer.dialled()?.first().map(|first| first.at_ns))
        })?;
        begun(page)?;
        page.bar_key()?;
        let mut newcomer = None;
        for second in 0..act.seconds {
            if act.newcomer_after == Some(second) {
                newcomer = Some(self.lab.dial([newcomer_dst()]));
            }
            let from_ns = start_ns + second * SECOND_NS;
            let to_ns = from_ns + SECOND_NS;
            wait_until_ns(to_ns + LOOK_AFTER_NS)?;
            let (first, repeated) = count(&capture, from_ns..to_ns);
            page.bar(second + 1, first, repeated)?;
        }
        let end_ns = start_ns + act.seconds * SECOND_NS;
        let mut talked = talker.talked()?;
        talked.retain(|connect| (start_ns..end_ns).contains(&connect.at_ns));
        let mut dialled = dialer.dialled()?;
        dialled.retain(|connect| connect.at_ns < end_ns);
        Ok(Measured {
            start_ns,
            end_ns,
            talked,
            dialled,
            newcomer: newcomer.and_then(|attempts| attempts.all().pop()),
            frames: capture.finish(),
        })
    }

    /// The line a throttle writes about the limit, in a run of its own.
    pub(crate) fn event_as_text(&self, args: &[&str]) -> Result<String> {
        let throttle = self.lab.throttle(args);
        let mut dialer = Program::dialer(&self.lab.client);
        let line = wait_for("the event as text", SOON, || {
            dialer.dialled()?;
            Ok(throttle.lines().into_iter().next())
        })?;
        drop(dialer);
        throttle.stop();
        stop::check()?;
        Ok(line)
    }
}

/// A server that answers, but that nobody has talked to yet.
fn newcomer_dst() -> SocketAddr {
    addresses::live(1000, OPEN_PORT)
}

/// First and repeated SYNs of the dialer in this time.
fn count(capture: &Capture, time: std::ops::Range<u64>) -> (usize, usize) {
    let frames = capture.so_far();
    let (mut first, mut repeated) = (0, 0);
    for syn in frames.syns() {
        let of_the_dialer = ![server(), newcomer_dst()].contains(&syn.dst);
        if of_the_dialer && time.contains(&syn.at_ns) {
            *(if syn.first { &mut first } else { &mut repeated }) += 1;
        }
    }
    (first, repeated)
}

/// The first event of a throttle that writes JSON.
pub(crate) fn first_event(throttle: &Running) -> Result<Value> {
    wait_for("the event as JSON", SOON, || {
        Ok(throttle.events().into_iter().next())
    })
}
