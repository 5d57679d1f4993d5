"""Refine by Loss on the host: its latents, its noise mask, its interruption."""
import pytest
import torch

pytestmark = pytest.mark.method("LodestarLossRefinement")


def test_refines_a_latent_and_keeps_what_is_masked(host):
    import comfy.model_management as management
    from lodestar.guidance.host.refine import refine
    from lodestar.guidance.loss.refine import LossRefinement
    from lodestar.guidance.loss.smooth import Symmetry
    from lodestar.guidance.method import BadInput
    from lodestar.tests import tiny
    with torch.inference_mode():
        model = tiny.unet()
        z = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(0))
        with torch.inference_mode(False):
            loss = Symmetry(space="latent").check()
        method = LossRefinement(loss=loss, steps=5, rate=10.0)
        out, before, after = refine(method, model, {"samples": z, "other": 1})
        assert (after < before).all() and out["other"] == 1 and out["samples"].shape == z.shape and out["samples"].dtype == z.dtype
        again, *_ = refine(method, model, {"samples": z})
        assert torch.equal(again["samples"], out["samples"])
        single, *_ = refine(method, model, {"samples": z[1:]})
        torch.testing.assert_close(single["samples"], out["samples"][1:])
        mask = torch.zeros(1, 64, 64)
        mask[:, :, 32:] = 1
        kept, *_ = refine(method, model, {"samples": z, "noise_mask": mask})
        torch.testing.assert_close(kept["samples"][..., :3], z[..., :3])
        assert (kept["samples"][..., 5:] - z[..., 5:]).abs().max() > 1e-3
        assert refine(LossRefinement(loss=loss, steps=0), model, {"samples": z})[0]["samples"] is z
        with pytest.raises(BadInput, match="Refine by Loss.*latent.*not finite"):
            refine(method, model, {"samples": z / 0})
        management.interrupt_current_processing(True)
        try:
            with pytest.raises(BaseException) as stopped:
                refine(method, model, {"samples": z})
            assert "Interrupt" in type(stopped.value).__name__
        finally:
            management.interrupt_current_processing(False)
