"""The bundle on three hosts (tests/hosts) over TCP, where the Open MPI that is installed here is hidden."""

import os
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "hosts"))
import hosts

PROMPTS = "".join(f'{{"prompt": "{start}"}}\n' for start in ("Once upon a time", "The fox", "In the cave", "One day", "A young hedgehog"))


def main(folder):
    with tarfile.open(os.environ["BUNDLE"]) as archive:
        archive.extractall(folder)
    bundle = folder / "kvmesh"
    (folder / "prompts.jsonl").write_text(PROMPTS)
    words = ["kvmesh", "generate", "--checkpoint", bundle / "configs/stories", "--prompts", folder / "prompts.jsonl", "--max-new-tokens", 20, "--seed", 3, "--temperature", 1]
    hosts.sh("ip", "link", "set", "lo", "up")
    expected = subprocess.run([os.environ["KVMESH"], *map(str, words[1:])], capture_output=True, check=True, timeout=60).stdout
    libraries = [file for name in ("libopen-*.so*", "libmpi.so*") for file in Path("/usr/lib/x86_64-linux-gnu").glob(name)]
    for installed in {Path(file).resolve() for file in [shutil.which("orted"), *libraries]}:
        hosts.sh("mount", "--bind", "/dev/null", installed)
    mesh = hosts.Hosts(folder)
    for ranks_a_host in (1, 2):
        command = mesh.mpi("mpirun", ranks_a_host, "--mca", "plm", "rsh", *words)
        at = command.index("mpirun")
        command = [str(w) for w in [*command[:at], bundle / "run", *command[at:]]]
        done = subprocess.run(command, capture_output=True, timeout=60)
        logs = "".join(p.read_text() for p in folder.glob("*.log"))
        assert (done.returncode, done.stdout) == (0, expected), f"{done.returncode} {done.stdout!r} {done.stderr.decode()} {logs}"
        print(f"{3 * ranks_a_host} ranks on 3 hosts: the bytes of one rank of the build")
    return 0


hosts.run(main, tools=["orted"])
