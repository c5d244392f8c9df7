"""Orbax checkpoints of the original program, read with tensorstore alone, and written by the orbax-checkpoint package itself."""

import math
import os
import re
import stat
from pathlib import Path

from arrays import array_of, check_finite, converted, little_endian_bytes, need
from bounded import bounded
from folder import Refused, brief, check, copy_file, is_there, new_folder, newest, read_json, write_json, write_safetensors
from native import DEFAULTS, SHAPE_KEYS, check_shapes, checked_config, open_folder, shape_from, specs_of

DTYPES = {"float32": "F32", "bfloat16": "BF16", "float16": "F16"}
MOST_FILES = 1 << 20
ROOM = 256 << 20  # bytes of memory that tensorstore may take for itself; opening an array takes 30 MB
COPIES = 4        # of an array that it may hold while it reads it; 3 were seen
THREADS = 4       # each holds an unpacked chunk


def find_tree(source, step):
    """The folder of the weights' tree: SOURCE itself, its child params (or default), or that of one of its steps. And the step, if known."""
    check(source.is_dir(), f"{source}: no such folder")

    def tree_in(folder):
        return next((f for f in (folder, folder / "params", folder / "default") if (f / "_METADATA").is_file()), None)

    found = tree_in(source)
    if found:
        check(step is None, f"--step {step}: {source} is one checkpoint, not a folder of steps")
        return found, None
    steps = {int(m[1]): child for child in source.iterdir() if (m := re.fullmatch(r"(?:[A-Za-z]+_)?(\d{1,18})", child.name)) and child.is_dir()}
    if not steps:
        raise Refused(f"{source}: neither an Orbax checkpoint (with a file _METADATA, or a folder params that has one) nor a folder of numbered steps")
    step, folder = newest(steps, step, source)
    found = tree_in(folder)
    check(found, f"{folder}: no finished Orbax checkpoint of weights: neither params/_METADATA nor _METADATA")
    return found, step


def check_files(tree):
    """Nothing in the folder leads out of it or is no file. tensorstore's file driver itself refuses names with . or .. as a part."""
    count = 0
    for folder, folders, files in os.walk(tree):
        for name in folders + files:
            path = os.path.join(folder, name)
            mode = os.lstat(path).st_mode
            check(stat.S_ISREG(mode) or stat.S_ISDIR(mode), f"{path}: neither a file nor a folder; links are not followed")
            count += 1
            check(count <= MOST_FILES, f"{tree}: more than {MOST_FILES} files")


class Tree:
    """The arrays of an Orbax checkpoint, opened: `arrays`, name → tensorstore array. `within`: bounded's, for tensorstore unpacks chunks and OCDBT's nodes whatever they come to."""

    def __init__(self, folder, within):
        self.folder, self.within = folder, within
        check_files(folder)
        metadata = read_json(folder / "_METADATA")
        self.driver = "zarr3" if metadata.get("use_zarr3") is True else "zarr"
        self.ocdbt = metadata.get("use_ocdbt", (folder / "manifest.ocdbt").exists()) is True
        # Where every chunk was stored, one that is not there is lost; older checkpoints leave out chunks of zeros.
        self.fill = metadata.get("store_array_data_equal_to_fill_value") is not True
        self.context = need("tensorstore")[0].Context({"data_copy_concurrency": {"limit": THREADS}, "file_io_concurrency": {"limit": THREADS}})
        self.arrays = {name: self._open(name) for name in self._names(metadata.get("tree_metadata"))}

    def _names(self, leaves):
        check(isinstance(leaves, dict) and leaves, f"{self.folder}/_METADATA: has no tree_metadata")
        names = {}
        for key, leaf in leaves.items():
            try:
                parts = [str(k["key"]) for k in leaf["key_metadata"]]
                kind = leaf["value_metadata"]["value_type"]
            except (KeyError, TypeError):
                raise Refused(f"{self.folder}/_METADATA: the leaf {brief(key)} is not described") from None
            if kind == "None":
                continue  # a bias that the model has not
            name = ".".join(parts)
            check(kind in ("jax.Array", "np.ndarray"), f"{self.folder}: {brief(name)} is no array, but {brief(kind)}")
            # Each is a path inside the checkpoint: parts of other letters are no weight of the model anyhow.
            check(all(re.fullmatch(r"\w{1,64}", p, re.ASCII) for p in parts) and len(parts) <= 8, f"{self.folder}: the tensor {brief(name)} is none of the original program's model")
            check(name not in names, f"{self.folder}/_METADATA: {name} is there twice")
            names[name] = True
        return names

    def _ask(self, name, what, size, ask):
        """What tensorstore answers with `size` bytes of memory."""
        cannot = f"{self.folder}: the tensor {name} cannot be {what}"
        with self.within(size, f"{cannot} in {size >> 20} MiB of memory: what is packed in it is far larger than it should be"):
            try:
                return ask().result()
            except MemoryError:
                raise
            except Exception as e:  # tensorstore throws what its C++ status maps to: ValueError, OSError, RuntimeError …
                raise Refused(f"{cannot}: {brief(e, 300)}") from None

    def _open(self, name):
        ts, = need("tensorstore")
        file = {"driver": "file", "path": f"{self.folder}/"}
        kvstore = {"driver": "ocdbt", "base": file, "path": f"{name}/"} if self.ocdbt else file | {"path": f"{self.folder}/{name}/"}
        spec = {"driver": self.driver, "kvstore": kvstore, "fill_missing_data_reads": self.fill}
        array = self._ask(name, "opened", ROOM, lambda: ts.open(spec, open=True, read=True, context=self.context))
        check(array.dtype.name in DTYPES, f"{self.folder}: the tensor {name} is {array.dtype.name}; weights are float32, bfloat16 or float16")
        for chunk in (array.chunk_layout.read_chunk.shape or (), array.chunk_layout.write_chunk.shape or ()):
            check(len(array.shape) <= 3 and all(c <= max(s, 1) for c, s in zip(chunk, array.shape)), f"{self.folder}: the tensor {name} has chunks {list(chunk)}, beyond its shape {list(array.shape)}")
            chunks = math.prod(-(-s // c) for c, s in zip(chunk, array.shape))
            check(chunks <= MOST_FILES, f"{self.folder}: the tensor {name} has {chunks} chunks; there may be {MOST_FILES}")
        return array

    def read(self, name):
        array = self.arrays[name]
        array = self._ask(name, "read", ROOM + COPIES * math.prod(array.shape) * array.dtype.numpy_dtype.itemsize, array.read)
        check_finite(array, name, self.folder)
        return array


def config_for(tree, given, source):
    """config.json: the shapes and dtype that the weights have, and what `given` says of the rest."""
    shapes = {name: tuple(array.shape) for name, array in tree.arrays.items()}
    known = shape_from(shapes, tree.folder)
    for key, value in known.items():
        check(given.get(key, value) == value, f"{source}: \"{key}\" is {brief(given.get(key))}, but the weights say {value}")
    check("seqlen" in given, "the checkpoint does not say the context length: give --seqlen N, or --config FILE with \"seqlen\"")
    kinds = {array.dtype.name for array in tree.arrays.values()}
    config = checked_config({"dtype": "bfloat16" if kinds == {"bfloat16"} else "float32"} | given | known, source or "--seqlen")
    check_shapes(shapes, config, tree.folder)
    return {k: config[k] for k in (*SHAPE_KEYS, *DEFAULTS, "special_tokens") if k in config}


def import_orbax(args):
    with new_folder(args.output) as out:
        return bounded(lambda within: fill(out, args, within))


def fill(out, args, within):
    """The checkpoint folder `out` with what `args` asks for; says what it was."""
    need("numpy", "ml_dtypes", "tensorstore")
    folder, step = find_tree(Path(os.path.abspath(args.source)), args.step)
    tree = Tree(folder, within)
    given = read_json(args.config, 1 << 20) if args.config else {}
    if args.seqlen is not None:
        check(given.get("seqlen", args.seqlen) == args.seqlen, f"--seqlen {args.seqlen}: {args.config} says {brief(given.get('seqlen'))}")
        given["seqlen"] = args.seqlen
    if args.dtype != "keep":
        given["dtype"] = args.dtype
    config = config_for(tree, given, args.config)
    kept = {name: DTYPES[array.dtype.name] if args.dtype == "keep" else DTYPES[args.dtype] for name, array in tree.arrays.items()}

    def bytes_of(name):
        return converted(little_endian_bytes(tree.read(name)), DTYPES[tree.arrays[name].dtype.name], kept[name], name)

    specs = specs_of(config)
    write_json(out / "config.json", config)
    write_safetensors(out / "model.safetensors", [(name, kept[name], shape) for name, shape in specs.items()], bytes_of)
    if args.tokenizer:
        copy_file(args.tokenizer, out / "tokenizer.tiktoken")
    return f"{args.output}: {len(specs)} tensors of {folder}" + (f", step {step}" if step is not None else "")


def export_orbax(args):
    """The folder is what the original's load_weights_from_checkpoint takes as its path."""
    config, files = open_folder(Path(args.source))
    for key, only in (("rope_theta", 10000), ("norm_eps", 1e-5), ("logit_soft_cap", 15)):
        check(config[key] == only, f"{args.source}/config.json: \"{key}\" is {config[key]}; the original program computes with {only} and no other")
    check(config["q_heads"] != config["kv_heads"], f"{args.source}/config.json: as many \"kv_heads\" as \"q_heads\"; the original program refuses that")
    output = Path(os.path.abspath(args.output))
    check(not is_there(output), f"--output {output}: is there already")
    os.environ["JAX_PLATFORMS"] = "cpu"
    jax, ocp = need("jax", "orbax.checkpoint")

    def leaf(name):
        return jax.numpy.asarray(array_of(files, name))

    def block(i):
        return {"attn": {w: leaf(f"blocks.{i}.attn.{w}") for w in ("wq", "wk", "wv", "wo")},
                "mlp": {w: {"weight": leaf(f"blocks.{i}.mlp.{w}.weight"), "bias": None} for w in ("fc1", "fc2")}}

    tree = {"embed": {"weight": leaf("embed.weight")}, "blocks": [block(i) for i in range(config["num_layers"])], "lm_head": {"weight": leaf("lm_head.weight"), "bias": None}}
    try:
        with ocp.Checkpointer(ocp.PyTreeCheckpointHandler()) as checkpointer:
            checkpointer.save(output, args=ocp.args.PyTreeSave(tree))  # to a folder of another name, which is renamed when it is whole
    except OSError as e:
        raise Refused(f"--output {output}: {e.strerror or brief(e)}", 74) from None
    window = "" if set(config["window_pattern"]) == {"L"} else f", window_pattern=\"{config['window_pattern']}\", local_window_size={config['local_window_size']}, nope_global_attn={config['nope_global_attn']}"
    shape = ", ".join(f"{k}={config[k]}" for k in SHAPE_KEYS)
    return f"{args.output}: ModelConfig({shape}, dtype=jnp.{config['dtype']}{window})"
