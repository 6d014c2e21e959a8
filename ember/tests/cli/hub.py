"""What huggingface_hub makes of the cache that ember writes, and a cache that it writes itself."""

import sys
from pathlib import Path

import huggingface_hub
from huggingface_hub import hf_hub_download, scan_cache_dir, snapshot_download, try_to_load_from_cache
from huggingface_hub.utils import WeakFileLock

NEEDED = ["config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"]


def use(name: str, offline: bool) -> None:
    directory = snapshot_download(name, local_files_only=True)
    for file in NEEDED:
        path = hf_hub_download(name, file, local_files_only=offline)
        assert Path(path).is_file() and str(path).startswith(directory), path
    if offline:
        # What the repository lacks is known too.
        known = try_to_load_from_cache(name, "nano_compact_spec.json")
        assert known is not None and not isinstance(known, str), known


def main() -> None:
    step, name = sys.argv[1:]
    if step == "use-offline":
        use(name, offline=True)
    elif step == "use-online":
        use(name, offline=False)
    elif step == "scan":
        info = scan_cache_dir()
        assert not info.warnings, info.warnings
        (repo,) = info.repos
        (revision,) = repo.revisions
        assert repo.repo_id == name and "main" in revision.refs, repo
        assert {file.file_name for file in revision.files} >= set(NEEDED), revision
    elif step == "download":
        snapshot_download(name)
    elif step == "hold":
        Path(name).parent.mkdir(parents=True, exist_ok=True)
        with WeakFileLock(name):
            print("held", flush=True)
            sys.stdin.read()
    else:
        raise SystemExit(f"no step {step}")
    print(f"huggingface_hub {huggingface_hub.__version__}: {step}", file=sys.stderr)


main()
