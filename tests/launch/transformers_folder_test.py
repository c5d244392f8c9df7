"""Folders as transformers writes them, as a user meets them: texts and conversations to transformers' own answers (tests/fixtures/whole_folder, made by
tests/reference/whole_folder.py), and folders that are torn or ask for what kvmesh does not have."""

import json
import shutil

from command_line import SOURCE, CommandLineTest, run_tests

WHOLE = SOURCE / "tests/fixtures/whole_folder"
EXPECTED = json.loads((WHOLE / "expected.json").read_text())


class TransformersFolder(CommandLineTest):
    def answers(self, key, rows, *words, ranks=1):
        prompts = self.rows(*({key: r[key]} for r in rows))
        return self.generate("--prompts", prompts, "--dtype", "float32", "--max-new-tokens", 16, *words, ranks=ranks, checkpoint=WHOLE)

    def expect(self, rows, answers):
        for row, answer in zip(rows, answers, strict=True):
            self.assertGreater(row["gap"], 1e-4)
            self.assertEqual((answer["tokens"], answer["completion"], answer["finish_reason"]), (row["tokens"], row["text"], "stop" if row["stopped"] else "length"))

    def test_texts(self):
        for ranks in (1, 2, 3):
            self.expect(EXPECTED["texts"], self.answers("prompt", EXPECTED["texts"], "--batch-size", 4, ranks=ranks))
        self.assertTrue(any(r["stopped"] for r in EXPECTED["texts"]))

    def test_conversations(self):
        for ranks in (1, 2):
            self.expect(EXPECTED["chats"], self.answers("messages", EXPECTED["chats"], "--chat", ranks=ranks))

    def test_tokenize(self):
        lines = [r for r in EXPECTED["texts"] if "\n" not in r["prompt"]]
        done = self.run_command("tokenize", "--tokenizer", WHOLE / "tokenizer.json", input="".join(r["prompt"] + "\n" for r in lines).encode())
        self.assertEqual([json.loads(line) for line in done.stdout.splitlines()], [r["ids"] for r in lines])

    def test_a_smaller_context(self):
        rows = [{"prompt": "The mesh holds"}]
        ids = EXPECTED["texts"][0]["ids"]
        answer, = self.answers("prompt", rows, "--ignore-eos", "--context", len(ids) + 5)
        self.assertEqual((len(answer["tokens"]), answer["finish_reason"]), (5, "context"))
        self.assert_one_line_error(self.run_command("generate", "--checkpoint", WHOLE, "--prompt", "a", "--context", 257), 1, "--context 257", "256")

    def test_inspect(self):
        done = self.run_command("inspect", "--checkpoint", WHOLE, "--batch-size", 7)
        self.assertEqual(done.returncode, 0, done.stderr)
        for words in ("family: llama", "model.layers.1.mlp.down_proj.weight", "7 rows in flight", "tokenizer: 320 ids", "KV cache: 32768 bytes a row of 256 tokens"):
            self.assertIn(words, done.stdout.decode())
        smaller = self.run_command("inspect", "--checkpoint", WHOLE, "--context", 16, "--dtype", "float32")
        self.assertIn("KV cache: 4096 bytes a row of 16 tokens", smaller.stdout.decode())

    def test_a_head_that_is_not_what_it_is_tied_to(self):
        folder = self.folder / "tied"
        shutil.copytree(WHOLE, folder)
        config = json.loads((folder / "config.json").read_text()) | {"tie_word_embeddings": True}
        (folder / "config.json").write_text(json.dumps(config))
        self.assert_one_line_error(self.run_command("inspect", "--checkpoint", folder), 1, "lm_head.weight", "model.embed_tokens.weight", "tie_word_embeddings")
        # A copy of the embedding is what some files have.
        file = bytearray((folder / "model.safetensors").read_bytes())
        start = 8 + int.from_bytes(file[:8], "little")
        header = json.loads(file[8:start])
        (a, b), (c, d) = (header[name]["data_offsets"] for name in ("model.embed_tokens.weight", "lm_head.weight"))
        file[start + c : start + d] = file[start + a : start + b]
        (folder / "model.safetensors").write_bytes(file)
        self.assertEqual(self.run_command("inspect", "--checkpoint", folder).returncode, 0)

    def broken(self, *words, **files):
        """One clear error about a copy of the folder with some files changed: file -> text, or a function of its JSON."""
        folder = self.folder / f"broken{self.id()}{len(list(self.folder.iterdir()))}"
        shutil.copytree(WHOLE, folder)
        for name, change in files.items():
            file = folder / name.replace("__", ".")
            if callable(change):
                value = json.loads(file.read_text())
                change(value)
                file.write_text(json.dumps(value))
            else:
                file.write_text(change)
        self.assert_one_line_error(self.run_command("generate", "--checkpoint", folder, "--prompt", "a"), 1, *words)
        self.assert_one_line_error(self.run_command("inspect", "--checkpoint", folder), 1, *words)

    def test_what_cannot_be_read_is_named(self):
        self.broken("config.json", '"alibi", "moe"', config__json=lambda c: c.update(alibi=True, moe=2))
        self.broken("config.json", "model_type", "bert", config__json=lambda c: c.update(model_type="bert"))
        self.broken("model.embed_tokens.weight", "[320, 32]", config__json=lambda c: c.update(vocab_size=321))
        self.broken("model.layers.2", "missing", config__json=lambda c: c.update(num_hidden_layers=3))
        self.broken("model.layers.1", "none of this model's", config__json=lambda c: c.update(num_hidden_layers=1))
        self.broken("tokenizer.json", '"model.type"', "WordPiece", tokenizer__json=lambda t: t["model"].update(type="WordPiece"))
        self.broken("tokenizer.json", tokenizer__json="{")
        self.broken("generation_config.json", generation_config__json="[]")


if __name__ == "__main__":
    run_tests()
