"""Files of checkpoint folders: JSON, safetensors in and out, and an output folder that is whole or not there. Standard library only."""

import contextlib
import json
import math
import os
import shutil
import stat
import struct
from pathlib import Path

BYTES = {"F32": 4, "BF16": 2, "F16": 2}  # of a weight, by safetensors' names
MOST_JSON, MOST_HEADER = 64 << 20, 100_000_000
MOST_VALUES = 4_000_000  # of JSON; a value of two bytes takes a hundred in memory


class Refused(Exception):
    """What goes wrong and is told in one line; `code` is the exit code."""

    def __init__(self, message, code=1):
        super().__init__(message)
        self.code = code


def check(condition, message):
    if not condition:
        raise Refused(message)


def brief(text, most=120):
    """Text from a file or a library, fit for one line of an error."""
    text = " ".join("".join(c if c.isprintable() else " " for c in str(text)).split())
    return text if len(text) <= most else text[:most] + "…"


def read_bytes(path, most):
    """A regular file's bytes; `most`: its limit in bytes."""
    try:
        with open(os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC), "rb") as file:
            status = os.fstat(file.fileno())
            check(stat.S_ISREG(status.st_mode), f"{path}: not a regular file")
            check(status.st_size <= most, f"{path}: {status.st_size} bytes are over the limit of {most}")
            return file.read(most)
    except OSError as e:
        raise Refused(f"{path}: {e.strerror}") from None


def parse_json(text, source):
    """The object that `text`, bytes, is."""
    def no_number(word):
        raise ValueError(f"{word} is no number")

    check(sum(map(text.count, (b",", b"[", b"{"))) <= MOST_VALUES, f"{source}: over {MOST_VALUES} JSON values")
    try:
        value = json.loads(text, parse_constant=no_number)
    except RecursionError:
        raise Refused(f"{source}: nested too deeply") from None
    except ValueError as e:
        raise Refused(f"{source}: not JSON: {brief(e)}") from None
    check(isinstance(value, dict), f"{source}: not a JSON object")
    return value


def read_json(path, most=MOST_JSON):
    return parse_json(read_bytes(path, most), path)


def is_size(value):
    return type(value) is int and value >= 0


class Safetensors:
    """A safetensors file, or all shards of an index. `tensors`: name → (dtype, shape, file, offset); offsets count from the file's begin."""

    def __init__(self, folder):
        self.tensors = {}
        index = folder / "model.safetensors.index.json"
        if index.exists() and not (folder / "model.safetensors").exists():
            where = read_json(index).get("weight_map")
            check(isinstance(where, dict) and all(isinstance(v, str) for v in where.values()), f"{index}: \"weight_map\" does not map names to files")
            for name in sorted(set(where.values())):
                check(name == os.path.basename(name) and name.endswith(".safetensors"), f"{index}: {brief(name)} is no name of a file in this folder")
                self._read(folder / name)
            check(set(where) == set(self.tensors), f"{index}: names other tensors than the files hold")
        else:
            self._read(folder / "model.safetensors")

    def _read(self, path):
        try:
            with open(path, "rb") as file:
                size = os.fstat(file.fileno()).st_size
                begin = 8 + int.from_bytes(file.read(8), "little")
                check(8 < begin <= min(size, MOST_HEADER), f"{path}: a header of {begin - 8} bytes in a file of {size}")
                header = parse_json(file.read(begin - 8), path)
        except OSError as e:
            raise Refused(f"{path}: {e.strerror}") from None
        end = begin  # of all tensors, were they one behind the other
        for name, entry in header.items():
            if name == "__metadata__":
                continue
            what = f"{path}: tensor {brief(name)}"
            check(name not in self.tensors, f"{what}: is in two files")
            check(isinstance(entry, dict) and entry.get("dtype") in BYTES, f"{what}: not F32, BF16 or F16")
            shape, offsets = entry.get("shape"), entry.get("data_offsets")
            check(isinstance(shape, list) and len(shape) <= 4 and all(map(is_size, shape)), f"{what}: has no shape")
            check(isinstance(offsets, list) and len(offsets) == 2 and all(map(is_size, offsets)), f"{what}: has no data_offsets")
            check(offsets[1] - offsets[0] == math.prod(shape) * BYTES[entry["dtype"]] and begin + offsets[1] <= size, f"{what}: its data_offsets do not fit")
            end += offsets[1] - offsets[0]
            self.tensors[name] = (entry["dtype"], shape, path, begin + offsets[0])
        check(end <= size, f"{path}: tensors lie over each other")

    def bytes_of(self, name):
        dtype, shape, path, offset = self.tensors[name]
        try:
            with open(path, "rb") as file:
                file.seek(offset)
                data = file.read(math.prod(shape) * BYTES[dtype])
        except OSError as e:
            raise Refused(f"{path}: {e.strerror}", 74) from None
        check(len(data) == math.prod(shape) * BYTES[dtype], f"{path}: tensor {name}: the file ends in it")
        return data


def write_safetensors(path, tensors, bytes_of):
    """`tensors`: (name, dtype, shape) in the file's order; `bytes_of(name)` is asked for one tensor after another, so that memory holds one."""
    header, offset = {"__metadata__": {"format": "pt"}}, 0
    for name, dtype, shape in tensors:
        size = math.prod(shape) * BYTES[dtype]
        header[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [offset, offset + size]}
        offset += size
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    free = shutil.disk_usage(path.parent).free
    if offset > free:
        raise Refused(f"{path}: {offset} bytes of weights, but {free} bytes are free", 74)
    with open(path, "wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        for name, dtype, shape in tensors:
            data = memoryview(bytes_of(name)).cast("B")
            check(len(data) == math.prod(shape) * BYTES[dtype], f"tensor {name}: {len(data)} bytes instead of {math.prod(shape) * BYTES[dtype]}")
            file.write(data)
        file.flush()
        os.fsync(file.fileno())


def write_json(path, value):
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def is_there(path):
    return os.path.lexists(path)


@contextlib.contextmanager
def new_folder(output):
    """Gives the folder OUTPUT.partial, which becomes OUTPUT at the end, or is removed where something goes wrong. Never overwrites."""
    output = Path(os.path.abspath(output))
    check(not is_there(output), f"--output {output}: is there already")
    partial = output.with_name(output.name + ".partial")
    check(not is_there(partial), f"{partial}: is there already, perhaps from a run that was broken off; remove it")
    try:
        partial.mkdir(parents=True)
    except OSError as e:
        raise Refused(f"--output {output}: {e.strerror}") from None
    try:
        yield partial
        check(not is_there(output), f"--output {output}: is there already")
        partial.rename(output)
    except OSError as e:
        shutil.rmtree(partial, ignore_errors=True)
        raise Refused(f"{e.filename or f'--output {output}'}: {e.strerror}", 74) from None
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise


def copy_file(source, target, most=256 << 20):
    target.write_bytes(read_bytes(source, most))


def newest(numbered, step, where):
    """`numbered`: step → path. The one of --step, else the last."""
    check(numbered, f"{where}: no checkpoint in this folder")
    if step is None:
        return max(numbered.items())
    check(step in numbered, f"{where}: no step {step}; there are {brief(', '.join(map(str, sorted(numbered))))}")
    return step, numbered[step]
