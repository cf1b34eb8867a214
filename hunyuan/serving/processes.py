"""The two processes of `bentoml serve`: the master that was started, and its worker, which holds the model.

By itself the master starts a worker that has ended again and again, and a worker outlives a master that is killed.
Here both end together: `prepare_master` runs in the one, `join_master` and `end_both` in the other. Outside
`bentoml serve` (a test's own event loop) there is no master, and these only concern the process itself. What a model
or a request is, this file does not know.
"""

from __future__ import annotations

import ctypes
import logging
import os
import signal
import sys
import threading
from types import FrameType

FAILED = 1
_MASTER = "BENTO_MASTER_PID"  # the worker gets the master's environment
_GIVE_UP = signal.SIGUSR1  # circus, which keeps the master's processes, leaves this one alone
_PR_SET_PDEATHSIG = 1


def prepare_master(workers: int | str) -> None:
    """Call it in the master before it starts a worker.

    Args:
        workers: how many worker processes the configuration asks for.

    Raises:
        SystemExit: more than one. BentoML would give them one GPU, and each would load all weights and keep a queue,
            limits and a readiness of its own behind one address.
    """
    if workers != 1:
        sys.exit(
            f"cannot serve: workers={workers}, and each would load the model; only 1 is possible. "
            "For more GPUs start one server per GPU, with CUDA_VISIBLE_DEVICES and a port of its own"
        )
    os.environ[_MASTER] = str(os.getpid())
    if threading.current_thread() is threading.main_thread():
        signal.signal(_GIVE_UP, _give_up)
    _end_at_hangup()


def _end_at_hangup() -> None:
    """A terminal that was closed ends the master as SIGTERM does, or not at all where SIGHUP is ignored (nohup).

    Circus would start the worker anew, and for as long as the model loads there would be no service.
    """
    from circus.sighandler import SysHandler

    ignored = signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    SysHandler.handle_hup = SysHandler.handle_winch if ignored else SysHandler.handle_term


def join_master() -> None:
    """Call it in the worker's main thread: from now on it is told to end (SIGTERM) when its master dies."""
    master = _master()
    if master is None:
        return
    ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
    if os.getppid() != master:  # it died before that
        os.kill(os.getpid(), signal.SIGTERM)


def end_both() -> None:
    """Ends the worker at once, and the master with a status that is not 0: a new worker would fare no better."""
    logging.shutdown()
    sys.stdout.flush()
    sys.stderr.flush()
    if has_master():
        os.kill(os.getppid(), _GIVE_UP)
    os._exit(FAILED)


def has_master() -> bool:
    """True in a worker whose master is there."""
    return os.getppid() == _master()


def _master() -> int | None:
    text = os.environ.get(_MASTER, "")
    return int(text) if text.isdecimal() else None


def _give_up(number: int, frame: FrameType | None) -> None:
    """In the master: nothing is written after the worker's reason, and nothing is waited for."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(FAILED)
