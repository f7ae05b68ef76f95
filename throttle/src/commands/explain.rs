//! `throttle explain`

use std::io::{self, Write as _};

use anyhow::{Context as _, Result};

const TEXT: &str = r#"Event 4226: "TCP/IP has reached the security limit imposed on the number of
concurrent (incomplete) TCP connect attempts."

What it means
  A program opens TCP connections to addresses that do not answer, more of them
  at once than the limit allows. Attempts over the limit are deferred: they wait
  in a queue and are let out at a fixed rate. None is refused, and programs that
  connect to hosts that answer are not held up.

What is usually behind it
  - a scanner or a worm that dials many addresses, most of which do not exist
  - a program whose server is gone, and which keeps trying without a pause
  - a peer-to-peer program, a crawler or a monitor with a long list of dead hosts
  - a firewall or a route on the way that drops everything: then honest
    programs are in the queue as well

What to do now
  1. See who it is. The event names the scope and the owner, with an example of
     a source and a destination.
       throttle top                           who has half-open and deferred attempts
       throttle status                        what has happened in each scope
       ss -tnp state syn-sent                 half-open connections, with programs
       cat /sys/fs/cgroup/<path>/cgroup.procs  the processes of a cgroup
  2. Is it a program that should dial many hosts? Raise the limit or the rate,
     leave its destinations alone, or watch only. None of it takes a restart:
       throttle set --limit 200 --rate 50/s
       throttle set --exempt 10.0.0.0/8
       throttle set --mode monitor
  3. Is it a program that you do not know, or that dials addresses you do not
     expect? Keep it throttled while you look: it can do little harm so.
       ls -l /proc/<pid>/exe; cat /proc/<pid>/cmdline | tr '\0' ' '
     Then end it, and find out how it came there.
       throttle end <pid>                     shows what it will do, and asks
  4. Are the destinations hosts that ought to answer? Then look at the network:
       ip route get <address>; traceroute -T -p <port> <address>
"#;

pub(crate) fn explain() -> Result<()> {
    match io::stdout().write_all(TEXT.as_bytes()) {
        // A reader that has seen enough is no error.
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(()),
        other => other.context("write the explanation"),
    }
}
