#!/usr/bin/env python3
"""Several `ember bench` commands at the same time, one of which runs at a time: a few seconds each, in turns.

    benches/turns.py [--slice 2.5] 'ember bench --shape lean-8b -p 0 -n 1 -r 200' 'other/ember bench ...' ...

Memory that is shared with other machines changes its speed within minutes, so two commands that run one after the other differ by what they
happened to meet. Here every command is stopped (SIGSTOP) as soon as it has loaded; then they go on in turns until all have ended. A repetition
that was stopped midway counts the pause: make repetitions far shorter than a slice (`-n 1`), with many of them (`-r 200`), so that the median has
none of it. All of them are in memory together.

Prints a table: the median of each test of each command, and its ratio to the same test of the first. The commands have the same tests in the
same order. One that had few turns was measured by itself, and is an error.
"""
import argparse, json, shlex, signal, subprocess, sys, tempfile, time

FEWEST = 5  # turns


class Command:
    """A process that is stopped, but for its turns."""

    def __init__(self, line):
        self.line, self.turns = line, 0
        self.out, self.err = tempfile.TemporaryFile("w+"), tempfile.NamedTemporaryFile("w+")
        try:
            self.process = subprocess.Popen([*shlex.split(line), "--json"], stdout=self.out, stderr=self.err)
        except OSError as error:
            sys.exit(f"{line}: {error}")
        while "loaded in" not in self.errors():
            if self.process.poll() is not None:
                sys.exit(f"{line}: {self.errors()}")
            time.sleep(0.05)
        self.process.send_signal(signal.SIGSTOP)

    def errors(self):
        return open(self.err.name).read()

    def turn(self, seconds):
        """Lets it go on; whether it has not ended."""
        self.turns += 1
        self.process.send_signal(signal.SIGCONT)
        try:
            self.process.wait(seconds)
            return False
        except subprocess.TimeoutExpired:
            self.process.send_signal(signal.SIGSTOP)
            return True

    def report(self):
        if self.process.returncode:
            sys.exit(f"{self.line}: {self.errors()}")
        if self.turns < FEWEST:
            sys.exit(f"{self.line}: ended in its turn {self.turns}; more repetitions (-r) or a shorter --slice make more of them")
        self.out.seek(0)
        return json.load(self.out)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--slice", type=float, default=2.5, help="seconds of a turn")
    parser.add_argument("commands", nargs="+", metavar="COMMAND")
    args = parser.parse_args()
    commands = []
    try:
        for line in args.commands:
            commands.append(Command(line))
        left = commands
        while left:
            left = [command for command in left if command.turn(args.slice)]
    finally:
        for command in commands:
            if command.process.poll() is None:
                command.process.kill()
    reports = [command.report() for command in commands]
    tests = [[(result["test"], result["n_depth"]) for result in report["results"]] for report in reports]
    for command, found in zip(commands, tests):
        if found != tests[0]:
            sys.exit(f"{command.line}: has other tests than {commands[0].line}")
    for number, command in enumerate(commands, 1):
        print(f"{number}: `{command.line}`, {command.turns} turns")
    print("\n| | test | threads | cache | steps | tokens/s, median | times 1 | best | peak memory, GiB |\n|---|---|---|---|---|---|---|---|---|")
    for number, report in enumerate(reports, 1):
        for result, first in zip(report["results"], reports[0]["results"]):
            speed = result["tokens_per_second"]
            steps = "" if result["mean_steps"] is None else f"{result['mean_steps']:.2f}"
            cells = [number, f"{result['test']} @ d{result['n_depth']}", result["threads"], result.get("cache_type", ""), steps]
            cells += [f"{speed:.2f}", f"{speed / first['tokens_per_second']:.3f}", f"{result['best_tokens_per_second']:.2f}"]
            print("| " + " | ".join(map(str, [*cells, f"{report['peak_rss_bytes'] / 2**30:.2f}"])) + " |")


if __name__ == "__main__":
    main()
