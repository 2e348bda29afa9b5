//! A text in pieces small enough for any client's line buffer, cut between characters.

/// Bytes of a piece at most. Some clients take no line above 64 KiB, and escapes make a piece up to six times longer.
const PIECE_BYTES: usize = 1024;

/// The pieces of `text`, none of them empty.
pub(super) fn pieces(text: &str) -> impl Iterator<Item = &str> {
    let mut rest = text;
    std::iter::from_fn(move || {
        let mut end = rest.len().min(PIECE_BYTES);
        while !rest.is_char_boundary(end) {
            end -= 1;
        }
        let (piece, tail) = rest.split_at_checked(end).filter(|(piece, _)| !piece.is_empty())?;
        rest = tail;
        Some(piece)
    })
}
