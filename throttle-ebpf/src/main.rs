//! The entries: one for each hook and kind of device.

#![cfg_attr(target_arch = "bpf", no_std, no_main)]

#[cfg(target_arch = "bpf")]
mod entries {
    use aya_ebpf::{
        macros::{btf_tracepoint, classifier},
        programs::{BtfTracePointContext, TcContext},
    };
    use throttle_common::{frame::Link, record::Step};
    use throttle_ebpf::{
        inbound::{self, Incoming},
        outbound::{self, Hook, NEXT},
        skb::Skb,
        socket_state, steps,
    };

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
                    steps::go_on(skb, Step::Syn);
                }
            }
            Incoming::Other => {}
        }
        NEXT
    }

    #[classifier]
    fn out_egress_ether(context: TcContext) -> i32 {
        outbound::look(&Skb::new(&context), Link::Ethernet, Hook::Egress);
        NEXT
    }

    #[classifier]
    fn out_egress_ip(context: TcContext) -> i32 {
        outbound::look(&Skb::new(&context), Link::Ip, Hook::Egress);
        NEXT
    }

    #[classifier]
    fn out_ingress_ether(context: TcContext) -> i32 {
        outbound::look(&Skb::new(&context), Link::Ethernet, Hook::Ingress);
        NEXT
    }

    #[classifier]
    fn out_ingress_ip(context: TcContext) -> i32 {
        outbound::look(&Skb::new(&context), Link::Ip, Hook::Ingress);
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

    #[classifier]
    fn syn(context: TcContext) -> i32 {
        outbound::on_syn(&Skb::new(&context))
    }

    #[classifier]
    fn admit(context: TcContext) -> i32 {
        outbound::on_new(&Skb::new(&context))
    }

    #[classifier]
    fn defer(context: TcContext) -> i32 {
        outbound::on_full(&Skb::new(&context))
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
