//! How tokens are chosen: the model's own defaults, changed by flags.

use std::fmt;

use clap::Args;
use emberlm::model::config::{GenerationConfig, GenerationDefaults};
use emberlm::model::sampling::SamplingConfig;

/// Flags of sampling. What is absent comes from generation_config.json.
#[derive(Clone, Debug, Default, Args)]
#[command(next_help_heading = "Sampling (default: by generation_config.json; greedy without its do_sample)")]
pub struct SamplingArgs {
    /// Temperature of a draw; 0 takes the most likely token. This flag or one of the next three asks for draws
    #[arg(long, visible_alias = "temperature", value_name = "T", allow_negative_numbers = true)]
    pub temp: Option<f32>,

    /// Keep the K most likely tokens (50 where nothing is stated); 0 or -1 keeps all
    #[arg(long, value_name = "K", value_parser = or_minus_one(0), allow_negative_numbers = true)]
    pub top_k: Option<usize>,

    /// Keep the most likely tokens that hold this share of the probability, from 0 (the most likely alone) to 1
    #[arg(long, value_name = "P", allow_negative_numbers = true)]
    pub top_p: Option<f32>,

    /// Keep tokens with this share of the probability of the best, from 0 to 1
    #[arg(long, value_name = "P", allow_negative_numbers = true)]
    pub min_p: Option<f32>,

    /// Above 1 discourages tokens of prompt and output
    #[arg(long, value_name = "R", allow_negative_numbers = true)]
    pub repeat_penalty: Option<f32>,

    /// Seed of draws, -1 draws one. The same seed gives the same text, but for rounding with another --chunk, --draft or --cache-hidden, or beside
    /// other answers: see --chunk
    #[arg(long, value_name = "N", default_value = "-1", hide_default_value = true, allow_negative_numbers = true)]
    pub seed: Seed,

    /// Take the most likely token, as --temp 0 does, whatever --top-k, --top-p and --min-p keep
    #[arg(long, conflicts_with = "temp")]
    pub greedy: bool,
}

/// A count, or -1, which means `all`: so do other programs write it.
pub fn or_minus_one(all: usize) -> impl Fn(&str) -> Result<usize, String> + Clone + Send + Sync + 'static {
    move |text| match text {
        "-1" => Ok(all),
        _ => text.parse().map_err(|_| "expected a number from 0 on, or -1".to_owned()),
    }
}

/// A seed, or -1 for one that is drawn.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Seed(Option<u64>);

impl std::str::FromStr for Seed {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "-1" => Ok(Self(None)),
            _ => text.parse().map(|seed| Self(Some(seed))).map_err(|_| "expected a number from 0 on, or -1".to_owned()),
        }
    }
}

/// Where a sampling parameter comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum ParameterSource {
    File,
    Flags,
    Default,
}

impl fmt::Display for ParameterSource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::File => GenerationConfig::FILE,
            Self::Flags => "flags",
            Self::Default => "default",
        })
    }
}

/// The value in force, and where it comes from.
fn stated<T>(flag: Option<T>, file: Option<T>, default: T) -> (T, ParameterSource) {
    match (flag, file) {
        (Some(value), _) => (value, ParameterSource::Flags),
        (None, Some(value)) => (value, ParameterSource::File),
        (None, None) => (default, ParameterSource::Default),
    }
}

impl SamplingArgs {
    /// The flags over the author's defaults, and a line about what is in force. A flag that only matters in a draw asks for draws.
    pub fn config(&self, defaults: &GenerationDefaults) -> (SamplingConfig, String) {
        let single = |x: f64| x as f32;
        let off = SamplingConfig::default();
        let (penalty, penalty_source) =
            stated(self.repeat_penalty, defaults.repetition_penalty.map(single), off.repetition_penalty);
        let asked = [self.temp, self.top_p, self.min_p].iter().any(Option::is_some) || self.top_k.is_some();
        let drawn = defaults.do_sample == Some(true);
        // A temperature of 0 is no draw, so one that is asked for does not take it from the file.
        let written = defaults.temperature.map(single).filter(|&t| drawn && !asked || t > 0.0);
        let (temperature, temperature_source) = stated(self.temp, written, off.temperature);
        let greedy = if self.greedy {
            Some("--greedy")
        } else if self.temp == Some(0.0) {
            Some("--temp 0")
        } else if asked {
            None
        } else {
            match (defaults.do_sample, temperature == 0.0) {
                (Some(true), false) => None,
                (Some(true), true) => Some("temperature 0 in generation_config.json"),
                (Some(false), _) => Some("do_sample is false in generation_config.json"),
                (None, _) => Some("no do_sample is stated"),
            }
        };
        let mut parts = Vec::new();
        if penalty != 1.0 {
            parts.push((format!("repetition penalty {penalty}"), penalty_source));
        }
        let seed = self.seed.0;
        if let Some(why) = greedy {
            let config = SamplingConfig { repetition_penalty: penalty, seed, ..SamplingConfig::greedy() };
            return (
                config,
                ["greedy (".to_owned() + why + ")"].into_iter().chain(grouped(parts)).collect::<Vec<_>>().join(", "),
            );
        }
        parts.insert(0, (format!("temperature {temperature}"), temperature_source));
        let (top_p, source) = stated(self.top_p, defaults.top_p.map(single), off.top_p);
        if top_p != off.top_p {
            parts.push((format!("top-p {top_p}"), source));
        }
        let (top_k, source) = stated(self.top_k, defaults.top_k, GenerationConfig::DEFAULT_TOP_K);
        let shown = if top_k == 0 { "all tokens".to_owned() } else { format!("top-k {top_k}") };
        parts.push((shown, source));
        let (min_p, source) = stated(self.min_p, defaults.min_p.map(single), off.min_p);
        if min_p != off.min_p {
            parts.push((format!("min-p {min_p}"), source));
        }
        let config = SamplingConfig { temperature, top_k, top_p, min_p, repetition_penalty: penalty, seed };
        (config, grouped(parts).join(", "))
    }
}

/// What each source says, with its name.
fn grouped(mut parts: Vec<(String, ParameterSource)>) -> Vec<String> {
    parts.sort_by_key(|&(_, source)| source);
    let groups = parts.chunk_by(|(_, a), (_, b)| a == b);
    let group = |group: &[(String, ParameterSource)]| {
        let words: Vec<&str> = group.iter().map(|(word, _)| word.as_str()).collect();
        let source = group.first().map_or(ParameterSource::Default, |&(_, source)| source);
        format!("{} ({source})", words.join(", "))
    };
    groups.map(group).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn temperature(flags: SamplingArgs, do_sample: Option<bool>, stated: Option<f64>) -> f32 {
        let defaults = GenerationDefaults { do_sample, temperature: stated, ..GenerationDefaults::default() };
        flags.config(&defaults).0.temperature
    }

    #[test]
    fn flags_win_over_the_authors_defaults() {
        let none = SamplingArgs::default;
        assert_eq!(temperature(none(), None, None), 0.0);
        assert_eq!(temperature(none(), None, Some(0.5)), 0.0);
        assert_eq!(temperature(none(), Some(true), None), 1.0);
        assert_eq!(temperature(none(), Some(true), Some(0.5)), 0.5);
        assert_eq!(temperature(none(), Some(false), Some(0.5)), 0.0);
        assert_eq!(temperature(none(), Some(true), Some(0.0)), 0.0);
        assert_eq!(temperature(SamplingArgs { temp: Some(0.25), ..none() }, Some(false), Some(0.5)), 0.25);
        assert_eq!(temperature(SamplingArgs { greedy: true, ..none() }, Some(true), Some(0.5)), 0.0);
        assert_eq!(temperature(SamplingArgs { greedy: true, top_p: Some(0.5), ..none() }, None, None), 0.0);
        assert_eq!(temperature(SamplingArgs { top_k: Some(5), ..none() }, Some(false), Some(0.5)), 0.5);
        assert_eq!(temperature(SamplingArgs { top_k: Some(5), ..none() }, None, Some(0.0)), 1.0);
        // A seed alone does not ask for draws.
        assert_eq!(temperature(SamplingArgs { seed: Seed(Some(3)), ..none() }, None, None), 0.0);

        let defaults = GenerationDefaults { top_k: Some(20), top_p: Some(0.5), ..GenerationDefaults::default() };
        let (config, _) = SamplingArgs { top_p: Some(0.75), ..none() }.config(&defaults);
        assert_eq!((config.top_k, config.top_p, config.min_p), (20, 0.75, 0.0));
        let (config, _) = SamplingArgs { temp: Some(1.0), ..none() }.config(&GenerationDefaults::default());
        assert_eq!((config.top_k, config.top_p), (50, 1.0));
        let (config, _) = SamplingArgs { top_k: Some(0), ..none() }.config(&defaults);
        assert_eq!(config.top_k, 0);
    }

    /// Without flags nothing is other than what the library makes of the file.
    #[test]
    fn without_flags_it_is_what_the_file_says() {
        let files =
            [(None, None), (Some(false), Some(3)), (Some(true), None), (Some(true), Some(0)), (Some(true), Some(7))];
        for (do_sample, top_k) in files {
            for temperature in [None, Some(0.0), Some(0.5)] {
                let repetition_penalty = Some(1.25);
                let defaults = GenerationDefaults {
                    do_sample,
                    top_k,
                    temperature,
                    repetition_penalty,
                    ..GenerationDefaults::default()
                };
                let file = GenerationConfig { defaults, ..GenerationConfig::default() };
                let (mut config, wanted) = (SamplingArgs::default().config(&defaults).0, file.sampling());
                if wanted.is_greedy() {
                    // What is kept of one token does not matter.
                    config.top_k = wanted.top_k;
                }
                assert_eq!(config, wanted, "{file:?}");
            }
        }
    }

    #[test]
    fn the_line_says_what_is_in_force_and_why() {
        let line = |flags: SamplingArgs, file: &GenerationDefaults| flags.config(file).1;
        let (none, nothing) = (SamplingArgs::default, GenerationDefaults::default());
        assert_eq!(line(none(), &nothing), "greedy (no do_sample is stated)");
        let drawn = GenerationDefaults { do_sample: Some(true), temperature: Some(0.5), top_p: Some(0.75), ..nothing };
        assert_eq!(line(none(), &drawn), "temperature 0.5, top-p 0.75 (generation_config.json), top-k 50 (default)");
        assert_eq!(
            line(SamplingArgs { top_k: Some(0), ..none() }, &drawn),
            "temperature 0.5, top-p 0.75 (generation_config.json), all tokens (flags)"
        );
        let penalised = GenerationDefaults { repetition_penalty: Some(1.25), ..nothing };
        assert_eq!(
            line(SamplingArgs { greedy: true, ..none() }, &penalised),
            "greedy (--greedy), repetition penalty 1.25 (generation_config.json)"
        );
    }

    #[test]
    fn a_seed_is_a_number_or_minus_one() {
        assert_eq!("-1".parse(), Ok(Seed(None)));
        assert_eq!("18446744073709551615".parse(), Ok(Seed(Some(u64::MAX))));
        for text in ["-2", "1.5", "", "x", "18446744073709551616"] {
            assert!(text.parse::<Seed>().is_err(), "{text}");
        }
    }
}
