"""One table of what run.sh measured: median tokens per second, peak memory."""
import json, pathlib, re, statistics, sys

rows = []
for path in sorted(pathlib.Path(sys.argv[1]).glob("*-t*")):
    match = re.match(r"(\w+)-(.+)-t(\d+)\.(json|txt)$", path.name)
    if not match or not path.stat().st_size:
        continue
    engine, weights, threads, kind = match.groups()
    tests, rss = {}, None
    if kind == "json":
        data = json.loads(path.read_text())
        if engine == "ember":
            tests = {r["test"]: r["tokens_per_second"] for r in data["results"]}
            rss = data["peak_rss_bytes"] / 1e9
        else:
            for r in data:
                tests[f"pp{r['n_prompt']}" if r["n_prompt"] else f"tg{r['n_gen']}"] = statistics.median(r["samples_ts"])
            kb = path.with_suffix(".kb")
            rss = int(kb.read_text()) * 1024 / 1e9 if kb.exists() and kb.read_text().strip() else None
    else:
        text = path.read_text()
        for name, value in re.findall(r"^(pp\d+|tg\d+)[^\n]*?med(?:ian)? ([\d.]+)", text, re.M):
            tests.setdefault(name, float(value))
        found = re.search(r"peak rss ([\d.]+)", text)
        rss = float(found.group(1)) if found else None
    rows.append((int(threads), engine, weights, tests, rss))

columns = ["pp128", "pp512", "tg64"]
print("| threads | engine | weights | " + " | ".join(columns) + " | peak GB |")
print("|---|---|---|" + "---|" * (len(columns) + 1))
for threads, engine, weights, tests, rss in sorted(rows, key=lambda r: (r[0], r[1], r[2])):
    cells = [f"{tests[c]:.1f}" if c in tests else "-" for c in columns]
    print(f"| {threads} | {engine} | {weights} | " + " | ".join(cells) + f" | {'-' if rss is None else f'{rss:.2f}'} |")
