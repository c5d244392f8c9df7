"""What a job tells of itself: the metrics file, Prometheus' text, the closing table, the progress bar."""

import json
import os
import pty
import re
import subprocess

from command_line import CommandLineTest, config_of, random_weights, run_tests, write_checkpoint

PARTS = ["start", "prefill", "decode", "sampling", "collectives", "io", "idle", "loop"]
ROWS = 60


class Metrics(CommandLineTest):
    @classmethod
    def setUpClass(cls):
        super().setUpClass()
        config = config_of(128, 9, seqlen=128)  # slow enough that there is something to watch
        cls.slow = write_checkpoint(cls.folder / "slow", random_weights(config), config)

    def prompts(self):
        return self.rows(*("no row" if i == 7 else {"id": i, "tokens": [1 + i], "max_new_tokens": 20 + i * 17 % 100} for i in range(ROWS)))

    def job(self, *words, ranks=1, **more):
        words = ["generate", "--checkpoint", self.slow, "--threads", 1, "--batch-size", 6, "--ignore-eos", "--prompts", self.prompts(), "--output", self.path("out.jsonl"), *words]
        return self.run_command(*words, ranks=ranks, **more)

    def check_metrics(self, ranks):
        file = self.path("metrics.jsonl")
        done = self.job("--metrics", file, "--metrics-interval", 0.02, ranks=ranks)
        self.assertEqual(done.returncode, 2, done.stderr.decode())
        lines = [json.loads(line) for line in file.read_text().splitlines()]
        self.assertGreater(len(lines), 2)
        self.assertEqual([line["last"] for line in lines], [False] * (len(lines) - 1) + [True])
        for before, after in zip(lines, lines[1:]):
            for key in ("time", "wall_s", "steps", "rows_finished", "error_rows", "prompt_tokens", "new_tokens"):
                self.assertLessEqual(before[key], after[key], key)
            self.assertTrue(1 <= before["rows_in_flight"] <= 6)
        last = lines[-1]
        tokens = [20 + i * 17 % 100 for i in range(ROWS) if i != 7]
        self.assertEqual((last["rows_finished"], last["error_rows"], last["rows_in_flight"], last["new_tokens"], last["prompt_tokens"]), (ROWS - 1, 1, 0, sum(tokens), ROWS - 1))
        self.assertAlmostEqual(sum(line["new_tokens_per_s"] * (line["wall_s"] - before) for line, before in zip(lines, [last["ranks"][0]["start_s"]] + [line["wall_s"] for line in lines])), sum(tokens),
                               delta=0.05 * sum(tokens))
        self.assertEqual([rank["rank"] for rank in last["ranks"]], list(range(ranks)))
        for line in lines:
            for rank in line["ranks"]:
                self.assertAlmostEqual(rank["compute_s"], rank["prefill_s"] + rank["decode_s"])
                told = sum(rank[f"{part}_s"] for part in PARTS)
                self.assertLessEqual(told, 1.01 * rank["wall_s"] + 0.05)
        for rank in last["ranks"]:
            self.assertGreater(rank["decode_s"], 0)
            self.assertGreaterEqual(sum(rank[f"{part}_s"] for part in PARTS), 0.95 * rank["wall_s"])
        table = re.findall(r"kvmesh: +(\d+) +[\d.]+ s((?: +[\d.]+ %){8}) +([\d.]+) %  \S+", done.stderr.decode())
        self.assertEqual([int(rank) for rank, _, _ in table], list(range(ranks)))
        for _, parts, whole in table:
            self.assertAlmostEqual(sum(map(float, parts.replace("%", "").split())), float(whole), delta=0.5)
        return lines

    def test_metrics_of_one_rank(self):
        rank = self.check_metrics(1)[-1]["ranks"][0]
        self.assertLess(rank["idle_s"] + rank["collectives_s"], 0.05 * rank["wall_s"], "there is nobody to wait for")

    def test_metrics_of_three_ranks(self):
        self.check_metrics(3)

    def test_a_rank_without_rows_is_idle(self):
        file, rows = self.path("metrics.jsonl"), self.rows({"tokens": [1], "max_new_tokens": 100})
        done = self.run_command("generate", "--checkpoint", self.slow, "--threads", 1, "--ignore-eos", "--batch-size", 2, "--prompts", rows, "--metrics", file, ranks=2)
        self.assertEqual(done.returncode, 0, done.stderr.decode())
        busy, idle = json.loads(file.read_text().splitlines()[-1])["ranks"]
        self.assertEqual(idle["compute_s"], 0)
        self.assertGreater(idle["idle_s"], 0.5 * busy["decode_s"])
        self.assertLess(busy["idle_s"], idle["idle_s"])

    def test_a_job_that_goes_on_appends(self):
        file = self.path("metrics.jsonl")
        for _ in range(2):
            self.assertEqual(self.job("--metrics", file, "--metrics-interval", 1000, "--fresh").returncode, 2)
        self.assertEqual([json.loads(line)["last"] for line in file.read_text().splitlines()], [True, True])

    def test_prometheus(self):
        file = self.path("metrics.prom")
        self.assertEqual(self.job("--prometheus", file, ranks=2).returncode, 2)
        values, kinds = {}, {}
        for line in file.read_text().splitlines():
            if line.startswith("# TYPE "):
                name, kind = line.split()[2:]
                kinds[name] = kind
            elif not line.startswith("#"):
                name, labels, value = re.fullmatch(r'(\w+)(?:\{(.*)\})? (\S+)', line).groups()
                self.assertIn(name, kinds)
                values[name, labels] = float(value)
        self.assertEqual(values["kvmesh_rows_finished_total", None], ROWS - 1)
        self.assertEqual(values["kvmesh_rows_failed_total", None], 1)
        self.assertEqual(values["kvmesh_ended", None], 1)
        seconds = [(labels, value) for (name, labels), value in values.items() if name == "kvmesh_rank_seconds_total"]
        self.assertEqual(len(seconds), 2 * len(PARTS))
        for rank in range(2):
            for part in PARTS:
                self.assertEqual(sum(f'rank="{rank}"' in labels and f'part="{part}"' in labels for labels, _ in seconds), 1)

    def test_a_metrics_file_that_cannot_be_written(self):
        for option in ("metrics", "prometheus", "trace"):
            self.assert_one_line_error(self.job(f"--{option}", self.folder / "nowhere" / "file", ranks=2), 1, f"--{option}: {self.folder}/nowhere/file")
        pipe = self.path("pipe")
        os.mkfifo(pipe)
        self.assert_one_line_error(self.job("--prometheus", pipe, ranks=2), 1, f"--prometheus: {pipe}: is not a file")
        self.assertTrue(pipe.is_fifo(), "a device or a pipe is not replaced")

    def test_trace(self):
        metrics = self.path("metrics.jsonl")
        self.assertEqual(self.job("--trace", self.path("trace.json"), "--metrics", metrics, ranks=2).returncode, 2)
        for rank in json.loads(metrics.read_text().splitlines()[-1])["ranks"]:
            name, *events = json.loads(self.path(f"trace.{rank['rank']}.json").read_text())
            self.assertEqual((name["pid"], name["args"]["name"]), (rank["rank"], f"rank {rank['rank']} on {rank['host']}"))
            sums = dict.fromkeys(["prefill", "decode", "sampling", "collectives", "io", "loop"], 0)
            end = 0
            for event in events:
                self.assertEqual((event["ph"], event["pid"]), ("X", rank["rank"]))
                self.assertGreaterEqual(event["ts"], end - 1, "stretches follow each other")
                end = event["ts"] + event["dur"]
                sums[event["name"]] += event["dur"] / 1e6
            for part in ("prefill", "decode", "sampling"):
                self.assertAlmostEqual(sums[part], rank[f"{part}_s"], delta=0.02 * rank["wall_s"])
            self.assertGreater(len(events), 100)

    def test_the_bar_on_a_terminal(self):
        ours, theirs = pty.openpty()
        words = ["generate", "--checkpoint", self.slow, "--threads", 1, "--batch-size", 6, "--ignore-eos", "--prompts", self.rows(*({"tokens": [1 + i], "max_new_tokens": 100} for i in range(150))),
                 "--output", self.path("out.jsonl")]
        job = subprocess.Popen(self.command(*words), stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=theirs)
        os.close(theirs)
        shown = b""
        while True:
            try:
                block = os.read(ours, 1 << 16)
            except OSError:  # the other end is closed
                break
            if not block:
                break
            shown += block
        os.close(ours)
        self.assertEqual(job.wait(), 0)
        text = shown.decode()
        self.assertRegex(text, r"\r\x1b\[K\[=* *\] \d+ of (about )?15\d rows, \d+ tokens/s, 6 in flight, \d+ s left")
        bar = text.rindex("in flight")
        self.assertEqual(text[bar:].count("\r\x1b[K"), 1, "the summary takes the bar's place")
        self.assertRegex(text[bar:], r"\r\x1b\[Kkvmesh: 150 rows in ")


if __name__ == "__main__":
    run_tests()
