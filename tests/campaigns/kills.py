#!/usr/bin/env python3
"""Jobs that are ended at random moments in random ways, on 1 to 4 ranks, and go on, until so many ends have hit a running job: tests/campaigns/kills.py [ENDS] [SEED].

After every end what is finished must be there as an undisturbed run has it, and at the end all bytes. Prints a line an end and a Markdown table.
"""

import collections
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "launch"))
from command_line import KVMESH, MPIRUN, config_of, random_weights, write_checkpoint  # noqa: E402

ROWS, BATCH = 400, 12
NAME = f"kvmesh-kills-{os.getpid()}"


def write_prompts(path, generator):
    rows = ({"id": i, "tokens": [(i * 7 + j) % 256 for j in range(1 + i % 40)], "max_new_tokens": min(300, int(25 * generator.paretovariate(1))), "temperature": i % 2} for i in range(ROWS))
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def processes():
    """Of the job that runs: (the launcher's mpirun, [ranks' pids])."""
    mpirun, ranks = [], []
    for p in Path("/proc").iterdir():
        try:
            if p.name.isdigit() and f"KVMESH_CAMPAIGN={NAME}".encode() in (p / "environ").read_bytes().split(b"\0"):
                name = (p / "comm").read_text().strip()
                {"kvmesh": ranks, "mpirun": mpirun}.get(name, []).append(int(p.name))
        except OSError:
            pass
    return mpirun, ranks


def send(pids, number):
    for pid in pids:
        try:
            os.kill(pid, number)
        except ProcessLookupError:
            pass


class Campaign:
    def __init__(self, folder, seed):
        self.generator = random.Random(seed)
        config = config_of(128, 4, seqlen=400)
        self.words = [KVMESH, "generate", "--checkpoint", write_checkpoint(folder / "checkpoint", random_weights(config), config), "--prompts", write_prompts(folder / "prompts.jsonl", self.generator),
                      "--seed", "4", "--logprobs", "1", "--ignore-eos", "--threads", "1", "--batch-size", str(BATCH), "--comm-timeout", "20"]
        self.output = folder / "out.jsonl"
        self.journal = folder / "out.jsonl.journal"
        begun = time.monotonic()
        self.run(1).communicate()
        self.seconds = time.monotonic() - begun
        self.expected = self.output.read_bytes()
        self.lines = {json.loads(line)["index"]: line for line in self.expected.splitlines()}
        assert len(self.lines) == ROWS
        self.clear()

    def clear(self):
        for file in (self.output, self.journal, Path(f"{self.output}.manifest.json")):
            file.unlink(missing_ok=True)
        self.finished = {}

    def run(self, ranks):
        command = [*map(str, self.words), "--output", str(self.output)]
        return subprocess.Popen([MPIRUN, "-np", str(ranks), *command], env=os.environ | {"KVMESH_CAMPAIGN": NAME}, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)

    def look(self, lost_is_fine=False):
        """What is finished by now: right lines, none twice, and none gone that was there."""
        if not self.journal.exists():
            return 0
        done = subprocess.run([KVMESH, "progress", self.output, "--rows"], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        assert done.returncode == 0, done.stderr
        now = {}
        for line in done.stdout.splitlines():
            index = json.loads(line)["index"]
            assert index not in now, f"row {index} twice"
            assert line == self.lines[index], f"row {index} changed"
            now[index] = line
        assert lost_is_fine or not (self.finished.keys() - now.keys()), f"rows lost: {sorted(self.finished.keys() - now.keys())}"
        self.finished = now
        return len(now)

    # Each gives back whether the job's end may have cost rows that were finished.
    def kill_a_rank(self, job, ranks):
        send([self.generator.choice(processes()[1] or [job.pid])], signal.SIGKILL)

    def kill_all_ranks(self, job, ranks):
        send(processes()[1] or [job.pid], signal.SIGKILL)

    def kill_mpirun(self, job, ranks):
        send(processes()[0] or [job.pid], signal.SIGKILL)

    def kill_everything(self, job, ranks):
        mpirun, pids = processes()
        send([job.pid, *mpirun, *pids], signal.SIGKILL)

    def power_off(self, job, ranks):
        """All is killed, and of the last writes, which nobody has synced, a part is on the disk."""
        self.kill_everything(job, ranks)
        job.wait()
        self.wait_for_ranks()
        if not self.journal.exists():
            return True
        size = self.journal.stat().st_size
        lost = self.generator.randrange(min(4000, size + 1))
        with open(self.journal, "r+b") as file:
            file.truncate(size - lost)
            if self.generator.random() < 0.5:  # blocks that were allocated, but not written
                file.seek(0, os.SEEK_END)
                file.write(bytes(lost))
        return True

    def terminate(self, job, ranks):
        send([job.pid], signal.SIGTERM)

    def user_signal_to_a_rank(self, job, ranks):
        send([self.generator.choice(processes()[1] or [job.pid])], signal.SIGUSR1)

    def wait_for_ranks(self):
        end = time.monotonic() + 30
        while processes()[1]:
            assert time.monotonic() < end, "ranks run on"
            time.sleep(0.01)

    def main(self, ends):
        kinds = [self.kill_a_rank, self.kill_all_ranks, self.kill_mpirun, self.kill_everything, self.power_off, self.terminate, self.user_signal_to_a_rank]
        count, codes, jobs, hits, starts, slowest = collections.Counter(), collections.defaultdict(collections.Counter), 0, 0, 0, collections.Counter()
        redone = 0
        while hits < ends or self.finished:
            ranks, kind = self.generator.randint(1, 4), self.generator.choice(kinds)
            job = self.run(ranks)
            starts += 1
            if hits < ends:
                try:
                    job.wait(self.generator.uniform(0, self.seconds))
                except subprocess.TimeoutExpired:
                    begun = time.monotonic()
                    lost_is_fine = bool(kind(job, ranks))
                    try:
                        job.wait(60)
                    except subprocess.TimeoutExpired:
                        raise RuntimeError(f"{kind.__name__} of {ranks} ranks: the job does not end; mpirun, ranks: {processes()}")
                    self.wait_for_ranks()
                    seconds = time.monotonic() - begun
                    hits += 1
                    name = kind.__name__.replace("_", " ")
                    count[name] += 1
                    codes[name][job.returncode] += 1
                    slowest[name] = max(slowest[name], seconds)
                    if not self.output.exists():
                        before = len(self.finished)
                        after = self.look(lost_is_fine)
                        redone += max(0, before - after)
                        print(f"{hits:4}  {name:22} of {ranks} ranks  exit {job.returncode:3}  {seconds:5.2f} s  {after} of {ROWS} rows finished", flush=True)
                        job.stderr.close()
                        continue
            errors = job.communicate()[1]
            assert self.output.exists(), (job.returncode, errors)
            assert self.output.read_bytes() == self.expected, "the bytes changed"
            if self.journal.exists():  # the end came between the output's name and the journal's
                assert self.run(1).wait() == 0 and not self.journal.exists(), "the journal stayed"
            jobs += 1
            self.clear()
        print(f"\n{hits} ends hit {starts} starts of {jobs} jobs of {ROWS} rows; every output had the bytes of an undisturbed run, no row was lost, doubled or changed.")
        print(f"Rows that a power-off took from the journal and that were computed again: {redone}.\n")
        print("| end | times | exit codes | seconds to the end of the last rank, at most |\n|---|---|---|---|")
        for name, times in sorted(count.items()):
            print(f"| {name} | {times} | {', '.join(f'{code} ({n})' for code, n in sorted(codes[name].items()))} | {slowest[name]:.2f} |")


with tempfile.TemporaryDirectory(prefix="kvmesh-kills-") as scratch:
    Campaign(Path(scratch), int(sys.argv[2]) if len(sys.argv) > 2 else 1).main(int(sys.argv[1]) if len(sys.argv) > 1 else 100)
