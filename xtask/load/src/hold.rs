//! Idle watches, all of them open at once until the standard input ends.

use std::time::Instant;

use anyhow::{Context, Result, bail};

use crate::connection::Connection;
use crate::message::{Request, Response};
use crate::sample::Sample;
use crate::target::Target;
use crate::wait_for_go;

/// Opens `connections` × `streams` watches, says so, and waits.
pub(crate) fn hold_watches(
    target: &Target,
    request: &Request,
    connections: usize,
    streams: usize,
) -> Result<Sample> {
    if !target.h2 && streams != 1 {
        bail!("HTTP/1.1 carries one watch a connection");
    }
    let begin = Instant::now();
    let mut open = Vec::with_capacity(connections);
    for at in 0..connections {
        let mut connection =
            Connection::open(target).with_context(|| format!("connection {at}"))?;
        for stream in 0..streams {
            let status = connection
                .read_status(request)
                .with_context(|| format!("watch {at}/{stream}"))?;
            if status != 200 {
                bail!("watch {at}/{stream} was answered {status}");
            }
        }
        open.push(connection);
    }
    let seconds = begin.elapsed().as_secs_f64();
    wait_for_go(&Response {
        status: 200,
        length: 0,
        first_byte: begin.elapsed(),
        stored: false,
    })?;
    Ok(Sample {
        requests: open.len() * streams,
        seconds,
        ..Sample::default()
    })
}
