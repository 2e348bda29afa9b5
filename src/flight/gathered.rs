//! Bytes that come in pieces, as one.
//!
//! One piece is kept as it is. More are copied once, into room of the size that was announced. The room of a long body is
//! kept for the next one when its last reader is gone, up to [`MOST_SPARE`] in the whole process: the allocator gives
//! pages back after some milliseconds, and to be given them anew, each of them cleared, costs more than reading
//! the body (measured Nov 2026: a fifth of the processor time of a request of a megabyte). Nothing counts that room against
//! the bytes bodies may take, so it is the first to go when memory is scarce ([`keep_spare`]).
//!
//! It bounds nothing: how much may come is for who reads.

use std::collections::VecDeque;
use std::mem;
use std::sync::{Mutex, PoisonError};

use bytes::Bytes;

/// Shorter ones are left to the allocator, which keeps such for itself.
const LONG: usize = 64 * 1024;
/// Longer ones are rare, and a few of them would be all that is kept.
const LONGEST: usize = 2 * 1024 * 1024;
/// Bytes kept for bodies to come.
pub const MOST_SPARE: usize = 4 * 1024 * 1024;

static SHELF: Shelf = Shelf::new();

/// Whether room may be kept for bodies to come. If not, what is kept is given back at once.
pub fn keep_spare(may: bool) {
    SHELF.open(may);
}

/// What has come so far.
#[derive(Default)]
pub struct Gathered {
    first: Bytes,
    rest: Vec<u8>,
}

impl Gathered {
    /// How many bytes have come.
    pub fn len(&self) -> usize {
        self.first.len() + self.rest.len()
    }

    /// True before the first of them.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// One more piece. `to_come` is what was announced to follow it, as far as it is believed.
    pub fn push(&mut self, piece: Bytes, to_come: usize) {
        if self.is_empty() {
            self.first = piece;
            return;
        }
        if piece.is_empty() {
            return;
        }
        if self.rest.is_empty() {
            self.rest = SHELF.room(self.first.len() + piece.len() + to_come);
            self.rest.extend_from_slice(&mem::take(&mut self.first));
        }
        self.rest.extend_from_slice(&piece);
    }

    /// All of it.
    pub fn finish(self) -> Bytes {
        match self.rest.capacity() {
            0 => self.first,
            LONG..=LONGEST => Bytes::from_owner(Lent(self.rest)),
            _ => Bytes::from(self.rest),
        }
    }
}

/// A body in room that is kept when nobody reads it any more.
struct Lent(Vec<u8>);

impl AsRef<[u8]> for Lent {
    fn as_ref(&self) -> &[u8] {
        &self.0
    }
}

impl Drop for Lent {
    fn drop(&mut self) {
        SHELF.keep(mem::take(&mut self.0));
    }
}

/// Room that waits for a body, the oldest first.
struct Spare {
    rooms: VecDeque<Vec<u8>>,
    bytes: usize,
    shut: bool,
}

/// Process-wide, because a body may be let go of on another thread. Locked for a look at a few rooms.
struct Shelf(Mutex<Spare>);

impl Shelf {
    const fn new() -> Self {
        Self(Mutex::new(Spare { rooms: VecDeque::new(), bytes: 0, shut: false }))
    }

    fn open(&self, may: bool) {
        let mut spare = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        spare.shut = !may;
        let mut gone = VecDeque::new();
        if spare.shut {
            gone = mem::take(&mut spare.rooms);
            spare.bytes = 0;
        }
        // What is given back to the allocator is so without the lock.
        drop(spare);
        drop(gone);
    }

    /// Room for so many bytes, and no more than half as many again: a body is counted by its length.
    fn room(&self, bytes: usize) -> Vec<u8> {
        if (LONG..=LONGEST).contains(&bytes) {
            let mut spare = self.0.lock().unwrap_or_else(PoisonError::into_inner);
            let fits = |room: &Vec<u8>| (bytes..=bytes + bytes / 2).contains(&room.capacity());
            if let Some(at) = spare.rooms.iter().rposition(fits)
                && let Some(room) = spare.rooms.remove(at)
            {
                spare.bytes -= room.capacity();
                return room;
            }
        }
        Vec::with_capacity(bytes)
    }

    fn keep(&self, mut room: Vec<u8>) {
        room.clear();
        let mut gone = Vec::new();
        let mut spare = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if spare.shut {
            drop(spare);
            return;
        }
        spare.bytes += room.capacity();
        spare.rooms.push_back(room);
        while spare.bytes > MOST_SPARE
            && let Some(oldest) = spare.rooms.pop_front()
        {
            spare.bytes -= oldest.capacity();
            gone.push(oldest);
        }
        drop(spare);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn gathered(pieces: &[&[u8]]) -> Bytes {
        let mut left: usize = pieces.iter().map(|piece| piece.len()).sum();
        let mut gathered = Gathered::default();
        for piece in pieces {
            left -= piece.len();
            gathered.push(Bytes::copy_from_slice(piece), left);
        }
        gathered.finish()
    }

    #[test]
    fn pieces_come_out_in_their_order_and_one_piece_is_not_copied() {
        for pieces in [&[][..], &[&b"ab"[..]], &[b"ab", b"c"], &[b"", b"ab", b"", b"c", b""]] {
            assert_eq!(gathered(pieces), pieces.concat());
        }
        let one = Bytes::from(vec![b'x'; LONG]);
        let mut whole = Gathered::default();
        whole.push(one.clone(), 0);
        assert_eq!(whole.finish().as_ptr(), one.as_ptr());
    }

    #[test]
    fn a_long_body_in_used_room_holds_its_own_bytes_and_no_others() {
        for (length, byte) in
            [(LONG, b'a'), (2 * LONG - 1, b'b'), (LONG + 1, b'c'), (LONGEST, b'd'), (LONGEST + 2, b'e')]
        {
            let half = vec![byte; length / 2];
            let (body, rest) = (gathered(&[&half, &half, b"end"]), length / 2 * 2);
            assert!(body.len() == rest + 3 && body.ends_with(b"end"));
            assert!(body.iter().take(rest).all(|there| *there == byte));
        }
    }

    #[test]
    fn room_is_given_again_unless_it_is_far_more_than_is_needed() {
        let shelf = Shelf::new();
        let room = shelf.room(4 * LONG);
        let place = room.as_ptr();
        shelf.keep(room);
        for other in [LONG, 4 * LONG + 1] {
            let room = shelf.room(other);
            assert_ne!(room.as_ptr(), place);
        }
        let again = shelf.room(3 * LONG);
        assert!(again.as_ptr() == place && again.is_empty());
    }

    #[test]
    fn what_is_kept_is_bounded_and_the_oldest_goes_first() {
        let shelf = Shelf::new();
        for _ in 0..200 {
            shelf.keep(Vec::with_capacity(LONG));
        }
        for _ in 0..20 {
            shelf.keep(Vec::with_capacity(LONGEST));
        }
        let spare = shelf.0.lock().unwrap();
        assert_eq!(spare.bytes, spare.rooms.iter().map(Vec::capacity).sum::<usize>());
        assert!(spare.bytes <= MOST_SPARE && spare.rooms.iter().all(|room| room.capacity() >= LONGEST));
    }

    #[test]
    fn row_32_nothing_is_kept_while_memory_is_scarce_and_all_of_it_works_without() {
        let shelf = Shelf::new();
        let held = || {
            let spare = shelf.0.lock().unwrap();
            (spare.rooms.len(), spare.bytes)
        };
        shelf.keep(Vec::with_capacity(LONG));
        assert_eq!(held().0, 1);
        shelf.open(false);
        assert_eq!(held(), (0, 0), "what was kept is gone at once");
        let room = shelf.room(LONG);
        assert!(room.capacity() >= LONG);
        shelf.keep(room);
        assert_eq!(held(), (0, 0), "a body that ends meanwhile leaves nothing");
        shelf.open(true);
        shelf.keep(Vec::with_capacity(LONG));
        assert_eq!(held().0, 1);
    }
}
