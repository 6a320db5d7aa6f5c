import copy
import inspect
import json
import os
import pickle
import re
import warnings
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import pytest
import torch
import torch.nn.functional as F
from omegaconf import OmegaConf
from torch import Tensor, nn
from transformers import AutoConfig, AutoModel, AutoModelForMaskedLM

from mlm_lightning.batch import IGNORE_INDEX
from mlm_lightning.models.pretrained import LAST_LAYERS, LINEAR_HEADS, SEPARATE_DOCUMENTS, PretrainedMLM

V, L, B, PAD = 31, 12, 4, 1
FROM_DATA = {"vocab_size", "seq_len", "pad_token_id", "separate_documents", "class_names"}

BERT = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 24}
CONFIGS = {
    "distilbert": {"dim": 16, "n_layers": 2, "n_heads": 2, "hidden_dim": 24},
    "bert": BERT,
    "roberta": BERT,
    "electra": {**BERT, "embedding_size": 8},
    "modernbert": {**BERT, "num_hidden_layers": 3, "sparse_prediction": True},
    "albert": {**BERT, "embedding_size": 8},
    "deberta-v2": BERT,
}


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


def tiny(architecture: str = "distilbert", seq_len: int = L, **settings) -> PretrainedMLM:
    config = {**CONFIGS.get(architecture, BERT), **settings.pop("config", {})}
    return PretrainedMLM(V, seq_len, architecture=architecture, config=config, pad_token_id=PAD, **settings)


def batch(padded: bool) -> tuple[Tensor, Tensor, Tensor | None, Tensor]:
    """Ids, labels, attention mask, and three predicted positions a row, of which the last is unused in every second row."""
    ids_BL = torch.randint(2, V, (B, L))
    mask_BL = None
    if padded:
        mask_BL = (torch.arange(L) < torch.tensor([L, 9, 7, 6]).unsqueeze(1)).long()
        ids_BL = ids_BL.masked_fill(mask_BL == 0, PAD)
    positions_BK = torch.stack([torch.randperm(6)[:3] for _ in range(B)])
    positions_BK[::2, 2] = 5 if padded else L - 1
    labels_BL = torch.full((B, L), IGNORE_INDEX)
    labels_BL.scatter_(1, positions_BK, torch.randint(2, V, (B, 3)))
    labels_BL[::2].scatter_(1, positions_BK[::2, 2:], IGNORE_INDEX)
    return ids_BL, labels_BL, mask_BL, positions_BK


def warned(caplog: pytest.LogCaptureFixture) -> list[str]:
    """What the package itself warned of."""
    return [record.getMessage() for record in caplog.records if record.name.startswith("mlm_lightning")]


def gradients(model: nn.Module, loss: Tensor) -> dict[str, Tensor]:
    model.zero_grad()
    loss.backward()
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("padded", [False, True])
@pytest.mark.parametrize("architecture", sorted({*CONFIGS, *LAST_LAYERS, "modernbert, local last"}))
def test_predicted_positions_give_the_librarys_own_loss_and_gradients(architecture, padded):
    architecture, _, local = architecture.partition(", ")
    config = {"local_attention": 4, "layer_types": ["full_attention", "full_attention", "sliding_attention"]} if local else {}
    model = tiny(architecture, config=config).eval()
    theirs = AutoModelForMaskedLM.from_config(model.hf_model.config, dtype=torch.float32).eval()
    theirs.load_state_dict(model.hf_model.state_dict())
    ids_BL, labels_BL, mask_BL, positions_BK = batch(padded)

    their_loss = theirs(input_ids=ids_BL, attention_mask=mask_BL, labels=labels_BL).loss
    logits_BKV = model(ids_BL, mask_BL, positions_BK)
    assert logits_BKV.shape == (B, 3, V)
    loss = F.cross_entropy(logits_BKV.flatten(0, 1), labels_BL.gather(1, positions_BK).flatten())
    assert abs(loss.item() - their_loss.item()) < 1e-6

    ours, full = gradients(model.hf_model, loss), gradients(theirs, their_loss)
    assert ours.keys() == full.keys()
    for name, gradient in full.items():
        assert (ours[name] - gradient).abs().max() < 1e-6, name

    full_BLV = model(ids_BL, mask_BL)
    their_BLV = theirs(input_ids=ids_BL, attention_mask=mask_BL).logits
    assert full_BLV.shape == (B, L, V)
    torch.testing.assert_close(full_BLV, their_BLV, atol=1e-6, rtol=0)


INNER = {"distilbert": "ffn.lin1", "modernbert": "mlp.Wi"}


@pytest.mark.parametrize("architecture", [*LAST_LAYERS, "deberta-v2"])
def test_only_predicted_positions_reach_the_head_and_the_end_of_the_last_layer(architecture):
    model = tiny(architecture)
    lengths = []

    def watch(module):
        module.register_forward_hook(lambda module, inputs, output: lengths.append(inputs[0].shape[1]))

    watch(model.hf_model.get_output_embeddings())
    layers = []
    if architecture in LAST_LAYERS:
        layers = model.hf_model.base_model.get_submodule(LAST_LAYERS[architecture][0])
        for layer in layers:
            watch(layer.get_submodule(INNER.get(architecture, "intermediate.dense")))
    ids_BL, _, _, positions_BK = batch(False)
    model(ids_BL, None, positions_BK)
    assert lengths == [*[L] * (len(layers) - 1), *[3] * bool(layers), 3]


@pytest.mark.parametrize("with_positions", [False, True])
@pytest.mark.parametrize("architecture", LINEAR_HEADS)
def test_logits_are_what_the_last_layer_makes_of_hidden_states(architecture, with_positions):
    config = APART.get(architecture, BERT)
    model = PretrainedMLM(V, L, architecture=architecture, config=config, pad_token_id=PAD).eval()
    layer = model.output_layer()
    assert layer is model.hf_model.get_output_embeddings()
    for parameter in layer.parameters():
        nn.init.normal_(parameter)  # a bias that is zero would hide one that is added elsewhere
    ids_BL, _, mask_BL, positions_BK = batch(True)
    inputs = (ids_BL, mask_BL, positions_BK if with_positions else None)
    expected = model(*inputs)
    torch.testing.assert_close(layer(model.hidden_states(*inputs)), expected, atol=1e-6, rtol=1e-6)
    torch.testing.assert_close(model(*inputs), expected)


@pytest.mark.parametrize("architecture", ["distilbert", "bert", "modernbert", "deberta-v2"])
def test_gradient_checkpointing_changes_nothing(architecture):
    name = "attention_dropout" if architecture in ("distilbert", "modernbert") else "hidden_dropout_prob"
    plain = tiny(architecture, config={name: 0.0})
    frugal = tiny(architecture, gradient_checkpointing=True)
    frugal.load_state_dict(plain.state_dict())
    ids_BL, _, mask_BL, positions_BK = batch(True)
    results = []
    for model in (plain, frugal):
        model.train()
        for module in model.modules():
            if isinstance(module, nn.Dropout):
                module.p = 0.0
        # two passes before one backward: the recomputation must remember which positions were whose
        logits = [model(ids_BL, mask_BL, positions) for positions in (positions_BK, positions_BK[:, :1])]
        results.append(gradients(model, sum(x.square().sum() for x in logits)))
    assert results[0].keys() == results[1].keys()
    for name, gradient in results[0].items():
        torch.testing.assert_close(results[1][name], gradient, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("clone", [copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model))])
@pytest.mark.parametrize("architecture", ["distilbert", "bert", "modernbert", "deberta-v2"])
def test_copies_gather_for_themselves(architecture, clone):
    model = tiny(architecture).eval()
    ids_BL, _, _, positions_BK = batch(False)
    torch.testing.assert_close(clone(model)(ids_BL, None, positions_BK), model(ids_BL, None, positions_BK), rtol=0, atol=0)


@pytest.mark.parametrize("padded", [False, True])
@pytest.mark.parametrize("architecture", ["distilbert", "electra"])
def test_compiles_into_one_graph(architecture, padded):
    model = tiny(architecture).eval()
    ids_BL, _, mask_BL, positions_BK = batch(padded)
    compiled = torch.compile(model, backend="eager", fullgraph=True)
    expected_BKV = model(ids_BL, mask_BL, positions_BK)
    torch.testing.assert_close(compiled(ids_BL, mask_BL, positions_BK), expected_BKV, atol=1e-6, rtol=0)


@pytest.mark.parametrize("architecture", CONFIGS)
def test_a_saved_folder_is_a_checkpoint_here_and_a_plain_model_there(architecture, tmp_path, caplog):
    model = tiny(architecture).eval()
    model.hf_model.save_pretrained(tmp_path)
    ids_BL, _, mask_BL, positions_BK = batch(True)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        loaded = PretrainedMLM(V, L, checkpoint=str(tmp_path)).eval()
    assert warned(caplog) == []
    assert loaded.state_dict().keys() == model.state_dict().keys()
    torch.testing.assert_close(loaded(ids_BL, mask_BL, positions_BK), model(ids_BL, mask_BL, positions_BK), rtol=0, atol=0)
    theirs = AutoModelForMaskedLM.from_pretrained(tmp_path).eval()
    torch.testing.assert_close(theirs(ids_BL, mask_BL).logits, model(ids_BL, mask_BL), atol=1e-6, rtol=0)


@pytest.fixture
def folder(tmp_path):
    tiny("distilbert").hf_model.save_pretrained(tmp_path)
    return str(tmp_path)


def test_config_overrides_a_checkpoints(folder):
    model = PretrainedMLM(V, L, checkpoint=folder, architecture="distilbert", config={"dropout": 0.3})
    assert model.hf_model.distilbert.embeddings.dropout.p == 0.3
    reference = PretrainedMLM(V, L, checkpoint=folder)
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), reference.parameters(), strict=True))


def test_half_precision_checkpoints_train_in_full(tmp_path):
    tiny("bert").hf_model.to(torch.bfloat16).save_pretrained(tmp_path)
    assert {p.dtype for p in PretrainedMLM(V, L, checkpoint=str(tmp_path)).parameters()} == {torch.float32}


def test_new_weights_follow_torchs_seed():
    torch.manual_seed(3)
    first = tiny()
    torch.manual_seed(3)
    second = tiny()
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), second.parameters(), strict=True))


def test_a_checkpoint_without_a_head_warns_once(tmp_path, caplog):
    config = AutoConfig.for_model("bert", vocab_size=V, **BERT)
    AutoModel.from_config(config).save_pretrained(tmp_path)
    PretrainedMLM(V, L, checkpoint=str(tmp_path))
    (message,) = warned(caplog)
    assert re.match(r"model\.checkpoint=.* lacks .* weights, which start at random: cls\.", message)


@pytest.mark.parametrize("architecture", ["distilbert", "bert", "roberta", "modernbert"])
def test_from_scratch_it_has_positions_for_every_row(architecture):
    model = tiny(architecture, seq_len=600).eval()
    assert model(torch.full((1, 600), 3)).shape == (1, 600, V)
    assert model.hf_model.get_input_embeddings().padding_idx == PAD


def test_without_a_padding_token_every_token_is_learned():
    model = PretrainedMLM(V, L, architecture="bert", config=BERT)
    grads = gradients(model, model(torch.arange(V).unsqueeze(0)[:, :L]).square().sum())
    assert (grads["hf_model.bert.embeddings.word_embeddings.weight"][:L].abs().amax(-1) > 0).all()
    with pytest.raises(ValueError, match=r"model\.architecture=roberta: counts positions from its padding token"):
        PretrainedMLM(V, L, architecture="roberta", config=BERT)


def test_meta_reads_no_weights(folder):
    os.remove(f"{folder}/model.safetensors")
    with torch.device("meta"):
        model = PretrainedMLM(V, L, checkpoint=folder)
    assert all(p.is_meta for p in model.parameters())
    with pytest.raises(ValueError, match=re.escape(f"model.checkpoint={folder}: the folder is no model of transformers")):
        PretrainedMLM(V, L, checkpoint=folder)


@pytest.mark.parametrize("name", ["distilbert", "pretrained"])
def test_the_yamls_show_every_setting(name):
    settings = OmegaConf.to_container(OmegaConf.load(Path(__file__).parents[2] / f"conf/model/{name}.yaml"))["model"]
    assert settings.pop("_target_") == f"{PretrainedMLM.__module__}.{PretrainedMLM.__name__}"
    assert settings.keys() == inspect.signature(PretrainedMLM).parameters.keys() - FROM_DATA
    if name == "distilbert":
        with torch.device("meta"):
            model = PretrainedMLM(30_522, 128, pad_token_id=0, **settings)
        assert 66e6 < sum(p.numel() for p in model.parameters()) < 68e6  # the paper's 66 M


@pytest.mark.parametrize("architecture", ["distilbert", "roberta", "modernbert"])
def test_settings_can_be_checked_before_the_vocabulary_is_known(architecture, folder, caplog):
    with warnings.catch_warnings(), torch.device("meta"):
        warnings.simplefilter("error")
        PretrainedMLM(8, L, architecture=architecture)
        PretrainedMLM(8, L, checkpoint=folder)
        with pytest.raises(ValueError, match="max_position_embeddings=12"):
            PretrainedMLM(8, L + 1, architecture=architecture, config={"max_position_embeddings": 12})
    assert warned(caplog) == []


# mistakes


@pytest.mark.parametrize("device", ["cpu", "meta"])
@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({}, r"model\.checkpoint=null: model\.architecture is null, too"),
        ({"architecture": "distillbert"}, r"did you mean 'distilbert'\?.*albert, bert.*roberta"),
        ({"architecture": "gpt2"}, r"model\.architecture=gpt2: is no masked language model.*albert, bert"),
        ({"architecture": "bert", "revision": "main"}, r"model\.revision=main: belongs to a model\.checkpoint"),
        ({"architecture": "bert", "config": {"hiden_size": 8}}, r"model\.config\.hiden_size: unknown.*mean 'hidden_size'\?"),
        (
            {"architecture": "bert", "config": {"zzz": 8}},
            r"model\.config\.zzz: unknown key of bert; its keys are .*hidden_size",
        ),
        ({"architecture": "bert", "config": {"vocab_size": 8}}, r"model\.config\.vocab_size: comes from the data"),
        ({"architecture": "bert", "config": {"hidden_size": "wide"}}, r"model\.config: is not valid for bert: .*hidden_size"),
        ({"architecture": "distilbert", "config": {"dim": 10, "n_heads": 3}}, r"model\.config: is not valid.*n_heads"),
        (
            {"architecture": "bert", "config": {"max_position_embeddings": 8}},
            r"model\.config\.max_position_embeddings=8: is too few for rows of 12 tokens.*at most 8 tokens",
        ),
        (
            {"architecture": "roberta", "pad_token_id": 1, "config": {"max_position_embeddings": 12}},
            r"max_position_embeddings=12: is too few for rows of 12 tokens, which need 14 .*at most 10 tokens",
        ),
        ({"checkpoint": "/no/such/folder"}, r"model\.checkpoint=/no/such/folder: there is no such folder"),
        ({"checkpoint": "nobody/nothing"}, r"model\.checkpoint=nobody/nothing: neither a folder nor .*check the name"),
        ({"checkpoint": "nobody/nothing", "revision": "v7"}, r"nobody/nothing: at model\.revision=v7, neither"),
    ],
)
def test_mistakes_are_named(settings, message, device):
    with torch.device(device), pytest.raises(ValueError, match=message):
        PretrainedMLM(V, L, **settings)


@pytest.mark.parametrize("device", ["cpu", "meta"])
@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"architecture": "bert"}, r"model\.architecture=bert: contradicts model\.checkpoint=.*distilbert"),
        (
            {"vocab_size": V + 1},
            r"data\.tokenizer: the data's vocabulary has 32 tokens and the checkpoint's 31.*set data\.tokenizer",
        ),
        ({"seq_len": 513}, r"model\.config\.max_position_embeddings=512: is too few for rows of 513"),
        ({"config": {"droput": 0.1}}, r"model\.config\.droput: unknown key of distilbert; did you mean 'dropout'\?"),
        ({"config": {"dropout": "much"}}, r"model\.config\.dropout=much: is not valid"),
    ],
)
def test_mistakes_with_a_checkpoint_are_named(folder, settings, message, device):
    with torch.device(device), pytest.raises(ValueError, match=message):
        PretrainedMLM(**{"vocab_size": V, "seq_len": L, "checkpoint": folder, **settings})


def test_other_mistakes_with_a_checkpoint(folder, tmp_path, caplog):
    with pytest.raises(ValueError, match=r"model\.config: changes the shapes of the weights in model\.checkpoint"):
        PretrainedMLM(V, L, checkpoint=folder, config={"hidden_dim": 32})
    PretrainedMLM(V // 2, L, checkpoint=folder)
    (message,) = warned(caplog)
    assert "its embeddings stand for other tokens" in message
    AutoConfig.for_model("gpt2").save_pretrained(tmp_path / "gpt2")
    with pytest.raises(ValueError, match="'gpt2' model, which has no masked-LM head"):
        PretrainedMLM(V, L, checkpoint=str(tmp_path / "gpt2"))
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match=r"it needs config\.json and model\.safetensors"):
        PretrainedMLM(V, L, checkpoint=str(tmp_path / "empty"))


@pytest.mark.parametrize("architecture", CONFIGS)
def test_a_model_is_built_again_from_its_own_description(architecture: str) -> None:
    model = tiny(architecture).eval()
    description = json.loads(json.dumps(model.rebuild_config()))
    assert description.pop("_target_") == "mlm_lightning.models.pretrained.PretrainedMLM"
    again = PretrainedMLM(**description).eval()
    again.load_state_dict(model.state_dict())
    input_ids_BL = torch.randint(5, 20, (2, 8))
    torch.testing.assert_close(again(input_ids_BL), model(input_ids_BL), rtol=0, atol=0)


def test_a_checkpoint_is_trained_with_its_dropout(tmp_path: Path) -> None:
    tiny().hf_model.save_pretrained(tmp_path)
    model = PretrainedMLM(V, L, checkpoint=str(tmp_path))
    assert all(module.training for module in model.modules())


# documents that share a row

APART = {
    **dict.fromkeys(SEPARATE_DOCUMENTS, BERT),
    **{name: CONFIGS[name] for name in SEPARATE_DOCUMENTS if name in CONFIGS},
    # windows of 5 positions, smaller than the longest document
    "modernbert": {**BERT, "local_attention": 4, "layer_types": ["sliding_attention", "full_attention"]},
    "eurobert": {**BERT, "num_key_value_heads": 2},
    "rembert": {**BERT, "input_embedding_size": 8, "output_embedding_size": 16},
}
PACKED = [(5, 3, 1), (2, 10), (12,), (1,), (6, 6)]  # documents' lengths by row, of at most L = 12; the rest is padding
EVERY_ARCHITECTURE_APART = pytest.mark.parametrize("architecture", SEPARATE_DOCUMENTS)


def apart(architecture: str) -> tuple[PretrainedMLM, PretrainedMLM]:
    """A model that reads a row as one document, and the same one that keeps documents apart; the weights are so large that
    attention and positions matter a lot."""
    together, separate = (
        PretrainedMLM(
            V, L, architecture=architecture, config=APART[architecture], pad_token_id=PAD, separate_documents=each
        ).eval()
        for each in (False, True)
    )
    for parameter in together.parameters():
        if parameter.ndim > 1:
            nn.init.normal_(parameter, std=0.3)
    separate.load_state_dict(together.state_dict())
    return together, separate


def packed() -> tuple[Tensor, Tensor, list[tuple[int, slice]]]:
    """Ids, the number of each position's document, and where each document lies: (row, positions)."""
    ids_BL, document_BL = torch.full((len(PACKED), L), PAD), torch.zeros(len(PACKED), L, dtype=torch.long)
    places = []
    for b, lengths in enumerate(PACKED):
        start = 0
        for number, length in enumerate(lengths, 1):
            positions = slice(start, start + length)
            ids_BL[b, positions] = torch.randint(2, V, (length,))
            document_BL[b, positions] = number
            places.append((b, positions))
            start += length
    return ids_BL, document_BL, places


@EVERY_ARCHITECTURE_APART
def test_packed_documents_are_read_as_if_alone(architecture):
    together, separate = apart(architecture)
    ids_BL, document_BL, places = packed()
    positions_BK = torch.randint(L, (len(PACKED), 8))
    logits_BLV, logits_BKV = separate(ids_BL, document_BL), separate(ids_BL, document_BL, positions_BK)
    mixed_BLV = together(ids_BL, (document_BL != 0).long())
    for b, positions in places:
        lone_LV = together(ids_BL[b : b + 1, positions])[0]
        torch.testing.assert_close(logits_BLV[b, positions], lone_LV, atol=1e-5, rtol=0)
        for k, position in enumerate(positions_BK[b].tolist()):
            if positions.start <= position < positions.stop:
                torch.testing.assert_close(logits_BKV[b, k], lone_LV[position - positions.start], atol=1e-5, rtol=0)
    # a model that knows nothing of documents gives other numbers: the comparison can fail
    assert (mixed_BLV - logits_BLV)[document_BL == 2].abs().max() > 1e-2


@EVERY_ARCHITECTURE_APART
@pytest.mark.parametrize("with_positions", [False, True])
def test_no_gradient_flows_between_packed_documents(architecture, with_positions):
    _, separate = apart(architecture)
    ids_BL, document_BL, places = packed()
    embedded = []
    separate.hf_model.get_input_embeddings().register_forward_hook(
        lambda module, inputs, output: embedded.append(output.requires_grad_()) or output
    )
    for b, positions in places:
        positions_BK = torch.arange(positions.start, positions.stop).expand(len(PACKED), -1)
        if with_positions:
            logits = separate(ids_BL, document_BL, positions_BK)[b]
        else:
            logits = separate(ids_BL, document_BL)[b, positions]
        (gradient_BLD,) = torch.autograd.grad(logits.square().sum(), embedded[-1])
        gradient_BL = gradient_BLD.abs().amax(-1)
        assert (gradient_BL[b, positions] > 0).all()
        gradient_BL[b, positions] = 0
        assert not gradient_BL.any()


@EVERY_ARCHITECTURE_APART
def test_a_document_a_row_is_read_as_before(architecture):
    together, separate = apart(architecture)
    ids_BL, _, mask_BL, positions_BK = batch(True)
    is_token_BL = mask_BL.bool()
    torch.testing.assert_close(
        separate(ids_BL, mask_BL)[is_token_BL], together(ids_BL, mask_BL)[is_token_BL], atol=1e-5, rtol=0
    )
    expected_BKV = together(ids_BL, mask_BL, positions_BK)
    torch.testing.assert_close(separate(ids_BL, mask_BL, positions_BK), expected_BKV, atol=1e-5, rtol=0)
    ids_BL, _, _, positions_BK = batch(False)
    torch.testing.assert_close(separate(ids_BL, None, positions_BK), together(ids_BL, None, positions_BK), atol=0, rtol=0)


@pytest.mark.parametrize("architecture", ["distilbert", "mpnet", "modernbert", "roberta"])
def test_packed_documents_in_bfloat16(architecture):
    together, separate = apart(architecture)
    ids_BL, document_BL, places = packed()
    with torch.autocast("cpu", torch.bfloat16):
        logits_BLV, mixed_BLV = separate(ids_BL, document_BL), together(ids_BL, (document_BL != 0).long())
        lone = [together(ids_BL[b : b + 1, positions])[0] for b, positions in places]
    tolerance = 0.06 * mixed_BLV.abs().max().item()  # bfloat16 has 8 bits
    for (b, positions), lone_LV in zip(places, lone, strict=True):
        torch.testing.assert_close(logits_BLV[b, positions], lone_LV, atol=tolerance, rtol=0)
    assert (mixed_BLV - logits_BLV)[document_BL == 2].abs().max() > 2 * tolerance


@pytest.mark.parametrize("architecture", ["distilbert", "bert"])
def test_packed_documents_with_gradient_checkpointing(architecture):
    plain, frugal = (tiny(architecture, gradient_checkpointing=each, separate_documents=True) for each in (False, True))
    frugal.load_state_dict(plain.state_dict())
    ids_BL, document_BL, _ = packed()
    positions_BK = torch.randint(L, (len(PACKED), 4))
    results = []
    for model in (plain, frugal):
        for module in model.modules():
            if isinstance(module, nn.Dropout):
                module.p = 0.0
        for layer in model.modules():  # of attention weights, which some architectures keep as a number
            if isinstance(getattr(layer, "dropout_prob", None), float):
                layer.dropout_prob = 0.0
        results.append(gradients(model, model(ids_BL, document_BL, positions_BK).square().sum()))
    for name, gradient in results[0].items():
        torch.testing.assert_close(results[1][name], gradient, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("architecture", ["distilbert", "roberta", "modernbert"])
def test_packed_documents_compile_into_one_graph(architecture):
    _, model = apart(architecture)
    ids_BL, document_BL, _ = packed()
    positions_BK = torch.randint(L, (len(PACKED), 4))
    compiled = torch.compile(model, backend="eager", fullgraph=True)
    expected_BKV = model(ids_BL, document_BL, positions_BK)
    torch.testing.assert_close(compiled(ids_BL, document_BL, positions_BK), expected_BKV, atol=1e-6, rtol=0)


@pytest.mark.parametrize("device", ["cpu", "meta"])
@pytest.mark.parametrize("architecture", ["deberta-v2", "convbert", "fnet"])
def test_other_architectures_cannot_keep_documents_apart(architecture, device):
    message = rf"^data\.packing=sentence_pack: {architecture} models cannot keep documents apart; choose data\.packing=chunk or"
    with torch.device(device):
        PretrainedMLM(V, L, architecture=architecture, config={"num_hidden_layers": 1})
        with pytest.raises(ValueError, match=message):
            PretrainedMLM(V, L, architecture=architecture, config={"num_hidden_layers": 1}, separate_documents=True)
