"""Races kvmesh's tokenizer against tiktoken on one thread; both give the same ids or this fails.

    python tests/compare/tokenizer_speed.py RANKS build/tests/tokenizer_frames [TEXT_FILE ...]

Prints megabytes a second of both and their ratio: the fastest of several passes each, in turns, the loading left out.
Each TEXT_FILE is one text of its own; the texts without a file are made here. Exits with 1 if kvmesh is slower on any.
"""

import random
import sys
import time

from tokenizer_frames import kvmesh_encode, reference


def made_texts():
    rng = random.Random(1)
    words = "the of and to in is you that it he was for on are as with his they at be this have from".split()
    long_words = ["".join(rng.choices("etaoinshrdlucmfwypvbgkjqxz", k=rng.randint(3, 11))) for _ in range(3000)]
    cjk = [chr(c) for c in range(0x4E00, 0x9FA0)]
    emoji = [chr(c) for c in range(0x1F300, 0x1F650)] + ["\u200d", "\ufe0f", "👩🏽‍🚀"]
    letters = "abcdefghijklmnopqrstuvwxyz"
    yield "words", " ".join(rng.choice(words if rng.random() < 0.5 else long_words) for _ in range(180_000))
    yield "numbers, punctuation", "".join(f"{rng.randint(0, 10**9)}, ({rng.random():.3f}) -> [{rng.choice(words)}];\n" for _ in range(30_000))
    yield "CJK and emoji", "".join(rng.choice(cjk) if rng.random() < 0.8 else rng.choice(emoji + ["，", "。", " "]) for _ in range(330_000))
    yield "1 MB of a", "a" * 1_000_000
    yield "1 MB of spaces", " " * 1_000_000
    yield "spaces, then a letter", (" " * 9_999 + "a") * 100  # tiktoken refuses a megabyte of spaces before a letter
    yield "1 MB of letters", "".join(rng.choices(letters, k=1_000_000))
    yield "1 MB of CJK, no space", "".join(rng.choices(cjk, k=333_333))
    yield "1 MB of digits", "".join(rng.choices("0123456789", k=1_000_000))
    yield "1 MB of !", "!" * 1_000_000
    yield "special tokens", "<|endoftext|>a<|pad|>" * 50_000
    yield "1 MB of <", "<" * 1_000_000


def main(ranks_file, program, *files):
    encoding = reference(ranks_file)
    slower = False
    texts = [(name.rsplit("/", 1)[-1], open(name, encoding="utf-8", errors="replace").read()) for name in files]
    for name, text in texts + list(made_texts()):
        data = text.encode()
        theirs = ours = float("inf")
        for _ in range(3):
            for _ in range(3):
                start = time.perf_counter()
                expected = encoding.encode(text, allowed_special="all")
                theirs = min(theirs, time.perf_counter() - start)
            (ids,), seconds = kvmesh_encode(program, ranks_file, [data], repeat=3)
            ours = min(ours, seconds)
        assert ids == expected, name
        slower |= ours > theirs
        print(f"{name:26} {len(data) / 1e6:6.2f} MB  tiktoken {len(data) / theirs / 1e6:7.2f} MB/s  "
              f"kvmesh {len(data) / ours / 1e6:7.2f} MB/s  {theirs / ours:6.2f}x", flush=True)
    return 1 if slower else 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
