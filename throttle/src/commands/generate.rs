//! `throttle generate`: man pages and completions, from the definition of the
//! command line. What builds packages calls it.

use std::{
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result};
use clap::{Command, CommandFactory as _};
use clap_complete::{Shell, generate_to};
use clap_mangen::{
    Man,
    roff::{Roff, bold, italic, roman},
};

use crate::cli::Cli;

const NAME: &str = "throttle";
/// Commands for administrators (hier(7)).
const SECTION: &str = "8";
const SHELLS: [Shell; 3] = [Shell::Bash, Shell::Zsh, Shell::Fish];

/// The exit codes of `throttle::Error`, and that of success.
const EXIT_STATUS: [(&str, &str); 5] = [
    (
        "0",
        "It did what was asked, or whoever read its output went away.",
    ),
    ("1", "It failed."),
    ("2", "The command line or a value makes no sense."),
    ("3", "The caller lacks a privilege."),
    ("4", "The kernel lacks something."),
];
const SIGNALS: [(&str, &str); 2] = [
    (
        "SIGINT, SIGTERM",
        "It detaches, unless what it does is kept, and ends.",
    ),
    (
        "SIGHUP",
        "It reads its configuration file again and puts it in force, or says in the log why not. \
         Without a file it ends.",
    ),
];
const ENVIRONMENT: [(&str, &str); 2] = [
    (
        "RUST_LOG",
        "How much is logged to the standard error: error, warn, info, debug or trace; info if it \
         is not set.",
    ),
    ("NO_COLOR", "If it is set, the log has no colours."),
];
const FILES: [(&str, &str); 3] = [
    (
        "/etc/throttle/throttle.toml",
        "The configuration that the service throttle.service runs with.",
    ),
    (
        "/run/throttle",
        "Where daemons that run are registered, by network namespace.",
    ),
    (
        "/sys/fs/bpf/throttle",
        "The kernel side of throttles that outlive their daemon.",
    ),
];
/// Pages of others: what limits and shows the same things.
const SEE_ALSO: [(&str, &str); 4] = [("bpf", "2"), ("ip", "8"), ("ss", "8"), ("tc", "8")];

#[derive(Debug, clap::Args)]
pub(crate) struct Generate {
    /// Folder to write to: man pages into man8/, completions into completions/
    #[arg(value_name = "DIR")]
    folder: PathBuf,
}

pub(crate) fn generate(generate: &Generate) -> Result<()> {
    let cli = shown();
    let (pages, completions) = (
        generate.folder.join("man8"),
        generate.folder.join("completions"),
    );
    for folder in [&pages, &completions] {
        fs::create_dir_all(folder).with_context(|| format!("create {}", folder.display()))?;
    }
    for (name, page) in pages_of(&cli)? {
        write(&pages.join(format!("{name}.{SECTION}")), &page)?;
    }
    for shell in SHELLS {
        generate_to(shell, &mut cli.clone(), NAME, &completions).with_context(|| {
            format!(
                "write the completions of {shell} to {}",
                completions.display()
            )
        })?;
    }
    Ok(())
}

/// The command line without what is hidden: of that, completions would tell.
fn shown() -> Command {
    let cli = Cli::command();
    let commands = cli.get_subcommands().filter(|c| !c.is_hide_set()).cloned();
    let mut shown = Command::new(NAME)
        .version(env!("CARGO_PKG_VERSION"))
        .disable_help_subcommand(true)
        .subcommand_help_heading("COMMANDS")
        .subcommand_value_name("COMMAND")
        .args(cli.get_arguments().cloned())
        .subcommands(commands);
    if let Some(about) = cli.get_about() {
        shown = shown.about(about.clone());
    }
    if let Some(about) = cli.get_long_about() {
        shown = shown.long_about(about.clone());
    }
    if let Some(help) = cli.get_after_long_help().or_else(|| cli.get_after_help()) {
        shown = shown.after_long_help(help.clone());
    }
    shown
}

fn write(path: &Path, text: &str) -> Result<()> {
    fs::write(path, text).with_context(|| format!("write {}", path.display()))
}

/// Each page by its name: that of the command, then those of its commands.
fn pages_of(cli: &Command) -> Result<Vec<(String, String)>> {
    let mut cli = cli.clone();
    cli.build();
    let version = cli.get_version().unwrap_or_default().to_owned();
    let commands = std::iter::once(&cli).chain(cli.get_subcommands());
    let commands: Vec<(String, &Command)> = commands
        .map(|command| {
            let name = command
                .get_display_name()
                .unwrap_or_else(|| command.get_name());
            (name.to_owned(), command)
        })
        .collect();
    let names: Vec<&str> = commands.iter().map(|(name, _)| name.as_str()).collect();
    commands
        .iter()
        .map(|(name, command)| Ok((name.clone(), page(name, command, &version, &names)?)))
        .collect()
}

/// The page of one command, in roff.
fn page(name: &str, command: &Command, version: &str, pages: &[&str]) -> Result<String> {
    let man = Man::new(command.clone()).section(SECTION);
    // Without a date, for which roff wants something in its place.
    let title = format!(
        ".TH \"{}\" {SECTION} \"\" \"{NAME} {version}\" \"System administration\"\n",
        name.to_uppercase()
    );
    let mut text = title.into_bytes();
    man.render_name_section(&mut text)?;
    man.render_synopsis_section(&mut text)?;
    man.render_description_section(&mut text)?;
    if command
        .get_arguments()
        .any(|argument| !argument.is_hide_set())
    {
        man.render_options_section(&mut text)?;
    }
    if command.has_subcommands() {
        man.render_subcommands_section(&mut text)?;
    }

    let mut rest = Roff::new();
    if let Some(help) = command
        .get_after_long_help()
        .or_else(|| command.get_after_help())
    {
        own_sections(&mut rest, &help.to_string());
    }
    list(&mut rest, "EXIT STATUS", &EXIT_STATUS);
    if command.get_name() == "run" {
        list(&mut rest, "SIGNALS", &SIGNALS);
    }
    if name == NAME || command.get_name() == "run" {
        list(&mut rest, "ENVIRONMENT", &ENVIRONMENT);
        list(&mut rest, "FILES", &FILES);
    }
    see_also(&mut rest, name, pages);
    rest.to_writer(&mut text)?;
    String::from_utf8(text).context("write a man page: it is no text")
}

/// What a command says after its options, as sections: a line that is not
/// indented and ends with a colon is a heading, one that is indented by more than
/// two blanks is typed or shown as it stands.
fn own_sections(roff: &mut Roff, help: &str) {
    let mut is_shown = false;
    for line in help.lines() {
        let text = line.trim();
        let indent = line.len() - line.trim_start().len();
        let shows = indent > 2 && !text.is_empty();
        if shows != is_shown {
            is_shown = shows;
            if shows {
                roff.control("RS", ["4"]).control("nf", []);
            } else {
                roff.control("fi", []).control("RE", []);
            }
        }
        match text.strip_suffix(':') {
            _ if text.is_empty() => {
                roff.control("PP", []);
            }
            Some(heading) if indent == 0 => {
                roff.control("SH", [heading.to_uppercase().as_str()]);
            }
            _ if shows => {
                roff.text([bold(text)]);
            }
            _ => {
                roff.text([roman(text)]);
            }
        }
    }
    if is_shown {
        roff.control("fi", []).control("RE", []);
    }
}

/// A section of things, each with what it means.
fn list(roff: &mut Roff, heading: &str, things: &[(&str, &str)]) {
    roff.control("SH", [heading]);
    for (thing, meaning) in things {
        roff.control("TP", [])
            .text([bold(*thing)])
            .text([roman(*meaning)]);
    }
}

/// The other pages of ours, then those of others.
fn see_also(roff: &mut Roff, name: &str, pages: &[&str]) {
    let ours = pages.iter().map(|page| (*page, SECTION));
    let all: Vec<_> = ours
        .filter(|(page, _)| *page != name)
        .chain(SEE_ALSO)
        .collect();
    roff.control("SH", ["SEE ALSO"]);
    for (n, (page, section)) in all.iter().enumerate() {
        let comma = if n + 1 < all.len() { "," } else { "" };
        roff.text([italic(*page), roman(format!("({section}){comma}"))]);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Arg;
    use throttle::Error;

    fn pages() -> Vec<(String, String)> {
        pages_of(&shown()).unwrap()
    }

    fn page(name: &str) -> String {
        pages().into_iter().find(|page| page.0 == name).unwrap().1
    }

    #[test]
    fn each_command_that_is_not_hidden_has_a_page() {
        let cli = Cli::command();
        let mut expected = vec![NAME.to_owned()];
        for command in cli.get_subcommands().filter(|c| !c.is_hide_set()) {
            expected.push(format!("{NAME}-{}", command.get_name()));
        }
        let names: Vec<String> = pages().into_iter().map(|(name, _)| name).collect();
        assert_eq!(names, expected);
        assert!(!names.contains(&"throttle-generate".into()));
    }

    #[test]
    fn each_page_says_what_the_exit_codes_mean_and_where_to_read_on() {
        for (name, page) in pages() {
            for heading in [
                "NAME",
                "SYNOPSIS",
                "DESCRIPTION",
                "\"EXIT STATUS\"",
                "\"SEE ALSO\"",
            ] {
                assert!(
                    page.contains(&format!(".SH {heading}\n")),
                    "{name}: {heading}\n{page}"
                );
            }
        }
    }

    #[test]
    fn the_exit_codes_are_those_of_the_errors() {
        let codes: Vec<u8> = EXIT_STATUS
            .iter()
            .map(|(code, _)| code.parse().unwrap())
            .collect();
        let kernel = Error::Kernel {
            what: String::new(),
            lacks: String::new(),
            remedy: String::new(),
        };
        let privilege = Error::Privilege {
            what: String::new(),
            reason: "".into(),
        };
        let errors = [
            Error::Refused(String::new()),
            Error::Usage(String::new()),
            privilege,
            kernel,
        ];
        let expected: Vec<u8> = std::iter::once(0)
            .chain(errors.iter().map(Error::exit_code))
            .collect();
        assert_eq!(codes, expected);
    }

    #[test]
    fn the_page_of_run_has_its_options_and_examples() {
        let page = page("throttle-run");
        for part in [
            ".TH \"THROTTLE-RUN\" 8 \"\" \"throttle ",
            "\\-\\-attempt\\-timeout",
            ".SH EXAMPLES\n",
        ] {
            assert!(page.contains(part), "{part}\n{page}");
        }
    }

    #[test]
    fn what_a_command_says_at_its_end_becomes_sections() {
        let help =
            "Examples:\n  Look, and\n  wait:\n      look --wait\n      .look\n\nNotes:\n  None.";
        let command = Command::new("look")
            .arg(Arg::new("x"))
            .after_long_help(help);
        let (_, page) = pages_of(&command).unwrap().remove(0);
        let expected = ".SH EXAMPLES\nLook, and\nwait:\n.RS 4\n.nf\n\
                        \\fBlook \\-\\-wait\\fR\n\\fB.look\\fR\n.fi\n.RE\n.PP\n.SH NOTES\nNone.\n";
        assert!(page.contains(expected), "{page}");
    }
}
