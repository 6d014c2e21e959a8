//! `ember doctor`, on a machine with or without a GPU.

use crate::program::ember;

#[test]
fn the_processor_needs_no_driver() {
    let text = ember(["doctor", "--device", "cpu"]).with_code(0).stdout;
    assert!(text.starts_with("cpu: "), "{text}");
    assert!(text.lines().count() >= 2, "what this build has of GPUs: {text}");
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
    for mut run in [command(generate), without_driver] {
        let output = run.output().expect("the program ends");
        let stderr = String::from_utf8(output.stderr).expect("UTF-8");
        assert_eq!(output.status.code(), Some(1), "{stderr}");
        assert!(stderr.contains("error: no wgpu device"), "{stderr}");
        assert!(!stderr.contains("panicked"), "{stderr}");
    }
}
