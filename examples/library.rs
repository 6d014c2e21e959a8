//! Loads a model and streams a continuation: the whole library in one page.
//!
//! ```sh
//! cargo run --release --example library -- tests/fixtures/leanllama "Hello"
//! ```

use std::io::Write;
use std::path::Path;

use anyhow::Context;
use emberlm::prelude::*;

/// The backend is chosen here and nowhere else.
type Backend = burn_ndarray::NdArray<f32>;

fn stream<B: CompactBackend>(dir: &Path, prompt: &str, device: &B::Device) -> anyhow::Result<()> {
    let pretrained = Pretrained::open(dir)?;
    let text = pretrained.text()?;
    let model = pretrained.load::<B>(device)?;
    let options = GenerateOptions { max_tokens: 64, ..pretrained.generate_options(&text) };
    let mut pieces = Generator::new(&model, &text, options)?.run(&text.encode(prompt, true)?)?;
    for piece in &mut pieces {
        print!("{}", piece?.text);
        std::io::stdout().flush()?;
    }
    let summary = pieces.summary().context("it has not ended")?;
    println!("\n\n{} tokens in {:.2} s", summary.generated.len(), summary.decode_seconds);
    Ok(())
}

fn main() -> anyhow::Result<()> {
    let mut arguments = std::env::args().skip(1);
    let (Some(dir), Some(prompt)) = (arguments.next(), arguments.next()) else {
        anyhow::bail!("usage: library MODEL_DIR PROMPT");
    };
    stream::<Backend>(Path::new(&dir), &prompt, &Default::default())
}
