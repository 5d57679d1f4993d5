"""What each node is given so that it acts on a tiny network: windows open all the way, strengths that show. One line per node; a node without one fails the test."""
from types import SimpleNamespace

import torch

from .models import latent_of, tokens_of

WHOLE = {"start_percent": 0.0, "end_percent": 1.0}
TEXT = "red ball, blue cube"       # five pieces and an end


class Clip:
    """A text encoder of the specimen's width: one token a word, an end, and padding up to the specimen's length."""

    def __init__(self, specimen):
        self.specimen = specimen

    def tokenize(self, text):
        words = text.replace(",", " ,").split()
        ids = [sum(map(ord, w)) + 10 for w in words] + [1]
        return {"t5": [[(i, 1.0) for i in ids + [0] * (self.specimen.tokens - len(ids))]]}

    def encode_from_tokens_scheduled(self, tokens):
        made = [torch.randn(self.specimen.width, generator=torch.Generator().manual_seed(i)) for i, _ in tokens["t5"][0]]
        text = torch.stack(made)[None]
        return [[text + text.mean(1, keepdim=True), {"pooled_output": torch.full((1, 16), 0.1)}]]      # a token knows of the others, as in every encoder


class Legible:
    """A recogniser that finds every text half legible."""

    reader = SimpleNamespace(characters="abc")

    def labels(self, line):
        return [self.reader.characters.index(c) for c in line]

    def __call__(self, pictures, lines):
        return torch.full((pictures.shape[0],), 0.5)


class Vae:
    """Enough of a VAE for the decoder of the clean estimate: the first channel as gray pictures."""

    vae_dtype = torch.float32

    def __init__(self):
        self.first_stage_model = torch.nn.Linear(1, 1)
        self.first_stage_model.decode = lambda latent: latent[:, :1].expand(-1, 3, *latent.shape[2:])


class Bench:
    """One specimen with what nodes take: `other` prompt, `latent`, `mask`, `regions` and the conditioning that goes with them."""

    def __init__(self, specimen, definitions):
        self.specimen, self.definitions = specimen, definitions
        self.clip, self.other, self.latent = Clip(specimen), tokens_of(specimen, 3), latent_of(specimen, 4)
        self.mask = torch.zeros(1, 8, 8)
        self.mask[:, :, :4] = 1.0
        self.map = self.mask[..., None].expand(-1, -1, -1, 3)
        self.positive = self.plain = self.pair = None

    def node(self, node_id, **given):
        """The outputs of a node, with its own defaults for what is not given."""
        definition = self.definitions[node_id]
        defaults = {i.name: i.default for i in definition.inputs if i.widget or i.optional}
        return definition.call({**defaults, **given})[0]

    def regions(self):
        made = self.node("LodestarRegionsFromJSON", text='[{"box": [0, 0, 0.5, 1], "words": "red ball", "prompt": "green"}, {"box": [0.5, 0.25, 0.4, 0.6], "words": "blue cube", "prompt": "white"}]')
        self.positive, found = self.node("LodestarRegionPrompt", clip=self.clip, text=TEXT, regions=made[0])
        return {"regions": found}

    def subjects(self):
        """Two subjects in halves of the picture, by an adapter with random weights for the specimen's layers (two layers where it is no U-Net)."""
        from ...guidance.attention.image_adapter import parse
        from ..adapters import adapter_file, widths_of
        widths = widths_of(self.specimen.net) if hasattr(self.specimen.net, "input_blocks") else (8, 8)
        adapter, made = parse(adapter_file(widths=widths), "random"), None
        for seed, x in ((1, 0.0), (2, 0.5)):
            seen = SimpleNamespace(image_embeds=torch.randn(1, 12, generator=torch.Generator().manual_seed(seed)))
            made, = self.node("LodestarAdapterSubject", adapter=adapter, vision=seen, region=self.node("LodestarRegion", x=x)[0], subjects=made)
        return {"subjects": made}

    def streams(self):
        """Random weights of a pair of streams; sets the latent that is sampled: one pair."""
        from ...guidance.attention.joint_lora import JointLora, parse
        from ...guidance.host.geometry import of_network
        from ..pairs import unicon_file
        net = self.specimen.net
        geometry = of_network(net)
        unet = geometry.family == "unet" and not geometry.temporal
        if unet:
            self.pair = {"samples": torch.zeros(2, *self.specimen.shape)}
        return {"weights": parse(unicon_file(net, geometry), "random", "file") if unet else JointLora({})}

    def degradation_lora(self):
        """A random degradation-guided LoRA for the specimen's layers, an empty one where it is no U-Net of pictures."""
        from ...demo.degradation_lora import fresh
        from ...guidance.host.geometry import of_network
        from ...guidance.inverse.degradation_lora import DegradationLora, parse
        geometry, g = of_network(self.specimen.net), torch.Generator().manual_seed(6)
        if geometry.family != "unet" or geometry.temporal:
            return {"lora": DegradationLora({}, {}, {}, 1)}
        return {"lora": parse({k: torch.randn(v.shape, generator=g) * 0.2 if "lora_B" in k else v for k, v in fresh(self.specimen.net, 2).items()}, "random", "file")}

    def pixel_attention(self):
        """Random pixel-aware attention with an encoder for the specimen's latent, an empty one where it is no U-Net of pictures."""
        from ...guidance.host.geometry import of_network
        from ...guidance.inverse.pixel_aware import PixelAttention, parse
        from ..pairs import pixel_file
        geometry = of_network(self.specimen.net)
        unet = geometry.family == "unet" and not geometry.temporal
        return {"weights": parse(pixel_file(self.specimen.net, self.latent["samples"].shape[1]), "random", "file") if unet else PixelAttention({}, {}), "latent": self.latent}

    def block_semantics(self):
        """Random block-wise semantics for the specimen's layers, empty ones where it is no U-Net of pictures."""
        from ...guidance.host.geometry import of_network
        from ...guidance.inverse.block_semantics import BlockSemantics, parse
        from ..pairs import semantics_file
        geometry = of_network(self.specimen.net)
        unet = geometry.family == "unet" and not geometry.temporal
        return {"weights": parse(semantics_file(self.specimen.net, geometry), "random", "file") if unet else BlockSemantics({}, {}, {}, {}, {}), "image": self.map}

    def words(self):
        self.positive, found, _ = self.node("LodestarPromptWords", clip=self.clip, text=TEXT, words="red ball, blue cube")
        return {"words": found}

    def encoded(self):
        """Sets the prompt that the plain run has, where the node encodes it in another way."""
        self.plain = self.clip.encode_from_tokens_scheduled(self.clip.tokenize(TEXT))
        return {"clip": self.clip, "text": TEXT}

    def classifier(self):
        """A classifier of noisy latents with random weights, for the specimen's channels."""
        from ...guidance.training.predictor import NoisyClassifier, Predictor, settled
        with torch.inference_mode(False), torch.random.fork_rng():
            torch.manual_seed(0)
            network = settled(NoisyClassifier(self.latent["samples"].shape[1], 2, 8))
            return Predictor((network,), torch.tensor([0.0, 1.0]), torch.tensor([0.0, 1.0]))

    def encoder(self):
        """A noise-aware encoder with random weights."""
        from ...guidance.training.noisy_encoder import NoisyEncoder
        return NoisyEncoder(self.classifier())

    def loss(self, model):
        return self.node("LodestarTargetImageLoss", model=model, latent=self.latent)[0]


# {node id: what it is given besides the model}
GIVEN = {
    "LodestarAdapterAttentionShaping": lambda b, m: WHOLE,      # there is no adapter: says so
    "LodestarAttendAndExcite": lambda b, m: {**WHOLE, **b.words(), "step_size": 200.0, "iterations": 1},
    "LodestarSpatialWordAttention": lambda b, m: {**WHOLE, **b.words()},
    "LodestarAttentionEntropyScaling": lambda b, m: {**WHOLE, "train_width": 32, "train_height": 32},
    "LodestarBlockWiseSemantics": lambda b, m: {**WHOLE, **b.block_semantics()},
    "LodestarBlurGuidance": lambda b, m: WHOLE,
    "LodestarBoxDiff": lambda b, m: {**WHOLE, **b.regions(), "step_size": 200.0, "iterations": 1},
    "LodestarSemanticDiffusionGuidance": lambda b, m: {**WHOLE, "encoder": b.encoder(), "reference": {"samples": b.latent["samples"] + 2}, "scale": 20.0},
    "LodestarClassifierGuidance": lambda b, m: {**WHOLE, "classifier": b.classifier(), "scale": 20.0},
    "LodestarCorrFill": lambda b, m: {**WHOLE, "reference": b.latent},
    "LodestarCtrlX": lambda b, m: {"structure": b.latent, "appearance": latent_of(b.specimen, 5), "structure_end": 1.0, "appearance_end": 1.0},
    "LodestarDecoupledPrompt": lambda b, m: {**WHOLE, "second": b.other},
    "LodestarDegradationGuidedLora": lambda b, m: b.degradation_lora(),
    "LodestarDenseDiffusion": lambda b, m: {**WHOLE, **b.regions()},
    "LodestarDepthGuidedInjection": lambda b, m: {**WHOLE, "reference": b.latent, "reference_prompt": b.other},
    "LodestarDirectedDiffusion": lambda b, m: {**b.regions(), "steps": 1.0},
    "LodestarDiscriminatorGuidance": lambda b, m: {**WHOLE, "classifier": b.classifier(), "scale": 20.0},
    "LodestarDraftAttention": lambda b, m: {**WHOLE, "least_tokens": 0, "pool_height": 1, "pool_width": 2},
    "LodestarEasyControl": lambda b, m: {**WHOLE, "condition": b.latent},
    "LodestarFeatureCorrespondenceGuidance": lambda b, m: {**WHOLE, "reference": b.latent, "warp": b.node("LodestarViewWarp", width=64, height=64)[0], "normalise": "unit rms", "scale": 1.0},
    "LodestarFreeU": lambda b, m: WHOLE,
    "LodestarGlyphAdaptiveAttention": lambda b, m: {**WHOLE, "recogniser": Legible(), "vae": Vae(), "text": "ab", "reference": b.latent, "every": 1},
    "LodestarLayoutGuidance": lambda b, m: {**WHOLE, **b.regions(), "scale": 300.0, "threshold": 0.0, "iterations": 1},
    "LodestarMaskedSubjectAttention": lambda b, m: {**WHOLE, **b.subjects()},
    "LodestarMinorityGuidance": lambda b, m: {**WHOLE, "classifier": b.classifier(), "scale": 20.0},
    "LodestarMultiScaleRestoration": lambda b, m: WHOLE,
    "LodestarMutualSelfAttention": lambda b, m: {**WHOLE, "reference": b.latent},
    "LodestarNegativeAwaySteerAttention": lambda b, m: {**WHOLE, "negative": b.other},
    "LodestarNormalizedAttentionGuidance": lambda b, m: {**WHOLE, "negative": b.other},
    "LodestarPLADIS": lambda b, m: WHOLE,
    "LodestarPerturbedAttentionGuidance": lambda b, m: WHOLE,
    "LodestarPixelAwareAttention": lambda b, m: {**WHOLE, **b.pixel_attention()},
    "LodestarPromptToPrompt": lambda b, m: {"clip": b.clip, "latent": b.latent, "source": TEXT, "target": "red ball, green cube", "mode": "replace"},
    "LodestarReadoutGuidance": lambda b, m: {**WHOLE, "image": b.map, "readout": b.node("LodestarTrainReadoutHead", model=m, positive=b.other, latent=b.latent, image=b.map, steps=1, batch=2, width=32)[0], "step_size": 0.1},
    "LodestarReferenceAttention": lambda b, m: {**WHOLE, "reference": b.latent},
    "LodestarRegionalPrompts": lambda b, m: {**WHOLE, **b.regions()},
    "LodestarReturnGuidance": lambda b, m: {**WHOLE, "classifier": b.classifier(), "scale": 20.0},
    "LodestarScribbleGuidance": lambda b, m: {**WHOLE, **b.regions(), "step_size": 200.0, "iterations": 1},
    "LodestarSelfAttentionGuidance": lambda b, m: WHOLE,
    "LodestarSelfGuidance": lambda b, m: {**WHOLE, "terms": b.node("LodestarSelfGuidanceTerm", **b.words(), y=0.9)[0], "alternate_from": 1.0},
    "LodestarSkipLayerGuidance": lambda b, m: WHOLE,
    "LodestarSlidingWindowGuidance": lambda b, m: WHOLE,
    "LodestarSmoothedEnergyGuidance": lambda b, m: WHOLE,
    "LodestarSpatialPromptWeighting": lambda b, m: {**WHOLE, **b.regions()},
    "LodestarSpatiotemporalSkipGuidance": lambda b, m: WHOLE,
    "LodestarStochasticSelfGuidance": lambda b, m: {**WHOLE, "drop": 0.5},
    "LodestarStructuredDiffusionGuidance": lambda b, m: {**WHOLE, **b.encoded(), "phrases": "red ball\nblue cube"},
    "LodestarStyleAligned": lambda b, m: {**WHOLE, "reference": b.latent},
    "LodestarTemporalAttentionTemperature": lambda b, m: {**WHOLE, "mask": b.mask},
    "LodestarTokenPerturbationGuidance": lambda b, m: WHOLE,
    "LodestarUniCon": lambda b, m: b.streams(),
    "LodestarUniversalGuidance": lambda b, m: {**WHOLE, "loss": b.loss(m)},
    "LodestarUpsampleGuidance": lambda b, m: WHOLE,
}
# families of nodes that do not look into the network: their tests are on the mixture and on two networks
OUTSIDE = ("rules", "inspection", "inversion", "samplers", "regions", "control")


def wanted(methods, attachable):
    """The node ids of the matrix, in the order of the catalogue."""
    return [node_id for node_id, cls in methods.items() if attachable(cls) and cls.family not in OUTSIDE]
