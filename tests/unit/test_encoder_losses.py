"""Losses that look through an encoder, on small encoders: what each is 0 for, what it is by hand, and what it leaves alone."""
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F

from lodestar.guidance.host.vision import _refuse_unprojected, _squares, encoder
from lodestar.guidance.loss.base import LossContext
from lodestar.guidance.loss.classifier import ClassifierLoss, SegmentationLoss
from lodestar.guidance.loss.clip import CLIPImage, CLIPText, distance, fitting
from lodestar.guidance.loss.encoder import Seen, cutouts, framed, numbers, unit
from lodestar.guidance.loss.exemplar import ExemplarSet, apart, spread
from lodestar.guidance.loss.feature import FeatureLoss
from lodestar.guidance.loss.networks import parse
from lodestar.guidance.loss.preference import PreferenceLoss
from lodestar.guidance.loss.semantic import SemanticGuidance
from lodestar.guidance.loss.style import StyleLoss, difference, gram, parse_weights, statistics
from lodestar.guidance.loss.universal import UniversalGuidance
from lodestar.guidance.method import BadInput, Step

CLIP_TEXT, CLIP_IMAGE, STYLE = pytest.mark.method("LodestarCLIPTextLoss"), pytest.mark.method("LodestarCLIPImageLoss"), pytest.mark.method("LodestarStyleLoss")
FEATURE, CLASSIFIER, SEGMENTATION = pytest.mark.method("LodestarFeatureLoss"), pytest.mark.method("LodestarClassifierLoss"), pytest.mark.method("LodestarSegmentationLoss")
PREFERENCE, EXEMPLAR, SEMANTIC = pytest.mark.method("LodestarPreferenceLoss"), pytest.mark.method("LodestarExemplarLoss"), pytest.mark.method("LodestarSemanticGuidanceLoss")
ALL = pytest.mark.method("LodestarCLIPTextLoss", "LodestarCLIPImageLoss", "LodestarStyleLoss", "LodestarFeatureLoss", "LodestarClassifierLoss", "LodestarSegmentationLoss", "LodestarPreferenceLoss",
                         "LodestarExemplarLoss", "LodestarSemanticGuidanceLoss")


class Toy:
    """An encoder: three random 1 x 1 convolutions with a square between them; the embedding is a linear map of 4 x 4 means."""

    side, layers, style_layers, feature_layers, key = 8, (1, 2), (1, 2), (2,), "toy"

    def __init__(self):
        g = torch.Generator().manual_seed(3)
        self.a, self.b, self.c = torch.randn(6, 3, generator=g), torch.randn(5, 6, generator=g), torch.randn(4, 5 * 16, generator=g) / 4
        self.calls = 0

    def see(self, pictures, layers=()):
        self.calls += 1
        one = torch.einsum("dc,nchw->ndhw", self.a, pictures)
        two = torch.einsum("dc,nchw->ndhw", self.b, one.square() + one)
        return Seen(F.adaptive_avg_pool2d(two, 4).flatten(1) @ self.c.T, {n: (one, two)[n - 1] for n in layers})


def pictures(n=2, side=8, seed=0):
    return torch.rand(n, 3, side, side, generator=torch.Generator().manual_seed(seed))


def network(classes=5, labels=3):
    """A VGG of two stages, with classes and cells."""
    g = torch.Generator().manual_seed(7)
    w = {"features.0.weight": torch.randn(6, 3, 3, 3, generator=g) / 3, "features.0.bias": torch.randn(6, generator=g) / 9, "features.3.weight": torch.randn(8, 6, 3, 3, generator=g) / 5,
         "features.3.bias": torch.zeros(8), "classifier.0.weight": torch.randn(classes, 8, generator=g), "classifier.0.bias": torch.zeros(classes),
         "head.weight": torch.randn(labels, 8, 1, 1, generator=g), "head.bias": torch.zeros(labels)}
    return parse(w, {"size": "8", "classes": '["ant", "bee", "cat", "dog", "eel"]', "labels": "ground, sky, sea"}, "toy net")


def made(cls, target=None, **values):
    return cls(**values, decoder=lambda d: d, target=target).check()


def value(loss, u, context=None):
    return loss.value(u, context or LossContext())


def texts(n=2):
    return torch.randn(n, 4, generator=torch.Generator().manual_seed(11))


def region():
    m = torch.zeros(1, 8, 8)
    m[:, 2:6, 1:5] = 1
    return m


def head(outputs=1):
    return parse({"weight": torch.randn(outputs, 4, generator=torch.Generator().manual_seed(2)), "bias": torch.zeros(outputs)}, {}, "toy head")


def every():
    """One of each kind and mode, [(loss, a picture at which it is 0 or None)]."""
    y, toy = pictures(1, seed=5), Toy()
    found = [(made(CLIPText, clip_vision=toy, texts=texts(), mode=m, others=texts(3)), None) for m in ("cosine", "spherical", "cross-entropy")]
    found += [(made(CLIPText, clip_vision=toy, texts=texts(), cutouts=3), None), (made(CLIPText, clip_vision=toy, texts=texts(), each=True), None)]
    found += [(made(CLIPImage, y, clip_vision=toy), y), (made(CLIPImage, y, clip_vision=toy, mode="direction", texts=texts()), None)]
    found += [(made(StyleLoss, y, clip_vision=toy, mode=m), y) for m in ("gram", "gram norm", "statistics")]
    found += [(made(StyleLoss, pictures(2, seed=6), network=network(), shares="1, 3"), None)]
    found += [(made(FeatureLoss, y, clip_vision=toy, mode=m), y) for m in ("cosine", "absolute", "squared", "perceptual")] + [(made(FeatureLoss, y, network=network(), mode="perceptual"), y)]
    found += [(made(ClassifierLoss, classifier=network(), classes=c, objective=o), None) for o, c in (("log-probability", "bee"), ("probability", "1, 2"), ("margin", "3"), ("boundary", "ant, eel: 2"), ("activation", "0"))]
    found += [(made(ClassifierLoss, y, classifier=head(5), clip_vision=toy, classes="2", keep=0.5), None)]
    found += [(made(SegmentationLoss, network=network(), region=region(), label="sky", form=f), None) for f in ("cross-entropy", "dice")]
    found += [(made(PreferenceLoss, clip_vision=toy, head=head(2), score=1), None), (made(PreferenceLoss, clip_vision=toy, texts=texts(1), use_aim=True, aim=2.0), None)]
    found += [(made(ExemplarSet, pictures(3, seed=8), clip_vision=toy, bad=pictures(2, seed=9)), None), (made(ExemplarSet, y, clip_vision=toy, layers="1, -1"), y)]
    found += [(made(SemanticGuidance, y, clip_vision=toy, texts=texts(1), image_loss=k), None) for k in ("semantic", "style", "structure")]
    found += [(made(SemanticGuidance, y, clip_vision=toy, image_loss=k), y) for k in ("semantic", "style", "structure")]
    return found


@ALL
@pytest.mark.parametrize("loss, best", every(), ids=lambda v: f"{type(v).__name__}-{getattr(v, 'mode', getattr(v, 'objective', ''))}" if not isinstance(v, torch.Tensor) else "")
def test_one_value_a_picture_alone_or_together_and_descent_leads_down(loss, best):
    """Finite slopes, also at a reference itself; samples do not meet; a short step along the slope lowers each picture's value."""
    u = pictures().requires_grad_()
    found = value(loss, u)
    slope, = torch.autograd.grad(found.sum(), u)
    assert found.shape == (2,) and torch.isfinite(slope).all() and slope.flatten(1).norm(dim=1).min() > 0
    with torch.no_grad():
        step = 1e-4 / slope.flatten(1).norm(dim=1)[:, None, None, None]
        assert (value(loss, u - step * slope) < found).all()
    if not getattr(loss, "each", False):
        torch.testing.assert_close(value(loss, u[1:].detach()), found[1:].detach(), rtol=1e-4, atol=1e-6)
    if best is not None:
        at = best.clone().requires_grad_()
        least = value(loss, at)
        assert least.abs().max() < 2e-4 < found.min()
        assert torch.isfinite(torch.autograd.grad(least.sum(), at)[0]).all()


@ALL
def test_frames_are_averaged_and_a_weight_of_zero_is_off():
    """A video [1, 3, 2, 8, 8] has the mean of its frames' values; weight 0 leaves the sampler's bits alone."""
    u = pictures()
    step = Step(u, torch.ones(2))
    for loss, _ in every()[:1] + every()[5:6] + every()[-1:]:
        video = u.movedim(0, 1)[None]
        torch.testing.assert_close(value(loss, video), value(loss, u).mean()[None])
        off = UniversalGuidance(loss=made(type(loss), loss.target, **{k: getattr(loss, k) for k in ("clip_vision", "texts") if hasattr(loss, k)}, weight=0.0))
        assert torch.equal(off.steer(step, lambda x: x * 0.5, {}), u * 0.5)


@ALL
def test_half_precision_latents_have_finite_slopes():
    for dtype in (torch.float16, torch.bfloat16):
        for loss, _ in every()[:1] + every()[7:8]:
            x = pictures().to(dtype).requires_grad_()
            slope, = torch.autograd.grad((value(loss, x.float()) * 1024).sum(), x)
            assert slope.dtype == dtype and torch.isfinite(slope).all() and (slope != 0).any()


@CLIP_TEXT
def test_text_distances_by_hand():
    toy, u, t = Toy(), pictures(), texts(2)
    e, k = unit(toy.see(u).embedding), unit(t)
    torch.testing.assert_close(value(made(CLIPText, clip_vision=toy, texts=t), u), 1 - (e @ k.T).mean(1))
    angle = torch.arccos((e @ k.T).clamp(-1, 1))
    torch.testing.assert_close(value(made(CLIPText, clip_vision=toy, texts=t, mode="spherical"), u), (angle.square() / 2).mean(1), rtol=1e-4, atol=1e-5)
    both = torch.cat((k[:1], unit(texts(5)[2:])))
    loss = made(CLIPText, clip_vision=toy, texts=t[:1], others=texts(5)[2:], mode="cross-entropy")
    torch.testing.assert_close(value(loss, u), F.cross_entropy(100 * e @ both.T, torch.zeros(2, dtype=torch.long), reduction="none"), rtol=1e-4, atol=1e-4)
    own = value(made(CLIPText, clip_vision=toy, texts=t, each=True), u)
    torch.testing.assert_close(own, 1 - (e * k).sum(1))
    torch.testing.assert_close(distance(k, k, "spherical"), torch.zeros(2), atol=1e-6, rtol=0)


@CLIP_TEXT
def test_clip_guidance_is_the_slope_of_the_inner_product():
    """GLIDE's guidance adds the gradient of e t; the cosine loss's is its negative."""
    toy, t = Toy(), texts(1)
    u = pictures().requires_grad_()
    ours, = torch.autograd.grad(value(made(CLIPText, clip_vision=toy, texts=t), u).sum(), u)
    glide, = torch.autograd.grad((unit(toy.see(u).embedding) @ unit(t)[0]).sum(), u)
    torch.testing.assert_close(ours, -glide)


@CLIP_TEXT
def test_an_encoder_is_asked_once_a_step():
    toy, context, u = Toy(), LossContext(), pictures()
    losses = [made(CLIPText, clip_vision=toy, texts=texts(n)) for n in (1, 2)] + [made(PreferenceLoss, clip_vision=toy, head=head())]
    first = [value(loss, u, context) for loss in losses]
    assert toy.calls == 1
    value(losses[0], u.clone(), context)
    assert toy.calls == 2 and all(f.shape == (2,) for f in first)


@CLIP_TEXT
def test_cutouts_are_the_same_for_the_batch_and_new_at_each_step():
    u = pictures(3, 16)
    cut = cutouts(u, 4, 0.3, 8, 8, seed=1)
    assert cut.shape == (12, 3, 8, 8)
    assert torch.equal(cut.unflatten(0, (4, 3))[:, 2], cutouts(u[2:], 4, 0.3, 8, 8, seed=1))
    torch.testing.assert_close(cutouts(torch.full((1, 3, 16, 12), 0.3), 5, 1.0, 8, 8, 0), torch.full((5, 3, 8, 8), 0.3))
    assert torch.equal(cutouts(u, 1, 0.0, 8, 16, 0), u)      # power 0: the largest that fits
    loss = made(CLIPText, clip_vision=Toy(), texts=texts(1), cutouts=4)
    at = lambda i: LossContext(Step(u, torch.ones(3), index=i))
    again, other = value(loss, u, at(2)), value(loss, u, at(3))
    assert torch.equal(value(loss, u, at(2)), again) and not torch.allclose(again, other)
    torch.testing.assert_close(value(loss, u[1:2], at(2)), again[1:2])


@FEATURE
def test_a_mask_is_the_box_that_is_seen_and_where_the_picture_moves():
    u = pictures().requires_grad_()
    m = torch.zeros(2, 8, 8)
    m[0, 2:6, 1:5], m[1, 0:4, 4:8] = 1, 1
    m[0, 3, 2] = 0.5
    loss = made(FeatureLoss, pictures(1, 4, seed=5), clip_vision=Toy(), mask=m)
    slope, = torch.autograd.grad(value(loss, u).sum(), u)
    assert ((slope != 0).any(1) <= (m > 0)).all() and (slope != 0).any((1, 2, 3)).all()
    moved = u.detach().clone()
    moved[0, :, 6:], moved[1, :, 4:] = 0.9, 0.1      # outside both boxes
    torch.testing.assert_close(value(loss, moved), value(loss, u).detach())
    assert framed(u, torch.ones(2, 1, 8, 8), 8) is u


@CLIP_IMAGE
def test_the_direction_of_a_change():
    """0 where the picture's embedding moved as the texts say, 2 where it moved the other way."""
    class Plain:
        side, layers, key = 0, (), "plain"

        def see(self, u, layers=()):
            return Seen(u.mean((2, 3)))
    before = torch.zeros(1, 3, 4, 4)
    before[:, 0] = 1
    t = torch.eye(3)[[1, 0]]                 # from (1, 0, 0) to (0, 1, 0)
    loss = made(CLIPImage, before, clip_vision=Plain(), mode="direction", texts=t)
    after = lambda *c: torch.tensor(c, dtype=torch.float32).view(1, 3, 1, 1).expand(1, 3, 4, 4)
    assert value(loss, after(0, 1, 0)) < 1e-5
    e = F.normalize(torch.tensor([1.0, 0.0, 1.0]), dim=0) - torch.tensor([1.0, 0.0, 0.0])
    wanted = F.normalize(torch.tensor([-1.0, 1.0, 0.0]), dim=0)
    torch.testing.assert_close(value(loss, after(1, 0, 1)), (1 - F.cosine_similarity(e, wanted, 0))[None])
    with pytest.raises(BadInput, match="two texts"):
        made(CLIPImage, before, clip_vision=Plain(), mode="direction", texts=t[:1])


@EXEMPLAR
def test_one_good_example_is_a_distance_and_equal_sets_are_nothing():
    toy, u, y = Toy(), pictures(), pictures(1, seed=5)
    far = apart(toy.see(u).embedding, toy.see(y).embedding)[:, 0]
    torch.testing.assert_close(value(made(ExemplarSet, y, clip_vision=toy, alpha=3.0), u), far / 3)
    sets = pictures(3, seed=8)
    assert value(made(ExemplarSet, sets, clip_vision=toy, bad=sets), u).abs().max() < 1e-6
    near = value(made(ExemplarSet, torch.cat((sets, u[:1])), clip_vision=toy, alpha=1e-3), u)[0]
    assert near.abs() < 2e-2      # a small alpha: the nearest alone, which is the picture itself
    e = toy.see(sets).embedding.double()
    assert spread(e) == pytest.approx(sorted(torch.pdist(e).tolist())[1]) and spread(e[:1]) == 1


@STYLE
def test_style_knows_no_places_and_mixes():
    toy, u = Toy(), pictures()
    y = pictures(2, seed=6)
    for mode in ("gram", "gram norm", "statistics"):
        loss = made(StyleLoss, y[:1], clip_vision=toy, mode=mode)
        torch.testing.assert_close(value(loss, u.roll((3, 2), (-1, -2))), value(loss, u), rtol=1e-4, atol=1e-6)
        torch.testing.assert_close(value(made(StyleLoss, y, clip_vision=toy, mode=mode, shares="1, 0"), u), value(loss, u))
    f = toy.see(u, (1,)).maps[1]
    torch.testing.assert_close(gram(f)[0], f[0].flatten(1) @ f[0].flatten(1).T / (6 * 64))
    torch.testing.assert_close(statistics(f)[:, 1].square(), f.flatten(2).var(2, unbiased=False) + 1e-8)
    torch.testing.assert_close(difference(gram(f), gram(f.flip(0)), "gram norm").square(), difference(gram(f), gram(f.flip(0)), "gram"))
    half = made(StyleLoss, y, clip_vision=toy, layers="1", mode="gram")
    mixed = (gram(toy.see(y[:1], (1,)).maps[1]) + gram(toy.see(y[1:], (1,)).maps[1])) / 2
    torch.testing.assert_close(value(half, u), (gram(f) - mixed).square().sum((1, 2)))
    assert parse_weights("3, 1", 2, "x") == [0.75, 0.25]
    for wrong in ("1", "1, two", "0, 0", "1, -1"):
        with pytest.raises(BadInput, match="Write 2 numbers"):
            parse_weights(wrong, 2, "x")


@STYLE
def test_self_style_guidance():
    """A batch of equal pictures has no slope; alike and apart are opposite; each picture is drawn to the others, which are held fast; one picture alone is left."""
    toy = Toy()
    alike, far = (made(StyleLoss, None, clip_vision=toy, against=a, mode="gram") for a in ("batch, alike", "batch, apart"))
    same = pictures(1).expand(3, -1, -1, -1).clone().requires_grad_()
    assert torch.autograd.grad(value(alike, same).sum(), same)[0].abs().max() < 1e-6
    u = pictures(3).requires_grad_()
    torch.testing.assert_close(value(alike, u), -value(far, u))
    slope, = torch.autograd.grad(value(alike, u)[0], u)
    assert slope[0].abs().max() > 0 == slope[1:].abs().max()
    assert value(alike, u[:1]).abs().max() == 0
    with torch.no_grad():
        assert value(alike, u - 1e-3 * slope / slope.norm())[0] < value(alike, u)[0]


@FEATURE
def test_perceptual_does_not_know_the_strength_of_a_place():
    class Double(Toy):
        def see(self, u, layers=()):
            seen = super().see(u, layers)
            return Seen(seen.embedding, {n: f * (1 + torch.arange(8.0)) for n, f in seen.maps.items()})
    u, y = pictures(), pictures(1, seed=5)
    plain, strong = (made(FeatureLoss, y, clip_vision=t, mode="perceptual") for t in (Toy(), Double()))
    torch.testing.assert_close(value(strong, u), value(plain, u))
    assert not torch.allclose(*(value(made(FeatureLoss, y, clip_vision=t, mode="squared"), u) for t in (Toy(), Double())))
    e, f = (Toy().see(v).embedding for v in (u, y))
    torch.testing.assert_close(value(made(FeatureLoss, y, clip_vision=Toy(), mode="absolute"), u), (e - f).abs().mean(1))


@CLASSIFIER
def test_objectives_by_hand():
    net, u = network(), pictures()
    f = net.logits(u)
    p, by = f.softmax(1), lambda **v: value(made(ClassifierLoss, classifier=net, **v), u)
    torch.testing.assert_close(by(classes="bee"), F.cross_entropy(f, torch.tensor([1, 1]), reduction="none"))
    torch.testing.assert_close(by(classes="1, eel"), -(p[:, 1] + p[:, 4]).log())
    torch.testing.assert_close(by(classes="1", objective="probability"), -p[:, 1])
    torch.testing.assert_close(by(classes="2", objective="margin"), f[:, [0, 1, 3, 4]].amax(1) - f[:, 2])
    torch.testing.assert_close(by(classes="0, 3: 3", objective="boundary"), -(p[:, 0].log() + 3 * p[:, 3].log()) / 4)
    torch.testing.assert_close(by(classes="1", among="0, 1, 2"), F.cross_entropy(f[:, :3], torch.tensor([1, 1]), reduction="none"))      # GUIDE's trimmed logits
    torch.testing.assert_close(by(objective="activation", layer=2, neuron=3), -net.see(u, (2,)).maps[2][:, 3].mean((1, 2)))
    torch.testing.assert_close(by(classes="ant\neel"), torch.stack((-p[0, 0].log(), -p[1, 4].log())))
    torch.testing.assert_close(by(classes="2", second=network()), torch.zeros(2))      # nothing that it alone sees
    y = pictures(1, seed=5)
    kept = value(made(ClassifierLoss, y, classifier=net, classes="2", keep=2.0), u)
    torch.testing.assert_close(kept, by(classes="2") + 2 * (u - y).square().mean((1, 2, 3)))


@CLASSIFIER
def test_wrong_classes_are_named():
    net = network()
    for values, words in (({"classes": "fox"}, r"0 to 4 or its name \(ant"), ({"classes": "5"}, "0 to 4"), ({"classes": "1: x"}, "weight"), ({"classes": ""}, "at least one"), ({"classes": "1", "among": "2"}, "among"),
                          ({"keep": 1.0}, "the picture"), ({"objective": "loud"}, "Choose one of"), ({"second": head(5)}, "connect that encoder")):
        with pytest.raises(BadInput, match=words):
            made(ClassifierLoss, classifier=net, **values)
    with pytest.raises(BadInput, match="8 channels"):
        value(made(ClassifierLoss, classifier=net, objective="activation", neuron=9), pictures())
    with pytest.raises(BadInput, match="no classes of pictures"):
        made(ClassifierLoss, classifier=parse({"features.0.weight": torch.zeros(2, 3, 3, 3)}, {}, "bare"))
    with pytest.raises(BadInput, match="width 7"):
        value(made(ClassifierLoss, classifier=parse({"weight": torch.zeros(2, 7)}, {}, "wide"), clip_vision=Toy()), pictures())


@SEGMENTATION
def test_cells_by_hand():
    net, u, m = network(), pictures(), region()
    p = net.cells(u).softmax(1)[:, 1]
    r = F.interpolate(m[None], p.shape[-2:], mode="area")[0]
    dice = 1 - 2 * (p * r).sum((1, 2)) / (p.sum((1, 2)) + r.sum())
    torch.testing.assert_close(value(made(SegmentationLoss, network=net, region=m, label="sky", form="dice"), u), dice)
    inside, rest = (-(p.log() * r).sum((1, 2)) / r.sum(), -((1 - p).log() * (1 - r)).sum((1, 2)) / (1 - r).sum())
    torch.testing.assert_close(value(made(SegmentationLoss, network=net, region=m, label="1", outside=0.5), u), inside + rest / 2)
    for values, words in (({"label": "land"}, "0 to 2"), ({"region": torch.zeros(1, 8, 8)}, "Nothing is marked"), ({"network": head()}, "sees no cells")):
        with pytest.raises(BadInput, match=words):
            made(SegmentationLoss, **{"network": net, "region": m, "label": "sky", **values})


@PREFERENCE
def test_scores():
    """LAION's chain of linear layers on the unit embedding; 100 e t; a score that is aimed at."""
    toy, u, g = Toy(), pictures(), torch.Generator().manual_seed(0)
    chain = {f"layers.{n}.{k}": torch.randn(*((b, a) if k == "weight" else (b,)), generator=g) for n, a, b in ((0, 4, 6), (2, 6, 3), (4, 3, 1)) for k in ("weight", "bias")}
    e = unit(toy.see(u).embedding)
    x = e
    for n in (0, 2, 4):
        x = x @ chain[f"layers.{n}.weight"].T + chain[f"layers.{n}.bias"]
    torch.testing.assert_close(value(made(PreferenceLoss, clip_vision=toy, head=parse(chain, {}, "laion")), u), -x[:, 0])
    torch.testing.assert_close(value(made(PreferenceLoss, clip_vision=toy, texts=texts(1)), u), -100 * (e @ unit(texts(1)).T)[:, 0])
    torch.testing.assert_close(value(made(PreferenceLoss, clip_vision=toy, head=parse(chain, {}, "laion"), use_aim=True, aim=1.5), u), (x[:, 0] - 1.5).abs())
    for values in ({}, {"head": head(), "texts": texts(1)}, {"head": network()}, {"head": head(), "score": 1}):
        with pytest.raises(BadInput):
            made(PreferenceLoss, clip_vision=toy, **values)


@SEMANTIC
def test_semantic_guidance_is_its_parts():
    toy, u, y, t = Toy(), pictures(), pictures(1, seed=5), texts(1)
    text, image = (value(made(cls, target, clip_vision=toy, **more), u) for cls, target, more in ((CLIPText, None, {"texts": t}), (CLIPImage, y, {})))
    torch.testing.assert_close(value(made(SemanticGuidance, y, clip_vision=toy, texts=t), u), 160 * text + 100 * image)
    torch.testing.assert_close(value(made(SemanticGuidance, y, clip_vision=toy, texts=t, image_weight=0.0), u), 160 * text)
    style = made(SemanticGuidance, y, clip_vision=toy, image_loss="style", layers="1")
    rolled = value(style, u.roll((1, 2), (-1, -2)))
    torch.testing.assert_close(value(style, u), rolled, rtol=1e-4, atol=1e-3)
    a, b = gram(toy.see(u, (1,)).maps[1]), gram(toy.see(y, (1,)).maps[1])
    torch.testing.assert_close(value(style, u), 100 * (a - b).square().mean((1, 2)) / b.square().mean())
    with pytest.raises(BadInput, match="or both"):
        made(SemanticGuidance, None, clip_vision=toy)


@CLASSIFIER
@STYLE
def test_a_vgg_file_by_hand():
    """Normalised by ImageNet's figures, two convolutions with a pooling between, by the numbers of torchvision's modules."""
    net, u = network(), pictures()
    x = (u - torch.tensor((0.485, 0.456, 0.406)).view(3, 1, 1)) / torch.tensor((0.229, 0.224, 0.225)).view(3, 1, 1)
    one = F.conv2d(x, net.weights["features.0.weight"], net.weights["features.0.bias"], padding=1).relu()
    two = F.conv2d(F.max_pool2d(one, 2), net.weights["features.3.weight"], net.weights["features.3.bias"], padding=1).relu()
    seen = net.see(u, (2, 3, 5))
    for n, wanted in ((2, one), (3, F.max_pool2d(one, 2)), (5, two)):
        torch.testing.assert_close(seen.maps[n], wanted)
    torch.testing.assert_close(net.logits(u), two.mean((2, 3)) @ net.weights["classifier.0.weight"].T)
    torch.testing.assert_close(net.see(u).embedding, two.mean((2, 3)))
    assert net.layers == (1, 2, 3, 4, 5) and net.style_layers == (2,) and net.side == 8 and net.count() == 5 and net.count(True) == 3
    with pytest.raises(ValueError, match="none of the known layouts"):
        parse({"something": torch.zeros(1)})
    with pytest.raises(ValueError, match="more than torchvision"):
        parse({"features.0.weight": torch.zeros(2, 3, 3, 3), "features.7.weight": torch.zeros(2, 2, 3, 3)})
    with pytest.raises(ValueError, match="std above 0"):
        parse({"weight": torch.zeros(1, 2)}, {"std": "1, 0, 1"})


@CLIP_TEXT
def test_texts_and_encoders_that_do_not_belong_together_are_refused():
    assert fitting(torch.zeros(1, 2048), 1280, "x").shape == (1, 1280) and fitting(torch.zeros(1, 2048), 768, "x").shape == (1, 768)
    with pytest.raises(BadInput, match="of one CLIP"):
        fitting(torch.zeros(1, 768), 1024, "x")
    with pytest.raises(BadInput, match="other_text"):
        made(CLIPText, clip_vision=Toy(), texts=texts(), mode="cross-entropy")
    for weight, refused in ((torch.eye(4), True), (torch.eye(4) + 0.1, False)):
        inner = torch.nn.Module()
        inner.text_projection = torch.nn.Linear(4, 4, bias=False)
        inner.text_projection.weight.data = weight
        clip = SimpleNamespace(cond_stage_model=torch.nn.ModuleDict({"clip_l": inner}))
        if refused:
            with pytest.raises(BadInput, match="projection"):
                _refuse_unprojected(clip, "x")
        else:
            _refuse_unprojected(clip, "x")
    with pytest.raises(BadInput, match="CLIP Vision Loader"):
        encoder(object(), "x")


@CLIP_TEXT
@STYLE
def test_layers_by_number():
    toy = Toy()
    assert numbers("", toy, "x", (2,)) == (2,) and numbers("1, -1", toy, "x", ()) == (1, 2)
    for wrong in ("3", "-3", "one"):
        with pytest.raises(BadInput, match="numbers of layers"):
            numbers(wrong, toy, "x", ())
    tokens = torch.arange(2 * 5 * 3.0).view(2, 5, 3)      # a class token and 2 x 2 patches
    assert torch.equal(_squares(tokens)[0, :, 0, 1], tokens[0, 2])
