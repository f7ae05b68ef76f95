//! What the machines said: read from their consoles, kept, and shown as a table.

use std::{collections::BTreeMap, fmt::Write as _, fs, io::ErrorKind, ops::AddAssign};

use anyhow::{Context as _, Result};

use super::folder;

/// What lines of ours begin with.
const OURS: &str = "throttle-vm: ";
/// What the names of files with results end with.
const EXTENSION: &str = "results";

/// What a kernel says on its console when it dies.
const DYING: [&str; 3] = ["Oops", "BUG: ", "Kernel panic"];

/// What a failure is of that is none of a test program.
const MACHINE: &str = "machine";
/// What lines of such a file begin with that tell what was measured.
const MEASURED: &str = "measured ";
/// What lines of such a file begin with that tell what a test program was built from.
const BUILT: &str = "built ";

/// Reads `PROGRAM WHAT`.
fn read_of_program(line: &str) -> Option<(String, String)> {
    let (program, what) = line.split_once(' ')?;
    Some((program.to_owned(), what.trim().to_owned()))
}

/// What a line of the console meant for who waits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Said {
    /// A test program begins.
    Begins,
    /// It has ended.
    Ends,
    /// Nothing of that kind.
    Other,
}

/// How a test ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum End {
    Passed,
    Failed,
    Skipped,
}

/// The end of one test on one kernel.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Test {
    program: String,
    name: String,
    end: End,
    why: String,
}

/// What one machine said.
#[derive(Debug, Default)]
pub(super) struct Results {
    release: String,
    tests: Vec<Test>,
    /// What they measured, and in which program.
    measured: Vec<(String, String)>,
    /// Of which commit each program was that had to do with them.
    built: BTreeMap<String, String>,
    /// The commit that they are run for.
    commit: String,
    /// The test program that runs.
    running: Option<String>,
    /// The first words of a kernel that died.
    died: Option<String>,
    /// The machine's own last word.
    decided: Option<String>,
}

impl Results {
    pub(super) fn new(release: &str, commit: &str) -> Self {
        Self {
            release: release.to_owned(),
            commit: commit.to_owned(),
            ..Self::default()
        }
    }

    /// The kernel's version.
    pub(super) fn release(&self) -> &str {
        &self.release
    }

    /// The version without what its builder added to it: numbers, and a number of a
    /// package behind them.
    pub(super) fn version(&self) -> &str {
        let is_number = |c: char| c.is_ascii_digit() || c == '.';
        let end = |text: &str| text.find(|c| !is_number(c)).unwrap_or(text.len());
        let numbers = end(&self.release);
        let package = self.release[numbers..].strip_prefix('-').map_or(0, end);
        if package == 0 {
            &self.release[..numbers]
        } else {
            &self.release[..numbers + 1 + package]
        }
    }

    /// Takes a line of the console.
    pub(super) fn take(&mut self, line: &str) -> Said {
        // A terminal's control codes may stand before the first line.
        let Some((_, ours)) = line.split_once(OURS) else {
            let words = DYING.iter().find_map(|words| line.find(words));
            if let Some(from) = words
                && self.died.is_none()
            {
                self.died = Some(line[from..].to_owned());
            }
            return Said::Other;
        };
        let (kind, rest) = ours.split_once(' ').unwrap_or((ours, ""));
        match kind {
            "begin" => {
                self.running = Some(rest.to_owned());
                return Said::Begins;
            }
            "end" => {
                self.running = None;
                return Said::Ends;
            }
            "test" => self.tests.extend(Test::read(rest)),
            "measured" => self.measured.extend(read_of_program(rest)),
            "error:" => self.fails(rest),
            _ => self.decided = Some(ours.to_owned()),
        }
        Said::Other
    }

    /// The machine as a whole failed.
    pub(super) fn fails(&mut self, why: &str) {
        let program = self.running.take().unwrap_or_else(|| MACHINE.to_owned());
        self.tests.push(Test {
            program,
            name: "(all)".to_owned(),
            end: End::Failed,
            why: why.to_owned(),
        });
    }

    /// There is nothing more to take. What the machine decided must be what it said of
    /// each test.
    pub(super) fn finish(&mut self) {
        let total = self.total();
        if let (None, Some(words)) = (&self.decided, self.died.take()) {
            self.fails(&format!("its kernel died: {words}"));
            return;
        }
        if self.tests.is_empty() {
            self.fails("no test was run");
            return;
        }
        match self.decided.take() {
            Some(decided) if decided == total => {}
            Some(decided) => self.fails(&format!("it decided {decided}, but said {total}")),
            None if self.failures().next().is_some() => {}
            None => self.fails("it ended without a result"),
        }
    }

    /// Those that failed, and why.
    pub(super) fn failures(&self) -> impl Iterator<Item = String> {
        let failed = self.tests.iter().filter(|test| test.end == End::Failed);
        failed.map(|test| format!("{}: {}: {}", test.program, test.name, test.why))
    }

    /// How many ended how.
    pub(super) fn tally(&self) -> Tally {
        Tally::of(self.tests.iter())
    }

    /// The same as the machine says it.
    pub(super) fn total(&self) -> String {
        let tally = self.tally();
        format!(
            "{} passed, {} failed, {} skipped",
            tally.passed, tally.failed, tally.skipped
        )
    }

    /// What these programs measured: what each line is about, and what it tells.
    fn told(&self, programs: &[&str]) -> impl Iterator<Item = (&str, &str)> {
        let lines = self.measured.iter();
        let wanted = lines.filter(|(program, _)| programs.contains(&program.as_str()));
        wanted.map(|(_, line)| line.split_once(": ").unwrap_or((line, "")))
    }

    /// Keeps them for the table: programs that were not run now keep what they had, if
    /// it was on the same kernel.
    pub(super) fn store(&self, series: &str) -> Result<()> {
        let mut all = match Self::load(series)? {
            Some(before) if before.release == self.release => before,
            Some(_) | None => Self::new(&self.release, &self.commit),
        };
        let is_new = |program: &str| {
            // What went wrong with the machine is no result of a test program.
            program == MACHINE || self.tests.iter().any(|new| new.program == program)
        };
        all.forget(is_new);
        all.tests.extend(self.tests.iter().cloned());
        all.measured.extend(self.measured.iter().cloned());
        let programs = self.tests.iter().map(|test| test.program.clone());
        all.built
            .extend(programs.map(|program| (program, self.commit.clone())));
        all.write(series)
    }

    /// Drops what these programs had.
    fn forget(&mut self, is_one: impl Fn(&str) -> bool) {
        self.tests.retain(|old| !is_one(&old.program));
        self.measured.retain(|(program, _)| !is_one(program));
        self.built.retain(|program, _| !is_one(program));
    }

    fn write(&self, series: &str) -> Result<()> {
        let mut text = format!("{}\n", self.release);
        for test in &self.tests {
            text += &test.line();
            text.push('\n');
        }
        for (program, line) in &self.measured {
            let _ = writeln!(text, "{MEASURED}{program} {line}");
        }
        for (program, commit) in &self.built {
            let _ = writeln!(text, "{BUILT}{program} {commit}");
        }
        let path = folder()?.join(format!("{series}.{EXTENSION}"));
        let say = || format!("write {}", path.display());
        // Nobody is to read half of it, however this ends.
        let partial = path.with_extension("partial");
        fs::write(&partial, text).with_context(say)?;
        fs::rename(&partial, &path).with_context(say)
    }

    fn load(series: &str) -> Result<Option<Self>> {
        let path = folder()?.join(format!("{series}.{EXTENSION}"));
        let text = match fs::read_to_string(&path) {
            Ok(text) => text,
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(error).with_context(|| format!("read {}", path.display())),
        };
        let mut lines = text.lines();
        let mut results = Self::new(lines.next().unwrap_or_default(), "");
        for line in lines {
            match line.strip_prefix(MEASURED) {
                Some(line) => results.measured.extend(read_of_program(line)),
                None => match line.strip_prefix(BUILT) {
                    Some(line) => results.built.extend(read_of_program(line)),
                    None => results.tests.extend(Test::read(line)),
                },
            }
        }
        Ok(Some(results))
    }
}

/// What these programs had on the kernel of this name is of no use any more: they are
/// about to be run.
pub(super) fn forget(series: &str, programs: &[String]) -> Result<()> {
    let Some(mut results) = Results::load(series)? else {
        return Ok(());
    };
    results.forget(|program| programs.iter().any(|name| name == program));
    results.write(series)
}

/// The results of the last runs on the kernels of these names.
pub(super) fn stored<'a>(names: impl Iterator<Item = &'a str>) -> Result<Vec<Results>> {
    let all = names.map(|name| {
        let results = Results::load(name)?;
        results.with_context(|| {
            format!("find what came of the tests on {name}: run `cargo xtask vm {name}` first")
        })
    });
    all.collect()
}

impl Test {
    /// Reads `PROGRAM NAME END WHY`.
    fn read(line: &str) -> Option<Self> {
        let mut words = line.splitn(4, ' ');
        let (program, name) = (words.next()?, words.next()?);
        let end = match words.next()? {
            "passed" => End::Passed,
            "failed" => End::Failed,
            "skipped" => End::Skipped,
            _ => return None,
        };
        Some(Self {
            program: program.to_owned(),
            name: name.to_owned(),
            end,
            why: words.next().unwrap_or_default().trim().to_owned(),
        })
    }

    fn line(&self) -> String {
        let end = match self.end {
            End::Passed => "passed",
            End::Failed => "failed",
            End::Skipped => "skipped",
        };
        format!("{} {} {end} {}", self.program, self.name, self.why)
    }
}

/// How many tests ended how.
#[derive(Clone, Copy, Default)]
pub(super) struct Tally {
    passed: usize,
    failed: usize,
    skipped: usize,
}

impl Tally {
    fn of<'a>(tests: impl Iterator<Item = &'a Test>) -> Self {
        let mut tally = Self::default();
        for test in tests {
            match test.end {
                End::Passed => tally.passed += 1,
                End::Failed => tally.failed += 1,
                End::Skipped => tally.skipped += 1,
            }
        }
        tally
    }

    /// A machine that could not be run.
    pub(super) const fn one_failed() -> Self {
        Self {
            passed: 0,
            failed: 1,
            skipped: 0,
        }
    }

    /// As a test program tells it at its end, for who adds such lines up.
    pub(super) fn as_of_a_test_program(self) -> String {
        let Self {
            passed,
            failed,
            skipped,
        } = self;
        let end = if failed == 0 { "ok" } else { "FAILED" };
        format!("test result: {end}. {passed} passed; {failed} failed; {skipped} ignored")
    }

    /// As a cell of the table.
    fn cell(self) -> String {
        let parts = [
            (self.passed, "passed"),
            (self.failed, "**failed**"),
            (self.skipped, "skipped"),
        ];
        let parts = parts.into_iter().filter(|(count, _)| *count > 0);
        let parts: Vec<_> = parts
            .map(|(count, what)| format!("{count} {what}"))
            .collect();
        if parts.is_empty() {
            "not run".to_owned()
        } else {
            parts.join(", ")
        }
    }
}

/// What the page about kernels has between its marks: a row for each test program and
/// a column for each kernel; the reasons of what did not pass; what was measured. What
/// else was run, by hand, is left out.
pub(super) fn page(kernels: &[Results], programs: &[&str]) -> String {
    let mut text = String::from("## Results\n\n");
    text += &heading("tests", kernels);
    for program in programs {
        let cells = kernels.iter().map(|kernel| {
            let tests = kernel.tests.iter();
            Tally::of(tests.filter(|test| test.program == *program)).cell()
        });
        text += &row(&format!("`{program}`"), cells);
    }

    text += &commits(kernels, programs);

    let mut reasons: BTreeMap<(&str, &str, &str, &str), Vec<&str>> = BTreeMap::new();
    for kernel in kernels {
        let wanted = |test: &&Test| programs.contains(&test.program.as_str());
        for test in kernel.tests.iter().filter(wanted) {
            let end = match test.end {
                End::Passed => continue,
                End::Failed => "failed",
                End::Skipped => "skipped",
            };
            let key = (
                test.program.as_str(),
                test.name.as_str(),
                end,
                test.why.as_str(),
            );
            reasons.entry(key).or_default().push(kernel.version());
        }
    }
    if !reasons.is_empty() {
        text += "\n### What did not pass\n\n| test | kernels | |\n|---|---|---|\n";
        for ((program, name, end, why), kernels) in reasons {
            let kernels = kernels.join(", ");
            let why = format!("{end}: {why}");
            text += &row(&format!("`{program}`: {name}"), [kernels, why].into_iter());
        }
    }

    let lines = kernels.iter().flat_map(|kernel| kernel.told(programs));
    let measured = distinct(lines.map(|(what, _)| what));
    if !measured.is_empty() {
        text += "\n## Measured\n\n";
    }
    for what in measured {
        let _ = writeln!(text, "{what}:\n");
        for kernel in kernels {
            let told = kernel.told(programs);
            for (_, told) in told.filter(|(subject, _)| *subject == what) {
                let _ = writeln!(text, "- {}: {told}", kernel.version());
            }
        }
        text.push('\n');
    }
    format!("{}\n", text.trim_end())
}

/// Where nobody wrote down what a program was built from.
const UNKNOWN: &str = "unknown";

/// What the programs were built from.
fn commits(kernels: &[Results], programs: &[&str]) -> String {
    let mut commits: BTreeMap<&str, BTreeMap<&str, Vec<&str>>> = BTreeMap::new();
    for kernel in kernels {
        for program in programs {
            if !kernel.tests.iter().any(|test| test.program == *program) {
                continue;
            }
            let commit = kernel.built.get(*program).map_or(UNKNOWN, String::as_str);
            let of = commits.entry(commit).or_default();
            of.entry(program).or_default().push(kernel.version());
        }
    }
    if let [commit] = commits.keys().collect::<Vec<_>>()[..] {
        return format!("\nAll of it was built from commit {commit}.\n");
    }
    let mut text = String::new();
    for (commit, programs) in commits {
        let _ = writeln!(text, "\nBuilt from commit {commit}:\n");
        let mut together: BTreeMap<String, Vec<String>> = BTreeMap::new();
        for (program, versions) in programs {
            let of = together.entry(versions.join(", ")).or_default();
            of.push(format!("`{program}`"));
        }
        for (versions, programs) in together {
            let _ = writeln!(text, "- on {versions}: {}", programs.join(", "));
        }
    }
    text
}

/// All there are, in the order in which they are met first.
fn distinct<'a>(of: impl Iterator<Item = &'a str>) -> Vec<&'a str> {
    let mut all = Vec::new();
    for one in of {
        if !all.contains(&one) {
            all.push(one);
        }
    }
    all
}

fn heading(first: &str, kernels: &[Results]) -> String {
    let versions = kernels.iter().map(|kernel| kernel.version().to_owned());
    row(first, versions) + "|---|" + &"---|".repeat(kernels.len()) + "\n"
}

fn row(first: &str, cells: impl Iterator<Item = String>) -> String {
    let cells = cells.map(|cell| format!(" {} |", cell.replace('|', "\\|")));
    format!("| {first} |{}\n", cells.collect::<String>())
}

/// `text` with what stands between its marks exchanged for `page`.
pub(super) fn exchanged(text: &str, page: &str) -> Result<String> {
    let (before, rest) = text.split_once(BEGIN).context("find where to begin")?;
    let (_, after) = rest.split_once(END).context("find where to end")?;
    Ok(format!("{before}{BEGIN}\n\n{page}\n{END}{after}"))
}

/// The marks.
const BEGIN: &str = "<!-- cargo xtask vm --table: begin -->";
const END: &str = "<!-- end -->";

impl AddAssign for Tally {
    fn add_assign(&mut self, other: Self) {
        self.passed += other.passed;
        self.failed += other.failed;
        self.skipped += other.skipped;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn said(lines: &[&str]) -> Results {
        let mut results = Results::new("6.1", "c0ffee");
        for line in lines {
            results.take(line);
        }
        results.finish();
        results
    }

    const GOOD: [&str; 6] = [
        "\u{1b}[2Jthrottle-vm: begin frames",
        "something else",
        "throttle-vm: test frames a passed ",
        "throttle-vm: test frames b skipped no | fq",
        "throttle-vm: end frames after 1.0 s",
        "throttle-vm: 1 passed, 0 failed, 1 skipped",
    ];

    #[test]
    fn a_machine_that_says_all_and_decides_the_same_is_good() {
        let results = said(&GOOD);
        assert_eq!(results.failures().count(), 0);
        assert_eq!(results.total(), "1 passed, 0 failed, 1 skipped");
        assert_eq!(
            results.tally().as_of_a_test_program(),
            "test result: ok. 1 passed; 0 failed; 1 ignored"
        );
    }

    #[test]
    fn a_machine_that_ends_without_a_result_has_failed() {
        let results = said(&GOOD[..5]);
        assert_eq!(results.total(), "1 passed, 1 failed, 1 skipped");
        assert!(
            results
                .failures()
                .next()
                .unwrap()
                .contains("without a result")
        );
    }

    #[test]
    fn what_a_kernel_said_that_died_is_told() {
        let results = said(&[
            GOOD[0],
            "test a ... [ 12.3] Oops: int3: 0000 [#1]",
            "[ 12.4] Kernel panic - not syncing",
        ]);
        let failures: Vec<_> = results.failures().collect();
        let said = "frames: (all): its kernel died: Oops: int3: 0000 [#1]";
        assert_eq!(failures, [said]);
    }

    #[test]
    fn a_machine_that_lost_a_line_has_failed() {
        let results = said(&[GOOD[0], GOOD[2], GOOD[5]]);
        assert!(results.failures().next().unwrap().contains("but said"));
    }

    #[test]
    fn a_machine_that_hangs_names_the_test_program() {
        let mut results = Results::new("6.1", "c0ffee");
        results.take(GOOD[0]);
        results.fails("it hung");
        results.finish();
        let failures: Vec<_> = results.failures().collect();
        assert_eq!(failures, ["frames: (all): it hung"]);
    }

    #[test]
    fn the_page_has_a_row_for_each_program_the_reasons_and_what_was_measured() {
        let mut results = said(&GOOD);
        results
            .built
            .insert("frames".to_owned(), "c0ffee".to_owned());
        results.take("throttle-vm: measured frames a frame: 1 ms");
        results.take("throttle-vm: measured other something else: 1 ms");
        assert_eq!(
            page(&[results], &["frames"]),
            "## Results\n\n| tests | 6.1 |\n|---|---|\n| `frames` | 1 passed, 1 skipped |\n\n\
             All of it was built from commit c0ffee.\n\n\
             ### What did not pass\n\n| test | kernels | |\n|---|---|---|\n\
             | `frames`: b | 6.1 | skipped: no \\| fq |\n\n\
             ## Measured\n\na frame:\n\n- 6.1: 1 ms\n"
        );
    }

    #[test]
    fn what_was_built_from_other_commits_is_told_apart() {
        let mut kernels = [Results::new("6.1", ""), Results::new("6.12", "")];
        for line in ["frames a passed", "lab a passed"] {
            for kernel in &mut kernels {
                kernel.tests.extend(Test::read(line));
            }
        }
        assert_eq!(
            commits(&kernels, &["lab"]),
            "\nAll of it was built from commit unknown.\n"
        );
        for (kernel, commits) in kernels.iter_mut().zip([["a", "b"], ["b", "b"]]) {
            for (program, commit) in ["frames", "lab"].iter().zip(commits) {
                let (program, commit) = ((*program).to_owned(), commit.to_owned());
                kernel.built.insert(program, commit);
            }
        }
        assert_eq!(
            commits(&kernels, &["frames", "lab"]),
            "\nBuilt from commit a:\n\n- on 6.1: `frames`\n\n\
             Built from commit b:\n\n- on 6.1, 6.12: `lab`\n- on 6.12: `frames`\n"
        );
    }

    #[test]
    fn only_what_stands_between_the_marks_is_exchanged() {
        let old = format!("before {BEGIN} old {END} after");
        let new = exchanged(&old, "new\n").unwrap();
        assert_eq!(new, format!("before {BEGIN}\n\nnew\n\n{END} after"));
        assert!(exchanged("no marks", "new").is_err());
    }

    #[test]
    fn a_version_is_told_without_what_its_builder_added() {
        assert_eq!(
            Results::new("6.12.118+deb13-cloud-amd64", "").version(),
            "6.12.118"
        );
        assert_eq!(Results::new("6.18.44-fc-v657", "").version(), "6.18.44");
        assert_eq!(
            Results::new("6.1.0-56-cloud-amd64", "").version(),
            "6.1.0-56"
        );
    }

    #[test]
    fn a_line_is_read_as_it_is_written() {
        let line = "frames a::b failed because of that";
        assert_eq!(Test::read(line).unwrap().line(), line);
        assert!(Test::read("frames a").is_none());
    }
}
