//! Columns: what is in them, and which of them fit.

use std::{borrow::Cow, time::Duration};

use ratatui::text::Span;

use super::rows::{Owner, Row};
use crate::{
    event::{Cgroup, Who},
    name::Name,
};

/// What stands in a cell that has nothing to say.
const NONE: &str = "-";

/// Digits of a container's id that are shown, as is the custom.
const CONTAINER_DIGITS: usize = 12;

/// A column, from left to right.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Column {
    /// Process id.
    Pid,
    /// User.
    User,
    /// Half-open attempts.
    HalfOpen,
    /// Deferred attempts.
    Deferred,
    /// How many destinations they have.
    Destinations,
    /// For how long the oldest has been unanswered.
    Oldest,
    /// The throttle.
    Throttle,
    /// The scope.
    Scope,
    /// The program.
    Program,
    /// A destination.
    Example,
}

impl Column {
    /// All, from left to right.
    pub const ALL: [Self; 10] = [
        Self::Pid,
        Self::User,
        Self::HalfOpen,
        Self::Deferred,
        Self::Destinations,
        Self::Oldest,
        Self::Throttle,
        Self::Scope,
        Self::Program,
        Self::Example,
    ];

    /// All, the one that is missed most first.
    const BY_WEIGHT: [Self; 10] = [
        Self::Program,
        Self::HalfOpen,
        Self::Deferred,
        Self::Pid,
        Self::User,
        Self::Oldest,
        Self::Destinations,
        Self::Throttle,
        Self::Scope,
        Self::Example,
    ];

    /// Those that get wider where there is room, and how wide.
    const GROWING: [(Self, usize); 6] = [
        (Self::Scope, 14),
        (Self::Program, 24),
        (Self::User, 12),
        (Self::Scope, 24),
        (Self::Throttle, 16),
        // The longest one of IPv6, with its port.
        (Self::Example, 47),
    ];

    /// What is written above it.
    #[must_use]
    pub const fn title(self) -> &'static str {
        match self {
            Self::Pid => "PID",
            Self::User => "USER",
            Self::HalfOpen => "HALF-OPEN",
            Self::Deferred => "DEFERRED",
            Self::Destinations => "DESTS",
            Self::Oldest => "OLDEST",
            Self::Throttle => "THROTTLE",
            Self::Scope => "SCOPE",
            Self::Program => "PROGRAM",
            Self::Example => "EXAMPLE",
        }
    }

    /// Whether what is in it stands at its right.
    #[must_use]
    pub const fn is_number(self) -> bool {
        match self {
            Self::Pid | Self::HalfOpen | Self::Deferred | Self::Destinations | Self::Oldest => true,
            Self::User | Self::Throttle | Self::Scope | Self::Program | Self::Example => false,
        }
    }

    /// How wide it is at least.
    const fn least(self) -> usize {
        match self {
            // PID_MAX_LIMIT of include/linux/threads.h has seven digits.
            Self::Pid => 7,
            Self::User | Self::Deferred | Self::Throttle => 8,
            Self::HalfOpen => 9,
            Self::Destinations | Self::Oldest => 6,
            Self::Scope => 12,
            Self::Program => 10,
            // IPv4, with its port.
            Self::Example => 21,
        }
    }

    /// What is in it.
    #[must_use]
    pub fn cell(self, row: &Row) -> String {
        let or_none = |name: Option<Name>| name.map_or_else(|| NONE.into(), |n| n.to_string());
        match self {
            Self::Pid => row.pid().map_or_else(|| NONE.into(), |pid| pid.to_string()),
            Self::User => or_none(row.user_name()),
            Self::HalfOpen => row.half_open.to_string(),
            Self::Deferred => row.deferred.to_string(),
            Self::Destinations => row.destinations.to_string(),
            Self::Oldest => age(row.oldest),
            Self::Throttle => row.throttle.to_string(),
            Self::Scope => format!("{} {}", row.scope.kind, row.scope.name),
            Self::Program => program(row),
            Self::Example => row.destination.to_string(),
        }
    }
}

/// The program, and where it runs.
fn program(row: &Row) -> String {
    let mut text = match (&row.owner, &row.who) {
        (Owner::Cgroup, Some(Who::Cgroup { candidates, .. })) if !candidates.is_empty() => {
            let names: Vec<&str> = candidates.iter().map(|c| c.name.as_str()).collect();
            format!("{}?", names.join("? "))
        }
        (Owner::Source(_), _) => format!("from {}", row.program()),
        (Owner::Process { .. } | Owner::Cgroup, _) => row.program().to_string(),
    };
    if row.has_exited() {
        text += " (ended)";
    }
    if let Some(place) = row.cgroup.as_ref().and_then(place) {
        text += " in ";
        text += &place;
    }
    text
}

/// The id of the root of all control groups (the first inode of its kernfs).
const ROOT_CGROUP: u64 = 1;

/// A control group, by what it is known as: its container, else its path. None if
/// it is the root of all.
fn place(cgroup: &Cgroup) -> Option<Cow<'_, str>> {
    if let Some(container) = &cgroup.container {
        let runtime = container.runtime.unwrap_or("container");
        let id: String = container.id.chars().take(CONTAINER_DIGITS).collect();
        return Some(format!("{runtime} {id}").into());
    }
    match cgroup.path.as_ref().map(Name::as_str) {
        Some("/") => None,
        Some(path) => Some(path.into()),
        None if cgroup.id == ROOT_CGROUP => None,
        None => Some(format!("cgroup {}", cgroup.id).into()),
    }
}

/// A span of time in at most six characters: `0.4s`, `59s`, `3m04s`, `2h05m`,
/// `1d03h`, `999d`.
#[must_use]
pub fn age(span: Duration) -> String {
    let (seconds, tenths) = (span.as_secs(), span.subsec_millis() / 100);
    let (minutes, hours, days) = (seconds / 60, seconds / 3_600, seconds / 86_400);
    match seconds {
        0..10 => format!("{seconds}.{tenths}s"),
        10..60 => format!("{seconds}s"),
        60..3_600 => format!("{minutes}m{:02}s", seconds % 60),
        3_600..86_400 => format!("{hours}h{:02}m", minutes % 60),
        86_400..8_640_000 => format!("{days}d{:02}h", hours % 24),
        _ => format!("{}d", days.min(99_999)),
    }
}

/// The columns that fit into `width`, from left to right, each with its width. There
/// is a space between two. `are_several`: whether there is more than one throttle.
#[must_use]
pub fn fit(width: usize, are_several: bool) -> Vec<(Column, usize)> {
    let mut chosen: Vec<(Column, usize)> = Vec::new();
    let mut used = 0;
    for column in Column::BY_WEIGHT {
        if column == Column::Throttle && !are_several {
            continue;
        }
        let more = column.least() + usize::from(!chosen.is_empty());
        // The first one is there in any case, be it ever so narrow.
        if used + more > width && !chosen.is_empty() {
            break;
        }
        chosen.push((column, column.least().min(width)));
        used += more;
    }
    let mut left = width.saturating_sub(used);
    for (growing, most) in Column::GROWING {
        for (column, width) in &mut chosen {
            if *column == growing {
                let more = left.min(most.saturating_sub(*width));
                *width += more;
                left -= more;
            }
        }
    }
    for (column, width) in &mut chosen {
        if *column == Column::Program {
            *width += left;
        }
    }
    chosen.sort_by_key(|(column, _)| *column);
    chosen
}

/// The columns that hold `rows` uncut, from left to right, each with its width.
#[must_use]
pub fn natural<'a>(
    rows: impl Iterator<Item = &'a Row> + Clone,
    are_several: bool,
) -> Vec<(Column, usize)> {
    let shown = Column::ALL
        .into_iter()
        .filter(|column| *column != Column::Throttle || are_several);
    shown
        .map(|column| {
            let cells = rows.clone().map(|row| width_of(&column.cell(row)));
            let widest = cells.max().unwrap_or(0);
            (column, widest.max(column.title().len()))
        })
        .collect()
}

/// A line of the table: a cell for each column, cut or filled up to its width.
#[must_use]
pub fn line(columns: &[(Column, usize)], cell: impl Fn(Column) -> String) -> String {
    let mut line = String::new();
    for (at, (column, width)) in columns.iter().enumerate() {
        if at > 0 {
            line.push(' ');
        }
        let text = cell(*column);
        let text = cut(&text, *width);
        let blank = " ".repeat(width.saturating_sub(width_of(&text)));
        if column.is_number() {
            line += &blank;
            line += &text;
        } else {
            line += &text;
            line += &blank;
        }
    }
    line
}

/// How many cells of a terminal a text takes.
#[must_use]
pub fn width_of(text: &str) -> usize {
    Span::raw(text).width()
}

/// A text in at most `width` cells; an ellipsis stands for what does not fit.
#[must_use]
pub fn cut(text: &str, width: usize) -> Cow<'_, str> {
    if width_of(text) <= width {
        return text.into();
    }
    let mut kept = String::new();
    let mut used = 0;
    let mut buffer = [0; 4];
    for c in text.chars() {
        used += width_of(c.encode_utf8(&mut buffer));
        if used + 1 > width {
            break;
        }
        kept.push(c);
    }
    if width > 0 {
        kept.push('…');
    }
    kept.into()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn titles(width: usize) -> Vec<&'static str> {
        let columns = fit(width, true);
        columns.iter().map(|(column, _)| column.title()).collect()
    }

    #[test]
    fn a_narrow_terminal_has_the_columns_that_matter_most() {
        assert_eq!(titles(10), ["PROGRAM"]);
        assert_eq!(titles(20), ["HALF-OPEN", "PROGRAM"]);
        assert_eq!(titles(40), ["PID", "HALF-OPEN", "DEFERRED", "PROGRAM"]);
        assert_eq!(titles(200).len(), Column::ALL.len());
        assert!(!fit(200, false).iter().any(|(c, _)| *c == Column::Throttle));
    }

    #[test]
    fn a_span_of_time_is_told_in_what_fits_it() {
        let told = |seconds: u64| age(Duration::from_secs(seconds));
        assert_eq!(age(Duration::from_millis(440)), "0.4s");
        assert_eq!(told(59), "59s");
        assert_eq!(told(184), "3m04s");
        assert_eq!(told(2 * 3_600 + 5 * 60), "2h05m");
        assert_eq!(told(86_400 + 3 * 3_600), "1d03h");
        assert_eq!(told(200 * 86_400), "200d");
    }

    #[test]
    fn what_is_wide_counts_for_two() {
        assert_eq!(width_of("日本"), 4);
        assert_eq!(cut("日本語", 5), "日本…");
        assert_eq!(cut("日本語", 4), "日…");
        assert_eq!(cut("curl", 4), "curl");
        assert_eq!(cut("curl", 0), "");
    }

    proptest! {
        #[test]
        fn columns_fill_the_width_and_no_more(width in 0usize..400, several in any::<bool>()) {
            let columns = fit(width, several);
            let sum: usize = columns.iter().map(|(_, width)| width).sum();
            prop_assert_eq!(sum + columns.len() - 1, width);
            prop_assert!(columns.is_sorted_by_key(|(column, _)| *column));
        }

        #[test]
        fn a_wider_terminal_loses_no_column(width in 0usize..400, several in any::<bool>()) {
            let wider = fit(width + 1, several);
            for (column, _) in fit(width, several) {
                prop_assert!(wider.iter().any(|(c, _)| *c == column));
            }
        }

        #[test]
        fn a_text_is_cut_to_its_width(text in any::<String>(), width in 0usize..40) {
            let text = Name::new(&text);
            prop_assert!(width_of(&cut(text.as_str(), width)) <= width);
        }

        #[test]
        fn any_span_of_time_fits(seconds in any::<u64>()) {
            prop_assert!(age(Duration::from_secs(seconds)).len() <= 6);
        }
    }
}
