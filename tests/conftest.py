"""Fixtures that several test modules share."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from argon2 import PasswordHasher
from sqlalchemy import Engine

from chatbot.model import Seq2Seq
from chatbot.model_directory import seal
from chatbot.options import DecodingOptions
from chatbot.tokenizer import Tokenizer
from server.console import passwords
from server.database import connect
from tests.databases import KINDS, fresh_database, upgrade
from tests.small import SMALL, orders, texts

LONGEST = (
    "test_killing",
    "test_train",
    "test_web_console",
    "test_web_console_desk",
    "test_web_chat",
    "test_web_console_accessibility",
    "test_web_real",
    "test_retrain",
    "test_day",
    "test_server_process",
    "test_web_console_learning",
    "test_elastic",
)
"""Files that take longest: they are begun first, so that no process has one of them left in the end."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    rank = {name: place for place, name in enumerate(LONGEST)}
    items.sort(key=lambda item: rank.get(item.path.stem, len(rank)))


REAL_HASHER = passwords._HASHER
REAL_NOBODYS = passwords.NOBODYS

torch.set_num_threads(1)  # tests run side by side: threads that spin for each other cost more than they bring


@pytest.fixture(scope="session", autouse=True)
def cheap_hashes() -> Iterator[PasswordHasher]:
    """For tests of something else than hashes: a thousandth of the work."""
    cheap = PasswordHasher(time_cost=1, memory_cost=8, parallelism=1)
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(passwords, "_HASHER", cheap)
        patched.setattr(passwords, "NOBODYS", cheap.hash("nobody's"))
        yield cheap


@pytest.fixture
def real_hashes(monkeypatch: pytest.MonkeyPatch) -> None:
    """For tests of the hashes: as they are kept."""
    monkeypatch.setattr(passwords, "_HASHER", REAL_HASHER)
    monkeypatch.setattr(passwords, "NOBODYS", REAL_NOBODYS)


@pytest.fixture(scope="session")
def tiny_tokenizer() -> Tokenizer:
    """A tokenizer of the small transcripts."""
    return Tokenizer.train(texts(orders(200)), vocab_size=SMALL.vocab_size)


@pytest.fixture
def tiny_model(tiny_tokenizer: Tokenizer) -> Seq2Seq:
    """An untrained model, float32, in evaluation mode; the same weights every time."""
    torch.manual_seed(7)
    return Seq2Seq(SMALL.model_copy(update={"vocab_size": tiny_tokenizer.vocab_size})).eval()


@pytest.fixture(scope="session")
def tiny_model_dir(tiny_tokenizer: Tokenizer, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The untrained model, sealed: it answers nonsense, at length."""
    torch.manual_seed(7)
    model = Seq2Seq(SMALL.model_copy(update={"vocab_size": tiny_tokenizer.vocab_size})).eval()
    path = tmp_path_factory.mktemp("models") / "tiny"
    defaults = DecodingOptions(max_tokens=12)
    seal(path, model=model, tokenizer=tiny_tokenizer, defaults=defaults, metrics={}, card="# Tiny\n")
    return path


@pytest.fixture(params=KINDS)
def database_url(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    """An empty database at the newest migration: once an SQLite file, once on PostgreSQL."""
    with fresh_database(request.param, tmp_path) as url:
        upgrade(url)
        yield url


@pytest.fixture
def engine(database_url: str) -> Iterator[Engine]:
    """Connections to `database_url`."""
    engine = connect(database_url)
    yield engine
    engine.dispose()
