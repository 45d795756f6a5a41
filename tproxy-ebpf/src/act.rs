//! What is done with a packet at each tc hook that decides.

use aya_ebpf::bindings::{TC_ACT_SHOT, TC_ACT_UNSPEC};
use tproxy_common::abi::{FragmentFate, Reason, Settings};
use tproxy_common::packet::{Packet, Transport};
use tproxy_common::verdict::Target;

use crate::facts::{forget_steered, remember_fragment, remember_steered};

/// `TC_ACT_UNSPEC` lets the programs and filters behind this one have their say; a tcx chain reads
/// the same value as `TCX_NEXT`.
pub const CONTINUE: i32 = TC_ACT_UNSPEC;

/// What was done with a packet, and why.
#[derive(Clone, Copy)]
pub struct Done {
    pub action: i32,
    pub reason: Reason,
}

impl Done {
    /// The packet goes on, marked or not.
    #[inline(always)]
    pub const fn goes_on(reason: Reason) -> Self {
        Self {
            action: CONTINUE,
            reason,
        }
    }

    /// It ends here.
    #[inline(always)]
    pub const fn ends(reason: Reason) -> Self {
        Self {
            action: TC_ACT_SHOT,
            reason,
        }
    }
}

/// No proxy is running: the declared policy decides.
#[inline(always)]
pub fn down(packet: &Packet, settings: Settings) -> Done {
    if settings.has(Settings::DOWN_DROPS) {
        Done::ends(Reason::DownDropped)
    } else {
        pass_on(packet, Reason::DownPassed)
    }
}

/// Why a packet for this target is steered.
#[inline(always)]
pub fn reason_of(packet: &Packet, target: Target) -> Reason {
    match target {
        Target::Connection => Reason::TcpSteered,
        Target::Gone => Reason::TcpGone,
        Target::Reassembly => Reason::FragmentSteered,
        Target::Resolver | Target::OwnResolver => Reason::DnsSteered,
        Target::Listener => match packet.transport {
            Transport::Tcp { .. } => Reason::TcpOpened,
            _ => Reason::UdpSteered,
        },
    }
}

/// Remembers what follows from the steering of a packet for those behind it.
#[inline(always)]
pub fn remember(packet: &Packet) {
    if let Transport::Tcp { ports, opens } = &packet.transport {
        if packet.fragment.is_one() {
            remember_fragment(packet, FragmentFate::Steered);
        }
        if *opens {
            remember_steered(&packet.addresses, ports);
        }
    }
}

/// Lets a packet pass, forgets what it makes untrue and remembers what follows for its fragments.
#[inline(always)]
pub fn pass_on(packet: &Packet, reason: Reason) -> Done {
    let fragment = packet.fragment.is_one();
    match &packet.transport {
        Transport::Tcp { opens, ports } => {
            if *opens {
                forget_steered(&packet.addresses, ports);
            }
            if fragment {
                remember_fragment(packet, FragmentFate::Passed);
            }
        }
        // For its ports. For any other reason the fragments that follow pass by themselves.
        Transport::Udp { .. } if fragment && matches!(reason, Reason::ServiceReply) => {
            remember_fragment(packet, FragmentFate::Passed);
        }
        _ => {}
    }
    Done::goes_on(reason)
}
