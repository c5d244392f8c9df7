"""Weights as numpy arrays, with safetensors' names of their dtypes. Imports what is not in the standard library, and says how to get it."""

import importlib

from folder import Refused, check


def need(*packages):
    """The modules, or one line that says what to install."""
    try:
        return [importlib.import_module(p) for p in packages]
    except ImportError as e:
        missing = (e.name or "").split(".")[0]
        names = {"orbax": "orbax-checkpoint jax", "jax": "orbax-checkpoint jax"}.get(missing, "tensorstore numpy ml_dtypes" if missing in ("tensorstore", "numpy", "ml_dtypes") else missing)
        raise Refused(f"the Python module {missing or e} is missing: pip install {names}") from None


def numpy_dtypes():
    np, ml_dtypes = need("numpy", "ml_dtypes")
    return {"F32": np.dtype(np.float32), "F16": np.dtype(np.float16), "BF16": np.dtype(ml_dtypes.bfloat16)}


def array_of(files, name):
    """A tensor of Safetensors, read."""
    np, = need("numpy")
    dtype, shape = files.tensors[name][:2]
    return np.frombuffer(files.bytes_of(name), numpy_dtypes()[dtype]).reshape(shape)


def check_finite(array, name, source):
    np, = need("numpy")
    bits = array.view(np.uint32 if array.dtype.itemsize == 4 else np.uint16)
    exponent = {"float32": 0x7F800000, "float16": 0x7C00, "bfloat16": 0x7F80}[array.dtype.name]
    check(not (bits & exponent == exponent).any(), f"{source}: the tensor {name} holds a NaN or an infinity")


def little_endian_bytes(array):
    np, = need("numpy")
    return np.ascontiguousarray(array).view(np.uint8).data if array.size else b""


def converted(data, dtype, to, name):
    """A tensor's bytes in another dtype; the same bytes where it is the same."""
    if dtype == to:
        return data
    np, = need("numpy")
    kinds = numpy_dtypes()
    array = np.frombuffer(data, kinds[dtype]).astype(kinds[to])
    check_finite(array, name, f"as {to}")
    return little_endian_bytes(array)
