//! Which interfaces let packets go at the departure times that they carry: those
//! with fq.

use std::collections::{BTreeMap, HashMap};

use throttle_common::departure::AHEAD_MAX_NS;

use crate::doctor::netlink::{Place, Qdisc};

/// How far ahead departures may be on each interface, by its index, in
/// nanoseconds: the least of its fq's horizons, and at most 8 s. Only those are in
/// it whose root qdisc is fq, or mq with nothing but fq below.
pub(crate) fn of(qdiscs: &[Qdisc]) -> BTreeMap<u32, u64> {
    let mut each: HashMap<u32, Vec<&Qdisc>> = HashMap::new();
    for qdisc in qdiscs {
        each.entry(qdisc.index).or_default().push(qdisc);
    }
    each.into_iter()
        .filter_map(|(index, qdiscs)| Some((index, ahead_ns(&qdiscs)?)))
        .collect()
}

/// The same of one interface. None if it has not only fq.
fn ahead_ns(qdiscs: &[&Qdisc]) -> Option<u64> {
    let at = |place: Place| qdiscs.iter().filter(move |qdisc| qdisc.place == place);
    let root = at(Place::Root).next()?;
    match root.kind.as_str() {
        "fq" => own_ns(root),
        "mq" => {
            // One that cannot makes all of it none.
            let leaves: Option<Vec<u64>> = at(Place::Leaf).map(|leaf| own_ns(leaf)).collect();
            leaves?.into_iter().min()
        }
        _ => None,
    }
}

fn own_ns(qdisc: &Qdisc) -> Option<u64> {
    if qdisc.kind.as_str() != "fq" {
        return None;
    }
    // An fq older than its horizon has none (before Linux 5.8).
    let horizon_ns = qdisc.horizon_us.map(|us| u64::from(us) * 1_000);
    Some(horizon_ns.map_or(AHEAD_MAX_NS, |ns| ns.min(AHEAD_MAX_NS))).filter(|ns| *ns > 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn qdisc(index: u32, place: Place, kind: &str, horizon_us: Option<u32>) -> Qdisc {
        Qdisc {
            index,
            kind: kind.into(),
            place,
            horizon_us,
        }
    }

    #[test]
    fn only_fq_at_the_root_or_at_every_queue_lets_packets_go_later() {
        let (root, leaf, slot) = (Place::Root, Place::Leaf, Place::Slot);
        let (ten, two) = (Some(10_000_000), Some(2_000_000));
        let found = of(&[
            qdisc(1, root, "noqueue", None),
            qdisc(2, root, "fq", ten),
            qdisc(2, slot, "clsact", None),
            qdisc(3, root, "mq", None),
            qdisc(3, leaf, "fq", ten),
            qdisc(3, leaf, "fq", two),
            qdisc(4, root, "mq", None),
            qdisc(4, leaf, "fq", ten),
            qdisc(4, leaf, "fq_codel", None),
            qdisc(5, root, "mq", None),
            qdisc(6, root, "htb", None),
            qdisc(6, leaf, "fq", ten),
            qdisc(7, root, "fq", None),
            qdisc(8, root, "fq", Some(0)),
            qdisc(9, slot, "clsact", None),
        ]);
        let expected = [(2, 8), (3, 2), (7, 8)].map(|(index, s)| (index, s * 1_000_000_000));
        assert_eq!(found, BTreeMap::from(expected));
    }
}
