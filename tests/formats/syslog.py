"""Checks events in the syslog format: syslog.py EVENTS VALUES

syslog-rfc5424-parser reads each line by the grammar of RFC 5424, and what it
reads must be what is in VALUES.
"""

import re

from syslog_rfc5424_parser import SyslogMessage
from syslog_rfc5424_parser.constants import SyslogFacility, SyslogSeverity

from compare import differences, millis, run

MSGIDS = {
    "reached": "LIMIT_REACHED",
    "ongoing": "LIMIT_ONGOING",
    "cleared": "LIMIT_CLEARED",
    "lost": "EVENTS_LOST",
}
NUMBERS = """
    sequence severity duration_ns lost limit half_open queued peak_half_open peak_queued
    program_count destination_count source_port destination_port pid user_id parent_pid
    cgroup_id total_attempts total_passed total_known total_deferred total_released
    total_overflowed total_answered total_refused total_unreachable total_aborted total_expired
""".split()
TEXTS = """
    id action code host_id boot_id episode ending scope_kind scope_id scope_name interface mode
    rate source_ip destination_ip process executable entity_id user parent cgroup container
    runtime pod candidates
""".split()
PLACES = [
    ("start_ms", "start", millis),
    ("end_ms", "end", millis),
    *((name, name, int) for name in NUMBERS),
    *((name, name, str) for name in TEXTS),
]


def mistakes(line, values):
    message = SyslogMessage.parse(line)
    element = message.sd[f"throttle@{values['enterprise']}"]
    # The parser leaves the escapes in.
    element = {name: re.sub(r"\\([\"\\\]])", r"\1", value) for name, value in element.items()}
    is_shortened = element.get("shortened") == "true"
    yield from differences(PLACES, element.get, values, is_shortened)
    severity = SyslogSeverity.notice if values["kind"] == "cleared" else SyslogSeverity.warning
    for name, told, value in [
        ("the facility", message.facility, SyslogFacility.auth),
        ("the severity", message.severity, severity),
        ("the time", millis(message.timestamp), values["time_ms"]),
        ("the name of the host", element.get("host", message.hostname), values["host"] or "-"),
        ("APP-NAME", message.appname, "throttle"),
        ("PROCID", message.procid, values.get("throttle_pid")),
        ("MSGID", message.msgid, MSGIDS[values["kind"]]),
        ("the software", message.sd["origin"]["software"], "throttle"),
    ]:
        if told != value:
            yield f"{name} is {told!r}, not {value!r}"
    if not message.msg.startswith("\ufeff"):
        yield "the message has no byte order mark"


run(["syslog-rfc5424-parser"], mistakes)
