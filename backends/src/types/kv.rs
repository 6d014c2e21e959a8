//! How the cache of keys and values is divided, and the formats of its numbers.

/// Positions that attention reads at a time. A cache may be in several parts, all but the last of which hold a multiple of this: then a
/// read lies in one part, and the parts are the same to the last bit as the cache in one piece.
pub const KV_TILE: usize = 64;

/// Numbers of a head that share a scale in a cache of 8 bits. The last block of a head may be shorter.
pub const KV_BLOCK: usize = 64;

/// The number format of stored keys or values.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum KvFormat {
    /// Exact; 4 bytes per number.
    F32,
    /// Half precision, two numbers per word; 2 bytes per number.
    #[default]
    F16,
    /// 8 bits with an F32 scale for every [`KV_BLOCK`] numbers of a head; 1.06 bytes per number.
    Q8,
}

impl KvFormat {
    /// The name in command lines and reports.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::F32 => "f32",
            Self::F16 => "f16",
            Self::Q8 => "q8",
        }
    }

    /// The format of vectors of `width` numbers: the next larger one where they do not fill words.
    pub fn of_width(self, width: usize) -> Self {
        match self {
            Self::Q8 if !width.is_multiple_of(4) => Self::F16.of_width(width),
            Self::F16 if !width.is_multiple_of(2) => Self::F32,
            format => format,
        }
    }

    /// Numbers of a U32 word, or of a float.
    pub const fn per_word(self) -> usize {
        match self {
            Self::F32 => 1,
            Self::F16 => 2,
            Self::Q8 => 4,
        }
    }

    /// Bytes of a vector of `width` numbers in this format, as [`of_width`](Self::of_width) has it.
    pub fn bytes(self, width: usize) -> usize {
        match self.of_width(width) {
            Self::F32 => width.saturating_mul(4),
            Self::F16 => width.saturating_mul(2),
            Self::Q8 => width.saturating_add(width.div_ceil(KV_BLOCK).saturating_mul(4)),
        }
    }
}
