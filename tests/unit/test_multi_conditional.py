"""Multi-Conditional CFG on closed-form mixtures: several conditions, each with a scale and a place."""
import pytest
import torch

from lodestar.guidance import engine
from lodestar.guidance.method import NEGATIVE, BadInput
from lodestar.guidance.rules.multi_conditional import MultiConditionalCFG
from lodestar.tests.toys import a_step, mixture, percent_to_sigma, state

pytestmark = pytest.mark.method("LodestarMultiConditionalCFG")
FLOWS = pytest.mark.parametrize("flow", (False, True))
FIRST, SECOND = [["first", {}]], [["second", {}]]


def guided(model, methods, x, w, known):
    """(prediction, evaluations): `known` says for each condition which components it names."""
    flow = model.flow
    sigma = torch.full((x.shape[0],), 0.7)
    r = engine.Run(engine.Pipeline(tuple(methods)), None, flow, percent_to_sigma(flow))
    others = {m.branch: lambda x, s, keep=keep: model(x, s, keep) for m, keep in zip(methods, known)}
    return engine.predict(r, x, sigma, w, model.evaluate(others=others)), r.report.evaluations


@FLOWS
def test_every_condition_has_a_scale_of_its_own(flow):
    model = mixture(flow, components=4, dtype=torch.float32)
    x, s = state(model, 3, 0.7), torch.full((3,), 0.7)
    both = MultiConditionalCFG(FIRST, 1.5), MultiConditionalCFG(SECOND, -0.5)
    out, evaluations = guided(model, both, x, 3.0, ((1,), (2, 3)))
    u = model(x, s)
    wanted = u + 3 * (model(x, s, (0,)) - u) + 1.5 * (model(x, s, (1,)) - u) - 0.5 * (model(x, s, (2, 3)) - u)
    torch.testing.assert_close(out, wanted, rtol=1e-4, atol=1e-5)
    assert evaluations == 4
    swapped, _ = guided(model, both[::-1], x, 3.0, ((2, 3), (1,)))
    torch.testing.assert_close(swapped, out, rtol=1e-4, atol=1e-5)      # the order does not matter


@FLOWS
def test_equal_conditions_add_to_cfg_and_an_unconditional_one_changes_nothing(flow):
    model = mixture(flow, components=4, dtype=torch.float32)
    x = state(model, 3, 0.7)
    plain = guided(model, (), x, 5.0, ())[0]
    torch.testing.assert_close(guided(model, (MultiConditionalCFG(FIRST, 2.0),), x, 3.0, ((0,),))[0], plain, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(guided(model, (MultiConditionalCFG(FIRST, 2.0),), x, 5.0, ((0, 1, 2, 3),))[0], plain, rtol=1e-4, atol=1e-5)
    off, evaluations = guided(model, (MultiConditionalCFG(FIRST, 0.0),), x, 5.0, ((1,),))
    assert torch.equal(off, plain) and evaluations == 2
    assert guided(model, (MultiConditionalCFG(FIRST, 1.0),), x, 1.0, ((1,),))[1] == 3      # the negative prompt is evaluated at cfg 1 too


def delta(mask, shape):
    method = MultiConditionalCFG(FIRST, 2.0, mask=mask)
    seen = {method.branch: torch.full(shape, 3.0), NEGATIVE: torch.ones(shape)}
    return method.delta(a_step(torch.zeros(shape)), torch.zeros(shape), seen, {})


def test_a_mask_says_where():
    left = (torch.arange(16) < 8).float().expand(1, 16, 16)
    out = delta(left, (2, 4, 8, 8))
    assert (out[..., :4] == 4).all() and (out[..., 4:] == 0).all()
    each = torch.stack((left[0], 1 - left[0]))
    out = delta(each, (2, 4, 8, 8))
    assert (out[0, ..., :4] == 4).all() and (out[1, ..., :4] == 0).all() and (out[1, ..., 4:] == 4).all()
    video = delta(torch.stack((left[0], 1 - left[0], left[0])), (2, 4, 3, 8, 8))      # a mask for each frame
    assert (video[:, :, 0, :, :4] == 4).all() and (video[:, :, 1, :, :4] == 0).all() and (video[:, :, 1, :, 4:] == 4).all()
    assert (delta(left, (2, 4, 3, 8, 8))[..., :4] == 4).all()
    assert delta(left * 0.25, (1, 4, 5, 5)).max() == 1


def test_bad_masks_are_named():
    with pytest.raises(BadInput, match="mask.*empty"):
        MultiConditionalCFG(FIRST, mask=torch.zeros(1, 8, 8)).validate()
    with pytest.raises(BadInput, match="Multi-Conditional CFG.*mask.*3 masks.*2 pictures"):
        delta(torch.ones(3, 8, 8), (2, 4, 8, 8))
