"""Makes tests/fixtures/tokenizers: small tokenizer.json files of the kinds that language models come with, and what the tokenizers package makes of difficult
texts with them.

    python tests/reference/tokenizer_json.py tests/fixtures/tokenizers

Needs: pip install tokenizers tiktoken (for the texts of tokenizer.py). Made with tokenizers 0.23.3. expected.json has for each file, in the order of its texts, the
hash of the ids and of the decoded text (of its UTF-8 bytes), as tokenizer.py hashes; the ids that add_special_tokens puts around a text; and texts of ids by chance.
For each pattern it has, by blocks of 10 texts, the hash of the bytes in each piece.
"""

import json
import pathlib
import random
import sys

import tokenizers
from tokenizer import ALPHABETS, ENGLISH, TEXTS, hashed, random_text
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
GPT2_SHORT = r"'(?:[sdmt]|ll|ve|re)| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
GPT4 = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}%s| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
NANOCHAT = r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?+\p{L}+|\p{N}%s| ?[^\s\p{L}\p{N}]++[\r\n]*|\s*[\r\n]|\s+(?!\S)|\s+"

MORE = ENGLISH * 3 + "\n".join(t for t in TEXTS if "<|" not in t and len(t) < 200)

# Texts beside those of tokenizer.py: for the added tokens below, NFC, and spaces that a vocabulary spells ▁.
EXTRA = [
    "<s>", "<s>a</s>", "a </s> b", " <s> ", "<unk>a<unk>", "</s></s>\n</s>", "<0x41>", "a<0x0A>b", "▁", "▁▁a", " ▁ a", "a▁b▁", "▁ ▁", "Hello▁world Hello", "  <s>  a", "a  ",
    "<|im_start|>user\nHi<|im_end|>\n", "<|im_start|><|im_start|>", " <|im_start|> a", "<tool>", "x<tool>y", " <tool> <tool>", "<to", "<tool", "the<tool>the",
    "left right", "a  left  b", "xleftx", "left", " left", "\n\n left\t", "right  b", "right", "right\u3000\u00a0b", "a right", "left right left", "both", "  both  ", " both both ", "a\n both \n b",
    "word", "a word b", "words", "sword", "word_", "_word", "word.", "(word)", "word1", "éword", "word\u0301", "漢word", "word word word", "wordword", "word\u203f", "\u2160word", "word\u24b6", "\u093eword",
    "na\u00efve", "nai\u0308ve", "x na\u00efve x nai\u0308ve x", "  ", "spaces   spaces  ", "a      b", "a     b", "left      right",
    "e\u0327\u0301 e\u0301\u0327", "\u1e9b\u0323 \u0344 \u0f73 \u212b \u2126", "\u1100\u1161\u11a8 \uac00\u11a8 \u1100\u1161", "a\u0345\u0301\u0327\u05b0b", "\u2adc \u0958 \ufb1d \u2f800", "\u0338=\u0338", "q\u0307\u0323 q\u0323\u0307",
    "\U00011935\U00011930 \U00011938", "a\u0345\u1abf\u0327", "a\u09fe\u0327\u0301", "\U000110a5\U000110ba", "\u0300\u0301", "A\u030a\u0301\u0323 s\u0323\u0307 \u1e69",
    "'S 'T 'RE 'VE 'M 'LL 'D", "I'LL'Ll'lL we'RE we'Ve", "'ſ 'ſt x'ſ", "'K '\u212a", "x'", "''S", "a'\ns", "\t'd", "'Sa'Ta", "don'T", "'\u00c9",
    "12 123 1234 12345 123456 1234567", "a1b22c333d4444", " 1 22  333   4444", "\u0660\u0661\u0662\u0663\u0664", "1\u0660\u00bd\u2167\u2460", "\U00011de0\U00011de1\U00016ff4 a", "1,234,567.89", "3.14\n15", "x9y99z999",
    "a\r\nb\r\n\r\nc", "!\n", "!\r\n\r\n", " !\n\n a", "\n\n!\n", "a \n b", "a\t\n\tb", " \n \r \n", "\r", "\r\r\na", "...\n...\n\n...", "\t\ta", "\u00a0a", "\u3000\u3000a", "\na", " a\n", "\ta\tb", "*a *b **c", "(a)(b", "-a --b", "$a", "\u0301a",
    "a\u0000b", "\u0000", "\ufffd", "a" * 300, "▁" * 70, "é" * 65, "\u0301" * 80, " é" * 40,
]

WORDS = ["<|endoftext|>", "<|pad|>", "<s>", "</s>", "<unk>", "<|im_start|>", "<tool>", "left", "right", "both", "word", "naïve", "nai\u0308ve", "▁", " ", "  ", "<0x41>", "\n", "a", "'S", "12345"]


def any_text(rng):
    """As random_text, with the added tokens in it."""
    if rng.random() < 0.5:
        return random_text(rng)
    parts = []
    for _ in range(rng.randint(1, 12)):
        parts.append(rng.choice(WORDS) if rng.random() < 0.5 else "".join(rng.choices(rng.choice(ALPHABETS), k=rng.randint(1, 5))))
    return "".join(parts)


SPECIAL = [AddedToken("<|endoftext|>", special=True, normalized=False), AddedToken("<|pad|>", special=True, normalized=False)]
CHAT = [AddedToken("<|im_start|>", special=True, normalized=False), AddedToken("<|im_end|>", special=True, normalized=False)]
FLAGS = [AddedToken("left", lstrip=True, normalized=False), AddedToken("right", rstrip=True, normalized=False), AddedToken("both", lstrip=True, rstrip=True, normalized=True),
         AddedToken("word", single_word=True, normalized=False), AddedToken("  ", normalized=False), AddedToken("<tool>", normalized=True), AddedToken("nai\u0308ve", normalized=True)]


def split(pattern, behavior="isolated", invert=False):
    return pre_tokenizers.Split(Regex(pattern), behavior, invert)


def byte_level(steps, vocab_size, added, alphabet=True, in_vocabulary=(), unk=None, prefix=False, regex=False, normalizer=None, **model):
    """A tokenizer whose pieces are bytes, trained."""
    t = Tokenizer(models.BPE(unk_token=unk, **model))
    if normalizer:
        t.normalizer = normalizer
    level = pre_tokenizers.ByteLevel(add_prefix_space=prefix, use_regex=regex)
    t.pre_tokenizer = pre_tokenizers.Sequence([*steps, level]) if steps else level
    t.decoder = decoders.ByteLevel()
    t.post_processor = processors.ByteLevel(trim_offsets=False)
    text = MORE if alphabet else ENGLISH.replace("q", "").replace("x", "").replace("\t", " ")
    t.train_from_iterator([text], trainers.BpeTrainer(vocab_size=vocab_size, special_tokens=[*in_vocabulary, *([unk] if unk else [])], show_progress=False,
                                                      initial_alphabet=pre_tokenizers.ByteLevel.alphabet() if alphabet else []))
    t.add_tokens(added)
    return t


def characters(vocab_size, normalizer, pre_tokenizer, decoder, fallback=256, added=(), **model):
    """A tokenizer whose pieces are characters, trained, with `fallback` of the tokens <0x00> to <0xFF>."""
    t = Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=fallback > 0, **model))
    if normalizer:
        t.normalizer = normalizer
    if pre_tokenizer:
        t.pre_tokenizer = pre_tokenizer
    else:  # only to train: merges stay within words
        t.pre_tokenizer = pre_tokenizers.Split("▁", "merged_with_next")
    t.decoder = decoder
    specials = [AddedToken(s, special=True, normalized=False) for s in ("<unk>", "<s>", "</s>")]
    bytes_ = [f"<0x{b:02X}>" for b in range(fallback)]
    t.train_from_iterator([ENGLISH * 3 + TEXTS[57]], trainers.BpeTrainer(vocab_size=vocab_size + fallback, special_tokens=[*specials, *bytes_], show_progress=False))
    # The tokens of bytes are no added tokens where they come from.
    state = json.loads(t.to_str())
    state["added_tokens"] = [a for a in state["added_tokens"] if not a["content"].startswith("<0x")]
    if not pre_tokenizer:
        state["pre_tokenizer"] = None
    t = Tokenizer.from_str(json.dumps(state))
    t.add_tokens(list(added))
    return t


def template(t, single, *tokens):
    t.post_processor = processors.Sequence([processors.ByteLevel(trim_offsets=False), processors.TemplateProcessing(single=single, special_tokens=[(s, t.token_to_id(s)) for s in tokens])])
    return t


def drop_merges(t, every):
    """Some tokens cannot be reached by merges any more; with ignore_merges they are found all the same."""
    state = json.loads(t.to_str())
    state["model"]["merges"] = [m for i, m in enumerate(state["model"]["merges"]) if i % every]
    return Tokenizer.from_str(json.dumps(state))


def fused(*steps):
    return decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), *steps])


LLAMA2 = lambda: normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])

# What vocabularies hold beside the 256 bytes or characters that they begin with is `n`.
KINDS = {
    "gpt2": lambda n: byte_level([], 257 + n, SPECIAL[1:], in_vocabulary=SPECIAL[:1], regex=True),
    "gpt2-split": lambda n: byte_level([split(GPT2)], 256 + n, SPECIAL + FLAGS, prefix=True),
    "gpt2-short": lambda n: byte_level([split(GPT2_SHORT, "removed", True)], 256 + n, SPECIAL),
    "llama3": lambda n: template(drop_merges(byte_level([split(GPT4 % "{1,3}")], 256 + n, SPECIAL + CHAT, ignore_merges=True), 9), "<|im_start|> $A", "<|im_start|>"),
    "gpt4": lambda n: drop_merges(byte_level([split(GPT4 % "{1,2}", "removed", True)], 256 + n, SPECIAL + FLAGS), 9),
    "qwen": lambda n: byte_level([split(GPT4 % "")], 256 + n, SPECIAL + CHAT + FLAGS, normalizer=normalizers.NFC()),
    "nanochat": lambda n: template(byte_level([split(NANOCHAT % "{1,2}")], 256 + n, SPECIAL), "<|endoftext|> $A <|pad|>", "<|endoftext|>", "<|pad|>"),
    "nanochat-3": lambda n: byte_level([split(NANOCHAT % "{1,3}")], 256 + n, SPECIAL),
    "smollm": lambda n: byte_level([pre_tokenizers.Digits(individual_digits=True)], 258 + n, CHAT, in_vocabulary=SPECIAL, regex=True),
    "digits": lambda n: byte_level([pre_tokenizers.Digits(individual_digits=False)], 256 + n, SPECIAL, regex=False, prefix=True),
    "some-bytes": lambda n: byte_level([], 60 + n, SPECIAL, alphabet=False, regex=True),
    "some-bytes-unk": lambda n: byte_level([], 60 + n, SPECIAL, alphabet=False, regex=True, unk="<unk>", fuse_unk=True),
    "llama2": lambda n: template(characters(60 + n, LLAMA2(), None, fused(decoders.Strip(" ", 1, 0)), fuse_unk=True, added=[AddedToken("<tool>", normalized=True)]), "<s> $A", "<s>"),
    "llama2-first": lambda n: template(characters(60 + n, None, pre_tokenizers.Metaspace(prepend_scheme="first", split=False), fused(decoders.Strip(" ", 1, 0)), fuse_unk=True, added=FLAGS), "<s> $A </s>", "<s>", "</s>"),
    "gemma": lambda n: characters(60 + n, normalizers.Replace(" ", "▁"), None, fused()),
    "metaspace": lambda n: characters(60 + n, normalizers.NFC(), pre_tokenizers.Metaspace(), decoders.Metaspace(), fallback=0, added=FLAGS),
    "some-fallback": lambda n: characters(60 + n, None, pre_tokenizers.Metaspace(prepend_scheme="never"), decoders.Sequence([decoders.Metaspace(prepend_scheme="never"), decoders.ByteFallback()]), fallback=0xC4, fuse_unk=True),
    "some-fallback-each": lambda n: characters(60 + n, None, pre_tokenizers.Metaspace(), decoders.Sequence([decoders.ByteFallback(), decoders.Metaspace()]), fallback=0xC4),
}


def build(name, n=240):
    t = KINDS[name](n)
    state = json.loads(t.to_str())
    if name in ("gpt2", "llama2"):  # as older versions wrote it
        state["model"]["merges"] = [" ".join(m) for m in state["model"]["merges"]]
    if name == "gpt2":
        del state["model"]["type"]
        state["model"] |= {"continuing_subword_prefix": "", "end_of_word_suffix": ""}
    return json.dumps(state, ensure_ascii=False, separators=(",", ":"))


def some_ids(t, rng):
    if rng.random() < 0.6:
        ids = t.encode(any_text(rng)).ids or [0]
        begin = rng.randrange(len(ids))
        return ids[begin : begin + rng.randint(1, 12)]
    every = sorted(t.get_vocab().values())
    low = [i for i in every if i < 300]
    return rng.choices(low if rng.random() < 0.5 else every, k=rng.randint(1, 8))


def main(folder):
    folder = pathlib.Path(folder)
    rng = random.Random(21)
    texts = TEXTS + EXTRA + [any_text(rng) for _ in range(120)]
    patterns = {}
    for pattern in (GPT2, GPT2_SHORT, *(p % n for p in (GPT4, NANOCHAT) for n in ("", "{1,2}", "{1,3}"))):
        pieces = [[len(piece.encode()) for piece, _ in split(pattern).pre_tokenize_str(text)] for text in texts]
        patterns[pattern] = [hashed(sum(pieces[i : i + 10], [])) for i in range(0, len(texts), 10)]
    kinds = {}
    for name in KINDS:
        text = build(name)
        (folder / f"{name}.json").write_text(text + "\n")
        t = Tokenizer.from_str(text)
        around = t.encode("").ids
        plain = [t.encode(text, add_special_tokens=False).ids for text in texts]
        before = next(n for n in range(len(around) + 1) if t.encode("a").ids[: n + 1] != around[: n + 1])
        assert all(t.encode(text).ids == around[:before] + ids + around[before:] for text, ids in zip(texts, plain))
        kinds[name] = {
            "before": around[:before], "behind": around[before:],
            "encode": [hashed(ids) for ids in plain],
            "decode": [hashed(t.decode(ids, skip_special_tokens=False).encode()) for ids in plain],
            "ids": [[ids, t.decode(ids, skip_special_tokens=False)] for ids in (some_ids(t, rng) for _ in range(40))],
        }
    with open(folder / "expected.json", "w") as f:
        line = lambda value: json.dumps(value, separators=(",", ":"))
        lines = ",\n".join(f"{line(name)}:{line(kind)}" for name, kind in kinds.items())
        f.write(f'{{"tokenizers":{line(tokenizers.__version__)},\n"texts":{line(texts)},\n"patterns":{line(patterns)},\n"kinds":{{\n{lines}\n}}}}\n')


if __name__ == "__main__":
    main(*sys.argv[1:])
