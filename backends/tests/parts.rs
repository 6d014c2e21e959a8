//! Attention over a cache in parts is attention over the cache in one piece, to the last bit.

mod common;

use common::{Eighths, Kind, Rng, Stored};
use emberlm_backends::cpu::{self, Attention, CacheSlice, CodeDecoder, KeyValue, Layer, Level};
use emberlm_backends::types::{CodeActivation, KV_TILE};
use half::f16;

/// seq, heads, kv heads, head dim, past, slots free: one token and prompts, in one tile and beyond its borders, odd widths.
const SHAPES: [(usize, usize, usize, usize, usize, usize); 9] = [
    (1, 4, 2, 16, 64, 0),
    (1, 13, 1, 48, 127, 3),
    (1, 8, 2, 128, 128, 1),
    (1, 32, 8, 64, 2100, 77),
    (2, 6, 2, 33, 63, 9),
    (7, 3, 3, 5, 200, 2),
    (17, 8, 4, 32, 190, 30),
    (129, 4, 4, 24, 0, 5),
    (70, 16, 2, 64, 500, 64),
];

/// Tiles of each part but the last, for a cache of so many tokens.
fn cuts(capacity: usize) -> Vec<Vec<usize>> {
    let most = capacity.saturating_sub(1) / KV_TILE;
    let mut cuts = vec![vec![1], vec![most], vec![1; most], vec![1, 2], vec![2, 1, 1]];
    cuts.retain(|tiles| tiles.iter().all(|&tiles| tiles > 0) && tiles.iter().sum::<usize>() <= most);
    cuts
}

/// `[groups, capacity, width]` in parts.
fn split<T: Copy>(cache: &[T], (groups, width): (usize, usize), tiles: &[usize]) -> Vec<Vec<T>> {
    let capacity = cache.len() / (groups * width);
    let mut first = 0;
    let ends = tiles.iter().scan(0, |end, tiles| {
        *end += tiles * KV_TILE;
        Some(*end)
    });
    let ends: Vec<usize> = ends.chain([capacity]).collect();
    let part = |end: usize| {
        let tokens = std::mem::replace(&mut first, end)..end;
        cache
            .chunks_exact(capacity * width)
            .flat_map(move |head| &head[tokens.start * width..tokens.end * width])
            .copied()
    };
    ends.into_iter().map(part).map(Iterator::collect).collect()
}

/// Random up to the last token, NaN beyond: what was never written must not be read.
fn cache(rng: &mut Rng, p: &Attention, groups: usize, width: usize) -> Vec<f32> {
    let mut cache = rng.floats(groups * p.capacity * width, 1.5);
    for group in cache.chunks_exact_mut(p.capacity * width) {
        group[(p.past + p.seq) * width..].fill(f32::NAN);
    }
    cache
}

fn same(what: &str, q: &[f32], whole: [&KeyValue; 2], parts: [&KeyValue; 2], p: &Attention) {
    for level in Level::available() {
        let [want, got] = [whole, parts].map(|[k, v]| {
            let mut out = vec![f32::NAN; q.len()];
            cpu::with_level(level, || cpu::attention(q, k, v, p, &mut out));
            out.into_iter().map(f32::to_bits).collect::<Vec<_>>()
        });
        assert!(want == got, "{what}, {p:?} on {}", level.name());
    }
}

#[test]
fn parts_are_the_whole_to_the_last_bit() {
    let mut rng = Rng(61);
    for (seq, heads, kv_heads, head_dim, past, free) in SHAPES {
        for batch in if past < 1000 { 1..3 } else { 1..2 } {
            let (capacity, scale) = (past + seq + free, 0.2);
            let p = Attention { batch, seq, heads, kv_heads, head_dim, past, capacity, scale };
            let (groups, width, r, h) = (batch * kv_heads, kv_heads * head_dim, 5, 40);
            let q = rng.floats(batch * seq * heads * head_dim, 2.0);
            let floats = [(); 2].map(|()| cache(&mut rng, &p, groups, head_dim));
            let halves = floats.each_ref().map(|x| x.iter().map(|&x| f16::from_f32(x).to_bits()).collect::<Vec<_>>());
            let rounded = halves.each_ref().map(|x| x.iter().map(|&x| f16::from_bits(x).to_f32()).collect::<Vec<_>>());
            let codes = cache(&mut rng, &p, batch, r);
            let (first, last) = (Stored::new(&mut rng, Kind::F16, h, r), Stored::new(&mut rng, Kind::F16, width, h));
            let flat = Stored::new(&mut rng, Kind::F32, width, r);
            let (b1, b2) = (rng.floats(h, 1.0), rng.floats(width, 1.0));
            let hidden = Some((Layer { weight: first.weight(), bias: Some(&b1[..]) }, CodeActivation::Gelu));
            let gelu = CodeDecoder { hidden, output: Layer { weight: last.weight(), bias: Some(&b2[..]) } };
            let linear = CodeDecoder { hidden: None, output: Layer { weight: flat.weight(), bias: None } };
            // In whole blocks of 8 bits.
            let inner_width = 128;
            let inner = cache(&mut rng, &p, batch, inner_width);
            let wide = Stored::new(&mut rng, Kind::F16, width, inner_width);
            let wide_output = Layer { weight: wide.weight(), bias: None };
            for tiles in cuts(capacity) {
                let what = |kind: &str| format!("{kind} in parts of {tiles:?} tiles");
                let heads = (groups, head_dim);
                let float_parts = floats.each_ref().map(|x| split(x, heads, &tiles));
                let half_parts = halves.each_ref().map(|x| split(x, heads, &tiles));
                let code_parts = split(&codes, (batch, r), &tiles);
                let inner_parts: Vec<Eighths> = split(&inner, (batch, inner_width), &tiles)
                    .iter()
                    .map(|part| Eighths::new(part, inner_width))
                    .collect();

                let whole = floats.each_ref().map(|x| [CacheSlice::F32(x)]);
                let whole = whole.each_ref().map(|x| KeyValue::Plain(x));
                let parts = float_parts.each_ref().map(|x| x.iter().map(|x| CacheSlice::F32(x)).collect::<Vec<_>>());
                let parts = parts.each_ref().map(|x| KeyValue::Plain(x));
                same(&what("F32"), &q, whole.each_ref(), parts.each_ref(), &p);
                // Keys in parts with values in one, and the other way round.
                same(&what("F32 keys"), &q, whole.each_ref(), [&parts[0], &whole[1]], &p);
                same(&what("F32 values"), &q, whole.each_ref(), [&whole[0], &parts[1]], &p);

                let whole16 = halves.each_ref().map(|x| [CacheSlice::F16(x)]);
                let whole16 = whole16.each_ref().map(|x| KeyValue::Plain(x));
                let parts16 = half_parts.each_ref().map(|x| x.iter().map(|x| CacheSlice::F16(x)).collect::<Vec<_>>());
                let parts16 = parts16.each_ref().map(|x| KeyValue::Plain(x));
                same(&what("F16"), &q, whole16.each_ref(), parts16.each_ref(), &p);

                // The first part in halves, the others in single precision, as after a number that halves cannot hold.
                let rounded_parts = rounded.each_ref().map(|x| split(x, heads, &tiles));
                let mixed = [0, 1].map(|side| {
                    let rest = rounded_parts[side][1..].iter().map(|x| CacheSlice::F32(x));
                    [CacheSlice::F16(&half_parts[side][0])].into_iter().chain(rest).collect::<Vec<_>>()
                });
                let mixed = mixed.each_ref().map(|x| KeyValue::Plain(x));
                let wide = rounded.each_ref().map(|x| [CacheSlice::F32(x)]);
                let wide = wide.each_ref().map(|x| KeyValue::Plain(x));
                same(&what("F16 then F32"), &q, wide.each_ref(), mixed.each_ref(), &p);

                let (whole_codes, codes_in_parts) =
                    ([&codes[..]], code_parts.iter().map(|x| &x[..]).collect::<Vec<_>>());
                for (name, decoder) in [("GELU codes", &gelu), ("linear codes", &linear)] {
                    let one = KeyValue::Compressed { codes: &whole_codes, decoder };
                    let more = KeyValue::Compressed { codes: &codes_in_parts, decoder };
                    same(&what(&format!("{name} as values")), &q, [&whole16[0], &one], [&parts16[0], &more], &p);
                    same(&what(&format!("{name} as keys")), &q, [&one, &whole[1]], [&more, &parts[1]], &p);
                    same(&what(&format!("{name} as both")), &q, [&one, &one], [&more, &more], &p);
                }
                // The codes of a linear decoder are hidden values.
                let one = [CacheSlice::F32(&codes)];
                let more: Vec<_> = code_parts.iter().map(|x| CacheSlice::F32(x)).collect();
                let [one, more] = [&one[..], &more].map(|values| KeyValue::Hidden { values, output: &linear.output });
                let coded = KeyValue::Compressed { codes: &whole_codes, decoder: &linear };
                same(&what("hidden values"), &q, [&whole16[0], &one], [&parts16[0], &more], &p);
                same(&what("hidden keys"), &q, [&one, &whole[1]], [&more, &parts[1]], &p);
                same(&what("hidden values and codes"), &q, [&coded, &coded], [&one, &one], &p);
                let whole_inner = Eighths::new(&inner, inner_width);
                let one = [whole_inner.slice()];
                let more: Vec<_> = inner_parts.iter().map(Eighths::slice).collect();
                let [one, more] = [&one[..], &more].map(|values| KeyValue::Hidden { values, output: &wide_output });
                same(&what("hidden values in 8 bits"), &q, [&whole16[0], &one], [&parts16[0], &more], &p);
                same(&what("hidden keys in 8 bits"), &q, [&one, &whole[1]], [&more, &parts[1]], &p);
            }
        }
    }
}

/// Parts that do not meet between two tiles, that are missing or not of whole tokens.
#[test]
fn parts_that_are_none_are_refused() {
    let p = Attention { batch: 1, seq: 1, heads: 2, kv_heads: 2, head_dim: 4, past: 99, capacity: 100, scale: 1.0 };
    let floats = vec![0.5f32; 2 * 128 * 4];
    let of = |tokens: usize| &floats[..2 * tokens * 4];
    let refused = |lens: &[usize], why: &str| {
        let plain: Vec<CacheSlice> = lens.iter().map(|&tokens| CacheSlice::F32(of(tokens))).collect();
        let kv = KeyValue::Plain(&plain);
        let call = || cpu::attention(&floats[..8], &kv, &kv, &p, &mut [0.0; 8]);
        let panic = std::panic::catch_unwind(std::panic::AssertUnwindSafe(call)).expect_err("a panic");
        let message = panic.downcast_ref::<String>().expect("a message");
        assert!(message.contains(why), "{lens:?}: {message}");
    };
    refused(&[], "holds 0 tokens, not 100");
    refused(&[64, 35], "holds 99 tokens, not 100");
    refused(&[63, 37], "a multiple of 64 tokens");
    refused(&[0, 100], "a multiple of 64 tokens");
    refused(&[36, 64], "a multiple of 64 tokens");
}
