#!/usr/bin/env python3
"""kvmesh scale over three hosts and TCP, a rank each; where the machine has cgroups for it every host gets half a core of its own.

As root: tests/hosts/scale.py REPORT [kvmesh scale's options].
"""

import os
import subprocess
import sys
from pathlib import Path

import hosts
from makespan import GROUPS, limit
from command_line import KVMESH, MPIRUN


def main(folder):
    all_hosts = hosts.Hosts(folder)
    groups = [limit(host) for host in all_hosts.all]
    enter = f'echo $$ > {GROUPS}/$(hostname)-{os.getpid()}/cgroup.procs; exec "$@"' if all(groups) else 'exec "$@"'
    words = [KVMESH, "scale", "--threads", 1, "--report", Path(sys.argv[1]).resolve(), *sys.argv[2:]]
    done = subprocess.run(all_hosts.mpi(MPIRUN, 1, "sh", "-c", enter, "sh", *words), stdin=subprocess.DEVNULL, timeout=1800)
    for group in filter(None, groups):
        group.rmdir()
    print("half a core each" if all(groups) else "no cgroups: the hosts share the cores", file=sys.stderr)
    return done.returncode


if __name__ == "__main__":
    hosts.run(main)
