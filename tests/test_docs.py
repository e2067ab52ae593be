"""The documentation against the tree: links lead somewhere, records are whole, variables exist."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from pydantic import BaseModel

from chatbot.config import ModelConfig
from server.console.imports import Bounds
from server.settings import Settings, variable
from training.config import TrainConfig

ROOT = Path(__file__).resolve().parent.parent
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")])
DECISIONS = sorted((ROOT / "docs/decisions").glob("[0-9]*.md"))
DEPLOY = (ROOT / "docs/deploy.md").read_text(encoding="utf-8")


def name(page: Path) -> str:
    return str(page.relative_to(ROOT))


def blocks(text: str, language: str) -> list[str]:
    """The code blocks of a page that are in that language."""
    return re.findall(rf"^```{language}\n(.*?)^```", text, re.MULTILINE | re.DOTALL)


def prose(page: Path) -> str:
    """A page without its code blocks."""
    return re.sub(r"^```.*?^```", "", page.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)


def anchors(page: Path) -> set[str]:
    """What `#…` can name in a page: its headings in lower case, without punctuation, dashes for spaces."""
    headings = re.findall(r"^#+ (.*)$", prose(page), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading).strip().lower().replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_every_link_leads_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)\s]+)\)", prose(page)):
        if not re.match(r"[a-z]+:", target):
            path, _, anchor = target.partition("#")
            destination = (page.parent / path).resolve() if path else page
            assert destination.exists(), target
            assert not anchor or anchor in anchors(destination), target


@pytest.mark.parametrize("record", DECISIONS, ids=name)
def test_a_decision_says_what_it_must(record: Path) -> None:
    headings = re.findall(r"^## (.*)$", record.read_text(encoding="utf-8"), re.MULTILINE)

    assert headings == ["Context", "Decision", "Consequences", "What would change our mind"]


def test_every_decision_is_listed_and_numbered_in_order() -> None:
    listed = re.findall(r"^(\d+)\. \[.*\]\((.*)\)$", prose(ROOT / "docs/decisions/README.md"), re.MULTILINE)

    assert [file for _, file in listed] == [record.name for record in DECISIONS]
    assert [int(number) for number, _ in listed] == [int(record.name[:4]) for record in DECISIONS]


def test_the_deployment_guide_has_every_variable_of_the_compose_file_with_its_default() -> None:
    compose = (ROOT / "docker-compose.yml").read_text(encoding="utf-8")
    rows = re.findall(r"^\| `([A-Z_]+)` \|.*\| (.*) \|$", DEPLOY, re.MULTILINE)

    assert {row: default.replace("none", "") for row, default in rows} == dict(
        re.findall(r"\$\{([A-Z_]+):-([^}]*)\}", compose)
    )


def test_the_deployment_guide_names_settings_that_exist() -> None:
    known = {variable(setting) for setting in Settings.model_fields}

    assert set(re.findall(r"TURNWISE_[A-Z_]+", DEPLOY)) <= known


def test_the_service_of_the_deployment_guide_waits_for_running_replies() -> None:
    patience = re.search(r"TimeoutStopSec=(\d+)", DEPLOY)

    assert patience
    assert float(patience[1]) > Settings().drain_seconds


def test_the_service_of_the_deployment_guide_finds_its_password_without_a_home() -> None:
    unit = next(block for block in blocks(DEPLOY, "ini") if "[Service]" in block)

    assert "ProtectHome=yes" in unit
    assert "\nEnvironment=PGPASSFILE=/srv/" in unit


def test_the_proxy_of_the_deployment_guide_lets_uploads_and_ports_through() -> None:
    [nginx] = blocks(DEPLOY, "nginx")
    most = re.search(r"client_max_body_size (\d+)m;", nginx)

    assert most
    assert int(most[1]) * 2**20 >= Bounds().upload
    assert "proxy_set_header Host $http_host;" in nginx


@pytest.mark.parametrize(
    ("page", "shape"), [("models.md", ModelConfig), ("training.md", TrainConfig)], ids=["model", "training"]
)
def test_every_field_of_a_configuration_is_documented_with_its_default(
    page: str, shape: type[BaseModel]
) -> None:
    rows = dict(
        re.findall(r"^\| `(\w+)` \| (.*?) \|", (ROOT / "docs" / page).read_text("utf-8"), re.MULTILINE)
    )
    for field, info in shape.model_fields.items():
        if field != "model":
            words = {True: "true", False: "false", None: "none"}
            shown = words[info.default] if isinstance(info.default, bool | None) else str(info.default)
            assert rows[field].strip("`") == shown.replace("(", "[").replace(")", "]"), field
