"""Chains in plain NumPy: forward-backward on one row, step by step."""

import numpy as np
from plain import Plain, drawn

from mlm_lightning.data.languages.chain_source import ChainSource


def chain(source: ChainSource) -> Plain:
    of = source.chain
    initial_S, emission_SQ = of.initial_S.numpy(), of.emission_SQ.numpy()
    transition_SS = np.zeros((len(initial_S), len(initial_S)))
    np.add.at(transition_SS, (np.arange(len(initial_S))[:, None], of.successor_SR.numpy()), of.weight_SR.numpy())
    final_S = np.ones(len(initial_S)) if of.final_S is None else of.final_S.numpy()
    future_LS = of.future_LS.numpy()
    successor_SR, weight_SR = of.successor_SR.numpy(), of.weight_SR.numpy()

    def row(rng: np.random.Generator) -> list[int]:
        state = drawn(rng, initial_S * future_LS[0])
        tokens = [drawn(rng, emission_SQ[state])]
        for step in range(1, source.seq_len):
            state = successor_SR[state, drawn(rng, weight_SR[state] * future_LS[step][successor_SR[state]])]
            tokens.append(drawn(rng, emission_SQ[state]))
        return tokens

    def posterior(tokens: np.ndarray, observed: np.ndarray) -> np.ndarray:
        told = [
            emission_SQ[:, token] if seen else np.ones(len(initial_S)) for token, seen in zip(tokens, observed, strict=True)
        ]
        forward = [initial_S]
        for each in told[:-1]:
            message = (forward[-1] * each) @ transition_SS
            forward.append(message / message.sum())
        after, beliefs = final_S, []
        for before, each in zip(reversed(forward), reversed(told), strict=True):
            belief = (before * after) @ emission_SQ
            beliefs.append(belief / belief.sum())
            after = transition_SS @ (each * after)
            after /= after.sum()
        return np.array(beliefs[::-1])

    return Plain(row, posterior)
