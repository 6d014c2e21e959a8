//! The official clients, in Python: `.ci/clients` installs them and runs this.

use std::process::Command;

use crate::client::Server;

#[test]
#[ignore = "needs Python packages: .ci/run runs it through .ci/clients where they can be installed"]
fn official_clients_are_answered() {
    let python = std::env::var("EMBERLM_CLIENTS_PYTHON").expect("EMBERLM_CLIENTS_PYTHON: run .ci/clients");
    let server = Server::start(&["--api-key", "sesame"]);
    let url = format!("http://{}", server.address);
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/serve/clients.py");
    let out = Command::new(python).args([script, &url, "sesame"]).output().unwrap();
    let (shown, wrong) = (String::from_utf8_lossy(&out.stdout), String::from_utf8_lossy(&out.stderr));
    assert!(out.status.success(), "{shown}{wrong}\n{}", server.log());
    println!("{shown}");
}
