#!/usr/bin/env python3
"""What the journal and the sentinel cost: the same job with and without each, in turn, and what the job itself says of its time.

    tests/compare/overheads.py [--repeat R] [--ranks N]

Two models: the shipped one, whose steps are as short as steps get, and random weights of the original's shape (768 wide, 12 layers, 50304 tokens) in bfloat16.
"""
import argparse
import json
import math
import os
import pathlib
import random
import statistics
import struct
import subprocess
import sys
import tempfile

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1] / "launch"))
from command_line import KVMESH, MPIRUN, SOURCE, shapes_of  # noqa: E402


def write_original_shape(folder):
    """Weights of ±1/128 to ±1/64, at random."""
    config = {"seqlen": 2048, "vocab_size": 50304, "d_emb": 768, "num_layers": 12, "q_heads": 8, "kv_heads": 4}
    shapes = shapes_of(config) | {"embed.weight": [50304, 768], "lm_head.weight": [768, 50304]}
    header, at = {}, 0
    for name, shape in shapes.items():
        header[name] = {"dtype": "BF16", "shape": shape, "data_offsets": [at, at + 2 * math.prod(shape)]}
        at += 2 * math.prod(shape)
    text = json.dumps(header).encode()
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(config))
    with open(folder / "model.safetensors", "wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        block = bytearray(os.urandom(1 << 20))
        block[1::2] = bytes(random.Random(1).choice((0x3C, 0xBC)) for _ in range(1 << 19))
        for done in range(0, at, len(block)):
            file.write(block[: min(len(block), at - done)])
    return folder


def run(checkpoint, prompts, folder, ranks, words):
    for name in ("out.jsonl", "metrics.jsonl"):
        (folder / name).unlink(missing_ok=True)
    command = [MPIRUN, "-np", ranks, KVMESH, "generate", "--checkpoint", checkpoint, "--prompts", prompts, "--batch-size", 8, "--ignore-eos", "--metrics", folder / "metrics.jsonl", *words]
    subprocess.run([str(w) for w in command], check=True, stdin=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    return json.loads((folder / "metrics.jsonl").read_text().splitlines()[-1])


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--repeat", type=int, default=7)
    parser.add_argument("--ranks", type=int, default=1)
    o = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="kvmesh-overheads-") as scratch:
        folder = pathlib.Path(scratch)
        models = {"shipped, 1.0 M parameters": (SOURCE / "configs" / "stories", 400, 200), "the original's shape, bfloat16": (write_original_shape(folder / "original"), 16, 48)}
        ways = {"neither": ["--output", "/dev/null", "--sentinel", 0], "journal": ["--output", folder / "out.jsonl", "--fresh", "--sentinel", 0], "sentinel": ["--output", "/dev/null", "--sentinel", 16]}
        print("| model | | seconds, median | against neither | reading, writing, syncing (rank 0) | the loop and the sentinel (rank 0) |\n|---|---|---|---|---|---|")
        for model, (checkpoint, rows, tokens) in models.items():
            prompts = folder / "prompts.jsonl"
            prompts.write_text("".join(json.dumps({"id": i, "tokens": [1 + (i * 7 + j) % 200 for j in range(16)], "max_new_tokens": tokens}) + "\n" for i in range(rows)))
            lasts = {way: [] for way in ways}
            for _ in range(o.repeat):
                for way, words in ways.items():
                    lasts[way].append(run(checkpoint, prompts, folder, o.ranks, words)["ranks"][0])
            seconds = {way: [rank["wall_s"] - rank["start_s"] for rank in lasts[way]] for way in ways}
            for way in ways:
                ratio = statistics.median(a / b for a, b in zip(seconds[way], seconds["neither"]))
                share = lambda part: 100 * statistics.median(rank[part] / s for rank, s in zip(lasts[way], seconds[way]))
                print(f"| {model} | {way} | {statistics.median(seconds[way]):.2f} | {ratio:.3f} | {share('io_s'):.2f} % | {share('loop_s'):.2f} % |", flush=True)


main()
