"""Losses of frames, Frame Guidance, scene-grounding guidance and observation self-guidance, against their formulas on closed-form models and a toy video decoder."""
from __future__ import annotations

import dataclasses

import pytest
import torch
from lodestar.guidance.inverse import levels
from lodestar.guidance.frozen import frozen
from lodestar.guidance.inverse.levels import noise_source
from lodestar.guidance.inverse.solver import at
from lodestar.guidance.loss.base import Loss, LossContext
from lodestar.guidance.loss.flow import Flow
from lodestar.guidance.loss.frames import FrameConsistency, FrameLoss, ReferenceSequence, parse_frames, pictures, place, similarity
from lodestar.guidance.loss.quantile import Quantile
from lodestar.guidance.loss.solvers.frame import FrameGuidance
from lodestar.guidance.loss.solvers.observation import ObservationSelfGuidance
from lodestar.guidance.loss.solvers.reference import ReferenceSequenceGuidance, frame_by_frame
from lodestar.guidance.loss.target import TargetImage
from lodestar.guidance.loss.wavelet import WaveletTarget
from lodestar.guidance.method import BadInput
from lodestar.nodes.frames import _frames
from lodestar.tests.toys import euler, gaussian, mixture, state
from lodestar.tests.toys import levels as schedule

FLOWS = pytest.mark.parametrize("flow", [False, True], ids=("k", "flow"))
FRAME, REFERENCE, OBSERVED = pytest.mark.method("LodestarFrameGuidance"), pytest.mark.method("LodestarReferenceSequenceGuidance"), pytest.mark.method("LodestarObservationSelfGuidance")
RATIO = 4


def causal(z):
    """A toy video decoder: the first latent is a picture, each later one four, of itself and a little of the latent before; [b, c, t, h, w] -> [b * frames, 3, 2h, 2w]."""
    first, rest = z[:, :3, :1], z[:, :3, 1:]
    before = z[:, :3, :-1]
    shares = torch.linspace(0.3, 0.0, RATIO, dtype=z.dtype).view(1, 1, 1, RATIO, 1, 1)
    later = (rest[:, :, :, None] * (1 - shares) + before[:, :, :, None] * shares).flatten(2, 3)
    out = torch.cat((first, later), 2).movedim(2, 1).flatten(0, 1)
    return out.repeat_interleave(2, 2).repeat_interleave(2, 3)


def video(seed=0, frames=4, batch=2):
    return torch.rand(batch, 4, frames, 4, 4, generator=torch.Generator().manual_seed(seed))


@FRAME
def test_frames_have_their_places():
    assert parse_frames("0, 8;-1", "n") == (0, 8, -1) and parse_frames("-1,0", "n", 9) == (8, 0)
    assert [place(i, 4) for i in (0, 1, 4, 5)] == [(0, 0), (1, 0), (1, 3), (2, 0)] and place(3, 1) == (3, 0) and pictures(4, 4) == 13
    for text, count in (("", None), ("a", None), ("9", 9)):
        with pytest.raises(BadInput, match="frames"):
            parse_frames(text, "n", count)


@FRAME
@pytest.mark.parametrize("frame", (0, 1, 4, 6, 12))
def test_a_slice_shows_a_frame_as_the_whole_video_does(frame):
    z, whole = video(), causal(video()).unflatten(0, (2, 13))
    y = torch.rand(1, 3, 8, 8, generator=torch.Generator().manual_seed(2))
    loss = FrameLoss(TargetImage(target=y, space="rgb", decoder=causal), str(frame), "video", RATIO, 2, 1.0).check()
    wanted = (whole[:, frame] - y).square().flatten(1).sum(1)
    torch.testing.assert_close(loss.value(z, LossContext()), wanted)
    leaf = z.clone().requires_grad_()
    g, = torch.autograd.grad(loss.value(leaf, LossContext()).sum(), leaf)
    touched = g.flatten(3).abs().sum((0, 1, 3)) > 0
    j = place(frame, RATIO)[0]
    assert touched[j] and not touched[j + 1:].any() and not touched[:max(0, j - 1)].any()


@FRAME
def test_each_key_frame_has_its_picture_and_smaller_decoding_a_smaller_target():
    z, whole = video(), causal(video()).unflatten(0, (2, 13))
    y = torch.rand(2, 3, 8, 8, generator=torch.Generator().manual_seed(2))
    both = FrameLoss(TargetImage(target=y, space="rgb", decoder=causal), "0, -1", "video", RATIO, 2, 1.0).check()
    wanted = sum((whole[:, i] - y[n]).square().flatten(1).sum(1) for n, i in enumerate((0, 12)))
    torch.testing.assert_close(both.value(z, LossContext()), wanted)
    small = dataclasses.replace(both, shrink=0.5, part=WaveletTarget(target=y, decoder=causal))
    assert small.value(z, LossContext()).shape == (2,)
    latent = FrameLoss(TargetImage(target=z[:1, :, 2]), "5", "video", RATIO)
    assert float(latent.value(z[:1], LossContext())) == 0 and float(latent.value(z, LossContext())[1]) > 0
    entries = FrameLoss(TargetImage(target=torch.zeros(2, 4, 4, 4)), "0, 2", "batch").value(z[:, :, :2].movedim(2, 1).flatten(0, 1), LossContext())
    assert (entries[[0, 2]] > 0).all() and not entries[[1, 3]].any()
    with pytest.raises(BadInput, match="as many frames"):
        dataclasses.replace(both, frames="0, 1, 2").check()
    with pytest.raises(BadInput, match="no video"):
        both.value(z[:, :, 0], LossContext())
    with pytest.raises(BadInput, match="combine them behind"):
        _frames(both + both, "0", "video", 4, 2, 0.5)


@FRAME
def test_consistency_of_frames():
    z = video(frames=3)
    same = z[:, :, :1].expand(-1, -1, 3, -1, -1)
    for kind in ("pixels", "features"):
        for pairs in ("neighbours", "neighbours and ends", "ends"):
            loss = FrameConsistency(kind=kind, pairs=pairs, space="latent").check()
            assert loss.value(same, LossContext()).abs().max() < 1e-5 and (loss.value(z, LossContext()) > 1e-3).all()
            assert not loss.value(z[:, :, :1], LossContext()).any()
            torch.testing.assert_close(loss.value(z[:1], LossContext()), loss.value(z, LossContext())[:1])
            rows = z[0].movedim(1, 0)
            over = dataclasses.replace(loss, over="batch").value(rows, LossContext())
            torch.testing.assert_close(over.sum(), loss.value(z[:1], LossContext())[0])
    ends = FrameConsistency(pairs="ends", space="latent").value(z, LossContext())
    torch.testing.assert_close(ends, (z[:, :, 0] - z[:, :, 2]).square().flatten(1).mean(1))
    u = torch.rand(1, 3, 8, 8, generator=torch.Generator().manual_seed(4))
    moved = torch.cat((u, u.roll(2, 3), u.roll(4, 3)))
    vectors = torch.zeros(1, 2, 8, 8)
    vectors[:, 0] = 2.0
    along = FrameConsistency(kind="flow", flow=Flow(vectors), over="batch", decoder=lambda z: z).check()
    assert along.value(moved, LossContext()).sum() < 1e-5 < 0.01 < along.value(u.expand(3, -1, -1, -1), LossContext()).sum()
    with pytest.raises(BadInput, match="flow"):
        FrameConsistency(kind="flow").check()


@REFERENCE
def test_frame_by_frame_is_the_full_gradient_and_masks_count():
    z = video(frames=3, batch=1)
    per_frame = lambda t: t[:, :3].movedim(2, 1).flatten(0, 1)      # a decoder that sees one frame at a time
    y, mask = torch.rand(3, 3, 4, 4, generator=torch.Generator().manual_seed(2)), torch.ones(3, 4, 4)
    mask[1] = 0
    mask[2, :, :2] = 0
    loss = ReferenceSequence(target=y, mask=mask, structure=0.3, decoder=per_frame).check()
    leaf = z.clone().requires_grad_()
    whole, = torch.autograd.grad(loss.value(leaf, LossContext()).sum(), leaf)
    surrogate = frame_by_frame(lambda t, i: loss.part(t, i, 3, LossContext()), leaf, 3)
    parts, = torch.autograd.grad(surrogate.sum(), leaf)
    torch.testing.assert_close(parts, whole)
    assert not whole[:, :, 1].any() and whole[:, :, 0].abs().max() > 0
    wanted = 0.5 * (z[:, :3, 0] - y[:1]).square().sum((1, 2, 3)) / 16
    torch.testing.assert_close(dataclasses.replace(loss, structure=0.0, mask=torch.stack((torch.ones(4, 4), torch.zeros(4, 4), torch.zeros(4, 4)))).value(z, LossContext()), wanted)
    torch.testing.assert_close(similarity(y, y), torch.ones_like(y))


@OBSERVED
def test_the_quantile_loss_is_the_pinball_loss():
    y = torch.full((1, 1, 2, 2), 0.5)
    u = torch.tensor([0.2, 0.9, 0.9]).view(3, 1, 1, 1).expand(3, 1, 2, 2)
    found = Quantile(target=y, decoder=lambda z: z).value(u, LossContext())
    torch.testing.assert_close(found, torch.tensor([4 * 0.25 * 0.3, 4 * 0.5 * 0.4, 4 * 0.25 * 0.4]))
    torch.testing.assert_close(Quantile(target=y, decoder=lambda z: z).value(u[:1], LossContext()), torch.tensor([4 * 0.15]))      # alone: half the absolute error
    torch.testing.assert_close(Quantile(target=y, decoder=lambda z: z, spread=0.0, total=False).value(u, LossContext()), torch.tensor([0.15, 0.2, 0.2]))
    half = torch.tensor([[[1.0, 1.0], [0.0, 0.0]]])
    torch.testing.assert_close(Quantile(target=y, decoder=lambda z: z, mask=half).value(u[:1], LossContext()), torch.tensor([2 * 0.15]))


@frozen(eq=False)
class Quadratic(Loss):
    factor: float = 1.0
    title = "quadratic"

    def value(self, denoised, context):
        return 0.5 * self.factor * (denoised - 1).flatten(1).square().sum(1)


def run(method, model, x, sigmas, flow=False, seed=0, gap=None):
    problem = method.problem(sigmas, flow)
    problem.gap = gap
    return method.run(model, x, sigmas, problem, flow, noise_source(x, seed), None, lambda checkpoint=False: torch.enable_grad())


def point(model, x, sigmas, i, flow, problem):
    return at(model, x, sigmas, i, problem, flow, noise_source(x, 0), lambda checkpoint=False: torch.enable_grad())


GAP = lambda x: torch.full_like(x, 0.01)
ALL = {"frame": (FrameGuidance(loss=Quadratic(), rate=0.2), {"rounds": 0}, FRAME), "reference": (ReferenceSequenceGuidance(loss=Quadratic(), rho=0.5), {"rho": 0.0, "eta": 0.0}, REFERENCE),
       "observed": (ObservationSelfGuidance(loss=Quadratic(), scale=0.5, form="DDIM"), {"scale": 0.0}, OBSERVED)}


@pytest.mark.parametrize("name", [pytest.param(n, marks=mark) for n, (_, _, mark) in ALL.items()])
@FLOWS
def test_off_is_plain_batches_are_singles_and_the_loss_falls(name, flow):
    model = mixture(flow, (3, 4, 4))
    sigmas = schedule(flow, 6)
    x = state(model, 2, float(sigmas[0]))
    method, off, _ = ALL[name]
    out = run(method, model, x, sigmas, flow, gap=GAP(x))
    torch.testing.assert_close(run(method, model, x[:1], sigmas, flow, gap=GAP(x[:1])), out[:1])
    plain = euler(x, sigmas, model)
    torch.testing.assert_close(run(dataclasses.replace(method, **off), model, x, sigmas, flow), plain, rtol=0, atol=1e-9)
    loss = lambda z: Quadratic().value(z, None)
    base = run(dataclasses.replace(method, rho=1e-9), model, x, sigmas, flow, gap=GAP(x)) if name == "reference" else plain      # with the same noise
    assert (loss(out) < loss(base)).all()


@FRAME
@FLOWS
def test_frame_guidance_is_its_formula(flow):
    model = gaussian(shape=(3, 4, 4), flow=flow)
    sigmas = schedule(flow, 8)
    x = state(model, 2, float(sigmas[0]))
    method = FrameGuidance(loss=Quadratic(), rate=0.1, rounds=1, travel_start=0.3, travel_end=0.5, end_percent=0.6)
    for i in (1, 3, 7):
        y = state(model, 2, float(sigmas[i]))
        s = sigmas[i] * torch.ones(2, dtype=x.dtype)
        p = point(model, y, sigmas, i, flow, method.problem(sigmas, flow))
        z = noise_source(y, 0)()
        leaf = y.clone().requires_grad_()
        denoised = model(leaf, s)
        g, = torch.autograd.grad(-Quadratic().value(denoised, None).sum(), leaf)
        move = 0.1 * levels.amplitude(p.s, flow) * g / g.square().mean((1, 2, 3), keepdim=True).sqrt()
        moved = {1: y + move, 3: p.a * denoised.detach() + p.s * z + move, 7: y}[i]
        d = model(moved, s)
        torch.testing.assert_close(method.advance(p), p.a_next * d + p.s_next * (moved - p.a * d) / p.s)
    still = FrameGuidance(loss=Quadratic(), rate=0.0, travel_start=0.0, travel_end=0.0)
    assert still.neutral() and not FrameGuidance(loss=Quadratic(), rate=0.0).neutral()
    # renewing the noise alone keeps the distribution: means of 400 samples at the end
    many = state(model, 400, float(sigmas[0]))
    renewed = run(dataclasses.replace(method, rate=0.0, travel_start=0.0, travel_end=1.0, end_percent=1.0), model, many, sigmas, flow)
    assert abs(float(renewed.mean()) - 0.5) < 0.05 and renewed.shape == many.shape


@REFERENCE
@FLOWS
def test_the_move_is_a_share_of_the_prompts(flow):
    model = gaussian(shape=(3, 4, 4), flow=flow)
    sigmas = schedule(flow, 6)
    x = state(model, 2, float(sigmas[2]))
    gap = torch.randn(2, 3, 4, 4, dtype=x.dtype, generator=torch.Generator().manual_seed(5))
    found = []
    for factor in (1.0, 40.0):
        method = ReferenceSequenceGuidance(loss=Quadratic(factor), rho=0.2, eta=0.0)
        problem = method.problem(sigmas, flow)
        problem.gap = gap
        p = point(model, x, sigmas, 2, flow, problem)
        found.append(method.advance(p))
        d = p.predict()
        shift = found[-1] - p.go(d, p.noise_of(d))
        wanted = 0.2 * levels.amplitude(p.s_next, flow) * (p.a / p.s) * gap.square().mean((1, 2, 3)).sqrt()
        torch.testing.assert_close(shift.square().mean((1, 2, 3)).sqrt(), wanted, rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(*found, rtol=1e-4, atol=1e-5)
    method = ReferenceSequenceGuidance(loss=Quadratic(), eta=0.0)
    torch.testing.assert_close(run(method, model, x, sigmas[2:], flow), euler(x, sigmas[2:], model), rtol=0, atol=1e-9)      # no difference of prompts


@REFERENCE
def test_a_video_is_led_frame_by_frame_with_the_same_numbers():
    model = mixture(False, (4, 3, 4, 4), dtype=torch.float32)
    sigmas = schedule(False, 4).float()
    x = state(model, 1, float(sigmas[0]))
    per_frame = lambda t: t[:, :3].movedim(2, 1).flatten(0, 1)
    y = torch.rand(3, 3, 4, 4, generator=torch.Generator().manual_seed(2))
    loss = ReferenceSequence(target=y, decoder=per_frame)

    class Whole(Loss):      # the same loss without its parts
        def value(self, denoised, context):
            return loss.value(denoised, context)
    out = [run(ReferenceSequenceGuidance(loss=l), model, x, sigmas, gap=GAP(x)) for l in (loss, Whole())]
    torch.testing.assert_close(*out, rtol=1e-4, atol=1e-4)


@OBSERVED
@FLOWS
def test_observation_guidance_is_its_formula(flow):
    model = gaussian(shape=(3, 4, 4), flow=flow)
    sigmas = schedule(flow, 6)
    x = state(model, 2, float(sigmas[2]))
    method = ObservationSelfGuidance(loss=Quadratic(), scale=0.7)
    p = point(model, x, sigmas, 2, flow, method.problem(sigmas, flow))
    moved = method.advance(p)
    q = point(model, x, sigmas, 2, flow, None)
    d = q.predict()
    y = q.go(d, q.noise_of(d), 1.0)
    c, c_next = levels.amplitude(p.s, flow), levels.amplitude(p.s_next, flow)
    up = levels.ancestral(p.s, p.s_next, 1.0, flow)[1]
    v = (y / c_next).requires_grad_()      # the paper's coordinates: its variance is (up / c')^2
    g, = torch.autograd.grad(-Quadratic().value(model(c * v, sigmas[2] * torch.ones(2, dtype=x.dtype)), None).sum(), v)
    torch.testing.assert_close(moved, c_next * (v.detach() + 0.7 * (up / c_next) ** 2 * g))
    last = point(model, x, sigmas, 5, flow, method.problem(sigmas, flow))
    torch.testing.assert_close(method.advance(last), last.go(last.predict(), last.noise_of(last.seen)))      # no noise, no step


@OBSERVED
def test_a_batch_spreads_over_the_posterior():
    """Half of the values are observed up to the prior's spread: with quantiles the batch keeps more of its spread there than with the middle alone."""
    model = gaussian(0.0, 1.0, (1, 4, 4))
    sigmas = schedule(False, 12)
    x = state(model, 16, float(sigmas[0]))
    y = torch.full((1, 1, 4, 4), 1.0, dtype=x.dtype)
    made = {spread: run(ObservationSelfGuidance(loss=Quantile(target=y, spread=spread, decoder=lambda z: z), scale=4.0), model, x, sigmas) for spread in (0.0, 1.0)}
    means = {k: v.flatten(1).mean(1) for k, v in made.items()}
    assert 0.5 < float(means[0.0].mean()) < 1.2 and float(means[1.0].std()) > float(means[0.0].std())
    assert float(torch.corrcoef(torch.stack((means[1.0], torch.arange(16, dtype=x.dtype))))[0, 1]) > 0.8      # in the order of their quantiles
