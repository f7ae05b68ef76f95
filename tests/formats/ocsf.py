"""Checks events in the ocsf format: ocsf.py EVENTS VALUES

Each event must be valid by the schema of its class with the profiles that it
names, and no others. Names that stand beside a number must be those of the
schema, and what the event tells must be what is in VALUES.
"""

import functools
import json

import jsonschema
from ocsf_json_schema import OcsfJsonSchemaEmbedded, get_ocsf_schema

from compare import differences, run

VERSION = "1.8.0"
CLASS = "network_activity"
OTHER = 99
SCHEMA = get_ocsf_schema(version=VERSION)

# Numbers, the objects they are in, and what their names are called.
NAMED = [
    ("", "activity_id", "activity_name"),
    ("", "type_uid", "type_name"),
    ("", "severity_id", "severity"),
    ("", "status_id", "status"),
    ("", "action_id", "action"),
    ("", "disposition_id", "disposition"),
    ("connection_info", "direction_id", "direction"),
    ("device", "type_id", "type"),
    ("device.os", "type_id", "type"),
]
OBJECTS = {
    "connection_info": "network_connection_info",
    "device": "device",
    "device.os": "os",
}


def same(value):
    return value


PLACES = [
    ("time_ms", "time", same),
    ("sequence", "metadata.sequence", same),
    ("id", "metadata.uid", same),
    ("episode", "metadata.correlation_uid", same),
    ("code", "metadata.event_code", same),
    ("start_ms", "start_time", same),
    ("host", "device.hostname", same),
    ("host_id", "device.uid", same),
    ("boot_id", "device.boot_uid", same),
    ("interface", "src_endpoint.interface_name", same),
    ("interface_index", "src_endpoint.interface_uid", int),
    ("source_ip", "src_endpoint.ip", same),
    ("source_port", "src_endpoint.port", same),
    ("destination_ip", "dst_endpoint.ip", same),
    ("destination_port", "dst_endpoint.port", same),
    ("pid", "actor.process.pid", same),
    ("process", "actor.process.name", same),
    ("executable", "actor.process.path", same),
    ("entity_id", "actor.process.uid", same),
    ("process_start_ms", "actor.process.created_time", same),
    ("user_id", "actor.process.user.uid", int),
    ("user", "actor.process.user.name", same),
    ("parent_pid", "actor.process.parent_process.pid", same),
    ("parent", "actor.process.parent_process.name", same),
    ("thread_id", "actor.process.ptid", same),
    ("limit", "unmapped.throttle.limit", same),
    ("half_open", "unmapped.throttle.half_open", same),
    ("queued", "unmapped.throttle.queued", same),
    ("rate", "unmapped.throttle.rate", same),
    ("mode", "unmapped.throttle.mode", same),
    ("scope_name", "unmapped.throttle.scope.name", same),
    ("cgroup", "unmapped.throttle.cgroup.path", same),
    ("lost", "unmapped.throttle.lost", same),
]


@functools.cache
def validator(profiles):
    schema = OcsfJsonSchemaEmbedded(SCHEMA).get_class_schema(
        class_name=CLASS, profiles=list(profiles)
    )
    jsonschema.Draft202012Validator.check_schema(schema)
    return jsonschema.Draft202012Validator(schema)


@functools.cache
def captions(path, number):
    """The names of a number, by number."""
    kind = SCHEMA["objects"][OBJECTS[path]] if path else SCHEMA["classes"][CLASS]
    enum = kind["attributes"][number].get("enum", {})
    return {int(each): what["caption"] for each, what in enum.items()}


def find(event, path):
    for key in filter(None, path.split(".")):
        event = event.get(key) if isinstance(event, dict) else None
    return event


def mistakes(line, values):
    event = json.loads(line)
    profiles = tuple(sorted(event["metadata"]["profiles"]))
    for error in validator(profiles).iter_errors(event):
        yield f"{error.json_path}: {error.message[:200]}"
    if event["metadata"]["version"] != VERSION:
        yield f"metadata.version is not {VERSION}"
    if event["type_uid"] != event["class_uid"] * 100 + event["activity_id"]:
        yield "type_uid does not go with class_uid and activity_id"
    for path, number, name in NAMED:
        there = find(event, path) or {}
        if number not in there:
            continue
        caption = captions(path, number).get(there[number])
        if there[number] == OTHER and there[name] in (None, "", "Other"):
            yield f"{path} {name} does not say which other"
        if there[number] != OTHER and caption is not None and there[name] != caption:
            yield f"{path} {name} is {there[name]}, not {caption}"
    is_shortened = event["metadata"].get("is_truncated", False)
    yield from differences(PLACES, functools.partial(find, event), values, is_shortened)


run(["ocsf-json-schema", "jsonschema"], mistakes)
