"""Gradients inside a real ComfyUI: ended in the middle, masked, with weights that are brought when they are used; memory over a long run; who goes back through the network at all."""
import gc
import weakref

import pytest
import torch

UNIVERSAL = "LodestarUniversalGuidance"
pytestmark = pytest.mark.method(UNIVERSAL)
ROUTES = pytest.mark.parametrize("route", ("network", "checkpoint"))


@pytest.fixture(scope="module")
def lab(host):
    from lodestar.guidance.host.attach import attach
    from lodestar.guidance.loss.target import TargetImage
    from lodestar.guidance.loss.universal import UniversalGuidance
    from lodestar.tests.sampler_lab import SamplerLab
    lab = SamplerLab()
    with torch.inference_mode(False):
        lab.loss = TargetImage(target=torch.ones(1, 4, 8, 8), reduction="mean")
    lab.guided = lambda model, route: attach(model, UniversalGuidance(loss=lab.loss, route=route))
    lab.euler = lambda **more: lab.sample(lab.samplers.ksampler("euler"), **more)
    return lab


@pytest.fixture
def modern(lab):
    if not lab.modern:
        pytest.skip("for hosts with gradients through the network")
    return lab


@ROUTES
@pytest.mark.parametrize("kind", ("unet", "flux"))
def test_an_interruption_in_the_middle_of_a_backward_pass_ends_it(modern, kind, route):
    """The user stops while the last block is gone back through: the next one is not, and the model is as it was."""
    import comfy.model_management as management
    from lodestar.guidance.host.geometry import checkpoint_modules
    lab, model = modern, modern.models[kind]
    before, blocks, reached = lab.euler(kind=kind), checkpoint_modules(model.model.diffusion_model), []

    def stop(slope):
        management.interrupt_current_processing(True)

    def watched(function):
        def hook(module, given, out):
            for t in out if isinstance(out, tuple) else (out,):
                if t.requires_grad:
                    t.register_hook(function)
        return hook
    handles = [blocks[-1].register_forward_hook(watched(stop)), blocks[0].register_forward_hook(watched(lambda slope: reached.append(1)))]
    try:
        with pytest.raises(BaseException) as stopped:
            lab.euler(model=lab.guided(model, route), kind=kind)
        assert "Interrupt" in type(stopped.value).__name__ and not reached
    finally:
        management.interrupt_current_processing(False)
        for handle in handles:
            handle.remove()
    assert all("forward" not in b.__dict__ and not b._forward_hooks for b in blocks)
    assert torch.equal(lab.euler(kind=kind), before)


def test_the_gradient_is_masked_where_the_latent_is(modern, monkeypatch):
    from lodestar.guidance.loss import universal
    lab, seen, own = modern, [], universal.enter

    def enter(step, denoised, direction, *more):
        seen.append(direction)
        return own(step, denoised, direction, *more)
    monkeypatch.setattr(universal, "enter", enter)
    mask = torch.zeros(1, 1, 8, 8)
    mask[..., :4] = 1
    kept = 0.4 * torch.ones(1, 4, 8, 8)
    out = lab.euler(model=lab.guided(lab.models["unet"], "network"), mask=mask, latent=kept)
    assert (out - kept)[..., 4:].abs().max() < 1e-5 and len(seen) == 3
    for g in seen:
        assert not g[..., 4:].any() and g[..., :4].abs().max() > 0
    a = g[..., :4].square().mean().sqrt() / g.square().mean().sqrt()
    assert a == pytest.approx(2 ** 0.5, rel=1e-4)      # brought to unit size over what is free: half of the cells
    plain = lab.euler(mask=mask, latent=kept)
    assert (out - plain)[..., :4].abs().max() > 1e-3
    lab.euler(model=lab.guided(lab.models["unet"], "network"))
    assert seen[-1].abs().min() > 0


def lazy():
    """A MODEL whose weights come through a function at every use, as those do that the host keeps elsewhere; and how often."""
    from comfy.patcher_extension import CallbacksMP
    from lodestar.tests import tiny
    with torch.inference_mode():      # as a loader's, not as the sampler's
        patcher = tiny.unet()
    count = [0]

    def brought(weight):
        count[0] += 1
        return weight * 1.0

    def install(*_):
        for module in patcher.model.diffusion_model.modules():
            if hasattr(module, "weight_function") and hasattr(module, "comfy_cast_weights"):
                module.comfy_cast_weights, module.weight_function = True, [brought]
    patcher.add_callback(CallbacksMP.ON_LOAD, install)      # loading puts them away
    return patcher, count


@ROUTES
def test_offloaded_weights_give_the_same_gradient(modern, route):
    lab = modern
    here = lab.euler(model=lab.guided(lab.models["unet"], route))
    patcher, count = lazy()
    out = lab.euler(model=lab.guided(patcher, route))
    assert count[0] > 0
    torch.testing.assert_close(out, here, rtol=1e-4, atol=1e-4)


def test_weights_are_not_streamed_into_shared_buffers_while_a_graph_is_kept(modern, monkeypatch):
    """What streams bring lies in buffers that are used again before the backward pass."""
    import comfy.model_management as management
    lab, seen = modern, []
    monkeypatch.setattr(management, "NUM_STREAMS", 2)
    handle = lab.models["unet"].model.diffusion_model.register_forward_hook(lambda module, given, out: seen.append((out.requires_grad, management.NUM_STREAMS)))
    try:
        lab.euler(model=lab.guided(lab.models["unet"], "network"), steps=1)
        lab.euler(steps=1)
    finally:
        handle.remove()
    assert set(seen) == {(True, 0), (False, 2)} and management.NUM_STREAMS == 2


@pytest.mark.newest
def test_offloaded_weights_are_not_all_kept_for_the_way_back_with_checkpoints(modern):
    from lodestar.bench.gradients import watched
    lab, most = modern, {}
    for route in ("network", "checkpoint"):
        model = lab.guided(lazy()[0], route)
        with watched() as memory:
            lab.euler(model=model, steps=1)
        most[route] = memory.most
    assert most["checkpoint"] < 0.6 * most["network"]


@pytest.mark.newest
@pytest.mark.parametrize("route, long", (("network", 30), ("checkpoint", 15)))
def test_memory_does_not_grow_with_the_steps(modern, route, long):
    from lodestar.bench.gradients import watched
    lab, most = modern, []
    model = lab.guided(lab.models["unet"], route)
    lab.euler(model=model, steps=2)
    for steps in (5, long):
        with watched() as memory:
            lab.euler(model=model, steps=steps)
        most.append(memory.most)
        assert memory.left < 2 ** 18
    assert most[1] < 1.02 * most[0] + 2 ** 16


@pytest.mark.newest
@ROUTES
@pytest.mark.parametrize("kind", ("unet", "flux"))
def test_a_step_is_freed_at_once_without_the_garbage_collector(modern, kind, route, monkeypatch):
    from lodestar.guidance.host import runs
    from lodestar.guidance.host.attach import attach
    from lodestar.guidance.perturbation.pag import PerturbedAttentionGuidance
    from lodestar.guidance.perturbation.slg import SkipLayerGuidance
    lab, made, alive = modern, [], []

    class Call(runs.Call):
        def __init__(self, *given):
            super().__init__(*given)
            alive.append(sum(ref() is not None for ref in made))
            made.append(weakref.ref(self))
    monkeypatch.setattr(runs, "Call", Call)
    gc.collect()
    gc.disable()
    try:
        lab.euler(model=lab.guided(attach(attach(lab.models[kind], PerturbedAttentionGuidance()), SkipLayerGuidance()), route), kind=kind, steps=5)
    finally:
        gc.enable()
    assert len(made) >= 5 and max(alive) <= 1 and not any(ref() for ref in made)


@pytest.mark.method("LodestarDreamguider", "LodestarManifoldPreservingGuidance")
def test_dreamguider_and_mpgd_never_go_back_through_the_network(lab):
    from lodestar.bench.gradients import Counter, measurement
    from lodestar.guidance.host.sampler_inverse import sampler
    from lodestar.guidance.inverse.dps import DiffusionPosteriorSampling
    from lodestar.guidance.inverse.mpgd import ManifoldPreservingGuidance
    from lodestar.guidance.loss.solvers.dreamguider import Dreamguider

    class Shape:
        shape = (4, 8, 8)
    given, network = measurement(Shape), lab.models["unet"].model.diffusion_model
    methods = [Dreamguider(loss=lab.loss), ManifoldPreservingGuidance(measurement=given)] + ([DiffusionPosteriorSampling(measurement=given)] if lab.modern else [])
    for method, wanted in zip(methods, (0, 0, 3)):
        with Counter(network) as count:
            assert torch.isfinite(lab.sample(sampler(method))).all()
        assert count.backwards == count.graphs == wanted, method.title
        assert count.forwards >= 3


@pytest.mark.newest
@pytest.mark.parametrize("kind, layer", (("unet", "input.1"), ("flux", "double.0")))
def test_edits_of_one_layer_are_the_same_by_both_routes(modern, kind, layer):
    """A block that is computed again has the edits that it had: the host's options name another block by then."""
    from lodestar.guidance.host.attach import attach
    from lodestar.guidance.perturbation.pag import PerturbedAttentionGuidance
    model = attach(modern.models[kind], PerturbedAttentionGuidance(scale=3.0, layers=layer))
    found = [modern.euler(model=modern.guided(model, route), kind=kind) for route in ("network", "checkpoint")]
    plain = modern.euler(model=model, kind=kind)
    assert (found[0] - plain).abs().max() > 1e-4
    assert (found[0] - found[1]).abs().max() <= 1e-4 * (found[0] - plain).abs().max() + 1e-5 * found[0].abs().max()
