"""Layers of the networks beyond those of test_architectures: an edit acts where it should and nowhere else, a second text is the text it says, gradients pass."""
from types import SimpleNamespace
from typing import Any

import pytest
import torch

pytest.importorskip("torch")

from lodestar.guidance.attention.nag import NegativeAttention      # noqa: E402
from lodestar.guidance.frozen import frozen
from lodestar.guidance.host.geometry import checkpoint_modules, of_network      # noqa: E402
from lodestar.guidance.host.gradients import HostContext      # noqa: E402
from lodestar.guidance.method import POSITIVE, Branch, Prompt, Term, socket      # noqa: E402
from lodestar.guidance.perturbation.pag import IdentitySelfAttention      # noqa: E402
from lodestar.tests.architectures import Lab      # noqa: E402
from lodestar.tests.host.test_rotary import Capture, Still      # noqa: E402
from lodestar.tests.zoo.matrix import newest      # noqa: E402
from lodestar.tests.zoo.specimens import ALL      # noqa: E402

JOINT = ("lens", "joyimage", "mage_flow", "ideogram4", "krea2", "cogvideo", "mochi", "omnigen2", "chroma_radiance", "hunyuan3d")
CROSS = ("kandinsky5", "anima")
SECOND_TEXT = ("lens", "joyimage", "mage_flow", "ideogram4", "cogvideo", "chroma_radiance", "hunyuan3d")


@pytest.fixture
def lab(host):
    """Guidance in the network without a sampler: lab(name, rows)."""
    if not newest(host.path):
        pytest.skip("the newest host covers these networks")

    def build(name, rows=2):
        with torch.inference_mode():
            return Lab(ALL[name](), rows)
    return build


@pytest.mark.parametrize("name", (*JOINT, *CROSS))
def test_an_edit_touches_its_rows_its_layers_and_the_picture(lab, name):
    """PAG's edit: the branch's rows alone change, each layer once, and the text's attention stays the network's own."""
    log = []

    class Counting(IdentitySelfAttention):
        def apply(self, site, q, k, v, attend):
            out, plain = super().apply(site, q, k, v, attend), attend(q, k, v)
            text = site.text is None or torch.equal(out[:, :, site.text], plain[:, :, site.text])
            size = len(range(*site.image.indices(q.shape[2])))
            log.append((str(site.layer), site.kind, size == site.frames * site.height * site.width, text, bool((out[:, :, site.image] != plain[:, :, site.image]).any())))
            return out

    lab = lab(name)
    found = of_network(lab.specimen.net)
    assert len(checkpoint_modules(lab.specimen.net)) == len(found.layers)
    a, b = lab.inputs(1), lab.inputs(2)
    plain = lab.plain([a, b])
    for layers in (str(found.layers[0]), str(found.layers[-1]), "all"):
        log.clear()
        out, _ = lab.run([POSITIVE, Branch(edits=(Counting(layers),))], [a, b])
        scale = plain.abs().max()
        assert (out[:2] - plain[:2]).abs().max() <= 2e-5 * scale and (out[2:] - plain[2:]).abs().max() > 1e-4 * scale, layers
        assert [entry[0] for entry in log] == ([str(x) for x in found.layers] if layers == "all" else [layers])
        assert all(entry[1:] == ("joint" if name in JOINT else "self", True, True, True) for entry in log)


@pytest.mark.method("LodestarSmoothedEnergyGuidance")
@pytest.mark.parametrize("name", ("lens", "mage_flow", "ideogram4", "krea2", "kandinsky5", "anima"))
def test_queries_are_turned_back(lab, name):
    """What an edit gets by undoing the rotary embedding are the queries of the network without it."""
    lab = lab(name)
    branch, chunk = Branch(edits=(Capture(str(of_network(lab.specimen.net).layers[0])),)), lab.inputs(1)

    def queries():
        Capture.seen.clear()
        lab.run([branch, Branch("negative")], [chunk, lab.inputs(2)])
        return Capture.seen[0]
    turned, rotation, _ = queries()
    with Still(lab.specimen.net):
        plain, _, _ = queries()
    assert (turned - plain).abs().max() > 1e-2 * plain.abs().max()
    assert (rotation.turn(turned, back=True) - plain).abs().max() < 2e-3 * plain.abs().max()


@pytest.mark.parametrize("name", ("joyimage", "cogvideo", "mochi"))
def test_a_rotation_of_the_picture_alone_is_said_to_be_unknown(lab, name, caplog):
    lab = lab(name, 1)
    Capture.seen.clear()
    lab.run([Branch(edits=(Capture("all"),))], [lab.inputs(1)])
    assert Capture.seen[0][1] is None and "rotary embedding" in caplog.text


@pytest.mark.parametrize("name", SECOND_TEXT)
def test_a_second_text_acts_as_if_it_were_the_text(lab, name):
    """The whole push of Normalized Attention Guidance at scale -1 leaves the attention to the other text alone: the network with that text, however long."""
    lab = lab(name, 1)
    a = lab.inputs(1)
    for tokens in (6, 3, 9):
        session = lab.session()
        edit = NegativeAttention(layers="all", negative=lab.prompt(session, lab.text(9, tokens)), scale=-1.0, alpha=1.0, tau=1e9)
        out, _ = lab.run([POSITIVE], [a], session, [edit])
        plain = lab.plain([(a[0], lab.text(9, tokens))])
        assert (out - plain).abs().max() <= 1e-4 * plain.abs().max(), tokens


@pytest.mark.parametrize("name,kernel", (("anima", "rms_rope_split_half"), ("joyimage", "rms_rope"), ("ernie", "apply_rope_split_half"), ("wan_dancer", "apply_rope")))
def test_gradients_pass_kernels_that_have_no_backward(lab, name, kernel):
    """The gradient of the network against differences of its values. WanDancer writes over tensors whose memory others take at once."""
    if not hasattr(torch.ops.comfy_kitchen, kernel):
        pytest.skip("this host's environment has no such kernel")
    lab = lab(name, 1)
    x, text = lab.inputs(1)
    way = torch.randn(x.shape, generator=torch.Generator().manual_seed(3))
    session = SimpleNamespace(model=SimpleNamespace(diffusion_model=lab.specimen.net), peers={})

    def value(at):
        return lab.specimen.forward(at, torch.full((1,), 0.5), None, text.clone(), None, {"sigmas": torch.full((1,), 0.5)}, **lab.specimen.extra(1, text.shape[1])).square().sum()

    with HostContext(session)():
        leaf = x.clone().requires_grad_(True)
        slope, = torch.autograd.grad(value(leaf), leaf)
        with torch.no_grad():
            step = 1e-2
            ahead, behind = value(x + step * way), value(x - step * way)
    expected = float((ahead - behind) / (2 * step))
    assert abs(float((slope * way).sum()) - expected) < 0.02 * abs(expected) + 1e-2


def test_a_further_prediction_on_a_network_of_pairs(lab):
    """SeedVR 2 takes its batch for a negative and a positive half: a branch gets a call of its own, and is what its prompt gives alone."""
    from lodestar.guidance.host.attach import attach
    from lodestar.tests.zoo import models
    specimen = lab("seedvr").specimen

    @frozen
    class Instead(Term):
        """Replaces the prediction by that of another prompt."""

        node_id = "LodestarTestInstead"
        title = "Instead"
        prompt: Any = socket("CONDITIONING", "the prompt")

        def branches(self, step):
            return (Branch(Prompt(self.prompt)),)

        def delta(self, step, base, predictions, state):
            return predictions[Branch(Prompt(self.prompt))] - base

    other = models.tokens_of(specimen, 7)
    with torch.inference_mode():
        model = models.model_of(specimen)
        changed = attach(model, Instead(other))
    out = models.sample(specimen, changed)
    alone = models.sample(specimen, model, other, negative=other)
    assert (out - alone).abs().max() <= 1e-4 * alone.abs().max()
    assert (out - models.sample(specimen, model)).abs().max() > 1e-3 * alone.abs().max()


@pytest.mark.method("LodestarSlidingWindowGuidance")
def test_crops_of_a_network_that_lays_out_its_tokens_for_the_whole_picture(host):
    """HiDream-O1: positions and masks of all tokens are made for a crop as the host makes them for a picture of that size. Crop by crop with the host's own functions."""
    if not newest(host.path):
        pytest.skip("the newest host alone has it")
    import comfy.samplers
    from lodestar.guidance.host.attach import attach
    from lodestar.guidance.perturbation.swg import SlidingWindowGuidance
    from lodestar.tests.zoo import models
    with torch.inference_mode():
        specimen = ALL["hidream_o1"]()
        model = models.model_of(specimen)

    def post(args):
        x, total, count = args["input"], torch.zeros_like(args["input"]), torch.zeros_like(args["input"])
        for y in (0, 96):
            for left in (0, 96):
                part = (..., slice(y, y + 160), slice(left, left + 160))
                cond = comfy.samplers.encode_model_conds(args["model"].extra_conds, list(args["cond"]), x[part], x.device, "positive")
                total[part] += comfy.samplers.calc_cond_batch(args["model"], [cond], x[part].contiguous(), args["sigma"], args["model_options"])[0]
                count[part] += 1
        return args["denoised"] + 0.8 * (count > 1) * (args["cond_denoised"] - total / count)
    theirs = model.clone()
    theirs.set_model_sampler_post_cfg_function(post)
    out, expected = models.sample(specimen, attach(model, SlidingWindowGuidance(scale=0.8))), models.sample(specimen, theirs)
    assert (out - expected).abs().max() <= 2e-5 * expected.abs().max()
    assert (out - models.sample(specimen, model)).abs().max() > 1e-2 * expected.abs().max()
