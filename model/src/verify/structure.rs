//! Files of weights: headers and ranges of each, and the index against them.

use std::collections::{BTreeMap, BTreeSet};

use super::Verification;
use super::finding::{Check, Finding};
use crate::checkpoint::names::list;
use crate::checkpoint::survey::{Survey, SurveyedFile, SurveyedIndex, survey};
use crate::checkpoint::{FlawKind, ModelDir};

const INDEX: &str = "model.safetensors.index.json";
const AGAIN: &str = "download this file again";

pub(super) fn check(dir: &ModelDir, out: &mut Verification) -> Survey {
    let survey = survey(dir);
    for error in &survey.failures {
        let check = if dir.contains(INDEX) { Check::Index } else { Check::File };
        out.push(Finding::of(check, error, dir.path()).advice("download what is missing again"));
    }
    for file in &survey.files {
        check_file(file, dir, out);
    }
    if dir.contains("model.safetensors") && dir.contains(INDEX) {
        let finding = Finding::note(Check::Index, "is not in use: model.safetensors beside it holds the weights");
        out.push(finding.file(INDEX));
    }
    if let Some(index) = &survey.index {
        check_index(&survey, index, out);
    }
    out.looked_at.files = survey.files.len();
    survey
}

fn check_file(file: &SurveyedFile, dir: &ModelDir, out: &mut Verification) {
    if let Some(error) = &file.failure {
        let finding = Finding::of(Check::Container, error, dir.path()).file(&file.name);
        out.push(if finding.advice.is_empty() { finding.advice(AGAIN) } else { finding });
    }
    // Of one kind that many tensors have, as the ranges of a file that is cut off, the first is shown.
    for kind in [FlawKind::Header, FlawKind::Range, FlawKind::Type, FlawKind::Size, FlawKind::Place, FlawKind::Trailing]
    {
        let flaws: Vec<_> = file.flaws.iter().filter(|flaw| flaw.kind == kind).collect();
        let Some(first) = flaws.first() else { continue };
        let found = match flaws.len() - 1 {
            0 => first.error.message.clone(),
            1 => format!("{}; and another tensor of the same kind", first.error.message),
            more => format!("{}; and {more} more tensors of the same kind", first.error.message),
        };
        let expected = match kind {
            FlawKind::Header if file.name.ends_with(".bpk") => {
                "10 bytes of magic, version and length, and a map of that length"
            }
            FlawKind::Header => "8 bytes of a length and a header of that length",
            FlawKind::Range => "ranges inside the file",
            FlawKind::Type if file.name.ends_with(".bpk") => "plain numbers of a type and a shape that are read",
            FlawKind::Type => "a type and a shape of safetensors",
            FlawKind::Size => "a range as long as type and shape say",
            FlawKind::Place => "ranges that follow each other",
            FlawKind::Trailing => "an end where the last tensor ends",
        };
        let finding = Finding::error(Check::Container, found).file(&file.name).expected(expected).advice(AGAIN);
        out.push(match &first.error.tensor {
            Some(tensor) => finding.place(tensor),
            None => finding,
        });
    }
}

fn check_index(survey: &Survey, index: &SurveyedIndex, out: &mut Verification) {
    let mut holders: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
    for file in &survey.files {
        for tensor in &file.tensors {
            holders.entry(tensor).or_default().push(&file.name);
        }
    }
    // What a damaged file lacks is reported with that file.
    let is_damaged = |file: &&SurveyedFile| file.failure.is_some() || !file.flaws.is_empty();
    let damaged: BTreeSet<&str> = survey.files.iter().filter(is_damaged).map(|file| file.name.as_str()).collect();
    let (mut absent, mut elsewhere) = (Vec::new(), Vec::new());
    for (tensor, file) in &index.weight_map {
        match holders.get(tensor.as_str()) {
            None if damaged.contains(file.as_str()) => {}
            None => absent.push(tensor),
            Some(files) if !files.contains(&file.as_str()) => elsewhere.push(tensor),
            Some(_) => {}
        }
    }
    let unlisted: Vec<&&str> = holders.keys().filter(|tensor| !index.weight_map.contains_key(**tensor)).collect();
    let twice: Vec<&&str> = holders.iter().filter(|(_, files)| files.len() > 1).map(|(tensor, _)| tensor).collect();
    let mut report = |count: usize, finding: Finding| {
        if count > 0 {
            out.push(finding.file(INDEX));
        }
    };
    let found = format!("{} tensors are in none of the files: {}", absent.len(), list(&absent));
    let finding = Finding::error(Check::Index, found).expected("every tensor of the index in its file");
    report(absent.len(), finding.advice("the index belongs to other files: download all of them again"));
    let found = format!("{} tensors are in another file than the index says: {}", elsewhere.len(), list(&elsewhere));
    let finding = Finding::error(Check::Index, found).expected("every tensor of the index in its file");
    report(elsewhere.len(), finding.advice("transformers would not find them: download index and files again"));
    let found = format!("{} tensors of the files are not in the index: {}", unlisted.len(), list(&unlisted));
    let finding = Finding::error(Check::Index, found).expected("every tensor of the files in the index");
    report(unlisted.len(), finding.advice("transformers would not load them: download index and files again"));
    let found = format!("{} tensors are in several files: {}", twice.len(), list(&twice));
    let finding = Finding::error(Check::Index, found).expected("every tensor in one file");
    report(twice.len(), finding.advice("files of two versions are mixed: download all of them again"));

    let bytes = survey.checkpoint.total_bytes() as u64;
    match index.total_size {
        Some(total) if damaged.is_empty() && total != bytes => {
            // Older writers counted tied tensors twice.
            let finding = Finding::warning(Check::Index, format!("the tensors of the files have {bytes} bytes"));
            let finding = finding.file(INDEX).place("metadata.total_size").expected(format!("{total} bytes"));
            out.push(finding.advice("index and files are of two versions: download all of them again"));
        }
        _ => {}
    }
}
