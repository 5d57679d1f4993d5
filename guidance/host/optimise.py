"""Optimise Initial Noise, and Optimise Latent and Text, inside the host's own sampling call."""
from __future__ import annotations

from types import SimpleNamespace

import comfy.model_management
import comfy.sample
import comfy.samplers
import comfy.utils
import torch
from tqdm.auto import tqdm

from ..inversion import edict
from ..inversion.chains import NotRepeatable
from ..loss.latent_text import OptimiseLatentAndText
from ..method import BadInput, Steer
from ..samplers.cfgpp import noise_source
from .attach import KEY
from .features import is_flow, wrappers
from .gradients import HostContext
from .inversion import latent_preview
from .sampler_edict import fine, guider_of, noise_of, prepared
from .sampler_edict import sampler as edict_sampler

SESSION = "lodestar_session"


class Text:
    """The tokens of the guider's prompts, as the network is given them, and what is added to them. Only inside a sampling call, after the prompts were prepared."""

    def __init__(self, title, conds, names, batch):
        """conds: the guider's prepared prompts. What the host made of one text for several areas changes together, as one part."""
        self.parts, self.batch = {}, batch
        for name in names:
            order = {}
            for part in conds.get(name, ()):
                held, tokens = part.get("model_conds", {}).get("c_crossattn"), part.get("cross_attn")
                if held is None or tokens is None or held.cond.shape[1:] != tokens.shape[1:] or not torch.equal(held.cond[:1].float().cpu(), tokens[:1].float().cpu()):
                    raise BadInput(title, f"{name}_text", "not 0", "This model makes what it is given of the prompt in a way of its own; set both factors of the text to 0 and optimise the latent alone.")
                k = order.setdefault(id(tokens), len(order))
                self.parts.setdefault(name, []).append((k, part, part["model_conds"], held))
        self.sizes = {name: list({k: tuple(held.cond.shape[1:]) for k, _, _, held in parts}.values()) for name, parts in self.parts.items()}

    def put(self, deltas):
        """The predictions that follow get tokens + deltas[name][part]; those that are not named get their own."""
        for name, parts in self.parts.items():
            for k, part, model_conds, held in parts:
                given = deltas.get(name)
                if given is None:
                    part["model_conds"] = model_conds
                    continue
                tokens = comfy.utils.repeat_to_batch_size(held.cond, self.batch)
                part["model_conds"] = {**model_conds, "c_crossattn": held._copy_with(tokens + given[k].to(tokens))}


class _Search(comfy.samplers.Sampler):
    """A sampler that samples again and again. `result`: what the method's `run` gave."""

    def __init__(self, method, seed, preview):
        self.method, self.seed, self.preview, self.result = method, seed, preview, None

    def sample(self, model_wrap, sigmas, extra_args, callback, noise, latent_image=None, denoise_mask=None, disable_pbar=False):
        method, base = self.method, model_wrap.inner_model
        sampling = base.model_sampling
        flow, title = is_flow(sampling), method.title
        session = extra_args.get("model_options", {}).get(SESSION)
        mask = None if denoise_mask is None else denoise_mask.clone()
        extra_args = {**extra_args, "denoise_mask": mask}
        model = comfy.samplers.KSamplerX0Inpaint(model_wrap, sigmas)
        model.latent_image, model.noise = latent_image, noise
        x = sampling.noise_scaling(sigmas[0], noise, latent_image, self.max_denoise(model_wrap, sigmas)).clone()
        dtype = fine(x.device) if method.memory == "invertible" else torch.float32

        def predict(z, i):
            comfy.model_management.throw_exception_if_processing_interrupted()
            given = z.to(torch.float32)
            return model(given, sigmas[i] * given.new_ones(given.shape[0]), **extra_args).to(z.dtype)

        context = HostContext(SimpleNamespace(model=base, peers=getattr(session, "peers", {})))
        chain = method.chain(predict, sigmas, flow, context)
        forward = chain.forward

        def afresh(*args):      # a run of the sampler begins: what methods on the MODEL remember is of the one before
            for state in (session.run.states.values() if session is not None else ()):
                state.clear()
            return forward(*args)
        chain.forward = afresh
        unit = float((sigmas[0] ** 2 + ((1 - sigmas[0]) ** 2 if flow else 1)) ** 0.5)
        rounds = 1 + (0 if method.neutral() else method.iterations)
        with tqdm(total=(len(sigmas) - 1) * (2 * rounds - 1), disable=disable_pbar) as bar:
            def progress(i, picture, values):
                bar.set_postfix_str(f"loss {float(values.mean()):.4g}")
                if self.preview is not None:
                    self.preview(i, picture.to(torch.float32), picture.to(torch.float32), rounds)

            more = {"free": mask, "progress": progress, "tick": lambda: bar.update(1)}
            try:
                if isinstance(method, OptimiseLatentAndText):
                    text = Text(title, model_wrap.conds, method.wanted(), x.shape[0]) if method.wanted() and not method.neutral() else None
                    self.result = method.run(chain, x, unit, text, **more)
                else:
                    self.result = method.run(chain, x.to(dtype), unit, noise_source(x, self.seed, 0xD00D), **more)
            except NotRepeatable as e:
                raise BadInput(title, "model", type(base).__name__, str(e)) from e
        # the picture was already divided by its signal, as the host's inverse_noise_scaling does
        out = self.result[0].to(torch.float32)
        return out * mask + latent_image * (1.0 - mask) if mask is not None and method.memory == "invertible" else out      # mixed states leave what is kept a little


def search(method, model, positive, negative, latent, sigmas=None, noise=None):
    """(LATENT, NOISE, SIGMAS, further results of the method's `run`, sampling) of a method on the host."""
    method.check()
    if not wrappers():
        raise BadInput(method.title, "ComfyUI", "this version", "It needs gradients through the network, which this host cannot give; use a ComfyUI of December 2024 or newer.")
    steering = [m.title for m in getattr(model.model_options.get(KEY), "methods", ()) if isinstance(m, Steer)]
    if steering:
        raise BadInput(method.title, "model", ", ".join(steering), "A method that steers by gradients cannot be differentiated itself; take it off the MODEL.")
    with torch.inference_mode(False):
        samples = latent["samples"].clone() if not getattr(latent["samples"], "is_nested", False) else latent["samples"]
        sampling, sigmas, samples = prepared(method, model, {**latent, "samples": samples}, sigmas)
        sigmas = sigmas.clone()
        guider = guider_of(method, model, positive, negative)
        if noise is None:
            made = comfy.sample.prepare_noise(samples, method.seed, latent.get("batch_index"))
        else:
            made = noise.generate_noise({**latent, "samples": samples})
        mask = latent.get("noise_mask")
        run = _Search(method, method.seed, latent_preview.prepare_callback(model, 1 + method.iterations))
        out = guider.sample(made.clone(), samples, run, sigmas, denoise_mask=None if mask is None else mask.clone(),
                            disable_pbar=not getattr(comfy.utils, "PROGRESS_BAR_ENABLED", True), seed=method.seed)
    return {**latent, "samples": out.to(comfy.model_management.intermediate_device())}, sigmas, sampling, run.result


def optimise_noise(method, model, positive, negative, latent, sigmas=None, noise=None):
    """(LATENT, NOISE, SIGMAS, SAMPLER, values [iterations + 1, batch])."""
    picture, sigmas, sampling, (_, states, values) = search(method, model, positive, negative, latent, sigmas, noise)
    if method.memory == "invertible":
        kept = states[0].to(torch.float32).to(states[0].dtype)
        sampler = edict_sampler(edict.EDICTSampler(mix=method.mix, apart=(states[1] - kept).cpu()))
    else:
        sampler = comfy.samplers.sampler_object("euler")
    return picture, noise_of(model, sampling, sigmas[0], states[0]), sigmas, sampler, values


def optimise_text(method, model, positive, negative, latent, sigmas=None, noise=None):
    """(LATENT, NOISE, SIGMAS, positive, negative, values [iterations + 1, batch]): the prompts with their changes."""
    picture, sigmas, sampling, (_, state, deltas, values) = search(method, model, positive, negative, latent, sigmas, noise)
    prompts = [changed(given, deltas.get(name), sigmas, sampling) for name, given in (("positive", positive), ("negative", negative))]
    return picture, noise_of(model, sampling, sigmas[0], state), sigmas, *prompts, values


def place(sampling, sigma):
    """The fraction of the schedule at which a noise level lies."""
    low, high = 0.0, 1.0
    for _ in range(50):
        middle = (low + high) / 2
        low, high = (middle, high) if float(sampling.percent_to_sigma(middle)) > sigma else (low, middle)
    return (low + high) / 2


def changed(conditioning, parts, sigmas, sampling):
    """A CONDITIONING with changes added to its tokens: one entry for each step, with its window, where the changes are of each step."""
    if conditioning is None or parts is None:
        return conditioning
    made = []
    levels = [float(s) for s in sigmas]
    places = [0.0, *(place(sampling, (a + b) / 2) for a, b in zip(levels[:-2], levels[1:-1])), 1.0]
    order = {}
    for tokens, values in conditioning:
        steps = parts[order.setdefault(id(tokens), len(order))]
        for i, delta in enumerate(steps):
            delta = delta.to(tokens.device, torch.float32)
            new = comfy.utils.repeat_to_batch_size(tokens, delta.shape[0]) + delta.to(tokens.dtype)
            if len(steps) == 1:
                made.append([new, values])
                continue
            begin, end = max(places[i], values.get("start_percent", 0.0)), min(places[i + 1], values.get("end_percent", 1.0))
            if begin < end:
                made.append([new, {**values, "start_percent": begin, "end_percent": end}])
    return made
