//! Adaptive depth on the device.

use emberlm_backends::cube::{self, HaltStep};
use emberlm_backends::types::{HaltMode, HaltRule, HaltWeights};

use crate::common::{Rng, close};
use crate::device::{Float, client, download, download_words, upload_ints, upload_words};

/// The state of one token in f64.
struct Token {
    active: bool,
    remaining: f64,
    cumulative: f64,
    steps: u32,
    output: Vec<f64>,
}

impl Token {
    /// The step's probability and weight; see [`HaltRule`].
    fn step(&mut self, s: &[f32], logit: Option<f32>, p: &HaltStep, own: Option<(f32, usize)>) -> (f64, f64) {
        if !self.active {
            return (0.0, 0.0);
        }
        let at_last = logit.is_none() || own.is_some_and(|(_, last)| self.steps as usize + 1 >= last);
        let logit = logit.filter(|_| !at_last);
        let threshold = own.map_or(p.rule.threshold, |(threshold, _)| threshold);
        let gate = logit.map_or(1.0, |logit| 1.0 / (1.0 + (-f64::from(logit)).exp()));
        let share = gate * self.remaining;
        let reached = match p.rule.mode {
            _ if own.is_none() && !p.rule.enabled => -1.0,
            HaltMode::Cumulative => self.cumulative + share,
            HaltMode::Step => gate,
        };
        let stop = at_last || reached >= f64::from(threshold);
        let weight = match p.rule.weights {
            HaltWeights::Remainder if stop => self.remaining,
            HaltWeights::Remainder | HaltWeights::Truncate => share,
            HaltWeights::State => f64::from(u8::from(stop)),
        };
        self.output.iter_mut().zip(s).for_each(|(out, s)| *out += weight * f64::from(*s));
        self.steps += 1;
        self.cumulative += share;
        self.remaining *= 1.0 - gate;
        self.active = !stop;
        (if at_last { 0.0 } else { gate }, weight)
    }
}

#[test]
fn steps_weights_and_mixtures_are_those_of_the_rule() {
    let client = client();
    let mut rng = Rng(19);
    for float in Float::available(&client) {
        for (mode, enabled) in [(HaltMode::Cumulative, true), (HaltMode::Step, true), (HaltMode::Step, false)] {
            for weights in [HaltWeights::Remainder, HaltWeights::Truncate, HaltWeights::State] {
                for (m, h) in [(1, 1), (3, 300), (129, 70)] {
                    let p = HaltStep { m, h, rule: HaltRule { mode, weights, enabled, threshold: 0.7 } };
                    four_steps(&client, &mut rng, float, &p, false);
                    if !enabled {
                        four_steps(&client, &mut rng, float, &p, true);
                    }
                }
            }
        }
    }
}

/// With one rule for all tokens, or with thresholds and last steps of their own.
fn four_steps(client: &crate::device::Client, rng: &mut Rng, float: Float, p: &HaltStep, own: bool) {
    let (m, h) = (p.m, p.h);
    let mut tokens: Vec<Token> = (0..m)
        .map(|_| Token { active: true, remaining: 1.0, cumulative: 0.0, steps: 0, output: vec![0.0; h] })
        .collect();
    let state = cube::HaltState {
        active: upload_words(client, &vec![1; m]),
        remaining: Float::F32.upload(client, &vec![1.0; m]),
        cumulative: Float::F32.upload(client, &vec![0.0; m]),
        steps: upload_ints(client, &vec![0; m]),
        output: Float::F32.upload(client, &vec![0.0; m * h]),
    };
    let own: Option<Vec<(f32, usize)>> =
        own.then(|| (0..m).map(|i| ([0.3, 0.7, 1.0, f32::MAX][i % 4], 1 + i / 4 % 4)).collect());
    let rows = own.as_ref().map(|own| cube::HaltRows {
        threshold: Float::F32.upload(client, &own.iter().map(|own| own.0).collect::<Vec<_>>()),
        steps: upload_ints(client, &own.iter().map(|own| own.1).collect::<Vec<_>>()),
    });
    for k in 0..4 {
        let what = format!("step {k} of {p:?} of {float:?}, by row {}", own.is_some());
        let s = float.rounded(&rng.floats(m * h, 2.0));
        let logits = (k < 3).then(|| rng.floats(m, 3.0));
        let (on_s, on_logits) =
            (float.upload(client, &s), logits.as_ref().map(|logits| Float::F32.upload(client, logits)));
        let probability = logits.is_some().then(|| Float::F32.unwritten(client, m));
        let weight = Float::F32.unwritten(client, m);
        let gate = on_logits.as_ref().zip(probability.as_ref());
        let gate = gate.map(|(logit, probability)| cube::HaltGate { logit, probability, rows: rows.as_ref() });
        cube::halt_step(client, &state, &on_s, gate, &weight, *p);

        let records: Vec<(f64, f64)> = tokens
            .iter_mut()
            .enumerate()
            .map(|(i, token)| {
                token.step(&s[i * h..(i + 1) * h], logits.as_ref().map(|l| l[i]), p, own.as_ref().map(|own| own[i]))
            })
            .collect();
        let floats = |f: &dyn Fn(&(f64, f64)) -> f64| records.iter().map(|r| f(r) as f32).collect::<Vec<_>>();
        close(&format!("weight at {what}"), &download(client, &weight), &floats(&|r| r.1), 1e-6);
        if let Some(probability) = &probability {
            close(&format!("probability at {what}"), &download(client, probability), &floats(&|r| r.0), 1e-6);
        }
        let active: Vec<u32> = tokens.iter().map(|t| u32::from(t.active)).collect();
        assert_eq!(download_words(client, &state.active), active, "active after {what}");
        let steps: Vec<u32> = tokens.iter().map(|t| t.steps).collect();
        assert_eq!(download_words(client, &state.steps), steps, "steps after {what}");
        let output: Vec<f32> = tokens.iter().flat_map(|t| &t.output).map(|&x| x as f32).collect();
        close(&format!("output after {what}"), &download(client, &state.output), &output, 2e-6);
    }
}
