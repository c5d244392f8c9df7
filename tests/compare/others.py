"""Prefill and decode of kvmesh beside other programs, on this machine, in one run: prints a Markdown table (docs/comparisons.md has one).

    python tests/compare/others.py CHECKOUT [--venv DIR] [--systems kvmesh,original,…] [--dtypes bfloat16,float32] [--cases 1x512,8x128,32x32]

CHECKOUT is a git checkout of the original (AakashKumarNain/nanoGPTJAX) at 59264c7. What is missing in the virtual environment is installed from PyPI (several
GB; llama.cpp is compiled for this CPU, ten minutes and more). One process a system keeps its model in memory; they take turns, repeat by repeat. All of
them get the same weights (llama.cpp and transformers: a Llama of as many), the same prompts, 2 threads. In float32, whoever computes the same model must
draw the same greedy tokens as kvmesh before anything is timed.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent.parent
PACKAGES = {
    "original": ["jax", "numpy", "ml_dtypes", "safetensors", "tiktoken", "orbax-checkpoint"],
    "torch": ["torch", "safetensors", "numpy"],
    "torch.compile": ["torch", "safetensors", "numpy"],
    "transformers": ["torch", "transformers"],
    "llama.cpp": ["llama-cpp-python", "gguf"],
}
SAME_MODEL = ("original", "torch", "torch.compile")
SHAPE = {"seqlen": 2048, "vocab_size": 50304, "d_emb": 768, "num_layers": 12, "q_heads": 8, "kv_heads": 4}


def prompt(length):
    """As kvmesh bench has it, the same for every row."""
    return [(i * 7919 + 1) % SHAPE["vocab_size"] for i in range(length)]


class Worker:
    """A system in a process of its own (other_systems.py): a line of JSON in, a line out."""

    def __init__(self, name, python, args, work):
        self.name = name
        env = dict(os.environ, JAX_PLATFORMS="cpu", CUDA_VISIBLE_DEVICES="", OMP_NUM_THREADS=str(args.threads), TOKENIZERS_PARALLELISM="false")
        for name_of_slow_kernels in ("OPENBLAS_CORETYPE", "OPENBLAS_L2_SIZE"):
            env.pop(name_of_slow_kernels, None)
        self.log = open(work / f"{name}.log", "w")
        self.process = subprocess.Popen([python, str(ROOT / "tests/compare/other_systems.py"), name, str(work), str(args.threads), args.checkout], stdin=subprocess.PIPE,
                                        stdout=subprocess.PIPE, stderr=self.log, text=True, env=env)

    def ask(self, **question):
        self.process.stdin.write(json.dumps(question) + "\n")
        self.process.stdin.flush()
        answer = self.process.stdout.readline()
        if not answer:
            raise RuntimeError(f"{self.name} ended; see {self.log.name}")
        return json.loads(answer)

    def close(self):
        self.process.stdin.close()
        self.process.wait()


class Kvmesh:
    def __init__(self, binary, args, work):
        self.binary, self.args, self.work = binary, args, work

    def ask(self, dtype, batch, prompt, new_tokens, tokens=False):
        checkpoint = ["--checkpoint", str(self.work / dtype), "--dtype", dtype, "--device", "cpu", "--threads", str(self.args.threads)]
        if tokens:
            rows = self.work / "rows.jsonl"
            rows.write_text(json.dumps({"tokens": prompt}) + "\n")
            out = subprocess.run([self.binary, "generate", *checkpoint, "--prompts", str(rows), "--max-new-tokens", str(new_tokens)], check=True, capture_output=True, text=True)
            return {"tokens": json.loads(out.stdout)["tokens"]}
        subprocess.run([self.binary, "bench", *checkpoint, "--batch", str(batch), "--prompt-len", str(len(prompt)), "--new-tokens", str(new_tokens), "--repeat", "1", "--json",
                        str(self.work / "bench.json")], check=True, capture_output=True)
        bench = json.loads((self.work / "bench.json").read_text())
        return {"prefill": batch * len(prompt) / bench["prefill"]["tokens_per_s"], "decode": bench["decode"]["ms_per_step"] / 1e3}

    def close(self):
        pass


def set_up(venv, systems):
    """The virtual environment's python, and the systems that could not be installed."""
    python, missing = str(venv / "bin/python"), {}
    if not venv.exists():
        subprocess.run([sys.executable, "-m", "venv", str(venv)], check=True)
    for system in systems:
        for package in PACKAGES.get(system, []):
            if subprocess.run([python, "-m", "pip", "show", "-q", package], capture_output=True).returncode == 0:
                continue
            print(f"installing {package}", file=sys.stderr)
            env = dict(os.environ, CMAKE_ARGS="-DGGML_NATIVE=ON")
            done = subprocess.run(["nice", python, "-m", "pip", "install", "-q", package], capture_output=True, text=True, env=env)
            if done.returncode != 0:
                missing[system] = (done.stderr.strip().splitlines() or ["?"])[-1]
    return python, missing


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("checkout")
    parser.add_argument("--kvmesh", default=str(ROOT / "build/kvmesh"))
    parser.add_argument("--venv", type=Path, default=Path(tempfile.gettempdir()) / "kvmesh-compare")
    parser.add_argument("--systems", default="kvmesh,original,torch,torch.compile,transformers,llama.cpp")
    parser.add_argument("--dtypes", default="bfloat16,float32")
    parser.add_argument("--cases", default="1x512,8x128,32x32", help="batch x prompt")
    parser.add_argument("--new-tokens", type=int, default=16)
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    args = parser.parse_args()
    systems = args.systems.split(",")
    python, missing = set_up(args.venv, systems)
    for system, why in missing.items():
        print(f"{system}: cannot be installed: {why}", file=sys.stderr)

    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        subprocess.run([python, str(ROOT / "tests/compare/other_systems.py"), "weights", folder, str(args.threads), args.checkout], check=True)
        table = []
        for dtype in args.dtypes.split(","):
            running = {s: Kvmesh(args.kvmesh, args, work) if s == "kvmesh" else Worker(s, python, args, work) for s in systems if s not in missing}
            try:
                if dtype == "float32":
                    expected = running["kvmesh"].ask(dtype, 1, prompt(64), 16, tokens=True)["tokens"]
                    for system in SAME_MODEL:
                        if system in running:
                            tokens = running[system].ask(dtype=dtype, batch=1, prompt=prompt(64), new_tokens=16, tokens=True)["tokens"]
                            if tokens != expected:
                                sys.exit(f"{system}: float32 tokens differ from kvmesh's: {tokens}, {expected}")
                for case in args.cases.split(","):
                    batch, length = map(int, case.split("x"))
                    times = {s: [] for s in running}
                    for repeat in range(args.repeat + 1):  # the first warms up
                        for system in list(running):
                            try:
                                answer = running[system].ask(dtype=dtype, batch=batch, prompt=prompt(length), new_tokens=args.new_tokens)
                            except RuntimeError as e:
                                print(e, file=sys.stderr)
                                print(Path(running[system].log.name).read_text()[-2000:], file=sys.stderr)
                                del running[system]
                                continue
                            if repeat:
                                times[system].append(answer)
                    ours = {what: statistics.median(t[what] for t in times["kvmesh"]) for what in ("prefill", "decode")}
                    for system, all_times in times.items():
                        if all_times:
                            prefill, decode = (statistics.median(t[what] for t in all_times) for what in ("prefill", "decode"))
                            table.append((dtype, f"{batch} × {length}", system, batch * length / prefill, prefill / ours["prefill"], batch / decode, decode / ours["decode"]))
                            print(table[-1], file=sys.stderr)
            finally:
                for system in running.values():
                    system.close()
    print("| dtype | batch × prompt | | prefill, tokens/s | kvmesh is faster by | decode, tokens/s | kvmesh is faster by |\n|---|---|---|---|---|---|---|")
    for dtype, case, system, prefill, prefill_ratio, decode, decode_ratio in table:
        print(f"| {dtype} | {case} | {system} | {prefill:.0f} | {prefill_ratio:.2f} | {decode:.1f} | {decode_ratio:.2f} |")


if __name__ == "__main__":
    main()
