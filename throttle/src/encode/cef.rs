//! One line of ArcSight's Common Event Format (CEF, version 0).
//!
//! All keys are ArcSight's own. An IPv6 address has keys of its own there, and
//! a key without a value is left out.

use std::net::{IpAddr, SocketAddr};

use super::{
    Host,
    extent::{self, Extent},
    millis, words,
};
use crate::event::{Active, Episode, Event, What};

/// Most characters that ArcSight keeps of a message.
const MESSAGE_MAX: usize = 1_023;
/// Most characters that ArcSight keeps of a device's host name.
const HOST_MAX: usize = 100;
/// Most characters that ArcSight keeps of an interface's name.
const INTERFACE_MAX: usize = 128;
/// The highest count that ArcSight has room for.
const COUNT_MAX: u64 = i32::MAX as u64;

/// The event as one line.
#[must_use]
pub fn line(event: &Event, host: &Host) -> String {
    extent::fit(event, |extent| {
        header(event) + &extension(event, host, extent)
    })
}

fn header(event: &Event) -> String {
    let what = &event.what;
    let fields = [
        "CEF:0",
        words::PRODUCT,
        words::PRODUCT,
        words::VERSION,
        what.code().unwrap_or_else(|| what.action()),
        what.title(),
        &what.severity().of_ten().to_string(),
    ];
    let escaped = fields.map(|field| field.replace('\\', r"\\").replace('|', r"\|") + "|");
    escaped.concat()
}

fn extension(event: &Event, host: &Host, extent: &Extent) -> String {
    let what = &event.what;
    let mut fields = Fields::default();
    fields.put("rt", millis(event.at_ns));
    // "Usually increasing numbers", which keep their order and show gaps.
    fields.put("externalId", event.sequence);
    fields.put("cat", words::DATASET);
    fields.put_known("act", what.done());
    fields.put("reason", what.reason());
    match what {
        What::LimitReached(episode) | What::LimitOngoing(episode) | What::LimitCleared(episode) => {
            episode_fields(&mut fields, what, episode, extent)
        }
        What::Lost { events } => {
            fields.put("cnt", (*events).min(COUNT_MAX));
        }
    }
    fields.put("dvchost", first(&extent.name(&host.name), HOST_MAX));
    fields.put_known("deviceExternalId", host.id.as_ref());
    fields.put("deviceProcessName", words::PRODUCT);
    fields.put_known("dvcpid", host.pid);
    fields.put("msg", first(&words::message(event, extent), MESSAGE_MAX));
    fields.0
}

fn episode_fields(fields: &mut Fields, what: &What, episode: &Episode, extent: &Extent) {
    fields.put("start", millis(episode.start_ns));
    match what {
        What::LimitOngoing(_) | What::LimitCleared(_) => {
            fields.put("end", millis(episode.end_ns()));
        }
        What::LimitReached(_) | What::Lost { .. } => {}
    }
    fields.put("proto", "TCP");
    fields.put("deviceDirection", 1);
    fields.put(
        "deviceOutboundInterface",
        first(&extent.name(&episode.interface.name), INTERFACE_MAX),
    );
    fields.put_end(
        ["src", "spt", "c6a2"],
        "Source IPv6 Address",
        episode.source,
    );
    fields.put_end(
        ["dst", "dpt", "c6a3"],
        "Destination IPv6 Address",
        episode.destination,
    );
    let who = episode.most_active().map(|active| &active.who);
    if let Some(process) = who.and_then(|who| who.process()) {
        fields.put("sproc", extent.name(&process.name));
        fields.put("spid", process.pid);
        let executable = process.executable.as_ref();
        fields.put_known("filePath", executable.map(|path| extent.name(path)));
        fields.put("suid", process.user.id);
        let name = process.user.name.as_ref();
        fields.put_known("suser", name.map(|name| extent.name(name)));
    }
    let deferred = episode.deferred().min(COUNT_MAX);
    fields.put_known("cnt", (deferred > 0).then_some(deferred));
    fields.put_labelled("cn1", "limit", Some(episode.limit));
    fields.put_labelled("cn2", "halfOpen", Some(episode.half_open));
    fields.put_labelled("cn3", "queued", Some(episode.queued));
    fields.put_labelled("cs1", "scope", Some(words::scope(&episode.scope, extent)));
    let cgroup = who.and_then(|who| who.cgroup());
    let container = who.and_then(|who| who.container());
    fields.put_labelled(
        "cs2",
        "cgroup",
        cgroup.map(|cgroup| words::path_or_id(cgroup, extent)),
    );
    fields.put_labelled("cs3", "container", container.map(|container| &container.id));
    fields.put_labelled(
        "cs4",
        "pod",
        container.and_then(|container| container.pod_uid.as_ref()),
    );
    let candidates = |active: &Active| words::candidates(active, extent);
    fields.put_labelled("cs5", "perhaps", episode.most_active().and_then(candidates));
    fields.put_labelled("cs6", "episode", Some(episode.id));
}

/// `key=value`, each after a space.
#[derive(Default)]
struct Fields(String);

impl Fields {
    fn put(&mut self, key: &str, value: impl ToString) {
        let value = escaped(&value.to_string());
        if value.is_empty() {
            return;
        }
        if !self.0.is_empty() {
            self.0 += " ";
        }
        self.0 += key;
        self.0 += "=";
        self.0 += &value;
    }

    fn put_known(&mut self, key: &str, value: Option<impl ToString>) {
        if let Some(value) = value {
            self.put(key, value);
        }
    }

    /// A value under a key that has no meaning of its own, and what it means.
    fn put_labelled(&mut self, key: &str, label: &str, value: Option<impl ToString>) {
        if let Some(value) = value.map(|value| value.to_string())
            && !value.is_empty()
        {
            self.put(&format!("{key}Label"), label);
            self.put(key, value);
        }
    }

    /// An address and a port, under the keys for an IPv4 address, a port, and an
    /// IPv6 address.
    fn put_end(&mut self, [v4, port, v6]: [&str; 3], v6_label: &str, end: SocketAddr) {
        match end.ip() {
            IpAddr::V4(address) => self.put(v4, address),
            IpAddr::V6(address) => self.put_labelled(v6, v6_label, Some(address)),
        }
        self.put(port, end.port());
    }
}

fn escaped(value: &str) -> String {
    let mut escaped = String::with_capacity(value.len());
    for c in value.chars() {
        match c {
            '\\' => escaped += r"\\",
            '=' => escaped += r"\=",
            '\r' => escaped += r"\r",
            '\n' => escaped += r"\n",
            other => escaped.push(other),
        }
    }
    escaped
}

/// The first `max` characters.
fn first(text: &str, max: usize) -> &str {
    text.char_indices()
        .nth(max)
        .map_or(text, |(end, _)| &text[..end])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_value_is_escaped() {
        let mut fields = Fields::default();
        fields.put("a", "x=y\\z|w\nv");
        fields.put("none", "");
        fields.put_labelled("cs1", "b", Some("c d"));
        fields.put_labelled("cs2", "e", Some(""));
        assert_eq!(fields.0, r"a=x\=y\\z|w\nv cs1Label=b cs1=c d");
    }

    #[test]
    fn a_text_is_cut_between_characters() {
        assert_eq!(first("größe", 3), "grö");
        assert_eq!(first("größe", 5), "größe");
        assert_eq!(first("", 5), "");
    }
}
