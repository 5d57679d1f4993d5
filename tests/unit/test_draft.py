"""Draft Attention against attention with a mask of the kept pairs."""
import pytest
import torch
import torch.nn.functional as F

from lodestar.guidance.attention.draft import CHOICES, DraftAttention, DraftEdit, Regions, draft, kept, part_size, sparse
from lodestar.guidance.attention.edits import Site
from lodestar.guidance.layers import Geometry, Layer

attend = F.scaled_dot_product_attention
WHOLE, FILLED = Regions(3, 4, 6, 2, 3), Regions(2, 5, 7, 2, 3)


def qkv(tokens, rows=2, heads=3, dim=8, seed=0):
    g = torch.Generator().manual_seed(seed)
    return [torch.randn(rows, heads, tokens, dim, generator=g) for _ in range(3)]


def count(regions):
    return regions.frames * regions.height * regions.width


@pytest.mark.parametrize("regions", (WHOLE, FILLED))
def test_cutting_is_undone_by_joining(regions):
    q, _, _ = qkv(count(regions))
    assert torch.equal(regions.join(regions.cut(q)), q)
    assert int(regions.filled("cpu").sum()) == count(regions)
    numbers = torch.arange(count(regions)).view(1, 1, -1, 1)
    first = regions.cut(numbers)[0, 0, 0, :, 0].tolist()
    assert first == [y * regions.width + x for y in range(2) for x in range(3)]


def test_part_sizes():
    assert [part_size(*x) for x in ((48, 8), (80, 16), (30, 8), (52, 16), (31, 8), (4, 8))] == [8, 16, 6, 13, 8, 4]


@pytest.mark.parametrize("regions", (WHOLE, FILLED))
def test_the_draft_is_attention_between_means(regions):
    q, k, _ = qkv(count(regions))
    gh, gw = regions.grid
    scores = draft(q, k, regions)
    assert scores.shape == (2, 3, regions.frames * gh * gw, regions.frames * gh * gw)
    torch.testing.assert_close(scores.sum(-1), torch.ones(scores.shape[:-1]))

    def mean(t, f, y, x):
        t = t.view(2, 3, regions.frames, regions.height, regions.width, 8)
        return t[:, :, f, 2 * y:2 * y + 2, 3 * x:3 * x + 3].mean((2, 3))
    z = torch.stack([(mean(q, 1, gh - 1, gw - 1) * mean(k, f, y, x)).sum(-1) / 8 ** 0.5 for f in range(regions.frames) for y in range(gh) for x in range(gw)], -1)
    torch.testing.assert_close(scores[:, :, -1] if regions.frames == 2 else scores[:, :, 2 * gh * gw - 1], z.softmax(-1))


def masked(q, k, v, regions, share, choice, image):
    """Attention with a mask that opens at least the kept pairs, as many per row as the grouping rounds up to."""
    begin, end, _ = image.indices(q.shape[2])
    scores = draft(q[:, :, begin:end], k[:, :, begin:end], regions)
    n = scores.shape[-1]
    step = max(1, n // 16)
    counts = ((kept(scores, share, choice) + step - 1) // step * step).clamp(max=n)
    rank = scores.argsort(-1, descending=True).argsort(-1)
    pairs = rank < counts[..., None]
    number = torch.arange(n).view(1, 1, n, 1, 1).expand(1, 1, n, regions.size, 1)
    number = regions.join(number)[0, 0, :, 0]
    mask = torch.ones(*q.shape[:2], q.shape[2], k.shape[2], dtype=torch.bool)
    mask[:, :, begin:end, begin:end] = pairs[:, :, number][:, :, :, number]
    return attend(q, k, v, attn_mask=mask)


@pytest.mark.parametrize("choice", CHOICES)
@pytest.mark.parametrize("regions", (WHOLE, FILLED, Regions(1, 16, 16, 2, 2)))
@pytest.mark.parametrize("text", (None, "first", "last"))
@pytest.mark.parametrize("share", (0.1, 0.4, 1.0))
def test_equals_masked_attention(choice, regions, text, share):
    n = count(regions)
    q, k, v = qkv(n + (5 if text else 0))
    image = {None: slice(None), "first": slice(5, n + 5), "last": slice(0, n)}[text]
    for budget in (2 ** 30, 10000):
        out = sparse(q, k, v, regions, share, choice, image, budget)
        torch.testing.assert_close(out, masked(q, k, v, regions, share, choice, image))
    if share == 1.0:
        torch.testing.assert_close(out, attend(q, k, v))


@pytest.mark.parametrize("choice", CHOICES)
def test_the_share_is_kept(choice):
    q, k, _ = qkv(1024)
    regions = Regions(1, 32, 32, 4, 4)
    scores = draft(30 * q, k, regions)
    for share in (0.1, 0.5):
        found = kept(scores, share, choice)
        assert int(found.min()) >= 1
        assert float(found.float().mean()) / 64 == pytest.approx(share, abs=0.03)
    # the pairs above the threshold hold more of the draft than the same number at random
    order = scores.sort(-1, descending=True).values
    held = torch.where(torch.arange(64) < kept(scores, 0.25, choice)[..., None], order, torch.zeros(())).sum(-1).mean()
    assert held > 0.5


def test_equal_keys_in_each_region_lose_only_what_the_draft_says():
    regions = WHOLE
    q, k, v = qkv(count(regions))
    same = lambda t: regions.join(regions.cut(t).mean(-2, keepdim=True).expand(-1, -1, -1, regions.size, -1))
    q, k = same(q), same(k)
    scores = draft(q, k, regions)
    out = sparse(q, k, v, regions, 0.3, "per row")
    n = int(kept(scores, 0.3, "per row")[0, 0, 0])
    best = scores.topk(n, -1)
    weights = torch.zeros_like(scores).scatter(-1, best.indices, best.values)
    weights = weights / weights.sum(-1, keepdim=True)
    expected = weights @ regions.cut(v).mean(-2)
    torch.testing.assert_close(regions.cut(out), expected[..., None, :].expand(-1, -1, -1, regions.size, -1))


def test_where_it_stays_dense():
    q, k, v = qkv(24, rows=1)
    site = Site("self", None, 4, 6)
    calls = []

    def dense(*x):
        calls.append(1)
        return attend(*x)
    for edit, where in ((DraftEdit("all", 1.0, 2, 3, 0), site), (DraftEdit("all", 0.2, 2, 3, 100), site), (DraftEdit("all", 0.2, 2, 3, 0), Site("self", None, 5, 6)),
                        (DraftEdit("all", 0.2, 2, 3, 0), Site("self", None, 4, 6, mask=torch.zeros(1, 1, 24, 24)))):
        assert torch.equal(edit.apply(where, q, k, v, dense), attend(q, k, v))
    assert len(calls) == 4
    assert not torch.allclose(DraftEdit("all", 0.2, 2, 3, 0).apply(site, q, k, v, dense), attend(q, k, v)) and len(calls) == 4
    assert DraftAttention(kept=1.0).neutral()
    layers = tuple(Layer("block", i) for i in range(3))
    assert DraftEdit().default_layers(Geometry("wan", layers)) == "all -block.0"
