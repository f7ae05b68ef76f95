//! The file: TOML, with the long names of the flags as its keys.
//!
//! A mistake in it is told with the line and the column, and with what to write.
//! Several mistakes are told at once.

use std::{
    fmt::Display,
    fs::OpenOptions,
    io::{self, Read as _},
    os::unix::fs::OpenOptionsExt as _,
    path::Path,
    str::FromStr,
};

use clap::ValueEnum;
use nix::libc;
use toml::{
    Spanned,
    de::{DeTable, DeValue},
};

use super::{
    Key, Layer, key, parse_enterprise_number, parse_interface, parse_name,
    print::{line, name_of, sample},
};
use crate::{
    Error, Result,
    exempt::Exempt,
    name::Name,
    settings::{Rate, parse_duration, parse_limit, parse_span},
};

/// Most bytes of a file. The most exemptions there can be take a fifth of it.
pub const FILE_MAX: u64 = 1 << 20;
/// After so many mistakes nothing more is looked at.
const TOLD: usize = 10;

/// Most bytes of a name that is shown.
const SHOWN: usize = 64;

/// A mistake in a file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mistake {
    /// Its line, from 1 on.
    pub line: usize,
    /// Its column in characters, from 1 on.
    pub column: usize,
    /// What it is, and what to write.
    pub what: String,
}

/// The first mistakes in a file, in their order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mistakes {
    /// At least one, and not too many to read.
    pub first: Vec<Mistake>,
    /// Whether there may be more.
    pub more: bool,
}

/// A mistake, and the byte at which it is.
type Found = (usize, String);

/// What the file says.
///
/// # Errors
///
/// When it cannot be read, is no file, is empty, or has mistakes in it.
pub fn read(path: &Path) -> Result<Layer> {
    let named = Name::of_path(path);
    let usage = |reason: &str| Error::Usage(format!("read {named}: {reason}"));
    let failed = |error: io::Error| {
        if error.kind() == io::ErrorKind::NotFound {
            usage("there is no such file")
        } else {
            Error::failed(format!("read {named}"), error)
        }
    };
    let file = OpenOptions::new()
        .read(true)
        // Of a pipe, opening would wait for a writer.
        .custom_flags(libc::O_NONBLOCK)
        .open(path)
        .map_err(failed)?;
    let about = file.metadata().map_err(failed)?;
    if about.is_dir() {
        return Err(usage("this is a directory; name a file in it"));
    }
    // It would be gone when it is to be read again.
    if !about.is_file() {
        return Err(usage("this is no file that could be read again"));
    }
    let mut bytes = Vec::new();
    file.take(FILE_MAX + 1)
        .read_to_end(&mut bytes)
        .map_err(failed)?;
    if bytes.len() as u64 > FILE_MAX {
        return Err(usage(
            "more than 1 MiB; no configuration is that long, is this the right file?",
        ));
    }
    let text = match std::str::from_utf8(&bytes) {
        Ok(text) => text,
        Err(error) => {
            let (line, column) = place(&bytes, error.valid_up_to());
            return Err(Error::Usage(format!(
                "{named}:{line}:{column}: this is not UTF-8; save the file in that encoding"
            )));
        }
    };
    // As an editor leaves it for a moment while it writes. Read again then, it
    // must not put the defaults in force.
    if text.trim_start_matches('\u{feff}').trim().is_empty() {
        return Err(usage(
            "it is empty; for the defaults, write a comment into it",
        ));
    }
    parse(text).map_err(|mistakes| Error::Usage(told(&named, &mistakes)))
}

/// The mistakes of a file, one a line.
fn told(file: &Name, Mistakes { first, more }: &Mistakes) -> String {
    let mut lines: Vec<String> = first
        .iter()
        .map(|Mistake { line, column, what }| format!("{file}:{line}:{column}: {what}"))
        .collect();
    if *more {
        lines.push("there may be more mistakes below".into());
    }
    lines.join("\n")
}

/// What the text of a file says.
///
/// # Errors
///
/// The first mistakes in it.
pub fn parse(text: &str) -> Result<Layer, Mistakes> {
    let (table, errors) = DeTable::parse_recoverable(text);
    // What is read of a text that is no TOML may not be what stands there.
    if !errors.is_empty() {
        return Err(syntax(text, &errors));
    }
    let mut entries: Vec<_> = table.get_ref().iter().collect();
    entries.sort_by_key(|(name, _)| name.span().start);
    let (mut layer, mut found) = (Layer::default(), Vec::new());
    for (name, value) in entries {
        if let Err(mistakes) = take(&mut layer, name, value) {
            found.extend(mistakes);
        }
        if found.len() >= TOLD {
            break;
        }
    }
    if found.is_empty() {
        return Ok(layer);
    }
    let more = found.len() >= TOLD;
    found.truncate(TOLD);
    let first = placed(text.as_bytes(), found);
    Err(Mistakes { first, more })
}

/// Where these mistakes are, which come in their order.
fn placed(text: &[u8], found: Vec<Found>) -> Vec<Mistake> {
    let (mut at, mut line, mut start) = (0, 1, 0);
    let mut mistakes = Vec::new();
    for (offset, what) in found {
        let between = text.get(at..offset).unwrap_or_default();
        for (index, _) in between.iter().enumerate().filter(|(_, b)| **b == b'\n') {
            (line, start) = (line + 1, at + index + 1);
        }
        at = offset;
        let before = text.get(start..offset).unwrap_or_default();
        let column = String::from_utf8_lossy(before).chars().count() + 1;
        mistakes.push(Mistake { line, column, what });
    }
    mistakes
}

/// The line and the column of a byte.
fn place(text: &[u8], offset: usize) -> (usize, usize) {
    let placed = placed(text, vec![(offset, String::new())]);
    placed.first().map_or((1, 1), |at| (at.line, at.column))
}

/// What makes the text no TOML. Of a line the first error, which is mostly the
/// cause of the others.
fn syntax(text: &str, errors: &[toml::de::Error]) -> Mistakes {
    let start = |error: &toml::de::Error| {
        let start = error.span().map_or(0, |span| span.start);
        text.floor_char_boundary(start)
    };
    let mut errors: Vec<_> = errors.iter().map(|error| (start(error), error)).collect();
    errors.sort_by_key(|(start, _)| *start);
    let (mut found, mut line_end): (Vec<Found>, Option<usize>) = (Vec::new(), None);
    for (start, error) in errors {
        if line_end.is_some_and(|end| start <= end) {
            continue;
        }
        if found.len() == TOLD {
            let first = placed(text.as_bytes(), found);
            return Mistakes { first, more: true };
        }
        let to_end = text[start..].find('\n');
        line_end = Some(to_end.map_or(usize::MAX, |to_end| start + to_end));
        found.push((start, no_toml(text, start, error)));
    }
    let first = placed(text.as_bytes(), found);
    Mistakes { first, more: false }
}

fn no_toml(text: &str, start: usize, error: &toml::de::Error) -> String {
    if error.message() == "duplicate key" {
        let name = error.span().and_then(|span| text.get(span));
        let name = name.unwrap_or_default().trim_matches(['\'', '"']);
        let name = Name::cut(name.as_bytes(), SHOWN);
        return format!("'{name}' is there twice; write it once");
    }
    let why = if error.message().starts_with("string values must be quoted") {
        "a text stands in quotes".to_owned()
    } else {
        format!("this is no TOML: {}", plain(error.message()))
    };
    // The key at the beginning of the line says what was to come.
    let line = text[..start].rsplit('\n').next().unwrap_or_default();
    let name = line.trim_start_matches([' ', '-']);
    let end = name.find([' ', '=']).unwrap_or(name.len());
    match Key::named(&name[..end]) {
        Some(key) => format!("{why}; write it like this: {}", written(key)),
        None => why,
    }
}

/// The parser's words without its own marks of code.
fn plain(message: &str) -> String {
    let message = message.replace('`', "'");
    message.replace(char::is_control, " ")
}

/// How a key is written, for example.
fn written(key: Key) -> String {
    line(key, &sample(key))
}

/// What a value is called, with its article.
const fn kind(value: &DeValue<'_>) -> &'static str {
    match value {
        DeValue::String(_) => "a text",
        DeValue::Integer(_) => "a number",
        DeValue::Float(_) => "a number with a fraction",
        DeValue::Boolean(_) => "true or false",
        DeValue::Datetime(_) => "a date",
        DeValue::Array(_) => "a list",
        DeValue::Table(_) => "a section",
    }
}

/// Takes one key in.
fn take(
    layer: &mut Layer,
    name: &Spanned<std::borrow::Cow<'_, str>>,
    value: &Spanned<DeValue<'_>>,
) -> Result<(), Vec<Found>> {
    let Some(key) = Key::named(name.get_ref()) else {
        return Err(vec![(
            name.span().start,
            unknown(name.get_ref(), value.get_ref()),
        )]);
    };
    let reader = Reader { key, value };
    match key {
        Key::Interface => layer.interface = Some(reader.texts(parse_interface)?),
        Key::Name => layer.name = Some(reader.text(parse_name)?),
        Key::Keep => layer.keep = Some(reader.flag()?),
        Key::Limit => layer.limit = Some(reader.number(parse_limit)?),
        Key::Rate => layer.rate = Some(reader.text(Rate::from_str)?),
        Key::AttemptTimeout => layer.attempt_timeout = Some(reader.text(parse_span)?),
        Key::MaxDelay => layer.max_delay = Some(reader.text(parse_span)?),
        Key::KnownFor => layer.known_for = Some(reader.text(parse_duration)?),
        Key::Scope => layer.scope = Some(reader.choice()?),
        Key::Exempt => layer.exempt = Some(reader.texts(Exempt::from_str)?),
        Key::Mode => layer.mode = Some(reader.choice()?),
        Key::Direction => layer.direction = Some(reader.choice()?),
        Key::Pacing => layer.pacing = Some(reader.choice()?),
        Key::Hook => layer.hook = Some(reader.choice()?),
        Key::Output => layer.output = Some(reader.choice()?),
        Key::SyslogEnterpriseNumber => {
            layer.syslog_enterprise_number = Some(reader.number(parse_enterprise_number)?);
        }
        Key::WithArgs => layer.with_args = Some(reader.flag()?),
        Key::WithDestinations => layer.with_destinations = Some(reader.flag()?),
    }
    Ok(())
}

/// What is said of a key that there is not.
fn unknown(name: &str, value: &DeValue<'_>) -> String {
    let shown = Name::cut(name.as_bytes(), SHOWN);
    if matches!(value, DeValue::Table(_)) {
        return format!("unknown section '{shown}'; there are none, write the keys alone");
    }
    match Key::nearest(name) {
        Some(key) => format!("unknown key '{shown}'; did you mean '{key}'?"),
        None => {
            let keys: Vec<String> = Key::all().map(|key| key.to_string()).collect();
            format!("unknown key '{shown}'; there are {}", keys.join(", "))
        }
    }
}

/// Reads the value of a key.
struct Reader<'a, 'i> {
    key: Key,
    value: &'a Spanned<DeValue<'i>>,
}

impl Reader<'_, '_> {
    /// A mistake in one value, which may be one of a list.
    fn wrong(&self, at: &Spanned<DeValue<'_>>, why: impl Display) -> Found {
        // What others wrote may be in it.
        let why = Name::new(why.to_string());
        (at.span().start, format!("{}: {why}", self.key))
    }

    fn misfit(&self, at: &Spanned<DeValue<'_>>, wanted: &str) -> Found {
        let (is, like) = (kind(at.get_ref()), written(self.key));
        self.wrong(
            at,
            format!("this is {is}; write {wanted}, like this: {like}"),
        )
    }

    fn one<T, E: Display>(
        &self,
        at: &Spanned<DeValue<'_>>,
        read: impl Fn(&str) -> Result<T, E>,
    ) -> Result<T, Found> {
        let text = at.get_ref().as_str();
        let text = text.ok_or_else(|| self.misfit(at, "a text in quotes"))?;
        read(text).map_err(|why| self.wrong(at, why))
    }

    fn text<T, E: Display>(&self, read: impl Fn(&str) -> Result<T, E>) -> Result<T, Vec<Found>> {
        self.one(self.value, read).map_err(|found| vec![found])
    }

    /// A list of texts, or one alone.
    fn texts<T, E: Display>(
        &self,
        read: impl Fn(&str) -> Result<T, E>,
    ) -> Result<Vec<T>, Vec<Found>> {
        if self.value.get_ref().is_str() {
            return Ok(vec![self.text(read)?]);
        }
        let list = self.value.get_ref().as_array();
        let list = list.ok_or_else(|| vec![self.misfit(self.value, "texts in quotes")])?;
        let (mut all, mut found) = (Vec::new(), Vec::new());
        for item in list.iter() {
            match self.one(item, &read) {
                Ok(item) => all.push(item),
                Err(mistake) => found.push(mistake),
            }
            if found.len() >= TOLD {
                break;
            }
        }
        if found.is_empty() {
            Ok(all)
        } else {
            Err(found)
        }
    }

    fn number<T, E: Display>(&self, read: impl Fn(&str) -> Result<T, E>) -> Result<T, Vec<Found>> {
        const WANTED: &str = "a whole number without quotes";
        let number = self.value.get_ref().as_integer();
        let number = number.ok_or_else(|| vec![self.misfit(self.value, WANTED)])?;
        let digits = number.as_str();
        // What is too large for any number is left as it is, to be refused.
        let decimal = u64::from_str_radix(digits, number.radix())
            .map_or_else(|_| digits.to_owned(), |number| number.to_string());
        read(&decimal).map_err(|why| vec![self.wrong(self.value, why)])
    }

    fn flag(&self) -> Result<bool, Vec<Found>> {
        const WANTED: &str = "true or false without quotes";
        let flag = self.value.get_ref().as_bool();
        flag.ok_or_else(|| vec![self.misfit(self.value, WANTED)])
    }

    fn choice<T: ValueEnum>(&self) -> Result<T, Vec<Found>> {
        self.text(|text| {
            let mut variants = T::value_variants().iter();
            if let Some(variant) = variants.find(|variant| name_of(*variant) == text) {
                return Ok(variant.clone());
            }
            let names: Vec<String> = T::value_variants().iter().map(name_of).collect();
            let meant = key::nearest(text, &names)
                .map_or_else(String::new, |name| format!("; did you mean '{name}'?"));
            Err(format!(
                "unknown value '{text}'; there are {}{meant}",
                names.join(", ")
            ))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use expect_test::{expect, expect_file};
    use nix::{sys::stat::Mode, unistd::mkfifo};
    use proptest::prelude::*;
    use std::{
        fs,
        path::PathBuf,
        time::{Duration, Instant},
    };

    /// Far from what a quadratic parser would take, also on a busy machine.
    const SOON: Duration = Duration::from_secs(60);

    /// What is told of the mistakes in each of these files, below the file.
    fn complaints(title: &str, texts: &[&str]) -> String {
        let mut page = format!("## {title}\n");
        for text in texts {
            page.push('\n');
            for line in text.lines() {
                page += &format!("    {}\n", line.replace(char::is_control, "?"));
            }
            page += &told(&Name::new("throttle.toml"), &parse(text).unwrap_err());
            page.push('\n');
        }
        page
    }

    #[test]
    fn each_mistake_is_told_with_its_place_and_what_to_write() {
        let unknown = [
            "# a comment\n\nlimti = 5",
            "  attempt_timeout = '30s'",
            "timeout = '30s'",
            "iface = 'eth0'",
            "colour = 'red'",
            "'' = 1",
            "\"li\\u001b[2J\\u202emit\" = 5",
            "print-config = true",
            "interface = 'eth0'\n[run]\nlimit = 5",
            "[[exempts]]\nnet = 5",
        ];
        let twice = [
            "limit = 5\nrate = '1/s'\nlimit = 6",
            "limit = 5\n'limit' = 5",
        ];
        let types = [
            "limit = '5'",
            "limit = 1.5",
            "limit = [5]",
            "limit.most = 5",
            "rate = 10",
            "known-for = 0",
            "keep = 'yes'",
            "keep = 1",
            "interface = true",
            "interface = ['eth0', 1]",
            "exempt = { net = '10.0.0.0/8' }",
            "name = 1979-05-27",
            "scope = false",
        ];
        let values = [
            "limit = 0",
            "limit = -5",
            "limit = 0xffffff",
            "limit = 99999999999999999999",
            "rate = '10/h'",
            "rate = \"10/\\u001b[2J\"",
            "attempt-timeout = '30'",
            "max-delay = '2days'",
            "interface = ''",
            "interface = 'a/b'",
            "interface = 'veth['",
            "name = 'a b'",
            "syslog-enterprise-number = 0",
            "scope = 'procces'",
            "mode = 'off'",
            "exempt = [\n  '10.0.0.0/8',\n  '10.1.0.0/8', 'example.org',\n]",
        ];
        let syntax = [
            "limit 5",
            "--limit 5",
            "rate = 10/s",
            "scope = process\nlimti = 5",
            "interface = eth0, eth1",
            "exempt = ['10.0.0.0/8'",
            "exempt = [\n'10.0.0.0/8'\n",
            "exempt = [\n'10.0.0.0/8'\n'192.0.2.1'\n]",
            "rate = \"10/s",
            "rate =\nlimit = 5",
            "größe = ünquoted",
            "rate = \"\\q\"",
            "a\0b",
            "limit = 5 rate = 5",
        ];
        let unknown_many: String = (0..20).map(|n| format!("unknown{n} = 1\n")).collect();
        let several = [
            "limit = 0\nlimti = 5\nkeep = 1\n\ninterface = ['a/b', 7]",
            &unknown_many,
            &"x\n".repeat(20),
            &format!("exempt = [{}]", "7, ".repeat(20)),
        ];
        let pages = [
            complaints("Unknown keys", &unknown),
            complaints("Keys that are there twice", &twice),
            complaints("Values of another type", &types),
            complaints("Values that make no sense", &values),
            complaints("What is no TOML", &syntax),
            complaints("Several mistakes", &several),
        ];
        expect_file!["../../tests/golden/config-mistakes.txt"].assert_eq(&pages.join("\n"));
    }

    #[test]
    fn an_error_at_the_end_of_a_line_belongs_to_that_line() {
        let mistakes = parse("limit\nrate\n").unwrap_err().first;
        let lines: Vec<usize> = mistakes.iter().map(|mistake| mistake.line).collect();
        assert_eq!(lines, [1, 2]);
    }

    #[test]
    fn a_column_counts_characters() {
        let mistakes = parse("interface = [\"größe\", 7]\r\n").unwrap_err().first;
        assert_eq!((mistakes[0].line, mistakes[0].column), (1, 23));
    }

    #[test]
    fn a_number_may_be_written_in_any_way_of_toml() {
        for text in ["50", "+50", "5_0", "0x32", "0o62", "0b110010"] {
            let layer = parse(&format!("limit = {text}")).unwrap();
            assert_eq!(layer.limit, Some(50), "{text}");
        }
    }

    #[test]
    fn one_interface_or_exemption_needs_no_list() {
        let layer = parse("interface = \"eth0\"\nexempt = '::1'").unwrap();
        assert_eq!(layer.interface, Some(vec!["eth0".to_owned()]));
        assert_eq!(layer.exempt, Some(vec!["::1".parse().unwrap()]));
    }

    #[test]
    fn a_file_of_comments_says_nothing() {
        assert_eq!(parse("# nothing\n"), Ok(Layer::default()));
        assert_eq!(parse("\u{feff}# nothing"), Ok(Layer::default()));
    }

    /// A folder for temporary files.
    struct Folder(PathBuf);

    impl Folder {
        fn new(name: &str) -> Self {
            let name = format!("throttle-file-{}-{name}", std::process::id());
            let path = std::env::temp_dir().join(name);
            fs::create_dir_all(&path).unwrap();
            Self(path)
        }

        /// What is said of a file with this in it.
        fn refused(&self, bytes: &[u8]) -> String {
            let path = self.0.join("throttle.toml");
            fs::write(&path, bytes).unwrap();
            self.said(&path)
        }

        /// What is said of this file, whose folder is of no interest.
        fn said(&self, path: &Path) -> String {
            let error = read(path).unwrap_err();
            assert_eq!(error.exit_code(), 2, "{error}");
            error.to_string().replace(self.0.to_str().unwrap(), "/etc")
        }
    }

    impl Drop for Folder {
        fn drop(&mut self) {
            let _ = fs::remove_dir_all(&self.0);
        }
    }

    #[test]
    fn what_cannot_be_read_is_told() {
        let folder = Folder::new("refused");
        let huge = vec![b'#'; usize::try_from(FILE_MAX).unwrap() + 1];
        let pipe = folder.0.join("pipe");
        mkfifo(&pipe, Mode::S_IRUSR).unwrap();
        let said = [
            folder.refused(b""),
            folder.refused(b" \n\n"),
            folder.refused(b"# caf\xe9\nlimit = 5"),
            folder.refused(b"limit = 5\nlimti = 5"),
            folder.refused(&huge),
            folder.said(&folder.0),
            folder.said(&folder.0.join("none.toml")),
            folder.said(Path::new("/dev/null")),
            folder.said(&pipe),
        ];
        expect![[r#"
            read /etc/throttle.toml: it is empty; for the defaults, write a comment into it
            read /etc/throttle.toml: it is empty; for the defaults, write a comment into it
            /etc/throttle.toml:1:6: this is not UTF-8; save the file in that encoding
            /etc/throttle.toml:2:1: unknown key 'limti'; did you mean 'limit'?
            read /etc/throttle.toml: more than 1 MiB; no configuration is that long, is this the right file?
            read /etc: this is a directory; name a file in it
            read /etc/none.toml: there is no such file
            read /dev/null: this is no file that could be read again
            read /etc/pipe: this is no file that could be read again"#]].assert_eq(&said.join("\n"));
    }

    #[test]
    fn the_largest_file_there_can_be_is_read_soon() {
        let most = usize::try_from(FILE_MAX).unwrap();
        let limit = |text: &str| text.repeat(most / text.len());
        for text in [
            limit("a=[\n"),
            limit("x\n"),
            limit("[a]\n"),
            limit("="),
            limit("limit=5\n"),
            limit("a."),
            limit("\""),
            limit("[[\n"),
            format!("exempt = [{}]", "\"::1\",".repeat((most - 20) / 6)),
            format!("exempt = [{}]", "0,".repeat((most - 20) / 2)),
        ] {
            let began = Instant::now();
            let result = parse(&text).map_err(|mistakes| told(&Name::default(), &mistakes));
            let (took, start) = (began.elapsed(), &text[..12]);
            assert!(took < SOON, "{start:?} took {took:?}");
            if let Err(told) = result {
                assert!(told.len() < 10_000, "{start:?}: {} bytes", told.len());
            }
        }
    }

    proptest! {
        #[test]
        fn any_text_is_read_or_told_of(text in ".{0,200}") {
            if let Err(mistakes) = parse(&text) {
                let told = told(&Name::default(), &mistakes);
                prop_assert!(!told.is_empty());
                // Of what a name may not have, the parser itself writes backslashes.
                let without = told.replace(['\\', '\n'], "");
                let name = Name::cut(without.as_bytes(), usize::MAX);
                prop_assert_eq!(name.as_str(), without);
            }
        }

        #[test]
        fn lines_that_look_like_a_file_are_read_or_told_of(
            lines in prop::collection::vec(r#"(limit|rate|keep|scope|exempt|interface|\[?[a-z.]{1,3}\]?|"[^"]{0,3}")? ?[=.]? ?("[a-z0-9/:.]{0,8}"|[0-9a-z._-]{1,5}|\[|\]|\{|'|""")?,?"#, 0..12)
        ) {
            let text = lines.join("\n");
            if let Err(mistakes) = parse(&text) {
                let count = text.split('\n').count();
                for Mistake { line, column, what } in mistakes.first {
                    prop_assert!((1..=count).contains(&line) && column > 0 && !what.is_empty());
                }
            }
        }
    }
}
