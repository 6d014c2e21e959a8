//! Views of the file are not copies, and released pages leave the process's memory.

#[path = "checkpoint/support.rs"]
mod support;

use emberlm_model::checkpoint::{Checkpoint, Weights};
use emberlm_quant::host::{HostScales, HostStorage};
use support::*;

#[test]
fn matrices_are_views_of_the_file() {
    let views = |name: &str, canonical: &str| {
        let checkpoint = Checkpoint::open(&fixture(name)).expect(name);
        let weights = Weights::resolve(&checkpoint, &checkpoint.config().expect(name)).expect(name);
        let source = &weights.entry(canonical).expect(canonical).tensors;
        let starts: Vec<_> = source.iter().map(|n| checkpoint.data(n).expect(n).as_ptr()).collect();
        let buffers = match weights.matrix(canonical).expect(canonical).storage {
            HostStorage::Dense(_, data) => vec![data],
            HostStorage::CodeBook4(book) => match book.scales {
                HostScales::Single(scales) => vec![book.codes, scales],
                HostScales::Double { codes, .. } => vec![book.codes, codes],
            },
            HostStorage::Int8(w) => vec![w.codes, w.scales],
            HostStorage::Rows(rows) => vec![rows.wide],
        };
        assert!(!buffers.is_empty());
        for buffer in buffers {
            assert!(starts.contains(&buffer.as_ptr()), "{name}: {canonical} is a copy");
        }
    };
    views("crest_k2", "model.layers.2.mlp.steps.1.up_proj.weight");
    views("crest_k4_nf4", "model.layers.2.mlp.steps.1.up_proj.weight");
    views("leanllama_nf4", "lm_head.weight");
    views("nano_compact", "model.embed_tokens.weight");
}

#[cfg(target_os = "linux")]
#[test]
fn released_pages_leave_memory() {
    const SIZE: usize = 64 << 20;
    let resident = || {
        let status = std::fs::read_to_string("/proc/self/status").expect("status");
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).expect("VmRSS");
        line.trim().trim_end_matches(" kB").parse::<usize>().expect("a number") << 10
    };
    let dir = tempfile::tempdir().expect("tempdir");
    let numbers = Tensor("U8".into(), vec![SIZE], vec![1; SIZE]);
    write_tensors(&dir.path().join("model.safetensors"), &Tensors::from([("a".into(), numbers)]));
    let checkpoint = Checkpoint::open(dir.path()).expect("open");
    let data = checkpoint.data("a").expect("data");
    let touch = || data.iter().step_by(4096).map(|byte| usize::from(*byte)).sum::<usize>();
    let before = resident();
    assert_eq!(touch(), SIZE / 4096);
    let touched = resident();
    assert!(touched > before + SIZE / 2, "touching {SIZE} bytes: {before} to {touched} resident");
    checkpoint.release("a");
    let after = resident();
    assert!(after < touched - SIZE / 2, "releasing {SIZE} bytes: {touched} to {after} resident");
    assert_eq!(touch(), SIZE / 4096, "a view after release");
}
