"""Degradation-Guided LoRA (S3Diff) on tensors: the middle matrices, the layers, files, the estimator, and where a restoration begins."""
import math
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from lodestar.demo.degradation_lora import ESTIMATOR, NAME, fresh, fresh_estimator, targets
from lodestar.guidance.attention.module_edits import ModuleSite, diffusers_names, host_name
from lodestar.guidance.inverse.degradation import Degradation, parse_estimator
from lodestar.guidance.inverse.degradation_lora import ALPHA, DegradationGuidedLora, ModulatedLayers, parse
from lodestar.guidance.method import BadInput, Step
from lodestar.guidance.samplers.restoration_start import RestorationStart, share, start

pytestmark = pytest.mark.method("LodestarDegradationGuidedLora")
RANK = 3


def random(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


class Resnet(nn.Module):
    def __init__(self, given, out):
        super().__init__()
        self.in_layers = nn.Sequential(nn.GroupNorm(1, given), nn.SiLU(), nn.Conv2d(given, out, 3, padding=1))
        self.emb_layers = nn.Sequential(nn.SiLU(), nn.Linear(4, out))
        self.out_layers = nn.Sequential(nn.GroupNorm(1, out), nn.SiLU(), nn.Identity(), nn.Conv2d(out, out, 3, padding=1))
        self.skip_connection = nn.Conv2d(given, out, 1) if given != out else nn.Identity()


class Transformer(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.proj_in, self.proj_out = nn.Linear(width, width), nn.Linear(width, width)
        block = nn.Module()
        block.attn1 = nn.Module()
        block.attn1.to_q, block.attn1.to_out = nn.Linear(width, width, bias=False), nn.Sequential(nn.Linear(width, width))
        self.transformer_blocks = nn.ModuleList([block])


class Sampling(nn.Module):
    def __init__(self, width, name, stride=1):
        super().__init__()
        setattr(self, name, nn.Conv2d(width, width, 3, stride=stride, padding=1))


class UNet(nn.Module):
    """The modules of a U-Net of two levels under the host's names; it is never run."""

    def __init__(self):
        super().__init__()
        self.input_blocks = nn.ModuleList([nn.ModuleList([nn.Conv2d(4, 4, 3, padding=1)]), nn.ModuleList([Resnet(4, 4), Transformer(4)]), nn.ModuleList([Sampling(4, "op", 2)]), nn.ModuleList([Resnet(4, 8), Transformer(8)])])
        self.middle_block = nn.ModuleList([Resnet(8, 8), Transformer(8), Resnet(8, 8)])
        self.output_blocks = nn.ModuleList([nn.ModuleList([Resnet(16, 8), Transformer(8)]), nn.ModuleList([Resnet(12, 8), Transformer(8), Sampling(8, "conv")]),
                                            nn.ModuleList([Resnet(12, 4)]), nn.ModuleList([Resnet(8, 4), Transformer(4)])])
        self.out = nn.Sequential(nn.GroupNorm(1, 4), nn.SiLU(), nn.Conv2d(4, 4, 3, padding=1))


@pytest.fixture(scope="module")
def network():
    torch.manual_seed(0)
    return UNet().requires_grad_(False)


def weights_of(network, seed=1, strength=0.3):
    w = fresh(network, RANK, seed)
    return {k: v + strength * random(*v.shape, seed=i) if "lora_B" in k else v for i, (k, v) in enumerate(w.items())}


@pytest.fixture(scope="module")
def lora(network):
    return parse(weights_of(network), "test", "file")


def site(n, step=None):
    kept = {}

    def keep(key, make):
        if key not in kept:
            kept[key] = make()
        return kept[key]
    return ModuleSite(torch.arange(n), keep, step)


def test_every_layer_is_found_by_diffusers_name(network):
    table = diffusers_names(network)
    for name, path in {"conv_in": "input_blocks.0.0", "down_blocks.0.downsamplers.0.conv": "input_blocks.2.0.op", "down_blocks.1.resnets.0.conv_shortcut": "input_blocks.3.0.skip_connection",
                       "mid_block.resnets.1.conv2": "middle_block.2.out_layers.3", "up_blocks.0.upsamplers.0.conv": "output_blocks.1.2.conv", "up_blocks.1.attentions.1.proj_in": "output_blocks.3.1.proj_in",
                       "up_blocks.1.resnets.0.time_emb_proj": "output_blocks.2.0.emb_layers.1", "conv_out": "out.2",
                       "mid_block.attentions.0.transformer_blocks.0.attn1.to_out.0": "middle_block.1.transformer_blocks.0.attn1.to_out.0"}.items():
        assert host_name(table, name) == path and network.get_submodule(path) is not None
    assert host_name(table, "up_blocks.7.resnets.0.conv1") is None
    found = targets(network)
    layers = {id(m) for m in network.modules() if isinstance(m, (nn.Linear, nn.Conv2d))} - {id(m.emb_layers[1]) for m in network.modules() if hasattr(m, "emb_layers")} - {id(network.input_blocks[0][0])}
    assert {id(m) for m in found.values()} == layers      # all but those of the timestep and the input, as the authors have it


def test_middle_matrices_are_the_papers_formula(network, lora):
    w, scores = weights_of(network), torch.tensor([[0.2, 0.7], [1.0, 0.0]])
    cores = lora.cores(scores)
    assert cores.shape == (2, 6, RANK, RANK)
    for i, (blur, noise) in enumerate(scores.tolist()):
        seen = torch.cat([torch.cat((torch.sin(2 * math.pi * s * w["w"]), torch.cos(2 * math.pi * s * w["w"]))) for s in (blur, noise)])
        seen = F.relu(w["state_dict_unet_de_mlp.0.weight"] @ seen + w["state_dict_unet_de_mlp.0.bias"])
        for b in range(6):
            block = F.relu(w["state_dict_unet_block_mlp.0.weight"] @ w["state_embeddings.state_dict_unet_block.weight"][b] + w["state_dict_unet_block_mlp.0.bias"])
            flat = w["state_dict_unet_fuse_mlp.weight"] @ torch.cat((seen, block)) + w["state_dict_unet_fuse_mlp.bias"]
            torch.testing.assert_close(cores[i, b], flat.view(RANK, RANK))
    assert (cores[0] - cores[1]).abs().max() > 1e-2
    assert [lora.block(n) for n in ("down_blocks.1.resnets.0.conv1", "mid_block.resnets.0.conv1", "up_blocks.0.resnets.0.conv1", "up_blocks.1.attentions.0.proj_in", "conv_out")] == [1, 2, 3, 4, 5]


@pytest.mark.parametrize("name, shape", [("mid_block.attentions.0.proj_in", (2, 5, 8)), ("down_blocks.0.downsamplers.0.conv", (2, 4, 6, 6)), ("up_blocks.0.resnets.0.conv_shortcut", (2, 16, 4, 4))])
def test_a_layer_is_one_matrix_for_each_picture(network, lora, name, shape):
    """The LoRA with its core as one weight of the same kind as the layer's own."""
    module, x = targets(network)[name], random(*shape, seed=4)
    scores = ((0.1, 0.9), (0.6, 0.3))
    edit = ModulatedLayers("", lora, Degradation(scores), 0.7)
    out = edit.result(site(2), name, module, module(x), x)
    cores = lora.cores(torch.tensor(scores))[:, lora.block(name)]
    down, up = lora.layers[name]
    for i in range(2):
        both = 0.7 * ALPHA / RANK * torch.einsum("or,kr,k...->o...", up.flatten(1), cores[i], down)
        whole = module.weight + both.view_as(module.weight)
        wanted = F.linear(x[i:i + 1], whole, module.bias) if x.ndim == 3 else F.conv2d(x[i:i + 1], whole, module.bias, module.stride, module.padding)
        torch.testing.assert_close(out[i:i + 1], wanted, atol=1e-4, rtol=1e-4)


def test_identity_cores_are_an_ordinary_lora_and_no_b_is_none(network):
    w = {k: torch.zeros_like(v) if k.startswith("state_dict_unet_fuse_mlp.weight") else v for k, v in weights_of(network).items()}
    name, x = "mid_block.attentions.0.proj_in", random(2, 5, 8)
    module, plain = targets(network)[name], parse(w, "test", "file")
    down, up = plain.layers[name]
    out = ModulatedLayers("", plain, Degradation(((0.3, 0.3),)), 1.0).result(site(2), name, module, module(x), x)
    torch.testing.assert_close(out, module(x) + ALPHA / RANK * x @ down.T @ up.T)
    none = parse(fresh(network, RANK), "test", "file")
    assert torch.equal(ModulatedLayers("", none, Degradation(((0.3, 0.3),)), 1.0).result(site(2), name, module, module(x), x), module(x))


def test_an_input_convolution_of_its_own(network):
    conv = network.input_blocks[0][0]
    own = {"weight": random(4, 4, 3, 3, seed=7), "bias": random(4, seed=8)}
    lora = parse(weights_of(network) | {f"state_dict_unet.conv_in.{k}": v for k, v in own.items()} | {"state_dict_vae_fuse_mlp.weight": torch.zeros(4, 4)}, "test", "file")
    x = random(2, 4, 5, 5)
    for strength in (0.5, 1.0):
        edit = ModulatedLayers("", lora, Degradation(((0, 0),)), strength)
        assert "conv_in" in edit.names()
        mixed = conv.weight + strength * (own["weight"] - conv.weight), conv.bias + strength * (own["bias"] - conv.bias)
        torch.testing.assert_close(edit.result(site(2), "conv_in", conv, conv(x), x), F.conv2d(x, *mixed, padding=1), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("change, message", [
    (lambda w: {"lora_unet_x.lora_up.weight": torch.zeros(2, 2)}, "holds no degradation-guided LoRA"),
    (lambda w: w | {"other": torch.zeros(2)}, "keys are not known"),
    (lambda w: {k: v for k, v in w.items() if k != "w"}, "w missing"),
    (lambda w: {k: v for k, v in w.items() if "proj_in.lora_B" not in k}, "lora_B missing"),
    (lambda w: w | {"state_dict_unet_fuse_mlp.weight": torch.zeros(8, 80)}, "rank x rank"),
    (lambda w: w | {"w": torch.zeros(3)}, "four times as many"),
    (lambda w: w | {"state_dict_unet.conv_in.weight": torch.zeros(4, 4, 3, 3)}, "bias of conv_in")])
def test_wrong_files_are_named(network, change, message):
    with pytest.raises(BadInput, match=message):
        parse(change(weights_of(network)), "Load Degradation LoRA", "file", "a file")


def test_what_cannot_be_is_named(network, lora):
    from lodestar.guidance.host.modules import shapes
    from lodestar.guidance.layers import Geometry
    facts = SimpleNamespace(network="UNet", module_shapes=shapes(network, Geometry("unet", ())))
    done = DegradationGuidedLora(lora=lora, blur=0.2, noise=0.4).fitted(facts)
    edit, = done.edits(Step(torch.zeros(1, 4, 4, 4), torch.ones(1)))
    assert edit.degradation == Degradation(((0.2, 0.4),)) and edit == done.edits(Step(torch.zeros(1, 4, 4, 4), torch.ones(1)))[0] and edit.wanted(None)
    with pytest.raises(BadInput, match="Connect Load Degradation LoRA"):
        DegradationGuidedLora().fitted(facts)
    with pytest.raises(BadInput, match="Connect Estimate Degradation"):
        DegradationGuidedLora(lora=lora, degradation=3).fitted(facts)
    with pytest.raises(BadInput, match="Use a U-Net"):
        DegradationGuidedLora(lora=lora).fitted(SimpleNamespace(network="Flux", module_shapes=shapes(network, Geometry("flux", ()))))
    for name, pair in (("up_blocks.9.resnets.0.conv1", (torch.zeros(RANK, 4), torch.zeros(4, RANK))), ("conv_out", (torch.zeros(RANK, 9, 3, 3), torch.zeros(4, RANK, 1, 1)))):
        other = parse(weights_of(network) | {f"state_dict_unet.{name}.lora_{s}.default.weight": t for s, t in zip("AB", pair)}, "test", "file")
        with pytest.raises(BadInput, match=f"another model: {name}"):
            DegradationGuidedLora(lora=other).fitted(facts)
    assert DegradationGuidedLora(strength=0.0).neutral()
    with pytest.raises(BadInput, match="blur"):
        DegradationGuidedLora(blur=1.5).validate()


def test_the_estimator_is_its_layers():
    w, u = fresh_estimator(3), random(3, 3, 16, 16, seed=5).sigmoid()
    found = parse_estimator({f"module.{k}": v for k, v in w.items()}, "test", "file")(u)
    conv = lambda x, name, stride=1: F.conv2d(x, w[f"{name}.weight"], w[f"{name}.bias"], stride, 1)
    for i in range(2):
        h = conv(u, f"conv_first.{i}")
        h = h + conv(F.relu(conv(h, f"body.{i}.0.conv1")), f"body.{i}.0.conv2")
        h = conv(h, f"body.{i}.1", 2)
        h = (h + conv(F.relu(conv(h, f"body.{i}.2.conv1")), f"body.{i}.2.conv2")).mean((2, 3))
        h = F.relu(h @ w[f"fc_degree.{i}.0.weight"].T + w[f"fc_degree.{i}.0.bias"]) @ w[f"fc_degree.{i}.2.weight"].T + w[f"fc_degree.{i}.2.bias"]
        torch.testing.assert_close(found[:, i], torch.sigmoid(h)[:, 0])
    with pytest.raises(BadInput, match="conv_first.1.weight"):
        parse_estimator({k: v for k, v in w.items() if k != "conv_first.1.weight"}, "test", "file")
    with pytest.raises(BadInput, match="two are wanted"):
        parse_estimator({k: v for k, v in w.items() if ".1." not in k or k.startswith(("body.0.1", "conv_first.0", "fc_degree.0"))}, "test", "file")
    with pytest.raises(BadInput, match="keys are not those"):
        parse_estimator({"x": torch.zeros(1)}, "test", "file")


@pytest.mark.method("LodestarRestorationStart")
def test_restorations_begin_between_picture_and_noise():
    z, n = random(2, 4, 64, 64), random(2, 4, 64, 64, seed=1)
    for flow, sigma in ((False, 14.6), (False, 1.0), (True, 1.0), (True, 0.6)):
        size = math.hypot(1 - sigma if flow else 1.0, sigma)
        torch.testing.assert_close(start(z, n, sigma, flow, 1.0), size * z)
        half = start(z, n, sigma, flow, 0.5)
        torch.testing.assert_close(half, size * (z + n) / 2 ** 0.5)
        assert abs(half.var().sqrt() / size - 1) < 0.02      # of the size that the level has; 32768 values
    assert share(0.0, False) == 1 and share(1.0, False) == 0.5 and share(1.0, True) == 0
    own = share(2.0, False)      # at the schedule's own level it is the host's noising
    torch.testing.assert_close(start(z, n, 2.0, False, own), z + 2.0 * n)
    torch.testing.assert_close(start(z, n, 0.7, True, share(0.7, True)), 0.3 * z + 0.7 * n)
    with pytest.raises(BadInput, match="noise"):
        RestorationStart(noise=2.0).validate()


def test_the_bundled_files():
    import json
    import os

    from lodestar.demo.weights_file import FOLDER, read
    lora, estimator = parse(read(NAME), "test", "file"), parse_estimator(read(ESTIMATOR), "test", "file")
    assert lora.levels == 2 and len(lora.layers) > 60 and estimator.kinds == 2
    for name, share_of in ((NAME, 0.7), (ESTIMATOR, 0.55)):
        assert os.path.getsize(os.path.join(FOLDER, f"{name}.safetensors")) < 2_000_000
        with open(os.path.join(FOLDER, f"{name}.json"), encoding="utf-8") as f:
            figures = json.load(f)
        assert figures["loss"] < share_of * figures["loss_without_training"]
