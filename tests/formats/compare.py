"""What the checks in Python share: reading events and values, and the verdict."""

import json
import re
import sys
from importlib.metadata import version

SHOWN = 20


def millis(time):
    """The milliseconds since 1970 of a time of RFC 3339, without rounding."""
    from datetime import datetime, timezone

    whole, fraction = re.fullmatch(r"(.{19})\.(\d+)Z", time).groups()
    seconds = datetime.fromisoformat(whole).replace(tzinfo=timezone.utc).timestamp()
    return int(seconds) * 1000 + int(fraction[:3])


def differences(places, find, values, is_shortened=False):
    """Yields where `find` does not tell what is in `values`."""
    for name, place, read in places:
        value, told = values.get(name), find(place)
        if is_shortened and isinstance(value, str) and len(value.encode()) > 64:
            continue
        told = None if told is None else read(told)
        if told != value:
            yield f"{place} is {told!r}, not {value!r}"


def run(packages, mistakes):
    """Runs `mistakes` over all events and their values, and prints the verdict."""
    with open(sys.argv[1], encoding="utf-8", newline="\n") as events:
        lines = events.read().split("\n")[:-1]
    with open(sys.argv[2], encoding="utf-8") as values:
        expected = [json.loads(line) for line in values]
    found = []
    if len(lines) != len(expected):
        found.append(f"{len(lines)} events, but values for {len(expected)}")
    for number, (line, values) in enumerate(zip(lines, expected), 1):
        try:
            found.extend(f"event {number}: {what}" for what in mistakes(line, values))
        except Exception as error:  # Whatever a parser makes of it.
            found.append(f"event {number}: {type(error).__name__}: {error}")
    for what in found[:SHOWN]:
        print(what[:1000])
    names = ", ".join(f"{package} {version(package)}" for package in packages)
    print(f"{names}: {len(lines)} events, {len(found)} mistakes")
    is_ok = lines and not found
    counts = "ok. 1 passed; 0 failed" if is_ok else "FAILED. 0 passed; 1 failed"
    print(f"test result: {counts}; 0 ignored")
    sys.exit(0 if is_ok else 1)
