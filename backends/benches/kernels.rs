//! Kernel speeds at the shapes of the models.
//!
//! `cargo bench -p emberlm-backends -- [FILTER..]`, where a filter is part of a path such as `linear::decoding::nf4-double`, a regular
//! one; `--help` shows the options of divan. Bytes a second count what a kernel must read of weights or caches, items a second
//! floating-point operations; both stand beside the ceilings of the machine, measured in the same minute. On a shared machine the
//! fastest sample says most: the others measure the neighbours.
//!
//! `RAYON_NUM_THREADS` sets the threads, `EMBERLM_CPU` the instruction set.

#[path = "../tests/common/mod.rs"]
mod common;

use common::{Eighths, Kind, Rng, Stored};
use divan::Bencher;
use divan::counter::{BytesCount, ItemsCount};
use emberlm_backends::cpu::{self, Attention, CacheSlice, CodeDecoder, KeyValue, Layer, Mlp};
use emberlm_backends::types::{CodeActivation, DeltaRuleInputs, DeltaRuleShape};
use std::cell::RefCell;
use std::fmt;
use std::rc::Rc;

fn main() {
    println!("{} threads, {}, features {:?}", cpu::threads(), cpu::level().name(), cpu::features());
    divan::main();
}

/// Times `f`, which reads `bytes` and computes `flops`.
fn measure(bencher: Bencher, bytes: usize, flops: usize, f: impl FnMut()) {
    bencher.counter(BytesCount::new(bytes)).counter(ItemsCount::new(flops)).bench_local(f);
}

/// What the machine can do at best.
#[divan::bench_group(max_time = 2)]
mod ceiling {
    use super::*;
    use rayon::prelude::*;

    /// A plain read of memory on all threads.
    #[divan::bench]
    fn read(bencher: Bencher) {
        let buffer = vec![1u64; (512 << 20) / 8];
        bencher.counter(BytesCount::of_slice(&buffer)).bench_local(|| cpu::read(&buffer));
    }

    /// Multiply-adds of 32-bit floats in the registers of the widest instruction set, on all threads.
    #[divan::bench]
    fn fma(bencher: Bencher) {
        const ROUNDS: usize = 1 << 18;
        let flops = cpu::threads() * ROUNDS * SUMS * width() * 2;
        bencher.counter(ItemsCount::new(flops)).bench_local(|| {
            cpu::run(|| (0..cpu::threads()).into_par_iter().for_each(|_| multiply_add(ROUNDS)));
        });
    }

    /// Enough independent sums to hide the latency of one.
    const SUMS: usize = 12;

    macro_rules! multiply_add {
        ($name:ident, $features:literal, $splat:path, $fma:path) => {
            #[target_feature(enable = $features)]
            fn $name(rounds: usize) {
                let factor = divan::black_box($splat(0.5));
                let mut sums = [factor; SUMS];
                for _ in 0..rounds {
                    for sum in &mut sums {
                        *sum = $fma(*sum, factor, factor);
                    }
                }
                divan::black_box(sums);
            }
        };
    }

    #[cfg(target_arch = "x86_64")]
    use std::arch::x86_64::*;
    #[cfg(target_arch = "x86_64")]
    multiply_add!(avx512, "avx512f", _mm512_set1_ps, _mm512_fmadd_ps);
    #[cfg(target_arch = "x86_64")]
    multiply_add!(avx2, "avx2,fma", _mm256_set1_ps, _mm256_fmadd_ps);
    #[cfg(target_arch = "aarch64")]
    multiply_add!(neon, "neon", std::arch::aarch64::vdupq_n_f32, std::arch::aarch64::vfmaq_f32);

    fn has(feature: &str) -> bool {
        cpu::features().contains(&feature)
    }

    /// Floats of a register.
    fn width() -> usize {
        match (has("avx512f"), has("avx2") && has("fma")) {
            (true, _) => 16,
            (_, true) => 8,
            _ => 4,
        }
    }

    fn multiply_add(rounds: usize) {
        match width() {
            // SAFETY: the processor has them.
            #[cfg(target_arch = "x86_64")]
            16 => unsafe { avx512(rounds) },
            // SAFETY: as above.
            #[cfg(target_arch = "x86_64")]
            8 => unsafe { avx2(rounds) },
            // SAFETY: every processor of this architecture has them.
            #[cfg(target_arch = "aarch64")]
            _ => unsafe { neon(rounds) },
            // Nothing is measured where nothing is known.
            #[cfg(not(target_arch = "aarch64"))]
            _ => {}
        }
    }
}

/// A storage and the rows of x.
struct Case {
    name: &'static str,
    kind: Kind,
    m: usize,
}

impl Case {
    /// Whether products with it may round x to BF16.
    fn is_bf16(&self) -> bool {
        matches!(self.kind, Kind::Bf16)
    }

    /// Whether products with it may round x to 8 bits.
    fn is_packed(&self) -> bool {
        !matches!(self.kind, Kind::F32 | Kind::F16 | Kind::Bf16)
    }
}

impl fmt::Display for Case {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} x {}", self.name, self.m)
    }
}

fn cases(sizes: &[usize]) -> Vec<Case> {
    let kinds = [
        ("nf4-double", Kind::Double { block: 64, nested: 256 }),
        ("nf4-single", Kind::Single { block: 64 }),
        ("bf16", Kind::Bf16),
        ("f16", Kind::F16),
        ("f32", Kind::F32),
        ("int8", Kind::Int8),
        ("rows8", Kind::Rows { wide: usize::MAX, bits: 4, slots: false }),
        ("rows4", Kind::Rows { wide: 0, bits: 4, slots: true }),
        ("rows2", Kind::Rows { wide: 0, bits: 2, slots: true }),
    ];
    kinds.iter().flat_map(|&(name, kind)| sizes.iter().map(move |&m| Case { name, kind, m })).collect()
}

#[divan::bench_group(max_time = 1)]
mod linear {
    use super::*;
    use emberlm_backends::cpu::Precision;

    /// A layer of an 8B model: the weights come from memory.
    const LARGE: (usize, usize) = (14336, 4096);

    /// One token of as many sequences.
    #[divan::bench(args = cases(&[1, 2, 3, 4, 6, 8, 12, 16]))]
    fn decoding(bencher: Bencher, case: &Case) {
        product(bencher, case, LARGE);
    }

    /// Tokens of prompts.
    #[divan::bench(args = cases(&[32, 64, 128, 512]))]
    fn prompts(bencher: Bencher, case: &Case) {
        product(bencher, case, LARGE);
    }

    /// The arithmetic alone: the weights stay in the cache.
    #[divan::bench(args = cases(&[1, 8, 128]))]
    fn cached(bencher: Bencher, case: &Case) {
        product(bencher, case, (256, 4096));
    }

    /// Tokens of sequences and prompts with x in 8 bits, where the weights have few.
    #[divan::bench(args = cases(&[1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64, 128]).into_iter().filter(Case::is_packed))]
    fn rounded(bencher: Bencher, case: &Case) {
        cpu::with_precision(Precision::Int8Activations, || product(bencher, case, LARGE));
    }

    /// The same of x as in a trained model: three blocks of ten have an element far above the others.
    #[divan::bench(args = cases(&[1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 64, 128]).into_iter().filter(Case::is_packed))]
    fn rounded_with_outliers(bencher: Bencher, case: &Case) {
        let mut x = Rng(2).floats(case.m * LARGE.1, 1.0);
        for block in x.chunks_exact_mut(64).enumerate().filter(|(b, _)| b % 10 < 3).map(|(_, block)| block) {
            block[7] = 40.0;
        }
        cpu::with_precision(Precision::Int8Activations, || product_of(bencher, case, LARGE, &x));
    }

    /// The same of weights that stay in the cache: the arithmetic alone.
    #[divan::bench(args = cases(&[1, 2, 3, 4, 6, 8, 12, 16, 128]).into_iter().filter(Case::is_packed))]
    fn cached_rounded(bencher: Bencher, case: &Case) {
        cpu::with_precision(Precision::Int8Activations, || product(bencher, case, (256, 4096)));
    }

    /// The same with x in BF16 beside BF16 weights.
    #[divan::bench(args = cases(&[1, 2, 4, 8, 16, 32, 64, 128, 512]).into_iter().filter(Case::is_bf16))]
    fn halves(bencher: Bencher, case: &Case) {
        cpu::with_precision(Precision::Bf16Activations, || product(bencher, case, LARGE));
    }

    fn product(bencher: Bencher, case: &Case, (n, k): (usize, usize)) {
        product_of(bencher, case, (n, k), &Rng(2).floats(case.m * k, 1.0));
    }

    fn product_of(bencher: Bencher, case: &Case, (n, k): (usize, usize), x: &[f32]) {
        let stored = matrices(case, n, k);
        let mut y = vec![0.0; case.m * n];
        let mut turn = 0;
        measure(bencher, stored[0].weight().bytes(), 2 * case.m * n * k, || {
            turn = (turn + 1) % stored.len();
            cpu::linear(x, case.m, &stored[turn].weight(), None, &mut y);
        });
    }

    thread_local! {
        /// The last that were made: cases of one storage follow each other.
        static LAST: RefCell<(String, Rc<[Stored]>)> = RefCell::default();
    }

    /// Several large matrices, to be used in turn, so that each pass reads from memory; one small one.
    fn matrices(case: &Case, n: usize, k: usize) -> Rc<[Stored]> {
        let name = format!("{} {n} {k}", case.name);
        LAST.with_borrow_mut(|last| {
            if last.0 != name {
                *last = Default::default();
                let first = Stored::new(&mut Rng(1), case.kind, n, k);
                let copies = if n < 1024 { 1 } else { ((256 << 20) / first.weight().bytes()).clamp(2, 8) };
                *last = (name, vec![first; copies].into());
            }
            last.1.clone()
        })
    }
}

/// What handing work to the threads costs: products that are barely worth splitting, one after the other.
#[divan::bench(max_time = 1)]
fn hundred_regions(bencher: Bencher) {
    let stored = Stored::new(&mut Rng(2), Kind::F32, 256, 64);
    let (x, mut y) = (vec![1.0; 64], vec![0.0; 256]);
    measure(bencher, 100 * stored.weight().bytes(), 100 * 2 * 256 * 64, || {
        cpu::run(|| (0..100).for_each(|_| cpu::linear(&x, 1, &stored.weight(), None, &mut y)));
    });
}

/// Gate, up and down in NF4.
#[divan::bench(args = [1, 64], max_time = 1)]
fn swiglu(bencher: Bencher, m: usize) {
    let mut rng = Rng(3);
    let kind = Kind::Double { block: 64, nested: 256 };
    let (hidden, inner) = (2560, 9216);
    let stored: Vec<[Stored; 3]> = (0..6)
        .map(|_| {
            let [gate, up] = [(); 2].map(|()| Stored::new(&mut rng, kind, inner, hidden));
            [gate, up, Stored::new(&mut rng, kind, hidden, inner)]
        })
        .collect();
    let bytes = stored[0].iter().map(|w| w.weight().bytes()).sum();
    let (x, mut y) = (rng.floats(m * hidden, 1.0), vec![0.0; m * hidden]);
    let mut turn = 0;
    measure(bencher, bytes, 6 * m * hidden * inner, || {
        turn = (turn + 1) % stored.len();
        let [gate, up, down] = &stored[turn];
        let mlp = Mlp { gate: gate.weight(), up: up.weight(), down: down.weight() };
        cpu::swiglu_mlp(&x, m, &mlp, None, &mut y);
    });
}

/// Query heads, key heads and head size of lean-8b and of nano-3b.
const HEADS: [(&str, usize, usize, usize); 2] = [("lean-8b", 32, 8, 128), ("nano-3b", 16, 2, 128)];

/// A shape, new tokens and those before them.
struct Context {
    heads: (&'static str, usize, usize, usize),
    seq: usize,
    past: usize,
}

impl fmt::Display for Context {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {} + {}", self.heads.0, self.past, self.seq)
    }
}

fn contexts(heads: &[(&'static str, usize, usize, usize)]) -> Vec<Context> {
    const TOKENS: [(usize, usize); 6] = [(1, 2047), (1, 8191), (1, 32767), (1, 131_071), (512, 512), (512, 8192)];
    heads.iter().flat_map(|&heads| TOKENS.map(|(seq, past)| Context { heads, seq, past })).collect()
}

/// A token at the end of a context in F16, half a prompt after the other.
#[divan::bench(args = contexts(&HEADS), max_time = 2)]
fn attention(bencher: Bencher, context: &Context) {
    let (p, [k, v], q) = long_context(context);
    let mut out = q.clone();
    let bytes = 2 * (k.len() + v.len());
    let [k, v] = [&k, &v].map(|side| [CacheSlice::F16(side)]);
    let (k, v) = (KeyValue::Plain(&k), KeyValue::Plain(&v));
    measure(bencher, bytes, flops(&p), || cpu::attention(&q, &k, &v, &p, &mut out));
}

/// The same in 8 bits.
#[divan::bench(args = contexts(&HEADS), max_time = 2)]
fn attention_in_8_bits(bencher: Bencher, context: &Context) {
    let (p, sides, q) = long_context(context);
    let mut out = q.clone();
    let stored = sides.map(|halves| in_8_bits(halves, p.head_dim));
    let bytes = stored.iter().map(|side| side.codes.len() + 4 * side.scales.len()).sum();
    let [k, v] = stored.each_ref().map(|side| [side.slice()]);
    let (k, v) = (KeyValue::Plain(&k), KeyValue::Plain(&v));
    measure(bencher, bytes, flops(&p), || cpu::attention(&q, &k, &v, &p, &mut out));
}

/// The same with values as codes of 4 behind a decoder of 128 hidden values and GELU, LeanLlama's.
#[divan::bench(args = contexts(&HEADS[..1]), max_time = 2)]
fn latent_attention(bencher: Bencher, context: &Context) {
    let (p, [keys, _], q) = long_context(context);
    latent(bencher, &p, &q, CacheSlice::F16(&keys), 2 * keys.len());
}

/// Those codes beside keys in 8 bits.
#[divan::bench(args = contexts(&HEADS[..1]), max_time = 2)]
fn latent_attention_in_8_bits(bencher: Bencher, context: &Context) {
    let (p, [keys, _], q) = long_context(context);
    let keys = in_8_bits(keys, p.head_dim);
    latent(bencher, &p, &q, keys.slice(), keys.codes.len() + 4 * keys.scales.len());
}

fn latent(bencher: Bencher, p: &Attention, q: &[f32], keys: CacheSlice, key_bytes: usize) {
    let (r, h) = (4, HIDDEN);
    let mut rng = Rng(6);
    let codes = rng.floats(p.capacity * r, 1.0);
    let hidden = Stored::new(&mut rng, Kind::F16, h, r);
    let output = Stored::new(&mut rng, Kind::F16, p.kv_heads * p.head_dim, h);
    let (b1, b2) = (rng.floats(h, 1.0), rng.floats(p.kv_heads * p.head_dim, 1.0));
    let hidden = Layer { weight: hidden.weight(), bias: Some(&b1) };
    let output = Layer { weight: output.weight(), bias: Some(&b2) };
    let decoder = CodeDecoder { hidden: Some((hidden, CodeActivation::Gelu)), output };
    let (stored, parts) = ([keys], [&codes[..]]);
    let (k, v) = (KeyValue::Plain(&stored), KeyValue::Compressed { codes: &parts, decoder: &decoder });
    let mut out = q.to_vec();
    measure(bencher, key_bytes + 4 * codes.len(), flops(p) + 2 * r * h * p.capacity, || {
        cpu::attention(q, &k, &v, p, &mut out);
    });
}

/// Hidden values of those codes in F16 beside keys in F16, and in 8 bits beside 8 bits.
#[divan::bench(args = contexts(&HEADS[..1]), max_time = 2)]
fn hidden_attention(bencher: Bencher, context: &Context) {
    let (p, [keys, _], q) = long_context(context);
    let values: Vec<u16> =
        Rng(6).floats(p.capacity * HIDDEN, 1.0).iter().map(|&x| half::f16::from_f32(x).to_bits()).collect();
    hidden(bencher, &p, &q, [CacheSlice::F16(&keys), CacheSlice::F16(&values)], 2 * (keys.len() + values.len()));
}

#[divan::bench(args = contexts(&HEADS[..1]), max_time = 2)]
fn hidden_attention_in_8_bits(bencher: Bencher, context: &Context) {
    let (p, [keys, _], q) = long_context(context);
    let keys = in_8_bits(keys, p.head_dim);
    let mut values = Eighths::zeros(p.capacity * HIDDEN, HIDDEN);
    values.fill(&Rng(6).floats(p.capacity * HIDDEN, 1.0), HIDDEN);
    let bytes = [&keys, &values].map(|x| x.codes.len() + 4 * x.scales.len());
    hidden(bencher, &p, &q, [keys.slice(), values.slice()], bytes[0] + bytes[1]);
}

/// Hidden values of a decoder of lean-8b.
const HIDDEN: usize = 128;

fn hidden(bencher: Bencher, p: &Attention, q: &[f32], [keys, values]: [CacheSlice; 2], bytes: usize) {
    let mut rng = Rng(6);
    let output = Stored::new(&mut rng, Kind::F16, p.kv_heads * p.head_dim, HIDDEN);
    let bias = rng.floats(p.kv_heads * p.head_dim, 1.0);
    let output = Layer { weight: output.weight(), bias: Some(&bias) };
    let (keys, values) = ([keys], [values]);
    let (k, v) = (KeyValue::Plain(&keys), KeyValue::Hidden { values: &values, output: &output });
    let mut out = q.to_vec();
    measure(bencher, bytes, flops(p), || cpu::attention(q, &k, &v, p, &mut out));
}

/// Halves in 8 bits, on large pages.
fn in_8_bits(halves: Vec<u16>, width: usize) -> Eighths {
    let floats: Vec<f32> = halves.iter().map(|&bits| half::f16::from_bits(bits).to_f32()).collect();
    drop(halves);
    let mut stored = Eighths::zeros(floats.len(), width);
    cpu::advise_large_pages(&mut stored.codes);
    stored.fill(&floats, width);
    stored
}

fn flops(p: &Attention) -> usize {
    4 * p.heads * p.head_dim * (p.seq * p.past + p.seq * (p.seq + 1) / 2)
}

/// The shape, keys and values in F16 on large pages, and queries.
fn long_context(
    &Context { heads: (_, heads, kv_heads, head_dim), seq, past }: &Context,
) -> (Attention, [Vec<u16>; 2], Vec<f32>) {
    let capacity = past + seq;
    let mut rng = Rng(4);
    let cache = [(); 2].map(|()| {
        let mut cache = vec![0; kv_heads * capacity * head_dim];
        cpu::advise_large_pages(&mut cache);
        cache.iter_mut().for_each(|half| *half = half::f16::from_f32(rng.float(1.0)).to_bits());
        cache
    });
    let p = Attention { batch: 1, seq, heads, kv_heads, head_dim, past, capacity, scale: 0.1 };
    (p, cache, rng.floats(seq * heads * head_dim, 1.0))
}

/// 16 key and 32 value heads of 128 x 128.
#[divan::bench(args = [1, 512], max_time = 1)]
fn delta_rule(bencher: Bencher, seq: usize) {
    let mut rng = Rng(5);
    let p = DeltaRuleShape { batch: 1, seq, key_heads: 16, value_heads: 32, key_dim: 128, value_dim: 128 };
    let (q, v) = (rng.floats(seq * 16 * 128, 1.0), rng.floats(seq * 32 * 128, 1.0));
    let (gates, mut state) = (vec![-0.1; seq * 32], vec![0.0; 32 * 128 * 128]);
    let mut o = v.clone();
    measure(bencher, 8 * state.len(), 8 * seq * state.len(), || {
        let rule = DeltaRuleInputs { q: &q[..], k: &q, v: &v, g: &gates, beta: &gates };
        cpu::gated_delta_rule(rule, &mut state, &p, &mut o);
    });
}
