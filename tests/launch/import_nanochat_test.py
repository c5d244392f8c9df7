"""kvmesh import --from nanochat, on checkpoints that nanochat's own code saved (tests/reference/nanochat_fixture.py), and on pickles that would do harm."""

import json
import math
import os
import pickle
import shutil
import subprocess
import sys
import types
import unittest.mock
import zipfile

from command_line import run_tests
from importing import FIXTURES, ImportTest, digests, has, read_safetensors

NANOCHAT = FIXTURES / "nanochat"
EXPECTED = json.loads((NANOCHAT / "expected.json").read_text())


class Call:
    """Pickled, it is a call."""

    def __init__(self, function, *arguments):
        self.call = function, arguments

    def __reduce__(self):
        return self.call


class Nanochat(ImportTest):
    def imported(self, name, *words):
        return self.converted("import", "--from", "nanochat", NANOCHAT / "base_checkpoints" / name, "--pickle", *words, name="-".join([name, *map(str, words)]))

    def test_weights_and_config(self):
        for name in ("first", "padded"):
            out = self.imported(name)
            self.assertEqual(digests(read_safetensors(out / "model.safetensors")), EXPECTED[name]["tensors"])
            config = json.loads((out / "config.json").read_text())
            self.assertEqual([config[k] for k in ("model_type", "vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads", "max_position_embeddings", "final_logit_softcapping")],
                             ["nanochat", 300, 16, 2, 4, 2, 64, 15.0])
            self.assertEqual(sorted(f.name for f in out.iterdir()), ["config.json", "generation_config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"])

    def test_generates_what_transformers_does(self):
        for name in ("first", "padded"):
            expected = EXPECTED[name]["rows"]
            self.assertGreater(min(min(r["gaps"]) for r in expected), 1e-4)
            rows = self.rows(*({"tokens": r["tokens"]} for r in expected))
            done = self.generate("--prompts", rows, "--ignore-eos", "--dtype", "float32", "--max-new-tokens", 12, "--logprobs", 5, checkpoint=self.imported(name), ranks=2)
            self.assertEqual([r["tokens"] for r in done], [r["greedy"] for r in expected])
            for row, wanted in zip(done, expected):
                total = math.log(sum(map(math.exp, wanted["last"])))
                for token, value in row["top_logprobs"][0]:
                    self.assertAlmostEqual(value, wanted["last"][token] - total, delta=1e-4)

    def test_tokenizer(self):
        expected = EXPECTED["tokenizer"]
        lines = [(t, i) for t, i in zip(expected["texts"], expected["ids"]) if "\n" not in t and "<|" not in t]
        done = self.run_command("tokenize", "--tokenizer", self.imported("first") / "tokenizer.json", input="".join(t + "\n" for t, _ in lines).encode())
        self.assertEqual([json.loads(line) for line in done.stdout.splitlines()], [i for _, i in lines], done.stderr)

    def with_last_token(self, token):
        """A copy of the fixture whose tokenizer has another last token: its model's folder, and the rank."""
        Encoding = type("Encoding", (), {"__module__": "tiktoken.core", "__getstate__": lambda self: self.state, "__setstate__": lambda self, state: setattr(self, "state", state)})
        copy = self.copy("nanochat")
        with unittest.mock.patch.dict(sys.modules, {"tiktoken": types.ModuleType("tiktoken"), "tiktoken.core": types.SimpleNamespace(Encoding=Encoding)}):
            encoding = pickle.loads((copy / "tokenizer" / "tokenizer.pkl").read_bytes())
            ranks = encoding.state["mergeable_ranks"]
            encoding.state["mergeable_ranks"] = {t: r for t, r in ranks.items() if r < len(ranks) - 1} | {token: len(ranks) - 1}
            (copy / "tokenizer" / "tokenizer.pkl").write_bytes(pickle.dumps(encoding))
        return copy / "base_checkpoints" / "first", len(ranks) - 1

    def test_a_token_that_no_merges_make(self):
        """A piece of text that is a token is that token for tiktoken, whether or not its parts are tokens."""
        copy, rank = self.with_last_token(b"qzx")
        out = self.converted("import", "--from", "nanochat", copy, "--pickle")
        done = self.run_command("tokenize", "--tokenizer", out / "tokenizer.json", input=b"qzx qzx\n")
        self.assertEqual(json.loads(done.stdout), [rank, *b" qzx"])

    def test_a_token_that_is_too_long(self):
        """Its merges are looked for at every cut."""
        copy, _ = self.with_last_token(b"q" * 1025)
        self.refused("import", "--from", "nanochat", copy, "--pickle", parts=["tokenizer.pkl", "1024 bytes"])

    def test_chat_template(self):
        """A conversation is the prompt that nanochat's render_for_completion makes of it: the same log-probabilities come after it."""
        expected, out = EXPECTED["tokenizer"], self.imported("first")
        words = ("--ignore-eos", "--max-new-tokens", 6, "--logprobs", 0)
        chat = self.generate("--prompts", self.write("chat.jsonl", json.dumps({"messages": expected["conversation"]}) + "\n"), "--chat", *words, checkpoint=out)
        plain = self.generate("--prompts", self.rows({"tokens": expected["prompt_ids"]}), *words, checkpoint=out)
        self.assertEqual([chat[0][k] for k in ("tokens", "logprobs")], [plain[0][k] for k in ("tokens", "logprobs")])

    def test_steps_and_dtype(self):
        first = read_safetensors(self.imported("first", "--step", 100) / "model.safetensors")
        last = read_safetensors(self.imported("first", "--step", "200", "--dtype", "keep") / "model.safetensors")
        self.assertEqual(first.keys(), last.keys())
        self.assertNotEqual(first["lm_head.weight"], last["lm_head.weight"])
        self.assertEqual({last["model.embed_tokens.weight"][0], last["lm_head.weight"][0]}, {"BF16", "F32"})
        if has("numpy", "ml_dtypes"):
            wide = read_safetensors(self.imported("first", "--dtype", "float32") / "model.safetensors")["model.embed_tokens.weight"]
            narrow = last["model.embed_tokens.weight"][2]
            self.assertEqual((wide[0], wide[2]), ("F32", b"".join(b"\0\0" + narrow[i:i + 2] for i in range(0, len(narrow), 2))))

    def test_nothing_but_the_standard_library(self):
        bare = self.write("bare-python", f"#!/bin/sh\nexec {sys.executable} -E -s -S \"$@\"\n")
        bare.chmod(0o755)
        done = self.run_command("import", "--from", "nanochat", NANOCHAT / "base_checkpoints" / "first", "--pickle", "--output", self.path("out"), "--python", bare)
        self.assertEqual((done.returncode, done.stderr), (0, b""))

    def test_without_a_tokenizer(self):
        alone = self.copy("nanochat/base_checkpoints/first")
        done = self.convert("import", "--from", "nanochat", alone, "--pickle", "--output", self.path("out"))
        self.assertEqual(done.returncode, 0, done.stderr)
        self.assertIn(b"no tokenizer.pkl", done.stdout)
        self.assertFalse((self.path("out") / "tokenizer.json").exists())

    def test_refused(self):
        first = ("import", "--from", "nanochat", NANOCHAT / "base_checkpoints" / "first")
        self.refused(*first, parts=["--pickle"])
        self.refused(*first, "--pickle", "--step", 3, parts=["no step 3", "100, 200"])
        self.refused("import", "--from", "nanochat", NANOCHAT, "--pickle", parts=["model_<step>.pt"])
        self.refused("import", "--from", "nanochat", NANOCHAT / "base_checkpoints" / "newer", "--pickle", parts=["model_000200.pt", "resid_lambdas"])
        for change, part in (({"window_pattern": "SSSL"}, "window_pattern"), ({"n_experts": 4}, "n_experts"), ({"vocab_size": 299}, "transformer.wte.weight"), ({"n_layer": 3}, "transformer.h.2."),
                             ({"n_layer": 1}, "transformer.h.1."), ({"n_kv_head": 3}, "heads"), ({"n_embd": "x"}, "n_embd"), ({"n_head": 0}, "n_head")):
            copy = self.copy("nanochat/base_checkpoints/first")
            meta = json.loads((copy / "meta_000200.json").read_text())
            meta["model_config"] |= change
            (copy / "meta_000200.json").write_text(json.dumps(meta))
            self.refused("import", "--from", "nanochat", copy, "--pickle", parts=[part])
        copy = self.copy("nanochat")
        (copy / "tokenizer" / "tokenizer.pkl").write_bytes(b"garbage")
        self.refused("import", "--from", "nanochat", copy / "base_checkpoints" / "first", "--pickle", parts=["tokenizer.pkl"])

    def spoil_zip(self, change, *parts):
        """The last step's file with `change`d entries (name → bytes)."""
        copy = self.copy("nanochat/base_checkpoints/first")
        file = copy / "model_000200.pt"
        with zipfile.ZipFile(file) as z:
            entries = {n: z.read(n) for n in z.namelist()}
        compression = change(entries) or zipfile.ZIP_STORED
        with zipfile.ZipFile(file, "w", compression) as z:
            for name, data in entries.items():
                z.writestr(name, data)
        self.refused("import", "--from", "nanochat", copy, "--pickle", parts=["model_000200.pt", *parts])

    def test_damaged_files(self):
        key = next(n for n in zipfile.ZipFile(NANOCHAT / "base_checkpoints" / "first" / "model_000200.pt").namelist() if n.endswith("/data/1"))
        pkl = key.replace("data/1", "data.pkl")
        self.spoil_zip(lambda e: e.update({key: e[key][:-4]}), "data/1", "too few")
        self.spoil_zip(lambda e: e.pop(key) and None, "data/1")
        self.spoil_zip(lambda e: e.pop(pkl) and None, "data.pkl")
        self.spoil_zip(lambda e: zipfile.ZIP_DEFLATED, "compressed")
        self.spoil_zip(lambda e: e.update({pkl: e[pkl][:-30]}), "pickle")
        self.spoil_zip(lambda e: e.update({key.replace("data/1", "byteorder"): b"big"}), "endian")
        self.spoil_zip(lambda e: e.update({pkl: e[pkl].replace(b"FloatStorage", b"IntStorage")}), "IntStorage")
        self.spoil_zip(lambda e: e.update({pkl: e[pkl].replace(b"X\x01\x00\x00\x001q", b"X\x01\x00\x00\x00/q")}), "storage")
        self.spoil_zip(lambda e: e.update({pkl: b"\x80\x02]r\xff\xff\xff\x7f."}), "state dict")  # 2^31: no room is made for that many parts
        deep = b"\x80\x02}" + b")" + b"\x85" * 1000000  # a tuple in a tuple in …
        self.spoil_zip(lambda e: e.update({pkl: deep + b"K\x01s."}), "keys")
        self.spoil_zip(lambda e: e.update({pkl: b"\x80\x02ccollections\nOrderedDict\n" + deep[3:] + b"R."}), "OrderedDict")
        self.spoil_zip(lambda e: e.update({pkl: deep[:3] + b"X\x01\0\0\0a" + deep[3:] + b"s."}), "a is no tensor")
        self.spoil_zip(lambda e: e.update({pkl: b"\x80\x04]" + b"]" * 100000 + b"a" * 100000 + b"."}), "state dict")
        self.spoil_zip(lambda e: e.update({pkl: b"\x80\x04\x8f."}), "operation 0x8f")  # a set
        many = b"(" + b"K\x01" * 9 + b"t"  # sizes, whose strides take the square of their number to work out
        self.spoil_zip(lambda e: e.update({pkl: b"\x80\x02}X\x01\0\0\0actorch._utils\n_rebuild_tensor_v2\n((X\x07\0\0\0storagectorch\nFloatStorage\nX\x01\0\0\x001X\x03\0\0\0cpuK\x01tQK\0" + many + many + b"tRs."}),
                       "not described")
        copy = self.copy("nanochat/base_checkpoints/first")
        os.truncate(copy / "model_000200.pt", 1000)
        self.refused("import", "--from", "nanochat", copy, "--pickle", parts=["model_000200.pt", "zip"])

    def test_pickles_that_would_do_harm_are_not_run(self):
        trace = self.path("trace")
        touch = f"touch {trace}"
        hostile = {
            "system": Call(os.system, touch), "eval": Call(eval, f"__import__('os').system({touch!r})"), "popen": Call(subprocess.Popen, ["touch", str(trace)]),
            "nested": {"weights": [("a", {"b": Call(os.system, touch)})]}, "getattr": Call(getattr, Call(__import__, "os"), "system"),
            "loads": Call(pickle.loads, pickle.dumps(Call(os.system, touch))), "copy": Call(shutil.copy, "/etc/hostname", str(trace)),
        }
        pickles = {f"{name}-{protocol}": pickle.dumps(value, protocol) for name, value in hostile.items() for protocol in (0, 2, 4, 5)}
        pickles["inst"] = b"(S'" + touch.encode() + b"'\nios\nsystem\n."
        pickles["obj"] = b"\x80\x02(cos\nsystem\nX" + len(touch).to_bytes(4, "little") + touch.encode() + b"o."
        pickles["dotted"] = b"\x80\x04\x8c\x0bcollections\x8c\x1bOrderedDict.fromkeys.__self__\x93."
        for name, data in pickles.items():
            with self.subTest(name):
                self.spoil_zip(lambda e: e.update({next(n for n in e if n.endswith("data.pkl")): data}))
                copy = self.copy("nanochat")
                (copy / "tokenizer" / "tokenizer.pkl").write_bytes(data)
                self.refused("import", "--from", "nanochat", copy / "base_checkpoints" / "first", "--pickle", parts=["tokenizer.pkl"])
                self.assertFalse(trace.exists())
        for name in ("system-2", "nested-4", "inst", "obj"):  # they are what they are taken for: Python's own reading runs them
            trace.unlink(missing_ok=True)
            subprocess.run([sys.executable, "-c", "import pickle, sys; pickle.load(sys.stdin.buffer)"], input=pickles[name], capture_output=True)
            self.assertTrue(trace.exists(), name)


if __name__ == "__main__":
    run_tests()
