use super::*;

fn known(tgid: u32, start_ns: u64) -> Known {
    Known {
        tgid,
        tid: tgid,
        start_ns,
        ..Known::default()
    }
}

fn target(certainty: Certainty) -> Target {
    Target {
        pid: 700,
        start_ticks: 5,
        certainty,
    }
}

/// Somewhere in the tick `ticks`.
fn in_tick(ticks: u64) -> u64 {
    owners::nanos_of(ticks) + 1_234_567
}

#[test]
fn a_socket_belongs_to_who_connected_it() {
    let target = target(Certainty::Start);
    let own = known(700, in_tick(5));
    assert!(target.owns(&[own], true));
    // Others hold it, and it does not any more.
    assert!(target.owns(&[own], false));
    // It was handed to it by somebody else.
    assert!(!target.owns(&[known(701, in_tick(5))], true));
    // By an earlier process of its number.
    assert!(!target.owns(&[known(700, in_tick(4))], true));
}

#[test]
fn a_socket_that_nobody_noted_belongs_to_who_holds_it() {
    let target = target(Certainty::Start);
    let nobody = [Known::unknown(true), known(700, 0)];
    for noted in [&[][..], &nobody[..1], &nobody] {
        assert!(target.owns(noted, true));
        assert!(!target.owns(noted, false));
    }
    // One throttle has noted it, another began later.
    assert!(target.owns(&[Known::unknown(true), known(700, in_tick(5))], false));
}

#[test]
fn attempts_without_a_start_are_its_own_only_if_nothing_better_is_known() {
    assert!(!target(Certainty::Start).is(700, 0));
    assert!(target(Certainty::Name).is(700, 0));
    assert!(!target(Certainty::Name).is(701, 0));
    assert!(!target(Certainty::Name).is(700, in_tick(6)));
}

#[test]
fn an_owner_of_the_kernel_side_names_one_process() {
    let wanted = Wanted::process(700, in_tick(5));
    assert_eq!((wanted.pid, wanted.start_ticks), (700, Some(5)));
    assert_eq!(Wanted::process(700, 0).start_ticks, None);
}

#[test]
fn a_process_is_not_ended_by_the_start_of_another() {
    if !object::sees_all_processes() {
        eprintln!("skipped: needs the initial pid namespace");
        return;
    }
    let own = std::process::id();
    let parent = nix::unistd::getppid().as_raw().unsigned_abs();
    let word = |wanted: &Wanted| match Prepared::new(wanted) {
        Err(Failure::Refused(refusal)) => refusal.word(),
        Err(Failure::Failed(error)) => panic!("{error}"),
        Ok(_) => "none",
    };
    assert_eq!(word(&Wanted::process(own, in_tick(5))), "itself");
    assert_eq!(word(&Wanted::process(parent, in_tick(5))), "reused");
}
