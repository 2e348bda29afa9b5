//! How many blank lines may stand before a request line: RFC 9112 (2.2) allows for one, left over by an old client behind
//! its body. hyper skips as many as its buffer takes, and somebody in front of us might take them for something else.
//!
//! It sees what is read and not where hyper cuts it, so it counts only what a read begins with, and only while no request
//! is in flight. Before a connection's first head that is exact. Before a later one the first two may be the end of a
//! head that came in two pieces, so that two more are borne; those that came in one piece with the request before them
//! pass, and are bounded by hyper's buffer.

/// Most line ends before a connection's first head.
const FIRST: u32 = 1;
/// Most that a later read may begin with: the end of a head, and the one blank line.
const LATER: u32 = 2 + FIRST;

/// The line ends that nothing else has followed yet.
#[derive(Default)]
pub(super) struct BlankLines {
    run: u32,
    has_begun: bool,
}

impl BlankLines {
    /// Notes what was read while no request was in flight. True if it is one line end too many.
    pub(super) fn too_many(&mut self, read: &[u8]) -> bool {
        for byte in read {
            match byte {
                b'\n' => self.run += 1,
                b'\r' => {}
                _ => {
                    self.other();
                    return false;
                }
            }
            if self.run > if self.has_begun { LATER } else { FIRST } {
                return true;
            }
        }
        false
    }

    /// Notes that something else than a line end came.
    pub(super) fn other(&mut self) {
        self.run = 0;
        self.has_begun = true;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// How many of these reads are borne.
    fn borne(lines: &mut BlankLines, reads: &[&str]) -> usize {
        reads.iter().position(|read| lines.too_many(read.as_bytes())).unwrap_or(reads.len())
    }

    #[test]
    fn one_blank_line_is_borne_before_the_first_head_however_it_comes() {
        assert_eq!(borne(&mut BlankLines::default(), &["\r\nGET"]), 1);
        assert_eq!(borne(&mut BlankLines::default(), &["\r", "\n", "G", "ET / HTTP/1.1\r\n\r\n"]), 4);
        assert_eq!(borne(&mut BlankLines::default(), &["\r\n\r\nGET"]), 0);
        assert_eq!(borne(&mut BlankLines::default(), &["\r\n", "\r", "\n"]), 2);
        assert_eq!(borne(&mut BlankLines::default(), &["\n\nGET"]), 0);
    }

    #[test]
    fn the_end_of_a_head_that_came_in_pieces_is_no_blank_line() {
        let mut lines = BlankLines::default();
        assert_eq!(borne(&mut lines, &["GET / HTTP/1.1\r\nhost: a", "\r", "\n\r", "\n", "\r\n", "GET"]), 6);
        assert_eq!(borne(&mut lines, &["\r\n\r\n\r\n", "\r\n"]), 1);
        lines.other();
        assert_eq!(borne(&mut lines, &["\r\n\r\n\r\n"]), 1);
    }
}
