//! Whatever is in an event, each format makes one well-formed line of it that
//! tells the same.

#![expect(clippy::unwrap_used, reason = "a test stops at what it did not expect")]

use std::{collections::BTreeMap, sync::LazyLock};

use jiff::Timestamp;
use proptest::prelude::*;
use serde_json::{Map, Value};
use throttle::{
    encode::{Format, Host, LINE_MAX, json},
    event::{Active, Count, Episode, Event, Parent, Process, Thread, User, What, Who},
    name::Name,
};

mod random;
mod schema;

const FORMATS: [Format; 5] = [
    Format::Text,
    Format::Json,
    Format::Ocsf,
    Format::Cef,
    Format::Syslog,
];

/// Where a value is in a format, and how it is written there.
type Place = (&'static str, &'static str, Written);

#[derive(Clone, Copy)]
enum Written {
    /// As it is.
    Same,
    /// A number as a text.
    Digits,
    /// A time in milliseconds as RFC 3339.
    Time,
    /// A flag that is left out if it is not set.
    Flag,
}
use Written::{Digits, Flag, Same, Time};

const JSON: &[Place] = &[
    ("time_ms", "/@timestamp", Time),
    ("sequence", "/event/sequence", Same),
    ("id", "/event/id", Same),
    ("action", "/event/action", Same),
    ("code", "/event/code", Same),
    ("severity", "/event/severity", Same),
    ("start_ms", "/event/start", Time),
    ("end_ms", "/event/end", Time),
    ("duration_ns", "/event/duration", Same),
    ("host", "/host/hostname", Same),
    ("host", "/host/name", Same),
    ("host", "/related/hosts/0", Same),
    ("host_id", "/host/id", Same),
    ("boot_id", "/host/boot/id", Same),
    ("interface", "/observer/egress/interface/name", Same),
    ("interface_index", "/observer/egress/interface/id", Digits),
    ("source_ip", "/source/ip", Same),
    ("source_port", "/source/port", Same),
    ("destination_ip", "/destination/ip", Same),
    ("destination_port", "/destination/port", Same),
    ("pid", "/process/pid", Same),
    ("process", "/process/name", Same),
    ("executable", "/process/executable", Same),
    ("entity_id", "/process/entity_id", Same),
    ("process_start_ms", "/process/start", Time),
    ("args_count", "/process/args_count", Same),
    ("user_id", "/process/user/id", Digits),
    ("user_id", "/user/id", Digits),
    ("user", "/process/user/name", Same),
    ("user", "/user/name", Same),
    ("parent_pid", "/process/parent/pid", Same),
    ("parent", "/process/parent/name", Same),
    ("thread_id", "/process/thread/id", Same),
    ("thread", "/process/thread/name", Same),
    ("container", "/container/id", Same),
    ("runtime", "/container/runtime", Same),
    ("pod", "/orchestrator/resource/id", Same),
    ("cgroup_id", "/throttle/cgroup/id", Digits),
    ("cgroup", "/throttle/cgroup/path", Same),
    ("exited", "/throttle/exited", Flag),
    ("episode", "/throttle/episode", Same),
    ("scope_kind", "/throttle/scope/kind", Same),
    ("scope_id", "/throttle/scope/id", Same),
    ("scope_name", "/throttle/scope/name", Same),
    ("mode", "/throttle/mode", Same),
    ("limit", "/throttle/limit", Same),
    ("rate", "/throttle/rate", Same),
    ("half_open", "/throttle/half_open", Same),
    ("queued", "/throttle/queued", Same),
    ("peak_half_open", "/throttle/peak_half_open", Same),
    ("peak_queued", "/throttle/peak_queued", Same),
    ("total_attempts", "/throttle/totals/attempts", Same),
    ("total_passed", "/throttle/totals/passed", Same),
    ("total_known", "/throttle/totals/known", Same),
    ("total_deferred", "/throttle/totals/deferred", Same),
    ("total_released", "/throttle/totals/released", Same),
    ("total_overflowed", "/throttle/totals/overflowed", Same),
    ("total_answered", "/throttle/totals/answered", Same),
    ("total_refused", "/throttle/totals/refused", Same),
    ("total_unreachable", "/throttle/totals/unreachable", Same),
    ("total_aborted", "/throttle/totals/aborted", Same),
    ("total_expired", "/throttle/totals/expired", Same),
    ("program_count", "/throttle/program_count", Same),
    ("destination_count", "/throttle/destination_count", Same),
    ("ending", "/throttle/ending", Same),
    ("lost", "/throttle/lost", Same),
];

const OCSF: &[Place] = &[
    ("time_ms", "/time", Same),
    ("sequence", "/metadata/sequence", Same),
    ("id", "/metadata/uid", Same),
    ("episode", "/metadata/correlation_uid", Same),
    ("code", "/metadata/event_code", Same),
    ("start_ms", "/start_time", Same),
    ("host", "/device/hostname", Same),
    ("host_id", "/device/uid", Same),
    ("boot_id", "/device/boot_uid", Same),
    ("interface", "/src_endpoint/interface_name", Same),
    ("interface_index", "/src_endpoint/interface_uid", Digits),
    ("source_ip", "/src_endpoint/ip", Same),
    ("source_port", "/src_endpoint/port", Same),
    ("destination_ip", "/dst_endpoint/ip", Same),
    ("destination_port", "/dst_endpoint/port", Same),
    ("pid", "/actor/process/pid", Same),
    ("process", "/actor/process/name", Same),
    ("executable", "/actor/process/path", Same),
    ("entity_id", "/actor/process/uid", Same),
    ("process_start_ms", "/actor/process/created_time", Same),
    ("user_id", "/actor/process/user/uid", Digits),
    ("user", "/actor/process/user/name", Same),
    ("parent_pid", "/actor/process/parent_process/pid", Same),
    ("parent", "/actor/process/parent_process/name", Same),
    ("thread_id", "/actor/process/ptid", Same),
];

const CEF: &[Place] = &[
    ("time_ms", "/rt", Digits),
    ("sequence", "/externalId", Digits),
    ("severity", "/severity", Digits),
    ("start_ms", "/start", Digits),
    ("episode", "/episode", Same),
    ("host_id", "/deviceExternalId", Same),
    ("throttle_pid", "/dvcpid", Digits),
    ("source_port", "/spt", Digits),
    ("destination_port", "/dpt", Digits),
    ("pid", "/spid", Digits),
    ("process", "/sproc", Same),
    ("executable", "/filePath", Same),
    ("user_id", "/suid", Digits),
    ("user", "/suser", Same),
    ("limit", "/limit", Digits),
    ("half_open", "/halfOpen", Digits),
    ("queued", "/queued", Digits),
    ("container", "/container", Same),
    ("pod", "/pod", Same),
    ("candidates", "/perhaps", Same),
];

/// In syslog the other values have the names that they have here.
const SYSLOG: &[Place] = &[
    ("sequence", "/sequence", Digits),
    ("code", "/code", Same),
    ("severity", "/severity", Digits),
    ("start_ms", "/start", Time),
    ("end_ms", "/end", Time),
    ("duration_ns", "/duration_ns", Digits),
    ("lost", "/lost", Digits),
    ("limit", "/limit", Digits),
    ("half_open", "/half_open", Digits),
    ("queued", "/queued", Digits),
    ("peak_half_open", "/peak_half_open", Digits),
    ("peak_queued", "/peak_queued", Digits),
    ("total_deferred", "/total_deferred", Digits),
    ("total_expired", "/total_expired", Digits),
    ("program_count", "/program_count", Digits),
    ("destination_count", "/destination_count", Digits),
    ("source_port", "/source_port", Digits),
    ("destination_port", "/destination_port", Digits),
    ("pid", "/pid", Digits),
    ("user_id", "/user_id", Digits),
    ("parent_pid", "/parent_pid", Digits),
    ("cgroup_id", "/cgroup_id", Digits),
    ("id", "/id", Same),
    ("action", "/action", Same),
    ("host_id", "/host_id", Same),
    ("boot_id", "/boot_id", Same),
    ("episode", "/episode", Same),
    ("ending", "/ending", Same),
    ("scope_kind", "/scope_kind", Same),
    ("scope_id", "/scope_id", Same),
    ("scope_name", "/scope_name", Same),
    ("interface", "/interface", Same),
    ("mode", "/mode", Same),
    ("rate", "/rate", Same),
    ("source_ip", "/source_ip", Same),
    ("destination_ip", "/destination_ip", Same),
    ("process", "/process", Same),
    ("executable", "/executable", Same),
    ("entity_id", "/entity_id", Same),
    ("user", "/user", Same),
    ("parent", "/parent", Same),
    ("cgroup", "/cgroup", Same),
    ("container", "/container", Same),
    ("runtime", "/runtime", Same),
    ("pod", "/pod", Same),
    ("candidates", "/candidates", Same),
];

/// Checks that each place tells its value, or nothing if there is none.
fn assert_told(
    told: &Value,
    places: &[Place],
    values: &Map<String, Value>,
    skips: fn(&Value) -> bool,
) -> Result<(), TestCaseError> {
    for (name, place, written) in places {
        let value = values.get(*name).filter(|value| !skips(value));
        let found = told.pointer(place);
        let expected = value.map(|value| match written {
            Same | Flag => value.clone(),
            Digits => value.to_string().into(),
            Time => value.clone(),
        });
        let found = match written {
            Same | Digits => found.cloned(),
            Time => found.map(millis),
            Flag => value.map(|_| found.is_some().into()),
        };
        prop_assert_eq!(found, expected, "{} at {}", name, place);
    }
    Ok(())
}

fn millis(time: &Value) -> Value {
    let time: Timestamp = time.as_str().unwrap().parse().unwrap();
    time.as_millisecond().into()
}

fn never(_: &Value) -> bool {
    false
}

fn is_empty(value: &Value) -> bool {
    value == ""
}

fn texts<'a>(list: &'a Value, each: impl Fn(&'a Value) -> String) -> Value {
    let list = list.as_array().map_or(&[][..], Vec::as_slice);
    list.iter().map(each).collect::<Vec<_>>().into()
}

fn text(value: &Value) -> String {
    value.as_str().map_or_else(|| value.to_string(), Into::into)
}

/// The lists of the json format, and of its part in OCSF.
fn assert_lists(throttle: &Value, values: &Map<String, Value>) -> Result<(), TestCaseError> {
    if !values.contains_key("programs") {
        return Ok(());
    }
    let programs = texts(&throttle["programs"], |program| {
        let kind = text(&program["kind"]);
        let who = match kind.as_str() {
            "process" => format!("{} {}", program["pid"], text(&program["name"])),
            "cgroup" => text(&program["cgroup"]["id"]),
            _ => text(&program["ip"]),
        };
        format!(
            "{kind} {who} {} {}",
            program["attempts"], program["destination_count"]
        )
    });
    prop_assert_eq!(&programs, &values["programs"]);
    let candidates = texts(&throttle["candidates"], |candidate| {
        format!("{} (pid {})", text(&candidate["name"]), candidate["pid"])
    });
    prop_assert_eq!(&candidates, &values["all_candidates"]);
    let destinations = texts(&throttle["destinations"], text);
    prop_assert_eq!(&destinations, &values["destinations"]);
    Ok(())
}

/// A line of CEF: what stands in its header and its extension, each under its
/// key or, if it has one, its label.
fn read_cef(line: &str) -> Option<Value> {
    let mut rest = line.strip_prefix("CEF:0|")?;
    let mut header = Vec::new();
    for _ in 0..6 {
        let end = unescaped_at(rest, '|')?;
        header.push(unescape(&rest[..end]));
        rest = &rest[end + 1..];
    }
    // A key begins the extension or follows a space, and ends with the first `=`
    // that is not escaped.
    let mut pairs: Vec<(String, String)> = Vec::new();
    let words = rest.split(' ');
    for word in words {
        match unescaped_at(word, '=') {
            Some(at) if word[..at].chars().all(|c| c.is_ascii_alphanumeric()) && at > 0 => {
                pairs.push((word[..at].into(), word[at + 1..].into()));
            }
            _ => {
                let (_, value) = pairs.last_mut()?;
                value.push(' ');
                value.push_str(word);
            }
        }
    }
    let mut fields: BTreeMap<String, String> = BTreeMap::new();
    for (key, value) in pairs {
        let value = unescape(&value);
        // No key comes twice, and none without a value.
        if value.is_empty() || fields.insert(key, value).is_some() {
            return None;
        }
    }
    let labels: Vec<_> = fields
        .iter()
        .filter_map(|(key, label)| Some((key.strip_suffix("Label")?.to_owned(), label.clone())))
        .collect();
    for (key, label) in labels {
        fields.remove(&format!("{key}Label"));
        let value = fields.remove(&key)?;
        fields.insert(label, value);
    }
    fields.insert("event".into(), header[3].clone());
    fields.insert("severity".into(), header[5].clone());
    serde_json::to_value(fields).ok()
}

fn unescaped_at(text: &str, sought: char) -> Option<usize> {
    let mut is_escaped = false;
    text.char_indices()
        .find(|(_, c)| {
            let is_it = *c == sought && !is_escaped;
            is_escaped = *c == '\\' && !is_escaped;
            is_it
        })
        .map(|(at, _)| at)
}

fn unescape(text: &str) -> String {
    let mut unescaped = String::new();
    let mut chars = text.chars();
    while let Some(c) = chars.next() {
        unescaped.extend(if c == '\\' { chars.next() } else { Some(c) });
    }
    unescaped
}

/// A syslog message: the parameters of the throttle's element, and what it was
/// read from.
fn read_syslog(line: &str) -> (syslog_loose::Message<String>, Value) {
    let message: syslog_loose::Message<String> =
        syslog_loose::parse_message(line, syslog_loose::Variant::RFC5424).into();
    assert_eq!(message.structured_data.len(), 2, "{line:?}");
    let element = &message.structured_data[0];
    // syslog_loose leaves the escapes in.
    let parameters: Map<_, _> = element
        .params
        .iter()
        .map(|(name, value)| (name.clone(), unescape(value).into()))
        .collect();
    (message, parameters.into())
}

/// Names are cut, lists are shorter: only the form can be looked at.
fn is_shortened(throttle: &Value) -> bool {
    throttle["shortened"] == true
}

static VALIDATOR: LazyLock<jsonschema::Validator> = LazyLock::new(schema::validator);

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn a_line_is_one_line_and_not_too_long((event, host) in random::event()) {
        for format in FORMATS {
            let line = format.line(&event, &host);
            prop_assert!(!line.chars().any(char::is_control), "{line:?}");
            prop_assert!(line.len() <= LINE_MAX, "{format:?} {}", line.len());
        }
    }

    #[test]
    fn text_names_the_most_active_program((event, host) in random::event()) {
        let line = Format::Text.line(&event, &host);
        let values = random::values(&event, &host);
        if !line.ends_with("(shortened)") {
            for name in ["scope_name", "process", "pid", "executable", "user", "cgroup_id", "container", "pod", "lost"] {
                let Some(value) = values.get(name) else { continue };
                let has_name = name != "cgroup_id" || !values.contains_key("cgroup") && !values.contains_key("container");
                prop_assert!(!has_name || line.contains(&text(value)), "{name} {value} in {line}");
            }
        }
    }

    #[test]
    fn json_tells_all((event, host) in random::event()) {
        let line = Format::Json.line(&event, &host);
        prop_assert_eq!(schema::errors(&VALIDATOR, &line), Vec::<String>::new());
        let object: Value = serde_json::from_str(&line).unwrap();
        let values = random::values(&event, &host);
        if !is_shortened(&object["throttle"]) {
            assert_told(&object, JSON, &values, never)?;
            assert_lists(&object["throttle"], &values)?;
            let args = values.get("args").filter(|args| *args != &Value::from(Vec::<Value>::new()));
            prop_assert_eq!(object.pointer("/process/args"), args);
        }
        // What is not sure is no fact.
        prop_assert_eq!(object.get("process").is_some(), values.contains_key("pid"));
    }

    #[test]
    fn ocsf_tells_the_same((event, host) in random::event()) {
        let line = Format::Ocsf.line(&event, &host);
        let object: Value = serde_json::from_str(&line).unwrap();
        let values = random::values(&event, &host);
        let throttle = &object["unmapped"]["throttle"];
        if !is_shortened(throttle) {
            assert_told(&object, OCSF, &values, never)?;
            assert_lists(throttle, &values)?;
        }
        let json: Value = serde_json::from_str(&Format::Json.line(&event, &host)).unwrap();
        if !is_shortened(throttle) && !is_shortened(&json["throttle"]) {
            prop_assert_eq!(throttle, &json["throttle"]);
            prop_assert_eq!(&object["message"], &json["message"]);
        }
    }

    #[test]
    fn cef_tells_the_same((event, host) in random::event()) {
        let line = Format::Cef.line(&event, &host);
        let fields = read_cef(&line);
        prop_assert!(fields.is_some(), "{line}");
        let (fields, values) = (fields.unwrap(), random::values(&event, &host));
        assert_told(&fields, CEF, &values, is_empty)?;
        let address = |v4: &str, v6: &str| fields.get(v4).or(fields.get(v6));
        prop_assert_eq!(address("src", "Source IPv6 Address"), values.get("source_ip"));
        prop_assert_eq!(address("dst", "Destination IPv6 Address"), values.get("destination_ip"));
        let code = values.get("code").or(values.get("action"));
        prop_assert_eq!(fields.get("event"), code);
        let first = |name: &str, max: usize| {
            let value = values.get(name).map_or(String::new(), text);
            value.chars().take(max).collect::<String>()
        };
        let told = |key: &str| fields.get(key).map_or(String::new(), text);
        prop_assert_eq!(told("dvchost"), first("host", 100));
        let cgroup = values.get("cgroup").or(values.get("cgroup_id"));
        prop_assert_eq!(told("cgroup"), cgroup.map_or(String::new(), text));
        prop_assert_eq!(told("deviceOutboundInterface"), first("interface", 128));
    }

    #[test]
    fn syslog_tells_the_same((event, host) in random::event()) {
        let line = Format::Syslog.line(&event, &host);
        let (message, parameters) = read_syslog(&line);
        let values = random::values(&event, &host);
        prop_assert_eq!(message.protocol, syslog_loose::Protocol::RFC5424(1));
        prop_assert_eq!(message.facility, Some(syslog_loose::SyslogFacility::LOG_AUTH));
        prop_assert_eq!(message.appname.as_deref(), Some("throttle"));
        prop_assert_eq!(&message.structured_data[0].id, &format!("throttle@{}", values["enterprise"]));
        prop_assert_eq!(&message.structured_data[1].id, "origin");
        prop_assert_eq!(message.timestamp.unwrap().timestamp_millis(), values["time_ms"].as_i64().unwrap());
        prop_assert!(message.msg.starts_with('\u{feff}'), "no byte order mark");
        if parameters.get("shortened").is_none() {
            assert_told(&parameters, SYSLOG, &values, never)?;
            if let Some(name) = message.hostname.filter(|name| name != host.name.as_str()) {
                prop_assert!(name.chars().all(|c| c.is_ascii_graphic()));
                prop_assert_eq!(parameters.get("host"), values.get("host"));
            }
        }
    }
}

/// An event that is as large as it gets, and larger: `names` everywhere.
fn largest(names: &str) -> (Event, Host) {
    let name = Name::new(names.repeat(1_000));
    let process = || Process {
        pid: u32::MAX,
        thread: Some(Thread {
            id: u32::MAX,
            name: name.clone(),
        }),
        name: name.clone(),
        executable: Some(name.clone()),
        args: Some(vec![name.clone(); 10_000]),
        start_ns: Some(4_000_000_000_000_000_000),
        entity_id: "x".repeat(64),
        user: User {
            id: u32::MAX,
            name: Some(name.clone()),
        },
        parent: Some(Parent {
            pid: u32::MAX,
            name: name.clone(),
        }),
        cgroup: Some(cgroup(&name)),
        has_exited: true,
    };
    let most = Count {
        number: u64::MAX,
        or_more: true,
    };
    let active = |who| Active {
        who,
        attempts: u64::MAX,
        destinations: most,
    };
    let group = || Who::Cgroup {
        cgroup: cgroup(&name),
        candidates: (0..Who::CANDIDATES).map(|_| process()).collect(),
    };
    let end = "[2001:db8:ffff:ffff:ffff:ffff:ffff:ffff]:65535"
        .parse()
        .unwrap();
    let episode = Episode {
        id: uuid::Uuid::max(),
        scope: throttle::event::Scope {
            kind: "interface",
            id: u64::MAX.to_string(),
            name: name.clone(),
        },
        interface: throttle::event::Interface {
            index: u32::MAX,
            name: name.clone(),
        },
        mode: throttle::settings::Mode::Monitor,
        limit: u64::MAX,
        rate: throttle::settings::Rate::per_second(100_000),
        half_open: u64::MAX,
        queued: u64::MAX,
        peak_half_open: u64::MAX,
        peak_queued: u64::MAX,
        start_ns: 4_000_000_000_000_000_000,
        duration_ns: 4_000_000_000_000_000_000,
        totals: throttle_common::record::Tallies([u64::MAX; throttle_common::record::TALLIES]),
        source: end,
        destination: end,
        programs: vec![
            active(Who::Process(Box::new(process()))),
            active(group()),
            active(group()),
            active(group()),
            active(group()),
        ],
        program_count: most,
        destination_count: most,
        destinations: vec![end; Episode::DESTINATIONS],
        ending: Some(throttle::event::Ending::Stopped),
    };
    let host = Host {
        name: name.clone(),
        kernel: name.clone(),
        id: Some("f".repeat(32)),
        boot_id: Some(uuid::Uuid::max().to_string()),
        pid: Some(u32::MAX),
        enterprise: u32::MAX,
    };
    let event = Event {
        at_ns: 4_000_000_000_000_000_000,
        sequence: u64::MAX,
        id: uuid::Uuid::max(),
        what: What::LimitCleared(Box::new(episode)),
    };
    (event, host)
}

fn cgroup(name: &Name) -> throttle::event::Cgroup {
    throttle::event::Cgroup {
        id: u64::MAX,
        path: Some(name.clone()),
        container: Some(throttle::event::Container {
            id: "f".repeat(64),
            runtime: Some("containerd"),
            pod_uid: Some(uuid::Uuid::max().to_string()),
        }),
    }
}

fn episode_of(event: &mut Event) -> &mut Episode {
    match &mut event.what {
        What::LimitReached(episode) | What::LimitOngoing(episode) | What::LimitCleared(episode) => {
            episode
        }
        What::Lost { .. } => panic!("no episode"),
    }
}

#[test]
fn the_largest_event_fits() {
    for names in ["\"", "\\", "=", "]", "ü", "\n", "x"] {
        let (mut event, host) = largest(names);
        for _ in 0..2 {
            for format in FORMATS {
                let line = format.line(&event, &host);
                assert!(
                    line.len() <= LINE_MAX,
                    "{format:?} {names:?} {}",
                    line.len()
                );
            }
            let line = Format::Json.line(&event, &host);
            assert_eq!(schema::errors(&VALIDATOR, &line), Vec::<String>::new());
            let object: Value = serde_json::from_str(&line).unwrap();
            assert_eq!(object["throttle"]["shortened"], true);
            let object: Value = serde_json::from_str(&Format::Ocsf.line(&event, &host)).unwrap();
            assert_eq!(object["metadata"]["is_truncated"], true);
            assert!(read_cef(&Format::Cef.line(&event, &host)).is_some());
            read_syslog(&Format::Syslog.line(&event, &host));
            // Then with a control group and its candidates in front.
            episode_of(&mut event).programs.reverse();
        }
    }
}

#[test]
fn a_line_is_shortened_by_what_matters_least() {
    let (mut event, _) = largest("x");
    let host = Host::default();
    let object = |event: &Event| -> Value {
        serde_json::from_str(&Format::Json.line(event, &host)).unwrap()
    };
    let len = |list: &Value| list.as_array().map_or(0, Vec::len);

    let with_args = |event: &mut Event, count| {
        let episode = episode_of(event);
        episode.programs.truncate(1);
        if let Who::Process(process) = &mut episode.programs[0].who {
            process.args = Some(vec!["x".repeat(500).as_str().into(); count]);
        }
    };
    let (args, told) = (1..100)
        .map(|args| {
            with_args(&mut event, args);
            (args, object(&event))
        })
        .find(|(_, told)| is_shortened(&told["throttle"]))
        .unwrap();
    let destinations = len(&told["throttle"]["destinations"]);
    assert!((1..Episode::DESTINATIONS).contains(&destinations), "{told}");
    assert_eq!(len(&told["process"]["args"]), args);
    // One more would have been too long.
    let line = told.to_string();
    assert!(line.len() > LINE_MAX - 100, "{}", line.len());

    with_args(&mut event, 1_000);
    let told = object(&event);
    assert_eq!(len(&told["throttle"]["destinations"]), 0);
    assert!(
        (1..1_000).contains(&len(&told["process"]["args"])),
        "{told}"
    );
    assert_eq!(told["process"]["args_count"], 1_000);
    assert_eq!(
        told["process"]["name"].as_str().unwrap().len(),
        Name::MAX - 1
    );
}

#[test]
fn the_schema_is_of_the_draft_it_names() {
    let schema = json::schema();
    assert!(jsonschema::meta::is_valid(&schema));
    let valid = r#"{"throttle":{}}"#;
    assert!(
        !schema::errors(&VALIDATOR, valid).is_empty(),
        "nothing is required"
    );
}
