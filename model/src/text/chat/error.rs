//! Why a template fails.

/// The result of what a template does.
pub(super) type TemplateResult<T> = Result<T, TemplateError>;

/// Why a template failed, and in which line where that is known.
#[derive(Debug, Clone)]
pub(super) struct TemplateError {
    pub(super) message: String,
    pub(super) line: Option<u32>,
}

impl TemplateError {
    pub(super) fn new(message: impl Into<String>) -> Self {
        Self { message: message.into(), line: None }
    }

    /// Sets the line unless an inner part has set it.
    pub(super) fn at(mut self, line: u32) -> Self {
        self.line.get_or_insert(line);
        self
    }
}
