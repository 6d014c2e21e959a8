//! What `ember probe` tells, as JSON or as a table.

use std::fmt::Write as _;
use std::path::PathBuf;

use emberlm::model::probe::{ClosedOption, OpenOptions, OptionValue, Ranked, Ranking, Verdict, WhyClosed};
use serde::Serialize;
use serde_json::{Map, Value};

/// Rows of the table at most.
const ROWS: usize = 20;

/// What `--json` prints.
#[derive(Debug, Serialize)]
pub struct Report {
    candidates: Vec<Row>,
    conclusions: Vec<Conclusion>,
    closed: Vec<Closed>,
    /// Tokens of a block.
    block: usize,
    blocks: usize,
    /// Of all blocks.
    tokens: usize,
    text_tokens: usize,
    activations: String,
    seconds: f64,
    written: Option<PathBuf>,
}

#[derive(Debug, Serialize)]
struct Row {
    rank: usize,
    options: Map<String, Value>,
    perplexity: f64,
    /// In nats per token; none for the first.
    difference: Option<f64>,
    error: Option<f64>,
    blocks: usize,
    mean_steps: Option<f64>,
    seconds: f64,
    verdict: Word,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
enum Word {
    First,
    Undecided,
    Worse,
    Dropped,
    NotFinite,
}

/// What is told of an option.
#[derive(Debug, Serialize)]
struct Conclusion {
    option: &'static str,
    value: Value,
    /// Other values that may be as good.
    as_good: Vec<Value>,
    default: bool,
    /// Every other value is worse, or the default is.
    decided: bool,
}

/// An option that was not tried.
#[derive(Debug, Serialize)]
struct Closed {
    option: &'static str,
    value: Value,
    why: &'static str,
}

impl Report {
    pub fn new(
        ranking: &Ranking,
        open: &OpenOptions,
        text_tokens: usize,
        activations: String,
        written: Option<PathBuf>,
    ) -> Self {
        let conclusion = |of: &emberlm::model::probe::Conclusion| Conclusion {
            option: of.value.option(),
            value: json(&of.value),
            as_good: of.as_good.iter().map(json).collect(),
            default: of.is_default,
            decided: of.is_decided(),
        };
        Self {
            candidates: ranking.candidates.iter().enumerate().map(|(i, ranked)| Row::new(i + 1, ranked)).collect(),
            conclusions: ranking.conclusions.iter().map(conclusion).collect(),
            closed: open.closed.iter().map(Closed::new).collect(),
            block: ranking.block,
            blocks: ranking.blocks,
            tokens: ranking.block * ranking.blocks,
            text_tokens,
            activations,
            seconds: ranking.seconds,
            written,
        }
    }

    /// Where nothing is open.
    pub fn without_candidates(open: &OpenOptions, activations: String) -> Self {
        Self {
            candidates: Vec::new(),
            conclusions: Vec::new(),
            closed: open.closed.iter().map(Closed::new).collect(),
            block: 0,
            blocks: 0,
            tokens: 0,
            text_tokens: 0,
            activations,
            seconds: 0.0,
            written: None,
        }
    }

    /// For a reader.
    pub fn text(&self) -> String {
        let mut out = String::new();
        if self.candidates.is_empty() {
            out.push_str("no option is open:\n");
        } else {
            self.table(&mut out);
            self.conclusions(&mut out);
        }
        for Closed { option, value, why } in &self.closed {
            let why = match *why {
                "stated" => "stated by the model's files",
                "given" => "given by a flag",
                _ => "has no effect in this model",
            };
            let _ = writeln!(out, "{option:<15} {:<11} {why}, not tried", shown(value));
        }
        if !self.candidates.is_empty() {
            let read: usize = self.candidates.iter().map(|row| row.blocks).sum();
            let _ = writeln!(
                out,
                "{} candidates, {} blocks of {} tokens each ({read} read in all), {:.1} s",
                self.candidates.len(),
                self.blocks,
                self.block,
                self.seconds
            );
        }
        if let Some(path) = &self.written {
            let _ = writeln!(out, "written to {}", path.display());
        }
        out
    }

    fn table(&self, out: &mut String) {
        let Some(first) = self.candidates.first() else { return };
        let names: Vec<&String> = first.options.keys().collect();
        let cell = |row: &Row, name: &str| row.options.get(name).map(shown).unwrap_or_default();
        let width = |name: &String| {
            let cells = self.candidates.iter().map(|row| cell(row, name).len());
            cells.max().unwrap_or(0).max(name.len())
        };
        let widths: Vec<usize> = names.iter().map(|name| width(name)).collect();
        let steps = first.mean_steps.is_some();
        out.push_str("rank");
        for (name, width) in names.iter().zip(&widths) {
            let _ = write!(out, "  {name:<width$}");
        }
        if steps {
            out.push_str("  steps");
        }
        out.push_str("  perplexity  difference (nats/token)  blocks  verdict\n");
        for row in self.candidates.iter().take(ROWS) {
            let _ = write!(out, "{:>4}", row.rank);
            for (name, width) in names.iter().zip(&widths) {
                let _ = write!(out, "  {:<width$}", cell(row, name));
            }
            if steps {
                let _ = write!(out, "  {:>5.2}", row.mean_steps.unwrap_or(f64::NAN));
            }
            let difference = match (row.difference, row.error) {
                (Some(difference), Some(error)) if difference.is_finite() && error.is_finite() => {
                    format!("{difference:+.4} ± {error:.4}")
                }
                _ => "-".to_owned(),
            };
            let perplexity = if row.blocks > 0 { format!("{:.4}", row.perplexity) } else { "-".to_owned() };
            let verdict = match row.verdict {
                Word::First => "first".to_owned(),
                Word::Undecided => "not distinguishable from the first".to_owned(),
                Word::Worse => "worse".to_owned(),
                Word::Dropped => format!("dropped after {} blocks", row.blocks),
                Word::NotFinite => "gives no numbers".to_owned(),
            };
            let _ = writeln!(out, "  {perplexity:>10}  {difference:>23}  {:>6}  {verdict}", row.blocks);
        }
        let left_out = || self.candidates.iter().skip(ROWS);
        let undecided = left_out().filter(|row| row.verdict == Word::Undecided).count();
        let counts = [(undecided, "not distinguishable from the first"), (left_out().count() - undecided, "worse")];
        let counts = counts.iter().filter(|(count, _)| *count > 0).map(|(count, what)| format!("{count} {what}"));
        let counts: Vec<String> = counts.collect();
        if !counts.is_empty() {
            let _ = writeln!(out, "      and {}; --json lists all", counts.join(", "));
        }
        out.push('\n');
    }

    fn conclusions(&self, out: &mut String) {
        for Conclusion { option, value, as_good, default, decided } in &self.conclusions {
            let default = if *default { "; it is the default" } else { "" };
            let told = match as_good.as_slice() {
                [] => "every other value is worse".to_owned(),
                others => {
                    let names: Vec<String> = others.iter().map(shown).collect();
                    let names = names.join(" or ");
                    match decided {
                        true => format!("the default is worse; {names} may be as good"),
                        false => format!("not decided by this text: {names} may be as good"),
                    }
                }
            };
            let _ = writeln!(out, "{option:<15} {:<11} {told}{default}", shown(value));
        }
        if !self.conclusions.iter().any(|conclusion| conclusion.decided) {
            out.push_str(
                "This text tells nothing apart: use a longer one, of the kind that the model was trained on.\n",
            );
        }
    }
}

impl Row {
    fn new(rank: usize, ranked: &Ranked) -> Self {
        let candidate = &ranked.candidate;
        let verdict = match ranked.verdict {
            Verdict::First => Word::First,
            Verdict::Undecided => Word::Undecided,
            Verdict::Worse => Word::Worse,
            Verdict::Dropped => Word::Dropped,
            Verdict::NotFinite => Word::NotFinite,
        };
        Self {
            rank,
            options: candidate.values.iter().map(|value| (value.option().to_owned(), json(value))).collect(),
            perplexity: candidate.perplexity(),
            difference: ranked.difference.map(|difference| difference.mean),
            error: ranked.difference.map(|difference| difference.error),
            blocks: candidate.blocks(),
            mean_steps: candidate.mean_steps(),
            seconds: candidate.seconds,
            verdict,
        }
    }
}

impl Closed {
    fn new(closed: &ClosedOption) -> Self {
        let why = match closed.why {
            WhyClosed::Stated => "stated",
            WhyClosed::Given => "given",
            WhyClosed::NoEffect => "no_effect",
        };
        Self { option: closed.value.option(), value: json(&closed.value), why }
    }
}

/// A number where it is one.
fn json(value: &OptionValue) -> Value {
    let text = value.value();
    match value {
        OptionValue::HaltThreshold(_) => text.parse::<f64>().map_or(Value::Null, Value::from),
        _ => Value::String(text),
    }
}

fn shown(value: &Value) -> String {
    match value {
        Value::String(text) => text.clone(),
        other => other.to_string(),
    }
}
