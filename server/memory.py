"""What a process that has come up does about memory, once."""

from __future__ import annotations

import ctypes
import gc


def set_aside() -> None:
    """Take what there is, some 250 000 objects of libraries above all, out of the garbage collector's sight.

    It would look at all of them again and again, for a sixth of a second each time in which nothing else
    happens in the process. What is not used any more is freed all the same, unless it refers to itself.
    """
    gc.collect()
    gc.freeze()
    give_back_memory()


def give_back_memory() -> None:
    """Return what was freed to the system, where the C library can."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)
