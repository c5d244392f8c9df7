"""Jobs that are interrupted: killed, stopped, torn, suspended, started twice. The same command goes on and ends with the same bytes (contract, «going on»)."""

import json
import os
import signal
import subprocess
import time
import zlib
from pathlib import Path

from command_line import CommandLineTest, children_of, config_of, random_weights, run_tests, write_checkpoint

ROWS = 60


def state_of(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return ""


class Job(CommandLineTest):
    """`start` begins a job that would take some seconds; `expected` are the bytes of an undisturbed run."""

    @classmethod
    def setUpClass(cls):
        super().setUpClass()
        config = config_of(128, 3, seqlen=128)
        cls.slow = write_checkpoint(cls.folder / "slow", random_weights(config), config)
        cls.prompts = cls.folder / "prompts.jsonl"
        lines = [json.dumps({"id": f"r{i}", "tokens": [(i * 7 + j) % 256 for j in range(1 + i % 9)], "max_new_tokens": 40 + (i * 13) % 60, "temperature": i % 2}) for i in range(ROWS)]
        lines[ROWS // 3] = "no row"
        cls.prompts.write_text("\n".join(lines) + "\n")
        undisturbed = cls("base").command(*cls("base").base())
        cls.expected = subprocess.run(undisturbed, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, stdin=subprocess.DEVNULL, timeout=100).stdout
        assert len(cls.expected.splitlines()) == ROWS

    def base(self):
        return ["generate", "--checkpoint", self.slow, "--prompts", self.prompts, "--seed", 4, "--logprobs", 1, "--ignore-eos"]

    def job(self, *more, ranks=2, batch=2):
        return self.command(*self.base(), "--threads", 1, "--batch-size", batch, "--output", self.output, *more, ranks=ranks)

    def setUp(self):
        self.output = self.path("out.jsonl")
        self.journal, self.manifest = (self.output.with_name(self.output.name + end) for end in (".journal", ".manifest.json"))

    def start(self, *more, lines=6, ranks=2, batch=2, **how):
        """A running job that has finished some rows."""
        job = subprocess.Popen(self.job(*more, ranks=ranks, batch=batch), stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, **how)
        self.addCleanup(lambda: (job.kill(), job.communicate()))
        while not self.journal.exists() or self.journal.read_bytes().count(b"\n") < lines + 1:
            self.assertIsNone(job.poll(), "the job ended too early")
            time.sleep(0.005)
        self.assertFalse(self.output.exists(), "FILE appears only when it is complete")
        return job

    def ranks_of(self, job, ranks):
        """The processes of a job's ranks."""
        found = [job.pid]
        if ranks > 1:
            mpirun = [p for p in children_of(job.pid) if Path(f"/proc/{p}/comm").read_text() == "mpirun\n"]
            self.assertEqual(len(mpirun), 1)
            found = children_of(mpirun[0])
        self.assertEqual(len(found), ranks)
        return sorted(found)

    def kill(self, *more, ranks=2, **start):
        job = self.start(*more, ranks=ranks, **start)
        for pid in self.ranks_of(job, ranks):
            os.kill(pid, signal.SIGKILL)
        job.communicate(timeout=30)
        self.assertNotEqual(job.returncode, 0)
        self.assertTrue(self.journal.exists() and self.manifest.exists() and not self.output.exists())

    def finish(self, *more, ranks=1, batch=8):
        """The same command again, to the end; the row that cannot be served makes it 2."""
        done = subprocess.run(self.job(*more, ranks=ranks, batch=batch), stdin=subprocess.DEVNULL, capture_output=True, timeout=100)
        self.assertEqual(done.returncode, 2, done.stderr)
        self.assertEqual(done.stdout, b"")
        self.check_finished()

    def check_finished(self):
        self.assertEqual(self.output.read_bytes(), self.expected)
        self.assertFalse(self.journal.exists())
        manifest = json.loads(self.manifest.read_text())
        self.assertEqual((manifest["complete"], manifest["lines"], manifest["errors"]), (True, ROWS, 1))
        self.assertEqual(sorted(p.name for p in self.folder.glob(self.output.name + "*")), [self.output.name, self.manifest.name])

    def refused(self, *parts, command):
        done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, timeout=60)
        self.assert_one_line_error(done, 1, *parts)


class GoingOn(Job):
    def test_killed_and_gone_on_with_other_numbers_of_ranks(self):
        self.kill(ranks=2)
        self.kill(ranks=3, lines=20, batch=3)
        before = self.journal.read_bytes()
        self.finish("--sync", "logits", "--pad", "longest", ranks=4)
        self.assertGreater(before.count(b"\n"), 20)

    def test_one_rank_alone_killed(self):
        self.kill(ranks=1)
        self.finish(ranks=2)

    def test_torn_journal(self):
        self.kill(ranks=1, lines=12)
        whole = self.journal.read_bytes()
        lines = whole.splitlines(keepends=True)
        kept = b"".join(lines[:10])
        flipped = bytearray(lines[5])
        flipped[len(flipped) // 2] ^= 1
        torn = {"cut within a line": kept[:-7], "without its line feed": kept[:-1], "garbage behind": kept + b"\x00" * 4096, "half a line behind": kept + lines[3][:20], "wrong in the middle": b"".join(lines[:5]) + bytes(flipped) + b"".join(lines[6:]),
                "nothing": b"", "half a first line": lines[0][:30], "only the first line": lines[0]}
        for name, journal in torn.items():
            with self.subTest(name):
                self.output.unlink(missing_ok=True)
                self.journal.write_bytes(journal)
                self.finish()

    def test_signals(self):
        for ranks, which, number in ((2, "launcher", signal.SIGUSR1), (2, "launcher", signal.SIGTERM), (2, "launcher", signal.SIGHUP), (3, 1, signal.SIGTERM),
                                     (1, 0, signal.SIGTERM), (1, 0, signal.SIGUSR1), (1, 0, signal.SIGINT)):
            job = self.start(ranks=ranks, lines=self.journal.read_bytes().count(b"\n") + 3 if self.journal.exists() else 6)
            os.kill(job.pid if which == "launcher" else self.ranks_of(job, ranks)[which], number)
            _, errors = job.communicate(timeout=30)
            self.assertEqual(job.returncode, 75, errors)
            self.assertTrue(self.journal.exists() and not self.output.exists())
        self.finish(ranks=2)

    def await_stopped(self, count, *pids):
        """Until so many of these processes are stopped."""
        stopped = lambda: sum(Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] == "T" for pid in pids)
        deadline = time.monotonic() + 10
        while stopped() != count:
            self.assertLess(time.monotonic(), deadline, f"{stopped()} of {len(pids)} are stopped")
            time.sleep(0.005)

    def test_what_a_terminal_sends_to_all_of_its_processes(self):
        def in_front():
            os.setsid()
            signal.signal(signal.SIGINT, signal.SIG_DFL)
        job = self.start(ranks=2, preexec_fn=in_front)
        pids = self.ranks_of(job, 2)
        os.killpg(job.pid, signal.SIGTSTP)  # Ctrl-Z
        self.await_stopped(3, job.pid, *pids)
        os.killpg(job.pid, signal.SIGCONT)
        self.await_stopped(0, job.pid, *pids)
        os.killpg(job.pid, signal.SIGINT)  # Ctrl-C
        _, errors = job.communicate(timeout=30)
        self.assertEqual(job.returncode, 75, errors)
        self.assertIn(b"stopped by a signal", errors)
        self.finish(ranks=2)

    def test_a_second_signal_to_the_launcher_ends_the_job_at_once(self):
        job = self.start(ranks=2)
        pids = self.ranks_of(job, 2)
        os.kill(pids[1], signal.SIGSTOP)  # so that the job cannot end in order
        os.kill(job.pid, signal.SIGTERM)
        time.sleep(0.5)
        self.assertIsNone(job.poll())
        os.kill(job.pid, signal.SIGTERM)
        job.communicate(timeout=10)
        self.assertNotEqual(job.returncode, 0)
        self.assertTrue(self.journal.exists() and not self.output.exists())
        self.finish(ranks=2)

    def test_other_options_are_refused_and_named(self):
        self.kill(ranks=1)
        self.check_refusals()
        self.finish(ranks=2)
        self.refused("--output", self.output, "top-k", command=self.job("--top-k", 5, ranks=2))
        self.check_finished()

    def check_refusals(self):
        for more, part in ((["--temperature", 0.5], "temperature"), (["--max-new-tokens", 7], "max-new-tokens"), (["--samples", 2], "samples"), (["--stop", "x"], "stop"), (["--dtype", "bfloat16"], "dtype"), (["--quantize", "int8"], "quantize"),
                           (["--top-k", 5], "top-k"), (["--stop-token", 7], "stop-token")):
            self.refused("--output", self.output, part, command=self.job(*more, ranks=1))
        seed = self.job(ranks=1)
        seed[seed.index("--seed") + 1] = "5"
        self.refused(self.output, "seed", "4", "5", command=seed)
        checkpoint = self.job(ranks=1)
        checkpoint[checkpoint.index(str(self.slow))] = str(self.checkpoint)
        self.refused(self.output, "checkpoint", command=checkpoint)
        prompts = self.job(ranks=2)
        prompts[prompts.index(str(self.prompts))] = str(self.rows({"prompt": "a"}))
        self.refused(self.output, "prompts", command=prompts)

    def test_a_second_job_on_the_same_file_is_refused(self):
        job = self.start(ranks=2, lines=2)
        pids = self.ranks_of(job, 2)
        for pid in pids:  # it must still be there when the second comes
            os.kill(pid, signal.SIGSTOP)
        for ranks, more in ((1, []), (2, ["--fresh"]), (1, ["--top-k", 3])):
            self.refused("--output", self.output, "another job", command=self.job(*more, ranks=ranks))
        for pid in pids:
            os.kill(pid, signal.SIGCONT)
        job.communicate(timeout=60)
        self.assertEqual(job.returncode, 2)
        self.check_finished()

    def test_a_finished_file_is_left_alone(self):
        self.finish(ranks=2)
        before = {p: (p.read_bytes(), p.stat().st_mtime_ns, p.stat().st_ino) for p in (self.output, self.manifest)}
        for ranks in (1, 3):
            done = subprocess.run(self.job(ranks=ranks), stdin=subprocess.DEVNULL, capture_output=True, timeout=60)
            self.assertEqual((done.returncode, done.stdout), (0, b""), done.stderr)
        self.journal.write_bytes(b"what a crash at the very end left\n")
        done = subprocess.run(self.job(ranks=2), stdin=subprocess.DEVNULL, capture_output=True, timeout=60)
        self.assertEqual(done.returncode, 0, done.stderr)
        self.assertFalse(self.journal.exists())
        self.assertEqual({p: (p.read_bytes(), p.stat().st_mtime_ns, p.stat().st_ino) for p in (self.output, self.manifest)}, before)
        self.check_finished()

    def test_fresh_starts_over(self):
        self.kill(ranks=1)
        done = subprocess.run(self.job("--fresh", "--top-k", 1, ranks=2, batch=8), stdin=subprocess.DEVNULL, capture_output=True, timeout=100)
        self.assertEqual(done.returncode, 2, done.stderr)
        self.assertNotEqual(self.output.read_bytes(), self.expected)
        self.finish("--fresh")
        self.output.write_text("somebody's\n")
        self.manifest.unlink()
        self.finish("--fresh")

    def test_fresh_keeps_the_old_output_until_the_new_job_has_a_row(self):
        config = config_of(8, 1)
        folder = write_checkpoint(self.path("fresh-ckpt"), random_weights(config), config)
        words = ["generate", "--checkpoint", folder, "--prompt", "a", "--output", self.output]
        self.assertEqual(self.run_command(*words).returncode, 0)
        before = [self.output.read_bytes(), self.manifest.read_bytes()]
        weights = folder / "model.safetensors"
        weights.write_bytes(weights.read_bytes()[:-1])
        for ranks in (1, 2):
            self.assert_one_line_error(self.run_command(*words, "--fresh", ranks=ranks), 1, "model.safetensors")
            self.assertEqual([self.output.read_bytes(), self.manifest.read_bytes()], before)
            self.assertFalse(self.journal.exists())

    def test_a_full_disk_loses_nothing(self):
        """A file size limit is as good: writing fails. The weights' shared memory is below it."""
        prompts = self.rows(*({"id": i, "prompt": "abc"[i % 3], "note": "x" * 30000} if i != 5 else "no row" for i in range(40)))
        words = ["generate", "--checkpoint", self.checkpoint, "--prompts", prompts, "--max-new-tokens", 5, "--batch-size", 4]
        expected = self.run_command(*words).stdout
        command = [str(w) for w in self.command(*words, "--output", self.output)]

        def limited(size, named):
            done = subprocess.run(["sh", "-c", 'ulimit -f "$1" && shift && exec "$@"', "sh", str(size // 512)] + command, stdin=subprocess.DEVNULL, capture_output=True, timeout=100)
            self.assert_one_line_error(done, 74, named, "File too large")
            self.assertEqual(sorted(p.name for p in self.folder.glob(self.output.name + "*")), sorted([self.journal.name, self.manifest.name]))

        limited(len(expected) // 2, self.journal)
        header, *lines = self.journal.read_bytes().splitlines(keepends=True)
        self.assertGreater(len(lines), 15)

        # Now all rows are finished, in a journal that is put in order in vain.
        bodies = [b"%d 1 %c " % (i, b"RE"[i == 5]) + line for i, line in enumerate(expected.splitlines())]
        journal = header + b"".join(b"%08x %s\n" % (zlib.crc32(body), body) for body in reversed(bodies))
        self.journal.write_bytes(journal)
        for size in (len(expected) // 2, len(expected) - 512):
            limited(size, str(self.output) + ".tmp")
            self.assertEqual(self.journal.read_bytes(), journal)
        self.assertEqual(subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, timeout=100).returncode, 2)
        self.assertEqual(self.output.read_bytes(), expected)

    def test_a_checkpoint_that_changed_in_between_is_noticed(self):
        config = config_of(32, 1)
        folder = write_checkpoint(self.path("ckpt"), random_weights(config), config)
        words = ["generate", "--checkpoint", folder, "--prompt", "a", "--output", self.output]
        self.assertEqual(self.run_command(*words).returncode, 0)
        weights = folder / "model.safetensors"
        data = bytearray(weights.read_bytes())
        data[-1] ^= 1
        weights.write_bytes(data)
        self.refused(self.output, "checkpoint", command=self.command(*words))


class Ranks(Job):
    """Ranks that die or stop."""

    def check_gone(self, pids):
        """No rank runs on, nor is one still stopped; whose parent has gone may wait for a reaper."""
        end = time.monotonic() + 10
        while states := [s for s in map(state_of, pids) if s not in ("", "Z", "X")]:
            self.assertLess(time.monotonic(), end, states)
            time.sleep(0.02)

    def test_a_stopped_rank_ends_the_job(self):
        for ranks, stopped in ((2, 1), (3, 0)):
            job = self.start("--comm-timeout", 2, ranks=ranks, lines=4 if ranks == 2 else self.journal.read_bytes().count(b"\n") + 2)
            pids = self.ranks_of(job, ranks)
            os.kill(pids[stopped], signal.SIGSTOP)
            out, errors = job.communicate(timeout=30)
            self.assertEqual(job.returncode, 70, errors)
            self.assertEqual(out, b"")
            said = [line for line in errors.decode().splitlines() if line.startswith("kvmesh: ")]
            self.assertEqual(len(errors.decode().splitlines()), 1, errors)
            self.assertRegex(said[0], rf"\[rank \d\] step \d+: .*waited \d\.\d s for rank {stopped}, which does not answer")
            self.check_gone(pids)
        self.finish(ranks=2)

    def test_a_killed_rank_ends_the_job(self):
        job = self.start(ranks=3, batch=3)
        pids = self.ranks_of(job, 3)
        os.kill(pids[2], signal.SIGKILL)
        _, errors = job.communicate(timeout=30)
        self.assertEqual(job.returncode, 70)
        self.assertRegex(errors.decode(), r"^kvmesh: rank 2 on \S+ was ended by signal 9 \(Killed\)\n$")
        self.check_gone(pids)
        self.finish(ranks=2)

    def test_a_job_that_is_suspended_as_a_whole_goes_on(self):
        job = self.start("--comm-timeout", 2, ranks=2)
        pids = self.ranks_of(job, 2)
        os.kill(pids[0], signal.SIGSTOP)
        time.sleep(0.3)  # so that the other one is stopped while it waits
        os.kill(pids[1], signal.SIGSTOP)
        time.sleep(4)
        os.kill(pids[1], signal.SIGCONT)
        time.sleep(0.3)  # and looks at the clock before the other one comes
        os.kill(pids[0], signal.SIGCONT)
        _, errors = job.communicate(timeout=60)
        self.assertEqual(job.returncode, 2, errors)
        self.check_finished()


if __name__ == "__main__":
    signal.signal(signal.SIGHUP, signal.SIG_DFL)  # a nohup of these tests is not one of their jobs
    run_tests(at_once=3)
