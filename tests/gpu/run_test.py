"""tests/gpu/run itself, on a bundle of scripts that pass, fail, skip and hang, where a script answers for the GPU."""

import json
import os
import subprocess
import sys
import tarfile
import tempfile
import time
import unittest
from pathlib import Path

RUN = Path(__file__).resolve().with_name("run")
BENCH = {"prefill": {"tokens_per_s": 1e6, "flops_per_s": 3e14, "peak_fraction": 0.375}, "limits": {"flops_per_s": 8e14, "bytes_per_s": 4e12}, "ranks": 1,
         "decode": {"tokens_per_s": 9e3, "bytes_per_s": 3e12, "bandwidth_fraction": 0.75, "ms_per_step": 0.111}, "equal_bits": {"decode_ratio": 1.1, "prefill_ratio": 2.5}}
METRICS = [{"step": i, "loss": 9.5, "tokens_per_s": 1000 * i, "seconds": 0.5, "peak_fraction": 0.25, "split": {"gradients": 0.4, "exchange": 0.02, "update": 0.03, "gather": 0.04, "packing": 0.01}}
           for i in range(1, 9)]
KVMESH = f"""case $1 in
--version) printf 'kvmesh 9\\nNCCL: 1.2.3\\n' ;;
bench) case "$*" in
  *cudnn*"--batch 8 "*) echo "kvmesh: note: --attention cudnn: cuDNN does not do 8 query heads (odd); kvmesh's own kernels do"; while [ "$1" != --json ]; do shift; done; echo '{json.dumps(BENCH)}' >"$2" ;;
  *cudnn*) echo "kvmesh: --attention cudnn: libcudnn.so.9: cannot open shared object file"; exit 1 ;;
  *float32*) echo "the GPU is on fire"; exit 70 ;;
  *) while [ "$1" != --json ]; do shift; done; echo '{json.dumps(BENCH)}' >"$2" ;;
  esac ;;
train) case "$*" in
  *cudnn*) echo "kvmesh: note: --attention cudnn: cuDNN does not differentiate rows of one length (odd); kvmesh's own kernels do" ;;
  *muon*) echo "out of GPU memory"; exit 70 ;;
  *) while [ "$1" != --metrics ]; do shift; done; test -s "$(dirname "$2")/tokens.bin" && echo '{chr(10).join(map(json.dumps, METRICS))}' >"$2" ;;
  esac ;;
esac"""
SMI = 'echo "NVIDIA Test GPU, 81559 MiB, 580.1"'
SANITIZER = 'echo "$*" >>"$(dirname "$0")/sanitized"; case "$*" in *racecheck*) echo "a race"; exit 99 ;; esac'
CASES = '[       OK ] Suite.one (3 ms)\n[  SKIPPED ] Suite.two (0 ms)\n'


def entry(name, script, label="gpu", **properties):
    values = {"LABELS": [label], "TIMEOUT": 30} | properties
    return {"name": name, "command": ["sh", "-c", script], "properties": [{"name": k, "value": v} for k, v in values.items()]}


def command_lines():
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            found.append(path.read_bytes())
        except OSError:  # it has just ended
            pass
    return found


class Run(unittest.TestCase):
    def setUp(self):
        self.folder = Path(self.enterContext(tempfile.TemporaryDirectory()))

    def script(self, path, text):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"#!/bin/sh\n{text}\n")
        path.chmod(0o755)
        return path

    def run_with(self, tests, *words, gpu=True, kvmesh=KVMESH):
        bundle = self.folder / "kvmesh"
        self.script(bundle / "run", 'exec "$@"')
        self.script(bundle / "bin/kvmesh", kvmesh)
        (bundle / "tests").mkdir()
        (bundle / "tests/list.json").write_text(json.dumps({"tests": tests}))
        with tarfile.open(self.folder / "bundle.tar.gz", "w:gz") as archive:
            archive.add(bundle, "kvmesh")
        self.script(self.folder / "bin/compute-sanitizer", SANITIZER)
        self.script(self.folder / "bin/nvidia-smi", SMI if gpu else "echo no driver; exit 9")
        done = subprocess.run([sys.executable, "-B", RUN, "--bundle", self.folder / "bundle.tar.gz", "--report", self.folder / "report", *words],
                              env=os.environ | {"PATH": f"{self.folder}/bin:{os.environ['PATH']}", "TMPDIR": str(self.folder)}, capture_output=True, text=True, timeout=60)
        self.assertEqual(done.stderr, "")
        self.assertEqual(list(self.folder.glob("kvmesh-bundle-*")), [], "what was unpacked stays behind")
        report = json.loads((self.folder / "report/report.json").read_text())
        self.steps = {s["name"]: s for s in report["steps"]}
        return done.returncode, report, (self.folder / "report/report.md").read_text()

    def result(self, name):
        return self.steps[name]["result"]

    def test_every_step_is_reported_whatever_the_others_did(self):
        tests = [
            entry("passes", f"printf 'note: its bits are others\\n{CASES}'"),
            entry("fails", "printf '[  FAILED  ] Suite.bad (7 ms)\\n'; echo 'expected 1, got 2'; exit 1"),
            entry("hangs", f"(trap '' TERM; sleep 61.25; touch {self.folder}/survived) & sleep 60", TIMEOUT=0.5),
            entry("skips", "exit 77", SKIP_RETURN_CODE=77),
            entry("all_cases_skipped", "printf '[  SKIPPED ] Suite.two (0 ms)\\n'"),
            entry("looks", 'test "$ANSWER" = 42', ENVIRONMENT=["ANSWER=42"]),
            entry("starts_nothing", "no-such-program"),
            entry("needs_no_gpu", "true", label="cpu"),
        ]
        code, report, text = self.run_with(tests)
        self.assertEqual(code, 1)
        self.assertEqual({name: self.result(name) for name in self.steps if self.steps[name]["kind"] == "test"},
                         {"passes": "passed", "fails": "failed", "hangs": "time over", "skips": "skipped", "all_cases_skipped": "skipped", "looks": "passed", "starts_nothing": "failed"})
        self.assertEqual(self.steps["passes"]["cases"], [["Suite.one", "passed", 3], ["Suite.two", "skipped", 0]])
        self.assertIn("expected 1, got 2", self.steps["fails"]["tail"])
        self.assertLess(self.steps["hangs"]["seconds"], 10)
        self.assertFalse(b"sleep\x0061.25\x00" in command_lines(), "a process that ignores SIGTERM was left")
        self.assertEqual(self.result("decode, 256 rows, bfloat16"), "passed")
        self.assertEqual(self.result("decode, 1 row, float32"), "failed")
        self.assertEqual(self.result("16 rows of 1024 tokens, bfloat16, adamw"), "passed")
        self.assertEqual(self.result("16 rows of 1024 tokens, bfloat16, muon"), "failed")
        self.assertEqual((self.result("memcheck passes"), self.result("racecheck passes")), ("passed", "failed"))
        self.assertIn("--tool memcheck --error-exitcode 99 sh -c", (self.folder / "bin/sanitized").read_text())
        self.assertEqual((report["gpus"], report["driver"], report["kvmesh"]), ([{"name": "NVIDIA Test GPU", "memory": "81559 MiB"}], "580.1", ["kvmesh 9", "NCCL: 1.2.3"]))
        self.assertEqual(self.result("decode, 32 rows, cuDNN's attention"), "skipped")
        own = "prefill, 8 x 2048 tokens, cuDNN's attention"
        self.assertEqual((self.result(own), self.steps[own]["notes"]), ("skipped", ["--attention cudnn: cuDNN does not do 8 query heads (odd); kvmesh's own kernels do"]))
        own = "16 rows of 1024 tokens, bfloat16, adamw, cuDNN's attention"
        self.assertEqual((self.result(own), len(self.steps[own]["notes"])), ("skipped", 1))
        for part in ("# Run on NVIDIA Test GPU", "* passes: its bits are others", "take 1.10 of cuBLASLt's time in a decode step, 2.50 in", "| NCCL | 1.2.3 |", "| test fails | failed |", "Failed: Suite.bad", "the GPU is on fire",
                     "| decode, 256 rows, bfloat16 | 1000000 | 9000.0 | 0.111 | 3000.0 of 4000.0 | 300 of 800 | decode 75 % | 50 % |", "| prefill 38 % | 50 % |",
                     "| 16 rows of 1024 tokens, bfloat16, adamw | 5500 | 25 % | 0.500 | 0.400 | 0.020 | 0.030 | 0.040 | 0.010 |", "out of GPU memory"):
            self.assertIn(part, text)

    def test_without_time_the_rest_is_not_run_and_bench_has_its_turn(self):
        begun = time.monotonic()
        code, _, text = self.run_with([entry("long", "sleep 60"), entry("later", "true")], "--seconds", "6")
        self.assertLess(time.monotonic() - begun, 15)
        self.assertEqual((code, self.result("long"), self.result("later"), self.result("decode, 1 row, bfloat16")), (1, "time over", "not run", "passed"))
        self.assertIn("| test later | not run |", text)

    def test_benches_that_hang_leave_time_for_training(self):
        self.run_with([entry("t", "true")], "--seconds", "10", kvmesh=KVMESH.replace("bench) case", "bench) sleep 60; case"))
        self.assertEqual((self.result("decode, 1 row, bfloat16"), self.result("16 rows of 1024 tokens, bfloat16, adamw")), ("time over", "passed"))

    def test_without_a_gpu_it_says_so(self):
        code, report, text = self.run_with([entry("t", "true")], gpu=False)
        self.assertEqual((code, report["gpus"], report["steps"]), (77, [], []))
        self.assertIn("| GPU | none |", text)

    def test_other_tests_take_the_same_road_on_the_cpu(self):
        code, _, _ = self.run_with([entry("t", "true", label="cpu"), entry("g", "false")], "--device", "cpu", gpu=False)
        self.assertEqual((code, self.result("t"), "g" in self.steps), (1, "passed", False), "bench of float32 fails")

    def test_a_build_without_such_tests_has_failed(self):
        code, _, text = self.run_with([entry("t", "true", label="cpu")])
        self.assertEqual((code, self.result("every test")), (1, "failed"))
        self.assertIn("there is no such test in this build", text)


if __name__ == "__main__":
    unittest.main(verbosity=2)
