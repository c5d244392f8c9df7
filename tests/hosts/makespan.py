#!/usr/bin/env python3
"""How long a job takes, and how long its ranks are idle, on rows of long-tailed lengths: refill and shared rows against static batches and static shards.

Three hosts over TCP, a rank each; where the machine has cgroups for it every host gets half a core of its own, so that an idle rank makes nobody faster.
As root: tests/hosts/makespan.py [REPEATS]. Prints a Markdown table of medians.
"""

import itertools
import json
import os
import random
import statistics
import subprocess
import sys
from pathlib import Path

import hosts
from job import write_rows
from command_line import KVMESH, MPIRUN, config_of, random_weights, write_checkpoint

ROWS, BATCH, LONGEST = 240, 12, 400
GROUPS = Path("/sys/fs/cgroup/cpu")
WAYS = {"refill, shared rows (default)": [], "the same, `--sync-every 1`": ["--sync-every", 1], "the same, `--sync-every 16`": ["--sync-every", 16], "refill, `--shards static`": ["--shards", "static"], "`--static-batches`, shared rows": ["--static-batches"],
        "`--static-batches --shards static` (the seed's way)": ["--static-batches", "--shards", "static"]}


def limit(host):
    """A cgroup with half a core, named after the host; its name, or None."""
    group = GROUPS / f"{host.name}-{os.getpid()}"
    try:
        group.mkdir()
        (group / "cpu.cfs_period_us").write_text("4000")
        (group / "cpu.cfs_quota_us").write_text("2000")
    except OSError:
        return None
    return group


def main(folder):
    repeats = int(sys.argv[1]) if len(sys.argv) > 1 else 3
    all_hosts = hosts.Hosts(folder)
    groups = [limit(host) for host in all_hosts.all]
    limited = all(groups)
    lengths = random.Random(3)
    config = config_of(384, 6, seqlen=LONGEST + 48)
    checkpoint = write_checkpoint(folder / "checkpoint", random_weights(config), config)
    rows = [{"id": i, "tokens": [(i * 7 + j) % 256 for j in range(1 + i % 40)], "max_new_tokens": min(LONGEST, int(12 * lengths.paretovariate(1)))} for i in range(ROWS)]
    prompts = write_rows(folder / "prompts.jsonl", rows)
    enter = f'echo $$ > {GROUPS}/$(hostname)-{os.getpid()}/cgroup.procs; exec "$@"' if limited else 'exec "$@"'
    seconds, idle, lines = {way: [] for way in WAYS}, {way: [] for way in WAYS}, set()
    for repeat, (way, more) in itertools.product(range(repeats), WAYS.items()):
        output, metrics = folder / "out.jsonl", folder / "metrics.jsonl"
        metrics.unlink(missing_ok=True)
        words = [KVMESH, "generate", "--checkpoint", checkpoint, "--prompts", prompts, "--output", output, "--fresh", "--ignore-eos", "--threads", 1, "--batch-size", BATCH, "--metrics", metrics, *more]
        done = subprocess.run(all_hosts.mpi(MPIRUN, 1, "sh", "-c", enter, "sh", *words), stdin=subprocess.DEVNULL, capture_output=True, timeout=600)
        if done.returncode != 0:
            raise RuntimeError(done.stderr.decode())
        lines.add(output.read_bytes())
        last = json.loads(metrics.read_text().splitlines()[-1])
        spans = [rank["wall_s"] - rank["start_s"] for rank in last["ranks"]]
        seconds[way].append(max(spans))
        idle[way].append(sum(rank["idle_s"] for rank in last["ranks"]) / sum(spans))
        print(f"{way}: {seconds[way][-1]:.2f} s, idle {100 * idle[way][-1]:.1f} %, {last['steps']} steps", file=sys.stderr, flush=True)
    for group in groups:
        if group:
            group.rmdir()
    if len(lines) != 1:
        raise RuntimeError("the ways gave different bytes")
    tokens = [row["max_new_tokens"] for row in rows]
    print(f"{ROWS} rows of {min(tokens)} to {max(tokens)} new tokens (median {statistics.median(tokens):.0f}, mean {statistics.mean(tokens):.0f}), {BATCH} in flight, three hosts over TCP"
          f"{', half a core each' if limited else ' that share the cores'}; medians of {repeats}; the same bytes from all.\n")
    print("| | makespan | against the first | idle share of the ranks' time |\n|---|---|---|---|")
    base = statistics.median(seconds[next(iter(WAYS))])
    for way in WAYS:
        time = statistics.median(seconds[way])
        print(f"| {way} | {time:.1f} s | {time / base:.2f} | {100 * statistics.median(idle[way]):.0f} % |")
    return 0


if __name__ == "__main__":
    hosts.run(main)
