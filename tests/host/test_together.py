"""Ten methods that act inside the network, at once, with a ControlNet, prompts with masks and areas, and a batch: right per entry."""
import pytest
import torch

pytest.importorskip("torch")

from lodestar.guidance.attention.dense import DenseDiffusion      # noqa: E402
from lodestar.guidance.attention.entropy import AttentionEntropyScaling      # noqa: E402
from lodestar.guidance.attention.freeu import FreeU      # noqa: E402
from lodestar.guidance.attention.nag import NormalizedAttentionGuidance      # noqa: E402
from lodestar.guidance.attention.pladis import PLADIS      # noqa: E402
from lodestar.guidance.attention.regional import RegionalPrompts      # noqa: E402
from lodestar.guidance.attention.regions import Region, Regions      # noqa: E402
from lodestar.guidance.perturbation.pag import PerturbedAttentionGuidance      # noqa: E402
from lodestar.guidance.perturbation.s2 import StochasticSelfGuidance      # noqa: E402
from lodestar.guidance.perturbation.sag import SelfAttentionGuidance      # noqa: E402
from lodestar.guidance.perturbation.seg import SmoothedEnergyGuidance      # noqa: E402
from lodestar.guidance.perturbation.slg import SkipLayerGuidance      # noqa: E402
from lodestar.guidance.perturbation.stg import SpatiotemporalSkipGuidance      # noqa: E402
from lodestar.guidance.perturbation.swg import SlidingWindowGuidance      # noqa: E402
from lodestar.guidance.perturbation.tpg import TokenPerturbationGuidance      # noqa: E402

SIZE, TOKENS = 16, 6
ALWAYS = {"start_percent": 0.0, "end_percent": 1.0}


def methods(kind, others):
    """Ten methods of the perturbation and attention families, each strong enough to be seen."""
    boxes = ((0, 0, 0.5, 1), (0.5, 0.25, 0.4, 0.6))
    regions = Regions(tuple(Region(boxes=(b,), tokens=(1 + 2 * i, 2 + 2 * i), words="w", conditioning=others[i]) for i, b in enumerate(boxes)), length=TOKENS, spans=((1, 5),))
    found = {
        "pag": PerturbedAttentionGuidance(scale=0.5), "seg": SmoothedEnergyGuidance(scale=0.5, blur_sigma=0.7), "tpg": TokenPerturbationGuidance(scale=0.5),
        "slg": SkipLayerGuidance(scale=0.5, **ALWAYS), "s2": StochasticSelfGuidance(scale=0.25, **ALWAYS), "swg": SlidingWindowGuidance(scale=0.5),
        "nag": NormalizedAttentionGuidance(negative=others[2], scale=3.0), "entropy": AttentionEntropyScaling(train_width=64, train_height=64),
        "dense": DenseDiffusion(regions=regions, end_percent=1.0),
    }
    if kind == "unet":
        return found | {"pladis": PLADIS(), "freeu": FreeU(), "sag": SelfAttentionGuidance(scale=0.5, threshold=0.99)}
    return found | {"stg": SpatiotemporalSkipGuidance(scale=0.5, mode="attention"), "sag": SelfAttentionGuidance(scale=0.5, threshold=0.99)}


@pytest.fixture(scope="module")
def lab(host):
    """Networks, prompts and a ControlNet; inside inference mode, as the host's executor runs nodes."""
    import comfy.controlnet

    import lodestar.tests.tiny as tiny
    from lodestar.guidance import engine
    from lodestar.guidance.host.attach import attach
    from lodestar.guidance.host.features import wrappers

    class Lab:
        pass

    lab = Lab()
    lab.tiny, lab.attach, lab.engine, lab.modern = tiny, attach, engine, wrappers()
    with torch.inference_mode():
        lab.models = {"unet": tiny.unet()} | ({"flux": tiny.flux()} if lab.modern else {})
        lab.positive, lab.negative, lab.others = tiny.prompt(1), tiny.prompt(2), [tiny.prompt(s) for s in (3, 4, 5)]

    class Control(comfy.controlnet.ControlBase):
        """Adds what depends on the place and on the noisy picture, as a ControlNet does."""

        def get_control(self, x, t, cond, batched_number, *rest):
            strength = x.flatten(1).mean(1)
            if kind_of(x) == "flux":
                cells = x.shape[-2] * x.shape[-1] // 4
                return {"input": [torch.linspace(-1, 1, cells)[:, None].expand(x.shape[0], cells, 32) + strength.view(-1, 1, 1)], "output": []}
            field = torch.linspace(-1, 1, x.shape[-1] // 2).expand(x.shape[0], 64, x.shape[-2] // 2, x.shape[-1] // 2)
            return {"middle": [field + strength.view(-1, 1, 1, 1)], "output": [], "input": []}

        def copy(self):
            return self

        def get_models(self):
            return []

        def pre_run(self, *args):
            pass

        def cleanup(self):
            pass

    kind = {"now": "unet"}
    kind_of = lambda x: kind["now"]

    def run(name, model, **k):
        kind["now"] = name
        control = Control() if lab.modern else Control(torch.device("cpu"))
        mask = torch.zeros(1, 8 * SIZE, 8 * SIZE)
        mask[:, :, :5 * SIZE] = 1
        first, second = lab.positive[0], lab.others[0][0]
        positive = [[first[0], {**first[1], "mask": mask, "set_area_to_bounds": False, "mask_strength": 1.0, "control": control, "control_apply_to_uncond": True}],
                    [second[0], {**second[1], "area": (SIZE, SIZE // 2, 0, SIZE // 2), "strength": 1.0, "control": control, "control_apply_to_uncond": True}]]
        positive = positive if lab.modern else positive[:1]      # regions beside an area: refused there by name
        with torch.inference_mode():
            return tiny.sample(model, positive, lab.negative, size=SIZE, **{"steps": 2, **k})

    lab.run = run
    return lab


def attached(lab, kind, without=None):
    model = lab.models[kind]
    for name, method in methods(kind, lab.others).items():
        if name != without:
            model = lab.attach(model, method)
    return model


def close(a, b, share=1e-4):
    assert (a - b).abs().max() <= share * b.abs().max()


@pytest.mark.parametrize("kind", ("unet", "flux"))
def test_ten_methods_at_once_are_right_per_entry(lab, kind):
    if kind not in lab.models:
        pytest.skip("this host has no Flux")
    model = attached(lab, kind)
    assert len(methods(kind, lab.others)) >= 10
    plain, out = lab.run(kind, lab.models[kind], batch=3), lab.run(kind, model, batch=3)
    assert torch.isfinite(out).all() and (out - plain).abs().max() > 1e-3 * plain.abs().max()
    for i in (0, 2):
        close(lab.run(kind, model, seed=i), out[i:i + 1])
    assert torch.equal(lab.run(kind, model, batch=3), out)
    assert torch.equal(lab.run(kind, lab.models[kind], batch=3), plain)


@pytest.mark.newest
@pytest.mark.parametrize("kind", ("unet", "flux"))
def test_each_of_the_ten_acts_among_the_others(lab, kind):
    """Leaving any one of them out changes the picture: none is lost beside the others."""
    if kind not in lab.models:
        pytest.skip("this host has no Flux")
    whole = lab.run(kind, attached(lab, kind), steps=1)
    for name in methods(kind, lab.others):
        out = lab.run(kind, attached(lab, kind, without=name), steps=1)
        assert torch.isfinite(out).all() and (out - whole).abs().max() > 1e-5 * whole.abs().max(), name


@pytest.mark.parametrize("kind", ("unet", "flux"))
def test_prompts_of_regions_among_the_others(lab, kind):
    """Regional Prompts bring texts of their own; beside a negative prompt inside attention joint networks refuse them by name."""
    if kind not in lab.models:
        pytest.skip("this host has no Flux")
    regions = Regions(tuple(Region(boxes=(b,), conditioning=c) for b, c in zip(((0, 0, 0.5, 1), (0.5, 0, 0.5, 1)), lab.others)), length=TOKENS)
    model = lab.attach(attached(lab, kind, without="nag" if kind == "flux" else None), RegionalPrompts(regions=regions))
    out = lab.run(kind, model, batch=2, steps=1)
    assert torch.isfinite(out).all()
    close(lab.run(kind, model, seed=1, steps=1), out[1:])
    if kind == "flux":
        with pytest.raises(ValueError, match="Normalized Attention Guidance and Regional Prompts: two attention edits"):
            lab.run(kind, lab.attach(attached(lab, kind), RegionalPrompts(regions=regions)))
