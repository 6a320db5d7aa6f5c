"""A prediction is the softmax of the model's logits at the masks, best first."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import composed
from helpers import run_of, train

from mlm_lightning.__main__ import main
from mlm_lightning.commands.predict import predict
from mlm_lightning.config.parse import parse
from mlm_lightning.runs.load import load_run


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> str:
    config = composed(f"output_dir={tmp_path_factory.mktemp('outputs')}")
    train(config)
    return str(run_of(config).folder)


def probabilities_by_hand(run: str, row: list[int]) -> torch.Tensor:
    """`[L, V]`, from all positions of one row (3 is [MASK])."""
    with torch.no_grad():
        return load_run(run).model(torch.tensor([row]))[0].softmax(-1)


def as_vector(predictions: list[dict[str, Any]]) -> list[float]:
    by_token = {each["token"]: each["probability"] for each in predictions}
    return [by_token[name] for name in ("0", "1", "2", "[MASK]")]


def test_probabilities_are_the_softmax_of_the_model(run: str) -> None:
    ((mask,),) = predict(run, ["0 _ 1 2"], top_k=4)
    assert mask["position"] == 1
    assert as_vector(mask["predictions"]) == pytest.approx(probabilities_by_hand(run, [0, 3, 1, 2])[1].tolist(), abs=1e-6)
    assert sum(each["probability"] for each in mask["predictions"]) == pytest.approx(1)


def test_several_masks_and_several_texts(run: str) -> None:
    first, second = predict(run, ["_ 1 _ 2", "2 2 0 _"], top_k=4)
    assert [mask["position"] for mask in first] == [0, 2]
    assert [mask["position"] for mask in second] == [3]
    for masks, row in ((first, [3, 1, 3, 2]), (second, [2, 2, 0, 3])):
        expected = probabilities_by_hand(run, row)
        for mask in masks:
            assert as_vector(mask["predictions"]) == pytest.approx(expected[mask["position"]].tolist(), abs=1e-6)


def test_the_best_come_first_and_the_best_fills_the_text(run: str) -> None:
    (masks,) = predict(run, ["_ 1 _ 2"], top_k=2)
    expected = probabilities_by_hand(run, [3, 1, 3, 2])
    for mask in masks:
        found = [each["token"] for each in mask["predictions"]]
        assert found == [str(token) for token in expected[mask["position"]].topk(2).indices.tolist()]
        probabilities = [each["probability"] for each in mask["predictions"]]
        assert probabilities == sorted(probabilities, reverse=True)
    best = [mask["predictions"][0]["token"] for mask in masks]
    assert {mask["text"] for mask in masks} == {f"{best[0]} 1 {best[1]} 2"}


def test_mask_may_be_written_out(run: str) -> None:
    assert predict(run, ["0 [MASK] 1 2"]) == predict(run, ["0 _ 1 2"])


def test_json_is_a_list_a_text(run: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["predict", run, "0 _ 1 2", "_ _ 1 2", "--json", "--top-k", "3"]) == 0
    printed = json.loads(capsys.readouterr().out)
    assert printed == predict(run, ["0 _ 1 2", "_ _ 1 2"], top_k=3)
    assert [len(of_text) for of_text in printed] == [1, 2]
    assert set(printed[0][0]) == {"position", "predictions", "text"}
    assert [set(each) for each in printed[0][0]["predictions"]] == [{"token", "probability", "oracle"}] * 3


def test_beside_each_probability_is_the_exact_one(run: str, capsys: pytest.CaptureFixture[str]) -> None:
    oracle = parse(load_run(run).composed).data.instance.oracle()
    row_1L = torch.tensor([[0, 3, 1, 2]])
    exact_V = oracle.posterior(row_1L, row_1L != 3)[0, 1]
    ((mask,),) = predict(run, ["0 _ 1 2"], top_k=3)
    for each in mask["predictions"]:
        assert each["oracle"] == pytest.approx(float(exact_V[int(each["token"])]), abs=1e-12)
    assert main(["predict", run, "0 _ 1 2", "--top-k", "1"]) == 0
    assert f"(exact {mask['predictions'][0]['oracle']:.3f})" in capsys.readouterr().out


def test_without_json_it_is_for_reading(run: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["predict", run, "0 _ 1 2"]) == 0
    ((mask,),) = predict(run, ["0 _ 1 2"])
    filled, line = capsys.readouterr().out.splitlines()
    assert filled == mask["text"]
    best = mask["predictions"][0]
    assert line.split()[:4] == ["position", "1", best["token"], f"{best['probability']:.3f}"]


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("0 _ 1", ["3 symbols", "has 4"]),
        ("0 _ 1 2 1", ["5 symbols", "has 4"]),
        ("0 1 1 2", ["has no _"]),
        ("", ["has no _"]),
        ("0 _ 3 2", ["'3'", "0 to 2"]),  # 3 is [MASK] itself
        ("0 _ 9 2", ["'9'", "0 to 2"]),
        ("0 _ -1 2", ["'-1'", "0 to 2"]),
        ("0 _ ² 2", ["'²'", "0 to 2"]),
        ("0 _ the 2", ["'the'", "0 to 2"]),
    ],
)
def test_a_text_that_is_no_row(run: str, capsys: pytest.CaptureFixture[str], text: str, names: list[str]) -> None:
    assert main(["predict", run, text]) == 2
    printed = capsys.readouterr()
    assert [name for name in names if name not in printed.err] == [], printed.err
    assert "Traceback" not in printed.err
    assert printed.out == ""


@pytest.mark.parametrize("top_k", [0, -1, 5])
def test_top_k_is_at_most_the_vocabulary(run: str, capsys: pytest.CaptureFixture[str], top_k: int) -> None:
    assert main(["predict", run, "0 _ 1 2", f"--top-k={top_k}"]) == 2
    assert "between 1 and the size of the vocabulary, 4" in capsys.readouterr().err


def test_a_checkpoint_may_be_named(run: str) -> None:
    named = predict(str(Path(run) / "checkpoints" / "best.ckpt"), ["0 _ 1 2"])
    assert named == predict(run, ["0 _ 1 2"])
