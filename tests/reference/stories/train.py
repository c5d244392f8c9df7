"""Trains the shipped checkpoint on the stories, in JAX on the CPU, and writes a checkpoint folder (docs/checkpoint.md).

    python tests/reference/stories/bpe.py --output configs/stories/tokenizer.tiktoken
    python tests/reference/stories/train.py --output configs/stories

The recipe is that of the program that kvmesh grew from: AdamW (beta 0.8, 0.95, eps 1e-10) for the embedding and the head, learning rates
that go with (d/768)^-1/2, Muon for the rest, attention weights orthogonalised a head, cautious weight decay of Muon's weights, gradients
clipped to norm 1, warm-up and cosine to 1 % of the peak. It deviates from it in this, because the run is short and small:
- Muon's weights decay by 1 times the learning rate, not 0.01: with 0.01 the first MLP's output grew to an rms of 74 beside the
  embedding's 0.4, which buries the tokens' identities, and after 1.6 million tokens the model did not repeat the hero's name;
- for the same reason the embedding begins with a standard deviation of 2, its learning rate is 0.05 (d/768)^-1/2, not 0.2, and Muon's 0.04;
- the head begins as the embedding's transpose and wo as wv's, not at zero, so that attention copies what it sees from the start;
- the schedule rules the embedding and the head too;
- everything is float32, and the weights are rounded to bfloat16 once, at the end;
- a row holds whole stories only (the rest of it is padding), they do not see each other, and positions restart with each.
Heads are 64 wide: q and k are normed, so that no score exceeds the root of the width, and with 32 copying was learned far more slowly.

A story is <|endoftext|> and its text; the target of its last token is the next <|endoftext|>. So the loss of a perfect model is
the information of the stories, and each validation line shows that beside the loss: their difference is what is left to learn.
Needs: pip install jax optax safetensors tiktoken regex
"""
import argparse
import itertools
import json
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import optax
from safetensors.numpy import save_file

from bpe import tokenizer_of
from stories import story

CONFIG = {"seqlen": 256, "vocab_size": 1152, "d_emb": 128, "num_layers": 4, "q_heads": 2, "kv_heads": 1, "dtype": "bfloat16",
          "rope_theta": 10000.0, "norm_eps": 1e-5, "logit_soft_cap": 15.0, "window_pattern": "L"}


def init(key, c):
    d, h = c["d_emb"], c["d_emb"] // c["q_heads"]

    def uniform(*shape):
        nonlocal key
        key, sub = jax.random.split(key)
        bound = (3 / shape[0])**0.5
        return jax.random.uniform(sub, shape, jnp.float32, -bound, bound)

    embed = 2.0 * jax.random.normal(key, (c["vocab_size"], d))
    params = {"embed.weight": embed, "lm_head.weight": 0.01 * embed.T}
    for i in range(c["num_layers"]):
        wv = uniform(d, c["kv_heads"], h)
        wo = jnp.repeat(wv.transpose(1, 2, 0), c["q_heads"] // c["kv_heads"], 0)
        params |= {f"blocks.{i}.attn.wq": uniform(d, c["q_heads"], h), f"blocks.{i}.attn.wk": uniform(d, c["kv_heads"], h),
                   f"blocks.{i}.attn.wv": wv, f"blocks.{i}.attn.wo": wo,
                   f"blocks.{i}.mlp.fc1.weight": uniform(d, 4 * d), f"blocks.{i}.mlp.fc2.weight": jnp.zeros((4 * d, d))}
    return params


def forward(params, batch, c):
    """batch: tokens, segments, positions, each [B, T]; gives logits [B, T, V]."""
    heads, groups, h = c["q_heads"], c["kv_heads"], c["d_emb"] // c["q_heads"]
    B, T = batch["tokens"].shape
    angle = batch["positions"][..., None] / c["rope_theta"]**(jnp.arange(0, h, 2) / h)  # [B, T, h/2]
    cos, sin = jnp.cos(angle)[:, :, None], jnp.sin(angle)[:, :, None]
    segments = batch["segments"]
    seen = (segments[:, :, None] == segments[:, None, :]) & jnp.tri(T, dtype=bool)
    bias = jnp.where(seen, 0.0, -1e9)[:, None, None]  # [B, 1, 1, T, T]

    def norm(x):
        return x * jax.lax.rsqrt(jnp.mean(x * x, -1, keepdims=True) + c["norm_eps"])

    def rope(x):
        a, b = jnp.split(x, 2, -1)
        return jnp.concatenate([a * cos - b * sin, b * cos + a * sin], -1)

    x = params["embed.weight"][batch["tokens"]]
    for i in range(c["num_layers"]):
        w = {name: params[f"blocks.{i}.{name}"] for name in ("attn.wq", "attn.wk", "attn.wv", "attn.wo", "mlp.fc1.weight", "mlp.fc2.weight")}
        y = norm(x)
        q = rope(norm(jnp.einsum("btd,dnh->btnh", y, w["attn.wq"]))).reshape(B, T, groups, heads // groups, h)
        k = rope(norm(jnp.einsum("btd,dnh->btnh", y, w["attn.wk"])))
        v = jnp.einsum("btd,dnh->btnh", y, w["attn.wv"])
        weights = jax.nn.softmax(jnp.einsum("btgnh,bsgh->bgnts", q, k) / h**0.5 + bias, -1)
        y = jnp.einsum("bgnts,bsgh->btgnh", weights, v).reshape(B, T, heads, h)
        x = x + jnp.einsum("btnh,nhd->btd", y, w["attn.wo"])
        x = x + jnp.square(jax.nn.relu(norm(x) @ w["mlp.fc1.weight"])) @ w["mlp.fc2.weight"]
    logits = norm(x) @ params["lm_head.weight"]
    cap = c["logit_soft_cap"]
    return cap * jnp.tanh(logits / cap)


def loss_sum(params, batch, c):
    """Sum over the real tokens of -log p(target), and their number."""
    logits = forward(params, batch, c)
    nats = jax.nn.logsumexp(logits, -1) - jnp.take_along_axis(logits, batch["targets"][..., None], -1)[..., 0]
    real = batch["segments"] > 0
    return jnp.sum(jnp.where(real, nats, 0)), jnp.sum(real)


def documents(encoding, seed):
    """(ids, nats) for ever; ids begin and end with <|endoftext|>."""
    stop = encoding.n_vocab - 2
    for i in itertools.count():
        text, nats = story(seed, i)
        yield np.array([stop, *encoding.encode_ordinary(text), stop]), nats


def rows(docs, seqlen, pool_size=64):
    """Packs whole documents: the oldest of a pool, then the longest that still fits. An exhausted source empties the pool."""
    pool = []
    docs = iter(docs)
    while True:
        while len(pool) < pool_size and (doc := next(docs, None)) is not None:
            pool.append(doc)
        if not pool:
            return
        row = {name: np.zeros(seqlen, np.int32) for name in ("tokens", "targets", "segments", "positions")}
        end, segment, doc = 0, 1, pool.pop(0)
        while doc is not None:
            n = len(doc) - 1
            at = slice(end, end + n)
            row["tokens"][at], row["targets"][at], row["segments"][at], row["positions"][at] = doc[:-1], doc[1:], segment, np.arange(n)
            end, segment = end + n, segment + 1
            fitting = [i for i, other in enumerate(pool) if len(other) - 1 <= seqlen - end]
            doc = pool.pop(max(fitting, key=lambda i: len(pool[i]))) if fitting else None
        yield row


def batches(docs, size, seqlen):
    held = []
    for row in rows(docs, seqlen):
        held.append(row)
        if len(held) == size:
            yield {name: np.stack([r[name] for r in held]) for name in held[0]}
            held = []
    if held:
        held += [{name: np.zeros_like(x) for name, x in held[0].items()}] * (size - len(held))
        yield {name: np.stack([r[name] for r in held]) for name in held[0]}


def cautious_decay(rate):
    """Adds rate * w to the (not yet negated, not yet scaled) update where both have the same sign, so that it shrinks what shrinks."""

    def update(updates, state, params):
        return jax.tree.map(lambda u, w: u + rate * jnp.where(u * w > 0, w, 0), updates, params), state

    return optax.GradientTransformation(lambda params: optax.EmptyState(), update)


def muon_axes(params):
    """Heads are a batch dimension of the attention weights: [D, heads, h] and, for wo, [heads, h, D]."""
    axes = optax.contrib.MuonDimensionNumbers
    rule = {"wq": axes(0, 2), "wk": axes(0, 2), "wv": axes(0, 2), "wo": axes(1, 2), "weight": axes(0, 1)}
    return {name: rule[name.split(".")[-1]] if isinstance(w, jax.Array) else w for name, w in params.items()}


def optimizer(c, args):
    def schedule(peak):
        return optax.warmup_cosine_decay_schedule(0.0, peak, max(1, args.steps // 20), args.steps, peak * 0.01)

    def adam(peak):
        return optax.adamw(schedule(peak * (c["d_emb"] / 768)**-0.5), b1=0.8, b2=0.95, eps=1e-10, weight_decay=0.0)

    # muon at a rate of -1 gives the bare update, so that the decay can be put between it and the rate.
    muon = optax.chain(optax.contrib.muon(-1.0, beta=0.95, nesterov=True, muon_weight_dimension_numbers=muon_axes), cautious_decay(args.decay),
                       optax.scale_by_learning_rate(schedule(args.muon_lr)))
    groups = optax.partition({"embed": adam(args.embed_lr), "head": adam(args.head_lr), "rest": muon},
                             lambda params: {name: {"embed.weight": "embed", "lm_head.weight": "head"}.get(name, "rest") for name in params})
    return optax.chain(optax.clip_by_global_norm(1.0), groups)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, required=True, help="a folder that holds tokenizer.tiktoken")
    parser.add_argument("--steps", type=int, default=900)
    parser.add_argument("--batch", type=int, default=8, help="rows a step")
    parser.add_argument("--muon-lr", type=float, default=0.04)
    parser.add_argument("--decay", type=float, default=1.0, help="of Muon's weights, times the learning rate")
    parser.add_argument("--embed-lr", type=float, default=0.05, help="for a width of 768")
    parser.add_argument("--head-lr", type=float, default=0.004, help="for a width of 768")
    parser.add_argument("--seed", type=int, default=1, help="of the initial weights and of the stories; validation has its own stories")
    parser.add_argument("--validation-stories", type=int, default=500)
    parser.add_argument("--report", type=int, default=100, help="steps between lines; validation every fifth line")
    args = parser.parse_args()
    c = CONFIG
    encoding = tokenizer_of(args.output / "tokenizer.tiktoken")
    assert encoding.n_vocab <= c["vocab_size"]

    held_out = documents(encoding, "validation")
    validation = [next(held_out) for _ in range(args.validation_stories)]
    entropy = sum(nats for _, nats in validation) / sum(len(ids) - 1 for ids, _ in validation)

    params = init(jax.random.PRNGKey(args.seed), c)
    print(f"{sum(w.size for w in params.values())} parameters", flush=True)
    rule = optimizer(c, args)
    state = rule.init(params)

    @jax.jit
    def step(params, state, batch):
        def mean(params):
            nats, count = loss_sum(params, batch, c)
            return nats / count

        loss, gradients = jax.value_and_grad(mean)(params)
        updates, state = rule.update(gradients, state, params)
        return optax.apply_updates(params, updates), state, loss

    evaluate = jax.jit(lambda params, batch: loss_sum(params, batch, c))

    def validate(params, stories):
        sums = [evaluate(params, batch) for batch in batches((ids for ids, _ in stories), args.batch, c["seqlen"])]
        return float(sum(s for s, _ in sums) / sum(n for _, n in sums))

    stream = batches((ids for ids, _ in documents(encoding, args.seed)), args.batch, c["seqlen"])
    begin, tokens, losses = time.time(), 0, []
    for i in range(1, args.steps + 1):
        batch = next(stream)
        tokens += int((batch["segments"] > 0).sum())
        params, state, loss = step(params, state, batch)
        losses.append(float(loss))
        if i % args.report == 0:
            print(f"step {i} train {np.mean(losses[-args.report:]):.4f} tokens {tokens} seconds {time.time() - begin:.0f}", flush=True)
        if i % (5 * args.report) == 0 or i == args.steps:
            part = validation if i == args.steps else validation[:200]
            loss = validate(params, part)
            bound = sum(nats for _, nats in part) / sum(len(ids) - 1 for ids, _ in part)
            print(f"step {i} validation {loss:.4f} entropy {bound:.4f} nats a token, above it {loss - bound:.4f}", flush=True)

    rounded = {name: np.asarray(w).astype(ml_dtypes.bfloat16) for name, w in params.items()}
    loss = validate({name: jnp.asarray(w, jnp.float32) for name, w in rounded.items()}, validation)
    print(f"weights in bfloat16: validation {loss:.4f} entropy {entropy:.4f} nats a token, above it {loss - entropy:.4f}")
    (args.output / "config.json").write_text(json.dumps(c, indent=2) + "\n")
    save_file(rounded, args.output / "model.safetensors")


if __name__ == "__main__":
    main()
