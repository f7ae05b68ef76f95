use std::{
    fs::File,
    io::{BufRead as _, BufReader, PipeReader, PipeWriter, Read as _, pipe},
    time::Instant,
};

use proptest::prelude::*;
use tokio::runtime::Builder;

use super::*;

/// Longest wait for something that must happen.
const PATIENCE: Duration = Duration::from_secs(20);
/// What a pipe holds.
const PIPE: usize = 65_536;

/// An event is known by the number it was told with, which stands in its time.
/// `events: 0` tells it from a loss.
fn event(number: u64) -> Event {
    Event::new(number, 0, What::Lost { events: 0 })
}

/// A line of more than 1,000 bytes: its sequence, and its number or the loss.
fn line(event: &Event) -> String {
    let Event {
        sequence, at_ns, ..
    } = event;
    let fill = ".".repeat(1_000);
    match event.what {
        What::Lost { events: 0 } => format!("{sequence} event {at_ns} {fill}"),
        What::Lost { events } => format!("{sequence} lost {events} {fill}"),
        What::LimitReached(_) | What::LimitOngoing(_) | What::LimitCleared(_) => unreachable!(),
    }
}

fn without_flood() -> Bounds {
    Bounds {
        flood: None,
        settling: Duration::from_millis(1),
        last_events: PATIENCE,
        ..Bounds::default()
    }
}

fn output(
    to: PipeWriter,
    mut name: impl FnMut(u64) -> Event + Send + 'static,
    bounds: Bounds,
) -> Output<u64> {
    let reader = Reader::of(to.as_fd());
    Output::start(to, reader, line, move |n| Some(name(n)), bounds)
}

/// Tells numbers, the next ones from where it was.
fn tell(output: &mut Output<u64>, count: u64) {
    for _ in 0..count {
        let number = output.told + 1;
        output.tell(number, number);
    }
}

/// Tells until `done`.
fn tell_until(output: &mut Output<u64>, what: &str, done: impl Fn(Counts) -> bool) {
    let start = Instant::now();
    while !done(output.counts()) {
        tell(output, 100);
        thread::yield_now();
        assert!(start.elapsed() < PATIENCE, "waited in vain for {what}");
    }
}

/// Waits until nothing is on its way.
fn wait_for_all(output: &Output<u64>) -> Counts {
    let start = Instant::now();
    loop {
        let counts = output.counts();
        if counts.written + counts.lost == counts.told {
            return counts;
        }
        thread::yield_now();
        assert!(
            start.elapsed() < PATIENCE,
            "some are on their way: {counts:?}"
        );
    }
}

/// What a reader has seen.
#[derive(Debug, Default, PartialEq, Eq, Clone, Copy)]
struct Seen {
    /// The last event's sequence.
    sequence: u64,
    events: u64,
    lost: u64,
    /// How many lines told of a loss.
    losses: u64,
}

impl Seen {
    /// Takes a line in, which must be what comes next.
    fn read(&mut self, line: &str) {
        let mut words = line.split(' ');
        let sequence: u64 = words.next().unwrap().parse().unwrap();
        let kind = words.next().unwrap();
        let number: u64 = words.next().unwrap().parse().unwrap();
        if kind == "event" {
            assert_eq!(sequence, self.sequence + 1);
            assert_eq!(number, sequence, "each is at its place");
            self.events += 1;
        } else {
            assert_eq!(sequence, self.sequence + number);
            self.lost += number;
            self.losses += 1;
        }
        self.sequence = sequence;
    }

    fn read_all(&mut self, from: impl io::Read) {
        for line in BufReader::new(from).lines() {
            self.read(&line.unwrap());
        }
    }

    /// It adds up with what the other side counted.
    fn agrees(&self, counts: Counts) {
        let Self {
            sequence,
            events,
            lost,
            ..
        } = *self;
        assert_eq!((events, lost), (counts.written, counts.lost));
        assert_eq!((sequence, sequence), (counts.told, events + lost));
    }
}

fn read_all(from: PipeReader) -> thread::JoinHandle<Seen> {
    thread::spawn(move || {
        let mut seen = Seen::default();
        seen.read_all(from);
        seen
    })
}

fn wait_for_close(output: &Output<u64>) -> Result<()> {
    let runtime = Builder::new_current_thread().enable_all().build().unwrap();
    let closed = async { tokio::time::timeout(PATIENCE, output.closed()).await };
    runtime.block_on(closed).expect("to be closed in time")
}

#[test]
fn all_gets_out_in_order_when_there_is_time() {
    let (reader, writer) = pipe().unwrap();
    let mut output = output(writer, event, Bounds::default());
    let seen = read_all(reader);
    tell(&mut output, 500);
    let counts = output.finish();
    let seen = seen.join().unwrap();
    assert_eq!((seen.events, seen.losses), (500, 0));
    seen.agrees(counts);
    assert_eq!(counts.complaint(), None);
}

#[test]
fn a_reader_that_stalls_learns_exactly_what_it_missed() {
    let (mut reader, writer) = pipe().unwrap();
    let mut output = output(writer, event, without_flood());
    tell_until(&mut output, "losses", |counts| counts.lost > 5_000);
    // It reads a little, and stalls again.
    let mut head = vec![0; 3 * PIPE / 2];
    reader.read_exact(&mut head).unwrap();
    let lost = output.counts().lost;
    tell_until(&mut output, "more losses", |counts| {
        counts.lost > lost + 5_000
    });
    let seen = thread::spawn(move || {
        let mut seen = Seen::default();
        seen.read_all(head.chain(reader));
        seen
    });
    // All of that gets out, and what comes afterwards too.
    wait_for_all(&output);
    tell(&mut output, 100);
    let counts = output.finish();
    let seen = seen.join().unwrap();
    seen.agrees(counts);
    assert!(seen.lost > 10_000 && seen.losses < 20, "{seen:?}");
}

/// Chains what was read already.
trait Chain {
    fn chain(self, rest: PipeReader) -> impl io::Read;
}

impl Chain for Vec<u8> {
    fn chain(self, rest: PipeReader) -> impl io::Read {
        io::Read::chain(io::Cursor::new(self), rest)
    }
}

#[test]
fn a_name_that_takes_long_keeps_nobody_but_the_names_waiting() {
    let (reader, writer) = pipe().unwrap();
    let (go, wait) = channel::<()>();
    let (stuck, is_stuck) = channel();
    let name = move |number| {
        let _ = stuck.send(());
        // Answers only once; from then on the other end is gone.
        let _ = wait.recv();
        event(number)
    };
    let mut output = output(writer, name, without_flood());
    tell(&mut output, 1);
    is_stuck.recv_timeout(PATIENCE).unwrap();
    tell(&mut output, 5_000);
    let counts = output.counts();
    assert_eq!(
        (counts.told, counts.written, counts.lost),
        (5_001, 0, 5_000 - 1_024)
    );
    let seen = read_all(reader);
    drop(go);
    let counts = output.finish();
    let seen = seen.join().unwrap();
    // More if the names then come faster than they are written.
    assert!(counts.lost >= 5_000 - 1_024);
    seen.agrees(counts);
}

#[test]
fn a_loss_is_told_when_nothing_comes_after_it() {
    let (reader, writer) = pipe().unwrap();
    let mut output = output(writer, event, without_flood());
    tell_until(&mut output, "losses", |counts| counts.lost > 0);
    let told = output.told;
    let mut lines = BufReader::new(reader).lines();
    let mut seen = Seen::default();
    while seen.sequence < told {
        seen.read(&lines.next().unwrap().unwrap());
    }
    assert!(seen.lost > 0);
    seen.agrees(wait_for_all(&output));
}

#[test]
fn a_flood_is_cut_and_told_of() {
    let (reader, writer) = pipe().unwrap();
    let bounds = Bounds {
        flood: Some(Flood::default()),
        ..without_flood()
    };
    let mut output = output(writer, event, bounds);
    let mut lines = BufReader::new(reader).lines();
    let mut seen = Seen::default();
    let start = Instant::now();
    // Each is read before the next one is told: nothing finds a line full.
    while output.counts().lost == 0 {
        tell(&mut output, 1);
        if output.counts().lost == 0 {
            seen.read(&lines.next().unwrap().unwrap());
        }
        assert!(start.elapsed() < PATIENCE, "waited in vain for a loss");
    }
    assert!(seen.events >= 1_000);
    seen.read(&lines.next().unwrap().unwrap());
    assert_eq!(seen.lost, 1);
    seen.agrees(wait_for_all(&output));
}

#[test]
fn a_reader_that_goes_away_is_noticed_without_an_event() {
    let (reader, writer) = pipe().unwrap();
    let mut output = output(writer, event, without_flood());
    drop(reader);
    wait_for_close(&output).expect("it is no trouble");
    tell(&mut output, 3);
    let counts = output.finish();
    assert_eq!((counts.told, counts.written, counts.lost), (3, 0, 3));
}

#[test]
fn a_reader_that_goes_away_is_noticed_by_the_writer() {
    let (reader, writer) = pipe().unwrap();
    let mut output = Output::start(writer, None, line, |n| Some(event(n)), without_flood());
    tell_until(&mut output, "a full pipe", |counts| counts.lost > 0);
    drop(reader);
    wait_for_close(&output).expect("it is no trouble");
    let before = wait_for_all(&output);
    tell(&mut output, 3);
    let counts = output.finish();
    assert_eq!(counts.written, before.written);
    assert_eq!(counts.told, before.told + 3);
    assert_eq!(counts.lost, before.lost + 3);
}

#[test]
fn what_cannot_be_written_is_an_error() {
    let full = File::options().write(true).open("/dev/full").unwrap();
    let reader = Reader::of(full.as_fd());
    let mut output = Output::start(full, reader, line, |n| Some(event(n)), without_flood());
    tell(&mut output, 3);
    let error = wait_for_close(&output).unwrap_err().to_string();
    assert!(error.contains("write events: No space left"), "{error}");
    let counts = output.finish();
    assert_eq!((counts.told, counts.written, counts.lost), (3, 0, 3));
}

#[test]
fn a_panic_in_a_thread_is_an_error_and_not_silence() {
    let (reader, writer) = pipe().unwrap();
    let name = |number| {
        if number == 3 {
            // Without a message on the terminal.
            std::panic::resume_unwind(Box::new("of a test"));
        }
        event(number)
    };
    let mut output = output(writer, name, without_flood());
    let seen = read_all(reader);
    tell(&mut output, 5);
    let error = wait_for_close(&output).unwrap_err().to_string();
    assert!(error.contains("panicked"), "{error}");
    let counts = output.finish();
    assert_eq!((counts.told, counts.written, counts.lost), (5, 2, 3));
    assert_eq!(seen.join().unwrap().events, 2);
}

#[test]
fn the_end_does_not_wait_long_for_a_reader_that_stalls() {
    let (reader, writer) = pipe().unwrap();
    let last_events = Bounds::default().last_events;
    let bounds = Bounds {
        last_events,
        ..without_flood()
    };
    let mut output = output(writer, event, bounds);
    tell_until(&mut output, "losses", |counts| counts.lost > 0);
    let start = Instant::now();
    let counts = output.finish();
    let waited = start.elapsed();
    assert!(
        waited >= last_events && waited < 5 * last_events,
        "{waited:?}"
    );
    assert_eq!(counts.written + counts.lost, counts.told);
    let complaint = counts.complaint().unwrap();
    let begin = format!("{} of {} events were lost", counts.lost, counts.told);
    assert!(complaint.starts_with(&begin), "{complaint}");
    // The one in the writer's hand still gets out if somebody takes it.
    let seen = read_all(reader).join().unwrap();
    assert_eq!(seen.events, counts.written + 1);
}

#[test]
fn the_end_does_not_wait_long_for_a_name() {
    let (_reader, writer) = pipe().unwrap();
    let (_never, wait) = channel::<()>();
    let bounds = Bounds {
        last_events: Duration::from_millis(10),
        ..without_flood()
    };
    let name = move |number| {
        let _ = wait.recv();
        event(number)
    };
    let mut output = output(writer, name, bounds);
    tell(&mut output, 3);
    let counts = output.finish();
    assert_eq!((counts.told, counts.written, counts.lost), (3, 0, 3));
}

#[test]
fn an_output_that_is_dropped_still_writes_what_there_is() {
    let (reader, writer) = pipe().unwrap();
    let mut output = output(writer, event, without_flood());
    tell(&mut output, 50);
    drop(output);
    assert_eq!(read_all(reader).join().unwrap().events, 50);
}

#[test]
fn an_event_is_written_in_its_format() {
    let (reader, writer) = pipe().unwrap();
    let mut output = Output::watched(writer, Format::Text, Host::default(), |n| Some(event(n)));
    output.tell(1, 1);
    output.finish();
    let text = io::read_to_string(reader).unwrap();
    assert!(text.ends_with("\n") && text.lines().count() == 1, "{text}");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    /// `Some(n)`: the next n are told; `None`: the reader reads as much as a
    /// pipe holds, at its own pace.
    #[test]
    fn whatever_the_paces_it_adds_up(
        backlog in 1usize..40,
        steps in prop::collection::vec(prop::option::of(1u64..200), 1..40),
        names_yield in any::<bool>(),
    ) {
        let (mut reader, writer) = pipe().unwrap();
        let bounds = Bounds { backlog, settling: Duration::from_micros(50), ..without_flood() };
        let name = move |number| {
            if names_yield {
                thread::yield_now();
            }
            event(number)
        };
        let mut output = output(writer, name, bounds);
        let (go, may_read) = channel::<()>();
        let seen = thread::spawn(move || {
            let mut head = Vec::new();
            while may_read.recv().is_ok() {
                let mut some = vec![0; PIPE];
                let read = reader.read(&mut some).unwrap();
                head.extend_from_slice(&some[..read]);
            }
            let mut seen = Seen::default();
            seen.read_all(head.chain(reader));
            seen
        });
        for step in steps {
            match step {
                Some(count) => tell(&mut output, count),
                None => go.send(()).unwrap(),
            }
            let Counts { told, written, lost } = output.counts();
            prop_assert!(written + lost <= told);
        }
        drop(go);
        let counts = output.finish();
        seen.join().unwrap().agrees(counts);
    }
}
