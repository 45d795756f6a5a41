//! Foreign bytes taken apart into what a target needs.

/// Bytes that are taken from the front.
#[derive(Clone, Copy)]
pub struct Input<'b>(pub &'b [u8]);

impl<'b> Input<'b> {
    /// The next byte; 0 behind the end.
    pub fn byte(&mut self) -> u8 {
        let Some((first, rest)) = self.0.split_first() else {
            return 0;
        };
        self.0 = rest;
        *first
    }

    /// As many bytes as there are, `N` at most, then zeros.
    pub fn array<const N: usize>(&mut self) -> [u8; N] {
        std::array::from_fn(|_| self.byte())
    }

    /// A piece whose length comes first, in two bytes, or what is left.
    pub fn piece(&mut self) -> &'b [u8] {
        let length = usize::from(u16::from_be_bytes(self.array()));
        let (piece, rest) = self.0.split_at(length.min(self.0.len()));
        self.0 = rest;
        piece
    }

    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

/// Nothing that a terminal would take for a command.
pub fn assert_printable(text: &str) {
    assert!(
        !text
            .chars()
            .any(|character| character.is_control() && character != '\n'),
        "a message for the terminal has control characters: {text:?}"
    );
}
