//! Which files come, where they are put, and when the network is used.

use std::fs;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

use emberlm_model::Pretrained;
use emberlm_model::hub::{HubError, PullEvent};
use serde_json::json;

use crate::hub_support::{COMMIT, Fault, Repository, Side, git_hash};
use crate::support::{
    NAME, NEEDED, PART, assert_blobs, assert_files, bytes, get, hub, kind, options, pull, repository, server,
};

#[test]
fn what_a_model_needs_is_downloaded_once_and_nothing_else() {
    let (server, cache) = (server(), tempfile::tempdir().unwrap());
    let hub = hub(&server, cache.path());
    assert_eq!(hub.cached(&NAME.parse().unwrap()).unwrap(), None);
    let plans = Mutex::new(Vec::new());
    let directory = hub.get(&NAME.parse().unwrap(), &|event| {
        if let PullEvent::Plan(plan) = event {
            plans.lock().unwrap().push(plan);
        }
    });
    let directory = directory.unwrap();
    assert_eq!(directory, cache.path().join("models--org--model/snapshots").join(COMMIT));
    assert_files(&directory, &repository(), &NEEDED);
    // Two of the small files are the same.
    assert_eq!(
        (fs::read_dir(&directory).unwrap().count(), assert_blobs(cache.path())),
        (NEEDED.len(), NEEDED.len() - 1)
    );
    let total: usize = NEEDED.iter().map(|name| repository().files[*name].bytes.len()).sum();
    let plan = plans.into_inner().unwrap().remove(0);
    let index = repository().files["model.safetensors.index.json"].bytes.len();
    assert_eq!((plan.files, plan.bytes, plan.commit.as_str()), (NEEDED.len(), total as u64, COMMIT));
    // The index was read to know the files.
    assert_eq!((plan.missing_files, plan.missing_bytes), (NEEDED.len() - 1, (total - index) as u64));
    assert!(plan.free_bytes > 0);
    for (asked, _) in server.asked() {
        for other in ["README", ".py", ".bin", "original"] {
            assert!(!asked.path.contains(other), "{}", asked.path);
        }
    }
    // From now on the hub is not asked.
    assert_eq!(get(&hub, NAME).unwrap(), directory);
    let mut offline = options(&server, cache.path());
    offline.offline = true;
    let offline = emberlm_model::hub::Hub::new(offline).unwrap();
    assert_eq!((get(&offline, NAME).unwrap(), pull(&offline, NAME).unwrap()), (directory.clone(), directory.clone()));
    assert_eq!(get(&offline, &format!("{NAME}@{COMMIT}")).unwrap(), directory);
    assert!(server.asked().is_empty());
    // A pull asks whether there is something new, once.
    pull(&hub, NAME).unwrap();
    assert_eq!(server.asked().len(), 1);
}

#[test]
fn offline_says_what_to_do() {
    let (server, cache) = (server(), tempfile::tempdir().unwrap());
    let mut offline = options(&server, cache.path());
    offline.offline = true;
    let offline = emberlm_model::hub::Hub::new(offline).unwrap();
    let error = get(&offline, NAME).unwrap_err();
    assert!(matches!(error, HubError::Offline { .. }) && error.to_string().contains("--offline"), "{error}");
    // Half a model.
    server.faults(|asked| if asked.path.contains("blob") { Fault::Status(500, vec![]) } else { Fault::None });
    pull(&hub(&server, cache.path()), NAME).unwrap_err();
    assert!(matches!(get(&offline, NAME).unwrap_err(), HubError::Offline { .. }));
    assert!(server.asked().len() < 40);
}

#[test]
fn a_cache_of_another_program_is_used() {
    let (server, cache) = (server(), tempfile::tempdir().unwrap());
    let hub = hub(&server, cache.path());
    pull(&hub, NAME).unwrap();
    // Others do not note which files are not in the repository.
    fs::remove_dir_all(cache.path().join("models--org--model/.no_exist")).unwrap();
    server.asked();
    get(&hub, NAME).unwrap();
    assert_eq!(server.asked().len(), 1);
    get(&hub, NAME).unwrap();
    assert!(server.asked().is_empty());
    // Nor is a hub needed that does not answer.
    fs::remove_dir_all(cache.path().join("models--org--model/.no_exist")).unwrap();
    server.faults(|_| Fault::Status(503, vec![]));
    get(&hub, NAME).unwrap();
    assert_eq!(server.asked().len(), 1, "once");
}

/// Of a cache that another program filled.
#[test]
fn a_commit_that_is_in_the_cache_is_not_asked_for() {
    let (server, cache) = (server(), tempfile::tempdir().unwrap());
    let hub = hub(&server, cache.path());
    let snapshot = pull(&hub, NAME).unwrap();
    let (absent, tokenizer) = (cache.path().join("models--org--model/.no_exist"), snapshot.join("tokenizer.json"));
    let pinned = format!("{NAME}@{COMMIT}");
    fs::remove_dir_all(&absent).unwrap();
    server.asked();
    assert_eq!(get(&hub, &pinned).unwrap(), snapshot);
    assert!(server.asked().is_empty());
    // What was read of it without its text.
    fs::remove_file(&tokenizer).unwrap();
    assert_eq!(get(&hub, &pinned).unwrap(), snapshot);
    assert!(tokenizer.is_file() && !server.asked().is_empty());
}

#[test]
fn revisions_and_folders_are_chosen_by_name() {
    let (server, cache) = (server(), tempfile::tempdir().unwrap());
    let hub = hub(&server, cache.path());
    let folder = |prefix: &str| {
        Repository::default()
            .with(&format!("{prefix}config.json"), "{}", false)
            .with(&format!("{prefix}model.safetensors"), bytes(50, 9), true)
            .with(&format!("{prefix}additional_chat_templates/tool.jinja"), "{{ x }}", false)
    };
    server.add("org/nested", folder("nano_compact/"));
    let nested = pull(&hub, "org/nested").unwrap();
    assert!(nested.ends_with("nano_compact") && nested.join("additional_chat_templates/tool.jinja").is_file());
    assert_eq!(pull(&hub, "org/nested@refs/pr/1:nano_compact").unwrap(), nested);
    assert_eq!(get(&hub, &format!("org/nested@{COMMIT}")).unwrap(), nested);
    let refs = cache.path().join("models--org--nested/refs");
    assert_eq!(fs::read_to_string(refs.join("refs/pr/1")).unwrap(), COMMIT);
    let error = pull(&hub, "org/nested:other").unwrap_err();
    assert!(matches!(error, HubError::NoModel { .. }) && error.to_string().contains("other"), "{error}");

    let mut both = folder("a/");
    both.files.extend(folder("b/").files);
    server.add("org/both", both);
    let error = pull(&hub, "org/both").unwrap_err().to_string();
    assert!(error.contains("a, b"), "{error}");
    assert!(pull(&hub, "org/both:b").unwrap().ends_with("b"));
    let error = pull(&hub, "org/nested@v9").unwrap_err();
    assert!(matches!(error, HubError::NotFound { .. }) && error.to_string().contains("revision"), "{error}");
}

#[test]
fn hubs_that_list_names_alone_are_asked_for_headers() {
    let (server, cache) = (server(), tempfile::tempdir().unwrap());
    server.add(NAME, Repository { bare_list: true, ..repository() });
    let directory = pull(&hub(&server, cache.path()), NAME).unwrap();
    assert_files(&directory, &repository(), &NEEDED);
    assert_eq!(server.asked().iter().filter(|(asked, _)| asked.method == "HEAD").count(), NEEDED.len() + 1);
}

#[test]
fn a_large_file_comes_in_parts_and_goes_on_where_it_was_cut() {
    let (server, cache) = (server(), tempfile::tempdir().unwrap());
    let large = |path: &str| path.contains(&repository().files["model-00001-of-00002.safetensors"].etag());
    // Every connection ends after 5,000 bytes, and after 12 of them nothing is left but errors.
    let count = AtomicUsize::new(0);
    server.faults(move |asked| match asked.side {
        Side::Store if large(&asked.path) && count.fetch_add(1, Ordering::Relaxed) >= 12 => Fault::Status(500, vec![]),
        Side::Store if large(&asked.path) => Fault::Cut(5000),
        _ => Fault::None,
    });
    let hub = hub(&server, cache.path());
    let error = pull(&hub, NAME).unwrap_err();
    assert_eq!(kind(&error), "Network", "{error}");
    let ranges = |asked: &[(crate::hub_support::Asked, u16)]| -> Vec<(usize, Option<usize>)> {
        let of_large = asked.iter().filter(|(asked, _)| asked.side == Side::Store && large(&asked.path));
        of_large.filter_map(|(asked, _)| asked.range).collect()
    };
    let first = ranges(&server.asked());
    assert!(
        first.iter().any(|(from, _)| *from >= PART) && first.iter().any(|(from, _)| from % PART == 5000),
        "{first:?}"
    );

    server.faults(|_| Fault::None);
    let kept = AtomicUsize::new(0);
    let directory = hub.pull(&NAME.parse().unwrap(), &|event| {
        if let PullEvent::File { name: "model-00001-of-00002.safetensors", kept: bytes, .. } = event {
            kept.store(bytes as usize, Ordering::Relaxed);
        }
    });
    assert_files(&directory.unwrap(), &repository(), &NEEDED);
    let kept = kept.into_inner();
    assert!((40_000..=12 * 5000).contains(&kept), "{kept}");
    let asked = server.asked();
    // No byte that was there is asked for again.
    let second: usize = ranges(&asked).iter().map(|(from, to)| to.unwrap() + 1 - from).sum();
    assert_eq!(second, 9 * PART + 77 - kept);
    // Whoever has other bytes by now sends all of them.
    let store: Vec<_> = asked.iter().filter(|(asked, _)| asked.side == Side::Store && asked.range.is_some()).collect();
    assert!(
        store.iter().all(|(asked, status)| asked.if_range.as_deref().is_some_and(|etag| etag.starts_with("\"store-"))
            && *status == 206)
    );
}

#[test]
fn one_of_two_processes_downloads() {
    let (server, cache) = (server(), tempfile::tempdir().unwrap());
    let pulled = || pull(&hub(&server, cache.path()), NAME).unwrap();
    std::thread::scope(|scope| {
        let other = scope.spawn(pulled);
        assert_eq!(pulled(), other.join().unwrap());
    });
    let sent: Vec<_> = server
        .asked()
        .into_iter()
        .filter(|(asked, _)| asked.side == Side::Store)
        .map(|(asked, _)| (asked.path, asked.range))
        .collect();
    let mut once = sent.clone();
    once.sort();
    once.dedup();
    assert_eq!(once.len(), sent.len());
    assert_files(&pulled(), &repository(), &NEEDED);
}

#[test]
fn a_blob_that_was_cut_is_replaced() {
    let (server, cache) = (server(), tempfile::tempdir().unwrap());
    let hub = hub(&server, cache.path());
    let directory = pull(&hub, NAME).unwrap();
    let blob = directory.join("tokenizer.json").canonicalize().unwrap();
    fs::write(&blob, b"half").unwrap();
    pull(&hub, NAME).unwrap();
    assert_files(&directory, &repository(), &NEEDED);
    assert_blobs(cache.path());
}

#[test]
fn names_from_the_hub_stay_in_the_cache() {
    let (server, cache) = (server(), tempfile::tempdir().unwrap());
    let hub = hub(&server, cache.path());
    for shard in [
        "../../../evil.safetensors",
        "/evil.safetensors",
        "C:\\evil.safetensors",
        "a/../../evil.safetensors",
        "nul.safetensors",
    ] {
        let index = json!({"weight_map": {"a": shard}}).to_string();
        let evil = repository().with("model.safetensors.index.json", index, false).with(shard, "evil", true);
        server.add(NAME, evil);
        let error = pull(&hub, NAME).unwrap_err();
        assert_eq!(kind(&error), "NoModel", "{shard}: {error}");
    }
    let evil = |commit: &str, name: &str, hash: &str| {
        let file = |name: &str| json!({"rfilename": name, "size": 2, "blobId": hash});
        json!({"sha": commit, "siblings": [file("config.json"), file("model.safetensors"), file(name)]}).to_string()
    };
    let fine = git_hash(b"{}");
    for (commit, name, hash, expected) in [
        ("../../../evil", "x", fine.as_str(), "Answer"),
        ("0123456789ABCDEF0123456789abcdef01234567", "x", &fine, "Answer"),
        ("", "x", &fine, "Answer"),
        // Without a hash in the list the headers are asked, where there is no such file.
        (COMMIT, "x", "../../../evil", "NotFound"),
        (COMMIT, "additional_chat_templates/../../../../evil.jinja", &fine, "NotFound"),
    ] {
        let list = evil(commit, name, hash);
        server.faults(move |asked| match asked.path.starts_with("/api/") {
            true => Fault::Body("application/json", list.clone().into_bytes()),
            false => Fault::Status(404, vec![("X-Error-Code", "EntryNotFound".into())]),
        });
        let error = pull(&hub, NAME).unwrap_err();
        assert_eq!(kind(&error), expected, "{commit} {name} {hash}: {error}");
    }
    let names: Vec<_> = fs::read_dir(cache.path()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert!(names.iter().all(|name| name == ".locks" || name == "models--org--model"), "{names:?}");
    assert!(!cache.path().parent().unwrap().join("evil.safetensors").exists());
}

#[test]
fn a_full_disk_is_told_before_the_download() {
    let (server, cache) = (server(), tempfile::tempdir().unwrap());
    let weights = json!({"rfilename": "model.safetensors", "lfs": {"sha256": "a".repeat(64), "size": 1u64 << 60}});
    let config = json!({"rfilename": "config.json", "size": 2, "blobId": git_hash(b"{}")});
    let list = json!({"sha": COMMIT, "siblings": [config, weights]}).to_string();
    server.faults(move |asked| match asked.path.starts_with("/api/") {
        true => Fault::Body("application/json", list.clone().into_bytes()),
        false => Fault::None,
    });
    let error = pull(&hub(&server, cache.path()), NAME).unwrap_err();
    assert!(matches!(error, HubError::Disk { needed, .. } if needed > 1 << 60), "{error}");
    assert_eq!(server.asked().len(), 1);
}

#[test]
fn a_pulled_model_opens() {
    let (server, cache) = (server(), tempfile::tempdir().unwrap());
    let fixtures = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/fixtures");
    for fixture in ["crest_k2", "leanllama", "nano_compact"] {
        server.add("org/fixture", Repository::default().of(&fixtures.join(fixture), ""));
        fs::remove_dir_all(cache.path()).unwrap();
        let hub = hub(&server, cache.path());
        let directory = pull(&hub, "org/fixture").unwrap();
        let pretrained = Pretrained::open(&directory).unwrap();
        let local = Pretrained::open(fixtures.join(fixture)).unwrap();
        assert_eq!(pretrained.weights().canonical_names().count(), local.weights().canonical_names().count());
        pretrained.text().unwrap();
        let models = hub.models().unwrap();
        assert_eq!((models.len(), models[0].repository.as_str(), models[0].complete), (1, "org/fixture", true));
        assert_eq!((models[0].revisions.as_slice(), &models[0].path), (&["main".to_owned()][..], &directory));
        assert_eq!(emberlm_model::hub::repository_of(&directory).as_deref(), Some("org/fixture"));
    }
}
