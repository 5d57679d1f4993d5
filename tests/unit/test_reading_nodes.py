"""What the reading nodes take and refuse, before any network runs."""
import pytest
import torch

from lodestar.guidance.method import BadInput
from lodestar.nodes import definitions, reading

NODES = definitions()
IDS = ("LodestarDiffusionClassifier", "LodestarPromptInformation", "LodestarCrossAttentionSegmentation", "LodestarDenseCorrespondence")
pytestmark = pytest.mark.method(*IDS)


class VAE:
    def encode(self, pixels):
        assert pixels.shape[0] == 1 and pixels.shape[-1] == 3      # each a picture of its own
        return pixels.movedim(-1, 1)[:, :, ::8, ::8]


def test_a_picture_comes_as_one_of_two():
    image, latent = torch.rand(2, 16, 24, 4), {"samples": torch.zeros(1, 4, 3, 5)}
    found, size = reading._picture("T", image, VAE(), None)
    assert found["samples"].shape == (2, 3, 2, 3) and size == (16, 24)
    assert reading._picture("T", None, None, latent) == (latent, (24, 40))
    for given in ((image, VAE(), latent), (None, VAE(), None)):
        with pytest.raises(BadInput, match="T: picture"):
            reading._picture("T", *given)
    with pytest.raises(BadInput, match="T: vae"):
        reading._picture("T", image, None, None)
    video = {"samples": torch.zeros(1, 4, 3, 2, 2)}
    with pytest.raises(BadInput, match="T: latent = '3 frames'"):
        reading._picture("T", None, None, video)
    assert reading._picture("T", None, None, video, frames=True)[0] is video


def test_classes_of_the_classifier():
    conditionings = [["one", {}], ["two", {}]]
    assert [n for n, _ in reading._classes("T", "", None, conditionings)] == ["conditioning 1", "conditioning 2"]
    with pytest.raises(BadInput, match="T: captions"):
        reading._classes("T", " \n", None, conditionings[:1])
    with pytest.raises(BadInput, match="T: clip"):
        reading._classes("T", "a cat\na dog", None, None)


@pytest.mark.parametrize("node_id,name,value", (
    (IDS[0], "stages", "8"), (IDS[0], "loss", "l3"), (IDS[1], "form", "other"), (IDS[1], "samples", 0), (IDS[2], "threshold", 2.0), (IDS[2], "level", -1.0),
    (IDS[3], "features", "values"), (IDS[3], "samples", 0)))
def test_values_out_of_range_are_named(node_id, name, value):
    d = NODES[node_id]
    given = {i.name: i.default if i.widget else None for i in d.inputs}
    with pytest.raises(BadInput, match=f"{d.title}: {name} = "):
        d.call({**given, name: value})
