//! Kernels over several sequences at once, against each sequence alone.

mod common;

use common::{Kind, Rng, Stored, close};
use emberlm_backends::cpu::{self, Attention, AttentionSpan, CacheSlice, CodeDecoder, KeyValue, Layer, Level, plain};
use emberlm_backends::panics::catch_quietly;
use emberlm_backends::types::{CodeActivation, ConvShape, DeltaRuleInputs, DeltaRuleShape};

/// Tokens of each sequence: one alone, several that decode, and prompts among them.
const TOKENS: [&[usize]; 4] = [&[3], &[1, 1, 1, 1], &[1, 70, 2, 1], &[2, 1, 1]];

fn on_every_level(f: impl Fn(&str)) {
    for level in Level::available() {
        cpu::with_level(level, || f(level.name()));
    }
}

#[test]
fn attention_is_that_of_each_sequence() {
    let mut rng = Rng(31);
    let (heads, kv_heads, head_dim) = (8, 2, 48);
    let shape =
        |seq, past, capacity| Attention { batch: 1, seq, heads, kv_heads, head_dim, past, capacity, scale: 0.2 };
    for tokens in TOKENS {
        let shapes: Vec<Attention> =
            (tokens.iter().zip([700, 0, 65, 1])).map(|(&seq, past)| shape(seq, past, past + seq + 5)).collect();
        let output = Stored::new(&mut rng, Kind::F16, kv_heads * head_dim, 12);
        let output = Layer { weight: output.weight(), bias: None };
        let linear = CodeDecoder { hidden: None, output };
        let first = Stored::new(&mut rng, Kind::F16, 12, 12);
        let hidden = Some((Layer { weight: first.weight(), bias: None }, CodeActivation::Gelu));
        let with_gelu = CodeDecoder { hidden, output };
        let mut cache = |p: &Attention, width: usize| {
            let mut cache = rng.floats(p.capacity * width, 1.5);
            // What was never written must not be read.
            for head in cache.chunks_exact_mut(p.capacity * width.min(head_dim)) {
                head[(p.past + p.seq) * width.min(head_dim)..].fill(f32::NAN);
            }
            cache
        };
        let inputs: Vec<[Vec<f32>; 3]> = (shapes.iter())
            .map(|p| [cache(p, kv_heads * head_dim), cache(p, kv_heads * head_dim), cache(p, 12)])
            .collect();
        let queries: Vec<Vec<f32>> = shapes.iter().map(|p| rng.floats(p.seq * heads * head_dim, 2.0)).collect();
        let halves: Vec<Vec<u16>> =
            inputs.iter().map(|[k, ..]| k.iter().map(|&x| half::f16::from_f32(x).to_bits()).collect()).collect();
        // In F32, with keys in F16, and with compressed sequences among plain ones.
        for variant in 0..4 {
            let parts: Vec<([CacheSlice; 2], [&[f32]; 1])> = (inputs.iter().zip(&halves))
                .map(|([k, v, codes], halves)| {
                    let k = if variant == 1 { CacheSlice::F16(halves) } else { CacheSlice::F32(k) };
                    ([k, CacheSlice::F32(v)], [&codes[..]])
                })
                .collect();
            let key_value = |i: usize| {
                let (plain, codes) = &parts[i];
                let v = match variant {
                    2 if i.is_multiple_of(2) => KeyValue::Compressed { codes, decoder: &linear },
                    3 if i.is_multiple_of(2) => KeyValue::Compressed { codes, decoder: &with_gelu },
                    _ => KeyValue::Plain(&plain[1..]),
                };
                (KeyValue::Plain(&plain[..1]), v)
            };
            let expected: Vec<Vec<f32>> = (0..shapes.len())
                .map(|i| {
                    let mut want = vec![0.0; queries[i].len()];
                    let (k, v) = key_value(i);
                    plain::attention(&queries[i], &k, &v, &shapes[i], &mut want);
                    want
                })
                .collect();
            on_every_level(|level| {
                let mut outputs: Vec<Vec<f32>> = queries.iter().map(|q| vec![f32::NAN; q.len()]).collect();
                let spans = queries.iter().zip(&shapes).zip(&mut outputs).enumerate().map(|(i, ((q, shape), out))| {
                    let (k, v) = key_value(i);
                    AttentionSpan { q, k, v, shape: *shape, out }
                });
                cpu::attention_spans(&mut spans.collect::<Vec<_>>());
                for (i, (got, want)) in outputs.iter().zip(&expected).enumerate() {
                    close(&format!("{tokens:?}, variant {variant}: sequence {i} on {level}"), got, want, 1e-5);
                }
            });
        }
    }
}

#[test]
fn convolution_is_that_of_each_sequence() {
    let mut rng = Rng(32);
    for (channels, width) in [(5, 1), (300, 4), (8192, 4)] {
        for tokens in TOKENS {
            let n: usize = tokens.iter().sum();
            let shape = |seq| ConvShape { batch: 1, seq, channels, width };
            let (u, weight) = (rng.floats(n * channels, 2.0), rng.floats(channels * width, 1.0));
            let tails: Vec<Vec<f32>> = tokens.iter().map(|_| rng.floats((width - 1) * channels, 2.0)).collect();
            on_every_level(|level| {
                let (mut got, mut got_tails) = (vec![f32::NAN; u.len()], tails.clone());
                let mut slices: Vec<&mut [f32]> = got_tails.iter_mut().map(Vec::as_mut_slice).collect();
                cpu::causal_conv1d_silu_spans(&u, tokens, &mut slices, &weight, &shape(n), &mut got);
                let (mut want, mut want_tails) = (vec![0.0; u.len()], tails.clone());
                let mut start = 0;
                for (&tokens, tail) in tokens.iter().zip(&mut want_tails) {
                    let own = start * channels..(start + tokens) * channels;
                    let (u, y) = (&u[own.clone()], &mut want[own]);
                    cpu::causal_conv1d_silu(u, tail, &weight, &shape(tokens), y);
                    start += tokens;
                }
                assert_eq!((got, got_tails), (want, want_tails), "{tokens:?} of {channels} x {width} on {level}");
            });
        }
    }
}

#[test]
fn the_delta_rule_is_that_of_each_sequence() {
    let mut rng = Rng(33);
    for (key_heads, value_heads, key_dim, value_dim) in [(1, 2, 17, 33), (4, 8, 128, 128)] {
        for tokens in TOKENS {
            let n: usize = tokens.iter().sum();
            let shape = |seq| DeltaRuleShape { batch: 1, seq, key_heads, value_heads, key_dim, value_dim };
            let (keys, values, gates) = (key_heads * key_dim, value_heads * value_dim, value_heads);
            let (q, k, v) = (rng.floats(n * keys, 2.0), rng.floats(n * keys, 2.0), rng.floats(n * values, 2.0));
            let g: Vec<f32> = (0..n * gates).map(|_| -rng.float(1.0).abs()).collect();
            let beta: Vec<f32> = (0..n * gates).map(|_| rng.float(1.0).abs()).collect();
            let states: Vec<Vec<f32>> = tokens.iter().map(|_| rng.floats(values * key_dim, 1.0)).collect();
            let rule = DeltaRuleInputs { q: &q[..], k: &k, v: &v, g: &g, beta: &beta };
            on_every_level(|level| {
                let (mut got, mut got_states) = (vec![f32::NAN; v.len()], states.clone());
                let mut slices: Vec<&mut [f32]> = got_states.iter_mut().map(Vec::as_mut_slice).collect();
                cpu::gated_delta_rule_spans(rule, tokens, &mut slices, &shape(n), &mut got);
                let (mut want, mut want_states) = (vec![0.0; v.len()], states.clone());
                let mut start = 0;
                for (&tokens, state) in tokens.iter().zip(&mut want_states) {
                    let own = |width: usize| start * width..(start + tokens) * width;
                    let (q, k, v) = (&q[own(keys)], &k[own(keys)], &v[own(values)]);
                    let (g, beta, o) = (&g[own(gates)], &beta[own(gates)], &mut want[own(values)]);
                    cpu::gated_delta_rule(DeltaRuleInputs { q, k, v, g, beta }, state, &shape(tokens), o);
                    start += tokens;
                }
                assert_eq!((got, got_states), (want, want_states), "{tokens:?} of {:?} on {level}", shape(n));
            });
        }
    }
}

#[test]
fn sequences_that_do_not_fit_are_refused() {
    let refused = |words: &str, f: &dyn Fn()| {
        let message = catch_quietly(f).expect_err(words);
        assert!(message.contains(words), "{message}");
    };
    let conv = |tokens: &[usize], tails: &mut [&mut [f32]]| {
        let seq = tokens.iter().fold(0usize, |sum, &tokens| sum.saturating_add(tokens));
        let p = ConvShape { batch: 1, seq, channels: 2, width: 2 };
        cpu::causal_conv1d_silu_spans(&[1.0; 4], tokens, tails, &[1.0; 4], &p, &mut [0.0; 4]);
    };
    refused("u has 4 elements", &|| conv(&[1, 2], &mut [&mut [0.0; 2], &mut [0.0; 2]]));
    refused("more elements than can be counted", &|| conv(&[1, usize::MAX], &mut [&mut [0.0; 2], &mut [0.0; 2]]));
    refused("1 tails for 2 sequences", &|| conv(&[1, 1], &mut [&mut [0.0; 4]]));
    refused("tail has 4 elements", &|| conv(&[2], &mut [&mut [0.0; 4]]));

    let delta = |tokens: &[usize], batch: usize, states: &mut [&mut [f32]]| {
        let p = DeltaRuleShape { batch, seq: 2, key_heads: 1, value_heads: 1, key_dim: 2, value_dim: 2 };
        let (x, gates) = ([1.0; 4], [0.5; 2]);
        let rule = DeltaRuleInputs { q: &x[..], k: &x, v: &x, g: &gates, beta: &gates };
        cpu::gated_delta_rule_spans(rule, tokens, states, &p, &mut [0.0; 4]);
    };
    refused("[1, 2] tokens", &|| delta(&[1, 2], 1, &mut [&mut [0.0; 4], &mut [0.0; 4]]));
    refused("[1] tokens", &|| delta(&[1], 2, &mut [&mut [0.0; 4]]));
    refused("1 states for 2 sequences", &|| delta(&[1, 1], 1, &mut [&mut [0.0; 8]]));
    refused("state has 8 elements", &|| delta(&[2], 1, &mut [&mut [0.0; 8]]));
}
