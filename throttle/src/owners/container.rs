//! The container that the path of a control group tells of.
//!
//! Container runtimes name a control group after the container it is for, each in
//! its own way. That is a custom, not a proof: who may make control groups may
//! give them such names.

use crate::event::Container;

/// Digits of a container's id.
const ID_LEN: usize = 64;

/// What stands before the id in the name of a control group, and the runtime
/// that puts it there. Groups of a container's monitor (`crio-conmon-`,
/// `libpod-conmon-`) are none of the container's.
const PREFIXES: [(&[u8], &str); 6] = [
    (b"cri-containerd", "containerd"),
    (b"nerdctl", "containerd"),
    (b"crio", "cri-o"),
    (b"docker", "docker"),
    (b"libpod", "podman"),
    // Of `--cgroups=split`, which units made from container files have.
    (b"libpod-payload", "podman"),
];

/// The container that the control group of this path belongs to: the innermost, if
/// there is one inside another. None if the path tells of none.
#[must_use]
pub fn container_of(path: &[u8]) -> Option<Container> {
    let parts: Vec<&[u8]> = path.split(|byte| *byte == b'/').collect();
    (0..parts.len()).rev().find_map(|at| {
        let (id, runtime) = named(parts[at]).or_else(|| bare(&parts[..=at]))?;
        Some(Container {
            id,
            runtime,
            pod_uid: parts[..=at].iter().rev().find_map(|part| pod_uid(part)),
        })
    })
}

/// `RUNTIME-ID.scope` of systemd, `RUNTIME-ID`, and `SLICE:RUNTIME:ID`, which is
/// what a runtime without systemd makes of a path that was meant for it.
fn named(part: &[u8]) -> Option<(String, Option<&'static str>)> {
    let part = part.strip_suffix(b".scope").unwrap_or(part);
    let (before, digits) = part.split_at_checked(part.len().checked_sub(ID_LEN)?)?;
    let id = id(digits)?;
    let (separator, before) = before.split_last()?;
    let prefix = match separator {
        b'-' => before,
        b':' => before.rsplit(|byte| *byte == b':').next()?,
        _ => return None,
    };
    let (_, runtime) = PREFIXES.iter().find(|(name, _)| *name == prefix)?;
    Some((id, Some(runtime)))
}

/// Nothing but the id, at the end of `parts`. The groups above it may tell the
/// runtime; those of Kubernetes do not.
fn bare(parts: &[&[u8]]) -> Option<(String, Option<&'static str>)> {
    let (last, above) = parts.split_last()?;
    let is_docker = above.last() == Some(&&b"docker"[..])
        // Amazon's container service: /ecs/TASK/ID.
        || above.len() >= 2 && above[above.len() - 2] == b"ecs";
    Some((id(last)?, is_docker.then_some("docker")))
}

fn id(digits: &[u8]) -> Option<String> {
    let is_id = digits.len() == ID_LEN && digits.iter().all(is_digit);
    is_id.then(|| digits.iter().copied().map(char::from).collect())
}

/// Hexadecimal, as all runtimes write it.
fn is_digit(byte: &u8) -> bool {
    matches!(byte, b'0'..=b'9' | b'a'..=b'f')
}

/// The UID of a pod: of `podUID`, or of `kubepods-CLASS-podUID.slice`, where
/// systemd wants underscores. That of a pod from a file on the node is a hash
/// without dashes.
fn pod_uid(part: &[u8]) -> Option<String> {
    let part = part.split(|byte| *byte == b':').next()?;
    let part = part.strip_suffix(b".slice").unwrap_or(part);
    let unit = part.rsplit(|byte| *byte == b'-').next()?;
    // With dashes in it, it is not the last piece between dashes.
    let uid = unit
        .strip_prefix(b"pod")
        .or_else(|| part.strip_prefix(b"pod"))?;
    let uid: String = uid
        .iter()
        .map(|byte| {
            if *byte == b'_' {
                '-'
            } else {
                char::from(*byte)
            }
        })
        .collect();
    let is_uid = match uid.len() {
        36 => uid.bytes().enumerate().all(|(at, byte)| match at {
            8 | 13 | 18 | 23 => byte == b'-',
            _ => is_digit(&byte),
        }),
        32 => uid.bytes().all(|byte| is_digit(&byte)),
        _ => false,
    };
    is_uid.then_some(uid)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const A: &str = "0a1b2c3d4e5f60718293a4b5c6d7e8f90a1b2c3d4e5f60718293a4b5c6d7e8f9";
    const B: &str = "fedcba9876543210fedcba9876543210fedcba9876543210fedcba9876543210";
    const POD: &str = "2fc932ce-fdcc-454b-97bd-aadfdeb4c340";
    const POD_: &str = "2fc932ce_fdcc_454b_97bd_aadfdeb4c340";
    const HASH: &str = "36b6d6be73b1065af369b3985edafa09";

    #[test]
    fn each_runtime_is_known_by_its_paths() {
        let (containerd, crio, docker, podman) = (
            Some("containerd"),
            Some("cri-o"),
            Some("docker"),
            Some("podman"),
        );
        let table: [(String, &str, Option<&str>, Option<&str>); 32] = [
            // Kubernetes with systemd.
            (
                format!(
                    "/kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod{POD_}.slice/cri-containerd-{A}.scope"
                ),
                A,
                containerd,
                Some(POD),
            ),
            (
                format!(
                    "/kubepods.slice/kubepods-besteffort.slice/kubepods-besteffort-pod{POD_}.slice/cri-containerd-{A}.scope"
                ),
                A,
                containerd,
                Some(POD),
            ),
            (
                format!("/kubepods.slice/kubepods-pod{POD_}.slice/cri-containerd-{A}.scope"),
                A,
                containerd,
                Some(POD),
            ),
            (
                format!(
                    "/kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod{HASH}.slice/cri-containerd-{A}.scope"
                ),
                A,
                containerd,
                Some(HASH),
            ),
            (
                format!("/kubepods.slice/kubepods-pod{POD_}.slice/crio-{A}.scope"),
                A,
                crio,
                Some(POD),
            ),
            (
                format!("/kubepods.slice/kubepods-pod{POD_}.slice/crio-{A}.scope/container"),
                A,
                crio,
                Some(POD),
            ),
            (
                format!(
                    "/kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod{POD_}.slice/docker-{A}.scope"
                ),
                A,
                docker,
                Some(POD),
            ),
            // Kubernetes without.
            (
                format!("/kubepods/burstable/pod{POD}/{A}"),
                A,
                None,
                Some(POD),
            ),
            (
                format!("/kubepods/besteffort/pod{POD}/{A}"),
                A,
                None,
                Some(POD),
            ),
            (format!("/kubepods/pod{POD}/{A}"), A, None, Some(POD)),
            (
                format!("/kubepods/burstable/pod{HASH}/{A}"),
                A,
                None,
                Some(HASH),
            ),
            (
                format!("/kubepods/burstable/pod{POD}/crio-{A}"),
                A,
                crio,
                Some(POD),
            ),
            // The two mixed up.
            (
                format!(
                    "/system.slice/containerd.service/kubepods-burstable-pod{POD_}.slice:cri-containerd:{A}"
                ),
                A,
                containerd,
                Some(POD),
            ),
            (
                format!(
                    "/system.slice/containerd.service/kubepods-burstable-pod{HASH}.slice:cri-containerd:{A}"
                ),
                A,
                containerd,
                Some(HASH),
            ),
            (format!("/system.slice:docker:{A}"), A, docker, None),
            // Docker.
            (format!("/system.slice/docker-{A}.scope"), A, docker, None),
            (
                format!("/system.slice/docker-{A}.scope/init.scope"),
                A,
                docker,
                None,
            ),
            (
                format!(
                    "/user.slice/user-1000.slice/user@1000.service/user.slice/docker-{A}.scope"
                ),
                A,
                docker,
                None,
            ),
            (format!("/docker/{A}"), A, docker, None),
            (
                format!("/docker/{A}/system.slice/nginx.service"),
                A,
                docker,
                None,
            ),
            (
                format!("/ecs/9781c248-0edd-4cdb-9a93-f63cb662a5d3/{A}"),
                A,
                docker,
                None,
            ),
            (
                format!(
                    "/ecstasks.slice/ecstasks-9781c2480edd4cdb9a93f63cb662a5d3.slice/docker-{A}.scope"
                ),
                A,
                docker,
                None,
            ),
            // nerdctl.
            (
                format!("/system.slice/nerdctl-{A}.scope"),
                A,
                containerd,
                None,
            ),
            // podman.
            (format!("/machine.slice/libpod-{A}.scope"), A, podman, None),
            (
                format!("/machine.slice/libpod-{A}.scope/container"),
                A,
                podman,
                None,
            ),
            (
                format!(
                    "/user.slice/user-1000.slice/user@1000.service/user.slice/libpod-{A}.scope/container"
                ),
                A,
                podman,
                None,
            ),
            (
                format!("/machine.slice/machine-libpod_pod_{B}.slice/libpod-{A}.scope/container"),
                A,
                podman,
                None,
            ),
            (
                format!("/system.slice/web.service/libpod-payload-{A}"),
                A,
                podman,
                None,
            ),
            (format!("/libpod_parent/libpod-{A}"), A, podman, None),
            // One in another: a node of Kubernetes that is a container.
            (
                format!(
                    "/docker/{B}/kubelet.slice/kubelet-kubepods.slice/kubelet-kubepods-besteffort.slice/kubelet-kubepods-besteffort-pod{POD_}.slice/cri-containerd-{A}.scope"
                ),
                A,
                containerd,
                Some(POD),
            ),
            (
                format!("/system.slice/docker-{B}.scope/kubelet/kubepods/besteffort/pod{POD}/{A}"),
                A,
                None,
                Some(POD),
            ),
            // The monitor of a container, inside another container.
            (
                format!("/docker/{A}/machine.slice/libpod-conmon-{B}.scope"),
                A,
                docker,
                None,
            ),
        ];
        for (path, id, runtime, pod_uid) in table {
            let expected = Container {
                id: id.to_owned(),
                runtime: runtime
                    .map(|name| PREFIXES.iter().find(|(_, known)| *known == name).unwrap().1),
                pod_uid: pod_uid.map(str::to_owned),
            };
            assert_eq!(container_of(path.as_bytes()), Some(expected), "{path}");
        }
    }

    #[test]
    fn other_paths_tell_of_none() {
        for path in [
            String::new(),
            "/".into(),
            "/init.scope".into(),
            "/system.slice/ssh.service".into(),
            "/user.slice/user-1000.slice/session-4.scope".into(),
            "/system.slice/docker.service".into(),
            "/lxc.payload.web".into(),
            format!("/machine.slice/libpod-conmon-{A}.scope"),
            format!("/kubepods.slice/kubepods-pod{POD_}.slice/crio-conmon-{A}.scope"),
            format!("/kubepods.slice/kubepods-pod{POD_}.slice"),
            format!("/machine.slice/machine-libpod_pod_{A}.slice"),
            format!("/docker/{}", &A[1..]),
            format!("/docker/{A}0"),
            format!("/docker/{}", A.to_uppercase()),
            format!("/docker-{}g.scope", &A[1..]),
            format!("/mydocker-{A}.scope"),
        ] {
            assert_eq!(container_of(path.as_bytes()), None, "{path}");
        }
    }

    #[test]
    fn what_is_no_uid_is_not_taken_for_one() {
        for pod in ["pod", "podium", "pod2fc932ce", &format!("pod{POD}x")] {
            let found = container_of(format!("/kubepods/{pod}/{A}").as_bytes()).unwrap();
            assert_eq!(found.pod_uid, None, "{pod}");
        }
    }

    /// Pieces that paths are made of, and any bytes.
    fn piece() -> impl Strategy<Value = Vec<u8>> {
        prop_oneof![
            prop::collection::vec(any::<u8>(), 0..80),
            prop::sample::select(vec![
                "/",
                ":",
                "-",
                ".scope",
                ".slice",
                "pod",
                "docker",
                "libpod",
                "crio",
                "ecs",
                "/kubepods-pod",
                A,
                B,
                POD,
                POD_,
                HASH,
            ])
            .prop_map(|text| text.as_bytes().to_vec()),
        ]
    }

    proptest! {
        #[test]
        fn any_path_gives_a_proper_id_or_none(pieces in prop::collection::vec(piece(), 0..12)) {
            if let Some(container) = container_of(&pieces.concat()) {
                prop_assert_eq!(container.id.len(), ID_LEN);
                prop_assert!(container.id.bytes().all(|byte| is_digit(&byte)));
                if let Some(uid) = container.pod_uid {
                    prop_assert!(uid.bytes().all(|byte| byte == b'-' || is_digit(&byte)));
                }
            }
        }
    }
}
