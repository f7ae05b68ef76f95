"""Checks events in the cef format: cef.py EVENTS VALUES

pycef reads each line, and what it reads must be what is in VALUES. Every key
must be one of ArcSight's, with a value of its type and length, by the list in
cefevent.
"""

import re

import pycef
from cefevent import CEFEvent
from cefevent.extensions import extension_dictionary

from compare import differences, run

# In ArcSight's list of keys, but not in that of cefevent 0.5.6.
ALSO_KNOWN = {"sproc"}

PLACES = [
    ("time_ms", "rt", int),
    ("sequence", "externalId", int),
    ("severity", "Severity", int),
    ("start_ms", "start", int),
    ("episode", "episode", str),
    ("host_id", "deviceExternalId", str),
    ("throttle_pid", "dvcpid", int),
    ("source_port", "spt", int),
    ("destination_port", "dpt", int),
    ("pid", "spid", int),
    ("process", "sproc", str),
    ("executable", "filePath", str),
    ("user_id", "suid", int),
    ("user", "suser", str),
    ("limit", "limit", int),
    ("half_open", "halfOpen", int),
    ("queued", "queued", int),
    ("container", "container", str),
    ("pod", "pod", str),
    ("candidates", "perhaps", str),
]


def unescaped(value):
    """pycef leaves the escapes in."""
    ends = {"n": "\n", "r": "\r"}
    return re.sub(r"\\(.)", lambda found: ends.get(found[1], found[1]), value)


def known_mistakes(extension):
    """Yields what is wrong with the keys and their values."""
    pairs = re.split(r" (?=[A-Za-z0-9]+=)", extension)
    event = CEFEvent(strict=True)
    for pair in pairs:
        key, value = pair.split("=", 1)
        value = unescaped(value)
        if key in ALSO_KNOWN:
            continue
        if key not in extension_dictionary:
            yield f"{key} is no key of ArcSight's"
            continue
        # By its long name, with which 0 is a value too.
        name = extension_dictionary[key]["full_name"]
        try:
            event.set_field(name, int(value) if value.isdecimal() else value)
        except ValueError as error:
            yield f"{key}={value!r}: {error}"


def mistakes(line, values):
    read = pycef.parse(line)
    if read is None:
        yield "pycef cannot read it"
        return
    read = {key: unescaped(value) for key, value in read.items()}
    # A key without a value is left out.
    values = {name: value for name, value in values.items() if value != ""}
    yield from differences(PLACES, read.get, values)
    special = {
        "DeviceEventClassID": values.get("code", values["action"]),
        "dvchost": values.get("host", "")[:100] or None,
        "deviceOutboundInterface": values.get("interface", "")[:128] or None,
        "cgroup": values.get("cgroup", str(values.get("cgroup_id", ""))) or None,
    }
    if "scope_kind" in values:
        special["scope"] = f"{values['scope_kind']} {values.get('scope_name', '')}"
    for end, v4, v6 in [("source", "src", "Source"), ("destination", "dst", "Destination")]:
        address = values.get(f"{end}_ip")
        is_v6 = address is not None and ":" in address
        special[f"{v6} IPv6 Address" if is_v6 else v4] = address
    for key, value in special.items():
        if read.get(key) != value:
            yield f"{key} is {read.get(key)!r}, not {value!r}"
    yield from known_mistakes(line.split("|", 7)[7])


run(["pycef", "cefevent"], mistakes)
