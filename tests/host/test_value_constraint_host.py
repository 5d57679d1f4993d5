"""Value Constraint on a real ComfyUI with small random networks."""
import pytest
import torch

pytestmark = pytest.mark.method("LodestarValueConstraint")


@pytest.fixture(scope="module")
def lab(host):
    from lodestar.tests.sampler_lab import SamplerLab
    return SamplerLab()


@pytest.mark.parametrize("kind", ("unet", "flux"))
def test_the_result_is_inside_and_what_is_outside_the_mask_is_free(lab, kind):
    if kind not in lab.models:
        pytest.skip("this host has no Flux")
    from lodestar.guidance.host.decode import RoughPicture
    euler, model = lab.samplers.ksampler("euler"), lab.models[kind]
    plain = lab.sample(euler, kind, batch=2)
    with torch.inference_mode():
        half = torch.zeros(1, 64, 64)
        half[..., :32] = 1
        off = lab.node("LodestarValueConstraint", model=model, space="latent", upper="1e30")[0]
        latent = lab.node("LodestarValueConstraint", model=model, space="latent", lower="-0.3", upper="0.2, 0.1, -, 0.2", region=half)[0]
        colour = lab.node("LodestarValueConstraint", model=model, upper="0.45, 1, 1")[0]
    assert torch.equal(lab.sample(euler, kind, batch=2, model=off), plain)
    out = lab.sample(euler, kind, batch=2, model=latent)
    inside, outside = out[..., :4], out[..., 4:]
    assert float(inside.min()) > -0.3 - 1e-4 and bool((inside.amax((0, 2, 3))[[0, 1, 3]] < torch.tensor([0.2, 0.1, 0.2]) + 1e-4).all())
    assert float(outside.max()) > 0.2 and (out - lab.sample(euler, kind, model=latent)).abs()[0].max() < 1e-3 * out.abs().max()
    rough = RoughPicture(model.get_model_object("latent_format"), "test")
    seen = rough(model.get_model_object("latent_format").process_in(lab.sample(euler, kind, model=colour)))
    assert float(seen[:, 0].max()) < 0.45 + 1e-3 and float(seen[:, 1:].max()) > 0.45


def test_wrong_numbers_are_named_at_the_node(lab):
    from lodestar.guidance.method import BadInput
    with torch.inference_mode(), pytest.raises(BadInput, match="3 channels"):
        lab.node("LodestarValueConstraint", model=lab.models["unet"], upper="1, 1")
