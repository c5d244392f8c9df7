"""Writes model/chat/unicode_tables.inc: which code points Python prints as they are, and their upper and lower case.

    python tests/reference/python_text.py model/chat/unicode_tables.inc

Made with Python 3.11 (Unicode 14). Code points whose case is not one other code point, whatever stands around it, are in a list of their own.
"""

import sys

CODE_POINTS = [c for c in range(0x80, 0x110000) if not 0xD800 <= c < 0xE000]


def ranges(codes):
    out = []
    for c in codes:
        if out and out[-1][1] == c - 1:
            out[-1][1] = c
        else:
            out.append([c, c])
    return [f"{{{a:#x}, {b:#x}}}" for a, b in out]


def mapped(changes):
    """(first, last, step, difference) of runs of code points that change alike."""
    out = []
    for c, to in changes:
        if out and out[-1][3] == to - c and (step := c - out[-1][1]) in (1, 2) and (out[-1][0] == out[-1][1] or out[-1][2] == step):
            out[-1][1], out[-1][2] = c, step
        else:
            out.append([c, c, 1, to - c])
    return [f"{{{a:#x}, {b:#x}, {step}, {difference}}}" for a, b, step, difference in out]


def special(c):
    t = chr(c)
    return len(t.upper()) > 1 or len(t.lower()) > 1 or t.title() != t.upper() or t in "Σ"


def table(kind, name, entries):
    lines, line = [], "   "
    for entry in entries:
        if len(line) + len(entry) + 2 > 158:
            lines.append(line)
            line = "   "
        line += f" {entry},"
    return f"constexpr {kind} {name}[] = {{\n" + "\n".join(lines + [line]) + "};\n"


plain = [c for c in CODE_POINTS if not special(c)]
with open(sys.argv[1], "w", encoding="ascii") as out:
    out.write("// Made by tests/reference/python_text.py from the behaviour of Python 3.11; not to be edited by hand.\n\n")
    out.write(table("Range", "not_printable", ranges([c for c in CODE_POINTS if not chr(c).isprintable()])) + "\n")
    out.write(table("Range", "special_case", ranges([c for c in CODE_POINTS if special(c)])) + "\n")
    out.write(table("CaseRange", "to_upper", mapped([(c, ord(chr(c).upper())) for c in plain if chr(c).upper() != chr(c)])) + "\n")
    out.write(table("CaseRange", "to_lower", mapped([(c, ord(chr(c).lower())) for c in plain if chr(c).lower() != chr(c)])))
