//! What the child says: the parts of each superblock, in the order of the jobs.

use autofs_cr_common::channel::{Channel, ChannelError};
use autofs_cr_common::model::TextPath;
use serde::{Deserialize, Serialize};

/// A part of what is inside a superblock.
#[derive(Debug, Serialize, Deserialize)]
pub enum Item {
    /// The inode number of the root.
    #[serde(rename = "r")]
    Root(u64),
    /// The inode number of the root, and there is nothing in it: this superblock is done. Nearly all are
    /// so where there are many.
    #[serde(rename = "o")]
    Empty(u64),
    /// A directory and its permission bits, if they can be seen.
    #[serde(rename = "d")]
    Directory(TextPath, Option<u32>),
    /// A symbolic link and what it points to.
    #[serde(rename = "l")]
    Symlink(TextPath, TextPath),
    /// A request is pending on the directory with this path, or with an empty one on the root: the
    /// kernel let nobody look.
    #[serde(rename = "p")]
    Pending(TextPath),
    /// This superblock is done.
    #[serde(rename = "e")]
    End,
    /// The job cannot be done: at what it failed, and the errno.
    #[serde(rename = "f")]
    Failed(String, i32),
}

/// One message.
pub type Batch = Vec<Item>;

/// A message is sent when its items could take this many bytes; well below the channel's limit.
const BATCH_SIZE: usize = 32 << 10;

/// Collects items into messages.
pub struct Sender<'a> {
    channel: &'a Channel,
    batch: Batch,
    size: usize,
}

impl<'a> Sender<'a> {
    /// An empty one.
    pub fn new(channel: &'a Channel) -> Self {
        Self { channel, batch: Batch::new(), size: 0 }
    }

    /// Adds an item.
    pub fn push(&mut self, item: Item) -> Result<(), ChannelError> {
        self.size += size(&item);
        self.batch.push(item);
        if self.size >= BATCH_SIZE { self.flush() } else { Ok(()) }
    }

    /// Sends what is there.
    pub fn flush(&mut self) -> Result<(), ChannelError> {
        if !self.batch.is_empty() {
            self.channel.send(&self.batch, &[])?;
        }
        self.batch.clear();
        self.size = 0;
        Ok(())
    }
}

/// At most how many bytes an item takes: an odd byte is written as `\\xHH`, in five.
fn size(item: &Item) -> usize {
    let path = |path: &TextPath| path.as_bytes().len() * 5;
    32 + match item {
        Item::Directory(name, _) | Item::Pending(name) => path(name),
        Item::Symlink(name, target) => path(name) + path(target),
        Item::Root(_) | Item::Empty(_) | Item::End | Item::Failed(..) => 0,
    }
}
