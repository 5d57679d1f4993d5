"""Reference rows: branches whose pictures other rows look at inside attention.

They are conditionings of the guider's own evaluation, so that the host batches them with the prompts; their rows of x are replaced by the reference at the step's
level. Queries, keys, values of these rows are at hand for the others in the same network call. Where the host splits its batch, the reference has to come first:
what the others need of it is then kept for this sampler call. The host takes conditionings from the end of the list, so that a reference which can share a batch
is in the first one; if it could not, it is evaluated in a call of its own (in later steps ahead of the others).
"""
from __future__ import annotations

import torch

from ..attention.edits import Shared
from ..attention.sources import entries, own_noise
from ..method import BadInput
from .geometry import pairs_only

NODE = "Reference"
_OF_THE_TARGET = ("area", "mask", "mask_strength", "strength", "set_area_to_bounds", "control", "control_apply_to_uncond", "gligen", "timestep_start", "timestep_end",
                  "start_percent", "end_percent", "default")
_CONTROL = ("control", "control_apply_to_uncond")


def awake(entry, sigma):
    """Whether the host evaluates a conditioning entry at this level."""
    return not (sigma > entry.get("timestep_start", float("inf")) or sigma < entry.get("timestep_end", float("-inf")))


def entry_of(found, sigma, control=False):
    """The one entry of a prompt that describes a reference: the first that is active, without what places it in the target's picture; its ControlNet stays where it is the reference's own."""
    active = [e for e in found if awake(e, sigma)] or found
    return {k: v for k, v in active[0].items() if k not in _OF_THE_TARGET or (control and k in _CONTROL)}


# What the rows hold

def clean(session, source, shape, device):
    """The reference's latent [n, ...] as the model sees it, of the sampled latent's size; kept for the run."""
    key = source.latent
    if key not in session.references:
        import comfy.sample
        samples = key.value["samples"]
        if getattr(samples, "is_nested", False):
            raise BadInput(NODE, "latent", "audio and video together", "Connect a latent of pictures alone.")
        samples = comfy.sample.fix_empty_latent_channels(session.guider.model_patcher, samples)
        session.references[key] = session.model.process_latent_in(samples.to(device=device, dtype=torch.float32))
    return _fitting(session.references[key], shape, "latent")


def _fitting(samples, shape, field):
    if samples.ndim == len(shape) - 1 == 4:
        samples = samples.unsqueeze(2)
    if samples.ndim == 5 and len(shape) == 5 and samples.shape[2] == 1 != shape[2]:
        samples = samples.expand(-1, -1, shape[2], -1, -1)      # one picture for all frames
    if samples.shape[1:] != shape[1:]:
        raise BadInput(NODE, field, f"size {list(samples.shape[1:])}", f"The sampled latent has {list(shape[1:])} (channels, height, width). "
                       "Bring the picture to the size of the empty latent before you encode it.")
    return samples


def run_noise(session, shape, device):
    """The noise [batch, ...] that the run began with; drawn by the run's seed where the sampler was given none."""
    if "noise" not in session.references:
        noise = session.arguments["noise"]
        noise = None if noise is None else noise.to(device=device, dtype=torch.float32)
        if noise is None or tuple(noise.shape) != tuple(shape) or not bool(noise.any()):
            seed = session.arguments["seed"] or 0
            noise = torch.stack([torch.randn(shape[1:], generator=torch.Generator().manual_seed(seed + i)) for i in range(shape[0])]).to(device)
        session.references["noise"] = noise
    return session.references["noise"]


def state(session, source, shape, sigma, step, device):
    """The reference [batch, ...] at noise level sigma [batch], as the network's input x."""
    if source.trajectory is not None:
        trajectory = source.trajectory.value
        return entries(_fitting(trajectory.at(float(sigma.flatten()[0])).to(device), shape, "trajectory"), shape[0], NODE, "trajectory")
    latent = entries(clean(session, source, shape, device), shape[0], NODE, "latent")
    noise = run_noise(session, shape, device)
    if source.noise == "own":
        noise = own_noise(noise, step.index, source.salt)
    sigma = sigma.view(-1, *[1] * (len(shape) - 1)).to(noise)
    return session.model.model_sampling.noise_scaling(sigma, noise, latent)


# When they are evaluated

def begin(call, conds, timestep, model_options):
    """Before the guider's evaluation: the reference branches that go with it; the others are evaluated here."""
    call.expected = 0
    if not call.references:
        return []
    sigma = float(timestep.flatten()[0])
    given = [(call.session.roles.get(e.get("uuid")), e) for entries_ in conds if entries_ is not None for e in entries_]
    given += [(b, e) for b in call.batched for e in call.session.prompt_conds(b.prompt)]
    needed = tuple(dict.fromkeys(b for role, e in given if awake(e, sigma) for edit in call.edits_of(role) for b in edit.references))
    alone = call.session.references_first or pairs_only(call.session.model.diffusion_model) or "multigpu_clones" in model_options or model_options.get("context_handler") is not None
    if alone:
        evaluate(call, needed, timestep)
        needed = ()
    call.expected = sum(awake(e, sigma) for _, e in given) + len(needed)
    return needed


def evaluate(call, branches, timestep):
    """Network calls of the references alone; what the others will need of them is kept."""
    import comfy.samplers
    options = {k: v for k, v in call.options.items() if k not in ("context_handler", "sampler_pre_cfg_function", "sampler_post_cfg_function")}
    x = call.step.x
    timestep = timestep.flatten()[:1].expand(x.shape[0])
    nested, call.ahead = call.ahead, True
    try:
        comfy.samplers.calc_cond_batch(call.session.model, [call.conds_of(b) for b in branches], x, timestep, options)
    finally:
        call.ahead = nested


def enter(call, options, x, t, roles):
    """Around a network call: x with the references in their rows; those that its rows look at and that are nowhere yet are evaluated first."""
    net, size, sigma = options["lodestar_net"], x.shape[0] // len(roles), float(t.flatten()[0])
    here = {}
    for i, role in enumerate(roles):
        if role is not None and role.source is not None:
            here[role] = slice(i * size, (i + 1) * size)
    wanted = dict.fromkeys(b for role in roles for e in call.edits_of(role) for b in e.references)
    missing = [b for b in wanted if b not in here and (b, sigma) not in call.bank]
    if missing:
        call.session.references_first = True
        evaluate(call, missing, t)
    if not call.ahead:
        call.expected -= len(roles)
    net["references"], net["sigma"], net["size"] = here, sigma, size
    net["keep"] = call.ahead or call.expected > 0
    if here:
        x = x.clone()
        for branch, rows in here.items():
            x[rows] = state(call.session, branch.source, (size, *x.shape[1:]), t[rows], call.step, x.device).to(x.dtype)
            if net["keep"]:
                call.bank.setdefault((branch, sigma), {})
    return x


# What the others see of them

def shared(call, net, place, wanted, cut):
    """{Branch: value} at one place of the network, of this call's own reference rows and of those that were evaluated before; kept where others will ask.

    wanted: the references of the edits at this place; cut(rows): the value of some rows.
    """
    found, here = {}, net.get("references", {})
    for branch in wanted:
        bank = call.bank.get((branch, net.get("sigma")))
        if branch in here:
            found[branch] = cut(here[branch])
            if net["keep"]:
                bank[place] = found[branch]
        elif bank is not None and place in bank:
            found[branch] = bank[place]
    return found


def wanted_at(call, layer, kind):
    """The references that any edit of this call looks at in a layer's attention."""
    return tuple(dict.fromkeys(b for e in call.edited if kind in e.kinds and e.references and layer in call.session.selected(e) for b in e.references))


def attention(call, options, layer, kind, q, k, v, image=slice(None)):
    """{Branch: Shared} at one attention call, q, k, v [rows, heads, tokens, head_dim] of all rows; `image` is where the picture is among the tokens."""
    wanted = wanted_at(call, layer, kind) if call.references else ()
    if not wanted or kind not in ("self", "joint"):
        return {}
    net = options["lodestar_net"]
    keep = net.get("keep")

    def cut(rows):
        parts = [t[rows, :, image] for t in (q, k, v)]
        return Shared(*(p.clone() if keep else p for p in parts))
    return {b: _on(s, q) for b, s in shared(call, net, (layer, kind), wanted, cut).items()}


def _on(values, like):
    if values.q.device == like.device:
        return values
    return Shared(*(t.to(like.device) for t in (values.q, values.k, values.v)))
