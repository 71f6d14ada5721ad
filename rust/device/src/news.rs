//! What a driver or kernel is told unasked, as a message (`enum fuse_notify_code`): that something which it remembers is no longer true.

use std::ffi::CString;

use virtiofs_fuse::wire::{NotifyDeleteOut, NotifyInvalEntryOut, NotifyInvalInodeOut, OutHeader, notify};
use zerocopy::IntoBytes;

/// Bytes of the longest message: a name that is gone.
pub(crate) const MESSAGE_MAX: usize =
    size_of::<OutHeader>() + size_of::<NotifyDeleteOut>() + virtiofs_fuse::wire::NAME_MAX + 1;
/// News that may wait to be told.
pub(crate) const BACKLOG: usize = 1 << 16;

/// So much waits to be told that more would only pile up: try again later.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{BACKLOG} notifications wait to be taken already")]
pub struct Backlog;

/// One piece of news.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum News {
    /// The attributes of `node`, and `len` bytes of its data from `offset` on: all from there on with `len` 0, none with a negative `offset`.
    Inode {
        /// Node id.
        node: u64,
        /// Of the data, in bytes.
        offset: i64,
        /// In bytes.
        len: i64,
    },
    /// Everything about `node`, also if the other side only learns of it from a reply that is still on its way.
    Moved {
        /// Node id.
        node: u64,
    },
    /// What `name` means in the directory `parent`.
    Entry {
        /// Node id.
        parent: u64,
        /// One component, 255 bytes at the most.
        name: CString,
    },
    /// `name`, which was `child`, is gone from `parent`.
    Delete {
        /// Node id.
        parent: u64,
        /// Node id.
        child: u64,
        /// One component, 255 bytes at the most.
        name: CString,
    },
    /// All names: each is asked for again when it is used next. Linux 6.16 and newer.
    Epoch,
}

impl News {
    /// The whole message.
    pub(crate) fn message(&self) -> Vec<u8> {
        match self {
            News::Inode { node, offset, len } => {
                let out = NotifyInvalInodeOut { ino: *node, off: *offset, len: *len };
                message(notify::INVAL_INODE, out.as_bytes(), None)
            }
            News::Moved { node } => News::Inode { node: *node, offset: 0, len: 0 }.message(),
            News::Entry { parent, name } => {
                let out = NotifyInvalEntryOut { parent: *parent, namelen: name.count_bytes() as u32, flags: 0 };
                message(notify::INVAL_ENTRY, out.as_bytes(), Some(name))
            }
            News::Delete { parent, child, name } => {
                let namelen = name.count_bytes() as u32;
                let out = NotifyDeleteOut { parent: *parent, child: *child, namelen, padding: 0 };
                message(notify::DELETE, out.as_bytes(), Some(name))
            }
            News::Epoch => message(notify::INC_EPOCH, &[], None),
        }
    }
}

fn message(code: i32, body: &[u8], name: Option<&CString>) -> Vec<u8> {
    let name = name.map_or(&[][..], |name| name.as_bytes_with_nul());
    let len = size_of::<OutHeader>() + body.len() + name.len();
    let header = OutHeader { len: len as u32, error: code, unique: 0 };
    [header.as_bytes(), body, name].concat()
}

/// Whoever has somebody to tell.
pub trait Tell: Send + Sync {
    /// Takes news to be told soon, and never waits.
    fn tell(&self, news: News) -> Result<(), Backlog>;

    /// [`News::Inode`].
    fn inval_inode(&self, node: u64, offset: i64, len: i64) -> Result<(), Backlog> {
        self.tell(News::Inode { node, offset, len })
    }

    /// [`News::Entry`].
    fn inval_entry(&self, parent: u64, name: CString) -> Result<(), Backlog> {
        self.tell(News::Entry { parent, name })
    }

    /// [`News::Delete`].
    fn delete(&self, parent: u64, child: u64, name: CString) -> Result<(), Backlog> {
        self.tell(News::Delete { parent, child, name })
    }

    /// [`News::Epoch`].
    fn inc_epoch(&self) -> Result<(), Backlog> {
        self.tell(News::Epoch)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_longest_message_is_as_long_as_is_said() {
        let longest = News::Delete { parent: 1, child: 2, name: CString::new(vec![b'n'; 255]).unwrap() };
        assert_eq!(longest.message().len(), MESSAGE_MAX);
        assert_eq!(News::Epoch.message(), [16, 0, 0, 0, 8, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
        assert_eq!(
            News::Moved { node: 7 }.message()[..28],
            *News::Inode { node: 7, offset: 0, len: 0 }.message()[..28].as_ref()
        );
    }
}
