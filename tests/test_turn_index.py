"""The index of what a model was trained on: made by `training index`, searched by the console."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from chatbot.config import ModelConfig
from chatbot.model import Seq2Seq
from chatbot.model_directory import load, seal
from chatbot.options import DecodingOptions
from chatbot.tokenizer import Tokenizer
from chatbot.transcripts import write_transcripts
from chatbot.turn_index import AT_ONCE, FORM, LONGEST, IndexBuilder, IndexedTurn, TurnIndex, TurnIndexError
from chatbot.turn_states import Turns, state_of
from tests.small import SMALL, orders, transcript
from training.__main__ import main


def indexed(model: Path, out: Path, *files: Path, flags: tuple[str, ...] = ()) -> int:
    return main(["index", str(model), *map(str, files), "--out", str(out), *flags])


@pytest.fixture
def old(tmp_path: Path) -> Path:
    path = tmp_path / "old.jsonl.gz"
    write_transcripts(path, orders(40, seed=5))
    return path


def test_every_reply_is_found_with_its_state_and_its_place(
    tmp_path: Path, tiny_model_dir: Path, old: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    progress = tmp_path / "progress.jsonl"
    flags = ("--json", "--progress", str(progress))
    assert indexed(tiny_model_dir, tmp_path / "made/old.safetensors", old, flags=flags) == 0
    bundle, index = load(tiny_model_dir), TurnIndex(tmp_path / "made/old.safetensors")
    replies = [(each, place) for each in orders(40, seed=5) for place in range(1, len(each.turns), 2)]
    assert json.loads(capsys.readouterr().out) == {
        "index": str(tmp_path / "made/old.safetensors"),
        "model": bundle.fingerprint,
        "turns": len(replies),
        "replies": len(replies),
    }
    assert index.model == bundle.fingerprint
    held = {
        (turn.transcript, turn.turn): (row, turn) for row in range(len(index)) for turn in [index.turn(row)]
    }
    assert len(held) == len(index) == len(replies)
    for each, place in replies[::7]:
        row, turn = held[each.id, place]
        assert turn == IndexedTurn(
            old.name, each.id, place, each.turns[place - 1].text, each.turns[place].text
        )
        said: Turns = [(before.role, before.text) for before in each.turns[:place]]
        [state] = state_of(bundle, [said])
        found = index.nearest(state, len(index))
        likeness = dict(found)
        assert likeness[row] == pytest.approx(1, abs=2e-3)
        assert found[0][1] == pytest.approx(likeness[row], abs=2e-3), "nothing is nearer than itself"
        assert [value for _, value in found] == sorted(likeness.values(), reverse=True)
    phases = [json.loads(line) for line in progress.read_text().splitlines()]
    assert [phases[0]["phase"], phases[-1]["phase"]] == ["indexing", "done"]
    assert (phases[-2]["step"], phases[-2]["steps"]) == (len(replies), len(replies))
    assert [path.name for path in (tmp_path / "made").iterdir()] == ["old.safetensors"], "nothing beside it"


def test_the_model_stays_as_it_was_sealed(tmp_path: Path, tiny_model_dir: Path, old: Path) -> None:
    before = {path.name: path.read_bytes() for path in tiny_model_dir.iterdir()}
    assert indexed(tiny_model_dir, tmp_path / "a.safetensors", old) == 0
    assert {path.name: path.read_bytes() for path in tiny_model_dir.iterdir()} == before


def test_of_more_replies_than_wanted_some_are_taken_evenly(
    tmp_path: Path, tiny_model_dir: Path, old: Path
) -> None:
    every, some = tmp_path / "every.safetensors", tmp_path / "some.safetensors"
    assert indexed(tiny_model_dir, every, old, old) == 0
    total = len(TurnIndex(every))
    assert indexed(tiny_model_dir, some, old, old, flags=("--most", "20")) == 0
    index = TurnIndex(some)
    assert len(index) == 20
    order = [(each.id, place) for each in orders(40, seed=5) for place in range(1, len(each.turns), 2)]
    assert total == 2 * len(order)
    taken = sorted(order.index((turn.transcript, turn.turn)) for turn in map(index.turn, range(20)))
    assert {bool(place < len(order) // 2) for place in taken} == {True, False}
    gaps = np.diff(sorted({*taken}))
    assert gaps.max() <= 2 * total // 20
    with pytest.raises(SystemExit):
        indexed(tiny_model_dir, some, old, flags=("--most", "200001"))


def test_only_what_was_learned_and_can_be_shown_whole_is_in_it(tmp_path: Path, tiny_model_dir: Path) -> None:
    file = tmp_path / "t.jsonl"
    long = transcript("hello", "x" * LONGEST, "and", "short", name="long")
    empty = transcript("hello", " ", name="empty")
    first = transcript("hello", "good day", first="agent", name="first")
    unlearned = transcript("hello", "no", name="unlearned").model_dump()
    unlearned["turns"][1]["weight"] = 0
    write_transcripts(file, [long, empty, first, type(long).model_validate(unlearned)])
    assert indexed(tiny_model_dir, tmp_path / "a.safetensors", file) == 0
    index = TurnIndex(tmp_path / "a.safetensors")
    assert [index.turn(row) for row in range(len(index))] == [
        IndexedTurn("t.jsonl", "long", 3, "and", "short")
    ]


def test_what_cannot_be_indexed_is_refused_in_words(
    tmp_path: Path,
    tiny_model_dir: Path,
    old: Path,
    tiny_tokenizer: Tokenizer,
    capsys: pytest.CaptureFixture[str],
) -> None:
    out = tmp_path / "a.safetensors"
    broken = tmp_path / "broken.jsonl"
    broken.write_text('{"id": "x"}\n')
    mute = tmp_path / "mute.jsonl"
    write_transcripts(mute, [transcript("hello", "hi", first="agent")])
    shape = SMALL.model_dump() | {"vocab_size": tiny_tokenizer.vocab_size}
    config = ModelConfig.model_validate(shape | {"encoder": "none", "attention": "none", "copying": False})
    stateless = tmp_path / "stateless"
    seal(
        stateless,
        model=Seq2Seq(config).eval(),
        tokenizer=tiny_tokenizer,
        defaults=DecodingOptions(max_tokens=12),
        metrics={},
        card="# None\n",
    )
    for model, file, target, words in (
        (tiny_model_dir, broken, out, "broken.jsonl:1: turns"),
        (tiny_model_dir, mute, out, "no agent turn"),
        (tiny_model_dir, tmp_path / "none.jsonl", out, "No such file"),
        (tmp_path / "nowhere", old, out, "there is no such directory"),
        (stateless, old, out, "no encoder"),
        (tiny_model_dir, old, tmp_path / "a.index", "ends in .safetensors"),
    ):
        assert indexed(model, target, file) == 1
        assert words in capsys.readouterr().err
        assert not target.exists()


# --- files that are no index ------------------------------------------------------------------------------


def small(path: Path, model: str = "tw-0", width: int = 4, turns: int = 3) -> dict[str, torch.Tensor]:
    """An index of unit vectors; its tensors."""
    builder = IndexBuilder(turns, ["a.jsonl"])
    states = np.eye(turns, width, dtype=np.float32)
    builder.add(
        states, [IndexedTurn("a.jsonl", f"t{row}", 1, "ça va?", f"réponse {row}") for row in range(turns)]
    )
    builder.write(path, model, turns)
    with safe_open(path, framework="pt") as opened:
        return {name: opened.get_tensor(name).clone() for name in ("states", "places", "ends", "texts")}


def told(**other: str) -> dict[str, str]:
    return {"form": FORM, "model": "tw-0", "files": '["a.jsonl"]', "replies": "3", **other}


def test_texts_come_back_as_they_were(tmp_path: Path) -> None:
    small(tmp_path / "a.safetensors")
    index = TurnIndex(tmp_path / "a.safetensors")
    assert [index.turn(row) for row in range(3)] == [
        IndexedTurn("a.jsonl", f"t{row}", 1, "ça va?", f"réponse {row}") for row in range(3)
    ]
    assert index.nearest(np.array([0, 1, 0, 0], np.float32), 1) == [(1, 1.0)]
    assert len(index.nearest(np.array([0, 1, 0, 0], np.float32), 99)) == 3


CHANGES: dict[str, Any] = {
    "texts too short": lambda found: found | {"texts": found["texts"][:-1]},
    "ends fall": lambda found: found | {"ends": found["ends"].flip(0).contiguous()},
    "ends begin below": lambda found: found | {"ends": found["ends"] - 100},
    "a file that is none": lambda found: found | {"places": found["places"] + 1},
    "a turn that is none": lambda found: found | {"places": found["places"] - torch.tensor([0, 9]).int()},
    "other counts": lambda found: found | {"ends": found["ends"][:2]},
    "another type": lambda found: found | {"states": found["states"].float()},
    "another shape": lambda found: found | {"states": found["states"][0]},
    "one more": lambda found: found | {"more": torch.zeros(1)},
    "one less": lambda found: {name: value for name, value in found.items() if name != "ends"},
}


@pytest.mark.parametrize("change", CHANGES)
def test_an_index_whose_parts_do_not_fit_is_refused(tmp_path: Path, change: str) -> None:
    tensors = CHANGES[change](small(tmp_path / "a.safetensors"))
    save_file(tensors, tmp_path / "b.safetensors", told())
    with pytest.raises(TurnIndexError, match=r"b\.safetensors: "):
        TurnIndex(tmp_path / "b.safetensors")


def test_another_file_is_refused(tmp_path: Path, tiny_model_dir: Path) -> None:
    tensors = small(tmp_path / "a.safetensors")
    data = (tmp_path / "a.safetensors").read_bytes()
    (tmp_path / "cut.safetensors").write_bytes(data[:-7])
    (tmp_path / "noise.safetensors").write_bytes(b"\xff" * 100)
    (tmp_path / "empty.safetensors").touch()
    (tmp_path / "folder.safetensors").mkdir()
    (tmp_path / "lost.safetensors").symlink_to(tmp_path / "gone")
    save_file(tensors, tmp_path / "form.safetensors", told(form="turnwise-index-9"))
    save_file(tensors, tmp_path / "files.safetensors", told(files="[1]"))
    save_file(tensors, tmp_path / "files2.safetensors", told(files="["))
    for path, words in (
        *(
            (tmp_path / f"{name}.safetensors", "not a whole safetensors file")
            for name in ("cut", "noise", "empty")
        ),
        (tmp_path / "folder.safetensors", "not a plain file"),
        (tmp_path / "lost.safetensors", "cannot be read: No such file"),
        (tmp_path / "form.safetensors", "not an index of turns"),
        (tiny_model_dir / "model.safetensors", "not an index of turns"),
        (tmp_path / "files.safetensors", "list of files"),
        (tmp_path / "files2.safetensors", "list of files"),
    ):
        with pytest.raises(TurnIndexError, match=words):
            TurnIndex(path)


def test_numbers_that_are_none_are_far_from_everything(tmp_path: Path) -> None:
    tensors = small(tmp_path / "a.safetensors")
    tensors["states"][0] = float("nan")
    save_file(tensors, tmp_path / "b.safetensors", told())
    found = TurnIndex(tmp_path / "b.safetensors").nearest(np.array([1, 0, 0, 0], np.float32), 3)
    assert found[-1] == (0, -1.0)


def test_an_index_of_many_is_searched_as_exactly_as_a_small_one(tmp_path: Path) -> None:
    """Also across the borders of the parts that are multiplied together."""
    rng = np.random.default_rng(3)
    count = 3 * AT_ONCE + 5
    states = rng.standard_normal((count, 16)).astype(np.float32)
    states /= np.linalg.norm(states, axis=1, keepdims=True)
    builder = IndexBuilder(count, ["a.jsonl"])
    builder.add(states, [IndexedTurn("a.jsonl", "t", row, "q", "r") for row in range(count)])
    builder.write(tmp_path / "a.safetensors", "tw-0", count)
    index = TurnIndex(tmp_path / "a.safetensors")
    expected = states.astype(np.float16).astype(np.float32) @ states[7]
    found = index.nearest(states[7], 40)
    assert [row for row, _ in found] == np.argsort(-expected)[:40].tolist()
    assert np.allclose([value for _, value in found], np.sort(expected)[::-1][:40].clip(-1, 1), atol=1e-5)
    assert index.turn(count - 1).turn == count - 1


@pytest.mark.slow
def test_two_hundred_thousand_turns_are_searched_in_a_moment(tmp_path: Path) -> None:
    count, width = 200_000, 512
    rng = np.random.default_rng(1)
    builder = IndexBuilder(count, ["a.jsonl"])
    for start in range(0, count, 10_000):
        states = rng.standard_normal((10_000, width), dtype=np.float32)
        states /= np.linalg.norm(states, axis=1, keepdims=True)
        builder.add(states, [IndexedTurn("a.jsonl", "t", start, "a question", "a reply")] * 10_000)
    builder.write(tmp_path / "a.safetensors", "tw-0", count)
    index = TurnIndex(tmp_path / "a.safetensors")
    before = own_memory()
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        state = states[0]
        index.nearest(state, 5)
        used = []
        for _ in range(5):
            begin = time.thread_time()
            index.nearest(state, 512)
            used.append(time.thread_time() - begin)
    finally:
        torch.set_num_threads(threads)
    assert min(used) < 0.25, used
    assert own_memory() - before < 50_000, "the states are read where they lie"


def own_memory() -> int:
    """kB of this process that are no file's."""
    status = Path("/proc/self/status").read_text(encoding="ascii")
    return next(int(line.split()[1]) for line in status.splitlines() if line.startswith("RssAnon"))
