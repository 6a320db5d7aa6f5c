"""What a model has learned: nothing, what counting gives, more than that; or what nobody can know, so that its labels leak.

oracle   1.386 ──────────  the best possible loss of a synthetic language, its own standard error known
loss     0.002             three standard errors below it: the model sees what it is to predict

unigram 6.5 ──────────────  token frequencies: what a model on the plateau has learned
bigram  5.0 ──────────────  the left neighbour, where it is visible
loss    3.9                 context
"""

import math
from collections.abc import Mapping, Sequence

LEAST_GAIN = 0.1
"""Nats a token below the unigram's loss that a model must have to have learned more than frequencies."""
LEAST_SHARE = 0.1
"""The same where the best possible loss is known, of the gap between the two."""
LEAST_GAP = 1e-3
"""Nats a token between the unigram's loss and the best possible one below which there is nothing to learn."""
LEARN_MORE = (
    "Try more steps (trainer.max_steps, a longer trainer.time_budget), a higher optim.lr, a smaller vocabulary, or "
    "model=modern where it is another model."
)


def leak(summary: Mapping[str, float]) -> float:
    """By how many nats a loss lies below the best possible one, where that is no chance (three standard errors); else 0."""
    excess, error = (summary.get(f"val/{name}", math.nan) for name in ("excess_loss", "excess_loss_se"))
    return -excess if excess < -3 * error else 0.0


def share_left(summary: Mapping[str, float]) -> float:
    """Of the gap between the unigram's loss and the best possible one, the share that is left; NaN where there is none."""
    excess, least, unigram = (summary.get(f"val/{name}", math.nan) for name in ("excess_loss", "oracle_loss", "unigram_loss"))
    return excess / (unigram - least) if unigram - least > LEAST_GAP else math.nan


def left(summary: Mapping[str, float]) -> list[str]:
    """That of a run, in a sentence; empty where there is no gap, or labels leak."""
    share = share_left(summary)
    if math.isnan(share) or leak(summary):
        return []
    return [f"Of the way from counting tokens (unigram) to the best possible loss, {share:.1%} is left.".replace("%", " %")]


def leaks(summaries: Sequence[Mapping[str, float]]) -> list[str]:
    """Of some runs, in a sentence; empty where none does."""
    found = [each for each in map(leak, summaries) if each]
    if not found:
        return []
    runs = "This run's loss is" if len(summaries) == 1 else f"The losses of {len(found)} of {len(summaries)} runs are"
    return [f"{runs} {max(found):.3g} nats below the best possible one: the model sees the labels that it is to predict."]


def shortfall(summary: Mapping[str, float]) -> str | None:
    """What a run has not learned, in a sentence; None where it has learned context, where there is none to be learned, or
    nothing is counted."""
    loss, unigram, bigram = (summary.get(f"val/{name}", math.nan) for name in ("loss", "unigram_loss", "bigram_loss"))
    least = summary.get("val/oracle_loss", -math.inf)
    if unigram - least < LEAST_GAIN:
        return None
    bigram = max(bigram, least)
    if loss - unigram > LEAST_GAIN:
        return f"It has not even learned token frequencies: loss {loss:.2f}, and counting tokens gives {unigram:.2f} (unigram)."
    if unigram - loss < min(LEAST_GAIN, LEAST_SHARE * (unigram - least)):  # of 0.14 nats that there are, 0.07 is much
        return (
            f"It has learned token frequencies and no more: loss {loss:.2f}, and counting tokens gives {unigram:.2f} (unigram)."
        )
    if loss >= bigram:
        more = f"loss {loss:.2f}, and that gives {bigram:.2f} (bigram; token frequencies alone {unigram:.2f})"
        return f"It has learned less than counting pairs of neighbours does: {more}."
    return None


def shortfalls(summaries: Sequence[Mapping[str, float]]) -> list[str]:
    """Of some runs, in a sentence or two; empty where all have learned context."""
    found = [each for each in map(shortfall, summaries) if each is not None]
    if not found:
        return []
    if len(summaries) == 1:
        return [*found, LEARN_MORE]
    told = f"{len(found)} of {len(summaries)} runs have learned no more than counting tokens, or pairs of neighbours, gives."
    return [told, LEARN_MORE]
