"""`python -m server models`: what is in use changes whole, after a trial, and can be taken back."""

from __future__ import annotations

import errno
import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Engine

from chatbot.model_directory import ACTIVE, find_model
from chatbot.tokenizer import Tokenizer
from server.__main__ import main
from server.console.audit import entries
from tests.models import seal_tiny


@pytest.fixture
def models(tmp_path: Path, tiny_tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Two models, `one` in use; nobody's database is in the working directory."""
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "models"
    for seed, name in enumerate(("one", "two")):
        seal_tiny(folder / name, tiny_tokenizer, seed)
    (folder / ACTIVE).write_text("one\n")
    return folder


def command(capsys: pytest.CaptureFixture[str], models: Path, *arguments: str) -> Any:
    assert main(["models", *arguments, "--models", str(models), "--json"]) == 0
    return json.loads(capsys.readouterr().out)


def refused(capsys: pytest.CaptureFixture[str], models: Path, *arguments: str) -> str:
    assert main(["models", *arguments, "--models", str(models)]) == 1
    return capsys.readouterr().err


def test_the_list_tells_which_is_in_use_and_what_is_broken(
    capsys: pytest.CaptureFixture[str], models: Path
) -> None:
    (models / "two" / "README.md").write_text("altered")
    one, two = command(capsys, models, "list")
    assert (one["name"], one["in_use"], one["card"], one["problem"]) == ("one", True, "Tiny 0", None)
    assert one["bytes"] == sum(file.stat().st_size for file in (models / "one").iterdir())
    assert not two["in_use"]
    assert two["fingerprint"] is None
    assert "README.md" in two["problem"]
    assert main(["models", "list", "--models", str(models)]) == 0
    first, second = capsys.readouterr().out.splitlines()
    assert first.startswith(f"* {one['fingerprint']}")
    assert "cannot be used" in second


@pytest.mark.parametrize(("active", "why"), [("gone", "names 'gone'"), (None, "holds several models")])
def test_the_list_says_why_no_model_is_in_use(
    capsys: pytest.CaptureFixture[str], models: Path, active: str | None, why: str
) -> None:
    (models / ACTIVE).unlink()
    if active is not None:
        (models / ACTIVE).write_text(active)
    assert main(["models", "list", "--models", str(models)]) == 0
    said = capsys.readouterr()
    assert len(said.out.splitlines()) == 2
    assert said.err.startswith("no model is in use: ")
    assert why in said.err


@pytest.mark.parametrize("by_name", [True, False])
def test_a_model_is_promoted_by_name_and_by_fingerprint(
    capsys: pytest.CaptureFixture[str], models: Path, by_name: bool
) -> None:
    listed = command(capsys, models, "list")
    change = command(capsys, models, "promote", "two" if by_name else listed[1]["fingerprint"])
    assert change == {"model": "two", "fingerprint": listed[1]["fingerprint"], "before": "one"}
    assert find_model(models).name == "two"
    assert command(capsys, models, "list")[1]["promoted_at"] is not None


def test_a_change_is_in_the_audit_log_of_the_database_that_is_there(
    capsys: pytest.CaptureFixture[str], models: Path, engine: Engine, database_url: str
) -> None:
    two = command(capsys, models, "list")[1]["fingerprint"]
    command(capsys, models, "promote", "two", "--database-url", database_url)
    command(capsys, models, "rollback", "--database-url", database_url)
    rollback, promote = entries(engine)
    assert (promote.operator, promote.action, promote.subject) == (None, "model.promote", two)
    assert promote.details == {"name": "two", "before": "one"}
    assert (rollback.action, (rollback.details or {})["name"]) == ("model.rollback", "one")

    nowhere = ["--database-url", "sqlite:///nowhere.db"]
    assert main(["models", "promote", "two", "--models", str(models), *nowhere]) == 0
    assert "not in the audit log" in capsys.readouterr().err
    assert find_model(models).name == "two"


def test_a_model_from_elsewhere_is_copied(
    capsys: pytest.CaptureFixture[str], models: Path, tmp_path: Path, tiny_tokenizer: Tokenizer
) -> None:
    fingerprint = seal_tiny(tmp_path / "new", tiny_tokenizer, 5)
    assert command(capsys, models, "promote", str(tmp_path / "new"))["fingerprint"] == fingerprint
    assert find_model(models) == models / "new"
    seal_tiny(tmp_path / "x" / "two", tiny_tokenizer, 6)
    assert "holds another 'two'" in refused(capsys, models, "promote", str(tmp_path / "x" / "two"))
    assert find_model(models) == models / "new"
    assert sorted(entry.name for entry in models.iterdir() if entry.is_dir()) == ["new", "one", "two"]


def test_rollback_goes_back_one_promotion_at_a_time(
    capsys: pytest.CaptureFixture[str], models: Path, tiny_tokenizer: Tokenizer
) -> None:
    seal_tiny(models / "three", tiny_tokenizer, 7)
    command(capsys, models, "promote", "two")
    command(capsys, models, "promote", "three")
    assert command(capsys, models, "rollback")["model"] == "two"
    assert command(capsys, models, "rollback")["model"] == "one"
    assert "no model was in use before" in refused(capsys, models, "rollback")
    assert find_model(models).name == "one"
    command(capsys, models, "promote", "three")
    assert command(capsys, models, "rollback")["model"] == "one"


def test_a_model_that_was_removed_cannot_be_gone_back_to_and_is_named(
    capsys: pytest.CaptureFixture[str], models: Path, tiny_tokenizer: Tokenizer
) -> None:
    seal_tiny(models / "three", tiny_tokenizer, 7)
    command(capsys, models, "promote", "two")
    command(capsys, models, "promote", "three")
    shutil.rmtree(models / "two")
    assert "'two', the model before, is not there any more" in refused(capsys, models, "rollback")
    command(capsys, models, "promote", "one")
    assert command(capsys, models, "rollback")["model"] == "three"


@pytest.mark.parametrize("line", ["[]", '{"at": 1}', "{"])
def test_a_history_that_makes_no_sense_is_named(
    capsys: pytest.CaptureFixture[str], models: Path, line: str
) -> None:
    (models / "promotions.jsonl").write_text(f"{line}\n")
    for asked in (["list"], ["promote", "two"], ["rollback"]):
        assert "'promotions.jsonl' cannot be read" in refused(capsys, models, *asked)
    assert find_model(models).name == "one"


def test_why_a_model_cannot_be_copied_is_told(
    capsys: pytest.CaptureFixture[str], models: Path, tmp_path: Path, tiny_tokenizer: Tokenizer
) -> None:
    seal_tiny(tmp_path / "new", tiny_tokenizer, 5)
    os.mkfifo(tmp_path / "new" / "pipe.txt")
    assert "pipe.txt` is a named pipe" in refused(capsys, models, "promote", str(tmp_path / "new"))


def test_a_broken_model_is_refused_and_nothing_changes(
    capsys: pytest.CaptureFixture[str], models: Path, tiny_tokenizer: Tokenizer
) -> None:
    (models / "two" / "config.json").write_text("{}")
    assert "config.json" in refused(capsys, models, "promote", "two")
    assert "no model 'nobody'" in refused(capsys, models, "promote", "nobody")
    seal_tiny(models / "greedy", tiny_tokenizer, 8, decoding="beam", beam_size=8)
    assert "beam_size" in refused(capsys, models, "promote", "greedy", "--rows", "4")
    assert "is one model" in refused(capsys, models / "one", "promote", "two")
    assert find_model(models).name == "one"
    assert not (models / "promotions.jsonl").exists()


def test_on_a_full_disk_nothing_changes(
    capsys: pytest.CaptureFixture[str], models: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = sorted(models.iterdir())
    real = os.fsync

    def full(descriptor: int) -> None:
        if "promotions" in str(Path(f"/proc/self/fd/{descriptor}").readlink()):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        real(descriptor)

    monkeypatch.setattr(os, "fsync", full)
    assert refused(capsys, models, "promote", "two").startswith("No space left")
    assert find_model(models).name == "one"
    assert [path for path in sorted(models.iterdir()) if path.name != ".promotions.lock"] == before


def test_promoting_the_model_in_use_changes_nothing(capsys: pytest.CaptureFixture[str], models: Path) -> None:
    command(capsys, models, "promote", "two")
    command(capsys, models, "promote", "two")
    assert command(capsys, models, "rollback")["model"] == "one"
