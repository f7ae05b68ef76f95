//! The state of the live table, and what keys do to it.

use std::{collections::HashMap, ops::Range, time::Duration};

use crossterm::event::{KeyCode, KeyEvent, KeyEventKind, KeyModifiers};

use super::{
    order::{Filter, Order, Sort, chosen},
    rows::{Key, Owner, Row, Snapshot},
    screen,
};
use crate::{event::Who, name::Name};

/// Most characters of a filter.
const FILTER_MAX: usize = 64;

/// What a key asks for that is not in the table's own power.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Action {
    /// Nothing.
    None,
    /// End.
    Quit,
    /// Give the terminal back for a while.
    Suspend,
    /// Look now.
    Look,
    /// End this program.
    End(Target),
}

/// A program that may be ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Target {
    /// Its process id (tgid).
    pub pid: u32,
    /// When it started, in nanoseconds since boot: what has the number later is
    /// another one.
    pub start_ns: u64,
    /// Its name.
    pub name: Name,
    /// Its user.
    pub user: Option<Name>,
    /// The unanswered attempts that were seen of it.
    pub attempts: u64,
}

/// What keys are for.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub enum Mode {
    /// The table.
    #[default]
    Table,
    /// The filter is being typed.
    Filter,
    /// What the keys do is shown.
    Help,
    /// Whether this program is to be ended.
    Question(Target),
}

/// The state of the live table.
#[derive(Debug)]
pub struct View {
    /// Columns and lines of the terminal.
    pub(super) size: (u16, u16),
    pub(super) mode: Mode,
    pub(super) order: Order,
    pub(super) filter: String,
    pub(super) is_paused: bool,
    pub(super) interval: Duration,
    /// The only throttle that is asked for.
    pub(super) only: Option<Name>,
    pub(super) snapshot: Snapshot,
    /// Why the last look failed, if it did.
    pub(super) failure: Option<Name>,
    /// What came of something that was asked for.
    pub(super) note: Option<Name>,
    /// Rows that are shown, in order.
    pub(super) shown: Vec<usize>,
    /// The row that is selected, and where it is or was last.
    selected: Option<(Key, usize)>,
    /// The first row on the screen.
    first: usize,
    /// Who is behind rows that were asked for.
    who: HashMap<Key, Who>,
}

impl View {
    /// A table of what was seen. `only`: the only throttle that is asked for.
    #[must_use]
    pub fn new(
        snapshot: Snapshot,
        order: Order,
        filter: &str,
        interval: Duration,
        only: Option<&str>,
    ) -> Self {
        let mut view = Self {
            size: (80, 24),
            mode: Mode::Table,
            order,
            filter: filter.to_owned(),
            is_paused: false,
            interval,
            only: only.map(Name::new),
            snapshot,
            failure: None,
            note: None,
            shown: Vec::new(),
            selected: None,
            first: 0,
            who: HashMap::new(),
        };
        view.arrange();
        view
    }

    /// The terminal has this many columns and lines.
    pub fn resize(&mut self, columns: u16, lines: u16) {
        self.size = (columns, lines);
        self.keep_in_sight();
    }

    /// Shows another look.
    pub fn show(&mut self, snapshot: Snapshot) {
        self.snapshot = snapshot;
        self.failure = None;
        let mut who = std::mem::take(&mut self.who);
        for row in &mut self.snapshot.rows {
            // What is not there any more need not be remembered.
            if let Some(who) = who.remove(&row.key) {
                row.learn(who.clone());
                self.who.insert(row.key.clone(), who);
            }
        }
        self.arrange();
    }

    /// A look failed: what was seen before stays.
    pub fn fail(&mut self, error: &str) {
        self.failure = Some(super::once::first_line(error));
        self.keep_in_sight();
    }

    /// Says what came of something.
    pub fn say(&mut self, text: &str) {
        // Of several lines one text.
        let lines: Vec<&str> = text.lines().map(str::trim).collect();
        self.note = Some(Name::new(lines.join("; ")));
        self.keep_in_sight();
    }

    /// Notes who is behind rows.
    pub fn learn(&mut self, named: Vec<(Key, Who)>) {
        self.who.extend(named);
        for row in &mut self.snapshot.rows {
            if let Some(who) = self.who.get(&row.key) {
                row.learn(who.clone());
            }
        }
    }

    /// Whether looks are wanted.
    #[must_use]
    pub const fn is_live(&self) -> bool {
        !self.is_paused
    }

    /// The rows on the screen, from top to bottom.
    pub fn in_sight(&self) -> impl Iterator<Item = &Row> {
        let shown = &self.shown[self.sight()];
        shown.iter().map(|index| &self.snapshot.rows[*index])
    }

    /// Where they are among those that are shown.
    pub(super) fn sight(&self) -> Range<usize> {
        let end = (self.first + self.page()).min(self.shown.len());
        self.first.min(end)..end
    }

    /// The selected row, if it is shown.
    #[must_use]
    pub fn selection(&self) -> Option<&Row> {
        let at = self.selected_at()?;
        Some(&self.snapshot.rows[self.shown[at]])
    }

    /// Where it is among those that are shown.
    pub(super) fn selected_at(&self) -> Option<usize> {
        let (key, at) = self.selected.as_ref()?;
        let is_it = |index: &usize| self.snapshot.rows[*index].key == *key;
        self.shown.get(*at).is_some_and(is_it).then_some(*at)
    }

    /// How many rows there is room for.
    fn page(&self) -> usize {
        screen::room_for_rows(self)
    }

    /// Chooses and sorts rows anew. The selection stays on its owner.
    fn arrange(&mut self) {
        let filter = Filter::new(&self.filter);
        self.shown = chosen(&self.snapshot.rows, self.order, &filter);
        if let Some((key, at)) = &mut self.selected {
            let rows = &self.snapshot.rows;
            let now = self.shown.iter().position(|index| rows[*index].key == *key);
            // If it is gone: where it was, it may come again.
            *at = now.unwrap_or(*at);
        }
        self.keep_in_sight();
    }

    fn keep_in_sight(&mut self) {
        // The selection first: its details take room.
        let page = self.page();
        if let Some(at) = self.selected_at() {
            let highest = (at + 1).saturating_sub(page.max(1));
            self.first = self.first.clamp(highest, at);
        }
        self.first = self.first.min(self.shown.len().saturating_sub(page));
    }

    /// Selects the row at `at`, or the last one.
    fn select(&mut self, at: usize) {
        let at = at.min(self.shown.len().saturating_sub(1));
        self.selected = self
            .shown
            .get(at)
            .map(|index| (self.snapshot.rows[*index].key.clone(), at));
        self.keep_in_sight();
    }

    /// Moves the selection down by `by`, or up.
    fn go(&mut self, by: isize) {
        let to = match &self.selected {
            Some((_, at)) => at.saturating_add_signed(by),
            // The first step is onto the table.
            None => self.first.saturating_add_signed((by - 1).max(0)),
        };
        self.select(to);
    }

    /// What a key does.
    pub fn key(&mut self, key: KeyEvent) -> Action {
        if key.kind == KeyEventKind::Release {
            return Action::None;
        }
        let is_control = key.modifiers.contains(KeyModifiers::CONTROL);
        if is_control && key.code == KeyCode::Char('c') {
            return Action::Quit;
        }
        if is_control && key.code == KeyCode::Char('z') {
            return Action::Suspend;
        }
        self.note = None;
        let action = match std::mem::take(&mut self.mode) {
            Mode::Table if is_control => self.control_key(key.code),
            Mode::Table => self.table_key(key.code),
            Mode::Filter => {
                self.filter_key(key.code, is_control);
                Action::None
            }
            // Any key leads back.
            Mode::Help => Action::None,
            // Anything but a yes is a no.
            Mode::Question(target)
                if matches!(key.code, KeyCode::Char('y' | 'Y')) && !is_control =>
            {
                Action::End(target)
            }
            Mode::Question(_) => {
                self.say("nothing was ended");
                Action::None
            }
        };
        self.keep_in_sight();
        action
    }

    #[expect(clippy::wildcard_enum_match_arm, reason = "all other keys do nothing")]
    fn control_key(&mut self, code: KeyCode) -> Action {
        match code {
            // Less and vi have these.
            KeyCode::Char('f') => self.go(self.whole_page()),
            KeyCode::Char('b') => self.go(-self.whole_page()),
            KeyCode::Char('l') => return Action::Look,
            _ => {}
        }
        Action::None
    }

    fn whole_page(&self) -> isize {
        isize::try_from(self.page().max(1)).unwrap_or(1)
    }

    #[expect(clippy::wildcard_enum_match_arm, reason = "all other keys do nothing")]
    fn table_key(&mut self, code: KeyCode) -> Action {
        match code {
            KeyCode::Char('q') => return Action::Quit,
            KeyCode::Char('?') | KeyCode::F(1) => self.mode = Mode::Help,
            KeyCode::Down | KeyCode::Char('j') => self.go(1),
            KeyCode::Up | KeyCode::Char('k') => self.go(-1),
            KeyCode::PageDown => self.go(self.whole_page()),
            KeyCode::PageUp => self.go(-self.whole_page()),
            KeyCode::Home | KeyCode::Char('g') => self.select(0),
            KeyCode::End | KeyCode::Char('G') => self.select(usize::MAX),
            KeyCode::Char('/') => self.mode = Mode::Filter,
            KeyCode::Char('p' | ' ') => {
                self.is_paused = !self.is_paused;
                if self.is_live() {
                    return Action::Look;
                }
            }
            KeyCode::Char('r') => {
                self.order.is_reversed = !self.order.is_reversed;
                self.arrange();
            }
            KeyCode::Char('s') => self.sort(self.order.by.next()),
            KeyCode::Char('a') => self.sort(Sort::Attempts),
            KeyCode::Char('h') => self.sort(Sort::HalfOpen),
            KeyCode::Char('d') => self.sort(Sort::Deferred),
            KeyCode::Char('o') => self.sort(Sort::Oldest),
            KeyCode::Char('n') => self.sort(Sort::Destinations),
            KeyCode::Char('i') => self.sort(Sort::Pid),
            KeyCode::Char('u') => self.sort(Sort::User),
            KeyCode::Char('m') => self.sort(Sort::Program),
            KeyCode::Char('e') => self.ask_to_end(),
            KeyCode::Esc => {
                if self.filter.is_empty() {
                    self.selected = None;
                }
                self.filter.clear();
                self.arrange();
            }
            _ => {}
        }
        Action::None
    }

    fn sort(&mut self, by: Sort) {
        self.order = Order {
            by,
            is_reversed: false,
        };
        self.arrange();
    }

    #[expect(clippy::wildcard_enum_match_arm, reason = "all other keys do nothing")]
    fn filter_key(&mut self, code: KeyCode, is_control: bool) {
        match code {
            KeyCode::Enter => {}
            KeyCode::Esc => self.filter.clear(),
            KeyCode::Char('u') if is_control => {
                self.filter.clear();
                self.mode = Mode::Filter;
            }
            KeyCode::Backspace => {
                // On an empty line it leads back.
                if self.filter.pop().is_some() {
                    self.mode = Mode::Filter;
                }
            }
            KeyCode::Char(c) if !is_control => {
                if self.filter.chars().count() < FILTER_MAX {
                    self.filter.push(c);
                }
                self.mode = Mode::Filter;
            }
            _ => self.mode = Mode::Filter,
        }
        self.arrange();
    }

    fn ask_to_end(&mut self) {
        let Some(row) = self.selection() else {
            let why = if self.selected.is_some() {
                "what was selected has no unanswered attempts any more: select another one"
            } else {
                "select a program first, with the arrow keys"
            };
            self.say(why);
            return;
        };
        let Owner::Process { pid, start_ns, .. } = row.owner else {
            self.say("it is not known which process this is: there is nothing to end");
            return;
        };
        if row.has_exited() {
            let text = format!("{} (pid {pid}) has ended already", row.program());
            self.say(&text);
            return;
        }
        let of_it = self.snapshot.rows.iter().filter(|other| {
            matches!(other.owner, Owner::Process { pid: p, start_ns: s, .. } if (p, s) == (pid, start_ns))
        });
        self.mode = Mode::Question(Target {
            pid,
            start_ns,
            name: row.program(),
            user: row.user_name(),
            attempts: of_it.map(Row::attempts).sum(),
        });
    }
}
