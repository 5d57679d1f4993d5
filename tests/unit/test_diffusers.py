"""The perturbation methods, APG and CFG beside diffusers' own code, on random tensors. Results and deviations in words: docs/references.md.

./scripts/test fetches diffusers (scripts/requirements/reference.txt) and names its folder in LODESTAR_REFERENCE; without it, an installed one is taken.
Where diffusers differs from us, the test holds both sides down: what diffusers does, and what the paper's formula gives."""
import dataclasses
import importlib.util
import math
import os
import sys
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F

from lodestar.guidance import engine
from lodestar.guidance.attention.blocks import BlockSite, SkipBlock
from lodestar.guidance.attention.edits import Site, apply_rows
from lodestar.guidance.attention.freeu import Reweight
from lodestar.guidance.attention.nag import normalised
from lodestar.guidance.method import NEGATIVE, POSITIVE, Step
from lodestar.guidance.perturbation.pag import IdentitySelfAttention, PerturbedAttentionGuidance
from lodestar.guidance.perturbation.seg import INFINITE, SmoothedEnergyGuidance, SmoothQueries, smoothed
from lodestar.guidance.perturbation.slg import SkipLayerGuidance
from lodestar.guidance.rules.apg import AdaptiveProjectedGuidance

if os.environ.get("LODESTAR_REFERENCE"):
    sys.path.append(os.environ["LODESTAR_REFERENCE"])
elif importlib.util.find_spec("diffusers") is None:
    pytest.skip("diffusers is not here: ./scripts/test fetches it and sets LODESTAR_REFERENCE", allow_module_level=True)

from diffusers import guiders  # noqa: E402
from diffusers.guiders import adaptive_projected_guidance  # noqa: E402
from diffusers.hooks import layer_skip, smoothed_energy_guidance_utils as energy  # noqa: E402
from diffusers.hooks._helpers import TransformerBlockMetadata  # noqa: E402
from diffusers.models import attention_processor as processors  # noqa: E402
from diffusers.models.attention import JointTransformerBlock  # noqa: E402
from diffusers.pipelines.pag.pag_utils import PAGMixin  # noqa: E402
from diffusers.utils import logging, torch_utils  # noqa: E402

logging.set_verbosity_error()      # "Guiders are currently an experimental feature"
PAG = pytest.mark.method("LodestarPerturbedAttentionGuidance")
SEG = pytest.mark.method("LodestarSmoothedEnergyGuidance")
SLG = pytest.mark.method("LodestarSkipLayerGuidance")
APG = pytest.mark.method("LodestarAdaptiveProjectedGuidance")
HEADS, DIM = 2, 8
attend = F.scaled_dot_product_attention
close = torch.testing.assert_close


def random(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def layer(processor, joint=False, **settings):
    """An attention layer of diffusers with random weights."""
    torch.manual_seed(0)
    more = {"added_kv_proj_dim": HEADS * DIM, "context_pre_only": False} if joint else {}
    return processors.Attention(HEADS * DIM, heads=HEADS, dim_head=DIM, bias=True, processor=processor, **more, **settings).eval()


def split(t):
    return t.unflatten(-1, (HEADS, DIM)).transpose(1, 2)


def projected(attn, image, text=None):
    """q, k, v [rows, heads, tokens, dim] of the layer, the picture's tokens first."""
    parts = [[p(image)] for p in (attn.to_q, attn.to_k, attn.to_v)]
    if text is not None:
        for part, p in zip(parts, (attn.add_q_proj, attn.add_k_proj, attn.add_v_proj)):
            part.append(p(text))
    return [split(torch.cat(p, 1)) for p in parts]


def out_of(attn, heads):
    return attn.to_out[0](heads.transpose(1, 2).flatten(2))


def with_edit(edit, site, q, k, v, plain):
    """Rows of which the last are edited and the first `plain` are not, as the engine runs a batch."""
    return apply_rows([(0, plain, ()), (plain, q.shape[0], (edit,))], q, k, v, lambda q, k, v, start, stop: attend(q, k, v), site)


# The attention of PAG

@PAG
@pytest.mark.parametrize("processor,parts", (("PAGIdentitySelfAttnProcessor2_0", 2), ("PAGCFGIdentitySelfAttnProcessor2_0", 3)))
@torch.no_grad()
def test_identity_attention_as_in_diffusers(processor, parts):
    attn, x = layer(getattr(processors, processor)()), random(2 * parts, 9, HEADS * DIM)
    q, k, v = projected(attn, x)
    mine = out_of(attn, with_edit(IdentitySelfAttention("middle"), Site("self", None, 3, 3), q, k, v, 2 * (parts - 1)))
    close(mine, attn(x))


@PAG
@pytest.mark.parametrize("processor,parts", (("PAGJointAttnProcessor2_0", 2), ("PAGCFGJointAttnProcessor2_0", 3)))
@torch.no_grad()
def test_identity_in_joint_attention_as_in_diffusers(processor, parts):
    attn, x, text = layer(getattr(processors, processor)(), joint=True), random(2 * parts, 9, HEADS * DIM), random(2 * parts, 4, HEADS * DIM, seed=1)
    q, k, v = projected(attn, x, text)
    site = Site("joint", None, 3, 3, slice(9, 13), slice(0, 9))
    out = with_edit(IdentitySelfAttention("middle"), site, q, k, v, 2 * (parts - 1)).transpose(1, 2).flatten(2)
    image, words = attn(x, encoder_hidden_states=text)
    close(attn.to_out[0](out[:, :9]), image)
    close(attn.to_add_out(out[:, 9:]), words)


@PAG
def test_diffusers_guider_switches_off_the_texts_attention_too():
    """Its hook gives back V for every token, so in joint attention the text sees nothing and the picture no text ("does not account for joint latent
    conditioning", its source says). Ours is that of diffusers' own SD3 pipeline: the picture-to-picture block alone."""
    q, k, v = (random(2, HEADS, 13, DIM, seed=i) for i in range(3))
    with layer_skip.AttentionScoreSkipFunctionMode():
        theirs = F.scaled_dot_product_attention(q, k, v)
    assert torch.equal(theirs, v)
    assert torch.equal(IdentitySelfAttention().apply(Site("self", None), q, k, v, attend), theirs)
    mine = IdentitySelfAttention().apply(Site("joint", None, 3, 3, slice(9, 13), slice(0, 9)), q, k, v, attend)
    close(mine[:, :, 9:], attend(q, k, v)[:, :, 9:])
    assert (mine - theirs)[:, :, :9].abs().max() > 0.1 and (mine - theirs)[:, :, 9:].abs().max() > 0.1


# The blur of SEG

def gaussian(query, sigma):
    """diffusers' Gaussian blur of [rows, tokens, channels]. Its two branches are exchanged (see below): a threshold below sigma leads to the Gaussian."""
    size = math.ceil(6 * sigma) + 1 - math.ceil(6 * sigma) % 2
    return energy._gaussian_blur_2d(query.clone(), size, sigma, -1.0)


@SEG
@pytest.mark.parametrize("side", (2, 7, 8))
@pytest.mark.parametrize("sigma", (0.5, 1.0, 3.0, 50.0))
def test_blurred_queries_as_in_diffusers(side, sigma):
    q = random(2, side * side, HEADS * DIM)
    close(smoothed(split(q), side, side, sigma), split(gaussian(q, sigma)))


@SEG
def test_infinite_blur_and_the_exchanged_cases_of_diffusers():
    """The mean query is the same. But diffusers takes the mean for every finite sigma and the Gaussian for infinite ones: `if is_inf` where the authors'
    code has `if not`. The paper: sigma to infinity is the mean."""
    q = random(2, 49, HEADS * DIM)
    mean = energy._gaussian_blur_2d(q.clone(), 7, 1.0, 9999.9)
    close(smoothed(split(q), 7, 7, INFINITE), split(mean))
    theirs = energy.SmoothedEnergyGuidanceHook(1.0).post_forward(None, q.clone())
    assert torch.equal(theirs, mean) and (theirs - gaussian(q, 1.0)).abs().max() > 0.1
    wide = energy.SmoothedEnergyGuidanceHook(1e4).post_forward(None, q.clone())      # "infinite": a 7 x 7 box with mirrored borders
    assert (wide - mean).abs().max() > 0.1


@SEG
@pytest.mark.parametrize("norm", (None, "rms_norm"))
@torch.no_grad()
def test_blurred_attention_as_in_diffusers(norm):
    """diffusers blurs what the query projection returns, we what attention is given. Where the queries are normalised between the two (SD3.5, Flux) only the
    latter is the paper's blur of the logits."""
    attn, x = layer(processors.AttnProcessor2_0(), qk_norm=norm), random(2, 49, HEADS * DIM)
    if norm:
        attn.norm_q.weight.copy_(random(DIM, seed=3).abs() + 0.5)
    q, k, v = projected(attn, x)
    if norm:
        q, k = attn.norm_q(q), attn.norm_k(k)
    mine = out_of(attn, SmoothQueries("middle", 1.5).apply(Site("self", None, 7, 7), q, k, v, attend))
    handle = attn.to_q.register_forward_hook(lambda module, given, made: gaussian(made, 1.5))
    theirs = attn(x)
    handle.remove()
    if norm is None:
        close(mine, theirs)
        return
    logits = (q @ k.transpose(-1, -2)).movedim(3, 2).flatten(1, 2)      # each key's logits are one picture of the queries
    blurred = gaussian(logits.transpose(1, 2), 1.5).transpose(1, 2).unflatten(1, (HEADS, 49)).movedim(2, 3)
    close(mine, out_of(attn, (blurred * DIM ** -0.5).softmax(-1) @ v), rtol=1e-4, atol=1e-5)
    assert (mine - theirs).abs().max() > 1e-3


@SEG
def test_diffusers_guider_never_blurs():
    """Its prepare_models does not count its calls, which the others do, so the condition under which it places its hooks is never met: the third prediction
    is the conditional one again."""
    pair = guiders.SmoothedEnergyGuidance(seg_guidance_layers=[0]), guiders.PerturbedAttentionGuidance(perturbed_guidance_layers=[0])
    for guider, hooked in zip(pair, (0, 1)):
        placed = []
        names = ("_apply_smoothed_energy_guidance_hook", "_apply_layer_skip_hook")
        with pytest.MonkeyPatch.context() as patch:
            for name in names:
                patch.setattr(sys.modules[type(guider).__module__], name, lambda *args, **kwargs: placed.append(args), raising=False)
            guider.set_state(step=2, num_inference_steps=20, timestep=None)
            for _ in range(guider.num_conditions):
                guider.prepare_models(torch.nn.Identity())
        assert guider.num_conditions == 3 and len(placed) == hooked


# The skipped block of SLG

@SLG
@torch.no_grad()
def test_a_skipped_block_as_in_diffusers():
    """As diffusers' SD3 network with skip_layers: the loop goes on with what it had. Its guider's hook gives back the two streams the other way round than
    JointTransformerBlock does, and the network then takes the picture for the text."""
    torch.manual_seed(0)
    blocks = [JointTransformerBlock(HEADS * DIM, HEADS, DIM).eval() for _ in range(3)]
    image, text, time = random(2, 9, HEADS * DIM), random(2, 4, HEADS * DIM, seed=1), random(2, HEADS * DIM, seed=2)
    left_out = {"image": image, "text": text}
    for i, block in enumerate(blocks):      # SD3Transformer2DModel.forward
        if i != 1:
            left_out["text"], left_out["image"] = block(hidden_states=left_out["image"], encoder_hidden_states=left_out["text"], temb=time)
    mine, skip = {"image": image, "text": text}, SkipBlock("double.1")
    for i, block in enumerate(blocks):
        words, picture = block(hidden_states=mine["image"], encoder_hidden_states=mine["text"], temb=time)
        made = {"image": picture, "text": words}
        mine = skip.leave(BlockSite(None), mine, made) if i == 1 else made
    assert torch.equal(mine["image"], left_out["image"]) and torch.equal(mine["text"], left_out["text"])

    hook = layer_skip.TransformerBlockSkipHook(1.0)
    hook._metadata = TransformerBlockMetadata(1, 0, _cls=JointTransformerBlock)      # as registered: the block returns the text first
    words, picture = hook.new_forward(blocks[1], hidden_states=image, encoder_hidden_states=text, temb=time)
    assert torch.equal(words, image) and torch.equal(picture, text)


# How predictions are joined

def guided(method, w, predictions):
    """The engine's prediction from given network predictions."""
    def evaluate(branches, x, sigma):
        return {b: predictions[b] for b in branches}
    run = engine.Run(engine.Pipeline((method,) if method else ()), percent_to_sigma=lambda p: 1.0 - p)
    x = predictions[POSITIVE]
    return engine.predict(run, x, torch.full((x.shape[0],), 0.9), w, evaluate)


ALWAYS = {"start_percent": 0.0, "end_percent": 1.0}
PUSHES = (pytest.param(PerturbedAttentionGuidance(scale=2.8), lambda **k: guiders.PerturbedAttentionGuidance(perturbed_guidance_layers=[0], **k),
                       "perturbed_guidance_scale", id="pag"),
          pytest.param(SmoothedEnergyGuidance(scale=2.8), lambda **k: guiders.SmoothedEnergyGuidance(seg_guidance_layers=[0], **k),
                       "seg_guidance_scale", id="seg"),
          pytest.param(SkipLayerGuidance(scale=2.8, **ALWAYS), lambda **k: guiders.SkipLayerGuidance(skip_layer_guidance_layers=[0], **k),
                       "skip_layer_guidance_scale", id="slg"))


@PAG
@SEG
@SLG
@pytest.mark.parametrize("rescale", (0.0, 0.7))
@pytest.mark.parametrize("method,make,scale", PUSHES)
def test_the_push_as_in_diffusers(method, make, scale, rescale):
    c, u, worse = (random(2, 4, 6, 5, seed=i) for i in range(3))
    method = dataclasses.replace(method, rescale=rescale)
    predictions = {POSITIVE: c, NEGATIVE: u, method.branch: worse}
    theirs = make(guidance_scale=6.0, guidance_rescale=rescale, **{scale: 2.8}).forward(c, u, worse).pred
    close(guided(method, 6.0, predictions), theirs)
    # without CFG their scale counts from the degraded prediction, ours from the conditional one, as in the papers: one more is the same
    theirs = make(guidance_scale=1.0, guidance_rescale=rescale, **{scale: 3.8}).forward(c, None, worse).pred
    close(guided(method, 1.0, predictions), theirs)
    # unless their "original formulation" is asked for, in which CFG's scale counts from the conditional prediction too
    theirs = make(guidance_scale=5.0, guidance_rescale=rescale, use_original_formulation=True, **{scale: 2.8}).forward(c, u, worse).pred
    close(guided(method, 6.0, predictions), theirs)


@PAG
@pytest.mark.parametrize("w", (1.0, 6.0))
def test_the_push_of_diffusers_pag_pipelines(w):
    """Their adaptive scale falls by so much per timestep of 1000, ours per whole schedule: 1000 times theirs is the same where the timesteps fall evenly from 1000."""
    c, u, worse = (random(2, 4, 6, 5, seed=i) for i in range(3))
    for adaptive in (0.0, 0.004, 0.2):
        pipeline = SimpleNamespace(pag_scale=3.0, pag_adaptive_scale=adaptive, do_pag_adaptive_scaling=adaptive > 0)
        pipeline._get_pag_scale = lambda t: PAGMixin._get_pag_scale(pipeline, t)
        method = PerturbedAttentionGuidance(scale=3.0, adaptive=1000 * adaptive)
        sigmas = torch.linspace(1, 0, 11)
        for index in (0, 4, 9):
            rows = torch.cat((u, c, worse) if w != 1.0 else (c, worse))
            theirs = PAGMixin._apply_perturbed_attention_guidance(pipeline, rows, w != 1.0, w, 1000 - 100 * index)
            base = u + w * (c - u) if w != 1.0 else c
            step = Step(c, sigmas[index].expand(2), sigmas=sigmas, index=index)
            close(base + method.delta(step, base, {POSITIVE: c, method.branch: worse}, {}), theirs)


def test_cfg_as_in_diffusers():
    c, u = random(2, 4, 6, 5), random(2, 4, 6, 5, seed=1)
    close(guided(None, 6.0, {POSITIVE: c, NEGATIVE: u}), guiders.ClassifierFreeGuidance(guidance_scale=6.0).forward(c, u).pred)
    close(guided(None, 6.0, {POSITIVE: c, NEGATIVE: u}), guiders.ClassifierFreeGuidance(guidance_scale=5.0, use_original_formulation=True).forward(c, u).pred)


@SLG
@pytest.mark.parametrize("start,stop", ((0.01, 0.2), (0.0, 0.5), (0.25, 0.75)))
def test_windows_beside_diffusers(start, stop):
    """diffusers counts steps, floor(start n) < i < floor(stop n): never the first step, not the one at the border. Ours, as the host's nodes, compares noise
    levels with both borders in: on evenly spaced steps of a flow model start n <= i <= stop n."""
    n = 28
    guider = guiders.SkipLayerGuidance(skip_layer_guidance_layers=[7], skip_layer_guidance_start=start, skip_layer_guidance_stop=stop)
    theirs, mine = [], []
    method = SkipLayerGuidance(start_percent=start, end_percent=stop)
    for i in range(n):
        guider.set_state(step=i, num_inference_steps=n, timestep=None)
        theirs += [i] if guider._is_slg_enabled() else []
        mine += [i] if method.active(Step(torch.zeros(1), torch.tensor([1 - i / n]), flow=True, percent_to_sigma=lambda p: 1.0 - p)) else []
    assert theirs == list(range(int(start * n) + 1, int(stop * n)))
    assert mine == list(range(math.ceil(start * n), math.floor(stop * n) + 1)) and set(theirs) < set(mine)


@APG
@pytest.mark.parametrize("eta,threshold,momentum", ((0.0, 0.0, None), (0.3, 4.0, None), (0.0, 4.0, -0.5), (1.0, 4.0, -0.75)))
def test_apg_as_in_diffusers(eta, threshold, momentum):
    """Three steps. The paper's c + (w - 1) g is their "original formulation" at w - 1; their default, u + w g, keeps the whole unconditional prediction and so
    a part of what is parallel to c, and is the paper's only where nothing is cut."""
    w = 6.0
    guider = guiders.AdaptiveProjectedGuidance(guidance_scale=w - 1, adaptive_projected_guidance_momentum=momentum, adaptive_projected_guidance_rescale=threshold,
                                               eta=eta, use_original_formulation=True)
    if momentum is not None:      # as its prepare_inputs does at the first step
        guider.momentum_buffer = adaptive_projected_guidance.MomentumBuffer(momentum)
    mine, state = AdaptiveProjectedGuidance(eta=eta, norm_threshold=threshold, momentum=momentum or 0.0), {}
    for index in range(3):
        c, u = random(2, 4, 6, 5, seed=2 * index), random(2, 4, 6, 5, seed=2 * index + 1)
        theirs = guider.forward(c, u).pred
        close(mine.combine(Step(c, torch.ones(2), index=index), c, u, w, state), theirs)
    default = guiders.AdaptiveProjectedGuidance(guidance_scale=w, adaptive_projected_guidance_rescale=threshold, eta=eta).forward(c, u).pred
    paper = AdaptiveProjectedGuidance(eta=eta, norm_threshold=threshold, momentum=0.0).combine(Step(c, torch.ones(2)), c, u, w, {})
    assert (default - paper).abs().max() > 0.1
    uncut = guiders.AdaptiveProjectedGuidance(guidance_scale=w, adaptive_projected_guidance_rescale=0.0, eta=1.0).forward(c, u).pred
    close(AdaptiveProjectedGuidance(eta=1.0, norm_threshold=0.0, momentum=0.0).combine(Step(c, torch.ones(2)), c, u, w, {}), uncut)


@pytest.mark.method("LodestarFreeU")
def test_freeu_as_in_diffusers():
    """The first version, which is what diffusers has: its stages 0 and 1 are told by number, ours by the number of channels."""
    h, skip = random(2, 8, 6, 4), random(2, 5, 6, 4, seed=1)
    for stage in (0, 1):
        b, s = ((1.3, 0.9), (1.4, 0.2))[stage]
        more, filtered = torch_utils.apply_freeu(stage, h.clone(), skip.clone(), b1=1.3, s1=0.9, b2=1.4, s2=0.2)
        close(Reweight("all", ((8, (b, s)),), "1").feature(None, h, skip), (more, filtered))


# NAG, which diffusers does not have: the authors' formula

@pytest.mark.method("LodestarNormalizedAttentionGuidance")
@pytest.mark.parametrize("order,norm", ((1, "L1"), (2, "L2")))
def test_nag_as_published(order, norm):
    """g = s p - (s - 1) n, shortened so that |g| / |p| <= tau per token over all heads, mixed with p by alpha; the published s is our scale + 1."""
    plus, minus = random(2, 13, HEADS * DIM), random(2, 13, HEADS * DIM, seed=1)
    for s, tau, alpha in ((5.0, 2.5, 0.25), (2.0, 1.5, 0.5), (11.0, 2.5, 0.25)):
        pushed = s * plus - (s - 1) * minus
        growth = pushed.norm(p=order, dim=-1, keepdim=True) / plus.norm(p=order, dim=-1, keepdim=True)
        expected = alpha * pushed * growth.clamp(max=tau) / growth + (1 - alpha) * plus
        close(normalised(split(plus), split(minus), s - 1, tau, alpha, norm), split(expected))
