//! Depth as a picture: SVG, or a page around it. Self-contained, with colours for light and for dark surroundings.

use super::colour::{DARK, LIGHT, Rgb, ink};
use super::map::{DepthMap, Pass};
use super::sweep::Threshold;

/// Sizes, in pixels.
const WIDTH: f64 = 900.0;
const MARGIN: f64 = 16.0;
const LABELS: f64 = 28.0;
const CHARACTER: f64 = 7.8;
const TEXT_HEIGHT: f64 = 20.0;
const CELL_HEIGHT: f64 = 14.0;
const GAP: f64 = 2.0;
const BLOCK_GAP: f64 = 14.0;
const HEADER: f64 = 52.0;

/// A picture of the heat map.
pub fn svg(map: &DepthMap) -> String {
    let (body, height) = blocks(map);
    let mut out = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"{WIDTH}\" height=\"{height}\" viewBox=\"0 0 {WIDTH} {height}\" \
         role=\"img\" font-family=\"ui-monospace, SFMono-Regular, Menlo, Consolas, 'DejaVu Sans Mono', monospace\" \
         font-size=\"13\">\n<title>{}</title>\n<style>\n{}</style>\n<rect class=\"paper\" width=\"100%\" height=\"100%\"/>\n",
        escaped(&map.summary()),
        style()
    );
    out +=
        &format!("<text class=\"ink\" x=\"{MARGIN}\" y=\"22\" font-size=\"12\">{}</text>\n", escaped(&map.summary()));
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
        "<!DOCTYPE html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n<title>Depth of {}</title>\n<style>\n\
         body {{ font-family: system-ui, sans-serif; margin: 2rem auto; max-width: {WIDTH}px; background: #fff; color: #14181c }}\n\
         svg {{ max-width: 100%; height: auto }}\n\
         td, th {{ padding: 0.2rem 1rem; text-align: right; font-variant-numeric: tabular-nums }}\n\
         @media (prefers-color-scheme: dark) {{ body {{ background: #14181c; color: #e6eaee }} }}\n\
         </style>\n</head>\n<body>\n{}{table}</body>\n</html>\n",
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

fn legend(map: &DepthMap) -> String {
    let (x, y, side) = (MARGIN, 32.0, 14.0);
    let mut out = format!("<text class=\"faint\" x=\"{x}\" y=\"{}\" font-size=\"11\">1 step</text>\n", y + 11.0);
    let start = x + 48.0;
    for level in 0..LIGHT.len() {
        let x = start + level as f64 * side;
        out += &format!("<rect class=\"g{level}\" x=\"{x}\" y=\"{y}\" width=\"{side}\" height=\"{side}\"/>\n");
    }
    let end = start + LIGHT.len() as f64 * side + 6.0;
    out += &format!(
        "<text class=\"faint\" x=\"{end}\" y=\"{}\" font-size=\"11\">{} steps. Words: mean of the layers; cells: layer 0 above, \
         {} below</text>\n",
        y + 11.0,
        map.num_steps,
        map.layers.saturating_sub(1)
    );
    out
}

/// The tokens in lines, each with a cell per layer below it, and the height of it all.
fn blocks(map: &DepthMap) -> (String, f64) {
    let block_height = TEXT_HEIGHT + map.layers as f64 * CELL_HEIGHT + BLOCK_GAP;
    let (mut x, mut y) = (MARGIN + LABELS, HEADER);
    let mut out = labels(map, y);
    for (label, pass) in map.columns() {
        // A character that is not of this script may be twice as wide.
        let characters: f64 = label.chars().map(|c| if c < '\u{1100}' { 1.0 } else { 2.0 }).sum();
        let width = characters * CHARACTER + 4.0;
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

fn labels(map: &DepthMap, y: f64) -> String {
    let rows = (0..map.layers).map(|layer| {
        let y = y + TEXT_HEIGHT + (layer as f64 + 1.0) * CELL_HEIGHT - 3.0;
        format!(
            "<text class=\"faint\" x=\"{}\" y=\"{y}\" font-size=\"10\" text-anchor=\"end\">{layer}</text>\n",
            MARGIN + 20.0
        )
    });
    rows.collect()
}

fn column(map: &DepthMap, label: &str, pass: Option<&Pass>, x: f64, y: f64, width: f64) -> String {
    let title = pass.map_or("not foretold".to_owned(), |pass| {
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
            // Not allowed in XML.
            c if c.is_control() => out.push('\u{fffd}'),
            c => out.push(c),
        }
    }
    out
}
