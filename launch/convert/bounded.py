"""Work in a process of its own that may take only so much memory, for a library that unpacks whatever is packed in a file. Standard library only."""

import contextlib
import multiprocessing
import os
import resource
import signal
import sys

from folder import Refused


def memory():
    """Bytes that this process may write to, as RLIMIT_DATA counts them."""
    with open("/proc/self/statm", "rb") as file:
        return int(file.read().split()[5]) * resource.getpagesize()


def answer(work, out):
    """In the process of its own: sends what is refused should it die, None where memory is no reason to, and at the end what `work` gives or raises."""
    for number in (signal.SIGINT, signal.SIGPIPE):  # it ends with the one that waits for it
        signal.signal(number, signal.SIG_DFL)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    sys.stderr = os.fdopen(os.dup(2), "w")
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)  # a library's last words are not for people

    @contextlib.contextmanager
    def within(size, refusal):
        soft, hard = resource.getrlimit(resource.RLIMIT_DATA)
        out.send(Refused(refusal))
        resource.setrlimit(resource.RLIMIT_DATA, (min([memory() + size] + [limit for limit in (soft, hard) if limit != resource.RLIM_INFINITY]), hard))
        try:
            yield
        except MemoryError:
            raise Refused(refusal) from None
        finally:
            resource.setrlimit(resource.RLIMIT_DATA, (soft, hard))
            out.send(None)

    try:
        out.send(work(within))
    except (Refused, OSError, MemoryError) as e:
        out.send(e)


def bounded(work):
    """What work(within) gives or raises. What it does in `with within(size, refusal)` may take `size` bytes more memory; where that is too little, a library
    may end the process, and the refusal is what is raised."""
    context = multiprocessing.get_context("fork")
    ours, theirs = context.Pipe(duplex=False)
    process = context.Process(target=answer, args=(work, theirs), daemon=True)
    process.start()
    theirs.close()
    said = None
    with ours, contextlib.suppress(EOFError):
        while True:
            said = ours.recv()
    process.join()
    if process.exitcode > 0:  # it has told why
        sys.exit(process.exitcode)
    if said is None or process.exitcode == -signal.SIGKILL:
        raise Refused(f"the process that reads was ended by signal {-process.exitcode}")
    if isinstance(said, Exception):
        raise said
    return said
