"""Shows where the original program (see original.py) is wrong or differs from kvmesh: prints what docs/original.md says.

    python tests/reference/original_faults.py CHECKOUT
"""

import sys

import jax
import jax.numpy as jnp
import numpy as np

from original import JANUARY, Original, Run, random_weights

SHAPE = dict(seqlen=16, vocab_size=61, d_emb=32, num_layers=2, q_heads=4, kv_heads=2)


def attempt(what, f):
    try:
        f()
        print(f"{what}: works")
    except BaseException as e:
        print(f"{what}: {type(e).__name__}: {str(e).splitlines()[0]}")


def row_at_capacity(original, run, lengths):
    """Decodes rows beyond the cache's size and prints, for the first row, which position each query gets and how many keys it sees."""
    rng = np.random.default_rng(5)
    prompts = [rng.integers(0, 60, n).tolist() for n in lengths]
    seen, positions = [], []
    mask_of, frequencies_of = original.model.make_attention_mask, original.model.precompute_frequencies

    def watch_mask(*args, **kwargs):
        mask = mask_of(*args, **kwargs)
        seen.append(int(np.asarray(mask)[0, 0, -1].sum()))
        return mask

    def watch_positions(at, **kwargs):
        positions.append(int(np.asarray(at)[0, -1]))
        return frequencies_of(at, **kwargs)

    _, tokens, cache = run.prefill(prompts)
    original.model.make_attention_mask, original.model.precompute_frequencies = watch_mask, watch_positions
    steps, all_logits = 2 * SHAPE["seqlen"] - lengths[0], []
    tokens = rng.integers(0, 60, (steps, len(prompts)))
    for step in range(steps):
        logits, cache = original.inference.decode(run.params, jnp.asarray(tokens[step], jnp.int32)[:, None], cache, run.head_dim)
        all_logits.append(np.asarray(logits)[0])
    original.model.make_attention_mask, original.model.precompute_frequencies = mask_of, frequencies_of
    print(f"cache of {SHAPE['seqlen']}, prompts of {lengths} tokens; of the first row, token: position given, keys seen")
    print("   ", ", ".join(f"{lengths[0] + s}: {positions[s]}, {seen[s * SHAPE['num_layers']]}" for s in range(steps)))
    return tokens[:, 0], all_logits


def capacity(original, run):
    for lengths in ([12], [12, 16]):
        tokens, logits = row_at_capacity(original, run, lengths)
        first_beyond = SHAPE["seqlen"] - lengths[0]
        _, _, cache = run.prefill([[1]])
        alone = np.asarray(run.prefill([[int(tokens[first_beyond])]])[0])[0, -1]
        print(f"    the first token beyond the cache against the same token alone in a fresh cache: {np.abs(alone - logits[first_beyond]).max():.2g}")


def padding(original, run):
    rng = np.random.default_rng(6)
    prompt, longer = rng.integers(0, 60, 5).tolist(), rng.integers(0, 60, 13).tolist()
    alone, beside = run.prefill([prompt], power_of_two=False)[0], run.prefill([prompt, longer])[0]
    print(f"left padding by 11: logits of the row change by {np.abs(np.asarray(alone[0]) - np.asarray(beside[0, -5:])).max():.2g}")
    for segment_ids in ([0, 0, 0, 1, 1, 1], [1, 1, 0, 1, 1, 1]):
        print(f"positions of segment ids {segment_ids}: {np.asarray(original.kvcache.segment_ids_to_positions(jnp.array([segment_ids])))[0].tolist()}")
    pad = run.pad_id
    inner, without = run.prefill([prompt[:2] + [pad] + prompt[2:]])[0][0, -1], run.prefill([prompt])[0][0, -1]
    print(f"a pad id within a prompt: the last logits differ from those of the prompt without it by {np.abs(np.asarray(inner - without)).max():.2g}")


def roundings(original):
    name = "gqa"
    shape, lengths, _, stored = JANUARY[name]
    rng = np.random.default_rng(7)
    prompts = [rng.integers(0, 96, n).tolist() for n in (40, 33, 25)]
    weights = random_weights(shape, stored, 0)
    flat = lambda logits: np.concatenate([np.asarray(logits[b, -len(p):], np.float32).ravel() for b, p in enumerate(prompts)])
    single = flat(Run(original, shape, weights, jnp.float32, 96).prefill(prompts)[0])

    def distance(what):
        jax.clear_caches()
        half = flat(Run(original, shape, weights, jnp.bfloat16, 96).prefill(prompts)[0])
        before_cap = 15 * np.arctanh(half.astype(np.float64) / 15)
        off = np.abs(before_cap - before_cap.astype(jnp.bfloat16).astype(np.float64)) / np.maximum(np.abs(before_cap), 1e-3)
        print(f"bfloat16, {what}: rms from float32 {np.sqrt(np.mean((half - single) ** 2)):.4f}; logits that are bfloat16 numbers before the cap {100 * np.mean(off < 1e-5):.0f} %")

    distance("as it is")
    model = original.model
    kept = model.precompute_frequencies, model.linear_forward
    model.precompute_frequencies = lambda positions, features, dtype=None: kept[0](positions, features=features)
    distance("sin and cos left in float32")
    model.precompute_frequencies = kept[0]
    model.linear_forward = lambda params, x: jnp.einsum("...d, dv-> ...v", x, params.weight, preferred_element_type=jnp.float32) if params.out_features == 97 else kept[1](params, x)
    distance("logits before the cap left in float32")
    model.linear_forward = kept[1]
    jax.clear_caches()


def stopping(original, run):
    rng = np.random.default_rng(8)
    prompts = [rng.integers(0, 60, n).tolist() for n in (3, 2)]
    stop = int(run.generate(prompts, 10, 0, 1.0)[0, 3])
    for rows in (prompts, prompts[:1]):
        _, next_tokens, cache = run.prefill(rows)
        out = jnp.zeros((len(rows), 10), jnp.int32).at[:, 0].set(next_tokens)
        stopped = original.inference.generate_with_stop_condition(run.params, cache, next_tokens[:, None], out, run.head_dim, jax.random.PRNGKey(0), temperature=1.0, top_k=0,
                                                                  max_new_tokens=10, stop_token_id=stop)
        print(f"stop token {stop}, {len(rows)} rows: {np.asarray(stopped).tolist()}")


def angles(original):
    sin, cos = original.model.precompute_frequencies(jnp.arange(2048)[None], features=96)
    exact = np.arange(2048)[:, None] / 10000.0 ** (np.arange(0, 96, 2) / 96)
    wrong = np.arctan2(np.asarray(sin[0], np.float64), np.asarray(cos[0], np.float64)) - exact
    print(f"angles at positions below 2048, head of 96: wrong by up to {np.abs((wrong + np.pi) % (2 * np.pi) - np.pi).max():.2g} rad")


def main():
    original = Original(sys.argv[1])
    print(f"commit {original.commit}")
    model_config = original.config.ModelConfig
    attempt("q_heads = kv_heads", lambda: model_config(d_emb=32, q_heads=4, kv_heads=4))
    print(f"ModelConfig(num_layers=2) makes {model_config(num_layers=2).attn.num_layers} layers")
    run = Run(original, SHAPE, random_weights(SHAPE, np.float32, 3), jnp.float32, 60)
    angles(original)
    capacity(original, run)
    padding(original, run)
    keys = jax.random.split(jax.random.PRNGKey(0), 200)
    drawn = {int(original.inference.sample_from_logits(jnp.array([[1.0, 1.0, 1.0, 0.0]]), k, 1.0, 2)[0]) for k in keys}
    print(f"logits 1 1 1 0, top-k 2: drawn in 200 tries: {sorted(drawn)}")
    if hasattr(original.inference, "generate_with_stop_condition"):
        stopping(original, run)
    if hasattr(original.inference, "sample_from_model"):
        class OneToken:
            def encode_batch(self, prompts, allowed_special):
                return [[1] for _ in prompts]
        original.inference.cfg = run.config
        attempt("sample_from_model", lambda: original.inference.sample_from_model(jax.random.PRNGKey(0), ["a"], OneToken(), run.params, 4, 60, run.head_dim))
    if not original.has_windows:
        roundings(original)


if __name__ == "__main__":
    main()
