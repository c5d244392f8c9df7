"""kvmesh progress: what it says of jobs that run, that were stopped, and that are complete."""

import fcntl
import json
import os
import signal
import subprocess
import time
from pathlib import Path

from command_line import CommandLineTest, config_of, random_weights, run_tests, write_checkpoint

ROWS = 40


class Progress(CommandLineTest):
    @classmethod
    def setUpClass(cls):
        super().setUpClass()
        config = config_of(128, 3, seqlen=128)
        cls.slow = write_checkpoint(cls.folder / "slow", random_weights(config), config)

    def setUp(self):
        self.output = self.path("out.jsonl")
        self.journal = self.output.with_name(self.output.name + ".journal")

    def prompts(self, error=7):
        return self.rows(*("no row" if i == error else {"id": i, "tokens": [1 + i], "max_new_tokens": 20 + i * 17 % 100} for i in range(ROWS)), "")

    def job(self, *words, checkpoint=None):
        return self.command("generate", "--checkpoint", checkpoint or self.slow, "--batch-size", 2, "--threads", 1, "--ignore-eos", "--output", self.output, *words)

    def start(self, *words, lines=5):
        job = subprocess.Popen(self.job(*words), stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        self.addCleanup(lambda: (job.kill(), job.communicate()))
        while not self.journal.exists() or self.journal.read_bytes().count(b"\n") < lines + 1:
            self.assertIsNone(job.poll(), "the job ended too early")
            time.sleep(0.005)
        os.kill(job.pid, signal.SIGSTOP)
        return job

    def progress(self, *words):
        """What it prints, to standard output and standard error."""
        done = self.run_command("progress", self.output, *words)
        self.assertEqual(done.returncode, 0, done.stderr)
        return done.stdout.decode(), done.stderr.decode()

    def finished(self):
        """The journal's own lines, but for what is not whole yet."""
        return [line.split(b" ", 4)[4] for line in self.journal.read_bytes().split(b"\n")[1:-1]]

    def test_running_stopped_complete(self):
        prompts = self.prompts()
        job = self.start("--prompts", prompts, lines=12)
        lines = self.finished()
        self.assertGreaterEqual(len(lines), 12)
        self.assertEqual(self.progress(), (f"{self.output}: {len(lines)} of {ROWS} rows finished, 1 error rows; a job is writing it\n", ""))
        rows, summary = self.progress("--rows")
        self.assertEqual(rows.encode(), b"".join(line + b"\n" for line in lines))
        self.assertEqual({json.loads(line)["index"] for line in rows.splitlines()} - set(range(ROWS)), set())
        self.assertIn(f"{len(lines)} of {ROWS} rows finished", summary)

        os.kill(job.pid, signal.SIGKILL)
        job.communicate()
        stopped = f"{self.output}: {{}} rows finished, 1 error rows; no job is writing it, the same command goes on\n"
        self.assertEqual(self.progress(), (stopped.format(f"{len(lines)} of {ROWS}"), ""))
        with self.journal.open("ab") as file:
            file.write(b"01234567 40 1 R {")  # torn
        self.assertEqual(self.progress("--rows"), (rows, stopped.format(f"{len(lines)} of {ROWS}")))
        moved = prompts.rename(self.path("elsewhere"))
        self.assertEqual(self.progress(), (stopped.format(len(lines)), ""))
        moved.rename(prompts)
        with prompts.open("a") as file:
            file.write("another\n")
        self.assertEqual(self.progress(), (stopped.format(len(lines)), ""))

        prompts = self.prompts()
        self.assertEqual(subprocess.run(self.job("--prompts", prompts), stdin=subprocess.DEVNULL, stderr=subprocess.DEVNULL, timeout=60).returncode, 2)
        complete = f"{self.output}: complete, {ROWS} lines, 1 of them errors\n"
        self.assertEqual(self.progress(), (complete, ""))
        self.assertEqual(self.progress("--rows"), (self.output.read_text(), complete))

    def test_samples_and_prompts_as_words(self):
        self.start("--prompt", "a", "--prompt", "b", "--prompt", "c", "--samples", 4, "--temperature", 1, lines=3)
        self.assertEqual(self.progress()[0], f"{self.output}: {len(self.finished())} of 12 completions finished, 0 error rows; a job is writing it\n")

    def test_looking_does_not_keep_a_job_out(self):
        job = self.start("--prompts", self.prompts())
        os.kill(job.pid, signal.SIGKILL)
        job.communicate()
        with self.journal.open() as file:
            fcntl.flock(file, fcntl.LOCK_SH)  # as progress does, for an instant
            job = subprocess.Popen(self.job("--prompts", self.prompts()), stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
            self.addCleanup(lambda: (job.kill(), job.communicate()))
            while not self.has_open(job.pid, self.journal):
                self.assertIsNone(job.poll(), job.poll() and job.stderr.read())
            time.sleep(0.05)
        _, errors = job.communicate(timeout=60)
        self.assertEqual(job.returncode, 2, errors)

    def has_open(self, pid, file):
        for fd in Path(f"/proc/{pid}/fd").iterdir():
            try:
                if fd.readlink() == file:
                    return True
            except FileNotFoundError:
                pass
        return False

    def test_errors(self):
        alien = self.write("alien", "somebody's\n")
        not_a_journal = self.path("other")
        self.write("other.journal", "not a journal\n")
        for words, parts in (([self.path("none")], [self.path("none"), "neither"]), ([alien], [alien, "manifest"]), ([self.folder], [self.folder, "folder"]), ([not_a_journal], [not_a_journal, "journal"]),
                             ([], ["progress FILE"]), (["a", "b"], ["positional"]), (["a", "--bogus"], ["bogus"])):
            self.assert_one_line_error(self.run_command("progress", *words), 1, *parts)
        done = subprocess.run(self.command("progress", "--help"), capture_output=True)
        self.assertEqual((done.returncode, b"kvmesh progress FILE" in done.stdout), (0, True))


if __name__ == "__main__":
    run_tests()
