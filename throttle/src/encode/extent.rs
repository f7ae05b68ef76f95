//! How much of an event goes into a line, so that the line stays short enough.

use super::LINE_MAX;
use crate::{
    event::{Event, Who},
    name::Name,
};

/// How much of an event is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Extent {
    /// How many destinations.
    pub(super) destinations: usize,
    /// How many programs.
    pub(super) programs: usize,
    /// How many candidates of one control group.
    pub(super) candidates: usize,
    /// How many arguments of one process.
    pub(super) args: usize,
    /// How many bytes of a name.
    pub(super) name: usize,
    /// Whether that is less than there is.
    pub(super) shortened: bool,
}

/// One of the numbers of an extent, and the least that it is lowered to.
type Part = (fn(&mut Extent) -> &mut usize, usize);

/// What is given up for a shorter line, in this order. With the least of all
/// of them the longest names there can be make a line of some 4 KiB.
const PARTS: [Part; 5] = [
    (|extent| &mut extent.destinations, 0),
    (|extent| &mut extent.programs, 1),
    (|extent| &mut extent.candidates, 0),
    (|extent| &mut extent.args, 0),
    (|extent| &mut extent.name, 64),
];

impl Extent {
    /// All of `event`.
    pub(super) fn whole(event: &Event) -> Self {
        let mut whole = Self {
            destinations: 0,
            programs: 0,
            candidates: 0,
            args: 0,
            name: Name::MAX,
            shortened: false,
        };
        let Some(episode) = event.what.episode() else {
            return whole;
        };
        whole.destinations = episode.destinations.len();
        whole.programs = episode.programs.len();
        let whos = || episode.programs.iter().map(|active| &active.who);
        whole.candidates = whos().map(|who| who.candidates().len()).max().unwrap_or(0);
        let processes = whos().flat_map(|who| who.process().into_iter().chain(who.candidates()));
        whole.args = processes
            .map(|process| could_fit(process.args.as_deref().unwrap_or_default()))
            .max()
            .unwrap_or(0);
        whole
    }

    /// As much of a name as is written.
    pub(super) fn name(&self, name: &Name) -> String {
        name.within(self.name).into_owned()
    }

    /// The candidates that are written.
    pub(super) fn candidates<'a>(
        &self,
        who: &'a Who,
    ) -> impl Iterator<Item = &'a crate::event::Process> + use<'a> {
        who.candidates().iter().take(self.candidates)
    }
}

/// As many of `args` as make a line too long, or all: with more of them a line
/// would be written that nobody can use.
fn could_fit(args: &[Name]) -> usize {
    let mut len = 0;
    args.iter()
        .take_while(|arg| {
            let fits = len <= LINE_MAX;
            // And what separates it from the next one.
            len += arg.as_str().len() + 1;
            fits
        })
        .count()
}

/// The line that `write` makes of `event`: of all of it, or of the most of it
/// that fits.
pub(super) fn fit(event: &Event, write: impl Fn(&Extent) -> String) -> String {
    let mut extent = Extent::whole(event);
    let line = write(&extent);
    if line.len() <= LINE_MAX {
        return line;
    }
    extent.shortened = true;
    let fits = |extent: &Extent| Some(write(extent)).filter(|line| line.len() <= LINE_MAX);
    for (part, least) in PARTS {
        let most = *part(&mut extent);
        if most <= least {
            continue;
        }
        *part(&mut extent) = least;
        let Some(mut line) = fits(&extent) else {
            continue;
        };
        // `fitting` of them do, `too_many` do not.
        let (mut fitting, mut too_many) = (least, most);
        while too_many - fitting > 1 {
            let middle = fitting.midpoint(too_many);
            *part(&mut extent) = middle;
            match fits(&extent) {
                Some(longer) => (line, fitting) = (longer, middle),
                None => too_many = middle,
            }
        }
        return line;
    }
    write(&extent)
}
