//! Prints random events, or the values in them, for the checks of `cargo xtask
//! test formats`: `random_events COUNT SEED FORMAT`. FORMAT is one of the
//! output formats, or `values` for an object of what every format has to tell.
//! The same count and seed give the same events in every format.

use std::{
    env,
    io::{self, BufWriter, Write as _},
};

use anyhow::{Context as _, Result, bail};
use clap::ValueEnum as _;
use proptest::{
    strategy::{Strategy as _, ValueTree as _},
    test_runner::{Config, RngAlgorithm, TestRng, TestRunner},
};
use throttle::encode::Format;

#[path = "../tests/random/mod.rs"]
mod random;

fn main() -> Result<()> {
    let arguments: Vec<_> = env::args().skip(1).collect();
    let [count, seed, format] = arguments.as_slice() else {
        bail!("usage: random_events COUNT SEED FORMAT");
    };
    let count: usize = count.parse().context("read COUNT")?;
    let seed: u64 = seed.parse().context("read SEED")?;
    let format = match format.as_str() {
        "values" => None,
        name => match Format::from_str(name, false) {
            Ok(format) => Some(format),
            Err(error) => bail!("read FORMAT: {error}"),
        },
    };
    let mut bytes = [0; 32];
    bytes[..8].copy_from_slice(&seed.to_le_bytes());
    let rng = TestRng::from_seed(RngAlgorithm::ChaCha, &bytes);
    let mut runner = TestRunner::new_with_rng(Config::default(), rng);
    let events = random::event();
    let mut out = BufWriter::new(io::stdout().lock());
    for _ in 0..count {
        let tree = events.new_tree(&mut runner);
        let Ok(tree) = tree else {
            bail!("make an event: no strategy gave one");
        };
        let (event, host) = tree.current();
        match format {
            Some(format) => writeln!(out, "{}", format.line(&event, &host)),
            None => writeln!(
                out,
                "{}",
                serde_json::Value::Object(random::values(&event, &host))
            ),
        }
        .context("print an event")?;
    }
    out.flush().context("print the events")
}
