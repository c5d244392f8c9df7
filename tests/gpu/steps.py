"""One step after another, each with a time limit; where the programs are, and how they are started."""

import ctypes
import json
import os
import re
import signal
import subprocess
import tempfile
import time
from pathlib import Path

from machine import output_of

CASE = re.compile(r"^\[ +(OK|FAILED|SKIPPED) +\] (\S+?)(?:, where .*)? \((\d+) ms\)$", re.MULTILINE)
TAIL = 12  # lines of a failed step's output that go into the report
PR_SET_CHILD_SUBREAPER = 36
# Asked in the environment in which the tests run, so that these are the libraries that they load.
VERSIONS = """
import ctypes, json
def version(library, function, by_pointer):
    try:
        call = getattr(ctypes.CDLL(library), function)
    except (OSError, AttributeError):
        return None
    call.restype = ctypes.c_size_t
    number = ctypes.c_int()
    return (call(ctypes.byref(number)), number.value)[1] if by_pointer else call()
print(json.dumps({"CUDA runtime": version("libcudart.so.13", "cudaRuntimeGetVersion", True), "CUDA of the driver": version("libcudart.so.13", "cudaDriverGetVersion", True),
                  "cuBLASLt": version("libcublasLt.so.13", "cublasLtGetVersion", False), "cuDNN": version("libcudnn.so.9", "cudnnGetVersion", False),
                  "NCCL": version("libnccl.so.2", "ncclGetVersion", True)}))
"""


class Clock:
    def __init__(self, seconds):
        self.seconds, self.begun = seconds, time.monotonic()

    def spent(self):
        return time.monotonic() - self.begun

    def left(self, share=1.0):
        """Seconds until this share of the time is over."""
        return self.seconds * share - self.spent()


class Place:
    """A bundle or a build: `kvmesh`, `tests` (as CTest lists them), and words(command) that start a command there."""

    def __init__(self, prefix, kvmesh, tests):
        self.prefix, self.kvmesh = prefix, kvmesh
        self.tests = [t for t in map(test_of, json.loads(tests)["tests"]) if t["command"]]

    @staticmethod
    def of_bundle(root):
        tests = (root / "tests" / "list.json").read_text().replace("{bundle}", str(root))
        return Place([str(root / "run")], str(root / "bin" / "kvmesh"), tests)

    @staticmethod
    def of_build(source, build):
        return Place([], str(build / "kvmesh"), output_of("ctest", "--test-dir", str(build), "-LE", "fuzz|hosts|bundle", "--show-only=json-v1") or '{"tests": []}')

    def words(self, command):
        return [*self.prefix, *command]

    def describe(self):
        versions = output_of(*self.words(["python3", "-c", VERSIONS]), seconds=60)
        return {"kvmesh": output_of(*self.words([self.kvmesh, "--version"])).splitlines(), "libraries": json.loads(versions) if versions else {}}


def test_of(entry):
    """What is used of a test in `ctest --show-only=json-v1`."""
    properties = {p["name"]: p["value"] for p in entry.get("properties", [])}
    return {
        "name": entry["name"],
        "command": entry.get("command"),
        "labels": properties.get("LABELS", []),
        "timeout": properties.get("TIMEOUT", 300),
        "environment": dict(v.split("=", 1) for v in properties.get("ENVIRONMENT", [])),
        "skip_code": properties.get("SKIP_RETURN_CODE"),
        "skip_pattern": "|".join(properties.get("SKIP_REGULAR_EXPRESSION", [])),
    }


def descendants(pid):
    try:
        children = [int(p) for task in Path(f"/proc/{pid}/task").iterdir() for p in (task / "children").read_text().split()]
    except OSError:
        return []
    return children + [d for c in children for d in descendants(c)]


def end_processes():
    """Ends all that this program has started, ranks in process groups of their own included."""
    while left := descendants(os.getpid()):
        for pid in left:
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                pass
        try:
            while os.waitpid(-1, os.WNOHANG)[0]:
                pass
        except ChildProcessError:
            return
        time.sleep(0.01)


def run_program(kind, name, words, limit, env={}, skip_code=None, skip_pattern="", cwd=None):
    """A step: {"kind", "name", "result": passed, failed, skipped or time over, "seconds", "cases": [[name, result, ms]] of GoogleTest's,
    "notes": what it said behind "note: " or "kvmesh: note: ", "tail"}."""
    ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)  # a rank whose mpirun was killed becomes a child of this process
    begun = time.monotonic()
    with tempfile.TemporaryFile() as out:
        code = None
        try:
            process = subprocess.Popen(words, stdin=subprocess.DEVNULL, stdout=out, stderr=subprocess.STDOUT, env=os.environ | {"GTEST_COLOR": "no"} | env, cwd=cwd)
            code = process.wait(timeout=max(limit, 0.1))
        except subprocess.TimeoutExpired:
            end_processes()
        except OSError as e:
            out.write(f"{e}\n".encode())
            code = 127
        out.seek(0)
        text = out.read().decode(errors="replace").replace("\r\n", "\n")  # mpirun gives its ranks a terminal
    cases = [[case, {"OK": "passed"}.get(result, result.lower()), int(ms)] for result, case, ms in CASE.findall(text)]
    all_skipped = bool(cases) and all(result == "skipped" for _, result, _ in cases)
    if code is None:
        result = "time over"
    elif (skip_code is not None and code == skip_code) or (skip_pattern and re.search(skip_pattern, text)) or (code == 0 and all_skipped):
        result = "skipped"
    else:
        result = "failed" if code != 0 else "passed"
    tail = [] if result == "passed" else [line for line in text.splitlines() if line.strip() and not CASE.match(line)][-TAIL:]
    notes = [line.split("note: ", 1)[1] for line in text.splitlines() if line.startswith(("note: ", "kvmesh: note: "))]
    return {"kind": kind, "name": name, "result": result, "seconds": round(time.monotonic() - begun, 2), "cases": cases, "notes": notes, "tail": tail}
