//! Lengths against shapes, in arithmetic that does not wrap: the border that every kernel behind it relies on.

/// Elements of a shape.
///
/// # Panics
/// If they cannot be counted: a product that wrapped would let a short slice pass for a long one.
#[track_caller]
pub(crate) fn elements(name: &str, shape: &[usize]) -> usize {
    // An empty side makes an empty tensor, whatever the others are.
    if shape.contains(&0) {
        return 0;
    }
    let product = shape.iter().try_fold(1usize, |product, &side| product.checked_mul(side));
    product.unwrap_or_else(|| panic!("{name} {shape:?} has more elements than can be counted"))
}

/// # Panics
/// If `len` elements are not those of the shape.
#[track_caller]
pub(crate) fn check_len(name: &str, len: usize, shape: &[usize]) {
    let needed = elements(name, shape);
    assert!(len == needed, "{name} has {len} elements, not the {needed} of {shape:?}");
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::panics::catch_quietly;

    #[test]
    fn a_product_that_wraps_is_no_length() {
        assert_eq!(elements("x", &[]), 1);
        assert_eq!(elements("x", &[usize::MAX, 2, 0]), 0);
        check_len("x", 6, &[3, 2]);
        for (len, shape) in [(0, [1 << 63, 2]), (1 << 62, [(1 << 62) + 1, 4]), (5, [2, 3])] {
            let message = catch_quietly(|| check_len("x", len, &shape)).expect_err("refused");
            assert!(message.starts_with("x "), "{message}");
        }
    }
}
