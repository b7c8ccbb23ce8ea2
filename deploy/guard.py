"""Two processes that own a cluster together: one does the work, its parent only waits, and each ends what the other
leaves behind when it is killed. Linux only.

The worker of the two is told of the guard's death by a signal; the guard inherits the worker's orphans.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys

from deploy.own_folder import remove_folders_of
from deploy.processes import adopt_orphans, end_descendants

ASK_TO_END = signal.SIGINT
"""The signal by which a cluster's owner is asked to end it: Ray takes SIGTERM for a crash and ends the process."""

_PR_SET_PDEATHSIG = 1
_SI_KERNEL = 0x80
_HEARD = (signal.SIGINT, signal.SIGTERM, signal.SIGCHLD)
_PATIENCE_S = 5.0


def guard() -> None:
    """Returns in a new child process, which does the work. This one waits for its end, ends what it left, and exits as
    it did. To be called before there are threads. Raises `OSError`."""
    adopt_orphans()
    sys.stdout.flush()
    sys.stderr.flush()
    guardian = os.getpid()
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, _HEARD)  # before the fork: none may come between
    worker = os.fork()
    if worker == 0:
        _end_with(guardian)
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        return
    status = _keep_watch(worker)
    end_descendants(guardian, _PATIENCE_S)
    remove_folders_of(worker)
    raise SystemExit(128 - status if status < 0 else status)


def _end_with(guardian: int) -> None:
    if ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, ASK_TO_END, 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "prctl(PR_SET_PDEATHSIG) failed")
    if os.getppid() != guardian:  # it died before its death was ours to hear
        os.kill(os.getpid(), ASK_TO_END)


def _keep_watch(worker: int) -> int:
    """Passes on what processes ask of this one, until the worker ends. Its exit code, or minus the signal."""
    while True:
        heard = signal.sigwaitinfo(_HEARD)
        if heard.si_signo == signal.SIGCHLD:
            ended, status = os.waitpid(worker, os.WNOHANG)
            if ended:
                return os.waitstatus_to_exitcode(status)
        elif heard.si_code != _SI_KERNEL:  # a terminal has told both
            os.kill(worker, ASK_TO_END)
