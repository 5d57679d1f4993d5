"""Side-by-Side Canvas: where source, target, masks and controls come to lie, and what the crop gives back."""
import pytest
import torch

from lodestar.guidance.attention.side_by_side import SIDES, SideBySideCanvas, target_part
from lodestar.guidance.method import BadInput
from lodestar.nodes.side_by_side import _canvas, _crop

pytestmark = pytest.mark.method("LodestarSideBySideCanvas")
RED, BLUE = (torch.tensor(c).expand(2, 16, 24, 3) for c in ((1.0, 0.0, 0.0), (0.0, 0.0, 1.0)))


class Vae:
    """Eight pixels a cell, three channels."""

    def encode(self, pictures):
        return torch.nn.functional.avg_pool2d(pictures.movedim(-1, 1), 8)


@pytest.mark.parametrize("side", SIDES)
def test_the_source_is_kept_and_the_crop_is_the_target(side):
    left = torch.zeros(1, 16, 24)
    left[..., :8] = 1
    latent, canvas, mask, control = _canvas(Vae(), RED, target=BLUE, mask=left, source_control=RED, side=side)
    assert canvas.shape == ((2, 16, 48, 3) if side in ("left", "right") else (2, 32, 24, 3)) and mask.shape == canvas.shape[:3]
    rows, columns = target_part(side, *canvas.shape[1:3])
    assert (canvas[:, rows, columns][:, :, 8:] == BLUE[:, :, 8:]).all() and (canvas[:, rows, columns][:, :, :8] == 0.5).all()      # what is painted tells nothing of what was there
    assert torch.equal(mask[:, rows, columns], left.expand(2, 16, 24)) and mask.sum() == left.sum() * 2
    assert (canvas == RED[0, 0, 0]).all(-1).sum() == 2 * 16 * 24
    assert (control[:, rows, columns] == 0).all() and control.sum() == RED.sum()
    assert torch.equal(latent["noise_mask"][:, 0], mask) and latent["samples"].shape[-2:] == (canvas.shape[1] // 8, canvas.shape[2] // 8)
    cut, picture = _crop(side, 0, latent, canvas)
    torch.testing.assert_close(cut["samples"], Vae().encode(canvas[:, rows, columns]))
    assert "noise_mask" not in cut and torch.equal(picture, canvas[:, rows, columns])


def test_a_gap_is_cut_next_to_the_source():
    ramp = torch.arange(48.0).view(1, 1, 48, 1).expand(1, 16, 48, 3)
    assert _crop("left", 4, image=ramp)[1][0, 0, :, 0].tolist() == list(range(28, 48))
    assert _crop("right", 4, image=ramp)[1][0, 0, :, 0].tolist() == list(range(0, 20))


def test_without_a_target_the_whole_half_is_painted_and_sizes_are_brought_together():
    canvas, mask, control = SideBySideCanvas().sheet(RED)
    assert control is None and (mask[:, :, :24] == 0).all() and (mask[:, :, 24:] == 1).all() and (canvas[:, :, 24:] == 0.5).all()
    wide = torch.zeros(1, 8, 32, 3)
    wide[:, :, 8:24, 1] = 1.0      # the middle: what the crop to 8 x 12 shows
    canvas, *_ = SideBySideCanvas().sheet(wide, RED)
    assert canvas.shape == (2, 16, 48, 3)
    torch.testing.assert_close(canvas[:, :, :24], torch.tensor((0.0, 1.0, 0.0)).expand(2, 16, 24, 3))


def test_bad_inputs_are_named():
    with pytest.raises(BadInput, match="Side-by-Side Canvas.*mask.*without a target"):
        SideBySideCanvas().sheet(RED, mask=torch.ones(1, 16, 24))
    with pytest.raises(BadInput, match="mask.*empty"):
        SideBySideCanvas().sheet(RED, BLUE, torch.zeros(1, 16, 24))
    with pytest.raises(BadInput, match="target.*3 pictures.*Give one, or 3|source.*2 pictures.*Give one, or 3"):
        SideBySideCanvas().sheet(RED, BLUE[:1].expand(3, -1, -1, -1))
    with pytest.raises(BadInput, match="Side-by-Side Crop.*samples"):
        _crop("left", 0)
