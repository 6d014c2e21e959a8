//! `ember dump` against the goldens, and what it refuses.

use std::path::Path;

use safetensors::Dtype;
use safetensors::tensor::TensorView;

use crate::fixture::{Case, Fixture, Numbers, Tensors, logit_tolerance};
use crate::program::{Ended, Scratch, ember, model};

type Cpu = burn_ndarray::NdArray<f32>;

/// Bound of `crest.halt` and `crest.weights`.
const HALT: f32 = 1e-4;
/// Of hidden states, relative to the largest magnitude of the tensor, at least 1.
const HIDDEN: f32 = 1e-4;

fn write_i64(path: &Path, tensors: &[(&str, &[usize], &[i64])]) {
    let bytes = |values: &[i64]| -> Vec<u8> { values.iter().flat_map(|x| x.to_le_bytes()).collect() };
    let data: Vec<(&str, &[usize], Vec<u8>)> = tensors.iter().map(|&(n, shape, v)| (n, shape, bytes(v))).collect();
    let views = data.iter().map(|(name, shape, bytes)| {
        (*name, TensorView::new(Dtype::I64, shape.to_vec(), bytes).expect("a tensor of this shape"))
    });
    safetensors::serialize_to_file(views, None, path).expect("the input is written");
}

/// The prompt of a case as an input file.
fn write_input(path: &Path, case: &Case<'_>) {
    let integers = |x: &Numbers| -> Vec<i64> { x.values.iter().map(|&x| x as i64).collect() };
    let (ids, mask) = (case.need("input_ids"), case.need("attention_mask"));
    write_i64(path, &[("input_ids", &ids.shape, &integers(ids)), ("attention_mask", &mask.shape, &integers(mask))]);
}

fn dump(model: &Path, input: &Path, out: &Path, flags: &[&str]) -> Ended {
    let paths = [("-m", model), ("--input", input), ("--out", out)];
    let paths = paths.iter().flat_map(|(flag, path)| [flag.as_ref(), path.as_os_str()]);
    ember(["dump".as_ref()].into_iter().chain(paths).chain(flags.iter().map(|flag| flag.as_ref())))
}

/// The dump of a case with some flags.
fn dumped(case: &Case<'_>, flags: &[&str]) -> Tensors {
    let scratch = Scratch::new();
    let (input, out) = (scratch.path("in.safetensors"), scratch.path("out.safetensors"));
    write_input(&input, case);
    let ended = dump(&case.fixture.path, &input, &out, flags).with_code(0);
    assert_eq!(ended.stdout, "", "{}", case.label("stdout"));
    assert!(ended.stderr.contains("of weights") && ended.stderr.contains("out.safetensors"), "{}", ended.stderr);
    assert_eq!(scratch.files(), ["in.safetensors", "out.safetensors"], "a temporary file was left");
    Tensors::read(&out)
}

/// Every tensor of a dump for which there is a golden under `prefix`; which of them there are.
fn check(case: &Case<'_>, out: &Tensors, prefix: &str, logits: &str) -> Vec<String> {
    let family = case.fixture.open().architecture().config.family;
    let mut checked = Vec::new();
    for name in out.names() {
        let key = match name {
            "logits" => logits.to_string(),
            name if logits == "logits_rounded" && name != "greedy" => continue,
            name => name.to_string(),
        };
        let Some(golden) = case.get(&format!("{prefix}{key}")) else { continue };
        let got = out.need(name).clone();
        let got = match name {
            "logits" if got.shape != golden.shape => got.at_positions(&case.need("positions").indices()),
            _ if name.starts_with("hidden.") => got.at_positions(&case.need("hidden_positions").indices()),
            _ => got,
        };
        let tolerance = match name {
            "logits" => logit_tolerance::<Cpu>(family),
            "crest.halt" | "crest.weights" => HALT,
            "crest.steps" | "greedy" => 0.0,
            _ => HIDDEN * golden.largest().max(1.0),
        };
        got.assert_close(&case.label(&format!("{prefix}{key}")), golden, tolerance);
        checked.push(name.to_string());
    }
    checked
}

/// Every case whole and in chunks, two of them through the cache as well.
#[test]
fn dumps_are_the_goldens() {
    for fixture in Fixture::all() {
        for name in fixture.cases() {
            let case = fixture.case(&name);
            let t = case.need("input_ids").shape[1];
            let mut expected: Vec<&str> = vec!["final_hidden", "hidden.0", "hidden.1", "logits"];
            if case.get("crest.steps").is_some() {
                expected.extend(["crest.steps", "crest.halt"]);
            }
            let prefill = (t - 6).to_string();
            let mut runs = vec![vec!["--greedy", "32"], vec!["--chunk", "7"]];
            if matches!(name.as_str(), "text" | "batch") {
                runs.push(vec!["--prefill", &prefill]);
                runs.push(vec!["--prefill", &prefill, "--chunk", "16", "--greedy", "32"]);
            }
            for flags in runs {
                let out = dumped(&case, &flags);
                let checked = check(&case, &out, "", "logits");
                let greedy = flags.contains(&"--greedy").then_some("greedy");
                for name in expected.iter().copied().chain(greedy) {
                    assert!(checked.iter().any(|x| x == name), "{}: {name} of {flags:?}", case.label("not compared"));
                }
            }
            if let Some(golden) = case.get("greedy_rep1.08") {
                let out = dumped(&case, &["--greedy", "32", "--repeat-penalty", "1.08"]);
                out.need("greedy").assert_close(&case.label("greedy_rep1.08"), golden, 0.0);
            }
        }
    }
}

#[test]
fn fewer_steps_no_halting_and_rounding_have_goldens_of_their_own() {
    let mut checked = Vec::new();
    for fixture in Fixture::all() {
        let case = fixture.case("text");
        for (flags, prefix) in [(&["--steps", "2"][..], "num_steps2."), (&["--no-halt"], "halt_off.")] {
            if case.get(&format!("{prefix}logits")).is_some() {
                checked.extend(check(&case, &dumped(&case, flags), prefix, "logits"));
            }
        }
        if case.get("logits_rounded").is_some() {
            let rounded = check(&case, &dumped(&case, &["--rounding", "stored"]), "", "logits_rounded");
            assert_eq!(rounded, ["logits"]);
            checked.extend(rounded);
        }
    }
    let count = |name: &str| checked.iter().filter(|x| *x == name).count();
    assert!(count("logits") >= 5 && count("crest.weights") >= 2, "{checked:?}");
}

#[test]
fn quantising_changes_the_logits_a_little() {
    let fixtures = Fixture::all();
    let fixture = fixtures.iter().find(|fixture| fixture.name() == "leanllama").expect("the fixture");
    let case = fixture.case("text");
    let exact = case.need("logits");
    let mut errors = Vec::new();
    for format in ["int8", "nf4", "nf4-dq"] {
        let out = dumped(&case, &["--quant", format]);
        let got = out.need("logits");
        let square = |x: &[f32]| x.iter().map(|x| f64::from(*x).powi(2)).sum::<f64>();
        let difference: Vec<f32> = got.values.iter().zip(&exact.values).map(|(a, b)| a - b).collect();
        errors.push((square(&difference) / square(&exact.values)).sqrt());
    }
    assert!(errors[0] > 1e-3 && errors[0] < 0.05 && errors[1] > 2.0 * errors[0] && errors[1] < 0.5, "{errors:?}");
    assert!(errors[2] != errors[1] && errors[2] < 0.5, "{errors:?}");
}

#[test]
fn inputs_that_do_not_fit_are_refused() {
    let scratch = Scratch::new();
    let (input, out) = (scratch.path("in.safetensors"), scratch.path("out.safetensors"));
    let lean = model("leanllama");
    let refused = |tensors: &[(&str, &[usize], &[i64])], flags: &[&str], parts: &[&str]| {
        write_i64(&input, tensors);
        dump(&lean, &input, &out, flags).fails_with(parts);
        assert_eq!(scratch.files(), ["in.safetensors"], "something was left");
    };
    let ids: (&str, &[usize], &[i64]) = ("input_ids", &[2, 3], &[1, 2, 3, 4, 5, 6]);
    refused(&[("ids", &[1], &[1])], &[], &["in.safetensors", "no input_ids", "ids"]);
    refused(&[("input_ids", &[3], &[1, 2, 3])], &[], &["[3]", "[rows, tokens]"]);
    refused(&[("input_ids", &[1, 0], &[])], &[], &["no tokens"]);
    refused(&[("input_ids", &[1, 2], &[1, 544])], &[], &["544 at row 0, token 1", "544 tokens"]);
    refused(&[("input_ids", &[1, 2], &[-1, 5])], &[], &["-1 at row 0, token 0"]);
    refused(&[ids, ("attention_mask", &[2, 3], &[1, 1, 1, 1, 1, 0])], &[], &["row 1, token 2", "on the left"]);
    refused(&[ids, ("attention_mask", &[2, 3], &[0, 1, 1, 0, 0, 0])], &[], &["row 1", "every token"]);
    refused(&[ids, ("attention_mask", &[2, 3], &[0, 2, 1, 1, 1, 1])], &[], &["is 2 at row 0, token 1"]);
    refused(&[ids, ("attention_mask", &[3, 2], &[1; 6])], &[], &["[3, 2]", "[2, 3]"]);
    refused(&[ids], &["--greedy", "1000000000"], &["do not fit the context"]);
    refused(&[ids], &["--greedy", "2", "--repeat-penalty", "-1"], &["--repeat-penalty", "positive"]);
    refused(&[ids], &["--steps", "2"], &["adaptive depth", "leanllama"]);

    std::fs::write(&input, b"not a checkpoint").expect("written");
    dump(&lean, &input, &out, &[]).fails_with(&["in.safetensors"]);
    dump(&lean, &scratch.path("none"), &out, &[]).fails_with(&["none", "No such file"]);
    write_i64(&input, &[ids]);
    dump(&lean, &input, &scratch.path("no/out"), &[]).fails_with(&["cannot write", "no/out"]);
    dump(&lean, &input, &scratch.path(""), &[]).fails_with(&["cannot write", "directory"]);
    dump(&model("crest_k4"), &input, &out, &["--steps", "5"]).fails_with(&["--steps is 5", "4 steps"]);
    dump(&model("crest_k4"), &input, &out, &["--threshold", "-0.5"]).fails_with(&["--threshold is", "-0.5"]);
    dump(&lean, &input, &input, &[]).fails_with(&["in.safetensors would replace the input"]);
    assert_eq!(scratch.files(), ["in.safetensors"], "something was left");
}

/// What never ends is not read to its end.
#[cfg(unix)]
#[test]
fn an_input_without_end_is_refused() {
    let scratch = Scratch::new();
    let out = scratch.path("out.safetensors");
    dump(&model("leanllama"), Path::new("/dev/zero"), &out, &[]).fails_with(&["/dev/zero", "longer than the limit"]);
    assert!(scratch.files().is_empty());
}

/// It is a file like any other, wherever the name leads.
#[cfg(unix)]
#[test]
fn a_dump_keeps_modes_and_links() {
    use std::fs;
    use std::os::unix::fs::{PermissionsExt, symlink};
    let scratch = Scratch::new();
    let (input, out, link) = (scratch.path("in.safetensors"), scratch.path("out.safetensors"), scratch.path("link"));
    write_i64(&input, &[("input_ids", &[1, 2], &[1, 2])]);
    let mode = |path: &Path| fs::metadata(path).expect("a file").permissions().mode() & 0o777;
    fs::write(scratch.path("plain"), "").expect("written");
    dump(&model("leanllama"), &input, &out, &[]).with_code(0);
    assert_eq!(mode(&out), mode(&scratch.path("plain")));
    fs::set_permissions(&out, fs::Permissions::from_mode(0o640)).expect("set");
    symlink(&out, &link).expect("a link");
    dump(&model("leanllama"), &input, &link, &[]).with_code(0);
    assert!(fs::symlink_metadata(&link).expect("a link").is_symlink());
    assert_eq!(mode(&out), 0o640);
    dump(&model("leanllama"), &input, Path::new("/dev/null"), &[]).fails_with(&["/dev/null", "no regular file"]);
}
