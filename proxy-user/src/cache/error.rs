//! Errors of the store, told apart by their cause: its disk, or what it holds. In: redb's errors. Out: [`StoreError`].

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
    /// A hand-over, or the end.
    #[error("the store is closed: hublet is stopping")]
    Closed,
    /// Written by another version.
    #[error("the store is of format {0}, which this version doesn't read")]
    Format(u64),
    #[error("the store failed: {0}; is the disk full or failing?")]
    Redb(Box<redb::Error>),
    /// A value that isn't ours.
    #[error("a stored value is damaged; it will be replaced by what the cloud says next")]
    Damaged,
    #[error(
        "what watches feed alone needs more than --cache-max-bytes ({0} bytes): it is not kept; allow the store more"
    )]
    Full(u64),
    /// The list on its way to a client can't be ended as it was begun.
    #[error("the list changed while it was sent: list again")]
    Changed,
}

impl<E: Into<redb::Error>> From<E> for StoreError {
    fn from(error: E) -> Self {
        Self::Redb(Box::new(error.into()))
    }
}

impl StoreError {
    /// The file's contents are wrong. Nothing else sets a store aside: a full, failing or read-only disk, a want of
    /// descriptors or rights say nothing about it.
    pub(super) fn is_corruption(&self) -> bool {
        use redb::Error;
        let Self::Redb(error) = self else {
            return matches!(self, Self::Format(_));
        };
        match &**error {
            Error::Corrupted(_) | Error::UpgradeRequired(_) => true,
            Error::TableTypeMismatch { .. } | Error::TypeDefinitionChanged { .. } => true,
            Error::TableIsMultimap(_) | Error::TableIsNotMultimap(_) => true,
            // redb's word for a file that isn't its own, and for one that ends too early; the kernel's has a number.
            Error::Io(error) => {
                use std::io::ErrorKind::{InvalidData, UnexpectedEof};
                error.raw_os_error().is_none()
                    && matches!(error.kind(), InvalidData | UnexpectedEof)
            }
            _ => false,
        }
    }

    /// The database is of no more use until it is opened anew: the disk failed, or that has been done meanwhile.
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
