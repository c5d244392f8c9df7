"""Compares kvmesh's tokenizers with the tokenizers package on random texts, or races them on one thread.

    python tests/compare/tokenizers_package.py build/tests/tokenizer_frames [--texts N] [--seed S] [--tokens N] [KIND ...]
    python tests/compare/tokenizers_package.py build/tests/tokenizer_frames --file TOKENIZER_JSON --speed TEXT_FILE

Needs: pip install tokenizers tiktoken. The kinds are those of tests/reference/tokenizer_json.py, built here with N tokens beside bytes or characters. Of each text the
ids, with and without special tokens, and what decodes to them; of as many lists of ids by chance what they decode to. Exits with 1 if anything differs.
"""

import argparse
import os
import pathlib
import random
import sys
import tempfile
import time

os.environ["TOKENIZERS_PARALLELISM"] = "false"
sys.path.append(str(pathlib.Path(__file__).parents[1] / "reference"))

from tokenizer_frames import kvmesh_decode, kvmesh_encode
from tokenizer_json import KINDS, any_text, build, some_ids
from tokenizers import Tokenizer


def compare(program, name, args, folder):
    rng = random.Random(f"{name} {args.seed}")
    text = build(name, args.tokens)
    file = folder / f"{name}.json"
    file.write_text(text)
    theirs = Tokenizer.from_str(text)
    texts = [any_text(rng) for _ in range(args.texts)]
    data = [t.encode() for t in texts]
    wrong = 0

    def expect(what, given, ours, expected):
        nonlocal wrong
        for g, a, b in zip(given, ours, expected):
            wrong += a != b
            if a != b and wrong <= 5:
                print(f"{name}, {what} {g!r}:\n  kvmesh     {a!r}\n  tokenizers {b!r}")

    plain = [t.ids for t in theirs.encode_batch(texts, add_special_tokens=False)]
    expect("encode", texts, kvmesh_encode(program, file, data)[0], [t.ids for t in theirs.encode_batch(texts)])
    expect("encode, plain", texts, kvmesh_encode(program, file, data, mode="plain")[0], plain)
    lists = plain + [some_ids(theirs, rng) for _ in range(args.texts)]
    expect("decode", lists, kvmesh_decode(program, file, lists), [theirs.decode(ids, skip_special_tokens=False) for ids in lists])
    print(f"{name:20} {len(texts)} texts, {sum(map(len, data)) / 1e6:.1f} MB, {len(lists)} lists of ids: {wrong} differ", flush=True)
    return wrong


def race(program, file, text_file):
    text = pathlib.Path(text_file).read_text(errors="replace")
    documents = text.split("\n\n")
    data = [d.encode() for d in documents]
    megabytes = sum(map(len, data)) / 1e6
    tokenizer = Tokenizer.from_file(file)
    theirs = ours = float("inf")
    for _ in range(5):
        start = time.process_time()
        expected = [tokenizer.encode(d).ids for d in documents]
        theirs = min(theirs, time.process_time() - start)
        ids, seconds = kvmesh_encode(program, file, data, repeat=3)
        ours = min(ours, seconds)
    assert ids == expected
    print(f"{file}: {megabytes:.2f} MB  tokenizers {megabytes / theirs:.2f} MB/s  kvmesh {megabytes / ours:.2f} MB/s  {theirs / ours:.2f}x")


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("program")
    parser.add_argument("--texts", type=int, default=20_000)
    parser.add_argument("--tokens", type=int, default=2_000)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--file")
    parser.add_argument("--speed")
    parser.add_argument("kinds", nargs="*", default=list(KINDS))
    args = parser.parse_args()
    if args.speed:
        race(args.program, args.file, args.speed)
        return 0
    with tempfile.TemporaryDirectory() as folder:
        return 1 if sum([compare(args.program, name, args, pathlib.Path(folder)) for name in args.kinds]) else 0


if __name__ == "__main__":
    sys.exit(main())
