"""Text from end to end: a run keeps all that it needs of its tokenizer, and its folder is enough to use it."""

import json
import math
import random
import shutil
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import composed
from helpers import dna_tokenizer, run_of, settings_of, train

from mlm_lightning.__main__ import main
from mlm_lightning.batch import IGNORE_INDEX
from mlm_lightning.commands.evaluate import evaluate
from mlm_lightning.commands.export import export
from mlm_lightning.commands.predict import predict
from mlm_lightning.commands.train import show
from mlm_lightning.data.datamodule import MLMDataModule
from mlm_lightning.data.text import settings as settings_module
from mlm_lightning.data.text.prepare.cache import noted_runs, token_caches
from mlm_lightning.errors import ConfigError, UserError
from mlm_lightning.masking import Bernoulli
from mlm_lightning.runs.folder import Run, read_metrics
from mlm_lightning.runs.load import load_run
from mlm_lightning.runs.resume import check_tokens

VOCABULARY = "the a cat dog bird sees hears follows quiet loud old young river house garden and near of walking walked"
WORDS = VOCABULARY.split(" ")
TEXT = "the [MASK] dog sees the [MASK] ."

DISTILBERT = (
    "model=distilbert",
    "model.config={n_layers: 1, dim: 16, n_heads: 2, hidden_dim: 32}",
    "optim.lr=1e-2",
)
TRANSFORMER = ("model=transformer", "model.d_model=16", "model.num_layers=1", "model.nhead=2", "model.dim_feedforward=32")


def write_documents(file: Path, seed: int, documents: int = 200) -> Path:
    choose = random.Random(seed)
    lines = [" ".join(choose.choices(WORDS, k=choose.randint(5, 25))) + " ." for _ in range(documents)]
    file.write_text("\n".join(lines) + "\n")
    return file


@dataclass
class TextRun:
    run: Run
    corpus: Path
    cache: Path

    @property
    def folder(self) -> str:
        return str(self.run.folder)


def text_config(folder: Path, corpus: Path, *model: str) -> dict[str, Any]:
    return composed(
        f"output_dir={folder / 'outputs'}",
        *("data=text", f"data.path={corpus}", "data.tokenizer=train", "data.vocab_size=200", "data.chunk_size=16"),
        *("~data.num_symbols", "~data.depth", "data.val_size=0.2", "data.test_size=null", f"data.cache_dir={folder / 'cache'}"),
        *("~model.d_model", "~model.num_layers", "~model.nhead", "~model.dim_feedforward", *model),
    )


def text_config_of(run: TextRun) -> dict[str, Any]:
    """Of its data."""
    return text_config(run.corpus.parent, run.corpus)


def trained(folder: Path, *model: str) -> TextRun:
    corpus = write_documents(folder / "corpus.txt", seed=0)
    config = text_config(folder, corpus, *model)
    train(config)
    return TextRun(run_of(config), corpus, folder / "cache")


@pytest.fixture(scope="module")
def distilbert(tmp_path_factory: pytest.TempPathFactory) -> TextRun:
    return trained(tmp_path_factory.mktemp("distilbert"), *DISTILBERT)


@pytest.fixture(scope="module")
def transformer(tmp_path_factory: pytest.TempPathFactory) -> TextRun:
    return trained(tmp_path_factory.mktemp("transformer"), *TRANSFORMER)


@pytest.fixture(params=["distilbert", "transformer"])
def either(request: pytest.FixtureRequest) -> TextRun:
    return request.getfixturevalue(request.param)


def test_a_text_run_is_complete(either: TextRun) -> None:
    summary = either.run.summary
    assert summary is not None
    assert summary["steps"] == 8
    assert summary["tokens"] == 8 * 16 * 16
    assert 0 < summary["val/loss"] < 6
    assert "val/oracle_loss" not in summary


def test_the_tokenizer_is_in_the_run(either: TextRun) -> None:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(either.run.folder / "tokenizer")
    loaded = load_run(either.folder)
    assert tokenizer.get_vocab() == loaded.tokenizer.get_vocab()
    assert loaded.vocab.tokens is not None
    assert [loaded.vocab.token(number) for number in tokenizer("the cat")["input_ids"]] == ["[CLS]", "the", "cat", "[SEP]"]


def test_predictions_are_the_softmax_of_the_model(either: TextRun) -> None:
    loaded = load_run(either.folder)
    input_ids = loaded.tokenizer(TEXT)["input_ids"]
    with torch.no_grad():
        probs_LV = loaded.model(torch.tensor([input_ids]))[0].softmax(-1)
    (masks,) = predict(either.folder, [TEXT], top_k=3)
    assert [mask["position"] for mask in masks] == [2, 6]  # [CLS] is position 0
    for mask in masks:
        best = probs_LV[mask["position"]].topk(3)
        assert [each["token"] for each in mask["predictions"]] == [
            loaded.vocab.token(number) for number in best.indices.tolist()
        ]
        assert [each["probability"] for each in mask["predictions"]] == pytest.approx(best.values.tolist(), abs=1e-6)


def test_the_text_is_filled_with_the_best(either: TextRun) -> None:
    (masks,) = predict(either.folder, [TEXT])
    first, second = (mask["predictions"][0]["token"].removeprefix("##") for mask in masks)
    assert masks[0]["text"] == masks[1]["text"] == f"the {first} dog sees the {second} ."


def test_a_prediction_that_is_mask_itself_fills_its_own_place(distilbert: TextRun, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    shutil.copytree(distilbert.run.folder, folder)
    mask_id = load_run(folder).vocab.mask_id
    state = torch.load(folder / "checkpoints" / "best.ckpt", weights_only=True)
    state["state_dict"]["model.hf_model.vocab_projector.bias"][mask_id] = 1e3
    torch.save(state, folder / "checkpoints" / "best.ckpt")
    (masks,) = predict(str(folder), [TEXT])
    assert masks[0]["predictions"][0]["token"] == "[MASK]"
    assert masks[0]["text"] == TEXT


@pytest.mark.parametrize(
    ("text", "names"),
    [("the cat", ["has no [MASK]"]), ("the [MASK]" + " cat" * 20, ["24 tokens", "rows of 16", "shorten"])],
)
def test_a_text_that_cannot_be_predicted(
    distilbert: TextRun, capsys: pytest.CaptureFixture[str], text: str, names: list[str]
) -> None:
    assert main(["predict", distilbert.folder, text]) == 2
    errors = capsys.readouterr().err
    assert [name for name in names if name not in errors] == [], errors


def test_evaluate_repeats_the_summary(either: TextRun) -> None:
    result = evaluate(str(either.run.checkpoints / "last.ckpt"))
    assert either.run.summary is not None
    for name in ("val/loss", "val/perplexity", "val/accuracy"):
        assert result[name] == pytest.approx(either.run.summary[name], abs=1e-6)


COUNTED = ("val/unigram_loss", "val/bigram_loss", "val/unigram_accuracy", "val/gain_over_unigram")


def counts_of(run: TextRun) -> torch.Tensor:
    """Of the tokens of the run's training text, by a loop over the file."""
    (file,) = run.cache.glob(f"{run.run.manifest['data']}/train.tokens")
    return torch.bincount(torch.from_numpy(np.fromfile(file, np.uint16).astype(np.int64)), minlength=200)


def unigram_loss(counts_V: torch.Tensor, labels: torch.Tensor, num_regular: int) -> float:
    total = int(counts_V.sum()) + num_regular
    return float(-((counts_V[labels] + 1) / total).log().mean())


def test_what_counting_words_gives_stands_beside_the_loss(either: TextRun) -> None:
    summary = either.run.summary
    assert summary is not None
    source, vocab = settings_of(text_config_of(either)).data.instance, load_run(either.folder).vocab
    source.prepare()
    batches = MLMDataModule(source, Bernoulli(rate=0.15), batch_size=7)  # the run's has 16
    (condition,) = batches.conditions
    labels = torch.cat([batch.labels_BL[batch.labels_BL != IGNORE_INDEX] for batch in batches.eval_batches("val", condition)])
    counts_V = counts_of(either)[: vocab.size] * vocab.is_regular_V
    num_regular = int(vocab.is_regular_V.sum())
    assert summary["val/unigram_loss"] == pytest.approx(unigram_loss(counts_V, labels, num_regular), abs=1e-6)
    assert summary["val/unigram_accuracy"] == pytest.approx(float((labels == counts_V.argmax()).double().mean()))
    assert summary["val/gain_over_unigram"] == pytest.approx(summary["val/unigram_loss"] - summary["val/loss"])
    assert 0 < summary["val/bigram_loss"] < math.log(200)
    lines = read_metrics(either.run.folder / "metrics.csv")
    measured = [float(line["val/bigram_loss"]) for line in lines if line["val/loss"]]
    assert measured == [summary["val/bigram_loss"]] * 2  # frozen masks, and no counts that change


def test_evaluate_counts_the_text_of_the_training(either: TextRun, tmp_path: Path) -> None:
    last = str(either.run.checkpoints / "last.ckpt")
    assert either.run.summary is not None
    assert {name: evaluate(last)[name] for name in COUNTED} == pytest.approx(
        {name: either.run.summary[name] for name in COUNTED}, abs=1e-6
    )
    other = write_documents(tmp_path / "other.txt", seed=1)
    other.write_text("the the the cat .\n" * 200)
    elsewhere, gone = [f"data.path={other}"], f"data.cache_dir={tmp_path / 'cache'}"
    found = evaluate(last, elsewhere)
    vocab = load_run(either.folder).vocab
    counts_V = counts_of(either)[: vocab.size] * vocab.is_regular_V
    words = {word: int(counts_V[vocab.tokens.index(word)]) for word in ("the", "cat", ".")}
    total = int(counts_V.sum() + vocab.is_regular_V.sum())
    losses = {word: -math.log((count + 1) / total) for word, count in words.items()}
    # a mean of these three, by the counts of the run's own text, in which "the" is no more frequent than other words
    assert min(losses.values()) <= found["val/unigram_loss"] <= max(losses.values())
    assert found["val/unigram_loss"] > 2  # by counts of these documents it would be about 1.1
    # without the run's own text, no counts of another one
    there = evaluate(last, [*elsewhere, gone])
    assert there["val/loss"] == found["val/loss"]
    assert not set(COUNTED) & set(there)


def test_further_mask_rates_and_data_are_seen_beside_the_same_counts(transformer: TextRun, tmp_path: Path) -> None:
    other = write_documents(tmp_path / "other.txt", seed=1)
    further = [f"eval.data={{other: {{path: '{other}'}}}}", "eval.mask_rates=[0.15,0.5]"]
    found = evaluate(str(transformer.run.checkpoints / "last.ckpt"), further)
    assert {f"{name}{ending}" for name in COUNTED for ending in ("", "_rate_0.15", "_rate_0.50", "_other")} <= set(found)
    assert found["val/bigram_loss"] == found["val/bigram_loss_rate_0.15"] != found["val/bigram_loss_rate_0.50"]
    assert found["val/unigram_loss"] != found["val/unigram_loss_other"]


def test_a_run_that_learned_nothing_says_what_to_try(transformer: TextRun, capsys: pytest.CaptureFixture[str]) -> None:
    assert transformer.run.summary is not None
    show(transformer.run.folder, transformer.run.summary)
    text = capsys.readouterr().out
    assert "loss of counting tokens" in text
    assert "learned token frequencies" in text  # after 8 steps
    assert "Try more steps" in text
    show(transformer.run.folder, transformer.run.summary | {"val/loss": 0.1})
    assert "frequencies" not in capsys.readouterr().out
    # one of an earlier version
    show(transformer.run.folder, {name: each for name, each in transformer.run.summary.items() if name not in COUNTED})
    assert "counting" not in capsys.readouterr().out


def test_tensorboard_has_the_losses_in_one_chart(transformer: TextRun) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    from tensorboard.plugins.custom_scalar.layout_pb2 import Layout

    events = EventAccumulator(str(transformer.run.folder / "tensorboard"))
    events.Reload()
    (event,) = events.Tensors("custom_scalars__config__")
    (category,) = Layout.FromString(event.tensor_proto.string_val[0]).category
    drawn = list(category.chart[0].multiline.tag)
    assert drawn == ["train/loss", "val/loss", "val/unigram_loss", "val/bigram_loss"]
    assert set(drawn) <= set(events.Tags()["scalars"])


def test_counts_are_metrics_of_what_predicts_tokens(transformer: TextRun) -> None:
    from mlm_lightning.config.compose import composer
    from mlm_lightning.config.parse import parse

    monitor = "callbacks.checkpoint.monitor=val/gain_over_unigram_rate_0.50"
    text = ["data=text", f"data.path={transformer.corpus}", f"data.cache_dir={transformer.cache}", "data.tokenizer=train"]
    with composer() as hydra:
        parse(hydra.composed([monitor, "eval.mask_rates=[0.5]", *text]))
        with pytest.raises(ConfigError, match=r"val/gain_over_unigram_rate_0.50: is no metric of this run"):
            parse(hydra.composed([monitor]))
        with pytest.raises(ConfigError, match=r"val/gain_over_unigram: is no metric of this run"):
            parse(hydra.composed([monitor.removesuffix("_rate_0.50"), "task=classify", "task.label=root"]))


def test_a_split_that_is_not_there_is_a_mistake(distilbert: TextRun, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["evaluate", distilbert.folder, "--split", "test"]) == 2
    assert "there is no test split" in capsys.readouterr().err


def test_other_documents_are_read_with_the_runs_own_tokens(either: TextRun, tmp_path: Path) -> None:
    # words of other letters: a tokenizer trained on these would be another one
    other = write_documents(tmp_path / "other.txt", seed=1)
    other.write_text(other.read_text() + "zebra xylophone quiz jazz\n" * 40)
    loss = evaluate(either.folder, [f"data.path={other}", f"data.cache_dir={tmp_path / 'cache'}"])["val/loss"]
    # the same as naming that tokenizer
    named = [f"data.path={other}", f"data.tokenizer={either.run.folder / 'tokenizer'}", "data.vocab_size=null"]
    assert loss == evaluate(either.folder, [*named, f"data.cache_dir={tmp_path / 'cache'}"])["val/loss"]
    assert loss != evaluate(either.folder)["val/loss"]


def test_further_documents_are_read_with_the_runs_own_tokens(transformer: TextRun, tmp_path: Path) -> None:
    # words of other letters: a tokenizer trained on these would be another one
    other = write_documents(tmp_path / "other.txt", seed=1)
    other.write_text(other.read_text() + "zebra xylophone quiz jazz\n" * 40)
    further = f"eval.data={{other: {{path: '{other}'}}}}"
    config = text_config(tmp_path, transformer.corpus, *TRANSFORMER, further)
    summary = train(config)
    assert transformer.run.summary is not None
    assert summary["val/loss"] == transformer.run.summary["val/loss"]
    last = str(transformer.run.checkpoints / "last.ckpt")
    alone = evaluate(last, [f"data.path={other}"])
    for name in ("val/loss", "val/accuracy"):
        assert summary[f"{name}_other"] == pytest.approx(alone[name], abs=1e-6)
    assert evaluate(last, [further])["val/loss_other"] == alone["val/loss"]

    caches = token_caches(tmp_path / "cache")
    assert [noted_runs(cache) for cache in caches] == [([run_of(config).folder], True)] * 2
    assert train(config) == summary
    other.write_text((before := other.read_text()) + "something else .\n")
    with pytest.raises(UserError, match=r"is complete, but the files of eval\.data\.other have changed since; resume=never"):
        train(config)
    corpus = Path(transformer.corpus)
    own, changed = corpus.read_text(), other.read_text()
    other.write_text(before)
    corpus.write_text("something else .\n" * 1000)
    with pytest.raises(UserError, match=r"is complete, but the files of data have changed since"):
        train(config)
    corpus.write_text(own)
    other.write_text(changed)
    (run_of(config).folder / "summary.json").unlink()
    with pytest.raises(UserError, match=r"data files: .*→"):
        train(config)


def test_further_documents_with_other_tokens_leave_nothing(transformer: TextRun, tmp_path: Path) -> None:
    vocab = tmp_path / "vocab.txt"
    vocab.write_text("[PAD]\n[UNK]\n[CLS]\n[SEP]\n[MASK]\nthe\n")
    further = f"eval.data={{other: {{tokenizer: '{vocab}', vocab_size: null}}}}"
    with pytest.raises(
        UserError, match=r"eval\.data\.other: its vocabulary is not that of data \(data → here: .* → 6 tokens; id 5: .* → the"
    ):
        train(text_config(tmp_path, transformer.corpus, *TRANSFORMER, further))
    gone = f"eval.data={{other: {{path: '{tmp_path / 'gone.txt'}'}}}}"
    with pytest.raises(UserError, match=r"eval\.data\.other\.path=.*gone\.txt"):
        train(text_config(tmp_path, transformer.corpus, *TRANSFORMER, gone))
    assert not (tmp_path / "outputs").exists()


def test_rows_longer_than_the_model_are_a_mistake(transformer: TextRun, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["evaluate", transformer.folder, "data.chunk_size=32"]) == 2
    assert "rows have 32 tokens" in capsys.readouterr().err


def test_documents_that_are_gone_are_a_mistake(either: TextRun, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert main(["evaluate", either.folder, f"data.path={tmp_path / 'gone.txt'}"]) == 2
    assert "gone.txt" in capsys.readouterr().err


@pytest.fixture
def without_data(distilbert: TextRun, tmp_path: Path) -> Iterator[TextRun]:
    """Only the run's folder is left."""
    away = tmp_path / "away"
    away.mkdir()
    shutil.move(distilbert.cache, away / "cache")
    shutil.move(distilbert.corpus, away / "corpus.txt")
    yield distilbert
    shutil.rmtree(distilbert.cache, ignore_errors=True)
    shutil.move(away / "cache", distilbert.cache)
    shutil.move(away / "corpus.txt", distilbert.corpus)


def test_the_folder_alone_is_enough_to_predict_and_export(
    without_data: TextRun, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    ((mask,),) = predict(without_data.folder, ["the [MASK] ."])
    assert len(mask["predictions"]) == 5
    assert export(without_data.folder, tmp_path / "exported").is_dir()
    # but not to evaluate
    assert main(["evaluate", without_data.folder]) == 2
    assert "corpus.txt" in capsys.readouterr().err


# export


@pytest.fixture(scope="module")
def exported(distilbert: TextRun, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("exported") / "my" / "model"
    assert main(["export", distilbert.folder, str(folder)]) == 0
    return folder


def test_the_exported_pipeline_predicts_what_predict_does(
    distilbert: TextRun, exported: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from transformers import pipeline

    fill_mask = pipeline("fill-mask", model=str(exported), device="cpu")
    capsys.readouterr()
    texts = ["the [MASK] dog sees a cat", "a quiet [MASK] near the river .", TEXT]
    assert main(["predict", distilbert.folder, *texts, "--json", "--top-k", "7"]) == 0
    for text, masks in zip(texts, json.loads(capsys.readouterr().out), strict=True):
        answer: Any = fill_mask(text, top_k=7)
        for mask, expected in zip(masks, answer if len(masks) > 1 else [answer], strict=True):
            found = {each["token"]: each["probability"] for each in mask["predictions"]}
            assert found == pytest.approx({each["token_str"]: each["score"] for each in expected}, abs=1e-5)
            assert list(found) == [each["token_str"] for each in expected]


def test_auto_model_finds_every_weight(distilbert: TextRun, exported: Path) -> None:
    from transformers import AutoModelForMaskedLM

    model, info = AutoModelForMaskedLM.from_pretrained(exported, output_loading_info=True)
    assert {name: found for name, found in info.items() if found} == {}
    assert type(model).__name__ == "DistilBertForMaskedLM"
    ours = load_run(distilbert.folder).model.state_dict()
    for name, weight in model.state_dict().items():
        assert torch.equal(weight, ours[f"hf_model.{name}"]), name


def test_an_exported_folder_can_be_trained_on(exported: Path, distilbert: TextRun, tmp_path: Path) -> None:
    config = text_config(tmp_path, distilbert.corpus, "model=pretrained", f"model.checkpoint={exported}", "model.config={}")
    config["data"] |= {"tokenizer": str(exported), "vocab_size": None}
    config["trainer"]["max_steps"] = 1
    config["optim"]["lr"] = 1e-9
    assert distilbert.run.summary is not None
    assert train(config)["val/loss"] == pytest.approx(distilbert.run.summary["best/val/loss"], rel=1e-4)


def test_a_run_on_documents_that_are_read_otherwise_now_is_refused_in_a_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    corpus = tmp_path / "dna.txt"
    corpus.write_text("GATTACA\nCCTGAAG\n" * 100)
    config = text_config(tmp_path, corpus, *TRANSFORMER, "trainer.max_steps=1")
    config["data"] |= {"tokenizer": dna_tokenizer(tmp_path / "dna"), "vocab_size": None}
    with monkeypatch.context() as patch:
        patch.setattr(settings_module, "was_misread", lambda tokenizer: False)  # as an earlier version
        train(config)
    with pytest.raises(UserError, match=r"is complete, but the reading of text was mended since: .*; resume=never"):
        train(config)
    (run_of(config).folder / "summary.json").unlink()
    with pytest.raises(UserError, match=r"data files: .* → .*\nthe reading of text was mended since: .*\nresume=never"):
        train(config)
    source = settings_of(config).data.instance
    assert source.rows("train")[torch.tensor([0])][0, [0, 8, 9]].tolist() == [1, 2, 1]  # [CLS] … [SEP] [CLS]


def with_other_vowels(corpus: Path, folder: Path) -> Path:
    """As many tokens, of which most are others."""
    turned = folder / "turned.txt"
    turned.write_text(corpus.read_text().translate(str.maketrans("aeo", "eoa")))
    return turned


def test_a_checkpoint_is_not_trained_on_the_tokens_of_a_new_tokenizer(
    exported: Path, distilbert: TextRun, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    def config(corpus: Path, checkpoint: Path) -> dict[str, Any]:
        return text_config(tmp_path, corpus, "model=pretrained", f"model.checkpoint={checkpoint}", "model.config={}")

    turned = with_other_vowels(distilbert.corpus, tmp_path)
    with pytest.raises(ConfigError, match=r"model\.checkpoint=.*: its tokens are not those of data .*id \d+: .* → .*; choose"):
        train(config(turned, exported))
    assert not (tmp_path / "outputs").exists()
    vocab, again = load_run(distilbert.folder).vocab, config(distilbert.corpus, exported)
    settings = settings_of(again)
    check_tokens(settings, None, vocab)  # the same documents give the same tokens
    assert vocab.tokens is not None
    other = replace(vocab, tokens=("[pad]", *vocab.tokens[1:]))
    again["data"] |= {"tokenizer": str(exported), "vocab_size": None}
    check_tokens(settings_of(again), None, other)  # which was chosen, and not trained
    assert "104 tokens → 104 tokens; id 0: [PAD] → [pad])" in caplog.text
    bare = shutil.copytree(exported, tmp_path / "bare", ignore=shutil.ignore_patterns("tokenizer*"))
    with caplog.at_level("INFO"):
        check_tokens(settings_of(config(distilbert.corpus, bare)), None, other)
    assert "brings no tokenizer" in caplog.text


@pytest.mark.parametrize("key", ["resume", "init.from_run"])
def test_weights_of_other_tokens_are_refused_and_leave_no_folder(transformer: TextRun, tmp_path: Path, key: str) -> None:
    turned = with_other_vowels(transformer.corpus, tmp_path)
    given = (*TRANSFORMER, f"{key}='{transformer.folder}'", "trainer.max_steps=9")
    config = text_config(tmp_path, turned, *given)
    with pytest.raises(
        ConfigError, match=rf"{key}=.*: its tokens are not those of data .*104 tokens → 104 tokens; id \d+: .*; choose"
    ):
        train(config)
    assert not (tmp_path / "outputs").exists()
    config["data"] |= {"tokenizer": f"{transformer.folder}/tokenizer", "vocab_size": None}
    assert train(config)["steps"] == 9


def test_an_embedding_may_be_larger_than_the_tokenizer(distilbert: TextRun, exported: Path, tmp_path: Path) -> None:
    """The ids beyond are the most probable ones, and never named."""
    from transformers import AutoModelForMaskedLM

    model = AutoModelForMaskedLM.from_pretrained(exported)
    model.resize_token_embeddings(128)
    with torch.no_grad():
        model.get_output_embeddings().bias[104:] = 50.0
    padded = shutil.copytree(exported, tmp_path / "padded")
    model.save_pretrained(padded)
    config = text_config(tmp_path, distilbert.corpus, "model=pretrained", f"model.checkpoint={padded}", "model.config={}")
    config["data"] |= {"tokenizer": str(padded), "vocab_size": None}
    assert train(config)["val/accuracy"] == 0  # of what is predicted, which has no name
    loaded = load_run(run_of(config).folder)
    assert (loaded.vocab.size, len(loaded.vocab.named_ids)) == (104, 104)
    ((mask,),) = predict(str(run_of(config).folder), ["the [MASK] dog"], top_k=104)
    assert len(mask["predictions"]) == 104
    assert sum(each["probability"] for each in mask["predictions"]) < 0.01
    expected = loaded.model(torch.tensor([loaded.tokenizer("the [MASK] dog")["input_ids"]]))[0, 2].softmax(-1)[:104]
    assert mask["predictions"][0]["probability"] == pytest.approx(expected.max().item(), rel=1e-4)


def test_the_exported_folder_holds_safetensors_and_no_pickle(exported: Path) -> None:
    names = {path.name for path in exported.iterdir()}
    assert {"model.safetensors", "config.json", "tokenizer.json", "tokenizer_config.json", "README.md"} <= names
    assert not [name for name in names if name.endswith((".bin", ".pt", ".ckpt", ".pkl"))]
