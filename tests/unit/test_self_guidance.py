"""Self-Guidance: what properties of maps are, what their terms pull at, and how the gradient enters a step."""
import dataclasses

import pytest
import torch

from lodestar.guidance.attention.capture import Reading
from lodestar.guidance.attention.edits import Site
from lodestar.guidance.attention.properties import PropertyTerm, centroid, gathered, looks, soft_mask
from lodestar.guidance.attention.self_guidance import SelfGuidance
from lodestar.guidance.attention.words import PromptWords
from lodestar.guidance.gradients import plain_context
from lodestar.guidance.method import BadInput
from lodestar.nodes import properties as node
from lodestar.tests.toys import a_step, gaussian, levels

pytestmark = pytest.mark.method("LodestarSelfGuidance")
WORDS = PromptWords("a b c", ("b", "c"), ((2,), (3,)), (1, 2, 3), 8)
ONE = PromptWords("a b c", ("b",), ((2,),), (1, 2, 3), 8)


def blob(y, x, size=16, width=0.1):
    at = (torch.arange(size) + 0.5) / size
    return torch.exp(-((at[:, None] - y) ** 2 + (at[None] - x) ** 2) / (2 * width ** 2))


def term(**k):
    return PropertyTerm(**{"words": ONE, **k}).check()


def value(t, maps, features=None, reference=None):
    """The distance [batch] of a term for one phrase's maps [batch, 1, h, w]."""
    return t.distance(t.of(maps, features, 10.0), None if reference is None else t.of(*reference, 10.0))


def test_a_shifted_map_has_a_shifted_middle():
    maps = torch.stack((blob(0.4, 0.3), blob(0.4, 0.3).roll((3, 4), (0, 1))))
    a, b = centroid(maps)
    assert a.tolist() == pytest.approx([0.3, 0.4], abs=0.01)
    torch.testing.assert_close(b - a, torch.tensor([4 / 16, 3 / 16]), atol=0.01, rtol=0)
    torch.testing.assert_close(centroid(7 * maps), centroid(maps))


def test_size_and_shape_are_of_the_soft_mask():
    small, large = blob(0.5, 0.5, width=0.08)[None, None], blob(0.5, 0.5, width=0.2)[None, None]
    size = term(kind="size", size=0.3)
    s, l = size.of(small, None, 10.0), size.of(large, None, 10.0)
    assert 0 < float(s) < float(l) < 1
    torch.testing.assert_close(size.of(3 * small + 1, None, 10.0), s)      # the mask is of the map from its least to its largest value
    shape = term(kind="shape", source="reference")
    assert float(value(shape, small, reference=(small, None))) == 0 < float(value(shape, small, reference=(large, None)))
    ratio = term(kind="size", source="reference", size=2.0)
    assert float(value(ratio, small, reference=(small, None))) == pytest.approx(float(s))
    mask = soft_mask(small)[0]
    assert float(value(term(kind="shape", mask=mask), small)) == pytest.approx(0, abs=1e-6)


def test_looks_are_a_weighted_mean_and_do_not_move_the_mask():
    features = torch.rand(1, 1, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    mask = soft_mask(blob(0.3, 0.3)[None, None])
    torch.testing.assert_close(looks(5 * mask, features), looks(mask, features))
    maps = blob(0.3, 0.3)[None, None].requires_grad_()
    seen = features.clone().requires_grad_()
    look = term(kind="appearance", source="reference")
    found = value(look, maps, seen, (blob(0.3, 0.3)[None, None], features + 0.5))
    assert float(found.detach()) == pytest.approx(0.5, abs=1e-5)
    a, b = torch.autograd.grad(found.sum(), (maps, seen), allow_unused=True)
    assert (a is None or a.abs().max() == 0) and b.abs().max() > 0


def test_descent_moves_the_middle_and_the_target_itself_has_no_gradient():
    maps = torch.stack((blob(0.5, 0.3), blob(0.5, 0.7)))[:, None].requires_grad_()
    place = term(kind="position", x=0.8, y=0.5)
    found = value(place, maps)
    assert found.tolist() == pytest.approx([0.5, 0.1], abs=0.02)
    slope, = torch.autograd.grad(found[0], maps)
    assert slope[1].abs().max() == 0      # samples do not meet
    moved = (maps - 0.5 * slope).clamp(min=0)[0, 0]
    assert float(centroid(moved.detach())[0]) > 0.3
    x, y = centroid(maps.detach()[0, 0]).tolist()
    still, = torch.autograd.grad(value(term(kind="position", x=x, y=y), maps)[0], maps)
    assert still.abs().max() < 1e-3 * slope.abs().max() or float(value(term(kind="position", x=x, y=y), maps[:1].detach())) < 1e-6


def test_what_is_not_possible_is_said():
    with pytest.raises(BadInput, match="source"):
        term(kind="appearance")
    with pytest.raises(BadInput, match="mask"):
        term(kind="shape")
    with pytest.raises(BadInput, match="place"):
        term(kind="position", x=-0.5)
    with pytest.raises(BadInput, match="share"):
        term(kind="size", size=2.0)
    with pytest.raises(BadInput, match="as many"):
        term(kind="size", reference_words=WORDS)
    with pytest.raises(BadInput, match="reference"):
        SelfGuidance(terms=(term(source="reference", x=0.1),)).validate()
    with pytest.raises(BadInput, match="There are: b, c"):
        term(words=WORDS, phrases="d")
    assert term(words=WORDS, phrases="c").here.tokens == ((3,),)
    marked = dataclasses.replace(ONE, mark="other")
    with pytest.raises(BadInput, match="one node for all terms"):      # they would not be found in one prompt
        SelfGuidance(terms=(term(), term(words=marked))).validate()
    d, = node.NODES
    first, = d.call({"words": ONE, "property": "position", "x": 0.2, "y": 0.2, "source": "value", "weight": 1.0, "size": 0.2, "phrases": ""})[0]
    both, = d.call({"words": ONE, "property": "size", "terms": first, "x": 0.2, "y": 0.2, "source": "value", "weight": 1.0, "size": 0.2, "phrases": ""})[0]
    assert [t.kind for t in both] == ["position", "size"]


class Host:
    """Stands for the host's context: the attention is made of the picture; of a reference it is the reference."""

    def __init__(self, step, reference=None):
        self.step, self.reference = step, reference

    def __call__(self, checkpoint=False):
        return plain_context(checkpoint)

    def alone(self, x, readers, branch=None):
        seen = x if branch is None else self.reference
        maps = seen.float().abs()[:, None, :1, None].expand(-1, 1, len(readers[0].tokens), 1, -1, -1)
        self.step.maps[readers[0]] = [Reading(Site("cross", None, *x.shape[-2:]), maps)]
        for extra in readers[1:]:
            self.step.maps[extra] = {"output.3": [seen.float()]}
        return x


@pytest.mark.parametrize("flow", (False, True))
def test_the_gradient_enters_as_a_score(flow):
    x, s = 0.5 + torch.rand(2, 2, 8, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(0)), 0.6
    model = gaussian(shape=(2, 8, 8), flow=flow)
    step = a_step(x, s, flow, sigmas=levels(flow, 6))
    step.host = Host(step)
    terms = (term(kind="position", x=0.9, y=0.5, weight=2.0),)
    out = SelfGuidance(terms=terms, scale=3.0, normalise="none").steer(step, lambda at: model(at, s), {})
    leaf = x.clone().requires_grad_()
    g, = torch.autograd.grad(2 * (centroid(leaf.float().abs()[:, :1])[:, 0] - torch.tensor((0.9, 0.5))).abs().sum(), leaf)
    a = 1 - s if flow else 1.0
    torch.testing.assert_close(out, model(x, s) - 3.0 * s * s / a * g, rtol=1e-4, atol=1e-5)
    one = SelfGuidance(terms=terms, scale=0.3).steer(step, lambda at: model(at, s), {}) - model(x, s)
    torch.testing.assert_close(one.square().mean((1, 2, 3)).sqrt(), torch.full((2,), 0.3 * s * s / (a * a + s * s), dtype=torch.float64), rtol=1e-4, atol=1e-6)


def test_targets_of_a_reference_and_when_it_acts():
    x = 0.5 + torch.rand(1, 2, 8, 8, generator=torch.Generator().manual_seed(0))
    step = a_step(x, 1.0, sigmas=levels(False, 16))
    step.host = Host(step, x)
    keep = (term(kind="shape", source="reference"), term(kind="position", source="reference", x=0.0, y=0.0))
    method = SelfGuidance(terms=keep, reference={"samples": x}, scale=1.0)
    assert torch.equal(method.steer(step, lambda at: 2 * at, {}), 2 * x)      # it is what it refers to: no gradient
    state = {}
    method.steer(dataclasses.replace(step, host=Host(step, x.flip(-1))), lambda at: at, state)
    assert set(state["reference"]) == set(keep)
    assert SelfGuidance(terms=keep, scale=0.0).neutral() and method.reference_branch.edits[0].tokens == method.readers[0].tokens == (2,)
    assert SelfGuidance(terms=(term(x=0.1),), reference={"samples": x}).reference_branch is None      # no term refers to it
    acts = [method.active(dataclasses.replace(step, index=i)) for i in range(16)]
    assert acts[:3] == [True, True, True] and acts[3:7] == [False, True, False, True]


def test_features_are_gathered_by_layer_and_picture():
    h = torch.arange(4.0).view(4, 1, 1, 1).expand(4, 3, 2, 2)
    found = gathered({"output.3": [h]}, 2)["output.3"]      # two conditionings of two pictures
    assert found.shape == (2, 1, 3, 2, 2) and found[:, 0, 0, 0, 0].tolist() == [1.0, 2.0]
    video = gathered({"block.1": [torch.zeros(2, 3, 5, 2, 2)]}, 2)["block.1"]
    assert video.shape == (2, 5, 3, 2, 2)
