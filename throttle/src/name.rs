//! Names that others chose: of programs, files, cgroups, users.
//!
//! Whoever runs a program chooses its name, and may put any byte into it. Such
//! names end up in terminals and in the pipelines of others, so nothing but a
//! [`Name`] gets into an event.

use std::{borrow::Cow, fmt, os::unix::ffi::OsStrExt as _, path::Path};

/// A name, fit to be shown and to be read by machines.
///
/// It is UTF-8 without control characters, without characters that change the
/// direction or the line (Unicode's explicit bidirectional formatting, line and
/// paragraph separators), and not longer than [`Name::MAX`] bytes. Each byte that
/// cannot stand for itself is written `\xNN`, and so is a backslash, so two names
/// that differ also differ when written, unless they are cut short.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Default)]
pub struct Name(String);

impl Name {
    /// Most bytes of a name. What is longer keeps its beginning and its end,
    /// with an ellipsis between them.
    pub const MAX: usize = 512;

    /// The name made of these bytes.
    #[must_use]
    pub fn new(bytes: impl AsRef<[u8]>) -> Self {
        Self::cut(bytes.as_ref(), Self::MAX)
    }

    /// As [`new`](Self::new), but of at most `max` bytes.
    #[must_use]
    pub fn cut(bytes: &[u8], max: usize) -> Self {
        let mut pieces: Vec<Cow<'_, str>> = Vec::new();
        for chunk in bytes.utf8_chunks() {
            for (at, c) in chunk.valid().char_indices() {
                let text = &chunk.valid()[at..at + c.len_utf8()];
                pieces.push(if stands_for_itself(c) {
                    text.into()
                } else {
                    escaped(text.as_bytes()).into()
                });
            }
            if !chunk.invalid().is_empty() {
                // A piece for each byte: it may be cut between any two.
                pieces.extend(chunk.invalid().iter().map(|b| escaped(&[*b]).into()));
            }
        }
        Self(within(&pieces, max))
    }

    /// The name in at most `max` bytes: if it is longer, its beginning and its
    /// end.
    #[must_use]
    pub fn within(&self, max: usize) -> Cow<'_, str> {
        const ESCAPE: usize = r"\xNN".len();
        if self.0.len() <= max {
            return Cow::Borrowed(&self.0);
        }
        let (mut rest, mut pieces) = (self.0.as_str(), Vec::new());
        while let Some(first) = rest.chars().next() {
            // Every backslash in a name begins an escape, which stays whole.
            let len = if first == '\\' {
                ESCAPE
            } else {
                first.len_utf8()
            };
            let (piece, after) = rest.split_at(len);
            pieces.push(Cow::Borrowed(piece));
            rest = after;
        }
        Cow::Owned(within(&pieces, max))
    }

    /// The name in a field of fixed size, as the kernel keeps it: it ends before
    /// the first zero.
    #[must_use]
    pub fn of_field(field: &[u8]) -> Self {
        let end = field.iter().position(|b| *b == 0).unwrap_or(field.len());
        Self::new(&field[..end])
    }

    /// The name of a file.
    #[must_use]
    pub fn of_path(path: &Path) -> Self {
        Self::new(path.as_os_str().as_bytes())
    }

    /// The name, as text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Whether there is nothing in it.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

/// As many of `pieces` as fit into `max` bytes: all, or the first and the last.
fn within(pieces: &[Cow<'_, str>], max: usize) -> String {
    const ELLIPSIS: &str = "…";
    if pieces.iter().map(|piece| piece.len()).sum::<usize>() <= max {
        return pieces.concat();
    }
    let half = max.saturating_sub(ELLIPSIS.len()) / 2;
    let fitting = |sizes: &mut dyn Iterator<Item = usize>| {
        let mut sum = 0;
        sizes
            .take_while(|size| {
                sum += size;
                sum <= half
            })
            .count()
    };
    let head = fitting(&mut pieces.iter().map(|piece| piece.len()));
    let tail = fitting(&mut pieces.iter().rev().map(|piece| piece.len()));
    pieces[..head].concat() + ELLIPSIS + &pieces[pieces.len() - tail..].concat()
}

fn escaped(bytes: &[u8]) -> String {
    bytes.iter().map(|b| format!("\\x{b:02x}")).collect()
}

/// Whether a character is shown as one, where it stands.
fn stands_for_itself(c: char) -> bool {
    !c.is_control()
        && !matches!(c,
            '\\'
            // Marks, embeddings, overrides and isolates of the bidirectional
            // algorithm (UAX #9, 2), and the Arabic letter mark.
            | '\u{061c}' | '\u{200e}' | '\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}'
            // Separators of lines and paragraphs, and a byte order mark.
            | '\u{2028}' | '\u{2029}' | '\u{feff}')
}

impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl From<&str> for Name {
    fn from(text: &str) -> Self {
        Self::new(text)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn what_is_printable_stands_for_itself() {
        for plain in ["curl", "größe", "日本", "a b|c=d]\"'", ""] {
            assert_eq!(Name::new(plain).as_str(), plain);
        }
    }

    #[test]
    fn what_is_not_printable_is_escaped() {
        let name = |bytes: &[u8]| Name::new(bytes).to_string();
        assert_eq!(name(b"a\nb"), r"a\x0ab");
        assert_eq!(name(b"\x1b[2J"), r"\x1b[2J");
        assert_eq!(name(b"\xff\xfe"), r"\xff\xfe");
        assert_eq!(name(br"a\x0a"), r"a\x5cx0a");
        assert_eq!(name("\u{202e}gpj".as_bytes()), r"\xe2\x80\xaegpj");
        assert_eq!(name("\u{85}".as_bytes()), r"\xc2\x85");
    }

    #[test]
    fn a_field_ends_at_the_first_zero() {
        assert_eq!(Name::of_field(b"sh\0\0junk").as_str(), "sh");
        assert_eq!(
            Name::of_field(b"0123456789abcdef").as_str(),
            "0123456789abcdef"
        );
        assert_eq!(Name::of_field(b"").as_str(), "");
    }

    #[test]
    fn a_long_name_keeps_both_its_ends() {
        let long = format!("/begin{}/end", "x".repeat(5_000));
        let name = Name::new(&long);
        assert!(name.as_str().len() <= Name::MAX);
        assert!(name.as_str().starts_with("/begin") && name.as_str().ends_with("/end"));
        assert!(name.as_str().contains('…'));
    }

    proptest! {
        #[test]
        fn any_bytes_make_a_harmless_name(bytes in prop::collection::vec(any::<u8>(), 0..1_000), max in 8usize..600) {
            let name = Name::cut(&bytes, max);
            prop_assert!(name.as_str().len() <= max);
            prop_assert!(name.as_str().chars().all(|c| stands_for_itself(c) || c == '\\'));
        }

        #[test]
        fn a_name_cut_shorter_is_a_harmless_name_too(bytes in prop::collection::vec(any::<u8>(), 0..300), max in 8usize..600) {
            let name = Name::new(&bytes);
            let cut = name.within(max);
            prop_assert!(cut.len() <= max);
            prop_assert!(name.as_str().len() > max || cut == name.as_str());
            for (at, _) in cut.match_indices('\\') {
                let escape = &cut.as_bytes()[at..at + 4];
                prop_assert!(escape[1] == b'x' && escape[2..].iter().all(u8::is_ascii_hexdigit));
            }
        }

        #[test]
        fn names_that_differ_stay_different(a in prop::collection::vec(any::<u8>(), 0..40), b in prop::collection::vec(any::<u8>(), 0..40)) {
            prop_assert_eq!(a == b, Name::new(&a) == Name::new(&b));
        }
    }
}
