"""Exposure Diffusion on a real ComfyUI: its device, its progress, its interruption."""
import pytest
import torch

pytest.importorskip("torch")
pytestmark = [pytest.mark.method("LodestarExposureDiffusion"), pytest.mark.newest]


@pytest.fixture
def method(host):
    from lodestar.demo.exposure import network
    from lodestar.guidance.inverse.exposure import ExposureDiffusion
    from lodestar.guidance.inverse.operators.exposed import SensorExposure
    return ExposureDiffusion(operator=SensorExposure(ratio=20.0), network=network(), steps=3).validate()


def test_is_the_method_itself_and_counts_its_steps(method, monkeypatch):
    import comfy.utils
    from lodestar.guidance.host.exposure import exposed
    y, seen = 0.05 * torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0)), []
    monkeypatch.setattr(comfy.utils.ProgressBar, "update", lambda self, n: seen.append(n))
    with torch.inference_mode():
        found = exposed(method, y)
    assert len(found) == 3 and seen == [1] * 6
    for a, b in zip(found, method.restored(y)):
        torch.testing.assert_close(a, b, atol=1e-5, rtol=0)


def test_its_node(method):
    from lodestar.guidance.inverse.exposure import FORMS
    from lodestar.nodes.exposure import BUNDLED, NODES
    by_id, image = {d.node_id: d for d in NODES}, torch.rand(2, 16, 16, 3) / 10
    given = dict(operator=method.operator, image=image, steps=2, form=FORMS[1], seed=1)
    with torch.inference_mode():
        network, = by_id["LodestarLoadExposureNetwork"].call({"file": BUNDLED})[0]
        out, first = by_id["LodestarExposureDiffusion"].call(given)[0]
        assert out.shape == first.shape == image.shape and not torch.equal(out, first)
        assert torch.equal(out, by_id["LodestarExposureDiffusion"].call({**given, "network": network})[0][0])


def test_stops_before_the_next_exposure(method):
    import comfy.model_management as management
    from lodestar.guidance.host.exposure import exposed
    calls = []

    class Watched:
        def __call__(self, bright, counts, first):
            calls.append(1)
            management.interrupt_current_processing(True)
            return bright
    from dataclasses import replace
    with pytest.raises(management.InterruptProcessingException):
        exposed(replace(method, network=Watched()), torch.full((1, 3, 8, 8), 0.02))
    assert len(calls) == 1
    management.interrupt_current_processing(False)
