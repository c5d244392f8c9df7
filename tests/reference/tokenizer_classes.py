"""Writes model/tokenizer/tokenizer_classes.inc: classes of code points that the tokenizers package has besides those of model/tokenizer/unicode_classes.inc.

    python tests/reference/tokenizer_classes.py model/tokenizer/tokenizer_classes.inc

Needs: pip install tokenizers. It asks the package itself, code point by code point, and stops if \\p{L}, \\p{N} and \\s in its
patterns or its added tokens' white space are not what model/tokenizer/unicode_classes.inc says of tiktoken. Made with tokenizers 0.23.3.
"""

import pathlib
import re
import sys
import unicodedata

import tokenizers
from tokenizers import AddedToken, Regex, Tokenizer, models, normalizers, pre_tokenizers
from unicode_classes import CODE_POINTS, table_lines

ALL = "".join(map(chr, CODE_POINTS))


def matched(pattern):
    kept = pre_tokenizers.Split(Regex(pattern), "removed").pre_tokenize_str(ALL)
    return set(CODE_POINTS) - {c for _, (begin, end) in kept for c in CODE_POINTS[begin:end]}


def table(name):
    text = (pathlib.Path(__file__).parents[2] / "model/tokenizer/unicode_classes.inc").read_text().split(f"{name}_ranges[] = {{")[1].split("};")[0]
    return {c for first, last in re.findall(r"\{(\w+), (\w+)\}", text) for c in range(int(first, 16), int(last, 16) + 1)}


def with_token(**flags):
    tokenizer = Tokenizer(models.BPE({"a": 0}, [], unk_token="a"))
    tokenizer.add_tokens([AddedToken("X", normalized=False, **flags)])
    return lambda text: tokenizer.encode(text).tokens


def numeric():
    digits = pre_tokenizers.Digits(individual_digits=True)
    return {c for c in CODE_POINTS if len(digits.pre_tokenize_str(f"a{chr(c)}a")) == 3}


def word():
    tokens = with_token(single_word=True)
    return {c for c in CODE_POINTS if chr(c) == "X" or "X" not in tokens(chr(c) + "X")}


def added_token_space():
    tokens = with_token(rstrip=True)
    return {c for c in CODE_POINTS if len(tokens("X" + chr(c))) == 1 and chr(c) != "X"}


def nfc_active():
    """What decomposes, is not a starter, or composes with another. What is none of these separates texts that NFC changes apart."""
    nfc, nfd = normalizers.NFC().normalize_str, normalizers.NFD().normalize_str
    active = {c for c in CODE_POINTS if nfd(chr(c)) != chr(c)}
    for c in CODE_POINTS:
        for text in ("a\u0345" + chr(c), "a" + chr(c) + "\u0334"):  # the highest and the lowest combining class
            if nfc(text) != text:
                active.add(c)
    for c in CODE_POINTS:
        parts = unicodedata.normalize("NFD", chr(c))
        pair = unicodedata.decomposition(chr(c))
        for text in (parts, "" if "<" in pair else "".join(chr(int(p, 16)) for p in pair.split())):
            if len(text) > 1 and nfc(text) != text:
                active.update(map(ord, text))
    return active


def main(path):
    letter, number, space = table("letter"), table("number"), table("space")
    assert matched(r"\p{L}+") == letter and matched(r"\p{N}+") == number and matched(r"\s+") == space and added_token_space() == space
    words, numbers, active = word(), numeric(), nfc_active()
    assert letter <= words and number <= numbers
    lines = [f"// Made by tests/reference/tokenizer_classes.py from the behaviour of tokenizers {tokenizers.__version__}; not to be edited by hand."]
    for name, what, codes in (
        ("more_numeric", "What Digits takes for a number and \\p{N} does not.", numbers - number),
        ("more_word", "What single_word takes for a part of a word (\\w) and is no letter.", words - letter),
        ("nfc_active", "What decomposes, combines or composes in NFC.", active),
    ):
        lines += ["", f"// {what}", *table_lines(name, sorted(codes))]
    with open(path, "w") as f:
        f.write("\n".join(lines) + "\n")


if __name__ == "__main__":
    main(*sys.argv[1:])
