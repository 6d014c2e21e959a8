//! The quantisers against the bytes that bitsandbytes and the Nano exporter wrote for the same weights.

use crate::fixtures::{Fixture, assert_same_bits, code_book, rows};
use emberlm_quant::format::{NF4, dynamic_map, quantize_int8_rows, quantize_nf4, quantize_truequant};
use emberlm_quant::host::HostScales;

#[test]
fn nf4_bytes_are_those_of_bitsandbytes() {
    let cases = Fixture::open().nf4();
    assert_eq!(cases.len(), 26);
    for case in cases {
        let name = &case.name;
        let found = quantize_nf4(&case.source, case.double).unwrap();
        assert_eq!((found.n, found.k), (case.source.n, case.source.k), "{name}");
        let (found, expected) = (code_book(&found), code_book(&case.packed));
        assert_eq!(found.codes, expected.codes, "{name}: codes");
        assert_eq!(found.block, expected.block, "{name}: block");
        assert_eq!(found.stored, expected.stored, "{name}: stored type");
        assert_same_bits(name, &found.code_book, &expected.code_book);
        match (&found.scales, &expected.scales) {
            (HostScales::Single(found), HostScales::Single(expected)) => {
                assert_eq!(found, expected, "{name}: absmax")
            }
            (
                HostScales::Double { codes, map, absmax, block, offset },
                HostScales::Double { codes: codes_, map: map_, absmax: absmax_, block: block_, offset: offset_ },
            ) => {
                assert_same_bits(&format!("{name}: nested offset"), &[*offset], &[*offset_]);
                assert_same_bits(&format!("{name}: nested quant map"), map, map_);
                assert_same_bits(&format!("{name}: nested absmax"), absmax, absmax_);
                assert_eq!(codes, codes_, "{name}: absmax codes");
                assert_eq!(block, block_, "{name}: nested block");
            }
            other => panic!("{name}: {other:?}"),
        }
    }
    assert_eq!(NF4[15], 1.0);
    assert_eq!(dynamic_map()[255], 1.0);
}

#[test]
fn nano_bytes_are_those_of_the_exporter() {
    let cases = Fixture::open().nano();
    assert_eq!(cases.len(), 9);
    for case in cases {
        let name = &case.name;
        let found = match case.truequant {
            Some((bits, keep)) => quantize_truequant(&case.source, bits, keep),
            None => quantize_int8_rows(&case.source),
        };
        let found = found.unwrap();
        let (found, expected) = (rows(&found), rows(&case.packed));
        assert_eq!(found.slots, expected.slots, "{name}: slots");
        assert_eq!(found.wide_rows, expected.wide_rows, "{name}: wide rows");
        assert_eq!(found.narrow_bits, expected.narrow_bits, "{name}: bits");
        assert_same_bits(&format!("{name}: scales"), &found.scales, &expected.scales);
        assert_eq!(found.wide, expected.wide, "{name}: 8-bit codes");
        assert_eq!(found.narrow, expected.narrow, "{name}: packed codes");
    }
}
