//! Shows what throttle does, in network namespaces of its own: `cargo xtask
//! demo`.
//!
//! One program talks to a server that answers, while another dials addresses
//! that do not: first without the throttle, then with it. What is shown is
//! measured at the far end of the wire, and judged at the end.
//!
//! | module | holds |
//! |---|---|
//! | [`programs`] | the two programs, which are this executable again |
//! | [`stage`] | running them, and what was measured |
//! | [`verdict`] | what the measurements say, and whether it is as expected |
//! | [`page`] | how things are put on the terminal |
//! | [`stop`] | signals, and waits that end with one |

mod page;
mod programs;
mod stage;
mod stop;
mod verdict;

use std::{
    env,
    io::{Write as _, stderr},
    panic::{self, AssertUnwindSafe},
    process::ExitCode,
};

use anyhow::Result;
use nix::unistd::geteuid;
use throttle_tests::{Behaviour, Lab, Throttle};

use self::{
    page::Page,
    stage::{INTERVAL, LIMIT, RATE_PER_SECOND, Stage},
    stop::Stop,
    verdict::Verdict,
};

/// As of `throttle`: 2 usage, 3 missing privilege.
const USAGE: u8 = 2;
const NO_PRIVILEGE: u8 = 3;

const HELP: &str = "\
Shows what throttle does, in network namespaces of its own. Takes about 40
seconds, needs root, and leaves nothing behind.

Usage: cargo xtask demo

Exit codes: 0 all was as expected, 1 something was not, 3 not root";

const PICTURE: &str = "
   namespace \"client\"                           namespace \"far\"
   ┌──────────────────────────────────┐         ┌──────────────────────────────────┐
   │ talker  50 connects a second     │         │ 10.78.0.1:80                     │
   │         to a server that answers │         │   the server of the talker       │
   │                             eth0 ├─────────┤ eth0                             │
   │ dialer  60 connects at once,     │         │ 198.51.100.0/24, 203.0.113.0/24  │
   │         then 10 a second, nearly │         │   nobody: SYNs meet silence      │
   │         all to dead addresses    │         │                                  │
   └──────────────────────────────────┘         └──────────────────────────────────┘
        the throttle will be at this eth0         SYNs are counted at this eth0
";

fn main() -> ExitCode {
    let mut args = env::args().skip(1);
    match args.next().as_deref() {
        None => {}
        Some(programs::TALK) => return programs::talk(args),
        Some(programs::DIAL) => return programs::dial(args),
        Some("-h" | "--help") => {
            // Nobody to tell if that fails.
            let _ = writeln!(std::io::stdout(), "{HELP}");
            return ExitCode::SUCCESS;
        }
        Some(other) => {
            complain(&format!("unexpected argument {other:?}\n\n{HELP}"));
            return ExitCode::from(USAGE);
        }
    }
    if !geteuid().is_root() {
        complain(
            "the demo needs root: it makes network namespaces and loads BPF programs. \
             Run it with sudo",
        );
        return ExitCode::from(NO_PRIVILEGE);
    }
    stop::catch_signals();
    panic::set_hook(Box::new(|info| {
        // The library of the tests says by panicking what is wrong. After a
        // signal, which programs in the foreground get as well, nothing is.
        if stop::signalled().is_none() {
            complain(&panic_message(info.payload()));
        }
    }));
    // Everything made is dropped on the way out of `show`, however it ends.
    let shown = panic::catch_unwind(AssertUnwindSafe(show));
    if let Some(signal) = stop::signalled() {
        complain("interrupted; everything that was set up is removed again");
        return Stop::Signal(signal).code();
    }
    match shown {
        Ok(Ok(true)) => ExitCode::SUCCESS,
        Ok(Ok(false)) | Err(_) => ExitCode::FAILURE,
        Ok(Err(error)) => match error.downcast_ref::<Stop>() {
            // Whoever closed the pipe knows.
            Some(stop @ (Stop::Closed | Stop::Signal(_))) => stop.code(),
            None => {
                complain(&format!("{error:#}"));
                ExitCode::FAILURE
            }
        },
    }
}

/// Shows it all. Whether it was as expected.
fn show() -> Result<bool> {
    let mut page = Page::stdout();
    page.heading("1. What is set up")?;
    let lab = Lab::plain();
    let server = lab.serve(Behaviour::Close);
    stop::check()?;
    page.lines(PICTURE)?;

    page.heading("2. Without the throttle")?;
    page.text("What the dialer sends, second by second, as it arrives at the far end:")?;
    let stage = Stage::new(&lab);
    let without = stage.play(&mut page, stage::WITHOUT, |_| Ok(()))?;
    page.text(
        "Every connect() is on the wire at once. Nobody answers, so TCP sends each of them again \
         and again.",
    )?;

    page.heading("3. The limit is reached")?;
    page.text(&format!(
        "Now with the throttle: at most {LIMIT} connects may be half-open, and attempts over \
         that limit are let out at {RATE_PER_SECOND} a second. The event keeps the words of \
         Windows XP SP2. As text, as one sees it on a terminal:",
    ))?;
    let limits = ["--limit", "10", "--rate", "5/s"];
    debug_assert_eq!(limits[1], LIMIT.to_string());
    page.command(&format!(
        "throttle run -i eth0 {} -o text",
        limits.join(" ")
    ))?;
    let mut text = limits.to_vec();
    text.extend(["-o", "text"]);
    let line = stage.event_as_text(&text)?;
    page.quote(&line)?;

    page.text("Then as JSON, for machines (one line; broken here to fit):")?;
    page.command(&format!(
        "throttle run -i eth0 {} -o json",
        limits.join(" ")
    ))?;
    let throttle = lab.throttle(&limits);
    stop::check()?;
    let mut event = serde_json::Value::Null;
    let with = stage.play(&mut page, stage::WITH, |page| {
        event = stage::first_event(&throttle)?;
        page.json(&event)?;
        page.heading("4. With the throttle")?;
        page.text("What the dialer sends now, at the far end:")
    })?;
    page.text(&format!(
        "{LIMIT} go out at once, and of the others one every {} ms. Those that are out TCP \
         sends again, as before.",
        INTERVAL.as_millis()
    ))?;
    let left = throttle.stop();

    let verdict = Verdict::new(&without, &with, &event, &left);
    page.heading("5. The talker was not held up")?;
    verdict.show_talker(&mut page)?;
    page.heading("6. The dialer was slowed, and no connect() of it failed")?;
    verdict.show_dialer(&mut page)?;

    page.heading("7. What to do next")?;
    page.lines(
        "   throttle run -i eth0                  limit an interface: 50 half-open, then 10/s\n   \
            throttle run -i eth0 --mode monitor   only watch: nothing is held back\n   \
            throttle explain                      what the event means, and what to do then\n",
    )?;
    page.text(&format!("The program is {}.", program()))?;

    drop(server);
    drop(lab);
    let as_expected = verdict.show_result(&mut page)?;
    Ok(as_expected)
}

/// Where the command is, as one would type it.
fn program() -> String {
    let path = Throttle::path();
    let path = path.canonicalize().unwrap_or(path);
    let here = env::current_dir().unwrap_or_default();
    path.strip_prefix(here)
        .unwrap_or(&path)
        .display()
        .to_string()
}

fn panic_message(payload: &dyn std::any::Any) -> String {
    let text = payload.downcast_ref::<String>().map(String::as_str);
    text.or_else(|| payload.downcast_ref::<&str>().copied())
        .unwrap_or("it stopped, and did not say why")
        .to_owned()
}

fn complain(what: &str) {
    // Nobody to tell if that fails.
    let _ = writeln!(stderr(), "demo: {what}");
}
