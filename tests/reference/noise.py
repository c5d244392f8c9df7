"""Writes tests/fixtures/noise.json: keys, bits, uniforms, Gumbel noise and categorical draws of jax.random.

    python tests/reference/noise.py tests/fixtures/noise.json

Made with jax 0.10.2 (jax_threefry_partitionable=True, Gumbel mode "low": both are the defaults, as in 0.8.1).
Floats are written as their bits, where they are to be equal, else as numbers. The logits of the categorical draws are
multiples of 1/1024 that both sides compute from integers: logit(i) = ((i·2654435761 mod 2³²) >> 18) / 1024 - 8.
"""
import json
import sys

import jax
import jax.numpy as jnp
import numpy as np

CATEGORICAL_SHAPE = (3, 5003)


def words(key):
    return [int(x) for x in np.asarray(key, np.uint32)]


def logits(shape):
    i = np.arange(np.prod(shape), dtype=np.uint64)
    x = ((i * np.uint64(2654435761)) % np.uint64(1 << 32)) >> np.uint64(18)
    return (x.astype(np.float64) / 1024 - 8).astype(np.float32).reshape(shape)


def main(path):
    assert jax.config.jax_threefry_partitionable
    seeds = [0, 1, 42, 1337, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF]
    keys = []
    for seed in seeds:
        key = jax.random.PRNGKey(np.uint32(seed))
        first, second = jax.random.split(key)
        keys.append({"seed": seed, "key": words(key), "split": [words(first), words(second)],
                     "fold_in": [[data, words(jax.random.fold_in(key, np.uint32(data)))] for data in (0, 1, 7, 50303, 0xFFFFFFFF)],
                     "fold_in_twice": words(jax.random.fold_in(jax.random.fold_in(key, 3), 11))})
    streams = []
    for seed in (0, 1337, 0xFFFFFFFF):
        key = jax.random.fold_in(jax.random.PRNGKey(np.uint32(seed)), 5)
        n = 400
        tiny = np.finfo(np.float32).tiny
        uniform = np.asarray(jax.random.uniform(key, (n,), jnp.float32, minval=tiny, maxval=1.0))
        streams.append({"key": words(key), "bits": [int(x) for x in np.asarray(jax.random.bits(key, (n,), jnp.uint32))],
                        "uniform_bits": [int(x) for x in uniform.view(np.uint32)],
                        "gumbel": [float(x) for x in np.asarray(jax.random.gumbel(key, (n,), jnp.float32))]})
    # Counters beyond 32 bits: jax's own block function at chosen counters.
    from jax.extend.random import threefry_2x32
    far = []
    for count in (2**32 - 1, 2**32, 2**33 + 12345, 2**40 + 7):
        pair = threefry_2x32(jnp.array([17, 99], jnp.uint32), jnp.array([count >> 32, count & 0xFFFFFFFF], jnp.uint32))
        far.append([count, int(pair[0] ^ pair[1])])

    x = logits(CATEGORICAL_SHAPE)
    categorical = []
    for seed in range(8):
        for temperature, top_k in ((1.0, 0), (0.7, 0), (2.5, 0), (1.0, 40), (1.5, 1)):
            key = jax.random.PRNGKey(seed)
            kept = jnp.asarray(x)
            if top_k:
                kth = jnp.sort(kept, axis=-1)[:, -top_k][:, None]
                kept = jnp.where(kept < kth, -jnp.inf, kept)
            scaled = kept / jnp.float32(temperature)
            whole = jax.random.categorical(key, scaled, axis=-1)
            rows = [int(jax.random.categorical(jax.random.fold_in(jax.random.fold_in(key, b), 4), scaled[b])) for b in range(x.shape[0])]
            categorical.append({"seed": seed, "temperature": temperature, "top_k": top_k, "whole": [int(t) for t in whole], "rows": rows})
    fixture = {"jax": jax.__version__, "keys": keys, "streams": streams, "far": far,
               "shape": list(CATEGORICAL_SHAPE), "first_logits": [float(v) for v in x[0, :8]], "categorical": categorical}
    with open(path, "w") as f:
        json.dump(fixture, f, separators=(",", ":"))
        f.write("\n")


if __name__ == "__main__":
    main(sys.argv[1])
