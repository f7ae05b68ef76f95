//! Makes random events for the checks of `cargo xtask test formats`.
//!
//! `random_events COUNT SEED FORMAT` prints them in one of the output formats, or
//! as `values`: an object for each event, with what every format has to tell of
//! it. `random_events COUNT SEED all DIRECTORY` writes a file for each of these,
//! named like it. The same count and seed give the same events every time.

use std::{
    env,
    fs::File,
    io::{BufWriter, Write, stdout},
    path::Path,
};

use anyhow::{Context as _, Result, bail};
use clap::ValueEnum as _;
use proptest::{
    strategy::{Strategy as _, ValueTree as _},
    test_runner::{Config, RngAlgorithm, TestRng, TestRunner},
};
use serde_json::Value;
use throttle::encode::Format;

#[path = "../tests/random/mod.rs"]
mod random;

/// A format, or none for the values; and where its lines go.
type Sink = (Option<Format>, Box<dyn Write>);

fn main() -> Result<()> {
    let arguments: Vec<_> = env::args().skip(1).collect();
    let arguments: Vec<_> = arguments.iter().map(String::as_str).collect();
    let (count, seed, mut sinks) = match arguments.as_slice() {
        [count, seed, "all", directory] => (count, seed, files(Path::new(directory))?),
        [count, seed, format] => (
            count,
            seed,
            vec![(named(format)?, Box::new(stdout()) as Box<dyn Write>)],
        ),
        _ => bail!("usage: random_events COUNT SEED FORMAT | COUNT SEED all DIRECTORY"),
    };
    write(
        count.parse().context("read COUNT")?,
        seed.parse().context("read SEED")?,
        &mut sinks,
    )
    .context("write the events")
}

/// The format with this name; none for the values.
fn named(name: &str) -> Result<Option<Format>> {
    if name == "values" {
        return Ok(None);
    }
    match Format::from_str(name, false) {
        Ok(format) => Ok(Some(format)),
        Err(error) => bail!("read FORMAT: {error}"),
    }
}

fn files(directory: &Path) -> Result<Vec<Sink>> {
    let formats = Format::value_variants().iter().copied().map(Some);
    formats
        .chain([None])
        .map(|format| {
            let name = format.and_then(|format| format.to_possible_value());
            let name = name.as_ref().map_or("values", |name| name.get_name());
            let path = directory.join(name);
            let file = File::create(&path).with_context(|| format!("create {}", path.display()))?;
            Ok((format, Box::new(BufWriter::new(file)) as Box<dyn Write>))
        })
        .collect()
}

fn write(count: usize, seed: u64, sinks: &mut [Sink]) -> Result<()> {
    let mut bytes = [0; 32];
    bytes[..8].copy_from_slice(&seed.to_le_bytes());
    let rng = TestRng::from_seed(RngAlgorithm::ChaCha, &bytes);
    let mut runner = TestRunner::new_with_rng(Config::default(), rng);
    let events = random::event();
    for _ in 0..count {
        let Ok(tree) = events.new_tree(&mut runner) else {
            bail!("make an event: no strategy gave one");
        };
        let (event, host) = tree.current();
        for (format, to) in &mut *sinks {
            match format {
                Some(format) => writeln!(to, "{}", format.line(&event, &host)),
                None => writeln!(to, "{}", Value::Object(random::values(&event, &host))),
            }?;
        }
    }
    for (_, to) in sinks {
        to.flush()?;
    }
    Ok(())
}
