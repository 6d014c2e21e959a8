//! How tokens are chosen: the model's own defaults, changed by flags.

use clap::Args;
use emberlm::model::config::GenerationConfig;
use emberlm::model::sampling::SamplingConfig;

/// Flags of sampling. What is absent comes from generation_config.json.
#[derive(Debug, Default, Args)]
#[command(next_help_heading = "Sampling (default: as generation_config.json says)")]
pub struct SamplingArgs {
    /// Temperature; 0 takes the most likely token
    #[arg(long, visible_alias = "temperature", value_name = "T", allow_negative_numbers = true)]
    temp: Option<f32>,

    /// Keep the K most likely tokens; 0 or -1 keeps all
    #[arg(long, value_name = "K", value_parser = or_minus_one(0), allow_negative_numbers = true)]
    top_k: Option<usize>,

    /// Keep the most likely tokens that hold this share of the probability, above 0, at most 1
    #[arg(long, value_name = "P", allow_negative_numbers = true)]
    top_p: Option<f32>,

    /// Keep tokens with this share of the probability of the best, from 0 to below 1
    #[arg(long, value_name = "P", allow_negative_numbers = true)]
    min_p: Option<f32>,

    /// Above 1 discourages tokens of prompt and output
    #[arg(long, value_name = "R", allow_negative_numbers = true)]
    repeat_penalty: Option<f32>,

    /// Seed; the same seed gives the same text
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64), allow_negative_numbers = true)]
    seed: Option<u64>,

    /// Take the most likely token
    #[arg(long, conflicts_with_all = ["temp", "top_k", "top_p", "min_p"])]
    greedy: bool,
}

/// A count, or -1, which means `all`: so do other programs write it.
pub fn or_minus_one(all: usize) -> impl Fn(&str) -> Result<usize, String> + Clone + Send + Sync + 'static {
    move |text| match text {
        "-1" => Ok(all),
        _ => text.parse().map_err(|_| "expected a number from 0 on, or -1".to_owned()),
    }
}

impl SamplingArgs {
    /// The flags over the author's defaults. A flag that only matters in a draw asks for draws.
    pub fn config(&self, defaults: &GenerationConfig) -> SamplingConfig {
        let draw = self.top_k.is_some() || self.top_p.is_some() || self.min_p.is_some();
        let stated = defaults.temperature.map(|t| t as f32);
        let temperature = match self.temp {
            _ if self.greedy => 0.0,
            Some(temperature) => temperature,
            None if draw => stated.filter(|&t| t > 0.0).unwrap_or(1.0),
            None if defaults.do_sample == Some(false) => 0.0,
            None => stated.unwrap_or(1.0),
        };
        let off = SamplingConfig::default();
        let or = |flag: Option<f32>, stated: Option<f64>, off: f32| flag.or(stated.map(|x| x as f32)).unwrap_or(off);
        SamplingConfig {
            temperature,
            top_k: self.top_k.or(defaults.top_k).unwrap_or(off.top_k),
            top_p: or(self.top_p, defaults.top_p, off.top_p),
            min_p: or(self.min_p, defaults.min_p, off.min_p),
            repetition_penalty: or(self.repeat_penalty, defaults.repetition_penalty, off.repetition_penalty),
            seed: self.seed,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn temperature(flags: SamplingArgs, do_sample: Option<bool>, stated: Option<f64>) -> f32 {
        let defaults = GenerationConfig { do_sample, temperature: stated, ..GenerationConfig::default() };
        flags.config(&defaults).temperature
    }

    #[test]
    fn flags_win_over_the_authors_defaults() {
        let none = SamplingArgs::default;
        assert_eq!(temperature(none(), None, None), 1.0);
        assert_eq!(temperature(none(), Some(true), Some(0.5)), 0.5);
        assert_eq!(temperature(none(), Some(false), Some(0.5)), 0.0);
        assert_eq!(temperature(none(), Some(true), Some(0.0)), 0.0);
        assert_eq!(temperature(SamplingArgs { temp: Some(0.25), ..none() }, Some(false), Some(0.5)), 0.25);
        assert_eq!(temperature(SamplingArgs { greedy: true, ..none() }, Some(true), Some(0.5)), 0.0);
        assert_eq!(temperature(SamplingArgs { top_k: Some(5), ..none() }, Some(false), Some(0.5)), 0.5);
        assert_eq!(temperature(SamplingArgs { top_k: Some(5), ..none() }, None, Some(0.0)), 1.0);

        let defaults = GenerationConfig { top_k: Some(20), top_p: Some(0.5), ..GenerationConfig::default() };
        let config = SamplingArgs { top_p: Some(0.75), ..none() }.config(&defaults);
        assert_eq!((config.top_k, config.top_p, config.min_p), (20, 0.75, 0.0));
    }
}
