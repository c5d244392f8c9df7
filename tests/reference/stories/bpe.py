"""Trains a small byte-level BPE vocabulary on stories and writes it in tiktoken's format: base64-bytes SPACE rank, a line each.

    python tests/reference/stories/bpe.py --output configs/stories/tokenizer.tiktoken --ranks 1150

The first 256 ranks are the single bytes, in order of value; each further one joins the pair that occurs most often inside the
words of GPT-2's split pattern (ties: the pair that sorts first). tiktoken then reads the file and must give every text back. Needs: pip install regex tiktoken
"""
import argparse
import base64
from collections import Counter
from pathlib import Path

import regex
import tiktoken

from stories import story

PATTERN = r"'(?:[sdmt]|ll|ve|re)| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"


def tokenizer_of(path):
    """A tiktoken encoding of a ranks file, with the special tokens that a checkpoint folder has by default."""
    lines = Path(path).read_text().splitlines()  # not load_tiktoken_bpe, which keeps what it once read under a path
    ranks = {base64.b64decode(token): int(rank) for token, rank in map(str.split, lines)}
    return tiktoken.Encoding("stories", pat_str=PATTERN, mergeable_ranks=ranks,
                             special_tokens={"<|endoftext|>": len(ranks), "<|pad|>": len(ranks) + 1})


def joined(word, pair):
    out, i = [], 0
    while i < len(word):
        take = 2 if word[i:i + 2] == pair else 1
        out.append(b"".join(word[i:i + take]))
        i += take
    return tuple(out)


def train(texts, size):
    counts = Counter(word for text in texts for word in regex.findall(PATTERN, text))
    words = {tuple(bytes([b]) for b in word.encode()): count for word, count in counts.items()}
    ranks = [bytes([b]) for b in range(256)]
    while len(ranks) < size:
        pairs = Counter()
        for word, count in words.items():
            for pair in zip(word, word[1:]):
                pairs[pair] += count
        if not pairs:
            raise SystemExit(f"the words are used up at {len(ranks)} ranks")
        pair = min(pairs, key=lambda p: (-pairs[p], p))
        ranks.append(pair[0] + pair[1])
        words = {joined(word, pair): count for word, count in words.items()}
    return ranks


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--ranks", type=int, default=1150)
    parser.add_argument("--count", type=int, default=5000)
    parser.add_argument("--seed", type=int, default=1)
    args = parser.parse_args()
    texts = [story(args.seed, i)[0] for i in range(args.count)]
    ranks = train(texts, args.ranks)
    args.output.write_text("".join(f"{base64.b64encode(token).decode()} {rank}\n" for rank, token in enumerate(ranks)))

    encoding = tokenizer_of(args.output)
    hard = ["", "Ünïcode — 猫 🦊 e\u0301", "  two  spaces\n\ttab ", "".join(map(chr, range(0x250)))]
    for text in texts + hard:
        assert encoding.decode(encoding.encode_ordinary(text)) == text, text
    words = {word for text in texts for word in regex.findall(PATTERN, text)}
    lengths = Counter(len(encoding.encode_ordinary(word)) for word in words)
    print(f"{len(ranks)} ranks, round trip of {len(texts) + len(hard)} texts; {len(words)} words of " +
          ", ".join(f"{n} tokens: {lengths[n]}" for n in sorted(lengths)))


if __name__ == "__main__":
    main()
