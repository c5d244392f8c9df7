#!/usr/bin/env python3
"""kvmesh doctor on three hosts over TCP: what differs between hosts is found, and told once with the host's name."""

import shutil
import subprocess
import time

import hosts
from job import JobTest
from command_line import KVMESH, MPIRUN, run_tests


class Doctor(JobTest):
    @classmethod
    def undisturbed(cls, prompts):
        return b""  # no output is compared

    def doctor(self, *more, command="doctor", environment=(), output=None):
        words = [KVMESH, command, *self.words(self.prompts, output or self.output)[1:], "--threads", 1, *more]
        return subprocess.run(self.hosts.mpi(MPIRUN, 2, *environment, *words), stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=60)

    def on_host(self, number, *words):
        subprocess.run(self.hosts.all[number - 1].command(*words), check=True, capture_output=True)

    def check(self, done, code, *lines):
        found = [line for line in done.stderr.splitlines() if not line.startswith("[kvmesh-h")]
        self.assertEqual((done.returncode, len(found)), (code, len(lines)), f"{done.stdout}\n{done.stderr}")
        for parts, line in zip(lines, found):
            for part in parts:
                self.assertIn(part, line)

    def test_all_is_well(self):
        begun = time.monotonic()
        done = self.doctor()
        self.check(done, 0)
        self.assertIn("6 ranks on 3 hosts", done.stdout)
        self.assertIn("all is well", done.stdout)
        print(f"       {time.monotonic() - begun:6.2f} s for 6 ranks on 3 hosts", flush=True)

    def test_a_folder_that_one_host_has_for_itself(self):
        folder = self.folder / "own"
        folder.mkdir()
        self.on_host(3, "mount", "-t", "tmpfs", "own", folder)
        self.check(self.doctor(output=folder / "out.jsonl"), 0, ["warning", "ranks 4-5 on kvmesh-h3", "--output", "rank 0 on kvmesh-h1"])
        self.assertEqual(list(folder.iterdir()), [])

    def on_host_stands(self, number, path, copy):
        """On that host `copy` is where `path` is elsewhere."""
        self.on_host(number, "mount", "--bind", copy, path)
        self.addCleanup(self.on_host, number, "umount", path)

    def test_another_program_on_one_host(self):
        copy = self.folder / "kvmesh"
        shutil.copy(KVMESH, copy)
        with open(copy, "ab") as f:
            f.write(b"x")
        self.on_host_stands(2, KVMESH, copy)
        self.check(self.doctor(), 1, ["error", "the program's file differs", "on ranks 2-3 on kvmesh-h2"])

    def test_other_weights_on_one_host_and_none_on_another(self):
        copy, empty = self.folder / "changed", self.folder / "empty"
        shutil.copytree(self.checkpoint, copy)
        with open(copy / "model.safetensors", "r+b") as f:
            f.seek(5000)
            f.write(b"\x01\x02")
        empty.mkdir()
        self.on_host_stands(2, self.checkpoint, copy)
        self.on_host_stands(3, self.checkpoint, empty)
        self.check(self.doctor(), 1, ["error", "ranks 4-5 on kvmesh-h3", "config.json"], ["error", "ranks 4-5 on kvmesh-h3", "complete on every host"],
                   ["error", "model.safetensors differs", "on ranks 0-1 on kvmesh-h1", "on ranks 2-3 on kvmesh-h2"])

    def test_small_shared_memory_and_only_loopback(self):
        self.on_host(2, "mount", "-t", "tmpfs", "-o", "size=1m", "shm", "/dev/shm")
        self.addCleanup(self.on_host, 2, "umount", "/dev/shm")
        self.check(self.doctor(environment=["env", "NCCL_SOCKET_IFNAME=lo"]), 0, ["warning", "kvmesh-h2", "/dev/shm"], ["note", "all ranks", "loopback"])


def main(folder):
    JobTest.folder = folder
    run_tests(at_once=1)


hosts.run(main)
