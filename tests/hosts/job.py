"""A job on three hosts, as the tests here start, disturb and finish it. Its rows have long-tailed lengths, as people's have."""

import contextlib
import json
import os
import random
import signal
import subprocess
import sys
import time
import unittest
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "launch"))
from command_line import KVMESH, MPIRUN, config_of, random_weights, write_checkpoint  # noqa: E402
from hosts import Hosts  # noqa: E402

ROWS, LONG_ROWS, LONGEST = 120, 12, 4000
GRACE = 8  # seconds that the exit may take beyond the deadline


def write_rows(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def ranks_environment(pid):
    try:
        return dict(v.split("=", 1) for v in Path(f"/proc/{pid}/environ").read_text(errors="replace").split("\0") if "=" in v)
    except OSError:
        return {}


def state_of(pid):
    """Of a process: a letter as in ps, Z also where it is gone."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0]
    except OSError:
        return "Z"


class JobTest(unittest.TestCase):
    """`folder` is set before the tests start."""

    folder = None
    maxDiff = None

    @classmethod
    def setUpClass(cls):
        cls.hosts = Hosts(cls.folder)
        lengths = random.Random(3)
        config = config_of(128, 4, seqlen=LONGEST + 96)
        cls.checkpoint = write_checkpoint(cls.folder / "checkpoint", random_weights(config), config)
        cls.prompts = write_rows(cls.folder / "prompts.jsonl", (
            {"id": i, "tokens": [(i * 7 + j) % 256 for j in range(1 + i % 9)], "max_new_tokens": min(300, int(8 * lengths.paretovariate(1))), "temperature": i % 2} for i in range(ROWS)))
        cls.long_prompts = write_rows(cls.folder / "long.jsonl", (
            {"id": i, "tokens": [(i * 11 + j * j) % 256 for j in range(LONGEST - i)], "max_new_tokens": 3} for i in range(LONG_ROWS)))
        cls.expected = {p: cls.undisturbed(p) for p in (cls.prompts, cls.long_prompts)}

    @classmethod
    def undisturbed(cls, prompts):
        """The bytes that one rank alone writes."""
        output = cls.folder / f"undisturbed-{prompts.name}"
        subprocess.run(cls.hosts.all[0].command(KVMESH, *cls.words(prompts, output)), check=True, capture_output=True, timeout=100)
        return output.read_bytes()

    @classmethod
    def words(cls, prompts, output):
        return ["generate", "--checkpoint", cls.checkpoint, "--prompts", prompts, "--output", output, "--seed", 4, "--logprobs", 1, "--ignore-eos"]

    def setUp(self):
        self.output = self.folder / f"{self._testMethodName}.jsonl"
        self.journal = self.output.with_name(self.output.name + ".journal")
        self.started = 0

    def command(self, *more, ranks_a_host=1, prompts=None, batch=12, mpi=(), hosts=None):
        self.started += 1
        self.job = f"{self._testMethodName}-{self.started}"  # every process of it has this in its environment
        words = [KVMESH, *self.words(prompts or self.prompts, self.output), "--threads", 1, "--batch-size", batch, *more]
        return ["env", f"KVMESH_TEST_JOB={self.job}", *self.hosts.mpi(MPIRUN, ranks_a_host, *mpi, *words, hosts=hosts)]

    def start(self, *more, rows=10, **options):
        """A running job that has finished some rows more than before."""
        rows += self.rows_in_journal()
        job = subprocess.Popen(self.command(*more, **options), stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        self.addCleanup(self.end, job)
        while self.rows_in_journal() < rows:
            self.assertIsNone(job.poll(), "the job ended too early")
            time.sleep(0.005)
        return job

    def end(self, job):
        self.signal(self.processes()[0], signal.SIGKILL)
        job.communicate()

    def rows_in_journal(self):
        try:
            return max(0, self.journal.read_bytes().count(b"\n") - 1)
        except FileNotFoundError:
            return 0

    def processes(self):
        """Of the job that was started last: [pid] of all, and {rank: pid}."""
        found, ranks = [], {}
        for pid in (int(p.name) for p in Path("/proc").iterdir() if p.name.isdigit()):
            environment = ranks_environment(pid)
            if environment.get("KVMESH_TEST_JOB") != self.job:
                continue
            found.append(pid)
            if Path(f"/proc/{pid}/comm").read_text().strip() == "kvmesh" and "OMPI_COMM_WORLD_RANK" in environment:
                ranks[int(environment["OMPI_COMM_WORLD_RANK"])] = pid
        return found, ranks

    def check_ended(self, job, what, begun, deadline, says, code=70):
        """`job` ends in time, with one line on standard error; then none of its ranks runs on, on no host."""
        _, ranks = self.processes()
        _, errors = job.communicate(timeout=deadline + GRACE)
        seconds = time.monotonic() - begun
        self.assertEqual(job.returncode, code, errors)
        # Open MPI's own lines about broken connections begin with the host, those of its event library with [warn].
        said = [line for line in errors.decode().splitlines() if line and not line.startswith(("[kvmesh-h", "[warn] "))]
        self.assertEqual(len(said), 1, errors.decode())
        self.assertRegex(said[0], says)
        while any(state_of(p) not in "ZX" for p in ranks.values()):
            self.assertLess(time.monotonic() - begun, deadline + 2 * GRACE, "ranks are left")
            time.sleep(0.01)
        print(f"       {seconds:6.2f} s from {what} to the exit, {time.monotonic() - begun:.2f} s to the end of the last rank: {said[0]}", flush=True)

    def finish(self, **options):
        """The same command to its end."""
        done = subprocess.run(self.command(**options), stdin=subprocess.DEVNULL, capture_output=True, timeout=100)
        self.assertEqual(done.returncode, 0, done.stderr)
        self.check_finished(options.get("prompts"))

    def check_finished(self, prompts=None):
        self.assertEqual(self.output.read_bytes(), self.expected[prompts or self.prompts])
        self.assertFalse(self.journal.exists())

    def signal(self, pids, number):
        for pid in pids:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, number)
