"""Training with kvmesh beside the original (AakashKumarNain/nanoGPTJAX), on this machine, in one run: a table of tokens/s, or the losses side by side.

    python tests/compare/train.py CHECKOUT [--config configs/stories] [--dtypes float32,bfloat16] [--optimizers muon,adamw] [--systems kvmesh,original]
    python tests/compare/train.py CHECKOUT --curves FOLDER [--steps 400]

CHECKOUT is a git checkout of the original (made with 5be1f9a). What is missing in the virtual environment is installed from PyPI. The original's side is
its forward(), loss and optim.py with its clip of 1.0, jitted as its train.py does, on as many cores as kvmesh has threads; it keeps bfloat16 weights where
kvmesh keeps float32 ones. Speed: the systems take turns; a turn is some steps after two that do not count, its figure the median step.
--curves trains both on the stories, from the same initial weights, with the same rows in the same order and the original's rule of decay, with each
optimizer, and writes losses.json and, by gnuplot, losses.svg into FOLDER; printed is how far the losses are apart. Rows are filled and joined, as the original has them. The line of the entropy is
the stories' own, a token; a row's last story is cut, so that what can be reached differs a little.
"""
import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent.parent
sys.path.insert(0, str(ROOT / "tests/reference"))
PACKAGES = ["jax", "numpy", "ml_dtypes", "safetensors", "tiktoken", "orbax-checkpoint", "optax"]
CLIP, WARMUP = 1.0, 0.05  # of the gradient's norm; a part of the steps


def in_venv(venv):
    """Starts this program again with the virtual environment's python, if it is another."""
    python = venv / "bin/python"
    if not python.exists():
        subprocess.run([sys.executable, "-m", "venv", str(venv)], check=True)
    if Path(sys.prefix).resolve() == venv.resolve():
        return
    for package in PACKAGES:
        if subprocess.run([python, "-m", "pip", "show", "-q", package], capture_output=True).returncode != 0:
            print(f"installing {package}", file=sys.stderr)
            subprocess.run(["nice", python, "-m", "pip", "install", "-q", package], check=True)
    os.execv(python, [str(python), *sys.argv])


def peak_lr(optimizer, lr):
    """The original does not let Muon have less than 0.02, and its floor is a hundredth of what was asked for."""
    return (max(lr, 0.02) if optimizer == "muon" else lr), 0.01 * lr


class OriginalSide:
    """The original's training step and loss."""

    def __init__(self, checkout):
        import jax
        import original
        self.jax, self.run_type, self.original = jax, original.Run, original.Original(checkout)
        import optim
        self.build_optimizer = optim.build_optimizer

    def initial_weights(self, shape, dtype):
        """name -> array, drawn by the original's own initializers."""
        jax, jnp = self.jax, self.jax.numpy
        params = self.original.model.GPT.init(jax.random.PRNGKey(0), self.original.config_of(shape, jnp.float32))
        weights = {jax.tree_util.keystr(path, simple=True, separator="."): x for path, x in jax.tree_util.tree_leaves_with_path(params)}
        return {name: jax.device_get(x.astype(getattr(jnp, dtype))) for name, x in weights.items()}

    def begin(self, shape, weights, dtype, optimizer, lr, steps):
        """step(rows [B, T + 1]) -> loss before the update, and evaluate(rows) -> sum of nats."""
        import optax
        jax, jnp = self.jax, self.jax.numpy
        params = self.run_type(self.original, shape, weights, getattr(jnp, dtype), 0).params
        freqs = self.original.model.precompute_frequencies(jnp.arange(shape["seqlen"])[None], shape["d_emb"] // shape["q_heads"])
        rule = optax.chain(optax.clip_by_global_norm(CLIP), self.build_optimizer(
            params, d_model=shape["d_emb"], other_peak_lr=lr, other_min_lr=0.01 * lr, total_train_steps=steps, warmup_steps=int(WARMUP * steps), b1=0.8, b2=0.95,
            cautious_weight_decay=0.01, use_muon=optimizer == "muon"))

        def nats(params, rows):
            logits = self.original.model.forward(params, rows[:, :-1], None, freqs)
            return optax.losses.softmax_cross_entropy_with_integer_labels(logits=logits, labels=rows[:, 1:])

        def train_step(params, state, rows):
            loss, gradients = jax.value_and_grad(lambda p: jnp.mean(nats(p, rows)))(params)
            updates, state = rule.update(gradients, state, params)
            return optax.apply_updates(params, updates), state, loss

        return Training(jax, params, jax.jit(rule.init)(params), jax.jit(train_step, donate_argnums=(0, 1)), jax.jit(lambda params, rows: jnp.sum(nats(params, rows))))


class Training:
    def __init__(self, jax, params, state, step, nats):
        self.jax, self.params, self.state, self.step_, self.nats_ = jax, params, state, step, nats

    def step(self, rows):
        """(loss, seconds)"""
        begin = time.perf_counter()
        self.params, self.state, loss = self.step_(self.params, self.state, self.jax.numpy.asarray(rows))
        self.jax.block_until_ready((self.params, loss))
        return float(loss), time.perf_counter() - begin

    def evaluate(self, rows):
        """Mean over all rows; the last call has fewer rows."""
        size = 8
        sums = [float(self.nats_(self.params, self.jax.numpy.asarray(rows[i:i + size]))) for i in range(0, len(rows), size)]
        return sum(sums) / (len(rows) * (rows.shape[1] - 1))


def write_checkpoint(folder, shape, weights, dtype):
    from safetensors.numpy import save_file
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(shape | {"dtype": dtype}))
    save_file(weights, folder / "model.safetensors")


def write_shard(path, tokens):
    import numpy as np
    header = np.zeros(256, np.int32)
    header[:3] = 20240520, 1, len(tokens)
    path.write_bytes(header.tobytes() + tokens.astype(np.uint16).tobytes())


def read_rows(path, seqlen, end_of_text):
    """[rows, seqlen + 1]: from a document's start on until the row is full; the rest of its last document is left out."""
    import numpy as np
    tokens = np.fromfile(path, np.uint16, offset=1024).astype(np.int32)
    starts, rows, at = np.flatnonzero(tokens == end_of_text), [], 0
    while at < len(starts) and starts[at] + seqlen + 1 <= len(tokens):
        begin = starts[at]
        rows.append(tokens[begin:begin + seqlen + 1])
        at = np.searchsorted(starts, begin + seqlen + 1)
    return np.array(rows)


def run_kvmesh(args, checkpoint, data, output, dtype, optimizer, lr, steps, end_of_text, more=()):
    """The metrics, a dict a step."""
    peak, floor = peak_lr(optimizer, lr)
    metrics = output.with_suffix(".jsonl")
    metrics.unlink(missing_ok=True)
    command = [args.kvmesh, "train", "--checkpoint", checkpoint, "--data", data, "--output", output, "--dtype", dtype, "--device", "cpu", "--threads", args.threads,
               "--steps", steps, "--batch-rows", args.rows, "--micro-rows", args.micro_rows or args.rows, "--optimizer", optimizer, "--lr", peak, "--lr-floor", floor, "--warmup", int(WARMUP * steps),
               "--clip", CLIP, "--decay-rule", "original", "--end-of-text", end_of_text, "--metrics", metrics, "--no-peak", "--fresh", *more]
    done = subprocess.run([str(x) for x in command], capture_output=True, text=True)
    if done.returncode != 0:
        sys.exit(f"kvmesh train failed ({done.returncode}): {done.stderr.strip()}")
    return [json.loads(line) for line in metrics.read_text().splitlines()]


def race(args, shape, work):
    import numpy as np
    side = OriginalSide(args.checkout)
    systems, T = args.systems.split(","), shape["seqlen"]
    count = args.turn + 2
    rows = np.random.default_rng(0).integers(1, shape["vocab_size"], (args.rows * count, T + 1))
    rows[:, 0] = 0  # the token that begins a document here
    (work / "data").mkdir()
    write_shard(work / "data/train.bin", rows.ravel())
    table = []
    for dtype in args.dtypes.split(","):
        weights = side.initial_weights(shape, dtype)
        write_checkpoint(work / dtype, shape, weights, dtype)
        for optimizer in args.optimizers.split(","):
            rate, first = {s: [] for s in systems}, {}
            theirs = side.begin(shape, weights, dtype, optimizer, args.lr, 1000) if "original" in systems else None
            for repeat in range(args.repeat):
                for system in systems:
                    if system == "kvmesh":
                        lines = run_kvmesh(args, work / dtype, work / "data", work / "out", dtype, optimizer, args.lr, count, 0)
                        losses, seconds = [x["loss"] for x in lines], [x["seconds"] for x in lines]
                    else:
                        losses, seconds = zip(*(theirs.step(rows[i * args.rows:(i + 1) * args.rows]) for i in range(count)))
                    first.setdefault(system, losses[0])
                    rate[system].append(args.rows * T / statistics.median(seconds[2:]))
            medians = {s: statistics.median(r) for s, r in rate.items()}
            best = {s: max(r) for s, r in rate.items()}
            print(dtype, optimizer, {s: [round(x) for x in r] for s, r in rate.items()}, "first losses", first, file=sys.stderr)
            table.append((dtype, optimizer, medians, best))
    print(f"{args.rows} rows of {T} tokens a step, {args.threads} threads, {args.repeat} turns of {args.turn} steps; in brackets the best turn\n")
    heads = ["dtype", "optimizer", *(f"{s}, tokens/s" for s in systems), *(["kvmesh is faster by"] if len(systems) > 1 else [])]
    print("| " + " | ".join(heads) + " |\n" + "|---" * len(heads) + "|")
    for dtype, optimizer, medians, best in table:
        ratio = [f"{medians['kvmesh'] / medians['original']:.2f} ({best['kvmesh'] / best['original']:.2f})"] if len(systems) > 1 else []
        print("| " + " | ".join([dtype, optimizer, *(f"{medians[s]:.0f} ({best[s]:.0f})" for s in systems), *ratio]) + " |")


def tokenize(args, work, name, count, seed):
    """Stories into a shard; their entropy, nats a token."""
    tokenizer = args.config / "tokenizer.tiktoken"
    text = subprocess.run([sys.executable, ROOT / "tests/reference/stories/stories.py", "--count", str(count), "--seed", seed, "--json"], check=True, capture_output=True, text=True)
    stories = [json.loads(line) for line in text.stdout.splitlines()]
    folder = work / name
    folder.mkdir(exist_ok=True)
    subprocess.run([args.kvmesh, "tokenize", "--tokenizer", tokenizer, "--shards", folder / name], check=True, input="".join(s["text"] + "\n" for s in stories), text=True)
    shards = sorted(folder.glob("*.bin"))
    assert len(shards) == 1, shards
    return shards[0], sum(s["nats"] for s in stories) / ((shards[0].stat().st_size - 1024) // 2)


def draw(folder, runs, entropy):
    for name, run in runs.items():
        validation = dict(run["validation"])
        mean = [statistics.mean(run["loss"][max(0, i - 9):i + 1]) for i in range(len(run["loss"]))]
        (folder / f"{name}.dat").write_text("# step, loss, of the last ten steps, validation\n" + "".join(
            f"{i} {loss} {mean[i - 1]} {validation.get(i, 'NaN')}\n" for i, loss in enumerate(run["loss"], 1)))
    styles = {"kvmesh muon": "lw 2 lc rgb '#1f77b4'", "original muon": "lw 2 dt 2 lc rgb '#aec7e8'", "kvmesh adamw": "lw 2 lc rgb '#d62728'", "original adamw": "lw 2 dt 2 lc rgb '#ff9896'"}
    curves = [f"'{name}.dat' using 1:3 with lines {styles.get(name, '')} title '{name}, training (of ten steps)'" for name in runs]
    for i, name in enumerate(runs):  # a system's points look alike for both optimizers
        mark, system = (5, "kvmesh") if name.startswith("kvmesh") else (4, "original")
        first = next(j for j, other in enumerate(runs) if other.startswith(system)) == i
        curves.append(f"'{name}.dat' using 1:4 with points pt {mark} ps {0.6 if mark == 5 else 1.2} lc rgb '#333333' " + (f"title '{system}, validation'" if first else "notitle"))
    (folder / "losses.gp").write_text("set terminal svg size 900,560 font 'sans,12' background rgb 'white'\nset output 'losses.svg'\nset datafile missing 'NaN'\n"
                                      "set grid ytics lc rgb '#dddddd'\nset xlabel 'step'\nset ylabel 'loss, nats a token'\nset key right top\n"
                                      f"set arrow from graph 0,first {entropy} to graph 1,first {entropy} nohead dt 3\nset label 'entropy {entropy:.3f}' at graph 0.02,first {entropy} offset 0,0.6\n"
                                      "set yrange [0:*]\nplot " + ", ".join(curves) + "\n")
    if subprocess.run(["gnuplot", "losses.gp"], cwd=folder).returncode != 0:
        print("the plot was not drawn: is gnuplot installed?", file=sys.stderr)


def curves(args, shape, work):
    import numpy as np
    side = OriginalSide(args.checkout)
    dtype, T = args.dtypes.split(",")[0], shape["seqlen"]
    needed = args.steps * args.rows
    train, _ = tokenize(args, work, "train", needed * 3, "1")
    held_out, entropy = tokenize(args, work, "validation", args.validation_stories, "validation")
    end_of_text = int(np.fromfile(train, np.uint16, offset=1024, count=1)[0])
    rows, validation = read_rows(train, T, end_of_text), read_rows(held_out, T, end_of_text)
    assert len(rows) >= needed, (len(rows), needed)
    weights = side.initial_weights(shape, dtype)
    write_checkpoint(work / "initial", shape, weights, dtype)
    args.curves.mkdir(parents=True, exist_ok=True)
    runs = {}
    for optimizer in args.optimizers.split(","):
        for system in args.systems.split(","):
            name = f"{system} {optimizer}"
            if system == "kvmesh":
                lines = run_kvmesh(args, work / "initial", train, work / f"out-{optimizer}", dtype, optimizer, args.lr, args.steps, end_of_text,
                                   ["--validation", held_out, "--validate-every", args.validate_every])
                loss, seconds = [x["loss"] for x in lines], sum(x["seconds"] for x in lines)
                validated = [(x["step"], x["validation_loss"]) for x in lines if "validation_loss" in x]
            else:
                theirs = side.begin(shape, weights, dtype, optimizer, args.lr, args.steps)
                loss, seconds, validated = [], 0.0, []
                for i in range(1, args.steps + 1):
                    value, took = theirs.step(rows[(i - 1) * args.rows:i * args.rows])
                    loss.append(value)
                    seconds += took if i > 2 else 0  # the first compile
                    if i % args.validate_every == 0 or i == args.steps:
                        validated.append((i, theirs.evaluate(validation)))
            runs[name] = {"loss": loss, "validation": validated, "seconds": seconds}
            print(f"{name}: loss {loss[0]:.4f} to {loss[-1]:.4f}, validation {validated[-1][1]:.4f} (entropy {entropy:.4f}), {seconds:.0f} s of steps", file=sys.stderr)
    summary = {}
    for optimizer in args.optimizers.split(","):
        ours, theirs = runs.get(f"kvmesh {optimizer}"), runs.get(f"original {optimizer}")
        if ours and theirs:
            apart = [abs(a - b) for a, b in zip(ours["loss"], theirs["loss"])]
            first = next((i + 1 for i, x in enumerate(apart) if x > 1e-3), None)
            summary[optimizer] = {"largest_difference_of_20_steps": max(apart[:20]), "largest_difference": max(apart), "first_step_beyond_1e-3": first,
                                  "validation_difference": ours["validation"][-1][1] - theirs["validation"][-1][1]}
    for system in args.systems.split(","):  # Muon's steps to where AdamW ends, by the mean of ten steps
        if all(f"{system} {optimizer}" in runs for optimizer in ("muon", "adamw")):
            means = [statistics.mean(runs[f"{system} muon"]["loss"][i:i + 10]) for i in range(args.steps - 9)]
            goal = statistics.mean(runs[f"{system} adamw"]["loss"][-10:])
            summary[f"{system}: steps of Muon to AdamW's last loss"] = next((i + 10 for i, x in enumerate(means) if x <= goal), None)
    out = {"shape": shape, "dtype": dtype, "steps": args.steps, "rows": args.rows, "lr": args.lr, "commit": side.original.commit, "entropy": entropy, "summary": summary, "runs": runs}
    (args.curves / "losses.json").write_text(json.dumps(out, separators=(",", ":")) + "\n")
    draw(args.curves, runs, entropy)
    print(json.dumps(summary, indent=2))


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkout")
    parser.add_argument("--kvmesh", default=str(ROOT / "build/kvmesh"))
    parser.add_argument("--venv", type=Path, default=Path(tempfile.gettempdir()) / "kvmesh-compare")
    parser.add_argument("--config", type=Path, default=ROOT / "configs/stories", help="folder with the shape's config.json; for --curves also tokenizer.tiktoken")
    parser.add_argument("--systems", default="kvmesh,original")
    parser.add_argument("--dtypes", default="float32,bfloat16", help="--curves takes the first")
    parser.add_argument("--optimizers", default="muon,adamw")
    parser.add_argument("--rows", type=int, default=8, help="a step")
    parser.add_argument("--micro-rows", type=int, help="kvmesh's; default: --rows")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--lr", type=float, default=6e-4, help="the original's max_lr")
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--turn", type=int, default=8, help="steps")
    parser.add_argument("--curves", type=Path, metavar="FOLDER")
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument("--validate-every", type=int, default=50)
    parser.add_argument("--validation-stories", type=int, default=300)
    args = parser.parse_args()
    in_venv(args.venv)
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:args.threads])  # JAX has no other way to say it
    shape = json.loads((args.config / "config.json").read_text())
    with tempfile.TemporaryDirectory() as folder:
        (curves if args.curves else race)(args, shape, Path(folder))


if __name__ == "__main__":
    main()
