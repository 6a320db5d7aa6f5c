"""The counter-based random numbers: SplitMix64 bit for bit, uniform, independent, and pure functions of their words."""

import numpy as np
import pytest
import torch
from scipy import stats

from mlm_lightning import randomness
from mlm_lightning.randomness import Stream

UINT64 = (1 << 64) - 1


def splitmix64(state: int, count: int) -> list[int]:
    """The published algorithm in Python's own integers."""
    numbers = []
    for _ in range(count):
        state = (state + 0x9E3779B97F4A7C15) & UINT64
        z = state
        z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & UINT64
        z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & UINT64
        numbers.append(z ^ (z >> 31))
    return numbers


def unsigned(bits: torch.Tensor) -> list[int]:
    return [int(value) & UINT64 for value in bits.flatten()]


def test_bits_are_the_published_sequence():
    expected = [6457827717110365317, 3203168211198807973, 9817491932198370423, 4593380528125082431, 16408922859458223821]
    assert splitmix64(1234567, 5) == expected
    assert unsigned(randomness.random_bits(torch.tensor(1234567), torch.arange(5))) == expected


@pytest.mark.parametrize("key", [0, 1, -1, 2**63 - 1, -(2**63), 0x123456789ABCDEF])
def test_bits_equal_the_reference_for_any_key(key):
    assert unsigned(randomness.random_bits(torch.tensor([key]), torch.arange(100))) == splitmix64(key & UINT64, 100)


def test_uniform_is_the_upper_53_bits():
    keys_B1, positions_L = torch.tensor([[5], [-7]]), torch.arange(50)
    bits = unsigned(randomness.random_bits(keys_B1, positions_L))
    assert randomness.uniform(keys_B1, positions_L).flatten().tolist() == [(b >> 11) * 2.0**-53 for b in bits]


def test_a_number_does_not_depend_on_what_is_drawn_beside_it():
    keys_B, positions_L = randomness.row_keys(3, torch.arange(7)), torch.arange(11)
    together = randomness.random_bits(keys_B[:, None], positions_L)
    alone = [[randomness.random_bits(key, position) for position in positions_L] for key in keys_B]
    assert together.tolist() == [[int(bits) for bits in row] for row in alone]


def test_arguments_stay_as_they_are():
    keys_B, positions_L = torch.arange(4), torch.arange(4)
    randomness.random_bits(keys_B, positions_L)
    randomness.row_keys(1, keys_B, positions_L)
    assert keys_B.tolist() == positions_L.tolist() == [0, 1, 2, 3]


def test_keys_are_what_they_always_were():
    """Results on disk depend on these values."""
    assert randomness.key(0, Stream.MASK, 2) == 2473726042477573271
    assert randomness.row_keys(randomness.key(0, 1), torch.arange(2), torch.tensor([5, 6])).tolist() == [
        -6152996766897524496,
        -2249280018752268493,
    ]


def test_keys_of_integers_and_of_tensors_agree():
    for seed, epoch, row in [(0, 0, 0), (1, 2, 3), (123, 0, 2**40), (7, 5, -1)]:
        keys_B = randomness.row_keys(randomness.key(seed), torch.tensor([epoch]), torch.tensor([row]))
        assert keys_B.tolist() == [randomness.key(seed, epoch, row)]


def test_several_keys_at_once():
    keys = np.array([randomness.key(1), randomness.key(2)]).view(np.uint64)[:, None]
    rows = np.arange(5, dtype=np.uint64)
    both = randomness.row_keys_numpy(keys, rows).view(np.int64)
    assert both.tolist() == [randomness.row_keys(randomness.key(seed), torch.arange(5)).tolist() for seed in (1, 2)]


def test_the_order_of_the_words_matters():
    words = [(), (0,), (1,), (0, 0), (0, 1), (1, 0), (0, 0, 0), (-1,)]
    assert len({randomness.key(*word) for word in words}) == len(words)


def test_numbers_are_uniform():
    u = randomness.uniform(randomness.row_keys(0, torch.arange(4000))[:, None], torch.arange(250)).flatten().numpy()
    assert u.min() >= 0
    assert u.max() < 1
    assert stats.chisquare(np.histogram(u, bins=1000, range=(0, 1))[0]).pvalue > 1e-3


def test_every_bit_is_fair():
    bits = randomness.random_bits(randomness.row_keys(0, torch.arange(1000))[:, None], torch.arange(100)).flatten()
    shares = np.array([((bits >> bit) & 1).double().mean().item() for bit in range(64)])
    assert np.abs(shares - 0.5).max() < 4.5 * 0.5 / len(bits) ** 0.5


def test_neighbours_of_every_kind_are_uncorrelated():
    """Neighbouring seeds, streams, epochs, rows and positions differ in one bit; their numbers must not show it."""

    def u(seed: int = 0, stream: Stream = Stream.MASK, epoch: int = 0, row: int = 0, position: int = 0) -> np.ndarray:
        rows_B = torch.arange(row, row + 2000)
        keys_B = randomness.row_keys(randomness.key(seed, stream), torch.full_like(rows_B, epoch), rows_B)
        return randomness.uniform(keys_B[:, None], torch.arange(position, position + 100)).flatten().numpy()

    others = [u(seed=1), u(stream=Stream.REPLACEMENT), u(epoch=1), u(row=1), u(position=1), u(row=1, epoch=1)]
    for other in others:
        assert abs(np.corrcoef(u(), other)[0, 1]) < 4 / other.size**0.5


def test_generators_and_global_seeding_repeat():
    assert torch.equal(torch.rand(3, generator=randomness.generator(1, 2)), torch.rand(3, generator=randomness.generator(1, 2)))
    with torch.random.fork_rng():
        randomness.seed_torch(1, 2)
        first = torch.rand(3)
        randomness.seed_torch(1, 3)
        assert not torch.equal(first, torch.rand(3))


def test_seeding_torch_is_manual_seed_and_leaves_nothing_behind():
    """torch.manual_seed notes each call, with its stack, for accelerators that are not initialised."""
    torch.manual_seed(randomness.key(3, 4))
    expected = torch.rand(3)
    before = len(torch.cuda._queued_calls)
    for _ in range(3):
        randomness.seed_torch(3, 4)
    assert torch.equal(torch.rand(3), expected)
    assert len(torch.cuda._queued_calls) == before
