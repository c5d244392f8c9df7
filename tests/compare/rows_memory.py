#!/usr/bin/env python3
"""How a job's memory grows with its rows: the peak of each rank's anonymous memory for files of more and more prompts.

    tests/compare/rows_memory.py [--ranks N] [--resume] [ROWS …]        default: 100000 1000000

A tiny model makes one token a row. --resume: the job is killed when about half of its rows are finished, and the second start is measured.
"""
import argparse
import json
import os
import pathlib
import signal
import subprocess
import sys
import tempfile
import time

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1] / "launch"))
from command_line import KVMESH, MPIRUN, config_of, random_weights, write_checkpoint  # noqa: E402


def ranks_below(pid):
    """The processes of a job that are kvmesh's."""
    found = []
    try:
        if "kvmesh" in pathlib.Path(f"/proc/{pid}/comm").read_text():
            found.append(pid)
        for task in pathlib.Path(f"/proc/{pid}/task").glob("*/children"):
            for child in task.read_text().split():
                found += ranks_below(int(child))
    except OSError:  # it has just ended
        pass
    return found


def anonymous_kib(pid):
    try:
        return next(int(line.split()[1]) for line in pathlib.Path(f"/proc/{pid}/status").read_text().splitlines() if line.startswith("RssAnon:"))
    except (OSError, StopIteration):
        return 0


def watch(command, until=lambda: False):
    """Runs the job to its end or until `until()`, then kills it. The most anonymous memory that each rank had, in KiB, and the seconds."""
    begun = time.monotonic()
    job = subprocess.Popen(command, stderr=subprocess.DEVNULL)
    most = {}
    while job.poll() is None and not until():
        for pid in ranks_below(job.pid):
            most[pid] = max(most.get(pid, 0), anonymous_kib(pid))
        time.sleep(0.05)
    if job.poll() is None:
        for pid in ranks_below(job.pid):
            os.kill(pid, signal.SIGKILL)
    job.wait()
    return sorted(most.values(), reverse=True), time.monotonic() - begun, job.returncode


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("rows", type=int, nargs="*", default=[100000, 1000000])
    parser.add_argument("--ranks", type=int, default=1)
    parser.add_argument("--resume", action="store_true")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="kvmesh-rows-") as name:
        folder = pathlib.Path(name)
        config = config_of(16, 1)
        checkpoint = write_checkpoint(folder / "checkpoint", random_weights(config), config)
        for rows in args.rows:
            prompts, output = folder / "prompts.jsonl", folder / f"out{rows}.jsonl"
            with prompts.open("w") as file:
                for i in range(rows):
                    file.write(json.dumps({"id": i, "tokens": [i % 256, i // 256 % 256]}) + "\n")
            command = [MPIRUN, "-np", str(args.ranks), KVMESH, "generate", "--checkpoint", str(checkpoint), "--prompts", str(prompts), "--output", str(output),
                       "--max-new-tokens", "1", "--batch-size", "256", "--threads", "1"]
            if args.resume:
                journal = output.with_name(output.name + ".journal")
                watch(command, lambda: journal.exists() and journal.stat().st_size > 40 * rows)
            most, seconds, code = watch(command)
            lines = sum(1 for _ in output.open("rb"))
            print(f"{rows} rows on {args.ranks} ranks: {', '.join(f'{m / 1024:.1f}' for m in most)} MiB anonymous at most, {seconds:.1f} s, exit {code}, {lines} lines", flush=True)
            output.unlink()


main()
