//! Where the parts of a chat stood in the body that became it: errors name what the client has sent.

use super::error::ApiError;

/// Places in a chat, each with the place in the body that it was made of.
#[derive(Clone, Debug, Default)]
pub struct Places(Vec<(String, String)>);

impl Places {
    /// What is at `place`, and inside of it, stood at `own`.
    pub fn note(&mut self, place: impl Into<String>, own: impl Into<String>) {
        self.0.push((place.into(), own.into()));
    }

    /// The same error about the body of the client.
    #[must_use]
    pub fn told(&self, mut error: ApiError) -> ApiError {
        if let Some(place) = error.param.take() {
            let own = self.own(&place);
            if let Some(message) = error.message.strip_prefix(&place) {
                error.message = format!("{own}{message}");
            }
            error.param = Some(own);
        }
        error
    }

    /// Of the places that hold this one, the innermost counts.
    fn own(&self, place: &str) -> String {
        let inside = |(known, own): &'_ (String, String)| {
            let rest = place.strip_prefix(known.as_str())?;
            (rest.is_empty() || rest.starts_with(['.', '['])).then(|| (known.len(), format!("{own}{rest}")))
        };
        let innermost = self.0.iter().filter_map(inside).max_by_key(|(length, _)| *length);
        innermost.map_or_else(|| place.to_owned(), |(_, own)| own)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_error_is_told_at_the_innermost_place_that_is_known() {
        let mut places = Places::default();
        for (place, own) in
            [("messages", "input"), ("messages[1]", "input[0]"), ("messages[1].content", "input[0].output")]
        {
            places.note(place, own);
        }
        for (place, own) in [
            ("messages", "input"),
            ("messages[1].role", "input[0].role"),
            ("messages[1].content[2]", "input[0].output[2]"),
            ("messages[12]", "input[12]"),
            ("messages_of", "messages_of"),
        ] {
            let told = places.told(ApiError::field(place, "no"));
            assert_eq!((told.param.as_deref(), told.message), (Some(own), format!("{own}: no")));
        }
        let without = ApiError::invalid(None, "messages: no");
        assert_eq!(places.told(without.clone()), without);
        // A message that does not begin with its place stays as it is.
        let told = places.told(ApiError::invalid(Some("messages"), "no messages"));
        assert_eq!((told.param.as_deref(), told.message.as_str()), (Some("input"), "no messages"));
    }
}
