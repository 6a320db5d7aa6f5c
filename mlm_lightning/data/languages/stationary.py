"""The distribution of a Markov chain in the long run, π = π T, and the entropy of its steps.

Where several distributions are stationary, because states fall into classes that are never left, it is the limit of the chain
that stays where it is with chance ½, from the uniform distribution: each class has as much of it as chains are caught there.
"""

import torch
from torch import Tensor

_EXACT, _MANY = 1e-12, 1024


def stationary(transition_SS: Tensor) -> Tensor:
    """`stationary_S` of a matrix whose rows sum to 1; it sums to 1, and a step changes it by at most 1e-12."""
    found_S = _solved(transition_SS)
    is_stationary = _is_stationary(found_S, transition_SS)
    # elimination takes 0.4 s with 1,024 states and 40 s with 4,096; beyond the former a state that is hardly left is not found
    if is_stationary and len(transition_SS) > _MANY:
        return found_S
    right_S = by_elimination(transition_SS)
    return found_S if is_stationary and bool((found_S - right_S).abs().max() <= _EXACT) else right_S


def _solved(transition_SS: Tensor) -> Tensor:
    """The solution of π - π T = 0 in 1 - T, which loses the digits of small steps; NaN where there is none."""
    eye_SS = torch.eye(len(transition_SS), dtype=torch.float64)
    balance_SS = eye_SS - transition_SS.T
    balance_SS[-1] = 1.0  # one of the equations follows from the others: in its place, the sum
    found_S, info = torch.linalg.solve_ex(balance_SS, eye_SS[-1])
    return found_S.clamp(min=0) if info == 0 else found_S * torch.nan


def _is_stationary(found_S: Tensor, transition_SS: Tensor) -> bool:
    off = torch.cat((found_S @ transition_SS - found_S, found_S.sum()[None] - 1)).abs().max()
    return bool(off <= _EXACT) and _is_reached_from_all(int(found_S.argmax()), transition_SS)


def by_elimination(transition_SS: Tensor) -> Tensor:
    """The same without a subtraction, so that no digit is lost: states are taken out of the chain one after the other, and
    those that lead to them lead on to where they lead.

        T'[r, s]  =  T[r, s] + T[r, x] · T[x, s] / Σ_s≠x T[x, s]           x is taken out
        π[x]      =  Σ_r π[r] · T[r, x] / Σ_s≠x T[x, s]                    by the states that are left then

    The last state of a class leads nowhere; it stays, and gets what of the uniform distribution comes to it.

    Source: Grassmann, Taksar, Heyman, "Regenerative analysis and steady state distributions for Markov chains", Operations
    Research 1985."""
    step_SS, mass_S = transition_SS.clone().fill_diagonal_(0), torch.full_like(transition_SS[0], 1 / len(transition_SS))
    last: list[int] = []
    taken_out: list[tuple[int, Tensor]] = []
    for x in range(len(step_SS)):
        leaves = step_SS[x].sum()
        if leaves == 0:
            last.append(x)
            continue
        onward_S, to_x_S = step_SS[x] / leaves, step_SS[:, x].clone()
        step_SS.addr_(to_x_S, onward_S).fill_diagonal_(0)  # to stay has no effect
        step_SS[:, x] = step_SS[x] = 0
        mass_S += mass_S[x] * onward_S
        taken_out.append((x, to_x_S / leaves))

    share_SC = torch.zeros(len(step_SS), len(last), dtype=torch.float64)  # C classes, each by its last state
    share_SC[last, range(len(last))] = 1
    for x, ratio_S in reversed(taken_out):
        share_SC[x] = ratio_S @ share_SC
    return (share_SC / share_SC.sum(0)) @ mass_S[last]


def entropy_rate(transition_SS: Tensor, stationary_S: Tensor) -> float:
    """Nats a step of a Markov chain: Σ_s π_s · H(T[s])."""
    return float(stationary_S @ torch.special.entr(transition_SS).sum(1))


def _is_reached_from_all(state: int, transition_SS: Tensor) -> bool:
    """Whether there is a single class of states that is never left, given a state of one."""
    reached_S = torch.zeros(len(transition_SS), dtype=torch.bool)
    new_N = torch.tensor([state])
    while len(new_N):
        reached_S[new_N] = True
        new_N = ((transition_SS[:, new_N] > 0).any(1) & ~reached_S).nonzero()[:, 0]
    return bool(reached_S.all())
