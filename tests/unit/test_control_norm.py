"""ControlNorm on tensors, and its weight files."""
from types import SimpleNamespace

import pytest
import torch

from lodestar.guidance.attention.control_norm import ControlEdit, ControlNorm, injected, parse
from lodestar.guidance.host.control_hooks import Injected, wrapped
from lodestar.guidance.layers import Geometry
from lodestar.guidance.method import BadInput

pytestmark = pytest.mark.method("LodestarControlNorm")
C = 6


def noise(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


H, R = noise(2, C, 4, 4), noise(2, C, 4, 4, seed=1)
ADDED = torch.cat((torch.zeros(C, C), torch.eye(C)))


def test_the_formula():
    w, b = noise(2 * C, C, seed=2), noise(2 * C, seed=3)
    both = torch.einsum("oc,nchw->nohw", w, R) + b[:, None, None]
    wanted = H + 0.5 * (both[:, :C] * H + both[:, C:])
    torch.testing.assert_close(injected(H, R, (w, b), 0.5), wanted, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(injected(H, both, None, 0.5), wanted, rtol=1e-4, atol=1e-5)      # a network that makes gamma and beta itself
    torch.testing.assert_close(injected(H, R, (ADDED, torch.zeros(2 * C)), 1.0), H + R)
    assert torch.equal(injected(H, R, None, 1.0), H + R) and torch.equal(injected(H, R, None, 0.0), H)


def test_weight_files():
    state = {"middle.0.weight": noise(2 * C, C, 1, 1), "middle.0.bias": noise(2 * C, seed=1), "output.3.weight": noise(8, 4)}
    found = parse(state).projections
    assert set(found) == {("middle", 0), ("output", 3)} and found["middle", 0][0].shape == (2 * C, C) and not found["output", 3][1].any()
    for wrong, what in (({"middle.0.weight": noise(C, C)}, "middle.0.weight has the shape"), ({"input.0.weight": noise(4, 2)}, "input.0.weight"), ({}, "no projections"),
                        ({"middle.0.weight": noise(4, 2), "middle.0.bias": noise(3)}, "middle.0.bias has the shape"), ({"middle.0.weight": noise(4, 2), "output.1.bias": noise(3)}, "output.1.bias")):
        with pytest.raises(BadInput, match=f"Load ControlNorm.*{what}.*output.<i>.weight"):
            parse(wrong)


def test_residuals_say_how_they_enter():
    """As the host adds them: in place, and with what goes wrong kept."""
    weights = parse({"output.1.weight": noise(2 * C, C), "middle.0.weight": noise(10, 5)})
    edit = ControlEdit("none", weights, 1.0)
    call = SimpleNamespace(edited=(edit,))
    control, errors = wrapped(call, {"output": [R, R * 2, None], "middle": [R], "input": [R]})
    assert control["input"] == [R] or control["input"][0] is R
    assert control["output"][2] is None and [control["output"][i].number for i in (0, 1)] == [2, 1]
    h = H.clone()
    h += control["output"][1]
    torch.testing.assert_close(h, injected(H, R * 2, weights.projections["output", 1], 1.0))
    h = H.clone()
    h += control["output"][0]
    torch.testing.assert_close(h, H + R)      # no projection for it
    with pytest.raises(BadInput, match="5 channels"):
        h += control["middle"][0]
    assert len(errors) == 1 and control["middle"][0].shape == R.shape and isinstance(control["middle"][0], Injected)
    assert wrapped(SimpleNamespace(edited=()), {"output": [R]})[0]["output"][0] is R and wrapped(call, None) == (None, [])


def test_where_it_has_no_meaning():
    with pytest.raises(BadInput, match="U-Net"):
        ControlNorm().fitted(SimpleNamespace(geometry=Geometry("flux", ()), network="Flux"))
