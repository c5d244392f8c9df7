"""Computes training with JAX and optax on the CPU and writes tests/fixtures/train: losses, gradients of every tensor, 20 steps of each optimizer.

    python tests/reference/train.py --original CHECKOUT

CHECKOUT is a git checkout of the original (AakashKumarNain/nanoGPTJAX, made with 5be1f9a). Its optim.py configures the optimizer; its clip of 1.0
stands in front, as in its train.py. The model is written here anew; before anything is written, the original's own forward() must give the same
losses and gradients, and its pytree the same 20 steps. A second run in float64 (optax keeps
the first moments in float32) shows how far rounding carries; the numbers are printed.
Needs: pip install jax optax numpy safetensors torch (made with jax 0.10.2, optax 0.2.8, torch 2.15.0)

gqa/, window/         config.json and model.safetensors, the weights before the first step
  train.json          batches "packed" (documents see themselves only, positions restart, segment 0 is padding, some targets masked) and "joined"
                      (a row is one segment); the loss is the mean over the targets whose mask is 1
  packed.safetensors, joined.safetensors   the loss's gradient
gqa/train.json        also "steps": tokens [step][row][seqlen + 1]; a run's settings, learning rates, losses (before each update), norms before the clip
gqa/muon.safetensors, adamw …              a run's weights after the last step
rules.safetensors     single tensors: 20 steps of PyTorch's AdamW; of gradients of Muon (tall, wide, wq, wo): the first one's Newton-Schulz result, the
                      updates of three steps at a learning rate of -1, so that they are not negated; rules.json: settings, and the factor of the shape
"""
import argparse
import json
import os
import sys
from functools import partial
from pathlib import Path

os.environ["JAX_PLATFORMS"] = "cpu"

import jax
import jax.numpy as jnp
import numpy as np
import optax
import torch
from optax.contrib._muon import orthogonalize_via_newton_schulz
from safetensors.numpy import save_file

from original import Original, Run, random_weights

jax.config.update("jax_default_matmul_precision", "highest")
OUT = Path(__file__).parent.parent / "fixtures" / "train"
SHAPE = dict(seqlen=32, vocab_size=96, d_emb=32, num_layers=2, q_heads=4, kv_heads=2, dtype="float32", rope_theta=10000.0, norm_eps=1e-5, logit_soft_cap=15.0)
MODELS = {"gqa": SHAPE | dict(window_pattern="L"), "window": SHAPE | dict(window_pattern="SL", local_window_size=8, nope_global_attn=True)}
STEPS, WARMUP, MAX_LR, CLIP = 20, 3, 0.01, 1.0  # the warm-up, the cosine and the flat end all occur
# name: Muon or AdamW for the blocks, whose rule of cautious decay, its rate. At 0.01 the two rules differ by less than what a test can allow, at 1 they do not.
RUNS = {"muon": (True, "original", 0.01), "adamw": (False, "original", 0.01),
        "muon-decay": (True, "original", 1.0), "muon-paper": (True, "paper", 1.0), "adamw-paper": (False, "paper", 1.0)}


def layers(c):
    """A layer's (window or None, whether it has RoPE)."""
    pattern, mixed = c["window_pattern"], c["window_pattern"] not in ("S", "L")
    local = [pattern[i % len(pattern)] == "S" and not (mixed and i == c["num_layers"] - 1) for i in range(c["num_layers"])]
    return [(c.get("local_window_size") if s else None, s or not (mixed and c.get("nope_global_attn", True))) for s in local]


def loss_of(w, batch, c):
    """w: name -> weight; batch: tokens, targets, segments, positions, mask, each [B, T]. Mean over the targets whose mask is 1."""
    heads, groups, h = c["q_heads"], c["kv_heads"], c["d_emb"] // c["q_heads"]
    B, T = batch["tokens"].shape
    angle = batch["positions"][..., None] / c["rope_theta"] ** (jnp.arange(0, h, 2) / h)  # [B, T, h/2]
    cos, sin = jnp.cos(angle)[:, :, None], jnp.sin(angle)[:, :, None]
    place = jnp.arange(T)
    causal = (batch["segments"][:, :, None] == batch["segments"][:, None, :]) & (place[:, None] >= place)  # [B, T, T]

    def norm(x):
        return x / jnp.sqrt(jnp.mean(x * x, -1, keepdims=True) + c["norm_eps"])

    x = w["embed.weight"][batch["tokens"]]  # [B, T, D]
    for i, (window, has_rope) in enumerate(layers(c)):
        def rope(y):
            a, b = jnp.split(y, 2, -1)
            return jnp.concatenate([a * cos - b * sin, b * cos + a * sin], -1) if has_rope else y

        block = lambda name: w[f"blocks.{i}.{name}"]
        y = norm(x)
        q = rope(norm(jnp.einsum("btd,dnh->btnh", y, block("attn.wq")))).reshape(B, T, groups, heads // groups, h)
        k = rope(norm(jnp.einsum("btd,dnh->btnh", y, block("attn.wk"))))
        v = jnp.einsum("btd,dnh->btnh", y, block("attn.wv"))
        seen = causal if window is None else causal & (place[:, None] - place <= window)
        scores = jnp.where(seen[:, None, None], jnp.einsum("btgnh,bsgh->bgnts", q, k) / h**0.5, -1e30)
        y = jnp.einsum("bgnts,bsgh->btgnh", jax.nn.softmax(scores, -1), v).reshape(B, T, heads, h)
        x = x + jnp.einsum("btnh,nhd->btd", y, block("attn.wo"))
        x = x + jnp.square(jax.nn.relu(norm(x) @ block("mlp.fc1.weight"))) @ block("mlp.fc2.weight")
    logits = c["logit_soft_cap"] * jnp.tanh(norm(x) @ w["lm_head.weight"] / c["logit_soft_cap"])
    nats = jax.nn.logsumexp(logits, -1) - jnp.take_along_axis(logits, batch["targets"][..., None], -1)[..., 0]
    return jnp.sum(nats * batch["mask"]) / jnp.sum(batch["mask"])


def weights_of(c, seed):
    """As for the original's forward pass, but with logits that feel the cap."""
    weights = random_weights(c, np.float32, seed)
    weights["lm_head.weight"] *= 2
    return weights


def chain_tokens(rng, count, vocab):
    """[count] tokens that a model can learn: four of five follow from the token before; token 0 begins a document."""
    out = np.zeros(count, np.int64)
    for i in range(1, count):
        out[i] = (5 * out[i - 1] + 7) % vocab if rng.random() < 0.8 else rng.integers(vocab)
    return out


def packed_batch(rng, c):
    """Four rows of documents: the lengths are given, the rest of a row is padding."""
    batch = {name: np.zeros((4, c["seqlen"]), np.int64) for name in ("tokens", "targets", "segments", "positions", "mask")}
    for row, lengths in enumerate([(11, 14, 7), (32,), (1, 2, 20), (9, 16)]):
        end = 0
        for segment, n in enumerate(lengths, 1):
            tokens, at = chain_tokens(rng, n + 1, c["vocab_size"]), slice(end, end + n)
            batch["tokens"][row, at], batch["targets"][row, at] = tokens[:-1], tokens[1:]
            batch["segments"][row, at], batch["positions"][row, at] = segment, np.arange(n)
            batch["mask"][row, at] = rng.random(n) < 0.75
            end += n
    return batch


def joined_batch(tokens):
    """tokens: [B, T + 1]."""
    B, T = tokens.shape[0], tokens.shape[1] - 1
    ones = np.ones((B, T), np.int64)
    return {"tokens": tokens[:, :-1], "targets": tokens[:, 1:], "segments": ones, "positions": np.tile(np.arange(T), (B, 1)), "mask": ones}


def filled_rows(rng, rows, c):
    """[rows, seqlen + 1]: documents one behind the other, the last one cut."""
    out = []
    for _ in range(rows):
        row = np.concatenate([chain_tokens(rng, int(rng.integers(4, 20)), c["vocab_size"]) for _ in range(c["seqlen"])])
        out.append(row[:c["seqlen"] + 1])
    return np.array(out)


def tree_of(w, c):
    """The original's nesting, whose top names choose the group."""
    block = lambda i: {part: {n.split(".", 3)[3]: x for n, x in w.items() if n.startswith(f"blocks.{i}.{part}.")} for part in ("attn", "mlp")}
    return {"embed": {"weight": w["embed.weight"]}, "blocks": [block(i) for i in range(c["num_layers"])], "lm_head": {"weight": w["lm_head.weight"]}}


def name_of(path):
    return jax.tree_util.keystr(path, simple=True, separator=".")


def flat_of(tree):
    return {name_of(path): np.asarray(x) for path, x in jax.tree_util.tree_leaves_with_path(tree)}


def paper_decay(schedule, rate):
    """Cautious decay as arXiv 2510.12402 has it: a weight decays where the step does not let it grow. Gets updates that are already negated."""
    def update(updates, count, params):
        def one(path, u, w):
            return u - schedule(count) * rate * jnp.where(u * w <= 0, w, 0) if name_of(path).startswith("blocks") else u
        return jax.tree_util.tree_map_with_path(one, updates, params), count + 1

    return optax.GradientTransformation(lambda params: jnp.zeros([], jnp.int32), update)


def schedule_of(use_muon):
    return optax.warmup_cosine_decay_schedule(0.01 * MAX_LR, max(MAX_LR, 0.02) if use_muon else MAX_LR, WARMUP, STEPS - WARMUP, 0.01 * MAX_LR)


def optimizer_of(build_optimizer, params, c, use_muon, rule, decay):
    groups = build_optimizer(params, d_model=c["d_emb"], other_peak_lr=MAX_LR, other_min_lr=0.01 * MAX_LR, total_train_steps=STEPS, warmup_steps=WARMUP,
                             b1=0.8, b2=0.95, cautious_weight_decay=decay if rule == "original" else 0.0, use_muon=use_muon)
    return optax.chain(optax.clip_by_global_norm(CLIP), groups, *([paper_decay(schedule_of(use_muon), decay)] if rule == "paper" else []))


def train(optimizer, params, loss, batches):
    """Losses before each update, the gradients' norms before the clip, the last weights."""
    @jax.jit
    def step(params, state, batch):
        value, gradients = jax.value_and_grad(loss)(params, batch)
        updates, state = optimizer.update(gradients, state, params)
        return optax.apply_updates(params, updates), state, value, optax.tree.norm(gradients)

    state, losses, norms = optimizer.init(params), [], []
    for batch in batches:
        params, state, value, norm = step(params, state, batch)
        losses.append(float(value))
        norms.append(float(norm))
    return losses, norms, params


def distance(got, want):
    """The largest relative norm of a difference over the tensors, and its tensor."""
    return max((float(np.linalg.norm(got[n] - want[n]) / np.linalg.norm(want[n])), n) for n in want)


def original_loss(original, c, params, batch):
    """The original's loss (its train.py has the same formula) on its own pytree and forward()."""
    positions = jnp.asarray(batch["positions"])
    freqs = original.model.precompute_frequencies(positions.astype(jnp.float32), c["d_emb"] // c["q_heads"])
    logits = original.model.forward(params, batch["tokens"], batch["segments"], freqs)
    nats = optax.losses.softmax_cross_entropy_with_integer_labels(logits=logits, labels=batch["targets"], where=batch["mask"] > 0)
    return jnp.sum(nats) / jnp.maximum(jnp.sum(batch["mask"]), 1.0)


def make_model(original, build_optimizer, name, c):
    folder = OUT / name
    folder.mkdir(parents=True, exist_ok=True)
    w = weights_of(c, 5)
    rng = np.random.default_rng([5, len(name)])
    theirs = Run(original, c, w, jnp.float32, 0).params
    their_loss, our_loss = partial(original_loss, original, c), partial(nested_loss, c=c)
    fixture = {"commit": original.commit, "jax": jax.__version__, "optax": optax.__version__}
    for kind, batch in (("packed", packed_batch(rng, c)), ("joined", joined_batch(filled_rows(rng, 4, c)))):
        value, gradients = jax.value_and_grad(loss_of)(w, batch, c)
        their_value, their_gradients = jax.value_and_grad(their_loss)(theirs, batch)
        far, where = distance(flat_of(gradients), flat_of(their_gradients))
        print(f"{name} {kind}: loss {value:.6f}, the original's differs by {abs(value - their_value):.1e}, gradients by {far:.1e} ({where})")
        assert abs(value - their_value) < 1e-5 and far < 1e-5
        save_file(flat_of(gradients), folder / f"{kind}.safetensors")
        fixture[kind] = {"loss": float(value)} | {k: v.tolist() for k, v in batch.items()}
    if name == "gqa":
        tokens = np.array([filled_rows(rng, 4, c) for _ in range(STEPS)])
        batches = [joined_batch(rows) for rows in tokens]
        fixture |= {"steps": tokens.tolist()}
        fixture |= {"warmup": WARMUP, "clip": CLIP, "b1": 0.8, "b2": 0.95, "eps": 1e-10, "embedding_lr": 0.2, "unembedding_lr": 0.004, "runs": {}}
        finals = {}
        for run, (use_muon, rule, decay) in RUNS.items():
            tree = tree_of(w, c)
            losses, norms, params = train(optimizer_of(build_optimizer, tree, c, use_muon, rule, decay), tree, our_loss, batches)
            finals[run] = flat_of(params)
            if rule == "original":  # its pytree and forward(); and how far rounding carries
                their_losses, _, their_params = train(optimizer_of(build_optimizer, theirs, c, use_muon, rule, decay), theirs, their_loss, batches)
                far = distance(finals[run], flat_of(their_params))
                apart = np.abs(np.subtract(losses, their_losses)).max()
                print(f"{name} {run}: losses {losses[0]:.4f} to {losses[-1]:.4f}, with the original's pytree within {apart:.1e}, weights {far}")
                assert apart < 1e-4 and far[0] < 1e-3
            with jax.enable_x64(True):
                wide = jax.tree.map(lambda x: jnp.asarray(x, jnp.float64), tree)
                wide_losses, _, wide_params = train(optimizer_of(build_optimizer, wide, c, use_muon, rule, decay), wide, our_loss, batches)
                apart = np.abs(np.subtract(losses, wide_losses)).max()
                print(f"{name} {run}: from float64 losses {apart:.1e}, weights {distance(finals[run], flat_of(wide_params))}")
            lr = [float(schedule_of(use_muon)(i)) for i in range(STEPS)]
            peak = max(MAX_LR, 0.02) if use_muon else MAX_LR
            fixture["runs"][run] = {"muon": use_muon, "rule": rule, "decay": decay, "peak_lr": peak, "end_lr": 0.01 * MAX_LR, "lr": lr, "losses": losses, "norms": norms}
            save_file(finals[run], folder / f"{run}.safetensors")
        for a, b in (("muon", "muon-decay"), ("muon-decay", "muon-paper"), ("adamw", "adamw-paper")):
            print(f"{name}: weights of {a} and {b} differ by {distance(finals[a], finals[b])}")
    (folder / "train.json").write_text(json.dumps(fixture, separators=(",", ":")) + "\n")
    (folder / "config.json").write_text(json.dumps(c, indent=2) + "\n")
    save_file(w, folder / "model.safetensors")


def nested_loss(params, batch, c):
    return loss_of({name_of(path): x for path, x in jax.tree_util.tree_leaves_with_path(params)}, batch, c)


def make_rules():
    """Single tensors: PyTorch's AdamW, and what optax's Muon makes of a gradient."""
    rng = np.random.default_rng(6)
    settings = {"lr": 0.01, "b1": 0.8, "b2": 0.95, "eps": 1e-10, "steps": 20, "decay": [0.0, 0.1], "muon_beta": 0.95, "muon_eps": 1e-8, "factors": {}}
    start, gradients = rng.standard_normal((6, 5)).astype(np.float32), rng.standard_normal((20, 6, 5)).astype(np.float32)
    gradients[:, 0, 0] = 0  # an entry without a gradient
    out = {"adamw.parameter": start, "adamw.gradients": gradients}
    for decay in settings["decay"]:
        parameter = torch.nn.Parameter(torch.tensor(start.copy()))
        rule = torch.optim.AdamW([parameter], lr=0.01, betas=(0.8, 0.95), eps=1e-10, weight_decay=decay)
        ours, adamw = jnp.asarray(start), optax.adamw(0.01, b1=0.8, b2=0.95, eps=1e-10, weight_decay=decay)
        state = adamw.init(ours)
        for gradient in gradients:
            parameter.grad = torch.tensor(gradient)
            rule.step()
            updates, state = adamw.update(jnp.asarray(gradient), state, ours)
            ours = optax.apply_updates(ours, updates)
        out[f"adamw.torch.{decay}"] = parameter.detach().numpy()
        print(f"AdamW, decay {decay}: PyTorch's and optax's differ by {np.abs(out[f'adamw.torch.{decay}'] - ours).max():.1e}")
    axes = optax.contrib.MuonDimensionNumbers
    matrix = axes((0,), (1,))
    for name, shape, numbers in (("tall", (32, 8), matrix), ("wide", (8, 32), matrix), ("wq", (32, 4, 8), axes((0,), (2,))), ("wo", (4, 8, 32), axes((1,), (2,)))):
        gradients = rng.standard_normal((3, *shape)).astype(np.float32)
        once = orthogonalize_via_newton_schulz(jnp.asarray(gradients[0]), jnp.array([3.4445, -4.775, 2.0315]), 5, "frobenius", 1e-8, numbers)
        muon = optax.contrib.muon(1.0, beta=0.95, eps=1e-8, nesterov=True, muon_weight_dimension_numbers=numbers)
        state, updates = muon.init(jnp.zeros(shape)), []
        for gradient in gradients:
            update, state = muon.update(jnp.asarray(gradient), state, jnp.zeros(shape))
            updates.append(-np.asarray(update))
        settings["factors"][name] = float(np.linalg.norm(updates[0]) / np.linalg.norm(once))
        out |= {f"muon.{name}.gradients": gradients, f"muon.{name}.orthogonal": np.asarray(once), f"muon.{name}.updates": np.array(updates)}
    print("Muon's shape factors", settings["factors"])
    save_file(out, OUT / "rules.safetensors")
    (OUT / "rules.json").write_text(json.dumps(settings, indent=2) + "\n")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--original", required=True)
    original = Original(parser.parse_args().original)
    import optim
    for name, c in MODELS.items():
        make_model(original, optim.build_optimizer, name, c)
    make_rules()
    print(f"{sum(f.stat().st_size for f in OUT.rglob('*') if f.is_file())} bytes")


if __name__ == "__main__":
    main()
