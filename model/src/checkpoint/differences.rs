//! How the tensors of a checkpoint differ from those of a model.

use std::fmt;
use std::path::PathBuf;

use super::names::list;

/// Every difference between the tensors of a checkpoint and those of the model.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TensorDifferences {
    /// Tensors that the model needs and the checkpoint does not hold.
    pub missing: Vec<MissingTensor>,
    /// Names in the checkpoint that the model has no use for.
    pub unused: Vec<String>,
    /// Tensors of another shape.
    pub mismatched: Vec<MismatchedTensor>,
}

/// A tensor that the model needs and the checkpoint does not hold.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MissingTensor {
    /// Canonical name.
    pub tensor: String,
    /// Its shape; none where it depends on how it is stored.
    pub expected: Option<Vec<usize>>,
}

/// A tensor of another shape.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MismatchedTensor {
    /// The file that holds it; none where weights come from no file.
    pub file: Option<PathBuf>,
    /// Canonical name.
    pub tensor: String,
    /// The shape in the model.
    pub expected: Vec<usize>,
    /// The shape in the file.
    pub found: Vec<usize>,
}

impl TensorDifferences {
    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }
}

impl fmt::Display for TensorDifferences {
    /// Long lists are shortened, names escaped.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let missing = self.missing.iter().map(|MissingTensor { tensor, expected }| match expected {
            Some(shape) => format!("{tensor} {shape:?}"),
            None => tensor.clone(),
        });
        let mismatched = self.mismatched.iter().map(|MismatchedTensor { tensor, expected, found, .. }| {
            format!("{tensor}: {found:?} in the file, {expected:?} in the model")
        });
        let kinds =
            [("missing", missing.collect()), ("unused", self.unused.clone()), ("mismatched", mismatched.collect())];
        f.write_str("the tensors of the checkpoint are not those of the model")?;
        for (kind, names) in kinds.into_iter().filter(|(_, names): &(_, Vec<String>)| !names.is_empty()) {
            write!(f, "; {} {kind}: {}", names.len(), list(&names))?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reports_are_shortened() {
        let missing = |i| MissingTensor { tensor: format!("n{i}\n"), expected: None };
        let mismatched = vec![MismatchedTensor { file: None, tensor: "a".into(), expected: vec![1], found: vec![2] }];
        let all = TensorDifferences { missing: (0..1000).map(missing).collect(), unused: Vec::new(), mismatched };
        let message = all.to_string();
        assert!(message.contains("1000 missing: n0\\n, "), "{message}");
        assert!(message.contains("and 980 more") && message.contains("1 mismatched: a: [2] in the file"), "{message}");
        assert!(!message.contains("unused"), "{message}");
    }
}
