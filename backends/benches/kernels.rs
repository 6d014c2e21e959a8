//! Kernel speeds at the shapes of the models, beside the memory speed of the same minute.
//!
//! `cargo bench -p emberlm-backends -- [filter]` (part of a name, or its end with a final `$`); `RAYON_NUM_THREADS` sets the threads, `EMBERLM_CPU` the instruction set; with `HOT` set
//! the matrices are small enough for the cache, which shows the arithmetic alone.
//! The best of many passes is printed: on a shared machine the others measure the neighbours.

#[path = "../tests/common/mod.rs"]
mod common;

use common::{Kind, Rng, Stored};
use emberlm_backends::cpu::{self, Attention, CacheSlice, DeltaRule, KeyValue, Mlp};
use std::time::{Duration, Instant};

/// The best time of `f` over at least `passes` calls and half a second.
fn best(mut f: impl FnMut()) -> f64 {
    let start = Instant::now();
    let mut best = f64::INFINITY;
    let mut passes = 0;
    while passes < 5 || (start.elapsed() < Duration::from_millis(500) && passes < 5000) {
        let start = Instant::now();
        f();
        best = best.min(start.elapsed().as_secs_f64());
        passes += 1;
    }
    best
}

struct Bench {
    filter: String,
    bandwidth: f64,
}

impl Bench {
    fn wants(&self, name: &str) -> bool {
        match self.filter.strip_suffix('$') {
            Some(end) => name.ends_with(end),
            None => name.contains(&self.filter),
        }
    }

    fn report(&self, name: &str, seconds: f64, bytes: f64, flops: f64) {
        let speed = bytes / seconds / 1e9;
        println!(
            "{name:48} {:10.1} us {speed:8.1} GB/s ({:3.0} % of reading) {:8.1} GFLOP/s",
            seconds * 1e6,
            100.0 * speed / self.bandwidth,
            flops / seconds / 1e9
        );
    }
}

fn main() {
    let filter = std::env::args().skip(1).find(|arg| !arg.starts_with('-')).unwrap_or_default();
    let bandwidth = cpu::read_bandwidth(512 << 20, 8);
    println!("{} threads, {}, features {:?}", cpu::threads(), cpu::level().name(), cpu::features());
    println!("read bandwidth {bandwidth:.1} GB/s");
    let bench = Bench { filter, bandwidth };
    cpu::run(|| {
        linear(&bench);
        blocks(&bench);
        regions(&bench);
    });
    println!("read bandwidth {:.1} GB/s", cpu::read_bandwidth(512 << 20, 8));
}

/// Several matrices in turn, so that each pass reads from memory.
fn linear(bench: &Bench) {
    let mut rng = Rng(1);
    let kinds = [
        ("nf4-double", Kind::Double { block: 64, nested: 256 }),
        ("nf4-single", Kind::Single { block: 64 }),
        ("bf16", Kind::Bf16),
        ("f16", Kind::F16),
        ("f32", Kind::F32),
        ("int8", Kind::Rows { wide: usize::MAX, bits: 4, slots: false }),
        ("rows4", Kind::Rows { wide: 0, bits: 4, slots: true }),
        ("rows2", Kind::Rows { wide: 0, bits: 2, slots: true }),
    ];
    for (name, kind) in kinds {
        let (n, k) = if std::env::var("HOT").is_ok() { (256, 4096) } else { (14336, 4096) };
        let name = |m: usize| format!("linear {name} [{n}, {k}] x {m}");
        let sizes = [1, 2, 3, 4, 6, 8, 12, 16, 32, 64, 128, 512];
        if !sizes.iter().any(|&m| bench.wants(&name(m))) {
            continue;
        }
        let first = Stored::new(&mut rng, kind, n, k);
        let copies = if std::env::var("HOT").is_ok() { 1 } else { ((256 << 20) / first.weight().bytes()).clamp(2, 8) };
        let stored: Vec<Stored> = (0..copies).map(|_| first.clone()).collect();
        for m in sizes.into_iter().filter(|&m| bench.wants(&name(m))) {
            let x = rng.floats(m * k, 1.0);
            let mut y = vec![0.0; m * n];
            let mut turn = 0;
            let seconds = best(|| {
                turn = (turn + 1) % copies;
                cpu::linear(&x, m, &stored[turn].weight(), None, &mut y);
            });
            bench.report(&name(m), seconds, stored[0].weight().bytes() as f64, (2 * m * n * k) as f64);
        }
    }
}

/// What a parallel region costs: a product that is barely worth splitting.
fn regions(bench: &Bench) {
    let stored = Stored::new(&mut Rng(2), Kind::F32, 256, 64);
    let (x, mut y) = (vec![1.0; 64], vec![0.0; 256]);
    if bench.wants("region") {
        let seconds = best(|| cpu::linear(&x, 1, &stored.weight(), None, &mut y));
        bench.report("region [256, 64] x 1", seconds, 65536.0, 32768.0);
    }
}

/// The block of an MLP, attention at a long context and in a prompt, and the delta rule.
fn blocks(bench: &Bench) {
    let mut rng = Rng(3);
    let kind = Kind::Double { block: 64, nested: 256 };
    let (hidden, inner) = (2560, 9216);
    let name = |m: usize| format!("swiglu nf4-double {hidden} -> {inner} x {m}");
    if [1, 64].iter().any(|&m| bench.wants(&name(m))) {
        let stored: Vec<[Stored; 3]> = (0..6)
            .map(|_| {
                let [gate, up] = [(); 2].map(|()| Stored::new(&mut rng, kind, inner, hidden));
                [gate, up, Stored::new(&mut rng, kind, hidden, inner)]
            })
            .collect();
        for m in [1, 64] {
            let (x, mut y) = (rng.floats(m * hidden, 1.0), vec![0.0; m * hidden]);
            let mut turn = 0;
            let seconds = best(|| {
                turn = (turn + 1) % stored.len();
                let [gate, up, down] = &stored[turn];
                let mlp = Mlp { gate: gate.weight(), up: up.weight(), down: down.weight() };
                cpu::swiglu_mlp(&x, m, &mlp, None, &mut y);
            });
            let bytes: usize = stored[0].iter().map(|w| w.weight().bytes()).sum();
            bench.report(&name(m), seconds, bytes as f64, (6 * m * hidden * inner) as f64);
        }
    }
    for (seq, past) in [(1, 8191), (512, 512)] {
        let (heads, kv_heads, head_dim, t) = (32, 8, 128, past + seq);
        let name = format!("attention 32/8 x 128, {seq} after {past}");
        if bench.wants(&name) {
            let cache = vec![0x3555u16; kv_heads * t * head_dim];
            let q = rng.floats(seq * heads * head_dim, 1.0);
            let mut out = q.clone();
            let p =
                Attention { batch: 1, seq, heads, kv_heads, head_dim, past, capacity: t, scale: 0.1, left_pad: None };
            let kv = KeyValue::Plain(CacheSlice::F16(&cache));
            let seconds = best(|| cpu::attention(&q, &kv, &kv, &p, &mut out));
            let pairs = seq * past + seq * (seq + 1) / 2;
            bench.report(&name, seconds, 4.0 * cache.len() as f64, (4 * heads * head_dim * pairs) as f64);
        }
    }
    for seq in [1, 512] {
        let name = format!("delta rule 16/32 heads of 128 x 128, {seq} tokens");
        if bench.wants(&name) {
            let p = DeltaRule { batch: 1, seq, key_heads: 16, value_heads: 32, key_dim: 128, value_dim: 128 };
            let (q, v) = (rng.floats(seq * 16 * 128, 1.0), rng.floats(seq * 32 * 128, 1.0));
            let (gates, mut state) = (vec![-0.1; seq * 32], vec![0.0; 32 * 128 * 128]);
            let mut o = v.clone();
            let seconds = best(|| cpu::gated_delta_rule(&q, &q, &v, &gates, &gates, &mut state, &p, &mut o));
            bench.report(&name, seconds, 8.0 * state.len() as f64, (8 * seq * state.len()) as f64);
        }
    }
}
