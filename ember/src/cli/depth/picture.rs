//! Depth as a picture: SVG, or a page around it. Self-contained, with colours for light and for dark surroundings.

use super::colour::{DARK, LIGHT, Rgb, ink};
use super::map::{DepthMap, PassDepth, columns_of, cut, is_noncharacter};
use super::sweep::Threshold;

/// Sizes, in pixels.
const WIDTH: f64 = 900.0;
const MARGIN: f64 = 16.0;
const LABELS: f64 = 38.0;
const CHARACTER: f64 = 7.8;
const TEXT_HEIGHT: f64 = 20.0;
const CELL_HEIGHT: f64 = 14.0;
const GAP: f64 = 2.0;
const BLOCK_GAP: f64 = 14.0;
const HEADER: f64 = 52.0;

/// Longest label, in characters.
const LONGEST: usize = 40;

/// Type of everything, so that labels fit their columns.
const FONT: &str = "ui-monospace, SFMono-Regular, Menlo, Consolas, 'DejaVu Sans Mono', monospace";

/// A picture of the heat map.
pub fn svg(map: &DepthMap) -> String {
    let (body, height) = blocks(map);
    let mut out = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"{WIDTH}\" height=\"{height}\" viewBox=\"0 0 {WIDTH} {height}\" \
         role=\"img\" font-family=\"{FONT}\" \
         font-size=\"13\">\n<title>{}</title>\n<style>\n{}</style>\n<rect class=\"paper\" width=\"100%\" height=\"100%\"/>\n",
        escaped(&map.summary()),
        style()
    );
    let name = cut(&map.model, 40);
    out += &format!(
        "<text class=\"ink\" x=\"{MARGIN}\" y=\"22\" font-size=\"12\">{}: {}</text>\n",
        escaped(&name),
        escaped(&map.figures())
    );
    out += &legend(map);
    out += &body;
    out += "</svg>\n";
    out
}

/// A page with the picture and, where it was measured, the table of thresholds.
pub fn html(map: &DepthMap, sweep: Option<&[Threshold]>) -> String {
    let mut rows = String::new();
    for row in sweep.unwrap_or_default() {
        rows += &format!(
            "<tr><td>{}</td><td>{:.2}</td><td>{:.3}</td><td>{:.3}</td></tr>\n",
            row.threshold, row.mean_steps, row.perplexity, row.milliseconds_per_token
        );
    }
    let table = match rows.is_empty() {
        true => String::new(),
        false => format!(
            "<table>\n<tr><th>threshold</th><th>steps</th><th>perplexity</th><th>ms/token</th></tr>\n{rows}</table>\n"
        ),
    };
    format!(
        "<!DOCTYPE html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n\
         <meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\n<title>Depth of {}</title>\n<style>\n\
         body {{ font-family: {FONT}; margin: 2rem auto; max-width: {WIDTH}px; background: #fff; color: #14181c }}\n\
         .figure {{ overflow-x: auto }}\n\
         .figure svg {{ display: block }}\n\
         table {{ margin: 1rem {MARGIN}px; border-collapse: collapse; font-size: 11px }}\n\
         td, th {{ padding: 0.15rem 1.2em 0.15rem 0; text-align: right; font-weight: normal }}\n\
         th {{ color: #5c6670; border-bottom: 1px solid #c8ced4 }}\n\
         @media (max-width: {WIDTH}px) {{ body {{ margin: 0 }} }}\n\
         @media (prefers-color-scheme: dark) {{\n\
         body {{ background: #14181c; color: #e6eaee }}\nth {{ color: #9aa4ae; border-color: #3a424a }}\n}}\n\
         </style>\n</head>\n<body>\n<div class=\"figure\">\n{}</div>\n{table}</body>\n</html>\n",
        escaped(&map.model),
        svg(map)
    )
}

/// Classes `g0` to `g8` are grounds, `i0` to `i8` the ink on them.
fn style() -> String {
    let classes = |palette: &[Rgb]| -> String {
        let rules = palette.iter().enumerate().map(|(level, &ground)| {
            format!(".g{level} {{ fill: {} }} .i{level} {{ fill: {} }}\n", hex(ground), hex(ink(ground)))
        });
        rules.collect()
    };
    format!(
        ".paper {{ fill: #ffffff }} .ink {{ fill: #14181c }} .faint {{ fill: #5c6670 }}\n{}\
         @media (prefers-color-scheme: dark) {{\n.paper {{ fill: #14181c }} .ink {{ fill: #e6eaee }} .faint {{ fill: #9aa4ae }}\n{}}}\n",
        classes(&LIGHT),
        classes(&DARK)
    )
}

/// The numbers of steps that occur, in their colours.
fn legend(map: &DepthMap) -> String {
    let (mut x, y, height) = (MARGIN, 32.0, 14.0);
    let faint = |x: f64, text: &str| {
        format!("<text class=\"faint\" x=\"{x:.1}\" y=\"{}\" font-size=\"11\">{text}</text>\n", y + 11.0)
    };
    let mut out = faint(x, "steps");
    x += 42.0;
    for steps in map.steps_taken() {
        let (level, text) = (map.level(f64::from(steps)), steps.to_string());
        let width = text.len() as f64 * CHARACTER + 12.0;
        out += &format!(
            "<rect class=\"g{level}\" x=\"{x:.1}\" y=\"{y}\" width=\"{width:.1}\" height=\"{height}\" rx=\"2\"/>\
             <text class=\"i{level}\" x=\"{:.1}\" y=\"{}\" font-size=\"11\" text-anchor=\"middle\">{text}</text>\n",
            x + width / 2.0,
            y + 11.0
        );
        x += width + GAP;
    }
    out + &faint(x + 10.0, "a word has the colour of the mean of its layers, which are below it")
}

/// The tokens in lines, each with a cell per layer below it, and the height of it all.
fn blocks(map: &DepthMap) -> (String, f64) {
    let block_height = TEXT_HEIGHT + map.layers as f64 * CELL_HEIGHT + BLOCK_GAP;
    let (mut x, mut y) = (MARGIN + LABELS, HEADER);
    let mut out = labels(map, y);
    for (label, pass) in map.columns() {
        let label = cut(&label, LONGEST);
        let width = columns_of(&label) as f64 * CHARACTER + 4.0;
        if x + width > WIDTH - MARGIN && x > MARGIN + LABELS {
            x = MARGIN + LABELS;
            y += block_height;
            out += &labels(map, y);
        }
        out += &column(map, &label, pass, x, y, width);
        x += width + GAP;
    }
    (out, y + block_height)
}

/// The axis of the layers.
fn labels(map: &DepthMap, y: f64) -> String {
    let end = MARGIN + LABELS - 6.0;
    let label = |y: f64, text: &str| {
        format!("<text class=\"faint\" x=\"{end}\" y=\"{y}\" font-size=\"10\" text-anchor=\"end\">{text}</text>\n")
    };
    let rows = (0..map.layers).map(|layer| {
        let y = y + TEXT_HEIGHT + (layer as f64 + 1.0) * CELL_HEIGHT - 3.0;
        label(y, &layer.to_string())
    });
    label(y + 13.5, "layer") + &rows.collect::<String>()
}

fn column(map: &DepthMap, label: &str, pass: Option<&PassDepth>, x: f64, y: f64, width: f64) -> String {
    let title = pass.map_or("not predicted".to_owned(), |pass| {
        let steps: Vec<String> = pass.steps.iter().map(u32::to_string).collect();
        format!("{:.2} steps: {}", pass.mean_steps, steps.join(" "))
    });
    let (ground, text) = match pass.map(|pass| map.level(pass.mean_steps)) {
        Some(level) => (format!("g{level}"), format!("i{level}")),
        None => ("paper".to_owned(), "ink".to_owned()),
    };
    let mut out = format!(
        "<g><title>{}: {title}</title><rect class=\"{ground}\" x=\"{x:.1}\" y=\"{y}\" width=\"{width:.1}\" height=\"18\" rx=\"2\"/>\
         <text class=\"{text}\" x=\"{:.1}\" y=\"{}\" xml:space=\"preserve\">{}</text>",
        escaped(label),
        x + 2.0,
        y + 13.5,
        escaped(label)
    );
    for (layer, &steps) in pass.iter().flat_map(|pass| pass.steps.iter().enumerate()) {
        let y = y + TEXT_HEIGHT + layer as f64 * CELL_HEIGHT;
        let level = map.level(f64::from(steps));
        out += &format!(
            "<rect class=\"g{level}\" x=\"{x:.1}\" y=\"{y}\" width=\"{width:.1}\" height=\"{}\"/>",
            CELL_HEIGHT - 1.0
        );
    }
    out + "</g>\n"
}

fn hex([r, g, b]: Rgb) -> String {
    format!("#{r:02x}{g:02x}{b:02x}")
}

fn escaped(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' => out += "&amp;",
            '<' => out += "&lt;",
            '>' => out += "&gt;",
            '"' => out += "&quot;",
            '\'' => out += "&#39;",
            // XML allows none of U+FFFE, U+FFFF and most control characters, however they are written.
            c if c.is_control() || is_noncharacter(c) => out.push('\u{fffd}'),
            c => out.push(c),
        }
    }
    out
}
