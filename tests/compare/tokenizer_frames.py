"""What the tokenizer comparisons share: tiktoken over a ranks file, and kvmesh by way of build/tests/tokenizer_frames."""

import struct
import subprocess

import tiktoken
from tiktoken.load import load_tiktoken_bpe
from tiktoken_ext.openai_public import r50k_pat_str


def reference(ranks_file):
    ranks = load_tiktoken_bpe(ranks_file)
    special = {"<|endoftext|>": len(ranks), "<|pad|>": len(ranks) + 1}
    return tiktoken.Encoding("reference", pat_str=r50k_pat_str, mergeable_ranks=ranks, special_tokens=special)


def kvmesh_encode(program, ranks_file, texts, repeat=1):
    """texts: list of bytes. Returns (ids of each, seconds of the fastest of `repeat` passes)."""
    frames = b"".join(struct.pack("=I", len(text)) + text for text in texts)
    out = subprocess.run([program, ranks_file, str(repeat)], input=frames, stdout=subprocess.PIPE, check=True).stdout
    ids, at = [], 0
    for _ in texts:
        (count,) = struct.unpack_from("=I", out, at)
        ids.append(list(struct.unpack_from(f"={count}i", out, at + 4)))
        at += 4 + 4 * count
    (seconds,) = struct.unpack_from("=d", out, at)
    return ids, seconds
