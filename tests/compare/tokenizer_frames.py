"""What the tokenizer comparisons share: tiktoken over a ranks file, and kvmesh by way of build/tests/tokenizer_frames."""

import struct
import subprocess


def reference(ranks_file):
    import tiktoken
    from tiktoken.load import load_tiktoken_bpe
    from tiktoken_ext.openai_public import r50k_pat_str

    ranks = load_tiktoken_bpe(ranks_file)
    special = {"<|endoftext|>": len(ranks), "<|pad|>": len(ranks) + 1}
    return tiktoken.Encoding("reference", pat_str=r50k_pat_str, mergeable_ranks=ranks, special_tokens=special)


def run(program, file, args, frames):
    return subprocess.run([program, file, *args], input=b"".join(frames), stdout=subprocess.PIPE, check=True).stdout


def kvmesh_encode(program, file, texts, repeat=1, mode="encode"):
    """texts: list of bytes. Returns (ids of each, seconds of the fastest of `repeat` passes)."""
    out = run(program, file, [mode, str(repeat)], (struct.pack("=I", len(text)) + text for text in texts))
    ids, at = [], 0
    for _ in texts:
        (count,) = struct.unpack_from("=I", out, at)
        ids.append(list(struct.unpack_from(f"={count}i", out, at + 4)))
        at += 4 + 4 * count
    (seconds,) = struct.unpack_from("=d", out, at)
    return ids, seconds


def kvmesh_decode(program, file, lists):
    """Returns the text of each list of ids."""
    out = run(program, file, ["decode"], (struct.pack(f"=I{len(ids)}i", len(ids), *ids) for ids in lists))
    texts, at = [], 0
    for _ in lists:
        (count,) = struct.unpack_from("=I", out, at)
        texts.append(out[at + 4 : at + 4 + count].decode())
        at += 4 + count
    return texts
