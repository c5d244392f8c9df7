#!/usr/bin/env python3
"""--load broadcast on three hosts over TCP, two of which do not have the weights: the bytes of one rank that read them; whose fault it is where that cannot be."""

import json
import subprocess

import hosts
from job import JobTest, write_rows
from command_line import KVMESH, MPIRUN, config_of, random_weights, run_tests, write_checkpoint


class Load(JobTest):
    @classmethod
    def setUpClass(cls):
        cls.hosts = hosts.Hosts(cls.folder)
        config = config_of(256, 8, seqlen=64)  # 27 MB packed: more than travels in one piece
        cls.checkpoint = write_checkpoint(cls.folder / "checkpoint", random_weights(config), config)
        cls.prompts = write_rows(cls.folder / "prompts.jsonl", ({"id": i, "tokens": [(i * 7 + j) % 256 for j in range(1 + i % 9)], "max_new_tokens": 4 + i} for i in range(11)))
        cls.scored = write_rows(cls.folder / "scored.jsonl", ({"id": i, "tokens": [i, 3], "completion_tokens": [7, i, 9]} for i in range(7)))
        cls.expected = {}
        for dtype, quantize in (("float32", "none"), ("bfloat16", "none"), ("float32", "int8")):
            cls.expected[dtype, quantize] = cls.alone("generate", "--prompts", cls.prompts, "--logprobs", 2, "--ignore-eos", "--dtype", dtype, "--quantize", quantize)
        cls.scores = cls.alone("score", "--prompts", cls.scored)
        cls.weights = cls.checkpoint / "model.safetensors"
        for host in cls.hosts.all[1:]:
            subprocess.run(host.command("mount", "--bind", "/dev/null", cls.weights), check=True)

    @classmethod
    def alone(cls, command, *words):
        """What one rank that reads the weights itself writes to standard output."""
        return subprocess.run(cls.hosts.all[0].command(KVMESH, command, "--checkpoint", cls.checkpoint, *words), check=True, capture_output=True, timeout=100).stdout

    def job(self, command, *words, ranks_a_host=1, before=()):
        words = [*before, KVMESH, command, "--checkpoint", self.checkpoint, "--threads", 1, *words]
        return subprocess.run(self.hosts.mpi(MPIRUN, ranks_a_host, *words), stdin=subprocess.DEVNULL, capture_output=True, timeout=100)

    def check_error(self, done, code, *says):
        lines = [line for line in done.stderr.decode().splitlines() if not line.startswith("[kvmesh-h")]
        self.assertEqual((done.returncode, len(lines)), (code, 1), done.stderr.decode())
        for part in says:
            self.assertIn(part, lines[0])

    def test_the_bytes_of_a_rank_that_reads_them(self):
        for (dtype, quantize), ranks_a_host in zip(self.expected, (1, 2, 2)):
            output = self.folder / f"{dtype}-{quantize}.jsonl"
            done = self.job("generate", "--load", "broadcast", "--prompts", self.prompts, "--logprobs", 2, "--ignore-eos", "--dtype", dtype, "--quantize", quantize, "--output", output,
                            "--batch-size", 7, ranks_a_host=ranks_a_host)
            self.assertEqual(done.returncode, 0, done.stderr.decode())
            self.assertEqual(output.read_bytes(), self.expected[dtype, quantize])
            checked = self.job("verify", "--load", "broadcast", "--output", output, ranks_a_host=ranks_a_host)
            self.assertEqual((checked.returncode, checked.stdout), (0, b"verified 11 of 11 rows\n"), checked.stderr.decode())

    def test_scores(self):
        scores = self.folder / "scores.jsonl"
        done = self.job("score", "--load", "broadcast", "--prompts", self.scored, "--output", scores, ranks_a_host=2)
        self.assertEqual(done.returncode, 0, done.stderr.decode())
        self.assertEqual(scores.read_bytes(), self.scores)

    def test_a_bench(self):
        figures = self.folder / "bench.json"
        done = self.job("bench", "--load", "broadcast", "--prompt-len", 4, "--new-tokens", 2, "--repeat", 1, "--json", figures)
        self.assertEqual(done.returncode, 0, done.stderr.decode())
        self.assertEqual(json.loads(figures.read_text())["ranks"], 3)

    def test_by_default_every_host_reads_them(self):
        self.check_error(self.job("generate", "--prompts", self.prompts), 1, "model.safetensors")

    def test_the_doctor_knows_whose_weights_count(self):
        done = self.job("doctor", "--load", "broadcast", "--prompts", self.prompts)
        self.assertEqual(done.returncode, 0, done.stderr.decode())
        self.assertIn(b"all is well", done.stdout)
        self.assertIn(b"model.safetensors", self.job("doctor", "--prompts", self.prompts).stderr)

    def test_hosts_of_two_kinds(self):
        lesser = self.folder / "lesser"
        lesser.write_text('[ "$(hostname)" = kvmesh-h2 ] && export KVMESH_CPU_ISA=scalar\nexec "$@"\n')
        self.check_error(self.job("score", "--load", "broadcast", "--prompts", self.scored, before=("sh", lesser)), 1,
                         "--load broadcast: rank 0 on kvmesh-h1 packs for cpu/", "rank 1 on kvmesh-h2 has cpu/scalar")

    def test_a_fault_of_the_first_hosts_weights_is_told_once(self):
        folder = self.folder / "broken"
        config = config_of(64, 2)
        weights = random_weights(config)
        del weights["blocks.1.attn.wv"]
        write_checkpoint(folder, weights, config)
        for ranks_a_host in (1, 2):
            done = subprocess.run(self.hosts.mpi(MPIRUN, ranks_a_host, KVMESH, "generate", "--checkpoint", folder, "--load", "broadcast", "--prompts", self.prompts), stdin=subprocess.DEVNULL,
                                  capture_output=True, timeout=60)
            self.check_error(done, 1, "broken", "blocks.1.attn.wv")

    def test_a_pack_cache_belongs_to_hosts_that_read(self):
        self.check_error(self.job("generate", "--load", "broadcast", "--pack-cache", self.folder, "--prompts", self.prompts), 1, "--pack-cache: not with --load broadcast")
        self.check_error(self.job("generate", "--load", "sideways", "--prompts", self.prompts), 1, "--load sideways: not one of read, broadcast")


def main(folder):
    JobTest.folder = folder
    run_tests(at_once=2)


hosts.run(main)
