"""Energies of attention maps: their values, their gradients' signs, and how a shift of the sample enters a step."""
import dataclasses
import math

import pytest
import torch
import torch.nn.functional as F

from lodestar.guidance.attention.capture import MapGraph, Reading, SelfGraph, deepest
from lodestar.guidance.attention.edits import Site
from lodestar.guidance.attention.energy import MapSteer, mean_map, of_words, sharpened, smoothed
from lodestar.guidance.attention.excite import AttendAndExcite, due, parse_points
from lodestar.guidance.attention.layout import BoxDiff, LayoutGuidance, all_tokens, boxed, edges, outside_share
from lodestar.guidance.attention.regions import Region, Regions
from lodestar.guidance.attention.scribble import ScribbleGuidance, focal_loss, grown, moment_loss, moments, self_loss, stretched, turn
from lodestar.guidance.attention.words import PromptWords
from lodestar.guidance.frozen import frozen
from lodestar.guidance.gradients import next_ratio
from lodestar.guidance.layers import Geometry, Layer
from lodestar.guidance.method import BadInput, Step, progress
from lodestar.tests.toys import a_step, euler, gaussian, levels

EXCITE, LAYOUT, BOXDIFF, SCRIBBLE = (pytest.mark.method(f"Lodestar{n}") for n in ("AttendAndExcite", "LayoutGuidance", "BoxDiff", "ScribbleGuidance"))
ALL = pytest.mark.method("LodestarAttendAndExcite", "LodestarLayoutGuidance", "LodestarBoxDiff", "LodestarScribbleGuidance")


def site(height=8, width=8, **k):
    return Site("cross", None, height, width, **k)


def reading(maps, **k):
    """A Reading of maps [batch, tokens, height, width], one head."""
    return Reading(site(*maps.shape[-2:], **k), maps[:, None, :, None])


def blob(y, x, size=8, width=0.1):
    """A bump at (x, y) in fractions of the picture."""
    at = (torch.arange(size) + 0.5) / size
    return torch.exp(-((at[:, None] - y) ** 2 + (at[None] - x) ** 2) / (2 * width ** 2))


# What is read

@ALL
def test_which_blocks_are_deepest():
    def unet(inputs, outputs, middle=True):
        layers = [Layer("input", i) for i in inputs] + ([Layer("middle", 0)] if middle else []) + [Layer("output", i) for i in outputs]
        return Geometry("unet", tuple(layers))
    sd15 = unet((1, 2, 4, 5, 7, 8), range(3, 12))
    assert deepest(sd15) == "input.7-8, output.3-5" and deepest(sd15, True) == "middle, output.3-5"
    assert deepest(unet((4, 5, 7, 8), range(6))) == "input.7-8, output.0-2"
    assert deepest(unet((1, 3), range(4))) == "input.3-3, output.0-1"
    assert deepest(Geometry("flux", (Layer("double", 0),))) == "middle"


@ALL
def test_the_mean_over_heads_and_layers():
    g = torch.Generator().manual_seed(0)
    a, b = (torch.rand(2, 3, 4, 1, 6, 6, generator=g) for _ in range(2))
    maps, where = mean_map([Reading(site(6, 6), a), Reading(site(6, 6), b)], 2)
    torch.testing.assert_close(maps, (a.mean(1) + b.mean(1)) / 2)
    small = torch.ones(2, 3, 4, 1, 3, 3)
    maps, where = mean_map([Reading(site(6, 6), a), Reading(site(3, 3), small)], 2)
    torch.testing.assert_close(maps, (a.mean(1) + 1) / 2)
    twice, _ = mean_map([Reading(site(6, 6), torch.cat((a, b)))], 2)      # two conditionings of each picture
    torch.testing.assert_close(twice, (a.mean(1) + b.mean(1)) / 2)


@ALL
def test_smoothing_and_sharpening():
    maps = torch.zeros(1, 1, 5, 5)
    maps[0, 0, 2, 2] = 1
    kernel = torch.exp(torch.tensor([-2.0, 0.0, -2.0]))
    kernel = kernel / kernel.sum()
    torch.testing.assert_close(smoothed(maps)[0, 0, 1:4, 1:4], torch.outer(kernel, kernel))
    torch.testing.assert_close(smoothed(torch.ones(1, 1, 5, 5)), torch.ones(1, 1, 5, 5))
    maps = torch.rand(2, 3, 1, 4, 4, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(sharpened(maps).sum(1), torch.ones(2, 1, 4, 4))
    torch.testing.assert_close(of_words(maps, (3, 5, 6), (3, 6)), (maps[:, 0] + maps[:, 2]) / 2)


# Attend-and-Excite

def words(tokens=((1,), (3,)), content=(1, 2, 3)):
    return PromptWords("a b c", ("a", "c"), tokens, content, 8)


@EXCITE
def test_the_most_neglected_phrase_counts():
    method, step = AttendAndExcite(words=words()), Step(torch.zeros(2, 4, 8, 8), torch.ones(2))
    raw = torch.stack((blob(0.2, 0.2), 0.05 * torch.ones(8, 8), 0.02 * blob(0.8, 0.8)))[None].repeat(2, 1, 1, 1)
    raw[1, 2] = 2 * blob(0.8, 0.8)
    raw.requires_grad_(True)
    value, measure = method.energy([[reading(raw)]], step, {})
    first, second = value.tolist()
    assert first > 0.5 > second >= 0 and torch.equal(value, measure)
    slope, = torch.autograd.grad(value[0], raw)
    assert slope[0, 2].min() < 0 and slope[1].abs().max() == 0      # only the neglected one is raised, only in its own picture
    peak = 10 * torch.stack((blob(0.2, 0.2, width=0.02), torch.zeros(8, 8), blob(0.8, 0.8, width=0.02)))[None].repeat(2, 1, 1, 1)
    assert float(method.energy([[reading(peak)]], step, {})[0].max()) < 0.5


@EXCITE
def test_thresholds():
    assert parse_points("0.2:0.5, 0:0.05", "x") == ((0.0, 0.05), (0.2, 0.5))
    for bad in ("0.5", "a:b", "2:0.5"):
        with pytest.raises(BadInput, match="thresholds"):
            AttendAndExcite(words=words(), thresholds=bad).validate()
    sigmas = torch.linspace(10, 0, 51)
    points = parse_points("0:0.05, 0.2:0.5, 0.4:0.8", "x")
    found = {i: due(points, Step(torch.zeros(1), torch.ones(1), sigmas=sigmas, index=i)) for i in range(50)}
    assert {i: v for i, v in found.items() if v is not None} == {0: 0.05, 10: 0.5, 20: 0.8}
    method = AttendAndExcite(words=words())
    step = a_step(torch.zeros(1, 4, 2, 2), 3.0, index=10, sigmas=sigmas)
    (count, factor, limit), (one, same, zero) = method.rounds(step)
    assert (count, limit, one, zero) == (20, 0.5, 1, 0.0)
    assert float(factor.flatten()[0]) == pytest.approx(10 * 20 * math.sqrt(1 - progress(step) / 2))      # (1 + 3^2) alpha
    flow = dataclasses.replace(step, flow=True, sigma=torch.tensor([0.5]))
    assert float(method.rounds(flow)[-1][1].flatten()[0]) == pytest.approx(0.5 * 20 * math.sqrt(1 - progress(step) / 2))
    assert AttendAndExcite(step_size=0.0).neutral()
    with pytest.raises(BadInput, match="words"):
        AttendAndExcite(words=PromptWords("", (), (), (1,), 8)).validate()


# Layout Guidance

def regions(*boxes, tokens=None, **k):
    tokens = tokens or [(i + 1,) for i in range(len(boxes))]
    return Regions(tuple(Region(boxes=(b,), words="w", tokens=t, **k) for b, t in zip(boxes, tokens)), length=8)


@LAYOUT
def test_the_energy_of_a_box():
    method = LayoutGuidance(regions=regions((0.0, 0.0, 0.5, 1.0)))
    step = Step(torch.zeros(1, 4, 8, 8), torch.ones(1))

    def energy(maps):
        return float(method.energy([[reading(maps[None, None])]], step, {})[0])
    assert energy(torch.ones(8, 8)) == pytest.approx((1 - 0.5) ** 2)      # uniform: (1 - |B| / N)^2
    assert energy(blob(0.5, 0.2, width=0.05)) < 0.01 and energy(blob(0.5, 0.8, width=0.05)) > 0.9
    whole = LayoutGuidance(regions=regions((0.0, 0.0, 1.0, 1.0)))
    assert float(whole.energy([[reading(blob(0.5, 0.8)[None, None])]], step, {})[0]) == pytest.approx(0, abs=1e-9)
    # heads and layers count alike, each by itself
    two = Reading(site(), torch.stack((blob(0.5, 0.2, width=0.05), blob(0.5, 0.8, width=0.05)))[None, :, None, None])
    assert float(method.energy([[two]], step, {})[0]) == pytest.approx((energy(blob(0.5, 0.2, width=0.05)) + energy(blob(0.5, 0.8, width=0.05))) / 2)


@LAYOUT
def test_weights_and_samples():
    places = Regions((Region(boxes=((0, 0, 0.5, 1),), words="a", tokens=(1,), weight=3.0), Region(boxes=((0.5, 0, 0.5, 1),), words="b", tokens=(2,), weight=1.0)), length=8)
    maps = torch.stack((blob(0.5, 0.9, width=0.05), blob(0.5, 0.9, width=0.05)))[None].repeat(2, 1, 1, 1)
    maps[1, 0] = blob(0.5, 0.1, width=0.05)
    step = Step(torch.zeros(2, 4, 8, 8), torch.ones(2))
    value, _ = LayoutGuidance(regions=places).energy([[reading(maps)]], step, {})
    assert float(value[0]) == pytest.approx(0.75, abs=0.02) and float(value[1]) == pytest.approx(0, abs=0.01)
    assert outside_share(torch.zeros(1, 1, 1, 4), torch.ones(1, 4), 1).item() == 1.0      # no attention at all is no error
    assert all_tokens(places) == (1, 2)
    with pytest.raises(BadInput, match="Layout Guidance: regions.*without words"):
        LayoutGuidance(regions=Regions((Region(boxes=((0, 0, 1, 1),)),))).validate()


# BoxDiff

@BOXDIFF
def test_the_three_constraints():
    mask = torch.zeros(8, 8)
    mask[2:6, 2:6] = 1
    inner, outer, corner = boxed(mask[None], mask, 0.2, 1)
    assert float(inner) == 0 and float(outer) == 0 and float(corner) == 0      # the box itself
    inner, outer, corner = boxed(1 - mask[None], mask, 0.2, 1)
    assert float(inner) == 1 and float(outer) == 1 and float(corner) > 0
    small = torch.zeros(1, 8, 8)
    small[0, 4, 4] = 1
    inner, outer, corner = boxed(small, mask, 0.2, 1)      # top 20 % of 16 cells: three of them
    assert float(inner) == pytest.approx(2 / 3) and float(outer) == 0 and float(corner) > 0
    assert edges(torch.tensor([0.0, 0, 1, 1, 1, 0, 0, 0]), 1).tolist() == [0, 1, 1, 1, 1, 1, 1, 0]
    assert edges(torch.tensor([0.0, 0, 1, 1, 1, 0, 0, 0]), 0).tolist() == [0, 0, 1, 0, 0, 1, 0, 0]


@BOXDIFF
def test_boxdiff_wants_the_attention_inside():
    content = tuple(range(1, 4))
    places = dataclasses.replace(regions((0.0, 0.0, 0.5, 1.0), (0.5, 0.0, 0.5, 1.0)), spans=((1, 4),))
    method, step = BoxDiff(regions=places), Step(torch.zeros(1, 4, 8, 8), torch.ones(1))

    def energy(first, second):
        value, measure = method.energy([[reading(torch.stack((first, second, 0.02 * torch.ones(8, 8)))[None])]], step, {})
        return float(value), float(measure)
    good, worst = energy(blob(0.5, 0.25), blob(0.5, 0.75)), energy(blob(0.5, 0.75), blob(0.5, 0.25))
    assert good[0] < worst[0] and good[1] < 0.2 < worst[1]
    assert method.readers[0].tokens == content


# Scribble Guidance

def bar(angle, size=24, y=0.5, x=0.5, long=0.3, wide=0.05):
    """A bar at an angle, its centre at (x, y)."""
    at = (torch.arange(size) + 0.5) / size
    dx, dy = at[None] - x, at[:, None] - y
    along, across = dx * math.cos(angle) + dy * math.sin(angle), -dx * math.sin(angle) + dy * math.cos(angle)
    return ((along.abs() < long) & (across.abs() < wide)).float()


@SCRIBBLE
def test_moments_and_turns():
    for angle in (0.0, 0.4, 1.2, 2.0, 3.0):
        centre, axis = moments(bar(angle, y=0.45, x=0.55)[None])
        assert centre[0].tolist() == pytest.approx([0.55, 0.45], abs=0.02)
        assert math.atan2(float(axis[0, 1]), float(axis[0, 0])) / 2 % math.pi == pytest.approx(angle % math.pi, abs=0.06)
    a, b = moments(bar(0.02)[None])[1], moments(bar(math.pi - 0.02)[None])[1]
    assert float(turn(a, b)) < 0.06      # axes at 0 and just below pi lie side by side
    assert float(turn(moments(bar(0.0)[None])[1], moments(bar(math.pi / 2)[None])[1])) == pytest.approx(math.pi / 2, abs=0.02)
    round_, _ = moments(blob(0.5, 0.5, 24)[None])
    assert float(turn(moments(blob(0.5, 0.5, 24)[None])[1], a)) == 0


@SCRIBBLE
def test_a_map_that_is_its_stroke_has_no_moment_loss():
    stroke = bar(0.6)[None]
    assert float(moment_loss(stroke, stroke, 2.5)) == pytest.approx(0, abs=1e-4)
    away = bar(0.6, x=0.7)[None]
    turned = bar(0.6 + 0.8)[None]
    assert float(moment_loss(away, stroke, 2.5)) == pytest.approx(0.2, abs=0.03)
    assert float(moment_loss(turned, stroke, 2.5)) == pytest.approx(2.5 * 0.8 ** 2, abs=0.2)
    maps = (turned + 0.01 * torch.rand(1, 24, 24, generator=torch.Generator().manual_seed(0))).requires_grad_(True)
    slope, = torch.autograd.grad(moment_loss(maps, stroke, 2.5).sum(), maps)
    assert torch.isfinite(slope).all() and slope.abs().max() > 0


@SCRIBBLE
def test_focal_and_self_losses():
    stroke = bar(0.3)[None]
    assert float(focal_loss(stroke, stroke)) < 1e-5 < float(focal_loss(0.5 * torch.ones_like(stroke), stroke)) < float(focal_loss(1 - stroke, stroke))
    p = torch.tensor([[[0.8, 0.3]]])
    m = torch.tensor([[[1.0, 0.0]]])
    expected = (0.25 * 0.2 ** 2 * -math.log(0.8) + 0.75 * 0.3 ** 2 * -math.log(0.7)) / 2
    assert float(focal_loss(p, m)) == pytest.approx(expected, rel=1e-5)
    rows = stroke.view(1, 1, 24, 24).expand(1, 576, 24, 24)
    assert float(self_loss(rows, stroke)) < 1e-4 < float(self_loss(1 - rows, stroke))


@SCRIBBLE
def test_strokes_grow_over_cells_that_attend_alike():
    half = torch.zeros(1, 8, 8)
    half[:, :, :4] = 1
    rows = torch.where(half.flatten(1)[:, :, None, None] > 0, half[:, None], 1 - half[:, None])       # each half looks at itself
    stroke = torch.zeros(1, 8, 8)
    stroke[0, 4, 1] = 1
    mask = stroke
    for _ in range(12):
        mask = grown(mask, rows, 1e-6, 20)
    assert torch.equal(mask, half)
    assert int(grown(stroke, rows, 1e-6, 2).sum()) == 3 and torch.equal(grown(stroke, rows, 0.0, 20), stroke)


@SCRIBBLE
def test_scribble_guidance_as_a_whole():
    places = Regions((Region(mask=bar(0.0, 8, long=0.5, wide=0.07)[None], scribble=True, words="a", tokens=(1,)),), length=8, spans=((1, 3),))
    method = ScribbleGuidance(regions=places)
    assert len(method.readers) == 2 and len(dataclasses.replace(method, self_weight=0.0, propagate=False).readers) == 1
    sigmas = torch.linspace(10, 0, 21)
    step = Step(torch.zeros(2, 4, 8, 8), torch.ones(2), sigmas=sigmas, index=4)
    own = torch.eye(64).view(1, 64, 8, 8)
    rows = Reading(site(), own[:, None, :, None].repeat(2, 1, 1, 1, 1, 1))

    def energy(angle, state):
        maps = torch.stack((bar(angle, 8, long=0.5, wide=0.07), 1 - bar(angle, 8, long=0.5, wide=0.07)))[None].repeat(2, 1, 1, 1)
        return method.energy([[reading(maps)], [rows]], step, state)[0]
    state = {}
    along, across = energy(0.0, state), energy(math.pi / 2, {})
    assert along.shape == (2,) and (along < across).all()
    assert state["grown"] == 4
    still = dataclasses.replace(method, propagate=False)
    kept = {}
    still.energy([[reading(torch.rand(2, 2, 8, 8))], [rows]], step, kept)
    assert torch.equal(kept[8, 8, (0.0, 0.0, 1.0, 1.0)][0, 0], bar(0.0, 8, long=0.5, wide=0.07)) and "grown" not in kept
    counts = [method.rounds(dataclasses.replace(step, index=i))[0][0] for i in range(9)]
    assert counts[0] == 5 and counts[-1] == 1 and counts == sorted(counts, reverse=True)
    with pytest.raises(BadInput, match="weights"):
        ScribbleGuidance(regions=places, focal_weight=0.0, moment_weight=0.0, self_weight=0.0).validate()


# How a shift enters

@frozen(eq=False)
class Pull(MapSteer):
    """Moves x itself by -grad |x - goal|^2 / 2, once a step."""

    title = "pull"
    goal: float = 2.0
    limit: float = -1.0

    @property
    def readers(self):
        return (MapGraph(),)

    def energy(self, readings, step, state):
        x = readings[0][0]
        value = 0.5 * (x - self.goal).square().flatten(1).sum(1)
        return value, value

    def rounds(self, step):
        return [(1, 0.1 * torch.ones_like(step.s), self.limit)]


class Host:
    """Stands for the host's context: `alone` gives x itself as what was read."""

    def __init__(self, step, model):
        self.step, self.model = step, model

    def __call__(self, checkpoint=False):
        from lodestar.guidance.gradients import plain_context
        return plain_context(checkpoint)

    def alone(self, x, readers):
        if self.model is not None:
            self.step.maps[readers[0]] = [x]
        return x


@ALL
@pytest.mark.parametrize("flow", (False, True))
def test_the_next_state_is_that_of_the_moved_sample(flow):
    """Euler from x with the returned prediction equals Euler from x' with its own."""
    model = gaussian(flow=flow)
    sigmas = levels(flow, 6)
    x = torch.randn(2, 2, 4, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    for i, (s, s_next) in enumerate(zip(sigmas[:-1], sigmas[1:])):
        step = a_step(x, s, flow, i, sigmas=sigmas)
        step.host = Host(step, model)
        denoised = Pull().steer(step, lambda at: model(at, s), {})
        moved = x + 0.1 * (2.0 - x)
        expected = moved + (s_next - s) * (moved - model(moved, s)) / s
        found = x + (s_next - s) * (x - denoised) / s
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
        assert next_ratio(step)[0] == pytest.approx(float(s_next / s))
        x = expected


@ALL
def test_samples_below_the_limit_and_calls_without_maps_are_left_alone():
    model = gaussian()
    x = torch.cat((torch.full((1, 2, 4, 4), 2.0), torch.zeros(1, 2, 4, 4))).double()
    step = a_step(x, 1.0, sigmas=levels(False, 6))
    step.host = Host(step, model)
    out = Pull(limit=1.0).steer(step, lambda at: model(at, 1.0), {})
    plain = model(x, 1.0)
    torch.testing.assert_close(out[0], plain[0])
    assert (out[1] - plain[1]).abs().max() > 0.1
    step.host = Host(step, None)
    assert torch.equal(Pull().steer(step, lambda at: model(at, 1.0), {}), plain)
    second = dataclasses.replace(step, call=1, host=Host(step, model))
    assert torch.equal(Pull().steer(second, lambda at: model(at, 1.0), {}), plain)
