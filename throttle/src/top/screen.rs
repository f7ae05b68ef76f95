//! How the live table looks: lines of text for a terminal of any size.

use std::time::Duration;

use jiff::Timestamp;
use ratatui::{
    Frame,
    style::{Color, Modifier, Style},
    text::{Line, Span},
};
use throttle_common::record::Tally;

use super::{
    columns::{self, age, cut, width_of},
    once::first_line,
    rows::{Row, State},
    view::{Mode, Target, View},
};
use crate::{
    event::{Cgroup, Who},
    name::Name,
};

/// Rows that come before everything but the titles.
const ROWS_LEAST: usize = 3;
/// Throttles that have a line of their own.
const THROTTLES_MOST: usize = 4;
/// Lines that a question or a note may take.
const PROMPT_MOST: usize = 6;

/// What the keys do.
const HELP: [(&str, &str); 16] = [
    ("up down k j", "select"),
    ("PgUp PgDn", "select a page away"),
    ("Home End g G", "select the first, the last"),
    ("Esc", "no filter; then, no selection"),
    ("s", "sort by the next column"),
    ("a h d", "sort by attempts, half-open, deferred"),
    ("o n", "sort by oldest, number of destinations"),
    ("i u m", "sort by pid, user, program"),
    ("r", "the other way round"),
    ("/", "show only rows with a text in them"),
    ("p space", "pause"),
    ("Ctrl-L", "look now"),
    ("e", "end the selected program, after a question"),
    ("Ctrl-Z", "to the shell; fg leads back"),
    ("?", "this page; any key leads back"),
    ("q Ctrl-C", "quit"),
];

const HINTS: &str = "q quit  s sort  r reverse  / filter  e end  p pause  ? help";

/// How the lines of the terminal are divided.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Plan {
    /// Lines above the table.
    head: usize,
    /// Whether the columns have titles.
    has_titles: bool,
    /// Rows.
    rows: usize,
    /// Lines about the selected row.
    details: usize,
    /// Lines of a question, a note, or hints.
    prompt: usize,
}

impl Plan {
    /// Divides `lines`, of which the parts would like so many. A question comes
    /// first, then some rows, then the rest.
    fn new(lines: usize, head: usize, details: usize, prompt: usize, is_asking: bool) -> Self {
        let mut left = lines;
        let mut take = |wanted: usize, keep: usize| {
            let taken = wanted.min(left.saturating_sub(keep));
            left -= taken;
            taken
        };
        let asked = take(if is_asking { prompt } else { 0 }, 0);
        let has_titles = take(1, 1) == 1;
        let head = take(head, ROWS_LEAST);
        let details = take(details, ROWS_LEAST);
        let hints = take(if is_asking { 0 } else { prompt }, ROWS_LEAST + 1);
        Self {
            head,
            has_titles,
            rows: left,
            details,
            prompt: asked + hints,
        }
    }
}

/// How many rows there is room for.
pub(super) fn room_for_rows(view: &View) -> usize {
    plan(view).rows
}

fn plan(view: &View) -> Plan {
    let prompt = prompt(view);
    Plan::new(
        view.size.1.into(),
        head(view).len(),
        details(view).len(),
        prompt.map_or(1, |lines| lines.len()),
        view.mode != Mode::Table && view.mode != Mode::Help || view.note.is_some(),
    )
}

/// The whole screen: as many lines as the terminal has, none of them wider.
#[must_use]
pub fn lines(view: &View) -> Vec<Line<'static>> {
    let plan = plan(view);
    let mut lines: Vec<Line<'static>> = head(view).into_iter().take(plan.head).collect();
    if view.mode == Mode::Help {
        let room = usize::from(plan.has_titles) + plan.rows + plan.details;
        lines.extend(filled(help(), room));
    } else {
        if plan.has_titles {
            lines.push(titles(view));
        }
        lines.extend(filled(table(view, plan.rows), plan.rows));
        lines.extend(details(view).into_iter().take(plan.details));
    }
    let prompt = prompt(view).unwrap_or_else(|| vec![Line::from(HINTS).style(dim())]);
    lines.extend(prompt.into_iter().take(plan.prompt));
    let width = view.size.0.into();
    lines.into_iter().map(|line| within(line, width)).collect()
}

/// Draws the screen.
pub fn draw(view: &View, frame: &mut Frame<'_>) {
    let area = frame.area();
    for (y, line) in (area.top()..area.bottom()).zip(lines(view)) {
        frame
            .buffer_mut()
            .set_line(area.left(), y, &line, area.width);
    }
}

fn bold() -> Style {
    Style::new().add_modifier(Modifier::BOLD)
}

fn dim() -> Style {
    Style::new().add_modifier(Modifier::DIM)
}

fn warning() -> Style {
    Style::new().fg(Color::Red).add_modifier(Modifier::BOLD)
}

/// Exactly `room` lines.
fn filled(mut lines: Vec<Line<'static>>, room: usize) -> Vec<Line<'static>> {
    lines.resize(room, Line::default());
    lines
}

/// A line that is not wider than `width`.
fn within(line: Line<'static>, width: usize) -> Line<'static> {
    if line.width() <= width {
        return line;
    }
    let mut left = width;
    let mut spans = Vec::new();
    for span in line.spans {
        let text = cut(&span.content, left).into_owned();
        left -= width_of(&text).min(left);
        spans.push(Span::styled(text, span.style));
    }
    Line::from(spans).style(line.style)
}

/// What is above the table, the most important first.
fn head(view: &View) -> Vec<Line<'static>> {
    let snapshot = &view.snapshot;
    let shown: Vec<&Row> = view
        .shown
        .iter()
        .map(|index| &snapshot.rows[*index])
        .collect();
    let mut first = vec![
        Span::styled("throttle top", bold()),
        Span::raw(format!(
            " {}  {}",
            clock(snapshot.at_ns),
            super::once::summary(&shown)
        )),
    ];
    if view.is_paused {
        first.push(Span::styled("  PAUSED", warning()));
    }
    let reversed = if view.order.is_reversed {
        " reversed"
    } else {
        ""
    };
    first.push(Span::raw(format!(
        "  by {}{reversed}",
        view.order.by.word()
    )));
    if !view.filter.is_empty() && view.mode != Mode::Filter {
        let filter = Name::new(&view.filter);
        first.push(Span::raw(format!("  only with \"{filter}\"")));
    }
    let mut lines = vec![Line::from(first)];
    if let Some(failure) = &view.failure {
        let said = format!("the last look failed: {failure}");
        lines.push(Line::styled(said, warning()));
    }
    let states: Vec<&State> = snapshot
        .throttles
        .iter()
        .filter_map(|throttle| throttle.state.as_ref().ok())
        .collect();
    if states.iter().any(|state| !state.is_whole) {
        let said = "more attempts than are looked at: numbers are too low";
        lines.push(Line::styled(said, warning()));
    }
    if !states.is_empty() {
        lines.push(Line::from(movement(&states)));
    }
    // Those with a trouble first, should there be no room for all.
    let mut throttles: Vec<_> = snapshot.throttles.iter().collect();
    throttles.sort_by_key(|throttle| throttle.state.is_ok() && throttle.keeper().1);
    let left_out = throttles.len().saturating_sub(THROTTLES_MOST);
    let with_line = throttles.len() - if left_out > 0 { left_out + 1 } else { 0 };
    for throttle in &throttles[..with_line] {
        let (keeper, is_well) = throttle.keeper();
        let mut line = vec![
            Span::styled(throttle.name.to_string(), bold()),
            Span::styled(
                format!(", {keeper}"),
                if is_well { Style::new() } else { warning() },
            ),
        ];
        match &throttle.state {
            Ok(state) => {
                line.push(Span::raw(": "));
                let style = if state.full_scopes > 0 {
                    bold()
                } else {
                    Style::new()
                };
                line.push(Span::styled(state.counts(), style));
                line.push(Span::raw(format!("; {}", state.settings())));
            }
            Err(error) => {
                let error = first_line(&error.to_string());
                line.push(Span::styled(format!(": {error}"), warning()));
            }
        }
        lines.push(Line::from(line));
    }
    if left_out > 0 {
        lines.push(Line::from(format!("and {} throttles more", left_out + 1)));
    }
    lines
}

/// What happens in a second, in all throttles together.
fn movement(states: &[&State]) -> String {
    const TOLD: [(Tally, &str); 5] = [
        (Tally::Attempts, "attempts"),
        (Tally::Deferred, "deferred"),
        (Tally::Released, "released"),
        (Tally::Answered, "answered"),
        (Tally::Overflowed, "overflowed"),
    ];
    let moved: Vec<_> = states.iter().filter_map(|state| state.moved).collect();
    let told = TOLD.map(|(tally, word)| {
        if moved.is_empty() {
            // That takes two looks.
            return format!("- {word}");
        }
        let sum: f64 = moved.iter().map(|moved| moved.per_second(tally)).sum();
        format!("{sum:.1} {word}")
    });
    format!("per second: {}", told.join(", "))
}

/// The time of day, in UTC.
fn clock(at_ns: u64) -> String {
    Timestamp::from_nanosecond(i128::from(at_ns)).map_or_else(
        |_| String::new(),
        |t| t.strftime("%H:%M:%S UTC").to_string(),
    )
}

fn layout(view: &View) -> Vec<(columns::Column, usize)> {
    let are_several = view.snapshot.throttles.len() > 1;
    columns::fit(view.size.0.into(), are_several)
}

fn titles(view: &View) -> Line<'static> {
    let sorted = view.order.by.columns();
    let columns = layout(view);
    let mut spans = Vec::new();
    for (at, column) in columns.iter().enumerate() {
        if at > 0 {
            spans.push(Span::raw(" "));
        }
        let title = columns::line(&[*column], |column| column.title().into());
        let style = if sorted.contains(&column.0) {
            Style::new().add_modifier(Modifier::UNDERLINED)
        } else {
            Style::new()
        };
        spans.push(Span::styled(title, style));
    }
    Line::from(spans).style(bold().add_modifier(Modifier::REVERSED))
}

fn table(view: &View, room: usize) -> Vec<Line<'static>> {
    if view.shown.is_empty() {
        return nothing(view);
    }
    let columns = layout(view);
    let selected = view.selected_at();
    view.sight()
        .zip(view.in_sight())
        .take(room)
        .map(|(at, row)| {
            let line = columns::line(&columns, |column| column.cell(row));
            let style = if selected == Some(at) {
                Style::new().add_modifier(Modifier::REVERSED)
            } else {
                Style::new()
            };
            Line::styled(line, style)
        })
        .collect()
}

/// Why there are no rows.
fn nothing(view: &View) -> Vec<Line<'static>> {
    let snapshot = &view.snapshot;
    let text = if snapshot.throttles.is_empty() {
        match &view.only {
            Some(only) => format!("there is no throttle {only} in this network namespace"),
            None => "there is no throttle in this network namespace: start one with \
                     `throttle run -i IFACE`"
                .into(),
        }
    } else if snapshot.rows.is_empty() {
        "nobody has unanswered attempts".into()
    } else {
        let filter = Name::new(&view.filter);
        format!(
            "none of {} rows has \"{filter}\" in it; Esc shows all",
            snapshot.rows.len()
        )
    };
    wrapped(&text, view.size.0.into(), PROMPT_MOST)
        .into_iter()
        .map(Line::from)
        .collect()
}

fn help() -> Vec<Line<'static>> {
    let lines = HELP.into_iter().map(|(keys, what)| {
        Line::from(vec![
            Span::styled(format!("{keys:>14}"), bold()),
            Span::raw(format!("  {what}")),
        ])
    });
    lines.collect()
}

/// What is known of the selected row.
fn details(view: &View) -> Vec<Line<'static>> {
    let Some(row) = view.selection() else {
        return Vec::new();
    };
    let mut who = row.program().to_string();
    if let Some(process) = row.process() {
        who += &format!(" (pid {})", process.pid);
        if process.has_exited {
            who += ", has ended";
        }
        if let Some(executable) = &process.executable {
            who += &format!(", {executable}");
        }
        if let Some(start_ns) = process.start_ns {
            let ago = Duration::from_nanos(view.snapshot.at_ns.saturating_sub(start_ns));
            who += &format!(", started {} ago", age(ago));
        }
        if let Some(parent) = &process.parent {
            who += &format!(", by {} ({})", parent.name, parent.pid);
        }
    } else if let Some(pid) = row.pid() {
        who += &format!(" (pid {pid})");
    }
    if let Some(Who::Cgroup { candidates, .. }) = &row.who
        && !candidates.is_empty()
    {
        let names = candidates.iter().map(|c| format!("{} ({})", c.name, c.pid));
        who += &format!(", perhaps {}", names.collect::<Vec<_>>().join(", "));
    }
    if let Some(path) = row.cgroup.as_ref().and_then(path) {
        who += &format!(", in {path}");
    }
    let example = format!(
        "for example {} to {}, the oldest unanswered for {}",
        row.source,
        row.destination,
        age(row.oldest)
    );
    vec![Line::styled(who, dim()), Line::styled(example, dim())]
}

fn path(cgroup: &Cgroup) -> Option<&str> {
    cgroup.path.as_ref().map(Name::as_str)
}

/// A question, the filter that is being typed, or a note.
fn prompt(view: &View) -> Option<Vec<Line<'static>>> {
    let width = view.size.0.into();
    match &view.mode {
        Mode::Question(target) => {
            let lines = wrapped(&question(target), width, PROMPT_MOST);
            let styled = lines.into_iter().map(|line| Line::styled(line, warning()));
            Some(styled.collect())
        }
        Mode::Filter => {
            let typed = Name::new(&view.filter);
            Some(vec![Line::from(vec![
                Span::styled("only with: ", bold()),
                Span::raw(typed.to_string()),
                Span::styled(" ", Style::new().add_modifier(Modifier::REVERSED)),
            ])])
        }
        Mode::Table | Mode::Help => {
            let lines = wrapped(view.note.as_ref()?.as_str(), width, PROMPT_MOST);
            let styled = lines.into_iter().map(|line| Line::styled(line, bold()));
            Some(styled.collect())
        }
    }
}

/// The question before a program is ended. What to answer comes first: it is
/// there however narrow the terminal is.
fn question(target: &Target) -> String {
    let of = match &target.user {
        Some(user) => format!(" of {user}"),
        None => String::new(),
    };
    format!(
        "y/N? End {} (pid {}){of}: its {} unanswered connections are closed, then it is asked \
         to end (SIGTERM).",
        target.name, target.pid, target.attempts
    )
}

/// A text in lines of at most `width` cells, broken at spaces where there are some.
/// Of more than `most` lines the rest is cut off.
fn wrapped(text: &str, width: usize, most: usize) -> Vec<String> {
    if width == 0 {
        return Vec::new();
    }
    let mut lines = vec![String::new()];
    let mut used = 0;
    for word in text.split(' ') {
        let len = width_of(word);
        let last = lines.len() - 1;
        if used > 0 && used + 1 + len <= width {
            lines[last].push(' ');
            lines[last] += word;
            used += 1 + len;
            continue;
        }
        if used > 0 {
            lines.push(String::new());
            used = 0;
        }
        // A word that is longer than a line is broken anywhere.
        let mut buffer = [0; 4];
        for c in word.chars() {
            let len = width_of(c.encode_utf8(&mut buffer));
            if used + len > width && used > 0 {
                lines.push(String::new());
                used = 0;
            }
            let last = lines.len() - 1;
            lines[last].push(c);
            used += len;
        }
    }
    if lines.len() > most {
        lines.truncate(most);
        if let Some(last) = lines.last_mut() {
            *last = cut(&format!("{last}…"), width).into_owned();
        }
    }
    lines
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_question_comes_before_all_and_rows_before_the_rest() {
        let plan = |lines, is_asking| Plan::new(lines, 4, 2, 2, is_asking);
        assert_eq!(plan(0, true).prompt, 0);
        assert_eq!(plan(2, true).prompt, 2);
        let five = plan(5, false);
        assert!(five.has_titles && five.rows >= ROWS_LEAST, "{five:?}");
        let whole = plan(24, false);
        assert_eq!((whole.head, whole.details, whole.prompt), (4, 2, 2));
        assert_eq!(whole.rows, 24 - 4 - 2 - 2 - 1);
    }

    #[test]
    fn a_text_is_broken_at_spaces() {
        assert_eq!(wrapped("end this one now", 8, 9), ["end this", "one now"]);
        assert_eq!(
            wrapped("a verylongword", 5, 9),
            ["a", "veryl", "ongwo", "rd"]
        );
        assert_eq!(wrapped("a b c d", 1, 2), ["a", "…"]);
        assert!(wrapped("text", 0, 9).is_empty());
    }

    proptest! {
        #[test]
        fn every_line_of_a_terminal_has_its_use(
            lines in 0usize..60, head in 0usize..9, details in 0usize..3, prompt in 0usize..6, is_asking in any::<bool>(),
        ) {
            let plan = Plan::new(lines, head, details, prompt, is_asking);
            let sum = plan.head + usize::from(plan.has_titles) + plan.rows + plan.details + plan.prompt;
            prop_assert_eq!(sum, lines);
        }

        #[test]
        fn a_wrapped_text_is_never_too_wide(text in any::<String>(), width in 2usize..40, most in 1usize..9) {
            let lines = wrapped(Name::new(&text).as_str(), width, most);
            prop_assert!(lines.len() <= most);
            prop_assert!(lines.iter().all(|line| width_of(line) <= width), "{:?}", lines);
        }
    }
}
