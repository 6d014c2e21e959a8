//! Writes the first inputs of every target: `seeds DIRECTORY`.

use std::fs;
use std::path::Path;

use emberlm_fuzz::{byte_fallback, fixture};

fn main() {
    let to = std::env::args().nth(1).expect("usage: seeds DIRECTORY");
    let seed = |target: &str, name: &str, bytes: &[u8]| {
        let directory = Path::new(&to).join(target);
        fs::create_dir_all(&directory).expect("a directory");
        fs::write(directory.join(name), bytes).expect("written");
    };
    for (at, name) in ["leanllama", "crest_k4", "nano_compact", "leanllama_nf4", "crest_k4_nf4"].into_iter().enumerate()
    {
        let file = fixture(&format!("{name}/model.safetensors"));
        let length = u64::from_le_bytes(*file.first_chunk().expect("a length")) as usize;
        let kind = 1 + 4 * [0, 1, 2, 0, 1][at];
        seed("header", name, &[&[kind], &file[8..8 + length]].concat());
        let config = fixture(&format!("{name}/config.json"));
        seed("config", name, &config);
        let generation = fixture(&format!("{name}/generation_config.json"));
        seed("config", &format!("{name}-generation"), &[&config, &b"\0"[..], &generation].concat());
        let tokenizer = fixture(&format!("{name}/tokenizer.json"));
        let tokenizer_config = fixture(&format!("{name}/tokenizer_config.json"));
        seed("tokenizer", name, &[&tokenizer, &b"\0"[..], &tokenizer_config].concat());
    }
    let small = br#"{"a":{"dtype":"F32","shape":[2,2],"data_offsets":[0,16]},"b":{"dtype":"BF16","shape":[0],"data_offsets":[16,16]}}"#;
    seed("header", "small", &[&[1], &small[..]].concat());
    seed("header", "file", &[&[0], &emberlm_fuzz::container(small, &[0; 16])[..]].concat());
    seed("tokenizer", "byte_fallback", &byte_fallback());
    seed("index", "crest_k2", &fixture("crest_k2/model.safetensors.index.json"));
    seed("index", "small", br#"{"metadata":{},"weight_map":{"a":"model-00001-of-00003.safetensors"}}"#);
    seed("nano_spec", "nano_compact", &fixture("nano_compact/nano_compact_spec.json"));
    let state = br#"{"quant_type":"nf4","blocksize":64,"dtype":"float16","shape":[128,160],"nested_blocksize":256,"nested_dtype":"float32","nested_offset":0.01}"#;
    seed("nf4_state", "double", &[&[128, 128, 128, 0], &state[..]].concat());
    let state = br#"{"quant_type":"nf4","blocksize":64,"dtype":"bfloat16","shape":[128,160]}"#;
    seed("nf4_state", "single", &[&[128, 128, 128, 3], &state[..]].concat());
    seed("stop_strings", "one", "one </\u{1}s> two\0</s>\0abc".as_bytes());
    seed("stop_strings", "several", "a\u{1}aab日\u{1}本\0aab\0日本\0b".as_bytes());
    let ids = |ids: &[u16]| ids.iter().flat_map(|id| id.to_le_bytes()).collect::<Vec<_>>();
    seed("decode_stream", "bytes", &[vec![0], ids(&[0, 240, 159, 153, 130, 505, 64])].concat());
    seed("decode_stream", "fallback", &[vec![7], ids(&[1, 3, 250, 169, 163, 140, 8])].concat());
    for name in ["crest_k4", "crest_k2"] {
        seed("template", name, &fixture(&format!("{name}/chat_template.jinja")));
    }
    let templates = [
        "{% for m in messages %}{{ m.role ~ ': ' ~ m['content'] | trim }}{% endfor %}",
        "{% set ns = namespace(x='') %}{% for i in range(3) %}{% set ns.x = ns.x + 'a' * i %}{% endfor %}{{ ns.x[::-1] }}",
        "{% macro m(a, b=2) %}{{ a|tojson(indent=2) }}{{ b // 2 % 3 }}{% endmacro %}{{ m(tools) }}{{ raise_exception('x') }}",
        "{{ '%s' % 'a' }}{{ 'a,b'.split(',')|join }}{{ strftime_now('%Y') }}{{ loop is defined }}{{ messages[-1:] }}",
        "{%- if tools is iterable and tools is not string -%}{{ dict(a=1).items()|list }}{%- elif x -%}{% generation %}{% endgeneration %}{%- endif -%}",
    ];
    for (at, template) in templates.iter().enumerate() {
        seed("template", &format!("{at}"), template.as_bytes());
    }
}
