"""tokenizer.json, as Hugging Face's tokenizers reads it, from tiktoken's ranks. Standard library only."""


def letters():
    """Byte → the letter that stands for it in byte-level vocabularies: itself where it can be seen, else one from U+0100 on."""
    seen = [*range(33, 127), *range(161, 173), *range(174, 256)]
    unseen = [b for b in range(256) if b not in seen]
    return {b: chr(b) for b in seen} | {b: chr(256 + i) for i, b in enumerate(unseen)}


def merges_of(ranks):
    """Pairs that make a token, by the token's rank: tiktoken joins any two neighbours whose bytes together have a rank, the lowest first."""
    out = []
    for token in sorted(ranks, key=ranks.get):
        pairs = [(token[:i], token[i:]) for i in range(1, len(token)) if token[:i] in ranks and token[i:] in ranks]
        out += sorted(pairs, key=lambda p: (ranks[p[0]], ranks[p[1]]))
    return out


def tokenizer_json(pattern, ranks, special):
    letter = letters()

    def spelled(token):
        return "".join(letter[b] for b in token)

    added = [{"id": i, "content": text, "single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True} for text, i in sorted(special.items(), key=lambda s: s[1])]
    split = {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False}
    level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}
    model = {"type": "BPE", "dropout": None, "unk_token": None, "continuing_subword_prefix": None, "end_of_word_suffix": None, "fuse_unk": False, "byte_fallback": False,
             "ignore_merges": True,  # tiktoken: a piece that is a token is that token
             "vocab": {spelled(token): rank for token, rank in sorted(ranks.items(), key=lambda r: r[1])},
             "merges": [[spelled(a), spelled(b)] for a, b in merges_of(ranks)]}
    return {"version": "1.0", "truncation": None, "padding": None, "added_tokens": added, "normalizer": None, "pre_tokenizer": {"type": "Sequence", "pretokenizers": [split, level]},
            "post_processor": None, "decoder": level | {"use_regex": True}, "model": model}
