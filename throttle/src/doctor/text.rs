//! The report for people: a line for each finding, and what to do below it.

use std::fmt::Write as _;

use super::{Finding, Report, State, first_of, interfaces::Group};

/// Most groups of interfaces that are told; the rest is counted.
const GROUPS_SHOWN: usize = 32;
/// Most names of a group that are told.
const NAMES_SHOWN: usize = 4;

/// Widths of the first two columns.
const STATE: usize = 8;
const CHECK: usize = 20;

impl Report {
    /// The report as text: short, however many interfaces there are. Those of
    /// which the same is to be said are told together.
    #[must_use]
    pub fn text(&self) -> String {
        let mut text = String::new();
        write_all(&mut text, &self.findings);
        // What is missing, then what is worth a look.
        let mut groups: Vec<&Group> = self.groups.iter().collect();
        groups.sort_by_key(|group| std::cmp::Reverse(worst(&group.findings)));
        for group in groups.iter().take(GROUPS_SHOWN) {
            write_group(&mut text, group);
        }
        let rest = groups.iter().skip(GROUPS_SHOWN);
        let rest: usize = rest.map(|group| group.names.len()).sum();
        if rest > 0 {
            let found = format!("{rest} more, which differ from these; -o json has them all");
            write_all(&mut text, &[Finding::note("interfaces", found)]);
        }
        text += &self.conclusion();
        text
    }

    fn conclusion(&self) -> String {
        let of_interfaces = self.interfaces.iter().flat_map(|one| &one.findings);
        let all = self.findings.iter().chain(of_interfaces);
        let missing = all
            .filter(|finding| finding.state == State::Missing)
            .count();
        match missing {
            0 => "throttle can run here\n".into(),
            1 => "throttle cannot run here: 1 thing is missing\n".into(),
            more => format!("throttle cannot run here: {more} things are missing\n"),
        }
    }
}

fn worst(findings: &[Finding]) -> State {
    let states = findings.iter().map(|finding| finding.state);
    states.max().unwrap_or(State::Ok)
}

fn write_group(text: &mut String, group: &Group) {
    let count = group.names.len();
    if count == 1 {
        return write_all(text, &group.findings);
    }
    let names = group.names.iter().map(String::as_str);
    let names = first_of(names, NAMES_SHOWN);
    let check = format!("{count} interfaces");
    let mut findings = group.findings.clone();
    for finding in &mut findings {
        finding.check.clone_from(&check);
    }
    if let Some(first) = findings.first_mut() {
        first.found = format!("{names}: {}", first.found);
    }
    write_all(text, &findings);
}

/// A remedy that is that of the next one too is written there.
fn write_all(text: &mut String, findings: &[Finding]) {
    for (index, finding) in findings.iter().enumerate() {
        let next = findings.get(index + 1);
        write_one(text, finding);
        if let Some(remedy) = &finding.remedy
            && next.is_none_or(|next| next.remedy.as_ref() != Some(remedy))
        {
            let indent = STATE + 1 + CHECK + 1;
            // Writing to a string does not fail.
            let _ = writeln!(text, "{:indent$}-> {remedy}", "");
        }
    }
}

fn write_one(text: &mut String, finding: &Finding) {
    let state = match finding.state {
        State::Ok => "ok",
        State::Note => "note",
        State::Missing => "missing",
    };
    // The log of a verifier has lines.
    let found = finding.found.replace('\n', " ");
    let _ = write!(text, "{state:STATE$} {:CHECK$} {found}", finding.check);
    if let Some(what) = finding.needed_for {
        let _ = write!(text, "; needed for {what}");
    }
    text.push('\n');
}
