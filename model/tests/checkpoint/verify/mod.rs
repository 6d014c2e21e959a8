//! `verify`: damage of every kind is planted in good checkpoints, and must be found; good checkpoints must have none.

mod damage;

use std::fs;
use std::path::Path;

use crate::support::{Copy, Tensor, fixture};
use damage::{Case, NORM, book_codes, change_shard, git, halves, numbers, rows, sha256, table, write};
use emberlm_model::checkpoint::OpenOptions;
use emberlm_model::export::{ExportOptions, MatrixFormat};
use emberlm_model::verify::{Check, Finding, Severity, Verification, VerifyOptions, verify};
use emberlm_model::{PlannedTensor, Pretrained, QuantizeOnLoad, TensorRole};
use emberlm_quant::host::FloatType;
use half::{bf16, f16};
use serde_json::json;

const FIXTURES: [&str; 7] =
    ["crest_k2", "crest_k4", "crest_k4_nf4", "leanllama", "leanllama_kv", "leanllama_nf4", "nano_compact"];

fn look(path: &Path) -> Verification {
    verify(path, OpenOptions::default(), VerifyOptions::default(), &|_| ()).expect("a directory")
}

fn listed(findings: &[Finding]) -> String {
    let line = |f: &Finding| {
        let (severity, check) = (f.severity.as_str(), f.check.as_str());
        format!("{severity} {check} {:?} {:?}: {} (expected {})", f.file, f.place, f.found, f.expected)
    };
    findings.iter().map(line).collect::<Vec<_>>().join("\n")
}

fn found(verified: &Verification, (severity, check, place, text): (Severity, Check, &str, &str)) -> bool {
    verified.findings.iter().any(|finding| {
        let places = finding.file.iter().chain(&finding.place).any(|at| at.contains(place));
        let here = places || place.is_empty();
        finding.severity == severity && finding.check == check && here && finding.found.contains(text)
    })
}

/// Every kind of damage is found, said at its place, and with something to do.
#[test]
fn every_planted_damage_is_found() {
    let table = table();
    assert!(table.len() >= 30, "{} kinds", table.len());
    let mut missed = Vec::new();
    for Case { name, fixture, damage, told } in &table {
        let copy = Copy::whole(fixture);
        damage(&copy);
        let verified = look(copy.path());
        if !found(&verified, *told) {
            missed.push(format!("{name}: expected {told:?}, found\n{}\n", listed(&verified.findings)));
        }
        for finding in verified.findings.iter().filter(|finding| finding.severity > Severity::Note) {
            assert!(!finding.advice.is_empty(), "{name}: nothing to do about {}", finding.found);
        }
    }
    assert!(missed.is_empty(), "{} of {} missed\n{}", missed.len(), table.len(), missed.join("\n"));
}

/// No finding ends the search: damage of several kinds in one checkpoint is all found.
#[test]
fn all_of_several_damages_are_found() {
    type Part = fn() -> Vec<Case>;
    for (fixture, parts) in [
        ("leanllama", &[numbers as Part][..]),
        ("crest_k4_nf4", &[book_codes as Part]),
        ("nano_compact", &[rows as Part]),
    ] {
        // Of those that would hide each other, the first.
        let hidden = [
            "tensor of zeros",
            "hole of zeros",
            "row of one value",
            "number that stands out",
            "scale applied twice",
            "norm below 0",
            "norm far off",
            "layer copied over another",
            "matrix copied over another",
            "NaN scale",
            "negative scale",
            "scales lost",
            "scale missing",
            "quant state missing",
            "quant state of another shape",
            "codes of a block changed",
            "NaN scale of a row",
            "row number beyond the rows",
            "negative scale of a row",
            "2-bit code beyond the range",
            "spec with another number of bits",
            "spec whose rows do not add up",
            "scales of a module missing",
            "codes of a row changed",
            "hole in codes of 8 bits",
        ];
        let cases: Vec<Case> = parts.iter().flat_map(|part| part()).collect();
        let cases: Vec<&Case> =
            cases.iter().filter(|case| case.fixture == fixture && !hidden.contains(&case.name)).collect();
        assert!(cases.len() >= 2, "{fixture}");
        let copy = Copy::whole(fixture);
        cases.iter().for_each(|case| (case.damage)(&copy));
        write(&copy, "generation_config.json", b"{\"temperature\": \"hot\", \"top_p\": 7}");
        copy.change_config(|config| config["attention_sinks"] = json!(4));
        let verified = look(copy.path());
        for case in cases {
            assert!(found(&verified, case.told), "{fixture}: {}\n{}", case.name, listed(&verified.findings));
        }
        for told in [
            (Severity::Error, Check::Generation, "", "temperature"),
            (Severity::Error, Check::Generation, "", "top_p"),
            (Severity::Warning, Check::Key, "attention_sinks", ""),
        ] {
            assert!(found(&verified, told), "{fixture}: {told:?}\n{}", listed(&verified.findings));
        }
    }
}

/// Writes a fixture in another format.
fn export(name: &str, dense: Option<FloatType>, to: &Path, format: impl Fn(&PlannedTensor) -> MatrixFormat) {
    let source = Pretrained::open(fixture(name)).expect("a model");
    let plan = source.export(&ExportOptions { dense, ..ExportOptions::default() }, format).expect("a plan");
    plan.write(to, &mut |_| ()).expect("written");
}

/// What this crate writes is as good as what it was made of, in every format.
#[test]
fn what_is_exported_has_no_findings() {
    use QuantizeOnLoad::{Int8, Int8Rows, Nf4, Nf4Double};
    let to = tempfile::tempdir().expect("tempdir");
    let good = |path: &Path| {
        let verified = look(path);
        assert!(verified.worst() <= Some(Severity::Note), "{}\n{}", path.display(), listed(&verified.findings));
    };
    for name in FIXTURES {
        for format in [Nf4, Nf4Double, Int8, Int8Rows] {
            for head in [false, true] {
                let folder = to.path().join(format!("{name}-{format:?}-{head}"));
                export(name, None, &folder, |tensor| match tensor.role {
                    TensorRole::Embedding | TensorRole::Head if !head => MatrixFormat::AsStored,
                    _ => MatrixFormat::Quantized(format),
                });
                good(&folder);
            }
        }
        for float in [FloatType::F32, FloatType::Bf16] {
            let folder = to.path().join(format!("{name}-{float:?}"));
            export(name, Some(float), &folder, |_| MatrixFormat::Dense(float));
            good(&folder);
        }
        let folder = to.path().join(format!("{name}-mixed"));
        export(name, None, &folder, |tensor| match tensor.role {
            TensorRole::Projection if tensor.name.contains("up_proj") => MatrixFormat::MixedRows { bits: 2, keep: 16 },
            TensorRole::Projection if tensor.name.contains("down_proj") => MatrixFormat::MixedRows { bits: 4, keep: 8 },
            _ => MatrixFormat::AsStored,
        });
        good(&folder);
    }
}

/// Codes of int8 with a scale per group, which no fixture has: a hole is found, but not where tokens may have no rows.
#[test]
fn holes_in_int8_are_found() {
    let to = tempfile::tempdir().expect("tempdir");
    let folder = to.path().join("int8");
    export("leanllama", None, &folder, |tensor| match tensor.role {
        TensorRole::Projection | TensorRole::Embedding => MatrixFormat::Quantized(QuantizeOnLoad::Int8),
        _ => MatrixFormat::AsStored,
    });
    let weights = folder.join("model.safetensors");
    let spoil = |name: &str| {
        let mut tensors = crate::support::read_tensors(&weights);
        tensors.get_mut(name).expect("codes").2[1500..4000].fill(0);
        crate::support::write_tensors(&weights, &tensors);
    };
    spoil("model.embed_tokens.weight");
    let verified = look(&folder);
    assert!(verified.findings.iter().all(|finding| finding.check != Check::Codes), "{}", listed(&verified.findings));
    spoil("model.layers.2.mlp.gate_proj.weight");
    let verified = look(&folder);
    let told = (Severity::Warning, Check::Codes, "layers.2.mlp.gate_proj", "2048 bytes of zeros, from byte 1500 on");
    assert!(found(&verified, told), "{}", listed(&verified.findings));
}

/// A template can write very many markers that never end, or that are all different: looking for them takes no longer than writing them.
#[test]
fn markers_without_end_are_looked_at_once() {
    let copy = Copy::whole("crest_k4");
    for (template, told) in [
        ("{{ '<|' * 500000 }}{{ messages[0].content }}", None),
        ("{% for i in range(20000) %}<|m{{ i }}|>{% endfor %}{{ messages[0].content }}", Some("20000 <|m0|>")),
        ("<|\u{e4}{{ '\u{1f600}' * 30 }}|><|x|>{{ messages[0].content }}", Some("<|x|>, which is no token")),
    ] {
        write(&copy, "chat_template.jinja", template.as_bytes());
        let begun = std::time::Instant::now();
        let verified = look(copy.path());
        assert!(begun.elapsed().as_secs() < 60, "{template}: {:?}", begun.elapsed());
        let markers: Vec<&str> =
            verified.findings.iter().map(|f| f.found.as_str()).filter(|f| f.contains("the template writes")).collect();
        assert!(
            markers.len() == usize::from(told.is_some())
                && markers.iter().all(|f| told.is_some_and(|told| f.contains(told))),
            "{markers:?}"
        );
    }
}

/// Several values of one config are named at once, and the numbers are looked at all the same.
#[test]
fn every_value_of_a_config_is_named() {
    let copy = Copy::whole("leanllama");
    copy.change_config(|config| {
        config["hidden_act"] = json!("gelu");
        config["rms_norm_eps"] = json!(-1.0);
        config["head_dim"] = json!("x");
    });
    halves(&copy, NORM, |values| values[5] = f16::NAN);
    let verified = look(copy.path());
    for key in ["hidden_act", "rms_norm_eps", "head_dim"] {
        assert!(found(&verified, (Severity::Error, Check::Config, key, "")), "{key}\n{}", listed(&verified.findings));
    }
    assert!(found(&verified, (Severity::Error, Check::Numbers, "input_layernorm", "1 NaN")));
}

/// Of a checkpoint in three files of which one is cut off, the other two are looked at.
#[test]
fn one_damaged_shard_hides_no_other() {
    let copy = Copy::whole("crest_k2");
    change_shard(&copy, "model-00001-of-00003.safetensors", |tensors| {
        let Tensor(_, _, data) = tensors.values_mut().next().expect("a tensor");
        data[..2].copy_from_slice(&bf16::NAN.to_le_bytes());
    });
    let path = copy.path().join("model-00003-of-00003.safetensors");
    let bytes = fs::read(&path).expect("a shard");
    fs::write(&path, &bytes[..bytes.len() - 100]).expect("written");
    let verified = look(copy.path());
    assert!(
        found(&verified, (Severity::Error, Check::Numbers, "model-00001", "1 NaN")),
        "{}",
        listed(&verified.findings)
    );
    assert!(found(&verified, (Severity::Error, Check::Container, "model-00003", "are not in the")));
}

/// Good checkpoints have neither errors nor warnings, in whatever layout they are kept.
#[test]
fn good_checkpoints_have_no_findings() {
    let mut good: Vec<_> = FIXTURES.into_iter().map(fixture).collect();
    good.push(Path::new(env!("CARGO_MANIFEST_DIR")).join("../demo"));
    for path in good {
        let verified = look(&path);
        let (seen, name) = (&verified.looked_at, path.display());
        assert!(verified.worst() <= Some(Severity::Note), "{name}\n{}", listed(&verified.findings));
        assert!(seen.tensors > 60 && seen.bytes > 200_000 && seen.tokens > 500 && seen.chats == 4, "{name}: {seen:?}");
        assert!(seen.family.is_some(), "{name}");
    }
}

/// A snapshot of a hub's cache: names of blobs are hashes, a link to nothing is found.
#[cfg(unix)]
#[test]
fn blobs_of_a_cache_are_compared_with_their_names() {
    let copy = Copy::whole("leanllama");
    let cache = tempfile::tempdir().expect("tempdir");
    let repository = cache.path().join("models--org--name");
    let (blobs, snapshot) = (repository.join("blobs"), repository.join("snapshots/0123456789abcdef"));
    fs::create_dir_all(&blobs).expect("a directory");
    fs::create_dir_all(&snapshot).expect("a directory");
    let mut names = Vec::new();
    for entry in fs::read_dir(copy.path()).expect("a copy") {
        let path = entry.expect("an entry").path();
        let bytes = fs::read(&path).expect("a file");
        let large = path.extension().is_some_and(|extension| extension == "safetensors");
        let hash = if large { sha256(&bytes) } else { git(&bytes) };
        fs::write(blobs.join(&hash), bytes).expect("written");
        let name = path.file_name().expect("a name");
        std::os::unix::fs::symlink(Path::new("../../blobs").join(&hash), snapshot.join(name)).expect("a link");
        names.push((name.to_string_lossy().into_owned(), hash));
    }
    let verified = look(&snapshot);
    assert_eq!(verified.looked_at.hashed, names.len());
    assert!(verified.worst() <= Some(Severity::Note), "{}", listed(&verified.findings));

    let blob = |file: &str| blobs.join(&names.iter().find(|(name, _)| name == file).expect("a file").1);
    let mut bytes = fs::read(blob("model.safetensors")).expect("a blob");
    let at = bytes.len() - 1000;
    bytes[at] ^= 1;
    fs::write(blob("model.safetensors"), bytes).expect("written");
    fs::write(blob("generation_config.json"), b"{}").expect("written");
    fs::remove_file(blob("tokenizer_config.json")).expect("removed");
    let verified = look(&snapshot);
    for told in [
        (Severity::Error, Check::Hash, "model.safetensors", "sha256"),
        (Severity::Error, Check::Hash, "generation_config.json", "git sha1"),
        (Severity::Error, Check::File, "tokenizer_config.json", "link to a file that does not exist"),
    ] {
        assert!(found(&verified, told), "{told:?}\n{}", listed(&verified.findings));
    }
    // Without reading them, nothing is known of the contents.
    let quick = VerifyOptions { hashes: false, numbers: false };
    let verified = verify(&snapshot, OpenOptions::default(), quick, &|_| ()).expect("a directory");
    assert_eq!((verified.looked_at.hashed, verified.looked_at.tensors), (0, 0));
    assert!(verified.findings.iter().all(|finding| finding.check != Check::Hash));
}

/// Progress ends where it says that it ends.
#[test]
fn progress_reaches_its_total() {
    use std::sync::atomic::{AtomicUsize, Ordering};
    let (done, total) = (AtomicUsize::new(0), AtomicUsize::new(0));
    let progress = |progress: emberlm_model::Progress| {
        done.fetch_max(progress.done, Ordering::Relaxed);
        total.store(progress.total, Ordering::Relaxed);
    };
    let verified =
        verify(&fixture("crest_k2"), OpenOptions::default(), VerifyOptions::default(), &progress).expect("a directory");
    assert_eq!(done.load(Ordering::Relaxed), verified.looked_at.bytes);
    assert_eq!(total.load(Ordering::Relaxed), verified.looked_at.bytes);
}
