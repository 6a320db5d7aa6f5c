"""What a run is evaluated on, whole and in one object.

names                       masking       source          metrics
"", "rate_0.15"             15 %          the run's own   val/loss = val/loss_rate_0.15
"rate_0.30"                 30 %          the run's own   val/loss_rate_0.30
"k2"                        15 %          eval.data.k2    val/loss_k2, beside its own optimum
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from mlm_lightning.data.exact import exactly
from mlm_lightning.data.source import NGrams, Oracle, Source
from mlm_lightning.masking import Masking


@dataclass(frozen=True, eq=False)
class Condition:
    """`names` end the names of its metrics (`""`: plain `val/loss`). `masking` is frozen: its masks are always the same.
    `ngrams` are the counts of what the model is trained on, whatever `source` is; of a language, its own. `further_oracles` are
    those of other languages, by the names that end their metrics: what they say of the same rows, which may be wrong."""

    names: tuple[str, ...]
    masking: Masking
    source: Source
    oracle: Oracle | None = None
    ngrams: NGrams | None = None
    further_oracles: Mapping[str, Oracle] = field(default_factory=dict)

    @classmethod
    @exactly()
    def training(cls, source: Source, masking: Masking) -> "Condition":
        """The condition of the training: its rows, masked as it masks, with 100 % `[MASK]`."""
        return cls(("",), masking.frozen(), source, source.oracle(), source.ngrams())

    def metrics(self, stage: str, values: dict[str, float]) -> dict[str, float]:
        """`val/loss`, `val/loss_k2` … for `loss` …"""
        endings = [f"_{name}" if name else "" for name in self.names]
        return {f"{stage}/{name}{ending}": value for name, value in values.items() for ending in endings}


def sources(conditions: Sequence[Condition]) -> list[Source]:
    """Each source once, the run's own first."""
    return list(dict.fromkeys(condition.source for condition in conditions))


def packs_documents(conditions: Sequence[Condition]) -> bool:
    """Whether the model must keep the documents of a row apart in any of them."""
    return any(source.packs_documents for source in sources(conditions))


def fingerprint(conditions: Sequence[Condition]) -> str | None:
    """Of all sources; that of the run's own alone where no other has one."""
    return "+".join(filter(None, (source.fingerprint() for source in sources(conditions)))) or None
