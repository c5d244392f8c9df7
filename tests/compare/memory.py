#!/usr/bin/env python3
"""How much memory a job's ranks need together: the largest sum of their proportional set sizes (shared pages counted once) while they run.

    tests/compare/memory.py COMMAND …        e.g. launch/mpirun -np 4 build/kvmesh bench --shape 768,12,8,4,50304,2048 --threads 1
"""
import pathlib
import subprocess
import sys
import time


def descendants(pid):
    found = [pid]
    for task in pathlib.Path(f"/proc/{pid}/task").glob("*/children"):
        for child in task.read_text().split():
            found += descendants(int(child))
    return found


def pss_kib(pid):
    try:
        if "kvmesh" not in pathlib.Path(f"/proc/{pid}/comm").read_text():
            return 0
        lines = pathlib.Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
        return next(int(line.split()[1]) for line in lines if line.startswith("Pss:"))
    except (OSError, StopIteration):  # it has just ended
        return 0


job = subprocess.Popen(sys.argv[1:])
most, ranks = 0, 0
while job.poll() is None:
    try:
        sizes = [pss_kib(pid) for pid in descendants(job.pid)]
    except OSError:
        sizes = []
    if sum(sizes) > most:
        most, ranks = sum(sizes), sum(size > 0 for size in sizes)
    time.sleep(0.05)
print(f"{most / 1024:.0f} MiB in {ranks} ranks at most")
sys.exit(job.returncode)
