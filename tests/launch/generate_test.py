"""kvmesh generate and score as a user meets them: rows in, rows out, and every number of ranks the same bytes (contract, sections 4 and 5)."""

import json
import math
import os
import subprocess

from command_line import (COUNTING, D, EOT, PAD, SEQLEN, VOCAB, CommandLineTest, config_of, counted, counting_logits, counting_weights, log_probabilities, random_weights,
                          run_tests, text_of, write_checkpoint)


def threefry(key, x0, x1):
    ks = (key[0], key[1], 0x1BD11BDA ^ key[0] ^ key[1])
    mask = 0xFFFFFFFF
    x0, x1 = (x0 + ks[0]) & mask, (x1 + ks[1]) & mask
    for r in range(20):
        x0 = (x0 + x1) & mask
        turn = (13, 15, 26, 6, 17, 29, 16, 24)[r % 8]
        x1 = ((x1 << turn | x1 >> (32 - turn)) & mask) ^ x0
        if r % 4 == 3:
            i = r // 4 + 1
            x0, x1 = (x0 + ks[i % 3]) & mask, (x1 + ks[(i + 1) % 3] + i) & mask
    return x0, x1


def fold_in(key, data):
    return threefry(key, 0, data)


def gumbel(key, count):
    a, b = threefry(key, 0, count)
    return -math.log(-math.log(max(((a ^ b) >> 9) * 2.0**-23, 2.0**-126)))


def drawn(last, key, count, temperature, keep=None):
    """The counting model's sampled completion of a prompt that ends with `last`."""
    tokens = []
    for t in range(count):
        draw = fold_in(key, t)
        logits = counting_logits(last)
        allowed = keep(logits) if keep else range(VOCAB)
        values = sorted(((logits[v] / temperature + gumbel(draw, v), v) for v in allowed), reverse=True)
        assert values[0][0] - values[1][0] > 1e-4, "choose another seed, float32 cannot decide this"
        last = values[0][1]
        tokens.append(last)
        if last == EOT:
            break
    return tokens


class Rows(CommandLineTest):
    def test_fields_and_their_order(self):
        prompts = self.rows({"id": "a", "prompt": "abc"}, {"id": [1, {"k": None}], "tokens": [104, 105]}, {"prompt": "é"})
        done = self.run_command("generate", "--checkpoint", self.checkpoint, "--prompts", prompts, "--max-new-tokens", 3)
        self.assertEqual(done.returncode, 0, done.stderr)
        self.assertEqual(done.stdout.decode().splitlines(), [
            '{"id": "a", "index": 0, "prompt": "abc", "completion": "def", "tokens": [100, 101, 102], "finish_reason": "length"}',
            '{"id": [1,{"k":null}], "index": 1, "completion": "jkl", "tokens": [106, 107, 108], "finish_reason": "length"}',
            '{"index": 2, "prompt": "é", "completion": "\ufffd\ufffd\ufffd", "tokens": [170, 171, 172], "finish_reason": "length"}'])

    def test_prompts_on_the_command_line_have_no_id(self):
        self.assertEqual(self.generate("--prompt", "abc", "--prompt=-x", "--prompt", "--seed", "--max-new-tokens", 2), [
            {"index": 0, "prompt": "abc", "completion": "de", "tokens": [100, 101], "finish_reason": "length"},
            {"index": 1, "prompt": "-x", "completion": "yz", "tokens": [121, 122], "finish_reason": "length"},
            {"index": 2, "prompt": "--seed", "completion": "ef", "tokens": [101, 102], "finish_reason": "length"}])

    def test_standard_input_is_left_alone(self):
        for ranks in (1, 2):
            self.assertEqual(len(self.generate("--prompt", "abc", ranks=ranks, input=b'{"prompt": "xyz"}\n' * 3)), 1)

    def test_blank_lines_are_no_rows_and_line_ends_may_be_of_any_kind(self):
        prompts = self.write("prompts.jsonl", b'\xef\xbb\xbf\n  \n{"prompt":"a"}\r\n\r\n\t\n{"prompt":"b"}\n\n{"prompt":"c"}')
        out = self.generate("--prompts", prompts, "--max-new-tokens", 1)
        self.assertEqual([(r["index"], r["completion"]) for r in out], [(0, "b"), (1, "c"), (2, "d")])

    def test_input_order_whatever_finishes_first(self):
        rows = [{"id": i, "prompt": "a", "max_new_tokens": 1 + (i * 7) % 11} for i in range(40)]
        expected = None
        for ranks, batch in ((1, 4), (3, 5), (4, 3), (2, 32)):
            out = self.generate("--prompts", self.rows(*rows), "--batch-size", batch, ranks=ranks)
            self.assertEqual([r["id"] for r in out], list(range(40)))
            self.assertEqual([len(r["tokens"]) for r in out], [r["max_new_tokens"] for r in rows])
            expected = expected or out
            self.assertEqual(out, expected)

    def test_unknown_fields_are_passed_through(self):
        row = {"prompt": "a", "note": {"z": [1, 2.5, None], "a": "\u2603"}, "label": "x", "Prompt": 1, "reference": False}
        out = self.generate("--prompts", self.rows(row), "--max-new-tokens", 1)[0]
        for name in ("note", "label", "Prompt", "reference"):
            self.assertEqual(out[name], row[name])
        clash = {"prompt": "a", "index": 77, "completion": "mine", "finish_reason": "mine", "error": "mine"}
        out = self.generate("--prompts", self.rows(clash), "--max-new-tokens", 1)
        self.assertEqual(out, [{"index": 0, "prompt": "a", "completion": "b", "tokens": [98], "finish_reason": "length"}])

    def test_finish_reasons(self):
        out = self.generate("--prompts", self.rows(
            {"prompt": "a", "max_new_tokens": 3}, {"prompt": "x"}, {"tokens": [65] * (SEQLEN - 3)}, {"tokens": [65] * (SEQLEN - 2), "max_new_tokens": 2},
            {"tokens": [65] * (SEQLEN - 1)}))
        self.assertEqual([r["finish_reason"] for r in out], ["length", "stop", "context", "length", "context"])
        self.assertEqual([r["tokens"] for r in out], [counted(97, 3), counted(120, 7), counted(65, 3), counted(65, 2), counted(65, 1)])
        self.assertEqual(out[1]["tokens"][-1], EOT)
        self.assertEqual(out[1]["completion"], "yz{|}~")  # without the stop token

    def test_ignore_eos(self):
        out = self.generate("--prompt", "x", "--ignore-eos", "--max-new-tokens", 9)[0]
        self.assertEqual((out["tokens"], out["completion"], out["finish_reason"]), (counted(120, 9), "yz{|}~<|endoftext|>AB", "length"))

    def test_stop_tokens(self):
        out = self.generate("--prompt", "a", "--prompt", "e", "--stop-token", 102, "--stop-token", 100)
        self.assertEqual([(r["tokens"], r["completion"], r["finish_reason"]) for r in out], [([98, 99, 100], "bc", "stop"), ([102], "", "stop")])

    def test_stop_strings_across_tokens(self):
        out = self.generate("--prompts", self.rows({"prompt": "a"}, {"prompt": "a", "stop": "fg"}, {"prompt": "a", "stop": ["ghi", "fgh", "zzz"]}, {"prompt": "a", "stop": []},
                                                   {"prompt": "a", "stop": ["e"]}, {"prompt": "\u00e8", "stop": "\ufffd"}), "--stop", "hi", "--stop", "never", "--max-new-tokens", 12)
        self.assertEqual([(r["completion"], r["tokens"][-1], r["finish_reason"]) for r in out[:5]], [
            ("bcdefg", ord("i"), "stop"), ("bcde", ord("g"), "stop"), ("bcde", ord("h"), "stop"), ("bcdefghijklm", ord("m"), "length"), ("bcd", ord("e"), "stop")])
        self.assertEqual(out[5]["finish_reason"], "length")  # it is found in the bytes, and those are not U+FFFD's

    def test_special_tokens_in_prompts(self):
        out = self.generate("--prompts", self.rows({"prompt": "<|pad|><|pad|>ab"}, {"tokens": [PAD, PAD, 97, 98]}, {"prompt": "b<|endoftext|>"}, {"tokens": [EOT]}), "--max-new-tokens", 2)
        self.assertEqual([r["tokens"] for r in out], [counted(98, 2), counted(98, 2), counted(EOT, 2), counted(EOT, 2)])
        self.assertEqual(out[0]["prompt"], "<|pad|><|pad|>ab")

    def test_merged_tokens_in_prompts(self):
        out = self.generate("--prompt", "the", "--prompt", "thz", "--max-new-tokens", 1)
        self.assertEqual([r["tokens"] for r in out], [[ord("A")], [ord("{")]])

    def test_logprobs(self):
        out = self.generate("--prompt", "ab", "--logprobs", 3, "--max-new-tokens", 2, "--temperature", 0.01, "--top-k", 1)[0]
        self.assertEqual(list(out), ["index", "prompt", "completion", "tokens", "finish_reason", "logprobs", "top_logprobs"])
        self.assertEqual(out["tokens"], counted(98, 2))
        for t, before in enumerate((98, 99)):
            lp = log_probabilities(before)  # the model's own: temperature and top-k change nothing
            best = sorted(range(VOCAB), key=lambda v: -lp[v])[:3]
            self.assertAlmostEqual(out["logprobs"][t], lp[before + 1], delta=1e-4)
            self.assertEqual([i for i, _ in out["top_logprobs"][t]], best)
            for token, value in out["top_logprobs"][t]:
                self.assertAlmostEqual(value, lp[token], delta=1e-4)
        zero = self.generate("--prompt", "ab", "--logprobs", 0, "--max-new-tokens", 2)[0]
        self.assertEqual((zero["logprobs"], zero["top_logprobs"]), (out["logprobs"], [[], []]))
        self.assertNotIn("logprobs", self.generate("--prompt", "ab", "--max-new-tokens", 2)[0])

    def test_without_a_tokenizer(self):
        config = config_of(D, 1, **COUNTING, special_tokens={"<|endoftext|>": EOT, "<|pad|>": PAD})
        folder = write_checkpoint(self.path("ckpt"), counting_weights(config), config, tokenizer=False)
        out = self.generate("--prompts", self.rows({"tokens": [PAD, 122]}, {"prompt": "text"}, {"tokens": [97, PAD]}, {"tokens": [97], "stop": "c"}), checkpoint=folder, exit_code=2)
        self.assertEqual(out[0], {"index": 0, "tokens": counted(122, 5), "finish_reason": "stop"})
        for row in out[1:]:
            self.assertIn("error", row)
        done = self.run_command("generate", "--checkpoint", folder, "--prompts", self.rows({"tokens": [1]}), "--stop", "x")
        self.assert_one_line_error(done, 1, "--stop", "tokenizer.tiktoken")


class Drawing(CommandLineTest):
    def test_row_mode_keys(self):
        rows = self.rows({"prompt": "a"}, {"prompt": "a"}, {"prompt": "a", "seed": 5}, {"prompt": "a", "seed": 4294967295})
        out = self.generate("--prompts", rows, "--temperature", 2, "--seed", 3, "--max-new-tokens", 8)
        keys = [fold_in((0, 3), 0), fold_in((0, 3), 1), (0, 5), (0, 4294967295)]
        for row, key in zip(out, keys):
            self.assertEqual(row["tokens"], drawn(97, key, 8, 2.0))
        self.assertNotEqual(out[0]["tokens"], out[1]["tokens"])

    def test_samples(self):
        rows = self.rows({"id": "p", "prompt": "a"}, "broken", {"prompt": "b", "seed": 9})
        args = ["--prompts", rows, "--temperature", 2, "--seed", 3, "--max-new-tokens", 6, "--samples", 3]
        out = self.generate(*args, exit_code=2)
        self.assertEqual([(r["index"], r.get("sample")) for r in out], [(0, 0), (0, 1), (0, 2), (1, None), (2, 0), (2, 1), (2, 2)])  # an error row is one line
        self.assertEqual(list(out[0]), ["id", "index", "prompt", "completion", "tokens", "finish_reason", "sample"])
        for row in out:
            if "error" in row:
                continue
            base, last = (fold_in((0, 3), 0), 97) if row["index"] == 0 else ((0, 9), 98)
            self.assertEqual(row["tokens"], drawn(last, fold_in(base, row["sample"]), 6, 2.0))
        for ranks, batch in ((2, 1), (3, 4), (4, 32)):
            self.assertEqual(self.generate(*args, "--batch-size", batch, ranks=ranks, exit_code=2), out)
        self.assertNotIn("sample", self.generate("--prompt", "a", "--samples", 1, "--max-new-tokens", 1)[0])

    def test_row_options_override_the_commands(self):
        def top_k(k):
            return lambda logits: sorted(range(VOCAB), key=lambda v: -logits[v])[:k]

        def min_p(p):
            return lambda logits: [v for v in range(VOCAB) if math.exp(logits[v] / 2 - max(logits) / 2) >= p]

        def top_p(p):
            def keep(logits):
                order = sorted(range(VOCAB), key=lambda v: -logits[v])
                total, kept, out = sum(math.exp(v / 2) for v in logits), 0.0, []
                for v in order:
                    if kept >= p * total:
                        break
                    kept += math.exp(logits[v] / 2)
                    out.append(v)
                return out
            return keep

        out = self.generate("--prompts", self.rows(
            {"prompt": "a"}, {"prompt": "a", "temperature": 0}, {"prompt": "a", "top_k": 3}, {"prompt": "a", "top_k": 0, "min_p": 0.1}, {"prompt": "a", "top_k": 0, "top_p": 0.5},
            {"prompt": "a", "max_new_tokens": 2}, {"prompt": "a", "temperature": -0.5}), "--temperature", 2, "--top-k", 20, "--max-new-tokens", 6, "--seed", 8)
        key = [fold_in((0, 8), i) for i in range(7)]
        expected = [drawn(97, key[0], 6, 2.0, top_k(20)), counted(97, 6), drawn(97, key[2], 6, 2.0, top_k(3)), drawn(97, key[3], 6, 2.0, min_p(0.1)),
                    drawn(97, key[4], 6, 2.0, top_p(0.5)), drawn(97, key[5], 2, 2.0, top_k(20)), counted(97, 6)]
        self.assertEqual([r["tokens"] for r in out], expected)

    def test_rng_jax(self):
        args = ["--prompt", "a", "--prompt", "b", "--rng", "jax", "--temperature", 2, "--seed", 6, "--max-new-tokens", 5, "--batch-size", 2]
        key, tokens = (0, 6), [counted(97, 1), counted(98, 1)]
        for _ in range(4):
            key, sub = threefry(key, 0, 0), threefry(key, 0, 1)
            for b in range(2):
                logits = counting_logits(tokens[b][-1])
                tokens[b].append(max(range(VOCAB), key=lambda v: logits[v] / 2 + gumbel(sub, b * VOCAB + v)))
        for ranks in (1, 2):
            self.assertEqual([r["tokens"] for r in self.generate(*args, ranks=ranks)], tokens)

    def test_what_rng_jax_cannot_serve_is_told_before_anything_is_generated(self):
        jax = ["generate", "--checkpoint", self.checkpoint, "--rng", "jax", "--batch-size", 2]
        self.assert_one_line_error(self.run_command(*jax, "--prompt", "a", "--prompt", "b", "--prompt", "c", ranks=2), 1, "--rng jax", "--batch-size 2")
        self.assert_one_line_error(self.run_command(*jax, "--prompt", "a", "--samples", 3), 1, "--rng jax", "--batch-size 2")
        self.assert_one_line_error(self.run_command(*jax, "--prompt", "a", "--prompt", ""), 1, "--rng jax", "row 1", "empty")
        self.assert_one_line_error(self.run_command(*jax, "--prompts", self.rows({"prompt": "a", "seed": 1})), 1, "--rng jax", "seed")
        output = self.path("out.jsonl")
        self.assert_one_line_error(self.run_command(*jax, "--prompt", "a", "--prompt", "", "--output", output), 1, "row 1")
        self.assertEqual(list(self.folder.glob(output.name + "*")), [])  # nothing is left that the next command would stumble over


class SameBytes(CommandLineTest):
    def test_everywhere(self):
        config = config_of(32, 2, window_pattern="SL")
        folder = write_checkpoint(self.path("ckpt"), random_weights(config), config)
        rows = [{"id": i, "tokens": [(i * 37 + j * 11) % 256 for j in range(1 + (i * 5) % 31)], "temperature": (0, 0.7, 1.3)[i % 3], "max_new_tokens": 1 + (i * 3) % 17} for i in range(14)]
        prompts = self.rows(*rows, "no row")
        outputs = set()
        for dtype, *quantize in (["float32"], ["bfloat16"], ["bfloat16", "--quantize", "int8"]):
            expected = None
            for ranks, more in ((1, ["--batch-size", 1]), (1, ["--threads", 3]), (2, ["--sync", "logits"]), (3, ["--batch-size", 5, "--pad", "longest", "--threads", 2]),
                                (4, ["--batch-size", 3, "--sync", "logits"]), (2, ["--static-batches", "--mesh", "x=2"]), (3, ["--shards", "static", "--sentinel", 1, "--sync-every", 7]), (2, ["--shards", "static", "--static-batches", "--sentinel", 0])):
                done = self.run_command("generate", "--checkpoint", folder, "--prompts", prompts, "--dtype", dtype, *quantize, "--logprobs", 2, "--seed", 1, *more, ranks=ranks)
                self.assertEqual(done.returncode, 2, done.stderr)
                expected = expected or done.stdout
                self.assertEqual(done.stdout, expected, (dtype, quantize, ranks, more))
            self.assertEqual(len(expected.splitlines()), 15)
            outputs.add(expected)
        self.assertEqual(len(outputs), 3)


class ErrorRows(CommandLineTest):
    def check_rows(self, rows, parts, **more):
        """Every row is an error row that has the part in its message, and a good row before and after is served."""
        good = {"id": "good", "prompt": "abc", "max_new_tokens": 2}
        for ranks in (1, 3):
            out = self.generate("--prompts", self.rows(good, *rows, good), exit_code=2, ranks=ranks, **more)
            self.assertEqual(len(out), len(rows) + 2)
            for row in (out[0], out[-1]):
                self.assertEqual(row["completion"], "de")
            for i, (row, given, part) in enumerate(zip(out[1:], rows, parts), 1):
                self.assertEqual(list(row), ["id", "index", "error"] if isinstance(given, dict) and "id" in given else ["index", "error"], given)
                self.assertEqual(row["index"], i)
                self.assertIn(part, row["error"])

    def test_malformed_lines(self):
        self.check_rows(["{", "[1, 2]", '"text"', "null", '{"prompt": "a"} x', '{"prompt": "a"', b'{"prompt": "\xff\xfe"}', b'{"prompt": "\xc3', '{"prompt": "\\ud800"}', b'{"prompt": "a\x00b"}',
                         '{"tokens": [1e999]}', '{"prompt": "a", "x": ' + "[" * 100_000 + "]" * 100_000 + "}", "{" * 100_000, b'{"prompt": "a"}\x00rest'],
                        ["JSON", "JSON", "JSON", "JSON", "JSON", "JSON", "JSON", "JSON", "JSON", "JSON", "number", "nested", "nested", "zero byte"])

    def test_prompts(self):
        self.check_rows([{"id": 1}, {"id": 2, "prompt": ""}, {"id": 3, "tokens": []}, {"id": 4, "prompt": None}, {"id": 5, "prompt": 7}, {"id": 6, "tokens": "abc"},
                         {"id": 7, "tokens": [97, VOCAB]}, {"id": 8, "tokens": [97, -1]}, {"id": 9, "tokens": [97, PAD, 98]}, {"id": 10, "tokens": [PAD]}, {"id": 11, "prompt": "a<|pad|>b"},
                         {"id": 12, "tokens": [97] * SEQLEN}, {"id": 13, "prompt": "b" * 5000}, {"id": 14, "tokens": [1.5]}, {"id": 15, "tokens": [10**30]}, {"id": 16, "tokens": ["a"]},
                         {"id": 17, "prompt": "a", "tokens": [97]}, {"id": 18, "tokens": [True]}, {"id": 19, "tokens": [VOCAB + 5]}, {"id": 20, "tokens": [2**63 + 5]}],
                        ["prompt", "empty", "empty", "prompt", "prompt", "tokens", str(VOCAB), "-1", "pad", "empty", "pad", "room", "room", "1.5", "64 bits", '"a"', "both", "true", str(VOCAB + 5), "9223372036854775813"])

    def test_integers_that_would_come_out_as_other_numbers(self):
        self.check_rows([{"id": "x", "prompt": "a", "note": {"uuid": [1, 2**128 - 1]}}], [str(2**128 - 1)])
        fits = [2**64 - 1, -(2**63), "1" * 40, 1e30, 0]
        out = self.generate("--prompts", self.rows(*({"prompt": "a", "id": id} for id in (*fits, 2**64, -(2**63) - 1, [2**64]))), "--max-new-tokens", 1, exit_code=2)
        self.assertEqual([row["id"] for row in out[:-3]], fits)
        self.assertEqual(out[-3:], [{"index": i, "error": f"the integer {n} has more than 64 bits"} for i, n in ((5, 2**64), (6, -(2**63) - 1), (7, 2**64))])

    def test_option_values(self):
        bad = [("max_new_tokens", 0), ("max_new_tokens", -3), ("max_new_tokens", 2.5), ("max_new_tokens", "9"), ("max_new_tokens", 10**18), ("temperature", "hot"), ("temperature", True), ("temperature", 1e300),
               ("top_k", -1), ("top_k", 1.5), ("top_p", 0), ("top_p", 1.01), ("top_p", -1), ("min_p", -0.1), ("min_p", 2), ("seed", -1), ("seed", 2**32), ("seed", 0.5),
               ("stop", 5), ("stop", ""), ("stop", ["a", ""]), ("stop", [1]), ("stop", {"a": 1})]
        self.check_rows([{"id": i, "prompt": "a", name: value} for i, (name, value) in enumerate(bad)], [name for name, _ in bad])

    def test_only_error_rows(self):
        out = self.generate("--prompts", self.rows("x", "y"), exit_code=2, ranks=2)
        self.assertEqual([r["index"] for r in out], [0, 1])
        self.generate("--prompt", "", exit_code=2)


class Score(CommandLineTest):
    def test_log_likelihoods(self):
        rows = [{"id": "greedy", "prompt": "ab", "completion": "cde"}, {"prompt": "ab", "completion": "ce", "note": 1}, {"tokens": [97], "completion_tokens": [98]},
                {"tokens": [97], "completion": "z{|"}, "broken", {"prompt": "ab"}, {"prompt": "", "completion": "a"}, {"prompt": "a", "completion": ""},
                {"tokens": [97] * 20, "completion_tokens": [97] * 13}, {"tokens": [97] * 20, "completion_tokens": [97] * 12}, {"tokens": [97], "completion_tokens": [VOCAB]}]
        output = {}
        for ranks in (1, 2, 4):
            done = self.run_command("score", "--checkpoint", self.checkpoint, "--prompts", self.rows(*rows), "--batch-size", 3, ranks=ranks)
            self.assertEqual(done.returncode, 2, done.stderr)
            output[ranks] = done.stdout
        self.assertEqual(output[2], output[1])
        self.assertEqual(output[4], output[1])
        out = [json.loads(line) for line in output[1].splitlines()]
        self.assertEqual([r["index"] for r in out], list(range(len(rows))))
        self.assertEqual([i for i, r in enumerate(out) if "error" in r], [4, 5, 6, 7, 8, 10])
        self.assertEqual((out[0]["id"], out[1]["note"]), ("greedy", 1))

        def likelihood(tokens, completion):
            everything = tokens + completion
            return sum(log_probabilities(a)[b] for a, b in zip(everything[len(tokens) - 1:], completion))

        for row, (tokens, completion) in {0: ([97, 98], [99, 100, 101]), 1: ([97, 98], [99, 101]), 2: ([97], [98]), 3: ([97], [122, 123, 124]), 9: ([97] * 20, [97] * 12)}.items():
            self.assertAlmostEqual(out[row]["log_likelihood"], likelihood(tokens, completion), delta=1e-4 * len(completion))
            self.assertEqual(out[row]["greedy"], completion == counted(tokens[-1], len(completion)))

    def test_output_file_and_usage_errors(self):
        prompts, output = self.rows({"prompt": "ab", "completion": "c"}), self.path("out.jsonl")
        base = ["score", "--checkpoint", self.checkpoint]
        done = self.run_command(*base, "--prompts", prompts, "--output", output, ranks=2)
        self.assertEqual((done.returncode, done.stdout), (0, b""))
        self.assertEqual(output.read_bytes(), self.run_command(*base, "--prompts", prompts).stdout)
        self.assertEqual(list(self.folder.glob(output.name + "*")), [output])
        self.assert_one_line_error(self.run_command(*base, ranks=2), 1, "--prompts")
        self.assert_one_line_error(self.run_command(*base, "--prompts", self.write("empty", "\n\n"), ranks=2), 1, "no input", "empty")
        with open("/dev/full", "w") as full:
            done = subprocess.run(self.command(*base, "--prompts", prompts), stdout=full, stderr=subprocess.PIPE, stdin=subprocess.DEVNULL, timeout=60)
        self.assertEqual((done.returncode, done.stderr), (74, b"kvmesh: standard output: No space left on device\n"))
        os.mkfifo(self.path("fifo"))  # a device would do as well, but a program that replaces it would harm the machine
        with subprocess.Popen(["cat", str(self.path("fifo"))], stdout=subprocess.PIPE) as cat:
            self.assertEqual(self.run_command(*base, "--prompts", prompts, "--output", self.path("fifo")).returncode, 0)
            self.assertEqual(cat.communicate(timeout=20)[0], output.read_bytes())
        self.assertTrue(self.path("fifo").is_fifo())


if __name__ == "__main__":
    run_tests()
