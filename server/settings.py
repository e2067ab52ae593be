"""Every setting of the server, in one table.

A setting is given as a flag (`--database-url`), as an environment variable (`TURNWISE_DATABASE_URL`) or not
at all; the flag wins over the variable, the variable over the default. Nothing is read at import and
nothing else in the server reads the environment.
"""

from __future__ import annotations

import argparse
import os
import re
from collections.abc import Iterable, Mapping
from ipaddress import ip_interface, ip_network
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

PREFIX = "TURNWISE_"


class SettingsError(ValueError):
    """Settings that cannot be used; `problems` has one line for each, naming where the value came from."""

    def __init__(self, problems: Iterable[str]) -> None:
        self.problems = tuple(problems)
        super().__init__("\n".join(self.problems))


def _split(value: object) -> object:
    """`"a, b"` → `("a", "b")`: lists are written with commas in flags and variables."""
    if isinstance(value, str):
        return tuple(part.strip() for part in value.split(",") if part.strip())
    return value


def _origin(value: str) -> str:
    """An origin as browsers write it: written in any other way it would be nobody's."""
    scheme, _, rest = value.lower().partition("://")
    host = rest.removesuffix("/").removesuffix({"http": ":80", "https": ":443"}.get(scheme, "/"))
    if not re.fullmatch(r"[a-z][a-z0-9+.-]*", scheme) or not re.fullmatch(r"[!-~]+", host):
        raise ValueError(f"{value} is no origin, such as https://shop.example")
    if set(host) & set("/?#@*"):
        raise ValueError(f"{value} is more or less than an origin, such as https://shop.example")
    if value != f"{scheme}://{host}":
        raise ValueError(f"browsers write {value} as {scheme}://{host}")
    return value


def _proxy(value: str) -> str:
    """An address, or a network without an address in it: 10.1.0.0/16."""
    try:
        meant = ip_network(value, strict=False)
    except ValueError:
        raise ValueError(f"{value} is neither an address nor a network") from None
    if "/" in value and str(meant.network_address) != str(ip_interface(value).ip):
        raise ValueError(f"{value} is an address in the network {meant}: write one or the other")
    return value


Origins = Annotated[tuple[Annotated[str, AfterValidator(_origin)], ...], BeforeValidator(_split)]
Proxies = Annotated[tuple[Annotated[str, AfterValidator(_proxy)], ...], BeforeValidator(_split)]
Files = Annotated[tuple[Path, ...], BeforeValidator(_split)]


class Settings(BaseModel):
    """What one server process is told. Times are in seconds."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    host: str = Field("127.0.0.1", description="address to listen on; 0.0.0.0 for every IPv4 interface")
    port: int = Field(8000, ge=0, le=65535, description="port to listen on; 0 lets the system choose one")
    database_url: str = Field(
        "sqlite:///turnwise.db",
        repr=False,
        description="database, as sqlite:///file.db or postgresql://user:password@host/name",
    )
    models: Path | None = Field(
        None, description="model directory, or a directory of them; left out, the model that ships"
    )
    device: Literal["auto", "cpu", "cuda"] = Field(
        "auto", description="where the model runs; auto takes a GPU if there is one"
    )
    precision: Literal["auto", "float32", "int8"] = Field(
        "auto", description="what the model computes in; auto and int8 take 8 bits where that can be done"
    )
    engine: Literal["process", "thread"] = Field(
        "process",
        description="what makes the replies: a process of its own, or, to save memory, a thread",
    )
    rows: int = Field(
        64, ge=1, le=4096, description="sequences decoded at the same time; a beam takes several"
    )
    waiting: int = Field(
        256, ge=0, le=65536, description="replies that may wait for a row; more are told busy"
    )
    kept_mib: int = Field(
        64,
        ge=0,
        le=1_048_576,
        description="MiB of memory for the states of conversations between their replies; 0 keeps none",
    )
    step_seconds: float = Field(
        30.0,
        gt=0,
        le=3600,
        description="time that one step of the model may take before who makes it is given up and replaced",
    )
    threads: int = Field(
        0, ge=0, le=1024, description="threads for the model's arithmetic; 0 is one less than the cores"
    )
    max_text: int = Field(4000, ge=1, le=16000, description="longest message of a visitor, in code points")
    max_messages: int = Field(2000, ge=2, le=100_000, description="messages one conversation may hold")
    max_connections: int = Field(2000, ge=1, le=1_000_000, description="chat sockets open at the same time")
    connections_per_address: int = Field(
        1000,
        ge=1,
        le=1_000_000,
        description="chat sockets, HTTP connections, and replies in the making, each, for one address",
    )
    visitors_per_address: int = Field(
        3000, ge=1, le=1_000_000, description="new visitors in a minute from one address"
    )
    requests_per_address: int = Field(
        6000, ge=1, le=10_000_000, description="HTTP requests in a minute from one address; more get 429"
    )
    replies_per_visitor: int = Field(
        8, ge=1, le=65536, description="replies that one visitor may have in the making; more are told busy"
    )
    frames_per_second: float = Field(
        500.0, ge=1, le=1_000_000, description="frames read from one chat socket; more wait unread"
    )
    sockets_per_conversation: int = Field(
        8, ge=1, le=1024, description="sockets that may follow one conversation; the oldest gives way"
    )
    abstain_below: float = Field(
        0.0,
        ge=0,
        le=1,
        description="confidence under which the bot says that it is not sure and offers a person; 0: never",
    )
    abstain_words: str = Field(
        "I am not sure about that. Would you like to talk to a person?",
        min_length=1,
        max_length=1000,
        description="what it says then",
    )
    replies_per_key: int = Field(
        8, ge=1, le=4096, description="replies that one API key may have in the making; more are told busy"
    )
    mailbox: int = Field(
        256,
        ge=16,
        le=65536,
        description="messages held for a socket that reads too slowly before it is closed",
    )
    request_seconds: float = Field(
        8.0, gt=0, le=600, description="time from a connection to the end of its request's headers"
    )
    hello_seconds: float = Field(10.0, gt=0, le=600, description="time from the connection to its hello")
    ping_seconds: float = Field(
        15.0,
        gt=0,
        le=600,
        description="time between pings, and for their answer; a dead peer is gone after both",
    )
    drain_seconds: float = Field(
        8.0,
        ge=0,
        le=3600,
        description="time that running replies get to finish when the server is told to stop",
    )
    allowed_origins: Origins = Field(
        (), description="other origins whose pages may open a chat, such as https://shop.example; with commas"
    )
    programs: Literal["loopback", "anyone", "nobody"] = Field(
        "loopback",
        description="which programs, that is clients that send no Origin, may begin a chat without a token",
    )
    trusted_proxies: Proxies = Field(
        (), description="addresses or networks whose X-Forwarded-For and -Proto are believed; with commas"
    )
    replay_files: Files = Field(
        (), description="the data that the model was trained on, which retraining learns again; with commas"
    )
    dev_files: Files = Field(
        (), description="transcripts by which retraining judges both models; with commas"
    )
    jobs_dir: Path = Field(
        Path("jobs"), description="directory in which retraining works; it holds texts while it does"
    )
    job_threads: int = Field(0, ge=0, le=1024, description="threads of a retraining; 0 is half of the cores")
    indexes_dir: Path | None = Field(
        None,
        description="directory with indexes of what models learned; left out, indexes beside --jobs-dir",
    )
    metrics: Literal["open", "key", "off"] = Field(
        "open", description="who may read /metrics: anyone, programs with an API key, or nobody"
    )
    log_level: Literal["debug", "info", "warning", "error"] = Field(
        "info", description="least level that is logged"
    )

    @property
    def indexes(self) -> Path:
        """The directory that `indexes_dir` means."""
        return self.indexes_dir or self.jobs_dir.parent / "indexes"


def flag(name: str) -> str:
    """The command line's name of a setting: `database_url` → `--database-url`."""
    return "--" + name.replace("_", "-")


def variable(name: str) -> str:
    """The environment's name of a setting: `database_url` → `TURNWISE_DATABASE_URL`."""
    return PREFIX + name.upper()


def default_text(name: str) -> str:
    """How a setting's default is written in help and documentation; empty where there is none."""
    default = Settings.model_fields[name].default
    if default is None or default == ():
        return ""
    return str(default)


def add_arguments(parser: argparse.ArgumentParser, names: Iterable[str] | None = None) -> None:
    """Add the flags of all settings, or of `names`. One that is not given leaves no attribute."""
    for name in Settings.model_fields if names is None else names:
        default = default_text(name)
        description = Settings.model_fields[name].description or ""
        text = f"{description} (default: {default})" if default else description
        parser.add_argument(
            flag(name), dest=name, default=argparse.SUPPRESS, metavar="VALUE", help=text.replace("%", "%%")
        )


def load(arguments: argparse.Namespace | None = None, environ: Mapping[str, str] | None = None) -> Settings:
    """Settings from parsed flags and the environment.

    Raises `SettingsError` with all problems at once: values out of range and `TURNWISE_*` variables that
    are no setting (a misspelled limit would otherwise be a limit that does not hold).
    """
    environ = os.environ if environ is None else environ
    known = {variable(name): name for name in Settings.model_fields}
    problems = [
        f"{key}: no such setting" for key in sorted(environ) if key.startswith(PREFIX) and key not in known
    ]
    values: dict[str, Any] = {name: environ[key] for key, name in known.items() if key in environ}
    sources = {name: variable(name) for name in values}
    for name, value in vars(arguments or argparse.Namespace()).items():
        if name in Settings.model_fields:
            values[name] = value
            sources[name] = flag(name)
    try:
        settings = Settings.model_validate(values)
    except ValidationError as error:
        problems += [
            f"{sources[str(each['loc'][0])]}: {each['msg'].removeprefix('Value error, ')}"
            for each in error.errors(include_input=False)
        ]
        raise SettingsError(problems) from None
    if problems:
        raise SettingsError(problems)
    return settings
