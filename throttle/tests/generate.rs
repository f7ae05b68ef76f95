//! Man pages and completions, by the command and read by those who read them.

#![expect(clippy::unwrap_used, reason = "a test stops at what it did not expect")]

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Command, Output},
};

/// A folder that is removed when this is dropped.
struct Folder(PathBuf);

impl Folder {
    /// With everything that is generated.
    fn generated(name: &str) -> Self {
        let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join(name);
        // Of an earlier run that was interrupted.
        let _ = fs::remove_dir_all(&folder);
        let output = Command::new(env!("CARGO_BIN_EXE_throttle"))
            .arg("generate")
            .arg(&folder)
            .output()
            .unwrap();
        assert!(output.status.success(), "{}", said(&output));
        Self(folder)
    }

    fn files(&self, of: &str) -> Vec<PathBuf> {
        let entries = fs::read_dir(self.0.join(of)).unwrap();
        let mut files: Vec<_> = entries.map(|entry| entry.unwrap().path()).collect();
        files.sort();
        files
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        // It is in cargo's folder for such things.
        let _ = fs::remove_dir_all(&self.0);
    }
}

fn said(output: &Output) -> String {
    let all = [output.stdout.clone(), output.stderr.clone()].concat();
    String::from_utf8_lossy(&all).into_owned()
}

/// Runs a program; none if it is not installed, which is said.
fn run(program: &str, args: &[&str]) -> Option<Output> {
    let output = Command::new(program)
        .args(args)
        .env("LC_ALL", "C.UTF-8")
        .output();
    match output {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            eprintln!("skipped: {program} is not installed");
            None
        }
        output => Some(output.unwrap()),
    }
}

#[test]
fn the_typesetter_has_nothing_to_say_against_any_page() {
    let folder = Folder::generated("pages");
    let pages = folder.files("man8");
    assert!(pages.iter().any(|page| page.ends_with("throttle-run.8")));
    for page in pages {
        let path = page.to_str().unwrap();
        let Some(output) = run("groff", &["-man", "-Tutf8", "-ww", "-z", path]) else {
            return;
        };
        assert!(
            output.status.success() && said(&output).is_empty(),
            "{path}: {}",
            said(&output)
        );
    }
}

#[test]
fn each_command_of_the_help_has_a_page_that_names_it() {
    let folder = Folder::generated("names");
    let help = Command::new(env!("CARGO_BIN_EXE_throttle"))
        .arg("--help")
        .output()
        .unwrap();
    let help = said(&help);
    let commands = help.split_once("Commands:\n").unwrap().1;
    let commands = commands.split_once("\n\n").unwrap().0.lines();
    let names: Vec<_> = commands
        .filter(|line| line.starts_with("  ") && !line.starts_with("   "))
        .map(|line| line.split_whitespace().next().unwrap())
        .filter(|name| *name != "help")
        .collect();
    assert!(names.contains(&"run"), "{help}");
    for name in &names {
        let page = fs::read_to_string(folder.0.join(format!("man8/throttle-{name}.8"))).unwrap();
        assert!(page.contains(&format!("throttle\\-{name} \\- ")), "{page}");
    }
    assert_eq!(folder.files("man8").len(), names.len() + 1);
}

#[test]
fn bash_takes_the_completions_and_completes_commands() {
    const COMPLETE: &str = "
source \"$1\" && complete -p throttle >&2 || exit 1
COMP_WORDS=(throttle ru) COMP_CWORD=1
_throttle throttle ru throttle
printf '%s\n' \"${COMPREPLY[@]}\"
";
    let folder = Folder::generated("bash");
    let script = folder.0.join("completions/throttle.bash");
    let Some(output) = run("bash", &["-c", COMPLETE, "bash", script.to_str().unwrap()]) else {
        return;
    };
    assert!(output.status.success(), "{}", said(&output));
    assert_eq!(
        String::from_utf8_lossy(&output.stdout),
        "run\n",
        "{}",
        said(&output)
    );
}

#[test]
fn zsh_and_fish_take_the_completions() {
    let folder = Folder::generated("shells");
    for (shell, file) in [("zsh", "_throttle"), ("fish", "throttle.fish")] {
        let script = folder.0.join("completions").join(file);
        let Some(output) = run(shell, &["-n", script.to_str().unwrap()]) else {
            continue;
        };
        assert!(output.status.success(), "{shell}: {}", said(&output));
    }
}

#[test]
fn completions_do_not_tell_of_what_is_hidden() {
    let folder = Folder::generated("hidden");
    for script in folder.files("completions") {
        let text = fs::read_to_string(&script).unwrap();
        assert!(!text.contains("generate"), "{}", script.display());
    }
}

#[test]
fn a_folder_that_cannot_be_written_is_named() {
    let output = Command::new(env!("CARGO_BIN_EXE_throttle"))
        .args(["generate", "/proc/no-such-folder"])
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(1));
    assert!(
        said(&output).contains("/proc/no-such-folder"),
        "{}",
        said(&output)
    );
}
