//! Samples. Every response must be 200 and as long as the first one was.

use std::io::{self, BufRead, BufReader, Write};
use std::path::Path;
use std::sync::{Arc, Barrier};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use serde::Serialize;

use crate::connection::Connection;
use crate::message::{Request, Response, Sink};
use crate::target::Target;
use crate::wait_for_go;

/// Requests on new connections before the sample.
const WARM_UP: usize = 20;
/// Between two tries of `first`.
const RETRY: Duration = Duration::from_micros(500);
const FIRST_LIMIT: Duration = Duration::from_secs(30);

#[derive(Debug, Default, Serialize)]
pub(crate) struct Sample {
    /// Requests answered between go and the end.
    pub(crate) requests: usize,
    /// From go to the end.
    pub(crate) seconds: f64,
    pub(crate) bytes: u64,
    /// Latency of the whole exchange, microseconds.
    pub(crate) p50: f64,
    pub(crate) p99: f64,
    pub(crate) max: f64,
    /// Request sent to first byte, microseconds, median.
    pub(crate) first_byte: f64,
    /// Answers that hublet took from its store.
    pub(crate) stored: usize,
}

/// Each request on a connection of its own; the latency covers TCP, TLS, request and the whole response.
pub(crate) fn sample_fresh(
    target: &Target,
    templates: &[Request],
    requests: usize,
) -> Result<Sample> {
    let expected = expected_responses(target, templates, WARM_UP)?;
    if !wait_for_go(&expected[0])? {
        return Ok(Sample::default());
    }
    let begin = Instant::now();
    let mut times = Times::with_capacity(requests);
    for at in 0..requests {
        let (request, expected) = (
            &templates[at % templates.len()],
            &expected[at % templates.len()],
        );
        let started = Instant::now();
        let response = Connection::open(target)?.send_request(request, &mut Sink::default())?;
        check_response(&response, expected)?;
        times.add(started.elapsed(), &response);
    }
    Ok(times.into_sample(begin.elapsed()))
}

/// All requests on kept connections, a thread each, in a closed loop.
pub(crate) fn sample_kept(
    target: &Target,
    templates: &[Request],
    connections: usize,
    requests: usize,
) -> Result<Sample> {
    let expected = Arc::new(expected_responses(target, templates, 1)?);
    let templates: Arc<[Request]> = templates.into();
    let barrier = Arc::new(Barrier::new(connections + 1));
    let each = requests.div_ceil(connections);
    let mut threads = Vec::new();
    for _ in 0..connections {
        let mut connection = Connection::open(target).context("cannot connect")?;
        connection.send_request(&templates[0], &mut Sink::default())?;
        let (templates, expected, barrier) = (
            Arc::clone(&templates),
            Arc::clone(&expected),
            Arc::clone(&barrier),
        );
        threads.push(thread::spawn(move || {
            barrier.wait();
            send_in_turn(connection, &templates, &expected, each)
        }));
    }
    if !wait_for_go(&expected[0])? {
        // The caller is gone; the threads end with this process.
        return Ok(Sample::default());
    }
    let begin = Instant::now();
    barrier.wait();
    let mut times = Times::with_capacity(requests);
    for thread in threads {
        times.merge(
            thread
                .join()
                .map_err(|_| anyhow::anyhow!("a connection's thread panicked"))??,
        );
    }
    Ok(times.into_sample(begin.elapsed()))
}

/// Sends so many requests on a connection, each after the response to the one before.
fn send_in_turn(
    mut connection: Connection,
    templates: &[Request],
    expected: &[Response],
    requests: usize,
) -> Result<Times> {
    let mut times = Times::with_capacity(requests);
    for at in 0..requests {
        let started = Instant::now();
        let response =
            connection.send_request(&templates[at % templates.len()], &mut Sink::default())?;
        check_response(&response, &expected[at % templates.len()])?;
        times.add(started.elapsed(), &response);
    }
    Ok(times)
}

/// From go to the first response of a server that is starting.
pub(crate) fn sample_first(target: &Target, request: &Request) -> Result<Sample> {
    if !wait_for_go(&Response {
        status: 0,
        length: 0,
        first_byte: Duration::ZERO,
        stored: false,
    })? {
        return Ok(Sample::default());
    }
    let begin = Instant::now();
    loop {
        let response = Connection::open(target)
            .and_then(|mut open| open.send_request(request, &mut Sink::default()));
        if let Ok(response) = response
            && response.status == 200
        {
            let mut times = Times::with_capacity(1);
            times.add(begin.elapsed(), &response);
            return Ok(times.into_sample(begin.elapsed()));
        }
        if begin.elapsed() > FIRST_LIMIT {
            bail!(
                "no response within {} s; the last try: {response:?}",
                FIRST_LIMIT.as_secs()
            );
        }
        thread::park_timeout(RETRY);
    }
}

/// Posts each line of a file: the collection's path, a tab, the object.
pub(crate) fn post_objects(target: &Target, token: Option<&str>, objects: &Path) -> Result<Sample> {
    let file = std::fs::File::open(objects)
        .with_context(|| format!("cannot read {}", objects.display()))?;
    let mut connection = Connection::open(target)?;
    let begin = Instant::now();
    let mut times = Times::with_capacity(1);
    for line in BufReader::new(file).lines() {
        let line = line?;
        let (path, object) = line
            .split_once('\t')
            .context("a line of the objects' file has no tab")?;
        let mut sink = Sink::with_body();
        let started = Instant::now();
        let response = connection.send_request(&Request::post(path, token, object), &mut sink)?;
        if response.status != 201 {
            let body =
                String::from_utf8_lossy(sink.body.as_deref().unwrap_or_default()).into_owned();
            bail!("POST {path} was answered {}: {body}", response.status);
        }
        times.add(started.elapsed(), &response);
    }
    Ok(times.into_sample(begin.elapsed()))
}

/// The body of one response, on standard output.
pub(crate) fn print_body(target: &Target, request: &Request) -> Result<()> {
    let mut sink = Sink::with_body();
    let response = Connection::open(target)?.send_request(request, &mut sink)?;
    let body = sink.body.unwrap_or_default();
    if response.status != 200 {
        bail!(
            "answered {}: {}",
            response.status,
            String::from_utf8_lossy(&body)
        );
    }
    Ok(io::stdout().lock().write_all(&body)?)
}

/// Asks each request on new connections; the first responses are what later ones are checked against.
fn expected_responses(
    target: &Target,
    templates: &[Request],
    times: usize,
) -> Result<Vec<Response>> {
    let mut expected = Vec::with_capacity(templates.len());
    for request in templates {
        let response = Connection::open(target)
            .and_then(|mut open| open.send_request(request, &mut Sink::default()))
            .context("the first request")?;
        if response.status != 200 {
            bail!("the first request was answered {}", response.status);
        }
        expected.push(response);
    }
    for at in 1..times {
        Connection::open(target)?
            .send_request(&templates[at % templates.len()], &mut Sink::default())?;
    }
    Ok(expected)
}

fn check_response(response: &Response, expected: &Response) -> Result<()> {
    if (response.status, response.length) != (expected.status, expected.length) {
        bail!("a response differs: {response:?}, the first was {expected:?}");
    }
    Ok(())
}

#[derive(Debug)]
struct Times {
    whole: Vec<Duration>,
    first: Vec<Duration>,
    bytes: u64,
    stored: usize,
}

impl Times {
    fn with_capacity(count: usize) -> Self {
        Self {
            whole: Vec::with_capacity(count),
            first: Vec::with_capacity(count),
            bytes: 0,
            stored: 0,
        }
    }

    fn add(&mut self, whole: Duration, response: &Response) {
        self.whole.push(whole);
        self.first.push(response.first_byte);
        self.bytes += response.length;
        self.stored += usize::from(response.stored);
    }

    fn merge(&mut self, other: Self) {
        self.whole.extend(other.whole);
        self.first.extend(other.first);
        self.bytes += other.bytes;
        self.stored += other.stored;
    }

    fn into_sample(mut self, took: Duration) -> Sample {
        self.whole.sort_unstable();
        self.first.sort_unstable();
        Sample {
            requests: self.whole.len(),
            seconds: took.as_secs_f64(),
            bytes: self.bytes,
            p50: percentile(&self.whole, 50),
            p99: percentile(&self.whole, 99),
            max: percentile(&self.whole, 100),
            first_byte: percentile(&self.first, 50),
            stored: self.stored,
        }
    }
}

/// Nearest rank, in microseconds.
fn percentile(sorted: &[Duration], percent: usize) -> f64 {
    let rank = (sorted.len() * percent).div_ceil(100).max(1);
    sorted
        .get(rank - 1)
        .map_or(0.0, |time| time.as_secs_f64() * 1e6)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_are_nearest_ranks() {
        let times: Vec<Duration> = (1..=200).map(Duration::from_micros).collect();
        let near = |percent, wanted: f64| (percentile(&times, percent) - wanted).abs() < 1e-6;
        assert!(near(50, 100.0) && near(99, 198.0) && near(100, 200.0));
        assert!((percentile(&times[..1], 99) - 1.0).abs() < 1e-6);
        assert!(percentile(&[], 50).abs() < f64::EPSILON);
    }
}
