"""Score distillation against its papers' formulas and the identities that follow, on closed-form models, in k-units and for flow matching."""
from __future__ import annotations

import dataclasses
import math

import pytest
import torch
from lodestar.guidance.distillation.base import ISM, SDS, UNIFORM, WEIGHTS, Moment, drawn, weight
from lodestar.guidance.distillation.composite import KNOTS, CompositeDistillation, placed, toned
from lodestar.guidance.distillation.distil import DistilPictures, LatentCanvas, PictureCanvas, ScoreDistillation, clipped, frames_as_rows
from lodestar.guidance.distillation.dsd import DenoisedScoreDistillation as DSD
from lodestar.guidance.distillation.hifa import HiFAGuidance as HiFA
from lodestar.guidance.distillation.hybrid import HybridDistillation as Hybrid
from lodestar.guidance.distillation.ism import IntervalScoreMatching as Interval
from lodestar.guidance.distillation.sds import SDSGuidance
from lodestar.guidance.distillation.tsm import TrajectoryScoreMatching as Trajectory
from lodestar.guidance.frozen import frozen
from lodestar.guidance.loss.base import Loss
from lodestar.guidance.method import BadInput
from lodestar.tests.toys import gaussian, mixture

FLOWS = pytest.mark.parametrize("flow", [False, True], ids=("k", "flow"))
GUIDANCES = (SDSGuidance, HiFA, DSD, Interval, Trajectory)
EVERY = pytest.mark.parametrize("cls", [pytest.param(c, marks=pytest.mark.method(c.node_id)) for c in GUIDANCES])


class Toy:
    """A prior of closed form. A prompt is a tuple of the mixture's components; `calls` counts predictions; no prediction may be asked for with a graph."""

    dimensions, decode = 2, None

    def __init__(self, model, positive=(0,), negative=None, inverse=None):
        self.model, self.flow, self.calls = model, model.flow, []
        self.prompts = {"positive": positive, "negative": negative, "inverse": inverse}

    def sigma(self, level):
        return min(1.0, max(0.002, level)) if self.flow else math.exp(math.log(0.03) + level * (math.log(14.6) - math.log(0.03)))

    def plain(self, x, s, name):
        assert not torch.is_grad_enabled() and not x.requires_grad
        self.calls.append((name, s))
        return self.model(x, torch.full((x.shape[0],), s, dtype=x.dtype), self.prompts[name])

    def guided(self, x, s, cfg):
        c = self.plain(x, s, "positive")
        if cfg == 1:
            return c
        u = self.plain(x, s, "negative")
        return u + cfg * (c - u)

    def encode(self, u):
        return torch.cat((u, u[:, :1]), 1) * 2 - 1


def moment(prior, z, index=0, total=10, **more):
    return Moment(prior, z, index, total, entries=tuple(range(z.shape[0])), **more)


def made(cls, **values):
    return cls(**({"rgb": 0.0} if cls is HiFA else {}), **values).validate()


def clean(model, batch=2, seed=3):
    return torch.randn((batch, *model.means.shape[1:]), generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@torch.no_grad()
def pulled(guidance, prior, z, **more):
    return guidance.pull(moment(prior, z, **more)).latent


@pytest.mark.method("LodestarSDSGuidance")
@FLOWS
def test_sds_is_the_noise_residual_and_in_expectation_the_difference_of_scores(flow):
    """W (n^ - n), written out; its mean over noises is W a / s (z - E D(a z + s n)), which a Gaussian gives in closed form."""
    model = gaussian(0.5, 0.3, (2, 4, 4), flow)
    prior, z, s = Toy(model), clean(model), 0.6
    a = 1 - s if flow else 1.0
    for kind in WEIGHTS:
        guidance = made(SDSGuidance, cfg=1.0, sigmas=torch.tensor([s]), weighting=kind)
        at = moment(prior, z)
        x, n = a * z + at.noise() * guidance.level(at), at.noise()
        s_ = guidance.level(at)
        wanted = weight(s_, flow, kind) * (((x - a * model(x, torch.full((2,), s_, dtype=x.dtype))) / s_) - n)
        torch.testing.assert_close(pulled(guidance, prior, z), wanted, atol=1e-6, rtol=1e-5)
    mean = made(SDSGuidance, cfg=1.0, sigmas=torch.tensor([s]), weighting=UNIFORM, draws=64)
    gain = a * 0.3 / (a * a * 0.3 + s * s)      # E over n of z - D(x) = (1 - a gain) (z - mu)
    error = pulled(mean, prior, z) - a / s * (1 - a * gain) * (z - 0.5)
    spread = a / s * gain * s / math.sqrt(64)
    assert error.abs().max() < 5 * spread and abs(float(error.square().mean().sqrt()) / spread - 1) < 0.35


@pytest.mark.method("LodestarSDSGuidance", "LodestarScoreDistillation")
@FLOWS
def test_sds_ends_at_the_mode_from_every_start_and_spread_is_lost(flow):
    model = gaussian(0.5, 0.3, (2, 4, 4), flow)
    guidance = made(SDSGuidance, cfg=1.0, t_min=0.3, t_max=0.7)
    canvas = LatentCanvas(clean(model, 3))
    ScoreDistillation(guidance=guidance, steps=120, rate=0.2, last_rate=0.02).validate().run(canvas, [Toy(model)])
    off = (canvas.z - 0.5).detach()
    assert off.abs().max() < 0.45 and off.std() < 0.2 < math.sqrt(0.3)
    # a mixture with a prompt: the prompt's component, not the others
    model = mixture(flow)
    guidance = made(SDSGuidance, cfg=1.0, t_min=0.05, t_max=0.5)
    canvas = LatentCanvas(torch.zeros(2, 2, 4, 4))
    ScoreDistillation(guidance=guidance, steps=80, rate=0.05).run(canvas, [Toy(model, positive=(1,))])
    away = (canvas.z[:, None] - model.means[None].float()).flatten(2).norm(dim=2)
    assert (away.argmin(1) == 1).all() and (away[:, 1] < 0.5 * model.means[1].norm()).all()


@EVERY
@FLOWS
def test_entries_are_their_own_whatever_is_beside_them_and_no_graph_is_made(cls, flow):
    model = mixture(flow)
    guidance, z = made(cls, cfg=3.0), clean(model, 3)
    together = LatentCanvas(z)
    method = ScoreDistillation(guidance=guidance, steps=4, rate=0.05, seed=5).validate()
    sizes = method.run(together, [Toy(model)])
    assert len(sizes) == 4 and bool(torch.isfinite(together.z).all()) and (together.z - z).abs().max() > 1e-3
    alone = LatentCanvas(z[1:2], entries=(1,))
    method.run(alone, [Toy(model)])
    torch.testing.assert_close(alone.z, together.z[1:2])
    again = LatentCanvas(z)
    method.run(again, [Toy(model)])
    assert torch.equal(again.z, together.z)
    other = LatentCanvas(z)
    dataclasses.replace(method, seed=6).run(other, [Toy(model)])
    assert not torch.equal(other.z, together.z)


@EVERY
def test_a_delta_prior_at_the_picture_pulls_nowhere(cls):
    """D = z for every x: no residual, whichever the method."""
    class Perfect(Toy):
        def plain(self, x, s, name):
            return self.z
    model = gaussian(shape=(2, 4, 4))
    prior = Perfect(model)
    prior.z = clean(model)
    for index in (0, 5):
        assert pulled(made(cls, cfg=4.0), prior, prior.z, index=index).abs().max() < 1e-9


@pytest.mark.method("LodestarHiFAGuidance", "LodestarSDSGuidance")
@FLOWS
def test_hifa_of_one_step_is_sds_and_anneals_by_the_root(flow):
    model = mixture(flow)
    prior, z = Toy(model), clean(model)
    for kind in WEIGHTS:
        one = made(HiFA, steps=1, cfg=3.0, course="random", t_min=0.1, t_max=0.9, weighting=kind)
        torch.testing.assert_close(pulled(one, prior, z, index=2), pulled(made(SDSGuidance, cfg=3.0, t_min=0.1, t_max=0.9, weighting=kind), prior, z, index=2))
    method = made(HiFA)
    times = [method.time(moment(prior, z, i, 101)) for i in range(101)]
    assert times[0] == pytest.approx(0.98) and times[-1] == pytest.approx(0.30) and times[25] == pytest.approx(0.98 - 0.68 * 0.5)
    assert made(HiFA, course="linear").time(moment(prior, z, 50, 101)) == pytest.approx(0.64) == made(HiFA, course="cosine").time(moment(prior, z, 50, 101))
    # SGD at rate 1 with the constant weight puts the denoised latent in the place of z
    whole = made(HiFA, cfg=1.0, weighting=ISM, steps=3)
    canvas = LatentCanvas(z)
    ScoreDistillation(guidance=whole, steps=1, rate=1.0, last_rate=1.0, optimiser="SGD").run(canvas, [prior])
    with torch.no_grad():
        at = Moment(prior, z.float(), 0, 1, entries=(0, 1))
        torch.testing.assert_close(canvas.z, whole.denoised(at, whole.level(at), whole.time(at), 0), atol=1e-5, rtol=1e-5)


@pytest.mark.method("LodestarHiFAGuidance")
@FLOWS
def test_hifa_denoises_further_with_more_steps(flow):
    """Without fresh noise the steps are DDIM's: for a Gaussian the end of the exact flow, mu + sqrt(v / (a^2 v + s^2)) (x - a mu), which one step misses."""
    model = gaussian(0.5, 0.3, (2, 4, 4), flow)
    prior, z = Toy(model), clean(model)
    s = 0.7
    a = 1 - s if flow else 1.0
    off = {}
    for k in (1, 60):
        guidance = made(HiFA, cfg=1.0, steps=k, eta=0.0, sigmas=torch.tensor([s]), t_max=0.7)
        with torch.no_grad():
            at = moment(prior, z)
            level = guidance.level(at)
            x = at.noised(z, level, at.noise())
            off[k] = float((guidance.denoised(at, level, None, 0) - (0.5 + math.sqrt(0.3 / (a * a * 0.3 + s * s)) * (x - a * 0.5))).abs().max())
    assert off[60] < 0.1 < 0.2 < off[1]


@pytest.mark.method("LodestarHiFAGuidance")
def test_hifa_pulls_the_picture_too_and_needs_a_vae_for_it():
    with pytest.raises(BadInput, match="HiFA Guidance.*rgb.*VAE"):
        HiFA().validate()
    model = gaussian(shape=(2, 4, 4))
    prior = Toy(model)
    prior.decode = lambda z: z.repeat(1, 2, 1, 1)[:, :3] / 4 + 0.5
    guidance = HiFA(rgb=0.5, vae=object(), cfg=1.0, steps=1).validate()
    z = clean(model)
    with torch.no_grad():
        at = moment(prior, z, shown=lambda: prior.decode(z) * 1.0)
        pull = guidance.pull(at)
        torch.testing.assert_close(pull.picture, 0.5 * (prior.decode(z) - prior.decode(pull.seen).clamp(0, 1)))
    canvas = LatentCanvas(z)
    before = float((canvas.z.detach() - 0.5).abs().mean())
    ScoreDistillation(guidance=guidance, steps=30, rate=0.05).run(canvas, [prior])      # through the decoder
    assert float((canvas.z.detach() - 0.5).abs().mean()) < 0.6 * before


@pytest.mark.method("LodestarDenoisedScoreDistillation", "LodestarSDSGuidance")
@FLOWS
def test_dsd_cancels_and_falls_back_to_sds(flow):
    model = mixture(flow)
    z = clean(model)
    sds = pulled(made(SDSGuidance, cfg=3.0), Toy(model), z)
    torch.testing.assert_close(pulled(made(DSD, cfg=3.0, amount=0.0), Toy(model), z), sds)
    # the same picture and prompt on both sides
    assert pulled(made(DSD, cfg=1.0, pair="this picture"), Toy(model, negative=(0,)), z).abs().max() < 1e-12
    # at amount 1 the noise itself is gone: W (n^(x, y) - n^(x', y'))
    prior, at = Toy(model), moment(Toy(model), z)
    guidance = made(DSD, cfg=1.0, pair="this picture")
    with torch.no_grad():
        s = guidance.level(at)
        x = at.noised(z, s, at.noise())
        wanted = weight(s, flow, SDS) * (at.noise_of(x, s, prior.plain(x, s, "positive")) - at.noise_of(x, s, prior.plain(x, s, "negative")))
    torch.testing.assert_close(pulled(guidance, prior, z), wanted)
    # a bad picture that the model finds perfect: SDS
    class Perfect(Toy):
        def plain(self, x, s, name):
            return self.z if name == "inverse" else super().plain(x, s, name)
    prior = Perfect(model)
    prior.z = z
    torch.testing.assert_close(pulled(made(DSD, cfg=3.0, bad=object()), prior, z), sds)


@pytest.mark.method("LodestarDenoisedScoreDistillation")
def test_dsd_remembers_the_picture_before():
    model = mixture()
    prior, memory, guidance = Toy(model), {}, made(DSD, cfg=1.0)
    first, second = clean(model), clean(model, seed=9)
    with torch.no_grad():
        guidance.pull(moment(prior, first, memory=memory))
        assert torch.equal(memory["previous"], first)
        found = guidance.pull(moment(prior, second, 1, memory=memory)).latent
        at = moment(prior, second, 1)
        s, n = guidance.level(at), at.noise()
        x, bad = at.noised(second, s, n), at.noised(first, s, n)
        wanted = weight(s, False, SDS) * ((at.noise_of(x, s, prior.plain(x, s, "positive")) - n) - (at.noise_of(bad, s, prior.plain(bad, s, "negative")) - n))
    torch.testing.assert_close(found, wanted)


@pytest.mark.method("LodestarIntervalScoreMatching", "LodestarTrajectoryScoreMatching")
@FLOWS
def test_matching_of_intervals(flow):
    model = mixture(flow)
    z = clean(model)
    given = dict(cfg=3.0, t_min=0.3, t_max=0.6)
    interval = pulled(made(Interval, **given), Toy(model), z, index=4)
    torch.testing.assert_close(pulled(made(Trajectory, gamma=1.0, **given), Toy(model), z, index=4), interval)
    assert not torch.allclose(pulled(made(Trajectory, gamma=0.3, **given), Toy(model), z, index=4), interval, rtol=1e-3)
    # no interval: the difference of the prompts alone
    prior = Toy(model)
    none = made(Interval, interval=0.0, first_interval=0.0, steps=0, weighting=UNIFORM, **given)
    at = moment(prior, z, 4)
    with torch.no_grad():
        found = none.pull(at).latent
        x, s, below = none.inverted(at, none.times(at)[1], 0)
        c = prior.plain(x, s, "positive")
        wanted = 3.0 * (at.noise_of(x, s, c) - at.noise_of(x, s, below))
    torch.testing.assert_close(found, wanted)
    # an inverse prompt whose denoiser is perfect makes it SDS with the noise of the way
    class Perfect(Toy):
        def plain(self, x, s, name):
            return self.z if name == "inverse" else super().plain(x, s, name)
    prior = Perfect(model)
    prior.z, guidance = z, made(Interval, inverse=object(), **given)
    at = moment(prior, z, 4)
    with torch.no_grad():
        found = guidance.pull(at).latent
        x_s, s, below = guidance.inverted(at, guidance.times(at)[1], 0)
        n, t = at.noise_of(x_s, s, z), prior.sigma(guidance.times(at)[0])
        x = at.noised(z, t, n)
        wanted = weight(t, flow, ISM) * (at.noise_of(x, t, prior.guided(x, t, 3.0)) - n)
    torch.testing.assert_close(found, wanted)


@pytest.mark.method("LodestarIntervalScoreMatching")
@FLOWS
def test_inversion_goes_back_to_the_picture(flow):
    """A way up of small steps, and the same way down, ends where it began."""
    model = gaussian(0.5, 0.3, (2, 4, 4), flow)
    prior, z = Toy(model, inverse=None), clean(model)
    off = []
    for n in (10, 80):
        guidance = made(Interval, stride=0.6 / n, steps=n, warm_up=0.0)
        at = moment(prior, z)
        with torch.no_grad():
            x, s, denoised = guidance.inverted(at, 0.6, 0)
            start = at.noised(z, prior.sigma(0.0), at.noise())
            for i in range(n, 0, -1):
                down = prior.sigma(0.6 * (i - 1) / n)
                x, s = at.move(x, s, down, denoised), down
                denoised = prior.plain(x, s, "negative")
        off.append(float((x - start).abs().mean()))
    assert off[1] < 0.4 * off[0]


@pytest.mark.method("LodestarIntervalScoreMatching", "LodestarTrajectoryScoreMatching")
def test_warm_up_and_cost():
    model = mixture()
    z = clean(model)
    guidance = made(Trajectory, cfg=3.0)
    prior = Toy(model)
    highest = [max(guidance.times(Moment(prior, z, i, 100, seed=k))[0] for k in range(40)) for i in (0, 15, 40)]
    assert highest[0] > 0.9 > 0.74 > highest[1] > highest[2] and highest[2] <= 0.5
    assert guidance.warm(moment(prior, z, 0, 100)) == 1 and guidance.warm(moment(prior, z, 15, 100)) == pytest.approx(0.5) and guidance.warm(moment(prior, z, 30, 100)) == 0
    times = guidance.times(moment(prior, z, 15, 100))
    assert times[0] - times[1] == pytest.approx(0.09) or times[1] == 0
    pulled(guidance, prior, z, index=9)
    names = [n for n, _ in prior.calls]
    assert names.count("positive") == 1 and 2 <= names.count("negative") <= 1 + 5 + 1 + 1


@pytest.mark.method("LodestarHybridDistillation", "LodestarScoreDistillation")
def test_hybrid_is_the_weighted_sum():
    model = mixture()
    z = clean(model)
    a, b = made(SDSGuidance, cfg=2.0), made(DSD, cfg=3.0)
    one = Hybrid(a=a, b=b, weight_a=2.0, weight_b=-0.5, same_noise=True).validate()
    sgd = dict(steps=1, rate=0.1, last_rate=1.0, optimiser="SGD")
    canvas = LatentCanvas(z)
    ScoreDistillation(guidance=one, **sgd).validate().run(canvas, [Toy(model), Toy(model, positive=(1,))])
    kept = dict(index=0, total=1)
    wanted = z - 0.1 * (2.0 * pulled(a, Toy(model), z, **kept) - 0.5 * pulled(b, Toy(model, positive=(1,)), z, **kept))
    torch.testing.assert_close(canvas.z, wanted.float(), atol=1e-5, rtol=1e-5)
    assert Hybrid(a=a, b=b, weight_b=0.0).parts() == a.parts()
    assert [n for _, _, n in Hybrid(a=one, b=a).parts()] == [0, 0, 1]
    # the same guidance against itself, with the same noise, is nothing; with its own noise it is not
    for same, nothing in ((True, True), (False, False)):
        canvas = LatentCanvas(z)
        ScoreDistillation(guidance=Hybrid(a=a, b=a, weight_b=-1.0, same_noise=same), **sgd).run(canvas, [Toy(model), Toy(model)])
        assert ((canvas.z - z.float()).abs().max() < 1e-6) == nothing
    with pytest.raises(BadInput, match="Hybrid Distillation.*b"):
        Hybrid(a=a, b=None).validate()


@pytest.mark.method("LodestarHybridDistillation")
def test_an_image_model_sees_the_frames_of_a_video():
    video = torch.arange(2 * 3 * 4 * 2 * 2.0).view(2, 3, 4, 2, 2)
    rows = frames_as_rows(video, 2)
    assert rows.shape == (8, 3, 2, 2) and torch.equal(rows[5], video[1, :, 1]) and frames_as_rows(video, 3) is video
    model = gaussian(0.5, 0.3, (2, 4, 4))
    canvas = LatentCanvas(torch.randn(1, 2, 3, 4, 4, generator=torch.Generator().manual_seed(0)))

    class Video(Toy):
        dimensions = 3

        def plain(self, x, s, name):
            assert x.shape == (1, 2, 3, 4, 4)
            return frames_as_rows(super().plain(frames_as_rows(x, 2), s, name)[None], 3).movedim(1, 2)
    method = ScoreDistillation(guidance=Hybrid(a=made(SDSGuidance, cfg=1.0, t_max=0.7), b=made(SDSGuidance, cfg=1.0, t_max=0.7)), steps=60, rate=0.1)
    method.run(canvas, [Toy(model), Video(model)])
    assert (canvas.z - 0.5).abs().mean() < 0.15


@frozen(eq=False)
class To(Loss):
    """Mean squared distance to a number."""

    goal: float = 2.0
    title = "to"

    def value(self, denoised, context):
        return (denoised - self.goal).flatten(1).square().mean(1)


@pytest.mark.method("LodestarScoreDistillation")
def test_losses_masks_clips_and_being_off():
    model = gaussian(0.5, 0.3, (2, 4, 4))
    guidance, z = made(SDSGuidance, cfg=1.0, sigmas=torch.tensor([0.5]), weighting=UNIFORM, draws=4), torch.zeros(1, 2, 4, 4)
    # the fixed point of a/s (1 - gain) (z - 0.5) + 2 weight (z - 2) = 0
    gain = 0.3 / (0.3 + 0.25)
    pull, weight_ = 2 * (1 - gain), 0.3
    canvas = LatentCanvas(z)
    ScoreDistillation(guidance=guidance, steps=80, rate=0.08, loss=To(), loss_weight=weight_).validate().run(canvas, [Toy(model)])
    assert float(canvas.z.detach().mean()) == pytest.approx((pull * 0.5 + 2 * weight_ * 2) / (pull + 2 * weight_), abs=0.06)
    mask = torch.zeros_like(z)
    mask[..., :2] = 1
    canvas = LatentCanvas(z, mask)
    ScoreDistillation(guidance=guidance, steps=10).run(canvas, [Toy(model)])
    assert canvas.z[..., 2:].abs().max() == 0 and canvas.z[..., :2].abs().min() > 0
    g = torch.tensor([[[[3.0, 0.1]], [[4.0, 0.2]]]])
    torch.testing.assert_close(clipped(g, 1.0), torch.tensor([[[[0.75, 0.1]], [[1.0, 0.2]]]]))
    assert clipped(g, 0.0) is g
    assert ScoreDistillation(guidance=guidance, steps=0).neutral() and ScoreDistillation(guidance=guidance, rate=0.0).neutral() and not ScoreDistillation(guidance=guidance).neutral()

    class Blind(To):
        differentiable = False
    with pytest.raises(BadInput, match="Score Distillation.*loss.*values only"):
        ScoreDistillation(guidance=guidance, loss=Blind()).validate()
    with pytest.raises(BadInput, match="Score Distillation.*guidance"):
        ScoreDistillation(guidance=object()).validate()
    with pytest.raises(BadInput, match="SDS Guidance.*t_min"):
        SDSGuidance(t_min=0.9, t_max=0.5).validate()
    with pytest.raises(BadInput, match="SDS Guidance.*sigmas"):
        SDSGuidance(sigmas=torch.zeros(3)).validate()
    with pytest.raises(ValueError, match="not finite"):
        ScoreDistillation(guidance=guidance, steps=1).run(LatentCanvas(z / 0), [Toy(model)])


@pytest.mark.method("LodestarSDSGuidance")
def test_given_levels_are_spread_over_the_iterations_and_noise_belongs_to_numbers():
    prior, z = Toy(mixture()), clean(mixture())
    guidance = made(SDSGuidance, sigmas=torch.tensor([3.0, 2.0, 1.0, 0.0]))
    assert [guidance.level(moment(prior, z, i, 6)) for i in range(6)] == [3, 3, 2, 2, 1, 1]
    assert torch.equal(drawn((2,), 1, 2), drawn((2,), 1, 2)) and not torch.equal(drawn((2,), 1, 2), drawn((2,), 2, 1))
    times = [made(SDSGuidance, t_min=0.2, t_max=0.4).time(moment(prior, z, i)) for i in range(50)]
    assert 0.2 <= min(times) < 0.24 and 0.36 < max(times) <= 0.4


@pytest.mark.method("LodestarDistilPictures")
def test_pictures_move_through_the_encoder_within_their_range():
    """encode(u) = (2 u - 1, first channel again): the gradient of u is J^T g."""
    model = gaussian(0.4, 0.3, (4, 4, 4))
    guidance = made(SDSGuidance, cfg=1.0, t_max=0.6)
    u = torch.full((2, 3, 4, 4), 0.2)
    canvas = PictureCanvas(u)
    sgd = dict(steps=1, rate=0.1, last_rate=1.0, optimiser="SGD")
    DistilPictures(guidance=guidance, **sgd).validate().run(canvas, [Toy(model)])
    g = pulled(guidance, Toy(model), Toy(model).encode(u), index=0, total=1)
    wanted = u - 0.1 * 2 * (g[:, :3] + torch.cat((g[:, 3:], torch.zeros(2, 2, 4, 4)), 1))
    torch.testing.assert_close(canvas.u, wanted.clamp(0, 1), atol=1e-5, rtol=1e-5)
    mask = torch.zeros(1, 1, 4, 4)
    mask[..., 0] = 1
    canvas = PictureCanvas(u, mask)
    DistilPictures(guidance=guidance, steps=60, rate=0.03).run(canvas, [Toy(model)])
    assert (canvas.u[..., 0] - 0.7).abs().max() < 0.2 and torch.equal(canvas.u[..., 1:], u[..., 1:]) and canvas.entries(2) == (0, 1) and canvas.entries(1) == (0,)


@pytest.mark.method("LodestarCompositeDistillation")
def test_composites_are_drawn_where_they_should_be():
    thing = torch.rand(1, 3, 6, 4, generator=torch.Generator().manual_seed(0))
    one = lambda v: torch.tensor([float(v)])
    exact = placed(thing, one(0.5), one(0.5), one(1), one(0), 10, 8)
    torch.testing.assert_close(exact[..., 2:8, 2:6], thing)
    assert exact[..., :2, :].abs().max() < 1e-5
    torch.testing.assert_close(placed(thing, one(0.75), one(0.5), one(1), one(0), 10, 8)[..., 2:8, 4:8], thing)
    quarter = placed(thing, one(0.5), one(0.5), one(1), one(math.pi / 2), 8, 8)      # clockwise: the left column is on top
    torch.testing.assert_close(quarter[..., 2:6, 1:7], thing.rot90(-1, (2, 3)), atol=1e-5, rtol=1e-5)
    assert float(placed(torch.ones(1, 1, 6, 6), one(0.5), one(0.5), one(2), one(0), 20, 20).sum()) == pytest.approx(144, rel=0.02)
    u = torch.linspace(-0.2, 1.2, 30).view(1, 1, 1, -1).expand(2, 3, 1, -1)
    torch.testing.assert_close(toned(u, torch.zeros(2, KNOTS - 1)), u, atol=1e-6, rtol=1e-5)
    bent = toned(u, torch.randn(2, KNOTS - 1, generator=torch.Generator().manual_seed(1)))
    assert (bent[..., 1:] > bent[..., :-1]).all()


@pytest.mark.method("LodestarCompositeDistillation")
def test_a_composite_without_iterations_is_plain_and_its_colour_is_found():
    """The prior's mean is a red field on black: the gain of a gray object is recovered, its place with it."""
    wanted = torch.zeros(3, 12, 12)
    wanted[0, 6:10, 5:9] = 0.9
    model = gaussian(shape=(4, 12, 12), variance=0.05)
    model.means = Toy(model).encode(wanted[None]).double()
    thing, cover, ground = torch.full((1, 3, 4, 4), 0.5), torch.ones(1, 1, 4, 4), torch.zeros(1, 3, 12, 12)
    method = CompositeDistillation(guidance=made(SDSGuidance, cfg=1.0, t_max=0.4), x=0.5, y=0.5, steps=120, rate=0.06, size_rate=0.0, place_rate=0.2).validate()
    canvas = method.canvas(thing, cover, ground)
    plain = canvas.picture()
    torch.testing.assert_close(plain.detach()[..., 4:8, 4:8], thing)
    assert float(plain.detach().sum()) == pytest.approx(float(thing.sum()), rel=1e-4)
    method.run(canvas, [Toy(model)])
    found, = canvas.told()
    assert found["x"] == pytest.approx(7 / 12, abs=0.03) and found["y"] == pytest.approx(8 / 12, abs=0.03)
    assert found["gain"][0] == pytest.approx(1.8, abs=0.25) and max(found["gain"][1:]) < 0.3 and found["size"] == pytest.approx(1.0) and found["rotation"] == 0.0
    assert dataclasses.replace(method, place_rate=0.0, colour_rate=0.0).neutral() and not method.neutral()
