//! Tokens, as the provider counted them.

/// What one answer consumed. `None` means the provider did not say, which is not zero.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct Usage {
    /// Prompt tokens.
    pub input_tokens: Option<u64>,
    /// Those of the prompt tokens that the provider had in its cache.
    pub cached_input_tokens: Option<u64>,
    /// Completion tokens, reasoning included.
    pub output_tokens: Option<u64>,
}

impl Usage {
    /// True if the provider reported nothing.
    pub fn is_empty(self) -> bool {
        self.input_tokens.is_none() && self.output_tokens.is_none()
    }
}
