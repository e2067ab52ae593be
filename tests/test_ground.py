"""The ground the project stands on: locks, Makefile, container files, and what must not be in the tree."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import tomllib
from collections.abc import Iterator, Mapping
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path
from typing import Any

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

from server.settings import Settings
from server.settings import load as load_settings

ROOT = Path(__file__).resolve().parent.parent
PROJECT: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
COMPOSE: dict[str, Any] = yaml.safe_load((ROOT / "docker-compose.yml").read_text(encoding="utf-8"))
SERVICES: dict[str, dict[str, Any]] = COMPOSE["services"]
LASTING = ["database", "server", "server-gpu"]
OURS = ["migration", "server", "server-gpu"]
TARGETS = ["run", "test", "test-slow", "check", "format", "bench", "docs", "lock", "clean", "help"]

# --- the locks ------------------------------------------------------------------------------------


def pins(lock: str) -> dict[str, Version]:
    """`name==version` lines of a lock file, by canonical name. Any other requirement in it is an error."""
    found: dict[str, Version] = {}
    for line in (ROOT / lock).read_text(encoding="utf-8").splitlines():
        if line and not line.startswith(("#", "-r ")):
            name, version = line.split("==")
            found[canonicalize_name(name)] = Version(version)
    return found


RUNTIME = pins("requirements.txt")
DEVELOPMENT = pins("requirements-dev.txt")
ALL = RUNTIME | DEVELOPMENT


def closure(requirements: list[str]) -> set[str]:
    """Canonical names of all that the requirements need on this machine, by what is installed on it."""
    todo, done = [Requirement(each) for each in requirements], set()
    while todo:
        one = todo.pop()
        name, extras = canonicalize_name(one.name), frozenset(one.extras)
        if (name, extras) not in done:
            done.add((name, extras))
            todo.extend(needs(name, extras))
    return {name for name, _ in done}


def needs(name: str, extras: frozenset[str]) -> Iterator[Requirement]:
    for text in distribution(name).requires or ():
        requirement = Requirement(text)
        marker = requirement.marker
        of_one_build = re.match(r"cuda-|nvidia-|triton$", requirement.name)  # torch's CUDA build pins these
        if not of_one_build and (
            marker is None or any(marker.evaluate({"extra": extra}) for extra in {"", *extras})
        ):
            yield requirement


def test_torch_is_pinned_to_the_release_and_not_to_a_build() -> None:
    assert str(RUNTIME["torch"]) == "2.13.0"


def test_the_development_lock_adds_to_the_runtime_lock() -> None:
    assert "-r requirements.txt" in (ROOT / "requirements-dev.txt").read_text(encoding="utf-8").splitlines()
    assert RUNTIME.keys().isdisjoint(DEVELOPMENT)


@pytest.mark.parametrize(
    ("requirements", "locked"),
    [(PROJECT["dependencies"], RUNTIME), (PROJECT["optional-dependencies"]["dev"], ALL)],
    ids=["runtime", "development"],
)
def test_every_range_holds_its_pin(requirements: list[str], locked: Mapping[str, Version]) -> None:
    for each in map(Requirement, requirements):
        assert locked[canonicalize_name(each.name)] in each.specifier, str(each)


def test_the_locks_hold_all_that_is_needed_and_nothing_else() -> None:
    runtime, development = PROJECT["dependencies"], PROJECT["optional-dependencies"]["dev"]
    try:
        assert closure(runtime) == set(RUNTIME)
        assert closure(runtime + development) == set(ALL)
    except PackageNotFoundError as error:
        pytest.fail(f"not installed here: {error}; `make check` installs the lock")


def test_what_is_installed_is_what_is_pinned() -> None:
    installed = {name: Version(distribution(name).version).public for name in ALL}

    assert installed == {name: str(version) for name, version in ALL.items()}


# --- the Makefile, with an interpreter that only writes down what it is asked ---------------------

RECORDER = """#!/bin/sh
echo "$@" >> "$(dirname "$0")/../../calls"
"""


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A folder with the Makefile, the locks, and a virtual environment whose Python is the recorder."""
    for name in ("Makefile", "requirements.txt", "requirements-dev.txt"):
        shutil.copy(ROOT / name, tmp_path)
    python = tmp_path / ".venv/bin/python"
    python.parent.mkdir(parents=True)
    python.write_text(RECORDER)
    python.chmod(0o755)
    return tmp_path


def make(folder: Path, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run make as on a bare machine: nothing but PATH and HOME in the environment."""
    bare = {"PATH": os.environ["PATH"], "HOME": str(folder), **environment}
    return subprocess.run(
        ["make", *arguments], cwd=folder, env=bare, capture_output=True, text=True, check=False
    )


def calls(folder: Path) -> list[str]:
    """What the recorder was asked since the last look, without the checks for pip."""
    record = folder / "calls"
    lines = record.read_text().splitlines() if record.exists() else []
    record.unlink(missing_ok=True)
    return [line for line in lines if line != "-m pip --version"]


@pytest.mark.parametrize("target", TARGETS)
def test_target_exists_and_help_lists_it(target: str) -> None:
    assert make(ROOT, "--dry-run", target).returncode == 0
    assert re.search(rf"^ *make {target} ", make(ROOT, "help").stdout, re.MULTILINE)


def test_run_installs_the_lock_once_migrates_and_serves(checkout: Path) -> None:
    assert make(checkout, "run").returncode == 0
    install, migrate, serve = calls(checkout)
    assert install.endswith("-r requirements.txt")
    assert (migrate, serve.strip()) == ("-m server db upgrade", "-m server serve --port 8000")

    assert make(checkout, "run", PORT="9000").returncode == 0
    assert [call.strip() for call in calls(checkout)] == [
        "-m server db upgrade",
        "-m server serve --port 9000",
    ]


def test_a_changed_lock_is_installed_again(checkout: Path) -> None:
    make(checkout, "run")
    calls(checkout)
    with (checkout / "requirements.txt").open("a") as lock:
        lock.write("one-more==1.0\n")

    make(checkout, "run")

    assert calls(checkout)[0].endswith("-r requirements.txt")


def test_an_installation_that_failed_is_tried_again(checkout: Path) -> None:
    python = checkout / ".venv/bin/python"
    python.write_text(RECORDER + 'case "$*" in *install*) exit 1 ;; esac\n')

    assert make(checkout, "run").returncode != 0
    python.write_text(RECORDER)
    calls(checkout)
    make(checkout, "run")

    assert calls(checkout)[0].endswith("-r requirements.txt")


def test_the_server_does_not_start_when_the_migration_fails(checkout: Path) -> None:
    (checkout / ".venv/bin/python").write_text(RECORDER + 'case "$*" in *upgrade*) exit 1 ;; esac\n')

    assert make(checkout, "run").returncode != 0
    assert not any("serve " in call for call in calls(checkout))


def test_bench_runs_one_benchmark_after_another(checkout: Path) -> None:
    assert make(checkout, "bench", "BENCHMARKS=speed size", "ARGS=--runs 3").returncode == 0
    assert calls(checkout)[1:] == ["-m benchmarks.speed --runs 3", "-m benchmarks.size --runs 3"]


def test_what_bench_runs_is_there() -> None:
    named = re.search(r"^BENCHMARKS := (.+)$", (ROOT / "Makefile").read_text(), re.MULTILINE)
    assert named is not None
    for name in named[1].split():
        text = (ROOT / "benchmarks" / f"{name}.py").read_text()
        assert "required=True" not in text  # whoever types `make bench` names nothing
        assert text.rstrip().endswith("main()")


@pytest.mark.parametrize(
    ("script", "message"),
    [
        (
            '[ "$1" = --version ] && echo Python 3.9.2; [ "$1" = --version ]',
            "needs Python 3.11 or newer.*3.9.2",
        ),
        ('case "$2" in *version_info*) exit 0 ;; esac; exit 1', "without venv or ensurepip.*python3-venv"),
    ],
    ids=["old", "without venv"],
)
def test_an_unfit_python_is_refused_in_words(checkout: Path, script: str, message: str) -> None:
    shutil.rmtree(checkout / ".venv")
    unfit = checkout / "python3"
    unfit.write_text(f"#!/bin/sh\n{script}\n")
    unfit.chmod(0o755)

    outcome = make(checkout, "run", "PYTHON=./python3")

    assert outcome.returncode != 0
    assert re.search(message, outcome.stderr)
    assert not (checkout / ".venv").exists()


# --- containers -----------------------------------------------------------------------------------


@pytest.mark.parametrize("service", SERVICES)
def test_container_is_confined(service: str) -> None:
    promises = SERVICES[service]

    assert promises["read_only"] is True
    assert promises["cap_drop"] == ["ALL"]
    assert not promises.get("cap_add")
    assert not promises.get("privileged")
    assert promises["security_opt"] == ["no-new-privileges:true"]
    assert re.fullmatch(r"[1-9]\d*:[1-9]\d*", promises["user"]), "a number that is not root's"
    assert promises["deploy"]["resources"]["limits"].keys() == {"memory", "pids"}
    assert all(":size=" in mount for mount in promises["tmpfs"]), (
        "a tmpfs without a size takes memory without end"
    )


@pytest.mark.parametrize("service", SERVICES)
def test_image_is_pinned_to_an_exact_release(service: str) -> None:
    image = SERVICES[service]["image"]

    assert re.search(r":\d+\.\d+", image)
    if service in OURS:
        assert image.endswith(":" + PROJECT["version"])


@pytest.mark.parametrize("service", LASTING)
def test_lasting_container_has_a_health_check_and_comes_back(service: str) -> None:
    assert SERVICES[service]["healthcheck"]["test"][0] == "CMD"
    assert SERVICES[service]["restart"] == "unless-stopped"


def test_the_server_waits_for_the_migration_and_the_migration_for_the_database() -> None:
    assert SERVICES["migration"]["depends_on"] == {"database": {"condition": "service_healthy"}}
    for service in ("server", "server-gpu"):
        assert SERVICES[service]["depends_on"] == {
            "database": {"condition": "service_healthy"},
            "migration": {"condition": "service_completed_successfully"},
        }


def test_only_the_gpu_needs_a_profile() -> None:
    assert {name: service.get("profiles") for name, service in SERVICES.items() if "profiles" in service} == {
        "server-gpu": ["gpu"]
    }


def test_the_database_is_out_of_reach_and_the_server_on_the_loopback_address() -> None:
    assert COMPOSE["networks"]["inside"] == {"internal": True}
    for service in ("database", "migration"):
        assert SERVICES[service]["networks"] == ["inside"]
        assert "ports" not in SERVICES[service]
    assert SERVICES["server"]["ports"] == ["${LISTEN:-127.0.0.1}:${PORT:-8000}:8000"]


@pytest.mark.parametrize("service", SERVICES)
def test_the_password_comes_as_a_file(service: str) -> None:
    assert SERVICES[service]["secrets"] == ["database_password"]
    for name, value in SERVICES[service]["environment"].items():
        assert "PASSWORD" not in name or name.endswith("_FILE")
        assert not re.search(r"://\w+:[^/]*@", value), f"{name} holds a password"


@pytest.mark.parametrize("service", OURS)
def test_the_server_understands_its_environment(service: str) -> None:
    environment = {name: re.sub(r"\$\{\w+:-(.*?)\}", r"\1", value) for name, value in environment_of(service)}

    settings = load_settings(environ=environment)

    assert settings.database_url == "postgresql://turnwise@database/turnwise"
    assert settings.host == "0.0.0.0"
    assert settings.device == ("cuda" if service == "server-gpu" else "auto")


@pytest.mark.parametrize("service", ["server", "server-gpu"])
def test_a_retraining_has_places_to_write_to_and_data_to_read(service: str) -> None:
    """What it writes lies in volumes that the image gives to its user; the data is out of its reach."""
    environment = {name: re.sub(r"\$\{\w+:-(.*?)\}", r"\1", value) for name, value in environment_of(service)}
    settings = load_settings(environ=environment)
    volumes = [re.sub(r"\$\{\w+:-(.*?)\}", r"\1", volume) for volume in SERVICES[service]["volumes"]]

    assert volumes == ["models:/models", "data:/data", "transcripts:/transcripts:ro"]
    assert {volume.partition(":")[0] for volume in volumes} <= COMPOSE["volumes"].keys()
    assert settings.models == Path("/models")
    for place in (settings.jobs_dir, settings.indexes):
        assert place.parent == Path("/data"), place
    owner = SERVICES[service]["user"]
    assert f"\nCOPY --chown={owner} models /models\n" in last_stage(), "a new volume begins with what ships"
    user, group = owner.split(":")
    [made] = re.findall(rf"install -d -o {user} -g {group} (.*)$", last_stage(), re.MULTILINE)
    assert {"/data", "/models"} <= set(made.split())


def environment_of(service: str) -> list[tuple[str, str]]:
    return [*image_environment().items(), *SERVICES[service]["environment"].items()]


def image_environment() -> dict[str, str]:
    """What the last stage of the Dockerfile sets."""
    variables = re.search(r"^ENV (.*?[^\\])$", last_stage(), re.MULTILINE | re.DOTALL)
    assert variables
    return dict(word.split("=", 1) for word in variables[1].replace("\\\n", " ").split())


def last_stage() -> str:
    return (ROOT / "Dockerfile").read_text(encoding="utf-8").rpartition("\nFROM ")[2]


@pytest.mark.parametrize("service", ["server", "server-gpu"])
def test_running_replies_have_time_to_finish(service: str) -> None:
    patience = float(SERVICES[service]["stop_grace_period"].removesuffix("s"))

    assert patience > Settings().drain_seconds


def test_the_image_runs_as_a_user_by_number() -> None:
    assert re.search(r"^USER [1-9]\d*:[1-9]\d*$", last_stage(), re.MULTILINE)


def test_the_image_and_the_compose_file_ask_for_health_in_the_same_way() -> None:
    probe = re.search(r"HEALTHCHECK .*?CMD (\[.*?\])$", last_stage(), re.MULTILINE | re.DOTALL)

    assert probe
    assert ["CMD", *yaml.safe_load(probe[1])] == SERVICES["server"]["healthcheck"]["test"]


def test_what_the_image_copies_exists_and_reaches_the_builder() -> None:
    sources = re.findall(r"^COPY ([^-]\S*) ", (ROOT / "Dockerfile").read_text(encoding="utf-8"), re.MULTILINE)
    ignored = (ROOT / ".dockerignore").read_text(encoding="utf-8").splitlines()

    assert {"chatbot", "server", "migrations", "models", "pyproject.toml"} <= set(sources)
    for source in sources:
        assert (ROOT / source).exists(), source
        assert f"!{source}" in ignored, source


# --- what must not be in the tree -----------------------------------------------------------------

# Each pattern has a character class, so that this file does not match itself.
REGISTRIES = r"pyp[i]\.org|pythonh[o]sted\.org|npmj[s]\.(org|com)|deb\.deb[i]an\.org|download\.pytorch\.[o]rg"
MACHINE_PATHS = r"/w[o]rk/(main|shared)|/r[o]ot/|/h[o]me/\w+/|/[o]pt/(pypi|wheels)"


def tracked() -> list[Path]:
    """Files that git has or would take."""
    listing = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    if listing.returncode:
        pytest.skip("not a git checkout")
    return [ROOT / name for name in listing.stdout.split("\0") if name and (ROOT / name).is_file()]


def test_no_registry_host_or_machine_path_is_in_the_tree() -> None:
    pattern = re.compile(f"{REGISTRIES}|{MACHINE_PATHS}".encode())
    slips = [
        f"{file.relative_to(ROOT)}: {slip[0]!r}"
        for file in tracked()
        for slip in pattern.finditer(file.read_bytes())
    ]

    assert slips == []


def test_only_a_model_may_be_large() -> None:
    large = [file for file in tracked() if file.stat().st_size > 3_000_000 and file.suffix != ".safetensors"]

    assert large == []
