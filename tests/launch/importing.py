"""What the tests of kvmesh import and export share. The Python packages that these need come from .deps/python (tests/run puts them there) or are installed."""

import functools
import hashlib
import json
import os
import shutil
import struct
import subprocess
import sys

from command_line import SOURCE, CommandLineTest

FIXTURES = SOURCE / "tests" / "fixtures"
ENVIRONMENT = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, [str(SOURCE / ".deps" / "python"), os.environ.get("PYTHONPATH")]))}


@functools.cache
def has(*modules):
    """Whether the Python that the tests give to kvmesh has them."""
    return subprocess.run([sys.executable, "-c", "import " + ", ".join(modules)], env=ENVIRONMENT, capture_output=True).returncode == 0


def read_safetensors(path):
    """name → (dtype, shape, bytes)"""
    data = path.read_bytes()
    size, = struct.unpack("<Q", data[:8])
    header = json.loads(data[8:8 + size])
    header.pop("__metadata__", None)
    return {name: (e["dtype"], e["shape"], data[8 + size:][slice(*e["data_offsets"])]) for name, e in header.items()}


def digests(tensors):
    return {name: [shape, hashlib.sha256(data).hexdigest()] for name, (_, shape, data) in tensors.items()}


class ImportTest(CommandLineTest):
    def convert(self, *words, **more):
        return self.run_command(*words, "--python", sys.executable, **({"env": ENVIRONMENT} | more))

    def converted(self, command, *words, name="out"):
        """Runs it; gives back the folder that it made."""
        out = self.path(name)
        done = self.convert(command, *words, "--output", out)
        self.assertEqual((done.returncode, done.stderr), (0, b""), done.stderr.decode())
        self.assertFalse(out.with_name(out.name + ".partial").exists())
        return out

    def refused(self, *words, parts=(), code=1, **more):
        """One line of error that has the parts in it, and nothing is left behind."""
        out = self.path("refused")
        done = self.convert(*words, "--output", out, **more)
        self.assert_one_line_error(done, code, *parts)
        self.assertEqual([f.name for f in self.folder.iterdir() if f.name.startswith(out.name)], [])

    def copy(self, fixture, name="copy"):
        """Of a fixture, to be spoilt."""
        target = self.path(name)
        shutil.rmtree(target, ignore_errors=True)
        shutil.copytree(FIXTURES / fixture, target)
        return target
