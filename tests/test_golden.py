"""Random numbers never change unnoticed: a run of yesterday is repeated tomorrow, and by another version of a library.

Each entry of GOLDEN was printed once, and is compared with what the code draws today. Where a change is meant, which every
earlier result pays for: run `python tests/test_golden.py`, paste the entries that changed, and say so in CHANGELOG.md.
"""

import hashlib
import pprint
from typing import Any

import numpy as np
import pytest
import torch

from mlm_lightning import randomness
from mlm_lightning.batch import IGNORE_INDEX, Vocab
from mlm_lightning.config.build import build_model
from mlm_lightning.config.settings import Node
from mlm_lightning.data.batches import TrainBatches
from mlm_lightning.data.languages.tree import TreeSource
from mlm_lightning.data.languages.uniform import UniformSource
from mlm_lightning.data.source import SPLITS
from mlm_lightning.masking import Bernoulli, Masking, Single, Span, WholeWord
from mlm_lightning.models.layers import Dropout
from mlm_lightning.randomness import Stream

# fmt: off
GOLDEN: dict[str, Any] = {
    "stream ORDER": {"value": 0,
         "key": 2554050240282131404,
         "keys of rows 0 and 1": [-8902826083272830830, -4422662394541972630],
         "bits of row 0": [9010548218911735042, 4472061936644833031],
         "uniforms of row 1": [0.06964782505151168, 0.48492311538464994, 0.7739576137430623],
         "randperm": [0, 6, 2, 1, 4, 5, 3, 7],
         "randn": [-1.069999645816122, 1.206460596307876]},
    "stream MASK": {"value": 1,
         "key": 1350317458967459691,
         "keys of rows 0 and 1": [-1133336363741709355, 6235206408015721995],
         "bits of row 0": [-6026560195445739611, -2086934622002233438],
         "uniforms of row 1": [0.6809712401534347, 0.07793788651499234, 0.5522012023645368],
         "randperm": [2, 7, 1, 4, 6, 3, 0, 5],
         "randn": [1.7456947599252703, -1.0753563296746789]},
    "stream REPLACEMENT": {"value": 2,
         "key": -1091796492180754180,
         "keys of rows 0 and 1": [-7508236895620628648, 1057771688368342410],
         "bits of row 0": [-3441051331362343796, 1925629552088284277],
         "uniforms of row 1": [0.960397963070585, 0.6471543736840418, 0.023658212579116933],
         "randperm": [2, 1, 6, 4, 7, 5, 0, 3],
         "randn": [-0.12287919892930743, -0.5574705429164063]},
    "stream ROWS": {"value": 3,
         "key": 116621151946735750,
         "keys of rows 0 and 1": [6432217797852622800, -894479455063109054],
         "bits of row 0": [1442192042044785624, -1327275922908629522],
         "uniforms of row 1": [0.3900185283913511, 0.6984252488027942, 0.42286278619086837],
         "randperm": [6, 5, 0, 4, 1, 7, 3, 2],
         "randn": [-0.5603300596752466, 0.02245630516356685]},
    "stream GRAMMAR": {"value": 4,
         "key": 4407079320067698400,
         "keys of rows 0 and 1": [-4708971318605971906, -7179698820937336253],
         "bits of row 0": [-4248660124290572511, 4815588169903445302],
         "uniforms of row 1": [0.6543713630943042, 0.11138588578938546, 0.62691649240809],
         "randperm": [3, 7, 4, 5, 0, 6, 2, 1],
         "randn": [1.2139825284648196, 0.38508088607796115]},
    "stream INITIALISATION": {"value": 5,
         "key": 8582909060230431654,
         "keys of rows 0 and 1": [1583532208501050488, 5088201519055640254],
         "bits of row 0": [8094277691109013589, -575014910073407890],
         "uniforms of row 1": [0.9319082466080248, 0.7017130058690222, 0.3457102990467258],
         "randperm": [0, 1, 6, 4, 7, 5, 3, 2],
         "randn": [1.7149255087127717, 0.43459796188442673]},
    "stream DROPOUT": {"value": 6,
         "key": 2290890703272076521,
         "keys of rows 0 and 1": [-5839249697490251744, -3851329449676119466],
         "bits of row 0": [-1254405536802879518, -1700806224536036260],
         "uniforms of row 1": [0.942713599926775, 0.21320369033118491, 0.9217943368952325],
         "randperm": [6, 0, 4, 1, 5, 2, 7, 3],
         "randn": [0.6724327217255568, 0.3565014030239264]},
    "stream SPLIT": {"value": 7,
         "key": -429821165203105428,
         "keys of rows 0 and 1": [-2055157967022683009, 6192276285137029240],
         "bits of row 0": [-1576306422832553265, -2012967033977896496],
         "uniforms of row 1": [0.713401707233485, 0.5836757953207302, 0.09566846174836019],
         "randperm": [5, 4, 2, 7, 3, 6, 0, 1],
         "randn": [-0.549448128276299, 0.4522080497284582]},
    "masking bernoulli": ["..M.M..M....M..MM.M...", "..M.......MM.MM..MM..."],
    "masking bernoulli, epoch 3": ["..MMM.M....MM..M....M.", "..MM....M...M.M...MMM."],
    "masking bernoulli, 80/10/10": [".MxM06MxM.M.xMxxxxMMx.", ".MMxMMMMMMMMMMx.MxM.6."],
    "masking bernoulli, scheduled rate at its start": ["..M.M..M....MM.MM.M...", "..MMM.MM..MMMMM..MM..."],
    "masking bernoulli, scheduled rate halfway": ["..M.M..M....M..MM.M...", "..M.......MM.MM..MM..."],
    "masking bernoulli, scheduled rate at its end": ["....M..........M..M...", "...........M.....MM..."],
    "masking single": ["..................M...", "..................M..."],
    "masking span": ["....MMMMMMM...........", ".................MMM.."],
    "masking whole_word": ["..M.M.......M..MMMMMM.", "..M.......MMMMMM.MMM.."],
    "source uniform": {"train": ["624250051524432470740444", "456724214373107110145420"],
         "val": ["007204443720271644667160", "625457175556440724473372"],
         "test": ["763733502153004742674532", "424260515217055457124456"]},
    "source uniform, seed 1": {"train": ["777474212344156620705203", "160605332053075211416766"],
         "val": ["765537365777516075017245", "665251745462552241125133"],
         "test": ["713565536454152572113571", "463027230674022017430234"]},
    "source tree, k = 0": {"train": ["1302112023232320", "0311101300333033"],
         "val": ["2323133323101310", "1302032103021330"],
         "test": ["3023203012230230", "2011333023200302"]},
    "source tree, k = 2": {"train": ["2320130203131102", "0311101333130333"],
         "val": ["1110132323102310", "2320032103023323"],
         "test": ["1133022323130230", "2011133023202323"]},
    "source tree, sigma 2, grammar seed 5": {"train": ["3031303330333033", "3000303030313033"],
         "val": ["0331303330313031", "3033303130312033"],
         "test": ["0031300020330331", "3033113120333030"]},
    "order of the epochs": [[6, 0, 1, 9, 4, 3, 5, 8, 2, 7, 9, 5, 8, 7, 0, 3, 4, 6, 1, 2],
         [1, 2, 4, 3, 0, 9, 6, 7, 5, 8, 12, 11, 14, 13, 10, 16, 17, 15, 19, 18]],
    "weights": {"embedding.weight": [0.018162254244089127, -0.007674373686313629, 0.0025151120498776436],
         "encoder.layers.3.linear2.weight": [-0.032284025102853775, -0.04472743719816208, 0.018280230462551117],
         "decoder.head.weight": [-0.018431415781378746, 0.005043881945312023, 0.002560713328421116]},
    "signs of the weights": "40fca34649bedcb6",
    "dropout": [2, 0, 2, 0, 0, 0, 0, 0, 0, 0, 2, 2, 2, 2, 2, 0, 0, 2, 0, 2, 0, 0, 0, 2],
}
# fmt: on

VOCAB = Vocab(size=12, mask_id=10, special_ids=(11,), continues_word=tuple(6 <= token < 10 for token in range(12)))
TOKENS_BL = torch.tensor(
    [[11, *range(10), *range(10), 11], [11, 3, 1, 4, 1, 5, 9, 2, 6, 5, 3, 5, 8, 9, 7, 9, 3, 2, 3, 8, 4, 11]]
)
FALLING = {"start": 0.5, "end": 0.1, "schedule": "cosine"}
EIGHTY_TEN_TEN: dict[str, Any] = {"mask_share": 0.8, "random_share": 0.1}
ALL_MASKED: dict[str, Any] = {"mask_share": 1.0}
MASKS: dict[str, tuple[Masking, dict[str, Any]]] = {
    "bernoulli": (Bernoulli(rate=0.3, **ALL_MASKED), {}),
    "bernoulli, epoch 3": (Bernoulli(rate=0.3, **ALL_MASKED), {"epochs_B": torch.tensor([3, 3])}),
    "bernoulli, 80/10/10": (Bernoulli(rate=0.9, **EIGHTY_TEN_TEN), {}),
    "bernoulli, scheduled rate at its start": (Bernoulli(rate=FALLING, **ALL_MASKED), {"progress": 0.0}),
    "bernoulli, scheduled rate halfway": (Bernoulli(rate=FALLING, **ALL_MASKED), {"progress": 0.5}),
    "bernoulli, scheduled rate at its end": (Bernoulli(rate=FALLING, **ALL_MASKED), {"progress": 1.0}),
    "single": (Single(), {}),
    "span": (Span(rate=0.3, **ALL_MASKED), {}),
    "whole_word": (WholeWord(rate=0.3, **ALL_MASKED), {}),
}


def current() -> dict[str, Any]:
    """The values that the code draws today."""
    values: dict[str, Any] = {}
    for stream in Stream:
        keys_B = randomness.row_keys(randomness.key(7, stream), torch.tensor([0, 1]))
        values[f"stream {stream.name}"] = {
            "value": stream.value,
            "key": randomness.key(7, stream),
            "keys of rows 0 and 1": keys_B.tolist(),
            "bits of row 0": randomness.random_bits(keys_B[:1], torch.arange(2)).tolist(),
            "uniforms of row 1": randomness.uniform(keys_B[1:], torch.arange(3)).tolist(),
            "randperm": torch.randperm(8, generator=randomness.generator(7, stream)).tolist(),
            "randn": torch.randn(2, generator=randomness.generator(7, stream), dtype=torch.float64).tolist(),
        }
    for name, (masking, more) in MASKS.items():
        values[f"masking {name}"] = drawn(masking, **more)
    sources = {
        "uniform": UniformSource(num_symbols=8, seq_len=24),
        "uniform, seed 1": UniformSource(num_symbols=8, seq_len=24, seed=1),
        "tree, k = 0": TreeSource(grammar_seed=1),
        "tree, k = 2": TreeSource(grammar_seed=1, filter_level=2),
        "tree, sigma 2, grammar seed 5": TreeSource(sigma=2.0, grammar_seed=5),
    }
    for name, source in sources.items():
        rows = {split: source.rows(split)[torch.arange(2)].tolist() for split in SPLITS}
        values[f"source {name}"] = {split: ["".join(map(str, row)) for row in two] for split, two in rows.items()}
    values["order of the epochs"] = [
        [int(row) for j in range(2) for row in TrainBatches(rows, Bernoulli(), 10, seed=7).row_ids(j)[0]]  # type: ignore[arg-type]
        for rows in (range(10), Blocks())
    ]
    node = Node("mlm_lightning.models.transformer.TransformerClassifier", {})
    model = build_model(node, 7, UniformSource(num_symbols=4, seq_len=16))
    values["weights"] = {
        name: model.get_parameter(name).detach().flatten()[:3].tolist()
        for name in ("embedding.weight", "encoder.layers.3.linear2.weight", "decoder.head.weight")
    }
    # last digits depend on the processor, signs don't
    is_positive = np.concatenate([(weight > 0).numpy().ravel() for weight in model.state_dict().values()])
    values["signs of the weights"] = hashlib.sha256(np.packbits(is_positive).tobytes()).hexdigest()[:16]
    randomness.seed_torch(7, Stream.DROPOUT, 0)
    values["dropout"] = Dropout(0.5)(torch.ones(24)).int().tolist()
    return values


class Blocks:
    """Rows without an end."""

    shuffle_buffer = 5

    def __getitem__(self, index_B: Any) -> Any: ...
    def read_ahead(self, stop: int) -> None: ...


def drawn(masking: Masking, **more: Any) -> list[str]:
    """A row of `.` (not predicted), `M` (shows [MASK]), `x` (shows its own token) and the digits of random tokens."""
    batch = masking(TOKENS_BL, torch.tensor([0, 1]), vocab=VOCAB, key=randomness.key(7, 0), **more)

    def letter(token: int, shown: int, label: int) -> str:
        return "." if label == IGNORE_INDEX else "M" if shown == VOCAB.mask_id else "x" if shown == token else str(shown)

    rows = (TOKENS_BL.tolist(), batch.input_ids_BL.tolist(), batch.labels_BL.tolist())
    return ["".join(map(letter, *row)) for row in zip(*rows, strict=True)]


@pytest.fixture(scope="module")
def today() -> dict[str, Any]:
    return current()


@pytest.mark.parametrize("name", GOLDEN)
def test_random_numbers_stay(name, today):
    close = {"randn": 1e-12, "weights": 1e-5}  # the functions of torch and of the processor may differ in the last digit

    def assert_equal(now: Any, then: Any, key: str) -> None:
        if isinstance(then, dict):
            assert list(now) == list(then)
            for each in then:
                assert_equal(now[each], then[each], key if key in close else each)
        else:
            assert now == (pytest.approx(then, rel=close[key]) if key in close else then), f"{name}: {key}"

    assert_equal(today[name], GOLDEN[name], name)


def test_every_value_is_pinned(today):
    assert list(today) == list(GOLDEN)


if __name__ == "__main__":
    for name, value in current().items():
        print(
            f'    "{name}": {pprint.pformat(value, width=116, sort_dicts=False)},'.replace("'", '"').replace("\n", "\n        ")
        )
