"""Writes model/tokenizer/unicode_classes.inc: which code points tiktoken's regular expressions take for \\p{L}, \\p{N} and \\s.

    python tests/reference/unicode_classes.py model/tokenizer/unicode_classes.inc

Needs: pip install tiktoken. It asks tiktoken itself, by how it cuts text. Made with tiktoken 0.14.0.
"""

import sys

import tiktoken
from tiktoken_ext.openai_public import r50k_pat_str

CODE_POINTS = [c for c in range(0x110000) if not 0xD800 <= c < 0xE000]


def probe():
    """Ranks whose only merges are a? ?1 ?! for all bytes ?, so that the ids of f"a{c}1a{c}!" show how it is cut."""
    ranks = {bytes([b]): b for b in range(256)}
    for pair in [f(bytes([b])) for f in (lambda b: b"a" + b, lambda b: b + b"1", lambda b: b + b"!") for b in range(256)]:
        ranks.setdefault(pair, len(ranks))
    return ranks


def probe_text(c):
    return f"a{chr(c)}1a{chr(c)}!\n"


def classes():
    ranks = probe()
    encode = tiktoken.Encoding("probe", pat_str=r50k_pat_str, mergeable_ranks=ranks, special_tokens={}).encode_ordinary
    found = {"letter": [], "number": [], "space": []}
    for c in CODE_POINTS:
        first, last = chr(c).encode()[:1], chr(c).encode()[-1:]
        ids = encode(probe_text(c))
        if ids[0] == ranks[b"a" + first]:
            found["letter"].append(c)
        elif c == 0x20:  # joins what follows it, whatever that is
            found["space"].append(c)
        elif ranks[last + b"1"] in ids:
            found["number"].append(c)
        elif ranks[last + b"!"] not in ids:
            found["space"].append(c)
    assert ord("a") in found["letter"] and ord("1") in found["number"] and ord("!") not in sum(found.values(), [])
    return found


def ranges(codes):
    out = []
    for c in codes:
        if out and out[-1][1] == c - 1:
            out[-1][1] = c
        else:
            out.append([c, c])
    return [f"{{{first:#x}, {last:#x}}}," for first, last in out]


def table_lines(name, codes):
    """Lines of a table of ranges in C++."""
    lines, line = [f"constexpr Range {name}_ranges[] = {{"], "   "
    for text in ranges(codes):
        if len(line) + 1 + len(text) > 148:
            lines.append(line)
            line = "   "
        line += " " + text
    return lines + [line, "};"]


def main(path):
    lines = [f"// Made by tests/reference/unicode_classes.py from the behaviour of tiktoken {tiktoken.__version__}; not to be edited by hand."]
    for name, codes in classes().items():
        lines += ["", *table_lines(name, codes)]
    with open(path, "w") as f:
        f.write("\n".join(lines) + "\n")


if __name__ == "__main__":
    main(*sys.argv[1:])
