"""FreeU: the filter against a Fourier transform, the reweighting, and networks that cannot have it."""
import pytest
import torch

from lodestar.guidance.attention.freeu import FreeU, Reweight, low_frequencies
from lodestar.guidance.layers import Geometry
from lodestar.guidance.method import BadInput


def by_transform(x, scale):
    """The published filter: the box of the two middle rows and columns of the shifted spectrum times `scale`."""
    spectrum = torch.fft.fftshift(torch.fft.fftn(x.double(), dim=(-2, -1)), dim=(-2, -1))
    row, column = x.shape[-2] // 2, x.shape[-1] // 2
    spectrum[..., max(0, row - 1):row + 1, max(0, column - 1):column + 1] *= scale
    return torch.fft.ifftn(torch.fft.ifftshift(spectrum, dim=(-2, -1)), dim=(-2, -1)).real


@pytest.mark.parametrize("size", ((8, 8), (7, 5), (2, 3), (1, 4), (1, 1), (12, 9)))
def test_the_filter_is_the_published_one(size):
    x = torch.randn(2, 3, *size, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close((x + (0.2 - 1) * low_frequencies(x)).double(), by_transform(x, 0.2), atol=1e-5, rtol=1e-5)


def test_reweighting():
    g = torch.Generator().manual_seed(0)
    h, skip = torch.randn(2, 8, 4, 4, generator=g), torch.randn(2, 5, 4, 4, generator=g)
    for version in ("1", "2"):
        edit = Reweight("all", ((8, (1.5, 0.9)),), version)
        out, filtered = edit.feature(None, h, skip)
        assert torch.equal(out[:, 4:], h[:, 4:]) and not torch.equal(filtered, skip)
        torch.testing.assert_close(edit.feature(None, h[1:], skip[1:])[0], out[1:])
        same = Reweight("all", ((8, (1.0, 1.0)),), version).feature(None, h, skip)
        torch.testing.assert_close(same, (h, skip))
        assert edit.feature(None, h[:, :6], skip)[1] is skip       # another level
    factor = edit.feature(None, h, skip)[0][:, :4] / h[:, :4]
    assert float(factor.min()) >= 1 - 1e-5 and float(factor.amax()) == pytest.approx(1.5, abs=1e-4)
    flat = torch.ones(1, 8, 4, 4)
    assert torch.equal(Reweight("all", ((8, (1.5, 0.9)),), "2").feature(None, flat, skip[:1])[0], flat)      # the host's node divides 0 by 0 here


def test_other_networks_are_refused_by_name():
    class Facts:
        geometry, network, model_channels = Geometry("flux", ()), "Flux", None

    with pytest.raises(BadInput, match="FreeU: model = 'Flux'.*skip connections"):
        FreeU().fitted(Facts)
    assert FreeU(b1=1.0, b2=1.0, s1=1.0, s2=1.0).neutral() and not FreeU().neutral()
