//! Both sides over a socket pair, and manifests that no hublet would send.

use std::net::TcpListener;
use std::os::fd::AsFd;

use super::*;
use crate::steer;

/// A generator of test data (xorshift64*), the same in each run.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    fn below(&mut self, limit: usize) -> usize {
        usize::try_from(self.next() >> 33).expect("64 bits") % limit
    }

    fn bytes(&mut self, max_len: usize) -> Vec<u8> {
        let len = self.below(max_len + 1);
        (0..len).map(|_| self.next() as u8).collect()
    }
}

fn manifest() -> Manifest {
    Manifest {
        protocol: PROTOCOL,
        items: vec![
            Item::Listener("127.0.0.1:10261".parse().expect("address")),
            Item::Listener("[fd00::2:1]:10268".parse().expect("address")),
            Item::Pins,
            Item::Interface,
        ],
    }
}

#[test]
fn a_manifest_keeps_the_bytes_of_protocol_1() {
    let bytes = serde_json::to_string(&manifest()).expect("JSON");
    assert_eq!(
        bytes,
        r#"{"protocol":1,"places":[{"listener":"127.0.0.1:10261"},{"listener":"[fd00::2:1]:10268"},"pins","interface"]}"#
    );
    assert_eq!(
        Manifest::parse(bytes.as_bytes()).expect("parsed"),
        manifest()
    );
}

#[test]
fn arbitrary_bytes_are_an_error_and_never_a_panic() {
    let mut random = Random(0x9e37_79b9_7f4a_7c15);
    for _ in 0..20_000 {
        let bytes = random.bytes(200);
        assert!(Manifest::parse(&bytes).is_err(), "{bytes:?}");
    }
}

#[test]
fn a_damaged_manifest_is_never_a_panic() {
    let valid = serde_json::to_vec(&manifest()).expect("JSON");
    let mut random = Random(42);
    for _ in 0..20_000 {
        let mut bytes = valid.clone();
        for _ in 0..=random.below(3) {
            let position = random.below(bytes.len());
            match random.below(3) {
                0 => bytes[position] = random.next() as u8,
                1 => drop(bytes.remove(position)),
                _ => bytes.insert(position, random.next() as u8),
            }
        }
        // Some of these are valid still.
        let _ = Manifest::parse(&bytes);
    }
}

#[test]
fn another_protocol_is_named() {
    let error = Manifest::parse(br#"{"protocol":2,"places":[]}"#).expect_err("protocol 2");
    assert!(matches!(error, HandoverError::Protocol(2)), "{error}");
}

/// Sends one item. Its descriptor also separates the manifest from the next message.
fn send_lock(successor: &Successor) {
    let lock = tempfile::tempfile().expect("file");
    let setup = steer::Inheritance {
        pins: Some(lock.as_fd()),
        interface: None,
    };
    successor.send_items(&[], &setup).expect("sent");
}

/// Sends these bytes in the place of a manifest. The request is read first: sent to a closed socket, it would fail.
fn send_manifest(mut stream: UnixStream, bytes: &[u8]) {
    Message::Request.expect(&stream).expect("requested");
    stream.write_all(bytes).expect("sent");
}

/// Runs the old side on a thread of its own, and the new side here.
fn exchange(old: impl FnOnce(UnixStream) + Send + 'static) -> Result<Inheritance, HandoverError> {
    let (old_stream, new_stream) = UnixStream::pair().expect("socket pair");
    let thread = std::thread::spawn(move || old(old_stream));
    let inheritance = Inheritance::receive(new_stream);
    thread.join().expect("the old side");
    inheritance
}

#[tokio::test]
async fn sockets_and_locks_go_to_the_successor() {
    let listener = TcpListener::bind("127.0.0.1:0").expect("listener");
    let address = listener.local_addr().expect("address");
    let lock = tempfile::tempfile().expect("file");
    let mut inheritance = exchange(move |stream| {
        let successor = Successor::admit(stream).expect("the same user");
        let setup = steer::Inheritance {
            pins: Some(lock.as_fd()),
            interface: None,
        };
        successor
            .send_items(&[(address, listener.as_fd())], &setup)
            .expect("sent");
        Message::StoreClosed.send(&successor.0).expect("sent");
    })
    .expect("handed over");
    assert!(inheritance.setup.pins.is_some() && inheritance.setup.interface.is_none());
    let other = "127.0.0.1:1".parse().expect("address");
    assert!(inheritance.take_listener(other).is_none());
    let inherited = inheritance.take_listener(address).expect("its listener");
    let _client = std::net::TcpStream::connect(address).expect("the socket still listens");
    assert!(inherited.accept().is_ok());
    assert!(inheritance.take_listener(address).is_none(), "taken once");
}

#[tokio::test]
async fn a_successor_confirms_that_it_serves() {
    let (old_stream, new_stream) = UnixStream::pair().expect("socket pair");
    let old = std::thread::spawn(move || {
        let successor = Successor::admit(old_stream).expect("the same user");
        send_lock(&successor);
        successor.wait_until_serving()
    });
    let inheritance = Inheritance::receive(new_stream);
    let _old_process = inheritance.expect("handed over").confirm_serving();
    old.join().expect("the old side").expect("it serves");
}

#[tokio::test]
async fn an_old_daemon_that_fails_is_an_error_with_its_cause() {
    let died = exchange(drop).expect_err("it has exited");
    assert!(matches!(died, HandoverError::Io(_)), "{died}");
    let garbled = exchange(|stream| send_manifest(stream, b"{"));
    let garbled = garbled.expect_err("no JSON");
    assert!(matches!(garbled, HandoverError::Manifest(_)), "{garbled}");
    let short = exchange(|stream| {
        send_manifest(stream, &serde_json::to_vec(&manifest()).expect("JSON"));
    });
    let short = short.expect_err("no descriptors");
    assert!(
        matches!(
            short,
            HandoverError::Descriptors {
                items: 4,
                descriptors: 0
            }
        ),
        "{short}"
    );
    let open = exchange(|stream| {
        let successor = Successor::admit(stream).expect("the same user");
        send_lock(&successor);
        Message::Serving.send(&successor.0).expect("sent");
    });
    let open = open.expect_err("the store isn't closed").to_string();
    assert!(open.contains("StoreClosed"), "{open}");
}

#[tokio::test]
async fn without_a_running_daemon_nothing_is_inherited() {
    let root = tempfile::tempdir().expect("root");
    let inheritance = Inheritance::request(root.path()).expect("none runs");
    assert!(inheritance.confirm_serving().is_none());
}

#[tokio::test]
async fn the_listener_replaces_a_stale_socket_and_takes_requests() {
    let root = tempfile::tempdir().expect("root");
    drop(HandoverListener::start(root.path()).expect("the first one"));
    let mut listener = HandoverListener::start(root.path()).expect("the second one");
    let stream = UnixStream::connect(socket_path(root.path())).expect("it listens");
    Message::Request.send(&stream).expect("sent");
    listener.next_successor().await;
    listener.remove_socket();
    assert!(!socket_path(root.path()).exists());
    let missing = root.path().join("missing");
    assert!(HandoverListener::start(&missing).is_none(), "only logged");
}
