"""What oracles say about a batch, where something is to be predicted."""

from torch import Tensor

from mlm_lightning.data.condition import Condition
from mlm_lightning.errors import NO_VALUE, ConfigError
from mlm_lightning.tasks import Batch, Task


def oracle_probs(batch: Batch, condition: Condition, task: Task) -> Tensor | None:
    """Of a condition's own oracle, BKV; None where it has none."""
    return None if condition.oracle is None else task.oracle_probs(condition.oracle, batch)


def further_probs(batch: Batch, condition: Condition, task: Task) -> dict[str, Tensor]:
    """Those of its further oracles, by their names. Raises ConfigError where such a language can't have the rows."""
    found = {}
    for name, oracle in condition.further_oracles.items():
        try:
            found[name] = task.oracle_probs(oracle, batch)
        except ValueError as error:
            remedy = "give languages that can have all of this run's rows, such as those of higher filter levels"
            raise ConfigError(f"eval.oracles.{name}", NO_VALUE, f"cannot have a row of this run ({error})", remedy) from error
    return found
