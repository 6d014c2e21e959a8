//! What `/set` and `/think` change.

use std::str::FromStr;

use anyhow::{Result, anyhow, bail, ensure};
use emberlm::model::DepthOptions;
use emberlm::model::config::GenerationConfig;
use emberlm::model::sampling::SamplingConfig;
use emberlm::model::text::ChatOptions;

use crate::cli::args::{by_flag, by_flag_of};
use crate::cli::sampling::{SamplingArgs, or_minus_one};

/// Options of the library and the settings that change them.
const OPTIONS: &[(&str, &str)] =
    &[("temperature", "temp"), ("top_p", "top-p"), ("min_p", "min-p"), ("repetition_penalty", "repeat-penalty")];

/// The value that takes a setting back.
const DEFAULT: &str = "default";

/// Tokens of an answer at most where neither a flag nor generation_config.json gives a number. Ctrl-C ends an answer sooner.
pub const MAX_TOKENS: usize = 2048;

/// How answers are generated.
#[derive(Clone, Debug)]
pub struct Settings {
    sampling: SamplingArgs,
    max_tokens: Option<usize>,
    /// Beside what was asked for when the model was loaded.
    pub depth: DepthOptions,
    /// What the chat template is told.
    pub template: ChatOptions,
    file: GenerationConfig,
    /// The steps that the model was loaded with; none without adaptive depth.
    steps: Option<usize>,
}

impl Settings {
    /// As flags and the model's files have it.
    ///
    /// # Errors
    /// When a flag is out of range.
    pub fn new(
        sampling: SamplingArgs,
        max_tokens: Option<usize>,
        template: ChatOptions,
        file: &GenerationConfig,
        steps: Option<usize>,
    ) -> Result<Self> {
        let (depth, file) = (DepthOptions::default(), file.clone());
        let settings = Self { sampling, max_tokens, depth, template, file, steps };
        settings.sampling().validate().map_err(by_flag)?;
        Ok(settings)
    }

    /// How tokens are chosen.
    pub fn sampling(&self) -> SamplingConfig {
        self.sampling.config(&self.file.defaults).0
    }

    /// Tokens of an answer at most.
    pub fn max_tokens(&self) -> usize {
        self.max_tokens.or(self.file.defaults.max_new_tokens).unwrap_or(MAX_TOKENS)
    }

    /// In one line, how tokens are chosen.
    pub fn sampling_line(&self) -> String {
        let rules = self.file.processors.names();
        let rules =
            if rules.is_empty() { String::new() } else { format!("; {} (generation_config.json)", rules.join(", ")) };
        format!("sampling: {}{rules}", self.sampling.config(&self.file.defaults).1)
    }

    /// In one line, everything that can be set.
    pub fn line(&self) -> String {
        let sampling = self.sampling();
        let seed = match sampling.seed {
            _ if sampling.is_greedy() => String::new(),
            Some(seed) => format!("; seed {seed}"),
            None => "; seed drawn".to_owned(),
        };
        let max = match self.max_tokens() {
            usize::MAX => "as many as the context holds".to_owned(),
            max => max.to_string(),
        };
        let mut line = format!("{}{seed}; max-tokens {max}", self.sampling_line());
        if let Some(loaded) = self.steps {
            let threshold = self.depth.threshold.map_or_else(|| "of the model".to_owned(), |t| t.to_string());
            line += &format!("; threshold {threshold}; steps {}", self.depth.steps.unwrap_or(loaded));
        }
        line
    }

    /// Whether a message is answered alike under both, but for draws.
    pub fn answers_as(&self, other: &Self) -> bool {
        self.line() == other.line() && self.template.variables == other.template.variables
    }

    /// Changes one.
    ///
    /// # Errors
    /// When there is no such setting or the value is out of range; then nothing changes.
    pub fn set(&mut self, name: &str, value: &str) -> Result<()> {
        let mut new = self.clone();
        let sampling = &mut new.sampling;
        match name {
            "temp" | "temperature" => sampling.temp = number(name, value)?,
            "top-p" => sampling.top_p = number(name, value)?,
            "min-p" => sampling.min_p = number(name, value)?,
            "repeat-penalty" => sampling.repeat_penalty = number(name, value)?,
            "top-k" => sampling.top_k = count(name, value, 0)?,
            "seed" => sampling.seed = parsed(name, value)?.unwrap_or_default(),
            "max-tokens" => {
                new.max_tokens = count(name, value, usize::MAX)?;
                ensure!(
                    new.max_tokens != Some(0),
                    "max-tokens is 0, which leaves no answer: expected 1 or more, or -1"
                );
            }
            "threshold" | "steps" => new.set_depth(name, value)?,
            _ => bail!(
                "there is no setting {name:?}; there are temp, top-p, top-k, min-p, seed, max-tokens, repeat-penalty, threshold \
                 and steps"
            ),
        }
        // As on the command line, each of these asks for draws.
        if matches!(name, "temp" | "temperature" | "top-p" | "top-k" | "min-p") {
            new.sampling.greedy = false;
        }
        new.sampling().validate().map_err(|error| by_flag_of(OPTIONS, error))?;
        *self = new;
        Ok(())
    }

    fn set_depth(&mut self, name: &str, value: &str) -> Result<()> {
        let Some(loaded) = self.steps else { bail!("{name} is for models with adaptive depth, which this is not") };
        if name == "threshold" {
            let threshold: Option<f32> = number(name, value)?;
            let in_range = threshold.is_none_or(|threshold| (0.0..=1.0).contains(&threshold));
            ensure!(in_range, "threshold is {value}, expected a number from 0 to 1");
            self.depth.threshold = threshold;
        } else {
            let steps = parsed::<usize>(name, value)
                .map_err(|_| anyhow!("steps cannot be {value:?}: expected 1 to {loaded}, or default"))?;
            let in_range = steps.is_none_or(|steps| (1..=loaded).contains(&steps));
            ensure!(in_range, "steps is {value}, expected 1 to {loaded}, the steps that the model was loaded with");
            self.depth.steps = steps;
        }
        Ok(())
    }
}

fn parsed<T: FromStr<Err: std::fmt::Display>>(name: &str, value: &str) -> Result<Option<T>> {
    if value == DEFAULT {
        return Ok(None);
    }
    value.parse().map(Some).map_err(|error| anyhow!("{name} cannot be {value:?}: {error}"))
}

fn number<T: FromStr>(name: &str, value: &str) -> Result<Option<T>> {
    if value == DEFAULT {
        return Ok(None);
    }
    value.parse().map(Some).map_err(|_| anyhow!("{name} cannot be {value:?}: expected a number, or default"))
}

fn count(name: &str, value: &str, all: usize) -> Result<Option<usize>> {
    if value == DEFAULT {
        return Ok(None);
    }
    or_minus_one(all)(value).map(Some).map_err(|error| anyhow!("{name} cannot be {value:?}: {error}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn settings(sampling: SamplingArgs, steps: Option<usize>) -> Settings {
        Settings::new(sampling, None, ChatOptions::prompt(), &GenerationConfig::default(), steps).unwrap()
    }

    #[test]
    fn settings_change_and_go_back() {
        let mut settings = settings(SamplingArgs { greedy: true, ..SamplingArgs::default() }, Some(4));
        assert!(settings.sampling().is_greedy() && !settings.line().contains("seed"), "{}", settings.line());
        for (name, value) in
            [("temp", "0.5"), ("seed", "7"), ("top-k", "-1"), ("max-tokens", "9"), ("threshold", "0.25")]
        {
            settings.set(name, value).unwrap();
        }
        assert!(settings.line().contains("; seed 7;"), "{}", settings.line());
        let sampling = settings.sampling();
        assert_eq!((sampling.temperature, sampling.seed, sampling.top_k), (0.5, Some(7), 0));
        assert_eq!((settings.max_tokens(), settings.depth.threshold), (9, Some(0.25)));
        assert!(settings.line().contains("temperature 0.5, all tokens (flags)"), "{}", settings.line());
        for name in ["temp", "seed", "top-k", "max-tokens", "threshold"] {
            settings.set(name, "default").unwrap();
        }
        assert!(settings.sampling().is_greedy());
        assert_eq!((settings.max_tokens(), settings.depth), (MAX_TOKENS, DepthOptions::default()));
    }

    #[test]
    fn what_cannot_be_set_changes_nothing() {
        let mut with_depth = settings(SamplingArgs::default(), Some(4));
        let before = with_depth.line();
        for (name, value, part) in [
            ("temp", "-1", "temp -1 is not allowed"),
            ("temp", "hot", "temp cannot be \"hot\": expected a number"),
            ("steps", "deep", "steps cannot be \"deep\": expected 1 to 4"),
            ("top-p", "2", "top-p 2 is not allowed"),
            ("seed", "-2", "-1"),
            ("steps", "5", "expected 1 to 4"),
            ("threshold", "NaN", "from 0 to 1"),
            ("max-tokens", "0", "expected 1 or more"),
            ("colour", "1", "there is no setting \"colour\""),
        ] {
            let error = with_depth.set(name, value).unwrap_err().to_string();
            assert!(error.contains(part), "{name} {value}: {error}");
            assert_eq!(with_depth.line(), before);
        }
        let error = settings(SamplingArgs::default(), None).set("steps", "1").unwrap_err().to_string();
        assert!(error.contains("adaptive depth"), "{error}");
    }
}
