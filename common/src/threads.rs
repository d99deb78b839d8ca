//! Work that threads share: to read files of /proc, of which the kernel makes each on its own, and to do two long things at the
//! same time.

use std::num::NonZeroUsize;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread::{Builder, available_parallelism, scope};

/// More threads than this wait for the same locks of the kernel.
const MOST: usize = 8;

/// How much work an item is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Share {
    /// Some files of a process: few of them are not worth a thread.
    Small,
    /// All the mounts of a namespace.
    Large,
}

impl Share {
    /// How many items a thread takes at once: enough not to meet the others all the time, few enough for all to end
    /// at about the same time.
    fn block(self) -> usize {
        match self {
            Self::Small => 16,
            Self::Large => 1,
        }
    }
}

/// Does `work` with each item, and gives what it gave, in the order of the items.
pub fn each<T: Sync, R: Send>(items: &[T], size: Share, work: impl Fn(&T) -> R + Sync) -> Vec<R> {
    let block = size.block();
    let count = processors().min(items.len() / block);
    if count < 2 {
        return items.iter().map(work).collect();
    }
    let next = AtomicUsize::new(0);
    let share = || {
        let mut done = Vec::new();
        loop {
            let at = next.fetch_add(1, Ordering::Relaxed);
            let Some(part) = items.chunks(block).nth(at) else { return done };
            done.push((at, part.iter().map(&work).collect::<Vec<R>>()));
        }
    };
    let mut blocks = scope(|scope| {
        // Where no thread can be made, the others do its work.
        let spawn = || Builder::new().spawn_scoped(scope, share).ok();
        let others: Vec<_> = (1..count).filter_map(|_| spawn()).collect();
        let mut blocks = share();
        for other in others {
            blocks.extend(other.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)));
        }
        blocks
    });
    blocks.sort_unstable_by_key(|(at, _)| *at);
    blocks.into_iter().flat_map(|(_, results)| results).collect()
}

/// Does both, at the same time where there is more than one processor. What takes most memory is better `this`: another thread
/// gets its memory page by page from the kernel (`grow_heap` of glibc).
pub fn both<A, B: Send>(this: impl FnOnce() -> A, that: impl Fn() -> B + Sync) -> (A, B) {
    scope(|scope| {
        let spawn = || Builder::new().spawn_scoped(scope, &that).ok();
        let other = (processors() > 1).then(spawn).flatten();
        let this = this();
        let that = match other {
            Some(other) => other.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)),
            None => that(),
        };
        (this, that)
    })
}

fn processors() -> usize {
    available_parallelism().map_or(1, NonZeroUsize::get).min(MOST)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_threads_share_is_done_once_and_in_order() {
        let sizes = [Share::Small, Share::Large];
        for (count, size) in
            [0, 1, 16, 32, 1000].into_iter().flat_map(|count| sizes.map(|size| (count, size)))
        {
            let items: Vec<usize> = (0..count).collect();
            let done = AtomicUsize::new(0);
            let doubled = each(&items, size, |item| {
                done.fetch_add(1, Ordering::Relaxed);
                item * 2
            });
            assert_eq!((doubled, done.into_inner()), (items.iter().map(|item| item * 2).collect(), count));
        }
    }

    #[test]
    fn both_are_done() {
        assert_eq!(both(|| 1, || "two"), (1, "two"));
    }
}
