#!/usr/bin/env python3
"""A real Slurm on three hosts (munged, slurmctld, three slurmd) runs the batch scripts in launch/slurm; a job that is preempted goes on to the same bytes."""

import json
import os
import subprocess
import time

import hosts
from job import JobTest
from command_line import KVMESH, SOURCE, run_tests

SCRIPTS = SOURCE / "launch" / "slurm"
CONFIG = """
ClusterName=kvmesh
SlurmctldHost=kvmesh-h1(10.77.0.1)
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket,cred_expire=5
StateSaveLocation={folder}/slurmctld
SlurmdSpoolDir={folder}/spool-%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd-%n.pid
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
MpiDefault=pmix
SwitchType=switch/none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
SlurmdParameters=config_overrides
ReturnToService=2
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
SchedulerParameters=sched_interval=2,bf_interval=2,batch_sched_delay=0
KillWait=5
NodeName=kvmesh-h[1-3] NodeAddr=10.77.0.[1-3] CPUs=2 State=UNKNOWN
PartitionName=low Nodes=ALL Default=YES PriorityTier=1 PreemptMode=REQUEUE GraceTime=20
PartitionName=high Nodes=ALL PriorityTier=2 PreemptMode=OFF
"""


class Slurm(JobTest):
    @classmethod
    def setUpClass(cls):
        super().setUpClass()
        folder = cls.folder
        (folder / "slurmctld").mkdir()
        (folder / "slurm.conf").write_text(CONFIG.format(folder=folder))
        (folder / "mpi.conf").write_text("PMIxCliTmpDirBase=/dev/shm\n")
        key = folder / "munge.key"
        key.write_bytes(os.urandom(128))
        key.chmod(0o400)
        cls.daemon(0, "munge", "munged", "-F", "--force", f"--key-file={key}", f"--socket={folder}/munge.socket", f"--pid-file={folder}/munge.pid", f"--log-file={folder}/munge.log",
                   f"--seed-file={folder}/munge.seed")
        cls.wait("munged", lambda: (folder / "munge.socket").exists())
        cls.daemon(0, "slurmctld", "slurmctld", "-D", "-f", folder / "slurm.conf")
        for n, host in enumerate(cls.hosts.all):
            cls.daemon(n, f"slurmd-{host.name}", "slurmd", "-D", "-N", host.name, "-f", folder / "slurm.conf")
        cls.wait("all nodes to be idle", lambda: cls.slurm("sinfo", "-h", "-p", "low", "-o", "%T %D").stdout.split() == ["idle", "3"], 30)

    @classmethod
    def daemon(cls, host, name, *words):
        with open(cls.folder / f"{name}.out", "wb") as log:
            subprocess.Popen(cls.hosts.all[host].command(*words), stdin=subprocess.DEVNULL, stdout=log, stderr=log, cwd=cls.folder)

    @classmethod
    def wait(cls, what, true, seconds=20):
        end = time.monotonic() + seconds
        while not true():
            if time.monotonic() > end:
                logs = "".join(f"--- {p.name}\n{p.read_text(errors='replace')[-1500:]}\n" for p in cls.folder.glob("*.out"))
                raise AssertionError(f"waited {seconds} s for {what}\n{logs}")
            time.sleep(0.05)

    @classmethod
    def slurm(cls, *words):
        environment = [f"SLURM_CONF={cls.folder}/slurm.conf", f"KVMESH={KVMESH}", f"KVMESH_ROOT={SOURCE}", f"KVMESH_CHECKPOINT={cls.checkpoint}", "OMPI_MCA_btl=tcp,self", "OMPI_MCA_mpi_yield_when_idle=1"]
        return subprocess.run(cls.hosts.all[0].command(*environment, *words), capture_output=True, text=True, timeout=120, cwd=cls.folder)

    def sbatch(self, script, *arguments, options=()):
        """The number of the job."""
        done = self.slurm("sbatch", "--parsable", "--output", self.folder / f"{self._testMethodName}-%j.log", *options, SCRIPTS / script, *arguments)
        self.assertEqual(done.returncode, 0, done.stderr)
        return done.stdout.strip()

    def generate(self, script, prompts, output, options=(), batch=12):
        return self.sbatch(script, prompts, output, "--seed", 4, "--logprobs", 1, "--ignore-eos", "--threads", 1, "--batch-size", batch, options=options)

    def state(self, job):
        return dict(word.split("=", 1) for word in self.slurm("scontrol", "show", "job", "-o", job).stdout.split() if "=" in word)

    def finished(self, job, seconds=60):
        def ended():
            return self.slurm("squeue", "-h", "-j", job, "-t", "PENDING,RUNNING,COMPLETING,REQUEUED,SUSPENDED").stdout.strip() == ""
        try:
            self.wait(f"job {job}", ended, seconds)
        except AssertionError as e:
            raise AssertionError(f"{e}\n{self.state(job)}\n{self.logs()}")
        state = self.state(job)
        self.assertEqual((state["JobState"], state["ExitCode"]), ("COMPLETED", "0:0"), self.logs())
        return state

    def logs(self):
        return "".join(f"--- {p.name}\n{p.read_text(errors='replace')}\n" for p in self.folder.glob(f"{self._testMethodName}-*.log"))

    def test_one_node(self):
        self.finished(self.generate("one-node", self.prompts, self.output))
        self.check_finished()

    def test_many_nodes(self):
        state = self.finished(self.generate("many-nodes", self.prompts, self.output, options=["--nodes=3"]))
        self.assertEqual(state["NumNodes"], "3")
        self.check_finished()

    def test_the_doctor(self):
        words = [KVMESH, "doctor", *self.words(self.prompts, self.output)[1:], "--threads", 1]
        done = self.slurm("srun", "--mpi=pmix", "--nodes=3", "--ntasks=6", *words)
        self.assertEqual((done.returncode, done.stderr), (0, ""), done.stdout)
        self.assertIn("6 ranks on 3 hosts", done.stdout)
        done = self.slurm("srun", "--mpi=none", "--nodes=3", "--ntasks=3", *words)
        self.assertEqual((done.returncode, done.stderr.count("kvmesh: ")), (1, 1), done.stderr)
        self.assertIn("srun has started 3 tasks, and each would think it is alone: start them with srun --mpi=pmix", done.stderr)

    def test_an_array(self):
        lines = self.prompts.read_text().splitlines(keepends=True)
        whole = list(map(json.loads, self.expected[self.prompts].decode().splitlines()))
        for part in (0, 1):
            (self.folder / f"part{part}.jsonl").write_text("".join(lines[part * 60:part * 60 + 60]))
        job = self.generate("array", self.folder / "part%a.jsonl", self.folder / "array%a.jsonl")
        self.wait("the array", lambda: all((self.folder / f"array{part}.jsonl").exists() for part in (0, 1)), 60)
        self.finished(job)
        first, second = (list(map(json.loads, (self.folder / f"array{part}.jsonl").read_text().splitlines())) for part in (0, 1))
        self.assertEqual(first, whole[:60])
        self.assertEqual(len(second), 60)
        for n in range(0, 60, 2):  # the greedy rows: what is drawn depends on the row's number in its file
            self.assertEqual(second[n] | {"index": n + 60}, whole[n + 60])

    def test_a_preempted_job_goes_on(self):
        job = self.generate("preemptible", self.prompts, self.output, options=["--nodes=3"], batch=2)  # long enough to be preempted
        self.wait("rows", lambda: self.rows_in_journal() >= 10, 30)
        urgent = self.slurm("sbatch", "--parsable", "--partition=high", "--nodes=3", "--exclusive", "--output=/dev/null", "--wrap", "sleep 1").stdout.strip()
        begun = time.monotonic()
        self.wait("the urgent job", lambda: self.state(urgent).get("JobState") in ("RUNNING", "COMPLETED"), 60)
        print(f"       {time.monotonic() - begun:6.2f} s until the urgent job had the nodes", flush=True)
        self.assertFalse(self.output.exists())
        self.assertGreaterEqual(self.rows_in_journal(), 10)
        state = self.finished(job, 120)
        self.assertGreaterEqual(int(state["Restarts"]), 1)
        self.check_finished()
        self.assertIn("stopped by a signal; the same command goes on", self.logs())

    def test_a_job_that_a_signal_stops_goes_back_into_the_queue(self):
        job = self.generate("preemptible", self.prompts, self.output, options=["--nodes=3"], batch=2)  # long enough to be preempted
        self.wait("rows", lambda: self.rows_in_journal() >= 10, 30)
        self.slurm("scancel", "--signal=USR1", job)  # as --signal does before the time limit
        self.wait("the requeue", lambda: self.state(job).get("Restarts") == "1", 30)
        self.assertFalse(self.output.exists())
        self.finished(job, 120)
        self.check_finished()
        self.assertIn("stopped by a signal; the same command goes on", self.logs())


def main(folder):
    JobTest.folder = folder
    run_tests(at_once=1)


hosts.run(main, tools=("munged", "slurmctld", "slurmd", "sbatch"))
