"""kvmesh verify: an output that is as it was made passes on any number of ranks; a changed byte, another checkpoint and other prompts are found."""

import json
import os
import re
import shutil
import subprocess

from command_line import CommandLineTest, config_of, random_weights, run_tests, write_checkpoint

ROWS = 30


class Verify(CommandLineTest):
    @classmethod
    def setUpClass(cls):
        super().setUpClass()
        config = config_of(32, 2, seqlen=64)
        cls.random = write_checkpoint(cls.folder / "random", random_weights(config), config)

    def make(self, *words, ranks=2, checkpoint=None, exit_code=0, rows=None, name="out.jsonl"):
        """An output with completions of many kinds."""
        output = self.path(name)
        if "--prompt" not in words:
            prompts = self.rows(*(rows or ({"id": f"r{i}", "tokens": [1 + i, 2], "max_new_tokens": 3 + i * 5 % 17, "temperature": i % 2, "note": "é"} for i in range(ROWS))))
            words = ["--prompts", prompts, *words]
        self.generate(*words, "--batch-size", 5, "--output", output, ranks=ranks, checkpoint=checkpoint or self.random, exit_code=exit_code)
        return output

    def verify(self, output, *words, ranks=1, cwd=None):
        return self.run_command("verify", "--output", output, *words, ranks=ranks, cwd=cwd)

    def passes(self, output, *words, ranks=1, rows=ROWS, of=ROWS, cwd=None):
        done = self.verify(output, *words, ranks=ranks, cwd=cwd)
        self.assertEqual((done.returncode, done.stdout.decode()), (0, f"verified {rows} of {of} rows\n"), done.stderr.decode())

    def differs(self, output, *parts, words=(), ranks=1):
        self.assert_one_line_error(self.verify(output, *words, ranks=ranks), 70, output, *parts)

    def test_other_ranks_and_all_options(self):
        rows = [{"id": f"r{i}", "prompt": "the " * (i % 4) + "q", "temperature": i % 2 * 0.7, "max_new_tokens": 2 + i % 9} if i % 7 else "no row" for i in range(ROWS)]
        output = self.make("--logprobs", 2, "--samples", 3, "--seed", 9, "--top-k", 20, "--top-p", 0.9, "--min-p", 0.01, "--temperature", 0.3, "--stop", "x = ", "--stop", "[1]", "--stop-token", 7, "--stop-token", 8,
                           "--ignore-eos", ranks=2, exit_code=2, rows=rows)
        for ranks, more in ((1, ["--batch-size", 3]), (2, ["--fraction", 1, "--threads", 1, "--batch-size", 64]), (3, ["--mesh", "x=3", "--device", "cpu", "--comm-timeout", 20])):
            self.passes(output, *more, ranks=ranks)
        self.changed_lines(output, 7)

    def changed_lines(self, output, error_row):
        """Lines of an output with 3 samples a row."""
        lines = output.read_bytes().splitlines(keepends=True)
        at = next(i for i, line in enumerate(lines) if json.loads(line)["index"] == error_row)
        self.assertIn("error", json.loads(lines[at]))
        for changed, where in ((lines[:at] + [lines[at].replace(b"line 1", b"line 2")] + lines[at + 1:], "row 7 "), (lines[:at] + lines[at + 1:], "row 7 "), (lines[:at + 2] + lines[at + 3:], 'row 8, id "r8", sample 1 '),
                               (lines[:-1], f'row {ROWS - 1}, id "r{ROWS - 1}", sample 2 '), (lines + lines[:1], "more lines")):
            output.write_bytes(b"".join(changed))
            self.differs(output, where)
        output.write_bytes(b"".join(lines))

    def test_any_changed_byte_is_found(self):
        output = self.make("--logprobs", 1)
        good = output.read_bytes()
        self.passes(output)
        lines = good.splitlines(keepends=True)

        def digit_behind(pattern):
            line = lines[20]
            at = re.search(pattern, line).end()
            return b"".join(lines[:20]) + line[:at] + bytes([line[at] ^ 1]) + line[at + 1:] + b"".join(lines[21:])

        for name, changed, ranks in (("token", digit_behind(rb'"tokens": \['), 2), ("log-probability", digit_behind(rb'"logprobs": \[-\d\.\d\d\d'), 3), ("other's", digit_behind(rb'"note": "\xc3'), 1),
                                     ("spaces", good.replace(b'"index": 20, ', b'"index": 20,  '), 1)):
            with self.subTest(name):
                self.assertNotEqual(changed, good)
                output.write_bytes(changed)
                self.differs(output, "row 20,", 'id "r20"', "line 21", ranks=ranks)
        for name, changed, part in (("line feed", good[:-1], f"row {ROWS - 1},"), ("first of two", digit_behind(rb'"tokens": \[').replace(b'"r11"', b'"r12"'), 'row 11, id "r11"'), ("nothing", b"", "row 0,")):
            with self.subTest(name):
                output.write_bytes(changed)
                self.differs(output, part)

    def test_a_part_of_the_rows(self):
        output = self.make("--samples", 2)
        lines = output.read_bytes().splitlines(keepends=True)
        counts, found = [], []
        for seed in range(2):
            done = self.verify(output, "--fraction", 0.4, "--seed", seed, ranks=1 + seed % 2)
            self.assertEqual(done.returncode, 0, done.stderr)
            counts.append(int(re.fullmatch(rb"verified (\d+) of 30 rows\n", done.stdout)[1]))
        self.assertTrue(all(3 <= n <= 22 for n in counts) and counts[0] != counts[1], counts)
        output.write_bytes(b"".join(lines).replace(b'"r13"', b'"r99"'))
        for seed in range(3):
            results = [self.verify(output, "--fraction", 0.4, "--seed", seed, ranks=ranks) for ranks in (1, 2)]
            self.assertEqual(results[0].returncode, results[1].returncode)
            self.assertIn(results[0].returncode, (0, 70))
            found.append(results[0].returncode)
            if results[0].returncode == 70:
                self.assertIn(b'row 13, id "r13"', results[0].stderr)
        self.assertEqual(set(found), {0, 70}, found)
        self.assert_one_line_error(self.verify(output, "--fraction", 1e-9), 1, "--fraction", "none of the 30 rows")

    def test_the_original_s_random_numbers_and_prompts_as_words(self):
        rows = [{"tokens": [1 + i, 2]} for i in range(5)]
        output = self.make("--rng", "jax", "--temperature", 1, "--max-new-tokens", 6, rows=rows)
        self.passes(output, "--batch-size", 2, ranks=3, rows=5, of=5)
        for seed in range(2):  # a row's draws do not depend on which others are there
            done = self.verify(output, "--fraction", 0.5, "--seed", seed, ranks=2)
            self.assertRegex(done.stdout.decode() + done.stderr.decode(), r"^verified [1-4] of 5 rows\n$")
        output.write_bytes(re.sub(rb'("index": 4.*"tokens": \[)\d+', rb"\g<1>999", output.read_bytes()))
        self.differs(output, "row 4", ranks=2)
        output = self.make("--quantize", "int8", "--logprobs", 1, name="integers")
        self.passes(output, ranks=2)
        output = self.make("--prompt", "a", "--prompt", "[\"é", "--prompt", "--help", "--dtype", "bfloat16", "--max-new-tokens", 4, name="words")
        self.passes(output, rows=3, of=3, ranks=2)

    def refused(self, output, *parts, words=(), ranks=1):
        self.assert_one_line_error(self.verify(output, *words, ranks=ranks), 1, *parts)

    def test_what_it_was_made_of(self):
        config = config_of(32, 1)
        checkpoint = write_checkpoint(self.path("checkpoint"), random_weights(config), config)
        output = self.make(checkpoint=checkpoint)
        prompts = self.path("prompts.jsonl")
        moved, elsewhere = self.path("moved"), self.path("elsewhere.jsonl")
        checkpoint.rename(moved)
        prompts.rename(elsewhere)
        self.refused(output, checkpoint, words=["--prompts", elsewhere])
        self.refused(output, prompts, words=["--checkpoint", moved], ranks=2)
        self.passes(output, "--checkpoint", moved, "--prompts", elsewhere, ranks=2)
        self.refused(output, "made with checkpoint =", words=["--checkpoint", self.random, "--prompts", elsewhere], ranks=3)
        elsewhere.write_bytes(elsewhere.read_bytes().replace(b"r1", b"R1", 1))
        self.refused(output, "made with prompts =", words=["--checkpoint", moved, "--prompts", elsewhere])
        self.refused(output, "made with dtype =", "float32", "bfloat16", words=["--checkpoint", moved, "--prompts", elsewhere, "--dtype", "bfloat16"])

    def test_paths_are_as_they_were_given(self):
        folder = self.path("folder")
        folder.mkdir()
        shutil.copytree(self.random, folder / "ckpt")
        (folder / "p.jsonl").write_text('{"tokens": [5]}\n')
        made = subprocess.run(self.command("generate", "--checkpoint", "ckpt", "--prompts", "p.jsonl", "--output", "out"), cwd=folder, capture_output=True, timeout=60)
        self.assertEqual(made.returncode, 0, made.stderr)
        self.passes("out", rows=1, of=1, cwd=folder)
        moved = folder.rename(self.path("other"))
        self.passes("out", rows=1, of=1, cwd=moved)

    def test_errors(self):
        output = self.make(rows=[{"tokens": [3]}])
        manifest = output.with_name(output.name + ".manifest.json")
        good = manifest.read_text()
        for change, part in ((lambda m: m["identity"].update({"top-p": 7}), "--top-p 7"), (lambda m: m["identity"].update({"more": 1}), "more"), (lambda m: m.pop("paths"), "--checkpoint"), (lambda m: m.pop("identity"), "not a manifest"),
                             (lambda m: m["identity"].update({"kvmesh": "0.0.0"}), "kvmesh = \"0.0.0\""), (lambda m: m.update(complete=False), "not complete")):
            content = json.loads(good)
            change(content)
            manifest.write_text(json.dumps(content))
            self.refused(output, output, part)
        manifest.write_text(good)
        self.refused(self.path("none"), self.path("none"), "No such file", ranks=2)
        os.remove(output)
        self.refused(output, output, "not complete")
        for words, part in (([], "--output"), (["--output", "x", "--fraction", 0], "--fraction"), (["--output", "x", "--fraction", 1.5], "--fraction"), (["--output", "x", "--seed", -1], "--seed")):
            self.assert_one_line_error(self.run_command("verify", *words), 1, part)


if __name__ == "__main__":
    run_tests()
