#!/usr/bin/env python3
"""Three hosts over TCP, and one of them is cut off. The job ends, also on the lost host, and the same command goes on with the same bytes."""

import time

import hosts
from job import JobTest
from command_line import run_tests


class Links(JobTest):
    def check_cut(self, timeout, says, deadline, **options):
        job = self.start("--comm-timeout", timeout, **options)
        begun = time.monotonic()
        self.hosts.all[2].cut()
        self.check_ended(job, f"a cut link (--comm-timeout {timeout})", begun, deadline, says)
        self.hosts.all[2].mend()
        self.hosts.wait_for_links()

    def test_a_cut_link(self):
        self.check_cut(2, r"^kvmesh: \[rank \d\] .* waited \d\.\d s for rank 2, which does not answer", 2)
        self.check_cut(2, r"^kvmesh: \[rank \d\] .* waited \d\.\d s for rank 4, 5, which does not answer", 2, ranks_a_host=2)
        self.check_cut(60, r"^kvmesh: the host kvmesh-h3 was lost", 60)  # mpirun is first
        self.finish(hosts=self.hosts.all[:2])


def main(folder):
    JobTest.folder = folder
    run_tests(at_once=1)


hosts.run(main)
