//! What the public functions of the CPU refuse: slices that are not as long as their shapes say, also where the product of the
//! sides wraps around to a length that would fit. Behind that border the kernels use pointers.

use emberlm_backends::cpu::{
    self, Attention, CacheSlice, CacheSliceMut, CodeBook4, CodeDecoder, Int8, IntegerRows, KeyValue, Layer, Level,
    Matrix, Mlp, Product, Weight, with_level,
};
use emberlm_backends::panics::catch_quietly;
use emberlm_backends::types::{
    CodeActivation, ConvShape, DeltaRuleInputs, DeltaRuleShape, RmsNorm, RotaryShape, StoreKv,
};

/// `HALF * 2` wraps to 0, `HALF * 2 + 1` rows of 2 to 2 elements.
const HALF: usize = 1 << (usize::BITS - 1);

#[track_caller]
fn refused(what: &str, names: &str, f: impl Fn()) {
    for level in Level::available() {
        let message = catch_quietly(|| with_level(level, &f)).expect_err(what);
        assert!(message.contains(names), "{what} on {}: {message}", level.name());
    }
}

fn f32_weight(n: usize, k: usize, data: &[f32]) -> Weight<'_> {
    Weight { n, k, data: Matrix::F32(data) }
}

#[test]
fn a_linear_whose_shape_wraps_around() {
    let w = [1.0f32; 2];
    // [2^63 + 1, 2] floats are 2 where the product wraps: the kernel would read and write without end.
    let rows = HALF + 1;
    refused("x", "x [", || {
        let mut y = [0.0; 2];
        cpu::linear(&[1.0; 2], rows, &f32_weight(1, 2, &w), None, &mut y);
    });
    refused("y", "y [", || {
        let mut y = [0.0; 2];
        cpu::linear(&[], rows, &f32_weight(2, 0, &[]), None, &mut y);
    });
    refused("weight", "a matrix [", || {
        let mut y = [0.0; 2];
        cpu::linear(&[1.0; 2], 1, &f32_weight(rows, 2, &w), None, &mut y);
    });
    refused("linears", "x [", || {
        let mut y = [0.0; 2];
        let products = &mut [Product { weight: f32_weight(1, 2, &w), bias: None, y: &mut y }];
        cpu::linears(&[1.0; 2], rows, products);
    });
    refused("rows", "out", || cpu::dequantize_rows(&f32_weight(1, 2, &w), 0, 1, &mut [0.0; 3]));
    refused("last row", "overflows", || cpu::dequantize_rows(&f32_weight(1, 2, &w), usize::MAX, 2, &mut [0.0; 4]));
    refused("id", "id 1", || cpu::embed(&[1], &f32_weight(1, 2, &w), &mut [0.0; 2]));
    refused("mlp", "inner", || {
        let (gate, down) = (f32_weight(4, 0, &[]), f32_weight(0, 4, &[]));
        cpu::swiglu_mlp(&[], HALF, &Mlp { gate, up: gate, down }, None, &mut []);
    });
}

#[test]
fn a_weight_that_is_too_short() {
    let book = [0.5f32; 16];
    let scales = cpu::BlockScales::Single(&[1.0]);
    let nf4 = |codes: &'static [u8], block| Matrix::CodeBook4(CodeBook4 { codes, code_book: &book, block, scales });
    for (what, names, n, k, data) in [
        ("floats", "elements for a matrix", 2, 2, Matrix::F32(&[0.0; 3])),
        ("halves", "elements for a matrix", 2, 2, Matrix::F16(&[0; 5])),
        ("codes", "bytes of codes", 1, 64, nf4(&[0; 31], 64)),
        ("scales", "block scales", 1, 66, nf4(&[0; 64], 64)),
        ("block", "elements per block", 1, 64, nf4(&[0; 32], 0)),
    ] {
        refused(what, names, || {
            let mut y = vec![0.0; n];
            cpu::linear(&vec![1.0; k], 1, &Weight { n, k, data }, None, &mut y);
        });
    }
    for (what, names, k, codes, scales) in [
        ("bytes", "bytes of codes", 65, 129, 4),
        ("scales of bytes", "block scales", 65, 130, 3),
        ("scales of a short block", "block scales", 1, 2, 1),
    ] {
        let (codes, scales) = (vec![0; codes], vec![0; scales]);
        let data = Matrix::Int8(Int8 { codes: &codes, scales: &scales });
        refused(what, names, || cpu::linear(&vec![1.0; k], 1, &Weight { n: 2, k, data }, None, &mut [0.0; 2]));
    }
    let rows = |wide_rows, narrow_stride, narrow: &'static [u8], slots| IntegerRows {
        wide: &[0; 8],
        wide_rows,
        narrow,
        narrow_stride,
        narrow_bits: 4,
        scales: &[1.0; 2],
        slots,
    };
    for (what, names, rows) in [
        ("wide rows", "bytes of wide rows", rows(2, 0, &[], None)),
        ("more wide rows than rows", "wide rows in a matrix", rows(3, 0, &[], None)),
        ("narrow rows", "bytes of narrow rows", rows(1, 4, &[0; 3], None)),
        ("stride", "narrow stride", rows(0, 3, &[0; 8], None)),
        ("stride that wraps", "overflow", rows(0, HALF + 4, &[0; 8], None)),
        ("slot", "row slot 2", rows(1, 4, &[0; 4], Some(&[0, 2]))),
    ] {
        // Two rows fit the wrapped stride, three wrap it.
        let n = if names == "overflow" { 3 } else { 2 };
        let rows = IntegerRows { scales: &[1.0; 3], ..rows };
        refused(what, names, || {
            let mut y = vec![0.0; n];
            cpu::linear(&[1.0; 8], 1, &Weight { n, k: 8, data: Matrix::IntegerRows(rows) }, None, &mut y);
        });
    }
}

#[test]
fn rows_and_tokens_whose_shapes_wrap_around() {
    let w = [1.0f32; 2];
    let rows = HALF + 1;
    let p = RmsNorm { m: rows, h: 2, eps: 1e-6, unit_offset: false };
    refused("norm", "x [", || cpu::rms_norm(&[1.0; 2], &w, &p, &mut [0.0; 2]));
    refused("add norm", "x [", || cpu::add_rms_norm(&mut [1.0; 2], &w, &w, &p, &mut [0.0; 2]));
    let p = RmsNorm { m: 1, ..p };
    refused("gated norm", "z", || cpu::rms_norm_gated(&[1.0; 2], &[1.0; 3], &w, &p, &mut [0.0; 2]));
    refused("weight of a norm", "weight", || cpu::rms_norm(&[1.0; 2], &[1.0; 3], &p, &mut [0.0; 2]));
    let p = RotaryShape { batch: rows, seq: 1, heads: 1, head_dim: 2, half: 1 };
    refused("rotary", "x [", || cpu::rotary(&mut [1.0; 2], &[1.0], &[0.0], &p));
    let p = RotaryShape { batch: 1, half: 2, ..p };
    refused("rotary beyond a head", "2 pairs", || cpu::rotary(&mut [1.0; 2], &[1.0; 2], &[0.0; 2], &p));
    refused("gate", "elements", || cpu::sigmoid_gate(&mut [1.0; 2], &[1.0; 3]));
    refused("delta gates", "dt has", || cpu::delta_gates(&mut [1.0; 3], &mut [1.0; 3], &w, &w));
    let p = ConvShape { batch: rows, seq: 1, channels: 2, width: 1 };
    refused("conv", "u [", || cpu::causal_conv1d_silu(&w, &mut [], &w, &p, &mut [0.0; 2]));
    let p = ConvShape { batch: 1, width: 2, ..p };
    refused("conv's tail", "tail", || cpu::causal_conv1d_silu(&w, &mut [], &[1.0; 4], &p, &mut [0.0; 2]));
    let rule = DeltaRuleInputs { q: &w[..], k: &w, v: &w, g: &[0.0], beta: &[0.0] };
    let p = DeltaRuleShape { batch: rows, seq: 1, key_heads: 1, value_heads: 1, key_dim: 2, value_dim: 2 };
    refused("delta rule", "q [", || cpu::gated_delta_rule(rule, &mut [0.0; 4], &p, &mut [0.0; 2]));
    let p = DeltaRuleShape { batch: 1, ..p };
    refused("delta state", "state", || cpu::gated_delta_rule(rule, &mut [0.0; 3], &p, &mut [0.0; 2]));
}

#[test]
fn caches_whose_shapes_wrap_around() {
    let store = |batch, seq, capacity, at| {
        let mut cache = [0.0f32; 2];
        let p = StoreKv { batch, seq, heads: 1, capacity, width: 2, at };
        assert!(cpu::store_kv(&[1.0; 2], CacheSliceMut::F32(&mut cache), &p));
    };
    refused("store", "src [", || store(HALF + 1, 1, 1, 0));
    refused("capacity", "exceed", || store(1, 1, 1, 1));
    refused("position", "overflows", || store(1, 1, 1, usize::MAX));
    refused("cache", "cache [", || store(1, 1, HALF + 1, 0));
    refused("scales", "the scales of the cache", || {
        let cache = CacheSliceMut::Q8 { codes: &mut [0; 2], scales: &mut [0.0; 2] };
        let _ = cpu::store_kv(&[1.0; 2], cache, &StoreKv { batch: 1, seq: 1, heads: 1, capacity: 1, width: 2, at: 0 });
    });

    let shape = |batch, seq, past, capacity| Attention {
        batch,
        seq,
        heads: 1,
        kv_heads: 1,
        head_dim: 2,
        past,
        capacity,
        scale: 1.0,
    };
    let two = [1.0f32; 2];
    let attend = |p: Attention| {
        let cache = [CacheSlice::F32(&two)];
        let kv = KeyValue::Plain(&cache);
        cpu::attention(&two, &kv, &kv, &p, &mut [0.0; 2]);
    };
    refused("queries", "q [", || attend(shape(HALF + 1, 1, 0, 1)));
    refused("stored keys", "the cache holds 1 tokens", || attend(shape(1, 1, 0, HALF + 1)));
    refused("scales of 8 bits", "the scales of the cache", || {
        let stored = [CacheSlice::Q8 { codes: &[1; 2], scales: &[] }];
        let kv = KeyValue::Plain(&stored);
        cpu::attention(&two, &kv, &kv, &shape(1, 1, 0, 1), &mut [0.0; 2]);
    });
    refused("past", "overflows", || attend(shape(1, 1, usize::MAX, 1)));
    refused("codes", "the code cache", || {
        let output = Layer { weight: f32_weight(2, 1, &two), bias: None };
        let decoder = CodeDecoder { hidden: None, output };
        let cache = [CacheSlice::F32(&two)];
        let k = KeyValue::Plain(&cache);
        let v = KeyValue::Compressed { codes: &[], decoder: &decoder };
        cpu::attention(&two, &k, &v, &shape(1, 1, 0, 1), &mut [0.0; 2]);
    });
    let hidden = |n: usize, values: CacheSlice| {
        let (output, cache) = (Layer { weight: f32_weight(n, 1, &two), bias: None }, [CacheSlice::F32(&two)]);
        let (k, v) = (KeyValue::Plain(&cache), KeyValue::Hidden { values: &[values], output: &output });
        cpu::attention(&two, &k, &v, &shape(1, 1, 0, 1), &mut [0.0; 2]);
    };
    refused("hidden values", "the cache of hidden values", || hidden(2, CacheSlice::F32(&[])));
    refused("scales of hidden values", "the scales of the cache", || {
        hidden(2, CacheSlice::Q8 { codes: &[1], scales: &[] })
    });
    let decode = |codes: &[f32], out: &mut [f32]| {
        let layer = Layer { weight: f32_weight(2, 1, &two), bias: None };
        cpu::hidden_values(codes, &layer, CodeActivation::Relu, out);
    };
    refused("codes of hidden values", "codes", || decode(&two, &mut [0.0; 2]));
    refused("hidden values of codes", "hidden values", || decode(&two, &mut [0.0; 3]));
    refused("the last layer", "the decoder gives 1 values, not 2", || hidden(1, CacheSlice::F32(&two[..1])));
}
