//! Errors of the store, classified by cause: the disk, or the contents of the file. In: redb's errors. Out: [`StoreError`].

use std::path::PathBuf;

/// The store could not be opened or read.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// The directory, or the file in it.
    #[error(
        "can't prepare the store {path}: {source}; check --disk-cache-path, its owner, and the disk"
    )]
    Directory {
        path: PathBuf,
        source: std::io::Error,
    },
    /// Another process has it.
    #[error("the store {0} is in use by another process; is a hublet running already?")]
    InUse(PathBuf),
    /// During a hand-over or shutdown.
    #[error("the store is closed: hublet is stopping")]
    Closed,
    /// Written by another version.
    #[error("the store has format {0}, which this version of hublet can't read")]
    Format(u64),
    #[error("the store failed: {0}; is the disk full or failing?")]
    Redb(Box<redb::Error>),
    /// A value that can't be parsed.
    #[error("a stored value is damaged; the next response from the cloud replaces it")]
    Damaged,
    #[error(
        "the lists that open watches keep current exceed --cache-max-bytes ({0} bytes) and are not stored; raise the limit"
    )]
    Full(u64),
    /// A list that is being sent to a client changed, so that it can't be completed consistently.
    #[error("the list changed while it was sent: list again")]
    Changed,
}

impl<E: Into<redb::Error>> From<E> for StoreError {
    fn from(error: E) -> Self {
        Self::Redb(Box::new(error.into()))
    }
}

impl StoreError {
    /// True if the file's contents are damaged. Only then is a store renamed and replaced: a full, failing or read-only disk,
    /// or a lack of descriptors or permissions, does not mean that.
    pub(super) fn is_corruption(&self) -> bool {
        use redb::Error;
        let Self::Redb(error) = self else {
            return matches!(self, Self::Format(_));
        };
        match &**error {
            Error::Corrupted(_) | Error::UpgradeRequired(_) => true,
            Error::TableTypeMismatch { .. } | Error::TypeDefinitionChanged { .. } => true,
            Error::TableIsMultimap(_) | Error::TableIsNotMultimap(_) => true,
            // redb returns these for a file of another format and for one that ends too early; errors of the kernel have an
            // errno.
            Error::Io(error) => {
                use std::io::ErrorKind::{InvalidData, UnexpectedEof};
                error.raw_os_error().is_none()
                    && matches!(error.kind(), InvalidData | UnexpectedEof)
            }
            _ => false,
        }
    }

    /// True if the database is unusable until it is reopened: the disk failed, or it was reopened meanwhile.
    pub(super) fn is_failure(&self) -> bool {
        use redb::Error;
        let Self::Redb(error) = self else {
            return matches!(self, Self::Directory { .. });
        };
        let io = matches!(
            &**error,
            Error::Io(_) | Error::Backend(_) | Error::PreviousIo
        );
        io || matches!(&**error, Error::DatabaseClosed | Error::LockPoisoned(_))
    }
}
