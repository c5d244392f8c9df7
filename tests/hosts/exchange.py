#!/usr/bin/env python3
"""How much of a training step is exchange between hosts whose links are slow: a rank each on namespaces of one machine, every link limited by tc's tbf.

As root: tests/hosts/exchange.py MBITS [KVMESH …]    medians of a step's parts on rank 0, for each binary in turns (KVMESH: the build's). From the environment: SHAPE,
RANKS, MICRO (rows of a micro-batch), LEAVES (micro-batches of a rank), TURNS, OPTIONS of train.
"""

import json
import os
import statistics
import subprocess
import sys
from pathlib import Path

import hosts

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "launch"))
from command_line import KVMESH, MPIRUN, config_of, write_checkpoint  # noqa: E402
from train_test import write_shard  # noqa: E402

STEPS = 5


def main(folder):
    mbits, binaries = int(sys.argv[1]), sys.argv[2:] or [KVMESH]
    ranks, micro, leaves, turns = (int(os.environ.get(name, default)) for name, default in (("RANKS", 2), ("MICRO", 8), ("LEAVES", 1), ("TURNS", 3)))
    d, layers, vocab, seqlen = map(int, os.environ.get("SHAPE", "384,6,8192,256").split(","))
    all_hosts = hosts.Hosts(folder, ranks)
    for host in all_hosts.all:
        if mbits:
            for link in (["tc"], host.command("tc")):  # from the bridge, and to it
                device = host.link if link == ["tc"] else "eth0"
                hosts.sh(*link, "qdisc", "add", "dev", device, "root", "tbf", "rate", f"{mbits}mbit", "burst", "256k", "latency", "50ms")
    checkpoint = write_checkpoint(folder / "start", {}, config_of(d, layers, seqlen, dtype="bfloat16") | {"vocab_size": vocab, "q_heads": d // 64, "kv_heads": d // 128})
    shard = write_shard(folder / "data.bin", 1, 4000)
    found = {binary: [] for binary in binaries}
    for _ in range(turns):
        for binary in binaries:
            metrics = folder / "metrics.jsonl"
            words = [binary, "train", "--checkpoint", checkpoint, "--init", "original", "--data", shard, "--output", folder / "out", "--metrics", metrics, "--fresh", "--no-peak", "--steps", STEPS,
                     "--batch-rows", ranks * leaves * micro, "--micro-rows", micro, "--threads", 1, *os.environ.get("OPTIONS", "").split()]
            done = subprocess.run(all_hosts.mpi(MPIRUN, 1, *words, hosts=all_hosts.all), stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=900)
            if done.returncode != 0:
                print(done.stderr, file=sys.stderr)
                return 1
            found[binary] += [json.loads(line) for line in metrics.read_text().splitlines()][1:]
    for binary, lines in found.items():
        parts = {name: statistics.median(line["split"][name] for line in lines) for name in lines[0]["split"]}
        share = statistics.median(line["split"]["exchange"] / line["seconds"] for line in lines)
        print(f"{binary}: {statistics.median(line['seconds'] for line in lines):.3f} s a step, {100 * share:.1f} % of it exchange; " + ", ".join(f"{n} {s:.3f}" for n, s in parts.items()), flush=True)
    return 0


if __name__ == "__main__":
    hosts.run(main)
