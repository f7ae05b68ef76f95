//! The entries: one for each hook and kind of device.

#![cfg_attr(target_arch = "bpf", no_std, no_main)]

#[cfg(target_arch = "bpf")]
mod entries {
    use aya_ebpf::{
        bindings::TC_ACT_SHOT,
        macros::{btf_tracepoint, classifier},
        programs::{BtfTracePointContext, TcContext},
    };
    use throttle_common::{decision::Verdict, frame::Link, record::Step};
    use throttle_ebpf::{
        inbound::{self, Incoming},
        outbound,
        skb::Skb,
        socket_state, steps,
    };

    /// `TCX_NEXT` and `TC_ACT_UNSPEC`: the packet goes on to the next program.
    const NEXT: i32 = -1;

    #[inline(always)]
    fn incoming(skb: &Skb, link: Link) -> i32 {
        match inbound::read(skb, link) {
            Incoming::SynAck | Incoming::Reset | Incoming::IcmpError => {
                steps::go_on(skb, Step::Answer);
            }
            Incoming::Syn | Incoming::Other => {}
        }
        NEXT
    }

    /// As [`incoming`], on the egress hook of a device whose ingress is watched:
    /// there the daemon's copies come by.
    #[inline(always)]
    fn incoming_at_egress(skb: &Skb, link: Link) -> i32 {
        match inbound::read(skb, link) {
            Incoming::SynAck | Incoming::Reset | Incoming::IcmpError => {
                steps::go_on(skb, Step::Answer);
            }
            Incoming::Syn => {
                if outbound::is_daemons(skb) {
                    steps::go_on(skb, Step::SynTurning);
                }
            }
            Incoming::Other => {}
        }
        NEXT
    }

    #[classifier]
    fn out_egress_ether(context: TcContext) -> i32 {
        outbound::look(&Skb::new(&context), Link::Ethernet, Step::SynAtEgress);
        NEXT
    }

    #[classifier]
    fn out_egress_ip(context: TcContext) -> i32 {
        outbound::look(&Skb::new(&context), Link::Ip, Step::SynAtEgress);
        NEXT
    }

    #[classifier]
    fn out_ingress_ether(context: TcContext) -> i32 {
        outbound::look(&Skb::new(&context), Link::Ethernet, Step::SynAtIngress);
        NEXT
    }

    #[classifier]
    fn out_ingress_ip(context: TcContext) -> i32 {
        outbound::look(&Skb::new(&context), Link::Ip, Step::SynAtIngress);
        NEXT
    }

    #[classifier]
    fn in_ingress_ether(context: TcContext) -> i32 {
        incoming(&Skb::new(&context), Link::Ethernet)
    }

    #[classifier]
    fn in_ingress_ip(context: TcContext) -> i32 {
        incoming(&Skb::new(&context), Link::Ip)
    }

    #[classifier]
    fn in_egress_ether(context: TcContext) -> i32 {
        incoming_at_egress(&Skb::new(&context), Link::Ethernet)
    }

    #[classifier]
    fn in_egress_ip(context: TcContext) -> i32 {
        incoming_at_egress(&Skb::new(&context), Link::Ip)
    }

    /// At egress a packet that is held back must look sent.
    #[classifier]
    fn syn_at_egress(context: TcContext) -> i32 {
        let skb = Skb::new(&context);
        match outbound::on_syn(&skb) {
            Verdict::Pass => NEXT,
            Verdict::Swallow => skb.vanish(),
        }
    }

    /// At ingress its sender never learns of a drop.
    #[classifier]
    fn syn_at_ingress(context: TcContext) -> i32 {
        match outbound::on_syn(&Skb::new(&context)) {
            Verdict::Pass => NEXT,
            Verdict::Swallow => TC_ACT_SHOT,
        }
    }

    /// The daemon's copy, on its way out to where its original came in.
    #[classifier]
    fn syn_turning(context: TcContext) -> i32 {
        let skb = Skb::new(&context);
        match outbound::on_syn(&skb) {
            Verdict::Pass => skb.turn_round(),
            Verdict::Swallow => skb.vanish(),
        }
    }

    #[classifier]
    fn answer(_context: TcContext) -> i32 {
        inbound::on_answer();
        NEXT
    }

    #[btf_tracepoint(function = "inet_sock_set_state")]
    fn socket_state(context: BtfTracePointContext) -> i32 {
        socket_state::changed(&context);
        0
    }

    #[unsafe(link_section = "license")]
    #[unsafe(no_mangle)]
    static LICENSE: [u8; 13] = *b"Dual MIT/GPL\0";

    #[panic_handler]
    fn panic(_: &core::panic::PanicInfo<'_>) -> ! {
        loop {}
    }
}

/// On the host there is nothing to run: the crate is built there for its tests.
#[cfg(not(target_arch = "bpf"))]
fn main() {}
