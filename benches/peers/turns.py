#!/usr/bin/env python3
"""Decoding of emberlm and llama.cpp in turns, and the ratio within each round.

    benches/peers/turns.py [--rounds 9] [--threads 1,2] [--ember PATH]     after setup.sh; a minute a round

Memory that is shared with other machines changes its speed within minutes. Engines that are measured one after the other, five
repetitions each, then differ by what they happened to meet; run after run in turns they do not.
"""
import argparse, json, pathlib, statistics, subprocess

HERE = pathlib.Path(__file__).resolve().parent
MODELS = HERE / "models"
EMBER = {
    "NF4 double quant": ["-m", MODELS / "bench-1b-hf", "--quant", "nf4-dq"],
    "NF4 double quant, mapped": ["-m", MODELS / "bench-1b-hf-nf4"],
    "int8 rows": ["-m", MODELS / "bench-1b-hf", "--quant", "int8"],
    "BF16": ["-m", MODELS / "bench-1b-hf"],
}
PEER = {"NF4 double quant": "Q4_0", "NF4 double quant, mapped": "Q4_0", "int8 rows": "Q8_0", "BF16": "f16"}
TOKENS = ["-n", "32", "-p", "0", "-r", "1"]


def run(command):
    return json.loads(subprocess.run([str(c) for c in command], capture_output=True, check=True, text=True).stdout)


def ember(binary, name, threads):
    out = run([binary, "bench", *EMBER[name], *TOKENS, "-t", threads, "--json"])
    return out["results"][0]["tokens_per_second"]


def llama(name, threads):
    binary = HERE / "llama.cpp/build/bin/llama-bench"
    return run([binary, "-m", MODELS / f"bench-1b-{name}.gguf", *TOKENS, "-t", threads, "-o", "json"])[0]["avg_ts"]


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--threads", default="1,2")
    parser.add_argument("--ember", default=HERE / "../../target/release/ember")
    args = parser.parse_args()
    print("| | threads | rounds | emberlm, median | llama.cpp, median | ratio of medians | median of ratios | lowest, highest |")
    print("|---|---|---|---|---|---|---|---|", flush=True)
    for threads in args.threads.split(","):
        ours, theirs = {name: [] for name in EMBER}, {name: [] for name in PEER.values()}
        for _ in range(args.rounds):
            for peer in theirs:
                for name in [name for name in EMBER if PEER[name] == peer]:
                    ours[name].append(ember(args.ember, name, threads))
                theirs[peer].append(llama(peer, threads))
        for name, speeds in ours.items():
            peers = theirs[PEER[name]]
            ratios = [a / b for a, b in zip(speeds, peers)]
            a, b = statistics.median(speeds), statistics.median(peers)
            cells = [f"{name} to {PEER[name]}", threads, args.rounds, f"{a:.1f}", f"{b:.1f}", f"{a / b:.2f}"]
            cells += [f"{statistics.median(ratios):.2f}", f"{min(ratios):.2f}, {max(ratios):.2f}"]
            print("| " + " | ".join(map(str, cells)) + " |", flush=True)


if __name__ == "__main__":
    main()
