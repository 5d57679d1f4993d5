"""FreeDoM, Semantic Gradient Guidance, the presets of Training-Free Guidance and its search, Palette Segmentation and Multiscale Structure losses."""
from __future__ import annotations

import dataclasses
import math

import pytest
import torch
from lodestar.guidance.frozen import frozen
from lodestar.guidance.inverse.levels import noise_source
from lodestar.guidance.inverse.solver import at, euler
from lodestar.guidance.loss.base import Loss, LossContext
from lodestar.guidance.loss.palette import PaletteSegmentation
from lodestar.guidance.loss.solvers.base import LossProblem
from lodestar.guidance.loss.solvers.freedom import FreeDoM
from lodestar.guidance.loss.solvers.search import search, written
from lodestar.guidance.loss.solvers.semantic import SemanticGradientGuidance as SGG
from lodestar.guidance.loss.solvers.semantic import regions
from lodestar.guidance.loss.solvers.tfg import PRESETS
from lodestar.guidance.loss.solvers.tfg import TrainingFreeGuidance as TFG
from lodestar.guidance.loss.structure import MultiscaleStructure
from lodestar.guidance.method import BadInput, Step
from lodestar.tests.toys import levels as schedule
from lodestar.tests.toys import mixture, state

FLOWS = pytest.mark.parametrize("flow", [False, True], ids=("k", "flow"))
SHAPE = (3, 4, 4)
LABELS = torch.zeros(1, 4, 4, 3)
LABELS[:, :, 3] = 1.0


@frozen(eq=False)
class Pull(Loss):
    """Mean over the masked cells of |z - 1|^2 / 2."""

    mask: object = None
    title = "pull"

    def value(self, denoised, context):
        m = torch.ones_like(denoised[:, :1]) if self.mask is None else self.mask[None].to(denoised)
        return (0.5 * (denoised - 1).square() * m).flatten(1).sum(1) / (3 * m.sum((1, 2, 3)))


def run(method, x, sigmas, flow=False, model=None, seed=0, callback=None):
    problem = method.problem(sigmas, flow)
    return method.run(model or mixture(flow, SHAPE), x, sigmas, problem, flow, noise_source(x, seed), callback, lambda checkpoint=False: torch.enable_grad())


def start(flow, batch=2, steps=6):
    sigmas = schedule(flow, steps)
    return state(mixture(flow, SHAPE), batch, float(sigmas[0])), sigmas


@pytest.mark.parametrize("method, off", [pytest.param(m, o, marks=pytest.mark.method(m.node_id)) for m, o in (
    (FreeDoM(loss=Pull(), start=0.0, end=1.0, scale=2.0, repeats=1), {"scale": 0.0}), (FreeDoM(loss=Pull(), form="signal", scale=30.0, start=0.0, end=1.0, repeats=1), {"scale": 0.0}), (SGG(loss=Pull(), labels=LABELS, strength=100.0), {"strength": 0.0}))], ids=("freedom", "signal", "sgg"))
@FLOWS
def test_batches_are_singles_and_off_is_plain(method, off, flow):
    x, sigmas = start(flow)
    out = run(method, x, sigmas, flow)
    assert bool(torch.isfinite(out).all()) and out.dtype == x.dtype
    torch.testing.assert_close(run(method, x[:1], sigmas, flow), out[:1])
    none = dataclasses.replace(method, **off, eta=0.0)
    torch.testing.assert_close(run(none, x, sigmas, flow), euler(mixture(flow, SHAPE), x, sigmas))
    worse = run(dataclasses.replace(method, **off), x, sigmas, flow)
    assert (Pull().value(out, None) < Pull().value(worse, None)).all()

    class Blind(Pull):
        differentiable = False
    with pytest.raises(BadInput, match="gives values only"):
        run(dataclasses.replace(method, loss=Blind()), x, sigmas, flow)


@pytest.mark.method("LodestarFreeDoM")
def test_freedom_by_hand():
    """The move's size is that of CFG's in the paper's coordinates; without CFG a tenth of the noise; repeats within the stage alone."""
    x, _ = start(False)
    s, t, model = 2.0, 0.9, mixture(False, SHAPE)
    sigmas = torch.tensor([s, t], dtype=torch.float64)
    method = FreeDoM(loss=Pull(), scale=0.3, start=0.0, end=1.0, eta=0.0)
    problem = method.problem(sigmas, False)
    plain = model(x, torch.full((2,), s, dtype=torch.float64))
    apart = 0.2 * torch.randn(x.shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    point = lambda: at(model, x, sigmas, 0, problem, False, noise_source(x, 0), lambda checkpoint=False: torch.enable_grad())
    rms = lambda v: v.square().mean((1, 2, 3)).sqrt()
    step = plain + t / s * (x - plain)
    for gap, size in ((apart, rms(apart / s)), (None, 0.1 * rms((x - plain) / s))):
        problem.gap = gap
        moved = (method.led(point(), problem.at(point())) - step) / math.sqrt(1 + t * t)
        torch.testing.assert_close(rms(moved), 0.3 * size)
    assert [FreeDoM(loss=Pull()).times(i, 10) for i in range(10)] == [1, 1, 1, 3, 3, 3, 1, 1, 1, 1]
    outside = dataclasses.replace(method, start=0.5)
    torch.testing.assert_close(outside.led(point(), problem.at(point())), step)


@pytest.mark.method("LodestarSemanticGradientGuidance")
def test_regions_are_led_on_their_own():
    assert regions(LABELS).shape == (2, 4, 4) and regions(LABELS)[1].sum() == 4 and torch.equal(regions(LABELS).sum(0), torch.ones(4, 4))
    x, sigmas = start(False)
    one = SGG(loss=Pull(), labels=torch.zeros(1, 4, 4, 3))
    torch.testing.assert_close(run(one, x, sigmas), run(dataclasses.replace(one, local=False), x, sigmas))      # one region: local is global
    # the mean over a region's own cells: on a model whose values do not mix, a cell of a region of n cells is led 16 / n times as much
    problem = SGG(loss=Pull(), labels=LABELS).problem(sigmas, False)
    point = at(lambda x, s: 0.5 * x, x, sigmas, 0, problem, False, noise_source(x, 0), lambda checkpoint=False: torch.enable_grad())
    _, local = SGG(loss=Pull(), labels=LABELS)._by_region(point)
    _, whole = point.descend(problem.at(point))
    ratio = torch.where(LABELS[0, :, :, 0] > 0, 4.0, 16 / 12).double()
    torch.testing.assert_close(local, ratio * whole)
    with pytest.raises(BadInput, match="connect a single loss"):
        SGG(loss=Pull() + Pull(), labels=LABELS).validate()
    with pytest.raises(BadInput, match="colours"):
        SGG(loss=Pull(), labels=torch.rand(1, 8, 8, 3)).validate()


@pytest.mark.method("LodestarTrainingFreeGuidance")
def test_presets_are_corners():
    for name in PRESETS:
        made = TFG(loss=Pull(), rho=0.2, mu=0.1, smoothing=0.3, iterations=3, preset=name).validate()
        assert made.preset == "own values" and all(getattr(made, k) == v for k, v in PRESETS[name].items())
    x, sigmas = start(False)
    mpgd = TFG(loss=Pull(), mu=0.5, preset="MPGD").validate()
    assert not mpgd.backward and torch.equal(run(mpgd, x, sigmas), run(TFG(loss=Pull(), rho=0.0, mu=0.5, iterations=1, smoothing=0.0), x, sigmas))


@pytest.mark.method("LodestarTrainingFreeGuidance")
def test_search_finds_the_least_and_asks_once():
    asked = []

    def score(values):
        asked.append(tuple(values.values()))
        return float("nan") if values["rho"] > 16 else abs(math.log2(values["rho"]) - 2) + abs(math.log2(values["mu"]) - 1) + values["smoothing"]
    best, table = search(score, {"rho": 1.0, "mu": 0.5, "smoothing": 0.0}, 2, 8)
    assert best == {"rho": 4.0, "mu": 2.0, "smoothing": 0.0} and len(asked) == len(set(asked)) == len(table)
    assert [v for _, v in table] == sorted(v for _, v in table) and written(table).splitlines()[1] == "0: 4, 2, 0"
    assert search(score, {"rho": 1.0, "mu": 0.5, "smoothing": 0.0}, 1, 1)[0] in ({"rho": 2.0, "mu": 0.5, "smoothing": 0.0}, {"rho": 1.0, "mu": 1.0, "smoothing": 0.0})
    assert search(lambda v: float("inf"), {"rho": 0.0, "mu": 0.0, "smoothing": 0.0}, 2, 3)[1] == [({"rho": 0.0, "mu": 0.0, "smoothing": 0.0}, math.inf)]


@pytest.mark.method("LodestarUniversalGuidance")
def test_palette_segmentation():
    target = torch.zeros(1, 3, 8, 8)
    target[:, 0, :, 4:] = 1.0
    loss = PaletteSegmentation(palette="#000000; #ff0000; #0000ff", softness=0.1, target=target, decoder=lambda z: z, weight=2.0).check()
    u = target.repeat(2, 1, 1, 1)
    u[1, :, :, 4:] = 0.0      # half of it has the wrong class
    values = loss.value(u, LossContext())
    d = torch.tensor([0.0, 1.0, 1.0]) / 0.1
    right, wrong = (float(-(-d).log_softmax(0)[i]) for i in (0, 1))
    torch.testing.assert_close(values, 2 * torch.tensor([right, (right + wrong) / 2]), atol=1e-3, rtol=1e-4)
    mask = torch.zeros(1, 8, 8)
    mask[..., :4] = 1
    torch.testing.assert_close(dataclasses.replace(loss, mask=mask).value(u, LossContext())[1], 2 * torch.tensor(right), atol=1e-3, rtol=1e-4)
    with pytest.raises(BadInput, match="at least two colours"):
        PaletteSegmentation(palette="#000000").check()


@pytest.mark.method("LodestarUniversalGuidance")
def test_multiscale_structure():
    g = torch.Generator().manual_seed(0)
    y, u = torch.rand(1, 3, 16, 16, generator=g), torch.rand(2, 3, 16, 16, generator=g)
    make = lambda **v: MultiscaleStructure(target=y, decoder=lambda z: z, **v).check()
    torch.testing.assert_close(make(scales="1").value(u, LossContext()), (u - y).square().mean((1, 2, 3)))
    pool = torch.nn.functional.avg_pool2d
    each = {n: (pool(u, n) - pool(y, n)).square().mean((1, 2, 3)) for n in (8, 4, 2)}
    torch.testing.assert_close(make(follow=False, decay=1.0).value(u, LossContext()), sum(v / n for n, v in each.items()) / (1 / 8 + 1 / 4 + 1 / 2))
    checker = torch.ones(16, 16).cumsum(0).add(torch.ones(16, 16).cumsum(1)) % 2 - 0.5
    assert float((make().value(u, LossContext()) - make().value(u + 0.3 * checker, LossContext())).abs().max()) < 1e-6      # fine details do not count
    sigmas = torch.tensor([10.0, 5.0, 2.0, 1.0, 0.0])
    at_step = lambda i: make().weighed(LossContext(Step(u, torch.ones(2), False, sigmas, i)))
    assert [n for n, w in at_step(0) if w == max(w for _, w in at_step(0))] == [8] and [n for n, w in at_step(3) if w == max(w for _, w in at_step(3))] == [2]
    for scales in ("", "0; 2", "a"):
        with pytest.raises(BadInput, match="whole numbers"):
            make(scales=scales)
