"""Readout heads: training on features, their file, and how what they read moves the sample."""
import dataclasses

import pytest
import torch

from lodestar.guidance.attention import drags
from lodestar.guidance.attention.properties import ResidualGraph
from lodestar.guidance.attention.readout_guidance import Adam, ReadoutGuidance, as_map
from lodestar.guidance.gradients import plain_context
from lodestar.guidance.method import BadInput
from lodestar.guidance.training.readout import Readout, ReadoutHead, TrainReadoutHead, matched, parse, settled, triplet
from lodestar.tests.toys import a_step, gaussian, levels

GUIDANCE, TRAIN = pytest.mark.method("LodestarReadoutGuidance"), pytest.mark.method("LodestarTrainReadoutHead")
LAYERS = ("output.1", "output.2")


def features_of(x, sigma=None):
    """Two layers' features of a picture, one of half its size."""
    return {"output.1": [torch.nn.functional.avg_pool2d(torch.cat((x, x.square()), 1), 2)], "output.2": [torch.cat((x, -x, x * 2), 1)]}


def head(kind="spatial", out=1, seed=0):
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return Readout(settled(ReadoutHead([4, 6], out, 32)), kind, LAYERS)


class Host:
    """Stands for the host's context: the features are those of the picture; of a reference its own."""

    def __init__(self, step, reference=None):
        self.step, self.reference, self.count = step, reference, 0

    def __call__(self, checkpoint=False):
        return plain_context(checkpoint)

    def alone(self, x, readers, branch=None):
        self.count += 1
        self.step.maps[readers[0]] = features_of((x if branch is None else self.reference).float())
        return x


def method_of(readout, **k):
    made = ReadoutGuidance(**{"readout": readout, **k})
    object.__setattr__(made, "reader", ResidualGraph(" ".join(LAYERS)))
    return made.validate()


def read(readout, x, s, flow=False):
    return readout.read(features_of(x.float()), len(x), torch.full((len(x),), s), flow, tuple(x.shape[-2:]))


@GUIDANCE
@pytest.mark.parametrize("flow", (False, True))
def test_a_move_is_the_sign_of_the_gradient(flow):
    """x' - x has the size of the step in every number, the loss falls, and what is read already does not move."""
    x, s = torch.randn(2, 2, 8, 8, generator=torch.Generator().manual_seed(0)).double(), 0.5
    step, readout, model = a_step(x, s, flow, sigmas=levels(flow, 6)), head(), gaussian(shape=(2, 8, 8), flow=flow)
    step.host, image = Host(step), torch.rand(1, 8, 8, 3, generator=torch.Generator().manual_seed(1))
    method = method_of(readout, image=image, step_size=0.01)
    moved = method.moved(step, {})
    away = (moved - x).abs() / ((1 - s if flow else 1.0) ** 2 + s * s) ** 0.5
    assert float(away.max()) == pytest.approx(0.01, rel=1e-4) and float((away - 0.01).abs().median()) < 1e-6
    target = as_map(image, 1, (8, 8), "x")
    loss = lambda at: (read(readout, at, s, flow) - target).square().flatten(1).mean(1)
    assert (loss(moved) < loss(x)).all()
    two = method_of(readout, image=image, step_size=0.01, iterations=2)
    assert float((two.moved(step, {}) - x).abs().max()) > float((moved - x).abs().max()) and step.host.count == 3
    own = ((read(readout, x[:1], s, flow) + 1) / 2).movedim(1, -1).expand(-1, -1, -1, 3)
    one = dataclasses.replace(step, x=x[:1])
    one.host = Host(one)
    still = method_of(readout, image=own, step_size=0.01)
    assert float((still.energy([features_of(x[:1].float())], one, {})[0]).max()) < 1e-10
    assert torch.equal(method_of(readout, image=image, start_percent=0.0).steer(dataclasses.replace(step, call=1), lambda at: model(at, s), {}), model(x, s))
    assert method_of(readout, image=image, step_size=0.0).neutral()


@GUIDANCE
def test_a_mask_says_where_the_map_counts_and_what_is_kept_stays():
    """The error inside the mask falls by more than without one; a mask of ones is none; rows do not depend on each other; what an inpainting run keeps is not moved."""
    x = torch.randn(2, 2, 8, 8, generator=torch.Generator().manual_seed(0)).double()
    step, readout = a_step(x, 0.5, sigmas=levels(False, 6)), head()
    step.host, image = Host(step), torch.rand(2, 8, 8, 3, generator=torch.Generator().manual_seed(1))
    left = torch.zeros(1, 16, 16)
    left[..., :8] = 1
    whole = method_of(readout, image=image, step_size=0.05).moved(step, {})
    inside = method_of(readout, image=image, step_size=0.05, mask=left).moved(step, {})
    error = lambda at: (read(readout, at, 0.5) - as_map(image, 1, (8, 8), "x")).square()[..., :4].mean((1, 2, 3))
    assert (error(inside) < error(whole)).all() and (error(whole) < error(x)).all()
    torch.testing.assert_close(method_of(readout, image=image, step_size=0.05, mask=torch.ones(8, 8)).moved(step, {}), whole)
    for i in (0, 1):
        one = dataclasses.replace(step, x=x[i:i + 1], sigma=step.sigma[i:i + 1])
        one.host = Host(one)
        alone = method_of(readout, image=image[i:i + 1], step_size=0.05).moved(one, {})
        assert ((alone - whole[i:i + 1]).abs() < 1e-6).float().mean() > 0.97      # signs of gradients near 0 may differ
    free = torch.ones(1, 1, 8, 8)
    free[..., 4:] = 0
    kept = method_of(readout, image=image, step_size=0.05).moved(dataclasses.replace(step, free=free), {})
    assert torch.equal(kept[..., 4:], x[..., 4:]) and torch.equal(kept[..., :4], whole[..., :4])
    for wrong in (torch.zeros(1, 8, 8), torch.ones(3, 8, 8)):
        with pytest.raises(BadInput, match="mask"):
            method_of(readout, image=image, mask=wrong).moved(step, {})


@GUIDANCE
@pytest.mark.parametrize("size", (1.0, 1e-20))
def test_moves_of_one_step_are_those_of_adam(size):
    p = torch.zeros(1, 5, requires_grad=True)
    optimiser, rule, at = torch.optim.Adam([p], 0.1, eps=0.0), Adam(), torch.zeros(1, 5)
    for i in range(3):
        g = torch.randn(1, 5, generator=torch.Generator().manual_seed(i))
        p.grad = g.clone()
        optimiser.step()
        at = at - 0.1 * rule(g * size)
        torch.testing.assert_close(at, p.detach())
    assert not Adam()(torch.zeros(1, 5)).any()


@GUIDANCE
def test_appearance_comes_from_the_reference():
    x, other = torch.randn(2, 2, 8, 8), torch.randn(2, 2, 8, 8)
    step, readout = a_step(x, 0.5, sigmas=levels(False, 6)), head("appearance", 8)
    step.host = Host(step, other)
    method, state = method_of(readout, reference={"samples": other}, step_size=0.01), {}
    moved = method.moved(step, state)
    torch.testing.assert_close(state["reference"], read(readout, other, 0.5))
    like = lambda at: (read(readout, at, 0.5) * state["reference"]).sum(1)
    assert (like(moved) > like(x)).all()


@GUIDANCE
def test_what_does_not_fit_is_said():
    x = torch.randn(1, 2, 8, 8)
    with pytest.raises(BadInput, match="image"):
        ReadoutGuidance(readout=head()).validate()
    with pytest.raises(BadInput, match="reference"):
        ReadoutGuidance(readout=head("appearance", 8)).validate()
    with pytest.raises(BadInput, match="another one"):
        head().read({"output.1": features_of(x)["output.1"]}, 1, torch.ones(1), False, (8, 8))
    with pytest.raises(BadInput, match="channels"):
        head().read({k: features_of(x)["output.1"] for k in LAYERS}, 1, torch.ones(1), False, (8, 8))
    with pytest.raises(BadInput, match="3 pictures"):
        method_of(head(), image=torch.rand(3, 8, 8, 3)).target(torch.zeros(2, 1, 8, 8))
    for shape, word in (((1, 2, 3, 8, 8), "a video"), ((1, 2, 8), "no picture")):
        with pytest.raises(BadInput, match=word):
            method_of(head(), image=torch.rand(1, 8, 8, 3)).read({}, a_step(torch.zeros(shape), 0.5, sigmas=levels(False, 6)))
    with pytest.raises(BadInput, match="one or three"):
        as_map(torch.rand(1, 8, 8, 3), 2, (8, 8), "x")


@TRAIN
def test_a_spatial_head_learns_repeats_itself_and_is_kept_in_a_file():
    g = torch.Generator().manual_seed(0)
    x0 = torch.randn(12, 2, 8, 8, generator=g)
    maps, ticks = x0[:, :1].sign() * 0.8, []
    method = TrainReadoutHead(steps=30, batch=4, width=32, rate=0.01).validate()
    readout, first, last = method.run(x0, maps, None, features_of, lambda p: 0.1, tick=lambda *t: ticks.append(t))
    assert last < first and ticks[-1][:2] == (30, 30) and readout.layers == LAYERS and readout.channels == 1
    again, _, _ = dataclasses.replace(method).run(x0, maps, None, features_of, lambda p: 0.1)
    assert all(torch.equal(a, b) for a, b in zip(readout.network.parameters(), again.network.parameters()))
    found = parse(readout.tensors())
    assert (found.kind, found.layers) == ("spatial", LAYERS)
    torch.testing.assert_close(read(found, x0, 0.1), read(readout, x0, 0.1), rtol=0.02, atol=0.02)
    with pytest.raises(ValueError, match="no readout head"):
        parse({"about": torch.zeros(3, dtype=torch.uint8)})
    with pytest.raises(BadInput, match="width"):
        TrainReadoutHead(width=40).validate()


@TRAIN
def test_a_head_of_appearance_tells_groups_apart():
    """Of two kinds of pictures, smooth ones and fine ones."""
    g = torch.Generator().manual_seed(0)
    groups = torch.arange(12.0) % 2
    smooth = torch.nn.functional.interpolate(torch.randn(6, 2, 2, 2, generator=g), (8, 8), mode="bilinear")
    x0 = torch.empty(12, 2, 8, 8)
    x0[::2], x0[1::2] = smooth, torch.randn(6, 2, 8, 8, generator=g)
    readout, first, last = TrainReadoutHead(steps=20, batch=12, width=32).run(x0, None, groups, features_of, lambda p: 0.05)
    h = read(readout, x0, 0.05)
    same = h @ h.T
    own, other = (same[groups[:, None] == groups[None]].mean(), same[groups[:, None] != groups[None]].mean())
    assert last < first and float(own) > float(other) + 0.3
    three = torch.nn.functional.normalize(torch.tensor([[1.0, 0], [1, 0], [0, 1]]), dim=1)
    assert float(triplet(three, 0.5)) == 0 and float(triplet(three[[0, 2, 1]], 0.5)) == pytest.approx(1.5)


@GUIDANCE
def test_drags_are_read_and_what_is_none_is_said():
    two, one = drags.parse("0.25, 0.5 > 0.75 0.5; 0,0>1,1 | 0.1,0.2 > 0.3,0.4\n", "x")
    assert torch.equal(two, torch.tensor([[0.25, 0.5, 0.75, 0.5], [0, 0, 1, 1]])) and one.tolist() == [pytest.approx([0.1, 0.2, 0.3, 0.4])]
    for wrong in ("", "0.5, 0.5", "0,0 > 1", "0,0 > 1,1,1", "0,0 > 1,1.5", "0,0 > a,1", "0,0 > 1,nan", "0,0 > 1,1 |", "0 > 0,1,1"):
        with pytest.raises(BadInput, match="drags"):
            drags.parse(wrong, "x")
    assert drags.disc(0.0, 8, 8).tolist() == [[0, 0]]
    assert len(drags.disc(0.125, 8, 8)) == 5 and len(drags.disc(0.125, 8, 4)) == 5      # a cell to each side
    assert drags.disc(0.125, 8, 4).abs().amax(0).tolist() == [0.25, 0.125]


@GUIDANCE
def test_what_has_moved_along_is_in_place():
    """Of vectors that were shifted by whole cells nothing is misplaced; those that stayed are half right with ghost 1, and wrong by what they differ."""
    reference = torch.nn.functional.normalize(torch.randn(16, 8, 8, generator=torch.Generator().manual_seed(0)), dim=0)
    moved = reference.roll((1, 3), (1, 2))
    drag = torch.tensor([[2.5 / 8, 3.5 / 8, 5.5 / 8, 4.5 / 8]])
    assert float(drags.misplaced(moved, reference, drag, 0.13, 0.0)) == pytest.approx(0.0, abs=1e-6)
    assert float(drags.misplaced(reference, reference, drag, 0.13, 1.0)) == pytest.approx(1.0, abs=1e-6)
    alike = 0.5 + 0.5 * float((reference[:, 4, 5] * reference[:, 3, 2]).sum())
    assert float(drags.misplaced(reference, reference, drag, 0.0, 0.25)) == pytest.approx(0.75 * (1 - alike) + 0.25, abs=1e-5)


@GUIDANCE
def test_a_drag_lowers_its_loss_by_entry_and_only_where_the_mask_lets_it():
    x, other = (torch.randn(2, 2, 8, 8, generator=torch.Generator().manual_seed(i)) for i in (0, 1))
    step, readout = a_step(x, 0.5, sigmas=levels(False, 6)), head("correspondence", 8)
    step.host = Host(step, other)
    given = dict(reference={"samples": other}, step_size=0.01, drags="0.2,0.2 > 0.8,0.8 | 0.5,0.2 > 0.5,0.8; 0.1,0.1 > 0.2,0.3")
    method, state = method_of(readout, **given), {}
    moved = method.moved(step, state)
    wanted = read(readout, other, 0.5)
    torch.testing.assert_close(state["reference"], wanted)
    assert wanted.shape == (2, 8, 8, 8)
    torch.testing.assert_close(wanted.norm(dim=1), torch.ones(2, 8, 8))
    loss = lambda at: torch.stack([drags.misplaced(a, b, d, 0.06, 0.5) for a, b, d in zip(read(readout, at, 0.5), wanted, method.dragged(2))])
    assert (loss(moved) < loss(x)).all()
    left = torch.zeros(1, 8, 8)
    left[..., :4] = 1
    part = method_of(readout, mask=left, **given).moved(step, {})
    assert torch.equal(part[..., 4:], x[..., 4:]) and torch.equal(part[..., :4], moved[..., :4])
    with pytest.raises(BadInput, match="those of 2 pictures"):
        method.dragged(3)
    for wrong in ({"reference": None}, {"drags": ""}):
        with pytest.raises(BadInput, match=next(iter(wrong))):
            method_of(readout, **{**given, **wrong})


@TRAIN
def test_a_head_of_correspondence_finds_places_again():
    """Pictures in pairs, the second one shifted: after the training most places are found where they went, of pictures that it has not seen."""
    g = torch.Generator().manual_seed(0)

    def made(n):
        first, move = torch.randn(n, 2, 8, 8, generator=g), torch.randint(-2, 3, (n, 2), generator=g)
        second = torch.stack([a.roll((int(m[1]), int(m[0])), (1, 2)) for a, m in zip(first, move)])
        return torch.stack((first, second), 1).flatten(0, 1), move[:, :, None, None].expand(-1, -1, 8, 8).float()
    x0, moves = made(8)
    method = TrainReadoutHead(steps=40, batch=8, width=32, rate=0.01)
    readout, first, last = method.run(x0, None, None, features_of, lambda p: 0.05, moves=moves)
    assert (readout.kind, parse(readout.tensors()).kind) == ("correspondence", "correspondence") and last < 0.7 * first
    x0, moves = made(6)
    h = read(readout, x0, 0.05)
    found = torch.einsum("nchw,ncij->nhwij", h[::2], h[1::2]).flatten(3).argmax(3)
    y, x = torch.meshgrid(torch.arange(8), torch.arange(8), indexing="ij")
    to = torch.stack((x + moves[:, 0], y + moves[:, 1]), -1)
    inside = ((to >= 0) & (to < 8)).all(-1)
    right = (found == to[..., 1] * 8 + to[..., 0])[inside].float().mean()
    assert right > 0.6
    same = torch.nn.functional.normalize(torch.eye(16), dim=0).view(1, 16, 4, 4).expand(2, -1, -1, -1)
    still = torch.zeros(1, 2, 4, 4)
    assert float(matched(same, still, torch.tensor(100.0), g)) == pytest.approx(0.0, abs=1e-4)
    assert float(matched(same, still + 1, torch.tensor(100.0), g)) == pytest.approx(100.0, rel=0.01)
    assert float(matched(same, still + 9, torch.tensor(100.0), g)) == 0      # all have left the picture
