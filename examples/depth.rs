//! Shows how deep each token of a text goes in a CREST model, and what other thresholds would do.
//!
//! ```sh
//! cargo run --release --example depth -- tests/fixtures/crest_k4 "How many steps does it need?"
//! ```

use emberlm::prelude::*;

type Backend = burn_ndarray::NdArray<f32>;

/// Steps per layer of every token of the prompt.
fn depths<B: CompactBackend>(model: &CausalLm<B>, text: &TextProcessor, prompt: &[u32]) -> Result<Vec<f64>> {
    let options = GenerateOptions { max_tokens: 1, trace: Trace::All, ..GenerateOptions::default() };
    let mut pieces = Generator::new(model, text, options)?.run(prompt)?;
    pieces.next().transpose()?;
    Ok(pieces.prompt_depth().iter().map(|depth| depth.mean_steps()).collect())
}

fn main() -> anyhow::Result<()> {
    let mut arguments = std::env::args().skip(1);
    let (Some(dir), Some(prompt)) = (arguments.next(), arguments.next()) else {
        anyhow::bail!("usage: depth MODEL_DIR TEXT");
    };
    let pretrained = Pretrained::open(&dir)?;
    let text = pretrained.text()?;
    let mut model = pretrained.load::<Backend>(&Default::default())?;
    let Some(crest) = model.architecture().crest.clone() else {
        anyhow::bail!("{dir} is not a CREST model: its tokens all go equally deep");
    };

    let prompt = text.encode(&prompt, true)?;
    for (id, steps) in prompt.iter().zip(depths(&model, &text, &prompt)?) {
        println!("{steps:>5.2}  {:?}", text.decode(&[*id], false)?);
    }
    println!("\nthreshold  mean steps of {}", crest.num_steps);
    for threshold in [0.5, 0.7, 0.8, 0.9, 0.95, 0.99] {
        model.set_depth(crest.num_steps, true, threshold)?;
        let steps = depths(&model, &text, &prompt)?;
        println!("{threshold:>9}  {:.2}", steps.iter().sum::<f64>() / steps.len() as f64);
    }
    Ok(())
}
