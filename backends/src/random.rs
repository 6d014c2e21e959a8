//! Repeatable numbers for self-tests and synthetic weights: SplitMix64 (Steele, Lea and Flood, 2014). Not for cryptography, and not
//! what tokens are sampled with.

/// What the state grows by for each word.
pub const GAMMA: u64 = 0x9E37_79B9_7F4A_7C15;

/// A generator of 64-bit words.
#[derive(Clone, Debug)]
pub struct SplitMix64(u64);

impl SplitMix64 {
    /// A generator whose first word is [`word`]`(seed, 1)`.
    pub const fn new(seed: u64) -> Self {
        Self(seed)
    }

    /// The next word.
    pub fn next_word(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(GAMMA);
        mix(self.0)
    }
}

/// Word `i` of the stream of `seed`, in any order.
pub const fn word(seed: u64, i: u64) -> u64 {
    mix(seed.wrapping_add(i.wrapping_mul(GAMMA)))
}

const fn mix(z: u64) -> u64 {
    let z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    let z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    z ^ (z >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The first words of the seed 1234567, as the reference implementation in C gives them.
    #[test]
    fn words_are_those_of_the_reference() {
        let mut random = SplitMix64::new(1_234_567);
        let expected = [6_457_827_717_110_365_317, 3_203_168_211_198_807_973, 9_817_491_932_198_370_423];
        for (i, expected) in (1..).zip(expected) {
            assert_eq!((random.next_word(), word(1_234_567, i)), (expected, expected));
        }
    }
}
