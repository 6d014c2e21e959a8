//! Which matrix gets which format.

use std::str::FromStr;

use anyhow::{Result, ensure};
use clap::ValueEnum;
use emberlm::model::export::MatrixFormat;
use emberlm::model::{PlannedTensor, QuantizeOnLoad, TensorRole};

use super::pattern::Pattern;

/// Formats of a matrix.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Format {
    /// As it is stored
    None,
    /// 4-bit NormalFloat in blocks of 64, 4.5 bits per weight; bitsandbytes' layout
    Nf4,
    /// NF4 with quantised block scales, 4.13 bits per weight; bitsandbytes' layout
    Nf4Dq,
    /// 8 bits in blocks of 64, 8.25 bits per weight; the layout of compressed-tensors' int-quantized
    Int8,
    /// 8 bits with one scale per row, 8 bits per weight; Nano compact's layout
    Int8Rows,
}

impl From<Format> for MatrixFormat {
    fn from(format: Format) -> Self {
        match format {
            Format::None => Self::AsStored,
            Format::Nf4 => Self::Quantized(QuantizeOnLoad::Nf4),
            Format::Nf4Dq => Self::Quantized(QuantizeOnLoad::Nf4Double),
            Format::Int8 => Self::Quantized(QuantizeOnLoad::Int8),
            Format::Int8Rows => Self::Quantized(QuantizeOnLoad::Int8Rows),
        }
    }
}

/// `PATTERN=FORMAT`.
#[derive(Clone, Debug)]
pub struct Rule {
    pattern: Pattern,
    format: Format,
}

impl FromStr for Rule {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (pattern, format) = text.split_once('=').ok_or("expected PATTERN=FORMAT, such as mlp.down_proj=int8")?;
        let format = Format::from_str(format.trim(), true).map_err(|_| {
            let names: Vec<String> = Format::value_variants()
                .iter()
                .filter_map(|f| Some(f.to_possible_value()?.get_name().to_owned()))
                .collect();
            format!("{format:?} is no format, expected one of {}", names.join(", "))
        })?;
        Ok(Self { pattern: pattern.trim().parse()?, format })
    }
}

/// All flags about formats.
#[derive(Clone, Debug)]
pub struct Rules {
    /// Of the linears of the layers.
    pub layers: Format,
    /// Of embedding and head.
    pub head: Format,
    /// If there are any: only these.
    pub only: Vec<Pattern>,
    /// Never these.
    pub skip: Vec<Pattern>,
    /// These in other formats; the last one that matches counts.
    pub rules: Vec<Rule>,
}

impl Rules {
    /// The format of a matrix.
    pub fn of(&self, tensor: &PlannedTensor) -> Format {
        let matched = |pattern: &Pattern| pattern.matches(&tensor.name);
        if !may_be_quantised(tensor.role) {
            return Format::None;
        }
        if let Some(rule) = self.rules.iter().rev().find(|rule| matched(&rule.pattern)) {
            return rule.format;
        }
        let left_out = (!self.only.is_empty() && !self.only.iter().any(matched)) || self.skip.iter().any(matched);
        match tensor.role {
            _ if left_out => Format::None,
            TensorRole::Projection => self.layers,
            _ => self.head,
        }
    }

    /// Whether a format that is chosen by other means is for this matrix: no rule names it, it is not left out, and if it is embedding or
    /// head, rows of 8 bits were asked for.
    pub fn takes(&self, tensor: &PlannedTensor) -> bool {
        let matched = |pattern: &Pattern| pattern.matches(&tensor.name);
        let named = self.rules.iter().any(|rule| matched(&rule.pattern));
        let left_out = (!self.only.is_empty() && !self.only.iter().any(matched)) || self.skip.iter().any(matched);
        let head = tensor.role == TensorRole::Projection || self.head == Format::Int8Rows;
        may_be_quantised(tensor.role) && !named && !left_out && head
    }

    /// Refuses patterns that mean no matrix of the model: they are typing mistakes.
    pub fn check(&self, tensors: &[PlannedTensor]) -> Result<()> {
        let rules = self.rules.iter().map(|rule| ("--rule", &rule.pattern));
        let only = self.only.iter().map(|pattern| ("--only", pattern));
        let skip = self.skip.iter().map(|pattern| ("--skip", pattern));
        for (flag, pattern) in rules.chain(only).chain(skip) {
            let found = tensors.iter().any(|tensor| may_be_quantised(tensor.role) && pattern.matches(&tensor.name));
            let example = tensors.iter().find(|tensor| tensor.role == TensorRole::Projection);
            ensure!(
                found,
                "{flag} {pattern} matches no matrix that can be quantised; names are as {}",
                example.map_or("", |tensor| tensor.name.as_str())
            );
        }
        Ok(())
    }
}

/// Halting gates and compressors of caches never are: they are small, and decide much.
fn may_be_quantised(role: TensorRole) -> bool {
    matches!(role, TensorRole::Projection | TensorRole::Embedding | TensorRole::Head)
}
