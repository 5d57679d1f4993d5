"""Which runs' hooks are left out of what torch.compile traces."""
from types import SimpleNamespace

import pytest
import torch

from lodestar.guidance.host.attach import KEY
from lodestar.guidance.host.compiled import eager


def session(network, **wrappers):
    given = {"apply_model": wrappers}
    return SimpleNamespace(model=SimpleNamespace(diffusion_model=network), guider=SimpleNamespace(model_options={}, model_patcher=SimpleNamespace(wrappers=given)))


def network():
    return torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.Sequential(torch.nn.Linear(2, 2)))


def hook(x):
    return x


def left_out(run):
    return eager(hook, session=run) is not hook


def test_hooks_of_a_plain_network_stay_as_they_are():
    import torch._dynamo      # noqa: F401  (somebody in the process compiles)
    assert not left_out(session(network()))
    assert not left_out(session(network(), **{KEY: [hook]}))
    assert eager(hook) is not hook      # nothing is known of the run


def compiled(whole):
    net = network()
    if whole == "network":
        return torch.compile(net, backend="eager")
    if whole == "module":
        net[1] = torch.compile(net[1], backend="eager")
    elif whole == "in place":
        net[1][0].compile(backend="eager")
    else:
        net[1][0].forward = torch.compile(net[1][0].forward, backend="eager")
    return net


@pytest.mark.parametrize("part", ("network", "module", "in place", "forward"))
def test_hooks_in_a_network_of_which_a_part_is_compiled_are_left_out(part):
    assert left_out(session(compiled(part)))


def test_hooks_inside_another_wrapper_are_left_out():
    """The host's own node swaps the compiled network in there, where it cannot be seen before."""
    assert left_out(session(network(), **{KEY: [hook], "torch.compile": [hook]}))
    assert not left_out(session(network(), other=[]))
    old = session(network())
    old.guider = SimpleNamespace()      # of hosts before the wrappers
    assert left_out(old)
