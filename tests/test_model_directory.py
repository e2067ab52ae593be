"""The model directory: sealed whole or not at all, loaded as it was sealed or refused with the reason."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
import safetensors.torch
import torch

from chatbot import model_directory
from chatbot.model import Seq2Seq
from chatbot.model_directory import SHIPPED, ModelDirectoryError, find_model, load, seal
from chatbot.options import DecodingOptions
from chatbot.tokenizer import Tokenizer
from tests.batching import ask

Damage = Callable[[Path], object]
FINGERPRINTED = ("config.json", "model.safetensors", "tokenizer.json")


@pytest.fixture
def copy(tiny_model_dir: Path, tmp_path: Path) -> Path:
    """A sealed model to do damage to."""
    return Path(shutil.copytree(tiny_model_dir, tmp_path / "copy"))


def sums_of(path: Path) -> str:
    names = sorted(entry.name for entry in path.iterdir() if entry.name != "SHA256SUMS")
    return "".join(f"{hashlib.sha256((path / name).read_bytes()).hexdigest()}  {name}\n" for name in names)


def forge(path: Path) -> None:
    """Write hashes that fit, so that only a look inside can find the fault."""
    (path / "SHA256SUMS").write_text(sums_of(path))


# ---- Sealing and loading -----------------------------------------------------------------------------------


def test_what_was_sealed_is_loaded(tiny_model: Seq2Seq, tiny_tokenizer: Tokenizer, tmp_path: Path) -> None:
    defaults = DecodingOptions(decoding="beam", beam_size=5, length_penalty=0.8)
    metrics = {"dev": {"perplexity_word": 12.5}, "note": "Zoë"}
    fingerprint = seal(
        tmp_path / "models" / "new",
        model=tiny_model,
        tokenizer=tiny_tokenizer,
        defaults=defaults,
        metrics=metrics,
        card="# A model — été\n",
    )
    bundle = load(tmp_path / "models" / "new")
    assert (bundle.defaults, bundle.metrics, bundle.card) == (defaults, metrics, "# A model — été\n")
    assert (bundle.config, bundle.fingerprint) == (tiny_model.config, fingerprint)
    assert not bundle.model.training
    for name, value in tiny_model.state_dict().items():
        assert torch.equal(bundle.model.state_dict()[name], value)
    assert bundle.tokenizer.encode("A latte, please.") == tiny_tokenizer.encode("A latte, please.")
    assert ask(bundle, DecodingOptions(max_tokens=8)).token_ids


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_loaded_as_float32(
    tiny_model: Seq2Seq, tiny_tokenizer: Tokenizer, tmp_path: Path, dtype: torch.dtype
) -> None:
    seal_with(tmp_path / "half", tiny_model, tiny_tokenizer, dtype=dtype)
    bundle = load(tmp_path / "half")
    for name, value in tiny_model.state_dict().items():
        assert torch.equal(bundle.model.state_dict()[name], value.to(dtype).float())
    stored = (tmp_path / "half" / "model.safetensors").stat().st_size
    assert stored < 0.6 * 4 * sum(p.numel() for p in tiny_model.parameters()) + 4096


def seal_with(
    path: Path,
    model: Seq2Seq,
    tokenizer: Tokenizer,
    *,
    dtype: torch.dtype = torch.float32,
    defaults: DecodingOptions | None = None,
    metrics: dict[str, object] | None = None,
) -> str:
    return seal(
        path,
        model=model,
        tokenizer=tokenizer,
        defaults=defaults or DecodingOptions(),
        metrics=metrics or {},
        card="",
        dtype=dtype,
    )


def test_the_hashes_are_those_of_sha256sum(tiny_model_dir: Path) -> None:
    assert (tiny_model_dir / "SHA256SUMS").read_text() == sums_of(tiny_model_dir)
    if shutil.which("sha256sum"):
        subprocess.run(["sha256sum", "--check", "--strict", "SHA256SUMS"], cwd=tiny_model_dir, check=True)


def test_the_fingerprint_is_the_hash_of_what_changes_a_reply(
    tiny_model: Seq2Seq, tiny_tokenizer: Tokenizer, tiny_model_dir: Path, tmp_path: Path
) -> None:
    lines = sums_of(tiny_model_dir).splitlines(keepends=True)
    own = [line for line in lines if line.split()[1] in FINGERPRINTED]
    fingerprint = load(tiny_model_dir).fingerprint
    assert fingerprint == "tw-" + hashlib.sha256("".join(own).encode()).hexdigest()[:16]
    other_defaults = DecodingOptions(decoding="beam")
    assert fingerprint == seal_with(
        tmp_path / "same", tiny_model, tiny_tokenizer, defaults=other_defaults, metrics={"a": 1}
    )
    with torch.no_grad():
        tiny_model.bias[7] += 0.5
    assert fingerprint != seal_with(tmp_path / "other", tiny_model, tiny_tokenizer)


def test_a_model_is_never_overwritten(tiny_model: Seq2Seq, tiny_tokenizer: Tokenizer, copy: Path) -> None:
    before = sums_of(copy)
    with pytest.raises(FileExistsError, match="never overwritten"):
        seal_with(copy, tiny_model, tiny_tokenizer)
    assert sums_of(copy) == before
    assert [entry.name for entry in copy.parent.iterdir()] == ["copy"]


@pytest.mark.parametrize("metrics", [{"loss": float("nan")}, {"loss": {1, 2}}])
def test_what_cannot_be_written_leaves_nothing_behind(
    tiny_model: Seq2Seq, tiny_tokenizer: Tokenizer, tmp_path: Path, metrics: dict[str, object]
) -> None:
    with pytest.raises((ValueError, TypeError)):
        seal_with(tmp_path / "bad", tiny_model, tiny_tokenizer, metrics=metrics)
    assert not list(tmp_path.iterdir())


def test_a_model_that_would_not_load_is_not_sealed(
    tiny_model: Seq2Seq, tiny_tokenizer: Tokenizer, tmp_path: Path
) -> None:
    with torch.no_grad():
        tiny_model.bias[5] = float("nan")
    with pytest.raises(ModelDirectoryError, match="bias holds values that are not finite"):
        seal_with(tmp_path / "bad", tiny_model, tiny_tokenizer)
    assert not list(tmp_path.iterdir())


def test_a_value_that_float16_cannot_hold_is_not_sealed(
    tiny_model: Seq2Seq, tiny_tokenizer: Tokenizer, tmp_path: Path
) -> None:
    with torch.no_grad():
        tiny_model.bias[5] = 1e6
    with pytest.raises(ModelDirectoryError, match="not finite"):
        seal_with(tmp_path / "bad", tiny_model, tiny_tokenizer, dtype=torch.float16)


def test_nothing_changes_between_the_check_and_the_use(
    tiny_model_dir: Path, copy: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every file is read once: whoever overwrites it after that is too late."""
    read = model_directory._read

    def read_and_overwrite(path: Path, name: str) -> bytes:
        data = read(path, name)
        (path / name).write_bytes(b"overwritten")
        return data

    expected = load(tiny_model_dir)
    monkeypatch.setattr(model_directory, "_read", read_and_overwrite)
    bundle = load(copy)
    assert bundle.fingerprint == expected.fingerprint
    assert torch.equal(bundle.model.bias, expected.model.bias)
    monkeypatch.undo()
    with pytest.raises(ModelDirectoryError):
        load(copy)


# ---- Damage ------------------------------------------------------------------------------------------------

FILES = (
    "config.json",
    "model.safetensors",
    "tokenizer.json",
    "generation_config.json",
    "metrics.json",
    "README.md",
    "SHA256SUMS",
)


@pytest.mark.parametrize("name", FILES)
def test_a_missing_file_is_named(copy: Path, name: str) -> None:
    (copy / name).unlink()
    with pytest.raises(ModelDirectoryError, match=f"{name} is missing"):
        load(copy)


@pytest.mark.parametrize("name", FILES[:-1])
def test_an_altered_file_is_named(copy: Path, name: str) -> None:
    data = bytearray((copy / name).read_bytes())
    data[len(data) // 2] ^= 1
    (copy / name).write_bytes(data)
    with pytest.raises(ModelDirectoryError, match=f"{name} is not what was sealed"):
        load(copy)


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("kind", ["symlink", "fifo", "directory"])
def test_only_plain_files_are_read(copy: Path, name: str, kind: str) -> None:
    moved = copy.parent / "moved"
    (copy / name).rename(moved)
    if kind == "symlink":
        (copy / name).symlink_to(moved)
    elif kind == "fifo":
        os.mkfifo(copy / name)
    else:
        (copy / name).mkdir()
    with pytest.raises(ModelDirectoryError, match=f"{name} .*plain file"):
        load(copy)


@pytest.mark.parametrize(
    "name", ["model.pt", "pytorch_model.bin", "weights.pkl", "model.py", ".hidden", "sub"]
)
def test_what_could_run_does_not_belong_there(copy: Path, name: str) -> None:
    (copy / name).write_bytes(b"\x80\x04.")
    forge(copy)
    with pytest.raises(ModelDirectoryError, match=f"'{name}' does not belong"):
        load(copy)


def test_a_file_that_is_not_listed_is_refused_and_one_that_is_may_stay(copy: Path) -> None:
    (copy / "samples.txt").write_text("> Hello\nHi!\n")
    with pytest.raises(ModelDirectoryError, match=r"'samples.txt' is not listed in SHA256SUMS"):
        load(copy)
    forge(copy)
    load(copy)


@pytest.mark.parametrize(
    "line",
    [
        "nonsense",
        "0" * 64 + "  ../config.json",
        "0" * 64 + "  /etc/passwd",
        "0" * 64 + "  config.json",
        "0" * 63 + "  new.json",
        "0" * 64 + " new.json",
        "G" * 64 + "  new.json",
        "0" * 64 + "  .",
        "",
    ],
)
def test_a_broken_list_of_hashes_is_refused(copy: Path, line: str) -> None:
    with (copy / "SHA256SUMS").open("a") as stream:
        stream.write(line + "\n")
    with pytest.raises(ModelDirectoryError, match=r"SHA256SUMS, line 7"):
        load(copy)


def test_a_listed_file_that_is_not_there_is_missing(copy: Path) -> None:
    with (copy / "SHA256SUMS").open("a") as stream:
        stream.write("0" * 64 + "  samples.txt\n")
    with pytest.raises(ModelDirectoryError, match=r"samples.txt is missing"):
        load(copy)


def test_a_required_file_has_to_be_listed(copy: Path) -> None:
    lines = (copy / "SHA256SUMS").read_text().splitlines(keepends=True)
    (copy / "SHA256SUMS").write_text("".join(line for line in lines if "README.md" not in line))
    with pytest.raises(ModelDirectoryError, match=r"README.md' is not listed"):
        load(copy)


def rewrite_json(name: str, **changes: object) -> Damage:
    def damage(path: Path) -> None:
        values = json.loads((path / name).read_text())
        (path / name).write_text(json.dumps({**values, **changes}))

    return damage


def rewrite(name: str, data: bytes) -> Damage:
    return lambda path: (path / name).write_bytes(data)


def rewrite_weights(change: Callable[[dict[str, torch.Tensor]], object]) -> Damage:
    def damage(path: Path) -> None:
        weights = safetensors.torch.load_file(path / "model.safetensors")
        change(weights)
        safetensors.torch.save_file(weights, path / "model.safetensors")

    return damage


def truncate(path: Path) -> None:
    data = (path / "model.safetensors").read_bytes()
    (path / "model.safetensors").write_bytes(data[:-100])


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (rewrite_json("config.json", dropouts=0.2), "config.json cannot be used: dropouts: Extra inputs"),
        (rewrite_json("config.json", hidden_size=-1), "config.json cannot be used: hidden_size"),
        (rewrite_json("config.json", format="turnwise-9"), "config.json cannot be used: format"),
        (rewrite("config.json", b"[]"), "config.json cannot be used"),
        (rewrite("config.json", b"\xff"), "config.json cannot be used"),
        (rewrite_json("config.json", hidden_size=17), "has shape .*, config.json calls for"),
        (rewrite_json("config.json", embedding_size=65536), "has shape .*, config.json calls for"),
        (rewrite_json("config.json", decoder_layers=3), "is without top.layers.1.bias_hh_l0"),
        (rewrite_json("config.json", vocab_size=331), "json has 330 tokens, config.json says 331"),
        (rewrite("tokenizer.json", b"{}"), "tokenizer.json cannot be used: not a tokenizer"),
        (rewrite("tokenizer.json", b"\xff"), "tokenizer.json cannot be used: it is not UTF-8"),
        (
            rewrite_json("generation_config.json", heat=1),
            "generation_config.json cannot be used: heat: no such",
        ),
        (
            rewrite_json("generation_config.json", top_p=7),
            "generation_config.json cannot be used: top_p: must be",
        ),
        (rewrite("metrics.json", b"[1]"), "metrics.json cannot be used: it is not a JSON object"),
        (rewrite("metrics.json", b'{"loss": NaN}'), "metrics.json cannot be used: NaN is not JSON"),
        (rewrite("metrics.json", b"[" * 60_000), "metrics.json cannot be used: it is nested too deeply"),
        (rewrite("README.md", b"\xff\xfe"), "README.md cannot be used: it is not UTF-8"),
        (rewrite("model.safetensors", b"\x80\x04pickle"), "model.safetensors cannot be used"),
        (rewrite("model.safetensors", b""), "model.safetensors cannot be used"),
        (truncate, "model.safetensors cannot be used"),
        (rewrite_weights(lambda w: w["bias"].fill_(torch.nan)), "bias holds values that are not finite"),
        (rewrite_weights(lambda w: w["bias"][3].fill_(torch.inf)), "bias holds values that are not"),
        (rewrite_weights(lambda w: w.pop("bias")), "is without bias, which config.json calls for"),
        (rewrite_weights(lambda w: w.update(extra=torch.ones(2))), "has extra, which config.json does"),
        (rewrite_weights(lambda w: w.update(bias=w["bias"].double())), "bias is torch.float64, not"),
        (rewrite_weights(lambda w: w.update(bias=w["bias"].int())), "bias is torch.int32, not float32"),
    ],
)
def test_contents_that_make_no_model_are_refused_in_words(copy: Path, damage: Damage, reason: str) -> None:
    damage(copy)
    forge(copy)
    with pytest.raises(ModelDirectoryError, match=reason) as caught:
        load(copy)
    assert str(caught.value).startswith(f"{copy}: ")


def test_a_file_beyond_all_measure_is_not_read(copy: Path) -> None:
    os.truncate(copy / "README.md", 2**40)
    with pytest.raises(ModelDirectoryError, match=r"README.md is larger than"):
        load(copy)


@pytest.mark.parametrize("name", ["nothing", "file"])
def test_what_is_no_directory_is_refused(tmp_path: Path, name: str) -> None:
    (tmp_path / "file").write_text("")
    for function in (load, find_model):
        with pytest.raises(ModelDirectoryError, match="there is no such directory"):
            function(tmp_path / name)


def test_a_config_of_any_size_costs_nothing_before_its_weights_are_compared(copy: Path) -> None:
    """The largest model that a config may describe would not fit into any memory here."""
    sizes = dict.fromkeys(("embedding_size", "encoder_size", "state_size", "hidden_size"), 65536)
    rewrite_json("config.json", **sizes)(copy)
    forge(copy)
    with pytest.raises(ModelDirectoryError, match="has shape"):
        load(copy)


# ---- Finding a model ---------------------------------------------------------------------------------------


def test_a_model_directory_means_itself(tiny_model_dir: Path) -> None:
    assert find_model(tiny_model_dir) == tiny_model_dir


def test_the_only_model_of_a_directory_is_found(copy: Path) -> None:
    (copy.parent / ".copy.0123").mkdir()
    (copy.parent / ".copy.0123" / "SHA256SUMS").write_text("")
    (copy.parent / "notes").mkdir()
    (copy.parent / "notes.txt").write_text("")
    assert find_model(copy.parent) == copy


def test_of_several_models_the_active_one_is_found(copy: Path) -> None:
    shutil.copytree(copy, copy.parent / "second")
    with pytest.raises(ModelDirectoryError, match=r"several models \(copy, second\)"):
        find_model(copy.parent)
    (copy.parent / "active").write_text("second\n")
    assert find_model(copy.parent) == copy.parent / "second"


@pytest.mark.parametrize("name", ["third", "", "../models", "/", ".", "copy/../copy", ".hidden", "a\x00b"])
def test_an_active_file_names_a_model_beside_it(copy: Path, name: str) -> None:
    (copy.parent / "active").write_text(name)
    with pytest.raises(ModelDirectoryError, match="not a model in it"):
        find_model(copy.parent)


def test_a_directory_without_models_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelDirectoryError, match="holds no model"):
        find_model(tmp_path)


def test_the_shipped_models_are_in_the_project() -> None:
    assert Path(__file__).resolve().parent.parent / "models" == SHIPPED


def test_the_documentation_names_every_file() -> None:
    page = (Path(__file__).resolve().parent.parent / "docs" / "model-directory.md").read_text(
        encoding="utf-8"
    )
    assert tuple(re.findall(r"^\| `([\w.]+)` \|", page, re.MULTILINE)) == FILES
