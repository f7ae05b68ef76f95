//! Which rows are shown, and in what order.

use std::cmp::Ordering;

use super::{columns::Column, rows::Row};

/// What rows are sorted by: numbers from the highest down, names from A to Z.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, clap::ValueEnum)]
pub enum Sort {
    /// Half-open and deferred attempts together.
    #[default]
    Attempts,
    /// Half-open attempts.
    HalfOpen,
    /// Deferred attempts.
    Deferred,
    /// For how long the oldest attempt has been unanswered.
    Oldest,
    /// Addresses and ports that attempts go to.
    Destinations,
    /// Process id, from the lowest up.
    Pid,
    /// Name of the user.
    User,
    /// Name of the program.
    Program,
}

impl Sort {
    /// All of them.
    pub const ALL: [Self; 8] = [
        Self::Attempts,
        Self::HalfOpen,
        Self::Deferred,
        Self::Oldest,
        Self::Destinations,
        Self::Pid,
        Self::User,
        Self::Program,
    ];

    /// The one after it; after the last, the first.
    #[must_use]
    pub fn next(self) -> Self {
        let at = Self::ALL.iter().position(|sort| *sort == self);
        Self::ALL[at.map_or(0, |at| (at + 1) % Self::ALL.len())]
    }

    /// The columns that it looks at.
    #[must_use]
    pub const fn columns(self) -> &'static [Column] {
        match self {
            Self::Attempts => &[Column::HalfOpen, Column::Deferred],
            Self::HalfOpen => &[Column::HalfOpen],
            Self::Deferred => &[Column::Deferred],
            Self::Oldest => &[Column::Oldest],
            Self::Destinations => &[Column::Destinations],
            Self::Pid => &[Column::Pid],
            Self::User => &[Column::User],
            Self::Program => &[Column::Program],
        }
    }

    /// In words.
    #[must_use]
    pub const fn word(self) -> &'static str {
        match self {
            Self::Attempts => "attempts",
            Self::HalfOpen => "half-open",
            Self::Deferred => "deferred",
            Self::Oldest => "oldest",
            Self::Destinations => "destinations",
            Self::Pid => "pid",
            Self::User => "user",
            Self::Program => "program",
        }
    }

    fn compare(self, a: &Row, b: &Row) -> Ordering {
        match self {
            Self::Attempts => b.attempts().cmp(&a.attempts()),
            Self::HalfOpen => b.half_open.cmp(&a.half_open),
            Self::Deferred => b.deferred.cmp(&a.deferred),
            Self::Oldest => b.oldest.cmp(&a.oldest),
            Self::Destinations => b.destinations.cmp(&a.destinations),
            // Those without one come last.
            Self::Pid => (a.pid().is_none(), a.pid()).cmp(&(b.pid().is_none(), b.pid())),
            Self::User => {
                let (a, b) = (a.user_name(), b.user_name());
                (a.is_none(), a).cmp(&(b.is_none(), b))
            }
            Self::Program => {
                let key = |row: &Row| (row.pid().is_none(), row.program());
                key(a).cmp(&key(b))
            }
        }
    }
}

/// An order of rows.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Order {
    /// What they are sorted by.
    pub by: Sort,
    /// Whether the other way round.
    pub is_reversed: bool,
}

impl Order {
    /// Which of two rows comes first. Two rows are never equal: the order is the
    /// same at every look.
    #[must_use]
    pub fn compare(&self, a: &Row, b: &Row) -> Ordering {
        let order = self.by.compare(a, b);
        let order = if self.is_reversed {
            order.reverse()
        } else {
            order
        };
        let tie = |row: &Row| {
            let key = &row.key;
            (key.owner.kind, key.owner.id, key.scope.kind, key.scope.id)
        };
        order
            .then_with(|| b.attempts().cmp(&a.attempts()))
            .then_with(|| a.key.throttle.cmp(&b.key.throttle))
            .then_with(|| tie(a).cmp(&tie(b)))
    }
}

/// A text that a row must have in it, somewhere. Case does not matter.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Filter(String);

impl Filter {
    /// The filter for this text; the empty one lets everything through.
    #[must_use]
    pub fn new(text: &str) -> Self {
        Self(text.to_lowercase())
    }

    /// Whether the text is in the program, executable, user, pid, control group,
    /// container, scope, throttle, or in the source or destination of the example.
    #[must_use]
    pub fn fits(&self, row: &Row) -> bool {
        if self.0.is_empty() {
            return true;
        }
        let has = |text: &str| text.to_lowercase().contains(&self.0);
        has(row.program().as_str())
            || row.pid().is_some_and(|pid| has(&pid.to_string()))
            || row.user_name().is_some_and(|user| has(user.as_str()))
            || has(row.throttle.as_str())
            || has(&format!("{} {}", row.scope.kind, row.scope.name))
            || has(&row.source.to_string())
            || has(&row.destination.to_string())
            || row.cgroup.as_ref().is_some_and(|cgroup| {
                cgroup.path.as_ref().is_some_and(|path| has(path.as_str()))
                    || cgroup.container.as_ref().is_some_and(|c| has(&c.id))
            })
            || row.process().is_some_and(|process| {
                let executable = process.executable.as_ref();
                executable.is_some_and(|path| has(path.as_str()))
            })
    }
}

/// The rows that fit, in order, as indices of `rows`.
#[must_use]
pub fn chosen(rows: &[Row], order: Order, filter: &Filter) -> Vec<usize> {
    let mut chosen: Vec<usize> = (0..rows.len())
        .filter(|index| filter.fits(&rows[*index]))
        .collect();
    chosen.sort_by(|a, b| order.compare(&rows[*a], &rows[*b]));
    chosen
}
