"""Makes the C library give large blocks back to the system when they are freed.

Knows glibc. By itself it raises the size from which a block gets a mapping of its own up to 32 MiB, each time that a
larger one was freed; uploads then come from the heap, and what lies between them keeps the heap from shrinking.
"""

from __future__ import annotations

import ctypes
import logging

logger = logging.getLogger(__name__)

_M_MMAP_THRESHOLD = -3
MAPPED_FROM_BYTES = 512 * 1024


def return_large_blocks() -> None:
    """Call it once, early. Says so in the log where the C library is another one."""
    try:
        done = ctypes.CDLL(None).mallopt(_M_MMAP_THRESHOLD, MAPPED_FROM_BYTES)
    except AttributeError:
        done = 0
    if not done:
        logger.warning("this C library has no mallopt; memory of uploads may be given back late")
