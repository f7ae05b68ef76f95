//! Those who mean harm, against the programs themselves: forged answers, floods,
//! tables under pressure, races between CPUs, damaged frames, and long random
//! histories beside the core on the host. What takes a daemon is in `attackers`.

#![expect(
    clippy::unwrap_used,
    reason = "a test stops at the first surprise, and says so by panicking"
)]

#[path = "frames/bench.rs"]
#[expect(dead_code, reason = "some of it is for the tests of frames")]
mod bench;
#[path = "frames/build.rs"]
#[expect(dead_code, reason = "some of it is for the tests of frames")]
mod build;
#[path = "enemies/flood.rs"]
mod flood;
#[path = "enemies/forged.rs"]
mod forged;
#[path = "enemies/generator.rs"]
mod generator;
#[path = "enemies/histories.rs"]
mod histories;
#[path = "frames/model.rs"]
mod model;
#[path = "enemies/mutants.rs"]
mod mutants;
#[path = "enemies/pressure.rs"]
mod pressure;
#[path = "enemies/races.rs"]
mod races;
#[path = "frames/reading.rs"]
mod reading;
#[path = "enemies/runner.rs"]
mod runner;
#[path = "frames/wire.rs"]
#[expect(dead_code, reason = "some of it is for the tests of frames")]
mod wire;
