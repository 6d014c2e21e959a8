//! `ember doctor`, on a machine with or without a GPU.

use crate::program::ember;

#[test]
fn the_processor_needs_no_driver() {
    let text = ember(["doctor", "--device", "cpu"]).with_code(0).stdout;
    assert!(text.starts_with("cpu: "), "{text}");
    assert!(text.lines().count() >= 2, "what this build has of GPUs: {text}");
}

/// A driver, a compiler or a card that is missing, or a number too high.
#[cfg(feature = "cuda")]
#[test]
fn a_cuda_device_that_is_not_there_is_an_error() {
    use crate::program::model;

    let model = model("crest_k4");
    let model = model.to_str().expect("UTF-8");
    for command in [&["generate", "-m", model, "-p", "x", "-n", "1"][..], &["bench", "-m", model], &["doctor"]] {
        let ended = ember([command, &["--device", "cuda:99"]].concat()).with_code(1);
        assert!(ended.stderr.contains("error: no CUDA device"), "{}", ended.stderr);
        assert!(!ended.stderr.contains("panicked"), "{}", ended.stderr);
    }
}

/// Asking a build for what it was built without.
#[cfg(not(any(feature = "wgpu", feature = "cuda")))]
#[test]
fn a_build_without_gpus_says_how_to_get_them() {
    for (device, advice) in [("wgpu", "--features wgpu"), ("wgpu:3", "--features wgpu"), ("cuda:0", "--features cuda")]
    {
        let ended = ember(["generate", "-p", "x", "--device", device]).with_code(2);
        assert!(ended.stderr.contains(advice), "{}", ended.stderr);
    }
    let text = ember(["doctor"]).with_code(0).stdout;
    assert!(text.contains("this build has no GPU support"), "{text}");
}

/// Without a Vulkan driver, and with a number too high.
#[cfg(all(feature = "wgpu", target_os = "linux"))]
#[test]
fn a_gpu_that_is_not_there_is_an_error() {
    use crate::program::{command, model};

    let model = model("crest_k4");
    let model = model.to_str().expect("UTF-8");
    let generate = ["generate", "-m", model, "-p", "x", "-n", "1", "--device", "wgpu:9"];
    let mut without_driver = command(generate);
    without_driver.env("VK_ICD_FILENAMES", "/nonexistent").env("VK_DRIVER_FILES", "/nonexistent");
    let mut bench = command(["bench", "-m", model, "--device", "wgpu"]);
    let mut doctor = command(["doctor", "--device", "wgpu"]);
    for without_driver in [&mut bench, &mut doctor] {
        without_driver.env("VK_ICD_FILENAMES", "/dev/null").env("VK_DRIVER_FILES", "/dev/null");
    }
    for mut run in [command(generate), without_driver, bench, doctor] {
        let output = run.output().expect("the program ends");
        let stderr = String::from_utf8(output.stderr).expect("UTF-8");
        assert_eq!(output.status.code(), Some(1), "{stderr}");
        assert!(stderr.contains("error: no wgpu device"), "{stderr}");
        assert!(!stderr.contains("panicked"), "{stderr}");
    }
}
