//! `throttle set`

use anyhow::Result;
use throttle::{
    Error, Settings,
    exempt::Exempt,
    instance::{Exclusive, Instance},
    object::Sizes,
    settings::{Mode, Pacing, Rate, Scope, parse_duration, parse_limit, parse_span},
};

use std::time::Duration;

use super::{Shown, chosen, print, status::InForce};

/// What `throttle set` is told.
#[derive(Debug, clap::Args)]
pub(crate) struct Set {
    /// The throttle to change; needed only if there are several
    #[arg(long, value_name = "NAME")]
    name: Option<String>,

    /// Half-open attempts there may be at once
    #[arg(long, value_name = "N", value_parser = parse_limit)]
    limit: Option<u64>,

    /// How fast attempts over the limit are let out: N/s or N/m
    #[arg(long, value_name = "RATE")]
    rate: Option<Rate>,

    /// For how long an unanswered attempt counts
    #[arg(long, value_name = "TIME", value_parser = parse_span)]
    attempt_timeout: Option<Duration>,

    /// How much may wait in a line: what is let out in this time
    #[arg(long, value_name = "TIME", value_parser = parse_span)]
    max_delay: Option<Duration>,

    /// For how long an endpoint that answered is let through uncounted; 0 for a
    /// strict limit
    #[arg(long, value_name = "TIME", value_parser = parse_duration)]
    known_for: Option<Duration>,

    /// What the limit applies to: each has its own count and queue
    #[arg(long, value_enum)]
    scope: Option<Scope>,

    /// What is done with attempts over the limit
    #[arg(long, value_enum)]
    mode: Option<Mode>,

    /// Who lets attempts over the limit out
    #[arg(long, value_enum)]
    pacing: Option<Pacing>,

    /// Destination that no limit applies to, in the place of all that there are;
    /// may be given more than once
    #[arg(long, value_name = "CIDR[:PORT]", conflicts_with = "no_exempt")]
    exempt: Vec<Exempt>,

    /// No destination is exempt any more
    #[arg(long)]
    no_exempt: bool,

    /// How it is written [default: text on a terminal, else json]
    #[arg(short, long, value_enum, value_name = "FORMAT")]
    output: Option<Shown>,
}

impl Set {
    /// The settings that follow from those in force.
    fn over(&self, before: Settings) -> Settings {
        Settings {
            limit: self.limit.unwrap_or(before.limit),
            rate: self.rate.unwrap_or(before.rate),
            attempt_timeout: self.attempt_timeout.unwrap_or(before.attempt_timeout),
            max_delay: self.max_delay.unwrap_or(before.max_delay),
            known_for: self.known_for.unwrap_or(before.known_for),
            scope: self.scope.unwrap_or(before.scope),
            exempt: if self.no_exempt {
                Vec::new()
            } else if self.exempt.is_empty() {
                before.exempt
            } else {
                self.exempt.clone()
            },
            mode: self.mode.unwrap_or(before.mode),
            direction: before.direction,
            pacing: self.pacing.unwrap_or(before.pacing),
        }
    }
}

pub(crate) fn set(set: &Set) -> Result<()> {
    // What is read, and what is written then, is one step.
    let _lock = Exclusive::wait()?;
    let instance = one(chosen(set.name.as_deref())?)?;
    let mut maps = instance.maps()?;
    let before = Settings::in_force(&maps.policy()?, maps.exempt(), instance.direction());
    let after = set.over(before.clone());
    if after != before {
        // Its maps are open, so it has pins.
        let Some(pins) = &instance.pins else {
            return Err(Error::Refused(format!("throttle {} has no pins", instance.name)).into());
        };
        let cpus = aya::util::nr_cpus().map_err(|(_, error)| Error::failed("count CPUs", error))?;
        maps.change(&after, &Sizes::of(pins)?, cpus)?;
    }
    // What the kernel has now, not what was asked for.
    let now = Settings::in_force(&maps.policy()?, maps.exempt(), instance.direction());
    let text = match Shown::or_default(set.output) {
        Shown::Text => format!("{}: {}\n", super::shown(&instance.name), now),
        Shown::Json => {
            let value = serde_json::json!({
                "name": instance.name,
                "settings": InForce::of(&now),
            });
            format!("{value}\n")
        }
    };
    print(&text)
}

/// The only one.
fn one(mut all: Vec<Instance>) -> Result<Instance> {
    if all.len() > 1 {
        let names: Vec<String> = all.iter().map(|of| super::shown(&of.name)).collect();
        return Err(Error::Usage(format!(
            "which throttle? there are {}: name one with --name",
            names.join(", ")
        ))
        .into());
    }
    match all.pop() {
        Some(instance) => Ok(instance),
        None => Err(super::none_here().into()),
    }
}
