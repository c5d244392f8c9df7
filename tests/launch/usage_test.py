"""Wrong usage, wrong checkpoints, INI files, failing files, and the commands that run alone (contract, section 4): exit codes, and one line on standard error."""

import fcntl
import json
import os
import re
import shutil
import socket
import struct
import subprocess
import termios

from command_line import (EOT, KVMESH, PAD, SOURCE, VOCAB, D, CommandLineTest, config_of, random_weights, run_tests, shapes_of, text_of, write_checkpoint)


class Usage(CommandLineTest):
    def usage_error(self, *words, ranks=1, parts):
        self.assert_one_line_error(self.run_command(*words, ranks=ranks), 1, *parts)

    def test_commands(self):
        for ranks in (1, 2):
            self.usage_error("frobnicate", "--x", ranks=ranks, parts=["frobnicate"])
        self.usage_error(parts=["command"])
        for help in (["--help"], ["generate", "--help"], ["score", "-h"], ["tokenize", "--help"], ["inspect", "--help"]):
            done = self.run_command(*help)
            self.assertEqual((done.returncode, done.stderr), (0, b""), help)
            self.assertIn(b"Usage: kvmesh", done.stdout)
        done = self.run_command("generate", "--help", ranks=2)
        self.assertEqual((done.returncode, done.stdout.count(b"Usage")), (0, 1))

    def test_what_generate_needs(self):
        prompts = self.rows({"prompt": "a"})
        self.usage_error("generate", "--prompt", "a", parts=["--checkpoint"])
        self.usage_error("generate", "--checkpoint", self.checkpoint, ranks=2, parts=["no input", "--prompts"])
        self.usage_error("generate", "--checkpoint", self.checkpoint, "--prompts", prompts, "--prompt", "a", parts=["--prompts", "--prompt "])
        self.usage_error("generate", "--checkpoint", self.checkpoint, "--prompts", self.path("none"), ranks=3, parts=[self.path("none"), "No such file"])
        self.usage_error("generate", "--checkpoint", self.checkpoint, "--prompts", self.folder, parts=[self.folder])
        for text in (b"", b"\n \n\r\n"):
            self.usage_error("generate", "--checkpoint", self.checkpoint, "--prompts", self.write("blank", text), "--output", self.path("out"), parts=["no input", self.path("blank")])
        self.assertEqual(list(self.folder.glob(self.path("out").name + "*")), [])

    def test_option_values(self):
        self.refused({"batch-size": ["0", "x", "1.5", "99999999999999999999"], "max-new-tokens": ["0", "many"], "temperature": ["hot", "nan"], "top-k": ["-1", "2.5"], "top-p": ["0", "1.1", "nan"],
               "min-p": ["-0.1", "1.5"], "seed": ["-1", "4294967296", "0x1"], "samples": ["0"], "logprobs": ["-2", str(VOCAB + 1)], "stop-token": ["-1", str(VOCAB), "x"], "rng": ["numpy"], "sync": ["all"],
               "pad": ["left"], "device": ["tpu"], "attention": ["flash", ""], "dtype": ["float16"], "quantize": ["int4", "1"]})

    def test_more_option_values(self):
        self.refused({"mesh": ["x=2", "x", "y=1", "x=1,x=1"], "comm-timeout": ["0", "-5", "soon", "nan"], "threads": ["-1"]})

    def refused(self, bad):
        for option, values in bad.items():
            for value in values:
                with self.subTest(option=option, value=value):
                    self.usage_error("generate", "--checkpoint", self.checkpoint, "--prompt", "a", f"--{option}={value}", parts=[option])

    def test_attention_by_cudnn_is_for_gpus(self):
        words = ["--checkpoint", self.checkpoint, "--device", "cpu", "--attention"]
        self.usage_error("generate", "--prompt", "a", *words, "cudnn", ranks=2, parts=["--attention cudnn", "CPU"])
        self.usage_error("bench", *words, "cudnn", parts=["--attention cudnn", "CPU"])
        self.usage_error("train", "--data", self.folder, "--output", self.path("out"), "--steps", 1, *words, "cudnn", parts=["--attention cudnn", "CPU"])
        for way in ("auto", "native"):
            self.assertEqual(self.run_command("generate", "--prompt", "a", "--max-new-tokens", 1, *words, way).returncode, 0)

    def test_training_has_no_integers(self):
        self.usage_error("train", "--checkpoint", self.checkpoint, "--data", self.folder, "--output", self.path("out"), "--steps", 1, "--quantize", "int8", parts=["--quantize"])

    def test_words_that_are_no_options(self):
        for words, part in ((["positional"], "positional"), (["--seed"], "--seed"), (["--seed", 1, "--seed", 2], "--seed"), (["-x"], "-x")):
            self.usage_error("generate", "--checkpoint", self.checkpoint, "--prompt", "a", *words, parts=[part])

    def test_on_several_ranks_it_is_told_once(self):
        for ranks, words, part in ((2, ["--mesh", "x=3"], "--mesh x=3"), (4, ["--top-p", "7"], "--top-p"), (3, ["--bogus"], "--bogus"), (2, ["--mesh", "x=1,y=2"], "y")):
            self.usage_error("generate", "--checkpoint", self.checkpoint, "--prompt", "a", *words, ranks=ranks, parts=[part])

    def test_option_names_are_not_guessed(self):
        self.usage_error("generate", "--checkpoint", self.checkpoint, "--prompt", "a", "--temp", 1, parts=["--temp"])

    def test_words_that_are_no_text(self):
        words = ["generate", "--checkpoint", self.checkpoint, "--output", self.path("no-text.jsonl")]
        self.usage_error(*words, "--prompt", "a", "--stop", "\udcff", parts=["--stop"])
        self.assertEqual(self.run_command(*words, "--prompt", "a\udcff").returncode, 0)
        self.assertEqual(json.loads(self.path("no-text.jsonl").read_text())["prompt"], "a\ufffd")

    def test_batches_that_cannot_be(self):
        for batch in (0, -1, "many", "auto1", 2**21):
            self.usage_error("generate", "--checkpoint", self.checkpoint, "--prompt", "a", "--batch-size", batch, parts=[f"--batch-size {batch}"])
        for command in (["score", "--prompts", self.write("p", "{}")], ["verify", "--output", self.path("o")]):
            self.usage_error(*command, "--checkpoint", self.checkpoint, "--batch-size", -1, parts=["--batch-size -1"])
        self.usage_error("bench", "--checkpoint", self.checkpoint, "--batch", -1, parts=["--batch -1"])

    def test_bench_has_what_it_was_given(self):
        figures = self.path("bench.json")
        words = ["bench", "--shape", "16,1,2,1,64,32", "--batch", 3, "--prompt-len", 4, "--new-tokens", 2, "--repeat", 1, "--json", figures]
        for more, ahead in (([], True), (["--no-run-ahead"], False)):
            done = self.run_command(*words, *more)
            self.assertEqual(done.returncode, 0, done.stderr)
            told = json.loads(figures.read_text())
            self.assertEqual((told["batch"], told["run_ahead"]), (3, ahead))

    def test_output_that_cannot_be(self):
        for output, part in (("/proc/out.jsonl", "/proc/out.jsonl"), (self.folder, "folder"), (self.path("none") / "out.jsonl", "No such file")):
            for fresh in ([], ["--fresh"]):
                self.usage_error("generate", "--checkpoint", self.checkpoint, "--prompt", "a", "--output", output, *fresh, ranks=2 if fresh else 1, parts=["--output", part])
        long = self.folder / ("x" * 300)
        for ranks in (1, 2):
            self.usage_error("generate", "--checkpoint", self.checkpoint, "--prompt", "a", "--output", long, ranks=ranks, parts=[long, "File name too long"])
            self.usage_error("generate", "--checkpoint", long, "--prompt", "a", ranks=ranks, parts=[long])
        alien = self.write("alien", "somebody's text\n")
        self.usage_error("generate", "--checkpoint", self.checkpoint, "--prompt", "a", "--output", alien, parts=[alien, "manifest"])
        self.assertEqual(alien.read_text(), "somebody's text\n")
        with socket.socket(socket.AF_UNIX) as s:
            s.bind(str(self.path("socket")))
            self.usage_error("generate", "--checkpoint", self.checkpoint, "--prompt", "a", "--output", self.path("socket"), parts=["--output", self.path("socket")])
        piped = self.run_command("generate", "--checkpoint", self.checkpoint, "--prompts", "/dev/stdin", "--output", self.path("out"), input=b'{"prompt": "a"}\n' * 3)
        self.assert_one_line_error(piped, 1, "--prompts /dev/stdin")


class Ini(CommandLineTest):
    def test_the_command_line_wins(self):
        config = self.write("a.ini", f"# comment\ncheckpoint = {self.checkpoint}\nmax-new-tokens = 3\nstop = g\nstop = zz\nignore-eos = true\nlogprobs = 0\nsamples = 2\n")
        out = self.generate("--config", config, "--prompt", "a", "--prompt", "x", "--samples", 1, "--max-new-tokens", 8, ranks=2)
        self.assertEqual([r["completion"] for r in out], ["bcdef", "yz{|}~<|endoftext|>A"])
        self.assertEqual(len(out[0]["logprobs"]), 6)
        out = self.generate("--config", config, "--prompt", "a", "--stop", "d", "--max-new-tokens", 8)
        self.assertEqual([r["completion"] for r in out], ["bc", "bc"])
        out = self.generate("--config", config, "--prompt", "e", "--stop", "i", "--max-new-tokens", 8)  # the file's --stop g does not count
        self.assertEqual(out[0]["completion"], "fgh")

    def test_a_prompt_on_the_command_line_stands_for_the_files(self):
        ini = self.write("prompts.ini", f"checkpoint = {self.checkpoint}\nprompts = /nowhere.jsonl\n")
        done = self.run_command("generate", "--config", ini, "--prompt", "a")
        self.assertEqual((done.returncode, json.loads(done.stdout)["prompt"]), (0, "a"), done.stderr)

    def test_errors_name_the_file(self):
        for text, part in (("bogus = 1\n", "bogus"), ("seed = x\n", "seed"), ("seed\n", "seed"), ("seed = 1\nseed = 2\n", "seed")):
            config = self.write("bad.ini", text)
            done = self.run_command("generate", "--checkpoint", self.checkpoint, "--prompt", "a", "--config", config, ranks=2 if text == "seed\n" else 1)
            self.assert_one_line_error(done, 1, config, part)
        for config in (self.path("none.ini"), self.folder):
            self.assert_one_line_error(self.run_command("generate", "--checkpoint", self.checkpoint, "--prompt", "a", "--config", config), 1, "--config", config)


class Checkpoints(CommandLineTest):
    def broken(self, name, breaking, *parts, ranks=1):
        """A copy of a small checkpoint that `breaking` spoils; the error must have the parts in it, and nothing is left behind."""
        config = config_of(32, 1)
        folder = write_checkpoint(self.path(name), random_weights(config), config)
        breaking(folder)
        output = self.path(name + ".jsonl")
        done = self.run_command("generate", "--checkpoint", folder, "--prompt", "a", "--output", output, ranks=ranks)
        self.assert_one_line_error(done, 1, *parts)
        self.assertEqual(list(self.folder.glob(output.name + "*")), [])

    def test_missing_parts(self):
        self.broken("a", lambda f: (f / "config.json").unlink(), "config.json", "No such file")
        self.broken("b", lambda f: (f / "model.safetensors").unlink(), "model.safetensors")
        self.assert_one_line_error(self.run_command("generate", "--checkpoint", self.path("none"), "--prompt", "a", ranks=3), 1, self.path("none"))

    def test_torn_weights(self):
        def cut(bytes):
            def breaking(folder):
                file = folder / "model.safetensors"
                os.truncate(file, file.stat().st_size - bytes if bytes > 0 else -bytes)
            return breaking

        self.broken("a", cut(100), "model.safetensors", ranks=3)
        self.broken("b", cut(-5), "model.safetensors")

    def change_header(self, change):
        def breaking(folder):
            file = folder / "model.safetensors"
            data = file.read_bytes()
            size = struct.unpack("<Q", data[:8])[0]
            header = json.loads(data[8:8 + size])
            change(header)
            text = json.dumps(header).encode()
            file.write_bytes(struct.pack("<Q", len(text)) + text + data[8 + size:])
        return breaking

    def test_wrong_tensors(self):
        wq, fc1 = "blocks.0.attn.wq", "blocks.0.mlp.fc1.weight"
        self.broken("a", self.change_header(lambda h: h[wq].update(shape=[32, 1, 32])), "model.safetensors", wq, "[32, 1, 32]", "[32, 2, 16]")
        self.broken("b", self.change_header(lambda h: h.update({"mlp": h.pop(fc1)})), "model.safetensors", fc1)
        self.broken("c", self.change_header(lambda h: h[wq].update(shape=[32, 2, 15])), "model.safetensors", wq)
        self.broken("d", self.change_header(lambda h: h[wq].update(dtype="I32")), "model.safetensors", wq)

    def test_weights_that_are_no_numbers(self):
        def breaking(folder):
            config = config_of(32, 1)
            weights = random_weights(config)
            weights["lm_head.weight"][1][77] = float("nan")
            for f in folder.iterdir():
                f.unlink()
            folder.rmdir()
            write_checkpoint(folder, weights, config)

        self.broken("a", breaking, "model.safetensors", "lm_head.weight")

    def test_config_and_tokenizer(self):
        self.broken("a", lambda f: (f / "config.json").write_text("{"), "config.json")
        self.broken("b", lambda f: (f / "config.json").write_text(json.dumps(config_of(32, 1) | {"q_heads": 3})), "config.json", "q_heads")
        self.broken("c", lambda f: (f / "tokenizer.tiktoken").write_text("YQ== 0\nYQ\n"), "tokenizer.tiktoken", "2")


class Files(CommandLineTest):
    """Reading or writing fails while running: 74."""

    def test_full_disk(self):
        for ranks in (1, 2):
            done = self.run_command("generate", "--checkpoint", self.checkpoint, "--prompt", "a", "--output", "/dev/full", ranks=ranks)
            self.assert_one_line_error(done, 74, "/dev/full", "No space left")

    def test_standard_output_that_takes_nothing(self):
        command = self.command("generate", "--checkpoint", self.checkpoint, "--prompt", "a")
        with open("/dev/full", "w") as full:
            done = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, stdin=subprocess.DEVNULL, timeout=60)
        self.assertEqual(done.returncode, 74)
        self.assertIn(b"standard output: No space left", done.stderr)
        reader, writer = os.pipe()
        os.close(reader)
        done = subprocess.run(command, stdout=writer, stderr=subprocess.PIPE, stdin=subprocess.DEVNULL, timeout=60)
        os.close(writer)
        self.assertEqual(done.returncode, 74)
        self.assertIn(b"standard output: Broken pipe", done.stderr)

    def test_standard_error_that_takes_nothing(self):
        """What is told there is lost, and nothing else."""
        def closed():
            for stream in (0, 1, 2):
                os.close(stream)
        with open("/dev/full", "w") as full:
            for name, ways in (("full", {"stderr": full}), ("closed", {"preexec_fn": closed})):
                out = self.path(name)
                words = ["generate", "--checkpoint", self.checkpoint, "--prompt", "a", "--max-new-tokens", 2, "--output", out]
                run = lambda *words: subprocess.run(self.command(*words), stdin=subprocess.DEVNULL, timeout=60, **ways).returncode
                self.assertEqual([run(*words), run(*words), run(*words, "--seed", "-1")], [0, 0, 1], name)
                self.assertEqual(json.loads(out.read_text())["completion"], "bc")

    def test_no_file_takes_the_place_of_a_closed_stream(self):
        command = [KVMESH, "tokenize", "--tokenizer", self.checkpoint / "tokenizer.tiktoken"]
        with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, preexec_fn=lambda: os.close(2)) as running:
            running.stdin.write(b"abc\n" * 10_000)
            running.stdin.flush()
            self.assertTrue(running.stdout.read(1))  # it has begun
            self.assertEqual(os.readlink(f"/proc/{running.pid}/fd/2"), "/dev/null")
            running.kill()

    def test_files_that_would_be_written_over(self):
        prompts, out = self.rows({"prompt": "a"}), self.path("out")
        link = self.path("link")
        link.symlink_to(prompts)
        for option in ("output", "metrics", "prometheus", "trace"):
            for file in (prompts, link, prompts.parent / "." / prompts.name):
                words = ["--checkpoint", self.checkpoint, "--prompts", prompts, f"--{option}", file]
                self.assert_one_line_error(self.run_command("generate", *words, "--fresh"), 1, f"--{option}", "--prompts")
        self.assert_one_line_error(self.run_command("generate", "--checkpoint", self.checkpoint, "--prompts", prompts, "--output", out, "--prometheus", out, ranks=2), 1, "--prometheus", "--output")
        self.assertEqual((json.loads(prompts.read_text()), out.exists()), ({"prompt": "a"}, False))
        scored = self.rows({"prompt": "a", "completion": "b"})
        self.assert_one_line_error(self.run_command("score", "--checkpoint", self.checkpoint, "--prompts", scored, "--output", scored), 1, "--output", "--prompts")
        self.assertEqual(json.loads(scored.read_text()), {"prompt": "a", "completion": "b"})

    def test_a_reader_that_leaves_mpirun(self):
        reader, writer = os.pipe()
        os.close(reader)
        command = self.command("generate", "--checkpoint", self.checkpoint, "--prompt", "a", "--ignore-eos", "--samples", 20000, ranks=2)  # longer than mpirun takes to notice
        done = subprocess.run(command, stdout=writer, stderr=subprocess.PIPE, stdin=subprocess.DEVNULL, timeout=60)
        os.close(writer)
        self.assertEqual((done.returncode, done.stderr.splitlines()[-1]), (74, b"kvmesh: standard output: Broken pipe"))

    def test_a_terminal_is_written_to_and_not_read(self):
        """mpirun is in its background, where a terminal with tostop would hold it up."""
        terminal, ours = os.openpty()
        attributes = termios.tcgetattr(ours)
        attributes[3] |= termios.TOSTOP
        termios.tcsetattr(ours, termios.TCSANOW, attributes)
        def in_front():
            os.setsid()
            fcntl.ioctl(ours, termios.TIOCSCTTY)
        command = self.command("generate", "--checkpoint", self.checkpoint, "--prompts", "/dev/stdin", ranks=2)
        self.assertEqual(subprocess.run(command, stdin=ours, stdout=ours, stderr=ours, preexec_fn=in_front, timeout=60).returncode, 1)
        self.assertEqual(os.read(terminal, 1000), b"kvmesh: no input: /dev/stdin has no rows\r\n")
        os.close(ours)
        os.close(terminal)

    def test_prompts_that_cannot_be_read(self):
        self.assert_one_line_error(self.run_command("generate", "--checkpoint", self.checkpoint, "--prompts", "/proc/self/mem", ranks=2), 74, "/proc/self/mem")

    def test_special_files_are_written_not_replaced(self):
        os.mkfifo(self.path("fifo"))
        with subprocess.Popen(["cat", str(self.path("fifo"))], stdout=subprocess.PIPE) as cat:
            done = self.run_command("generate", "--checkpoint", self.checkpoint, "--prompt", "a", "--max-new-tokens", 1, "--output", self.path("fifo"))
            self.assertEqual(done.returncode, 0)
            self.assertEqual(json.loads(cat.communicate(timeout=20)[0])["completion"], "b")
        self.assertTrue(self.path("fifo").is_fifo())
        self.assertEqual(self.generate("--prompt", "a", "--max-new-tokens", 1, "--output", "-")[0]["completion"], "b")


class Alone(CommandLineTest):
    def test_one_rank_speaks(self):
        self.assertEqual(self.run_command("--version", ranks=2).stdout.count(b"kvmesh "), 1)
        self.assert_one_line_error(self.run_command("inspect", "--checkpoint", "/nowhere", ranks=2), 1, "/nowhere")

    def test_version(self):
        done = self.run_command("--version")
        self.assertEqual((done.returncode, done.stderr), (0, b""))
        for part in ("kvmesh ", "MPI: ", "NCCL: ", "cuDNN: ", "CUDA: ", "CPU instruction sets: "):
            self.assertIn(part, done.stdout.decode())

    def test_inspect(self):
        done = self.run_command("inspect", "--checkpoint", self.checkpoint)
        self.assertEqual((done.returncode, done.stderr), (0, b""))
        text = done.stdout.decode()
        parameters = 2 * VOCAB * D + D * D * 2 + D * D // 2 * 2 + 8 * D * D
        self.assertIn(f"parameters: {parameters}\n", text)
        self.assertIn(f"bytes: {4 * parameters}\n", text)
        for part in ['"seqlen": 32', f"[{D}, {4 * D}]", *shapes_of(config_of(D, 1)), str(EOT), str(PAD)]:
            self.assertIn(part, text)
        self.assert_one_line_error(self.run_command("inspect"), 1, "--checkpoint")
        self.assert_one_line_error(self.run_command("inspect", "--checkpoint", self.path("none")), 1, self.path("none"))

    def test_inspect_tells_how_far_integers_drift(self):
        plain = self.run_command("inspect", "--checkpoint", self.checkpoint).stdout.decode()
        for words, ranks, what in ((["--quantize"], 1, "248 tokens of 8 random sequences"), (["--quantize", "int8"], 2, "248 tokens of 8 random sequences"),
                                   (["--prompts", self.rows({"prompt": "abc"}, {"tokens": [1]}, {"tokens": [5, 6]}), "--quantize=int8", "--dtype", "bfloat16"], 1, "3 tokens of 2 prompts")):
            done = self.run_command("inspect", "--checkpoint", self.checkpoint, *words, ranks=ranks)
            self.assertEqual((done.returncode, done.stderr), (0, b""))
            text = done.stdout.decode()
            self.assertEqual(text.splitlines()[:10], plain.splitlines()[:10])
            self.assertEqual(text.count("quantized to int8"), 1)
            small, whole, share = re.search(r"weights in memory: (\d+) bytes instead of (\d+), (0\.\d+) of them", text).groups()
            self.assertAlmostEqual(int(small) / int(whole), float(share), delta=1e-3)
            self.assertIn(what, text)
            mean, most, divergence, same = map(float, re.search(r"mean (\S+), at most (\S+); KL divergence (\S+) nats; the same most probable token (\S+) %", text).groups())
            self.assertTrue(0 < mean <= most < 0.5 and 0 < divergence < 0.1 and 50 < same <= 100, text)
        for words, part in ((["--quantize", "int4"], "--quantize int4"), (["--quantize", "--prompts", self.path("none")], self.path("none")),
                            (["--quantize", "--prompts", self.write("one", '{"tokens": [1]}')], "two tokens"), (["--quantize", "--prompts", self.write("bad", '{"tokens": [99999]}')], "row 0")):
            done = self.run_command("inspect", "--checkpoint", self.checkpoint, *words)
            self.assertEqual(done.returncode, 1)
            self.assertIn(str(part), done.stderr.decode())

    def tokenize(self, *words, input):
        return self.run_command("tokenize", "--tokenizer", self.checkpoint / "tokenizer.tiktoken", *words, input=input)

    def test_tokenize(self):
        done = self.tokenize(input="abc\n\nthe the\n\u00e9<|endoftext|><|pad|>\nlast".encode() + b"\xff")
        self.assertEqual((done.returncode, done.stderr), (0, b""))
        self.assertEqual([json.loads(line) for line in done.stdout.splitlines()],
                         [[97, 98, 99], [], [260, 261], [0xC3, 0xA9, EOT, PAD], [108, 97, 115, 116, 0xEF, 0xBF, 0xBD]])
        done = self.tokenize("--decode", input=b"[97, 98]\n[]\n[260,261]\n [195]\n[195,169,264]\n[5000]\n")
        self.assertEqual((done.returncode, done.stderr), (0, b""))
        self.assertEqual(done.stdout.decode(), "ab\n\nthe the\n\ufffd\n\u00e9<|endoftext|>\n\ufffd\n")

    def test_tokenize_by_tokenizer_json(self):
        file = SOURCE / "tests/fixtures/tokenizers/nanochat.json"
        vocab = json.loads(file.read_text())
        eot, pad = (next(t["id"] for t in vocab["added_tokens"] if t["content"] == name) for name in ("<|endoftext|>", "<|pad|>"))
        done = self.run_command("tokenize", "--tokenizer", file, input="a the\n<|pad|>".encode())
        self.assertEqual((done.returncode, done.stderr), (0, b""))
        self.assertEqual([json.loads(line) for line in done.stdout.splitlines()], [[eot, vocab["model"]["vocab"]["a"], vocab["model"]["vocab"]["\u0120the"], pad], [eot, pad, pad]])
        done = self.run_command("tokenize", "--tokenizer", file, "--decode", input=done.stdout)
        self.assertEqual(done.stdout, b"<|endoftext|>a the<|pad|>\n<|endoftext|><|pad|><|pad|>\n")
        broken = self.path("tokenizer.json")
        broken.write_text(json.dumps(vocab | {"normalizer": {"type": "Lowercase"}}))
        self.assert_one_line_error(self.run_command("tokenize", "--tokenizer", broken), 1, broken, "normalizer.type", "Lowercase")

    def test_checkpoint_with_tokenizer_json(self):
        folder = self.path("checkpoint")
        shutil.copytree(self.checkpoint, folder)
        words = json.loads((SOURCE / "tests/fixtures/tokenizers/gpt2.json").read_text())
        (folder / "tokenizer.tiktoken").rename(folder / "other.tiktoken")
        vocab = {bytes([b]).decode("latin-1"): b for b in range(33, 127)}
        words["model"] |= {"vocab": vocab | {"ab": 127}, "merges": ["a b"]}
        words["added_tokens"] = []
        (folder / "tokenizer.json").write_text(json.dumps(words))
        done = self.run_command("generate", "--checkpoint", folder, "--prompt", "xab", "--max-new-tokens", 3, "--output", "-")
        row = json.loads(done.stdout)
        self.assertEqual(row["tokens"], [128, 129, 130], done.stderr)
        self.assertEqual(row["completion"], 3 * "\ufffd")
        words["model"]["vocab"]["zz"] = VOCAB
        (folder / "tokenizer.json").write_text(json.dumps(words))
        self.assert_one_line_error(self.run_command("generate", "--checkpoint", folder, "--prompt", "x"), 1, "tokenizer.json", str(VOCAB))

    def test_tokenize_errors(self):
        for line in ("x", "{}", "[1.5]", "[-1]", '["a"]', "[99999999999]", "[1"):
            done = self.tokenize("--decode", input=f"{line}\n".encode())
            self.assert_one_line_error(done, 1, "line 1")
        self.assert_one_line_error(self.run_command("tokenize"), 1, "--tokenizer")
        self.assert_one_line_error(self.run_command("tokenize", "--tokenizer", self.path("none")), 1, self.path("none"))
        folder = os.open(self.folder, os.O_RDONLY)
        done = subprocess.run([KVMESH, "tokenize", "--tokenizer", self.checkpoint / "tokenizer.tiktoken"], stdin=folder, capture_output=True, timeout=60)
        os.close(folder)
        self.assert_one_line_error(done, 74, "standard input")
        with open("/dev/full", "w") as full:
            done = subprocess.run([KVMESH, "tokenize", "--tokenizer", self.checkpoint / "tokenizer.tiktoken"], input=b"abc\n", stdout=full, stderr=subprocess.PIPE, timeout=60)
        self.assertEqual(done.returncode, 74, done.stderr)

    def test_tokens_and_text_of_an_output_agree(self):
        out = self.generate("--prompt", "\u00e9\u00e8", "--max-new-tokens", 12, "--temperature", 3, "--ignore-eos", "--samples", 4)
        for row in out:
            self.assertEqual(row["completion"], text_of(row["tokens"]))


if __name__ == "__main__":
    run_tests()
