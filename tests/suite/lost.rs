//! A device that stops working.

use emberlm::model::Error;
use emberlm::model::engine::{Engine, EngineOptions, EventKind, Request};
use emberlm::quant::CompactBackend;

use super::fixture::Fixture;

/// What was under way fails, and what comes later, each with the device's error.
pub fn a_lost_device_is_an_error<B: CompactBackend>(device: &B::Device, destroy: impl FnOnce()) {
    let fixture = Fixture::all().remove(0);
    let (model, text) = (fixture.load::<B>(device), fixture.open().text().expect("a tokenizer"));
    let mut engine = Engine::new(&model, &text, EngineOptions::default());
    let request = || Request { max_tokens: 8, ..Request::new(fixture.case("long").ids().remove(0)) };
    let failures = |engine: &mut Engine<'_, B>| -> Vec<Error> {
        let kinds = engine.step().into_iter().map(|event| event.kind);
        kinds.filter_map(|kind| if let EventKind::Failed(error) = kind { Some(error) } else { None }).collect()
    };
    engine.submit(request()).expect("room for a request");
    assert!(failures(&mut engine).is_empty(), "the device works");
    destroy();
    for _ in 0..2 {
        let errors = failures(&mut engine);
        assert!(matches!(errors[..], [Error::Device(_)]), "{errors:?}");
        engine.submit(request()).expect("room for a request");
    }
}
