"""kvmesh import --from orbax and kvmesh export, on checkpoints that the original program saved (tests/reference/orbax_fixture.py)."""

import json
import os
import resource
import shutil
import signal
import struct
import subprocess
import sys
import unittest
from pathlib import Path

from command_line import KVMESH, config_of, random_weights, run_tests, write_checkpoint
from importing import ENVIRONMENT, FIXTURES, ImportTest, digests, has, read_safetensors

ORBAX = FIXTURES / "orbax"
EXPECTED = json.loads((ORBAX / "expected.json").read_text())["cases"]
READS, WRITES, NUMPY = has("tensorstore", "numpy", "ml_dtypes"), has("orbax.checkpoint", "jax"), has("numpy", "ml_dtypes")
NEEDS = "skipped: needs pip install tensorstore numpy ml_dtypes"


def edit_json(path, change):
    value = json.loads(path.read_text())
    change(value)
    path.write_text(json.dumps(value))


def crc32c(data):
    crc = 0xFFFFFFFF
    for byte in data:
        crc ^= byte
        for _ in range(8):
            crc = crc >> 1 ^ (0x82F63B78 if crc & 1 else 0)
    return crc ^ 0xFFFFFFFF


def zstd_bomb():
    """A frame of RFC 8878 that does not say its size: blocks of 128 KB of zeros in 4 bytes each, 1 GB together."""
    block = (1 << 1 | 1 << 17 << 3).to_bytes(3, "little") + b"\0"
    return bytes.fromhex("28b52ffd0038") + 8191 * block + bytes([block[0] | 1]) + block[1:]


# What unpacks to 512 MB, by tensorstore itself: a chunk in argv[1], or in the OCDBT store argv[1] a node with all that is there and zeros besides.
BLOSC_BOMB = """
import sys, tensorstore as ts
store = {"driver": "file", "path": sys.argv[1] + "/"}
metadata = {"shape": [1 << 29], "chunks": [1 << 29], "dtype": "|u1", "fill_value": None, "compressor": {"id": "blosc", "cname": "zstd", "clevel": 5, "shuffle": 0}}
array = ts.open({"driver": "zarr", "kvstore": store, "metadata": metadata, "store_data_equal_to_fill_value": True}, create=True).result()
array.write(0).result()
"""
OCDBT_BOMB = """
import shutil, sys, tensorstore as ts
def store(folder, **config):
    return ts.KvStore.open({"driver": "ocdbt", "base": {"driver": "file", "path": folder + "/"}, "config": config}).result()
old, new = store(sys.argv[1]), store(sys.argv[1] + "/new", max_inline_value_bytes=1 << 20, max_decoded_node_bytes=(1 << 32) - 1)
with ts.Transaction() as transaction:
    for key in old.list().result():
        new.with_transaction(transaction)[key] = old[key]
    for i in range(512):
        new.with_transaction(transaction)[f"blocks.0.{i:03}"] = bytes(1 << 20)
for name in ("d", "manifest.ocdbt"):
    shutil.move(sys.argv[1] + "/" + name, sys.argv[1] + "/old-" + name)
    shutil.move(sys.argv[1] + "/new/" + name, sys.argv[1] + "/" + name)
"""


@unittest.skipUnless(READS, NEEDS)
class Orbax(ImportTest):
    def check_weights(self, folder, case):
        tensors = read_safetensors(folder / "model.safetensors")
        self.assertEqual(digests(tensors), EXPECTED[case]["tensors"])
        self.assertEqual({t[0] for t in tensors.values()}, {"BF16" if EXPECTED[case]["config"]["dtype"] == "bfloat16" else "F32"})

    def test_every_kind_bit_for_bit(self):
        for case, expected in EXPECTED.items():
            out = self.converted("import", "--from", "orbax", ORBAX / case, "--config", self.write("config.json", json.dumps({k: v for k, v in expected["config"].items() if k != "dtype"})), name=case)
            self.check_weights(out, case)
            config = json.loads((out / "config.json").read_text())
            self.assertEqual({k: config[k] for k in expected["config"]}, expected["config"])
            self.assertEqual(sorted(f.name for f in out.iterdir()), ["config.json", "model.safetensors"])
            self.assertEqual(self.run_command("inspect", "--checkpoint", out).returncode, 0)

    def test_which_folder(self):
        for folder in ("run", "run/200", "run/200/params"):
            self.check_weights(self.converted("import", "--from", "orbax", ORBAX / folder, "--seqlen", 32, name=folder.replace("/", "-")), "run")
        first = self.converted("import", "--from", "orbax", ORBAX / "run", "--step", 100, "--seqlen", 32, name="first")
        last = read_safetensors(self.path("run") / "model.safetensors")
        for name, (_, _, data) in read_safetensors(first / "model.safetensors").items():
            n = len(data) // 4
            self.assertEqual([2 * v for v in struct.unpack(f"<{n}f", data)], list(struct.unpack(f"<{n}f", last[name][2])))

    def test_generates_what_the_original_does(self):
        out = self.converted("import", "--from", "orbax", ORBAX / "run", "--seqlen", 32)
        expected = EXPECTED["run"]
        self.assertGreater(min(map(min, expected["gaps"])), 1e-4)
        rows = self.rows(*({"tokens": p} for p in expected["prompts"]))
        done = self.generate("--prompts", rows, "--ignore-eos", "--max-new-tokens", len(expected["greedy"][0]), checkpoint=out, ranks=2)
        self.assertEqual([r["tokens"] for r in done], expected["greedy"])

    def test_dtypes(self):
        kept = read_safetensors(self.converted("import", "--from", "orbax", ORBAX / "bfloat16", "--seqlen", 32, name="kept") / "model.safetensors")
        wide = self.converted("import", "--from", "orbax", ORBAX / "bfloat16", "--seqlen", 32, "--dtype", "float32", name="wide")
        self.assertEqual(json.loads((wide / "config.json").read_text())["dtype"], "float32")
        for name, (dtype, _, data) in read_safetensors(wide / "model.safetensors").items():
            self.assertEqual((dtype, data), ("F32", b"".join(b"\0\0" + kept[name][2][i:i + 2] for i in range(0, len(kept[name][2]), 2))))
        single = read_safetensors(self.converted("import", "--from", "orbax", ORBAX / "plain", "--seqlen", 32, name="single") / "model.safetensors")
        narrow = read_safetensors(self.converted("import", "--from", "orbax", ORBAX / "plain", "--seqlen", 32, "--dtype", "bfloat16", name="narrow") / "model.safetensors")
        for name, (dtype, _, data) in narrow.items():
            bits = struct.unpack(f"<{len(data) // 2}I", single[name][2])
            self.assertEqual((dtype, list(struct.unpack(f"<{len(bits)}H", data))), ("BF16", [(b + 0x7FFF + (b >> 16 & 1)) >> 16 for b in bits]))  # to the nearest, ties to even

    def test_the_tokenizer_goes_along(self):
        out = self.converted("import", "--from", "orbax", ORBAX / "plain", "--seqlen", 32, "--tokenizer", self.checkpoint / "tokenizer.tiktoken")
        self.assertEqual((out / "tokenizer.tiktoken").read_bytes(), (self.checkpoint / "tokenizer.tiktoken").read_bytes())

    def test_one_rank_works(self):
        out = self.path("out")
        done = self.convert("import", "--from", "orbax", ORBAX / "plain", "--seqlen", 32, "--output", out, ranks=2)
        self.assertEqual((done.returncode, done.stdout.count(b"14 tensors")), (0, 1), done.stderr)

    def test_wrong_words(self):
        plain = ("import", "--from", "orbax", ORBAX / "plain")
        self.refused(*plain, parts=["--seqlen"])
        self.refused("import", "--from", "orbax", self.path("none"), parts=[self.path("none")])
        self.refused("import", "--from", "orbax", self.checkpoint, "--seqlen", 32, parts=[self.checkpoint, "_METADATA"])
        self.refused("import", "--from", "orbax", ORBAX / "run", "--step", 150, "--seqlen", 32, parts=["150", "100, 200"])
        self.refused("import", "--from", "orbax", ORBAX / "run" / "200", "--step", 200, "--seqlen", 32, parts=["--step 200"])
        self.refused("import", "--from", "torch", ORBAX / "plain", parts=["torch"])
        self.refused(*plain, "--seqlen", "-1", parts=["--seqlen"])
        self.refused(*plain, "--seqlen", 32, "--pickle", parts=["--pickle", "nanochat"])
        for config, part in (({"seqlen": 32, "vocab_size": 41}, "vocab_size"), ({"seqlen": 32, "kv_heads": 4}, "kv_heads"), ({"seqlen": 0}, "seqlen"), ({"seqlen": 32, "window": 3}, "window"),
                             ({"seqlen": 32, "window_pattern": "X"}, "window_pattern")):
            self.refused(*plain, "--config", self.write("config.json", json.dumps(config)), parts=[part])
        self.refused(*plain, "--config", self.write("config.json", "[" * 100000), parts=["config.json", "deep"])
        for key in ("rope_theta", "norm_eps", "logit_soft_cap"):
            self.refused(*plain, "--config", self.write("config.json", f'{{"seqlen": 32, "{key}": 1e999}}'), parts=["config.json", key])
        there = self.write("there", "kept")
        self.assert_one_line_error(self.convert(*plain, "--seqlen", 32, "--output", there), 1, there, "already")
        self.assertEqual(there.read_text(), "kept")

    def test_packages_that_are_missing(self):
        bare = self.write("bare-python", f"#!/bin/sh\nexec {sys.executable} -E -s -S \"$@\"\n")
        bare.chmod(0o755)
        done = self.run_command("import", "--from", "orbax", ORBAX / "plain", "--seqlen", 32, "--output", self.path("out"), "--python", bare)
        self.assert_one_line_error(done, 1, "pip install tensorstore numpy ml_dtypes")
        self.assert_one_line_error(self.run_command("import", "--python", self.path("none")), 1, self.path("none"), "Python")

    def spoilt(self, fixture, spoil, *parts, code=1):
        folder = self.copy(f"orbax/{fixture}")
        spoil(folder)
        self.refused("import", "--from", "orbax", folder, "--seqlen", 32, parts=parts, code=code)

    def change_tree(self, change):
        return lambda f: edit_json(f / "_METADATA", lambda m: change(m["tree_metadata"]))

    def test_other_models(self):
        fc1 = "('blocks', '1', 'mlp', 'fc1', 'weight')"

        def renamed(to):
            def change(tree):
                tree[fc1]["key_metadata"][-2]["key"] = to
            return change

        self.spoilt("bfloat16", self.change_tree(lambda t: t.pop(fc1)), "blocks.1.mlp.fc1.weight", "missing")
        self.spoilt("plain", self.change_tree(renamed("fc3")), "blocks.1.mlp.fc3.weight")
        self.spoilt("plain", lambda f: os.rename(f / "embed.weight", f / "embed"), "embed.weight")
        for part in ("..", "/etc", "a/b", ""):
            self.spoilt("plain", self.change_tree(renamed(part)), "none of the original")

        def scale(tree):
            tree["('lm_head', 'bias')"]["value_metadata"]["value_type"] = "scalar"

        self.spoilt("run/200", lambda f: edit_json(f / "params" / "_METADATA", lambda m: scale(m["tree_metadata"])), "lm_head.bias", "scalar")
        zarray = "blocks.1.attn.wv/.zarray"
        for key, value in (("shape", [8, 3, 2]), ("dtype", "<i4"), ("chunks", [1 << 20, 1 << 20, 1 << 10]), ("shape", [1 << 40, 1 << 40, 1 << 40])):
            self.spoilt("plain", lambda f: edit_json(f / zarray, lambda m: m.update({key: value})), "blocks.1.attn.wv")

    def test_lost_and_damaged_parts(self):
        self.spoilt("plain", lambda f: (f / "blocks.0.attn.wo" / "0.0.0").unlink(), "blocks.0.attn.wo", "cannot be read")
        self.spoilt("plain", lambda f: os.truncate(f / "lm_head.weight" / "0.0", 100), "lm_head.weight", "cannot be read")
        self.spoilt("sharded", lambda f: [p.unlink() for p in f.rglob("d/*")], "cannot be opened")
        self.spoilt("run/200/params", lambda f: (f / "manifest.ocdbt").unlink(), "cannot be opened")
        self.spoilt("plain", lambda f: (f / "_METADATA").write_text("{"), "_METADATA", "JSON")
        self.spoilt("plain", lambda f: (f / "_METADATA").write_text("[" * 100000), "_METADATA")
        self.spoilt("plain", lambda f: (f / "_METADATA").write_text('{"tree_metadata": {"a": 1}}'), "_METADATA")

        def not_a_number(folder):
            edit_json(folder / "lm_head.weight" / ".zarray", lambda m: m.update(compressor=None))
            (folder / "lm_head.weight" / "0.0").write_bytes(struct.pack("<320f", *[1.0] * 319, float("nan")))

        self.spoilt("plain", not_a_number, "lm_head.weight", "NaN")

    def test_what_unpacks_to_far_more(self):
        def run(script, *words):
            subprocess.run([sys.executable, "-c", script, *words], env=ENVIRONMENT, check=True)

        def chunk(compressor, data):
            def spoil(folder):
                edit_json(folder / "lm_head.weight" / ".zarray", lambda m: m.update(compressor=compressor))
                (folder / "lm_head.weight" / "0.0").write_bytes(data)
            return spoil

        def node(folder):
            run(OCDBT_BOMB, folder)
            self.assertLess(sum(f.stat().st_size for f in (folder / "d").iterdir()), 1 << 16)

        run(BLOSC_BOMB, self.path("blosc"))
        blosc = (self.path("blosc") / "0").read_bytes()
        self.assertLess(len(blosc), 1 << 17)
        self.spoilt("plain", chunk({"id": "zstd", "level": 1}, zstd_bomb()), "lm_head.weight", "cannot be read")
        self.spoilt("plain", chunk({"id": "blosc", "cname": "zstd", "clevel": 1, "shuffle": 0}, blosc), "lm_head.weight", "cannot be read in 256 MiB")
        self.spoilt("bfloat16", node, "embed.weight", "cannot be opened in 256 MiB")

    def test_what_says_that_it_is_huge(self):
        def reshaped(change):
            """Zeros where no chunk is stored. `change`: sizes to sizes."""
            def spoil(folder):
                edit_json(folder / "_METADATA", lambda m: m.pop("store_array_data_equal_to_fill_value"))
                for zarray in folder.glob("*/.zarray"):
                    edit_json(zarray, lambda m: m.update(dict(zip(("shape", "chunks"), change(zarray.parent.name, m["shape"])))))
            return spoil

        def wide(name, shape):
            """32 TB: 2^23 tokens of a width of 2^20."""
            sizes = {8: 1 << 20, 32: 1 << 22, 40: 1 << 23}
            shape = [s << 17 if "attn" in name and i == (1 if name.endswith("wo") else 2) else sizes.get(s, s) for i, s in enumerate(shape)]
            return shape, [-(-s // 16) for s in shape]

        self.spoilt("plain", reshaped(wide), "bytes of weights", "free", code=74)
        self.spoilt("plain", reshaped(lambda name, shape: ([shape[0], 1 << 23], [shape[0], 1]) if name == "lm_head.weight" else (shape, shape)), "lm_head.weight", "8388608 chunks")
        self.spoilt("plain", lambda f: (f / "_METADATA").write_bytes(b'{"a": [' + b"[]," * 4_000_000 + b"[]]}"), "_METADATA", "4000000 JSON values")

    def test_a_library_that_dies(self):
        """For another reason than memory."""
        modules = self.path("modules")
        modules.mkdir()
        (modules / "tensorstore.py").write_text("import os, signal; os.kill(os.getpid(), signal.SIGILL)")
        env = ENVIRONMENT | {"PYTHONPATH": os.pathsep.join([str(modules), ENVIRONMENT["PYTHONPATH"]])}
        self.refused("import", "--from", "orbax", ORBAX / "plain", "--seqlen", 32, parts=[f"signal {signal.SIGILL}"], env=env)

    def test_threads_with_large_stacks(self):
        hard = resource.getrlimit(resource.RLIMIT_STACK)[1]
        size = 1 << 30 if hard == resource.RLIM_INFINITY else min(1 << 30, hard)
        done = self.convert("import", "--from", "orbax", ORBAX / "bfloat16", "--seqlen", 32, "--output", self.path("out"), preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_STACK, (size, hard)))
        self.assertEqual(done.returncode, 0, done.stderr.decode())

    def test_ways_out_of_the_folder(self):
        secret = self.write("secret", "x" * 2000)
        self.spoilt("plain", lambda f: ((f / "lm_head.weight" / "0.0").unlink(), (f / "lm_head.weight" / "0.0").symlink_to(secret)), "lm_head.weight/0.0", "links")
        self.spoilt("plain", lambda f: ((f / "lm_head.weight" / "0.0").unlink(), os.mkfifo(f / "lm_head.weight" / "0.0")), "lm_head.weight/0.0")

        def manifest_that_leads(start):
            def spoil(folder):
                """The manifest's pointer to its tree leads to a copy of it somewhere else; its checksum is right."""
                manifest = folder / "manifest.ocdbt"
                data = bytearray(manifest.read_bytes())
                node = next((folder / "d").iterdir())
                name = f"d/{node.name}"
                at = data.index(name.encode())
                self.assertEqual(struct.unpack("<I", data[-4:])[0], crc32c(data[:-4]))
                other = start.ljust(len(name), "x")
                target = Path(other) if other.startswith("/") else folder / other
                self.addCleanup(lambda: target.unlink(missing_ok=True))
                shutil.copy(node, target)
                node.unlink()
                data[at:at + len(name)] = other.encode()
                data[-4:] = struct.pack("<I", crc32c(data[:-4]))
                manifest.write_bytes(data)
            return spoil

        self.spoilt("bfloat16", manifest_that_leads("../"), "cannot be opened")
        self.spoilt("bfloat16", manifest_that_leads("d/../../"), "cannot be opened")
        self.spoilt("bfloat16", manifest_that_leads("/tmp/kvmesh-node-"), "cannot be opened")
        inside = self.copy("orbax/bfloat16")
        manifest_that_leads("d/")(inside)  # and within the folder it may
        self.converted("import", "--from", "orbax", inside, "--seqlen", 32)


@unittest.skipUnless(READS and WRITES, NEEDS + " orbax-checkpoint jax")
class OrbaxAndBack(ImportTest):
    def test_round_trip(self):
        for case in ("run", "bfloat16"):
            config = self.write("config.json", json.dumps({k: v for k, v in EXPECTED[case]["config"].items() if k != "dtype"}))
            native = self.converted("import", "--from", "orbax", ORBAX / case, "--config", config, name=f"{case}-native")
            back = self.converted("export", "--to", "orbax", native, name=f"{case}-orbax")
            again = self.converted("import", "--from", "orbax", back, "--config", config, name=f"{case}-again")
            for file in ("config.json", "model.safetensors"):
                self.assertEqual((again / file).read_bytes(), (native / file).read_bytes())
            theirs = ORBAX / case / ("200/params" if case == "run" else "")
            trees = [json.loads((f / "_METADATA").read_text())["tree_metadata"] for f in (back, theirs)]
            self.assertEqual(*[{k: (v["key_metadata"], v["value_metadata"]["value_type"]) for k, v in tree.items()} for tree in trees])
        self.refused("export", "--to", "orbax", self.path("run-orbax"), parts=["config.json"])

    def test_what_the_original_cannot_be(self):
        for i, (change, part) in enumerate((({"rope_theta": 5000}, "rope_theta"), ({"logit_soft_cap": 0}, "logit_soft_cap"), ({"norm_eps": 1e-6}, "norm_eps"))):
            config = config_of(16, 1) | change
            self.refused("export", "--to", "orbax", write_checkpoint(self.path(f"native{i}"), random_weights(config), config), parts=[part])


@unittest.skipUnless(NUMPY, NEEDS)
class HuggingFace(ImportTest):
    def native(self, **change):
        config = config_of(16, 3, logit_soft_cap=0) | change
        return write_checkpoint(self.path("native"), random_weights(config), config), config

    def said(self, folder, dtype):
        """Tokens and log-probabilities, greedy and drawn."""
        rows = self.rows({"tokens": [5, 17, 3]}, {"tokens": [9]}, {"tokens": list(range(20)), "temperature": 1.3})
        done = self.generate("--prompts", rows, "--ignore-eos", "--max-new-tokens", 10, "--logprobs", 3, "--dtype", dtype, checkpoint=folder)
        return [[row[k] for k in ("tokens", "logprobs", "top_logprobs")] for row in done]

    def test_weights(self):
        native, config = self.native(window_pattern="SL", local_window_size=5, nope_global_attn=False, rope_theta=300)
        out = self.converted("export", "--to", "hf", native)
        ours, theirs = read_safetensors(native / "model.safetensors"), read_safetensors(out / "model.safetensors")

        def rows(data, width):
            return [data[i:i + 4 * width] for i in range(0, len(data), 4 * width)]

        def transposed(data, columns):
            return b"".join(row[4 * c:4 * c + 4] for c in range(columns) for row in rows(data, columns))

        d, h = config["d_emb"], config["d_emb"] // config["q_heads"]
        for name, part, columns in (("self_attn.q_proj", "attn.wq", d), ("self_attn.k_proj", "attn.wk", h), ("self_attn.v_proj", "attn.wv", h), ("self_attn.o_proj", "attn.wo", d),
                                    ("mlp.gate_proj", "mlp.fc1.weight", 4 * d), ("mlp.up_proj", "mlp.fc1.weight", 4 * d), ("mlp.down_proj", "mlp.fc2.weight", d)):
            for i in range(3):
                self.assertEqual(theirs[f"model.layers.{i}.{name}.weight"][2], transposed(ours[f"blocks.{i}.{part}"][2], columns), name)
        self.assertEqual(theirs["lm_head.weight"][2], transposed(ours["lm_head.weight"][2], config["vocab_size"]))
        self.assertEqual(theirs["model.embed_tokens.weight"][2], ours["embed.weight"][2])
        self.assertEqual(theirs["model.layers.2.self_attn.k_norm.weight"], ("F32", [h], struct.pack("<f", 1) * h))
        made = json.loads((out / "config.json").read_text())
        self.assertEqual([made[k] for k in ("layer_types", "sliding_window", "rope_parameters")],
                         [["sliding_attention", "full_attention", "full_attention"], 6, {"rope_type": "default", "rope_theta": 300.0}])

    def test_read_back(self):
        """kvmesh computes the same bits from the folder that it exported; what it makes of such folders at all, families_mpi_test holds to transformers."""
        for name, change in (("windows", {"window_pattern": "SL", "local_window_size": 5, "nope_global_attn": False}), ("sliding", {"window_pattern": "S", "local_window_size": 3, "rope_theta": 300.0}),
                             ("full", {"norm_eps": 1e-3})):
            config = config_of(16, 3, logit_soft_cap=0) | change
            native = write_checkpoint(self.path(name), random_weights(config), config)
            if name == "full":  # its weights in the file as bfloat16
                file = native / "model.safetensors"
                data = file.read_bytes()
                begin = 8 + int.from_bytes(data[:8], "little")
                header = {k: v | {"dtype": "BF16", "data_offsets": [o // 2 for o in v["data_offsets"]]} for k, v in json.loads(data[8:begin]).items()}
                text = json.dumps(header).encode()
                file.write_bytes(struct.pack("<Q", len(text)) + text + b"".join(data[i + 2:i + 4] for i in range(begin, len(data), 4)))
            exported = self.converted("export", "--to", "hf", native, name=f"{name}-hf")
            for dtype in ("float32", "bfloat16"):
                self.assertEqual(self.said(exported, dtype), self.said(native, dtype))
        self.assertIn(b"without the tokenizer", self.convert("export", "--to", "hf", native, "--output", self.path("again")).stdout)

    def test_another_up_than_gate(self):
        exported = self.converted("export", "--to", "hf", self.native()[0])
        file = exported / "model.safetensors"
        name = "model.layers.1.mlp.up_proj.weight"
        data = file.read_bytes()
        weight = read_safetensors(file)[name][2]
        at = data.rindex(weight)  # behind the gate
        file.write_bytes(data[:at] + bytes([weight[0] ^ 1]) + data[at + 1:])
        self.assert_one_line_error(self.run_command("inspect", "--checkpoint", exported), 1, file, name, "hidden_act")

    def test_tensors_that_lie_over_each_other(self):
        native, config = self.native()
        file = native / "model.safetensors"
        tensors = read_safetensors(file)
        header, data = {}, b""
        for tensor, (dtype, shape, weights) in tensors.items():
            of = header.get(tensor.replace("blocks.2.", "blocks.1."))  # the last block's are the one's before
            header[tensor] = of or {"dtype": dtype, "shape": shape, "data_offsets": [len(data), len(data) + len(weights)]}
            data += b"" if of else weights
        text = json.dumps(header).encode()
        file.write_bytes(struct.pack("<Q", len(text)) + text + data)
        self.refused("export", "--to", "hf", native, parts=[file, "over each other"])

    def test_what_has_no_class(self):
        self.refused("export", "--to", "hf", self.checkpoint, parts=["soft cap of 15"])
        native, _ = self.native(window_pattern="SL")
        self.refused("export", "--to", "hf", native, parts=["layer 1 has no RoPE"])
        self.refused("export", "--to", "hf", FIXTURES / "families" / "qwen3", parts=["Hugging Face folder already"])


@unittest.skipUnless((Path(KVMESH).parent / "CMakeCache.txt").exists(), "not a build folder")
class Installed(ImportTest):
    def test_the_scripts_are_found(self):
        prefix = self.path("prefix")
        subprocess.run(["cmake", "--install", Path(KVMESH).parent, "--prefix", prefix], check=True, capture_output=True)
        done = subprocess.run([prefix / "bin" / "kvmesh", "import", "--help"], capture_output=True, env=ENVIRONMENT)
        self.assertEqual((done.returncode, done.stderr), (0, b""))
        self.assertIn(b"--from", done.stdout)


if __name__ == "__main__":
    run_tests()
