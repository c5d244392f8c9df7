"""What the tests of the command line share: starting kvmesh, and checkpoints whose completions one can tell beforehand.

Standard library only. KVMESH is the binary's path, KVMESH_SOURCE the repository's (CTest sets both).
"""

import base64
import json
import math
import os
import random
import shutil
import struct
import subprocess
import sys
import tempfile
import time
import unittest
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

SOURCE = Path(os.environ.get("KVMESH_SOURCE", Path(__file__).resolve().parents[2]))
KVMESH = os.environ.get("KVMESH", str(SOURCE / "build" / "kvmesh"))
MPIRUN = str(SOURCE / "launch" / "mpirun")

MERGES = [b"th", b"he", b"in", b"er", b"the", b" the", b"an", b"and"]
EOT, PAD = 256 + len(MERGES), 257 + len(MERGES)
VOCAB = EOT + 1  # the pad id is the first one beyond the vocabulary
D, SEQLEN, CAP, SCALE = 64, 32, 15.0, 0.09375
COUNTING = {"norm_eps": 1e-12}  # norm(x) of numbers that are 1 or -1 is x: equal logits are equal bits


def token_bytes(token):
    """The bytes of an id of the tiny tokenizer."""
    if token < 256:
        return bytes([token])
    return MERGES[token - 256] if token < EOT else {EOT: b"<|endoftext|>", PAD: b"<|pad|>"}.get(token, "\ufffd".encode())


def text_of(tokens):
    return b"".join(map(token_bytes, tokens)).decode("utf-8", errors="replace")


def successor(token):
    """What the counting model says next: the next byte; <|endoftext|> after "~" and the letter "A" after that and after merged tokens."""
    return EOT if token == ord("~") else (token + 1) % 256 if token < 256 else ord("A")


def counted(token, count):
    """The next `count` tokens after `token`."""
    out = []
    for _ in range(count):
        token = successor(token)
        out.append(token)
    return out


def codes():
    generator = random.Random(5)
    return [[generator.choice((-1.0, 1.0)) for _ in range(D)] for _ in range(VOCAB)]


def counting_logits(token, cache={}):
    """The counting model's logits after `token`, in float64."""
    if not cache:
        cache["codes"] = codes()
        cache["before"] = {}
        for t in range(VOCAB):
            cache["before"].setdefault(successor(t), []).append(t)
    if token not in cache:
        x = cache["codes"][token]
        row = []
        for v in range(VOCAB):
            dots = [sum(a * b for a, b in zip(x, cache["codes"][t])) for t in cache["before"].get(v, [])]
            row.append(CAP * math.tanh(SCALE * sum(dots) / CAP))
        cache[token] = row
    return cache[token]


def log_probabilities(token):
    logits = counting_logits(token)
    total = math.log(sum(map(math.exp, logits)))
    return [v - total for v in logits]


def write_safetensors(path, tensors):
    """tensors: name → (shape, floats)."""
    header, data = {}, []
    offset = 0
    for name, (shape, values) in tensors.items():
        packed = struct.pack(f"<{len(values)}f", *values)
        header[name] = {"dtype": "F32", "shape": shape, "data_offsets": [offset, offset + len(packed)]}
        offset += len(packed)
        data.append(packed)
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    path.write_bytes(struct.pack("<Q", len(text)) + text + b"".join(data))


def write_tokenizer(path):
    tokens = [bytes([b]) for b in range(256)] + MERGES
    path.write_text("".join(f"{base64.b64encode(t).decode()} {rank}\n" for rank, t in enumerate(tokens)))


def write_checkpoint(folder, weights, config, tokenizer=True):
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(config))
    write_safetensors(folder / "model.safetensors", weights)
    if tokenizer:
        write_tokenizer(folder / "tokenizer.tiktoken")
    return folder


def config_of(d, layers, seqlen=SEQLEN, **more):
    return {"seqlen": seqlen, "vocab_size": VOCAB, "d_emb": d, "num_layers": layers, "q_heads": 2, "kv_heads": 1, "dtype": "float32", **more}


def shapes_of(config):
    d, heads, kv, vocab = config["d_emb"], config["q_heads"], config["kv_heads"], config["vocab_size"]
    h = d // heads
    shapes = {"embed.weight": [vocab, d]}
    for i in range(config["num_layers"]):
        shapes |= {
            f"blocks.{i}.attn.wq": [d, heads, h], f"blocks.{i}.attn.wk": [d, kv, h], f"blocks.{i}.attn.wv": [d, kv, h], f"blocks.{i}.attn.wo": [heads, h, d],
            f"blocks.{i}.mlp.fc1.weight": [d, 4 * d], f"blocks.{i}.mlp.fc2.weight": [4 * d, d]}
    return shapes | {"lm_head.weight": [d, vocab]}


def counting_weights(config):
    """Only the embedding and the head are not zero: the last token alone decides, and its successor is the most probable."""
    rows = codes()
    head = [[0.0] * VOCAB for _ in range(D)]
    for t in range(VOCAB):
        for k in range(D):
            head[k][successor(t)] += SCALE * rows[t][k]
    weights = {name: (shape, [0.0] * math.prod(shape)) for name, shape in shapes_of(config).items()}
    weights["embed.weight"] = ([VOCAB, D], [v for row in rows for v in row])
    weights["lm_head.weight"] = ([D, VOCAB], [v for row in head for v in row])
    return weights


def random_weights(config, seed=1):
    generator = random.Random(seed)
    weights = {}
    for name, shape in shapes_of(config).items():
        width = 1.7 if name.startswith("embed") else 1.7 / math.sqrt(shape[0] * (shape[1] if name.endswith("wo") else 1))
        weights[name] = (shape, [generator.uniform(-width, width) for _ in range(math.prod(shape))])
    return weights


class CommandLineTest(unittest.TestCase):
    """A folder with the counting checkpoint in it; `run` starts the program."""

    maxDiff = None

    @classmethod
    def setUpClass(cls):
        cls.folder = Path(tempfile.mkdtemp(prefix="kvmesh-cli-"))
        config = config_of(D, 1, **COUNTING)
        cls.checkpoint = write_checkpoint(cls.folder / "counting", counting_weights(config), config)

    @classmethod
    def tearDownClass(cls):
        shutil.rmtree(cls.folder)

    def path(self, name):
        """A name of this test's own in the folder."""
        return self.folder / f"{self._testMethodName}-{name}"

    def write(self, name, content):
        path = self.path(name)
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return path

    def rows(self, *rows):
        """A prompts file; a row is an object, or a line as text or bytes."""
        lines = [r if isinstance(r, bytes) else r.encode() if isinstance(r, str) else json.dumps(r).encode() for r in rows]
        return self.write("prompts.jsonl", b"".join(line + b"\n" for line in lines))

    def command(self, *words, ranks=1):
        if ranks > 1:
            launcher = [MPIRUN, "-np", str(ranks)]
        else:  # without MPI's helper process it starts in half the time; all such ranks have one name, and need a folder each
            launcher = ["env", "OMPI_MCA_ess_singleton_isolated=1", "OMPI_MCA_orte_tmpdir_base=" + tempfile.mkdtemp(dir=self.folder)]
        return launcher + [KVMESH] + [str(w) for w in words]

    def run_command(self, *words, ranks=1, input=b"", timeout=60, **more):
        return subprocess.run(self.command(*words, ranks=ranks), input=input, capture_output=True, timeout=timeout, **more)

    def generate(self, *words, ranks=1, exit_code=0, checkpoint=None, **more):
        """Runs it, and gives back the lines of standard output as objects."""
        done = self.run_command("generate", "--checkpoint", checkpoint or self.checkpoint, *words, ranks=ranks, **more)
        self.assertEqual(done.returncode, exit_code, done.stderr.decode())
        return [json.loads(line) for line in done.stdout.splitlines()]

    def assert_one_line_error(self, done, exit_code, *parts):
        """Exit code, nothing on standard output, and exactly one line on standard error that has all parts in it."""
        text = done.stderr.decode()
        self.assertEqual(done.returncode, exit_code, text)
        self.assertEqual(done.stdout, b"")
        self.assertEqual(len(text.splitlines()), 1, text)
        for part in parts:
            self.assertIn(str(part), text)


def run_tests(at_once=4):
    """Runs the tests of the program that calls this, several at once: starting ranks is mostly waiting. Names of tests may be given as arguments."""
    def flat(suite):
        return [test for part in suite for test in (flat(part) if isinstance(part, unittest.TestSuite) else [part])]

    tests = [t for t in flat(unittest.defaultTestLoader.loadTestsFromModule(sys.modules["__main__"])) if not sys.argv[1:] or any(word in t.id() for word in sys.argv[1:])]
    classes = {type(t) for t in tests}

    def run(test):
        result, begun = unittest.TestResult(), time.monotonic()
        test.run(result)
        bad = result.errors + result.failures
        print("".join(f"{t}\n{trace}\n" for t, trace in bad), end="")
        print("".join(f"{t.id()}: {reason}\n" for t, reason in result.skipped), end="")
        print(f"{'FAILED' if bad else 'ok':6} {time.monotonic() - begun:6.2f} s  {test.id()}", flush=True)
        return bool(bad)

    for c in classes:
        c.setUpClass()
    with ThreadPoolExecutor(at_once) as pool:
        failed = sum(pool.map(run, tests))
    for c in classes:
        c.tearDownClass()
    print(f"{len(tests)} tests, {failed} failed")
    sys.exit(failed > 0 or not tests)


def children_of(pid):
    return [int(p) for p in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
