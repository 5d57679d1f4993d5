"""Rotary embeddings of every family, read from what the blocks are given: undone queries are those of the network without the embedding."""
import pytest
import torch

pytest.importorskip("torch")

import lodestar.tests.architectures as zoo      # noqa: E402
from lodestar.guidance.attention.edits import AttentionEdit      # noqa: E402
from lodestar.guidance.host import geometry      # noqa: E402
from lodestar.guidance.method import Branch      # noqa: E402

NAMES = ("pe", "image_rotary_emb", "freqs", "freqs_cis", "rope", "rope_emb_L_1_1_D")
WITHOUT = ("sd3", "sd35", "aura")


@pytest.fixture(scope="module", autouse=True)
def modern(host):
    from lodestar.guidance.host.features import wrappers
    if not wrappers():
        pytest.skip("this host has U-Nets alone")


def build(name, rows=2):
    with torch.inference_mode():
        try:
            return zoo.Lab(zoo.build(name), rows)
        except (ImportError, TypeError) as error:
            pytest.skip(f"this host's {name} is missing or another one: {error}")


class Capture(AttentionEdit):
    """Changes nothing; keeps the queries and what is known of their rotation."""

    unrotates = True
    seen = []

    def apply(self, site, q, k, v, attend):
        Capture.seen.append((q.clone(), site.rotation, site.image))
        return attend(q, k, v)


def still(pe):
    """An embedding of the same form that turns nothing."""
    if isinstance(pe, (tuple, list)):
        if isinstance(pe[1], bool):
            return (still(pe[0]), pe[1])
        return (torch.ones_like(pe[0]), torch.zeros_like(pe[1]), *pe[2:])
    return torch.eye(2).to(pe).expand_as(pe).clone()


class Still:
    """The network's blocks without their rotary embedding."""

    def __init__(self, net):
        self.modules = [geometry.block_modules(net, x)["space"] for x in geometry.of_network(net).layers]

    def __enter__(self):
        import inspect
        for module in self.modules:
            signature, inner = inspect.signature(type(module).forward), module.forward

            def forward(*args, module=module, signature=signature, inner=inner, **kwargs):
                bound = signature.bind(module, *args, **kwargs)
                for name in NAMES:
                    if bound.arguments.get(name) is not None:
                        bound.arguments[name] = still(bound.arguments[name])
                return inner(*bound.args[1:], **bound.kwargs)
            module.forward = forward

    def __exit__(self, *error):
        for module in self.modules:
            del module.forward


@pytest.mark.method("LodestarSmoothedEnergyGuidance")
@pytest.mark.parametrize("name", sorted(zoo.FAMILIES))
def test_queries_are_turned_back(name):
    lab = build(name)
    first = lab.specimen.names()[0]
    branch, chunk = Branch(edits=(Capture(first),)), lab.inputs(1)

    def queries():
        Capture.seen = []
        lab.run([branch, Branch("negative")], [chunk, lab.inputs(2)])
        return Capture.seen[0]
    turned, rotation, image = queries()
    with Still(lab.specimen.net):
        plain, _, _ = queries()
    if name in WITHOUT:
        assert rotation is None and torch.equal(turned, plain)
        return
    assert (turned - plain).abs().max() > 1e-2 * plain.abs().max()
    back = rotation.turn(turned, back=True)
    assert (back - plain).abs().max() < 2e-3 * plain.abs().max()
    part = rotation.turn(turned[:, :, image], image, back=True)
    assert (part - plain[:, :, image]).abs().max() < 2e-3 * plain.abs().max()
