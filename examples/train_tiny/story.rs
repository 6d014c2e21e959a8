//! Short stories from a grammar. Whom and what a story has mentioned stays as it is until the end, and the questions after it
//! ask about that.

use crate::data::{Class, Document, Split};
use crate::exercises;
use crate::random::Random;

const BOYS: [&str; 15] = [
    "Tom", "Ben", "Sam", "Max", "Jack", "Leo", "Tim", "Dan", "Finn", "Hugo", "Oscar", "Peter", "Felix", "Bruno", "Noah",
];
const GIRLS: [&str; 15] = [
    "Lily", "Mia", "Anna", "Lucy", "Emma", "Ella", "Sue", "Amy", "Rosa", "Nina", "Ruby", "Clara", "Ivy", "Daisy", "Zoe",
];
const ANIMALS: [&str; 10] = ["dog", "cat", "fox", "bear", "rabbit", "mouse", "bird", "frog", "pig", "duck"];
const NATURES: [&str; 10] = ["little", "kind", "brave", "shy", "funny", "clever", "happy", "lazy", "small", "good"];
const COLOURS: [&str; 8] = ["red", "blue", "green", "yellow", "white", "black", "pink", "brown"];
const THINGS: [&str; 12] =
    ["ball", "kite", "hat", "book", "boat", "drum", "bell", "cup", "box", "doll", "car", "scarf"];
const PLACES: [&str; 10] = ["park", "forest", "river", "garden", "beach", "farm", "school", "market", "hill", "lake"];
const SPOTS: [&str; 10] = [
    "under a tree",
    "behind a rock",
    "in the grass",
    "under the bridge",
    "behind the door",
    "in a hole",
    "near the well",
    "under a leaf",
    "behind the house",
    "in the mud",
];
const GAMES: [&str; 8] =
    ["play tag", "sing a song", "run and jump", "climb a tree", "dance", "fly a kite", "swim", "play ball"];
const DAYS: [&str; 6] = ["sunny", "cold", "warm", "windy", "bright", "quiet"];
const TIMES: [&str; 3] = ["day", "morning", "afternoon"];
const FRUITS: [&str; 6] = ["apples", "nuts", "berries", "cookies", "flowers", "shells"];
const FOODS: [&str; 6] = ["bread", "cake", "soup", "cheese", "honey", "fruit"];

const BEGINNINGS: [&str; 5] = [
    "Once upon a time, there was a {nature} {kind} named {H}.",
    "There once was a {nature} {kind} called {H}.",
    "{H} was a {nature} {kind}.",
    "Once there was a {nature} {kind}. {His} name was {H}.",
    "Long ago, a {nature} {kind} named {H} lived near the {place}.",
];
const TREASURES: [&str; 5] = [
    "{He} had a {colour} {thing}.",
    "{H} loved {his} {colour} {thing}.",
    "{His} best toy was a {colour} {thing}.",
    "{He} got a {colour} {thing} from {his} mom.",
    "{H} took {his} {colour} {thing} everywhere.",
];
const WALKS: [&str; 5] = [
    "One {day} {time}, {he} went to the {place}.",
    "On a {day} {time}, {H} walked to the {place}.",
    "One {time}, {H} took the {thing} to the {place}.",
    "It was a {day} {time}, so {H} went to the {place}.",
    "One {day} {time}, {H} was at the {place}.",
];
const MEETINGS: [&str; 5] = [
    "There {he} met {F}, a {fnature} {fkind}.",
    "At the {place}, {he} saw a {fnature} {fkind} named {F}.",
    "{His} friend {F} the {fkind} was there too.",
    "A {fnature} {fkind} came by. {FHis} name was {F}.",
    "{He} saw {F} the {fkind} and waved.",
];
const TALKS: [&str; 6] = [
    "\"Hello, {F}!\" said {H}. \"Do you want to {game}?\" \"Yes, I love to {game},\" said {F}.",
    "\"Can we {game}?\" asked {F}. \"Yes, let us {game},\" said {H}.",
    "\"I like your {thing},\" said {F}. \"Thank you,\" said {H}. \"It is {colour}.\"",
    "{F} asked, \"What is your name?\" \"My name is {H},\" said the {kind}.",
    "\"Hi, {H}!\" said {F}. \"Hi, {F}!\" said {H}.",
    "{H} and {F} wanted to {game}.",
];
const LOSSES: [&str; 4] = [
    "But then {H} could not find the {thing}. {He} was very sad.",
    "Then the wind took the {thing} away. {H} began to cry.",
    "Suddenly the {colour} {thing} was gone. \"Where is my {thing}?\" asked {H}.",
    "After that, {H} lost {his} {thing}. \"Oh no!\" {he} said.",
];
const SEARCHES: [&str; 4] = [
    "They looked {wrong}, but the {thing} was not there.",
    "{H} looked {wrong}. It was not there.",
    "{F} wanted to help, so they looked {wrong}. No {thing}.",
    "\"I will help you,\" said {F}.",
];
const FINDS: [&str; 4] = [
    "Then {F} looked {spot}. There was the {colour} {thing}!",
    "At last {F} found the {thing} {spot}.",
    "The {colour} {thing} was {spot}! {F} gave it to {H}.",
    "{F} saw the {thing} {spot}. \"Here it is!\" said {F}.",
];
const THANKS: [&str; 4] = [
    "\"Thank you, {F},\" said {H}. \"You are a good friend.\"",
    "{H} was so happy that {he} hugged {F}.",
    "\"Thank you!\" said {H}, and {he} smiled.",
    "{H} thanked {F} for the help.",
];
const GIFTS: [&str; 4] = [
    "{H} had {n} {fruit}. {F} gave {him} {m} more. Now {H} had {sum} {fruit}.",
    "{H} found {n} {fruit} and {F} found {m}. Together they had {sum} {fruit}.",
    "There were {n} {fruit} in the bag. {H} put in {m} more, so there were {sum} {fruit}.",
    "{F} gave {H} {n} {fruit} and then {m} more. That made {sum} {fruit}.",
];
const MEALS: [&str; 4] = [
    "{H} was hungry, so {F} gave {him} some {food}. The {food} was good.",
    "{F} was hungry because {fhe} had no food. {H} shared {his} {food} with {F}.",
    "They ate {food} by the {place}. \"I love {food},\" said {F}.",
    "Then it began to rain, so they ran home and ate {food}.",
];
const ENDS: [&str; 6] = [
    "From that day on, {H} and {F} were best friends.",
    "They were happy and played all day.",
    "When the sun went down, they went home.",
    "It was a good day for {H} and {F}.",
    "{H} and {F} went home and slept well.",
    "The end.",
];

/// A figure of a story.
#[derive(Clone)]
struct Figure {
    name: &'static str,
    kind: &'static str,
    nature: &'static str,
    boy: bool,
}

impl Figure {
    fn draw(random: &mut Random) -> Self {
        let boy = random.chance(50);
        let name = random.pick(if boy { &BOYS } else { &GIRLS });
        let kind = match random.chance(50) {
            true => random.pick(&ANIMALS),
            false if boy => "boy",
            false => "girl",
        };
        Self { name, kind, nature: random.pick(&NATURES), boy }
    }

    fn pronoun(&self, which: &str) -> &'static str {
        match (which, self.boy) {
            ("he", true) => "he",
            ("he", false) => "she",
            ("He", true) => "He",
            ("He", false) => "She",
            ("his", true) => "his",
            ("His", true) => "His",
            ("His", false) => "Her",
            ("him", true) => "him",
            _ => "her",
        }
    }
}

/// What a story is about, and what has been told of it.
#[derive(Clone)]
struct World {
    hero: Figure,
    friend: Figure,
    slots: Vec<(&'static str, String)>,
    mentioned: Vec<String>,
    n: usize,
    m: usize,
    text: Document,
}

/// A story of this side of the split and a request for it.
pub fn story(random: &mut Random, split: Split) -> (Document, Document) {
    loop {
        let (request, story) = draw(random);
        if split.has(&story.text) {
            return (request, story);
        }
    }
}

fn draw(random: &mut Random) -> (Document, Document) {
    let hero = Figure::draw(random);
    let friend = loop {
        let friend = Figure::draw(random);
        if friend.name != hero.name && friend.kind != hero.kind {
            break friend;
        }
    };
    let (spot, wrong) = loop {
        let (spot, wrong) = (random.pick(&SPOTS), random.pick(&SPOTS));
        if spot != wrong {
            break (spot, wrong);
        }
    };
    let slots = [
        ("nature", hero.nature),
        ("kind", hero.kind),
        ("fnature", friend.nature),
        ("fkind", friend.kind),
        ("colour", random.pick(&COLOURS)),
        ("thing", random.pick(&THINGS)),
        ("place", random.pick(&PLACES)),
        ("spot", spot),
        ("wrong", wrong),
        ("game", random.pick(&GAMES)),
        ("day", random.pick(&DAYS)),
        ("time", random.pick(&TIMES)),
        ("fruit", random.pick(&FRUITS)),
        ("food", random.pick(&FOODS)),
    ];
    let mut slots: Vec<(&str, String)> = slots.map(|(slot, text)| (slot, text.to_owned())).into();
    let (n, m) = (random.between(1, 9), random.between(1, 9));
    slots.extend([("n", n.to_string()), ("m", m.to_string())]);
    let mut world = World { hero, friend, slots, mentioned: Vec::new(), n, m, text: Document::default() };
    let mut request = world.clone();
    let requests = [
        "Tell me a story about {H}.",
        "Tell me a story about a {kind} named {H}.",
        "Tell me about {H} and {F}.",
        "Tell me a story about a {colour} {thing}.",
    ];
    request.fill(random.pick(&requests));

    let lost = random.chance(55);
    let gift = random.chance(if lost { 25 } else { 60 });
    world.fill(random.pick(&BEGINNINGS));
    world.tell(random, &TREASURES);
    world.tell(random, &WALKS);
    world.tell(random, &MEETINGS);
    if !lost || random.chance(40) {
        world.tell(random, &TALKS);
    }
    if lost {
        world.tell(random, &LOSSES);
        world.tell(random, &SEARCHES);
        world.tell(random, &FINDS);
        if random.chance(60) {
            world.tell(random, &THANKS);
        }
    }
    if gift {
        world.tell(random, &GIFTS);
    }
    if !lost && !gift || random.chance(20) {
        world.tell(random, &MEALS);
    }
    world.tell(random, &ENDS);
    if random.chance(60) {
        world.ask(random, lost, gift);
    }
    (request.text, world.text)
}

impl World {
    fn tell(&mut self, random: &mut Random, patterns: &[&str]) {
        self.text.sentence(" ");
        self.fill(random.pick(patterns));
    }

    /// One question about what happened.
    fn ask(&mut self, random: &mut Random, lost: bool, gift: bool) {
        let mut questions = vec![
            ("What colour was the {thing}?", "colour"),
            ("Who had the {colour} {thing}?", "H"),
            ("Who was the {fkind}?", "F"),
            ("Who was the {kind}?", "H"),
        ];
        if lost {
            questions.extend([("Who found the {thing}?", "F"), ("Who lost the {thing}?", "H")]);
            questions.extend([("Where was the {thing}?", "spot"), ("Where was the {thing}?", "spot")]);
        }
        if gift {
            questions.extend([("How many {fruit} were there?", "sum"); 2]);
        }
        let (question, answer) = random.pick(&questions);
        self.text.push(Class::Markup, "\n");
        self.fill(question);
        match answer {
            "sum" => {
                self.text.push(Class::Word, " ");
                exercises::add(&mut self.text, self.n, self.m);
            }
            slot => {
                let answer = format!(" {}", self.slot(slot));
                self.text.push(Class::Answer, &answer);
            }
        }
        self.text.sentence(".");
    }

    fn slot(&self, slot: &str) -> String {
        match slot {
            "H" => self.hero.name.to_owned(),
            "F" => self.friend.name.to_owned(),
            slot => {
                self.slots.iter().find(|(name, _)| *name == slot).map_or_else(String::new, |(_, text)| text.clone())
            }
        }
    }

    /// A sentence pattern with its slots filled in. The space before a slot belongs to it, as it does in the tokens.
    fn fill(&mut self, pattern: &str) {
        let mut rest = pattern;
        while let Some((before, after)) = rest.split_once('{') {
            let Some((slot, after)) = after.split_once('}') else { break };
            rest = after;
            let space = before.ends_with(' ');
            self.text.sentence(before.strip_suffix(' ').unwrap_or(before));
            let space = if space { " " } else { "" };
            let figure = if slot.starts_with('f') { &self.friend } else { &self.hero };
            match slot {
                "he" | "He" | "his" | "His" | "him" => {
                    let text = format!("{space}{}", figure.pronoun(slot));
                    self.text.push(Class::Word, &text);
                }
                "fhe" | "FHis" => {
                    let text = format!("{space}{}", self.friend.pronoun(slot.trim_start_matches(['f', 'F'])));
                    self.text.push(Class::Word, &text);
                }
                "sum" => {
                    self.text.push(Class::Word, space);
                    exercises::add(&mut self.text, self.n, self.m);
                }
                slot => {
                    let known = self.mentioned.iter().any(|known| known == slot);
                    let text = format!("{space}{}", self.slot(slot));
                    self.text.push(if known { Class::Repeat } else { Class::Open }, &text);
                    if !known {
                        self.mentioned.push(slot.to_owned());
                    }
                }
            }
        }
        self.text.sentence(rest);
    }
}
