"""--pack-cache: packed weights that later starts map. Whatever happens to the file or the checkpoint, the output has the bytes of a run without it."""

import os
import shutil
import subprocess
import time

from command_line import CommandLineTest, config_of, random_weights, run_tests, write_checkpoint

CONFIG = config_of(128, 3, seqlen=128)


class PackCache(CommandLineTest):
    @classmethod
    def setUpClass(cls):
        super().setUpClass()
        cls.models = [write_checkpoint(cls.folder / f"model{seed}", random_weights(CONFIG, seed), CONFIG) for seed in (1, 2)]
        time.sleep(2.1)  # a checkpoint that has just been written may be being written: it is not kept
        cls.prompts = cls.folder / "cache-prompts.jsonl"
        cls.prompts.write_text('{"tokens": [1, 2, 3]}\n{"tokens": [200]}\n')

    def setUp(self):
        self.checkpoint = self.models[0]
        self.cache = self.path("cache")

    def output(self, *more, cache=True, ranks=1, told=None, checkpoint=None, env={}):
        """Standard output; on standard error the line `told` once, or nothing about the cache."""
        words = ["generate", "--checkpoint", checkpoint or self.checkpoint, "--prompts", self.prompts, "--logprobs", 2, "--ignore-eos", *(["--pack-cache", self.cache] if cache else []), *more]
        done = self.run_command(*words, ranks=ranks, env=dict(os.environ, **env))
        text = done.stderr.decode()
        self.assertEqual(done.returncode, 0, text)
        lines = [line for line in text.splitlines() if "pack" in line]
        self.assertEqual(len(lines), 1 if told else 0, text)
        if told:
            self.assertIn(told, lines[0])
        return done.stdout

    def copy(self):
        """A checkpoint of the test's own, just written."""
        self.checkpoint = self.path("checkpoint")
        shutil.copytree(self.models[0], self.checkpoint)

    def file(self, count=1):
        packs = sorted(self.cache.glob("*.pack"))
        self.assertEqual(len(packs), count, packs)
        self.assertEqual(list(self.cache.glob("*.partial")), [])
        return packs[0]

    def made_again(self, act):
        """Whether a run after `act` makes the file anew."""
        before = self.file().stat()
        act()
        return self.file().stat().st_ino != before.st_ino

    def test_the_second_start_maps_the_file_and_gives_the_same_bytes(self):
        expected = self.output(cache=False)
        self.assertEqual(self.output(), expected)
        for ranks in (1, 3):  # a start that could not use the file would make it anew
            self.assertFalse(self.made_again(lambda: self.assertEqual(self.output(ranks=ranks), expected)))

    def test_what_is_damaged_is_never_used(self):
        expected = self.output(cache=False)
        self.output()
        whole = self.file().read_bytes()
        for name, damaged in {"empty": b"", "short": whole[:1000], "torn": whole[:-1], "longer": whole + b"\0", "no end": whole[:-200] + bytes(200), "first bit": bytes([whole[0] ^ 1]) + whole[1:],
                              "a bit": whole[:300_000] + bytes([whole[300_000] ^ 16]) + whole[300_001:], "hashes": whole[:-150] + bytes([whole[-150] ^ 1]) + whole[-149:]}.items():
            with self.subTest(name):
                self.file().write_bytes(damaged)
                self.assertEqual(self.output(told="is damaged", ranks=2 if name == "a bit" else 1), expected)
                self.assertEqual(self.file().read_bytes(), whole)

    def test_a_changed_checkpoint_is_packed_anew(self):
        other = self.output(cache=False, checkpoint=self.models[1])
        self.copy()
        expected = self.output()
        self.assertEqual(list(self.cache.glob("*")), [], "it may still be being written")
        time.sleep(2.1)
        for _ in range(2):
            self.assertEqual(self.output(), expected)
        self.file()
        weights = self.checkpoint / "model.safetensors"
        times = weights.stat()
        weights.write_bytes((self.models[1] / "model.safetensors").read_bytes())  # in place, of equal size
        os.utime(weights, ns=(times.st_atime_ns, times.st_mtime_ns))
        self.assertEqual(self.output(), other)
        time.sleep(2.1)
        self.assertTrue(self.made_again(lambda: self.assertEqual(self.output(), other)))
        self.assertFalse(self.made_again(lambda: self.assertEqual(self.output(), other)))

    def test_a_remembered_hash_that_is_damaged_is_not_believed(self):
        expected = self.output()
        record = next(self.cache.glob("*.seen"))
        text = record.read_text()
        digit = text.index("\n", text.rindex(" ")) + 5
        record.write_text(text[:digit] + ("0" if text[digit] != "0" else "1") + text[digit + 1:])
        self.assertEqual(self.output(), expected)
        self.assertEqual(record.read_text(), text)

    def test_every_dtype_and_instruction_set_has_its_own(self):
        self.output()
        halves = self.output("--dtype", "bfloat16", cache=False)
        for _ in range(2):
            self.assertEqual(self.output("--dtype", "bfloat16"), halves)
        self.file(2)
        integers = self.output("--quantize", "int8", cache=False)
        for _ in range(2):
            self.assertEqual(self.output("--quantize", "int8"), integers)
        self.file(3)
        self.assertEqual(self.output(), self.output(cache=False))
        scalar = self.output(cache=False, env={"KVMESH_CPU_ISA": "scalar"})
        for _ in range(2):
            self.assertEqual(self.output(env={"KVMESH_CPU_ISA": "scalar"}), scalar)
        self.file(4)

    def test_where_nothing_can_be_written_the_job_goes_on(self):
        expected = self.output(cache=False)
        self.cache = self.write("no-folder", "a file")
        self.assertEqual(self.output(told="not kept for the next start"), expected)
        self.cache = "/proc/no-such-folder/pack"
        self.assertEqual(self.output(told="not kept for the next start"), expected)

    def test_beside_the_checkpoint(self):
        self.copy()
        time.sleep(2.1)
        self.output("--pack-cache", "beside", cache=False)
        self.cache = self.checkpoint / ".kvmesh"
        self.assertFalse(self.made_again(lambda: self.output("--pack-cache", "beside", cache=False)))

    def test_jobs_at_the_same_time(self):
        expected = self.output(cache=False)
        command = ["generate", "--checkpoint", self.checkpoint, "--prompts", self.prompts, "--logprobs", 2, "--ignore-eos", "--pack-cache", self.cache]
        self.cache.mkdir()
        (self.cache / "left.partial").write_bytes(b"")
        jobs = [subprocess.Popen(self.command(*command), stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE) for _ in range(4)]
        for job in jobs:
            self.assertEqual(job.communicate(timeout=60)[0], expected)
        (self.cache / "left.partial").unlink()
        self.file()
        self.assertEqual(self.output(), expected)


if __name__ == "__main__":
    run_tests()
