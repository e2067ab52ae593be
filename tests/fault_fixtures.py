"""Fixtures of the tests of faults: what a database stands on, to be broken."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from benchmarks.breakable import Cluster, Missing, SmallDisk, cluster, small_disk


@pytest.fixture
def postgres() -> Iterator[Cluster]:
    """A PostgreSQL of the test's own, which it may stop, kill and reconfigure."""
    with ExitStack() as stack:
        try:
            found = stack.enter_context(cluster())
        except Missing as reason:
            pytest.skip(str(reason))
        yield found


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[SmallDisk]:
    """A disk of a few megabytes, which the test may fill."""
    with ExitStack() as stack:
        (tmp_path / "disk").mkdir()
        try:
            found = stack.enter_context(small_disk(tmp_path / "disk", megabytes=8))
        except Missing as reason:
            pytest.skip(str(reason))
        yield found
