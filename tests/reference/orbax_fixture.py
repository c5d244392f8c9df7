"""Makes tests/fixtures/orbax: Orbax checkpoints of tiny models that the original program (AakashKumarNain/nanoGPTJAX) builds and saves, on the CPU.

    python tests/reference/orbax_fixture.py CHECKOUT            # a git checkout of the original, made with 5be1f9a
    python tests/reference/orbax_fixture.py CHECKOUT --load FOLDER [--like NAME]   # its own loading reads FOLDER; prints a SHA-256 a tensor

run         as train_sft.py saves: CheckpointManager, items params and optim_state, steps 100 and 200 (OCDBT, float32)
bfloat16    one tree (OCDBT); its layers slide
plain       the same without OCDBT, float32; plain-bfloat16
sharded     weights spread over four devices, each of which writes its part (OCDBT, bfloat16)
zarr3       the newer array format (OCDBT, float32)
expected.json   for each: config, and shape and SHA-256 of every tensor's bytes; of run's last step also what forward() continues greedily
The weights are random, for the original begins with zeros in wo and fc2. Needs: pip install jax orbax-checkpoint optax numpy ml_dtypes
"""

import argparse
import hashlib
import json
import os
import shutil
import subprocess
import sys
import types
from pathlib import Path

os.environ["JAX_PLATFORMS"] = "cpu"
os.environ["XLA_FLAGS"] = "--xla_force_host_platform_device_count=4"

import jax
import jax.numpy as jnp
import numpy as np
import optax
import orbax.checkpoint as ocp

OUT = Path(__file__).resolve().parent.parent / "fixtures" / "orbax"
SHAPE = dict(seqlen=32, vocab_size=40, d_emb=8, num_layers=2, q_heads=4, kv_heads=2)
WINDOW = dict(window_pattern="SL", local_window_size=4)
CASES = {"run": (jnp.float32, {}), "bfloat16": (jnp.bfloat16, WINDOW), "plain": (jnp.float32, {}), "plain-bfloat16": (jnp.bfloat16, {}), "sharded": (jnp.bfloat16, {}), "zarr3": (jnp.float32, {})}
PROMPTS = [[5, 17, 3, 39, 2], [9], [30, 31, 32, 33, 34, 35, 36, 37, 38]]
NEW_TOKENS = 8


class Program:
    """The original's modules, imported from a checkout."""

    def __init__(self, checkout):
        sys.modules["grain"] = types.ModuleType("grain")  # data loading, of which nothing is used here
        sys.path.insert(0, str(Path(checkout) / "nanogpt"))
        import checkpoint_utils, config, model
        self.checkpoints, self.config, self.model = checkpoint_utils, config, model
        self.commit = subprocess.run(["git", "-C", checkout, "rev-parse", "HEAD"], check=True, capture_output=True, text=True).stdout.strip()

    def build(self, name):
        """Config and model of a case."""
        dtype, more = CASES[name]
        devices = jax.devices() if name == "sharded" else jax.devices()[:1]
        mesh = jax.sharding.Mesh(np.array(devices), axis_names="x")
        rules = dict(mlp_up_ffw="x", mlp_down_ffw="x", vocab_out="x", q_heads="x", o_embed="x") if name == "sharded" else {}
        config = self.config.Config(mesh=mesh, rules=self.config.ShardingRules(**rules), model=self.config.ModelConfig(**SHAPE, **more, dtype=dtype))
        rng = np.random.default_rng(list(CASES).index(name))

        def randomized(leaf):
            width = 1.0 if leaf.shape == (SHAPE["vocab_size"], SHAPE["d_emb"]) else 0.35
            return jax.device_put(jnp.asarray(rng.standard_normal(leaf.shape) * width, leaf.dtype), leaf.sharding)

        with jax.set_mesh(mesh):
            return config, jax.tree.map(randomized, self.model.GPT.init(jax.random.PRNGKey(0), config))

    def greedy(self, config, model, prompt):
        """New tokens, and how far the best was before the second best."""
        tokens, gaps = list(prompt), []
        for _ in range(NEW_TOKENS):
            freqs = self.model.precompute_frequencies(positions=jnp.arange(len(tokens))[None, :], features=config.model.attn.head_dim)
            logits = np.asarray(self.model.forward(model, jnp.asarray([tokens]), None, freqs)[0, -1])
            tokens.append(int(logits.argmax()))
            gaps.append(round(float(np.diff(np.sort(logits)[-2:])[0]), 5))
        return tokens[len(prompt):], gaps


def described(tree):
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {jax.tree_util.keystr(path, simple=True, separator="."): [list(leaf.shape), hashlib.sha256(np.asarray(leaf).tobytes()).hexdigest()] for path, leaf in leaves}


def save_run(model):
    options = ocp.CheckpointManagerOptions(max_to_keep=5, save_interval_steps=100, enable_async_checkpointing=True, enable_background_delete=True)
    handlers = {"params": ocp.Checkpointer(ocp.PyTreeCheckpointHandler()), "optim_state": ocp.Checkpointer(ocp.PyTreeCheckpointHandler())}
    manager = ocp.CheckpointManager(OUT / "run", handlers, options=options)
    for step, weights in ((100, jax.tree.map(lambda w: w / 2, model)), (200, model)):
        state = optax.scale_by_schedule(optax.constant_schedule(0.1)).init(weights)  # a small one
        manager.save(step, args=ocp.args.Composite(params=ocp.args.PyTreeSave(weights), optim_state=ocp.args.PyTreeSave(state)))
    manager.wait_until_finished()


def make(program):
    shutil.rmtree(OUT, ignore_errors=True)
    OUT.mkdir(parents=True)
    cases = {}
    for name, (dtype, more) in CASES.items():
        config, model = program.build(name)
        if name == "run":
            save_run(model)
        else:
            handler = ocp.PyTreeCheckpointHandler(use_ocdbt=not name.startswith("plain"), use_zarr3=name == "zarr3")
            with ocp.Checkpointer(handler) as checkpointer:
                checkpointer.save(OUT / name, args=ocp.args.PyTreeSave(model))
        cases[name] = {"config": SHAPE | more | {"dtype": jnp.dtype(dtype).name}, "tensors": described(model)}
        if name == "run":
            with jax.set_mesh(config.mesh):
                rows = [program.greedy(config, model, p) for p in PROMPTS]
            cases[name] |= {"prompts": PROMPTS, "greedy": [r[0] for r in rows], "gaps": [r[1] for r in rows]}
    versions = {m.__name__: m.__version__ for m in (jax, np, optax, ocp)}
    (OUT / "expected.json").write_text(json.dumps({"made_by": "tests/reference/orbax_fixture.py", "original": program.commit, "versions": versions, "cases": cases}, indent=1) + "\n")
    print(f"{sum(f.stat().st_size for f in OUT.rglob('*') if f.is_file()) / 1024:.0f} KB")


def load(program, folder, like):
    """The original's own loading, with and without its validation."""
    config, model = program.build(like)
    shardings = program.model.GPT.shardings(config.mesh, config.rules, config.model)
    validated = described(program.checkpoints.load_weights_from_checkpoint_with_validation(folder, model, shardings))
    assert validated == described(program.checkpoints.load_weights_from_checkpoint(folder, shardings))
    print(json.dumps(validated))


parser = argparse.ArgumentParser()
parser.add_argument("checkout")
parser.add_argument("--load", type=Path)
parser.add_argument("--like", choices=CASES, default="run")
args = parser.parse_args()
program = Program(args.checkout)
load(program, args.load.resolve(), args.like) if args.load else make(program)
