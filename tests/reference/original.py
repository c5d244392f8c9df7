"""Runs the original program (AakashKumarNain/nanoGPTJAX) under JAX on the CPU and writes down what it computes, for tests/model/original_mpi_test.cc.

    python tests/reference/original.py CHECKOUT                            # small random models
    python tests/reference/original.py CHECKOUT --checkpoint configs/NAME  # a checkpoint of ours, into tests/fixtures/original/NAME.json
    python tests/reference/original.py CHECKOUT --ranks gpt2.tiktoken      # its tokenizer call, into tests/fixtures/original/tokens.json

CHECKOUT is a git checkout of the original. At 59264c7 (January) the cases with full attention are made, at 9c0f9a3 (April) those with sliding
windows; run both. Nothing of the original is changed but what runs only elsewhere (see Original). docs/original.md says what agrees.
Needs: pip install jax numpy ml_dtypes safetensors tiktoken orbax-checkpoint (made with jax 0.10.2)
"""

import argparse
import itertools
import json
import os
import subprocess
import sys
import types
import warnings
from pathlib import Path

os.environ["JAX_PLATFORMS"] = "cpu"  # where the original itself leaves the choice of attention to JAX
os.environ["TIKTOKEN_CACHE_DIR"] = ""  # it would remember files by their path

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
from safetensors.numpy import load_file, save_file

OUT = Path(__file__).parent.parent / "fixtures" / "original"

# name: shape, prompt lengths, new tokens, dtype of the stored weights. The cache of "long" and of "window" wraps around: the prompts are padded to
# 32, the longest row ends when it has filled its context, and the cursor is beyond seqlen by then.
JANUARY = {
    "gqa": (dict(seqlen=64, vocab_size=97, d_emb=32, num_layers=2, q_heads=4, kv_heads=2), (7, 4, 1), 24, np.float32),
    "long": (dict(seqlen=48, vocab_size=89, d_emb=48, num_layers=2, q_heads=3, kv_heads=1), (20, 9, 17), 28, ml_dtypes.bfloat16),
}
APRIL = {
    "window": (dict(seqlen=40, vocab_size=83, d_emb=32, num_layers=3, q_heads=4, kv_heads=1, window_pattern="S", local_window_size=6), (17, 5, 11), 23, ml_dtypes.bfloat16),
    "mixed-nope": (dict(seqlen=44, vocab_size=83, d_emb=32, num_layers=4, q_heads=4, kv_heads=2, window_pattern="SSL", nope_global_attn=True), (13, 6, 2), 20, ml_dtypes.bfloat16),
    "mixed-rope": (dict(seqlen=44, vocab_size=83, d_emb=32, num_layers=4, q_heads=8, kv_heads=2, window_pattern="SL", local_window_size=5, nope_global_attn=False), (5, 14, 9), 20,
                   ml_dtypes.bfloat16),
}
SAMPLED = [(1337, 0.8, 0), (7, 1.0, 20), (4294967295, 1.7, 5)]  # seed, temperature, top-k
LOGIT_STEPS = 11  # decode steps whose logits are kept
MOST_COLUMNS = 128  # of the vocabulary whose logits are kept


class Original:
    """The original's modules, imported from a checkout."""

    def __init__(self, checkout):
        # Data loading for training, which inference.py imports and does not need here.
        for name, names in {"grain": [], "sft_dataloader": ["build_tokenizer", "format_conversation"]}.items():
            module = sys.modules[name] = types.ModuleType(name)
            for attribute in names:
                setattr(module, attribute, None)
        sys.path.insert(0, str(Path(checkout) / "nanogpt"))
        import config, inference, kvcache, model, utils
        self.config, self.inference, self.kvcache, self.model, self.utils = config, inference, kvcache, model, utils
        self.commit = subprocess.run(["git", "-C", checkout, "rev-parse", "HEAD"], check=True, capture_output=True, text=True).stdout.strip()
        self.has_windows = hasattr(model, "compute_layer_configs")
        self.mesh = jax.sharding.Mesh(np.array(jax.devices()), axis_names=config.BATCH_AXIS_NAME)
        jax.set_mesh(self.mesh)

    def pad(self, prompts, pad_id, power_of_two=True):
        return self.inference.pad_tokens(prompts, pad_id, pad_to_power_of_two=power_of_two)

    def config_of(self, shape, dtype):
        assert shape.get("logit_soft_cap", 15) == 15 and shape.get("rope_theta", 1e4) == 1e4 and shape.get("norm_eps", 1e-5) == 1e-5  # it has no others
        keys = ["seqlen", "vocab_size", "d_emb", "num_layers", "q_heads", "kv_heads"]
        if self.has_windows:
            keys += [k for k in ("window_pattern", "local_window_size", "nope_global_attn") if k in shape]
        else:
            assert shape.get("window_pattern", "L") == "L"
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # that it takes a quarter of seqlen as the window
            model_config = self.config.ModelConfig(dtype=dtype, **{k: shape[k] for k in keys})
        model_config.attn.num_layers = shape["num_layers"]  # January's constructor leaves it at 12
        return self.config.Config(mesh=self.mesh, rules=self.config.ShardingRules(), model=model_config)


class Run:
    """A model of the original with given weights, and its prefill and decode."""

    def __init__(self, original, shape, weights, dtype, pad_id):
        self.original, self.pad_id = original, pad_id
        self.config = original.config_of(shape, dtype)
        self.head_dim = self.config.model.attn.head_dim
        specs = original.model.GPT.param_specs(self.config.model)
        names = []

        def leaf(path, spec):
            names.append(jax.tree_util.keystr(path, simple=True, separator="."))
            assert weights[names[-1]].shape == spec.shape, names[-1]
            return jnp.asarray(weights[names[-1]]).astype(spec.dtype)

        self.params = jax.tree_util.tree_map_with_path(leaf, specs, is_leaf=original.utils.is_param_spec)
        assert set(names) == set(weights)
        self.decode_jit = jax.jit(original.inference.decode, static_argnames=("head_dim",))

    def prefill(self, prompts, power_of_two=True):
        ids, segment_ids = self.original.pad(prompts, self.pad_id, power_of_two)
        cache = self.original.kvcache.KVCache.init(jax.random.PRNGKey(1), self.config.mesh, self.config.rules, len(prompts), self.config)
        return self.original.inference.prefill(self.params, ids, segment_ids, cache, self.head_dim, pad_id=self.pad_id)

    def decode(self, tokens, cache):
        return self.decode_jit(self.params, jnp.asarray(tokens, jnp.int32)[:, None], cache, head_dim=self.head_dim)

    def generate(self, prompts, new_tokens, seed=0, temperature=0.0, top_k=0):
        """The original's generate() behind its prefill(): new tokens [B, new_tokens]."""
        _, next_tokens, cache = self.prefill(prompts)
        out = jnp.zeros((len(prompts), new_tokens), jnp.int32).at[:, 0].set(next_tokens)
        return np.asarray(self.original.inference.generate(
            self.params, cache, next_tokens[:, None], out, self.head_dim, jax.random.PRNGKey(np.uint32(seed)),
            temperature=temperature, top_k=top_k, max_new_tokens=new_tokens))

    def forced(self, prompts, tokens):
        """Logits on given tokens: of the real prompt tokens, a [len, V] a row, and of each decode step [steps, B, V]."""
        logits, _, cache = self.prefill(prompts)
        steps = []
        for column in np.asarray(tokens).T:
            step, cache = self.decode(column, cache)
            steps.append(np.asarray(step, np.float32))
        return [np.asarray(logits[b, logits.shape[1] - len(p):], np.float32) for b, p in enumerate(prompts)], np.array(steps)


def smallest_margin(prefill, steps, tokens, seed, temperature, top_k):
    """How far the best of each draw was before the second best; draws again, as the contract's section 5 says, and must find the same tokens."""
    key = jax.random.PRNGKey(np.uint32(seed))
    margins = []
    for t in range(tokens.shape[1]):
        scores = jnp.array([row[-1] for row in prefill]) if t == 0 else jnp.array(steps[t - 1])
        if t > 0:
            key, sub = jax.random.split(key)
        if t > 0 and temperature > 0:
            if top_k:
                scores = jnp.where(scores < jnp.sort(scores, axis=-1)[:, -top_k][:, None], -jnp.inf, scores)
            scores = scores / temperature + jax.random.gumbel(sub, scores.shape)
        assert np.array_equal(jnp.argmax(scores, axis=-1), tokens[:, t]), f"step {t}"
        best = jnp.sort(scores, axis=-1)[:, -2:]
        margins.append(float(jnp.min(best[:, 1] - best[:, 0])))
    return min(margins)


def random_weights(shape, dtype, seed):
    """Normal numbers of such a size that logits and their gaps are of order 1, in the order of the names."""
    d, heads, kv, h, v = shape["d_emb"], shape["q_heads"], shape["kv_heads"], shape["d_emb"] // shape["q_heads"], shape["vocab_size"]
    shapes = {"embed.weight": ((v, d), 1), "lm_head.weight": ((d, v), 2 / d**0.5)}
    for i in range(shape["num_layers"]):
        block = f"blocks.{i}."
        for name, size in (("wq", (d, heads, h)), ("wk", (d, kv, h)), ("wv", (d, kv, h)), ("wo", (heads, h, d))):
            shapes[block + "attn." + name] = (size, 1 / d**0.5)
        shapes[block + "mlp.fc1.weight"] = ((d, 4 * d), 1 / d**0.5)
        shapes[block + "mlp.fc2.weight"] = ((4 * d, d), 1 / (4 * d) ** 0.5)
    rng = np.random.default_rng(seed)
    return {name: (scale * rng.standard_normal(size)).astype(dtype) for name, (size, scale) in sorted(shapes.items())}


def rounded(logits, columns, digits):
    return [[round(float(x), digits) for x in row[columns]] for row in logits]


def make_case(original, name, shape, weights, prompts, new_tokens, pad_id, least_margin):
    """Writes the fixture; False, and nothing written, if two tokens came closer than least_margin, so that rounding may choose."""
    vocab = shape["vocab_size"]
    columns = list(range(vocab)) if vocab <= MOST_COLUMNS else [int(c) for c in np.linspace(0, vocab - 1, MOST_COLUMNS)]
    run = Run(original, shape, weights, jnp.float32, pad_id)
    greedy = run.generate(prompts, new_tokens)
    prefill, steps = run.forced(prompts, greedy[:, :-1])
    fixture = {"commit": original.commit, "jax": jax.__version__, "pad_id": pad_id, "prompts": prompts, "padded": {}, "columns": columns}
    for key, power in (("power_of_two", True), ("longest", False)):
        ids, segment_ids = original.pad(prompts, pad_id, power)
        fixture["padded"][key] = {"ids": np.asarray(ids).tolist(), "segment_ids": np.asarray(segment_ids).tolist()}
    fixture["next_tokens"] = np.asarray(run.prefill(prompts)[1]).tolist()
    fixture["greedy"] = greedy.tolist()
    fixture["greedy_margin"] = smallest_margin(prefill, steps, greedy, 0, 0.0, 0)
    fixture["sampled"] = []
    for seed, temperature, top_k in SAMPLED:
        tokens = run.generate(prompts, new_tokens, seed, temperature, top_k)
        margin = smallest_margin(*run.forced(prompts, tokens[:, :-1]), tokens, seed, temperature, top_k)
        fixture["sampled"].append({"seed": seed, "temperature": temperature, "top_k": top_k, "tokens": tokens.tolist(), "margin": margin})
    least = min([fixture["greedy_margin"]] + [s["margin"] for s in fixture["sampled"]])
    if least < least_margin:
        return False

    # A row's logits from its first prompt token (of a large vocabulary: from its last prompt token) to the last step that is kept.
    kept = steps if name == "long" or name == "window" else steps[:LOGIT_STEPS]
    half = Run(original, shape, weights, jnp.bfloat16, pad_id)
    half_prefill, half_steps = half.forced(prompts, greedy[:, :len(kept)])
    fixture["logits_from"] = [len(p) - 1 if vocab > MOST_COLUMNS else 0 for p in prompts]
    for key, digits, head, tail in (("float32", 6, prefill, kept), ("bfloat16", 4, half_prefill, half_steps)):
        fixture[key] = [rounded(np.concatenate([head[b], tail[:, b]])[begin:], columns, digits) for b, begin in enumerate(fixture["logits_from"])]
    difference = np.concatenate([np.ravel(a - b) for a, b in zip(half_prefill, prefill)] + [np.ravel(half_steps - kept)])
    print(f"{name}: smallest margin {least:.2g}; its bfloat16 against its float32: largest {np.abs(difference).max():.3f}, rms {np.sqrt(np.mean(difference**2)):.4f}")
    OUT.mkdir(parents=True, exist_ok=True)
    with open(OUT / f"{name}.json", "w") as f:
        json.dump(fixture, f, separators=(",", ":"))
        f.write("\n")
    return True


def make_random_cases(original):
    for name, (shape, lengths, new_tokens, stored) in (APRIL if original.has_windows else JANUARY).items():
        pad_id = shape["vocab_size"] - 1
        for seed in itertools.count():
            weights = random_weights(shape, stored, seed)
            rng = np.random.default_rng([seed, 1])
            prompts = [rng.integers(0, pad_id, n).tolist() for n in lengths]
            if make_case(original, name, shape, weights, prompts, new_tokens, pad_id, 1e-3):
                break
        folder = OUT / name
        folder.mkdir(exist_ok=True)
        (folder / "config.json").write_text(json.dumps({**shape, "dtype": "float32"}, indent=2) + "\n")
        save_file(weights, folder / "model.safetensors")


def encoding(ranks, special=None):
    """tiktoken's "gpt2" with the ranks from a file instead of a download; with the pad token as the original adds it."""
    import tiktoken
    import tiktoken_ext.openai_public
    from tiktoken.load import load_tiktoken_bpe
    tiktoken_ext.openai_public.data_gym_to_mergeable_bpe_ranks = lambda **_: load_tiktoken_bpe(str(ranks))
    if special is None:
        base = tiktoken.get_encoding("gpt2")
        special = {**base._special_tokens, "<|pad|>": base.n_vocab}
        return tiktoken.Encoding(name="gpt2_with_pad", pat_str=base._pat_str, mergeable_ranks=base._mergeable_ranks, special_tokens=special)
    return tiktoken.Encoding(name="ours", pat_str=tiktoken_ext.openai_public.r50k_pat_str, mergeable_ranks=load_tiktoken_bpe(str(ranks)), special_tokens=special)


def make_tokens(original, ranks):
    tokenizer = encoding(ranks)
    prompts = ["<|endoftext|>Did you notice that this world", "<|endoftext|>Hear that?"]  # the seed document's
    allowed = {"<|endoftext|>", "<|pad|>"}
    ids = tokenizer.encode_batch(prompts, allowed_special=allowed)
    pad_id = tokenizer.encode("<|pad|>", allowed_special=allowed)[0]
    padded, segment_ids = original.pad(ids, pad_id)
    completions = [[3128, 257, 1310, 1180, 422, 262, 1334, 286, 262, 995, 30], [921, 447, 247, 260, 407, 3436, 13, 198, 464, 717, 640]]  # the seed document's
    fixture = {"commit": original.commit, "prompts": prompts, "ids": ids, "pad_id": pad_id, "padded": np.asarray(padded).tolist(),
               "segment_ids": np.asarray(segment_ids).tolist(), "completions": [{"ids": c, "text": tokenizer.decode(c)} for c in completions]}
    OUT.mkdir(parents=True, exist_ok=True)
    (OUT / "tokens.json").write_text(json.dumps(fixture) + "\n")


def make_checkpoint_case(original, folder, prompts, new_tokens):
    shape = json.loads((folder / "config.json").read_text())
    weights = {name: w for part in sorted(folder.glob("*.safetensors")) for name, w in load_file(part).items()}
    with open(folder / "tokenizer.tiktoken") as f:
        ranks = sum(1 for line in f if line.strip())
    special = shape.get("special_tokens", {"<|endoftext|>": ranks, "<|pad|>": ranks + 1})
    tokenizer = encoding(folder / "tokenizer.tiktoken", special)
    ids = tokenizer.encode_batch(prompts, allowed_special=set(special))
    if not make_case(original, folder.name, shape, weights, ids, new_tokens, special["<|pad|>"], 1e-4):
        sys.exit(f"{folder}: two tokens are too close; give other prompts")
    path = OUT / f"{folder.name}.json"
    fixture = json.loads(path.read_text())
    fixture = {"texts": prompts, "completions": [tokenizer.decode(row) for row in fixture["greedy"]], **fixture}
    path.write_text(json.dumps(fixture, separators=(",", ":")) + "\n")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkout")
    parser.add_argument("--checkpoint", type=Path)
    parser.add_argument("--prompt", action="append", help="with --checkpoint; repeatable; default: the first four of its prompts.jsonl")
    parser.add_argument("--new-tokens", type=int, default=48, help="with --checkpoint")
    parser.add_argument("--ranks", type=Path)
    args = parser.parse_args()
    original = Original(args.checkout)
    if args.ranks:
        make_tokens(original, args.ranks)
    elif args.checkpoint:
        prompts = args.prompt or [json.loads(line)["prompt"] for line in (args.checkpoint / "prompts.jsonl").read_text().splitlines()[:4]]
        make_checkpoint_case(original, args.checkpoint, prompts, args.new_tokens)
    else:
        make_random_cases(original)


if __name__ == "__main__":
    main()
