"""CorrFill's votes, matches and bias on tensors."""
import pytest
import torch
import torch.nn.functional as F

from lodestar.guidance.attention import votes
from lodestar.guidance.attention.corrfill import RATE, CorrespondingKeys, CorrFill, added_noise
from lodestar.guidance.attention.edits import Shared, Site
from lodestar.guidance.attention.reference_attention import ReferenceKeys
from lodestar.guidance.attention.sources import Held, Source
from lodestar.guidance.layers import Layer
from lodestar.guidance.method import BadInput, Branch, Step

pytestmark = pytest.mark.method("LodestarCorrFill")
REFERENCE = Branch(source=Source(Held({"samples": torch.zeros(1, 4, 6, 8)})))
GRID = (6, 8)


def attend(q, k, v, bias=None):
    return F.scaled_dot_product_attention(q, k, v, attn_mask=bias)


def distinct(rows=2, seed=0, count=48):
    """Queries that find their own keys: orthogonal directions, long enough for a sharp softmax."""
    g = torch.Generator().manual_seed(seed)
    basis = torch.linalg.qr(torch.randn(rows, 1, count, count, generator=g))[0] * 6
    return basis.expand(-1, 2, -1, -1).contiguous()


def site(book, rows=2, kind="self", **k):
    step = Step(torch.zeros(rows, 4, *GRID), torch.ones(rows))
    if book is not None:
        step.maps["corrfill", REFERENCE] = book
    return Site(kind, Layer("output", 1), *GRID, batch=rows, step=step, latent=(rows, 4, *GRID), **k)


def shifted(t, dy, dx):
    """Tokens [rows, heads, cells, d] of a grid moved by whole cells (around the border)."""
    return t.unflatten(2, GRID).roll((dy, dx), (2, 3)).flatten(2, 3)


def test_votes_find_the_true_correspondence():
    """The reference is the picture itself: every place's match is its own; moved by a cell: one cell beside, also on a grid of votes that is not the layer's."""
    q = distinct()
    here = votes.cells(*GRID).expand(2, -1, -1, -1)
    own = votes.attention_to(q, q, q, slice(None))
    points, valid, rejected, raw = votes.matches(own, GRID)
    assert valid.all() and not rejected.any()
    torch.testing.assert_close(points, here, atol=1e-4, rtol=0)
    moved = votes.attention_to(q, q * 0, shifted(q, 0, 1), slice(None))
    points, valid, rejected, raw = votes.matches(moved, GRID)
    torch.testing.assert_close(raw[:, :, :-1], here[:, :, :-1] + torch.tensor([0, 1 / 8]))
    torch.testing.assert_close(points[:, :, :3], here[:, :, :3] + torch.tensor([0, 1 / 8]), atol=1e-3, rtol=0)
    assert valid[:, :, :3].all() and rejected[:, :, -1].all()      # what came around the border is an outlier among its neighbours
    a = votes.resampled(own, GRID, (12, 16))
    torch.testing.assert_close(a.sum(-1)[:, ::2], own.sum(-1)[:, [0]].expand_as(a.sum(-1)[:, ::2]), atol=1e-3, rtol=0)
    coarse = votes.matches(votes.resampled(own, GRID, (3, 4)), (3, 4))[0]
    torch.testing.assert_close(coarse, votes.cells(3, 4).expand(2, -1, -1, -1), atol=1e-4, rtol=0)


def test_points_that_many_choose_are_no_matches():
    a = torch.zeros(1, 48, 48)
    a[0, torch.arange(48), torch.arange(48)] = 1
    a[0, :5] = 0
    a[0, :5, 40] = 1      # 5 places and place 40 itself choose cell 40
    _, valid, rejected, _ = votes.matches(a, GRID, radius=0)
    assert not valid.flatten()[:5].any() and not valid.flatten()[40] and valid.sum() == 42 and rejected.sum() == 6
    assert votes.matches(a, GRID, dominant=0, radius=0)[1].all()
    assert not votes.matches(torch.zeros(1, 48, 48), GRID)[1].any()


def test_the_bias():
    book = votes.Votes(64, 0, 0.0, 0.15)
    q = distinct(1)
    book.add(votes.attention_to(q, q, q, slice(None)), GRID, (1, 4, *GRID))
    bias = book.bias(GRID, 1.5, True, 1)
    y, x = torch.arange(48) // 8, torch.arange(48) % 8
    close = (y[:, None] - y).square() + (x[:, None] - x).square() <= 1
    assert torch.equal(bias[0], torch.where(close, torch.tensor(1.5), torch.tensor(float("-inf"))))
    assert torch.equal(book.bias(GRID, 1.5, False, 1)[0], torch.where(close, 1.5, 0.0))
    few = votes.Votes(64, 0, 0.0, 0.15)
    a = torch.zeros(1, 48, 48)
    a[0, 0, 0] = a[0, 1, 1] = a[0, 2, 2] = 1.0
    few.add(a, GRID, (1, 4, *GRID))
    assert few.share.item() == 0 and not few.bias(GRID, 1.5, True, 1).any()      # three matches steer nothing
    assert votes.Votes(64, 0, 0, 0).grid_of((1, 4, 96, 130)) == (24, 33)


def test_without_steering_it_is_reference_attention():
    q, s = distinct(), Shared(*(distinct(seed=i) for i in (3, 3, 4)))
    k, v = q + 0.1, distinct(seed=2)
    plain = ReferenceKeys("all", REFERENCE, weight=1.7).apply(site(None, shared={REFERENCE: s}), q, k, v, attend)
    edit = CorrespondingKeys("all", REFERENCE, weight=1.7, voters=frozenset({"output.1"}))
    book = votes.Votes(64, 4, 0.2, 0.15)
    assert torch.equal(edit.apply(site(book, shared={REFERENCE: s}), q, k, v, attend), plain) and book.votes is not None
    assert torch.equal(edit.apply(site(None, shared={REFERENCE: s}), q, k, v, attend), plain)


@pytest.mark.parametrize("kind,partial", [("self", True), ("joint", True), ("joint", False)])
def test_a_steered_call_is_the_formula(kind, partial):
    """In self-attention, and among text tokens, which keep their own attention."""
    text = 0 if kind == "self" else 5
    image = slice(text, None) if text else slice(None)
    q, k, v = (torch.cat((torch.randn(1, 2, text, 48, generator=torch.Generator().manual_seed(9)), distinct(1, i)), 2) for i in (0, 1, 2))
    s = Shared(*(distinct(1, i) for i in (0, 0, 5)))
    book = votes.Votes(64, 4, 0.2, 0.15)
    edit = CorrespondingKeys("all", REFERENCE, boost=2.0, hide=True, voters=frozenset({"output.1"}))
    where = dict(kind=kind, image=image, text=slice(0, text) if text else None, partial=partial, shared={REFERENCE: s})
    out = edit.apply(site(book, 1, **where), q, k, v, attend)
    z = q @ torch.cat((k, s.k), 2).transpose(-1, -2) / 48 ** 0.5
    z[:, :, image, text + 48:] += book.bias(GRID, 2.0, True, 2)[:, None]
    wanted = z.softmax(-1) @ torch.cat((v, s.v), 2)
    torch.testing.assert_close(out[:, :, image], wanted[:, :, image], rtol=1e-4, atol=1e-4)
    if text:
        torch.testing.assert_close(out[:, :, :text], attend(q, k, v)[:, :, :text], rtol=1e-4, atol=1e-4)


def test_the_loss_falls_along_its_gradient_and_is_least_where_attention_agrees():
    g = torch.Generator().manual_seed(1)
    points, valid = votes.cells(*GRID)[None], torch.ones(1, *GRID, dtype=torch.bool)
    agreeing = votes.near(points, GRID, 0.4).float()
    a = torch.rand(1, 48, 48, generator=g).softmax(-1).requires_grad_(True)
    value = votes.agreement_loss(a, points, valid, GRID)
    slope, = torch.autograd.grad(value.sum(), a)
    assert votes.agreement_loss(a - 1e-3 * slope / slope.abs().max() * a.max(), points, valid, GRID) < value
    assert votes.agreement_loss(agreeing, points, valid, GRID) < value
    assert votes.agreement_loss(a, points, ~valid, GRID).item() == 0


def test_the_optimisation_moves_the_next_state_by_its_formula():
    """The step on a linear model: x_next changes by -0.03 f optimise sigma_up grad / std(grad)."""
    method = CorrFill(reference={"samples": torch.zeros(1, 1, 2, 2)}, optimise=2.0)
    sigmas = torch.tensor([4.0, 2.0, 0.0])
    x = torch.randn(1, 1, 2, 2, generator=torch.Generator().manual_seed(2))
    slope = torch.tensor([[[[1.0, -2.0], [0.5, 3.0]]]])

    class Book:
        found, share, maps, wanted = (1,), torch.tensor([0.5]), [], False

        def loss(self, d):
            return (d * slope).flatten(1).sum(1)

    step = Step(x, torch.tensor([4.0]), sigmas=sigmas, index=0)
    out = method.steer(step, lambda x_: 0.25 * x_, {"book": Book()})
    up = 2.0 * (1 - 0.25) ** 0.5
    assert added_noise(step, 0.5, 2.0) == pytest.approx(up)
    moved = (2.0 - 4.0) / 4.0 * (out - 0.25 * x) * -1      # x_next = x + (s' - s) / s (x - D)
    torch.testing.assert_close(moved, -RATE * 0.5 * 2.0 * up * slope / slope.std(), rtol=1e-4, atol=1e-6)
    last = Step(x, torch.tensor([2.0]), sigmas=sigmas, index=1)
    assert torch.equal(method.steer(last, lambda x_: 0.25 * x_, {"book": Book()}), 0.25 * x) and not last.maps


def test_rows_and_bad_input():
    latent = {"samples": torch.zeros(1, 4, 2, 2)}
    own = CorrFill(reference=latent).edits(None)
    assert [(e.reach, e.boost, e.hide) for e in own] == [("positive", 1.0, True), ("negative", 0.0, False)] and own[0].reference != own[1].reference
    same = CorrFill(reference=latent, negative_rows="same").edits(None)
    assert [e.reach for e in same] == ["positive", "negative"] and same[0].reference == same[1].reference
    assert len(CorrFill(reference=latent, negative_rows="off").edits(None)) == 1
    assert CorrFill(strength=0.0).validate().neutral()
    with pytest.raises(BadInput, match="CorrFill: reference"):
        CorrFill().validate()
    with pytest.raises(BadInput, match="single pictures"):
        q = distinct(1)
        CorrespondingKeys("all", REFERENCE, voters=frozenset({"output.1"})).apply(
            site(votes.Votes(64, 4, 0.2, 0.15), 1, frames=2, shared={REFERENCE: Shared(q, q, q)}), q, q, q, attend)
