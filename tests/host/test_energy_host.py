"""Methods that move the sample by energies of its attention maps, on a real ComfyUI with small random networks."""
import pytest
import torch

pytest.importorskip("torch")

from lodestar.guidance.attention.excite import AttendAndExcite      # noqa: E402
from lodestar.guidance.attention.layout import BoxDiff, LayoutGuidance      # noqa: E402
from lodestar.guidance.attention.regions import Region, Regions      # noqa: E402
from lodestar.guidance.attention.scribble import ScribbleGuidance      # noqa: E402
from lodestar.guidance.attention.words import PromptWords      # noqa: E402
from lodestar.guidance.perturbation.pag import PerturbedAttentionGuidance      # noqa: E402

TOKENS = 6
WORDS = PromptWords("a red ball", ("red", "ball"), ((2,), (3,)), (1, 2, 3, 4), TOKENS)
BOXES = ((0, 0, 0.5, 1), (0.5, 0.25, 0.4, 0.6))
OPEN = {"end_percent": 1.0}


def regions(*boxes):
    return Regions(tuple(Region(boxes=(b,), tokens=(2 + i,), words="w") for i, b in enumerate(boxes or BOXES)), length=TOKENS, spans=((1, 5),))


# moves large enough to be seen: attention of small random networks is nearly flat
METHODS = {
    "excite": lambda **k: AttendAndExcite(**{"words": WORDS, "step_size": 200.0, "iterations": 2, **OPEN, **k}),
    "layout": lambda **k: LayoutGuidance(**{"regions": regions(), "scale": 300.0, "iterations": 2, **OPEN, **k}),
    "boxdiff": lambda **k: BoxDiff(**{"regions": regions(), "step_size": 200.0, "iterations": 2, **OPEN, **k}),
    "scribble": lambda **k: ScribbleGuidance(**{"regions": regions(), "step_size": 200.0, "iterations": 2, **OPEN, **k}),
}
OFF = {"excite": {"step_size": 0.0}, "layout": {"scale": 0.0}, "boxdiff": {"step_size": 0.0}, "scribble": {"step_size": 0.0}}
IDS = {"excite": "LodestarAttendAndExcite", "layout": "LodestarLayoutGuidance", "boxdiff": "LodestarBoxDiff", "scribble": "LodestarScribbleGuidance"}
NAMES = [pytest.param(n, marks=pytest.mark.method(i)) for n, i in IDS.items()]
CASES = [pytest.param(n, k, marks=pytest.mark.method(IDS[n])) for n in IDS for k in ("unet", "flux")]


@pytest.fixture(scope="module")
def lab(host):
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
        lab.positive, lab.negative, lab.other = tiny.prompt(1), tiny.prompt(2), tiny.prompt(3)

    def run(patcher, positive=None, **k):
        with torch.inference_mode():
            return tiny.sample(patcher, positive or lab.positive, lab.negative, **{"steps": 2, **k})

    lab.run = run
    lab.base = {kind: run(m, batch=2) for kind, m in lab.models.items()}
    return lab


def usable(lab, kind="unet"):
    if not lab.modern:
        pytest.skip("no gradients through the network here; test_old_hosts_say_so")


def close(a, b, share=1e-4):
    assert (a - b).abs().max() <= share * b.abs().max()


@pytest.mark.parametrize("name,kind", CASES)
def test_off_is_bit_equal(lab, name, kind):
    usable(lab)
    assert torch.equal(lab.run(lab.attach(lab.models[kind], METHODS[name](**OFF[name])), batch=2), lab.base[kind])


@pytest.mark.parametrize("name,kind", CASES)
def test_acts_and_batch_equals_singles_and_second_run_equals_first(lab, name, kind):
    usable(lab)
    model = lab.attach(lab.models[kind], METHODS[name]())
    first = lab.run(model, batch=2)
    assert torch.isfinite(first).all() and (first - lab.base[kind]).abs().max() > 1e-4 * first.abs().max()
    assert torch.equal(lab.run(model, batch=2), first)
    close(lab.run(model, seed=1), first[1:], 1e-3)
    assert torch.equal(lab.run(lab.models[kind], batch=2), lab.base[kind])


@pytest.mark.parametrize("kind", ("unet", "flux"))
@pytest.mark.parametrize("name", NAMES)
def test_the_energy_falls(lab, name, kind, monkeypatch):
    """Small moves go downhill: the energy at x' is below that at x."""
    usable(lab)
    method, seen = METHODS[name](), []
    cls, size = type(method), next(iter(OFF[name]))
    inner = cls.energy

    def energy(self, readings, step, state):
        value, measure = inner(self, readings, step, state)
        seen.append(value.detach().float().clone())
        return value, measure

    monkeypatch.setattr(cls, "energy", energy)
    more = {"propagate": False} if name == "scribble" else {"threshold": 0.0} if name == "layout" else {"thresholds": "0:1.0"}
    small = 1e-3 if name == "scribble" else 1.0      # the axis of a nearly flat map turns quickly
    lab.run(lab.attach(lab.models[kind], METHODS[name](**{**more, size: small, "iterations": 2})), steps=1)
    assert len(seen) >= 2 and bool((seen[1] < seen[0]).all())


@pytest.mark.parametrize("kind", ("unet", "flux"))
def test_beside_other_methods_areas_and_masks(lab, kind):
    usable(lab)
    mask = torch.zeros(1, 64, 64)
    mask[:, :, :40] = 1
    positive = [[lab.positive[0][0], {**lab.positive[0][1], "mask": mask, "set_area_to_bounds": False, "mask_strength": 1.0}],
                [lab.other[0][0], {**lab.other[0][1], "area": (8, 4, 0, 4), "strength": 1.0}]]
    for name in METHODS:
        model = lab.attach(lab.attach(lab.models[kind], PerturbedAttentionGuidance(scale=1.0)), METHODS[name](iterations=1))
        out = lab.run(model, positive=positive, batch=2)
        assert torch.isfinite(out).all(), name
        close(lab.run(model, positive=positive, seed=1), out[1:], 1e-3)


@pytest.mark.newest
@pytest.mark.parametrize("dtype", (torch.bfloat16, torch.float16))
def test_half_precision(lab, dtype):
    usable(lab)
    with torch.inference_mode():
        patcher = lab.tiny.unet(dtype=dtype)
    for name in METHODS:
        assert torch.isfinite(lab.run(lab.attach(patcher, METHODS[name](iterations=1)), steps=1)).all(), name


def test_an_interrupted_run_leaves_nothing(lab):
    usable(lab)
    import comfy.sample
    model = lab.attach(lab.models["unet"], METHODS["layout"]())
    before = lab.run(model)

    class Stop(Exception):
        pass

    def stop(step, *rest):
        raise Stop

    with torch.inference_mode(), pytest.raises(Stop):
        comfy.sample.sample(model, torch.randn(1, 4, 8, 8), 2, 4.0, "euler", "normal", lab.positive, lab.negative, torch.zeros(1, 4, 8, 8), callback=stop, disable_pbar=True, seed=0)
    assert torch.equal(lab.run(model), before) and torch.equal(lab.run(lab.models["unet"], batch=2), lab.base["unet"])


@pytest.mark.method("LodestarLayoutGuidance")
def test_a_region_of_everything_changes_nothing(lab):
    """All attention is inside it: the energy is 0, below every threshold."""
    usable(lab)
    model = lab.attach(lab.models["unet"], METHODS["layout"](regions=regions((0, 0, 1, 1))))
    close(lab.run(model, batch=2), lab.base["unet"], 1e-6)


@pytest.mark.parametrize("name", NAMES)
def test_old_hosts_say_so(lab, name):
    if lab.modern:
        pytest.skip("this host has gradients through the network")
    with pytest.raises(ValueError, match="Update ComfyUI"):
        lab.run(lab.attach(lab.models["unet"], METHODS[name]()))


@pytest.mark.method("LodestarAttendAndExcite")
def test_the_node_of_words_on_the_bundled_model(lab):
    usable(lab)
    from lodestar import nodes
    from lodestar.demo.loader import load_demo_model
    with torch.inference_mode():
        model, clip, _ = load_demo_model("unet")
        node = nodes.definitions()["LodestarPromptWords"]
        positive, words, said = node.call({"clip": clip, "text": "a red circle and a blue square", "words": ""})[0]
        assert said == "red circle, blue square" and len(words.tokens) == 2
        with pytest.raises(ValueError, match="green"):
            node.call({"clip": clip, "text": "a red circle", "words": "green"})
        out = lab.tiny.sample(lab.attach(model, AttendAndExcite(words=words)), positive, positive, steps=2, size=16, channels=16)
        assert torch.isfinite(out).all()
