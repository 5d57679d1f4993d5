"""Losses that look through an encoder, on a real ComfyUI: its CLIP_VISION with a gradient, its CLIP, and sampling that is led."""
import json

import pytest
import torch

NODES = {"LodestarCLIPTextLoss": {"text": "a red circle"}, "LodestarCLIPImageLoss": {}, "LodestarExemplarLoss": {}, "LodestarStyleLoss": {"layers": "1"}, "LodestarFeatureLoss": {"mode": "squared"},
         "LodestarClassifierLoss": {"classes": "red circle", "cutouts": 2}, "LodestarSegmentationLoss": {"label": "red"}, "LodestarPreferenceLoss": {}, "LodestarSemanticGuidanceLoss": {"text": "a red circle"}}
ALL = pytest.mark.method("LodestarCLIPTextLoss", "LodestarCLIPImageLoss", "LodestarStyleLoss", "LodestarFeatureLoss", "LodestarClassifierLoss", "LodestarSegmentationLoss", "LodestarPreferenceLoss",
                         "LodestarExemplarLoss", "LodestarSemanticGuidanceLoss")


@pytest.fixture(scope="module")
def lab(host, tmp_path_factory):
    from lodestar.tests.sampler_lab import SamplerLab
    lab = SamplerLab()
    config = tmp_path_factory.mktemp("vision") / "tiny.json"
    config.write_text(json.dumps({"hidden_act": "quick_gelu", "hidden_size": 24, "image_size": 32, "intermediate_size": 48, "num_attention_heads": 2, "num_channels": 3, "num_hidden_layers": 3,
                                  "patch_size": 8, "projection_dim": 16, "model_type": "clip_vision_model", "layer_norm_eps": 1e-5}))

    def vision(dtype=torch.float32):
        import comfy.clip_vision
        with torch.inference_mode():      # as a loader's node runs
            made = comfy.clip_vision.ClipVisionModel(str(config))
            generator = torch.Generator().manual_seed(1)
            made.model.load_state_dict({k: torch.randn(v.shape, generator=generator) * (0.2 if v.ndim > 1 else 0.05) + (1.0 if "norm" in k and k.endswith("weight") else 0.0) if v.is_floating_point() else v
                                        for k, v in made.model.state_dict().items()})
            made.model.to(dtype)
        made.image_size = 32      # the oldest host knows 224 alone
        return made
    lab.vision = vision
    from lodestar.demo.loader import load_demo_model
    with torch.inference_mode():
        lab.scenes, = lab.node("LodestarLoadDemoVision", encoder="scenes and captions")
        lab.clip = load_demo_model("unet")[1]
    return lab


def pictures(n=2, side=32, seed=0):
    return torch.rand(n, 3, side, side, generator=torch.Generator().manual_seed(seed))


@pytest.mark.method("LodestarFeatureLoss", "LodestarStyleLoss", "LodestarCLIPImageLoss")
@pytest.mark.parametrize("dtype", (torch.float32, torch.float16))
def test_the_host_s_encoder_sees_the_same_and_has_a_gradient(lab, dtype):
    """The embedding and the layer before the last are those of CLIP Vision Encode; the slope is that of finite differences."""
    from lodestar.guidance.host.vision import encoder
    model = lab.vision(dtype)
    made, u = encoder(model, "test"), pictures()
    u = (u * 255).round() / 255      # the host rounds
    with torch.inference_mode():
        wanted = model.encode_image(u.movedim(1, -1))
    loose = dict(rtol=1e-3, atol=1e-3)
    seen = made.see(u, (0, 2, 3))
    torch.testing.assert_close(seen.embedding, wanted["image_embeds"].float(), **loose)
    tokens = lambda n: seen.maps[n].flatten(2).transpose(1, 2)
    torch.testing.assert_close(tokens(2), wanted["penultimate_hidden_states"].float()[:, 1:], **loose)
    torch.testing.assert_close(tokens(3), wanted["last_hidden_state"].float()[:, 1:], **loose)
    assert seen.maps[0].shape == (2, 24, 4, 4) and made.layers == (0, 1, 2, 3) and not model.model.vision_model.encoder.layers[0]._forward_hooks
    leaf, along = u.clone().requires_grad_(), pictures(seed=3) - 0.5
    weights = torch.randn(seen.embedding.shape, generator=torch.Generator().manual_seed(4))
    with torch.inference_mode():      # samplers run in it
        from lodestar.guidance.gradients import plain_context
        with plain_context():
            slope, = torch.autograd.grad((made.see(leaf).embedding * weights).sum(), leaf)
    if dtype == torch.float32:
        h = 1e-2
        with torch.no_grad():
            by_hand = ((made.see(u + h * along).embedding - made.see(u - h * along).embedding) * weights).sum() / (2 * h)
        torch.testing.assert_close((slope * along).sum(), by_hand, rtol=2e-2, atol=1e-3)
    assert torch.isfinite(slope).all() and (slope != 0).any()


def given(lab, node_id, vision, model):
    """The wires of a loss node."""
    names = {i.name for i in lab.definitions[node_id].inputs}
    bundled = lambda file: lab.node("LodestarLoadVisionNetwork", file=file)[0]
    from lodestar.nodes.encoders import TASTE, VGG
    wires = {"model": model, "space": "small", "image": torch.rand(2, 40, 32, 3, generator=torch.Generator().manual_seed(5)), "clip_vision": vision, "clip": lab.clip, "vae": None}
    if node_id in ("LodestarClassifierLoss", "LodestarSegmentationLoss"):
        wires |= {"classifier": bundled(VGG), "network": bundled(VGG), "region": torch.ones(1, 8, 8).tril()}
    if node_id == "LodestarPreferenceLoss":
        wires |= {"head": bundled(TASTE), "clip": None}
    return {k: v for k, v in wires.items() if k in names} | NODES[node_id]


@ALL
@pytest.mark.parametrize("node_id, kind", [*((n, "unet") for n in NODES), ("LodestarCLIPTextLoss", "flux"), ("LodestarStyleLoss", "flux")])
def test_it_leads_and_off_is_the_plain_sampler(lab, node_id, kind):
    if kind not in lab.models:
        pytest.skip("this host has no Flux")
    from lodestar.guidance.host.attach import attach
    from lodestar.guidance.loss.universal import UniversalGuidance
    model, route = lab.models[kind], "network" if lab.modern else "none"
    with torch.inference_mode():
        loss, = lab.node(node_id, **given(lab, node_id, lab.scenes, model))
        off, = lab.node(node_id, **given(lab, node_id, lab.scenes, model), weight=0.0)
        led, unled = (attach(model, UniversalGuidance(loss=x, route=route, scale=2.0)) for x in (loss, off))
    run = lambda m: lab.sample(lab.samplers.ksampler("euler"), kind, model=m, batch=2, steps=2 if kind == "unet" else 4)      # the first step of a flow has no signal to be led by
    plain = run(model)
    assert torch.equal(run(unled), plain)
    out = run(led)
    assert torch.isfinite(out).all() and (out - plain).abs().amax((1, 2, 3)).min() > 1e-3
    assert torch.equal(out, run(led))


@pytest.mark.method("LodestarCLIPImageLoss", "LodestarStyleLoss", "LodestarFeatureLoss", "LodestarExemplarLoss")
@pytest.mark.parametrize("node_id", ("LodestarCLIPImageLoss", "LodestarStyleLoss", "LodestarFeatureLoss", "LodestarExemplarLoss"))
def test_the_host_s_encoder_leads_each_entry_of_a_batch_alone(lab, node_id):
    from lodestar.guidance.host.attach import attach
    from lodestar.guidance.loss.universal import UniversalGuidance
    model = lab.models["unet"]
    with torch.inference_mode():
        wires = given(lab, node_id, lab.vision(torch.float16), model)
        loss, = lab.node(node_id, **wires | {"image": wires["image"][:1]})
        led = attach(model, UniversalGuidance(loss=loss, route="network" if lab.modern else "none"))
    euler = lab.samplers.ksampler("euler")
    out = lab.sample(euler, model=led, batch=2, steps=2)
    assert torch.isfinite(out).all() and (out - lab.sample(euler, batch=2, steps=2)).abs().max() > 1e-3
    assert (lab.sample(euler, model=led, steps=2) - out[:1]).abs().max() < 1e-3 * out.abs().max()


@pytest.mark.method("LodestarCLIPTextLoss")
def test_texts_of_another_clip_are_refused(lab):
    from lodestar.guidance.host.attach import attach
    from lodestar.guidance.loss.universal import UniversalGuidance
    from lodestar.guidance.method import BadInput
    model = lab.models["unet"]
    with torch.inference_mode():
        loss, = lab.node("LodestarCLIPTextLoss", model=model, clip_vision=lab.vision(), clip=lab.clip, text="a red circle", space="small")
        with pytest.raises(BadInput, match="Write what the picture"):
            lab.node("LodestarCLIPTextLoss", model=model, clip_vision=lab.vision(), clip=lab.clip, text=" ", space="small")
        with pytest.raises(BadInput, match="VAE"):
            lab.node("LodestarCLIPTextLoss", model=model, clip_vision=lab.vision(), clip=lab.clip, text="a red circle")
    with pytest.raises(ValueError, match="of one CLIP"):
        lab.sample(lab.samplers.ksampler("euler"), model=attach(model, UniversalGuidance(loss=loss, route="none")))


@pytest.mark.method("LodestarCLIPTextLoss", "LodestarClassifierLoss")
def test_the_bundled_encoder_knows_its_scenes(lab):
    """Captions find their pictures among 16, and kinds are told, by files of both kinds."""
    import random

    from lodestar.demo import scenes
    from lodestar.guidance.host.vision import text_embeddings
    from lodestar.guidance.loss.encoder import unit
    from lodestar.nodes.encoders import KINDS, VGG
    with torch.inference_mode():
        made, u = scenes.batch(random.Random(77), 16, 1)
        e, t = unit(lab.scenes.see(u).embedding), unit(text_embeddings(lab.clip, [s.caption for s in made], lab.scenes, "test"))
        nets = [lab.node("LodestarLoadVisionNetwork", file=f)[0] for f in (VGG, KINDS)]
        assert ((e @ t.T).argmax(1) == torch.arange(16)).float().mean() > 0.6
        names = [nets[1].classes[i] for i in nets[1].logits(e).argmax(1).tolist()]
        assert sum(n == f"{s.things[0].colour} {s.things[0].shape}" for n, s in zip(names, made)) >= 9
        for s, cells, kind in zip(made, nets[0].cells(u).argmax(1), nets[0].logits(u).softmax(1)):
            there = cells[int(s.things[0].y / 4), int(s.things[0].x / 4)]
            assert nets[0].labels[there] == s.things[0].colour
            assert kind[nets[0].classes.index(f"{s.things[0].colour} {s.things[0].shape}")] > 1 / 28      # more than by chance


@pytest.mark.newest
@pytest.mark.method("LodestarStyleLoss", "LodestarFeatureLoss", "LodestarClassifierLoss", "LodestarSegmentationLoss")
def test_files_of_torchvision_are_its_networks(lab):
    """Logits, cells and layers of VGG (plain and with batch norm), ResNet (both kinds of block) and FCN."""
    from torchvision.models import resnet, segmentation, vgg
    from torchvision.models._utils import IntermediateLayerGetter

    from lodestar.guidance.loss.networks import parse
    torch.manual_seed(0)
    u = pictures(1, 32)

    def settled(net):
        for module in net.modules():
            if isinstance(module, torch.nn.BatchNorm2d):
                module.running_mean.normal_(0, 0.1), module.running_var.uniform_(0.5, 1.5)
        return net.eval().requires_grad_(False)

    for norm in (False, True):
        net = settled(vgg.VGG(vgg.make_layers([6, "M", 8, 8, "M"], norm), 5, init_weights=True))
        net.classifier = torch.nn.Sequential(torch.nn.Linear(8 * 49, 12), torch.nn.ReLU(), torch.nn.Dropout(), torch.nn.Linear(12, 5)).requires_grad_(False).eval()
        ours = parse(net.state_dict(), {"size": "32"}, "vgg")
        torch.testing.assert_close(ours.logits(u), net(ours.prepared(u)))
        for n in ours.layers:
            torch.testing.assert_close(ours.see(u, (n,)).maps[n], net.features[:n](ours.prepared(u)))
    for block, more in ((resnet.BasicBlock, {}), (resnet.Bottleneck, {"width_per_group": 4})):
        net = settled(resnet.ResNet(block, [2, 1, 1, 1], num_classes=5, **more))
        ours = parse({"module." + k: v for k, v in net.state_dict().items()}, {}, "resnet")
        torch.testing.assert_close(ours.logits(u), net(ours.prepared(u)), rtol=1e-4, atol=1e-5)
    body = resnet.ResNet(resnet.Bottleneck, [1, 1, 2, 2], width_per_group=4, replace_stride_with_dilation=[False, True, True])
    net = settled(segmentation.FCN(IntermediateLayerGetter(body, {"layer4": "out"}), segmentation.fcn.FCNHead(2048, 4)))
    ours = parse(net.state_dict(), {}, "fcn")
    torch.testing.assert_close(ours.cells(u), net.classifier(net.backbone(ours.prepared(u))["out"]), rtol=1e-4, atol=1e-4)
    assert ours.count(True) == 4 and ours.side == 0
