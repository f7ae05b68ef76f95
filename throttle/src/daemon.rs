//! All of it running: the programs on their devices, the queue, the events.

use std::{
    collections::{HashMap, HashSet},
    hash::{DefaultHasher, Hash as _, Hasher as _},
    time::Duration,
};

use aya::maps::{MapData, RingBuf};
use aya_log::EbpfLogger;
use futures_util::{StreamExt as _, stream::BoxStream};
use log::{debug, error, info, warn};
use nix::libc;
use throttle_common::{
    NANOS_PER_MILLI,
    policy::Daemon as Heartbeat,
    record::{Deferred, RecordKind, Room, Tallies},
    subject::{Subject, SubjectKind},
};
use tokio::{
    io::{Interest, unix::AsyncFd},
    signal::unix::{Signal, SignalKind, signal},
    time::{Instant, MissedTickBehavior, interval, sleep_until},
};

use uuid::Uuid;

use crate::{
    Error, Result, Settings,
    attach::{Attachment, Hook},
    clock,
    episodes::{Point, Report},
    event,
    interface::{self, Interface},
    maps::{self, Maps},
    name::Name,
    object::{Object, Sizes},
    output::Output,
    queue::{Live, Queue, Waiting},
    resend::PacketSocket,
    teller::Draft,
    watch::Watch,
};

/// How often the daemon says that it is alive.
const HEARTBEAT: Duration = Duration::from_millis(200);
/// For how long it counts as alive after that: long enough for a busy machine,
/// short enough that nobody waits long for its own retransmission to count.
const ALIVE_NS: u64 = 1_000 * NANOS_PER_MILLI;
/// Of so many scopes the end is logged one by one.
const SCOPES_LOGGED: usize = 32;
/// How often it looks at the episodes that go on.
const LOOK: Duration = Duration::from_secs(1);
/// How often it looks for what could not be handled.
const CHECK: Duration = Duration::from_secs(5);
/// Records that are read in one go before the queue is served.
const RECORDS_AT_ONCE: usize = 512;

/// The throttle on its interfaces.
///
/// When it is dropped the programs are detached; [`stop`](Self::stop) also
/// removes a clsact qdisc that was added for them.
pub struct Throttle {
    object: Object,
    maps: Maps,
    events: AsyncFd<RingBuf<MapData>>,
    logger: Option<AsyncFd<EbpfLogger<&'static dyn log::Log>>>,
    attachments: Vec<Attachment>,
    names: HashMap<u32, String>,
    settings: Settings,
    keeper: Keeper,
    watch: Watch,
    /// Episodes whose beginning was lost in a flood.
    untold: HashSet<Uuid>,
    signals: Signals,
    vanishing: BoxStream<'static, u32>,
}

/// The signals that ask it to end.
#[derive(Debug)]
struct Signals {
    interrupt: Signal,
    terminate: Signal,
    /// None if whoever started it wants it to outlive the terminal (`nohup`).
    hangup: Option<Signal>,
}

impl Signals {
    fn listen() -> Result<Self> {
        let on =
            |kind: SignalKind| signal(kind).map_err(|e| Error::failed("listen for signals", e));
        Ok(Self {
            interrupt: on(SignalKind::interrupt())?,
            terminate: on(SignalKind::terminate())?,
            hangup: if ignores_hangup() {
                None
            } else {
                Some(on(SignalKind::hangup())?)
            },
        })
    }

    /// Waits until one of them comes, or has come.
    async fn any(&mut self) {
        let Self {
            interrupt,
            terminate,
            hangup,
        } = self;
        let hangup = async {
            match hangup {
                Some(signal) => signal.recv().await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            _ = interrupt.recv() => {}
            _ = terminate.recv() => {}
            _ = hangup => {}
        }
    }
}

/// Whether SIGHUP is ignored, which a process inherits.
fn ignores_hangup() -> bool {
    // SAFETY: sigaction is made of numbers; all zero is a value of it.
    let mut now: libc::sigaction = unsafe { std::mem::zeroed() };
    // SAFETY: a valid pointer to write to; without a new action nothing changes.
    let result = unsafe { libc::sigaction(libc::SIGHUP, std::ptr::null(), &raw mut now) };
    result == 0 && now.sa_sigaction == libc::SIG_IGN
}

/// The part of the throttle that keeps the queue.
#[derive(Debug)]
pub struct Keeper {
    socket: PacketSocket,
    queue: Queue,
    heartbeat: Heartbeat,
    refused: u64,
    /// Whether it has left the queue to the senders.
    gave_up: bool,
}

impl Keeper {
    /// A keeper with a generation and a packet socket of its own.
    ///
    /// # Errors
    ///
    /// When the caller may not open a packet socket.
    pub fn new() -> Result<Self> {
        let socket = PacketSocket::open()?;
        let heartbeat = Heartbeat {
            generation: clock::monotonic_ns().max(1),
            cookie: socket.cookie(),
            alive_until_ns: 0,
        };
        Ok(Self {
            socket,
            queue: Queue::default(),
            heartbeat,
            refused: 0,
            gave_up: false,
        })
    }
}

impl Throttle {
    /// Loads the programs, puts the settings in force, and attaches to
    /// `interfaces`.
    ///
    /// # Errors
    ///
    /// When the caller may not, the kernel lacks something, or an interface is
    /// gone. Nothing stays attached then.
    pub async fn start(interfaces: &[Interface], settings: Settings, hook: Hook) -> Result<Self> {
        settings.check()?;
        // Before anything is attached: from then on a signal must not end it
        // without detaching, and no interface vanish unnoticed.
        let (signals, vanishing) = (Signals::listen()?, interface::vanishing()?);
        let policy = settings.policy();
        let cpus = aya::util::nr_cpus().map_err(|(_, error)| Error::failed("count CPUs", error))?;
        let sizes = Sizes::new(&policy, cpus);
        debug!("maps take {} KiB: {sizes:?}", sizes.bytes(cpus) / 1024);
        let mut object = Object::load(&sizes)?;
        let mut maps = Maps::take(&mut object.ebpf)?;
        maps.set_policy(&policy)?;
        maps.set_exempt(&settings.exempt)?;
        let ring: RingBuf<MapData> = maps::take(&mut object.ebpf, "EVENTS")?;
        // SAFETY: the ring buffer keeps one descriptor, its map's, open until it
        // is dropped.
        let events = unsafe { AsyncFd::register_with_interest(ring, Interest::READABLE) }
            .map_err(|error| Error::failed("wait for the ring buffer", error.to_string()))?;
        // SAFETY: as above; the logger is a ring buffer too.
        let logger = EbpfLogger::init(&mut object.ebpf)
            .ok()
            .and_then(|logger| unsafe {
                AsyncFd::register_with_interest(logger, Interest::READABLE).ok()
            });
        object.watch_sockets();
        let mut throttle = Self {
            object,
            maps,
            events,
            logger,
            attachments: Vec::new(),
            names: HashMap::new(),
            settings,
            keeper: Keeper::new()?,
            watch: Watch::default(),
            untold: HashSet::new(),
            signals,
            vanishing,
        };
        // Before the first SYN can be deferred.
        throttle.beat()?;
        for interface in interfaces {
            if let Err(error) = throttle.attach(interface, hook).await {
                throttle.detach().await;
                return Err(error);
            }
        }
        give_back_memory();
        Ok(throttle)
    }

    async fn attach(&mut self, interface: &Interface, hook: Hook) -> Result<()> {
        let direction = self.settings.direction;
        let attachment = Attachment::new(&mut self.object, interface, direction, hook).await?;
        self.names.insert(interface.index, interface.name.clone());
        self.attachments.push(attachment);
        Ok(())
    }

    async fn detach(&mut self) {
        for attachment in self.attachments.drain(..) {
            attachment.detach().await;
        }
    }

    /// The maps.
    #[must_use]
    pub const fn maps(&self) -> &Maps {
        &self.maps
    }

    /// What is attached, for people: `eth0 by TCX`.
    #[must_use]
    pub fn attached(&self) -> String {
        let each: Vec<_> = self
            .attachments
            .iter()
            .map(|a| format!("{} by {}", a.interface.name, a.hook))
            .collect();
        each.join(", ")
    }

    /// Keeps the queue and tells of events, until told to end, the reader of the
    /// events goes away, or the last interface vanishes.
    ///
    /// # Errors
    ///
    /// When the last interface vanished, or the kernel side cannot be reached.
    pub async fn run(&mut self, output: &mut Output<Draft>) -> Result<()> {
        let [mut heartbeat, mut look, mut check] = [HEARTBEAT, LOOK, CHECK].map(|every| {
            let mut interval = interval(every);
            interval.set_missed_tick_behavior(MissedTickBehavior::Delay);
            interval
        });
        info!("attached to {}", self.attached());
        let (mut unhandled, mut are_more) = (0, false);
        loop {
            let wake = self.wake_ns();
            tokio::select! {
                // The queue first: what is due is not kept waiting by what comes in.
                biased;
                () = self.signals.any() => return Ok(()),
                result = output.closed() => {
                    debug!("no more events get out");
                    return result;
                }
                _ = heartbeat.tick() => self.beat()?,
                () = sleep_until(instant(wake)), if wake.is_some() => {}
                ready = self.events.readable_mut() => {
                    let mut guard = ready.map_err(|e| Error::failed("wait for the ring buffer", e))?;
                    let (keeper, watch) = (&mut self.keeper, &mut self.watch);
                    are_more = !drain(guard.get_inner_mut(), keeper, watch, &self.maps, output);
                    if !are_more {
                        guard.clear_ready();
                    }
                }
                () = flush(&mut self.logger) => {}
                _ = look.tick() => {
                    let reports = self.watch.look(&self.maps);
                    self.tell(reports, output);
                }
                _ = check.tick() => unhandled = self.report_unhandled(unhandled),
                Some(index) = self.vanishing.next() => self.let_go(index)?,
            }
            self.serve();
            let reports = self.watch.begin(&self.maps, are_more);
            self.tell(reports, output);
        }
    }

    /// Hands reports on, to be named and written. Of an episode whose beginning was
    /// lost in a flood, the rest is lost too.
    fn tell(&mut self, reports: Vec<Report>, output: &mut Output<Draft>) {
        for report in reports {
            let (id, point, scope) = (report.id, report.point, report.reached.scope);
            let interface = self.names.get(&report.reached.ifindex).cloned();
            let group = group_of(&report);
            let draft = Draft::Report(Box::new(report), interface);
            match point {
                Point::Reached => {
                    // Of others there is no end to be told.
                    if !output.tell(draft, group) && self.watch.follows(&scope) {
                        self.untold.insert(id);
                    }
                }
                Point::Ongoing if self.untold.contains(&id) => output.lose(),
                Point::Cleared(_) if self.untold.remove(&id) => output.lose(),
                Point::Ongoing | Point::Cleared(_) => output.tell_on(draft),
            }
        }
    }

    /// Puts other settings in force, live. The direction stays what it was: it
    /// is a matter of where the programs are.
    ///
    /// # Errors
    ///
    /// When the settings do not go together, or the kernel does not take them;
    /// nothing has changed then.
    pub fn change(&mut self, settings: Settings) -> Result<()> {
        settings.check()?;
        self.maps.set_exempt(&settings.exempt)?;
        self.maps.set_policy(&settings.policy())?;
        self.settings = Settings {
            direction: self.settings.direction,
            ..settings
        };
        Ok(())
    }

    /// Puts a new keeper in the place of the old one, as after a restart: it has
    /// an empty queue, and is handed the deferred attempts as their senders
    /// retransmit.
    ///
    /// # Errors
    ///
    /// When the caller may not open a packet socket.
    pub fn renew_keeper(&mut self) -> Result<()> {
        self.keeper = Keeper::new()?;
        self.beat()
    }

    /// Whether the daemon keeps the queue: not with a pacing that does without
    /// it, nor when its copies do not get through.
    fn keeps_queue(&mut self) -> bool {
        if self.settings.pacing.resends() && self.keeper.queue.is_stuck() && !self.keeper.gave_up {
            self.keeper.gave_up = true;
            warn!(
                "deferred SYNs that are re-sent do not reach the program on the device: something \
                 before it drops them. From now on they go out when their senders retransmit"
            );
        }
        self.settings.pacing.resends() && !self.keeper.gave_up
    }

    /// When the queue or the episodes want to be looked at again.
    fn wake_ns(&self) -> Option<u64> {
        let (queue, episodes) = (self.keeper.queue.next_look_ns(), self.watch.next_look_ns());
        queue.into_iter().chain(episodes).min()
    }

    fn serve(&mut self) {
        if !self.keeps_queue() {
            // Records that were on their way would keep it awake.
            self.keeper.queue = Queue::default();
            return;
        }
        let Keeper {
            socket,
            queue,
            refused,
            ..
        } = &mut self.keeper;
        let mut kernel = Live {
            maps: &self.maps,
            socket,
            refused,
        };
        queue.serve(&mut kernel);
    }

    /// Says that the keeper is alive; with a pacing that does without it, that it
    /// only reads along.
    fn beat(&mut self) -> Result<()> {
        self.keeper.heartbeat.alive_until_ns = if self.keeps_queue() {
            clock::monotonic_ns() + ALIVE_NS
        } else {
            0
        };
        self.maps.set_daemon(&self.keeper.heartbeat)
    }

    /// An interface has vanished, and its programs with it.
    fn let_go(&mut self, index: u32) -> Result<()> {
        let Some(at) = self
            .attachments
            .iter()
            .position(|a| a.interface.index == index)
        else {
            return Ok(());
        };
        let gone = self.attachments.swap_remove(at);
        let name = &gone.interface.name;
        if self.attachments.is_empty() {
            return Err(Error::Refused(format!(
                "interface {name} vanished: nothing is attached any more. Start throttle again when \
                 it is back"
            )));
        }
        warn!(
            "interface {name} vanished; still attached to {}",
            self.attached()
        );
        Ok(())
    }

    /// What could not be handled the usual way, on both sides.
    fn unhandled(&self) -> Vec<(&'static str, u64)> {
        let mut counts = self.maps.unhandled().to_vec();
        counts.push(("not_taken", self.keeper.refused));
        counts.extend(self.watch.unhandled());
        counts
    }

    fn report_unhandled(&self, before: u64) -> u64 {
        let counts = self.unhandled();
        let sum = counts.iter().map(|(_, count)| *count).sum();
        if sum > before {
            warn!("not handled so far: {}", list(counts));
        }
        sum
    }

    /// Detaches everything, tells of episodes that end with that, and logs what
    /// there was.
    pub async fn stop(mut self, output: &mut Output<Draft>) {
        self.detach().await;
        let reports = self.watch.stop(&self.maps);
        self.tell(reports, output);
        let (mut scopes, mut sum) = (0, Tallies::default());
        for (subject, _) in self.maps.scopes() {
            let Tallies(counts) = self.maps.tallies(&subject);
            for (sum, count) in sum.0.iter_mut().zip(counts) {
                *sum = sum.wrapping_add(count);
            }
            scopes += 1;
            if scopes <= SCOPES_LOGGED {
                let each = list(Tallies::NAMES.into_iter().zip(counts));
                info!("{}: {each}", self.name(&subject));
            }
        }
        if scopes > SCOPES_LOGGED {
            let each = list(Tallies::NAMES.into_iter().zip(sum.0));
            info!("all {scopes} scopes together: {each}");
        }
        let counts = self.unhandled();
        if counts.iter().any(|(_, count)| *count > 0) {
            info!("not handled: {}", list(counts));
        }
        info!("detached");
    }

    fn name(&self, subject: &Subject) -> String {
        let named = event::Scope::new(subject, name_in(&self.names, subject).map(Name::new));
        format!("{} {}", named.kind, named.name)
    }
}

/// Gives back what loading took: it reads the types of the whole kernel, and the
/// allocator would keep that for good.
fn give_back_memory() {
    #[cfg(target_env = "gnu")]
    // SAFETY: a function without conditions.
    unsafe {
        libc::malloc_trim(0);
    }
}

/// Whose flood a report would be part of: a cgroup's, else an owner's.
fn group_of(report: &Report) -> u64 {
    let mut hash = DefaultHasher::new();
    match report.reached.process {
        process if process.is_known() => process.cgroup.hash(&mut hash),
        _ => report.reached.owner.hash(&mut hash),
    }
    hash.finish()
}

fn list(counts: impl IntoIterator<Item = (&'static str, u64)>) -> String {
    let each: Vec<_> = counts
        .into_iter()
        .filter(|(_, count)| *count > 0)
        .map(|(name, count)| format!("{name} {count}"))
        .collect();
    if each.is_empty() {
        "nothing".into()
    } else {
        each.join(", ")
    }
}

fn name_in(names: &HashMap<u32, String>, subject: &Subject) -> Option<String> {
    if subject.kind != SubjectKind::Interface as u32 {
        return None;
    }
    names.get(&u32::try_from(subject.number()).ok()?).cloned()
}

/// A moment on the monotonic clock, in nanoseconds; now if there is none.
fn instant(at_ns: Option<u64>) -> Instant {
    let ahead_ns = at_ns.map_or(0, |at_ns| at_ns.saturating_sub(clock::monotonic_ns()));
    Instant::now() + Duration::from_nanos(ahead_ns)
}

/// Waits for log lines of the programs and passes them on; for ever if there
/// can be none.
async fn flush(logger: &mut Option<AsyncFd<EbpfLogger<&'static dyn log::Log>>>) {
    match logger {
        None => std::future::pending().await,
        Some(logger) => {
            if let Ok(mut guard) = logger.readable_mut().await {
                guard.get_inner_mut().flush();
                guard.clear_ready();
            }
        }
    }
}

/// Reads records. `true` if there are no more for now.
fn drain(
    ring: &mut RingBuf<MapData>,
    keeper: &mut Keeper,
    watch: &mut Watch,
    maps: &Maps,
    output: &mut Output<Draft>,
) -> bool {
    for _ in 0..RECORDS_AT_ONCE {
        let Some(item) = ring.next() else { return true };
        if take_in(&item, keeper, watch, maps, output).is_none() {
            error!(
                "a record of {} bytes makes no sense: it is left out",
                item.len()
            );
        }
    }
    false
}

/// Takes one record in. None if it makes no sense.
fn take_in(
    bytes: &[u8],
    keeper: &mut Keeper,
    watch: &mut Watch,
    maps: &Maps,
    output: &mut Output<Draft>,
) -> Option<()> {
    let kind: u32 = maps::record(bytes)?;
    match RecordKind::from_raw(kind)? {
        RecordKind::Deferred => {
            let record: Deferred = maps::record(bytes)?;
            let waiting = Waiting::new(&record)?;
            let kernel = Live {
                maps,
                socket: &mut keeper.socket,
                refused: &mut keeper.refused,
            };
            keeper
                .queue
                .push(&kernel, record.scope, record.owner, waiting);
            if let Some(process) = watch.deferred(&record) {
                output.hint(Draft::Learn(Box::new(process)));
            }
        }
        RecordKind::LimitReached => {
            if let Some(process) = watch.reached(maps::record(bytes)?) {
                output.hint(Draft::Learn(Box::new(process)));
            }
        }
        RecordKind::Room => {
            let record: Room = maps::record(bytes)?;
            keeper.queue.look(&record.scope);
        }
    }
    Some(())
}
