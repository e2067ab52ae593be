"""What a process and those that it has started use, as Linux tells it."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

from server.engine_process import ENGINE


def family(pid: int) -> Iterator[int]:
    """The process and its descendants."""
    yield pid
    for children in Path(f"/proc/{pid}/task").glob("*/children"):
        try:
            found = children.read_text(encoding="ascii").split()
        except OSError:  # the thread has ended meanwhile
            continue
        for child in found:
            yield from family(int(child))


def engines(pid: int) -> list[int]:
    """Of a server: the processes that make its replies (server.engine_process)."""
    return [member for member in family(pid) if _read(member, "comm").strip() == ENGINE and not gone(member)]


def gone(pid: int) -> bool:
    """Whether it has ended, though nobody may have taken note of that."""
    state = _read(pid, "stat").rpartition(")")[2].split()
    return not state or state[0] == "Z"


def memory(pid: int) -> int:
    """Bytes that the family has in memory; what some of its processes share counts once among them (PSS)."""
    return sum(_proportional(member) for member in family(pid))


def cpu_seconds(pid: int) -> float:
    """That all threads of the family have used so far."""
    return sum(_ticks(member) for member in family(pid)) / os.sysconf("SC_CLK_TCK")


def _proportional(pid: int) -> int:
    lines = _read(pid, "smaps_rollup").splitlines()
    return next((1024 * int(line.split()[1]) for line in lines if line.startswith("Pss:")), 0)


def _ticks(pid: int) -> int:
    user, system = _read(pid, "stat").rpartition(")")[2].split()[11:13] or (0, 0)
    return int(user) + int(system)


def _read(pid: int, name: str) -> str:
    """Nothing of a process that is not there any more."""
    try:
        return Path(f"/proc/{pid}/{name}").read_text(encoding="utf-8")
    except OSError:
        return ""
