#!/usr/bin/env python3
"""Three hosts over TCP: the bytes of one rank; ranks that are killed or stopped; a job that is suspended. The same command goes on with the same bytes."""

import re
import signal
import time
from pathlib import Path

import hosts
from job import JobTest
from command_line import run_tests


class Ranks(JobTest):
    def test_the_bytes_of_one_rank(self):
        for ranks_a_host, more in ((1, ()), (2, ("--sync", "logits", "--static-batches"))):
            self.finish(ranks_a_host=ranks_a_host, batch=13)
            self.output.unlink()
            self.output.with_name(self.output.name + ".manifest.json").unlink()
        self.finish(ranks_a_host=2, prompts=self.long_prompts)

    def test_a_killed_rank(self):
        for ranks_a_host, rank, host in ((1, 2, 3), (2, 0, 1)):
            job = self.start(ranks_a_host=ranks_a_host)
            begun = time.monotonic()
            self.signal([self.processes()[1][rank]], signal.SIGKILL)
            self.check_ended(job, "kill -9 of a rank", begun, 60, rf"^kvmesh: rank {rank} on kvmesh-h{host} was ended by signal 9 \(Killed\)$")
        self.finish()

    def test_a_stopped_rank(self):
        for ranks_a_host, rank in ((1, 1), (1, 0), (2, 5)):
            job = self.start("--comm-timeout", 2, ranks_a_host=ranks_a_host)
            begun = time.monotonic()
            self.signal([self.processes()[1][rank]], signal.SIGSTOP)
            self.check_ended(job, "SIGSTOP of a rank", begun, 2, rf"^kvmesh: \[rank \d\] .* waited \d\.\d s for rank {rank}, which does not answer")
        self.finish(ranks_a_host=2)

    def test_a_rank_stopped_within_prefill(self):
        job = self.start("--comm-timeout", 3, prompts=self.long_prompts, rows=0)
        while len(self.processes()[1]) < 3:
            self.assertIsNone(job.poll(), "the job ended too early")
            time.sleep(0.01)
        self.wait_for_prefill(self.processes()[1][2])
        begun = time.monotonic()
        self.signal([self.processes()[1][2]], signal.SIGSTOP)
        self.assertEqual(self.rows_in_journal(), 0)
        self.check_ended(job, "SIGSTOP of a rank within prefill", begun, 3, r"^kvmesh: \[rank \d\] .* waited \d+\.\d s for rank 2, which does not answer")
        self.finish(prompts=self.long_prompts)

    def wait_for_prefill(self, pid):
        """Until the rank has its weights and computes: the first thing that it does with them is to prefill its four prompts, for some seconds."""
        while not re.search(r" r--p 00000000 00:00 0 *$", Path(f"/proc/{pid}/maps").read_text(), re.MULTILINE):  # the weights: memory of its own that it only reads
            time.sleep(0.01)
        used = lambda: sum(map(int, Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[11:13]))  # in 1/100 s
        enough = used() + 15
        while used() < enough:
            time.sleep(0.01)

    def test_a_job_that_is_suspended_as_a_whole_goes_on(self):
        job = self.start("--comm-timeout", 1, ranks_a_host=2)
        pids, ranks = self.processes()
        self.assertEqual(sorted(ranks), list(range(6)))
        self.signal(pids, signal.SIGSTOP)
        time.sleep(3)
        self.signal(pids, signal.SIGCONT)
        _, errors = job.communicate(timeout=60)
        self.assertEqual(job.returncode, 0, errors)
        self.check_finished()

    def test_signals_to_the_launcher(self):
        for number in (signal.SIGTERM, signal.SIGUSR1):
            job = self.start()
            begun = time.monotonic()
            self.signal([job.pid], number)
            _, errors = job.communicate(timeout=60)
            self.assertEqual(job.returncode, 75, errors)
            self.assertIn(b"stopped by a signal; the same command goes on", errors)
            print(f"       {time.monotonic() - begun:6.2f} s from {number.name} to the launcher to the exit", flush=True)
        self.finish()


def main(folder):
    JobTest.folder = folder
    run_tests(at_once=2)


hosts.run(main)
