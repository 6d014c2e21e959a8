//! The colours of depth: pale for one step, dark red for all.

use std::io::{self, IsTerminal};

use clap::ValueEnum;

use super::map::LEVELS;

/// Red, green and blue.
pub type Rgb = [u8; 3];

/// Which colours to write to the terminal.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum ColourChoice {
    /// As many as the terminal has
    #[default]
    Auto,
    /// 24 bits
    Truecolor,
    /// The 256 of xterm
    #[value(name = "256")]
    Indexed,
    /// None
    None,
}

/// What a terminal can show.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Colours {
    True,
    Indexed,
    None,
}

impl ColourChoice {
    /// Decides, from the environment where nothing was asked for.
    pub fn resolve(self) -> Colours {
        match self {
            Self::Truecolor => Colours::True,
            Self::Indexed => Colours::Indexed,
            Self::None => Colours::None,
            Self::Auto => {
                let variable = |name| std::env::var(name).unwrap_or_default();
                let none = !io::stdout().is_terminal() || !variable("NO_COLOR").is_empty();
                if none { Colours::None } else { of_terminal(&variable("COLORTERM"), &variable("TERM")) }
            }
        }
    }
}

fn of_terminal(colorterm: &str, term: &str) -> Colours {
    match (colorterm, term) {
        (_, "dumb") => Colours::None,
        ("truecolor" | "24bit", _) => Colours::True,
        (_, "") => Colours::None,
        _ => Colours::Indexed,
    }
}

/// On a light ground, from one step to all.
pub const LIGHT: [Rgb; LEVELS] = [
    [237, 241, 245],
    [252, 236, 200],
    [253, 219, 156],
    [253, 196, 112],
    [250, 166, 80],
    [240, 129, 63],
    [223, 92, 56],
    [196, 56, 54],
    [158, 22, 50],
];

/// On a dark ground.
pub const DARK: [Rgb; LEVELS] = [
    [42, 49, 57],
    [68, 52, 48],
    [96, 58, 44],
    [126, 66, 40],
    [158, 78, 36],
    [190, 95, 36],
    [219, 120, 44],
    [243, 152, 62],
    [255, 196, 104],
];

/// Black or white, whichever is read better on a colour.
pub fn ink(ground: Rgb) -> Rgb {
    let [black, white] = [[0; 3], [255; 3]];
    if contrast(ground, black) > contrast(ground, white) { black } else { white }
}

/// The contrast of two colours as WCAG 2 defines it, from 1 to 21.
fn contrast(a: Rgb, b: Rgb) -> f64 {
    let luminance = |colour: Rgb| -> f64 {
        let linear = colour.map(|c| {
            let c = f64::from(c) / 255.0;
            if c <= 0.04045 { c / 12.92 } else { ((c + 0.055) / 1.055).powf(2.4) }
        });
        0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]
    };
    let (a, b) = (luminance(a), luminance(b));
    (a.max(b) + 0.05) / (a.min(b) + 0.05)
}

/// The nearest of the colours 16 to 255 of xterm: a cube of 6 x 6 x 6, then 24 greys.
pub fn indexed(colour: Rgb) -> u8 {
    const STEPS: [u8; 6] = [0, 95, 135, 175, 215, 255];
    let distance = |other: Rgb| -> u32 {
        let apart = colour.iter().zip(other).map(|(&a, b)| u32::from(a.abs_diff(b)).pow(2));
        apart.sum()
    };
    let step = |i: u8| STEPS.get(usize::from(i)).copied().unwrap_or_default();
    let nearest = colour.map(|c| (0..6u8).min_by_key(|&i| step(i).abs_diff(c)).unwrap_or(0));
    let cube = nearest.map(step);
    let grey = (0..24u8).min_by_key(|&i| distance([8 + 10 * i; 3])).unwrap_or(0);
    if distance([8 + 10 * grey; 3]) < distance(cube) {
        232 + grey
    } else {
        16 + 36 * nearest[0] + 6 * nearest[1] + nearest[2]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn colours_have_their_nearest_index() {
        assert_eq!([[0, 0, 0], [255, 255, 255], [255, 0, 0], [95, 135, 175]].map(indexed), [16, 231, 196, 67]);
        assert_eq!(indexed([128, 128, 128]), 244);
    }

    #[test]
    fn terminals_say_what_they_have() {
        assert_eq!(of_terminal("truecolor", "xterm"), Colours::True);
        assert_eq!(of_terminal("", "xterm-256color"), Colours::Indexed);
        assert_eq!(of_terminal("", "dumb"), Colours::None);
        assert_eq!(of_terminal("", ""), Colours::None);
    }

    /// WCAG asks for a contrast of 4.5 between text and ground.
    #[test]
    fn ink_can_be_read() {
        assert!((contrast([0; 3], [255; 3]) - 21.0).abs() < 1e-9);
        for ground in LIGHT.into_iter().chain(DARK) {
            assert!(contrast(ground, ink(ground)) >= 4.5, "{ground:?}");
        }
    }
}
