//! A watch that is held open while the cloud is away: initial events, then bookmarks, until its
//! timeout, the cloud's return, or a drain (I5).

use std::time::Duration;

use bytes::Bytes;
use futures_util::{Stream, stream};
use tokio::sync::watch;
use tokio::time::{Instant, sleep, sleep_until};
use tokio_util::sync::CancellationToken;

use crate::cache::store::ListCursor;
use hublet_wire::media::Encoding;
use hublet_wire::meta::{ResourceVersion, TypeMeta};
use hublet_wire::watch::{Bookmark, BookmarkPlace, EventType, push_frame};

/// The API server's interval between bookmarks.
const BOOKMARK_INTERVAL: Duration = Duration::from_secs(60);

/// Maximum length of a chunk of initial events, but for the last event in it.
const CHUNK: usize = 16 << 10;

/// Events at the beginning of a watch.
pub(super) enum InitialEvents {
    /// The whole collection.
    Collection(Box<ListCursor>),
    /// The changes since the client's resourceVersion, encoded.
    Changes(Vec<u8>),
    /// All of them have been sent.
    Sent,
}

pub(super) struct HeldWatch {
    pub(super) initial: InitialEvents,
    /// `sendInitialEvents`: a bookmark ends the initial events.
    pub(super) marks_initial_end: bool,
    /// Also with `allowWatchBookmarks`, for which they are sent periodically.
    pub(super) bookmarks: Option<Bookmarks>,
    pub(super) next_bookmark: Instant,
    pub(super) end: Instant,
    /// True while the cloud is connected.
    pub(super) connected: watch::Receiver<bool>,
    /// Pause after the cloud's return, different for each watch, so that not all clients reconnect
    /// at once.
    pub(super) return_delay: Duration,
    pub(super) draining: CancellationToken,
}

/// The moments that a watch needs when it begins.
pub(super) struct Schedule {
    pub(super) next_bookmark: Instant,
    pub(super) end: Instant,
}

impl Schedule {
    pub(super) fn starting_now(timeout: Duration) -> Self {
        let now = Instant::now();
        Self {
            next_bookmark: now + BOOKMARK_INTERVAL,
            end: now + timeout,
        }
    }
}

impl HeldWatch {
    /// The watch's chunks; each is one or more whole events.
    pub(super) fn into_stream(self) -> impl Stream<Item = Bytes> + Send {
        stream::unfold(self, |mut watch| async move {
            let chunk = watch.next_chunk().await?;
            Some((chunk, watch))
        })
    }

    async fn next_chunk(&mut self) -> Option<Bytes> {
        match std::mem::replace(&mut self.initial, InitialEvents::Sent) {
            InitialEvents::Changes(events) if !events.is_empty() => Some(events.into()),
            InitialEvents::Collection(cursor) => match self.read_chunk(cursor) {
                Ok(chunk) if !chunk.is_empty() => Some(chunk.into()),
                Ok(_) => self.wait().await,
                // The client lists again, since it can't be sent all events.
                Err(CursorFailed) => None,
            },
            InitialEvents::Changes(_) | InitialEvents::Sent => self.wait().await,
        }
    }

    /// Reads initial events, at most about [`CHUNK`] bytes, and the bookmark behind the last one.
    fn read_chunk(&mut self, mut cursor: Box<ListCursor>) -> Result<Vec<u8>, CursorFailed> {
        let mut chunk = Vec::with_capacity(CHUNK + CHUNK / 4);
        while chunk.len() < CHUNK {
            let read = cursor.next(|record| {
                push_frame(
                    &mut chunk,
                    EventType::Added,
                    record.encoding,
                    record.object(),
                );
            });
            if read.map_err(|_| CursorFailed)?.is_none() {
                if let (true, Some(bookmarks)) = (self.marks_initial_end, &self.bookmarks) {
                    bookmarks.push(&mut chunk, BookmarkPlace::InitialEventsEnd);
                }
                return Ok(chunk);
            }
        }
        self.initial = InitialEvents::Collection(cursor);
        Ok(chunk)
    }

    /// Waits for the next bookmark; `None` when the watch ends.
    async fn wait(&mut self) -> Option<Bytes> {
        let bookmark_due = self.bookmarks.as_ref().map(|_| self.next_bookmark);
        tokio::select! {
            biased;
            () = self.draining.cancelled() => None,
            () = sleep_until(self.end) => None,
            () = until_cloud_returns(&mut self.connected, self.return_delay) => None,
            () = until_due(bookmark_due) => self.take_bookmark(),
        }
    }

    fn take_bookmark(&mut self) -> Option<Bytes> {
        self.next_bookmark += BOOKMARK_INTERVAL;
        let mut bookmark = Vec::new();
        let bookmarks = self.bookmarks.as_ref()?;
        bookmarks.push(&mut bookmark, BookmarkPlace::Later);
        Some(bookmark.into())
    }
}

async fn until_cloud_returns(connected: &mut watch::Receiver<bool>, delay: Duration) {
    // The sender is dropped with the whole daemon.
    let _ = connected.wait_for(|connected| *connected).await;
    sleep(delay).await;
}

async fn until_due(time: Option<Instant>) {
    match time {
        Some(time) => sleep_until(time).await,
        None => std::future::pending().await,
    }
}

/// The bookmarks of one watch.
#[derive(Debug)]
pub(super) struct Bookmarks {
    pub(super) encoding: Encoding,
    /// The kind of the collection's objects.
    pub(super) kind: String,
    pub(super) api_version: String,
    pub(super) version: ResourceVersion,
}

impl Bookmarks {
    fn push(&self, out: &mut Vec<u8>, place: BookmarkPlace) {
        let bookmark = Bookmark {
            type_meta: TypeMeta {
                api_version: &self.api_version,
                kind: &self.kind,
            },
            resource_version: self.version,
            place,
        };
        bookmark.push_frame(out, self.encoding);
    }
}

/// The store failed while the collection was read.
struct CursorFailed;

#[cfg(test)]
mod tests {
    use futures_util::StreamExt;

    use super::*;

    const MINUTE: Duration = Duration::from_secs(60);

    struct Bench {
        connected: watch::Sender<bool>,
        draining: CancellationToken,
        began: Instant,
    }

    impl Bench {
        fn new() -> Self {
            Self {
                connected: watch::Sender::new(false),
                draining: CancellationToken::new(),
                began: Instant::now(),
            }
        }

        fn watch(&self, timeout: Duration) -> HeldWatch {
            let Schedule { next_bookmark, end } = Schedule::starting_now(timeout);
            HeldWatch {
                initial: InitialEvents::Changes(Vec::new()),
                marks_initial_end: false,
                bookmarks: Some(Bookmarks {
                    encoding: Encoding::Json,
                    kind: "Pod".into(),
                    api_version: "v1".into(),
                    version: ResourceVersion::new(7),
                }),
                next_bookmark,
                end,
                connected: self.connected.subscribe(),
                return_delay: Duration::from_millis(300),
                draining: self.draining.clone(),
            }
        }

        /// The times of all chunks, and of the end.
        async fn run(&self, watch: HeldWatch) -> (Vec<Duration>, Duration) {
            let mut chunks = Vec::new();
            let mut stream = Box::pin(watch.into_stream());
            while let Some(chunk) = stream.next().await {
                assert!(chunk.ends_with(b"}\n"), "a whole event");
                chunks.push(self.began.elapsed());
            }
            (chunks, self.began.elapsed())
        }
    }

    #[tokio::test(start_paused = true)]
    async fn i5_a_bookmark_comes_each_minute_until_the_timeout() {
        let bench = Bench::new();
        let timeout = MINUTE * 3 + Duration::from_secs(5);
        let (bookmarks, end) = bench.run(bench.watch(timeout)).await;
        assert_eq!(bookmarks, [MINUTE, MINUTE * 2, MINUTE * 3]);
        assert_eq!(end, timeout);
    }

    #[tokio::test(start_paused = true)]
    async fn without_bookmarks_only_the_timeout_ends_the_silence() {
        let bench = Bench::new();
        let mut watch = bench.watch(MINUTE * 30);
        watch.bookmarks = None;
        assert_eq!(bench.run(watch).await, (vec![], MINUTE * 30));
    }

    #[tokio::test(start_paused = true)]
    async fn the_clouds_return_ends_it_after_its_own_delay() {
        let bench = Bench::new();
        let returned = Duration::from_secs(90);
        let cloud = async {
            sleep(returned).await;
            bench.connected.send_replace(true);
        };
        let (ran, ()) = tokio::join!(bench.run(bench.watch(MINUTE * 30)), cloud);
        assert_eq!(ran, (vec![MINUTE], returned + Duration::from_millis(300)));
    }

    #[tokio::test(start_paused = true)]
    async fn a_drain_ends_it_at_once() {
        let bench = Bench::new();
        let drain = async {
            sleep(MINUTE / 2).await;
            bench.draining.cancel();
        };
        let (ran, ()) = tokio::join!(bench.run(bench.watch(MINUTE * 30)), drain);
        assert_eq!(ran, (vec![], MINUTE / 2));
    }

    #[tokio::test(start_paused = true)]
    async fn changes_come_first_and_at_once() {
        let bench = Bench::new();
        let mut watch = bench.watch(MINUTE / 2);
        watch.initial = InitialEvents::Changes(b"{}\n".to_vec());
        assert_eq!(bench.run(watch).await, (vec![Duration::ZERO], MINUTE / 2));
    }
}
