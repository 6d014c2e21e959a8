//! Depth on a terminal: the text in the colours of its mean steps, then a heat map in lines of the terminal's width.

use super::colour::{Colours, LIGHT, Rgb, indexed, ink};
use super::map::{DepthMap, LEVELS, PassDepth, columns_of, cut};
use crate::cli::output::steers_terminal;

/// Everything, ending with a line break.
pub fn paint(map: &DepthMap, colours: Colours, width: usize) -> String {
    let mut out = String::new();
    for token in &map.tokens {
        let level = token.pass.as_ref().map(|pass| map.level(pass.mean_steps));
        // A background would run to the end of the line.
        for (i, line) in token.text.split('\n').enumerate() {
            if i > 0 {
                out.push('\n');
            }
            out += &tinted(&printable(line), level, colours);
        }
    }
    out += "\n\n";
    out += &heat_map(map, colours, width);
    out += &legend(map, colours);
    out += &map.summary();
    out.push('\n');
    out
}

/// Blocks of as many tokens as fit; in each, the tokens and below them a line per layer.
fn heat_map(map: &DepthMap, colours: Colours, width: usize) -> String {
    let digits = map.layers.saturating_sub(1).to_string().len().max(2);
    let margin = digits + 2;
    let room = width.saturating_sub(margin).max(1);
    let columns: Vec<(String, Option<&PassDepth>)> =
        map.columns().map(|(label, pass)| (cut(&label, room), pass)).collect();
    let mut out = "layer\n".to_owned();
    let mut rest = columns.as_slice();
    while !rest.is_empty() {
        let mut used = margin;
        let fitting = rest.iter().take_while(|(label, _)| {
            used += columns_of(label) + 1;
            used <= width + 1
        });
        let (block, after) = rest.split_at(fitting.count().max(1));
        rest = after;
        let labels: Vec<&str> = block.iter().map(|(label, _)| label.as_str()).collect();
        out += &format!("{:margin$}{}\n", "", labels.join(" "));
        for layer in 0..map.layers {
            out += &format!("{layer:>digits$}  ");
            let row: Vec<String> = block
                .iter()
                .map(|(label, pass)| {
                    let steps = pass.and_then(|pass| pass.steps.get(layer));
                    let text = format!("{:^1$}", steps.map_or("-".to_owned(), u32::to_string), columns_of(label));
                    tinted(&text, steps.map(|&steps| map.level(f64::from(steps))), colours)
                })
                .collect();
            out += &row.join(" ");
            out.push('\n');
        }
        out.push('\n');
    }
    out
}

/// The numbers of steps that occur, in their colours.
fn legend(map: &DepthMap, colours: Colours) -> String {
    if colours == Colours::None {
        return "steps per layer (rows) and token (columns); - is the first token, which nothing predicted\n"
            .to_owned();
    }
    let taken = map.steps_taken();
    let swatches: Vec<String> =
        taken.iter().map(|&steps| tinted(&format!(" {steps} "), Some(map.level(f64::from(steps))), colours)).collect();
    format!("steps: {}   words: mean of their layers\n", swatches.join(" "))
}

/// Text on the ground of a level; unchanged where there is none.
pub fn tinted(text: &str, level: Option<usize>, colours: Colours) -> String {
    let Some(ground) = level.and_then(|level| LIGHT.get(level.min(LEVELS - 1)).copied()) else {
        return text.to_owned();
    };
    if text.is_empty() {
        return String::new();
    }
    let [[r, g, b], [ir, ig, ib]]: [Rgb; 2] = [ground, ink(ground)];
    match colours {
        Colours::None => text.to_owned(),
        Colours::True => format!("\x1b[48;2;{r};{g};{b}m\x1b[38;2;{ir};{ig};{ib}m{text}\x1b[0m"),
        Colours::Indexed => format!("\x1b[48;5;{}m\x1b[38;5;{}m{text}\x1b[0m", indexed(ground), indexed([ir, ig, ib])),
    }
}

/// Text without what could steer the terminal.
fn printable(text: &str) -> String {
    text.chars().map(|c| if steers_terminal(c) && c != '\t' { char::REPLACEMENT_CHARACTER } else { c }).collect()
}
