"""Training: it learns, and a run that was killed goes on to the same losses."""

from __future__ import annotations

import json
import os
import re
import resource
import shutil
import signal
import subprocess
import sys
from argparse import ArgumentParser
from datetime import timedelta
from importlib import import_module
from pathlib import Path
from threading import Event
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import distributed

from chatbot.model import Seq2Seq
from chatbot.model_directory import load
from chatbot.tokenizer import Tokenizer
from chatbot.transcripts import write_transcripts
from tests.small import SMALL, orders, transcript
from training.__main__ import main
from training.card import model_card
from training.card_command import read_script
from training.checkpoint import OtherModel
from training.config import ConfigError, TrainConfig, load_config
from training.distributed import LONGEST_WAIT, join_world
from training.mean import RunningMean
from training.train import Diverged, NothingToLearn, Stopped, Trained, name_of, names_of, train

SMALL_RUN: dict[str, Any] = {
    "model": SMALL.model_dump() | {"dropout": 0.2, "max_turn_tokens": 64},
    "batch_tokens": 800,
    "learning_rate": 0.01,
    "warmup_steps": 5,
    "max_steps": 12,
    "evaluate_every": 5,
    "checkpoint_minutes": 0,
    "precision": "fp32",
    "device": "cpu",
}


@pytest.fixture
def files(tmp_path: Path) -> tuple[Path, Path]:
    write_transcripts(tmp_path / "train.jsonl.gz", orders(120, seed=1))
    write_transcripts(tmp_path / "dev.jsonl.gz", orders(30, seed=2))
    return tmp_path / "train.jsonl.gz", tmp_path / "dev.jsonl.gz"


def run(
    files: tuple[Path, Path], work: Path, *, resume: bool = False, stop: Event | None = None, **changes: Any
) -> Trained:
    config = TrainConfig.model_validate(SMALL_RUN | changes)
    return train([files[0]], [files[1]], work, config, resume=resume, quiet=True, stop=stop)


def losses(work: Path) -> list[tuple[int, float]]:
    """Every training loss that was logged, by step; one file for each time the run was taken up."""
    found: list[tuple[int, float]] = []
    for file in (work / "tensorboard").iterdir():
        events = EventAccumulator(str(file))
        events.Reload()
        if "train/loss" in events.Tags()["scalars"]:
            found += [(event.step, event.value) for event in events.Scalars("train/loss")]
    return sorted(found)


def tensors(work: Path) -> dict[str, torch.Tensor]:
    return load_file(work / "last" / "tensors.safetensors")


def test_it_learns_to_take_orders(files: tuple[Path, Path], tmp_path: Path) -> None:
    trained = run(files, tmp_path / "run", max_steps=200, evaluate_every=100, checkpoint_minutes=5)
    (perplexity,) = trained.perplexity_word.values()
    assert perplexity < 8.0  # a uniform guess among the few dozen words of this world is above 50
    first, last = losses(tmp_path / "run")[0][1], losses(tmp_path / "run")[-1][1]
    assert last < first / 4


def test_a_stopped_run_goes_on_to_the_same_losses(files: tuple[Path, Path], tmp_path: Path) -> None:
    run(files, tmp_path / "whole")
    always = Event()
    always.set()
    for step in range(1, 13):  # stopped after every single update
        with pytest.raises(Stopped, match=f"after step {step};"):
            run(files, tmp_path / "parts", resume=step > 1, stop=always)
    run(files, tmp_path / "parts", resume=True)
    assert losses(tmp_path / "parts") == losses(tmp_path / "whole")
    whole, parts = tensors(tmp_path / "whole"), tensors(tmp_path / "parts")
    assert whole.keys() == parts.keys()
    assert all(torch.equal(whole[name], parts[name]) for name in whole)


@pytest.mark.parametrize("changes", [{"scheduled_sampling": 0.5}, {"positions": "one"}], ids=str)
def test_a_variation_on_teacher_forcing_acts_and_learns(
    files: tuple[Path, Path], tmp_path: Path, changes: dict[str, Any]
) -> None:
    run(files, tmp_path / "plain", max_steps=4)
    run(files, tmp_path / "varied", max_steps=80, evaluate_every=80, checkpoint_minutes=5, **changes)
    varied = losses(tmp_path / "varied")
    assert sum(loss for _, loss in varied[-8:]) / 8 < 0.75 * varied[0][1]
    assert varied[:4] != losses(tmp_path / "plain")


@pytest.mark.parametrize("before", ["none", "other"])
def test_with_another_dev_part_the_best_is_chosen_anew(
    files: tuple[Path, Path], tmp_path: Path, before: str
) -> None:
    """What an earlier dev part said of the model means nothing to this one."""
    write_transcripts(tmp_path / "easy.jsonl", [transcript("hello", "", name="easy")])
    earlier = {"none": [], "other": [tmp_path / "easy.jsonl"]}[before]
    config = TrainConfig.model_validate(SMALL_RUN | {"max_steps": 5, "patience": 1})
    first = train([files[0]], earlier, tmp_path / "run", config, quiet=True)
    resumed = run(files, tmp_path / "run", resume=True, max_steps=12, patience=1)
    assert first.progress.best < resumed.progress.best
    assert resumed.progress.best_step == resumed.progress.step == 12
    again = run(files, tmp_path / "run", resume=True, max_steps=12, patience=1)
    assert again.progress.best == resumed.progress.best


def test_a_checkpoint_that_has_no_room_ends_the_run_in_words(
    files: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The limit of a file's size stands for a full disk. The checkpoint before is there whole."""
    at_once = Event()
    at_once.set()
    with pytest.raises(Stopped):
        run(files, tmp_path / "model.run", stop=at_once)
    kept = tensors(tmp_path / "model.run")
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    before = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, limits[1]))
    try:
        status = main(arguments(files, tmp_path / "model", "--resume"))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, before)
    assert status == 1
    assert "no checkpoint could be written" in capsys.readouterr().err
    found = tensors(tmp_path / "model.run")
    assert all(torch.equal(found[name], kept[name]) for name in kept)
    assert sorted(path.name for path in (tmp_path / "model.run").iterdir() if path.name.startswith(".")) == []


def test_the_running_mean_is_sealed_and_resumed(files: tuple[Path, Path], tmp_path: Path) -> None:
    whole = run(files, tmp_path / "whole", averaging=0.9)
    always = Event()
    always.set()
    for step in range(1, 13):
        with pytest.raises(Stopped):
            run(files, tmp_path / "parts", resume=step > 1, stop=always, averaging=0.9)
    parts = run(files, tmp_path / "parts", resume=True, averaging=0.9)
    plain = run(files, tmp_path / "plain")
    for name, value in whole.model.state_dict().items():
        assert torch.equal(value, parts.model.state_dict()[name])
    assert not torch.equal(whole.model.bias, plain.model.bias)
    assert torch.equal(tensors(tmp_path / "whole")["model.bias"], tensors(tmp_path / "plain")["model.bias"])


def test_the_running_mean_is_its_equation() -> None:
    model = Seq2Seq(SMALL)
    mean, expected = RunningMean(model, 0.5), model.bias.detach().clone()
    for updates in range(12):
        with torch.no_grad():
            model.bias.add_(torch.randn(len(model.bias)))
        mean.update(model, updates)
        decay = min(0.5, (1 + updates) / (10 + updates))
        expected = decay * expected + (1 - decay) * model.bias.detach()
    torch.testing.assert_close(mean.model.bias, expected)


def test_subword_dropout_shows_texts_in_many_spellings(files: tuple[Path, Path], tmp_path: Path) -> None:
    plain, varied = tmp_path / "plain", tmp_path / "varied"
    run(files, plain, max_steps=1)
    run(files, varied, max_steps=1, subword_dropout=0.3, subword_copies=3)
    sizes = [np.load(next((work / "corpus").glob("*/tokens.npy"))).size for work in (plain, varied)]
    assert sizes[1] > 3.2 * sizes[0]  # three times as many texts, in more tokens
    spellings = Tokenizer.from_json((varied / "tokenizer.json").read_text())
    assert spellings.encode("green tea") == spellings.encode(
        "green tea"
    )  # the model's own leaves nothing out


def test_a_run_may_begin_with_another_model(files: tuple[Path, Path], tmp_path: Path) -> None:
    """With all that it knew; and with copying added, it knows hardly less before the first update."""
    assert main(arguments(files, tmp_path / "base", "--set=max_steps=60")) == 0
    base = load(tmp_path / "base")
    (known,) = base.metrics["perplexity_word"].values()
    for name, changes in (("same", {}), ("copying", {"copying": True})):
        config = TrainConfig.model_validate(
            SMALL_RUN | {"model": changes, "max_steps": 1, "learning_rate": 1e-9}
        )
        trained = train([files[0]], [files[1]], tmp_path / name, config, quiet=True, base=base)
        assert trained.model.config.copying is bool(changes)
        assert trained.model.config.hidden_size == SMALL.hidden_size
        assert trained.tokenizer.to_json() == base.tokenizer.to_json()
        (perplexity,) = trained.perplexity_word.values()
        assert perplexity == pytest.approx(known, rel=0.25 if changes else 1e-4)


def test_a_model_to_begin_with_keeps_its_sizes(
    files: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(arguments(files, tmp_path / "base", "--set=max_steps=2")) == 0
    base = ["--base", str(tmp_path / "base")]
    own = ["train", "--train", str(files[0]), "--dev", str(files[1]), "--set=max_steps=2", *base]
    assert main([*own, "--out", str(tmp_path / "two"), "--set=final_replies=5"]) == 0
    two, one = load(tmp_path / "two"), load(tmp_path / "base")
    assert two.metrics["base"] == one.fingerprint
    assert one.fingerprint in two.card
    assert two.metrics["config"]["model"] == one.metrics["config"]["model"]
    assert main([*own, "--out", str(tmp_path / "three"), "--set=model.hidden_size=20"]) == 1
    assert "a model keeps its sizes" in capsys.readouterr().err


def arguments(files: tuple[Path, Path], out: Path, *more: str) -> list[str]:
    settings = [
        f"--set=model.{key}={json.dumps(value)}"
        for key, value in SMALL_RUN["model"].items()
        if key != "format"
    ]
    settings += [f"--set={key}={value}" for key, value in SMALL_RUN.items() if key != "model"]
    parts = [
        "--train",
        str(files[0]),
        "--dev",
        str(files[1]),
        "--out",
        str(out),
        "--set=final_replies=5",
        *settings,
    ]
    return ["train", *parts, *more]


def in_a_process(*arguments: str) -> subprocess.Popen[str]:
    return subprocess.Popen([sys.executable, "-m", "training", *arguments], stderr=subprocess.PIPE, text=True)


def signal_after_step_5(process: subprocess.Popen[str], number: signal.Signals) -> str:
    """Send a signal once the first dev reading is done; what the process says until its end."""
    said = ""
    with process:
        assert process.stderr is not None
        for line in process.stderr:
            said += line
            if line.startswith("step 5 "):
                process.send_signal(number)
    return said


def test_kill_9_then_resume_gives_the_same_model(
    files: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    resumed = arguments(files, tmp_path / "killed", "--json", "--resume")
    process = in_a_process(*resumed)
    signal_after_step_5(process, signal.SIGKILL)
    assert process.returncode == -signal.SIGKILL
    fingerprints = []
    for parts in (resumed, arguments(files, tmp_path / "whole", "--json")):
        assert main(parts) == 0
        fingerprints.append(json.loads(capsys.readouterr().out)["fingerprint"])
    assert fingerprints[0] == fingerprints[1]


def test_the_command_seals_a_model_that_loads(
    files: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "model"
    card = tmp_path / "card.md"
    card.write_text("# Orders\n\nOur own.\n")
    assert main(arguments(files, out, "--card", str(card))) == 0
    bundle = load(out)
    assert bundle.fingerprint in capsys.readouterr().out
    assert bundle.card.startswith("# Orders")
    (figures,) = bundle.metrics["dev"].values()
    (quick,) = bundle.metrics["perplexity_word"].values()
    assert figures["perplexity_word"] == pytest.approx(quick, rel=1e-3)
    assert f"{figures['perplexity_word']:.2f}" in bundle.card
    assert main(arguments(files, out)) == 1
    assert "is there already" in capsys.readouterr().err


def test_sigterm_leaves_a_checkpoint_and_says_how_to_go_on(
    files: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    endless = arguments(files, tmp_path / "model", "--set=max_steps=100000", "--set=epochs=100000")
    process = in_a_process(*endless)
    said = signal_after_step_5(process, signal.SIGTERM)
    assert process.returncode == 1
    assert re.search(r"stopped after step \d+; --resume continues", said)
    assert (tmp_path / "model.run" / "last" / "state.json").exists()
    assert main(endless) == 1  # without --resume
    assert "--resume" in capsys.readouterr().err


def test_two_processes_make_the_same_model(files: tuple[Path, Path], tmp_path: Path) -> None:
    """torchrun: each process takes a part of every batch; the weights agree with one process's."""
    still = ["--set=model.dropout=0", "--set=max_steps=6"]  # dropout draws differ between processes
    assert main(arguments(files, tmp_path / "alone", *still)) == 0
    torchrun = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--standalone",
        "--nproc-per-node",
        "2",
        "-m",
        "training",
    ]
    both = [*torchrun, *arguments(files, tmp_path / "both", *still)]
    done = subprocess.run(
        both, capture_output=True, text=True, check=False, env=os.environ | {"OMP_NUM_THREADS": "1"}
    )
    assert done.returncode == 0, done.stderr
    one, two = tensors(tmp_path / "alone.run"), tensors(tmp_path / "both.run")
    for name in one:
        if name.startswith("model."):
            torch.testing.assert_close(two[name], one[name], rtol=1e-3, atol=1e-4)


def test_processes_wait_for_the_first_longer_than_for_a_sum(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: dict[str, Any] = {}
    waited: list[object] = []
    group = object()

    def new_group(**options: Any) -> object:
        asked.update(options)
        return group

    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setattr("training.distributed.rendezvous", lambda _: iter([(object(), 1, 2)]))
    monkeypatch.setattr("training.distributed.PrefixStore", lambda *_: object())
    for name in ("init_process_group", "destroy_process_group"):
        monkeypatch.setattr(distributed, name, lambda *_, **__: None)
    monkeypatch.setattr(distributed, "new_group", new_group)
    monkeypatch.setattr(distributed, "barrier", waited.append)
    with join_world("cuda") as world:  # without a GPU: none of this needs one
        world.wait()
    assert asked == {"backend": "gloo", "timeout": LONGEST_WAIT}
    assert timedelta(days=1) <= LONGEST_WAIT
    assert waited == [group]


def test_each_learning_setting_matters(files: tuple[Path, Path], tmp_path: Path) -> None:
    base = run(files, tmp_path / "base", max_steps=3)
    settings: tuple[dict[str, Any], ...] = (
        *(
            {"seed": 2},
            {"learning_rate": 0.005},
            {"warmup_steps": 0},
            {"betas": (0.5, 0.6)},
            {"weight_decay": 0.9},
            {"clip_norm": 0.001},
            {"label_smoothing": 0.2},
            {"final_learning_rate": 0.9},
            {"batch_tokens": 400},
            {"precision": "bf16"},
        ),
    )
    for number, changes in enumerate(settings):
        other = run(files, tmp_path / str(number), **({"max_steps": 3} | changes))
        same = all(
            torch.equal(a, b) for a, b in zip(base.model.parameters(), other.model.parameters(), strict=True)
        )
        assert not same, changes


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU here")
@pytest.mark.parametrize(
    "changes",
    [{}, {"cell": "lstm"}, {"cell": "lstm", "turn_reader": "convolutional"}, {"cell": "gru_reset_before"}],
)
def test_a_gpu_learns_in_bf16(changes: dict[str, Any], files: tuple[Path, Path], tmp_path: Path) -> None:
    shape = SMALL.model_dump() | changes
    alone = run(files, tmp_path / "cpu", max_steps=5, precision="fp32", device="cpu", model=shape)
    trained = run(files, tmp_path / "gpu", max_steps=5, precision="bf16", device="cuda", model=shape)
    for name, perplexity in alone.perplexity_word.items():
        assert trained.perplexity_word[name] == pytest.approx(perplexity, rel=0.1)


def test_patience_ends_a_run_that_no_longer_improves(files: tuple[Path, Path], tmp_path: Path) -> None:
    trained = run(
        files,
        tmp_path / "run",
        max_steps=500,
        evaluate_every=2,
        patience=2,
        learning_rate=0.5,
    )
    assert trained.progress.step < 100
    assert trained.progress.step == trained.progress.best_step + 4


def test_a_run_that_diverges_says_so(files: tuple[Path, Path], tmp_path: Path) -> None:
    with pytest.raises(Diverged, match="learning_rate"):
        run(files, tmp_path / "run", learning_rate=1e9, clip_norm=1e9, warmup_steps=0, evaluate_every=3)


def test_diverging_without_a_dev_part_is_no_model_either(files: tuple[Path, Path], tmp_path: Path) -> None:
    wild = {"learning_rate": 1e30, "clip_norm": 1e30, "warmup_steps": 0, "max_steps": 3}
    with pytest.raises(Diverged, match="learning_rate"):
        train([files[0]], [], tmp_path / "run", TrainConfig.model_validate(SMALL_RUN | wild), quiet=True)


def test_a_checkpoint_of_another_shape_is_refused(
    files: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run(files, tmp_path / "model.run", max_steps=1)
    with pytest.raises(OtherModel, match="another shape"):
        run(files, tmp_path / "model.run", resume=True, model=SMALL_RUN["model"] | {"hidden_size": 24})
    assert main(arguments(files, tmp_path / "model", "--resume", "--set=model.hidden_size=24")) == 1
    assert "another shape" in capsys.readouterr().err


def test_a_kill_between_two_renames_loses_no_checkpoint(
    files: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run(files, tmp_path / "model.run", max_steps=1)
    (tmp_path / "model.run" / "last").rename(tmp_path / "model.run" / ".last.old")
    assert main(arguments(files, tmp_path / "model")) == 1
    assert "--resume" in capsys.readouterr().err
    assert (tmp_path / "model.run" / "last" / "state.json").exists()


def test_ctrl_c_ends_a_command_without_a_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(_: object) -> int:
        raise KeyboardInterrupt

    monkeypatch.setattr("training.clean_command.run", interrupted)
    assert main(["clean", "a.jsonl", "-o", "b.jsonl"]) == 130


def test_a_new_run_takes_nothing_from_one_that_never_came_to_a_checkpoint(
    files: tuple[Path, Path], tmp_path: Path
) -> None:
    work, empty = tmp_path / "run", tmp_path / "empty.jsonl"
    write_transcripts(empty, [])
    with pytest.raises(NothingToLearn):  # after the tokenizer is made
        run((files[0], empty), work, lowercase=True)
    assert (work / "tokenizer.json").exists()
    trained = run(files, work, max_steps=1)
    assert trained.tokenizer.normalize("Hello") == "Hello"


def test_signals_are_as_before_once_the_training_is_over(files: tuple[Path, Path], tmp_path: Path) -> None:
    before = signal.getsignal(signal.SIGINT)
    assert main(arguments(files, tmp_path / "model", "--set=max_steps=1")) == 0
    assert signal.getsignal(signal.SIGINT) is before


def test_time_is_a_limit_too(files: tuple[Path, Path], tmp_path: Path) -> None:
    trained = run(
        files, tmp_path / "run", max_steps=100_000, epochs=100_000, minutes=0.02, evaluate_every=1000
    )
    assert 1.2 <= trained.progress.seconds < 10


def test_without_a_dev_part_the_latest_model_is_kept(files: tuple[Path, Path], tmp_path: Path) -> None:
    trained = train([files[0]], [], tmp_path / "run", TrainConfig.model_validate(SMALL_RUN), quiet=True)
    assert trained.progress.best_step == 12
    assert trained.perplexity_word == {}


def test_nothing_to_learn_is_an_error(tmp_path: Path) -> None:
    file = tmp_path / "questions.jsonl"
    write_transcripts(file, [transcript("is anybody there?")])
    with pytest.raises(NothingToLearn):
        train([file], [], tmp_path / "run", TrainConfig.model_validate(SMALL_RUN), quiet=True)


def test_a_dev_file_without_a_reply_is_refused_before_the_training(
    files: tuple[Path, Path], tmp_path: Path
) -> None:
    file = tmp_path / "greetings.jsonl"
    write_transcripts(file, [transcript("welcome", "hello", first="agent")])
    with pytest.raises(NothingToLearn, match=r"greetings\.jsonl"):
        run((files[0], file), tmp_path / "run")
    assert not (tmp_path / "run" / "last").exists()


def test_a_device_that_is_not_there_is_an_error_in_words(files: tuple[Path, Path], tmp_path: Path) -> None:
    for device in ("typewriter", "cuda:99"):
        with pytest.raises(ConfigError, match=f"device: {device}: "):
            run(files, tmp_path / "run", device=device)


def test_the_output_needs_a_name_of_its_own(
    files: tuple[Path, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(arguments(files, Path())) == 1
    assert "is there already" in capsys.readouterr().err


def test_settings_come_from_file_and_flags(tmp_path: Path) -> None:
    file = tmp_path / "run.toml"
    file.write_text("seed = 5\nepochs = 2\n[model]\nhidden_size = 64\n")
    config = load_config(file, ["epochs=3", "model.embedding_size=32", "device=cpu", "betas=[0.8, 0.9]"])
    assert (config.seed, config.epochs, config.device, config.betas) == (5, 3, "cpu", (0.8, 0.9))
    assert (config.model.hidden_size, config.model.embedding_size) == (64, 32)


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        (["epochs=0"], ["epochs"]),
        (["epochs=0", "model.dropout=1.5", "colour=3"], ["epochs", "model.dropout", "colour"]),
        (["epochs"], ["key=value"]),
        (["learning_rate=nan"], ["learning_rate"]),
        (["precision=int4"], ["precision"]),
        (["seed=1", "seed.x=1"], ["not a table"]),
    ],
)
def test_every_wrong_setting_is_named(settings: list[str], named: list[str]) -> None:
    with pytest.raises(ConfigError) as caught:
        load_config(None, settings)
    assert all(name in str(caught.value) for name in named)


@pytest.mark.parametrize(
    ("setting", "meant"), [("epoch=3", "epochs"), ("model.hiden_size=3", "model.hidden_size")]
)
def test_a_setting_that_is_misspelled_is_told(setting: str, meant: str) -> None:
    with pytest.raises(ConfigError, match=rf"there is no such setting; is it {meant}\?"):
        load_config(None, [setting])


def test_settings_that_do_not_go_together_are_told_in_words() -> None:
    with pytest.raises(ConfigError) as caught:
        load_config(None, ["model.attention=none", "model.copying=true"])
    assert str(caught.value) == "model: copying needs attention"


def test_a_broken_config_file_is_named(tmp_path: Path) -> None:
    file = tmp_path / "bad.toml"
    file.write_text("seed = = 5\n")
    with pytest.raises(ConfigError, match=r"bad\.toml"):
        load_config(file, [])
    file.write_bytes(b"device = 'caf\xe9'\n")
    with pytest.raises(ConfigError, match=r"bad\.toml"):
        load_config(file, [])


@pytest.mark.parametrize(
    ("file", "name"),
    [
        ("/data/star/dev.jsonl.gz", "star"),
        ("star/dev.jsonl", "star"),
        ("/data/shop.jsonl", "shop"),
        ("x/test.jsonl", "x"),
        ("dev.jsonl.gz", "dev"),
    ],
)
def test_data_files_have_short_names(file: str, name: str) -> None:
    assert name_of(Path(file)) == name


def test_data_files_of_one_name_are_told_apart() -> None:
    files = ["/a/star/dev.jsonl", "/a/star/test.jsonl", "/b/star/dev.jsonl", "/b/shop.jsonl"]
    names = ["a/star/dev.jsonl", "star/test.jsonl", "b/star/dev.jsonl", "shop"]
    assert names_of([Path(file) for file in files]) == names
    assert names_of([Path("/b/shop.jsonl")] * 2) == ["shop", "shop"]


def test_a_script_is_conversations_between_blank_lines() -> None:
    assert read_script("\n\nHello\nA latte\n\n\n \nHi\n") == [["Hello", "A latte"], ["Hi"]]


def test_every_setting_is_documented_with_its_default() -> None:
    page = (Path(__file__).parent.parent / "docs" / "training.md").read_text("utf-8")
    rows = dict(re.findall(r"^\| `([a-z_]+)` \| (.*?) \|", page, re.MULTILINE))
    defaults = TrainConfig().model_dump(mode="json", exclude={"model"})
    written = {name: "none" if value is None else str(value).lower() for name, value in defaults.items()}
    assert rows == written


def test_a_model_sealed_again_keeps_its_fingerprint_and_shows_its_conversations(
    files: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(arguments(files, tmp_path / "base")) == 0
    script, text = tmp_path / "visitor.txt", tmp_path / "card.md"
    script.write_text("Hello!\nA latte, please.\n\nHi there\n")
    text.write_text("# My model\n")
    flags = ["--text", str(text), "--script", str(script), "--max-tokens", "9"]
    assert main(["card", str(tmp_path / "base"), *flags, "-o", str(tmp_path / "new")]) == 0
    base, new = load(tmp_path / "base"), load(tmp_path / "new")
    assert new.fingerprint == base.fingerprint
    assert new.defaults == base.defaults.model_copy(update={"max_tokens": 9})
    assert new.card.startswith("# My model")
    assert new.card.count("**Visitor:**") == new.card.count("**Turnwise:**") == 3
    assert main(["card", str(tmp_path / "nowhere"), "-o", str(tmp_path / "other")]) == 1
    assert "nowhere" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("flags", "reason"),
    [
        (["--top-k", "999999"], "top_k: must be a whole number from 0 to "),
        (["--mmi-lambda", "1"], "mmi_lambda: must be 0: there is no language model"),
        (["--prefix", "darn it", "--blocked", "darn"], "prefix: holds a phrase that is blocked"),
    ],
)
def test_defaults_that_the_model_cannot_follow_are_not_sealed(
    tiny_model_dir: Path, tmp_path: Path, flags: list[str], reason: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["card", str(tiny_model_dir), "-o", str(tmp_path / "new"), *flags]) == 1
    assert reason in capsys.readouterr().err
    assert not (tmp_path / "new").exists()


def test_a_text_that_is_not_utf_8_is_named(
    tiny_model_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text = tmp_path / "card.md"
    text.write_bytes("# Für uns\n".encode("cp1252"))
    assert main(["card", str(tiny_model_dir), "-o", str(tmp_path / "new"), "--text", str(text)]) == 1
    assert capsys.readouterr().err == f"{text}: not UTF-8 at byte 3\n"


def test_a_byte_order_mark_is_no_part_of_a_text(tiny_model_dir: Path, tmp_path: Path) -> None:
    """Some editors of Windows begin every file with one; the model would read it as a word of the visitor."""
    (tmp_path / "run.toml").write_text("epochs = 3\n", "utf-8-sig")
    assert load_config(tmp_path / "run.toml", []).epochs == 3
    flags = []
    for flag, text in (("--text", "# Mine\n"), ("--script", "Hello!\n")):
        (tmp_path / flag).write_text(text, "utf-8-sig")
        flags += [flag, str(tmp_path / flag)]
    assert main(["card", str(tiny_model_dir), "-o", str(tmp_path / "new"), *flags]) == 0
    card = load(tmp_path / "new").card
    assert card.startswith("# Mine\n")
    assert "> **Visitor:** Hello!" in card


@pytest.mark.parametrize(
    "command",
    [
        ["train", "--train", "a.jsonl", "--out", "model", "--config", "nowhere"],
        ["train", "--train", "a.jsonl", "--out", "model", "--card", "nowhere"],
        ["evaluate", "model", "nowhere"],
        ["baseline", "ngram", "--train", "nowhere", "--dev", "nowhere"],
        ["clean", "nowhere", "-o", "out.jsonl"],
        ["settings", "--config", "nowhere"],
    ],
    ids=lambda command: command[0],
)
def test_a_file_that_is_not_there_is_named(
    command: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(command) == 1
    assert capsys.readouterr().err == "nowhere: No such file or directory\n"


def test_the_log_tells_of_a_run_without_a_dev_part(
    files: tuple[Path, Path], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    config = TrainConfig.model_validate(SMALL_RUN | {"max_steps": 1})
    train([files[0]], [], tmp_path / "run", config, quiet=True)
    assert re.fullmatch(r"step 1  \d+ s  loss \d\.\d{3}", caplog.messages[-1])


def test_the_dev_part_is_read_once_after_an_update(
    files: tuple[Path, Path], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """A run that ends because nothing got better has read it just before."""
    caplog.set_level("INFO")
    steps: dict[str, Any] = {"evaluate_every": 1, "patience": 2, "learning_rate": 0.5, "warmup_steps": 0}
    progress = run(files, tmp_path / "run", **steps).progress
    told = [int(found[1]) for line in caplog.messages if (found := re.match(r"step (\d+) ", line))]
    assert told == list(range(1, progress.step + 1))
    assert progress.step < SMALL_RUN["max_steps"]
    assert progress.waited == 2


def test_resuming_what_has_not_begun_begins_and_says_so(
    files: tuple[Path, Path], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    flags = ["--set=max_steps=1", "--set=final_replies=0", "--resume"]
    assert main(arguments(files, tmp_path / "mine", *flags)) == 0
    assert caplog.messages[0] == f"{tmp_path / 'mine.run'} holds no run to go on from: this one begins"


def test_resuming_with_other_transcripts_is_refused(
    files: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """What a checkpoint says of the batches that are done means nothing to other transcripts."""
    others = tmp_path / "others.jsonl"
    write_transcripts(others, orders(12))
    begun = TrainConfig.model_validate(SMALL_RUN | {"max_steps": 1})
    train([files[0]], [], tmp_path / "model.run", begun, quiet=True)
    flags = ["--set=max_steps=2", "--resume"]
    assert main(arguments((others, files[1]), tmp_path / "model", *flags)) == 1
    assert "begun with other transcripts" in capsys.readouterr().err
    shutil.rmtree(tmp_path / "model.run" / "corpus")  # a cache may be deleted
    assert main(arguments(files, tmp_path / "model", *flags)) == 0


@pytest.mark.parametrize(
    ("setting", "begun", "given"),
    [("batch_tokens", "400", "300"), ("seed", "1", "2"), ("lowercase", "0", "1")],
)
def test_resuming_in_another_order_is_refused(
    files: tuple[Path, Path],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    setting: str,
    begun: str,
    given: str,
) -> None:
    """So many batches done are other dialogues then, and other tokens."""
    config = TrainConfig.model_validate(
        SMALL_RUN | {"max_steps": 1, "batch_tokens": 400, "seed": 1, "lowercase": False}
    )
    train([files[0]], [], tmp_path / "model.run", config, quiet=True)
    flags = ["--set=batch_tokens=400", "--set=seed=1", "--set=max_steps=2", f"--set={setting}={given}"]
    assert main(arguments(files, tmp_path / "model", "--resume", *flags)) == 1
    assert f"{setting}: the run was begun with {begun}, and" in capsys.readouterr().err


def test_what_a_card_says_stays_where_nothing_else_is_said(tiny_model_dir: Path, tmp_path: Path) -> None:
    """Other defaults do not take the licence off a model; conversations take the place of earlier ones."""
    text, script, seal_again = tmp_path / "card.md", tmp_path / "visitor.txt", ["--max-tokens", "3"]
    text.write_text("# Mine\n\nLicence: none.\n")
    script.write_text("hello\n")
    models = [str(tiny_model_dir), *(str(tmp_path / name) for name in ("one", "two", "three"))]
    for place, flags in enumerate(
        (["--text", str(text), "--script", str(script)], seal_again, ["--script", str(script)])
    ):
        assert main(["card", models[place], "-o", models[place + 1], *flags]) == 0
    one, two, three = (load(Path(model)).card for model in models[1:])
    assert one == two
    assert one.startswith("# Mine\n\nLicence: none.\n\n## Conversations\n")
    assert three.startswith("# Mine\n\nLicence: none.\n\n## Conversations\n")
    assert "max_tokens 3" in three
    assert three.count("**Visitor:**") == 1


def test_a_model_whose_run_left_no_word_has_a_card_all_the_same() -> None:
    assert model_card({}, "# Mine\n").startswith("# Mine")
    assert "Not stated" in model_card({})


@pytest.mark.parametrize(
    ("command", "flag", "rest"),
    [
        ("train", "--train", ["--out", "o"]),
        ("train", "--dev", ["--train", "t", "--out", "o"]),
        ("clean", "--held-out", ["a", "-o", "o"]),
        ("retrain", "--reviewed", ["--base", "b", "--replay", "p", "--out", "o"]),
        ("baseline", "--dev", ["--train", "t"]),
    ],
)
def test_a_flag_given_again_adds_its_files(command: str, flag: str, rest: list[str]) -> None:
    parser = ArgumentParser()
    import_module(f"training.{command}_command").add_arguments(parser)
    kind = ["ngram"] if command == "baseline" else []
    parsed = parser.parse_args([*kind, *rest, flag, "1", "2", flag, "3"])
    assert vars(parsed)[flag.removeprefix("--").replace("-", "_")] == [Path("1"), Path("2"), Path("3")]
