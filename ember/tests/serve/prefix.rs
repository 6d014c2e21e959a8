//! What was read once is not read again. The model in the program has linear attention, whose state cannot be rolled back.

use serde_json::{Value, json};

use crate::client::Server;
use crate::templates;

fn chat(messages: &[Value], more: Value) -> Value {
    let mut body = json!({"messages": messages, "temperature": 0, "max_tokens": 12, "ignore_eos": true});
    body.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    body
}

fn say(role: &str, content: &str) -> Value {
    json!({"role": role, "content": content})
}

fn counts(answer: &Value) -> (u64, u64) {
    let usage = &answer["usage"];
    (usage["prompt_tokens"].as_u64().unwrap(), usage["prompt_tokens_details"]["cached_tokens"].as_u64().unwrap())
}

const SYSTEM: &str =
    "You tell short stories about animals that live in the wood and by the sea, and answer every question with one.";

/// The turns of a chat: what was computed for each, and the answers with and without a cache.
fn turns(cached: &Server, plain: &Server, shown: impl Fn(&str) -> Value) -> Vec<u64> {
    let mut messages = vec![say("system", SYSTEM)];
    let mut computed = Vec::new();
    for turn in 0..8 {
        messages.push(say("user", &format!("Tell me about the {turn} small cats and the red boat on the sea.")));
        let answer = cached.ok("/v1/chat/completions", &chat(&messages, json!({})));
        let uncached = plain.ok("/v1/chat/completions", &chat(&messages, json!({})));
        assert_eq!(answer["choices"][0]["message"], uncached["choices"][0]["message"], "turn {turn}");
        assert_eq!(counts(&uncached).1, 0);
        let (prompt, held) = counts(&answer);
        computed.push(prompt - held);
        messages.push(shown(answer["choices"][0]["message"]["content"].as_str().unwrap()));
    }
    computed
}

#[test]
fn a_chat_that_grows_computes_its_tail_alone() {
    let (cached, plain) = (Server::start(&[]), Server::start(&["--no-prefix-cache"]));
    let computed = turns(&cached, &plain, |answer| say("assistant", answer));
    let most = computed[1..].iter().max().unwrap();
    assert!(*most < computed[0] && *most < 80, "{computed:?}");
    // The last turn computes what the second does.
    assert!(computed[7].abs_diff(computed[1]) <= 8, "{computed:?}");
    assert!(cached.metric("ember_prefix_cache_hit_tokens_total") > 500.0);
}

#[test]
fn old_turns_without_their_thoughts_are_read_from_the_last_question_on() {
    let template = "{% for m in messages %}<|im_start|>{{ m.role }}\n{% if m.role == 'assistant' and m.reasoning_content and loop.last %}\
        <think>{{ m.reasoning_content }}</think>{% endif %}{{ m.content }}<|im_end|>\n{% endfor %}\
        {% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}";
    let directory = templates::model(template);
    let path = directory.path().to_str().unwrap();
    let cached = Server::start(&["-m", path]);
    let plain = Server::start(&["-m", path, "--no-prefix-cache"]);
    let computed = turns(
        &cached,
        &plain,
        |answer| json!({"role": "assistant", "content": "So it was.", "reasoning_content": answer}),
    );
    let most = computed[1..].iter().max().unwrap();
    assert!(*most < computed[0] && *most < 80, "{computed:?}");
}

#[test]
fn chats_with_one_system_message_read_it_once() {
    let server = Server::start(&[]);
    let ask = |question: &str| {
        counts(&server.ok("/v1/chat/completions", &chat(&[say("system", SYSTEM), say("user", question)], json!({}))))
    };
    let (_, first) = ask("What does the fox do?");
    let (prompt, second) = ask("Where is the boat now, and who is in it?");
    assert_eq!(first, 0);
    assert!(second > 32 && second < prompt, "{second} of {prompt}");
    // The cached tokens are tokens of the prompt.
    let body = chat(&[say("system", SYSTEM), say("user", "Where is the boat now, and who is in it?")], json!({}));
    assert_eq!(server.ok("/tokenize", &body)["count"], prompt);
    // Another depth has other states.
    let deep = chat(&[say("system", SYSTEM), say("user", "Why?")], json!({"depth": {"steps": 1}}));
    assert_eq!(counts(&server.ok("/v1/chat/completions", &deep)).1, 0);
    // Answers to one question share it.
    let body = chat(&[say("system", SYSTEM), say("user", "How many?")], json!({"n": 4, "temperature": 1.0}));
    let before = server.metric("ember_prefix_cache_hit_tokens_total");
    let several = server.ok("/v1/chat/completions", &body);
    assert_eq!(several["choices"].as_array().unwrap().len(), 4);
    assert!(server.metric("ember_prefix_cache_hit_tokens_total") - before > 100.0);
}
