//! Curves of the logs, as SVG for light and dark surroundings.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use serde_json::Value;

const WIDTH: f64 = 860.0;
const HEIGHT: f64 = 300.0;
const LEFT: f64 = 52.0;
const RIGHT: f64 = 190.0;
const TOP: f64 = 30.0;
const BOTTOM: f64 = 36.0;

/// Colours with enough contrast on white and on black, the classes of the style.
const COLOURS: [&str; 8] = ["#3a7bd5", "#d9622b", "#3c9a4e", "#a35cc4", "#c9303e", "#8a7a22", "#1f9a9a", "#c0568f"];

/// Batches that are averaged for a point.
const WINDOW: usize = 4;

/// Above this a curve is cut off.
const HIGHEST: f64 = 4.0;

struct Curve {
    name: String,
    points: Vec<(f64, f64)>,
}

/// The loss of several runs above the steps of some classes of the first.
pub fn plot(runs: &[PathBuf], classes: &[&str], out: &Path) -> Result<()> {
    ensure!(!runs.is_empty(), "no run to plot");
    let logs = runs.iter().map(|run| read(run)).collect::<Result<Vec<_>>>()?;
    let name = |run: &Path| run.file_name().map_or_else(String::new, |name| name.to_string_lossy().into_owned());
    let loss = runs.iter().zip(&logs).map(|(run, log)| curve(name(run), log, &["loss"])).collect::<Vec<_>>();
    let steps = classes.iter().map(|class| curve((*class).to_owned(), &logs[0], &["classes", class, "steps"]));
    let mut svg = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"{WIDTH}\" height=\"{0}\" viewBox=\"0 0 {WIDTH} {0}\" \
         font-family=\"system-ui, sans-serif\" font-size=\"12\">\n<style>\n.paper {{ fill: #ffffff }} .ink {{ fill: #14181c }} \
         .line {{ stroke: #c8d0d8 }}\n@media (prefers-color-scheme: dark) {{ .paper {{ fill: #14181c }} .ink {{ fill: #e6eaee }} \
         .line {{ stroke: #3a444e }} }}\n</style>\n<rect class=\"paper\" width=\"100%\" height=\"100%\"/>\n",
        2.0 * HEIGHT
    );
    svg += &panel("training loss, nats per token", &loss, 0.0);
    let title = format!("expected steps per layer by class ({})", name(&runs[0]));
    svg += &panel(&title, &steps.collect::<Vec<_>>(), HEIGHT);
    svg += "</svg>\n";
    std::fs::write(out, svg).with_context(|| format!("cannot write {}", out.display()))
}

fn read(run: &Path) -> Result<Vec<Value>> {
    let path = run.join("log.jsonl");
    let text = std::fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))?;
    let lines: Vec<Value> = text.lines().map(serde_json::from_str).collect::<Result<_, _>>()?;
    // What was repeated after an interruption counts once.
    let batch = |line: &Value| line["batch"].as_u64().unwrap_or(0);
    let mut kept: Vec<Value> = Vec::new();
    for line in lines {
        while kept.last().is_some_and(|last| batch(last) >= batch(&line)) {
            kept.pop();
        }
        kept.push(line);
    }
    Ok(kept)
}

fn curve(name: String, log: &[Value], path: &[&str]) -> Curve {
    let points = log.chunks(WINDOW).filter_map(|lines| {
        let values: Vec<f64> =
            lines.iter().filter_map(|line| path.iter().fold(line, |value, key| &value[*key]).as_f64()).collect();
        let batch = lines.last()?["batch"].as_f64()?;
        (!values.is_empty()).then(|| (batch, values.iter().sum::<f64>() / values.len() as f64))
    });
    Curve { name, points: points.collect() }
}

fn panel(title: &str, curves: &[Curve], top: f64) -> String {
    let points = || curves.iter().flat_map(|curve| curve.points.iter().copied());
    let last = points().map(|(x, _)| x).fold(1.0, f64::max);
    let low = points().map(|(_, y)| y).fold(f64::INFINITY, f64::min).min(1.0).floor();
    // The first batches, of which the loss is that of a guess, are cut off.
    let high = points().map(|(_, y)| y).fold(low + 1.0, f64::max).ceil().min(HIGHEST);
    let x = |batch: f64| LEFT + batch / last * (WIDTH - LEFT - RIGHT);
    let y = |value: f64| top + TOP + (high - value) / (high - low) * (HEIGHT - TOP - BOTTOM);
    let mut out = format!("<text class=\"ink\" x=\"{LEFT}\" y=\"{}\" font-weight=\"600\">{title}</text>\n", top + 18.0);
    for i in 0..=(high - low) as usize {
        let value = low + i as f64;
        let at = y(value);
        out +=
            &format!("<line class=\"line\" x1=\"{LEFT}\" x2=\"{}\" y1=\"{at:.1}\" y2=\"{at:.1}\"/>\n", WIDTH - RIGHT);
        out += &format!(
            "<text class=\"ink\" x=\"{}\" y=\"{:.1}\" text-anchor=\"end\">{value}</text>\n",
            LEFT - 8.0,
            at + 4.0
        );
    }
    for i in 0..=4 {
        let batch = last * f64::from(i) / 4.0;
        let label = format!("{batch:.0}{}", if i == 4 { " batches" } else { "" });
        out += &format!(
            "<text class=\"ink\" x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"middle\">{label}</text>\n",
            x(batch),
            top + HEIGHT - BOTTOM + 18.0
        );
    }
    for (i, curve) in curves.iter().enumerate() {
        let colour = COLOURS[i % COLOURS.len()];
        let points: Vec<String> =
            curve.points.iter().map(|&(a, b)| format!("{:.1},{:.1}", x(a), y(b.min(high)))).collect();
        out += &format!(
            "<polyline fill=\"none\" stroke=\"{colour}\" stroke-width=\"1.6\" points=\"{}\"/>\n",
            points.join(" ")
        );
        let (left, at) = (WIDTH - RIGHT + 14.0, top + TOP + 10.0 + 18.0 * i as f64);
        out += &format!("<rect fill=\"{colour}\" x=\"{left}\" y=\"{:.1}\" width=\"14\" height=\"4\"/>\n", at - 5.0);
        out += &format!("<text class=\"ink\" x=\"{}\" y=\"{at:.1}\">{}</text>\n", left + 20.0, curve.name);
    }
    out
}
