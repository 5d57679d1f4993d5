"""Methods beside a reference with its own control, on small random networks of a real ComfyUI."""
import pytest
import torch

pytest.importorskip("torch")


@pytest.fixture(scope="module")
def lab(host):
    """A Flux, prompts, two conditions with weights of their own."""
    import lodestar.tests.tiny as tiny
    from lodestar.guidance import engine
    from lodestar.guidance.host.attach import attach
    from lodestar.guidance.host.features import wrappers

    class Lab:
        pass

    lab = Lab()
    lab.tiny, lab.attach, lab.engine, lab.modern, lab.host = tiny, attach, engine, wrappers(), host
    with torch.inference_mode():
        lab.unet = tiny.unet()
        lab.flux = tiny.flux() if lab.modern else None
    lab.positive, lab.negative = tiny.prompt(1), tiny.prompt(2)
    g = torch.Generator().manual_seed(9)
    lab.latent = {"samples": torch.randn(1, 4, 8, 8, generator=g)}
    lab.small = {"samples": torch.randn(1, 4, 4, 6, generator=g)}

    def run(patcher, positive=None, negative=None, **k):
        with torch.inference_mode():
            return tiny.sample(patcher, positive or lab.positive, negative or lab.negative, **{"steps": 2, **k})

    lab.run = run
    if lab.modern:
        lab.base = run(lab.flux, batch=3)
    return lab


def usable(lab):
    if not lab.modern:
        pytest.skip("this host has no Flux")


def close(a, b, share=2e-5):
    assert (a - b).abs().max() <= share * b.abs().max()


DEPTH = "LodestarDepthGuidedInjection"


def a_control(kind, seen, value):
    """Stands for a ControlNet: adds a constant pattern, and notes how many prompts it is given."""
    import comfy.controlnet

    class Control(comfy.controlnet.ControlBase):
        def get_control(self, x, t, cond, batched_number, *rest):
            seen.append(batched_number)
            if kind == "flux":
                return {"input": [value * torch.linspace(-1, 1, 32).expand(x.shape[0], 16, 32)], "output": []}
            return {"middle": [value * torch.linspace(-1, 1, 64)[:, None, None].expand(x.shape[0], 64, 4, 4)], "output": [], "input": []}

        def copy(self):
            return self

        def get_models(self):
            return []

        def pre_run(self, *args):
            pass

        def cleanup(self):
            pass
    return Control()


@pytest.mark.method(DEPTH)
@pytest.mark.parametrize("kind", ("unet", "flux"))
def test_depth_of_the_reference_acts_on_the_reference_alone(lab, kind):
    usable(lab)
    from lodestar.guidance.attention.depth_injection import DepthGuidedInjection
    from lodestar.guidance.attention.mutual import MutualSelfAttention
    model, text = getattr(lab, kind), lab.tiny.prompt(3)
    base = lab.run(model, batch=2)
    given = dict(reference=lab.latent, reference_prompt=text, start_percent=0.0)
    assert torch.equal(lab.run(lab.attach(model, DepthGuidedInjection(**given, alpha=0.0)), batch=2), base)
    plain = lab.run(lab.attach(model, DepthGuidedInjection(**given)), batch=2)
    assert torch.isfinite(plain).all() and (plain - base).abs().max() > 1e-3
    assert torch.equal(plain, lab.run(lab.attach(model, MutualSelfAttention(**given, negative_rows="same")), batch=2))      # without depth they are one method

    front, back = [], []
    controlled = [[text[0][0], {**text[0][1], "control": a_control(kind, front, 1.0), "control_apply_to_uncond": True}]]
    guided = lab.attach(model, DepthGuidedInjection(**{**given, "reference_prompt": controlled}))
    out = lab.run(guided, batch=2)
    assert len(front) == 3 and set(front) == {1} and (out - plain).abs().max() > 1e-3      # the reference's rows alone, in the first step once for nothing
    assert torch.equal(lab.run(guided, batch=2), out)
    close(lab.run(guided, seed=1), out[1:], 1e-4)
    positive = [[lab.positive[0][0], {**lab.positive[0][1], "control": a_control(kind, back, -1.0), "control_apply_to_uncond": True}]]
    both = lab.run(guided, positive=positive, batch=2)
    assert back and torch.isfinite(both).all() and (both - out).abs().max() > 1e-3
    depth = torch.linspace(0, 1, 8).expand(1, 8, 8).contiguous()
    masked = lab.run(lab.attach(model, DepthGuidedInjection(**given, reference_depth=depth, depth=depth.flip(-1), threshold=0.5)), batch=2)
    assert torch.isfinite(masked).all() and (masked - plain).abs().max() > 1e-3
    other = lab.run(lab.attach(model, DepthGuidedInjection(**given, reference_negative=lab.negative)), batch=2)
    assert (other - plain).abs().max() > 1e-4
