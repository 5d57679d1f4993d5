"""Branches with a prompt of their own: what such a prompt carries works as on the sampler's own prompts. Context windows around branches."""
from typing import Any

import pytest
import torch
from lodestar.guidance.frozen import frozen


@pytest.fixture(scope="module")
def lab(host):
    from types import SimpleNamespace

    import lodestar.tests.tiny as tiny
    from lodestar.guidance.host.attach import attach
    from lodestar.guidance.host.features import wrappers
    from lodestar.guidance.method import Branch, Prompt, Term, socket
    from lodestar.guidance.perturbation.pag import PerturbedAttentionGuidance

    @frozen
    class Instead(Term):
        """Replaces the prediction by that of another prompt."""

        node_id = "LodestarTestInstead"
        title = "Instead"
        prompt: Any = socket("CONDITIONING", "the prompt")

        @property
        def branch(self):
            return Branch(Prompt(self.prompt))

        def branches(self, step):
            return (self.branch,)

        def delta(self, step, base, predictions, state):
            return predictions[self.branch] - base

    def run(patcher, positive, **k):
        with torch.inference_mode():
            return tiny.sample(patcher, positive, tiny.prompt(2), **k)

    with torch.inference_mode():
        model = tiny.unet()
    return SimpleNamespace(tiny=tiny, attach=attach, modern=wrappers(), Instead=Instead, Pag=PerturbedAttentionGuidance, run=run, model=model)


def same(a, b):
    assert (a - b).abs().max() <= 1e-4 * b.abs().max()


def control_of(lab):
    import comfy.controlnet

    class Control(comfy.controlnet.ControlBase):
        """Adds a constant where a ControlNet would; owns a model that the host has to load."""

        cleaned = 0

        def get_control(self, x, t, cond, batched_number, *rest):
            assert self.owned in [m.model for m in lab.management.current_loaded_models], "the ControlNet was not loaded"
            return {"middle": [torch.linspace(-1, 1, 64)[:, None, None].expand(x.shape[0], 64, 4, 4)], "output": [], "input": []}

        def copy(self):
            return self

        def get_models(self):
            return [self.owned]

        def pre_run(self, *args):
            pass

        def cleanup(self):
            type(self).cleaned += 1

    import comfy.model_management
    lab.management = comfy.model_management
    control = Control()
    with torch.inference_mode():
        control.owned = lab.tiny.unet(9)
    return control


def test_a_controlnet_on_the_extra_prompt(lab):
    """Loaded for the run, applied, cleaned up: the branch is bit for bit what the same conditioning gives as the positive prompt."""
    plain = lab.tiny.prompt(3)
    if not lab.modern:
        carried = [[plain[0][0], {**plain[0][1], "control": object()}]]
        with pytest.raises(ValueError, match="ControlNet"):
            lab.run(lab.attach(lab.model, lab.Instead(carried)), lab.tiny.prompt(1))
        return
    control = control_of(lab)
    carried = [[plain[0][0], {**plain[0][1], "control": control}]]
    out = lab.run(lab.attach(lab.model, lab.Instead(carried)), lab.tiny.prompt(1))
    assert control.cleaned
    same(out, lab.run(lab.model, carried, cfg=1.0))
    assert (out - lab.run(lab.model, plain, cfg=1.0)).abs().max() > 1e-3
    assert not lab.model.additional_models


def test_area_and_strength_on_the_extra_prompt(lab):
    a, b = lab.tiny.prompt(3), lab.tiny.prompt(4)
    carried = [[a[0][0], {**a[0][1], "area": (4, 8, 0, 0), "strength": 1.0}], [b[0][0], {**b[0][1], "strength": 0.5}]]
    out = lab.run(lab.attach(lab.model, lab.Instead(carried)), lab.tiny.prompt(1), batch=2)
    same(out, lab.run(lab.model, carried, cfg=1.0, batch=2))


@pytest.mark.parametrize("own", (False, True), ids=("plain", "the positive has a hook of its own"))
def test_a_lora_hook_on_the_extra_prompt(lab, own):
    """A LoRA of the extra prompt alone acts there and nowhere else, and is gone after the run."""
    if not lab.modern:
        pytest.skip("this host has no hooks")
    import comfy.hooks

    def hooked(number, seed, layer):
        weight = lab.model.model.state_dict()[layer]
        difference = torch.randn(weight.shape, generator=torch.Generator().manual_seed(seed)) * 0.3
        hook = comfy.hooks.WeightHook(strength_model=1.0, strength_clip=0.0)
        hook.need_weight_init, hook.weights, hook.weights_clip = False, {layer: (difference,)}, {}
        group = comfy.hooks.HookGroup()
        group.add(hook)
        prompt = lab.tiny.prompt(number)
        return [[prompt[0][0], {**prompt[0][1], "hooks": group}]], prompt

    first = "diffusion_model.middle_block.1.transformer_blocks.0.attn2.to_v.weight"
    carried, plain = hooked(3, 11, first)
    positive = hooked(1, 12, "diffusion_model.middle_block.1.transformer_blocks.0.attn1.to_v.weight")[0] if own else lab.tiny.prompt(1)
    before = lab.run(lab.model, positive)
    out = lab.run(lab.attach(lab.model, lab.Instead(carried)), positive)
    same(out, lab.run(lab.model, carried, cfg=1.0))
    assert (out - lab.run(lab.model, plain, cfg=1.0)).abs().max() > 1e-3
    assert torch.equal(lab.run(lab.model, positive), before)
    assert not lab.model.hook_patches


def test_a_hook_that_cannot_be_registered_is_refused(lab):
    if not lab.modern:
        pytest.skip("this host has no hooks")
    import comfy.hooks
    group = comfy.hooks.HookGroup()
    group.add(comfy.hooks.TransformerOptionsHook(transformers_dict={}))
    prompt = lab.tiny.prompt(3)
    carried = [[prompt[0][0], {**prompt[0][1], "hooks": group}]]
    with pytest.raises(ValueError, match="TransformerOptionsHook"):
        lab.run(lab.attach(lab.model, lab.Instead(carried)), lab.tiny.prompt(1))


@pytest.mark.method("LodestarPerturbedAttentionGuidance")
def test_context_windows(lab):
    """A network that treats frames one by one gives the same with and without windows over the frames, guidance included."""
    try:
        import comfy.context_windows as windows
    except ImportError:
        pytest.skip("this host has no context windows")
    model = lab.attach(lab.model, lab.Pag(scale=2.0))
    windowed = model.clone()
    windowed.model_options["context_handler"] = windows.IndexListContextHandler(
        context_schedule=windows.get_matching_context_schedule(windows.ContextSchedules.STATIC_STANDARD),
        fuse_method=windows.get_matching_fuse_method(windows.ContextFuseMethods.PYRAMID), context_length=4, context_overlap=2, context_stride=1,
        closed_loop=False, dim=0)
    windows.create_prepare_sampling_wrapper(windowed)
    plain = lab.model.clone()
    plain.model_options["context_handler"] = windowed.model_options["context_handler"]
    try:
        lab.run(plain, lab.tiny.prompt(1), batch=6)
    except RuntimeError as e:
        pytest.skip(f"this host's windows over the batch fail without us too: {e}")
    out = lab.run(windowed, lab.tiny.prompt(1), batch=6)
    same(out, lab.run(model, lab.tiny.prompt(1), batch=6))
    assert (out - lab.run(lab.model, lab.tiny.prompt(1), batch=6)).abs().max() > 1e-3
