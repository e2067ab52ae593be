"""The import table of the design, read off the source: who may import whom, lazily or not.

| package      | may import of the project | never imports                                                   |
|--------------|---------------------------|-----------------------------------------------------------------|
| `chatbot`    | none                      | asyncio, threading, sqlalchemy, websockets, fastapi and such    |
| `training`   | chatbot                   | sqlalchemy and what serves                                      |
| `server`     | chatbot                   | training (it starts `python -m training …` as a process)        |
| `migrations` | server.tables             | torch                                                           |
| `benchmarks` | all but tests             |                                                                 |
"""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = ("chatbot", "training", "server", "migrations", "benchmarks", "tests")

DATABASE = frozenset({"alembic", "psycopg", "sqlalchemy", "sqlite3"})
PYDANTIC = frozenset({"annotated_types", "pydantic", "pydantic_core"})
SERVING = frozenset({"fastapi", "starlette", "uvicorn", "websockets"})


@dataclass(frozen=True)
class Layer:
    """What the modules of one package may import; a name covers what is below it."""

    own: frozenset[str]
    """Names of this project, besides the package itself."""
    never: frozenset[str] = frozenset()
    """Names of other projects or of the standard library."""
    foreign: frozenset[str] | None = None
    """The only other projects allowed; None allows any."""


LAYERS = {
    "chatbot": Layer(
        own=frozenset(),
        never=DATABASE | SERVING | {"asyncio", "threading", "socket", "multiprocessing", "concurrent"},
        foreign=frozenset({"numpy", "safetensors", "tokenizers", "torch", "tqdm"}) | PYDANTIC,
    ),
    "training": Layer(own=frozenset({"chatbot"}), never=DATABASE | SERVING),
    "server": Layer(own=frozenset({"chatbot"})),
    "migrations": Layer(own=frozenset({"server.tables"}), never=frozenset({"torch"})),
    "benchmarks": Layer(own=frozenset({"chatbot", "training", "server", "migrations"})),
    "tests": Layer(own=frozenset(PACKAGES)),
}


class Import(NamedTuple):
    """One name that a file imports; `member` is what `from name import member` takes out of it."""

    line: int
    name: str
    member: str | None = None


def imports(source: str, package: str) -> Iterator[Import]:
    """Every import in a file: at its top, in functions, for type checkers only, by `import_module("…")`."""
    for node in ast.walk(ast.parse(source)):
        match node:
            case ast.Import(names=names):
                yield from (Import(node.lineno, alias.name) for alias in names)
            case ast.ImportFrom(module=module, names=names, level=level):
                name = absolute(module, level, package)
                for alias in names:
                    yield Import(node.lineno, name, alias.name) if name else Import(node.lineno, alias.name)
            case ast.Call(
                func=ast.Name(id="__import__" | "import_module") | ast.Attribute(attr="import_module"),
                args=[ast.Constant(value=str(name)), *_],
            ):
                yield Import(node.lineno, name)


def absolute(module: str | None, level: int, package: str) -> str:
    """`..corpus` in the package `training.importers` is `training.corpus`."""
    parts = package.split(".")
    above = parts[: max(0, len(parts) - level + 1)] if level else []
    return ".".join([*above, *([module] if module else [])])


def covers(names: frozenset[str], found: Import) -> bool:
    """Whether a name, or one above it, is in `names`; `from server import tables` is `server.tables`."""
    full = f"{found.name}.{found.member}" if found.member else found.name
    return any(f"{full}.".startswith(f"{name}.") for name in names)


def breaches(package: str, source: str, module: str | None = None) -> list[str]:
    """What a file of `package` imports against the table; `module` is the package that the file lies in."""
    layer = LAYERS[package]
    found = []
    for each in imports(source, module or package):
        top = each.name.partition(".")[0]
        if top in PACKAGES:
            allowed = top == package or covers(layer.own, each)
        elif covers(layer.never, each):
            allowed = False
        else:
            allowed = layer.foreign is None or top in sys.stdlib_module_names or top in layer.foreign
        if not allowed:
            member = f".{each.member}" if each.member else ""
            found.append(f"line {each.line}: {package} imports {each.name}{member}")
    return found


def files() -> list[Path]:
    return sorted(file for package in PACKAGES for file in (ROOT / package).rglob("*.py"))


@pytest.mark.parametrize("file", files(), ids=lambda file: str(file.relative_to(ROOT)))
def test_file_keeps_to_its_layer(file: Path) -> None:
    place = file.relative_to(ROOT)
    package = ".".join(place.parent.parts)

    assert breaches(place.parts[0], file.read_text(encoding="utf-8"), package) == []


def test_every_package_is_in_the_table() -> None:
    packages = {file.parent.name for file in ROOT.glob("*/__init__.py")} | {
        file.relative_to(ROOT).parts[0] for file in files()
    }

    assert {"chatbot", "training", "server", "migrations"} <= packages <= set(LAYERS)


@pytest.mark.parametrize(
    ("package", "source"),
    [
        ("chatbot", "import asyncio"),
        ("chatbot", "import asyncio.subprocess as running"),
        ("chatbot", "from threading import Lock"),
        ("chatbot", "from concurrent.futures import ThreadPoolExecutor"),
        ("chatbot", "import sqlalchemy.orm"),
        ("chatbot", "import websockets"),
        ("chatbot", "from fastapi import FastAPI"),
        ("chatbot", "import server"),
        ("chatbot", "from training import corpus"),
        ("chatbot", "import sacrebleu"),
        ("chatbot", "def late():\n    import server.store"),
        ("chatbot", "if TYPE_CHECKING:\n    from training.corpus import Corpus"),
        ("chatbot", "import importlib\nimportlib.import_module('server.app')"),
        ("chatbot", "__import__('asyncio')"),
        ("chatbot", "from .. import server"),
        ("training", "import server.tables"),
        ("training", "from sqlalchemy import select"),
        ("training", "from benchmarks import training"),
        ("server", "import training"),
        ("server", "def late():\n    from training.train import main"),
        ("server", "from tests import conftest"),
        ("migrations", "import server"),
        ("migrations", "from server import store"),
        ("migrations", "from server.tables_of_another_kind import Base"),
        ("migrations", "from server import *"),
        ("migrations", "import chatbot"),
        ("benchmarks", "import tests.conftest"),
    ],
)
def test_a_planted_breach_is_found(package: str, source: str) -> None:
    assert len(breaches(package, source)) == 1


@pytest.mark.parametrize(
    ("package", "source"),
    [
        ("chatbot", "import json, torch.nn\nfrom chatbot.model import Seq2Seq\nfrom . import model"),
        ("training", "import tqdm\nfrom chatbot import transcripts"),
        ("server", "import asyncio, threading\nfrom sqlalchemy import select\nimport chatbot.batcher"),
        ("server", "command = ['python', '-m', 'training', 'retrain']"),
        ("migrations", "from alembic import op\nfrom server.tables import Base\nfrom server import tables"),
        ("benchmarks", "import chatbot, server, training"),
    ],
)
def test_what_the_table_allows_is_allowed(package: str, source: str) -> None:
    assert breaches(package, source) == []


def test_a_relative_import_is_resolved_from_where_the_file_is() -> None:
    source = "from . import star\nfrom .. import corpus\nfrom ...server import store"

    assert [(each.name, each.member) for each in imports(source, "training.importers")] == [
        ("training.importers", "star"),
        ("training", "corpus"),
        ("server", "store"),
    ]
