"""References: noise of their own, trajectories, entries of a batch."""
import pytest
import torch

from lodestar.guidance.attention.sources import Held, Recorder, Source, Trajectory, entries, own_noise, source_of
from lodestar.guidance.method import BadInput


def test_own_noise_is_white_and_independent_of_the_pictures():
    noise = torch.randn(2, 4, 32, 32, generator=torch.Generator().manual_seed(0))
    a, b = own_noise(noise, 0), own_noise(noise, 1)
    assert torch.equal(a, own_noise(noise, 0)) and not torch.equal(a, b) and not torch.equal(a, own_noise(noise, 0, 1))
    for other in (a, b):
        assert torch.equal(other.abs().flatten(1).sort(1).values, noise.abs().flatten(1).sort(1).values)
        assert (other * noise).mean((1, 2, 3)).abs().max() < 0.06
        assert torch.equal(own_noise(noise[1:], 0), a[1:])      # an entry alone gets the same
    shifted = (a[..., 1:] * a[..., :-1]).mean()
    assert shifted.abs() < 0.05


def test_a_trajectory_is_followed_and_joined_by_straight_lines():
    recorder = Recorder()
    for s in (0.1, 1.0, 3.0):
        recorder.add(torch.full((2, 1, 2, 2), 5.0 + 2.0 * s), s)
    way = recorder.finish()
    assert isinstance(way, Trajectory) and way.states.shape == (3, 2, 1, 2, 2)
    for s in (0.1, 0.5, 1.0, 2.0, 3.0):
        torch.testing.assert_close(way.at(s), torch.full((2, 1, 2, 2), 5.0 + 2.0 * s))
    assert torch.equal(way.at(0.01), way.states[0]) and torch.equal(way.at(14.0), way.states[-1])
    assert torch.equal(way.at(1.0 + 1e-7), way.states[1])


def test_entries():
    x = torch.arange(3.0).view(3, 1, 1, 1)
    assert torch.equal(entries(x, 3, "n", "f"), x) and entries(x[:1], 5, "n", "f").shape[0] == 5
    with pytest.raises(BadInput, match="n: f.*3 pictures.*batch has 2"):
        entries(x, 2, "n", "f")


def test_sources_are_values():
    latent = {"samples": torch.zeros(1)}
    assert source_of("n", None, None) is None
    assert source_of("n", latent, None) == source_of("n", latent, None) == Source(Held(latent)) != source_of("n", dict(latent), None)
    assert len({source_of("n", latent, None, "own"), source_of("n", latent, None, "own", 1)}) == 2
    with pytest.raises(BadInput, match="n: reference"):
        source_of("n", latent, object())
