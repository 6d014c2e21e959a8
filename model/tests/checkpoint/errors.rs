//! What a program learns of a damaged checkpoint without reading the message: file, tensor, what was expected, what was found.

use std::fs;

use crate::support::{Copy, container, fixture, zeros};
use emberlm_model::checkpoint::{Checkpoint, CheckpointError, Dtype, TensorProperty, Weights};
use emberlm_model::export::{ExportOptions, MatrixFormat};
use emberlm_model::{CausalLm, Error, Pretrained};

const QUANTISED: &str = "model.layers.1.mlp.down_proj.weight";

type Cpu = burn_ndarray::NdArray<f32>;

fn tensor_error(copy: &Copy) -> CheckpointError {
    match copy.load() {
        Err(Error::Tensor(error)) => *error,
        other => panic!("{:?}", other.map(|_| "accepted")),
    }
}

#[test]
fn a_side_tensor_of_another_length_says_which_and_how_long() {
    let copy = Copy::of("leanllama_nf4");
    let absmax = format!("{QUANTISED}.absmax");
    copy.change_tensors(|tensors| {
        let tensor = tensors.get_mut(&absmax).expect("absmax");
        tensor.1 = vec![319];
        tensor.2.truncate(319);
    });
    let error = tensor_error(&copy);
    assert_eq!(error.file, Some(copy.weights()));
    assert_eq!(error.tensor.as_deref(), Some(absmax.as_str()));
    assert_eq!(error.expected, Some(TensorProperty::Elements { count: Some(320), dtype: Dtype::U8 }));
    assert_eq!(error.found, Some(TensorProperty::Typed { types: vec![Dtype::U8], shape: vec![319] }));
    let sentence = format!("{}: tensor {absmax}: is U8 [319], expected 320 elements of U8", copy.weights().display());
    assert_eq!(error.to_string(), sentence);
}

#[test]
fn a_missing_side_tensor_is_absent() {
    let copy = Copy::of("leanllama_nf4");
    let map = format!("{QUANTISED}.quant_map");
    copy.change_tensors(|tensors| drop(tensors.remove(&map)));
    let error = tensor_error(&copy);
    assert_eq!((error.file, error.tensor, error.found), (None, Some(map), Some(TensorProperty::Absent)));
    assert_eq!(error.expected, Some(TensorProperty::Elements { count: Some(16), dtype: Dtype::F32 }));
}

#[test]
fn a_tensor_that_is_stored_twice_names_both() {
    let copy = Copy::of("leanllama_nf4");
    let other = QUANTISED.replace("model.", "model.language_model.");
    copy.change_tensors(|tensors| drop(tensors.insert(other.clone(), zeros(&[128, 160]))));
    let error = tensor_error(&copy);
    assert_eq!(error.tensor.as_deref(), Some(QUANTISED));
    let Some(TensorProperty::Names(names)) = error.found else { panic!("{:?}", error.found) };
    assert!(names.contains(&other) && names.iter().any(|name| name == QUANTISED), "{names:?}");
}

#[test]
fn a_name_that_no_file_holds_is_absent() {
    let copy = Copy::of("leanllama");
    let weights = copy.load().expect("load");
    for error in [weights.vector("no.such"), weights.matrix("no.such").map(|_| Vec::new())].map(Result::err) {
        let Some(Error::Tensor(error)) = error else { panic!("{error:?}") };
        assert_eq!((error.tensor.as_deref(), error.found), (Some("no.such"), Some(TensorProperty::Absent)));
    }
}

#[test]
fn a_damaged_file_says_which_and_where() {
    let copy = Copy::of("leanllama");
    let header = r#"{"a":{"dtype":"F32","shape":[2],"data_offsets":[0,4]}}"#;
    let cases = [
        (container(header, &[0; 4]), Some("a"), (8, 4)),
        ([&100u64.to_le_bytes()[..], &[b' '; 7]].concat(), None, (100, 7)),
    ];
    for (bytes, tensor, (expected, found)) in cases {
        fs::write(copy.weights(), bytes).expect("write");
        let Err(Error::Container(error)) = Checkpoint::open(copy.path()) else { panic!("{tensor:?}: accepted") };
        assert_eq!((error.file, error.tensor.as_deref()), (Some(copy.weights()), tensor));
        let sizes = (Some(TensorProperty::Bytes(expected)), Some(TensorProperty::Bytes(found)));
        assert_eq!((error.expected, error.found), sizes, "{tensor:?}");
    }
}

#[test]
fn a_config_value_says_what_is_allowed() {
    let copy = Copy::of("leanllama");
    copy.change_config(|config| config["hidden_size"] = "wide".into());
    let Err(Error::Config { path, field, expected, found, .. }) = copy.load() else { panic!("accepted") };
    assert_eq!((path, field.as_str()), (copy.path().join("config.json"), "hidden_size"));
    assert!(expected.is_some_and(|expected| expected.starts_with("an integer from 1 to ")));
    assert_eq!(found.as_deref(), Some("the string \"wide\""));
}

#[test]
fn a_shape_that_the_model_does_not_have_says_in_which_file() {
    const NORM: &str = "model.norm.weight";
    let copy = Copy::of("leanllama");
    let mut right = 0;
    copy.change_tensors(|tensors| {
        let norm = tensors.get_mut(NORM).expect("norm");
        right = norm.1[0];
        *norm = zeros(&[right + 1]);
    });
    let pretrained = Pretrained::open(copy.path()).expect("open");
    let Err(Error::Differences(differences)) = pretrained.load::<Cpu>(&Default::default()).map(|_: CausalLm<Cpu>| ())
    else {
        panic!("accepted")
    };
    let [norm] = differences.mismatched.as_slice() else { panic!("{differences}") };
    assert_eq!((norm.file.as_ref(), norm.tensor.as_str()), (Some(&copy.weights()), NORM));
    assert_eq!((&norm.expected, &norm.found), (&vec![right], &vec![right + 1]));
}

#[test]
fn what_discovery_cannot_tell_is_listed() {
    let copy = Copy::of("crest_k4");
    copy.change_tensors(|tensors| drop(tensors.insert("model.layers.1.mlp.odd.weight".into(), zeros(&[3, 5]))));
    let checkpoint = Checkpoint::open(copy.path()).expect("open");
    let resolved = Weights::resolve(&checkpoint, &checkpoint.config().expect("config"));
    let Err(Error::Discovery(error)) = resolved else { panic!("accepted") };
    assert_eq!(error.tensor.as_deref(), Some("model.layers.1"));
    let Some(TensorProperty::Group(found)) = error.found else { panic!("{:?}", error.found) };
    assert!(found.contains(&("mlp.odd.weight".to_owned(), vec![3, 5])), "{found:?}");
}

/// Of an empty path, such as a setting that was left out, the system says only that something is not there.
#[test]
fn an_empty_path_is_named_as_such() {
    let error = Pretrained::open("").expect_err("no directory");
    assert_eq!(error.to_string(), "model directory: is an empty path: name a directory");
}

/// A wrong format is an error of the plan, not of the tensor that is reached after others were written.
#[test]
fn rows_of_bits_that_there_are_not_are_refused_by_the_plan() {
    let pretrained = Pretrained::open(fixture("crest_k4")).expect("a checkpoint");
    for bits in [0, 1, 3, 7, 16] {
        let plan = pretrained.export(&ExportOptions::default(), |_| MatrixFormat::MixedRows { bits, keep: 0 });
        assert_eq!(
            plan.expect_err("no such rows").to_string(),
            format!("rows of {bits} bits are not supported; choose 2, 4, 6 or 8")
        );
    }
}
