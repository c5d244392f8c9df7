"""Prints what tests/model/train_data_test.cc expects: the original's rows, and the order of shuffled ones, worked out in Python.

    python tests/reference/train_data.py path/to/nanoGPTJAX/nanogpt/fineweb_dataloader.py

Needs numpy. The class BOSFinder is taken out of the original's file, so that grain need not be installed.
"""
import ast
import sys

import numpy as np

EOT = 50
TOKENS = [9, EOT, 1, 2, EOT, 3, 4, 5, EOT, 6, EOT, 7, 8, 1, 2, 3, 4, EOT, EOT, 5, 6, 7, EOT, 8, 1, 2, 3, EOT, 4]


def original_rows(file, seqlen):
    source = open(file).read()
    finder = next(node for node in ast.parse(source).body if isinstance(node, ast.ClassDef) and node.name == "BOSFinder")
    names = {"np": np, "BOS_ID": EOT}
    exec(ast.unparse(finder), names)
    tokens = np.array(TOKENS, np.uint16)
    finder = names["BOSFinder"](tokens)
    while True:
        try:
            starts, ends = finder.next_batch(1, seqlen)
        except StopIteration:
            return
        row = np.concatenate([tokens[i:j] for i, j in zip(starts, ends)]).tolist()
        yield row[:-1], row[1:]


def threefry(key, hi, lo):
    mask = 0xFFFFFFFF
    keys = (key[0], key[1], key[0] ^ key[1] ^ 0x1BD11BDA)
    x, y = (hi + keys[0]) & mask, (lo + keys[1]) & mask
    for group in range(5):
        for r in ((13, 15, 26, 6), (17, 29, 16, 24))[group % 2]:
            x = (x + y) & mask
            y = ((y << r | y >> (32 - r)) & mask) ^ x
        x = (x + keys[(group + 1) % 3]) & mask
        y = (y + keys[(group + 2) % 3] + group + 1) & mask
    return x, y


def permutation(n, key):
    order = list(range(n))
    for i in range(n, 1, -1):
        hi, lo = threefry(key, 1, i)
        j = (hi << 32 | lo) % i
        order[i - 1], order[j] = order[j], order[i - 1]
    return order


def shuffled(shards, seed, epoch):
    """The rows of shards (lists), in the epoch's order."""
    key = threefry((0, seed), 0, epoch)
    return [shards[s][row] for s in permutation(len(shards), key) for row in permutation(len(shards[s]), threefry(key, 0, s))]


if __name__ == "__main__":
    for row in original_rows(sys.argv[1], 4):
        print(*row)
    for epoch in (0, 1):
        print(shuffled([[0, 1, 2, 3], [10, 11, 12, 13, 14], [20, 21]], 3, epoch))
