"""Losses that give values only: what they say, and that nothing with a gradient takes them."""
from __future__ import annotations

import io

import pytest
import torch
from lodestar.guidance.loss.base import LossContext, LossSum, scaled
from lodestar.guidance.loss.blackbox import JpegSize, QRReadable, ValuesOnly
from lodestar.guidance.loss.refine import LossRefinement
from lodestar.guidance.loss.shape import ColouredShape
from lodestar.guidance.loss.smooth import TotalVariation
from lodestar.guidance.loss.solvers.dreamguider import Dreamguider
from lodestar.guidance.loss.solvers.geoguide import GeoGuide
from lodestar.guidance.loss.solvers.tfg import TrainingFreeGuidance
from lodestar.guidance.loss.solvers.universal import UniversalGuidanceSampler
from lodestar.guidance.loss.universal import UniversalGuidance
from lodestar.guidance.method import BadInput
from lodestar.guidance.particles.steering import ParticleSteering
from lodestar.tests.toys import a_step

pytestmark = pytest.mark.method("LodestarParticleSteering")
CONTEXT = LossContext()


def made(cls, **values):
    return cls(**values, decoder=lambda d: d).check()


def pictures():
    g = torch.Generator().manual_seed(0)
    return torch.stack([torch.full((3, 96, 96), 0.5), torch.rand(3, 96, 96, generator=g)])


def test_jpeg_size_is_that_of_the_file_both_ways_and_a_mask_hides():
    from PIL import Image
    u = pictures()
    small, large = (made(JpegSize, direction=d).value(u, CONTEXT) for d in ("smaller", "larger"))
    assert torch.equal(small, -large) and small[0] < 0.3 * small[1] and torch.equal(made(JpegSize, weight=2.0).value(u, CONTEXT), 2 * small)
    data = io.BytesIO()
    Image.fromarray((u[1].movedim(0, -1) * 255).round().to(torch.uint8).numpy()).save(data, "JPEG", quality=95)
    assert float(small[1]) == pytest.approx(8 * data.tell() / 9216)
    assert made(JpegSize, quality=20).value(u, CONTEXT)[1] < small[1]
    hidden = made(JpegSize, mask=torch.cat([torch.ones(1, 8, 96), torch.zeros(1, 88, 96)], 1)).value(u, CONTEXT)
    assert hidden[1] < 0.5 * small[1]
    video = made(JpegSize).value(u.movedim(1, 0)[None], CONTEXT)      # one video of two frames
    assert video.shape == (1,) and float(video[0]) == pytest.approx(float(small.mean()))
    assert not small.requires_grad and not made(JpegSize).value(u.requires_grad_(), CONTEXT).requires_grad


def test_qr_readable_is_what_a_reader_says():
    pytest.importorskip("segno")
    pytest.importorskip("zxingcpp")
    from lodestar.nodes.qr import _draw
    code = _draw("lodestar", 200, 200, "M", 0, 2)[0].movedim(-1, 1)
    both = torch.cat([code, torch.rand(1, 3, 200, 200, generator=torch.Generator().manual_seed(0))])
    assert made(QRReadable).value(both, CONTEXT).tolist() == [0.0, 1.0]
    assert made(QRReadable, text="lodestar").value(code, CONTEXT).tolist() == [0.0] and made(QRReadable, text="other").value(code, CONTEXT).tolist() == [1.0]


def test_without_a_reader_the_package_is_named(monkeypatch):
    import sys
    monkeypatch.setitem(sys.modules, "zxingcpp", None)
    with pytest.raises(BadInput, match="QR Readable Loss.*zxing-cpp"):
        made(QRReadable).value(pictures(), CONTEXT)


def test_values_only_has_the_values_and_the_window_of_what_it_holds():
    u = pictures().requires_grad_()
    loss = made(TotalVariation, start_percent=0.5)
    blind = ValuesOnly(loss)
    assert torch.equal(blind.value(u, CONTEXT), loss.value(u, CONTEXT).detach()) and not blind.value(u, CONTEXT).requires_grad
    assert not blind.active(a_step(u, 14.0)) and "Total Variation" in blind.title
    assert not blind.differentiable and not LossSum((loss, blind)).differentiable and not scaled(blind, 2.0).differentiable and loss.differentiable


@pytest.mark.parametrize("blind", [made(JpegSize), made(QRReadable), ValuesOnly(made(ColouredShape, shape=0.0)), made(TotalVariation) + made(JpegSize)], ids=lambda b: b.title)
def test_everything_with_a_gradient_refuses_it_by_name(blind):
    for method in (TrainingFreeGuidance(loss=blind), UniversalGuidanceSampler(loss=blind), GeoGuide(loss=blind), Dreamguider(loss=blind)):
        with pytest.raises(BadInput, match=f"{method.title}.*{blind.title}.*Particle Steering"):
            method.problem(None, False)
    with pytest.raises(BadInput, match="Universal Guidance.*Particle Steering"):
        UniversalGuidance(loss=blind).steer(a_step(pictures()), lambda x: x, {})
    with pytest.raises(BadInput, match="Refine by Loss.*Particle Steering"):
        LossRefinement(loss=blind).run(pictures())
