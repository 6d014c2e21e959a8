//! Values that are computed once per key.

use std::cell::RefCell;
use std::sync::Arc;

/// A memo of a few values, found by comparing keys.
pub(crate) struct Memo<K, T>(RefCell<Vec<(K, Arc<T>)>>);

impl<K: PartialEq, T> Memo<K, T> {
    /// The value of this key; `make` computes it when it is not there yet.
    pub(crate) fn get(&self, key: K, make: impl FnOnce() -> T) -> Arc<T> {
        let mut values = self.0.borrow_mut();
        if let Some((_, value)) = values.iter().find(|(other, _)| *other == key) {
            return value.clone();
        }
        let value = Arc::new(make());
        values.push((key, value.clone()));
        value
    }
}

impl<K, T> Default for Memo<K, T> {
    fn default() -> Self {
        Self(RefCell::default())
    }
}
