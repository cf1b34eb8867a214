"""The files through which Prometheus' client shares its figures: made with all their room before they are needed.

The client maps them into memory. On a full disk the first figure that is written there would kill the process with
SIGBUS, in the middle of a request; on a read-only one the first request would fail. Knows the names and the size of
these files, no figure.
"""

from __future__ import annotations

import os
from pathlib import Path

VARIABLE = "PROMETHEUS_MULTIPROC_DIR"
ROOM = 1 << 20  # of each; a figure takes about 150 bytes
KINDS = ("counter", "histogram", "gauge_livesum", "gauge_mostrecent", "gauge_all")


class NoRoomForMetrics(Exception):
    """The folder of the figures cannot be written to."""


def reserve() -> None:
    """Makes this process's files, if it shares its figures at all.

    Raises:
        NoRoomForMetrics: with the folder and the system's reason.
    """
    folder = os.environ.get(VARIABLE)
    if not folder:
        return
    for kind in KINDS:
        path = Path(folder) / f"{kind}_{os.getpid()}.db"
        try:
            file = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
            try:
                os.posix_fallocate(file, 0, ROOM)
            finally:
                os.close(file)
        except OSError as error:
            raise NoRoomForMetrics(
                f"{folder}, where the metrics' files go (BENTOML_HOME), cannot be written to: {error.strerror}"
            ) from error
