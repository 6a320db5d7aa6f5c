"""What oracles say at the predicted positions of a batch: exact where each of them is hidden, as frozen masks do."""

import torch
from torch import Tensor

from mlm_lightning.batch import IGNORE_INDEX, MLMBatch
from mlm_lightning.data.condition import Condition
from mlm_lightning.data.source import Oracle
from mlm_lightning.errors import NO_VALUE, ConfigError


def oracle_probs(batch: MLMBatch, oracle: Oracle) -> Tensor:
    """The posterior given all that is not predicted, BKV, on the batch's device."""
    labels_BL = batch.labels_BL.cpu()
    observed_BL = labels_BL == IGNORE_INDEX
    tokens_BL = torch.where(observed_BL, batch.input_ids_BL.cpu(), labels_BL)
    probs_BLV = oracle.posterior(tokens_BL, observed_BL)
    positions_BK1 = batch.positions_BK.cpu().unsqueeze(-1)
    return probs_BLV.gather(1, positions_BK1.expand(-1, -1, probs_BLV.shape[-1])).to(batch.input_ids_BL.device)


def further_probs(batch: MLMBatch, condition: Condition) -> dict[str, Tensor]:
    """Those of a condition's further oracles, by their names. Raises ConfigError where such a language can't have the rows."""
    found = {}
    for name, oracle in condition.further_oracles.items():
        try:
            found[name] = oracle_probs(batch, oracle)
        except ValueError as error:
            remedy = "give languages that can have all of this run's rows, such as those of higher filter levels"
            raise ConfigError(f"eval.oracles.{name}", NO_VALUE, f"cannot have a row of this run ({error})", remedy) from error
    return found
