"""Structure correction (GenDeg) on tensors: the network against NAFNet's blocks written as modules, its sizes, and files."""
import pytest
import torch
from lodestar.guidance.inverse.structure_correction import corrected, layout, parse
from lodestar.guidance.method import BadInput
from lodestar.nodes import definitions
from torch import nn

pytestmark = pytest.mark.method("LodestarDegradationSynthesis")


class Norm(nn.Module):
    def __init__(self, c):
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.randn(c)), nn.Parameter(torch.randn(c))

    def forward(self, x):
        off = x - x.mean(1, keepdim=True)
        return self.weight[:, None, None] * off / (off.square().mean(1, keepdim=True) + 1e-6).sqrt() + self.bias[:, None, None]


class Block(nn.Module):
    def __init__(self, c):
        super().__init__()
        self.conv1, self.conv2, self.conv3 = nn.Conv2d(c, 2 * c, 1), nn.Conv2d(2 * c, 2 * c, 3, padding=1, groups=2 * c), nn.Conv2d(c, c, 1)
        self.sca = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Conv2d(c, c, 1))
        self.conv4, self.conv5, self.norm1, self.norm2 = nn.Conv2d(c, 2 * c, 1), nn.Conv2d(c, c, 1), Norm(c), Norm(c)
        self.beta, self.gamma = (nn.Parameter(torch.randn(1, c, 1, 1)) for _ in range(2))

    def forward(self, h):
        a, b = self.conv2(self.conv1(self.norm1(h))).chunk(2, 1)
        y = h + self.conv3(a * b * self.sca(a * b)) * self.beta
        a, b = self.conv4(self.norm2(y)).chunk(2, 1)
        return y + self.conv5(a * b) * self.gamma


class Net(nn.Module):
    """Width 4, encoders of one block and two, one in the middle, decoders of two and one."""

    def __init__(self):
        super().__init__()
        self.intro, self.ending = nn.Conv2d(6, 4, 3, padding=1), nn.Conv2d(4, 3, 3, padding=1)
        self.encoders = nn.ModuleList([nn.Sequential(Block(4)), nn.Sequential(Block(8), Block(8))])
        self.downs = nn.ModuleList([nn.Conv2d(4, 8, 2, 2), nn.Conv2d(8, 16, 2, 2)])
        self.middle_blks = nn.Sequential(Block(16))
        self.ups = nn.ModuleList([nn.Sequential(nn.Conv2d(16, 32, 1, bias=False), nn.PixelShuffle(2)), nn.Sequential(nn.Conv2d(8, 16, 1, bias=False), nn.PixelShuffle(2))])
        self.decoders = nn.ModuleList([nn.Sequential(Block(8), Block(8)), nn.Sequential(Block(4))])

    def forward(self, x):
        x, kept = self.intro(x), []
        for block, down in zip(self.encoders, self.downs):
            x = block(x)
            kept.append(x)
            x = down(x)
        x = self.middle_blks(x)
        for up, block in zip(self.ups, self.decoders):
            x = block(up(x) + kept.pop())
        return self.ending(x)


@pytest.fixture(scope="module")
def net():
    torch.manual_seed(0)
    return Net().requires_grad_(False)


def test_it_is_nafnet(net):
    """The same numbers as modules in the authors' arrangement, whose keys are the file's; sides that are no multiple of 4 are padded with zeros."""
    found = parse(net.state_dict(), "test", "file")
    assert (found.encoders, found.middle, found.decoders) == ((1, 2), 1, (2, 1))
    clean, bad = torch.rand(2, 2, 3, 10, 13, generator=torch.Generator().manual_seed(1))
    padded = torch.nn.functional.pad(torch.cat((2 * clean - 1, 2 * bad - 1), 1), (0, 3, 0, 2))
    wanted = (bad + net(padded)[..., :10, :13] / 2).clamp(0, 1)
    assert torch.allclose(corrected(found, clean, bad), wanted, atol=1e-5) and (wanted - bad).abs().max() > 1e-2
    assert corrected(found, clean, bad, 0.0) is bad


def test_files_that_do_not_fit_are_refused(net):
    good = net.state_dict()
    for change, says in (({"intro.weight": torch.zeros(4, 3, 3, 3)}, "intro.weight"), ({"decoders.0.1.sca.1.weight": torch.zeros(8, 4, 1, 1)}, "decoders.0.1.sca.1.weight"), ({"more": torch.zeros(1)}, "more"), ({"ups.1.0.weight": None}, "ups.1.0.weight: missing")):
        with pytest.raises(BadInput, match=says):
            parse({k: v for k, v in {**good, **change}.items() if v is not None}, "test", "file")
    with pytest.raises(BadInput, match="no NAFNet"):
        parse({"a": torch.zeros(1)}, "test", "file")


def test_the_bundled_network_mends_what_the_vae_blurs():
    """On four fresh hazy pictures it is nearer to the true degraded picture than the VAE's, though not by much: this VAE loses little."""
    import random

    from lodestar.demo.structure import DECODERS, ENCODERS, MIDDLE, WIDTH, pairs
    from lodestar.demo.weights_file import read
    found = definitions()["LodestarLoadStructureCorrection"].run(definitions()["LodestarLoadStructureCorrection"].inputs[0].default)[0]
    assert {k: tuple(v.shape) for k, v in found.weights.items()} == layout(WIDTH, ENCODERS, MIDDLE, DECODERS)
    clean, drawn, wanted = pairs(random.Random(77), 4, ("haze",), read("latents"))
    psnr = lambda u: -10 * torch.log10((u - wanted).square().mean((1, 2, 3)))
    assert (psnr(corrected(found, clean, drawn)) - psnr(drawn)).mean() > 0.15
