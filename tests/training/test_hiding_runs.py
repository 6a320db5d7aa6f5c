"""Runs with each way of hiding a token: what the batches hold, what is learned, and what leaks."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import conditions_of, problems, run_of, train
from torch import Tensor, nn

from mlm_lightning.batch import IGNORE_INDEX, Vocab
from mlm_lightning.commands.predict import predict
from mlm_lightning.errors import UserError
from mlm_lightning.masking import Bernoulli, Masking, Single
from mlm_lightning.randomness import key
from mlm_lightning.runs.identity import identity

Toy = Callable[..., dict[str, Any]]
VOCAB = Vocab(size=6, mask_id=5)
TOKENS_BL = torch.arange(40).view(4, 10) % 5
UNIFORM = ("data=uniform", "data.num_symbols=4", "data.seq_len=8", "masking.mask_share=1", "optim.lr=1e-2", "seed=1")


def masked(masking: Masking) -> Any:
    return masking(TOKENS_BL, torch.arange(4), vocab=VOCAB, key=key(0, 0))


@pytest.mark.parametrize("make", [Bernoulli, Single])
def test_what_each_way_shows(make: Callable[..., Masking]) -> None:
    token = masked(make(mask_share=1.0))
    predicted_BL = token.labels_BL != IGNORE_INDEX
    for hiding in ("key_padding", "both", "token_detached"):
        batch = masked(make(mask_share=1.0, hiding=hiding))
        assert torch.equal(batch.labels_BL, token.labels_BL)
        assert torch.equal(batch.positions_BK, token.positions_BK)
        shown = TOKENS_BL if hiding == "key_padding" else token.input_ids_BL
        assert torch.equal(batch.input_ids_BL, shown)
        if hiding == "token_detached":
            assert batch.hidden_BL is None
        else:
            assert torch.equal(batch.hidden_BL, predicted_BL)
    assert token.hidden_BL is None


def test_evaluation_hides_as_training_does(toy: Toy) -> None:
    further = "eval.data={k1: {filter_level: 1}}"
    config = toy("masking.hiding=both", "eval.mask_rates=[0.3]", "eval.masking=span", further)
    conditions = conditions_of(config)
    assert len(conditions) == 3
    assert {condition.masking.hiding for condition in conditions} == {"both"}
    assert [c.masking.hiding for c in conditions_of(toy("masking.hiding=both", "eval.masking=single"))] == ["both"]


def test_the_default_is_the_run_that_it_was(toy: Toy) -> None:
    before = toy()
    del before["masking"]["hiding"]  # as an earlier version composed it
    assert identity(before) == identity(toy()) != identity(toy("masking.hiding=both"))


def test_key_padding_leaks_and_the_others_do_not(toy: Toy) -> None:
    excess = {}
    for hiding in ("token", "key_padding", "both", "token_detached"):
        config = toy(*UNIFORM, "trainer.max_steps=60", "trainer.val_check_interval=60", f"masking.hiding={hiding}")
        del config["data"]["depth"]  # of the toy's tree
        summary = train(config)
        assert summary["val/oracle_loss"] == pytest.approx(math.log(4))
        excess[hiding] = summary["val/excess_loss"], summary["val/excess_loss_se"]
    assert excess["key_padding"][0] < -0.5
    assert all(value > -3 * error for hiding, (value, error) in excess.items() if hiding != "key_padding")


def test_the_detached_mask_stays_as_it_was_drawn(toy: Toy) -> None:
    rows = {}
    for hiding in ("token", "token_detached"):
        run = run_of(config := toy(f"masking.hiding={hiding}", "optim.weight_decay=0"))
        train(config)
        states = [
            torch.load(run.checkpoints / name, weights_only=True)["state_dict"] for name in ("previous.ckpt", "last.ckpt")
        ]
        rows[hiding] = [state["model.embedding.weight"] for state in states]
    assert not torch.equal(*(each[-1] for each in rows["token"]))
    assert torch.equal(*(each[-1] for each in rows["token_detached"]))
    assert not torch.equal(*(each[:-1] for each in rows["token_detached"]))


def test_prediction_hides_as_training_did(toy: Toy) -> None:
    train(config := toy("masking.hiding=both"))
    (answer,) = predict(str(run_of(config).folder), ["0 _ 1 2"])[0:1]
    assert sum(each["probability"] for each in answer[0]["predictions"]) == pytest.approx(1, abs=0.01)
    train(leaking := toy("masking.hiding=key_padding"))
    with pytest.raises(UserError, match=r"key_padding.*give a run"):
        predict(str(run_of(leaking).folder), ["0 _ 1 2"])


class Plain(nn.Module):
    def __init__(self, vocab_size: int, seq_len: int) -> None:
        super().__init__()
        self.table = nn.Embedding(vocab_size, vocab_size)

    def forward(
        self, input_ids_BL: Tensor, attention_mask_BL: Tensor | None = None, positions_BK: Tensor | None = None
    ) -> Tensor:
        logits_BLV = self.table(input_ids_BL)
        return logits_BLV if positions_BK is None else logits_BLV.gather(1, positions_BK[..., None].expand(-1, -1, 5))


@pytest.mark.parametrize("hiding", ["key_padding", "both", "token_detached"])
def test_a_model_that_cannot_says_so(toy: Toy, hiding: str, tmp_path: Path) -> None:
    config = toy(f"masking.hiding={hiding}")
    config["model"] = {"_target_": f"{__name__}.Plain"}
    (problem,) = problems(config)
    assert "masking.hiding" in problem
    assert "Plain" in problem
    config["model"] = {"_target_": "mlm_lightning.models.pretrained.PretrainedMLM", "architecture": "deberta"}
    found = problems(config)
    assert found == [] if hiding == "token_detached" else "deberta" in found[0]
