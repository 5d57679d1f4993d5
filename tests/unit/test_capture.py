"""Attention maps against attention written out, their folding, shrinking and placing."""
import pytest
import torch

from lodestar.guidance.attention.capture import MapCapture, MapGraph, MapRecord, SelfGraph, by_role, folded, onto, shrunk, text_weights
from lodestar.guidance.attention.edits import Site
from lodestar.guidance.method import NEGATIVE, POSITIVE, Branch, Step

pytestmark = pytest.mark.method("LodestarCaptureAttention")


def qkv(cells=12, tokens=7, rows=2, heads=3, dim=8, seed=0):
    g = torch.Generator().manual_seed(seed)
    return torch.randn(rows, heads, cells, dim, generator=g), torch.randn(rows, heads, tokens, dim, generator=g)


def step(batch=2):
    return Step(torch.zeros(batch, 4, 6, 8), torch.ones(batch))


def site(kind="cross", s=None, **k):
    return Site(kind, None, 3, 4, step=s or step(), **k)


def test_cross_attention_weights():
    q, k = qkv()
    a = (q @ k.transpose(-1, -2) / 8 ** 0.5).softmax(-1)
    for budget in (2 ** 30, 500):
        torch.testing.assert_close(text_weights(site(), q, k, budget=budget), a.mean(1))
    torch.testing.assert_close(text_weights(site(), q, k, (4, 1), heads=True), a[..., [4, 1]])
    mask = torch.zeros(2, 1, 1, 7)
    mask[1, ..., 5:] = -torch.inf
    masked = text_weights(site(mask=mask), q, k)
    torch.testing.assert_close(masked[0], a.mean(1)[0])
    assert masked[1, :, 5:].abs().max() == 0 and torch.allclose(masked.sum(-1), torch.ones(2, 12))


def test_joint_attention_reads_the_picture_on_the_text():
    q, k = qkv(cells=19, tokens=19)
    where = dict(text=slice(0, 7), image=slice(7, 19))
    expected = (q[:, :, 7:] @ k[:, :, :7].transpose(-1, -2) / 8 ** 0.5).softmax(-1).mean(1)
    torch.testing.assert_close(text_weights(site("joint", **where), q, k), expected)
    own = (q[:, :, 7:] @ k[:, :, 2:7].transpose(-1, -2) / 8 ** 0.5).softmax(-1).mean(1)      # registers before the prompt's own tokens
    torch.testing.assert_close(text_weights(site("joint", prompt=slice(2, 7), **where), q, k), own)


def test_a_repeated_text_is_folded():
    q, k = qkv()
    torch.testing.assert_close(text_weights(site(), q, torch.cat((k, k, k), 2), length=7), text_weights(site(), q, k))
    assert folded(torch.ones(2, 6), 0).shape == (2, 6) and folded(torch.ones(2, 7), 3).shape == (2, 7)


def test_capture_sums_by_grid_and_keeps_the_batch():
    q, k = qkv()
    s, reader = step(), MapCapture()
    reader.observe(site(s=s), q, k)
    reader.observe(site(s=s), q, k)
    reader.observe(Site("cross", None, 2, 2, step=s), q[:, :, :4], k)
    reader.observe(Site("cross", None, 5, 5, step=s), q, k)      # tokens that do not fit the grid
    found = s.maps[reader]
    assert set(found) == {(1, 3, 4, (0, 0, 1, 1)), (1, 2, 2, (0, 0, 1, 1))}
    total, count = found[1, 3, 4, (0, 0, 1, 1)]
    assert count == 2 and total.shape == (2, 7, 1, 3, 4)
    torch.testing.assert_close(total[:, :, 0].flatten(2) / 2, text_weights(site(), q, k).transpose(1, 2))
    torch.testing.assert_close(total.sum(1) / 2, torch.ones(2, 1, 3, 4))
    twice, one = step(1), MapCapture()
    one.observe(site(s=twice), q, k)       # two conditionings of one picture
    assert next(iter(twice.maps[one].values()))[1] == 2


def test_graph_keeps_heads_and_gradient():
    q, k = qkv()
    q.requires_grad_(True)
    s = step()
    MapGraph(tokens=(2,)).observe(site(s=s), q, k)
    reading, = s.maps[MapGraph(tokens=(2,))]
    assert reading.weights.shape == (2, 3, 1, 1, 3, 4)
    slope, = torch.autograd.grad(reading.weights[:, :, 0, 0, 1, 2].sum(), q)
    assert slope[:, :, 6].abs().max() > 0 and slope[:, :, :6].abs().max() == 0
    t, reader = step(), MapCapture()
    reader.observe(site(s=t), q, k)
    assert not next(iter(t.maps[reader].values()))[0].requires_grad
    MapGraph(most=4).observe(site(s=t), q, k)
    assert MapGraph(most=4) not in t.maps       # too many cells


def test_self_attention():
    q, _ = qkv(cells=12)
    k, _ = qkv(cells=12, seed=1)
    s = step()
    SelfGraph().observe(site("self", s=s), q, k)
    reading, = s.maps[SelfGraph()]
    torch.testing.assert_close(reading.weights[:, 0].flatten(2), (q @ k.transpose(-1, -2) / 8 ** 0.5).softmax(-1).mean(1))


def test_shrinking_averages():
    maps = torch.rand(2, 5, 1, 8, 12, generator=torch.Generator().manual_seed(0))
    small = shrunk(maps, 6)
    assert small.shape == (2, 5, 1, 4, 6)
    torch.testing.assert_close(small[0, 0, 0, 0, 0], maps[0, 0, 0, :2, :2].mean())
    assert shrunk(maps, 0) is maps and shrunk(maps, 12) is maps


def test_a_map_is_put_where_it_lies():
    maps = torch.ones(1, 1, 4, 4)
    half = onto(maps, (0.5, 0.0, 0.5, 1.0), 8, 8)
    assert half[..., :4].abs().max() == 0 and torch.equal(half[..., 4:], torch.ones(1, 1, 8, 4))
    ramp = torch.linspace(0, 1, 8).expand(1, 1, 8, 8)
    torch.testing.assert_close(onto(ramp, (0.0, 0.0, 1.0, 1.0), 8, 8), ramp)
    padded = onto(ramp, (0.0, 0.0, 8 / 6, 1.0), 8, 6)      # a grid that reaches over the edge is cut
    torch.testing.assert_close(padded, ramp[..., :6])


def test_the_record_averages_layers_and_steps():
    record = MapRecord()
    window = (0.0, 0.0, 1.0, 1.0)
    for value in (1.0, 3.0):
        record.add({(1, 4, 4, window): [torch.full((1, 2, 1, 4, 4), 2 * value), 2], (1, 2, 2, window): [torch.full((1, 2, 1, 2, 2), 5.0), 1]})
    assert record.steps == 2 and record.length == 2
    torch.testing.assert_close(record.picture(4, 4, least=9), torch.full((1, 2, 1, 4, 4), 2.0))
    torch.testing.assert_close(record.picture(4, 4), torch.full((1, 2, 1, 4, 4), (4 * 2.0 + 2 * 5.0) / 6))
    record.begin()
    assert record.picture(4, 4) is None


@pytest.mark.parametrize("wanted,expected", (("positive", [True, False, False]), ("negative", [False, True, False]), ("branches", [False, False, True])))
def test_roles(wanted, expected):
    assert [by_role(r, wanted) for r in (POSITIVE, NEGATIVE, Branch(sigma_factor=2.0))] == expected and not by_role(None, wanted)
    assert [MapCapture(role=wanted).wanted(r) for r in (POSITIVE, NEGATIVE, Branch(sigma_factor=2.0))] == expected
