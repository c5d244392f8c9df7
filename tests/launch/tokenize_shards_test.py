"""kvmesh tokenize --shards: files of training data as modded-nanogpt's format says, whole documents, errors."""

import base64
import json
import os
import struct
import subprocess

from command_line import EOT, KVMESH, SOURCE, CommandLineTest, run_tests, text_of


def read_shard(path):
    data = path.read_bytes()
    header = struct.unpack("<256i", data[:1024])
    assert header == (20240520, 1, header[2]) + (0,) * 253, header
    return list(struct.unpack(f"<{header[2]}H", data[1024:]))


class Shards(CommandLineTest):
    def tokenize(self, *words, input):
        return self.run_command("tokenize", "--tokenizer", self.checkpoint / "tokenizer.tiktoken", *words, input=input)

    def shards(self, lines, *words):
        """What is written, and what is said."""
        done = self.tokenize("--shards", self.path("s"), *words, input=lines)
        self.assertEqual((done.returncode, done.stdout), (0, b""), done.stderr)
        files = sorted(self.folder.glob(self.path("s").name + "*"))
        self.assertEqual([f.name for f in files], [f"{self.path('s').name}-{i:06}.bin" for i in range(len(files))])
        return [read_shard(f) for f in files], done.stderr.decode()

    def test_each_line_is_a_document(self):
        lines = "abc\n\n \t\r\nthe the\n\u00e9<|endoftext|>x\n\tlast".encode()
        self.assertEqual(self.shards(lines), ([[EOT, 97, 98, 99, EOT, 260, 261, EOT, 0xC3, 0xA9, EOT, 120, EOT, 9, 108, 97, 115, 116]], "4 documents, 18 tokens in 1 shard\n"))

    def test_many_documents_stay_whole(self):
        documents = [f"{i} the " + "ab" * (i % 37) for i in range(3000)]
        documents[100] = "z" * 1500  # longer than a shard
        shards, said = self.shards("\n".join(documents).encode() + b"\n", "--shard-tokens", 1000)
        self.assertEqual(said, f"3000 documents, {sum(map(len, shards))} tokens in {len(shards)} shards\n")
        found = []
        for i, tokens in enumerate(shards):
            self.assertEqual(tokens[0], EOT)
            begins = [j for j, t in enumerate(tokens) if t == EOT] + [len(tokens)]
            self.assertTrue(len(tokens) <= 1000 or len(begins) == 2)
            if i > 0:
                self.assertGreater(len(shards[i - 1]) + begins[1], 1000)  # it did not fit
            found += [text_of(tokens[a + 1:b]) for a, b in zip(begins, begins[1:])]
        self.assertEqual(found, documents)

    def test_a_shard_that_is_just_full(self):
        self.assertEqual(self.shards(b"ab\nab\na\n", "--shard-tokens", 6)[0], [[EOT, 97, 98, EOT, 97, 98], [EOT, 97]])

    def test_tokenizer_json(self):
        fixtures = SOURCE / "tests/fixtures/tokenizers"
        vocab = json.loads((fixtures / "nanochat.json").read_text())  # its post_processor puts <|endoftext|> before and <|pad|> behind
        eot = next(t["id"] for t in vocab["added_tokens"] if t["content"] == "<|endoftext|>")
        done = self.run_command("tokenize", "--tokenizer", fixtures / "nanochat.json", "--shards", self.path("j"), input=b"a\nb\n")
        self.assertEqual(done.returncode, 0, done.stderr)
        self.assertEqual(read_shard(self.folder / (self.path("j").name + "-000000.bin")), [eot, vocab["model"]["vocab"]["a"], eot, vocab["model"]["vocab"]["b"]])
        done = self.run_command("tokenize", "--tokenizer", fixtures / "llama2.json", "--shards", self.path("l"), input=b"a\nb\n")
        self.assert_one_line_error(done, 1, "llama2.json", "<|endoftext|>")

    def test_usage(self):
        for words, lines, parts in ((["--decode", "--shards", "x"], b"", ["--decode", "--shards"]), (["--shards", self.path("s"), "--shard-tokens", 0], b"a", ["--shard-tokens 0"]),
                                    (["--shards", self.path("s"), "--shard-tokens", 2**31], b"a", ["--shard-tokens 2147483648"]), (["--shards", self.path("s")], b"\n \n", ["no documents"])):
            self.assert_one_line_error(self.tokenize(*words, input=lines), 1, *parts)
        self.assert_one_line_error(self.tokenize("--shards", self.path("none") / "s", input=b"a"), 1, self.path("none"), "is no folder")
        self.shards(b"a\n")
        before = read_shard(self.folder / (self.path("s").name + "-000000.bin"))
        self.assert_one_line_error(self.tokenize("--shards", self.path("s"), input=b"b"), 1, "s-000000.bin: is there already")
        self.assertEqual(read_shard(self.folder / (self.path("s").name + "-000000.bin")), before)
        (self.folder / (self.path("t").name + "-000003.bin")).write_bytes(b"older")
        self.assert_one_line_error(self.tokenize("--shards", self.path("t"), input=b"b"), 1, "t-000003.bin: is there already")

    def test_a_vocabulary_that_does_not_fit(self):
        for ranks, code in ((65534, 0), (65535, 1)):  # and <|endoftext|>, <|pad|>
            tokens = [bytes([b]) for b in range(256)] + [struct.pack(">I", i) for i in range(ranks - 256)]
            ranks_file = self.write("large.tiktoken", "".join(f"{base64.b64encode(t).decode()} {rank}\n" for rank, t in enumerate(tokens)))
            done = self.run_command("tokenize", "--tokenizer", ranks_file, "--shards", self.path("s"), input=b"a\n")
            self.assertEqual(done.returncode, code, done.stderr)
        self.assert_one_line_error(done, 1, "65536", ranks_file, "65537")
        self.assertEqual(read_shard(self.folder / (self.path("s").name + "-000000.bin")), [65534, 97])

    def test_a_full_disk(self):
        small = self.path("small")
        small.mkdir()
        mounted = 'mount -t tmpfs -o size=150k none "$1" && exec "$2" tokenize --tokenizer "$3" --shards "$1/s" --shard-tokens 50000'
        if os.geteuid() != 0 or subprocess.run(["unshare", "-m", "true"], capture_output=True).returncode != 0:
            self.skipTest("needs a mount of its own")
        words = ["unshare", "-m", "sh", "-c", mounted, "-", small, KVMESH, self.checkpoint / "tokenizer.tiktoken"]
        done = subprocess.run([str(w) for w in words], input=b"a b c d e\n" * 20000, capture_output=True, timeout=60)
        self.assert_one_line_error(done, 74, "s-000001.bin: cannot be written: No space left on device")


if __name__ == "__main__":
    run_tests()
