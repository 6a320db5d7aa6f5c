"""torchmetrics is there as ever, for whoever uses it, and not imported for Lightning alone."""

import subprocess
import sys
import textwrap

import pytest

USES = {
    "a metric": """
        from torchmetrics import Accuracy, Metric, MetricCollection
        accuracy = MetricCollection([Accuracy(task="binary")])
        assert accuracy(torch.tensor([1, 0]), torch.tensor([1, 1]))["BinaryAccuracy"] == 0.5
        assert issubclass(Accuracy, Metric) and Metric is L.pytorch.utilities.types.Metric
    """,
    "a function of a submodule": """
        import torchmetrics.functional as F
        assert F.mean_absolute_error(torch.tensor([1.0]), torch.tensor([3.0])) == 2
    """,
    "the package, by its name": """
        import torchmetrics
        assert torchmetrics.__version__ and torchmetrics.MeanMetric()(torch.tensor([1.0, 3.0])) == 2
    """,
    "a plot of a metric that was there before": """
        from torchmetrics import Metric, MetricCollection
        class Last(Metric):
            def __init__(self):
                super().__init__()
                self.add_state("value", torch.tensor(0.0))
            def update(self, value):
                self.value = value
            def compute(self):
                return self.value
            def plot(self, val=None, ax=None):
                return self._plot(val, ax)
        last = Last()
        last.update(torch.tensor(2.0))
        figure, axes = last.plot()
        import matplotlib.axes
        assert isinstance(axes, matplotlib.axes.Axes)
        both = MetricCollection([last])
        both.update(torch.tensor(1.0))
        both.plot(ax=axes, together=True)
    """,
    "a name that it lacks": """
        import torchmetrics
        assert not hasattr(torchmetrics, "Accurracy") and torchmetrics.functional
    """,
}
BEFORE = "import mlm_lightning, sys\nimport lightning as L, torch\nassert not {'scipy', 'matplotlib'} & set(sys.modules)\n"
FIRST = "import torchmetrics, mlm_lightning, lightning as L, torch\n"


def run(code: str) -> None:
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("use", USES)
def test_it_is_imported_where_it_is_used(use: str) -> None:
    run(BEFORE + textwrap.dedent(USES[use]))


def test_it_may_have_been_imported_before() -> None:
    run(FIRST + "".join(textwrap.dedent(use) for use in USES.values()))


def test_training_does_not_import_it() -> None:
    run(
        "import sys, tempfile\nfrom mlm_lightning.__main__ import main\n"
        "with tempfile.TemporaryDirectory() as folder:\n"
        "    assert main(['train', 'trainer=smoke', f'output_dir={folder}']) == 0\n"
        "assert not {'scipy', 'transformers', 'torchmetrics.functional'} & set(sys.modules)"
    )
