"""kvmesh bench and kvmesh scale as a user meets them: what is written adds up. Nothing here looks at how fast anything is."""

import json
import shutil
import unittest

from command_line import CommandLineTest, run_tests

SHAPE = "32,2,4,2,300,64"


class Scale(CommandLineTest):
    def test_bench_parts(self):
        figures = self.path("bench.json")
        for ranks, parts in ((1, "all"), (2, "collectives,ops")):
            done = self.run_command("bench", "--shape", SHAPE, "--batch", 3, "--prompt-len", 5, "--new-tokens", 4, "--repeat", 1, "--json", figures, "--parts", parts, ranks=ranks)
            self.assertEqual(done.returncode, 0, done.stderr)
            f = json.loads(figures.read_text())
            self.assertEqual(f["decode"]["seconds"]["runs"], 3)
            for phase in ("decode", "prefill"):
                ops = {o["name"]: o for o in f["ops"] if o["phase"] == phase}
                self.assertEqual(len(ops), 9)
                self.assertAlmostEqual(sum(o["share"] for o in ops.values()), 1)
                self.assertEqual(ops["fc1"]["calls"], 2)
                flops = 2 * ops["fc1"]["rows"] * 32 * 128
                self.assertAlmostEqual(ops["fc1"]["flops_per_s"] * ops["fc1"]["seconds"]["median"], flops, delta=1e-6 * flops)
            self.assertEqual(len(f.get("sampler", [])), 6 if parts == "all" else 0)
            for c in f["collectives"]:
                if c["name"] == "all_reduce":
                    self.assertAlmostEqual(c["bus_bytes_per_s"], c["algorithm_bytes_per_s"] * 2 * (ranks - 1) / ranks)
            self.assertNotIn("load", f)
        done = self.run_command("bench", "--checkpoint", self.checkpoint, "--prompt-len", 5, "--new-tokens", 4, "--repeat", 1, "--json", figures, "--parts", "load")
        self.assertEqual(done.returncode, 0, done.stderr)
        self.assertEqual(json.loads(figures.read_text())["load"]["bytes"], (self.checkpoint / "model.safetensors").stat().st_size)
        for words, part in ((["--parts", "wind"], "--parts wind"), (["--parts", "load"], "--parts load"), (["--prompt-len", 5, "--new-tokens", 4, "--json", "/proc/none"], "--json /proc/none")):
            self.assert_one_line_error(self.run_command("bench", "--shape", SHAPE, *words), 1, part)

    def test_the_bytes_of_a_step_are_those_of_the_weights_as_they_are_kept(self):
        figures = self.path("bench.json")
        elements, columns = 2 * (32 * 8 * 8 + 32 * 32 + 8 * 32 * 32) + 32 * 300, 2 * (8 * 8 + 32 + 128 + 32) + 300
        keys = 2 * (6 + 7 + 8) / 3 * 2 * 2 * 8 * 3  # of an average step, 3 rows
        for words, bytes in (([], 2 * elements + 2 * keys), (["--quantize", "int8"], elements + 4 * columns + 2 * keys), (["--quantize", "int8", "--dtype", "float32"], elements + 4 * columns + 4 * keys)):
            done = self.run_command("bench", "--shape", SHAPE, "--batch", 3, "--prompt-len", 5, "--new-tokens", 4, "--repeat", 1, "--json", figures, *words)
            self.assertEqual(done.returncode, 0, done.stderr)
            f = json.loads(figures.read_text())
            self.assertAlmostEqual(f["decode"]["bytes_per_s"] * f["decode"]["ms_per_step"] / 1e3, bytes, delta=1e-6 * bytes)
            self.assertEqual(f["quantize"], "int8" if words else "none")

    def test_scale(self):
        folder = self.path("report")
        done = self.run_command("scale", "--shape", SHAPE, "--batch", 8, "--rows-per-rank", 2, "--prompt-len", 5, "--new-tokens", 9, "--repeat", 2, "--ranks", "3,2", "--report", folder, ranks=4)
        self.assertEqual(done.returncode, 0, done.stderr)
        report = json.loads((folder / "report.json").read_text())
        points = {(p["kind"], p["ranks"], p["rows"]): p for p in report["points"]}
        self.assertEqual(set(points), {("strong", n, 8) for n in (1, 2, 3)} | {("weak", n, 2 * n) for n in (1, 2, 3)} | {("sweep", 1, n) for n in (1, 2, 4, 8)})
        for (kind, ranks, rows), p in points.items():
            self.assertAlmostEqual(sum(p["split"].values()), 1)
            self.assertGreaterEqual(p["predicted_seconds"], 0)
            if kind != "sweep":
                alone = points[kind, 1, 8 if kind == "strong" else 2]
                self.assertAlmostEqual(p["speedup"]["mean"], p["tokens_per_s"]["mean"] / alone["tokens_per_s"]["mean"])
                self.assertAlmostEqual(p["efficiency"]["mean"], p["speedup"]["mean"] / ranks)
        self.assertEqual({k for k, p in points.items() if p["held_out"]}, {("sweep", 1, 4), ("weak", 1, 2), ("weak", 3, 6)} | {("strong", n, 8) for n in (1, 2, 3)})
        for more in report["extrapolated"]:
            for kind in ("weak", "strong"):
                low, high = more[f"{kind}_efficiency_95"]
                self.assertLessEqual(low, high)
        self.assertEqual(report["extrapolated"][0]["weak_efficiency_95"], [1, 1])  # one rank is its own measure
        self.assertGreater(report["model"]["latency_seconds"] + report["model"]["seconds_per_byte"], 0)
        text = (folder / "report.md").read_text()
        for part in ("## Strong", "## Weak", "## Cost model", "## Extrapolated", "| 4096 |", "held out"):
            self.assertIn(part, text)
        plots = ("speed", "efficiency", "split", "latency", "predicted")
        if shutil.which("gnuplot"):
            for plot in plots:
                self.assertIn("</svg>", (folder / f"{plot}.svg").read_text())
        else:
            self.assertIn("gnuplot", done.stderr)

    def test_scale_usage(self):
        shape = ["scale", "--shape", SHAPE, "--prompt-len", 5]
        for words, part in ((["--ranks", "1,3", "--report", self.path("r")], "this job has 2 ranks"), (["--ranks", "1,x", "--report", self.path("r")], "--ranks 1,x"), ([], "--report DIR"),
                            (["--batch", 1, "--report", self.path("r")], "--batch 1"), (["--new-tokens", 5, "--report", "/proc/none"], "--report /proc/none"), (["--new-tokens", 5, "--report", "/proc/self"], "--report /proc/self"),
                            (["--new-tokens", 60, "--report", self.path("r")], "context of 64")):
            self.assert_one_line_error(self.run_command(*shape, *words, ranks=2), 1, part)


if __name__ == "__main__":
    run_tests()
