//! Stop ids and stop strings.

use crate::support::stop_strings::shown_and_stop;
use emberlm_model::text::{StopSet, StopStrings};

#[test]
fn the_union_of_all_sources() {
    let set = StopSet::union([vec![128_001, 128_008], vec![128_009], vec![], vec![128_001, 3]]);
    assert_eq!(set.ids(), [3, 128_001, 128_008, 128_009]);
    assert!(set.contains(128_009) && !set.contains(4));
    assert!(!StopSet::default().contains(0));
}

#[test]
fn a_stop_string_split_across_pieces() {
    let stop = Some("</s>".to_owned());
    assert_eq!(shown_and_stop(&["</s>"], &["one <", "/", "s", "> two"]), ("one ".to_owned(), stop.clone()));
    assert_eq!(shown_and_stop(&["</s>"], &["one </s> two"]), ("one ".to_owned(), stop.clone()));
    assert_eq!(shown_and_stop(&["</s>"], &["</s>"]), (String::new(), stop));
}

#[test]
fn a_partial_match_is_held_and_then_given() {
    let mut matcher = StopStrings::new(["STOP"]).unwrap();
    assert_eq!(matcher.push("go ST").text, "go ");
    assert_eq!(matcher.push("O").text, "");
    assert_eq!(matcher.push("RM").text, "STORM");
    assert_eq!(matcher.push(" ST").text, " ");
    assert_eq!(matcher.finish(), "ST");
    // A failed match may contain the start of another.
    assert_eq!(shown_and_stop(&["aab"], &["a", "a", "a", "b"]), ("a".to_owned(), Some("aab".to_owned())));
}

#[test]
fn nothing_follows_a_stop() {
    let mut matcher = StopStrings::new(["x"]).unwrap();
    assert_eq!(matcher.push("axb").stop.as_deref(), Some("x"));
    assert_eq!(matcher.push("cx").text, "");
    assert_eq!(matcher.push("x").stop, None);
    assert_eq!(matcher.finish(), "");
}

#[test]
fn the_result_does_not_depend_on_the_pieces() {
    let text = "aé日b</s>日本🙂abcabd";
    let chars: Vec<char> = text.chars().collect();
    let sets: [&[&str]; 6] =
        [&[], &["abd"], &["日本🙂"], &["b<", "</s>"], &["bc", "abcabd", "ca"], &["🙂ab", "本", "日本🙂abc"]];
    for stops in sets {
        let whole = shown_and_stop(stops, &[text]);
        // Every way to cut the text into three.
        for i in 0..=chars.len() {
            for j in i..=chars.len() {
                let cut: Vec<String> =
                    [&chars[..i], &chars[i..j], &chars[j..]].iter().map(|c| c.iter().collect()).collect();
                let pieces: Vec<&str> = cut.iter().map(String::as_str).collect();
                assert_eq!(shown_and_stop(stops, &pieces), whole, "{stops:?} {pieces:?}");
            }
        }
    }
    assert_eq!(shown_and_stop(&["bc", "abcabd", "ca"], &[text]).1.as_deref(), Some("bc"));
}

#[test]
fn an_empty_stop_string_is_refused() {
    assert!(StopStrings::new(["a", ""]).is_err());
}
