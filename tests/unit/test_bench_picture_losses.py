"""The bench of the losses of pictures: each has an entry, and its value is of each picture with what is wanted of it."""
from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from lodestar.bench import picture_losses
from lodestar.bench.plan import table
from lodestar.bench.subject import Subject, cases
from lodestar.demo.scenes import COLOURS, SIZE, render
from lodestar.nodes.losses import NODES


class Fake:
    """A subject whose latents are the pictures themselves."""

    build = Subject.build
    model = SimpleNamespace(get_model_object=lambda name: SimpleNamespace(process_in=lambda z: z))
    vae = SimpleNamespace(decode=lambda z: z.movedim(1, -1))

    def value(self, text, batch):
        return (lambda z: z) if text == "$decoder" else picture_losses.value(text, self, batch)

    def target(self, batch):
        return torch.nn.functional.interpolate(torch.stack([render(c.scene) for c in batch]), scale_factor=picture_losses.PIXELS // SIZE)


def measured(latents, found):
    return SimpleNamespace(subject=Fake(), cases=found, main=list(range(len(found))), latents=latents)


def test_every_loss_of_pictures_is_measured():
    entries = table()
    assert {d.node_id for d in NODES} - {"LodestarCombineLosses", "LodestarQRCodeLoss"} <= set(entries)      # bench.codes measures the latter
    claimed = {c.metric for e in entries.values() for comparison in e.comparisons for c in comparison.claims}
    assert set(picture_losses.METRICS) <= claimed


@pytest.mark.parametrize("metric", picture_losses.METRICS)
def test_values_are_least_where_the_picture_is_what_is_wanted(metric):
    found = cases(3, 1, "colourless")[::-1]      # of three batches, which are put together in their order
    subject = Fake()
    right, noise = subject.target(found), torch.randn(3, 3, picture_losses.PIXELS, picture_losses.PIXELS, generator=torch.Generator().manual_seed(0))
    if metric == "coloured_shape":
        disc = picture_losses.value("$disc", subject, found)
        right = torch.stack([0.5 + disc * (torch.tensor(COLOURS[c.forbidden])[:, None, None] - 0.5) for c in found])
    elif metric == "asymmetry":
        right = right + right.flip(-1)
    good, bad = (picture_losses.values(metric, measured(z, found)) for z in (right, noise))
    assert good.shape == (3,) and bool((good < bad).all()) and bool((good >= 0).all())
    if metric in ("wavelet", "edges", "spectrum", "colours", "structure_loss", "beyond_range"):
        assert float(good.max()) < 1e-6
    mixed = picture_losses.values(metric, measured(torch.cat((right[:1], noise[1:])), found))
    assert torch.allclose(mixed, torch.cat((good[:1], bad[1:])), rtol=1e-4, atol=1e-7)
