"""A learned value: what a noisy latent's clean picture will be worth, and its training on latents with a return each (SVDD-MC)."""
from __future__ import annotations

import math
from typing import Any

import torch

from ..frozen import frozen
from ..method import BadInput, Method, param, socket
from .classifier import Draws, noised, split, table
from .predictor import NoisyClassifier, Predictor, settled
from .steps import AdamW

STEEPEST = 6.0      # the exponent of exp((r - v) / temperature), beyond which it goes on as a straight line


@frozen(eq=False)
class ValueFunction:
    """value(x, sigma, flow) -> [batch]: the return to be expected of noisy latents x at levels sigma [batch], or the soft value where `temperature` is above 0."""

    predictor: Any      # of one number, in units of `unit` above `middle`
    middle: float = 0.0
    unit: float = 1.0
    temperature: float = 0.0

    def __deepcopy__(self, memo):
        return self

    @property
    def channels(self):
        return self.predictor.channels

    def value(self, x, sigma, flow):
        return self.middle + self.unit * self.predictor.logits(x, sigma, flow)[:, 0].double().cpu()

    def tensors(self):
        """{key: tensor} of the file: those of the network, and scale [3]: middle, unit, temperature."""
        return {**self.predictor.tensors(), "scale": torch.tensor([self.middle, self.unit, self.temperature], dtype=torch.float64)}


def parse(tensors):
    """The ValueFunction of a file's tensors; ValueError that says what is wrong."""
    from .predictor import parse as predictor_of
    scale = tensors.get("scale")
    if scale is None or scale.numel() != 3 or len(tensors.get("values", ())) != 1:
        raise ValueError("It holds no value function: experts.0.* with one number, and scale (middle, unit, temperature) are wanted.")
    return ValueFunction(predictor_of({k: v for k, v in tensors.items() if k != "scale"}), *(float(v) for v in scale))


@frozen(eq=False)
class TrainValueFunction(Method):
    """Trains a small network inside the graph that tells what the picture of a noisy latent will be worth: the value function of SVDD-MC, by Monte Carlo regression.

    Paper: Li et al., "Derivative-Free Guidance in Continuous and Discrete Diffusion Models with Soft Value-Based Decoding" (SVDD), arXiv 2408.08252.

        x = a x0 + s n,   r the return of x0
        temperature 0:  least E (r - v(x, s))^2, so that v = E[r | x]                                 as released
        above 0:        least E exp((r - v) / temperature) + v / temperature, so that v = temperature log E[exp(r / temperature) | x], the soft value itself

    The examples are clean latents with a return each: Score Latents by Loss takes -loss. Use the model's own samples, for which noise added to x0 has the distribution of the sampler's states. The network knows the
    share of noise alone, so eps, v and flow models of the same latents share it. The exponential is a straight line beyond 6, and returns are standardised: a temperature far below their spread is not learned.

    Defaults: AdamW 2e-3 with a cosine to 0, batch 32, 400 steps, width 48 (ours; the authors train a convolutional network of 84600 pictures of a data set for 300 epochs, with Adam 1e-4). An eighth of the examples
    is kept for the report where there are 16 or more. Cost: no pass through the big network.
    """

    node_id = "LodestarTrainValueFunction"
    title = "Train Value Function"
    family = "training"
    paper = "Derivative-Free Guidance: SVDD"
    aliases = ("SVDD-MC", "soft value", "reward model", "Monte Carlo regression")
    evaluations = "0 (no pass through the big network)"

    examples: Any = socket("LODESTAR_EXAMPLES", "Clean latents with a return each: Score Latents by Loss, or numbers of your own by Labelled Latents.")
    steps: int = param(400, "Steps of the training.", 1, 1000000, 1)
    temperature: float = param(0.0, "0: the mean of the returns (as released). Above: the soft value of this temperature, that of the sampler.", 0.0, 1e6, 0.001)
    batch: int = param(32, "Examples of a step.", 1, 4096, 1)
    rate: float = param(2e-3, "Learning rate at first; it falls to 0.", 0.0, 1.0, 1e-5, advanced=True)
    width: int = param(48, "Channels of the network, a multiple of 8.", 8, 1024, 8, advanced=True)
    seed: int = param(0, "Weights at first, order and noise.", 0, 2**63 - 1, 1)

    def validate(self):
        super().validate()
        if self.width % 8:
            raise BadInput(self.title, "width", self.width, "It must be a multiple of 8.")
        if len(self.examples) < 2 or float(self.examples.labels.min()) == float(self.examples.labels.max()):
            raise BadInput(self.title, "examples", "all alike", "There is nothing to learn where all returns are the same; score pictures that differ.")
        return self

    def run(self, latents, sigma_of, flow=False, device="cpu", tick=None):
        """(ValueFunction, {share of the schedule: correlation of value and return on what was kept}); as TrainNoiseAwareClassifier.run."""
        returns = self.examples.labels.double()
        middle, unit = float(returns.mean()), float(returns.std())
        wanted, heat = ((returns - middle) / unit).float(), self.temperature / unit
        learn, kept = split(len(returns))
        with torch.inference_mode(False), torch.enable_grad():
            generator = torch.Generator().manual_seed(self.seed)
            draws, (_, sigmas) = Draws(latents, learn, self.batch, flow, generator), table(sigma_of)
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(self.seed)
                network = NoisyClassifier(latents[0].shape[1], 1, self.width).to(device)
            torch.nn.init.zeros_(network.leave.weight)      # begins with the mean of all returns
            torch.nn.init.zeros_(network.leave.bias)
            predictor = Predictor((network,), torch.tensor([0.0, 1.0]), torch.zeros(1))
            optimiser = AdamW(network.parameters(), 0.01)
            for i in range(self.steps):
                x, sigma, rows = draws(sigmas, device)
                loss = misfit(wanted[rows].to(device) - predictor.logits(x, sigma, flow)[:, 0], heat)
                optimiser.step(loss, self.rate * 0.5 * (1 + math.cos(math.pi * i / self.steps)))
                if tick is not None:
                    tick(i + 1, self.steps, float(loss.detach()))
            found = ValueFunction(Predictor((settled(network.cpu()),), torch.tensor([0.0, 1.0]), torch.zeros(1)), middle, unit, self.temperature)
            chosen = kept if len(kept) else learn
            report = {p: _agreement(found, latents, draws.start, chosen, returns, float(sigma_of(p)), flow) for p in (0.1, 0.5, 0.9)}
        return found, report


def misfit(away, heat):
    """Mean over r - v [n] of the loss whose least place is the mean (heat 0) or the soft value."""
    if heat == 0:
        return away.square().mean()
    z = away.double() / heat
    steep = z.clamp(max=STEEPEST)
    return heat * heat * (steep.exp() * (1 + z - steep) - z - 1).mean()      # to second order away^2 / 2, whatever the heat


@torch.no_grad()
def _agreement(function, latents, start, rows, returns, sigma, flow):
    generator, values, wanted = torch.Generator().manual_seed(1), [], []
    for number, part in enumerate(latents):
        own = rows[(rows >= start[number]) & (rows < start[number + 1])]
        for some in own.split(64):
            x, s = noised(part[some - start[number]].cpu(), torch.full((len(some),), sigma), flow, generator)
            values.append(function.value(x, s, flow))
            wanted.append(returns[some])
    values, wanted = torch.cat(values), torch.cat(wanted)
    away = values - values.mean(), wanted - wanted.mean()
    size = float(away[0].norm() * away[1].norm())
    return float(away[0] @ away[1]) / size if size > 0 else 0.0
