//! How things are put on the terminal, or wherever the output goes.

use std::{
    env,
    io::{self, IsTerminal as _, Write as _},
};

use anyhow::{Context as _, Result};
use serde_json::Value;

use crate::stop::{self, Stop};

/// Columns that are used: fits a terminal of 90, and most pages.
const WIDTH: usize = 88;
const BOLD: &str = "\x1b[1m";
const DIM: &str = "\x1b[2m";
const PLAIN: &str = "\x1b[0m";
/// First SYNs, and repeated ones.
const FIRST: char = '█';
const REPEATED: char = '░';
/// SYNs that one character of a bar stands for.
const PER_CELL: usize = 2;
/// Longest bar: the rest of the line.
const CELLS: usize = WIDTH - 25;

/// The standard output.
#[derive(Debug)]
pub(crate) struct Page {
    colour: bool,
}

impl Page {
    pub(crate) fn stdout() -> Self {
        let colour = io::stdout().is_terminal()
            && env::var_os("NO_COLOR").is_none_or(|value| value.is_empty());
        Self { colour }
    }

    fn write(&self, text: &str) -> Result<()> {
        stop::check()?;
        let mut stdout = io::stdout().lock();
        match stdout
            .write_all(text.as_bytes())
            .and_then(|()| stdout.flush())
        {
            Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Err(Stop::Closed.into()),
            other => other.context("write to the standard output"),
        }
    }

    fn styled(&self, style: &str, text: &str) -> String {
        if self.colour {
            format!("{style}{text}{PLAIN}")
        } else {
            text.to_owned()
        }
    }

    /// The title of a part.
    pub(crate) fn heading(&mut self, title: &str) -> Result<()> {
        let title = self.styled(BOLD, title);
        self.write(&format!("\n{title}\n"))
    }

    /// Sentences, broken to fit.
    pub(crate) fn text(&mut self, text: &str) -> Result<()> {
        self.broken("   ", text)
    }

    /// What somebody else said.
    pub(crate) fn quote(&mut self, text: &str) -> Result<()> {
        self.broken("     ", text)
    }

    /// What was run.
    pub(crate) fn command(&mut self, line: &str) -> Result<()> {
        let line = self.styled(BOLD, line);
        self.write(&format!("   $ {line}\n"))
    }

    /// Lines as they are.
    pub(crate) fn lines(&mut self, lines: &str) -> Result<()> {
        self.write(lines.strip_prefix('\n').unwrap_or(lines))
    }

    fn broken(&mut self, indent: &str, text: &str) -> Result<()> {
        let pieces = text.split_inclusive(' ');
        for line in filled(pieces, WIDTH - indent.len()) {
            self.write(&format!("{indent}{}\n", line.trim_end()))?;
        }
        Ok(())
    }

    /// One JSON object, a member a line, broken to fit.
    pub(crate) fn json(&mut self, object: &Value) -> Result<()> {
        let members = object.as_object().into_iter().flatten();
        let members: Vec<String> = members
            .map(|(name, value)| format!("{}:{value}", Value::from(name.as_str())))
            .collect();
        for (n, member) in members.iter().enumerate() {
            let open = if n == 0 { "{" } else { " " };
            let close = if n + 1 == members.len() { "}" } else { "," };
            let member = format!("{member}{close}");
            let lines = filled(json_pieces(&member).into_iter(), WIDTH - 9);
            for (m, line) in lines.iter().enumerate() {
                let lead = if m == 0 { open } else { "    " };
                self.write(&format!("     {lead}{}\n", line.trim_end()))?;
            }
        }
        Ok(())
    }

    /// What the columns and the bars of [`Self::bar`] mean.
    pub(crate) fn bar_key(&mut self) -> Result<()> {
        let repeated = self.styled(DIM, &REPEATED.to_string());
        self.write(&format!(
            "   second  first  again   {FIRST} first SYNs  {repeated} SYNs sent again  \
             (each {PER_CELL})\n"
        ))
    }

    /// The SYNs of a second.
    pub(crate) fn bar(&mut self, second: u64, first: usize, repeated: usize) -> Result<()> {
        let [first_cells, repeated_cells] = cells(first, repeated);
        let first_bar: String = std::iter::repeat_n(FIRST, first_cells).collect();
        let repeated_bar: String = std::iter::repeat_n(REPEATED, repeated_cells).collect();
        let bar = format!("{first_bar}{}", self.styled(DIM, &repeated_bar));
        let line = format!("   {second:>6}  {first:>5}  {repeated:>5}   {bar}");
        self.write(&format!("{}\n", line.trim_end()))
    }
}

/// The length of both parts of a bar. What is there is seen, and what is too
/// long is cut.
fn cells(first: usize, repeated: usize) -> [usize; 2] {
    let first = first.div_ceil(PER_CELL).min(CELLS);
    [first, repeated.div_ceil(PER_CELL).min(CELLS - first)]
}

/// Lines of these pieces, each as long as fits.
fn filled<'a>(pieces: impl Iterator<Item = &'a str>, width: usize) -> Vec<String> {
    let mut lines = vec![String::new()];
    let mut used = 0;
    for piece in pieces {
        // A space at the end of a line takes no room.
        let visible = piece.trim_end().chars().count();
        if used > 0 && used + visible > width {
            lines.push(String::new());
            used = 0;
        }
        if let Some(line) = lines.last_mut() {
            line.push_str(piece);
            used += piece.chars().count();
        }
    }
    lines
}

/// Where JSON may be broken: after commas, and after spaces inside strings.
fn json_pieces(json: &str) -> Vec<&str> {
    let (mut inside, mut escaped, mut start) = (false, false, 0);
    let mut pieces = Vec::new();
    for (at, c) in json.char_indices() {
        let end = match c {
            _ if escaped => false,
            '"' => {
                inside = !inside;
                false
            }
            ',' => !inside,
            ' ' => inside,
            _ => false,
        };
        escaped = inside && c == '\\' && !escaped;
        if end {
            pieces.push(&json[start..at + c.len_utf8()]);
            start = at + c.len_utf8();
        }
    }
    pieces.push(&json[start..]);
    pieces
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_filled_and_long_pieces_stay_whole() {
        let lines = filled("one two three-and-four x".split_inclusive(' '), 8);
        assert_eq!(lines, ["one two ", "three-and-four ", "x"]);
    }

    #[test]
    fn json_is_broken_where_it_does_no_harm() {
        let json = r#"{"a":"x, \"y\", z","b":[1,2]}"#;
        let pieces = json_pieces(json);
        assert_eq!(pieces.concat(), json);
        assert_eq!(
            pieces,
            [r#"{"a":"x, "#, r#"\"y\", "#, r#"z","#, r#""b":[1,"#, "2]}"]
        );
    }

    #[test]
    fn a_bar_shows_what_is_there_and_ends_at_the_margin() {
        assert_eq!(cells(0, 0), [0, 0]);
        assert_eq!(cells(1, 3), [1, 2]);
        assert_eq!(cells(10_000, 10_000), [CELLS, 0]);
    }
}
