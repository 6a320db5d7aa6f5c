"""Command lines become the configs that Hydra itself would compose."""

import itertools
from collections.abc import Iterator
from pathlib import Path

import pytest
from conftest import TOY
from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.override_parser.overrides_parser import OverridesParser

from mlm_lightning.config.compose import OWN, Composer, composer, config_folder, to_plain
from mlm_lightning.config.flags import hydra_flags, is_sweep
from mlm_lightning.config.parse import settings
from mlm_lightning.config.shipped import options
from mlm_lightning.errors import UserError
from mlm_lightning.runs.identity import identity

DATA = ", ".join(sorted(path.stem for path in (Path(__file__).parents[2] / "conf" / "data").glob("*.yaml")))


@pytest.fixture
def hydra() -> Iterator[Composer]:
    with composer() as opened:
        yield opened


def composed(hydra: Composer, *overrides: str) -> dict:
    return to_plain(hydra.compose(hydra.plain(overrides)))


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("seed=1", "++seed=1"),
        ("data.depth=3", "++data.depth=3"),
        ("data.path='a=b'", "++data.path='a=b'"),
        ("a.b=1", "++a.b=1"),
        ("name=", "++name="),
        ("data=uniform", "data=uniform"),
        ("logger=[csv,tensorboard]", "logger=[csv,tensorboard]"),
        ("sweep=mine", "sweep=mine"),
        ("hydra/launcher=joblib", "hydra/launcher=joblib"),
        ("hydra.sweep.dir=x", "hydra.sweep.dir=x"),
        ("+data.depth=3", "+data.depth=3"),
        ("++data.depth=3", "++data.depth=3"),
        ("~data.depth", "~data.depth"),
        ("~data.depth=3", "~data.depth=3"),
        ("data@other=tree", "data@other=tree"),
        ("data.depth=1,2", "++data.depth=1,2"),
        ("logger=null", "logger=[]"),
        ("no_equals", "no_equals"),
        ("name=über", "++name='über'"),
        ("name=a&b", "++name='a&b'"),
        ("seed=${oc.decode:${oc.env:X}}", "++seed='${oc.decode:${oc.env:X}}'"),
        ("data.path=[a/ä.txt, b c.txt]", "++data.path=['a/ä.txt', b c.txt]"),
        ("data.path=größe,b.txt", "++data.path='größe',b.txt"),
        ("data.path='ä'", "++data.path='ä'"),
    ],
)
def test_a_plain_key_is_forced_and_everything_else_stays(hydra, override, expected):
    assert hydra.plain([override]) == [expected]


def test_a_users_own_group_is_a_group(tmp_path):
    (tmp_path / "flavour").mkdir()
    (tmp_path / "flavour" / "sweet.yaml").write_text("sugar: 2\n")
    with composer(str(tmp_path)) as hydra:
        assert hydra.plain(["data=uniform"]) == ["data=uniform"]
        assert to_plain(hydra.compose(hydra.plain(["+flavour=sweet"])))["flavour"] == {"sugar": 2}


def test_a_users_option_of_our_group_is_found(tmp_path):
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "mine.yaml").write_text("_target_: mine.Source\nsize: 3\n")
    with composer(str(tmp_path)) as hydra:
        data = to_plain(hydra.compose(hydra.plain(["data=mine"])))["data"]
    assert data == {"_target_": "mine.Source", "size": 3, "batch_size": 64, "num_workers": 0, "length_schedule": None}


def test_a_users_config_wins_over_the_shipped_one_of_its_name(tmp_path, caplog):
    """For a run, a job of one of Hydra's launchers, and the answer to --cfg alike."""
    mine, copied = tmp_path / "a, (b)" / "masking" / "bernoulli.yaml", tmp_path / "a, (b)" / "masking" / "span.yaml"
    mine.parent.mkdir(parents=True)
    mine.write_text("_target_: mlm_lightning.masking.Bernoulli\nrate: 0.5\n")
    copied.write_bytes((config_folder() / "masking" / "span.yaml").read_bytes())
    with caplog.at_level("INFO", "mlm_lightning"), composer(str(tmp_path / "a, (b)")) as hydra:
        assert composed(hydra)["masking"]["rate"] == 0.5
        launched = hydra.loader.load_sweep_config(hydra.master([]), ["seed=1"])
        assert to_plain(launched)["masking"]["rate"] == 0.5
        assert [each.path for each in launched.hydra.runtime.config_sources if each.provider == OWN] == [
            str(tmp_path / "a, (b)")
        ]
    (said,) = [record.getMessage() for record in caplog.records]
    assert str(mine) in said
    assert str(copied) not in said
    assert "transformer" in options(str(tmp_path / "a, (b)"))["model"]


def test_a_primary_config_of_ones_own(tmp_path):
    (tmp_path / "mine.yaml").write_text("defaults: [train, _self_]\nseed: 3\nname: mine\n")
    mine = settings(list(TOY), str(tmp_path), "mine")
    assert (mine.seed, mine.name, mine.composed.config_name) == (3, "mine", "mine")
    shipped = settings([*TOY, "seed=3"])
    assert identity(mine.composed.config) == identity(shipped.composed.config)


def test_whole_floats_are_whole_numbers(tmp_path):
    """In the identity too; where both a number and a share can be meant, 1 and 1.0 stay two things."""
    tens = {"trainer.max_steps": 10, "data.depth": 2, "seed": 7, "callbacks.checkpoint.every_n_train_steps": 5}
    one, other = (settings([*TOY, *(f"{key}={kind(value)}" for key, value in tens.items())]) for kind in (int, float))
    assert identity(one.composed.config) == identity(other.composed.config)
    assert {key: repr(other.composed.get(key)) for key in tens} == {key: repr(value) for key, value in tens.items()}
    assert other.trainer.max_steps == 10
    further = settings([*TOY, "eval.data={k0: {depth: 2.0}}"])
    assert repr(further.composed.get("eval.data.k0.depth")) == "2"
    shares = [settings([*TOY, f"trainer.limit_val_batches={value}"]) for value in ("1", "1.0")]
    assert [repr(each.composed.get("trainer.limit_val_batches")) for each in shares] == ["1", "1.0"]
    with pytest.raises(UserError, match=r"trainer\.max_steps=10\.5"):
        settings(["trainer.max_steps=10.5"])


# the jobs of a sweep


@pytest.mark.parametrize(
    ("text", "many"),
    [
        ("sweeper: {params: {seed: '0,1'}}", True),
        ("{mode: RUN, sweeper: {params: {seed: '0,1'}}}", False),
        ("mode: MULTIRUN", True),
        ("mode: null", False),
    ],
)
def test_a_sweep_of_ones_own_means_many_runs(text, many, tmp_path):
    (tmp_path / "sweep").mkdir()
    node = text if text.startswith("{") else f"{{{text}}}"
    (tmp_path / "sweep" / "mine.yaml").write_text(f"# @package _global_\nhydra: {node}\n")
    with composer(str(tmp_path)) as hydra:
        assert is_sweep(hydra.compose(["sweep=mine"])) == is_sweep(hydra.master(["sweep=mine"])) == many


def test_params_on_the_command_line_are_the_sweeps():
    flags = hydra_flags(["hydra.sweeper.params.seed=0,1", "++hydra.sweeper.params.masking.rate=0.1", "name=x"])
    assert flags.multirun
    assert flags.overrides == ["seed=0,1", "masking.rate=0.1", "name=x"]
    assert not hydra_flags(["seed=0,1"]).multirun


@pytest.mark.parametrize(
    ("overrides", "number"),
    [
        (["++seed=0"], 1),
        (["++seed=0,1,2"], 3),
        (["++seed=range(0,4)"], 4),
        (["++seed=range(1,10,3)", "data=tree,uniform"], 6),
        (["++masking.rate=choice(0.1,0.2)", "++seed=0,1", "++name=x"], 4),
        (["++eval.mask_rates=[0.1,0.2],[0.3]"], 2),
        (["++name='a,b'", "++seed=0,1"], 2),
        (["~callbacks=default", "++optim.lr=1e-3,3e-4"], 2),
    ],
)
def test_jobs_are_the_ones_that_hydra_runs(hydra, overrides, number):
    parsed = OverridesParser.create(hydra.loader).parse_overrides(overrides)
    expected = [list(job) for batch in BasicSweeper.split_arguments(parsed, None) for job in batch]
    jobs = hydra.jobs(overrides)
    assert len(jobs) == number
    assert [[word.replace(" ", "") for word in job] for job in jobs] == [
        [word.replace(" ", "") for word in job] for job in expected
    ]


def test_jobs_are_the_product_of_all_choices(hydra):
    jobs = hydra.jobs(hydra.plain(["model.num_layers=1,2", "data.depth=range(2,5)", "name=grid"]))
    configs = [to_plain(hydra.compose(job)) for job in jobs]
    reached = [(config["model"]["num_layers"], config["data"]["depth"], config["name"]) for config in configs]
    assert reached == list(itertools.product([1, 2], [2, 3, 4], ["grid"]))


# composing


def test_the_ways_to_set_a_key_give_the_same_config(hydra):
    configs = [composed(hydra, override) for override in ("data.depth=3", "++data.depth=3", "data={depth:3}")]
    assert configs[0]["data"]["depth"] == 3
    assert configs[0] == configs[1] == configs[2]


@pytest.mark.parametrize("key", ["model.config.dim", "model.config.n_layers"])
def test_a_setting_of_the_architecture_needs_no_plus(hydra, key):
    config = composed(hydra, "model=distilbert", f"{key}=8")["model"]["config"]
    assert config == {key.rpartition(".")[2]: 8}


def test_an_unknown_key_composes_so_that_the_check_names_it(hydra):
    assert composed(hydra, "data.dpeth=3")["data"]["dpeth"] == 3


def test_a_missing_value_stays_a_question(hydra):
    assert composed(hydra, "data.depth=???")["data"]["depth"] == "???"


def test_hydras_own_part_is_left_out(hydra):
    assert "hydra" not in composed(hydra)


def test_no_loggers_and_no_callbacks(hydra):
    for override in ("logger=null", "logger=[]"):
        assert composed(hydra, override)["logger"] is None
    for override in ("callbacks=null", "callbacks=[]"):
        assert composed(hydra, override)["callbacks"] is None


def test_the_default_callbacks_are_in_every_run(hydra):
    default = composed(hydra)["callbacks"]
    assert list(default) == ["checkpoint", "throughput", "progress", "samples"]
    for override in ("callbacks=[early_stopping,monitor]", "callbacks=[default,early_stopping,monitor]"):
        both = composed(hydra, override, "callbacks.early_stopping.patience=3", "callbacks.checkpoint.every_minutes=1")[
            "callbacks"
        ]
        assert list(both) == [*default, "early_stopping", "monitor"]
        assert both["early_stopping"]["patience"] == 3
        assert both["checkpoint"] == default["checkpoint"] | {"every_minutes": 1}
    for name in ("early_stopping", "monitor"):
        assert composed(hydra, f"callbacks={name}") == composed(hydra, f"callbacks=[{name}]")


def test_an_interpolation_is_resolved(hydra):
    assert composed(hydra, "name=depth_${data.depth}", "data.depth=3")["name"] == "depth_3"
    rows = composed(hydra, "data=hmm", "data.seq_len=24", 'data.batch_size="${quotient:2048,${data.seq_len}}"')["data"][
        "batch_size"
    ]
    assert rows == 85


@pytest.mark.parametrize(
    "wrong", ["${quotient:2048,0}", "${quotient:2048,${data.seed}}", "${quotient:a,b}", "${quotient:1}", "${quotien:1,2}"]
)
def test_an_interpolation_that_fails_is_told_with_its_key(hydra, wrong):
    with pytest.raises(UserError, match=r"data\.batch_size"):
        composed(hydra, f'data.batch_size="{wrong}"')


@pytest.mark.parametrize(
    ("override", "message"),
    [
        (
            "callbacks=[monitr]",
            "callbacks=monitr: no such option; did you mean 'monitor'? There are: default, early_stopping, ema, monitor, none",
        ),
        ("data=unifrom", f"data=unifrom: no such option; did you mean 'uniform'? There are: {DATA}"),
        ("experiment=nope", "experiment=nope: no such option. There are: "),
        ("data.depth=[1", "'data.depth=[1': is no KEY=VALUE"),
        ("no_equals", "'no_equals': is no KEY=VALUE"),
        ("=3", "'=3': is no KEY=VALUE"),
        ("", "'': is no KEY=VALUE"),
        ("~data.dpeth", "data.dpeth"),
        ("data=3", f"data=3: is no name of an option. There are: {DATA}"),
        ("logger=[csv,tensorbord]", "logger=tensorbord: no such option; did you mean 'tensorboard'?"),
        ("data.depth=${nope}", "data.depth: Interpolation key 'nope' not found"),
    ],
)
def test_what_hydra_refuses_is_one_line(hydra, override, message):
    with pytest.raises(UserError) as error:
        composed(hydra, override)
    assert message in str(error.value)
    assert len(str(error.value).splitlines()) == 1


def test_a_config_folder_that_is_not_there_is_named():
    with pytest.raises(UserError, match="--config-dir nowhere: no such folder"), composer("nowhere"):
        pass


def test_the_shipped_configs_are_found():
    assert (config_folder() / "train.yaml").is_file()


@pytest.mark.parametrize("name", ["rate=0.1,seed=0-1a2b3c4d", "my texts (old)", "it's, here"])
def test_a_path_that_is_there_needs_no_quotes(name, tmp_path):
    (tmp_path / name).mkdir()
    with composer() as hydra:
        for key in ("resume", "name"):
            config = hydra.composed(hydra.plain([f"{key}={tmp_path / name}"]))
            assert config.get(key) == str(tmp_path / name)
        with pytest.raises(UserError):  # what is not there has Hydra's grammar
            hydra.composed(hydra.plain([f"resume={tmp_path / 'none'}=1,2"]))
