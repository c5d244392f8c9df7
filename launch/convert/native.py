"""kvmesh's own checkpoint folders, the original program's architecture: config.json, and the names and shapes of its weights (docs/checkpoint.md)."""

import math
import re

from folder import Refused, Safetensors, brief, check, is_size, read_json

DEFAULTS = {"dtype": "bfloat16", "rope_theta": 10000.0, "norm_eps": 1e-5, "logit_soft_cap": 15.0, "window_pattern": "L", "local_window_size": None, "nope_global_attn": True}
SHAPE_KEYS = ["seqlen", "vocab_size", "d_emb", "num_layers", "q_heads", "kv_heads"]
MOST_LAYERS = 1 << 12


def specs_of(config):
    """Name → shape, in the file's order."""
    d, heads, groups, vocab = (config[k] for k in ("d_emb", "q_heads", "kv_heads", "vocab_size"))
    h = d // heads
    specs = {"embed.weight": (vocab, d)}
    for i in range(config["num_layers"]):
        block = f"blocks.{i}."
        specs |= {block + "attn.wq": (d, heads, h), block + "attn.wk": (d, groups, h), block + "attn.wv": (d, groups, h), block + "attn.wo": (heads, h, d),
                  block + "mlp.fc1.weight": (d, 4 * d), block + "mlp.fc2.weight": (4 * d, d)}
    return specs | {"lm_head.weight": (d, vocab)}


def check_shapes(shapes, config, source):
    """Names and shapes are those that the config asks for; the first that is not is named."""
    wanted = specs_of(config)
    for name in wanted:
        check(name in shapes, f"{source}: the tensor {name} is missing")
        check(tuple(shapes[name]) == wanted[name], f"{source}: the tensor {name} is {list(shapes[name])} instead of {list(wanted[name])}")
    for name in shapes:
        check(name in wanted, f"{source}: the tensor {brief(name)} is none of the original program's model")


def shape_from(shapes, source):
    """What the weights' shapes say of config.json. `shapes`: name → shape."""
    def rank(name, n):
        check(name in shapes, f"{source}: the tensor {name} is missing")
        check(len(shapes[name]) == n and min(shapes[name]) > 0, f"{source}: the tensor {name} is {list(shapes[name])}, which has not {n} sizes")
        return shapes[name]

    vocab, d = rank("embed.weight", 2)
    blocks = [int(m[1]) for name in shapes if (m := re.fullmatch(r"blocks\.(0|[1-9]\d{0,4})\..*", name))]
    layers = max(blocks, default=-1) + 1
    check(0 < layers <= MOST_LAYERS, f"{source}: {layers} layers; there must be 1 to {MOST_LAYERS}")
    _, heads, h = rank("blocks.0.attn.wq", 3)
    _, groups, _ = rank("blocks.0.attn.wk", 3)
    check(heads * h == d and h % 2 == 0 and heads % groups == 0, f"{source}: blocks.0.attn.wq {list(shapes['blocks.0.attn.wq'])} and wk {list(shapes['blocks.0.attn.wk'])} are not heads of a width of {d}")
    return {"vocab_size": vocab, "d_emb": d, "num_layers": layers, "q_heads": heads, "kv_heads": groups}


def checked_config(config, source):
    """With defaults filled in. kvmesh checks it all again when it reads the folder."""
    for key in SHAPE_KEYS:
        check(key in config, f"{source}: the key \"{key}\" is missing")
        check(is_size(config[key]) and 0 < config[key] < 1 << 24, f"{source}: \"{key}\" is no size")
    for key in config:
        check(key in SHAPE_KEYS or key in DEFAULTS or key in ("special_tokens", "attn_type") or key.startswith("_"), f"{source}: the key \"{brief(key)}\" is not known")
    check(config["d_emb"] % config["q_heads"] == 0, f"{source}: \"d_emb\" is no multiple of \"q_heads\"")
    config = DEFAULTS | {k: v for k, v in config.items() if not k.startswith("_")}
    check(config["dtype"] in ("bfloat16", "float32"), f"{source}: \"dtype\" must be \"bfloat16\" or \"float32\"")
    pattern = config["window_pattern"]
    check(isinstance(pattern, str) and re.fullmatch("[SLsl]+", pattern), f"{source}: \"window_pattern\" must be made of L and S")
    config["window_pattern"] = pattern.upper()
    if config["local_window_size"] is None:
        config["local_window_size"] = config["seqlen"] // 4
    for key in ("rope_theta", "norm_eps"):
        check(type(config[key]) in (int, float) and 0 < config[key] < math.inf, f"{source}: \"{key}\" must be a number above 0")
    config["logit_soft_cap"] = config["logit_soft_cap"] or 0
    check(type(config["logit_soft_cap"]) in (int, float) and 0 <= config["logit_soft_cap"] < math.inf, f"{source}: \"logit_soft_cap\" must be a number not below 0")
    return config


def layers_of(config):
    """For each layer: its window (None: all before it), whether it has RoPE."""
    pattern, n = config["window_pattern"], config["num_layers"]
    if set(pattern) == {"L"} or pattern == "S":
        return [(config["local_window_size"] if pattern == "S" else None, True)] * n
    local = [pattern[i % len(pattern)] == "S" for i in range(n - 1)] + [False]
    return [(config["local_window_size"], True) if s else (None, not config["nope_global_attn"]) for s in local]


def open_folder(folder):
    """config and Safetensors of a checkpoint folder of ours, which agree."""
    config = read_json(folder / "config.json", 1 << 20)
    if "model_type" in config or "architectures" in config:
        raise Refused(f"{folder}: is a Hugging Face folder already; only checkpoints of the original's architecture are exported")
    config = checked_config(config, folder / "config.json")
    files = Safetensors(folder)
    check_shapes({name: entry[1] for name, entry in files.tensors.items()}, config, folder)
    return config, files
