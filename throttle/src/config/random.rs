//! Random configurations, for tests.

use std::time::Duration;

use clap::ValueEnum;
use proptest::{collection::vec, option, prelude::*, sample::select};

use super::{Config, parse_interface, parse_name};
use crate::{Settings, exempt::Exempt, settings::Rate};

/// Any of an enum's variants.
fn any_of<T: ValueEnum + Clone + std::fmt::Debug + 'static>() -> impl Strategy<Value = T> {
    select(T::value_variants())
}

/// Names and patterns, with what has a meaning in TOML in them.
fn interface() -> impl Strategy<Value = String> {
    let text = r#"[a-z0-9*?."'#=\\\[\]{}@\p{Greek}-]{1,15}"#;
    text.prop_filter("a name or a pattern", |text| parse_interface(text).is_ok())
}

fn name() -> impl Strategy<Value = String> {
    r#"[a-z0-9*?."'#=/:\[\]\p{Greek}-]{1,30}"#
        .prop_filter("a name", |text| parse_name(text).is_ok())
}

fn rate() -> impl Strategy<Value = Rate> {
    (1u64..=100_000, any::<bool>()).prop_map(|(count, per_minute)| {
        let unit = if per_minute { 'm' } else { 's' };
        format!("{count}/{unit}").parse().unwrap()
    })
}

fn exempt() -> impl Strategy<Value = Exempt> {
    let net = prop_oneof![
        (any::<[u8; 4]>(), 0u8..=32).prop_map(|(address, bits)| (address.into(), bits)),
        (any::<[u8; 16]>(), 0u8..=128).prop_map(|(address, bits)| (address.into(), bits)),
    ];
    (net, option::of(1u16..)).prop_map(|((address, bits), port)| {
        let net = ipnet::IpNet::new(address, bits).unwrap().trunc();
        match port {
            None => net.to_string().parse().unwrap(),
            Some(port) if net.addr().is_ipv4() => format!("{net}:{port}").parse().unwrap(),
            Some(port) => format!("[{net}]:{port}").parse().unwrap(),
        }
    })
}

/// From `least` to a day.
fn time(least: Duration) -> impl Strategy<Value = Duration> {
    const DAY: u64 = 86_400;
    let whole = (least.as_secs()..=DAY).prop_map(Duration::from_secs);
    let least = u64::try_from(least.as_nanos()).unwrap();
    prop_oneof![
        whole,
        (least..=DAY * 1_000_000_000).prop_map(Duration::from_nanos)
    ]
}

fn settings() -> impl Strategy<Value = Settings> {
    let (second, none) = (Duration::from_secs(1), Duration::ZERO);
    (
        (1u64..=1_000_000, rate()),
        (time(second), time(second), time(none)),
        (any_of(), vec(exempt(), 0..10)),
        (any_of(), any_of(), any_of()),
    )
        .prop_map(|(amounts, times, to, how)| Settings {
            limit: amounts.0,
            rate: amounts.1,
            attempt_timeout: times.0,
            max_delay: times.1,
            known_for: times.2,
            scope: to.0,
            exempt: to.1,
            mode: how.0,
            direction: how.1,
            pacing: how.2,
        })
}

/// Everything that can be said.
pub(super) fn config() -> impl Strategy<Value = Config> {
    (
        (vec(interface(), 0..5), option::of(name()), any::<bool>()),
        settings(),
        (any_of(), option::of(any_of()), 1u32..),
        any::<(bool, bool)>(),
    )
        .prop_map(|(what, settings, events, with)| Config {
            interfaces: what.0,
            name: what.1,
            keep: what.2,
            settings,
            hook: events.0,
            output: events.1,
            syslog_enterprise_number: events.2,
            with_args: with.0,
            with_destinations: with.1,
        })
}

/// The text of a file without mistakes, which may leave keys out.
pub(super) fn file() -> impl Strategy<Value = String> {
    (config(), any::<u32>()).prop_map(|(config, left_out)| {
        let keys = super::Key::all().enumerate();
        let said = keys.filter(|(index, _)| left_out >> index & 1 == 0);
        let lines = said.filter_map(|(_, key)| Some(format!("{key} = {}\n", config.value(key)?)));
        lines.collect()
    })
}
