//! Ethernet frames with any source address, put on a link past the sender's own stack, to see how the other end answers a
//! SYN.
//!
//! Nothing waits for silence: behind each SYN goes a second one, to a closed port that always answers. The other end
//! takes frames in order (the sender stays on one processor for that), so that a SYN without an answer by then gets
//! none. Should one come all the same, [`Wire::late_replies`] has it.

use std::net::{Ipv4Addr, SocketAddrV4};
use std::os::fd::AsRawFd as _;
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail};
use nix::sched::{CpuSet, sched_getaffinity, sched_setaffinity};
use nix::unistd::Pid;
use smoltcp::phy::{
    ChecksumCapabilities, Device as _, Medium, RawSocket, RxToken as _, TxToken as _, wait,
};
use smoltcp::wire::{
    EthernetAddress, EthernetFrame, EthernetProtocol, EthernetRepr, IpProtocol, Ipv4Packet,
    Ipv4Repr, TcpControl, TcpPacket, TcpRepr, TcpSeqNumber,
};

use crate::eventually::slowness_factor;
use crate::netns::Netns;

/// The other end's answer to a SYN.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reply {
    SynAck,
    Reset,
    Nothing,
}

/// Both ends of a link, as its frames name them.
#[derive(Debug, Clone, Copy)]
pub struct Link {
    /// The hardware address of the end that sends.
    pub from: [u8; 6],
    /// The hardware address of the end that is spoken to.
    pub to: [u8; 6],
    /// An address of the sender's that the other end answers to…
    pub ip: Ipv4Addr,
    /// …and the port of it that nobody listens on.
    pub closed: SocketAddrV4,
}

/// A link that SYNs are put on.
#[derive(Debug)]
pub struct Wire {
    socket: RawSocket,
    link: Link,
    probes: Vec<Probe>,
}

/// A SYN that was sent. Each has a source port and a sequence number of its own, so that an answer that is sent again
/// is never taken for another one's.
#[derive(Debug)]
struct Probe {
    from: SocketAddrV4,
    to: SocketAddrV4,
    number: TcpSeqNumber,
    seen: Reply,
    reported: Reply,
}

/// Source ports, from here on.
const FIRST_PORT: u16 = 20_000;
/// The other end answers within microseconds.
const TIMEOUT: Duration = Duration::from_secs(5);

impl Wire {
    /// Opens the link of this name in a network namespace. The thread that calls [`Wire::send_syn`] stays on one processor
    /// from then on.
    pub fn open(netns: &Netns, name: &str, link: Link) -> anyhow::Result<Self> {
        let socket = netns
            .run_on_this_thread(|| RawSocket::new(name, Medium::Ethernet))?
            .with_context(|| format!("a packet socket on {name}: this needs root (CAP_NET_RAW)"))?;
        Ok(Self {
            socket,
            link,
            probes: Vec::new(),
        })
    }

    /// Sends a SYN and tells what came of it.
    pub fn send_syn(&mut self, from: Ipv4Addr, to: SocketAddrV4) -> anyhow::Result<Reply> {
        stay_on_this_processor()?;
        let probe = self.send_probe(from, to)?;
        let fence = self.send_probe(self.link.ip, self.link.closed)?;
        let deadline = Instant::now() + TIMEOUT * slowness_factor();
        while self.probes[fence].seen == Reply::Nothing {
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                bail!("{} doesn't refuse a SYN: is the link up?", self.link.closed);
            }
            wait(self.socket.as_raw_fd(), Some(left.into())).context("waiting for a frame")?;
            self.receive_frames();
        }
        if self.probes[fence].seen == Reply::SynAck {
            bail!("somebody listens on {}", self.link.closed);
        }
        let probe = &mut self.probes[probe];
        probe.reported = probe.seen;
        Ok(probe.reported)
    }

    /// Answers to SYNs for which [`Wire::send_syn`] returned [`Reply::Nothing`]: none, unless it returned too early.
    pub fn late_replies(&mut self) -> Vec<String> {
        self.receive_frames();
        let late = self
            .probes
            .iter()
            .filter(|probe| probe.reported == Reply::Nothing);
        let late =
            late.filter(|probe| probe.seen != Reply::Nothing && probe.to != self.link.closed);
        late.map(|probe| format!("{} → {}: {:?}", probe.from, probe.to, probe.seen))
            .collect()
    }

    fn send_probe(&mut self, from: Ipv4Addr, to: SocketAddrV4) -> anyhow::Result<usize> {
        let index = self.probes.len();
        let port = u16::try_from(index)
            .ok()
            .and_then(|index| FIRST_PORT.checked_add(index));
        let from = SocketAddrV4::new(from, port.context("no ports are left: open another wire")?);
        // Far apart: an answer to one acknowledges no other.
        let number = TcpSeqNumber(i32::from(from.port()) << 16);
        self.probes.push(Probe {
            from,
            to,
            number,
            seen: Reply::Nothing,
            reported: Reply::Nothing,
        });
        let tcp = TcpRepr {
            src_port: from.port(),
            dst_port: to.port(),
            control: TcpControl::Syn,
            seq_number: number,
            ack_number: None,
            window_len: 64_000,
            window_scale: None,
            max_seg_size: Some(1460),
            sack_permitted: false,
            sack_ranges: [None; 3],
            timestamp: None,
            payload: &[],
        };
        let token = self
            .socket
            .transmit(smoltcp::time::Instant::now())
            .context("the link takes no frame")?;
        token.consume(frame_len(&tcp), |buffer| {
            write_frame(buffer, &self.link, *from.ip(), *to.ip(), &tcp)
        });
        Ok(index)
    }

    /// Reads all frames that have arrived.
    fn receive_frames(&mut self) {
        let probes = &mut self.probes;
        while let Some((frame, _)) = self.socket.receive(smoltcp::time::Instant::now()) {
            frame.consume(|bytes| match_reply(probes, bytes));
        }
    }
}

fn stay_on_this_processor() -> anyhow::Result<()> {
    let this = Pid::from_raw(0);
    let allowed = sched_getaffinity(this).context("which processors are ours?")?;
    let mut one = CpuSet::new();
    let first = (0..CpuSet::count()).find(|cpu| allowed.is_set(*cpu).unwrap_or(false));
    one.set(first.context("no processor is ours")?)?;
    sched_setaffinity(this, &one).context("staying on one processor")
}

fn ip_of(from: Ipv4Addr, to: Ipv4Addr, payload_len: usize) -> Ipv4Repr {
    Ipv4Repr {
        src_addr: from,
        dst_addr: to,
        next_header: IpProtocol::Tcp,
        payload_len,
        hop_limit: 64,
    }
}

fn frame_len(tcp: &TcpRepr<'_>) -> usize {
    let ip = ip_of(
        Ipv4Addr::UNSPECIFIED,
        Ipv4Addr::UNSPECIFIED,
        tcp.buffer_len(),
    );
    EthernetFrame::<&[u8]>::buffer_len(ip.buffer_len() + tcp.buffer_len())
}

fn write_frame(buffer: &mut [u8], link: &Link, from: Ipv4Addr, to: Ipv4Addr, tcp: &TcpRepr<'_>) {
    let checksums = ChecksumCapabilities::default();
    let mut frame = EthernetFrame::new_unchecked(buffer);
    let ethernet = EthernetRepr {
        src_addr: EthernetAddress(link.from),
        dst_addr: EthernetAddress(link.to),
        ethertype: EthernetProtocol::Ipv4,
    };
    ethernet.emit(&mut frame);
    let mut packet = Ipv4Packet::new_unchecked(frame.payload_mut());
    ip_of(from, to, tcp.buffer_len()).emit(&mut packet, &checksums);
    let mut segment = TcpPacket::new_unchecked(packet.payload_mut());
    tcp.emit(&mut segment, &from.into(), &to.into(), &checksums);
}

/// Is this frame the answer to one of ours: from exactly there to exactly here, acknowledging exactly that SYN?
fn match_reply(probes: &mut [Probe], bytes: &[u8]) -> Option<()> {
    let frame = EthernetFrame::new_checked(bytes).ok()?;
    let packet = Ipv4Packet::new_checked(frame.payload()).ok()?;
    if frame.ethertype() != EthernetProtocol::Ipv4 || packet.next_header() != IpProtocol::Tcp {
        return None;
    }
    let segment = TcpPacket::new_checked(packet.payload()).ok()?;
    let from = SocketAddrV4::new(packet.src_addr(), segment.src_port());
    let to = SocketAddrV4::new(packet.dst_addr(), segment.dst_port());
    let probe = probes
        .iter_mut()
        .find(|probe| (probe.to, probe.from) == (from, to))?;
    if !segment.ack() || segment.ack_number() != probe.number + 1 {
        return None;
    }
    if probe.seen == Reply::Nothing {
        probe.seen = match (segment.rst(), segment.syn()) {
            (true, _) => Reply::Reset,
            (false, true) => Reply::SynAck,
            (false, false) => return None,
        };
    }
    Some(())
}

#[cfg(test)]
mod tests {
    use super::*;

    const HOST: SocketAddrV4 = SocketAddrV4::new(Ipv4Addr::new(169, 254, 2, 1), 10268);
    const LINK: Link = Link {
        from: [2, 0, 0, 0, 0, 1],
        to: [2, 0, 0, 0, 0, 2],
        ip: *HOST.ip(),
        closed: HOST,
    };

    fn probe(port: u16) -> Probe {
        let from = SocketAddrV4::new(Ipv4Addr::new(10, 0, 0, 2), port);
        let number = TcpSeqNumber(i32::from(port) << 16);
        Probe {
            from,
            to: HOST,
            number,
            seen: Reply::Nothing,
            reported: Reply::Nothing,
        }
    }

    fn answer(
        from: SocketAddrV4,
        to: SocketAddrV4,
        control: TcpControl,
        ack: TcpSeqNumber,
    ) -> Vec<u8> {
        let tcp = TcpRepr {
            src_port: from.port(),
            dst_port: to.port(),
            control,
            seq_number: TcpSeqNumber(7),
            ack_number: Some(ack),
            window_len: 1000,
            window_scale: None,
            max_seg_size: None,
            sack_permitted: false,
            sack_ranges: [None; 3],
            timestamp: None,
            payload: &[],
        };
        let mut bytes = vec![0; frame_len(&tcp)];
        write_frame(&mut bytes, &LINK, *from.ip(), *to.ip(), &tcp);
        bytes
    }

    #[test]
    fn an_answer_counts_for_the_syn_that_it_acknowledges_alone() {
        let mut probes = [probe(20_000), probe(20_001)];
        let (first, second) = (probes[0].from, probes[1].from);
        let [acked, acked_second] = [probes[0].number + 1, probes[1].number + 1];
        let another = SocketAddrV4::new(*HOST.ip(), 10261);
        for other in [
            answer(HOST, second, TcpControl::Syn, acked),
            answer(another, first, TcpControl::Syn, acked),
            answer(first, HOST, TcpControl::Syn, acked),
            answer(HOST, first, TcpControl::None, acked),
        ] {
            match_reply(&mut probes, &other);
        }
        assert_eq!([probes[0].seen, probes[1].seen], [Reply::Nothing; 2]);
        match_reply(&mut probes, &answer(HOST, first, TcpControl::Syn, acked));
        match_reply(
            &mut probes,
            &answer(HOST, second, TcpControl::Rst, acked_second),
        );
        assert_eq!(
            [probes[0].seen, probes[1].seen],
            [Reply::SynAck, Reply::Reset]
        );
        match_reply(&mut probes, &answer(HOST, first, TcpControl::Rst, acked));
        assert_eq!(probes[0].seen, Reply::SynAck, "the first answer counts");
    }
}
