"""A few steps of training on random tokens: how fast they are, and where their time goes."""

import json
import random
import statistics
import struct

SPLIT = ("gradients", "exchange", "update", "gather", "packing")
END_OF_TEXT = 0


def write_inputs(folder, shape, rows):
    """A checkpoint folder without weights, and a shard of tokens for so many rows. shape: as bench's."""
    width, layers, q_heads, kv_heads, vocab, seqlen = map(int, shape.split(","))
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps({"seqlen": seqlen, "vocab_size": vocab, "d_emb": width, "num_layers": layers, "q_heads": q_heads, "kv_heads": kv_heads}))
    generator, tokens = random.Random(1), []
    for _ in range(rows):  # a document a row, as long as a filled row is
        tokens += [END_OF_TEXT] + [generator.randrange(1, min(vocab, 1 << 16)) for _ in range(seqlen)]
    (folder / "tokens.bin").write_bytes(struct.pack("<256i", 20240520, 1, len(tokens), *[0] * 253) + struct.pack(f"<{len(tokens)}H", *tokens))


def words(folder, device, dtype, optimizer, attention, batch_rows, micro_rows, steps):
    return ["train", "--checkpoint", folder, "--data", folder / "tokens.bin", "--end-of-text", END_OF_TEXT, "--output", folder / "out", "--metrics", folder / "metrics.jsonl", "--device", device,
            "--dtype", dtype, "--optimizer", optimizer, "--attention", attention, "--init", "original", "--batch-rows", batch_rows, "--micro-rows", micro_rows, "--steps", steps, "--fresh"]


def figures(folder):
    """Of the median step after the first two, which are slower: memory has still to be found."""
    steps = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()][2:]
    middle = sorted(steps, key=lambda s: s["tokens_per_s"])[len(steps) // 2]
    return {"tokens_per_s": statistics.median(s["tokens_per_s"] for s in steps), "peak_fraction": middle["peak_fraction"], "seconds": middle["seconds"],
            "split": {part: middle["split"][part] for part in SPLIT}, "loss": steps[-1]["loss"]}
