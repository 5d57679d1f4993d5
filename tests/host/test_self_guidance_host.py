"""Self-Guidance on a real ComfyUI with small random networks."""
import pytest
import torch

from lodestar.guidance.attention.properties import PropertyTerm
from lodestar.guidance.attention.self_guidance import SelfGuidance
from lodestar.guidance.attention.words import PromptWords

pytestmark = pytest.mark.method("LodestarSelfGuidance")
WORDS = PromptWords("a red ball", ("red", "ball"), ((2,), (3,)), (1, 2, 3, 4), 6)
PLACE = (PropertyTerm(words=WORDS, kind="position", x=0.9, y=0.1), PropertyTerm(words=WORDS, kind="size", size=0.3))
KEEP = (PropertyTerm(words=WORDS, kind="appearance", source="reference"), PropertyTerm(words=WORDS, kind="shape", source="reference"))
BOTH = pytest.mark.parametrize("kind", ("unet", "flux"))


@pytest.fixture(scope="module")
def lab(host):
    from lodestar.guidance.host.attach import attach
    from lodestar.tests.sampler_lab import SamplerLab
    lab = SamplerLab()
    lab.attach, lab.euler = attach, lab.samplers.ksampler("euler")
    return lab


def guided(lab, kind, **k):
    if not lab.modern:
        pytest.skip("no gradients through the network here; test_old_hosts_say_so")
    return lab.attach(lab.models[kind], SelfGuidance(**{"terms": PLACE, "scale": 0.5, "end_percent": 1.0, "alternate_from": 1.0, **k}))


@BOTH
def test_acts_by_entry_repeats_itself_and_off_is_the_model(lab, kind):
    plain = lab.sample(lab.euler, kind, batch=2, steps=2)
    assert torch.equal(lab.sample(lab.euler, model=guided(lab, kind, scale=0.0), batch=2, steps=2), plain)
    model = guided(lab, kind)
    out = lab.sample(lab.euler, model=model, batch=2, steps=2)
    assert torch.isfinite(out).all() and (out - plain).abs().max() > 1e-3
    assert torch.equal(out, lab.sample(lab.euler, model=model, batch=2, steps=2))
    assert (lab.sample(lab.euler, model=model, first=1, steps=2) - out[1:]).abs().max() < 2e-3 * out.abs().max()


@BOTH
def test_a_reference_with_a_prompt_of_its_own(lab, kind):
    """Its terms pull at the picture, and nothing of it is left behind."""
    latent = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(9))
    plain = lab.sample(lab.euler, kind, batch=2, steps=2)
    model = guided(lab, kind, terms=KEEP, reference={"samples": latent}, reference_prompt=lab.negative)
    out = lab.sample(lab.euler, model=model, batch=2, steps=2)
    assert torch.isfinite(out).all() and (out - plain).abs().max() > 1e-3
    assert torch.equal(out, lab.sample(lab.euler, model=model, batch=2, steps=2))
    assert torch.equal(lab.sample(lab.euler, kind, batch=2, steps=2), plain)


@pytest.mark.newest
@pytest.mark.parametrize("dtype", (torch.bfloat16, torch.float16))
def test_half_precision(lab, dtype):
    from lodestar.tests import tiny
    with torch.inference_mode():
        model = tiny.unet(dtype=dtype)
    latent = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(9))
    method = SelfGuidance(terms=(*PLACE, *KEEP), reference={"samples": latent})
    assert torch.isfinite(lab.sample(lab.euler, model=lab.attach(model, method), steps=1)).all()


def test_old_hosts_say_so(lab):
    if lab.modern:
        pytest.skip("this host has gradients through the network")
    with pytest.raises(ValueError, match="Update ComfyUI"):
        lab.sample(lab.euler, model=lab.attach(lab.models["unet"], SelfGuidance(terms=PLACE)))
