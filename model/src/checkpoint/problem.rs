//! What is wrong with a file of a checkpoint, or with a tensor in it.

use std::fmt;
use std::path::{Path, PathBuf};

use super::dtype::Dtype;
use super::names::{list, shown};

/// What is wrong with a file or with a tensor: as fields for a program, as a sentence for people.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct CheckpointError {
    /// The file; none where no file holds the tensor, or weights come from no file.
    pub file: Option<PathBuf>,
    /// The tensor by its name in the file, else its canonical name; none where the file as a whole is wrong. Control characters are
    /// escaped and long names shortened, as in the sentence.
    pub tensor: Option<String>,
    /// What should be there, where that is one thing.
    pub expected: Option<TensorProperty>,
    /// What is there instead.
    pub found: Option<TensorProperty>,
    /// What is wrong and what to do, without the names of file and tensor.
    pub message: String,
}

/// What a tensor is, or should be.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum TensorProperty {
    /// There is none.
    Absent,
    /// A shape.
    Shape(Vec<usize>),
    /// One of these element types, and a shape.
    Typed {
        /// The types, the most usual first.
        types: Vec<Dtype>,
        /// The shape.
        shape: Vec<usize>,
    },
    /// A number of elements of a type, in any shape.
    Elements {
        /// How many; any number where there is none.
        count: Option<usize>,
        /// Of this type.
        dtype: Dtype,
    },
    /// A length in bytes.
    Bytes(u64),
    /// A value of a quantised tensor's description.
    Value(String),
    /// Tensors of a group, with their shapes.
    Group(Vec<(String, Vec<usize>)>),
    /// The names under which it is stored.
    Names(Vec<String>),
}

impl CheckpointError {
    /// About a file as a whole.
    pub(crate) fn of_file(file: &Path, message: impl Into<String>) -> Self {
        let (file, message) = (Some(file.to_path_buf()), message.into());
        Self { file, tensor: None, expected: None, found: None, message }
    }

    /// About a tensor; in which file is [added](Self::in_file) where that is known.
    pub(crate) fn of_tensor(tensor: &str, message: impl Into<String>) -> Self {
        let (tensor, message) = (Some(shown(tensor)), message.into());
        Self { file: None, tensor, expected: None, found: None, message }
    }

    /// About the tensors of a layer.
    pub(crate) fn of_layer(layer: usize, message: impl Into<String>) -> Self {
        Self::of_tensor(&format!("model.layers.{layer}"), message)
    }

    /// A tensor that is one thing instead of another, which is all there is to say.
    pub(crate) fn mismatch(tensor: &str, expected: TensorProperty, found: TensorProperty) -> Self {
        Self::of_tensor(tensor, format!("is {found}, expected {expected}")).instead(expected, found)
    }

    /// With the file that holds the tensor.
    pub(crate) fn in_file(mut self, file: Option<&Path>) -> Self {
        self.file = file.map(Path::to_path_buf);
        self
    }

    /// With what was expected and what was found.
    pub(crate) fn instead(mut self, expected: TensorProperty, found: TensorProperty) -> Self {
        (self.expected, self.found) = (Some(expected), Some(found));
        self
    }

    /// With what was found.
    pub(crate) fn found(mut self, found: TensorProperty) -> Self {
        self.found = Some(found);
        self
    }
}

impl TensorProperty {
    /// Tensors with their shapes.
    pub(crate) fn group<'a>(tensors: impl IntoIterator<Item = (&'a str, &'a [usize])>) -> Self {
        Self::Group(tensors.into_iter().map(|(name, shape)| (name.to_owned(), shape.to_vec())).collect())
    }
}

impl fmt::Display for CheckpointError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(file) = &self.file {
            write!(f, "{}: ", file.display())?;
        }
        match &self.tensor {
            Some(tensor) if self.file.is_some() => write!(f, "tensor {tensor}: {}", self.message),
            Some(tensor) => write!(f, "{tensor}: {}", self.message),
            None => f.write_str(&self.message),
        }
    }
}

impl fmt::Display for TensorProperty {
    /// Long lists are shortened, names escaped.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Absent => f.write_str("absent"),
            Self::Shape(shape) => write!(f, "{shape:?}"),
            Self::Typed { types, shape } => {
                let types: Vec<String> = types.iter().map(|dtype| format!("{dtype:?}")).collect();
                write!(f, "{} {shape:?}", types.join(" or "))
            }
            Self::Elements { count: Some(count), dtype } => write!(f, "{count} elements of {dtype:?}"),
            Self::Elements { count: None, dtype } => write!(f, "{dtype:?}"),
            Self::Bytes(bytes) => write!(f, "{bytes} bytes"),
            Self::Value(value) => write!(f, "\"{}\"", shown(value)),
            Self::Group(tensors) => {
                let tensors: Vec<String> = tensors.iter().map(|(name, shape)| format!("{name} {shape:?}")).collect();
                f.write_str(&list(&tensors))
            }
            Self::Names(names) => f.write_str(&list(names)),
        }
    }
}
