//! Conversations that go on at once, of a model with recurrent states: what one of them says depends on itself alone.

use serde_json::{Value, json};

use crate::client::{Server, chunks, joined};

/// Nothing that hangs on the last bits of a sum, whose order follows what else is in a pass.
const EXACT: [&str; 5] = ["--activations", "f32", "--cache-type", "f32", "--no-halt"];

const WORDS: [&str; 8] = ["fox", "boat", "owl", "bell", "sand", "tree", "moon", "bird"];

/// What the user says in a turn: conversations have questions of different lengths, from a few tokens to hundreds.
fn question(conversation: usize, turn: usize) -> String {
    let word = WORDS[conversation];
    let story =
        format!("The {word} and the {turn} small cats went to the sea. ").repeat(1 + conversation * (turn + 1) * 2 / 3);
    format!("The word is {word}. {story}What is the word?")
}

fn body(messages: &[Value], conversation: usize, turn: usize) -> Value {
    // Some end early.
    json!({"messages": messages, "temperature": 0, "max_tokens": 3 + 4 * ((conversation + turn) % 5), "ignore_eos": true, "stream": true})
}

/// The turns of a conversation; what was answered. Of one that is aborted the second answer is left when some of it has come, and asked for
/// again.
fn talk(server: &Server, conversation: usize, turns: usize, aborted: bool) -> Vec<String> {
    let mut messages = vec![json!({"role": "system", "content": "You know one word."})];
    let mut answers = Vec::new();
    for turn in 0..turns {
        messages.push(json!({"role": "user", "content": question(conversation, turn)}));
        let asked = body(&messages, conversation, turn);
        if aborted && turn == 1 {
            let mut left = server.begin("/v1/chat/completions", &asked);
            assert_eq!(left.head().0, 200);
            left.chunk();
        }
        let answer = joined(&chunks(&server.stream("/v1/chat/completions", &asked)), 0, "/delta/content");
        messages.push(json!({"role": "assistant", "content": answer}));
        answers.push(answer);
    }
    answers
}

#[test]
fn no_conversation_hears_of_another() {
    let turns = |conversation: usize| 1 + conversation % 3;
    let alone = Server::start(&[&EXACT[..], &["--no-prefix-cache", "--parallel", "1"]].concat());
    let wanted: Vec<Vec<String>> = (0..WORDS.len()).map(|i| talk(&alone, i, turns(i), false)).collect();
    // Fewer places than conversations: they are taken again, with what was in them.
    for more in
        [&["--parallel", "8"][..], &["--parallel", "3", "--chunk", "17"], &["--parallel", "5", "--no-prefix-cache"]]
    {
        let server = Server::start(&[&EXACT[..], more].concat());
        let together: Vec<Vec<String>> = std::thread::scope(|scope| {
            let talks: Vec<_> = (0..WORDS.len())
                .map(|i| (i, &server))
                .map(|(i, server)| scope.spawn(move || talk(server, i, turns(i), i % 2 == 1)))
                .collect();
            talks.into_iter().map(|talk| talk.join().unwrap()).collect()
        });
        assert_eq!(together, wanted, "{more:?}");
        server.wait_until("ember_requests_running", |running| running == 0.0);
        assert!(server.metric("ember_completions_total{reason=\"cancelled\"}") > 0.0, "nothing was aborted");
    }
}
