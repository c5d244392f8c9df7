"""The bundle, unpacked elsewhere, in an environment that has neither mpirun nor a library path: it must find everything in itself.

BUNDLE is the archive, KVMESH the build's own program.
"""

import os
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
import unittest
from pathlib import Path

ARCHIVE = Path(os.environ["BUNDLE"])
SYSTEM = re.compile(r"(linux-vdso|ld-linux[^/]*|libc|libm|libdl|librt|libpthread|libresolv|libutil|libstdc\+\+|libgcc_s)\.so")  # what every such Linux has
CUDA = re.compile(r"lib(cudart|cublas|cublasLt|cudnn[a-z_]*|nccl|nvrtc|nvJitLink)\.so")  # the GPU machine's
TOOLS = ("bash", "cat", "df", "dirname", "env", "mktemp", "rm", "sed", "sleep", "tail", "sh")
PROMPTS = '{"prompt": "Once upon a time"}\n{"prompt": "The fox"}\n{"prompt": "In the cave"}\n'


class Bundle(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.folder = Path(tempfile.mkdtemp(prefix="kvmesh bundle "))
        with tarfile.open(ARCHIVE) as archive:
            archive.extractall(cls.folder)
        cls.bundle = cls.folder / "kvmesh"
        tools = cls.folder / "tools"
        tools.mkdir()
        for tool in TOOLS:
            (tools / tool).symlink_to(shutil.which(tool))
        cls.environment = {"PATH": str(tools), "HOME": str(cls.folder), "TMPDIR": str(cls.folder)}

    @classmethod
    def tearDownClass(cls):
        shutil.rmtree(cls.folder)

    def command(self, *words):
        return [str(w) for w in (self.bundle / "run", *words)]

    def run_bundle(self, *words, **more):
        done = subprocess.run(self.command(*words), env=self.environment, capture_output=True, text=True, timeout=60, **more)
        self.assertEqual(done.returncode, 0, done.stderr)
        return done.stdout

    def assert_within(self, path, user):
        if not SYSTEM.match(Path(path).name) and not CUDA.match(Path(path).name):
            self.assertTrue(path.startswith(f"{self.bundle}/"), f"{user} takes {path}")

    def test_it_is_small_enough_to_be_carried(self):
        self.assertLess(ARCHIVE.stat().st_size, 50_000_000)

    def test_every_library_is_found_in_it(self):
        loader = next(Path(p) for p in ("/lib64/ld-linux-x86-64.so.2", "/lib/ld-linux-aarch64.so.1") if Path(p).exists())
        files = [f for folder in ("bin", "tests/bin", "lib", "lib/openmpi3", "lib/pmix") for f in (self.bundle / folder).iterdir() if f.is_file()]
        self.assertIn("mca_btl_vader.so", [f.name for f in files])
        listing = self.run_bundle("bash", "-c", 'for f; do echo "FILE $f"; "$0" --list "$f"; done', loader, *files)
        user = None
        for line in listing.splitlines():
            user = line[5:] if line.startswith("FILE ") else user
            found = re.match(r"\s*(\S+) => (.*?)( \(0x[0-9a-f]+\))?$", line)
            if found and found[2] != "not found":
                self.assert_within(found[2], user)
            elif found:
                self.assertRegex(found[1], CUDA, f"{user} does not find {found[1]}")

    def test_every_number_of_ranks_writes_what_the_build_writes(self):
        (self.folder / "prompts.jsonl").write_text(PROMPTS)
        words = ["generate", "--checkpoint", self.bundle / "configs/stories", "--prompts", self.folder / "prompts.jsonl", "--max-new-tokens", 20, "--seed", 3, "--temperature", 1]
        expected = subprocess.run([os.environ["KVMESH"], *map(str, words)], capture_output=True, text=True, timeout=60, check=True).stdout
        self.assertEqual(len(expected.splitlines()), 3)
        self.assertEqual(self.run_bundle("kvmesh", *words), expected, "one rank without mpirun")
        for ranks in (1, 2, 4):
            self.assertEqual(self.run_bundle("mpirun", "-np", ranks, "kvmesh", *words), expected, f"{ranks} ranks")

    def test_running_ranks_and_mpirun_have_nothing_else_loaded(self):
        """What was loaded while running, plug-ins included: rank 0 waits for a prompt that comes when the others have been looked at."""
        fifo = self.folder / "fifo"
        os.mkfifo(fifo)
        process = subprocess.Popen(self.command("mpirun", "-np", 2, "kvmesh", "generate", "--checkpoint", self.bundle / "configs/stories", "--prompts", fifo, "--max-new-tokens", 2),
                                   env=self.environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        self.addCleanup(process.kill)
        with fifo.open("w") as prompts:  # opens when rank 0 reads: MPI has started
            programs = []
            for pid in [int(p.name) for p in Path("/proc").iterdir() if p.name.isdigit()]:
                try:
                    maps = Path(f"/proc/{pid}/maps").read_text()
                except OSError:
                    continue
                if f"{self.bundle}/bin/" not in maps:
                    continue
                programs.append(Path(os.readlink(f"/proc/{pid}/exe")).name)
                loaded = {line.split(maxsplit=5)[5] for line in maps.splitlines() if ".so" in line}
                self.assertTrue([file for file in loaded if "/openmpi3/mca_" in file], programs[-1])
                for file in loaded:
                    self.assert_within(file, programs[-1])
            self.assertEqual(sorted(programs), ["kvmesh", "kvmesh", "mpirun"])
            prompts.write(PROMPTS)
        out, err = process.communicate(timeout=60)
        self.assertEqual((process.returncode, len(out.splitlines())), (0, 3), err)

    def test_mpirun_has_its_words(self):
        done = subprocess.run(self.command("mpirun", "-np", 2, "no-such-program"), env=self.environment, capture_output=True, text=True, timeout=60)
        self.assertNotEqual(done.returncode, 0)
        self.assertIn("unable to find the specified executable file", done.stderr)

    def test_a_test_finds_its_fixtures(self):
        self.assertIn("[  PASSED  ]", self.run_bundle(self.bundle / "tests/bin/runtime_noise_test"))
        self.assertIn("[  PASSED  ]", self.run_bundle(self.bundle / "bin/mpirun", "-np", 2, "--oversubscribe", self.bundle / "tests/bin/model_original_mpi_test", "--gtest_filter=*stories*"))


if __name__ == "__main__":
    unittest.main(argv=sys.argv, verbosity=2)
