"""Depth-guided injection without a network: masks from depth, who looks at whom, inputs that cannot be."""
import pytest
import torch

from lodestar.guidance.attention.depth_injection import DepthGuidedInjection, nearer
from lodestar.guidance.attention.mutual import MutualKeys
from lodestar.guidance.attention.sources import Trajectory
from lodestar.guidance.method import BadInput, Step

pytestmark = pytest.mark.method("LodestarDepthGuidedInjection")
LATENT = {"samples": torch.zeros(1, 4, 2, 2)}
PROMPT, OTHER = [[torch.zeros(1, 2, 4), {}]], [[torch.ones(1, 2, 4), {}]]


def made(**values):
    return DepthGuidedInjection(**{"reference_prompt": PROMPT, "reference": LATENT, **values}).validate()


def a_step():
    return Step(torch.zeros(1, 4, 2, 2), torch.ones(1))


def test_the_subject_is_what_is_near_whatever_the_scale_of_the_depth():
    depth = torch.tensor([[[0.0, 0.05], [0.6, 1.0]]])
    assert torch.equal(nearer(depth, 0.1, "N", "depth"), torch.tensor([[[0.0, 0.0], [1.0, 1.0]]]))
    assert torch.equal(nearer(depth * 7 - 3, 0.1, "N", "depth"), nearer(depth[0], 0.1, "N", "depth"))
    for wrong, why in ((torch.ones(1, 4, 4), "at least two depths"), (torch.full((1, 2, 2), float("nan")), "finite"), (torch.zeros(2), "depth map"), ("x", "depth map")):
        with pytest.raises(BadInput, match=f"N: depth.*{why}"):
            nearer(wrong, 0.1, "N", "depth")


def test_rows_look_at_a_reference_that_keeps_its_own_control():
    edit, = made().edits(a_step())
    assert isinstance(edit, MutualKeys) and edit.reach == "all" and edit.reference.source.control and edit.reference.prompt.cond is PROMPT
    positive, negative = made(reference_negative=OTHER, alpha=0.5).edits(a_step())
    assert (positive.reach, negative.reach, positive.alpha) == ("positive", "negative", 0.5)
    assert negative.reference.prompt.cond is OTHER and negative.reference.source == positive.reference.source
    trajectory = Trajectory(torch.tensor([0.1, 1.0], dtype=torch.float64), torch.zeros(2, 1, 4, 2, 2))
    assert made(reference=None, trajectory=trajectory).edits(a_step())[0].reference.source.trajectory.value is trajectory


def test_depth_maps_become_masks_once():
    depth = torch.linspace(0, 1, 16).view(1, 4, 4)
    method = made(depth=depth, reference_depth=depth.flip(-1))
    first, again = method.edits(a_step()), method.validate().edits(a_step())
    assert first == again and hash(first[0]) == hash(again[0])
    assert first[0].target_mask.value.sum() == (depth > 0.1).sum() and torch.equal(first[0].source_mask.value, first[0].target_mask.value.flip(-1))


def test_wrong_inputs_are_named():
    for given, what in (({"reference": None}, "trajectory = None"), ({"depth": torch.rand(1, 2, 2)}, "reference_depth = None"), ({"reference_depth": torch.rand(1, 2, 2)}, "depth = None"),
                        ({"alpha": 2.0}, "alpha = 2.0")):
        with pytest.raises(BadInput, match=f"Depth-Guided Attention Injection: {what}"):
            made(**given)
    assert DepthGuidedInjection(alpha=0.0).validate().neutral()
