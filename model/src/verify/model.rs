//! The tensors against the config: which parameter each is, and whether it has the shape that the model needs.

use std::collections::BTreeSet;

use super::Verification;
use super::finding::{Check, Finding};
use crate::checkpoint::BNB_SIDES;
use crate::checkpoint::names::list;
use crate::checkpoint::{Checkpoint, MismatchedTensor, MissingTensor, TensorDifferences};
use crate::config::{GenerationConfig, ModelConfig};
use crate::error::Error;
use crate::loader::{self, WeightOptions};
use crate::pretrained::Pretrained;

/// Most tensors that are reported one by one.
const MOST: usize = 20;
const OTHER: &str = "config and weights are of two models, or a file was cut short: take both from one place";

/// The model, of the tensors that can be used; none where they are those of no model.
pub(super) fn check(
    checkpoint: &Checkpoint,
    config: ModelConfig,
    generation: GenerationConfig,
    out: &mut Verification,
) -> Option<Pretrained> {
    if checkpoint.names().len() == 0 {
        return None;
    }
    let (mut checkpoint, mut config, mut broken) = (checkpoint.clone(), config, Vec::new());
    let stated = config.notes.clone();
    let model = loop {
        let error = match Pretrained::from_parts(&checkpoint, config.clone(), generation.clone()) {
            Ok(model) => break Some(model),
            Err(error) => error,
        };
        match &error {
            Error::Differences(differences) => differences_of(differences, &broken, out),
            // What a config states beside the tensors.
            stated @ (Error::Config { .. } | Error::Option { .. }) => {
                let finding = Finding::of(Check::Config, stated, checkpoint.dir().path());
                out.push(finding.advice("the tensors decide what a file of the model may state about them"));
            }
            other => {
                let finding = Finding::of(Check::Tensors, other, checkpoint.dir().path());
                out.push(finding.advice("download the weights again"));
            }
        }
        // The tensors of this parameter are left out, and the others looked at.
        let Some(base) = parameter(&error) else { break None };
        let names: BTreeSet<String> = checkpoint
            .names()
            .filter(|name| *name == base || name.starts_with(&format!("{base}.")))
            .map(str::to_owned)
            .collect();
        let listed = config.nanollm_modules.remove(&base).is_some();
        if (names.is_empty() && !listed) || broken.len() == MOST {
            break None;
        }
        checkpoint = checkpoint.without(&names);
        broken.push(base);
    };
    let Some(model) = model else {
        let finding =
            Finding::note(Check::Tensors, "were not compared with the config: it is unclear which parameters they are");
        out.push(finding);
        return None;
    };
    let said = |note: &String| stated.iter().any(|known| known == note);
    for note in model.notes().iter().filter(|note| !said(note)) {
        out.push(Finding::warning(Check::Tensors, note).advice("is a file missing? compare with the repository"));
    }
    if let Err(error) = loader::plan(model.architecture(), model.weights(), WeightOptions::default()) {
        match error {
            Error::Differences(differences) => differences_of(&differences, &broken, out),
            other => out.push(Finding::of(Check::Tensors, &other, checkpoint.dir().path()).advice(OTHER)),
        }
    }
    Some(model)
}

/// The name that all tensors of a broken parameter begin with.
fn parameter(error: &Error) -> Option<String> {
    // Of integer rows, of int8, and of what goes with them.
    const OTHERS: [&str; 12] = [
        "q",
        "scale",
        "scales",
        "prot_q",
        "prot_scale",
        "prot_idx",
        "deg_q",
        "deg_q_packed",
        "deg_scale",
        "deg_idx",
        "SCB",
        "bias",
    ];
    let name = match error {
        Error::Tensor(error) => error.tensor.as_deref()?,
        Error::Differences(differences) => differences.missing.first()?.tensor.as_str(),
        _ => return None,
    };
    let side = BNB_SIDES.iter().chain(&OTHERS).find_map(|side| name.strip_suffix(side)?.strip_suffix('.'));
    Some(side.unwrap_or(name).to_owned())
}

fn differences_of(differences: &TensorDifferences, broken: &[String], out: &mut Verification) {
    // Of a parameter that was left out above, the rest says no more.
    let known = |name: &str| {
        let below = |base: &String| name.strip_prefix(base.strip_suffix(".weight").unwrap_or(base));
        broken.iter().filter_map(below).any(|rest| rest.is_empty() || rest.starts_with('.'))
    };
    let missing: Vec<&MissingTensor> = differences.missing.iter().filter(|missing| !known(&missing.tensor)).collect();
    for MissingTensor { tensor, expected } in missing.iter().take(MOST) {
        let finding = Finding::error(Check::Tensors, "is missing").place(tensor);
        let expected = expected.as_ref().map_or_else(String::new, |shape| format!("{shape:?}"));
        out.push(finding.expected(expected).advice(OTHER));
    }
    for MismatchedTensor { tensor, expected, found, .. } in differences.mismatched.iter().take(MOST) {
        let finding = Finding::error(Check::Tensors, format!("{found:?}")).place(tensor);
        out.push(finding.expected(format!("{expected:?}")).advice(OTHER));
    }
    for (what, more) in [("missing", missing.len()), ("of another shape", differences.mismatched.len())] {
        if let Some(more) = more.checked_sub(MOST).filter(|&more| more > 0) {
            out.push(Finding::error(Check::Tensors, format!("{more} more tensors are {what}")).advice(OTHER));
        }
    }
    if !differences.unused.is_empty() {
        let (count, names) = (differences.unused.len(), list(&differences.unused));
        let found = format!("{count} tensors are none of this model: {names}");
        out.push(Finding::error(Check::Tensors, found).advice(OTHER));
    }
}
