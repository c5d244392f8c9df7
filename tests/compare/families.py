"""Prefill and decode of kvmesh beside transformers on the same Hugging Face folder, taking turns on this machine: prints a Markdown table (docs/comparisons.md has one).

    python tests/compare/families.py [FOLDER] [--dtypes bfloat16,float32] [--cases 1x128,8x128] [--repeat 3] [--threads 2]

Without FOLDER: a Llama of SmolLM-135M's shape with random weights. Needs torch and transformers. In float32 both must draw the same greedy tokens before anything is timed.
"""

import argparse
import json
import statistics
import subprocess
import tempfile
import time
from pathlib import Path

import torch
import transformers

ROOT = Path(__file__).resolve().parent.parent.parent
KVMESH = str(ROOT / "build/kvmesh")
NEW_TOKENS = 16


def smollm(folder):
    config = transformers.LlamaConfig(hidden_size=576, intermediate_size=1536, num_hidden_layers=30, num_attention_heads=9, num_key_value_heads=3, vocab_size=49152,
                                      max_position_embeddings=2048, tie_word_embeddings=True, rms_norm_eps=1e-5)
    torch.manual_seed(0)
    model = transformers.LlamaForCausalLM(config)
    for p in model.parameters():  # so that tokens differ clearly
        if p.dim() > 1:
            p.data.mul_(3)
    model.to(torch.bfloat16).save_pretrained(folder)


def prompt(length, vocab):
    """As kvmesh bench has it, the same for every row."""
    return [(i * 7919 + 1) % vocab for i in range(length)]


def generate(model, rows, tokens, new):
    ids = torch.tensor([tokens] * rows)
    begin = time.perf_counter()
    out = model.generate(ids, attention_mask=torch.ones_like(ids), do_sample=False, max_new_tokens=new, min_new_tokens=new, pad_token_id=0)
    return time.perf_counter() - begin, out[0, len(tokens) :].tolist()


def theirs(model, rows, length):
    """Seconds of prefill, which is generate of one token, and of a step."""
    tokens = prompt(length, model.config.vocab_size)
    prefill = generate(model, rows, tokens, 1)[0]
    return prefill, (generate(model, rows, tokens, NEW_TOKENS)[0] - prefill) / (NEW_TOKENS - 1)


def ours(folder, dtype, rows, length, threads, quantize="none"):
    with tempfile.NamedTemporaryFile(suffix=".json") as file:
        subprocess.run([KVMESH, "bench", "--checkpoint", folder, "--dtype", dtype, "--quantize", quantize, "--batch", str(rows), "--prompt-len", str(length), "--new-tokens", str(NEW_TOKENS),
                        "--repeat", "1", "--threads", str(threads), "--json", file.name], check=True, capture_output=True)
        done = json.load(open(file.name))
    return rows * length / done["prefill"]["tokens_per_s"], done["decode"]["ms_per_step"] / 1e3


def check_same_tokens(folder, model, threads):
    tokens = prompt(64, model.config.vocab_size)
    with tempfile.NamedTemporaryFile("w", suffix=".jsonl") as file:
        file.write(json.dumps({"tokens": tokens}) + "\n")
        file.flush()
        done = subprocess.run([KVMESH, "generate", "--checkpoint", folder, "--prompts", file.name, "--output", "-", "--dtype", "float32", "--max-new-tokens", str(NEW_TOKENS), "--ignore-eos",
                               "--threads", str(threads)], check=True, capture_output=True, text=True)
    mine, other = json.loads(done.stdout)["tokens"], generate(model, 1, tokens, NEW_TOKENS)[1]
    assert mine == other, (mine, other)


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", nargs="?")
    parser.add_argument("--dtypes", default="bfloat16,float32")
    parser.add_argument("--cases", default="1x128,8x128")
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    with tempfile.TemporaryDirectory() as scratch:
        folder = args.folder or scratch + "/smollm"
        if not args.folder:
            smollm(folder)
        print("| dtype | batch × prompt | | prefill, tokens/s | kvmesh is faster by | decode, tokens/s | kvmesh is faster by |\n|---|---|---|---|---|---|---|")
        for dtype in args.dtypes.split(","):
            model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=getattr(torch, dtype)).eval()
            if dtype == "float32":
                check_same_tokens(folder, model, args.threads)
            for case in args.cases.split(","):
                rows, length = map(int, case.split("x"))
                systems = {"kvmesh": lambda: ours(folder, dtype, rows, length, args.threads), "kvmesh, int8": lambda: ours(folder, dtype, rows, length, args.threads, "int8"),
                           "transformers": lambda: theirs(model, rows, length)}
                theirs(model, rows, length)  # warms up; kvmesh bench does so itself
                seconds = {name: [] for name in systems}
                for _ in range(args.repeat):
                    for name, run in systems.items():
                        seconds[name].append(run())
                prefill, step = ({name: statistics.median(s[i] for s in all) for name, all in seconds.items()} for i in (0, 1))
                for name in systems:
                    print(f"| {dtype} | {rows} × {length} | {name} | {rows * length / prefill[name]:.0f} | {prefill[name] / prefill['kvmesh']:.2f} | {rows / step[name]:.1f} | "
                          f"{step[name] / step['kvmesh']:.2f} |", flush=True)


main()
