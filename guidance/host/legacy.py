"""The engine on hosts without wrappers (mid-2024): from the network wrapper, the CFG slot and the post-CFG list of a MODEL.

All branches are evaluated in one batched pass after the prompts'; rows are told by their order, since conditionings have no uuid there. Earlier
occupants of the two slots are called through. A closed gate drops the negative's rows from the network call. A noise level above the last one
begins a new run. Gradients through the network are refused: that host's networks run in a sampler that cannot give them.
"""
from __future__ import annotations

import contextlib
import dataclasses
import logging

import torch

from .. import engine
from ..attention.edits import titled
from ..engine import REPORTS, Run
from ..method import NEGATIVE, POSITIVE
from . import attention_hooks, block_hooks, control_hooks, features, modules
from .attach import KEY, models_of, prompts_of
from .calls import OPTION, Call, Session

_HOOK = "lodestar_legacy"
_PROBE = 7.0      # a guidance scale to ask the gates with before the sampler's own is known


class _Guider:
    """What such a host tells of the guider: the prompts of the current call."""

    def __init__(self, model, patcher):
        self.inner_model, self.model_patcher, self.conds = model, patcher, {}


class _Session(Session):
    def process(self, model, conditioning, converted=False):
        """Conditioning of the graph made ready as this host's sampling does."""
        import comfy.sampler_helpers
        import comfy.samplers
        entries = [dict(c) for c in conditioning] if converted else comfy.sampler_helpers.convert_cond(conditioning)
        noise = self.arguments["noise"]
        return comfy.samplers.process_conds(model, noise, {"positive": entries}, noise.device, None, None, None)["positive"]


class _Call(Call):
    def conds_of(self, branch, x=None):
        return [dict(entry) for _, entry in self.cut(branch, self.session.prompt_conds(branch.prompt))]


def install(patcher):
    """Puts the engine on a MODEL; a clone that has it already keeps it."""
    options = patcher.model_options
    if options.get(_HOOK):
        return
    hooks = Hooks(options.get("model_function_wrapper"), options.get("sampler_cfg_function"))
    options[_HOOK] = hooks
    options["model_function_wrapper"] = hooks.network
    options["sampler_cfg_function"] = hooks.combine
    options["sampler_post_cfg_function"] = [hooks.after, *options.get("sampler_post_cfg_function", [])]


class Hooks:
    """The engine's hooks on one line of clones; what belongs to a run is in its session."""

    def __init__(self, network, combine):
        self.earlier_network, self.earlier_combine = network, combine
        self.session, self.call, self.last = None, None, None
        self.branches = None       # while our own pass runs: the branches in the order of their conditionings

    def __deepcopy__(self, memo):
        return Hooks(self.earlier_network, self.earlier_combine) if self.session is None else self

    def _open(self, model, x, sigma, pipeline):
        """Begins a sampler call, and a run where this one cannot belong to the last."""
        level = float(sigma.flatten()[0])
        old = self.session
        fresh = (old is None or old.run.pipeline is not pipeline or old.model is not model or level > self.last
                 or (level == self.last and old.run.report.calls == 1))
        if fresh:
            if old is not None:
                old.close()
            _check(pipeline)
            run = Run(pipeline, flow=features.is_flow(model.model_sampling), percent_to_sigma=model.model_sampling.percent_to_sigma)
            self.session = _Session(run, _Guider(model, None), {"noise": x, "latent_image": None, "denoise_mask": None, "seed": None, "sigmas": None})
            REPORTS.append(run.report)
        self.last = level
        step = self.session.run.step(x, sigma)
        self.call = _Call(self.session, engine.plan(self.session.run, step, _PROBE), step)
        if self.call.references:
            raise ValueError(f"{next(titled(e) for e in self.call.edited if e.references)}: attention to a reference picture needs a newer ComfyUI (December 2024 or later); this one cannot "
                             "evaluate the reference beside the prompts. Without a reference.")

    def network(self, apply, args):
        """Around each network call: our edits for its rows, and no rows for a negative prompt that a gate has switched off."""
        c = dict(args["c"])
        pipeline = c.get("transformer_options", {}).get(KEY)
        x, sigma, chunks = args["input"], args["timestep"], args["cond_or_uncond"]
        if pipeline is None:
            return self._pass(apply, args, c)
        size = x.shape[0] // len(chunks)
        if self.branches is None and self.call is None:
            self._open(apply.__self__, x[:size], sigma[:size], pipeline)
        call = self.call
        vars(call).setdefault("sizes", set()).add(tuple(x.shape[2:]))
        self.session.forced_role = self.branches
        options = {"transformer_options": {**c["transformer_options"], OPTION: call, "cond_or_uncond": list(chunks), "lodestar_chunks": list(chunks)}}
        attention_hooks.install(call, options)
        block_hooks.install(call, options)
        c["transformer_options"] = options["transformer_options"]
        report = self.session.run.report
        keep = [i for i, chunk in enumerate(chunks) if self.branches is not None or chunk == 0 or not self._closed()]
        report.network_calls += bool(keep)
        report.evaluations += len(keep)
        report.by_kind.update("branch" if self.branches is not None else ("positive" if chunks[i] == 0 else "negative") for i in keep)
        if len(keep) == len(chunks):
            return self._pass(apply, args, c)
        if not keep:
            return torch.zeros_like(x)
        rows = torch.cat([torch.arange(i * size, (i + 1) * size) for i in keep]).to(x.device)
        chosen = [chunks[i] for i in keep]
        c = {k: _rows(v, rows, x.shape[0]) for k, v in c.items()}
        c["transformer_options"] = {**c["transformer_options"], "cond_or_uncond": chosen, "lodestar_chunks": chosen}
        out = self._pass(apply, {**args, "input": x[rows], "timestep": sigma[rows], "cond_or_uncond": chosen}, c)
        full = torch.zeros_like(x)
        full[rows] = out
        return full

    def _pass(self, apply, args, c):
        call = c.get("transformer_options", {}).get(OPTION)
        if call is not None:
            network = apply.__self__.diffusion_model
            with block_hooks.placed(call, c["transformer_options"], network) if call.blocked else contextlib.nullcontext(), modules.placed(call, c["transformer_options"], network, c.get("control")):
                return self._network(apply, args, c)
        return self._network(apply, args, c)

    def _network(self, apply, args, c):
        call = c.get("transformer_options", {}).get(OPTION)
        if call is None or c.get("control") is None:
            return self._run(apply, args, c)
        control, errors = control_hooks.wrapped(call, c["control"])
        out = self._run(apply, args, {**c, "control": control})
        if errors:
            raise errors[0]
        return out

    def _run(self, apply, args, c):
        if self.earlier_network is not None:
            return self.earlier_network(apply, {**args, "c": c})
        return apply(args["input"], args["timestep"], **c)

    def _closed(self):
        plan = self.call.plan
        return plan.w == 1.0 and not plan.wants_negative

    def combine(self, args):
        """The CFG slot: the rule, the gates' scale, then whoever had the slot before."""
        c, u, w, x = (args[k] for k in ("cond_denoised", "uncond_denoised", "cond_scale", "input"))
        call = self.call
        if call is None:
            return self.earlier_combine(args) if self.earlier_combine else x - (u + (c - u) * w)
        run, step = self.session.run, call.step
        plan = engine.plan(run, step, w) if w != _PROBE else call.plan
        call.plan = plan
        call.step = step
        if self.earlier_combine is None:
            return x - engine.combine(run, step, plan, c, u, plan.w)
        out = engine.combine(run, step, plan, c, u, plan.w)
        edited = u + (out - u) / w if w else c
        return self.earlier_combine({**args, "cond_denoised": edited, "cond": x - edited})

    def after(self, args):
        """The post-CFG function: branches, terms, steering without the network's Jacobian, finish."""
        call = self.call
        if call is None:
            return args["denoised"]
        session, run, plan, step = self.session, self.session.run, call.plan, call.step
        if vars(call).get("sizes", set()) - {tuple(args["input"].shape[2:])} and any(getattr(e, "regions", None) is not None for e in call.edited):
            raise ValueError("Regions beside a prompt with an area need a newer ComfyUI (December 2024 or later): this one does not tell which part of the picture "
                             "a network call shows. Take the area off the prompt.")
        guider = session.guider
        guider.conds = {"positive": args["cond"], "negative": args["uncond"]}
        predictions = {POSITIVE: args["cond_denoised"]}
        if args["uncond"] is not None and not self._closed():
            predictions[NEGATIVE] = args["uncond_denoised"]
        self._evaluate(call, predictions, args)
        base = engine.add(run, step, plan, args["denoised"], predictions)
        denoised = engine.steer(run, step, plan, lambda x: base) if plan.steers else base
        engine.observe(run, step, plan, predictions)
        self.call = None
        return engine.finish(run, step, plan, denoised, predictions)

    def _evaluate(self, call, predictions, args):
        import comfy.samplers
        branches = call.batched
        if not branches and not call.single:
            return
        model, x, sigma, options = args["model"], args["input"], args["sigma"], args["model_options"]
        try:
            if branches:
                self.branches = branches
                out = comfy.samplers.calc_cond_batch(model, [call.conds_of(b) for b in branches], x, sigma, options)
                predictions.update(zip(branches, out))
            for branch in call.single:
                self.branches = [branch]
                seen = {**predictions, **call.taken(x.shape)} if call.readings else predictions
                predictions[branch] = engine.transformed(branch, call.step, x, sigma * branch.sigma_factor, seen, lambda b, at, level: comfy.samplers.calc_cond_batch(
                    model, [call.conds_of(b)], at, level, options)[0])
        finally:
            self.branches = None


def _rows(value, rows, n):
    if isinstance(value, torch.Tensor) and value.ndim and value.shape[0] == n:
        return value[rows]
    if isinstance(value, list):
        return [_rows(v, rows, n) for v in value]
    if isinstance(value, dict):
        return {k: _rows(v, rows, n) if k != "transformer_options" else v for k, v in value.items()}
    return value


def _check(pipeline):
    """Refuses by name what this host cannot do."""
    from ..method import Steer
    for method in pipeline.of(Steer):
        if getattr(method, "route", "none") != "none":
            choice = "Choose route = none, or update ComfyUI." if "route" in {f.name for f in dataclasses.fields(method)} else "Update ComfyUI."
            raise ValueError(f"{method.title}: route = {method.route!r} needs a backward pass through the network, which this ComfyUI (before December 2024) "
                             f"cannot give. {choice}")
    for method in pipeline.methods:
        if getattr(method, "own_levels", False):
            raise ValueError(f"{method.title} needs a newer ComfyUI (December 2024 or later): this one cannot give the rows of a batch noise levels of their own.")
        if getattr(method, "resizes", False):
            raise ValueError(f"{method.title} needs a newer ComfyUI (December 2024 or later): this one cannot prepare a prompt for a second size.")
    for prompt in prompts_of(pipeline):
        if any("control" in c[1] or "gligen" in c[1] for c in prompt.cond):
            raise ValueError("A guidance node's own prompt with a ControlNet needs a newer ComfyUI (December 2024 or later). Take the ControlNet off it.")
    if models_of(pipeline):
        raise ValueError("Guidance with a second MODEL needs a newer ComfyUI (December 2024 or later): this one cannot load two models for one sampling run.")
