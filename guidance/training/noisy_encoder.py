"""A small encoder of noisy latents that knows their noise level and gives the embeddings which an image encoder gives of the clean pictures: its training, and the safetensors file it is kept in.

Keys of the file (fp16 or fp32), those of guidance.training.predictor for one expert:
    encoder.enter, encoder.time.{0, 2}, encoder.blocks.I.{norm, film, conv}, encoder.norm, encoder.leave: weight and bias; encoder.leave.weight is [embedding, width]
"""
from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F

from ..frozen import frozen
from ..loss.encoder import unit
from ..method import BadInput, Method, param
from .classifier import Draws, noised, split, table
from .predictor import NoisyClassifier, Predictor, parse, settled
from .steps import AdamW

PREFIX = "encoder."


@frozen(eq=False)
class NoisyEncoder:
    """The network in a Predictor whose classes are the embedding's numbers. Immutable in use."""

    predictor: Predictor

    def __deepcopy__(self, memo):
        return self

    @property
    def width(self):
        return self.predictor.classes

    @property
    def channels(self):
        return self.predictor.channels

    def logits(self, x, sigma, flow):
        """Unit embeddings [batch, width] of noisy latents x [batch, channels, (frames,) height, width] at levels sigma [batch]."""
        return unit(self.predictor.logits(x, sigma, flow))

    def tensors(self):
        return {PREFIX + k[len("experts.0."):]: v for k, v in self.predictor.tensors().items() if k.startswith("experts.0.")}


def whole(network):
    """The NoisyEncoder of a NoisyClassifier."""
    count = network.leave.weight.shape[0]
    return NoisyEncoder(Predictor((network,), torch.tensor([0.0, 1.0]), torch.arange(float(count))))


def parse_encoder(tensors):
    """The NoisyEncoder of a file's tensors; ValueError that says what is wrong."""
    own = {f"experts.0.{k[len(PREFIX):]}": v for k, v in tensors.items() if k.startswith(PREFIX)}
    if "experts.0.leave.weight" not in own:
        raise ValueError("It holds no noise-aware encoder: encoder.enter.*, encoder.leave.* and what is between them are wanted.")
    count = own["experts.0.leave.weight"].shape[0]
    return NoisyEncoder(parse({**own, "edges": torch.tensor([0.0, 1.0]), "values": torch.arange(float(count))}))


@frozen(eq=False)
class TrainNoiseAwareEncoder(Method):
    """Trains a small encoder of noisy latents to give what an image encoder gives of the clean pictures, so that texts and pictures can guide from the first step on without decoding.

        x = a x0 + s n,  f = F(x / sqrt(a^2 + s^2), t) / |F|,  e = E(u) / |E|,  t = atan2(s, a) / (pi / 2)
        loss = -mean over the batch of log( exp(f_i e_i / temperature) / sum_j exp(f_i e_j / temperature) )

    u: the clean pictures, E: the given image encoder, which stays as it is; s drawn evenly over the schedule of the MODEL. No captions are needed: what E knows of texts, F learns with its embeddings.
    An example that is drawn twice in a batch is no wrong answer to itself. An eighth of the examples is kept for the report where there are 16 or more.

    Defaults: AdamW 2e-3 with a cosine to 0, weight decay 0.05, batch 32, 600 steps, width 64, temperature 0.1 (ours).
    Deviations: the paper goes on with the weights of a CLIP whose convolutions it modulates by the level; here a small network on latents is new. Its exact loss is not in the released code.
    """

    node_id = "LodestarTrainNoiseAwareEncoder"
    title = "Train Noise-Aware Encoder"
    family = "training"
    paper = "More Control for Free: Semantic Diffusion Guidance (SDG)"
    aliases = ("noise-aware CLIP", "noised CLIP", "SDG", "GLIDE")
    evaluations = "0 (no pass through the big network)"

    steps: int = param(600, "Steps of the training.", 1, 1000000, 1)
    batch: int = param(32, "Examples of a step; each is told from the others.", 2, 4096, 1)
    temperature: float = param(0.1, "How sharply an example is told from the others of its batch.", 0.001, 10.0, 0.001, advanced=True)
    rate: float = param(2e-3, "Learning rate at first; it falls to 0.", 0.0, 1.0, 1e-5, advanced=True)
    width: int = param(64, "Channels of the network, a multiple of 8.", 8, 1024, 8, advanced=True)
    seed: int = param(0, "Weights at first, order and noise.", 0, 2**63 - 1, 1)

    def validate(self):
        super().validate()
        if self.width % 8:
            raise BadInput(self.title, "width", self.width, "It must be a multiple of 8.")
        return self

    def loss(self, f, e, rows):
        """Scalar: unit embeddings f, e [batch, d] of the examples `rows` [batch]."""
        alike = (f @ e.T) / self.temperature
        twice = (rows[:, None] == rows[None]) & ~torch.eye(len(rows), dtype=torch.bool, device=rows.device)
        return F.cross_entropy(alike.masked_fill(twice.to(alike.device), -math.inf), torch.arange(len(rows), device=alike.device))

    def run(self, latents, embeddings, sigma_of, flow=False, device="cpu", tick=None):
        """(NoisyEncoder, {share of the schedule: mean cosine on what was kept}); latents [m, ...] in the model's space, embeddings [m, d] of their pictures; tick(step, total, loss) after each step."""
        learn, kept = split(len(latents))
        with torch.inference_mode(False), torch.enable_grad():
            draws = Draws([latents], learn, self.batch, flow, torch.Generator().manual_seed(self.seed))
            _, sigmas = table(sigma_of)
            wanted = unit(embeddings.clone()).to(device)
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(self.seed)
                network = NoisyClassifier(latents.shape[1], embeddings.shape[1], self.width).to(device)
            encoder, optimiser = whole(network), AdamW(network.parameters(), 0.05)
            for i in range(self.steps):
                x, sigma, rows = draws(sigmas, device)
                loss = self.loss(encoder.logits(x, sigma, flow), wanted[rows.to(device)], rows)
                optimiser.step(loss, self.rate * 0.5 * (1 + math.cos(math.pi * i / self.steps)))
                if tick is not None:
                    tick(i + 1, self.steps, float(loss.detach()))
            encoder = whole(settled(network.cpu()))
            chosen = kept if len(kept) else learn
            report = {p: _agreement(encoder, latents, chosen, wanted.cpu(), float(sigma_of(p)), flow) for p in (0.1, 0.5, 0.9)}
        return encoder, report


@torch.no_grad()
def _agreement(encoder, latents, rows, wanted, sigma, flow):
    """Mean cosine of noisy latents' embeddings with those of their own pictures, less the mean with the others': 0 where nothing is told."""
    x, s = noised(latents[rows].cpu(), torch.full((len(rows),), sigma), flow, torch.Generator().manual_seed(1))
    alike = encoder.logits(x, s, flow) @ wanted[rows].T
    own = alike.diagonal().mean()
    others = (alike.sum() - alike.diagonal().sum()) / max(1, alike.numel() - len(rows))
    return float(own - others)
