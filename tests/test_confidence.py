"""Confidence: the formula, the fit, the curve, and the command that seals it into a model."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch

from chatbot.confidence import Calibration, calibration_of, features, logistic
from chatbot.model_directory import load
from training.__main__ import main
from training.calibrate import (
    LEAST,
    Example,
    TooFewReplies,
    calibrate,
    calibration_error,
    fit,
    risk_coverage,
)
from training.card import with_confidence


def made_up(count: int, seed: int = 1) -> list[Example]:
    """Replies whose chance of being acceptable is a known function of their mean log-probability."""
    generator = torch.Generator().manual_seed(seed)
    found = []
    for number in range(count):
        mean = -3 * float(torch.rand((), generator=generator))
        chance = logistic(3 + 2.5 * mean)
        good = float(torch.rand((), generator=generator)) < chance
        found.append(Example(f"conversation {number}", [mean] * 5, 80.0 if good else 10.0))
    return found


def test_a_reply_of_no_tokens_is_of_no_confidence() -> None:
    assert calibrate(made_up(1000)).confidence([]) == 0.0


def test_features_are_mean_least_first_and_length() -> None:
    assert features([-1.0, -3.0]) == (-2.0, -3.0, -1.0, math.log(2))
    assert features([float("-inf")]) == (-30.0, -30.0, -30.0, 0.0)


def test_the_logistic_function_fits_into_floats() -> None:
    assert [logistic(score) for score in (-1e9, 0.0, 1e9)] == [pytest.approx(0.0, abs=1e-300), 0.5, 1.0]


def test_a_fit_finds_the_weights_that_made_the_labels() -> None:
    generator = torch.Generator().manual_seed(3)
    inputs = torch.randn(200_000, 2, generator=generator, dtype=torch.float64) * torch.tensor([1.0, 10.0])
    chances = torch.sigmoid(inputs @ torch.tensor([1.5, -0.2], dtype=torch.float64) + 0.7)
    labels = (torch.rand(len(inputs), generator=generator, dtype=torch.float64) < chances).double()
    weights, bias = fit(inputs, labels)
    assert weights.tolist() == pytest.approx([1.5, -0.2], rel=0.05)
    assert float(bias) == pytest.approx(0.7, abs=0.05)


def test_confidence_is_the_probability_on_replies_it_was_not_fitted_to() -> None:
    calibration = calibrate(made_up(20_000))
    assert calibration.error < 0.02
    for mean in (-2.5, -1.5, -0.5):
        assert calibration.confidence([mean] * 5) == pytest.approx(logistic(3 + 2.5 * mean), abs=0.04)


def test_the_curve_says_what_is_left_and_what_is_wrong_with_it() -> None:
    probabilities = torch.tensor([0.9, 0.1, 0.8, 0.3], dtype=torch.float64)
    good = torch.tensor([1.0, 0.0, 1.0, 0.0], dtype=torch.float64)
    curve = {point.coverage: point for point in risk_coverage(probabilities, good)}
    assert (curve[1.0].threshold, curve[1.0].risk) == (0.0, 0.5)
    assert (curve[0.5].threshold, curve[0.5].risk) == (0.8, 0.0)
    assert curve[0.75].risk == pytest.approx(1 / 3)


def test_a_threshold_lets_through_what_its_point_says() -> None:
    found = made_up(4000)
    calibration = calibrate(found)
    for point in calibration.curve[1::4]:
        kept = [each for each in found if calibration.confidence(each.logprobs) >= point.threshold]
        assert len(kept) / len(found) == pytest.approx(point.coverage, abs=0.03)
        wrong = sum(each.chrf < calibration.acceptable for each in kept) / len(kept)
        assert wrong == pytest.approx(point.risk, abs=0.04)


def test_calibration_error_of_a_liar_is_how_far_it_lies() -> None:
    assert calibration_error(torch.full((100,), 0.9), torch.zeros(100)) == pytest.approx(0.9, abs=1e-6)


def test_order_that_says_something_has_less_area() -> None:
    calibration = calibrate(made_up(4000))
    assert calibration.area < 1 - calibration.share - 0.1


@pytest.mark.parametrize(
    "found", [made_up(LEAST - 1), [Example(str(n), [-1.0], 90.0) for n in range(500)]], ids=["few", "alike"]
)
def test_what_tells_nothing_is_refused(found: list[Example]) -> None:
    with pytest.raises(TooFewReplies):
        calibrate(found)


def test_a_broken_calibration_is_named_and_a_missing_one_is_none() -> None:
    good = calibrate(made_up(500)).model_dump(mode="json")
    assert calibration_of({}) is None
    assert calibration_of({"confidence": good}) == Calibration.model_validate(good)
    with pytest.raises(ValueError, match="confidence"):
        calibration_of({"confidence": {**good, "weights": [1.0]}})
    with pytest.raises(ValueError, match=r"confidence\.bias"):
        calibration_of({"confidence": {**good, "bias": float("nan")}})


def test_a_card_has_one_section_on_confidence_however_often_it_is_calibrated() -> None:
    calibration = calibrate(made_up(500))
    card = "# A model\n\nWords.\n\n## Conversations\n\nHello.\n"
    once = with_confidence(card, calibration)
    other = calibration.model_copy(update={"judged": 77})
    assert once.startswith("# A model\n\nWords.\n\n## Conversations\n\nHello.\n\n## Confidence\n\nOf ")
    assert with_confidence(once, other) == with_confidence(card, other)
    behind = once + "\n## More\n\nText.\n"
    assert with_confidence(behind, other) == with_confidence(card, other) + "\n## More\n\nText.\n"


def conversations(path: Path, count: int) -> Path:
    """Questions that have one answer, and questions that have any of ten."""
    words = ["north", "south", "east", "west", "left", "right", "up", "down", "near", "far"]
    with path.open("w") as stream:
        for number in range(count):
            easy = number % 2 == 0
            turns = [
                {"role": "user", "text": "opening hours please" if easy else "where is it"},
                {"role": "agent", "text": "we open at nine" if easy else f"{words[number * 7 % 10]} of here"},
            ]
            stream.write(json.dumps({"id": f"c{number}", "turns": turns}) + "\n")
    return path


def test_the_command_seals_the_same_model_with_a_calibration(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    train, dev = conversations(tmp_path / "train.jsonl", 400), conversations(tmp_path / "dev.jsonl", 300)
    size = ["vocab_size=300", "embedding_size=16", "encoder_size=16", "hidden_size=32", "dropout=0.0"]
    settings = [f"model.{each}" for each in size] + [
        "max_steps=60",
        "learning_rate=0.01",
        "warmup_steps=5",
        "final_replies=0",
        "threads=1",
    ]
    flags = [flag for each in settings for flag in ("--set", each)]
    base, out = tmp_path / "base", tmp_path / "calibrated"
    assert main(["train", "--train", str(train), "--out", str(base), *flags]) == 0
    capsys.readouterr()
    assert main(["calibrate", str(base), str(dev), "-o", str(out), "--json", "--acceptable", "90"]) == 0
    report = json.loads(capsys.readouterr().out)
    before, after = load(base), load(out)
    assert report["fingerprint"] == before.fingerprint == after.fingerprint
    calibration = calibration_of(after.metrics)
    assert calibration is not None
    assert calibration_of(before.metrics) is None
    # It knows which question it can answer: of the surer half nearly all is right, of all about a half.
    half = next(point for point in calibration.curve if point.coverage <= 0.5)
    assert 0.4 < calibration.share < 0.75
    assert half.risk < 0.15
    assert main(["calibrate", str(base), str(dev), "-o", str(out)]) == 1
    assert "exists" in capsys.readouterr().err
