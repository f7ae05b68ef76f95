//! Typed access to the maps.

use std::collections::{BTreeMap, HashSet};

use aya::{
    Ebpf, Pod,
    maps::{
        Array, HashMap, LpmTrie, Map, MapData, MapError, PerCpuArray, PerCpuHashMap, lpm_trie::Key,
    },
};
use throttle_common::{
    exempt::Destination,
    flow::{Flow, FlowKey},
    layout::LAYOUT,
    policy::{Daemon, ONLY, Policy},
    process::{Process, Socket},
    record::{Deferred, LimitReached, Room, Tallies, UNHANDLED, UNHANDLED_NAMES},
    scope::Scope,
    subject::Subject,
};

use crate::{Error, Result, Settings, exempt::Exempt, object::Sizes, pins::Pins};

/// Lets a type of the kernel side stand in a map.
#[repr(transparent)]
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Plain<T>(pub T);

macro_rules! plain {
    ($($of:ty),+) => {$(
        // SAFETY: repr(C), without padding (asserted where it is defined), and
        // every bit pattern is a value of it.
        unsafe impl Pod for Plain<$of> {}
    )+};
}

plain!(
    FlowKey,
    Subject,
    Policy,
    Daemon,
    Tallies,
    Socket,
    Destination
);

/// The words of a value that the kernel side changes by atomics, and the value
/// that they are a copy of.
macro_rules! words_of {
    ($name:ident, $of:ty) => {
        #[repr(C)]
        #[derive(Clone, Copy)]
        struct $name([u64; size_of::<$of>() / 8]);

        // SAFETY: words, and nothing else.
        unsafe impl Pod for $name {}

        impl From<$name> for $of {
            fn from(words: $name) -> Self {
                // SAFETY: the same size (checked by the compiler); made of
                // numbers and atomic numbers, for which every bit pattern is a
                // value.
                unsafe { std::mem::transmute::<$name, $of>(words) }
            }
        }
    };
}

words_of!(FlowWords, Flow);
words_of!(ScopeWords, Scope);

/// What may come through the ring buffer.
///
/// # Safety
///
/// Every bit pattern must be a value of it.
pub unsafe trait Record: Copy {}

// SAFETY: made of numbers.
unsafe impl Record for u32 {}
// SAFETY: as above.
unsafe impl Record for Deferred {}
// SAFETY: as above.
unsafe impl Record for LimitReached {}
// SAFETY: as above.
unsafe impl Record for Room {}

/// Reads a record as it came through the ring buffer. None if it is too short.
#[must_use]
pub fn record<T: Record>(bytes: &[u8]) -> Option<T> {
    if bytes.len() < size_of::<T>() {
        return None;
    }
    // SAFETY: there are enough bytes; `Record` promises that they are a value.
    Some(unsafe { bytes.as_ptr().cast::<T>().read_unaligned() })
}

/// Takes the map `name` out of the object.
///
/// # Errors
///
/// When the object has no such map, or one of another type.
pub fn take<M>(ebpf: &mut Ebpf, name: &str) -> Result<M>
where
    M: TryFrom<Map>,
    M::Error: std::error::Error + Send + Sync + 'static,
{
    let what = || format!("open map {name}");
    let map = ebpf
        .take_map(name)
        .ok_or_else(|| Error::failed(what(), "it is not there"))?;
    M::try_from(map).map_err(|error| Error::failed(what(), error))
}

/// Opens the map `name` of a throttle.
fn pinned<M>(pins: &Pins, name: &str, kind: fn(MapData) -> Map) -> Result<M>
where
    M: TryFrom<Map, Error = MapError>,
{
    let path = pins.map(name);
    let data = MapData::from_pin(&path)
        .map_err(|error| Error::failed(format!("open map {}", path.display()), error))?;
    // A wrong size of key or value, or another type.
    M::try_from(kind(data)).map_err(|_| other_version())
}

fn other_version() -> Error {
    Error::Refused(
        "another version of throttle made these maps: use that one's command, or run this one in \
         its place (`throttle run`)"
            .into(),
    )
}

/// The maps that user space reads and writes.
pub struct Maps {
    policy: Array<MapData, Plain<Policy>>,
    daemon: Array<MapData, Plain<Daemon>>,
    flows: HashMap<MapData, Plain<FlowKey>, FlowWords>,
    uncounted: HashMap<MapData, Plain<FlowKey>, FlowWords>,
    scopes: HashMap<MapData, Plain<Subject>, ScopeWords>,
    sockets: HashMap<MapData, u64, Plain<Socket>>,
    tallies: PerCpuHashMap<MapData, Plain<Subject>, Plain<Tallies>>,
    exempt: LpmTrie<MapData, Plain<Destination>, u32>,
    interfaces: HashMap<MapData, u32, u64>,
    unhandled: PerCpuArray<MapData, u64>,
}

impl Maps {
    /// Takes the maps out of a loaded object.
    ///
    /// # Errors
    ///
    /// When one is not there.
    pub fn take(ebpf: &mut Ebpf) -> Result<Self> {
        Ok(Self {
            policy: take(ebpf, "POLICY")?,
            daemon: take(ebpf, "DAEMON")?,
            flows: take(ebpf, "FLOWS")?,
            uncounted: take(ebpf, "UNCOUNTED")?,
            scopes: take(ebpf, "SCOPES")?,
            sockets: take(ebpf, "SOCKETS")?,
            tallies: take(ebpf, "TALLIES")?,
            exempt: take(ebpf, "EXEMPT")?,
            interfaces: take(ebpf, "INTERFACES")?,
            unhandled: take(ebpf, "UNHANDLED")?,
        })
    }

    /// Opens the maps of a throttle that runs, or was left.
    ///
    /// # Errors
    ///
    /// When the caller may not, they are not there, or another version laid them
    /// out.
    pub fn open(pins: &Pins) -> Result<Self> {
        let maps = Self {
            policy: pinned(pins, "POLICY", Map::Array)?,
            daemon: pinned(pins, "DAEMON", Map::Array)?,
            flows: pinned(pins, "FLOWS", Map::LruHashMap)?,
            uncounted: pinned(pins, "UNCOUNTED", Map::LruHashMap)?,
            scopes: pinned(pins, "SCOPES", Map::LruHashMap)?,
            sockets: pinned(pins, "SOCKETS", Map::LruHashMap)?,
            tallies: pinned(pins, "TALLIES", Map::PerCpuLruHashMap)?,
            exempt: pinned(pins, "EXEMPT", Map::LpmTrie)?,
            interfaces: pinned(pins, "INTERFACES", Map::HashMap)?,
            unhandled: pinned(pins, "UNHANDLED", Map::PerCpuArray)?,
        };
        if maps.policy()?.layout != LAYOUT {
            return Err(other_version());
        }
        Ok(maps)
    }

    /// Puts settings in force.
    ///
    /// # Errors
    ///
    /// When the kernel does not take them.
    pub fn set_policy(&mut self, policy: &Policy) -> Result<()> {
        self.policy
            .set(ONLY, Plain(*policy), 0)
            .map_err(|error| Error::failed("put the settings in force", error))
    }

    /// Puts other settings in force, live, in tables of `sizes` on a machine of
    /// `cpus` possible CPUs.
    ///
    /// # Errors
    ///
    /// When the settings do not go together, need larger tables, or the kernel does
    /// not take them; nothing has changed then.
    pub fn change(&mut self, settings: &Settings, sizes: &Sizes, cpus: usize) -> Result<()> {
        settings.check()?;
        let policy = settings.policy();
        if !sizes.hold(&policy, cpus) {
            return Err(Error::Refused(format!(
                "these settings need larger tables than there are ({} attempts): start throttle anew \
                 with them, or choose a lower limit or rate, or shorter times",
                sizes.flows
            )));
        }
        let before = (self.exempt(), self.policy()?);
        self.set_exempt(&settings.exempt)
            .and_then(|()| self.set_policy(&policy))
            .inspect_err(|_| {
                let _ = self.set_exempt(&before.0);
                let _ = self.set_policy(&before.1);
            })
    }

    /// The settings in force.
    ///
    /// # Errors
    ///
    /// When the kernel does not tell.
    pub fn policy(&self) -> Result<Policy> {
        self.policy
            .get(&ONLY, 0)
            .map(|Plain(policy)| policy)
            .map_err(|error| Error::failed("read the settings", error))
    }

    /// Puts exemptions in force, in the place of those there are. What is exempt
    /// before and after is so in between.
    ///
    /// # Errors
    ///
    /// When the kernel does not take them.
    pub fn set_exempt(&mut self, exempt: &[Exempt]) -> Result<()> {
        let what = "put the exemptions in force";
        let wanted: HashSet<(u32, Destination)> = exempt.iter().map(Exempt::key).collect();
        let there = self
            .exempt
            .keys()
            .map(|key| key.map(|key| (key.prefix_len(), key.data().0)))
            .collect::<Result<HashSet<_>, _>>()
            .map_err(|error| Error::failed(what, error))?;
        for (bits, to) in wanted.difference(&there) {
            self.exempt
                .insert(&Key::new(*bits, Plain(*to)), 1, 0)
                .map_err(|error| Error::failed(what, error))?;
        }
        for (bits, to) in there.difference(&wanted) {
            self.exempt
                .remove(&Key::new(*bits, Plain(*to)))
                .map_err(|error| Error::failed(what, error))?;
        }
        Ok(())
    }

    /// On which interfaces packets may leave later, by index, and how far ahead
    /// that may be, in nanoseconds.
    #[must_use]
    pub fn departures(&self) -> BTreeMap<u32, u64> {
        self.interfaces.iter().filter_map(Result::ok).collect()
    }

    /// Says so of these interfaces, and of no others.
    ///
    /// # Errors
    ///
    /// When the kernel does not take all of it: there are too many.
    pub fn set_departures(&mut self, wanted: &BTreeMap<u32, u64>) -> Result<()> {
        let failed = |error| Error::failed("tell the programs which interfaces have fq", error);
        let there = self.departures();
        // What must not be there any more goes first.
        for index in there.keys().filter(|index| !wanted.contains_key(index)) {
            self.interfaces.remove(index).map_err(failed)?;
        }
        for (index, ahead_ns) in wanted {
            if there.get(index) != Some(ahead_ns) {
                self.interfaces.insert(index, ahead_ns, 0).map_err(failed)?;
            }
        }
        Ok(())
    }

    /// Tells the kernel side who keeps the queue, and until when it counts as
    /// alive.
    ///
    /// # Errors
    ///
    /// When the kernel does not take it.
    pub fn set_daemon(&mut self, daemon: &Daemon) -> Result<()> {
        self.daemon
            .set(ONLY, Plain(*daemon), 0)
            .map_err(|error| Error::failed("tell the programs of the daemon", error))
    }

    /// The attempt with this key, as it stands now.
    #[must_use]
    pub fn flow(&self, key: &FlowKey) -> Option<Flow> {
        let key = Plain(*key);
        let found = self
            .flows
            .get(&key, 0)
            .or_else(|_| self.uncounted.get(&key, 0));
        found.ok().map(Flow::from)
    }

    /// Every attempt that is counted or waits.
    pub fn counted(&self) -> impl Iterator<Item = (FlowKey, Flow)> {
        self.flows
            .iter()
            .filter_map(|entry| entry.ok().map(|(Plain(key), flow)| (key, flow.into())))
    }

    /// Every attempt that was admitted uncounted.
    pub fn uncounted(&self) -> impl Iterator<Item = (FlowKey, Flow)> {
        self.uncounted
            .iter()
            .filter_map(|entry| entry.ok().map(|(Plain(key), flow)| (key, flow.into())))
    }

    /// The exemptions in force.
    #[must_use]
    pub fn exempt(&self) -> Vec<Exempt> {
        let keys = self.exempt.keys().filter_map(Result::ok);
        keys.filter_map(|key| Exempt::of_key(key.prefix_len(), &key.data().0))
            .collect()
    }

    /// The daemon that was there last: the programs' view of it.
    ///
    /// # Errors
    ///
    /// When the kernel does not tell.
    pub fn daemon(&self) -> Result<Daemon> {
        self.daemon
            .get(&ONLY, 0)
            .map(|Plain(daemon)| daemon)
            .map_err(|error| Error::failed("read what the programs know of the daemon", error))
    }

    /// Who connects the socket `cookie`, if it is known.
    #[must_use]
    pub fn process_of(&self, cookie: u64) -> Option<Process> {
        let Plain(socket) = self.sockets.get(&cookie, 0).ok()?;
        Some(socket.process)
    }

    /// The state of `scope`, as it stands now.
    #[must_use]
    pub fn scope(&self, scope: &Subject) -> Option<Scope> {
        self.scopes.get(&Plain(*scope), 0).ok().map(Scope::from)
    }

    /// Every scope with its state.
    pub fn scopes(&self) -> impl Iterator<Item = (Subject, Scope)> {
        self.scopes
            .iter()
            .filter_map(|entry| entry.ok().map(|(Plain(key), scope)| (key, scope.into())))
    }

    /// What happened in `scope`, on all CPUs together.
    #[must_use]
    pub fn tallies(&self, scope: &Subject) -> Tallies {
        let mut sum = Tallies::default();
        if let Ok(each) = self.tallies.get(&Plain(*scope), 0) {
            for Plain(of_cpu) in each.iter() {
                for (total, count) in sum.0.iter_mut().zip(of_cpu.0) {
                    *total = total.wrapping_add(count);
                }
            }
        }
        sum
    }

    /// What could not be handled the usual way, by name, on all CPUs together.
    #[must_use]
    pub fn unhandled(&self) -> [(&'static str, u64); UNHANDLED as usize] {
        let mut index = 0;
        UNHANDLED_NAMES.map(|name| {
            let each = self.unhandled.get(&index, 0);
            index += 1;
            (name, each.map_or(0, |each| each.iter().sum()))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn a_record_is_read_if_it_is_all_there_and_byte_for_byte(bytes in prop::collection::vec(any::<u8>(), 0..700)) {
            let kind: Option<u32> = record(&bytes);
            prop_assert_eq!(kind, bytes.first_chunk().map(|four| u32::from_ne_bytes(*four)));
            let deferred: Option<Deferred> = record(&bytes);
            prop_assert_eq!(deferred.is_some(), bytes.len() >= size_of::<Deferred>());
            if let Some(deferred) = deferred {
                let end = size_of::<Deferred>();
                prop_assert_eq!(&deferred.frame[..], &bytes[end - deferred.frame.len()..end]);
            }
            let reached: Option<LimitReached> = record(&bytes);
            prop_assert_eq!(reached.is_some(), bytes.len() >= size_of::<LimitReached>());
            let room: Option<Room> = record(&bytes);
            prop_assert_eq!(room.is_some(), bytes.len() >= size_of::<Room>());
        }
    }
}
