//! Connection attempts: many at once, with ordinary non-blocking sockets.

use crate::{
    cgroup::Cgroup,
    netns::Namespace,
    process::{Process, Program},
    sys,
    wait::{wait_at_most, wait_until},
};
use nix::{
    errno::Errno,
    libc,
    sys::{
        epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout},
        eventfd::EventFd,
        resource::{Resource, getrlimit, setrlimit},
        signal::Signal,
        socket::{self, AddressFamily, SockFlag, SockType, SockaddrStorage, sockopt},
    },
};
use std::{
    collections::HashSet,
    env,
    fs::{self, Permissions},
    io,
    net::{IpAddr, SocketAddr, TcpStream},
    os::{
        fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd},
        unix::fs::PermissionsExt,
    },
    path::PathBuf,
    sync::{
        Arc, Mutex, MutexGuard, Once,
        atomic::{AtomicU32, Ordering},
    },
    thread::{self, JoinHandle},
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

/// How attempts are made.
#[derive(Clone, Debug, Default)]
struct Options {
    source: Option<IpAddr>,
    mark: Option<u32>,
    priority: Option<i32>,
}

/// Opens connections from inside a namespace, out of this process.
#[derive(Clone, Debug)]
pub struct Dialer {
    namespace: Namespace,
    options: Options,
}

impl Dialer {
    /// A dialer in `namespace`.
    pub fn new(namespace: &Namespace) -> Self {
        Self {
            namespace: namespace.clone(),
            options: Options::default(),
        }
    }

    /// Binds every socket to this address first.
    #[must_use]
    pub fn from(mut self, source: IpAddr) -> Self {
        self.options.source = Some(source);
        self
    }

    /// Sets `SO_MARK` on every socket.
    #[must_use]
    pub fn marked(mut self, mark: u32) -> Self {
        self.options.mark = Some(mark);
        self
    }

    /// Sets `SO_PRIORITY` on every socket.
    #[must_use]
    pub fn priority(mut self, priority: i32) -> Self {
        self.options.priority = Some(priority);
        self
    }

    /// Starts an attempt to each destination, one right after the other,
    /// without waiting for any.
    ///
    /// # Panics
    /// When a socket cannot be made or bound. A connect that fails is an
    /// outcome.
    pub fn dial(&self, destinations: impl IntoIterator<Item = SocketAddr>) -> Attempts {
        let destinations: Vec<SocketAddr> = destinations.into_iter().collect();
        let attempts = Attempts::watch();
        self.namespace.run(|| {
            for &dst in &destinations {
                attempts.start(dst, &self.options);
            }
        });
        attempts
    }

    /// Starts one more attempt and watches it together with `attempts`.
    ///
    /// # Panics
    /// As [`Self::dial`].
    pub fn dial_more(&self, attempts: &Attempts, dst: SocketAddr) -> Attempt {
        self.namespace.run(|| attempts.start(dst, &self.options))
    }
}

/// Attempts out of the calling thread's namespace, none of them bound: for
/// programs that have been started inside one.
///
/// # Panics
/// As [`Dialer::dial`].
pub fn dial_here(attempts: &Attempts, dst: SocketAddr) -> Attempt {
    attempts.start(dst, &Options::default())
}

/// Connects like an ordinary program, within `timeout`.
///
/// # Errors
/// Whatever the connect says.
pub fn connect(namespace: &Namespace, dst: SocketAddr, timeout: Duration) -> io::Result<TcpStream> {
    namespace.run(|| TcpStream::connect_timeout(&dst, timeout))
}

/// Connects `count` times, one after the other, closing each connection at
/// once, and measures each connect.
///
/// # Panics
/// When one fails.
#[track_caller]
pub fn serial_connects(namespace: &Namespace, count: usize, dst: SocketAddr) -> Vec<Duration> {
    namespace.run(|| {
        let mut times = Vec::with_capacity(count);
        for _ in 0..count {
            let start = Instant::now();
            let stream = TcpStream::connect(dst).unwrap_or_else(|e| panic!("connect {dst}: {e}"));
            times.push(start.elapsed());
            // No TIME-WAIT, so that ports do not run out.
            let linger = libc::linger {
                l_onoff: 1,
                l_linger: 0,
            };
            socket::setsockopt(&stream, sockopt::Linger, &linger).unwrap();
        }
        times
    })
}

/// What became of an attempt.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// Nothing yet.
    Pending,
    /// The connection is there.
    Connected {
        /// How long that took.
        after: Duration,
    },
    /// It failed.
    Failed {
        /// How.
        errno: Errno,
        /// How long that took.
        after: Duration,
    },
    /// Its own program closed it before anything else happened.
    Closed,
}

/// One attempt.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Attempt {
    /// Where to.
    pub dst: SocketAddr,
    /// From where.
    pub local: SocketAddr,
    /// When connect() was called, ns of `CLOCK_REALTIME`, to compare with
    /// captures.
    pub started_ns: u64,
    /// What became of it.
    pub outcome: Outcome,
}

impl Attempt {
    /// How long it took, if it ended.
    pub fn took(&self) -> Option<Duration> {
        match self.outcome {
            Outcome::Connected { after } | Outcome::Failed { after, .. } => Some(after),
            Outcome::Pending | Outcome::Closed => None,
        }
    }

    /// How it failed, if it did.
    pub fn errno(&self) -> Option<Errno> {
        match self.outcome {
            Outcome::Failed { errno, .. } => Some(errno),
            Outcome::Pending | Outcome::Closed | Outcome::Connected { .. } => None,
        }
    }
}

#[derive(Debug)]
struct Open {
    attempt: Attempt,
    started: Instant,
    socket: Option<OwnedFd>,
}

/// Attempts that are being watched. Their sockets are closed when dropped.
#[derive(Debug)]
pub struct Attempts {
    open: Arc<Mutex<Vec<Open>>>,
    epoll: Arc<Epoll>,
    stop: EventFd,
    watcher: Option<JoinHandle<()>>,
}

/// What the watcher's event carries for its end.
const STOP: u64 = u64::MAX;

impl Attempts {
    /// No attempts yet.
    ///
    /// # Panics
    /// When out of descriptors.
    pub fn watch() -> Self {
        allow_many_descriptors();
        let epoll = Arc::new(Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC).unwrap());
        let stop = EventFd::new().unwrap();
        epoll
            .add(&stop, EpollEvent::new(EpollFlags::EPOLLIN, STOP))
            .unwrap();
        let open = Arc::new(Mutex::new(Vec::new()));
        let watcher = {
            let (epoll, open) = (Arc::clone(&epoll), Arc::clone(&open));
            thread::spawn(move || await_outcomes(&epoll, &open))
        };
        Self {
            open,
            epoll,
            stop,
            watcher: Some(watcher),
        }
    }

    fn lock(&self) -> MutexGuard<'_, Vec<Open>> {
        self.open.lock().unwrap()
    }

    /// Starts an attempt on the calling thread.
    fn start(&self, dst: SocketAddr, options: &Options) -> Attempt {
        let family = if dst.is_ipv4() {
            AddressFamily::Inet
        } else {
            AddressFamily::Inet6
        };
        let flags = SockFlag::SOCK_NONBLOCK | SockFlag::SOCK_CLOEXEC;
        let socket = socket::socket(family, SockType::Stream, flags, None)
            .unwrap_or_else(|e| panic!("make a socket: {e}"));
        if let Some(source) = options.source {
            let source = SocketAddr::new(source, 0);
            socket::bind(socket.as_raw_fd(), &SockaddrStorage::from(source))
                .unwrap_or_else(|e| panic!("bind to {source}: {e}"));
        }
        if let Some(mark) = options.mark {
            socket::setsockopt(&socket, sockopt::Mark, &mark).unwrap();
        }
        if let Some(priority) = options.priority {
            socket::setsockopt(&socket, sockopt::Priority, &priority).unwrap();
        }
        let started_ns = now_ns();
        let started = Instant::now();
        let outcome = match socket::connect(socket.as_raw_fd(), &SockaddrStorage::from(dst)) {
            Ok(()) => Outcome::Connected {
                after: started.elapsed(),
            },
            Err(Errno::EINPROGRESS) => Outcome::Pending,
            Err(errno) => Outcome::Failed {
                errno,
                after: started.elapsed(),
            },
        };
        let local = local_address(&socket);
        let attempt = Attempt {
            dst,
            local,
            started_ns,
            outcome,
        };
        let mut open = self.lock();
        if outcome == Outcome::Pending {
            let event = EpollEvent::new(
                EpollFlags::EPOLLOUT | EpollFlags::EPOLLET,
                open.len() as u64,
            );
            self.epoll.add(&socket, event).unwrap();
        }
        open.push(Open {
            attempt: attempt.clone(),
            started,
            socket: Some(socket),
        });
        attempt
    }

    /// All attempts, in the order they were started.
    pub fn all(&self) -> Vec<Attempt> {
        self.lock()
            .iter()
            .map(|open| open.attempt.clone())
            .collect()
    }

    fn those(&self, wanted: impl Fn(&Outcome) -> bool) -> Vec<Attempt> {
        let open = self.lock();
        let attempts = open.iter().map(|open| &open.attempt);
        attempts
            .filter(|attempt| wanted(&attempt.outcome))
            .cloned()
            .collect()
    }

    /// Those that are connected.
    pub fn connected(&self) -> Vec<Attempt> {
        self.those(|outcome| matches!(outcome, Outcome::Connected { .. }))
    }

    /// Those that failed.
    pub fn failed(&self) -> Vec<Attempt> {
        self.those(|outcome| matches!(outcome, Outcome::Failed { .. }))
    }

    /// Those that nothing became of yet.
    pub fn pending(&self) -> Vec<Attempt> {
        self.those(|outcome| *outcome == Outcome::Pending)
    }

    /// Where they come from.
    pub fn local_addrs(&self) -> HashSet<SocketAddr> {
        self.lock().iter().map(|open| open.attempt.local).collect()
    }

    /// Waits until this many are connected.
    ///
    /// # Panics
    /// When they are not within `timeout`.
    #[track_caller]
    pub fn wait_for_connected(&self, count: usize, timeout: Duration) -> Vec<Attempt> {
        let enough = || (self.connected().len() >= count).then_some(());
        if wait_at_most(timeout, enough).is_none() {
            let (connected, failed) = (self.connected().len(), self.failed());
            panic!(
                "{connected} of {count} connected after {timeout:?}, {} failed, the first: {:?}",
                failed.len(),
                failed.first()
            );
        }
        self.connected()
    }

    /// Waits until none is pending.
    ///
    /// # Panics
    /// When one still is after `timeout`.
    #[track_caller]
    pub fn wait_for_all(&self, timeout: Duration) -> Vec<Attempt> {
        wait_until("every attempt's outcome", timeout, || {
            self.pending().is_empty()
        });
        self.all()
    }

    /// Closes the nth attempt's socket.
    ///
    /// # Panics
    /// When there is no nth.
    pub fn close(&self, n: usize) {
        close(&mut self.lock()[n]);
    }

    /// Closes all sockets.
    pub fn close_all(&self) {
        self.lock().iter_mut().for_each(close);
    }

    /// What TCP knows about the nth attempt's connection.
    ///
    /// # Panics
    /// When it is closed.
    #[track_caller]
    pub fn tcp_info(&self, n: usize) -> TcpInfo {
        tcp_info(self.lock()[n].socket.as_ref().unwrap().as_fd())
    }
}

fn close(open: &mut Open) {
    open.socket = None;
    if open.attempt.outcome == Outcome::Pending {
        open.attempt.outcome = Outcome::Closed;
    }
}

impl Drop for Attempts {
    fn drop(&mut self) {
        let _ = self.stop.write(1);
        if let Some(watcher) = self.watcher.take() {
            let _ = watcher.join();
        }
    }
}

fn await_outcomes(epoll: &Epoll, open: &Mutex<Vec<Open>>) {
    let mut events = [EpollEvent::empty(); 256];
    loop {
        let count = match epoll.wait(&mut events, EpollTimeout::NONE) {
            Ok(count) => count,
            Err(Errno::EINTR) => continue,
            Err(e) => panic!("wait for attempts: {e}"),
        };
        let now = Instant::now();
        let mut open = open.lock().unwrap();
        for event in &events[..count] {
            if event.data() == STOP {
                return;
            }
            // The event of a socket that was closed meanwhile means nothing.
            let Open {
                attempt,
                started,
                socket: Some(socket),
            } = &mut open[event.data() as usize]
            else {
                continue;
            };
            if attempt.outcome != Outcome::Pending {
                continue;
            }
            if let Some(outcome) = outcome_of(socket, event.events(), now - *started) {
                attempt.outcome = outcome;
            }
        }
    }
}

/// What became of an attempt whose socket is ready; none yet if it was woken for
/// nothing.
fn outcome_of(socket: &OwnedFd, ready: EpollFlags, after: Duration) -> Option<Outcome> {
    loop {
        match socket::getsockopt(socket, sockopt::SocketError).unwrap() {
            0 => {}
            errno => {
                let errno = Errno::from_raw(errno);
                return Some(Outcome::Failed { errno, after });
            }
        }
        if socket::getpeername::<SockaddrStorage>(socket.as_raw_fd()).is_ok() {
            return Some(Outcome::Connected { after });
        }
        // An error is sometimes told of a moment before it can be read.
        if !ready.intersects(EpollFlags::EPOLLERR | EpollFlags::EPOLLHUP) {
            return None;
        }
        thread::yield_now();
    }
}

/// The wall clock, ns: the clock of captures.
///
/// # Panics
/// Before 1970.
pub fn now_ns() -> u64 {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap()
        .as_nanos() as u64
}

fn local_address(socket: &OwnedFd) -> SocketAddr {
    let name: SockaddrStorage = socket::getsockname(socket.as_raw_fd()).unwrap();
    if let Some(v4) = name.as_sockaddr_in() {
        SocketAddr::V4((*v4).into())
    } else if let Some(v6) = name.as_sockaddr_in6() {
        SocketAddr::V6((*v6).into())
    } else {
        panic!("a socket with a strange name: {name:?}")
    }
}

/// Raises this process's limit on open files as far as it goes.
fn allow_many_descriptors() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        let most = fs::read_to_string("/proc/sys/fs/nr_open").unwrap();
        let most: u64 = most.trim().parse().unwrap();
        if setrlimit(Resource::RLIMIT_NOFILE, most, most).is_err() {
            // Not root: up to the hard limit.
            let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE).unwrap();
            setrlimit(Resource::RLIMIT_NOFILE, hard, hard).unwrap();
        }
    });
}

/// What TCP knows about a connection, as `ss -ti` shows it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TcpInfo {
    /// Smoothed round-trip time.
    pub rtt: Duration,
    /// Its variation.
    pub rttvar: Duration,
    /// Retransmission timeout.
    pub rto: Duration,
    /// Retransmissions in all.
    pub total_retrans: u32,
    /// Congestion window, segments.
    pub snd_cwnd: u32,
}

/// What TCP knows about this connection.
///
/// # Panics
/// When it is none.
#[track_caller]
pub fn tcp_info(socket: BorrowedFd<'_>) -> TcpInfo {
    let info = sys::tcp_info(socket).unwrap_or_else(|e| panic!("ask for TCP_INFO: {e}"));
    let micros = |value: u32| Duration::from_micros(u64::from(value));
    TcpInfo {
        rtt: micros(info.tcpi_rtt),
        rttvar: micros(info.tcpi_rttvar),
        rto: micros(info.tcpi_rto),
        total_retrans: info.tcpi_total_retrans,
        snd_cwnd: info.tcpi_snd_cwnd,
    }
}

/// A copy of the program that dials, where every user can reach it. Removed when
/// dropped.
#[derive(Debug)]
pub struct Reachable(PathBuf);

impl Reachable {
    /// Makes it.
    ///
    /// # Panics
    /// When there is no room for it.
    pub fn new() -> Self {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let n = COUNT.fetch_add(1, Ordering::Relaxed);
        let folder = env::temp_dir().join(format!("throttle-dialer-{}-{n}", std::process::id()));
        fs::create_dir_all(&folder).unwrap();
        fs::set_permissions(&folder, Permissions::from_mode(0o755)).unwrap();
        let copy = Self(folder);
        fs::copy(helper_path(), copy.path()).unwrap();
        copy
    }

    fn path(&self) -> PathBuf {
        self.0.join("dialer")
    }
}

impl Default for Reachable {
    fn default() -> Self {
        Self::new()
    }
}

impl Drop for Reachable {
    fn drop(&mut self) {
        // What cannot be removed is in a folder for temporary files.
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// A program of its own that dials: with its own process id, cgroup and user.
#[derive(Debug)]
#[must_use = "the program does nothing until it is started"]
pub struct DialProgram {
    program: Program,
}

impl DialProgram {
    /// A program in `namespace` that will dial. It stays, with its sockets,
    /// until it is killed or dropped.
    pub fn new(namespace: &Namespace) -> Self {
        Self {
            program: namespace.program(helper_path()),
        }
    }

    /// The same, run from a copy that other users can reach.
    pub fn from_copy(namespace: &Namespace, copy: &Reachable) -> Self {
        Self {
            program: namespace.program(copy.path()),
        }
    }

    /// The same, but it ignores SIGTERM.
    pub fn heedless(namespace: &Namespace) -> Self {
        Self {
            program: namespace
                .program("sh")
                .args(["-c", r#"trap "" TERM; exec "$0" "$@""#])
                .arg(helper_path()),
        }
    }

    /// Dials these, in this order.
    pub fn to(mut self, destinations: impl IntoIterator<Item = SocketAddr>) -> Self {
        self.program = self
            .program
            .args(destinations.into_iter().map(|dst| dst.to_string()));
        self
    }

    /// Starts one attempt each `interval`, not all at once.
    pub fn every(mut self, interval: Duration) -> Self {
        self.program = self
            .program
            .args(["--every", &interval.as_secs_f64().to_string()]);
        self
    }

    /// Gives every attempt up, and closes every connection, this long after
    /// its start.
    pub fn close_after(mut self, patience: Duration) -> Self {
        self.program = self
            .program
            .args(["--close-after", &patience.as_secs_f64().to_string()]);
        self
    }

    /// Ends by itself when no attempt is pending and no socket open.
    pub fn leave_when_done(mut self) -> Self {
        self.program = self.program.arg("--leave");
        self
    }

    /// Makes each attempt in a child, a process of its own. Children dial all at
    /// once, and neither give up nor leave.
    pub fn by_children(mut self) -> Self {
        self.program = self.program.arg("--by-children");
        self
    }

    /// Runs it in this cgroup.
    pub fn in_cgroup(mut self, cgroup: &Cgroup) -> Self {
        self.program = self.program.in_cgroup(cgroup);
        self
    }

    /// Runs it as another user, who must be allowed to reach the executable: see
    /// [`Self::from_copy`].
    pub fn as_user(mut self, uid: u32) -> Self {
        self.program = self.program.as_user(uid);
        self
    }

    /// Starts it.
    ///
    /// # Panics
    /// When it cannot be started.
    #[track_caller]
    pub fn start(self) -> DialProcess {
        DialProcess {
            process: self.program.start(),
        }
    }
}

/// A running [`DialProgram`]. It is killed when dropped.
#[derive(Debug)]
pub struct DialProcess {
    process: Process,
}

/// One line of the helper's output.
#[derive(Clone, Debug)]
pub struct Report {
    /// `started`, `connected`, `failed` or `closed`.
    pub event: String,
    /// Of which attempt.
    pub dst: SocketAddr,
    /// From where.
    pub local: SocketAddr,
    /// When connect() was called, ns of `CLOCK_REALTIME`.
    pub started_ns: u64,
    /// How long after its start.
    pub after: Duration,
    /// Number of the error, of a failed one.
    pub errno: Option<i32>,
}

impl DialProcess {
    /// Its process id.
    pub fn pid(&self) -> u32 {
        self.process.pid()
    }

    /// What it has reported so far.
    ///
    /// # Panics
    /// When it printed nonsense.
    pub fn reports(&self) -> Vec<Report> {
        self.process
            .with_stdout(|lines| lines.iter().map(|line| parse_report(line)).collect())
    }

    /// How many attempts came to this: `started`, `connected`, `failed` or
    /// `closed`.
    pub fn count(&self, event: &str) -> usize {
        self.reports()
            .iter()
            .filter(|report| report.event == event)
            .count()
    }

    /// Waits until this many attempts came to `event`.
    ///
    /// # Panics
    /// When they do not within `timeout`.
    #[track_caller]
    pub fn wait_for(&self, count: usize, event: &str, timeout: Duration) {
        wait_until(&format!("{count} attempts {event}"), timeout, || {
            self.count(event) >= count
        });
    }

    /// Sends it a signal.
    ///
    /// # Panics
    /// When it is no more.
    #[track_caller]
    pub fn signal(&self, signal: Signal) {
        self.process.signal(signal);
    }

    /// Whether it still runs.
    pub fn is_running(&mut self) -> bool {
        self.process.ended().is_none()
    }

    /// Kills it.
    ///
    /// # Panics
    /// When it was no more.
    pub fn kill(self) {
        self.process.kill();
    }
}

fn parse_report(line: &str) -> Report {
    let value: serde_json::Value =
        serde_json::from_str(line).unwrap_or_else(|e| panic!("the helper said {line:?}: {e}"));
    let text = |name: &str| value[name].as_str().unwrap_or_default().to_owned();
    Report {
        event: text("event"),
        dst: text("dst").parse().unwrap(),
        local: text("local").parse().unwrap(),
        started_ns: value["started_ns"].as_u64().unwrap(),
        after: Duration::from_secs_f64(value["after"].as_f64().unwrap_or_default()),
        errno: value["errno"].as_i64().map(|errno| errno as i32),
    }
}

/// Cargo puts the helper beside the directory of the test executables, or
/// beside the program that uses this library.
fn helper_path() -> PathBuf {
    let this = env::current_exe().unwrap();
    let mut folders = this.ancestors().skip(1).take(2);
    let found = folders.find_map(|folder| {
        let helper = folder.join("dialer");
        helper.is_file().then_some(helper)
    });
    found.unwrap_or_else(|| {
        panic!(
            "no `dialer` beside {}: build it with `cargo build -p throttle-tests`",
            this.display()
        )
    })
}
