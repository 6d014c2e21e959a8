#!/usr/bin/env python3
"""Several `ember bench` commands at the same time, one of which runs at a time: a few seconds each, in turns.

    benches/turns.py [--slice 2.5] 'ember bench --shape lean-8b -p 0 -n 1 -r 200' 'other/ember bench ...' ...

Memory that is shared with other machines changes its speed within minutes, so two commands that run one after the other differ by what they
happened to meet. Here every command loads and warms up first, one after the other, and is stopped (SIGSTOP); then they go on in turns until all have
ended. A repetition that was stopped midway counts the pause: make repetitions far shorter than a slice (`-n 1`), with many of them (`-r 200`), so
that the median has none of it. All of them are in memory together.

Prints a table: the median of each test of each command, and its ratio to the same test of the first.
"""
import argparse, json, shlex, signal, subprocess, sys, tempfile, time

WARM_UP = 4  # seconds after loading: the cache is filled, the first passes are made


def start(command):
    """The process, stopped after it has loaded, and the files of its output."""
    out, err = tempfile.TemporaryFile("w+"), tempfile.NamedTemporaryFile("w+")
    process = subprocess.Popen([*shlex.split(command), "--json"], stdout=out, stderr=err)
    while "loaded in" not in open(err.name).read():
        if process.poll() is not None:
            sys.exit(f"{command}: {open(err.name).read()}")
        time.sleep(0.1)
    time.sleep(WARM_UP)
    process.send_signal(signal.SIGSTOP)
    return process, out, err


def take_turns(processes, seconds):
    while processes:
        for process in list(processes):
            process.send_signal(signal.SIGCONT)
            try:
                process.wait(seconds)
                processes.remove(process)
            except subprocess.TimeoutExpired:
                process.send_signal(signal.SIGSTOP)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--slice", type=float, default=2.5, help="seconds of a turn")
    parser.add_argument("commands", nargs="+", metavar="COMMAND")
    args = parser.parse_args()
    started = []
    try:
        for command in args.commands:
            started.append(start(command))
        take_turns([process for process, _, _ in started], args.slice)
    finally:
        for process, _, _ in started:
            if process.poll() is None:
                process.kill()
    first = {}
    print("| command | test | tokens/s, median | times the first | best | peak memory, GiB |\n|---|---|---|---|---|---|")
    for command, (process, out, err) in zip(args.commands, started):
        out.seek(0)
        if process.returncode:
            sys.exit(f"{command}: {open(err.name).read()}")
        report = json.load(out)
        for result in report["results"]:
            test = f"{result['test']} @ d{result['n_depth']}"
            speed = result["tokens_per_second"]
            first.setdefault(test, speed)
            cells = [command, test, f"{speed:.2f}", f"{speed / first[test]:.3f}"]
            cells += [f"{result['best_tokens_per_second']:.2f}", f"{report['peak_rss_bytes'] / 2**30:.2f}"]
            print("| " + " | ".join(cells) + " |")


if __name__ == "__main__":
    main()
