"""Three hosts on one machine: network namespaces joined by a bridge, each with its own name, addresses and /dev/shm, and one file system.

A test program calls run(main). `main` runs as the first process of a PID namespace, in mount and network namespaces of its own: when it ends, however it
ends, the kernel ends every process that it started and takes interfaces and mounts away. Nothing of it is seen outside, and no packet leaves.
"""

import ctypes
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

SKIPPED = 77  # the exit code that CTest takes for "skipped"
AGENT = Path(__file__).resolve().with_name("remote-shell")
NEW_PIDS, NEW_MOUNTS, NEW_NETWORK, NEW_NAMES, NEW_IPC = 0x20000000, 0x00020000, 0x40000000, 0x04000000, 0x08000000
PR_SET_PDEATHSIG = 1

libc = ctypes.CDLL(None, use_errno=True)


def skip(why):
    print(f"SKIPPED {Path(sys.argv[0]).name}: {why}", flush=True)
    sys.exit(SKIPPED)


def unshare(flags):
    if libc.unshare(flags) != 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))


def sh(*words):
    done = subprocess.run([str(w) for w in words], capture_output=True, text=True)
    if done.returncode != 0:
        raise RuntimeError(f"{' '.join(map(str, words))}: {done.stderr.strip()}")


def run(main, tools=()):
    """Ends the program with the exit code that main(folder) returns in the namespaces; `folder` is a file system in memory that all hosts see."""
    if os.geteuid() != 0:
        skip("making hosts (network namespaces) needs root")
    for tool in ("ip", "nsenter", "unshare", "mount", "mpirun", *tools):
        if not shutil.which(tool):
            skip(f"there is no {tool}")
    try:
        unshare(NEW_PIDS)  # of the children
    except OSError as e:
        skip(f"this machine allows no namespaces: {e.strerror}")
    folder = Path(tempfile.mkdtemp(prefix="kvmesh-hosts-"))
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    child = os.fork()
    if child == 0:
        code = 1
        try:
            code = inside(main, folder)
        except SystemExit as e:
            code = e.code if isinstance(e.code, int) else 1
        except BaseException:
            import traceback
            traceback.print_exc()
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    try:
        code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    except BaseException:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)  # returns when the last process in the namespace is gone
        raise
    finally:
        folder.rmdir()  # what was in it went with the mount
    sys.exit(code if code >= 0 else 1)


def inside(main, folder):
    libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    try:
        unshare(NEW_MOUNTS | NEW_NETWORK | NEW_NAMES | NEW_IPC)
        sh("mount", "--make-rprivate", "/")
        sh("mount", "-t", "proc", "proc", "/proc")
        sh("mount", "-t", "tmpfs", "kvmesh-hosts", folder)
        sh("ip", "link", "add", "kvmesh-br0", "type", "bridge", "forward_delay", 0)
    except (OSError, RuntimeError) as e:
        skip(f"this machine allows no namespaces: {e}")
    return main(folder)


class Host:
    """A host's name, address and the process that holds its namespaces."""

    def __init__(self, hosts, number):
        self.name, self.address, self.link = f"kvmesh-h{number}", f"10.77.0.{number}", f"kvmesh-v{number}"
        self.temporary = hosts.folder / f"tmp-{self.name}"
        self.temporary.mkdir()
        self.is_cut = hosts.folder / f"{self.name}.cut"  # told to remote-shell
        held = f"hostname {self.name} && mount -t tmpfs shm /dev/shm && ip link set lo up && echo ready && exec sleep infinity"
        self.holder = subprocess.Popen(["unshare", "--net", "--uts", "--ipc", "--mount", "sh", "-c", held], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE)
        if self.holder.stdout.readline() != b"ready\n":
            raise RuntimeError(f"{self.name} did not start")
        (hosts.folder / f"{self.name}.pid").write_text(str(self.holder.pid))
        sh("ip", "link", "add", self.link, "type", "veth", "peer", "name", "eth0", "netns", self.holder.pid)
        sh("ip", "link", "set", self.link, "master", "kvmesh-br0", "up")
        sh(*self.command("ip", "addr", "add", f"{self.address}/24", "dev", "eth0"))
        sh(*self.command("ip", "link", "set", "eth0", "up"))

    def command(self, *words):
        """`words` as a command that runs on this host."""
        return ["nsenter", f"--target={self.holder.pid}", "--net", "--uts", "--ipc", "--mount", "env", f"TMPDIR={self.temporary}", *map(str, words)]

    def cut(self):
        self.is_cut.touch()
        sh("ip", "link", "set", self.link, "down")

    def mend(self):
        sh("ip", "link", "set", self.link, "up")
        self.is_cut.unlink()


class Hosts:
    """The hosts of this program; the first is where jobs are started."""

    def __init__(self, folder, count=3):
        self.folder = folder
        (folder / "hosts").write_text("127.0.0.1 localhost\n" + "".join(f"10.77.0.{n} kvmesh-h{n}\n" for n in range(1, count + 1)))
        sh("mount", "--bind", folder / "hosts", "/etc/hosts")
        sh("ip", "link", "set", "kvmesh-br0", "up")
        self.all = [Host(self, n) for n in range(1, count + 1)]
        self.wait_for_links()

    def wait_for_links(self):
        """Until a connection between the first and every other host is refused, not unanswered: then packets pass."""
        probe = "import socket, sys\ns = socket.socket()\ns.settimeout(0.2)\nsys.exit(s.connect_ex((sys.argv[1], 9)) != 111)"
        end = time.monotonic() + 10
        for host in self.all[1:]:
            while subprocess.run(self.all[0].command(sys.executable, "-c", probe, host.address)).returncode != 0:
                if time.monotonic() > end:
                    raise RuntimeError(f"no packets between {self.all[0].name} and {host.name}")

    def mpi(self, mpirun, ranks_a_host, *words, hosts=None):
        """`words` under mpirun, started on the first host, with so many ranks on each of `hosts` (all), which talk over TCP."""
        slots = ",".join(f"{h.name}:{ranks_a_host}" for h in hosts or self.all)
        return self.all[0].command(f"KVMESH_HOSTS={self.folder}", mpirun, "--host", slots, "--mca", "plm_rsh_agent", AGENT, "--mca", "btl", "tcp,self", *words)
