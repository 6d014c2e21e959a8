#!/usr/bin/env python3
"""What the kernels of a run with the null driver need, and how often they are launched for a token.

    registers.py DIR [--ptxas PTXAS] [--arch sm_90a] [--all]

DIR is NULL_CUDA_DIR of one run of `ember bench`. Every kernel goes through ptxas. A token is what lies between two reads from the
device, the set of launches that occurs most often; --all lists the kernels of the whole run, prompt and self-test included.
Occupancy is the share of a multiprocessor's 64 warps that can be resident, by registers, shared memory and cubes (sm_90).
"""

import argparse
import collections
import concurrent.futures
import pathlib
import re
import subprocess

REGISTERS, WARPS, CUBES, SHARED, RESERVED = 65536, 64, 32, 233472, 1024

Resources = collections.namedtuple("Resources", "registers stack spills shared")


def assemble(ptxas, arch, path):
    """Runs ptxas; the numbers that it reports, or its message."""
    command = [ptxas, "-v", f"-arch={arch}", "-o", "/dev/null", path]
    done = subprocess.run(command, capture_output=True, text=True)
    report = done.stderr + done.stdout
    if done.returncode:
        return report.strip()

    def number(pattern):
        found = re.search(pattern, report)
        return int(found.group(1)) if found else 0

    return Resources(
        number(r"Used (\d+) registers"),
        number(r"(\d+) bytes stack frame"),
        number(r"(\d+) bytes spill stores") + number(r"(\d+) bytes spill loads"),
        number(r"(\d+) bytes smem"),
    )


def occupancy(registers, threads, shared):
    warps = -(-threads // 32)
    per_warp = -(-registers * 32 // 256) * 256
    by_registers = REGISTERS // max(per_warp, 1) // 4 * 4 // warps
    by_shared = SHARED // (-(-(shared + RESERVED) // 128) * 128)
    return min(CUBES, WARPS // warps, by_registers, by_shared) * warps / WARPS


def read_log(path):
    """The launches of a run as (kernel, threads, shared, cubes), in sections that end with a read from the device."""
    sections, kernels = [collections.Counter()], {}
    for line in path.read_text().splitlines():
        words = line.split()
        if words[0] == "launch":
            product = lambda numbers: eval(numbers.replace(",", "*"), {})
            kernel = (words[1], product(words[3]), int(words[4]))
            sections[-1][kernel] += 1
            kernels.setdefault(kernel, []).append(product(words[2]))
        elif words[0] == "htod":
            sections[-1]["htod"] += 1
        elif words[0] == "dtoh":
            sections.append(collections.Counter())
    return sections, kernels


def token(sections):
    """The section that occurs most often, of those with as many launches as a decoder has."""
    size = lambda section: sum(count for name, count in section.items() if name != "htod")
    long = [frozenset(section.items()) for section in sections if size(section) > 40]
    common = collections.Counter(long).most_common(1)
    return dict(common[0][0]) if common and common[0][1] > 1 else {}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("dir", type=pathlib.Path)
    parser.add_argument("--ptxas", default="ptxas")
    parser.add_argument("--arch", default="sm_90a")
    parser.add_argument("--all", action="store_true")
    args = parser.parse_args()

    sections, kernels = read_log(args.dir / "log")
    of_token = token(sections)
    paths = {path.stem: path for path in sorted(args.dir.glob("*.ptx"))}
    with concurrent.futures.ThreadPoolExecutor() as pool:
        assembled = dict(zip(paths, pool.map(lambda path: assemble(args.ptxas, args.arch, path), paths.values())))
    for name, result in assembled.items():
        if isinstance(result, str):
            print(f"{name} is refused: {result}")

    listed = kernels if args.all else [kernel for kernel in of_token if kernel != "htod"]
    heads = "launches cubes threads registers stack spills shared occupancy".split()
    print(f"{'kernel':<58}", *(f"{head:>{size}}" for head, size in zip(heads, (8, 13, 7, 9, 6, 6, 7, 9))))
    for kernel in sorted(listed, key=lambda kernel: (-of_token.get(kernel, 0), kernel)):
        name, threads, dynamic = kernel
        result = assembled.get(name)
        if not isinstance(result, Resources):
            continue
        cubes = sorted(set(kernels[kernel]))
        span = f"{cubes[0]}" if len(cubes) == 1 else f"{cubes[0]}..{cubes[-1]}"
        shared = result.shared + dynamic
        share = occupancy(result.registers, threads, shared)
        print(
            f"{name:<58} {of_token.get(kernel, 0):>8} {span:>13} {threads:>7} {result.registers:>9} {result.stack:>6}"
            f" {result.spills:>6} {shared:>7} {share:>8.0%}"
        )
    launches = sum(count for name, count in of_token.items() if name != "htod")
    print(f"{launches} launches and {of_token.get('htod', 0)} copies to the device per token; {len(paths)} kernels in all")


if __name__ == "__main__":
    main()
