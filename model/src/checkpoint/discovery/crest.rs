//! Finding CREST's steps and gates: their names are not published, their shapes are.
//!
//! Per layer, every `[I, D], [I, D], [D, I]` triple under one parent is the MLP of a step, ordered by the integers in its
//! path. What is left must be halting gates: `Linear(D, 1)`, or `Linear(D, r)` and `Linear(r, 1)`; one for all steps, one per
//! step, or those of all steps stacked in one matrix. Anything else is refused with a list of what was found.

use std::collections::{BTreeMap, BTreeSet};

use super::{Discovered, LayerTensors, Rename};
use crate::checkpoint::names::{integers, list, owner, shown};
use crate::checkpoint::problem::{CheckpointError, TensorProperty};
use crate::config::DiscoveredCrest;
use crate::{Error, Result};

/// Parts of a layer that belong to the body.
const BODY: [&str; 4] = ["self_attn.", "linear_attn.", "input_layernorm.", "post_attention_layernorm."];

/// Names within a layer, and their true shapes.
type Shapes<'a> = BTreeMap<&'a str, &'a [usize]>;

/// Finds steps and gates in every layer; all layers must agree.
pub(in crate::checkpoint) fn discover(
    layers: &LayerTensors,
    hidden: usize,
    intermediate: usize,
) -> Result<Discovered<DiscoveredCrest>> {
    let mut out = Discovered { renames: Vec::new(), spare: Vec::new(), found: None };
    for (&layer, tensors) in layers {
        let loose: Shapes = tensors
            .iter()
            .filter(|(name, _)| !BODY.iter().any(|part| name.starts_with(part)))
            .map(|(name, shape)| (name.as_str(), shape.as_slice()))
            .collect();
        let mut search = Search { layer, hidden, intermediate, loose, out: &mut out };
        let found = search.run()?;
        match &out.found {
            Some(before) if *before != found => {
                let message = format!(
                    "layer {layer} holds {found}; the layers before hold {before}: adaptive depth must be the same in all layers"
                );
                let [before, found] = [before, &found].map(|found| TensorProperty::Value(found.to_string()));
                return Err(Error::discovery(CheckpointError::of_layer(layer, message).instead(before, found)));
            }
            _ => out.found = Some(found),
        }
    }
    match out.found {
        Some(_) => Ok(out),
        None => {
            let message = "no layers (model.layers.N) in the checkpoint";
            let error = CheckpointError::of_tensor("model.layers", message).found(TensorProperty::Absent);
            Err(Error::discovery(error))
        }
    }
}

struct Search<'a, 'b> {
    layer: usize,
    hidden: usize,
    intermediate: usize,
    loose: Shapes<'a>,
    out: &'b mut Discovered<DiscoveredCrest>,
}

/// A halting gate: its linears, each with the place in the canonical name ("", "0." or "2.").
struct Gate<'a> {
    key: (Vec<u64>, &'a str),
    hidden: Option<usize>,
    linears: Vec<(&'static str, &'a str)>,
    /// Row of a stacked matrix.
    row: Option<usize>,
}

impl<'a> Search<'a, '_> {
    fn run(&mut self) -> Result<DiscoveredCrest> {
        let num_steps = self.steps()?;
        let gates = self.gates(num_steps)?;
        self.place_gates(num_steps, gates)
    }

    /// Takes the MLPs out of `loose`; their number.
    fn steps(&mut self) -> Result<usize> {
        let (up, down) = ([self.intermediate, self.hidden], [self.hidden, self.intermediate]);
        let mut parents: BTreeMap<&str, Vec<&'a str>> = BTreeMap::new();
        for (name, shape) in &self.loose {
            if **shape == up || **shape == down {
                parents.entry(owner(owner(name))).or_default().push(name);
            }
        }
        let mut steps = Vec::new();
        for (parent, names) in parents {
            let leaf = |name: &str| name.get(parent.len()..).unwrap_or_default().to_owned();
            let says = |name: &str, words: [&str; 2]| words.iter().any(|word| leaf(name).contains(word));
            // A square MLP can be told apart by its names only.
            let is_down = |name: &str| {
                if up == down {
                    says(name, ["down", "w2"])
                } else {
                    self.loose.get(name).is_some_and(|shape| **shape == down)
                }
            };
            let (downs, ups): (Vec<&str>, Vec<&str>) = names.iter().copied().partition(|name| is_down(name));
            let (gates, ups): (Vec<&str>, Vec<&str>) = ups.into_iter().partition(|name| says(name, ["gate", "w1"]));
            let (&[gate], &[up], &[down]) = (gates.as_slice(), ups.as_slice(), downs.as_slice()) else {
                return Err(self.error(&format!("{} is not the gate, up and down projection of one MLP", list(&names))));
            };
            steps.push((integers(parent), parent, [("gate", gate), ("up", up), ("down", down)]));
        }
        steps.sort();
        if steps.is_empty() {
            return Err(self.error("there is no MLP"));
        }
        for (before, after) in steps.iter().zip(steps.iter().skip(1)) {
            if before.0 == after.0 {
                let message =
                    format!("no number tells which of {} and {} is the earlier step", shown(before.1), shown(after.1));
                return Err(self.error(&message));
            }
        }
        for (k, (_, _, projections)) in steps.iter().enumerate() {
            for (leaf, name) in projections {
                self.take(name, format!("mlp.steps.{k}.{leaf}_proj.weight"), None, None);
            }
        }
        Ok(steps.len())
    }

    /// Recognises what is left as gates, in the order of the steps.
    fn gates(&self, num_steps: usize) -> Result<Vec<Gate<'a>>> {
        let linears: BTreeSet<&'a str> = self.loose.keys().map(|name| owner(name)).collect();
        let mut shapes = BTreeMap::new();
        for linear in linears {
            let shape = match self.loose.get(format!("{linear}.weight").as_str()).copied() {
                Some(&[n, k]) => (n, k),
                Some(&[k]) => (1, k),
                _ => {
                    return Err(self.error(&format!("{} is neither a step nor a gate", shown(linear))));
                }
            };
            shapes.insert(linear, shape);
        }
        // Linears with one output, by what they stand beside and how many inputs they have.
        let mut single: BTreeMap<(&str, usize), Vec<&'a str>> = BTreeMap::new();
        for (linear, (n, k)) in &shapes {
            if *n == 1 {
                single.entry((owner(linear), *k)).or_default().push(linear);
            }
        }
        let mut gates = Vec::new();
        let mut taken = BTreeSet::new();
        for (&first, &(r, k)) in &shapes {
            if k != self.hidden || r == 1 {
                continue;
            }
            let seconds = single.get(&(owner(first), r)).map_or(&[][..], Vec::as_slice);
            match seconds {
                [] => {}
                [second] if taken.insert(*second) && taken.insert(first) => {
                    let path = owner(first);
                    let linears = vec![("0.", first), ("2.", *second)];
                    gates.push(Gate { key: (integers(path), path), hidden: Some(r), linears, row: None });
                }
                _ => {
                    return Err(self.error(&format!("the second layer of the gate {} is not unique", shown(first))));
                }
            }
        }
        let stacked = [num_steps, num_steps.saturating_sub(1)];
        for (&linear, &(n, k)) in shapes.iter().filter(|(linear, _)| !taken.contains(*linear)) {
            if k == self.hidden && n == 1 {
                gates.push(Gate {
                    key: (integers(linear), linear),
                    hidden: None,
                    linears: vec![("", linear)],
                    row: None,
                });
            } else if k == self.hidden && stacked.contains(&n) {
                gates.extend((0..n).map(|row| Gate {
                    key: (vec![row as u64], linear),
                    hidden: None,
                    linears: vec![("", linear)],
                    row: Some(row),
                }));
            } else {
                return Err(self.error(&format!("{} is neither a step nor a gate", shown(linear))));
            }
        }
        gates.sort_by(|a, b| a.key.cmp(&b.key));
        Ok(gates)
    }

    fn place_gates(&mut self, num_steps: usize, gates: Vec<Gate<'a>>) -> Result<DiscoveredCrest> {
        let kind = |gate: &Gate| gate.key.1.replace(|c: char| c.is_ascii_digit(), "");
        let kinds: BTreeSet<String> = gates.iter().map(kind).collect();
        if kinds.len() > 1 || gates.iter().any(|gate| Some(gate.hidden) != gates.first().map(|first| first.hidden)) {
            let paths: Vec<&str> = gates.iter().map(|gate| gate.key.1).collect();
            return Err(self.error(&format!("which of these is the gate: {}", list(&paths))));
        }
        if gates.iter().zip(gates.iter().skip(1)).any(|(before, after)| before.key.0 == after.key.0) {
            return Err(self.error("no number tells which gate belongs to which step"));
        }
        let enough = [1, num_steps, num_steps.saturating_sub(1)].contains(&gates.len());
        if !enough {
            return Err(self.error(&format!("{num_steps} steps, but {} gates", gates.len())));
        }
        let gate_shared = gates.len() <= 1;
        let gate_hidden = gates.first().and_then(|gate| gate.hidden);
        let mut biases = Vec::new();
        for (k, gate) in gates.iter().enumerate() {
            // The last step needs no gate.
            let spare = k.saturating_add(1) == num_steps && (num_steps == 1 || !gate_shared);
            let home = if gate_shared { "mlp.halt_gate".to_owned() } else { format!("mlp.halt_gates.{k}") };
            for (place, linear) in &gate.linears {
                let outputs = if *place == "0." { gate.hidden.unwrap_or(1) } else { 1 };
                let inputs = if *place == "2." { gate.hidden.unwrap_or(1) } else { self.hidden };
                let (weight, bias) = (format!("{linear}.weight"), format!("{linear}.bias"));
                let has_bias = self.loose.get(bias.as_str()).map(|shape| shape.to_vec());
                if let Some(shape) = &has_bias {
                    let rows = if gate.row.is_some() { gates.len() } else { outputs };
                    let scalar = shape.is_empty() && rows == 1;
                    if !scalar && *shape != [rows] {
                        return Err(
                            self.error(&format!("{} {shape:?} is not the bias of a gate of {rows}", shown(&bias)))
                        );
                    }
                }
                biases.push(has_bias.is_some());
                if spare {
                    // A stacked matrix is in use through its other rows.
                    if gate.row.is_none() {
                        self.out.spare.push(format!("model.layers.{}.{weight}", self.layer));
                        if has_bias.is_some() {
                            self.out.spare.push(format!("model.layers.{}.{bias}", self.layer));
                        }
                    }
                    continue;
                }
                self.place(&weight, format!("{home}.{place}weight"), Some(vec![outputs, inputs]), gate.row);
                if has_bias.is_some() {
                    self.place(&bias, format!("{home}.{place}bias"), Some(vec![outputs]), gate.row);
                }
            }
        }
        if biases.contains(&true) && biases.contains(&false) {
            return Err(self.error("some layers of gates have a bias, others have none"));
        }
        let used: BTreeSet<String> =
            gates.iter().flat_map(|gate| &gate.linears).map(|(_, linear)| linear.to_string()).collect();
        let left: Vec<&str> = self
            .loose
            .keys()
            .copied()
            .filter(|name| !used.contains(owner(name)) || !(name.ends_with(".weight") || name.ends_with(".bias")))
            .collect();
        if !left.is_empty() {
            return Err(self.error(&format!("{} is neither a step nor a gate", list(&left))));
        }
        Ok(DiscoveredCrest { num_steps, gate_shared, gate_hidden, gate_bias: biases.first().copied().unwrap_or(true) })
    }

    fn take(&mut self, name: &str, to: String, shape: Option<Vec<usize>>, row: Option<usize>) {
        self.place(name, to, shape, row);
        self.loose.remove(name);
    }

    fn place(&mut self, name: &str, to: String, shape: Option<Vec<usize>>, row: Option<usize>) {
        let layer = format!("model.layers.{}.", self.layer);
        let shape = shape.or_else(|| self.loose.get(name).map(|shape| shape.to_vec())).unwrap_or_default();
        self.out.renames.push(Rename {
            from: format!("{layer}{name}"),
            to: format!("{layer}{to}"),
            shape,
            rows: row.map(|row| row..row.saturating_add(1)),
        });
    }

    fn error(&self, message: &str) -> Error {
        let found = TensorProperty::group(self.loose.iter().map(|(&name, &shape)| (name, shape)));
        let message = format!(
            "cannot tell the CREST steps and gates of layer {} (hidden {}, intermediate {}): {message}. Found: {found}",
            self.layer, self.hidden, self.intermediate,
        );
        Error::discovery(CheckpointError::of_layer(self.layer, message).found(found))
    }
}
