"""Pickles without what makes them dangerous: PyTorch's .pt files and tiktoken encodings.

A pickle is a program for a small machine, which may call whatever it can name. The machine here knows only the operations that plain data need, dicts with
keys of text or bytes, and a handful of names, each of which leads to a function of this file that only keeps what it is given. Neither torch nor tiktoken is imported.
"""

import io
import math
import pickle
import zipfile
from collections import namedtuple

from folder import BYTES, Refused, brief, check, is_size, read_bytes

MOST_PICKLE, MOST_RANK = 64 << 20, 8
MOST_TOKEN = 1 << 10  # bytes; the longest in use have 128
Storage = namedtuple("Storage", "dtype key size")  # size in elements
Tensor = namedtuple("Tensor", "dtype shape key offset")  # offset in elements
# Not among them: the older ways to make objects (INST, OBJ), the registry (EXT1 …), out-of-band buffers, sets, and the text forms of protocol 0.
ALLOWED = """PROTO FRAME STOP MARK NONE NEWTRUE NEWFALSE BININT BININT1 BININT2 LONG1 BINFLOAT BINUNICODE SHORT_BINUNICODE BINBYTES SHORT_BINBYTES
EMPTY_TUPLE TUPLE TUPLE1 TUPLE2 TUPLE3 EMPTY_LIST APPEND APPENDS EMPTY_DICT SETITEM SETITEMS BINPUT LONG_BINPUT MEMOIZE BINGET LONG_BINGET
GLOBAL STACK_GLOBAL REDUCE NEWOBJ BUILD BINPERSID""".split()


class Encoding:
    """What a pickled tiktoken.core.Encoding says of itself."""

    state = None


def empty_dict(*arguments):
    check(not arguments, "an OrderedDict is not made as PyTorch does")
    return {}


def rebuild_tensor(storage, offset, shape, stride, *_):
    check(isinstance(storage, Storage) and is_size(offset) and isinstance(shape, tuple) and len(shape) <= MOST_RANK and all(map(is_size, shape)), "a tensor is not described as PyTorch does")
    dense = tuple(math.prod(shape[i + 1:]) for i in range(len(shape)))
    check(stride == dense or 0 in shape, f"a tensor of shape {brief(shape)} is not stored row after row")
    check(offset + math.prod(shape) <= storage.size, f"a tensor of shape {brief(shape)} goes beyond its storage")
    return Tensor(storage.dtype, shape, storage.key, offset)


def rebuild_parameter(tensor, *_):
    return tensor


KNOWN = {
    ("collections", "OrderedDict"): empty_dict,
    ("torch._utils", "_rebuild_tensor_v2"): rebuild_tensor,
    ("torch._utils", "_rebuild_parameter"): rebuild_parameter,
    ("torch", "FloatStorage"): "F32", ("torch", "BFloat16Storage"): "BF16", ("torch", "HalfStorage"): "F16",
    ("tiktoken.core", "Encoding"): Encoding,
}


class Operations(dict):
    def __missing__(self, operation):
        raise Refused(f"its pickle has the operation {operation:#04x}, which data does not need")


class Unpickler(pickle._Unpickler):  # Python's own in Python, whose table of operations can be another
    dispatch = Operations({getattr(pickle, name)[0]: pickle._Unpickler.dispatch[getattr(pickle, name)[0]] for name in ALLOWED})

    def find_class(self, module, name):
        found = KNOWN.get((module, name))
        check(found is not None, f"its pickle asks for {brief(module)}.{brief(name)}, which is neither a tensor nor a plain container")
        return found

    def persistent_load(self, what):
        check(isinstance(what, tuple) and len(what) == 5 and isinstance(what[1], str) and what[1] in BYTES and isinstance(what[2], str) and what[2].isdecimal() and is_size(what[4]),
              "a storage is not described as PyTorch does")
        return Storage(what[1], what[2], what[4])

    def set_items(self, items):
        check(isinstance(self.stack[-1], dict) and len(items) % 2 == 0 and all(isinstance(k, (str, bytes)) for k in items[::2]), "its pickle has a dict with keys that are neither text nor bytes")
        self.stack[-1].update(zip(items[::2], items[1::2]))

    def set_item(self):
        items = self.stack[-2:]
        del self.stack[-2:]
        self.set_items(items)

    def make(self):
        arguments, kind = self.stack.pop(), self.stack.pop()
        check(kind is Encoding and arguments == (), "its pickle makes an object that is not a tensor")
        self.append(Encoding())

    def build(self):
        state = self.stack.pop()
        if isinstance(self.stack[-1], Encoding):
            self.stack[-1].state = state
        else:  # a state dict's _metadata, which is not needed
            check(isinstance(self.stack[-1], dict), "its pickle makes an object that is not a tensor")

    dispatch[pickle.SETITEMS[0]] = lambda self: self.set_items(self.pop_mark())
    dispatch[pickle.SETITEM[0]] = set_item
    dispatch[pickle.NEWOBJ[0]] = make
    dispatch[pickle.BUILD[0]] = build


def unpickle(data, source):
    try:
        return Unpickler(io.BytesIO(data)).load()
    except Refused as e:
        raise Refused(f"{source}: {e}; nothing of it was run") from None
    except Exception as e:  # whatever broken data make of it
        raise Refused(f"{source}: not a pickle of tensors and plain containers: {brief(e)}") from None


class TorchFile:
    """A state dict that torch.save wrote. `tensors`: name → Tensor."""

    def __init__(self, path):
        self.path = path
        try:
            self.zip = zipfile.ZipFile(path)
            entries = {e.filename: e for e in self.zip.infolist()}
        except OSError as e:
            raise Refused(f"{path}: {e.strerror}") from None
        except (zipfile.BadZipFile, ValueError, NotImplementedError, UnicodeDecodeError) as e:
            raise Refused(f"{path}: not a zip file of torch.save: {brief(e)}") from None
        pickles = [name for name in entries if name.endswith("/data.pkl") and name.count("/") == 1]
        check(len(pickles) == 1, f"{path}: not a zip file of torch.save: no data.pkl in it")
        self.root = pickles[0].removesuffix("data.pkl")
        self.entries = entries
        check(entries[pickles[0]].file_size <= MOST_PICKLE, f"{path}: its data.pkl is over the limit of {MOST_PICKLE} bytes")
        byteorder = self.root + "byteorder"
        check(byteorder not in entries or self._entry(byteorder) == b"little", f"{path}: not little endian")
        tensors = unpickle(self._entry(pickles[0]), path)
        check(isinstance(tensors, dict), f"{path}: not a state dict")
        for name, tensor in tensors.items():
            check(isinstance(name, str) and isinstance(tensor, Tensor), f"{path}: {brief(name)} is no tensor of float32, bfloat16 or float16")
        self.tensors = dict(tensors)

    def _entry(self, name):
        entry = self.entries.get(name)
        check(entry, f"{self.path}: {brief(name)} is not in it")
        check(entry.compress_type == zipfile.ZIP_STORED and entry.file_size == entry.compress_size, f"{self.path}: {brief(name)} is compressed, which torch.save does not do")
        try:
            return self.zip.read(entry)
        except (OSError, EOFError, ValueError, RuntimeError, zipfile.BadZipFile) as e:
            raise Refused(f"{self.path}: {brief(name)}: {brief(e)}") from None

    def bytes_of(self, tensor, rows=None):
        """A tensor's bytes, or those of its first rows."""
        size = BYTES[tensor.dtype]
        shape = tensor.shape if rows is None else (rows, *tensor.shape[1:])
        begin, end = tensor.offset * size, (tensor.offset + math.prod(shape)) * size
        name = f"{self.root}data/{tensor.key}"
        data = self._entry(name)
        check(end <= len(data), f"{self.path}: {name} has {len(data)} bytes, too few for its tensor")
        return memoryview(data)[begin:end]


def read_encoding(path):
    """A pickled tiktoken Encoding: pattern, ranks (bytes → rank), special tokens (text → id), checked."""
    encoding = unpickle(read_bytes(path, MOST_PICKLE), path)
    state = encoding.state if isinstance(encoding, Encoding) else None
    check(isinstance(state, dict), f"{path}: not a pickled tiktoken Encoding")
    pattern, ranks, special = (state.get(k) for k in ("pat_str", "mergeable_ranks", "special_tokens"))
    check(isinstance(pattern, str) and isinstance(ranks, dict) and isinstance(special, dict), f"{path}: not a pickled tiktoken Encoding")
    check(all(isinstance(k, bytes) and k and is_size(v) for k, v in ranks.items()), f"{path}: its ranks do not map bytes to numbers")
    check(max(map(len, ranks), default=0) <= MOST_TOKEN, f"{path}: a token is longer than {MOST_TOKEN} bytes")
    check(all(isinstance(k, str) and k and is_size(v) for k, v in special.items()), f"{path}: its special tokens do not map texts to ids")
    check(sorted(ranks.values()) == list(range(len(ranks))), f"{path}: its ranks are not 0 to {len(ranks) - 1}, each once")
    check(all(bytes([b]) in ranks for b in range(256)), f"{path}: a byte has no rank")
    ids = set(special.values())
    check(len(ids) == len(special) and all(i >= len(ranks) for i in ids), f"{path}: two tokens have one id")
    return pattern, ranks, special
