"""Ctrl-X on tensors: what is taken from whom, the statistics, the layers of the paper, repeated steps."""
import pytest
import torch
import torch.nn.functional as F

from lodestar.guidance import engine
from lodestar.guidance.attention import ctrl_x
from lodestar.guidance.attention.ctrl_x import AppearanceFeatures, AppearanceValues, CtrlX, StructureAttention, StructureFeatures, default_layers, restyled, standardised
from lodestar.guidance.attention.edits import Shared, Site
from lodestar.guidance.attention.sources import Held, Source
from lodestar.guidance.layers import Geometry, Layer, LayerError, select
from lodestar.guidance.method import BadInput, Branch
from lodestar.tests.toys import euler, gaussian, levels, percent_to_sigma, state

pytestmark = pytest.mark.method("LodestarCtrlX")
LATENT = {"samples": torch.zeros(1, 4, 2, 3)}
S, A = Branch(source=Source(Held(LATENT), noise="own", salt=1)), Branch(source=Source(Held(LATENT), noise="own", salt=2))


def qkv(rows=2, heads=2, tokens=6, dim=4, seed=0):
    g = torch.Generator().manual_seed(seed)
    return [torch.randn(rows, heads, tokens, dim, generator=g) for _ in range(3)]


def attend(q, k, v, bias=None):
    return F.scaled_dot_product_attention(q, k, v, attn_mask=bias)


def site(kind="self", text=None, image=slice(None), extra=None, **shared):
    return Site(kind, None, 2, 3, text, image, extra, batch=2, shared={{"s": S, "a": A}[k]: v for k, v in shared.items()})


def test_standardised_tokens():
    t = 3 * qkv()[0] + 2
    out = standardised(t)
    torch.testing.assert_close(out.mean(2), torch.zeros(2, 2, 4), atol=1e-5, rtol=0)
    torch.testing.assert_close(out.std(2), torch.ones(2, 2, 4), atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(out, (t - t.mean(2, keepdim=True)) / t.std(2, keepdim=True))       # the authors' own
    assert torch.equal(standardised(torch.full((1, 4, 2), 3.0)), torch.zeros(1, 4, 2)) and torch.isfinite(standardised(t[:, :, :1])).all()


def test_an_appearance_of_equal_tokens_gives_its_mean():
    own, q, k = qkv()
    other = torch.arange(8.0).view(1, 2, 1, 4).expand(2, 2, 6, 4)
    torch.testing.assert_close(restyled(own, q, k, other), other, atol=1e-2, rtol=0)


def test_one_token_of_the_picture_takes_the_appearances():
    own, q, k = (t[:, :, :1] for t in qkv())
    torch.testing.assert_close(restyled(own, q, k, k), k, atol=1e-4, rtol=0)


def test_the_weighted_statistics():
    own, q, k = qkv()
    other = qkv(seed=7)[2]
    w = (q @ k.transpose(-1, -2) / 2.0).softmax(-1)
    mean, std = w @ other, (w @ other.square() - (w @ other).square()).relu().sqrt()
    torch.testing.assert_close(restyled(own, q, k, other), std * (own - own.mean(2, keepdim=True)) / own.std(2, keepdim=True) + mean, atol=1e-4, rtol=1e-4)


def test_structure_gives_queries_and_keys():
    q, k, v = qkv()
    s = Shared(*qkv(seed=4))
    torch.testing.assert_close(StructureAttention("all", structure=S).apply(site(s=s), q, k, v, attend), attend(s.q, s.k, v))
    torch.testing.assert_close(StructureAttention("all", structure=S).apply(site(s=Shared(q, k, v)), q, k, v, attend), attend(q, k, v))
    text, image = slice(0, 2), slice(2, 6)
    part = Shared(*(t[:, :, image] for t in (s.q, s.k, s.v)))
    out = StructureAttention("all", structure=S).apply(site("joint", text, image, s=part), q, k, v, attend)
    mixed = [torch.cat((own[:, :, text], new), 2) for own, new in ((q, part.q), (k, part.k))]
    torch.testing.assert_close(out[:, :, image], attend(*mixed, v)[:, :, image])
    torch.testing.assert_close(out[:, :, text], attend(q, k, v)[:, :, text])
    with pytest.raises(BadInput, match="Ctrl-X.*tokens"):
        StructureAttention("all", structure=S).apply(site(s=part), q, k, v, attend)


def test_structure_gives_features():
    h, s = torch.randn(4, 3, 2, 2), torch.randn(2, 3, 2, 2)
    assert torch.equal(StructureFeatures("all", structure=S).residual(site(s=s), h), torch.cat((s, s)))
    with pytest.raises(BadInput, match="Ctrl-X"):
        StructureFeatures("all", structure=S).residual(site(s=torch.randn(2, 3, 4, 2)), h)


class Projections:
    def __init__(self):
        g = torch.Generator().manual_seed(1)
        wq, wk = torch.randn(8, 8, generator=g), torch.randn(8, 8, generator=g)
        self.to_q, self.to_k = (lambda h: h @ wq), (lambda h: h @ wk)


@pytest.mark.parametrize("guided", (False, True))
def test_appearance_before_the_projections(guided):
    """The authors' order: standardised features are projected, heads split, statistics taken per head, heads joined again."""
    g = torch.Generator().manual_seed(0)
    o, s, a = (torch.randn(2, 6, 8, generator=g) for _ in range(3))
    net = Projections()
    edit = AppearanceFeatures("all", appearance=A, structure=S if guided else None)
    out = edit.entering(site(extra={"attention": net, "heads": 2}, a=a, **({"s": s} if guided else {})), o)
    norm = lambda t: (t - t.mean(-2, keepdim=True)) / t.std(-2, keepdim=True)
    split = lambda t: t.view(2, 6, 2, 4).transpose(1, 2)
    w = (split(net.to_q(norm(s if guided else o))) @ split(net.to_k(norm(a))).transpose(-1, -2) / 2.0).softmax(-1)
    mean, std = w @ split(a), (w @ split(a).square() - (w @ split(a)).square()).relu().sqrt()
    torch.testing.assert_close(out, (std * norm(split(o)) + mean).transpose(1, 2).reshape(2, 6, 8), atol=1e-4, rtol=1e-3)


def test_appearance_on_values():
    q, k, v = qkv()
    a, s = Shared(*qkv(seed=4)), Shared(*qkv(seed=5))
    for edit, guide, seen in ((AppearanceValues("all", appearance=A), q, site(a=a)), (AppearanceValues("all", appearance=A, structure=S), s.q, site(a=a, s=s))):
        expected = attend(q, k, restyled(v, standardised(guide), standardised(a.k), a.v))
        torch.testing.assert_close(edit.apply(seen, q, k, v, attend), expected)
    half = AppearanceValues("all", appearance=A).apply(site(a=Shared(*(t.half() for t in qkv(seed=4)))), *(t.half() for t in (q, k, v)), attend)
    assert half.dtype == torch.float16 and torch.isfinite(half).all()


def unet(*stages):
    return Geometry("unet", tuple(Layer(stage, i) for stage, found in stages for i in found))


def test_the_default_layers():
    sdxl = unet(("input", (4, 5, 7, 8)), ("middle", (0,)), ("output", range(6)))
    features, structure, appearance = default_layers({i: i // 3 for i in range(9)}, sdxl)
    assert features == "output.0" and structure == "output.0 output.1 output.2"
    assert [str(x) for x in select(sdxl, appearance)] == ["input.4", "input.5", "input.7", "input.8", "output.1", "output.2", "output.3", "output.4"]       # the paper's
    sd15 = unet(("input", (1, 2, 4, 5, 7, 8)), ("middle", (0,)), ("output", range(3, 12)))
    features, structure, appearance = default_layers({i: i // 3 for i in range(12)}, sd15)
    assert features == "output.3" and [x.index for x in select(sd15, structure)] == [3, 4, 5]
    assert [str(x) for x in select(sd15, appearance)] == ["input.4", "input.5", "input.7", "input.8", "output.4", "output.5", "output.6", "output.7"]
    flux = Geometry("flux", tuple(Layer(s, i) for s, n in (("double", 19), ("single", 38)) for i in range(n)))
    features, structure, appearance = default_layers({}, flux)
    assert features == "none" and [[x.index for x in select(flux, found) if x.stage == "single"] for found in (structure, appearance)] == [list(range(19, 38))] * 2
    one = Geometry("wan", tuple(Layer("block", i) for i in range(10)))
    assert [[x.index for x in select(one, found)] for found in default_layers({}, one)[1:]] == [[7, 8, 9]] * 2


class Facts:
    network = "Net"

    def __init__(self, geometry, levels):
        self.geometry, self.levels = geometry, levels


SDXL = Facts(unet(("input", (4, 5, 7, 8)), ("middle", (0,)), ("output", range(6))), {i: i // 3 for i in range(9)})
FLUX = Facts(Geometry("flux", tuple(Layer(s, i) for s, n in (("double", 4), ("single", 4)) for i in range(n))), {})


def a_step(method, sigma=1.0, index=0, flow=False, sigmas=None):
    from lodestar.guidance.method import Step
    return Step(torch.zeros(1, 4, 2, 3), torch.tensor([float(sigma)]), flow, sigmas, index, 0, percent_to_sigma(flow))


def test_which_edits_when():
    both = CtrlX(structure=LATENT, appearance=LATENT, structure_end=0.6, appearance_end=0.3).fitted(SDXL)
    kinds = lambda sigma: [type(e).__name__ for e in both.edits(a_step(both, sigma))]
    early, late, end = percent_to_sigma()(0.1), percent_to_sigma()(0.45), percent_to_sigma()(0.8)
    assert kinds(early) == ["AppearanceFeatures", "AppearanceFeatures", "StructureFeatures", "StructureAttention"]
    assert kinds(late) == ["StructureFeatures", "StructureAttention"] and kinds(end) == []
    found = both.edits(a_step(both, early))
    assert found[0].structure == S and found[0].layers == "output.1 output.2" and found[1].structure is None and "input.4" in found[1].layers
    assert all(e.reach == "positive" for e in found) and found[0].references == (S, A)
    values = CtrlX(appearance=LATENT).fitted(FLUX)
    assert [type(e).__name__ for e in values.edits(a_step(values, early))] == ["AppearanceValues"]
    assert CtrlX().neutral() and CtrlX(structure=LATENT, structure_end=0.0).neutral() and not both.neutral()
    with pytest.raises(BadInput, match="feature_layers"):
        CtrlX(structure=LATENT, feature_layers="double.1").fitted(FLUX)
    with pytest.raises(LayerError, match="Ctrl-X"):
        CtrlX(structure=LATENT, structure_layers="double.1").fitted(SDXL)


@pytest.mark.parametrize("flow", (False, True))
def test_repeated_steps_keep_the_distribution(flow):
    """On Gaussian data with the exact denoiser, noising back and stepping again leaves mean and spread of the samples where they belong."""
    model = gaussian(0.5, 0.3, (2, 8, 8), flow, torch.float32)
    sigmas = levels(flow, 80).float()
    x = state(model, 64, float(sigmas[0]), seed=3).float()
    method = CtrlX(structure=LATENT, structure_end=1.0, recurrence=2, recurrence_start=0.0, recurrence_end=1.0).fitted(FLUX)
    run = engine.Run(engine.Pipeline((method,)), sigmas, flow, percent_to_sigma(flow), seed=1)
    seen = []

    def evaluate(branches, x, s):
        seen.append(float(s[0]))
        return {b: model(x, s, (0,)) for b in branches}
    noise = torch.randn(x.shape, generator=torch.Generator().manual_seed(9))
    out = euler(x, sigmas, lambda x, s: _predict(run, x, s, evaluate, noise))
    assert len(seen) == 80 + 2 * 79      # not in the last step
    assert abs(float(out.mean()) - 0.5) < 0.03 and abs(float(out.std()) - 0.3 ** 0.5) < 0.04
    plain = euler(x, sigmas, lambda x, s: model(x, s, (0,)))
    assert (out - plain).abs().mean() > 0.1


def _predict(run, x, s, evaluate, noise):
    step = run.step(x, s)
    step.maps["noise"] = lambda: noise
    method = run.pipeline.methods[0]

    def at(y):
        assert method.edits(step)[0].acts(step) == (y is x)
        return evaluate([1], y, s)[1]
    out = method.steer(step, at, {})
    assert ctrl_x.PLAIN not in step.maps
    return out


def test_no_repetition_without_control():
    method = CtrlX(structure=LATENT, structure_end=0.2, recurrence=2).fitted(FLUX)
    sigmas = levels(steps=10).float()
    calls = []
    for index in range(10):
        step = a_step(method, sigmas[index], index, sigmas=sigmas)
        step.maps["noise"] = lambda: torch.zeros(1, 4, 2, 3)
        method.steer(step, lambda x: calls.append(index) or x * 0.9, {})
    inside = [i for i in range(10) if percent_to_sigma()(0.2) <= float(sigmas[i]) <= percent_to_sigma()(0.1)]
    assert inside and len(calls) == 10 + 2 * len(inside)
