//! Models by their name: `ember pull`, `ember models` and `-m org/name`, with a hub on 127.0.0.1.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::hub_support::tls::{Authority, front};
use crate::hub_support::{COMMIT, Fault, RemoteFile, Repository, Server, Side, TOKEN, git_hash, sha256};
use crate::program::{Ended, Scratch, command, ember, model};

const NAME: &str = "org/tiny";
const FIXTURE: &str = "crest_k4";

/// A hub with a fixture, and a cache.
struct Place {
    server: Server,
    scratch: Scratch,
}

impl Place {
    fn new() -> Self {
        let server = Server::start();
        let repository = Repository::default().of(&model(FIXTURE), "").with("README.md", "# A model", false);
        server.add(NAME, repository);
        Self { server, scratch: Scratch::new() }
    }

    fn cache(&self) -> PathBuf {
        self.scratch.path("hub")
    }

    fn repository(&self) -> PathBuf {
        self.cache().join("models--org--tiny")
    }

    fn command(&self, args: &[&str]) -> Command {
        let mut command = command(args);
        for name in ["HF_HUB_CACHE", "HF_TOKEN_PATH", "HF_HUB_OFFLINE", "XDG_CACHE_HOME"] {
            command.env_remove(name);
        }
        command.env("HF_HOME", self.scratch.path("")).env("HF_ENDPOINT", self.server.url()).env("HF_TOKEN", TOKEN);
        command
    }

    fn run(&self, args: &[&str]) -> Ended {
        let output = self.command(args).output().expect("the program runs");
        let text = |bytes| String::from_utf8(bytes).expect("UTF-8");
        let ended = Ended { code: output.status.code(), stdout: text(output.stdout), stderr: text(output.stderr) };
        assert!(!ended.stderr.contains(TOKEN) && !ended.stdout.contains(TOKEN), "{ended:?}");
        ended
    }

    /// A file that is larger than what is downloaded between two notes of what is there.
    fn with_large_weights(self, length: usize) -> Self {
        let bytes = (0..length as u32)
            .flat_map(|i| (i.wrapping_mul(2_654_435_761) >> 7).to_le_bytes().into_iter().take(1))
            .collect::<Vec<u8>>();
        let config = fs::read(model(FIXTURE).join("config.json")).expect("a config");
        let repository =
            Repository::default().with("config.json", config, false).with("model.safetensors", bytes, true);
        self.server.add(NAME, repository.with("tokenizer.json", "{}", false));
        self
    }

    /// Every blob is what its name says.
    #[track_caller]
    fn assert_blobs(&self) {
        for entry in fs::read_dir(self.repository().join("blobs")).into_iter().flatten() {
            let path = entry.expect("an entry").path();
            let name = path.file_name().expect("a name").to_string_lossy().into_owned();
            if name.contains(".ember.") {
                continue;
            }
            let bytes = fs::read(&path).expect("a blob");
            assert!(name == sha256(&bytes) || name == git_hash(&bytes), "{name} is not what it says");
        }
    }

    #[track_caller]
    fn assert_complete(&self) {
        let snapshot = self.repository().join("snapshots").join(COMMIT);
        let needed = |name: &String| name != "README.md";
        for (name, RemoteFile { bytes, .. }) in
            self.server.repository(NAME).files.iter().filter(|(name, _)| needed(name))
        {
            if let Ok(found) = fs::read(snapshot.join(name)) {
                assert!(found == **bytes, "{name} has other bytes");
            } else {
                assert!(
                    !["config.json", "model.safetensors", "tokenizer.json"].contains(&name.as_str()),
                    "{name} is missing"
                );
            }
        }
    }
}

/// The variables that other clients have for it, and the place where the system keeps what it trusts.
#[test]
fn an_authority_is_trusted_when_the_environment_or_the_system_names_it() {
    let (authority, scratch) = (Authority::new("ours"), Scratch::new());
    let config = authority.server("127.0.0.1", false);
    let server = Server::start_as(|hub, store| (front(&hub, &config), front(&store, &config)));
    server.add(NAME, Repository::default().of(&model(FIXTURE), ""));
    let (file, system) = (scratch.path("ca.pem"), scratch.path("certs"));
    authority.write(&file);
    fs::create_dir(&system).expect("a directory");
    authority.write(&system.join("0a1b2c3d.0"));
    let place = Place { server, scratch };
    const NAMES: [&str; 4] = ["SSL_CERT_FILE", "REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE", "SSL_CERT_DIR"];
    let pull = |set: &[(&str, &Path)]| {
        let mut command = place.command(&["pull", NAME]);
        NAMES.iter().for_each(|name| _ = command.env_remove(name));
        command.envs(set.iter().copied());
        let output = command.output().expect("the program runs");
        let text = |bytes| String::from_utf8(bytes).expect("UTF-8");
        Ended { code: output.status.code(), stdout: text(output.stdout), stderr: text(output.stderr) }
    };
    for name in &NAMES {
        let path = if *name == "SSL_CERT_DIR" { &system } else { &file };
        pull(&[(name, path)]).with_code(0);
        place.assert_complete();
        fs::remove_dir_all(place.cache()).expect("removed");
    }
    pull(&[]).fails_with(&["this system trusts", "SSL_CERT_FILE", place.server.url()]);
    pull(&[("SSL_CERT_FILE", Path::new("/nowhere/ca.pem"))]).fails_with(&[
        "SSL_CERT_FILE",
        "/nowhere/ca.pem",
        "no such file",
    ]);
}

#[test]
fn a_model_is_pulled_by_name_and_used_without_a_network() {
    let place = Place::new();
    let pulled = place.run(&["pull", NAME]).with_code(0);
    let snapshot = place.repository().join("snapshots").join(COMMIT);
    assert_eq!(pulled.stdout.trim_end(), snapshot.to_str().expect("UTF-8"));
    assert!(
        pulled.stderr.contains("org/tiny: ")
            && pulled.stderr.contains(" to download, ")
            && pulled.stderr.contains("free"),
        "{}",
        pulled.stderr
    );
    assert!(!snapshot.join("README.md").exists());
    place.server.asked();

    let by_name = ["generate", "-m", NAME, "-p", "Once", "-n", "8", "--greedy"];
    let local = model(FIXTURE);
    let wanted =
        ember(["generate", "-m", local.to_str().expect("UTF-8"), "-p", "Once", "-n", "8", "--greedy"]).with_code(0);
    for extra in [&[][..], &["--offline"], &["--revision", COMMIT]] {
        let ended = place.run(&[&by_name[..], extra].concat()).with_code(0);
        assert_eq!(ended.stdout, wanted.stdout, "{extra:?}");
    }
    let tokens = place.run(&["tokenize", "-m", NAME, "-p", "Once", "--ids"]).with_code(0);
    assert!(!tokens.stdout.is_empty());
    assert!(place.run(&["info", NAME, "--json"]).with_code(0).stdout.contains("\"family\""));
    assert!(place.server.asked().is_empty());
    // A pull asks for the commit of the branch and finds all there.
    let again = place.run(&["pull", NAME]).with_code(0);
    assert!(again.stderr.contains("all of them in the cache"), "{}", again.stderr);
    assert_eq!(place.server.asked().len(), 1);

    let table = place.run(&["models"]).with_code(0);
    assert!(table.stdout.contains("NAME") && table.stdout.contains("org/tiny  crest"), "{}", table.stdout);
    assert!(table.stdout.contains("main (0123456)"), "{}", table.stdout);
    let json: Value = serde_json::from_str(&place.run(&["models", "--json"]).with_code(0).stdout).expect("JSON");
    assert_eq!((&json[0]["name"], &json[0]["complete"]), (&Value::from(NAME), &Value::from(true)));
    assert!(json[0]["bytes"].as_u64().is_some_and(|bytes| bytes > 1000));
}

#[test]
fn a_name_downloads_when_it_is_first_used() {
    let place = Place::new();
    let ended = place.run(&["generate", "-m", "org/tiny@main", "-p", "Once", "-n", "2", "--greedy"]).with_code(0);
    assert!(ended.stderr.contains("org/tiny@main: "), "{}", ended.stderr);
    place.assert_complete();
}

#[test]
fn an_existing_directory_is_meant_before_a_name() {
    let place = Place::new();
    let copy = place.scratch.copy_of(FIXTURE);
    fs::create_dir_all(place.scratch.path("org")).expect("a directory");
    fs::rename(copy, place.scratch.path("org/tiny")).expect("renamed");
    let ended =
        place.command(&["info", "-m", NAME]).current_dir(place.scratch.path("")).output().expect("the program runs");
    assert!(ended.status.success());
    assert!(place.server.asked().is_empty());
}

#[test]
fn what_cannot_be_had_says_what_to_do() {
    let place = Place::new();
    place.run(&["models"]).with_code(0).stderr.find("ember pull sky-lite").expect("what to do");
    let fails = |args: &[&str], parts: &[&str]| place.run(args).fails_with(parts);
    fails(&["info", "-m", "org/unknown"], &["no directory org/unknown", "check the name", "token"]);
    fails(&["info", "-m", "sky-lit"], &["no directory sky-lit; did you mean sky-lite?", "org/name"]);
    fails(&["pull", "tiny"], &["no model tiny", "org/name", "sky-11b-int4"]);
    fails(&["info", "-m", "org/tiny", "--revision", "v7"], &["no such revision"]);
    fails(&["info", "-m", "org/tiny", "--revision", "../x"], &["--revision", "is not the name of a branch"]);
    fails(&["info", "-m", "./nowhere"], &["nowhere", "No such file"]);
    fails(
        &["info", "-m", model(FIXTURE).to_str().expect("UTF-8"), "--revision", "v7"],
        &["--revision is for models by name"],
    );
    fails(&["info", "-m", "org/tiny:../x"], &["not a folder's name"]);
    place.server.asked();
    fails(&["info", "-m", "org/tiny", "--offline"], &["org/tiny is not in the cache", "downloads are off"]);
    assert!(place.server.asked().is_empty());
    let offline = place.command(&["pull", "org/tiny"]).env("HF_HUB_OFFLINE", "1").output().expect("the program runs");
    assert!(String::from_utf8_lossy(&offline.stderr).contains("downloads are off"));
    place.server.faults(|_| Fault::Status(403, vec![("X-Error-Code", "GatedRepo".into())]));
    fails(&["pull", "org/tiny"], &["is gated", "/org/tiny", "account of your token"]);
    let wrong = place.command(&["pull", "org/tiny"]).env("HF_ENDPOINT", "ftp://x").output().expect("the program runs");
    assert!(String::from_utf8_lossy(&wrong.stderr).contains("HF_ENDPOINT"));
}

/// Paths and names look alike: where there is no model of a name, a path may have been meant.
#[test]
fn a_name_that_cannot_be_looked_up_is_no_directory_either() {
    let place = Place::new();
    place.server.faults(|_| Fault::Status(503, vec![]));
    place.run(&["info", "-m", "models/typo"]).fails_with(&["there is no directory models/typo", "503"]);
}

/// A path that exists is no name, so that no hub learns of it.
#[cfg(unix)]
#[test]
fn a_link_to_nothing_is_told_and_no_hub_asked() {
    let place = Place::new();
    fs::create_dir(place.scratch.path("org")).expect("a directory");
    std::os::unix::fs::symlink("/nowhere/model", place.scratch.path("org/tiny")).expect("a link");
    for args in [&["info", NAME][..], &["tokenize", "-m", NAME, "-p", "x"]] {
        let output = place.command(args).current_dir(place.scratch.path("")).output().expect("the program runs");
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert!(stderr.contains("error: org/tiny is a link to /nowhere/model, which is not there"), "{stderr}");
        assert_eq!(output.status.code(), Some(1));
    }
    assert!(place.server.asked().is_empty());
}

/// What a killed process had downloaded is not downloaded again.
#[cfg(unix)]
#[test]
fn a_killed_download_goes_on() {
    let place = Place::new().with_large_weights(12 << 20);
    place.server.faults(|asked| match asked.side {
        Side::Store => Fault::Stall(9 << 20, Duration::from_secs(60)),
        Side::Hub => Fault::None,
    });
    let mut child = place.command(&["pull", NAME]).stderr(Stdio::null()).spawn().expect("the program starts");
    let record = || {
        let blobs = fs::read_dir(place.repository().join("blobs")).ok()?;
        let record = blobs.flatten().find(|entry| entry.file_name().to_string_lossy().ends_with(".ember.json"))?;
        let record: Value = serde_json::from_slice(&fs::read(record.path()).ok()?).ok()?;
        record["written"][0].as_u64()
    };
    let start = Instant::now();
    while record().is_none_or(|written| written < 8 << 20) {
        assert!(start.elapsed() < Duration::from_secs(60), "nothing is noted");
        std::thread::sleep(Duration::from_millis(20));
    }
    child.kill().expect("killed");
    child.wait().expect("ended");
    let kept = record().expect("a record") as usize;
    place.server.asked();
    place.server.faults(|_| Fault::None);
    let ended = place.run(&["pull", NAME]).with_code(0);
    assert!(ended.stderr.contains(" are there from before"), "{}", ended.stderr);
    let store: Vec<_> = place.server.asked().into_iter().filter(|(asked, _)| asked.side == Side::Store).collect();
    assert!(
        store.len() == 1 && store[0].0.range == Some((kept, Some((12 << 20) - 1))) && store[0].1 == 206,
        "{store:?}"
    );
    place.assert_complete();
    place.assert_blobs();
}

/// Wherever a process is killed, the cache holds nothing wrong and the next one goes on.
#[cfg(unix)]
#[test]
fn forty_kills_at_random_moments() {
    const KILLS: u64 = 40;
    let place = Place::new().with_large_weights(11 << 20);
    let (killed, half_way) = (AtomicUsize::new(0), AtomicUsize::new(0));
    for seed in 0..KILLS {
        let random = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407) >> 33;
        // Some from an empty cache, most from what was left.
        if seed.is_multiple_of(5) {
            let _ = fs::remove_dir_all(place.cache());
        }
        // A slow store: about 1 MiB in 10 ms.
        place.server.faults(move |asked| match asked.side {
            Side::Store => {
                Fault::Stall(1 + (random as usize * 977) % (3 << 20), Duration::from_millis(10 + random % 20))
            }
            Side::Hub => Fault::None,
        });
        let mut child = place.command(&["pull", NAME]).stderr(Stdio::null()).spawn().expect("the program starts");
        std::thread::sleep(Duration::from_millis(20 + random % 230));
        killed.fetch_add(usize::from(child.try_wait().expect("a child").is_none()), Ordering::Relaxed);
        let _ = child.kill();
        child.wait().expect("ended");
        let blobs = fs::read_dir(place.repository().join("blobs")).into_iter().flatten().flatten();
        let half = blobs.filter(|entry| entry.file_name().to_string_lossy().ends_with(".ember.incomplete")).count();
        half_way.fetch_add(half, Ordering::Relaxed);
        place.assert_blobs();
        let snapshot = place.repository().join("snapshots").join(COMMIT);
        if snapshot.join("model.safetensors").exists() {
            place.assert_complete();
        }
        if seed % 5 == 4 {
            place.server.faults(|_| Fault::None);
            place.run(&["pull", NAME]).with_code(0);
            place.assert_complete();
            place.assert_blobs();
        }
    }
    let (killed, half_way) = (killed.into_inner(), half_way.into_inner());
    println!("{killed} of {KILLS} killed at work, {half_way} with a file half there");
    assert!(killed >= KILLS as usize / 2 && half_way >= 5, "{killed} {half_way}");
}

/// Needs Python with huggingface_hub: `.ci/hub` has it.
#[test]
#[ignore = "needs Python with huggingface_hub; .ci/hub runs it"]
fn python_and_this_program_use_each_others_downloads() {
    let python = std::env::var("EMBERLM_HUB_PYTHON").expect("EMBERLM_HUB_PYTHON: a Python with huggingface_hub");
    let place = Place::new();
    let run = |step: &str, cache: &Path| {
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/cli/hub.py");
        let output = Command::new(&python)
            .arg(script)
            .args([step, NAME])
            .env("HF_HOME", cache.parent().expect("a parent"))
            .env("HF_ENDPOINT", place.server.url())
            .env("HF_TOKEN", TOKEN)
            .env("HF_HUB_DISABLE_XET", "1")
            .env("HF_HUB_DISABLE_TELEMETRY", "1")
            .output()
            .expect("Python runs");
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        assert!(output.status.success(), "{step}: {}{}", text(&output.stdout), text(&output.stderr));
        text(&output.stdout)
    };
    let files_asked = || {
        place
            .server
            .asked()
            .iter()
            .filter(|(asked, _)| asked.side == Side::Store || asked.path.contains("/resolve/"))
            .count()
    };
    // Downloaded here, used there: without a network, then with one.
    place.run(&["pull", NAME]).with_code(0);
    place.server.asked();
    run("use-offline", &place.cache());
    assert!(place.server.asked().is_empty());
    run("scan", &place.cache());
    run("use-online", &place.cache());
    assert!(
        place
            .server
            .asked()
            .iter()
            .all(|(asked, _)| asked.side == Side::Hub && (asked.method == "HEAD" || !asked.path.contains("/resolve/")))
    );

    // Downloaded there, used here.
    fs::remove_dir_all(place.cache()).expect("removed");
    run("download", &place.cache());
    place.server.asked();
    place.run(&["info", "-m", NAME, "--offline"]).with_code(0);
    place.run(&["info", "-m", NAME]).with_code(0);
    assert_eq!(files_asked(), 0);
    place.run(&["pull", NAME]).with_code(0);
    assert_eq!(files_asked(), 0);
    place.assert_complete();

    // A lock that Python holds is waited for, and the other way round.
    fs::remove_dir_all(place.cache()).expect("removed");
    let weights = place.server.repository(NAME).files["model.safetensors"].etag();
    let lock = place.cache().join(format!(".locks/models--org--tiny/{weights}.lock"));
    let mut holder = Command::new(&python)
        .arg(Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/cli/hub.py"))
        .arg("hold")
        .arg(&lock)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .expect("Python starts");
    let mut line = String::new();
    let mut said = std::io::BufReader::new(holder.stdout.take().expect("a pipe"));
    std::io::BufRead::read_line(&mut said, &mut line).expect("a line");
    let mut pull = place.command(&["pull", NAME]).spawn().expect("the program starts");
    std::thread::sleep(Duration::from_millis(700));
    assert!(pull.try_wait().expect("a child").is_none(), "the lock was not waited for");
    drop(holder.stdin.take());
    holder.wait().expect("ended");
    let output = pull.wait_with_output().expect("ended");
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success() && stderr.contains("another process downloads it; waiting"), "{stderr}");
}
