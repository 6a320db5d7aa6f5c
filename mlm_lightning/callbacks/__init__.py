"""What happens around the steps, one file each. The names below are those of configs that an earlier version wrote."""

from mlm_lightning.callbacks.checkpoint import Checkpoint
from mlm_lightning.callbacks.progress import ProgressReport as Progress
from mlm_lightning.callbacks.samples import Samples
from mlm_lightning.callbacks.throughput import Throughput

__all__ = ["Checkpoint", "Progress", "Samples", "Throughput"]
