"""kvmesh train as a user meets it: the same bits for every number of ranks, going on after signals and kills, what is saved, errors."""

import hashlib
import json
import math
import os
import random
import re
import shutil
import signal
import struct
import subprocess
import sys
import time
import unittest
from pathlib import Path

from command_line import EOT, KVMESH, CommandLineTest, children_of, config_of, random_weights, run_tests, write_checkpoint

CONFIG = config_of(32, 2)


def write_shard(path, seed, documents):
    """Texts that can be learned: counting up by one, from anywhere."""
    generator = random.Random(seed)
    tokens = []
    for _ in range(documents):
        start, length = generator.randrange(40, 70), generator.randrange(3, 40)
        tokens += [EOT] + [start + i for i in range(length)]
    path.write_bytes(struct.pack("<256i", 20240520, 1, len(tokens), *[0] * 253) + struct.pack(f"<{len(tokens)}H", *tokens))
    return path


class Train(CommandLineTest):
    @classmethod
    def setUpClass(cls):
        super().setUpClass()
        cls.start = write_checkpoint(cls.folder / "start", random_weights(CONFIG), CONFIG)
        cls.bf16 = write_checkpoint(cls.folder / "bf16", random_weights(CONFIG), CONFIG | {"dtype": "bfloat16"})
        cls.bare = write_checkpoint(cls.folder / "bare", random_weights(CONFIG), CONFIG, tokenizer=False)
        cls.data = cls.folder / "data"
        cls.data.mkdir()
        for i in range(2):
            write_shard(cls.data / f"train-{i}.bin", i, 200)
        write_shard(cls.data / "val-0.bin", 9, 30)

    def words(self, output, *more, steps=12, checkpoint=None, data="train-*.bin", batch_rows=10, micro_rows=2):
        return ["train", "--checkpoint", checkpoint or self.start, "--data", self.data / data, "--output", output, "--steps", steps, "--batch-rows", batch_rows, "--micro-rows", micro_rows, "--no-peak",
                *more]

    def train(self, output, *more, ranks=1, exit_code=0, **words):
        done = self.run_command(*self.words(output, *more, **words), ranks=ranks)
        self.assertEqual(done.returncode, exit_code, done.stderr.decode())
        self.assertEqual(done.stdout, b"")
        return done.stderr.decode()

    def bytes_of(self, output, step="last"):
        files = {p.name: p.read_bytes() for p in (output / step).iterdir()}
        return {name: hashlib.sha256(data).hexdigest() for name, data in files.items()}

    def losses(self, path):
        return {line["step"]: (line["loss"], line["grad_norm"], line["lr"]) for line in map(json.loads, path.read_text().splitlines())}

    def test_same_bits_for_every_number_of_ranks(self):
        for name, checkpoint, more in (("muon", self.start, ["--rows", "whole", "--documents", "apart"]), ("adamw", self.bf16, ["--optimizer", "adamw", "--lr", 0.01, "--shuffle"]),
                                      ("muon16", self.bf16, ["--recompute"])):
            found = []
            for ranks in (1, 2, 3, 4):
                output, metrics = self.path(f"{name}{ranks}"), self.path(f"{name}{ranks}.jsonl")
                self.train(output, *more, "--metrics", metrics, "--validation", self.data / "val-0.bin", "--threads", 1 + ranks % 2, ranks=ranks, checkpoint=checkpoint)
                found.append((self.bytes_of(output), self.losses(metrics), [json.loads(l).get("validation_loss") for l in metrics.read_text().splitlines()][-1]))
            for other in found[1:]:
                self.assertEqual(found[0], other, name)

    def test_learns_and_generates(self):
        output, metrics = self.path("out"), self.path("m.jsonl")
        said = self.train(output, "--metrics", metrics, "--validation", self.data / "val-0.bin", "--validate-every", 20, "--init", "original", "--seed", 3, steps=60, ranks=2)
        lines = [json.loads(line) for line in metrics.read_text().splitlines()]
        self.assertEqual([line["step"] for line in lines], list(range(1, 61)))
        self.assertEqual([line["step"] for line in lines if "validation_loss" in line], [20, 40, 60])
        self.assertAlmostEqual(lines[0]["loss"], math.log(CONFIG["vocab_size"]), delta=0.1)
        self.assertLess(lines[-1]["loss"], 1.0)
        self.assertIn("validation", said)
        prompt = [EOT, 50, 51, 52, 53, 54]
        row = self.generate("--prompts", self.rows({"tokens": prompt}), "--max-new-tokens", 3, checkpoint=output / "last")[0]
        self.assertEqual(row["tokens"][:2], [55, 56])

    def test_stopped_by_a_signal_and_gone_on(self):
        whole, output, metrics, others = self.path("whole"), self.path("out"), self.path("m.jsonl"), self.path("w.jsonl")
        more = ["--save-every", 50, "--shuffle"]
        self.train(whole, *more, "--metrics", others, steps=300)
        said = []
        for ranks in (2, 1, 3):
            job = subprocess.Popen(self.command(*self.words(output, *more, "--metrics", metrics, steps=300), ranks=ranks), stderr=subprocess.PIPE)
            lines = metrics.read_text().count("\n") if metrics.exists() else 0
            while (not metrics.exists() or metrics.read_text().count("\n") < lines + 20) and job.poll() is None:
                time.sleep(0.01)
            job.send_signal(signal.SIGTERM)
            said.append((job.communicate(timeout=60)[1].decode(), job.returncode))
        self.assertEqual(said[0][1], 75, said)
        self.assertIn("the same command goes on", said[0][0])
        self.train(output, *more, "--metrics", metrics, steps=300, ranks=2)
        self.assertEqual(self.bytes_of(whole), self.bytes_of(output))
        self.assertEqual(self.losses(others), self.losses(metrics))

    def test_killed_and_gone_on(self):
        whole, output = self.path("whole"), self.path("out")
        more = ["--save-every", 3, "--keep", 2]
        self.train(whole, *more, steps=100)
        job = subprocess.Popen(self.command(*self.words(output, *more, steps=100), ranks=2), stderr=subprocess.PIPE)
        while not (output / "last").exists() and job.poll() is None:
            time.sleep(0.01)
        for pid in [p for child in children_of(job.pid) for p in children_of(child)] or children_of(job.pid):
            os.kill(pid, signal.SIGKILL)
        job.communicate(timeout=60)
        self.train(output, *more, steps=100, ranks=3)
        self.assertEqual(self.bytes_of(whole), self.bytes_of(output))
        self.assertEqual(sorted(p.name for p in output.iterdir()), [".lock", "last", "step-00000099", "step-00000100"])

    def test_what_stays(self):
        output = self.path("out")
        self.train(output, "--save-every", 10, "--keep", 1, "--validation", self.data / "val-0.bin", "--validate-every", 5, "--lr", 5, "--clip", 0, "--embed-lr", 9, "--head-lr", 3, steps=40)
        progress = json.loads((output / "last" / "training.json").read_text())
        self.assertEqual((progress["step"], os.readlink(output / "last")), (40, "step-00000040"))
        self.assertEqual(os.readlink(output / "best"), f"step-{progress['best_step']:08}")
        kept = {f"step-{n:08}" for n in (40, progress["best_step"])}
        self.assertEqual({p.name for p in output.iterdir()}, kept | {".lock", "last", "best"})
        self.assertEqual({p.name for p in (output / "last").iterdir()}, {"config.json", "model.safetensors", "tokenizer.tiktoken", "optimizer.safetensors", "training.json"})

    def test_samples(self):
        """They are what generate says with the saved weights, on any number of ranks, and training does not notice them."""
        texts = ["A", "BCD", "<|endoftext|>"]
        asked = [word for text in texts for word in ("--sample", text)] + ["--sample-tokens", 5, "--seed", 3]
        for name, checkpoint, temperature in (("greedy", self.start, 0), ("drawn", self.bf16, 0.8)):
            without, found = self.path(name), []
            self.train(without, "--seed", 3, "--save-every", 4, checkpoint=checkpoint)
            for ranks in (1, 4):
                output, metrics = self.path(f"{name}{ranks}"), self.path(f"{name}{ranks}.jsonl")
                said = self.train(output, *asked, "--sample-every", 5, "--sample-temperature", temperature, "--save-every", 5, "--metrics", metrics, ranks=ranks, checkpoint=checkpoint)
                self.assertEqual(self.bytes_of(without), self.bytes_of(output))
                found.append({line["step"]: line["samples"] for line in map(json.loads, metrics.read_text().splitlines()) if "samples" in line})
                lines = [line for line in said.splitlines() if line.startswith("kvmesh: after step ")]
                self.assertEqual(lines, [f"kvmesh: after step {step}: " + json.dumps(s["prompt"] + s["completion"], ensure_ascii=False) for step in (5, 10, 12) for s in found[-1][step]])
            self.assertEqual(found[0], found[1])
            self.assertEqual(list(found[0]), [5, 10, 12])
            for step, samples in found[0].items():
                rows = self.generate(*[word for text in texts for word in ("--prompt", text)], "--max-new-tokens", 5, "--seed", 3, "--temperature", temperature,
                                     checkpoint=self.path(f"{name}1") / f"step-{step:08}")
                self.assertEqual(samples, [{"prompt": row["prompt"], "completion": row["completion"]} for row in rows])
        self.assertNotEqual(found[0][5], found[0][12])

    def test_memory(self):
        """What is said at the start is what the rank with the most takes, but for the program and its libraries; what does not fit is not begun."""
        config = config_of(256, 4, seqlen=256)
        large = write_checkpoint(self.path("large"), {}, config)
        write_shard(self.data / "long-0.bin", 5, 1000)
        own = self.resident(*self.words(self.path("small"), steps=1))[1]
        for name, ranks, more in (("kept", 1, []), ("again", 1, ["--recompute", "--sample", "A", "--sample-tokens", 4]), ("three", 3, ["--documents", "apart"])):
            said, took = self.resident(*self.words(self.path(name), "--init", "original", *more, batch_rows=12, micro_rows=4, steps=1, checkpoint=large, data="long-*.bin"), ranks=ranks)
            mebi = float(re.search(r"about ([0-9.]+) MiB a rank", said)[1])
            self.assertGreater(mebi, 90)
            self.assertAlmostEqual((took - own) / mebi, 0.95, delta=0.15, msg=name)  # not all of it is in use at once
        for ranks in (1, 3):
            done = self.run_command(*self.words(self.path("none"), batch_rows=1 << 30, micro_rows=1 << 28), ranks=ranks)
            self.assert_one_line_error(done, 1, "GiB are free", "for activations", "--micro-rows", f"({ranks} rank")
            rows = re.search(r"with (--micro-rows) ([0-9]+)", done.stderr.decode())
            self.assertLess(int(rows[2]), 1 << 26)
        self.assertFalse(self.path("none").exists())

    def resident(self, *words, ranks=1):
        """What the command said, and the most MiB that any of its processes had in memory at once."""
        measure = "import resource, subprocess, sys; subprocess.run(sys.argv[1:], check=True); print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)"
        done = subprocess.run([sys.executable, "-c", measure, *self.command(*words, ranks=ranks)], capture_output=True, timeout=60)  # a small parent: a child counts its own as well
        self.assertEqual(done.returncode, 0, done.stderr.decode())
        return done.stderr.decode(), int(done.stdout) / 1024

    def test_another_command_is_refused(self):
        output = self.path("out")
        self.train(output)
        self.train(output, ranks=2)  # finished: nothing to do
        for more, part in ((["--lr", 0.5], "lr"), (["--optimizer", "adamw"], "optimizer"), (["--reduce", "library"], "reduce"), (["--seed", 4], "seed")):
            self.assert_one_line_error(self.run_command(*self.words(output, *more)), 1, output, f"another {part}", "--fresh")
        self.assert_one_line_error(self.run_command(*self.words(output, data="train-1.bin")), 1, "another data")
        progress = json.loads((output / "last" / "training.json").read_text())
        for before in ({"arithmetic": 1}, {}):  # saved by a version of another arithmetic, and by one that did not number it
            progress["options"].pop("arithmetic", None)
            (output / "last" / "training.json").write_text(json.dumps(progress | {"options": progress["options"] | before}))
            self.assert_one_line_error(self.run_command(*self.words(output)), 1, output, "whose steps have other bits", "--fresh")
        self.train(output, "--lr", 0.5, "--fresh", steps=3)
        self.assertEqual(os.readlink(output / "last"), "step-00000003")

    def test_links_are_mended(self):
        """Killed between a save's name and its links."""
        output, metrics = self.path("out"), self.path("m.jsonl")
        more = ["--save-every", 4, "--keep", 9, "--validation", self.data / "val-0.bin", "--validate-every", 4, "--metrics", metrics]
        self.train(output, *more)
        best = os.readlink(output / "best")
        (output / "last").unlink()
        (output / "best").unlink()
        os.symlink("step-00000001", output / "best")
        os.symlink("step-00000004", output / "last.new")
        metrics.write_text(metrics.read_text() + '{"step": 1')  # torn
        self.train(output, *more, ranks=2)
        self.assertEqual((os.readlink(output / "last"), os.readlink(output / "best")), ("step-00000012", best))
        self.assertFalse((output / "last.new").is_symlink())
        self.assertTrue(metrics.read_text().endswith("\n"))

    def test_ranks_with_other_data_are_named(self):
        """A folder of one rank's own stands for another host's."""
        other = self.path("other")
        shutil.copytree(self.data, other)
        shard = bytearray((other / "train-1.bin").read_bytes())
        shard[1024 + 2] ^= 1
        (other / "train-1.bin").write_bytes(shard)
        words = [str(w) for w in self.words(self.path("out"))]
        script = self.write("own.sh", f'#!/bin/sh\n[ "$OMPI_COMM_WORLD_RANK" = 1 ] && cd {other} || cd {self.data}\nexec "$@"\n')
        script.chmod(0o755)
        words[words.index("--data") + 1] = "train-*.bin"
        command = self.command(*words, ranks=2)
        command.insert(command.index(next(w for w in command if w.endswith("kvmesh"))), str(script))
        done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, timeout=60)
        self.assertEqual(done.returncode, 70, done.stderr)
        self.assertIn("what training depends on", done.stderr.decode())

    def test_metrics_to_a_pipe(self):
        command = self.command(*self.words(self.path("out"), "--metrics", "/dev/stdout", steps=3))
        done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, timeout=60)
        self.assertEqual((done.returncode, len(done.stdout.splitlines())), (0, 3), done.stderr)

    def test_a_librarys_sum(self):
        """Any order of adding: the losses of the tree's sum, nearly, on every number of ranks."""
        def losses(name, ranks, optimizer, micro_rows):
            metrics = self.path(f"{name}{ranks}.jsonl")
            self.train(self.path(f"{name}{ranks}"), "--reduce", name, "--metrics", metrics, "--optimizer", optimizer, "--fresh", ranks=ranks, steps=20, micro_rows=micro_rows)
            return [loss for loss, _, _ in self.losses(metrics).values()]

        for kind in (("muon", 1), ("adamw", 5)):
            expected = losses("tree", 1, *kind)
            for ranks in (1, 2, 3, 4):
                found = losses("library", ranks, *kind)
                self.assertEqual(len(found), 20)
                self.assertLess(max(abs(a - b) for a, b in zip(expected, found)), 1e-4)

    def test_a_rank_that_stops_in_the_exchange(self):
        """Most of these steps is exchange: wherever the other rank is stopped, it is named in time, and the same command goes on."""
        config = CONFIG | {"vocab_size": 20000}
        wide = write_checkpoint(self.path("wide"), {}, config)
        output, metrics, whole = self.path("out"), self.path("m.jsonl"), self.path("whole")
        words = ["--init", "original", "--save-every", 4, "--keep", 1]
        self.train(whole, *words, steps=80, checkpoint=wide)
        generator = random.Random(1)
        for after in (3, 10, 20):
            job = subprocess.Popen(self.command(*self.words(output, *words, "--comm-timeout", 1, "--metrics", metrics, steps=80, checkpoint=wide), ranks=2), stderr=subprocess.PIPE)
            while (not metrics.exists() or metrics.read_text().count("\n") < after) and job.poll() is None:
                time.sleep(0.005)
            time.sleep(0.02 * generator.random())
            self.assertIsNone(job.poll(), "the job was over before its rank could be stopped: more steps")
            ranks = [p for child in children_of(job.pid) for p in children_of(child)] or children_of(job.pid)
            stopped = next(p for p in ranks if b"OMPI_COMM_WORLD_RANK=1" in Path(f"/proc/{p}/environ").read_bytes())
            os.kill(stopped, signal.SIGSTOP)
            begun = time.monotonic()
            errors = job.communicate(timeout=60)[1].decode()
            self.assertEqual(job.returncode, 70, errors)
            self.assertLess(time.monotonic() - begun, 10)
            self.assertRegex(errors, r"rank 0 of 2 waited \d\.\d s for rank 1, which does not answer")
        self.train(output, *words, "--metrics", metrics, steps=80, checkpoint=wide, ranks=3)
        self.assertEqual(self.bytes_of(whole), self.bytes_of(output))

    def test_a_slow_file_system(self):
        """Much that is written takes longer than the ranks wait for each other."""
        source, shim = self.write("slow.c", """
            #define _GNU_SOURCE
            #include <dlfcn.h>
            #include <unistd.h>
            int fsync(int fd) {
              static int calls;
              if (calls++ % 4 == 0) sleep(2);
              return ((int (*)(int))dlsym(RTLD_NEXT, "fsync"))(fd);
            }
            """), self.path("slow.so")
        subprocess.run(["cc", "-shared", "-fPIC", "-o", shim, source], check=True)
        output, expected = self.path("out"), self.path("expected")
        self.train(expected, "--save-every", 2, steps=4)
        sanitizer = os.environ.get("ASAN_OPTIONS", "detect_leaks=0") + ":verify_asan_link_order=0"  # it wants to be what is loaded first
        begun = time.monotonic()
        done = self.run_command(*self.words(output, "--save-every", 2, "--comm-timeout", 1, steps=4), ranks=3, env=os.environ | {"LD_PRELOAD": str(shim), "ASAN_OPTIONS": sanitizer})
        self.assertEqual(done.returncode, 0, done.stderr.decode())
        self.assertGreater(time.monotonic() - begun, 4, "the disk was slow")
        self.assertEqual(self.bytes_of(output), self.bytes_of(expected))

    def test_only_the_first_rank_sees_the_output(self):
        """A folder of one rank's own stands for another host's."""
        other, first, expected = self.path("other"), self.path("first"), self.path("expected")
        self.train(expected, steps=100)
        script = self.write("own.sh", f'#!/bin/sh\n[ "$OMPI_COMM_WORLD_RANK" = 0 ] && cd {first} || cd {other}\nexec "$@"\n')
        script.chmod(0o755)
        for folder in (other, first):
            folder.mkdir()
        words = self.words("out", "--metrics", "m.jsonl", "--save-every", 10, steps=100)
        for ranks, code in ((2, 75), (3, 0)):
            command = self.command(*words, ranks=ranks)
            command.insert(command.index(KVMESH), str(script))
            job = subprocess.Popen(command, stdin=subprocess.DEVNULL, stderr=subprocess.PIPE)
            if code == 75:
                self.appears(first / "out" / "last", job)
                job.send_signal(signal.SIGTERM)
            errors = job.communicate(timeout=60)[1].decode()
            self.assertEqual(job.returncode, code, errors)
        self.assertEqual(self.bytes_of(first / "out"), self.bytes_of(expected))
        self.assertEqual(list(other.iterdir()), [])

    def appears(self, path, job):
        while not path.exists() and job.poll() is None:
            time.sleep(0.005)

    def test_patience(self):
        said = self.train(self.path("out"), "--lr", 1e-12, "--embed-lr", 0, "--head-lr", 0, "--weight-decay", 0, "--patience", 4, steps=500)
        self.assertIn("no lower loss for 4 steps", said)
        last = os.readlink(self.path("out") / "last")
        self.assertLess(int(last[5:]), 500)
        self.train(self.path("out"), "--lr", 1e-12, "--embed-lr", 0, "--head-lr", 0, "--weight-decay", 0, "--patience", 4, steps=500, ranks=2)  # it has ended
        self.assertEqual(os.readlink(self.path("out") / "last"), last)

    def test_not_finite(self):
        output = self.path("out")
        done = self.run_command(*self.words(output, "--save-every", 1, "--lr", 1e38, "--warmup", 3, "--clip", 0, "--weight-decay", 100, "--lr-floor", 1e-3, steps=50), ranks=2)
        self.assertEqual(done.returncode, 70, done.stderr)
        error = done.stderr.decode().splitlines()[-1]
        self.assertRegex(error, r"step \d+: the (loss is|(gradient|new weight) of blocks\.\d\.)")
        row = self.generate("--prompts", self.rows({"tokens": [EOT]}), "--max-new-tokens", 3, "--logprobs", 1, checkpoint=output / "last")[0]
        self.assertTrue(all(map(math.isfinite, row["logprobs"])))
        saved = json.loads((output / "last" / "training.json").read_text())["step"]
        self.assertTrue(math.isfinite(json.loads((output / "last" / "training.json").read_text())["loss"]))
        self.assertGreaterEqual(saved, 1)

    def test_more_ranks_than_micro_batches(self):
        found = []
        for ranks in (1, 4):
            output = self.path(f"out{ranks}")
            self.train(output, "--validation", self.data / "val-0.bin", ranks=ranks, batch_rows=4, steps=3)
            found.append(self.bytes_of(output))
        self.assertEqual(*found)

    def test_a_full_disk(self):
        """A limit on the size of files stands for it: what was saved before stays, and nothing half."""
        output = self.path("out")
        limit = "ulimit -f 300; exec \"$0\" \"$@\""  # KiB: the weights fit, the optimizer's state does not
        done = subprocess.run(["bash", "-c", limit, *self.command(*self.words(output, "--save-every", 2, steps=50))], stdin=subprocess.DEVNULL, capture_output=True, timeout=60)
        self.assertEqual(done.returncode, 74, done.stderr)
        self.assertIn("optimizer.safetensors", done.stderr.decode().splitlines()[-1])
        self.assertEqual({p.name for p in output.iterdir()} - {".lock"}, {"step-00000002.partial"})
        self.train(output, "--save-every", 2, steps=50)
        self.assertEqual(os.readlink(output / "last"), "step-00000050")

    def test_mistakes(self):
        output = self.path("out")
        broken = self.write("broken.bin", b"x" * 2000)
        wide = self.path("wide.bin")
        wide.write_bytes(struct.pack("<256i", 20240520, 1, 40, *[0] * 253) + struct.pack("<40H", EOT, *[999] * 39))
        for words, parts in (
                (["--data", broken], [broken]), (["--data", wide], [wide, 999]), (["--data", self.path("none-*.bin")], ["none-"]), (["--micro-rows", 3], ["--batch-rows 10", "--micro-rows 3"]), (["--lr", "inf"], ["--lr inf"]), (["--lr-floor", "nan"], ["--lr-floor nan"]), (["--eps", "inf"], ["--eps inf"]),
                (["--optimizer", "sgd"], ["--optimizer sgd"]), (["--reduce", "ring"], ["--reduce ring"]), (["--sample", ""], ['--sample ""', "empty"]), (["--sample-tokens", 0], ["--sample-tokens 0"]),
                (["--sample", "A" * 200], ["--sample", "no room"]), (["--checkpoint", self.bare, "--end-of-text", EOT, "--sample", "A"], ["--sample", self.bare, "tokenizer.tiktoken"]),
                (["--steps", 0], ["--steps 0"]), (["--warmup", 6], ["--warmup 6"]), (["--beta1", 1], ["--beta1 1"]),
                (["--end-of-text", 5000], ["--end-of-text 5000"]), (["--checkpoint", self.path("none")], ["config.json"]), (["--validation", broken], [broken]),
                (["--output", "/proc/none"], ["/proc/none"])):
            base = self.words(output)
            for i in range(0, len(words), 2):
                if words[i] in base:
                    base[base.index(words[i]) + 1] = words[i + 1]
                else:
                    base += words[i:i + 2]
            self.assert_one_line_error(self.run_command(*base), 1, *parts)

    def test_a_second_job_is_refused(self):
        output = self.path("out")
        first = subprocess.Popen(self.command(*self.words(output, "--save-every", 1, steps=5000)), stderr=subprocess.DEVNULL)
        while not (output / "last").exists() and first.poll() is None:
            time.sleep(0.01)
        self.assert_one_line_error(self.run_command(*self.words(output, steps=5000)), 1, output, "another job")
        first.send_signal(signal.SIGTERM)
        self.assertEqual(first.wait(timeout=60), 75)


if __name__ == "__main__":
    run_tests()
