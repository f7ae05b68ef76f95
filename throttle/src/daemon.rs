//! All of it running: the programs on their devices, the queue, the events.

use std::{
    collections::{BTreeMap, HashMap, HashSet},
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
    policy::{Daemon as Heartbeat, Policy},
    record::{Deferred, RecordKind, Room, Tallies},
    scope::Scope as KernelScope,
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
    attach::{self, Attachment, Hook, Place},
    clock,
    config::Change,
    departures, detach,
    doctor::netlink,
    episodes::{Point, Report},
    error::errno_of,
    event,
    instance::{self, Exclusive, Instance, Registration},
    interface::{self, Interface, Wanted},
    maps::{self, Maps},
    name::Name,
    notify,
    object::{self, Home, Object, Sizes},
    output::Output,
    owners::Names,
    pins::{OwnBpffs, Pins},
    queue::{Live, Queue, Waiting},
    resend::PacketSocket,
    settings::{Direction, Pacing},
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
/// When it looks for episodes that an earlier daemon left, after it began: 1 s.
const RESUME_NS: u64 = 1_000 * NANOS_PER_MILLI;
/// Records that are read in one go before the queue is served.
const RECORDS_AT_ONCE: usize = 512;

/// Where settings come from, when they are asked for again.
pub trait Reload {
    /// Reads them: the settings, the interfaces, and what differs from `in_force`,
    /// which another command may have changed.
    ///
    /// # Errors
    ///
    /// When they make no sense, or cannot be changed live.
    fn read(&mut self, in_force: Settings) -> Result<(Settings, Wanted, Vec<Change>)>;

    /// What was read is in force now.
    fn accept(&mut self);
}

/// What is to be done: which throttle, where, how.
pub struct Plan {
    /// What it is called. Without a name nobody finds it.
    pub name: Option<String>,
    /// The interfaces.
    pub wanted: Wanted,
    /// What the operator chose.
    pub settings: Settings,
    /// By which hook the programs are attached.
    pub hook: Hook,
    /// Whether they stay when the daemon ends.
    pub keep: bool,
    /// Where to read the settings again at SIGHUP; without it, that ends it.
    pub reload: Option<Box<dyn Reload>>,
}

/// The throttle on its interfaces.
///
/// When it is dropped the programs are detached, unless they are to stay;
/// [`stop`](Self::stop) also removes a clsact qdisc that was added for them.
pub struct Throttle {
    /// Before the object: who looks it up must not find half of it.
    registration: Option<Registration>,
    wanted: Wanted,
    hook: Hook,
    name: Option<String>,
    place: Place,
    /// The file system of the pins, if it is the daemon's own.
    _own: Option<OwnBpffs>,
    sizes: Sizes,
    cpus: usize,
    object: Object,
    maps: Maps,
    events: AsyncFd<RingBuf<MapData>>,
    logger: Option<AsyncFd<EbpfLogger<&'static dyn log::Log>>>,
    attachments: Vec<Attachment>,
    names: HashMap<u32, String>,
    direction: Direction,
    pacing: Pacing,
    /// The settings as they were seen last.
    seen: Policy,
    /// Whether the kernel can have packets leave later.
    sets_departures: bool,
    /// Whether qdiscs or interfaces have changed since they were looked at.
    qdiscs_changed: bool,
    /// Whether it was said that the pacing asks for fq and there is none.
    said_no_fq: bool,
    keeper: Keeper,
    watch: Watch,
    /// Whether episodes of an earlier daemon are still to be looked for.
    may_resume: bool,
    /// Episodes whose beginning was lost in a flood.
    untold: HashSet<Uuid>,
    /// Interfaces that could not be attached to, which was said.
    failing: HashSet<u32>,
    signals: Signals,
    changes: BoxStream<'static, interface::Change>,
    reload: Option<Box<dyn Reload>>,
}

/// The signals that ask it to end.
#[derive(Debug)]
struct Signals {
    interrupt: Signal,
    terminate: Signal,
    /// None if whoever started it wants it to outlive the terminal (`nohup`).
    hangup: Option<Signal>,
}

/// What a signal asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Asked {
    /// To end.
    End,
    /// What a terminal sends that is closed, and what asks a daemon to read its
    /// settings again.
    HangUp,
}

impl Signals {
    fn listen(reloads: bool) -> Result<Self> {
        let on =
            |kind: SignalKind| signal(kind).map_err(|e| Error::failed("listen for signals", e));
        Ok(Self {
            interrupt: on(SignalKind::interrupt())?,
            terminate: on(SignalKind::terminate())?,
            hangup: if ignores_hangup() && !reloads {
                None
            } else {
                Some(on(SignalKind::hangup())?)
            },
        })
    }

    /// Waits until one of them comes, or has come.
    async fn any(&mut self) -> Asked {
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
            _ = interrupt.recv() => Asked::End,
            _ = terminate.recv() => Asked::End,
            _ = hangup => Asked::HangUp,
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
    /// Loads the programs, puts the settings in force, and attaches to the
    /// interfaces.
    ///
    /// If a daemon of the same name has left its kernel side behind, that is
    /// adopted: its counts and its queue go on, its programs are replaced where they
    /// are.
    ///
    /// # Errors
    ///
    /// When the caller may not, the kernel lacks something, an interface is gone, or
    /// another throttle has it. Nothing is attached then that was not before.
    pub async fn start(plan: Plan) -> Result<Self> {
        let Plan {
            name,
            wanted,
            settings,
            hook,
            keep,
            reload,
        } = plan;
        settings.check()?;
        // Before anything is attached: from then on a signal must not end it
        // without detaching, and no interface come or go unnoticed.
        let (signals, changes) = (Signals::listen(reload.is_some())?, interface::changes()?);
        let interfaces = wanted.find().await?;
        // Until it can be found by others.
        let _lock = match &name {
            Some(_) => lock(keep)?,
            None => None,
        };
        let registration = register(name.as_deref(), keep)?;
        let interfaces = without_taken(interfaces, &wanted, name.as_deref())?;
        refuse_strangers(&interfaces, name.as_deref()).await?;
        let policy = settings.policy();
        let cpus = aya::util::nr_cpus().map_err(|(_, error)| Error::failed("count CPUs", error))?;
        let wanted_sizes = Sizes::new(&policy, cpus);
        let left = Left::find(name.as_deref(), keep, &wanted_sizes, &policy, cpus)?;
        let (sizes, adopts) = match &left.state {
            State::Usable(sizes) => (*sizes, true),
            State::Nothing | State::Useless(_) => (wanted_sizes, false),
        };
        debug!("maps take {} KiB: {sizes:?}", sizes.bytes(cpus) / 1024);
        let (pins, own) = match (&left.pins, &registration) {
            (Some(pins), _) => (Some(pins.clone()), None),
            (None, Some(_)) => own_pins(),
            (None, None) => (None, None),
        };
        let home = match &pins {
            None => Home::Nowhere,
            Some(pins) => {
                pins.prepare()?;
                if adopts {
                    Home::Adopted(pins)
                } else {
                    Home::New(pins)
                }
            }
        };
        // If nothing was there, nothing is left by a start that fails.
        let mut fresh = Fresh(match left.state {
            State::Nothing => left.pins.clone(),
            State::Usable(_) | State::Useless(_) => None,
        });
        let mut object = Object::load(&sizes, home)?;
        let mut maps = Maps::take(&mut object.ebpf)?;
        if adopts {
            let before = Settings::in_force(&maps.policy()?, maps.exempt(), settings.direction);
            if before != settings {
                info!("settings that were in force until now: {before}");
            }
        } else {
            maps.set_exempt(&settings.exempt)?;
            maps.set_policy(&policy)?;
        }
        let seen = maps.policy()?;
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
        object.watch_sockets(pins.as_ref());
        let mut throttle = Self {
            registration,
            wanted,
            hook,
            name,
            // Until all is well, what was left stays.
            place: Place {
                pins,
                keep: left.pins.is_some(),
            },
            _own: own,
            sizes,
            cpus,
            object,
            maps,
            events,
            logger,
            attachments: Vec::new(),
            names: HashMap::new(),
            direction: settings.direction,
            pacing: settings.pacing,
            seen,
            sets_departures: object::sets_departures(),
            qdiscs_changed: false,
            said_no_fq: false,
            keeper: Keeper::new()?,
            watch: Watch::default(),
            may_resume: adopts,
            untold: HashSet::new(),
            failing: HashSet::new(),
            signals,
            changes,
            reload,
        };
        // Before the first SYN can be deferred.
        throttle.beat()?;
        throttle.look_at_qdiscs(interfaces.iter().map(|interface| interface.index).collect());
        let started = match throttle.attach_all(interfaces, &left).await {
            // What was left keeps its settings until all is well.
            Ok(()) if adopts => throttle.change(&settings),
            other => other,
        };
        let started = match started {
            Ok(()) => throttle.settle(&left, keep).await,
            Err(error) => Err(error),
        };
        if let Err(error) = started {
            throttle.give_up_start(&left).await;
            return Err(error);
        }
        fresh.0 = None;
        give_back_memory();
        Ok(throttle)
    }

    /// Attaches to all of them: first where an earlier daemon's programs are.
    async fn attach_all(&mut self, interfaces: Vec<Interface>, left: &Left) -> Result<()> {
        let before: HashSet<u32> = match (&left.state, &self.place.pins) {
            (State::Usable(_) | State::Useless(_), Some(pins)) => {
                pins.devices().into_iter().map(|(index, _)| index).collect()
            }
            _ => HashSet::new(),
        };
        let (old, new): (Vec<_>, Vec<_>) = interfaces
            .into_iter()
            .partition(|interface| before.contains(&interface.index));
        for interface in old.into_iter().chain(new) {
            match self.attach(&interface).await {
                Ok(()) => {}
                // One that fits a pattern comes and goes as it likes.
                Err(error) if is_gone(&error) && !self.wanted.names().contains(&interface.name) => {
                    debug!("{error}");
                    continue;
                }
                Err(error) => return Err(error),
            }
            if self.place.pins.is_none() {
                // Its own could not be told from those.
                continue;
            }
            // Only now: what is removed may have held the rate until then.
            match detach::remove_orphans_but(&interface, self.place.pins.as_ref()).await {
                Ok(0) => {}
                Err(error @ Error::Refused(_)) => return Err(error),
                Ok(count) => info!(
                    "removed {count} filters from {} that a throttle had left which was killed",
                    Name::new(&interface.name)
                ),
                Err(error) => debug!("{error}"),
            }
        }
        Ok(())
    }

    /// A start failed: what it attached anew is detached, what was there stays, in
    /// one piece.
    async fn give_up_start(&mut self, left: &Left) {
        let mut took_over = HashSet::new();
        for attachment in self.attachments.drain(..) {
            if attachment.took_over {
                took_over.insert(attachment.interface.index);
            } else {
                attachment.detach().await;
            }
        }
        let Some(pins) = left
            .pins
            .as_ref()
            .filter(|_| !matches!(left.state, State::Nothing))
        else {
            return;
        };
        let is_replaced = |(index, _): (u32, _)| took_over.contains(&index);
        let result = if took_over.is_empty() {
            pins.give_up_new()
        } else if pins.devices().into_iter().all(is_replaced) {
            pins.settle(!matches!(left.state, State::Usable(_)))
        } else {
            // Old programs and new ones are in use: both stay where they are found.
            Ok(())
        };
        if let Err(error) = result {
            warn!("{error}");
        }
    }

    /// All interfaces are attached to: what was left there by an earlier daemon and
    /// is not wanted any more goes, what is new gets its place.
    async fn settle(&mut self, left: &Left, keep: bool) -> Result<()> {
        if let Some(pins) = self.place.pins.clone() {
            self.let_others_go(&pins).await?;
            pins.settle(!matches!(left.state, State::Usable(_)))?;
            self.object.settled(&pins);
            if !keep && left.pins.is_some() {
                self.move_in(&pins)?;
            }
        }
        self.place.keep = keep;
        for attachment in &mut self.attachments {
            attachment.keep(keep);
        }
        match &left.state {
            State::Nothing => {}
            State::Usable(_) => info!("adopted from the daemon before: {}", self.adopted()),
            State::Useless(why) => warn!(
                "the kernel side that an earlier daemon left is replaced, and its counts and its \
                 queue are lost: {why}"
            ),
        }
        self.say()
    }

    /// Detaches from interfaces that an earlier daemon had and this one has not.
    async fn let_others_go(&self, pins: &Pins) -> Result<()> {
        let own = |index: u32| self.attachments.iter().any(|a| a.interface.index == index);
        let others: HashSet<u32> = pins.devices().into_iter().map(|(index, _)| index).collect();
        let mut there = None;
        for index in others.into_iter().filter(|index| !own(*index)) {
            if there.is_none() {
                there = Some(interface::all().await?);
            }
            let found = there
                .iter()
                .flatten()
                .find(|interface| interface.index == index);
            if let Some(interface) = found {
                info!(
                    "detached from {}, which is not wanted any more",
                    interface.name
                );
            }
            attach::let_go(pins, index, found).await?;
        }
        Ok(())
    }

    /// What was left behind does not outlive this daemon: its pins move to where
    /// they end with it.
    fn move_in(&mut self, from: &Pins) -> Result<()> {
        let (pins, own) = own_pins();
        match &pins {
            None => {}
            Some(pins) => {
                pins.prepare()?;
                pins.copy(from)?;
                self.object.settled(pins);
            }
        }
        for attachment in &mut self.attachments {
            attachment.moved(from, pins.as_ref());
        }
        from.remove()?;
        (self.place.pins, self._own) = (pins, own);
        Ok(())
    }

    /// Says where it is to be found.
    fn say(&mut self) -> Result<()> {
        let keep = self.place.keep;
        let pins = self
            .place
            .pins
            .as_ref()
            .map(|pins| pins.folder().to_owned());
        let Some(registration) = &mut self.registration else {
            return Ok(());
        };
        registration.say(&instance::Daemon {
            pid: std::process::id(),
            version: env!("CARGO_PKG_VERSION").into(),
            started_ns: clock::calendar_ns(clock::monotonic_ns()),
            keep,
            pins,
        })
    }

    /// What is counted and what waits, for people.
    fn adopted(&self) -> String {
        let now_ns = clock::monotonic_ns();
        let (mut scopes, mut half_open, mut queued) = (0u64, 0, 0);
        if let Ok(policy) = self.maps.policy() {
            for (_, scope) in self.maps.scopes() {
                scopes += 1;
                half_open += scope
                    .half_open
                    .live(KernelScope::half_open_window(&policy), now_ns);
                queued += scope
                    .queued
                    .live(KernelScope::queue_window(&policy), now_ns);
            }
        }
        format!("{half_open} half-open and {queued} deferred attempts in {scopes} scopes")
    }

    async fn attach(&mut self, interface: &Interface) -> Result<()> {
        let (direction, hook) = (self.direction, self.hook);
        let attachment =
            Attachment::new(&mut self.object, interface, direction, hook, &self.place).await?;
        self.names.insert(interface.index, interface.name.clone());
        self.attachments.push(attachment);
        self.qdiscs_changed = true;
        Ok(())
    }

    /// Tells the programs which of these interfaces let packets go later, and
    /// says so where it matters to the operator.
    fn look_at_qdiscs(&mut self, interfaces: HashSet<u32>) {
        self.qdiscs_changed = false;
        let found = if self.sets_departures && self.direction == Direction::Egress {
            netlink::qdiscs().map(|qdiscs| departures::of(&qdiscs))
        } else {
            Ok(BTreeMap::new())
        };
        // With what is not known nothing leaves too early.
        let mut found = found.unwrap_or_else(|error| {
            warn!("which interfaces have fq is not known: list the qdiscs: {error}");
            BTreeMap::new()
        });
        found.retain(|index, _| interfaces.contains(index));
        if let Err(error) = self.maps.set_departures(&found) {
            warn!("{error}");
        }
        let lacks_fq = self.pacing == Pacing::Fq && found.is_empty();
        if lacks_fq && !self.said_no_fq {
            let why = if !self.sets_departures {
                "this kernel cannot set departure times (Linux 5.18 or later can)"
            } else if self.direction != Direction::Egress {
                "what comes in does not pass a qdisc; use --pacing auto"
            } else {
                "no interface has an fq qdisc at its root: tc qdisc replace dev IFACE root fq"
            };
            warn!(
                "with --pacing fq, deferred attempts go out at their senders' retransmissions for \
                 now: {why}"
            );
        }
        self.said_no_fq = lacks_fq;
    }

    /// The same, if anything has changed.
    fn follow_qdiscs(&mut self) {
        if self.qdiscs_changed {
            let attached = self.attachments.iter().map(|a| a.interface.index).collect();
            self.look_at_qdiscs(attached);
        }
    }

    async fn detach(&mut self) {
        for attachment in self.attachments.drain(..) {
            attachment.detach().await;
        }
    }

    /// An interface is there, new or changed.
    async fn there(&mut self, interface: Interface) {
        let known = self
            .attachments
            .iter_mut()
            .find(|a| a.interface.index == interface.index);
        if let Some(attachment) = known {
            let before = std::mem::replace(&mut attachment.interface.name, interface.name);
            let now = &attachment.interface.name;
            if before != *now {
                info!(
                    "interface {} is called {} now; it stays attached",
                    Name::new(&before),
                    Name::new(now)
                );
                self.names.insert(interface.index, now.clone());
            }
            return;
        }
        if !self.wanted.includes(&interface.name) {
            return;
        }
        let is_free = without_taken(vec![interface.clone()], &self.wanted, self.name.as_deref());
        let result = match is_free {
            Ok(free) if free.is_empty() => return,
            Ok(_) => self.attach(&interface).await,
            Err(error) => Err(error),
        };
        match result {
            Ok(()) => {
                self.failing.remove(&interface.index);
                info!(
                    "interface {} has appeared: attached to it",
                    Name::new(&interface.name)
                );
            }
            // It may have gone again.
            Err(error) if is_gone(&error) => debug!("{error}"),
            Err(error) => {
                if self.failing.insert(interface.index) {
                    warn!(
                        "interface {} has appeared: {error}",
                        Name::new(&interface.name)
                    );
                }
            }
        }
    }

    /// Reads the settings again and puts them in force: all of them or none.
    async fn reload(&mut self) {
        notify::reloading();
        let result = self.read_again().await;
        let is_taken = result.is_ok();
        match result {
            Ok(changes) if changes.is_empty() => info!("read the configuration again: no change"),
            Ok(changes) => {
                for change in changes {
                    info!("in force: {change}");
                }
            }
            Err(error) => {
                error!("the configuration is not read again, and nothing changes: {error}")
            }
        }
        notify::ready(&if is_taken {
            self.at_work()
        } else {
            format!("configuration refused, see the log; {}", self.at_work())
        });
    }

    async fn read_again(&mut self) -> Result<Vec<Change>> {
        let Some(mut reload) = self.reload.take() else {
            return Ok(Vec::new());
        };
        let result = self.put_in_force(reload.as_mut()).await;
        if result.is_ok() {
            reload.accept();
        }
        self.reload = Some(reload);
        result
    }

    async fn put_in_force(&mut self, reload: &mut dyn Reload) -> Result<Vec<Change>> {
        let (settings, wanted, changes) = reload.read(self.in_force()?)?;
        // One that is newly wanted by name has to be there.
        let found = wanted.find_but(self.wanted.names()).await?;
        let interfaces = without_taken(found, &wanted, self.name.as_deref())?;
        self.change(&settings)?;
        self.wanted = wanted;
        let unwanted = |a: &Attachment| !interfaces.iter().any(|of| of.index == a.interface.index);
        while let Some(at) = self.attachments.iter().position(unwanted) {
            let attachment = self.attachments.swap_remove(at);
            info!(
                "detached from {}, which is not wanted any more",
                Name::new(&attachment.interface.name)
            );
            attachment.detach().await;
        }
        for interface in interfaces {
            self.there(interface).await;
        }
        Ok(changes)
    }

    /// What it does, for a service manager.
    #[must_use]
    pub fn at_work(&self) -> String {
        format!("attached to {}", self.attached())
    }

    /// Something was missed: compares with what there is.
    async fn look_around(&mut self) -> Result<()> {
        let there = interface::all().await?;
        let gone: Vec<u32> = self
            .attachments
            .iter()
            .filter(|a| !a.is_alive() || !there.iter().any(|of| of.index == a.interface.index))
            .map(|a| a.interface.index)
            .collect();
        for index in gone {
            self.let_go(index)?;
        }
        for interface in there {
            self.there(interface).await;
        }
        Ok(())
    }

    /// The maps.
    #[must_use]
    pub const fn maps(&self) -> &Maps {
        &self.maps
    }

    /// What is attached, for people: `eth0 by TCX`.
    #[must_use]
    pub fn attached(&self) -> String {
        /// Of more, only the number is said.
        const NAMED: usize = 8;
        if self.attachments.is_empty() {
            return "nothing".into();
        }
        if self.attachments.len() > NAMED {
            return format!("{} interfaces", self.attachments.len());
        }
        let each: Vec<_> = self
            .attachments
            .iter()
            .map(|a| format!("{} by {}", Name::new(&a.interface.name), a.hook))
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
        info!("attached to {}: {}", self.attached(), self.in_force()?);
        let (mut unhandled, mut are_more) = (0, false);
        loop {
            let wake = self.wake_ns();
            tokio::select! {
                // The queue first: what is due is not kept waiting by what comes in.
                biased;
                asked = self.signals.any() => {
                    if asked == Asked::End || self.reload.is_none() {
                        info!("asked to end");
                        return Ok(());
                    }
                    self.reload().await;
                }
                result = output.closed() => {
                    debug!("no more events get out");
                    return result;
                }
                _ = heartbeat.tick() => {
                    self.beat()?;
                    self.follow_qdiscs();
                }
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
                    self.resume(output);
                }
                _ = check.tick() => {
                    unhandled = self.report_unhandled(unhandled);
                    if self.attachments.iter().any(|a| !a.is_alive()) {
                        self.look_around().await?;
                    }
                    // Not all changes are told: more queues of an mq are not.
                    self.qdiscs_changed = true;
                }
                Some(change) = self.changes.next() => self.changed(change).await?,
            }
            self.serve();
            let reports = self.watch.begin(&self.maps, are_more);
            self.tell(reports, output);
        }
    }

    async fn changed(&mut self, change: interface::Change) -> Result<()> {
        use interface::Change;
        match change {
            Change::There(interface) => {
                self.there(interface).await;
                Ok(())
            }
            Change::Unreadable(name) => {
                if self.wanted.includes(&name) {
                    debug!(
                        "interface {}: its frames start with neither Ethernet nor IP",
                        Name::new(&name)
                    );
                }
                Ok(())
            }
            Change::Gone(index) => self.let_go(index),
            Change::Qdisc => {
                self.qdiscs_changed = true;
                Ok(())
            }
            Change::Missed => {
                self.qdiscs_changed = true;
                self.look_around().await
            }
        }
    }

    /// Goes on with episodes that an earlier daemon left, once: of what the ring
    /// buffer still told has been read by then.
    fn resume(&mut self, output: &mut Output<Draft>) {
        if !self.may_resume || clock::monotonic_ns() < self.keeper.heartbeat.generation + RESUME_NS
        {
            return;
        }
        self.may_resume = false;
        let reports = self.watch.resume(&self.maps);
        self.tell(reports, output);
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
    /// When the settings do not go together, need larger tables, or the kernel does
    /// not take them; nothing has changed then.
    pub fn change(&mut self, settings: &Settings) -> Result<()> {
        self.maps.change(settings, &self.sizes, self.cpus)?;
        self.qdiscs_changed |= self.pacing != settings.pacing;
        self.pacing = settings.pacing;
        self.seen = self.maps.policy()?;
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

    /// The settings in force.
    fn in_force(&self) -> Result<Settings> {
        let policy = self.maps.policy()?;
        Ok(Settings::in_force(
            &policy,
            self.maps.exempt(),
            self.direction,
        ))
    }

    /// Whether the daemon keeps the queue: not with a pacing that does without
    /// it, nor when its copies do not get through.
    fn keeps_queue(&mut self) -> bool {
        if self.pacing.resends() && self.keeper.queue.is_stuck() && !self.keeper.gave_up {
            self.keeper.gave_up = true;
            warn!(
                "deferred SYNs that are re-sent do not reach the program on the device: something \
                 before it drops them. From now on they go out when their senders retransmit"
            );
        }
        self.pacing.resends() && !self.keeper.gave_up
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
        notify::alive();
        let now = self.maps.policy()?;
        if now != self.seen {
            self.seen = now;
            self.qdiscs_changed |= self.pacing != Pacing::of(&now);
            self.pacing = Pacing::of(&now);
            info!(
                "another command has changed the settings; in force: {}",
                self.in_force()?
            );
        }
        self.keeper.heartbeat.alive_until_ns = if self.keeps_queue() {
            clock::monotonic_ns() + ALIVE_NS
        } else {
            0
        };
        self.maps.set_daemon(&self.keeper.heartbeat)
    }

    /// An interface has vanished, and its programs with it.
    fn let_go(&mut self, index: u32) -> Result<()> {
        self.failing.remove(&index);
        self.qdiscs_changed = true;
        let Some(at) = self
            .attachments
            .iter()
            .position(|a| a.interface.index == index)
        else {
            return Ok(());
        };
        let gone = self.attachments.swap_remove(at);
        let name = Name::new(&gone.interface.name);
        gone.gone();
        // Names of those that are told of no more.
        let (attachments, watch) = (&self.attachments, &self.watch);
        self.names.retain(|index, _| {
            let scope = Subject::numbered(SubjectKind::Interface, u64::from(*index));
            attachments.iter().any(|a| a.interface.index == *index) || watch.follows(&scope)
        });
        if self.attachments.is_empty() && !self.wanted.is_open() {
            return Err(Error::Refused(format!(
                "interface {name} vanished: nothing is attached any more. Start throttle again when \
                 it is back"
            )));
        }
        let still = self.attached();
        warn!("interface {name} vanished; still attached to {still}");
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
    ///
    /// If they are to stay they are not detached, and episodes go on.
    pub async fn stop(mut self, output: &mut Output<Draft>) {
        if self.place.keep {
            // From now on senders take the releases.
            self.keeper.heartbeat.alive_until_ns = 0;
            if let Err(error) = self.maps.set_daemon(&self.keeper.heartbeat) {
                warn!("{error}");
            }
            let reports = self.watch.begin(&self.maps, false);
            self.tell(reports, output);
        } else {
            self.detach().await;
            let reports = self.watch.stop(&self.maps);
            self.tell(reports, output);
        }
        let mut names = Names::new(false);
        let (mut scopes, mut sum) = (0, Tallies::default());
        for (subject, _) in self.maps.scopes() {
            let Tallies(counts) = self.maps.tallies(&subject);
            for (sum, count) in sum.0.iter_mut().zip(counts) {
                *sum = sum.wrapping_add(count);
            }
            scopes += 1;
            if scopes <= SCOPES_LOGGED {
                let each = list(Tallies::NAMES.into_iter().zip(counts));
                info!("{}: {each}", self.name(&subject, &mut names));
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
        if self.place.keep {
            info!(
                "stays attached to {}: `throttle detach` removes it, the next `throttle run` of this \
                 name adopts it",
                self.attached()
            );
        } else {
            info!("detached");
        }
    }

    /// What a scope is called, for people: `interface eth0`, `user 1000 (ann)`.
    fn name(&self, subject: &Subject, names: &mut Names) -> String {
        let named = event::Scope::new(subject, name_in(&self.names, subject).map(Name::new));
        match names.scope(subject) {
            Some(name) => format!("{} {} ({name})", named.kind, named.id),
            None => format!("{} {}", named.kind, named.name),
        }
    }
}

/// Pins that are removed when this is dropped.
#[derive(Debug)]
struct Fresh(Option<Pins>);

impl Drop for Fresh {
    fn drop(&mut self) {
        if let Some(pins) = &self.0
            && let Err(error) = pins.remove()
        {
            warn!("{error}");
        }
    }
}

/// What an earlier daemon left behind.
#[derive(Debug)]
struct Left {
    /// Where it is, or where this one's is to be kept. None if nothing is kept.
    pins: Option<Pins>,
    state: State,
}

#[derive(Debug)]
enum State {
    /// There is none.
    Nothing,
    /// Its maps can be used: they have these sizes.
    Usable(Sizes),
    /// They cannot, for this reason.
    Useless(String),
}

impl Left {
    /// What is kept under this name. If nothing is to be kept, only if something
    /// was.
    fn find(
        name: Option<&str>,
        keep: bool,
        wanted: &Sizes,
        policy: &Policy,
        cpus: usize,
    ) -> Result<Self> {
        let nothing = Self {
            pins: None,
            state: State::Nothing,
        };
        let pins = match name {
            None if keep => {
                return Err(Error::Usage(
                    "what is kept needs a name: give --name".into(),
                ));
            }
            None => return Ok(nothing),
            Some(name) if keep => instance::kept_at(name)?,
            Some(name) => match instance::kept_at(name) {
                Ok(pins) if pins.exist() => pins,
                Ok(_) | Err(_) => return Ok(nothing),
            },
        };
        let state = if pins.map("POLICY").exists() || !pins.devices().is_empty() {
            State::of(&pins, wanted, policy, cpus)
        } else {
            State::Nothing
        };
        let pins = Some(pins);
        Ok(Self { pins, state })
    }
}

impl State {
    fn of(pins: &Pins, wanted: &Sizes, policy: &Policy, cpus: usize) -> Self {
        let sizes = match Maps::open(pins).and_then(|_| Sizes::of(pins)) {
            Ok(sizes) => sizes,
            Err(error) => return Self::Useless(error.to_string()),
        };
        if !sizes.hold(policy, cpus) || sizes.ring_bytes != wanted.ring_bytes {
            return Self::Useless("its tables are too small for these settings".into());
        }
        Self::Usable(sizes)
    }
}

/// Waits for others who start or end. Who may not register does not wait either.
fn lock(keep: bool) -> Result<Option<Exclusive>> {
    match Exclusive::wait() {
        Ok(lock) => Ok(Some(lock)),
        Err(error @ Error::Refused(_)) => Err(error),
        Err(error) if keep => Err(error),
        Err(error) => {
            debug!("{error}");
            Ok(None)
        }
    }
}

/// Registers the throttle. Without a way to do that it runs all the same, unless
/// something is kept: two daemons must not have it.
fn register(name: Option<&str>, keep: bool) -> Result<Option<Registration>> {
    let Some(name) = name else { return Ok(None) };
    match Registration::claim(name) {
        Ok(registration) => Ok(Some(registration)),
        Err(error @ Error::Refused(_)) => Err(error),
        Err(error) if keep => Err(error),
        Err(error) => {
            warn!("other commands (`throttle status`) will not find this throttle: {error}");
            Ok(None)
        }
    }
}

/// A place for pins that ends with this process.
fn own_pins() -> (Option<Pins>, Option<OwnBpffs>) {
    match OwnBpffs::make() {
        Ok(own) => (Some(Pins::at(own.root())), Some(own)),
        Err(error) => {
            warn!("other commands (`throttle status`) cannot look into this throttle: {error}");
            (None, None)
        }
    }
}

/// Leaves out interfaces that another throttle has. One that is wanted by name is
/// an error.
fn without_taken(
    interfaces: Vec<Interface>,
    wanted: &Wanted,
    name: Option<&str>,
) -> Result<Vec<Interface>> {
    let Some(name) = name else {
        return Ok(interfaces);
    };
    let others = match Instance::all() {
        Ok(others) => others,
        Err(error) => {
            debug!("{error}");
            return Ok(interfaces);
        }
    };
    let mut free = Vec::new();
    for interface in interfaces {
        let has_it = |other: &&Instance| {
            other.name != name
                && other.pins.as_ref().is_some_and(|pins| {
                    let mut devices = pins.devices().into_iter();
                    devices.any(|(index, _)| index == interface.index)
                })
        };
        let Some(other) = others.iter().find(has_it) else {
            free.push(interface);
            continue;
        };
        let what = match &other.daemon {
            Some(daemon) => format!(
                "throttle {} (pid {}) is attached to interface {} already: end it first, or change \
                 it with `throttle set`",
                other.name, daemon.pid, interface.name
            ),
            None => format!(
                "throttle {} was left attached to interface {}: `throttle run --name {}` adopts it, \
                 `throttle detach --name {}` removes it",
                other.name, interface.name, other.name, other.name
            ),
        };
        if wanted.names().contains(&interface.name) {
            return Err(Error::Refused(what));
        }
        warn!("{what}");
    }
    Ok(free)
}

/// Refuses to attach beside a throttle that is not registered.
async fn refuse_strangers(interfaces: &[Interface], name: Option<&str>) -> Result<()> {
    let (Some(name), Ok(all)) = (name, Instance::all()) else {
        return Ok(());
    };
    // Those of its own that were left.
    let own = all.iter().filter(|of| of.name == name);
    let own: HashSet<u32> = own
        .filter_map(|of| of.pins.as_ref())
        .flat_map(Pins::devices)
        .map(|(index, _)| index)
        .collect();
    let others = interfaces.iter().filter(|of| !own.contains(&of.index));
    let strangers = detach::with_programs(others.cloned().collect()).await;
    match strangers.first() {
        None => Ok(()),
        Some(interface) => Err(Error::Refused(format!(
            "a throttle that is not registered here is attached to interface {}: end that one first; \
             `throttle doctor` shows its programs",
            Name::new(&interface.name)
        ))),
    }
}

/// Whether the device that this is about is no more.
fn is_gone(error: &Error) -> bool {
    let Error::Failed { reason, .. } = error else {
        return false;
    };
    let errno = errno_of(reason.as_ref());
    matches!(errno, Some(libc::ENODEV | libc::ENXIO | libc::ENOENT))
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
