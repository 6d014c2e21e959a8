//! What `ember diff` prints for people.

use std::fmt::Write as _;

use emberlm::model::Pretrained;
use emberlm::model::compare::{Comparison, TensorComparison};
use serde_json::Value;

use super::report::TextReport;
use crate::cli::estimate::cache_in_words;
use crate::cli::output::{self, counted, printable};

/// Names of tensors that one model has alone, and keys that are shown.
const LISTED: usize = 20;
/// Longest value of a key.
const LONGEST: usize = 60;

/// Everything that differs.
pub fn text(models: [(&str, &Pretrained); 2], compared: &Comparison, top: usize, text: Option<&TextReport>) -> String {
    let mut out = String::new();
    for (letter, (path, model)) in ["A", "B"].into_iter().zip(models) {
        let weights = model.weights();
        let bytes = weights.canonical_names().filter_map(|name| weights.entry(name)).map(|entry| entry.bytes).sum();
        let (family, bytes) = (model.architecture().config.family, output::bytes(bytes));
        let _ = writeln!(out, "{letter}  {}: {family}, {bytes} of weights", printable(path));
    }
    out.push('\n');
    write_tensors(&mut out, compared, top);
    write_others(&mut out, compared);
    write_keys(&mut out, compared);
    if let Some(text) = text {
        write_text(&mut out, text);
    }
    let _ = writeln!(out, "{}", conclusion(compared.is_same(), text.map(caches)));
    out
}

/// The last line.
fn conclusion(same: bool, caches: Option<[String; 2]>) -> String {
    let models = if same { "the models are the same" } else { "the models differ" };
    match caches {
        Some([a, b]) if a != b && same => {
            format!("{models}; they read the text with caches that differ: {a} in A, {b} in B")
        }
        Some([a, b]) if a != b => format!("{models}, and so do their caches: {a} in A, {b} in B"),
        _ => models.to_owned(),
    }
}

/// The caches with which both read the text.
fn caches(text: &TextReport) -> [String; 2] {
    [cache_in_words(text.cache_type_a, text.cache_hidden_a), cache_in_words(text.cache_type_b, text.cache_hidden_b)]
}

fn write_tensors(out: &mut String, compared: &Comparison, top: usize) {
    let differing: Vec<&TensorComparison> = compared.tensors.iter().filter(|tensor| !tensor.identical).collect();
    let same = compared.tensors.len() - differing.len();
    if differing.is_empty() {
        let _ = writeln!(out, "{}\n", all_equal(same, compared.reshaped.len()));
        return;
    }
    let shown = if top == 0 { differing.len() } else { top.min(differing.len()) };
    let header = ["tensor", "A", "B", "rel. error", "cosine", "max diff.", "at", "worst row"].map(str::to_owned);
    let rows = differing.iter().take(shown).map(|tensor| {
        let [a, b] = tensor.storage.map(|storage| storage.to_string());
        let worst = tensor.worst_rows.first();
        let worst = worst.map_or_else(|| "-".to_owned(), |row| format!("{} ({})", row.row, short(row.relative_error)));
        let at = if tensor.shape.len() < 2 {
            format!("[{}]", tensor.max_at[1])
        } else {
            format!("[{}, {}]", tensor.max_at[0], tensor.max_at[1])
        };
        let error = match tensor.not_finite {
            0 => short(tensor.relative_error),
            count => format!("{count} not finite"),
        };
        let cosine = format!("{:.6}", tensor.cosine);
        [printable(&tensor.name), a, b, error, cosine, short(tensor.max_difference), at, worst]
    });
    let rows: Vec<[String; 8]> = std::iter::once(header).chain(rows).collect();
    let widths: Vec<usize> = (0..8)
        .map(|i| rows.iter().filter_map(|row| row.get(i)).map(|cell| cell.chars().count()).max().unwrap_or(0))
        .collect();
    for row in rows {
        let cells = row.iter().zip(&widths).enumerate();
        // Numbers to the right, words to the left.
        let cells: Vec<String> = cells
            .map(
                |(i, (cell, &width))| {
                    if (3..6).contains(&i) { format!("{cell:>width$}") } else { format!("{cell:<width$}") }
                },
            )
            .collect();
        let _ = writeln!(out, "{}", cells.join("  ").trim_end());
    }
    let mut notes = Vec::new();
    if let Some(more) = (differing.len() - shown).checked_sub(1) {
        notes.push(format!("{} more differ less (--top 0 shows all)", more + 1));
    }
    if same > 0 {
        notes.push(format!("{same} are equal"));
    }
    if !notes.is_empty() {
        let _ = writeln!(out, "{}", notes.join(", "));
    }
    out.push('\n');
}

/// What is said where no tensor of one shape differs.
fn all_equal(same: usize, reshaped: usize) -> String {
    match (same, reshaped) {
        (0, 0) => "no tensor is in both".to_owned(),
        (same, 0) => format!("all {same} tensors that both have are equal"),
        (0, reshaped) => format!("all {reshaped} tensors that both have are of other shapes"),
        (same, reshaped) => {
            format!(
                "of {} tensors that both have, {same} are equal and {reshaped} are of other shapes",
                same + reshaped
            )
        }
    }
}

fn write_others(out: &mut String, compared: &Comparison) {
    for (name, a, b) in compared.reshaped.iter().take(LISTED) {
        let _ = writeln!(out, "{}: {a:?} in A, {b:?} in B", printable(name));
    }
    if let Some(more) = compared.reshaped.len().checked_sub(LISTED).filter(|&more| more > 0) {
        let _ = writeln!(out, "{more} more are of other shapes");
    }
    for (letter, names) in [("A", &compared.only_first), ("B", &compared.only_second)] {
        for name in names.iter().take(LISTED) {
            let _ = writeln!(out, "only in {letter}: {}", printable(name));
        }
        if let Some(more) = names.len().checked_sub(LISTED).filter(|&more| more > 0) {
            let _ = writeln!(out, "only in {letter}: {more} more");
        }
    }
    if !(compared.reshaped.is_empty() && compared.only_first.is_empty() && compared.only_second.is_empty()) {
        out.push('\n');
    }
}

fn write_keys(out: &mut String, compared: &Comparison) {
    let (counting, others): (Vec<_>, Vec<_>) = compared.config.keys.iter().partition(|key| key.counts);
    for key in counting.iter().take(LISTED) {
        let (a, b) = (value(key.first.as_ref()), value(key.second.as_ref()));
        let _ = writeln!(out, "config.json  {}: {a} in A, {b} in B", printable(&key.key));
    }
    if let Some(more) = counting.len().checked_sub(LISTED).filter(|&more| more > 0) {
        let _ = writeln!(out, "config.json  {more} more keys");
    }
    if !counting.is_empty() && compared.config.same {
        let _ = writeln!(out, "config.json  these keys are spelled in two ways and mean the same");
    }
    if !others.is_empty() {
        // Of an object, as quantization_config, its name once.
        let mut names: Vec<&str> = others.iter().filter_map(|key| key.key.split('.').next()).collect();
        names.dedup();
        let more = names.len().saturating_sub(LISTED);
        let mut names: Vec<String> = names.into_iter().take(LISTED).map(printable).collect();
        if more > 0 {
            names.push(format!("{more} more"));
        }
        let _ = writeln!(out, "config.json  without effect on the numbers: {}", names.join(", "));
    }
    if !compared.config.keys.is_empty() {
        out.push('\n');
    }
}

fn value(value: Option<&Value>) -> String {
    let Some(value) = value else { return "nothing".to_owned() };
    let text = printable(&value.to_string());
    match text.char_indices().nth(LONGEST) {
        Some((end, _)) => format!("{}...", text.get(..end).unwrap_or_default()),
        None => text,
    }
}

fn write_text(out: &mut String, text: &TextReport) {
    let TextReport { tokens, windows, context, kl, kl_error, kl_99, kl_max, same_top, .. } = text;
    let (a, b) = (text.perplexity_a, text.perplexity_b);
    let (tokens, windows) = (counted(*tokens, "token"), counted(*windows, "window"));
    let _ = writeln!(out, "text         {tokens}, {windows} of {context}");
    let _ = writeln!(
        out,
        "KL           {kl:.6} +- {kl_error:.6} nats per token; 99 % below {}, at most {}",
        short(*kl_99),
        short(*kl_max)
    );
    let _ = writeln!(out, "same top     {:.2} % of the tokens", 100.0 * same_top);
    let _ = writeln!(out, "perplexity   {a:.4} in A, {b:.4} in B ({:+.2} %)\n", 100.0 * (b / a - 1.0));
}

/// Three digits.
fn short(x: f64) -> String {
    match x.abs() {
        0.0 => "0".to_owned(),
        magnitude if (1e-3..1e4).contains(&magnitude) => {
            let digits = (2 - magnitude.log10().floor() as i32).max(0) as usize;
            format!("{x:.digits$}")
        }
        _ => format!("{x:.2e}"),
    }
}

#[cfg(test)]
mod tests {
    use super::{all_equal, conclusion, short};

    #[test]
    fn the_last_line_tells_caches_that_differ() {
        let caches = |a: &str, b: &str| Some([a.to_owned(), b.to_owned()]);
        for (same, caches, told) in [
            (true, None, "the models are the same"),
            (true, caches("f32 cache", "f32 cache"), "the models are the same"),
            (false, caches("f32 cache", "f32 cache"), "the models differ"),
            (
                false,
                caches("f32 cache", "q8 cache"),
                "the models differ, and so do their caches: f32 cache in A, q8 cache in B",
            ),
        ] {
            assert_eq!(conclusion(same, caches), told);
        }
    }

    #[test]
    fn tensors_of_other_shapes_are_not_equal() {
        for (same, reshaped, told) in [
            (3, 0, "all 3 tensors that both have are equal"),
            (0, 14, "all 14 tensors that both have are of other shapes"),
            (3, 14, "of 17 tensors that both have, 3 are equal and 14 are of other shapes"),
            (0, 0, "no tensor is in both"),
        ] {
            assert_eq!(all_equal(same, reshaped), told);
        }
    }

    #[test]
    fn numbers_have_three_digits() {
        let shown = [0.0, 0.09512, 1.0, 12.345, 1234.0, 0.000_123_4, 1e7, f64::INFINITY].map(short);
        assert_eq!(shown, ["0", "0.0951", "1.00", "12.3", "1234", "1.23e-4", "1.00e7", "inf"]);
    }
}
