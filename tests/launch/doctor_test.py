"""kvmesh doctor: faults that are planted in a job are found before it starts, each in one line; generate finds the cheap ones by itself."""

import fcntl
import json
import math
import os
import re
import shutil
import struct
import subprocess
import unittest
from pathlib import Path

from command_line import KVMESH, MPIRUN, CommandLineTest, config_of, random_weights, run_tests, shapes_of, write_checkpoint, write_tokenizer

CORES = len(os.sched_getaffinity(0))


def allowed(*words):
    return shutil.which(words[0]) is not None and subprocess.run(words, capture_output=True).returncode == 0


class Doctor(CommandLineTest):
    @classmethod
    def setUpClass(cls):
        super().setUpClass()
        cls.prompts = cls.folder / "prompts.jsonl"
        cls.prompts.write_text("".join(json.dumps({"id": i, "prompt": "abc"[: 1 + i % 3]}) + "\n" for i in range(20)))
        config = config_of(32, 1, seqlen=65536)
        cls.long = write_checkpoint(cls.folder / "long", random_weights(config), config)

    def words(self, *more, command="doctor", checkpoint=None, prompts=None, threads=1):
        return [KVMESH, command, "--checkpoint", checkpoint or self.checkpoint, "--prompts", prompts or self.prompts, *(["--threads", threads] if threads else []), *more]

    def start(self, command):
        words = [str(w) for w in command]
        if words[0] not in (MPIRUN, "mpirun", "unshare"):  # as CommandLineTest.command does
            words = self.command()[:-1] + words
        environment = os.environ | {"OMPI_ALLOW_RUN_AS_ROOT": "1", "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1"}  # for mpirun itself
        return subprocess.run(words, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=100, env=environment)

    def expect(self, done, code, *lines, ignore="threads on"):
        """Exit code and findings: a list of parts each, that are in one line. A machine with few cores may say so."""
        found = [line for line in done.stderr.splitlines() if not (ignore and ignore in line)]
        if code == 0:  # without what generate says in the end
            found = [line for line in found if re.match("kvmesh: (note|warning|error): ", line)]
        said = f"{done.stdout}\n{done.stderr}"
        self.assertEqual(done.returncode, code, said)
        self.assertEqual(len(found), len(lines), said)
        for parts, line in zip(lines, found):
            for part in parts:
                self.assertIn(str(part), line)
        if code == 0 and not done.stderr:
            self.assertTrue(done.stdout.endswith("all is well\n"), said)

    def on_ranks(self, *commands):
        """A rank each."""
        line = [MPIRUN]
        for command in commands:
            line += ([":"] if line[1:] else []) + ["-np", "1", *command]
        return self.start(line)

    def test_all_is_well(self):
        for ranks, output in ((1, []), (2, ["--output", self.path("out.jsonl")]), (4, ["--output", "-", "--sync", "logits", "--samples", 3])):
            done = self.start(self.words(*output) if ranks == 1 else [MPIRUN, "-np", ranks, *self.words(*output)])
            self.expect(done, 0)
            self.assertIn(f"{ranks} rank", done.stdout)
            self.assertIn(f"{60 if ranks == 4 else 20} completions to make, of up to 32 tokens", done.stdout)
        self.assertEqual([p for p in self.folder.iterdir() if p.name.startswith(self._testMethodName)], [], "nothing is left behind")
        done = self.start([MPIRUN, "-np", 2, KVMESH, "doctor", "--help"])
        self.assertEqual((done.returncode, done.stdout.count("Usage: kvmesh doctor")), (0, 1))

    # The launch

    def test_ranks_that_think_they_are_alone(self):
        alone = self.write("alone", "exec env -i PATH=\"$PATH\" OMPI_COMM_WORLD_SIZE=$OMPI_COMM_WORLD_SIZE OMPI_COMM_WORLD_RANK=$OMPI_COMM_WORLD_RANK OMPI_MCA_ess_singleton_isolated=1 "
                           "ASAN_OPTIONS=detect_leaks=0 OMPI_MCA_orte_tmpdir_base=$(mktemp -d -p \"$0.tmp\") \"$@\"")
        Path(f"{alone}.tmp").mkdir()
        for command in ("doctor", "generate"):
            done = self.start([MPIRUN, "-np", 3, "sh", alone, *self.words("--output", self.path("out.jsonl"), command=command)])
            self.expect(done, 1, ["error", "OMPI_COMM_WORLD_SIZE says 3 ranks", "MPI has brought 1 together", "--mpi=pmix"])
            self.assertFalse(self.path("out.jsonl.journal").exists())
        for command in ("doctor", "generate"):
            self.expect(self.start(["env", "SLURM_STEP_NUM_TASKS=4", "SLURM_PROCID=0", *self.words(command=command)]), 1, ["4 tasks", "srun --mpi=pmix"])
            self.expect(self.start(["env", "SLURM_STEP_NUM_TASKS=4", "SLURM_PROCID=3", *self.words(command=command)]), 1)
        self.expect(self.start(["env", "SLURM_NTASKS=4", *self.words()]), 0, ["warning", "4 tasks", "srun --mpi=pmix"])

    def test_more_threads_than_cores(self):
        for command in ("doctor", "generate"):
            done = self.start([MPIRUN, "-np", 2, *self.words(command=command, threads=CORES)])
            self.expect(done, 0, ["warning", "all ranks", f"{2 * CORES} threads on {CORES} core"], ignore="")

    @unittest.skipIf(CORES < 2, "one core")
    def test_binding(self):
        self.expect(self.start(["mpirun", "--bind-to", "core", "-np", 1, *self.words()]), 0, ["warning", "rank 0", f"1 of the {CORES} cores", "--bind-to none"])
        core = min(os.sched_getaffinity(0))
        self.expect(self.start([MPIRUN, "-np", 2, "taskset", "-c", core, *self.words()]), 0, ["all ranks", "2 threads on 1 core"], ["one core each", f"1 of the {CORES} cores"], ignore="")
        done = self.on_ranks(["taskset", "-c", core, *self.words(threads=3)], self.words())
        self.expect(done, 0, ["warning", "rank 0 on", "3 threads on 1 core"], ignore="")

    def test_a_network_interface_that_is_not_there(self):
        self.expect(self.start([MPIRUN, "-np", 2, "env", "NCCL_SOCKET_IFNAME=nosuch0", *self.words()]), 0, ["note", "NCCL_SOCKET_IFNAME=nosuch0", "all ranks"])
        self.expect(self.on_ranks(self.words(), ["env", "NCCL_SOCKET_IFNAME=nosuch0", *self.words()]), 0, ["rank 1 on"])

    # What should be the same

    def test_another_binary(self):
        copy = self.path("kvmesh")
        shutil.copy(KVMESH, copy)
        with open(copy, "ab") as f:
            f.write(b"x")
        self.expect(self.on_ranks(self.words(), [copy, *self.words()[1:]]), 1, ["error", "the program's file differs", "rank 1", "same build"])

    def test_another_instruction_set(self):
        for command in ("doctor", "generate"):
            done = self.on_ranks(self.words(command=command), ["env", "KVMESH_CPU_ISA=scalar", *self.words(command=command)])
            self.expect(done, 1, ["error", "the device differs", "cpu/scalar on rank 1", "KVMESH_CPU_ISA"])

    def test_other_options(self):
        for command in ("doctor", "generate"):
            self.expect(self.on_ranks(self.words(command=command), self.words("--seed", 3, "--stop", "x", command=command)), 1,
                        ["--seed differs", "0 on rank 0", "3 on rank 1"], ["--stop differs", '["x"] on rank 1'])
            self.expect(self.on_ranks(self.words(command=command), self.words("--pad", "longest", command=command)), 1, ["--pad differs", "longest on rank 1"])
        configs = [self.write(f"{n}.ini", f"batch-size = {n}\nmax-new-tokens = 5\n") for n in (3, 4)]
        self.expect(self.on_ranks(*(self.words("--config", c) for c in configs)), 1, ["--batch-size differs", "3 on rank 0", "4 on rank 1", "--config"])
        self.expect(self.on_ranks(self.words(), self.words("--batch-size", 0)), 1, ["error", "rank 1 on", "--batch-size 0"])
        self.expect(self.start([MPIRUN, "-np", 2, *self.words("--top-p", 7)]), 1, ["error", "all ranks", "--top-p 7"])

    def changed_checkpoint(self, name):
        return Path(shutil.copytree(self.checkpoint, self.path(name)))

    def test_another_checkpoint(self):
        weights, config, tokenizer, none, torn = (self.changed_checkpoint(n) for n in ("weights", "config", "tokenizer", "none", "torn"))
        with open(weights / "model.safetensors", "r+b") as f:
            f.seek(-2, os.SEEK_END)
            f.write(b"\x01")
        (config / "config.json").write_text((config / "config.json").read_text() + " ")
        (tokenizer / "tokenizer.tiktoken").unlink()
        shutil.rmtree(none)
        with open(torn / "model.safetensors", "r+b") as f:
            f.truncate((torn / "model.safetensors").stat().st_size - 4)
        for folder, *parts in ((weights, "checkpoint's model.safetensors differs"), (config, "checkpoint's config.json differs"), (tokenizer, "checkpoint's tokenizer.tiktoken differs", "none on rank 1"),
                               (torn, "rank 1 on", torn / "model.safetensors", "complete on every host")):
            self.expect(self.on_ranks(self.words(), self.words(checkpoint=folder)), 1, ["error", *parts])
        done = self.on_ranks(self.words(), self.words(checkpoint=none))
        self.expect(done, 1, ["rank 1 on", none / "config.json", "No such file"], ["rank 1 on", none, "complete on every host"])

    def test_prompts(self):
        other = self.write("other", '{"prompt": "z"}\n')
        self.expect(self.on_ranks(self.words(), self.words(prompts=other)), 0, ["warning", "prompts' file differs", "rank 1"])
        self.expect(self.on_ranks(self.words(), self.words(prompts=self.path("none"))), 0)  # only rank 0 reads them
        for text, code, *parts in (("\n", 1, "error", "no rows"), ('{"text": "a"}\n' * 3, 1, "none of the first 3 rows can be served", "row 0"),
                                   ('{"prompt": "a"}\n{"prompt": ""}\n', 0, "warning", "1 of the first 2 rows", "row 1")):
            self.expect(self.start(self.words(prompts=self.write("bad", text))), code, parts)
        self.expect(self.start(self.words("--rng", "jax", "--batch-size", 20)), 0)
        self.expect(self.start(self.words("--rng", "jax", "--batch-size", 19)), 1, ["error", "--rng jax", "20 for --batch-size 19"])
        self.expect(self.start(self.words(prompts="/dev/null")), 0)
        self.expect(self.start(self.words(prompts=self.path("none"))), 1, [self.path("none"), "No such file"])

    # The output

    def test_output_that_cannot_be_written(self):
        for output, part in (("/proc/out.jsonl", "/proc/out.jsonl"), (self.path("none") / "out.jsonl", "No such file")):
            self.expect(self.start([MPIRUN, "-np", 2, *self.words("--output", output)]), 1, ["error", "rank 0 on", "--output", part])
        self.expect(self.start(self.words("--output", self.folder)), 1, ["--output", "is a folder"])
        self.expect(self.start([MPIRUN, "-np", 2, *self.words("--output", "x" * 300)]), 1, ["error", "rank 0 on", "File name too long"])

    @unittest.skipUnless(allowed("unshare", "--mount", "true"), "no mount namespaces")
    def test_disks(self):
        disk = self.path("disk")
        disk.mkdir()
        for options, part in (("size=20k", "No space left"), ("ro", "Read-only")):
            script = f'mount -t tmpfs -o {options} none {disk} && exec "$@"'
            done = self.start(["unshare", "--mount", "sh", "-c", script, "-", MPIRUN, "-np", 2, *self.words("--output", disk / "out.jsonl")])
            self.expect(done, 1, ["error", "rank 0 on", "--output", part])
        small = f'mount -t tmpfs -o size=100k none {disk} && exec "$@"'
        done = self.start(["unshare", "--mount", "sh", "-c", small, "-", MPIRUN, "-np", 2, *self.words("--output", disk / "out.jsonl", "--samples", 100)])
        self.expect(done, 0, ["warning", "rank 0 on", "journal and output may need up to"])
        shm = 'mount -t tmpfs -o size=12m none /dev/shm && exec "$@"'
        done = self.start(["unshare", "--mount", "sh", "-c", shm, "-", MPIRUN, "-np", 2, *self.words()])
        self.expect(done, 0, ["warning", "/dev/shm", "2 ranks"])

    def test_an_earlier_output(self):
        output = self.path("out.jsonl")
        self.assertEqual(self.start(self.words("--output", output, command="generate")).returncode, 0)
        before = {p: p.read_bytes() for p in self.folder.glob(output.name + "*")}
        self.expect(self.start(self.words("--output", output)), 0, ["warning", output, "is complete"])
        self.expect(self.start(self.words("--output", output, "--seed", 4)), 1, ["error", output, "seed = 0, now it is 4"])
        self.expect(self.start(self.words("--output", output, "--seed", 4, "--fresh")), 0)
        self.assertEqual({p: p.read_bytes() for p in self.folder.glob(output.name + "*")}, before)
        alien = self.write("alien", "somebody's text\n")
        self.expect(self.start(self.words("--output", alien)), 1, ["error", alien, "no manifest of kvmesh's"])

    def test_a_journal(self):
        output, journal = self.path("out.jsonl"), self.path("out.jsonl.journal")
        self.assertEqual(self.start(self.words("--output", output, command="generate")).returncode, 0)
        identity = json.loads(self.path("out.jsonl.manifest.json").read_text())["identity"]
        output.unlink()
        journal.write_text(json.dumps(identity) + "\n")
        self.expect(self.start(self.words("--output", output)), 0)
        self.expect(self.start(self.words("--output", output, "--temperature", 1)), 1, ["error", output, "temperature = 0.0, now it is 1.0", "--fresh"])
        with open(journal) as f:
            fcntl.flock(f, fcntl.LOCK_EX)
            self.expect(self.start([MPIRUN, "-np", 2, *self.words("--output", output)]), 1, ["error", output, "another job is writing it"])
        journal.write_text("somebody's text\n")
        self.expect(self.start(self.words("--output", output)), 1, ["error", journal, "is not a kvmesh journal"])

    # The machine

    @unittest.skipUnless(allowed("faketime", "-f", "+1s", KVMESH, "--version"), "no faketime, or a program with sanitizers, which it cannot start")
    def test_a_clock(self):
        for shift, parts in (("+90s", ["rank 1 on", "90.0 s ahead of"]), ("-90s", ["rank 1 on", "90.0 s behind"])):
            self.expect(self.on_ranks(self.words(), ["faketime", "-f", shift, *self.words()]), 0, ["warning", "the clock of", *parts])

    def test_limits(self):
        words = self.words("--batch-size", 2000, checkpoint=self.long)
        for limit, *parts in (("--nofile=40", "ulimit -n", "40 files"), ("--as=8300000000", "ulimit -v", "8.3 GB")):
            if allowed("prlimit", limit, KVMESH, "--version"):  # not where sanitizers want all of the address space
                self.expect(self.on_ranks(words, ["prlimit", limit, *words]), 1, ["error", "rank 1 on", *parts])

    def test_too_little_memory(self):
        for command in ("doctor", "generate"):
            done = self.start(self.words("--batch-size", 100000, "--max-new-tokens", 3, checkpoint=self.long, command=command))
            self.expect(done, 0, ["warning", "100000 rows would need", "--batch-size"])

    def limited(self, controller, old, new):
        """A cgroup of our own, or the test is skipped: what to put before a command so that it runs in there."""
        for line in Path("/proc/self/cgroup").read_text().splitlines():
            _, controllers, path = line.split(":", 2)
            root, files = (f"/sys/fs/cgroup/{controller}", old) if controller in controllers.split(",") else ("/sys/fs/cgroup", new) if not controllers else (None, None)
            folder = Path(f"{root}{path}") / f"kvmesh-test-{os.getpid()}-{controller}"
            try:
                if root:
                    folder.mkdir()
                    self.addCleanup(folder.rmdir)
                    for name, value in files.items():
                        (folder / name).write_text(value)
                    return ["sh", "-c", f'echo $$ > {folder}/cgroup.procs && exec "$@"', "-"]
            except OSError:
                continue
        self.skipTest("no cgroup can be made here")

    def test_a_cgroup_with_little_memory(self):
        before = self.limited("memory", {"memory.limit_in_bytes": "800M"}, {"memory.max": "800M"})
        config = config_of(1536, 8, kv_heads=2)
        large = self.path("large")
        large.mkdir()
        (large / "config.json").write_text(json.dumps(config))
        header, end = {}, 0
        for name, shape in shapes_of(config).items():
            begin, end = end, end + 4 * math.prod(shape)
            header[name] = {"dtype": "F32", "shape": shape, "data_offsets": [begin, end]}
        text = json.dumps(header).encode()
        with open(large / "model.safetensors", "wb") as f:
            f.write(struct.pack("<Q", len(text)) + text)
            f.truncate(8 + len(text) + end)  # zeros that take no room
        write_tokenizer(large / "tokenizer.tiktoken")
        for command in ("doctor", "generate"):
            done = self.start([*before, *self.words(checkpoint=large, command=command)])
            self.expect(done, 1, ["error", "weights and workspaces need 9", "are left"])
        rows = self.write("rows", '{"prompt": "the the the the", "max_new_tokens": 31}\n' * 130000)
        done = self.start([MPIRUN, "-np", 1, *before, *self.words("--batch-size", 130000, prompts=rows)])
        self.expect(done, 1, ["error", "130000 rows of up to 32 tokens need 1.2 GB"])

    def test_the_largest_batch(self):
        before = self.limited("memory", {"memory.limit_in_bytes": "800M"}, {"memory.max": "800M"})
        rows = {}
        for ranks in (1, 2):
            done = self.start([MPIRUN, "-np", ranks, *before, *self.words("--batch-size", "auto", checkpoint=self.long)])
            self.expect(done, 0)
            rows[ranks] = int(re.search(r"auto: (\d+) rows", done.stderr)[1])
        a_row = float(re.search(r"([0-9.]+) MB a row", done.stdout)[1]) * 1e6
        self.assertGreater(rows[1] * a_row, 0.8 * 0.9 * 800 * 2**20)
        self.assertLess(rows[1] * a_row, 0.9 * 800 * 2**20)
        self.assertLess(rows[2], rows[1] + 1)  # the same host
        self.assertGreater(rows[2], 0.8 * rows[1])
        words = [MPIRUN, "-np", 1, *before, *self.words("--batch-size", rows[1], checkpoint=self.long)]
        self.expect(self.start(words), 0)
        words[words.index(rows[1])] = rows[1] * 3 // 2
        self.expect(self.start(words), 0, ["warning", f"{rows[1] * 3 // 2} rows would need"])
        longer = shutil.copytree(self.long, self.path("longer"))
        config = json.loads((longer / "config.json").read_text())
        (longer / "config.json").write_text(json.dumps(config | {"seqlen": 16_000_000}))
        for command in ("doctor", "generate"):
            done = self.start([MPIRUN, "-np", 1, *before, *self.words("--batch-size", "auto", checkpoint=longer, command=command)])
            self.assertEqual(done.returncode, 1)
            self.assertIn("not even one row fits", done.stderr)

    @unittest.skipIf(CORES < 2, "one core")
    def test_a_cgroup_with_little_time(self):
        before = self.limited("cpu", {"cpu.cfs_quota_us": "150000"}, {"cpu.max": "150000 100000"})
        self.expect(self.start([MPIRUN, "-np", 2, *before, *self.words()]), 0, ["warning", "all ranks", "2 threads on 1.5 cores", "quota"], ignore="")
        done = self.start([MPIRUN, "-np", 1, *before, *self.words(threads=None)])
        self.expect(done, 0, ignore="")
        self.assertIn(" 1 thread on", done.stdout)


if __name__ == "__main__":
    run_tests()
