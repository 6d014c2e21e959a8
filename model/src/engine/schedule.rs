//! How the tokens of a step are shared out.

/// Tokens of each prompt in this step, for prompts that lack `pending` tokens, the oldest first. Together they are at most `budget`
/// tokens, or one for each prompt where that is more.
///
/// The budget is shared evenly, and what short prompts leave over goes to the others: a short prompt beside a long one is read in
/// few steps, and a long one beside many short ones goes on.
pub(super) fn shares(pending: &[usize], budget: usize) -> Vec<usize> {
    let mut shares = vec![0; pending.len()];
    let mut order: Vec<usize> = (0..pending.len()).collect();
    // The oldest of equals first.
    order.sort_by_key(|&i| pending.get(i).copied());
    let mut left = budget;
    for (done, &i) in order.iter().enumerate() {
        let fair = left.div_ceil(order.len() - done).max(1);
        let share = pending.get(i).map_or(0, |&pending| pending.min(fair));
        left = left.saturating_sub(share);
        if let Some(slot) = shares.get_mut(i) {
            *slot = share;
        }
    }
    shares
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_budget_is_shared_evenly_and_used_up() {
        assert!(shares(&[], 8).is_empty());
        assert_eq!(shares(&[100], 8), [8]);
        assert_eq!(shares(&[3], 8), [3]);
        assert_eq!(shares(&[4000, 10], 512), [502, 10]);
        assert_eq!(shares(&[10, 4000, 10], 20), [7, 6, 7]);
        assert_eq!(shares(&[5, 5, 5], 2), [1, 1, 1]);
        assert_eq!(shares(&[9, 9], 0), [1, 1]);
    }
}
