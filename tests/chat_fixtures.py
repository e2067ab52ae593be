"""Fixtures of the chat's tests: a server whose model repeats what it hears, and a place for a database."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.live_server import LiveServer, serving
from tests.scripted_batcher import parrot


@pytest.fixture(scope="module")
def server(tiny_model_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[LiveServer]:
    """One for a module, for tests that leave it as it was. On SQLite."""
    url = f"sqlite:///{tmp_path_factory.mktemp('live') / 'turnwise.db'}"
    with serving(url, tiny_model_dir, parrot) as running:
        yield running


@pytest.fixture
def url(tmp_path: Path) -> str:
    """Of an SQLite database that is not there yet."""
    return f"sqlite:///{tmp_path / 'turnwise.db'}"
