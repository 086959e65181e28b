//! One connection through the fault proxy: its bytes in both directions, as the present fault lets them pass.
use std::net::{Shutdown, SocketAddr};
use std::sync::atomic::Ordering;
use std::time::Duration;

use bytes::Bytes;
use socket2::SockRef;
use tokio::net::TcpStream;
use tokio::sync::mpsc;
use tokio::time::{Instant, sleep_until, timeout};

use super::{Counters, Direction, Fault, LinkState};

/// Bytes in a piece, and pieces under way in one direction.
const PIECE: usize = 16 * 1024;
const PIECES: usize = 64;
/// Time for a cut connection's client to read the bytes from before the cut.
const DRAIN_LIMIT: Duration = Duration::from_secs(1);

/// The reason for which a connection's bytes stop.
enum End {
    /// A socket failed: what happened at one end happens at the other.
    Broken,
    /// `cut-after` is used up.
    Cut,
}

pub(super) async fn run_connection(
    client: TcpStream,
    upstream: SocketAddr,
    link: LinkState,
    counters: &Counters,
) {
    let resets = link.state.borrow().resets;
    let mut resetting = link.clone();
    let reset = resetting.until_reset(resets);
    tokio::pin!(reset);
    let mut opening = link.clone();
    let connect = async {
        let _ = opening.until_open(Direction::Up).await;
        TcpStream::connect(upstream).await
    };
    let cloud = tokio::select! {
        () = &mut reset => return reset_sockets(&[&client]),
        connected = connect => match connected {
            Ok(cloud) => cloud,
            Err(_) => return reset_sockets(&[&client]),
        },
    };
    let _ = (client.set_nodelay(true), cloud.set_nodelay(true));
    let up = pump_direction([&client, &cloud], Direction::Up, link.clone(), counters);
    let down = pump_direction([&cloud, &client], Direction::Down, link, counters);
    tokio::select! {
        () = &mut reset => reset_sockets(&[&client, &cloud]),
        ended = async { tokio::try_join!(up, down) } => match ended {
            Ok(_) => {}
            Err(End::Broken) => reset_sockets(&[&client, &cloud]),
            Err(End::Cut) => finish_and_drain(&client).await,
        },
    }
}

/// Makes the sockets' close a reset.
fn reset_sockets(sockets: &[&TcpStream]) {
    for socket in sockets {
        let _ = SockRef::from(*socket).set_linger(Some(Duration::ZERO));
    }
}

/// FIN, then reading on: a close with unread bytes would be a reset, which eats what the client has not read yet.
async fn finish_and_drain(client: &TcpStream) {
    let _ = SockRef::from(client).shutdown(Shutdown::Write);
    let mut sink = [0; 1024];
    let _ = timeout(DRAIN_LIMIT, async {
        while client.readable().await.is_ok() {
            match client.try_read(&mut sink) {
                Ok(0) => return,
                Err(cause) if cause.kind() != std::io::ErrorKind::WouldBlock => return,
                _ => {}
            }
        }
    })
    .await;
}

/// Moves bytes one way until the source's end, which it passes on.
async fn pump_direction(
    [from, to]: [&TcpStream; 2],
    direction: Direction,
    link: LinkState,
    counters: &Counters,
) -> Result<(), End> {
    let (pieces, arriving) = mpsc::channel(PIECES);
    tokio::try_join!(
        read_pieces(from, pieces, direction, link.clone()),
        write_pieces(to, arriving, direction, link, counters)
    )?;
    Ok(())
}

async fn read_pieces(
    from: &TcpStream,
    pieces: mpsc::Sender<(Instant, Bytes)>,
    direction: Direction,
    mut link: LinkState,
) -> Result<(), End> {
    let mut buffer = vec![0; PIECE];
    loop {
        let state = link.until_open(direction).await;
        let fault = state.map_err(|_| End::Broken)?.fault;
        tokio::select! {
            biased;
            _ = link.state.changed() => continue,
            ready = from.readable() => ready.map_err(|_| End::Broken)?,
        }
        match from.try_read(&mut buffer) {
            Ok(0) => return Ok(()),
            Ok(count) => {
                let delay = if let Fault::Delay(delay) = fault {
                    delay
                } else {
                    Duration::ZERO
                };
                let piece = (
                    Instant::now() + delay,
                    Bytes::copy_from_slice(&buffer[..count]),
                );
                pieces.send(piece).await.map_err(|_| End::Broken)?;
            }
            Err(cause) if cause.kind() == std::io::ErrorKind::WouldBlock => {}
            Err(_) => return Err(End::Broken),
        }
    }
}

async fn write_pieces(
    to: &TcpStream,
    mut pieces: mpsc::Receiver<(Instant, Bytes)>,
    direction: Direction,
    mut link: LinkState,
    counters: &Counters,
) -> Result<(), End> {
    let (mut setting, mut budget) = (0, 0);
    let counter = if direction == Direction::Up {
        &counters.up
    } else {
        &counters.down
    };
    while let Some((due, mut piece)) = pieces.recv().await {
        // tokio's clock ticks in milliseconds: even a moment that is past would cost one or two.
        if due > Instant::now() {
            sleep_until(due).await;
        }
        while !piece.is_empty() {
            let now = link.until_open(direction).await.map_err(|_| End::Broken)?;
            if now.setting != setting {
                setting = now.setting;
                budget = if let Fault::CutAfter(bytes) = now.fault {
                    bytes
                } else {
                    0
                };
            }
            let cut = direction == Direction::Down && matches!(now.fault, Fault::CutAfter(_));
            if cut && budget == 0 {
                return Err(End::Cut);
            }
            let most = match now.fault {
                _ if cut => usize::try_from(budget).unwrap_or(usize::MAX),
                Fault::Rate(rate) => usize::try_from(rate / 20).unwrap_or(usize::MAX).max(1),
                _ => usize::MAX,
            };
            let sent = write_some(to, &piece[..piece.len().min(most)]).await?;
            piece = piece.split_off(sent);
            budget = budget.saturating_sub(sent as u64);
            counter.fetch_add(sent as u64, Ordering::Relaxed);
            if let Fault::Rate(rate) = now.fault {
                tokio::time::sleep(Duration::from_secs_f64(sent as f64 / rate as f64)).await;
            }
        }
    }
    let _ = SockRef::from(to).shutdown(Shutdown::Write);
    Ok(())
}

/// Writes some of the bytes.
async fn write_some(to: &TcpStream, bytes: &[u8]) -> Result<usize, End> {
    loop {
        to.writable().await.map_err(|_| End::Broken)?;
        match to.try_write(bytes) {
            Ok(sent) => return Ok(sent),
            Err(cause) if cause.kind() == std::io::ErrorKind::WouldBlock => {}
            Err(_) => return Err(End::Broken),
        }
    }
}
