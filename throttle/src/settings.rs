//! What an operator chooses.

use std::{fmt, str::FromStr, time::Duration};

use throttle_common::{
    NANOS_PER_SEC,
    layout::LAYOUT,
    policy::{Mode as RawMode, Pacing as RawPacing, Policy},
    subject::SubjectKind,
    window::{MAX_SPAN_NS, MIN_SPAN_NS},
};

use crate::{
    Error, Result,
    exempt::{EXEMPT_MAX, Exempt},
    object::Sizes,
};

/// Highest limit: far above what one host can have half-open, and far below
/// what a counter holds.
const LIMIT_MAX: u64 = 1_000_000;
/// Highest rate: above it a release every 10 us is no throttle any more.
const RATE_MAX_PER_SECOND: u64 = 100_000;

/// How many deferred attempts are released in a time: `5/s`, `30/m`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rate {
    count: u64,
    unit: RateUnit,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum RateUnit {
    Second,
    Minute,
}

impl RateUnit {
    const fn nanos(self) -> u64 {
        match self {
            Self::Second => NANOS_PER_SEC,
            Self::Minute => 60 * NANOS_PER_SEC,
        }
    }
}

impl Rate {
    /// `count` a second.
    #[must_use]
    pub const fn per_second(count: u64) -> Self {
        Self {
            count,
            unit: RateUnit::Second,
        }
    }

    /// The rate of one release in `interval_ns`, in the unit that shows it best.
    #[must_use]
    pub fn from_interval(interval_ns: u64) -> Self {
        let interval_ns = if interval_ns == 0 { 1 } else { interval_ns };
        // An interval is rounded down to whole nanoseconds, and so is this: back
        // and forth, the interval stays what it is.
        let count_in = |unit: RateUnit| unit.nanos() / interval_ns;
        let count = count_in(RateUnit::Second);
        if count > 0
            && (Self {
                count,
                unit: RateUnit::Second,
            })
            .interval_ns()
                == interval_ns
        {
            return Self {
                count,
                unit: RateUnit::Second,
            };
        }
        Self {
            count: count_in(RateUnit::Minute),
            unit: RateUnit::Minute,
        }
    }

    /// Nanoseconds between two releases.
    #[must_use]
    pub const fn interval_ns(self) -> u64 {
        self.unit.nanos() / self.count
    }
}

impl fmt::Display for Rate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let unit = match self.unit {
            RateUnit::Second => "s",
            RateUnit::Minute => "m",
        };
        write!(f, "{}/{unit}", self.count)
    }
}

impl FromStr for Rate {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let hint = "write a whole number and a unit: 10/s, 30/m";
        let (count, unit) = text
            .split_once('/')
            .ok_or_else(|| format!("no unit; {hint}"))?;
        let unit = match unit.trim() {
            "s" => RateUnit::Second,
            "m" => RateUnit::Minute,
            other => return Err(format!("unknown unit '{other}'; {hint}")),
        };
        let count: u64 = count
            .trim()
            .parse()
            .map_err(|_| format!("'{count}' is not a whole number; {hint}"))?;
        if count == 0 {
            return Err("a rate of 0 would never release anything; the least is 1/m".into());
        }
        if unit == RateUnit::Second && count > RATE_MAX_PER_SECOND
            || unit == RateUnit::Minute && count > 60 * RATE_MAX_PER_SECOND
        {
            return Err(format!("the most is {RATE_MAX_PER_SECOND}/s"));
        }
        Ok(Self { count, unit })
    }
}

/// Reads a limit.
///
/// # Errors
///
/// Says what is accepted when it is not a whole number from 1 to a million.
pub fn parse_limit(text: &str) -> Result<u64, String> {
    match text.parse() {
        Ok(limit @ 1..=LIMIT_MAX) => Ok(limit),
        Ok(_) | Err(_) => Err(format!("write a whole number from 1 to {LIMIT_MAX}")),
    }
}

/// Reads a span of time of at least a second and at most a day: `30s`, `10m`.
///
/// # Errors
///
/// Says what is accepted when it is not one.
pub fn parse_span(text: &str) -> Result<Duration, String> {
    let span = parse_duration(text)?;
    let (least, most) = (
        Duration::from_nanos(MIN_SPAN_NS),
        Duration::from_nanos(MAX_SPAN_NS),
    );
    if span < least || span > most {
        return Err("write a time from 1s to 1day".into());
    }
    Ok(span)
}

/// Reads a span of time from none to a day: `0`, `10m`.
///
/// # Errors
///
/// Says what is accepted when it is not one.
pub fn parse_duration(text: &str) -> Result<Duration, String> {
    if text == "0" {
        return Ok(Duration::ZERO);
    }
    let span = humantime::parse_duration(text)
        .map_err(|error| format!("{error}; write a number and a unit: 30s, 10m, 1h"))?;
    if span > Duration::from_nanos(MAX_SPAN_NS) {
        return Err("the most is 1day".into());
    }
    Ok(span)
}

/// What is done with an attempt over the limit.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Mode {
    /// Hold it back until it is released.
    Enforce,
    /// Count and report it, and let it pass.
    Monitor,
}

/// What the limit applies to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Scope {
    /// Everything that crosses one interface.
    Interface,
    /// A control group: a service, a container.
    Cgroup,
    /// A user.
    User,
    /// A process.
    Process,
    /// A source address: a machine or a pod that is forwarded for.
    Source,
}

impl Scope {
    /// The scope in force; anything unknown is the interface, as in the programs.
    #[must_use]
    pub const fn of(policy: &Policy) -> Self {
        match SubjectKind::from_raw(policy.scope) {
            Some(SubjectKind::Cgroup) => Self::Cgroup,
            Some(SubjectKind::User) => Self::User,
            Some(SubjectKind::Process) => Self::Process,
            Some(SubjectKind::Source) => Self::Source,
            Some(SubjectKind::Interface) | None => Self::Interface,
        }
    }

    /// As the kernel side has it.
    #[must_use]
    pub const fn kind(self) -> SubjectKind {
        match self {
            Self::Interface => SubjectKind::Interface,
            Self::Cgroup => SubjectKind::Cgroup,
            Self::User => SubjectKind::User,
            Self::Process => SubjectKind::Process,
            Self::Source => SubjectKind::Source,
        }
    }
}

/// Which way the watched attempts cross the interface.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Direction {
    /// Out of it: a host's own attempts, or those it forwards.
    Egress,
    /// Into it: the host's side of a pod's or container's veth.
    Ingress,
}

/// Who lets deferred attempts out.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Pacing {
    /// The daemon re-sends; without it, as with `fq`.
    Auto,
    /// The daemon re-sends; without it, as with `retransmit`.
    Resend,
    /// The senders' own retransmissions, which leave an interface whose qdisc is fq
    /// at the moment their release is due; nothing is re-sent.
    Fq,
    /// The senders' own retransmissions only: nothing is re-sent, order and
    /// exactness are TCP's.
    Retransmit,
}

impl Pacing {
    /// Whether the daemon keeps the queue.
    #[must_use]
    pub const fn resends(self) -> bool {
        match self {
            Self::Auto | Self::Resend => true,
            Self::Fq | Self::Retransmit => false,
        }
    }

    /// As the kernel side has it.
    #[must_use]
    pub const fn raw(self) -> RawPacing {
        match self {
            Self::Auto => RawPacing::Auto,
            Self::Resend => RawPacing::Resend,
            Self::Fq => RawPacing::Fq,
            Self::Retransmit => RawPacing::Retransmit,
        }
    }

    /// The pacing in force; anything unknown is the default.
    #[must_use]
    pub const fn of(policy: &Policy) -> Self {
        match RawPacing::from_raw(policy.pacing) {
            Some(RawPacing::Resend) => Self::Resend,
            Some(RawPacing::Fq) => Self::Fq,
            Some(RawPacing::Retransmit) => Self::Retransmit,
            Some(RawPacing::Auto) | None => Self::Auto,
        }
    }
}

/// What an operator chooses.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Settings {
    /// Half-open attempts a scope may have at once.
    pub limit: u64,
    /// How fast deferred attempts are released.
    pub rate: Rate,
    /// For how long an attempt counts at most.
    pub attempt_timeout: Duration,
    /// How much waits in a line: what is released in this time.
    pub max_delay: Duration,
    /// For how long an endpoint that answered stays known; zero means that the
    /// limit is strict.
    pub known_for: Duration,
    /// What the limit applies to.
    pub scope: Scope,
    /// Destinations that no limit applies to.
    pub exempt: Vec<Exempt>,
    /// What is done with an attempt over the limit.
    pub mode: Mode,
    /// Which way the watched attempts go.
    pub direction: Direction,
    /// Who lets deferred attempts out.
    pub pacing: Pacing,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            limit: 50,
            rate: Rate::per_second(10),
            attempt_timeout: Duration::from_secs(30),
            max_delay: Duration::from_secs(60),
            known_for: Duration::from_secs(600),
            scope: Scope::Interface,
            exempt: Vec::new(),
            mode: Mode::Enforce,
            direction: Direction::Egress,
            pacing: Pacing::Auto,
        }
    }
}

fn nanos(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}

impl fmt::Display for Settings {
    /// In a line, in the words of the command line.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fn word(of: impl clap::ValueEnum) -> String {
            let value = of.to_possible_value();
            value.map_or_else(String::new, |value| value.get_name().to_owned())
        }
        let time = humantime::format_duration;
        write!(
            f,
            "{}, limit {}, rate {}, by {}, {}, attempt-timeout {}, max-delay {}, known-for {}, pacing \
             {}",
            word(self.mode),
            self.limit,
            self.rate,
            word(self.scope),
            word(self.direction),
            time(self.attempt_timeout),
            time(self.max_delay),
            time(self.known_for),
            word(self.pacing),
        )?;
        for (n, exempt) in self.exempt.iter().enumerate() {
            write!(f, "{}{exempt}", if n == 0 { ", exempt " } else { " " })?;
        }
        Ok(())
    }
}

impl Settings {
    /// The settings as the kernel reads them.
    #[must_use]
    pub fn policy(&self) -> Policy {
        let (interval_ns, max_delay_ns) = (self.rate.interval_ns(), nanos(self.max_delay));
        Policy {
            limit: self.limit,
            interval_ns,
            attempt_timeout_ns: nanos(self.attempt_timeout),
            max_delay_ns,
            known_for_ns: nanos(self.known_for),
            line_capacity: Policy::capacity(interval_ns, max_delay_ns),
            queue_capacity: Policy::whole_queue(Policy::capacity(interval_ns, max_delay_ns)),
            mode: match self.mode {
                Mode::Enforce => RawMode::Enforce,
                Mode::Monitor => RawMode::Monitor,
            } as u32,
            scope: self.scope.kind() as u32,
            pacing: self.pacing.raw() as u32,
            layout: LAYOUT,
        }
    }

    /// The settings that a policy was made of, but for what is not in it: the
    /// exemptions, and the direction.
    #[must_use]
    pub fn in_force(policy: &Policy, exempt: Vec<Exempt>, direction: Direction) -> Self {
        Self {
            limit: policy.limit,
            rate: Rate::from_interval(policy.interval_ns),
            attempt_timeout: Duration::from_nanos(policy.attempt_timeout_ns),
            max_delay: Duration::from_nanos(policy.max_delay_ns),
            known_for: Duration::from_nanos(policy.known_for_ns),
            scope: Scope::of(policy),
            exempt,
            mode: match policy.mode() {
                RawMode::Enforce => Mode::Enforce,
                RawMode::Monitor => Mode::Monitor,
            },
            direction,
            pacing: Pacing::of(policy),
        }
    }

    /// Checks what no single value shows.
    ///
    /// # Errors
    ///
    /// When the tables would not fit in memory.
    pub fn check(&self) -> Result<()> {
        /// What the maps may take in the kernel, on a machine with few CPUs.
        const BYTES_MAX: usize = 256 << 20;
        if self.exempt.len() > EXEMPT_MAX as usize {
            return Err(Error::Usage(format!(
                "{} exemptions; there is room for {EXEMPT_MAX}: give larger networks",
                self.exempt.len()
            )));
        }
        let bytes = Sizes::new(&self.policy(), 1).bytes(1);
        if bytes > BYTES_MAX {
            return Err(Error::Usage(format!(
                "--limit {} and --rate {} with --attempt-timeout {} and --max-delay {} need tables of \
                 {} MiB, more than the {} MiB there are for them: choose a lower limit or rate, or \
                 shorter times",
                self.limit,
                self.rate,
                humantime::format_duration(self.attempt_timeout),
                humantime::format_duration(self.max_delay),
                bytes >> 20,
                BYTES_MAX >> 20,
            )));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_rate_is_read_and_written_alike() {
        for text in ["1/s", "10/s", "30/m", "1/m", "61/m", "90/m", "100000/s"] {
            let rate: Rate = text.parse().unwrap();
            assert_eq!(rate.to_string(), text);
        }
        assert_eq!("5/s".parse::<Rate>().unwrap().interval_ns(), 200_000_000);
        assert_eq!("30/m".parse::<Rate>().unwrap().interval_ns(), 2_000_000_000);
    }

    #[test]
    fn a_bad_rate_says_what_to_write() {
        for text in [
            "", "5", "5/h", "0/s", "-1/s", "1.5/s", "5/s/s", "100001/s", "x/s",
        ] {
            let error = text.parse::<Rate>().unwrap_err();
            assert!(
                error.contains("/s") || error.contains("/m"),
                "{text}: {error}"
            );
        }
    }

    #[test]
    fn a_bad_duration_says_what_to_write() {
        for text in ["", "30", "x", "-1s", "0s", "500ms", "2days"] {
            let error = parse_span(text).unwrap_err();
            assert!(
                error.contains("30s") || error.contains("1day"),
                "{text}: {error}"
            );
        }
        assert_eq!(parse_span("30s"), Ok(Duration::from_secs(30)));
        assert_eq!(parse_duration("0"), Ok(Duration::ZERO));
    }

    #[test]
    fn a_bad_limit_says_what_to_write() {
        for text in ["", "0", "-1", "1000001", "ten", "1.5"] {
            assert!(
                parse_limit(text).unwrap_err().contains("from 1 to"),
                "{text}"
            );
        }
    }

    #[test]
    fn the_defaults_of_both_sides_agree() {
        assert_eq!(Settings::default().policy(), Policy::default());
    }

    #[test]
    fn a_queue_that_has_no_room_is_refused() {
        let rate = Rate::per_second(10_000);
        let hour = Duration::from_secs(3_600);
        let long_queue = Settings {
            rate,
            max_delay: hour,
            ..Settings::default()
        };
        assert!(long_queue.check().is_err());
        let long_memory = Settings {
            rate,
            attempt_timeout: hour,
            ..Settings::default()
        };
        assert!(long_memory.check().is_err());
        assert!(Settings::default().check().is_ok());
    }

    proptest! {
        #[test]
        fn a_rate_survives_the_kernel(count in 1u64..=100_000, per_minute in any::<bool>()) {
            let unit = if per_minute { RateUnit::Minute } else { RateUnit::Second };
            let rate = Rate { count, unit };
            // The same to the nanosecond, in whichever unit.
            let back = Rate::from_interval(rate.interval_ns());
            prop_assert_eq!(back.interval_ns(), rate.interval_ns());
            if count % 60 != 0 && count < 1_000 && per_minute {
                prop_assert_eq!(back, rate);
            }
        }
    }
}
