"""Multi-Scale Restoration on tensors and on closed-form models, and the damage of its bundled ControlNet."""
from __future__ import annotations

import random

import pytest
import torch
from lodestar.demo import damage
from lodestar.guidance import engine
from lodestar.guidance.inverse.multi_scale import MultiScaleRestoration, known, nearby, share
from lodestar.guidance.method import BadInput, Branch
from lodestar.guidance.perturbation.upsample import Pooled, enlarged, pooled
from lodestar.tests.toys import a_step, mixture, state

pytestmark = pytest.mark.method("LodestarMultiScaleRestoration")
METHOD = MultiScaleRestoration()
SIGMAS = torch.linspace(1.0, 0.0, 6)      # five steps: the third is the middle


def noise(*shape, seed=0, dtype=torch.float64):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def at(x, index, w=1.0, kept=None):
    step = a_step(x, float(SIGMAS[index]), index=index, sigmas=SIGMAS)
    step.w = w
    if kept is not None:
        step.maps["kept"] = lambda: kept
    return step


def given(method, step, low, crops):
    """Predictions of the positive prompt; the negative one's are half of them."""
    found = {}
    for branches, value in ((method.small(step), low), (method.parts(step), crops)):
        for branch in branches:
            found[branch] = value * (0.5 if branch.prompt == "negative" else 1.0)
    return found


def test_means_of_what_is_near():
    v, k = noise(2, 1, 9, 7).abs(), torch.zeros(2, 1, 9, 7, dtype=torch.float64)
    k[:, :, :, :3] = 1
    found = nearby(v, k, 1)
    torch.testing.assert_close(found[0, 0, 4, 1], v[0, 0, 3:6, 0:3].mean())
    torch.testing.assert_close(found[1, 0, 0, 3], v[1, 0, 0:2, 2].mean())
    torch.testing.assert_close(found[1, 0, 8, 6], v[1, 0, :, :3].mean())      # nothing known is near
    clip = v[:, :, None].expand(-1, -1, 3, -1, -1)
    torch.testing.assert_close(nearby(clip, k[:, :, None].expand_as(clip), 1)[:, :, 2], found)


def test_shares():
    k, near, far = torch.ones(1, 1, 8, 8), 0.1 * noise(1, 3, 8, 8, dtype=torch.float32), noise(1, 3, 8, 8, seed=1, dtype=torch.float32)
    assert torch.allclose(share(0.3, near, near, k, 2, 1.0), torch.tensor(0.3)) and torch.allclose(share(0.3, near, far, k, 2, 0.0), torch.tensor(0.3))
    assert (share(0.3, near, far, k, 2, 1.0) > 0.5).all() and (share(0.3, far, near, k, 2, 1.0) < 0.1).all()
    assert (share(1.0, far, near, k, 2, 1.0) == 1).all() and (share(0.0, near, far, k, 2, 1.0) == 0).all()
    torch.testing.assert_close(share(0.3, near, far, k, 2, 1.0) + share(0.7, far, near, k, 2, 1.0), torch.ones(1, 1, 8, 8))


def test_coarse_to_fine():
    """First the layout is the small picture's, last the detail that of the crops; each keeps to its band."""
    base, low, crops = noise(2, 3, 8, 8), noise(2, 3, 4, 4, seed=1), noise(2, 3, 8, 8, seed=2)
    first, last = at(base, 0), at(base, 4)
    assert METHOD.parts(first) == () and METHOD.small(last) == () and len(METHOD.branches(at(base, 2))) == 2
    out = base + METHOD.delta(first, base, given(METHOD, first, low, crops), {})
    torch.testing.assert_close(pooled(out, 2), low)
    torch.testing.assert_close(out - enlarged(low, 2, base.shape), base - enlarged(pooled(base, 2), 2, base.shape))
    out = base + METHOD.delta(last, base, given(METHOD, last, low, crops), {})
    torch.testing.assert_close(pooled(out, 2), pooled(base, 2))
    torch.testing.assert_close(out - enlarged(pooled(out, 2), 2, base.shape), crops - enlarged(pooled(crops, 2), 2, base.shape))


@pytest.mark.parametrize("w", (1.0, 3.0))
def test_the_formula_in_between(w):
    base, low, crops = noise(1, 3, 9, 8), noise(1, 3, 4, 4, seed=1), noise(1, 3, 9, 8, seed=2)      # odd: a strip is filled from its neighbours
    method, step = MultiScaleRestoration(coarse=0.7, fine=0.4), at(base, 1, w)
    assert [b.prompt for b in method.branches(step)] == ["positive", "negative"] * 2 if w != 1 else ["positive"] * 2
    scaled = 1.0 if w == 1 else 0.5 + 3 * 0.5
    P, U = lambda t: pooled(t, 2), lambda t: enlarged(t, 2, base.shape)
    high = scaled * crops - base
    wanted = 0.7 * 0.75 * U(scaled * low - P(base)) + 0.4 * 0.25 * (high - U(P(high)))
    torch.testing.assert_close(method.delta(step, base, given(method, step, low, crops), {}), wanted)


def test_who_is_nearer_to_what_is_known_leads():
    """The left half is known. The scale that has it right leads on the right as well, where nothing says who is right."""
    y = noise(1, 3, 8, 8)
    free = torch.zeros(1, 1, 8, 8)
    free[..., 4:] = 1
    wrong = noise(1, 3, 8, 8, seed=1)
    method = MultiScaleRestoration(agreement=8.0, reach=1.0)
    step = at(y, 2, kept=(y, free))
    good = wrong + method.delta(step, wrong, given(method, step, pooled(y, 2), y), {})
    torch.testing.assert_close(good[..., 4:], y[..., 4:], atol=1e-4, rtol=0)
    none = method.delta(step, y, given(method, step, pooled(wrong, 2), wrong), {})
    assert none.abs().max() < 1e-4
    half = method.delta(at(y, 2), y, given(method, step, pooled(wrong, 2), wrong), {})
    torch.testing.assert_close(half, 0.5 * (wrong - y))      # without a mask the schedule alone


def test_what_is_known_is_put_in_first():
    """A small cell of which half is known takes only what the rest is to change."""
    y, base = torch.zeros(1, 1, 4, 4), torch.ones(1, 1, 4, 4)
    free = torch.zeros(1, 1, 4, 4)
    free[..., 1:3] = 1
    step = at(base, 0, kept=(y, free))
    method = MultiScaleRestoration(fine=0.0)
    found = method.delta(step, base, given(method, step, torch.full((1, 1, 2, 2), 0.5), base), {})
    assert found.abs().max() == 0      # half of each small cell is 0, half is 1: its mean is low already


def test_masks():
    x = noise(2, 4, 8, 8)
    y, free = noise(2, 4, 8, 8, seed=1), torch.ones(1, 1, 8, 8)
    assert known(at(x, 0), x) == (None, None) == known(at(x, 0, kept=(y, free)), x)
    free[..., 2:5] = 0.25
    found, k = known(at(x, 0, kept=(y.float(), free.expand(2, 4, 8, 8))), x)
    assert found.dtype == x.dtype and k.shape == (2, 1, 8, 8) and float(k[1, 0, 0, 3]) == 0.75 and k[..., 6].max() == 0


def test_entries_and_frames_are_their_own():
    y, free = noise(2, 3, 2, 8, 8), (noise(2, 1, 2, 8, 8, seed=5) > 0).double()
    base, low, crops = noise(2, 3, 2, 8, 8, seed=1), noise(2, 3, 2, 4, 4, seed=2), noise(2, 3, 2, 8, 8, seed=3)
    step = at(base, 2, kept=(y, free))
    both = METHOD.delta(step, base, given(METHOD, step, low, crops), {})
    one = at(base[1:, :, 1], 2, kept=(y[1:, :, 1], free[1:, :, 1]))
    torch.testing.assert_close(METHOD.delta(one, base[1:, :, 1], given(METHOD, one, low[1:, :, 1], crops[1:, :, 1]), {}), both[1:, :, 1])
    half = at(base.half(), 2, kept=(y, free))
    out = METHOD.delta(half, base.half(), given(METHOD, half, low.half(), crops.half()), {})
    assert out.dtype == torch.float16 and (out.double() - both).abs().max() < 0.02


@pytest.mark.parametrize("flow", (False, True))
def test_in_the_engine(flow):
    """With closed-form models of the picture and of the small one: at the first step the small picture inside the result is the small prediction at its own noise level."""
    large, small, sigma = mixture(flow, (2, 8, 8)), mixture(flow, (2, 4, 4), seed=3), 0.7
    x = state(large, 2, sigma)

    def evaluate(branches, at, level):
        return {b: (large if at.shape[-1] == 8 else small)(at, level, None if b.prompt == "negative" else (0,)) for b in branches}
    run = engine.Run(engine.Pipeline((METHOD,)), torch.tensor([sigma, 0.4, 0.2, 0.0]), flow, lambda p: 1.0 - p)
    out = engine.predict(run, x, torch.full((2,), sigma, dtype=x.dtype), 3.0, evaluate)
    step, change = a_step(x, sigma, flow), Pooled(2)
    inner, level = change.enter(step, x, {}), float(change.level(step, step.sigma)[0])
    c, u = small(inner, level, (0,)), small(inner, level)
    torch.testing.assert_close(pooled(out, 2), u + 3 * (c - u))
    assert run.report.evaluations == 4


def test_off_and_bad_input():
    assert MultiScaleRestoration(coarse=0.0, fine=0.0).neutral() and not MultiScaleRestoration(coarse=0.0).neutral()
    for field, value in (("factor", 1), ("crop", 1.5), ("windows", 1), ("agreement", -1.0)):
        with pytest.raises(BadInput, match=f"Multi-Scale Restoration: {field}"):
            MultiScaleRestoration(**{field: value}).validate()
    with pytest.raises(BadInput, match="factor = 4 is not possible.*6 x 8 cells"):
        MultiScaleRestoration(factor=4).branches(at(torch.zeros(1, 2, 6, 8), 1))
    assert Branch(transform=Pooled(2)) in METHOD.branches(at(torch.zeros(1, 2, 8, 8), 1))


def test_damage():
    rng = random.Random(3)
    for size in (128, 256):
        mask = damage.torn(rng, size)
        cells = mask[:, ::8, ::8]
        assert mask.shape == (1, size, size) and 0.2 <= float(mask.mean()) <= 0.75 and torch.equal(cells.repeat_interleave(8, 1).repeat_interleave(8, 2), mask)
    _, pictures, masks, parts = damage.damaged(random.Random(0), 8)
    given = damage.shown(pictures, masks)
    assert 0 < sum(parts) < 8 and torch.equal(given * (1 - masks), pictures * (1 - masks)) and float((given - torch.tensor(damage.MAGENTA)[:, None, None]).abs().mul(masks).max()) == 0
    again = damage.damaged(random.Random(0), 8)
    assert torch.equal(again[1], pictures) and torch.equal(again[2], masks)
