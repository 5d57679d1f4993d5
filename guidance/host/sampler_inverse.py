"""The solvers of measurements, and those led by a loss, as samplers of the host."""
from __future__ import annotations

from types import SimpleNamespace

import comfy.model_management
import comfy.samplers
import torch
from tqdm.auto import tqdm

from ..inverse.levels import noise_source
from ..loss.solvers.base import LossProblem, LossSolver
from ..method import BadInput
from .features import is_flow, wrappers
from .gradients import HostContext
from .measurements import bind

SESSION = "lodestar_session"
WITHOUT = "Null-Space Sampler, Manifold Preserving Guidance, RED-diff, RePaint"
WITHOUT_LOSS = "Dreamguider; Training-Free Guidance with rho 0; Universal Guidance Sampler with scale 0; GeoGuide through the estimate"


@torch.no_grad()
def sample_inverse(model, x, sigmas, extra_args=None, callback=None, disable=None, *, solver, noise_sampler=None):
    """A solver as a sampler function of the host; noise_sampler(sigma, sigma_next) as there."""
    extra_args = dict(extra_args or {})
    mask = extra_args.get("denoise_mask")
    with torch.inference_mode(False):      # the host multiplies by it inside what is differentiated
        extra_args["denoise_mask"] = mask = None if mask is None else mask.clone()
    base = model.inner_model.inner_model
    if solver.backward and not solver.neutral() and not wrappers():
        raise BadInput(solver.title, "ComfyUI", "this version", "It needs gradients through the network, which this host cannot give; use a ComfyUI of December 2024 or newer, or a solver "
                       f"without them ({WITHOUT_LOSS if isinstance(solver, LossSolver) else WITHOUT}).")
    flow = is_flow(base.model_sampling)
    problem = _problem(solver, base, x, sigmas, flow)
    if isinstance(solver, LossSolver):
        problem.inward = base.latent_format.process_in
    if solver.compares:
        extra_args["model_options"] = _compared(extra_args.get("model_options", {}), problem)
    scale = getattr(base.model_sampling, "noise_scale", 1.0) if flow else 1.0
    own = noise_source(x, extra_args.get("seed"))
    position = [0]

    def draw():
        noise = own() if noise_sampler is None else noise_sampler(sigmas[position[0]], sigmas[position[0] + 1])
        return noise * scale if scale != 1.0 else noise

    def evaluate(x, sigma):
        comfy.model_management.throw_exception_if_processing_interrupted()
        return model(x, sigma, **extra_args)

    session = extra_args.get("model_options", {}).get(SESSION)
    context = HostContext(SimpleNamespace(model=base, peers=getattr(session, "peers", {})))
    with tqdm(total=len(sigmas) - 1, disable=disable) as bar:
        def report(i, x, sigma, denoised):
            bar.update(max(0, i - position[0]))
            position[0] = i
            if callback is not None:
                callback({"x": x, "i": i, "sigma": sigma, "sigma_hat": sigma, "denoised": denoised})

        out = solver.run(evaluate, x, sigmas, problem, flow, draw, report, context)
        bar.update(len(sigmas) - 1 - position[0])
    if mask is not None and float(sigmas[-1]) == 0 and "denoise_mask_function" not in extra_args.get("model_options", {}):
        out = out * mask + model.latent_image * (1.0 - mask)      # a step behind the last prediction does not reach what is kept
    return out


def _problem(solver, base, x, sigmas, flow):
    """What the solver works on: a measurement, a loss, or a measurement with a loss beside it (`led`)."""
    if isinstance(solver, LossSolver):
        return solver.problem(sigmas, flow, base.model_sampling.percent_to_sigma)
    loss = getattr(solver, "loss", None)
    led = None if loss is None else LossProblem(loss, sigmas, flow, base.model_sampling.percent_to_sigma, solver.title)
    if solver.measurement is None:
        return led
    problem = bind(solver.measurement, base.latent_format, x)
    problem.title, problem.led = solver.title, led
    return problem


def _compared(options, problem):
    """Model options under which each evaluation leaves w (D_c - D_u) in `problem.gap`, or None where the negative prompt was not evaluated."""
    def note(args):
        apart = args["uncond"] is not None and args["uncond_denoised"] is not None
        problem.gap = args["cond_scale"] * (args["cond_denoised"] - args["uncond_denoised"]).detach() if apart else None
        return args["denoised"]
    return {**options, "sampler_post_cfg_function": [note, *options.get("sampler_post_cfg_function", [])]}


def sampler(method):
    """The host's SAMPLER of a solver."""
    method = method.validate()
    return comfy.samplers.KSAMPLER(sample_inverse, extra_options={"solver": method})
