"""Writes tests/fixtures/small.tiktoken, a vocabulary of 1,000 tokens, and tests/fixtures/tokenizer.json: difficult texts and what tiktoken makes of them.

    python tests/reference/tokenizer.py GPT2_RANKS tests/fixtures

Needs: pip install tiktoken. Made with tiktoken 0.14.0. Three vocabularies: "small", "gpt2" and "reversed", which is the small one
with rank r moved to 3·(999 − r): merges in the opposite order, gaps between the ranks. Long lists of ids are given by their
hash: h = (h xor id)·0x100000001b3 mod 2⁶⁴ from 0xcbf29ce484222325 on. Texts are given as their UTF-8 bytes in hexadecimal where
they are not valid UTF-8, or are parts of a text that tiktoken never sees.
"""

import base64
import json
import pathlib
import random
import sys

import tiktoken
from tiktoken._educational import bpe_train
from tiktoken.load import load_tiktoken_bpe
from tiktoken_ext.openai_public import r50k_pat_str
from unicode_classes import probe, probe_text

ENGLISH = """Once upon a time a fox lived at the edge of a wood. She'd built her den under an old oak, and she wasn't afraid of anyone.
"I'll go to the river," said the fox, "they've told me that it's full of fish." It was 1,024 steps to the river; on 31/12/1999 she'd counted them!
The heron didn't like visitors. He'd say: 'We're closed.' Then he'd turn his back -- and the fox would wait... and wait.
\tif (x == 0) {\n\t\treturn x + 1;  // never\n\t}\n    for i in range(10):\n        print(i)\n
"""

# Texts that tell tokenizers apart.
TEXTS = [
    "", " ", "  ", "   ", "\n", " \n", "\n ", "\n\n\n", "\t", " \t \n \r\n", "a", " a", "  a", "a ", "a  ", "a  b", "a   b\n", "\ta", " \ta", "\t a", "\r\na\r\n",
    "hello world", "Hello, World! How are you?", ENGLISH,
    # contractions: lower case and U+0027 only, also after spaces and inside words
    "it's I'm we're they've he'd she'll don't", "IT'S I'M WE'RE THEY'VE HE'D SHE'LL DON'T", "it’s don’t we’re", "'s", " 's", "'S", "''s", "'ss", "'l", "'lll", "'v", "'ve've",
    "'r", "'re", "'t't", "x's'd'm't", "1's", "!'s", " '", "'", "'é", "'ſ", "o'clock rock'n'roll 'tis '90s", "l'été d'abord", "'\n's",
    # emoji: joined, with skin tones, flags, keycaps, tag sequences
    "👩‍🚀", "👩🏽‍🚀 👨🏿‍👩🏻‍👧🏼‍👦🏾", "🏳️‍🌈🏴‍☠️", "🏴󠁧󠁢󠁳󠁣󠁴󠁿", "1️⃣2️⃣#️⃣", "🇩🇪🇫🇷🇯🇵", "👍🏽👍👍🏿", "❤️‍🔥 ❤", "a😀b 😀 1😀2",
    # combining marks, before, after and alone
    "e\u0301 é", "\u0301", " \u0301a", "a\u0301\u0302\u0303\u0304b", "Z͑ͫ̓ͪ̂ͫ̽͏̴̙̤̞͉͚̯̞̠͍A̴̵̜̰͔ͫ͗͢L̠ͨͧͩ͘G̴̻͈͍͔̹̑͗̎̅͛́Ǫ̵̹̻̝̳͂̌̌͘!͖̬̰̙̗̿̋ͥͥ̂ͣ̐́́͜͞", "a\u20dd1\u20dd",
    # scripts
    "汉字和漢字、かな カナ。", "中文没有空格但是有标点，对吗？是的！", "한국어 문장입니다. 가각\u1100\u1161\u11a8", "مرحبا بالعالم، ٣٤٥ و ۴۵۶", "नमस्ते दुनिया क्षत्रिय १२३", "ภาษาไทยไม่มีช่องว่าง ๑๒๓",
    "Привет, мир! Ёлка", "Ελληνικά ΰ ς", "שָׁלוֹם עולם", "ქართული Ქართული", "ᏣᎳᎩ ꭰ", "İıſẞßﬁ ǅ", "𝔘𝔫𝔦𝔠𝔬𝔡𝔢 𝟘𝟙𝟚", "𐐀𐐨 𓀀 𒀀 𞤀", "Tiếng Việt: ế ệ",
    # white space and what only looks like it
    "a\u180eb \u180e c", "a\u0085b\u0085\u0085 c", "a\u00a0b \u00a0 c\u00a0", "a\u2028b\u2029c \u2028 d", "\u3000a\u3000\u3000b \u3000c", "a\u200bb \u200b c", "\ufeffa \ufeff b", "a\u2060b",
    "a\u1680b\u2000\u2001\u2002c\u2003 d\u202f1\u205f2", "\x0b\x0c\x1c\x1d\x1e\x1f a\x0bb\x0cc", "\x00a\x00 \x00\x00", "\x7f \x7fa", "a\u00adb", "  \u00a0 a", " \u3000a", "\u3000 a",
    "a \u0085", "a\u0085 ", "\u2029", "\u200d\u200c", "x \n\n  y", "x\n \n y", "x  \n", "x\t\ty", "    indented\n        more\n\tless\n", " " * 7 + "seven", "end   ", "end \n\n\n",
    # numbers
    "½ ² ³ ¹ ٣ Ⅷ ⅷ 〇 ① ㊿ ௲", "a½b²c", "1½", "12345678901234567890", "1,000,000.00", "0x1F 1e-10", "３１４", "x1y2z3", " 1", "  1", "1 1", "𝟏𝟐", "৳১২", "1\u0301", "一二三",
    # punctuation and symbols
    "!?!?!?", "...", " ...", "…", "--->", "<<>>", "a_b__c", "$€£¥₿", "«guillemets» „quotes“", "()[]{}", " !", "  !", "! !", "\\n\\t", "C++ C# .NET", "a@b.example", "http://example.org/?q=1&r=%20",
    # private use, unassigned, last code points
    "\ue000 \uf8ffa", "\U000f0000\U0010fffd", "\ufffe\uffff", "\u0378 a\u0378b", "\U000e0080", "\U0010ffff", "\ufffd\ufffd a", "\u2fe0", "\U0003fffe",
    # special tokens, whole, cut and nested
    "<|endoftext|>", "a<|endoftext|>b", "a <|endoftext|> b", "<|endoftext|><|endoftext|>", "<|endoftext|", "<|endoftext|<|endoftext|>>", "<|pad|>", "<|pad|>x<|endoftext|>", "<|ENDOFTEXT|>", "<<|pad|>>",
    "  <|pad|>  a", "a\n\n<|endoftext|>\n\nb", "'<|pad|>s", "<|<|pad|>", "1<|pad|>1", "é<|pad|>\u0301",
    # runs
    "a" * 63, "a" * 64, "a" * 65, "ab" * 50, " " * 63 + "a", " " * 130, "\n" * 100, "1" * 77, "!" * 99, "é" * 40, "漢" * 50, "😀" * 30, "the" * 40, "=" * 80 + "\n" + "-" * 80, "\u00a0" * 70 + "a",
    "A" * 100 + "'s", " a" * 60, "a " * 60, "\t" * 65 + "x", "aA" * 70,
]

# Long texts, up to a megabyte: a unit, how often, and what follows.
LONG = [
    ("a", 1_000_000, ""), (" ", 200_000, ""), ("\n", 60_000, ""), ("1", 60_000, "x"), ("!", 60_000, " "), ("漢字", 10_000, "。"), ("ab", 30_000, "'s"), (" the fox", 10_000, "."),
    ("<|pad|>a", 8_000, ""), ("👩🏽‍🚀", 4_000, ""), (" " * 9_999 + "a", 6, ""), ("<", 60_000, ""), ("e\u0301", 20_000, ""), ("\u3000", 20_000, "a"),
]
LONG_RANDOM = [("abcdefghijklmnopqrstuvwxyz", 300_000), ("etaoin", 60_000), ("0123456789", 60_000), (".,!?-()", 60_000), ("ab \n", 60_000)]

ALPHABETS = [
    "abcdefghijklmnopqrstuvwxyz", "ABCDEFGHIJKLMNOPQRSTUVWXYZ", "0123456789", " ", " \t\n\r\x0b\x0c\x85\xa0", "'smtdlver", "'’`\"", "!@#$%^&*()-_=+[]{};:,.<>/?\\|~", "éèüñßÅøæœİıſ",
    "\u0300\u0301\u0302\u0308\u034f\u20dd\u20e3\ufe0f\ufe0e", "汉字漢かなカナ。、，！", "한국어가각힣\u1100\u1161\u11a8", "مرحبا٣٤٥۴۵۶،", "नमस्ते१२३क्ष", "👩🏽🚀👨🏿👧👦😀🏳🌈🇩🇪\u200d\ufe0f",
    "\u180e\u1680\u2000\u2003\u200a\u200b\u2028\u2029\u202f\u205f\u2060\u3000\ufeff", "½²³¹Ⅷ〇①㊿௲𝟘𝟙", "\ue000\uf8ff\U000f0000\U0010ffff\ufffd\ufffe\u0378\u2fe0", "\x00\x01\x1b\x1c\x1f\x7f\x80\x9f\xad",
    ["<|endoftext|>", "<|pad|>", "<|", "|>", "endoftext", "<", " ", "a"], ["'s", "'t", "'re", "'ve", "'m", "'ll", "'d", " ", "a", "1"], ["the ", " fox", "and", " river", "ing", "\n"],
]

MASK = (1 << 64) - 1


def hashed(ids):
    h = 0xCBF29CE484222325
    for i in ids:
        h = (h ^ i) * 0x100000001B3 & MASK
    return f"{h:016x}"


def lcg_text(alphabet, count):
    """x ← x·6364136223846793005 + 1442695040888963407 mod 2⁶⁴ from 1 on; a letter is x's upper 31 bits modulo their number."""
    x, out = 1, []
    for _ in range(count):
        x = (x * 6364136223846793005 + 1442695040888963407) & MASK
        out.append(alphabet[(x >> 33) % len(alphabet)])
    return "".join(out)


def random_text(rng):
    alphabets = rng.sample(ALPHABETS, rng.randint(1, 4)) + [ALPHABETS[3]]
    text = ""
    for _ in range(rng.randint(1, 30)):
        alphabet = rng.choice(alphabets)
        run = rng.choice(alphabet) * rng.randint(1, 90) if rng.random() < 0.05 else "".join(rng.choices(alphabet, k=rng.randint(1, 6)))
        text += run
    return text


def random_bytes(rng):
    """Whole characters, cut ones, stray bytes, overlong forms and surrogates."""
    parts = [b"a", b" ", "é".encode(), "漢".encode(), "😀".encode(), b"<|pad|>", b"\x80", b"\xbf", b"\xc0", b"\xc1", b"\xc2", b"\xe0", b"\xe0\x80", b"\xe0\xa0", b"\xed\xa0\x80", b"\xed\x9f",
             b"\xef\xbf", b"\xf0", b"\xf0\x80", b"\xf0\x9f\x98", b"\xf0\x90", b"\xf4\x8f\xbf", b"\xf4\x90", b"\xf5", b"\xff", b"\xfe", b"\xe2\x80", b"\xe1\x80\xe2\xf0\x91\x92\xf1\xbf\x41", b"'s", b"1"]
    return b"".join(rng.choice(parts) if rng.random() < 0.9 else bytes([rng.randrange(256)]) for _ in range(rng.randint(1, 24)))


def encoding(ranks):
    last = max(ranks.values())
    return tiktoken.Encoding("fixture", pat_str=r50k_pat_str, mergeable_ranks=ranks, special_tokens={"<|endoftext|>": last + 1, "<|pad|>": last + 2})


def main(gpt2_file, folder):
    folder = pathlib.Path(folder)
    rng = random.Random(20)
    small = bpe_train(ENGLISH * 3 + "\n".join(t for t in TEXTS if "<|" not in t), 1000, r50k_pat_str, visualise=None)
    assert sorted(small.values()) == list(range(1000))
    (folder / "small.tiktoken").write_text("".join(f"{base64.b64encode(t).decode()} {r}\n" for t, r in small.items()))
    encodings = {"small": encoding(small), "reversed": encoding({t: 3 * (999 - r) for t, r in small.items()}), "gpt2": encoding(load_tiktoken_bpe(gpt2_file))}

    def encode_all(text, show=lambda ids: ids):
        return {name: show(e.encode(text, allowed_special="all")) for name, e in encodings.items()}

    out = {"tiktoken": tiktoken.__version__}
    out["texts"] = [{"text": t, **encode_all(t)} for t in TEXTS]
    out["random"] = [{"text": t, **encode_all(t, hashed)} for t in (random_text(rng) for _ in range(400))]
    out["repeated"] = [{"unit": unit, "count": n, "end": end, **encode_all(unit * n + end, hashed)} for unit, n, end in LONG]
    out["lcg"] = [{"alphabet": a, "count": n, **encode_all(lcg_text(a, n), hashed)} for a, n in LONG_RANDOM]

    invalid = [b"\xff", b"a\xffb", b"\xc3", b"\xe2\x82", b"\xf0\x9f\x98", b"\xed\xa0\x80\xed\xb0\x80", b"\xc0\xaf", b"\xe0\x80\xaf", b"\xf4\x90\x80\x80", b"\xf8\x88\x80\x80\x80", b"\x80\x80\x80 a", b"\xe1\x80a\xf1\x80\x80b",
               b"<|pad|\xff>", b"\xff<|pad|>\xff", "é".encode("latin-1"), "漢字".encode("shift_jis"), "a漢".encode("utf-16-le"), b"'\xc5\xbf", b" \xc2 \xe3\x80"] + [random_bytes(rng) for _ in range(200)]
    out["invalid"] = [{"bytes": b.hex(), "text": b.decode(errors="replace"), **encode_all(b.decode(errors="replace"), hashed)} for b in invalid]

    # Ids from anywhere in a text, so that the first and last of them are often parts of characters, and ids by chance.
    def cut(e, singles):
        for _ in range(120):
            if rng.random() < 0.7:
                ids = e.encode(rng.choice(TEXTS) + random_text(rng), allowed_special="all")
                begin = rng.randrange(len(ids))
                yield ids[begin : begin + rng.randint(1, 12)]
            else:
                yield rng.choices(singles, k=rng.randint(1, 8))

    out["decode"], out["token_bytes"] = {}, {}
    for name, e in encodings.items():
        # Ranks that begin or end within a character, which are rare in a large vocabulary.
        singles = [r for t, r in e._mergeable_ranks.items() if t.decode(errors="replace").encode() != t]
        out["decode"][name] = [{"ids": ids, "text": e.decode(ids, errors="replace")} for ids in cut(e, singles)]
        tokens = [e.decode_single_token_bytes(i) for i in sorted([*e._mergeable_ranks.values(), *e._special_tokens.values()])]
        out["token_bytes"][name] = {"count": len(tokens), "hash": hashed(v for t in tokens for v in (len(t), *t))}

    # Every code point, in blocks of 0x1000: the ids that show its class. Surrogates are no characters.
    encode = tiktoken.Encoding("probe", pat_str=r50k_pat_str, mergeable_ranks=probe(), special_tokens={}).encode_ordinary
    out["code_points"] = [hashed(encode("".join(probe_text(c) for c in range(b, b + 0x1000) if not 0xD800 <= c < 0xE000))) for b in range(0, 0x110000, 0x1000)]

    with open(folder / "tokenizer.json", "w") as f:
        f.write("{\n" + ",\n".join(json.dumps(k) + ": " + ("[\n" + ",\n".join(map(json.dumps, v)) + "\n]" if isinstance(v, list) else json.dumps(v)) for k, v in out.items()) + "\n}\n")


if __name__ == "__main__":
    main(*sys.argv[1:])
