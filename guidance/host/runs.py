"""The engine on hosts with wrappers: one run around sampling, one call around each prediction."""
from __future__ import annotations

import contextlib
import dataclasses
import logging

import torch

from .. import engine
from ..attention.edits import AttentionObserver
from ..engine import REPORTS, Run
from ..method import NEGATIVE, POSITIVE, Branch
from . import attention_hooks, block_hooks, control_hooks, features, gradients, joint_streams, modules, peers, prompts, references, streams, unet_hooks
from .attach import KEY
from .calls import OPTION, Call, Session
from .geometry import pairs_only

SESSION = "lodestar_session"
_OUTER = ("noise", "latent_image", "sampler", "sigmas", "denoise_mask", "callback", "disable_pbar", "seed", "latent_shapes")


def install(patcher):
    """Registers the wrappers on a MODEL, once per clone line."""
    from comfy.patcher_extension import WrappersMP
    for kind, function in ((WrappersMP.OUTER_SAMPLE, outer_sample), (WrappersMP.PREDICT_NOISE, predict_noise),
                           (WrappersMP.CALC_COND_BATCH, calc_cond_batch), (WrappersMP.APPLY_MODEL, apply_model)):
        if not patcher.wrappers.get(kind, {}).get(KEY):
            patcher.add_wrapper_with_key(kind, KEY, function)


def outer_sample(executor, *args, **kwargs):
    """Around a sampling run: makes its Run, and forgets it afterwards whatever happens."""
    guider = executor.class_obj
    pipeline = guider.model_options.get(KEY)
    if not pipeline or SESSION in guider.model_options:
        return executor(*args, **kwargs)
    arguments = dict(zip(_OUTER, args)) | kwargs
    arguments = {name: arguments.get(name) for name in _OUTER}
    _refuse_packed(arguments)
    run = Run(pipeline, sigmas=arguments["sigmas"], seed=arguments["seed"])
    session = Session(run, guider, arguments)
    guider.model_options[SESSION] = session
    try:
        with prompts.prepared(session) as carried, peers.loaded(session, carried), joint_streams.opened(session):
            out = executor(*args, **kwargs)
        attention_hooks.check_run(session)
        block_hooks.check_run(session)
        run.report.finished = True
        return out
    finally:
        guider.model_options.pop(SESSION, None)
        session.close()
        REPORTS.append(run.report)
        if run.report.calls:
            logging.info("Lodestar: %s", run.report)


def _refuse_packed(arguments):
    shapes = arguments["latent_shapes"]
    if shapes is not None and len(shapes) > 1:
        raise ValueError(f"Lodestar: this latent packs {len(shapes)} streams (such as video and audio) into one tensor; the guidance nodes on this model "
                         "do not support packed latents. Remove them, or sample the streams separately.")


def predict_noise(executor, x, timestep, model_options={}, seed=None):
    """Around a prediction: plan, let the guider evaluate, add, steer, finish."""
    session = model_options.get(SESSION)
    if session is None or OPTION in model_options.get("transformer_options", {}):
        return executor(x, timestep, model_options, seed)
    guider, run = executor.class_obj, session.run
    sampling = session.model.model_sampling
    run.flow, run.percent_to_sigma = features.is_flow(sampling), sampling.percent_to_sigma
    session.note_prompts()
    step = run.step(x, timestep)
    scale = getattr(guider, "cfg", None)
    step.maps["noise"] = lambda: references.run_noise(session, x.shape, x.device)
    step.maps["kept"] = lambda: _kept(session, x)
    plan = engine.plan(run, step, 1.0 if scale is None else float(scale))
    if plan.idle and plan.w == scale:
        # nothing acts here: the host's own way, bit for bit; only the count of evaluations is kept
        call = Call(session, plan, step)
        try:
            return executor(x, timestep, _with_call(model_options, call), seed)
        finally:
            call.close()
    seen, calls = {}, []

    def guided(at):
        call = Call(session, plan, step if at is x else _at(step, at))
        calls.append(call)
        base = _evaluate(executor, call, at, timestep, model_options, seed, guider, scale)
        seen.clear()
        seen.update(call.predictions)
        base = engine.settle(run, call.step, plan, base, seen[POSITIVE]) if plan.gates and NEGATIVE in seen else base
        return engine.add(run, call.step, plan, base, seen)

    try:
        if plan.steers:
            step.free = _free(session.arguments["denoise_mask"], x) if "denoise_mask_function" not in model_options else None
            with gradients.host_context(session):
                run.context.alone = _alone(session, plan, step, timestep, model_options, calls)
                denoised = engine.steer(run, step, plan, guided)
        else:
            denoised = guided(x)
    finally:
        for call in calls:      # not before: a backward pass runs blocks, and their hooks, again
            call.close()
    engine.observe(run, step, plan, seen)
    return engine.finish(run, step, plan, denoised, seen)


def _free(mask, x):
    """The run's mask on the size of x; older hosts prepare it behind this wrapper."""
    if mask is None or mask.shape == x.shape:
        return mask
    import comfy.sampler_helpers
    return comfy.sampler_helpers.prepare_mask(mask, x.shape, x.device)


def _kept(session, x):
    """(The latent that inpainting keeps, as the model sees it; where it is made anew), or None where all of it is."""
    latent, mask = session.arguments["latent_image"], session.arguments["denoise_mask"]
    if latent is None or mask is None:
        return None
    return session.model.process_latent_in(latent.to(x)), _free(mask, x)


def _at(step, x):
    return dataclasses.replace(step, x=x)


def _alone(session, plan, step, timestep, model_options, calls):
    """A function (x, observers) -> the conditional prediction at x alone, with the run's edits, and these observers in place of all others; `branch`: another one in its place, with a source
    that of the reference, whose rows carry the branch's own edits. Its calls are added to `calls`."""
    def predict(x, observers=(), branch=POSITIVE):
        edits = tuple(e for e in plan.edits if not isinstance(e, AttentionObserver)) + tuple(observers)
        call = Call(session, dataclasses.replace(plan, edits=edits, branches=()), _at(step, x))
        calls.append(call)
        call.main_done = True
        options = _with_call(model_options, call)
        attention_hooks.install(call, options)
        if branch.source is not None:
            x = references.state(session, branch.source, x.shape, timestep, step, x.device).to(x.dtype)
        return _single(session, call, branch, x, timestep, options)
    return predict


def _with_call(model_options, call):
    options = model_options.copy()
    options["transformer_options"] = {**options.get("transformer_options", {}), OPTION: call}
    return options


def _evaluate(executor, call, x, timestep, model_options, seed, guider, scale):
    """The guider's prediction at the planned scale, with our branches batched into its evaluation."""
    plan, session = call.plan, call.session
    options = _with_call(model_options, call)
    attention_hooks.install(call, options)
    block_hooks.install(call, options)
    call.options = options
    if plan.wants_negative:
        options["disable_cfg1_optimization"] = True
    if plan.rule is not None and plan.w != 1.0:
        options["sampler_cfg_function"] = _rule_slot(call, options.get("sampler_cfg_function"))
    separate = options.get("context_handler") is not None or pairs_only(session.model.diffusion_model)
    if separate:
        call.single, call.batched = call.batched + call.single, []
    options["sampler_post_cfg_function"] = [_recorder(call), *options.get("sampler_post_cfg_function", [])]
    try:
        if scale is not None:
            guider.cfg = plan.w if plan.w != scale else scale
        base = executor(x, timestep, options, seed)
    finally:
        if scale is not None:
            guider.cfg = scale
    if POSITIVE not in call.predictions:
        call.predictions[POSITIVE] = base
    if plan.rule is not None and plan.w != 1.0 and not call.combined and call.negative_seen:
        raise ValueError(f"{plan.rule[1].title}: {type(guider).__name__} combines its predictions itself, so the rule cannot replace it. Use CFGGuider or KSampler.")
    for branch in call.single:
        call.predictions[branch] = _single(session, call, branch, x, timestep, options)
    return base


def _recorder(call):
    """A post-CFG function that changes nothing and remembers the two predictions."""
    def record(args):
        call.predictions.setdefault(POSITIVE, args["cond_denoised"])
        if args.get("uncond") is not None:
            call.predictions.setdefault(NEGATIVE, args["uncond_denoised"])
        return args["denoised"]
    return record


def _rule_slot(call, earlier):
    """The combine function of this call: our rule, handed on to an earlier occupant of the slot as the prediction that it should combine."""
    def combine(args):
        c, u, w, x = args["cond_denoised"], args["uncond_denoised"], args["cond_scale"], args["input"]
        call.combined = True
        out = engine.combine(call.session.run, call.step, call.plan, c, u, w)
        if earlier is None:
            return x - out
        c = u + (out - u) / w if w else c
        return earlier({**args, "cond_denoised": c, "cond": x - c})
    return combine


def _single(session, call, branch, x, timestep, options):
    """A branch that cannot share the batch: another model, another input, another noise level."""
    import comfy.samplers
    options = {**options}
    options.pop("sampler_post_cfg_function", None)
    seen = {**call.predictions, **call.taken(x.shape)} if call.readings else call.predictions

    def evaluate(branch, x, sigma):
        if branch.model is not None:
            return peers.evaluate(session, call, branch, x, sigma, options)
        return comfy.samplers.calc_cond_batch(session.model, [call.conds_of(branch, x)], x, sigma, options)[0]
    return engine.transformed(branch, call.step, x, timestep * branch.sigma_factor, seen, evaluate)


def calc_cond_batch(executor, model, conds, x_in, timestep, model_options):
    """Around the evaluation of conditionings: appends our branches to the guider's own call."""
    call = model_options.get("transformer_options", {}).get(OPTION)
    if call is None or call.main_done or model is not call.session.model:
        return executor(model, conds, x_in, timestep, model_options)
    call.main_done = True
    extra = [call.conds_of(branch) for branch in (*call.batched, *references.begin(call, conds, timestep, model_options))]
    out = executor(model, list(conds) + extra, x_in, timestep, model_options)
    guider = call.session.guider
    for entries, prediction in zip(conds, out):
        for name, branch in (("positive", POSITIVE), ("negative", NEGATIVE)):
            if entries is not None and entries is guider.conds.get(name):
                call.predictions[branch] = prediction
                call.negative_seen |= branch == NEGATIVE
    call.predictions.update(zip(call.batched, out[len(conds):]))
    return out[:len(conds)]


def apply_model(executor, x, t, c_concat=None, c_crossattn=None, control=None, transformer_options={}, **kwargs):
    """Around a network call: counts it, makes our chunks look like the prompt they stand for, adds shadow rows where an edit needs them."""
    call = transformer_options.get(OPTION)
    if call is None:
        return executor(x, t, c_concat, c_crossattn, control, transformer_options, **kwargs)
    options = dict(transformer_options)
    chunks = options.get("cond_or_uncond") or [0]
    options["lodestar_chunks"] = list(chunks)
    roles = call.roles(options)
    # third-party patches know 0 (conditional) and 1 (unconditional) only
    options["cond_or_uncond"] = [c if c < 2 or r is None else (1 if r.prompt == "negative" else 0) for c, r in zip(chunks, roles)]
    options["lodestar_net"] = {"shape": tuple(x.shape), "rows": x.shape[0], "text_tokens": c_crossattn.shape[1] if torch.is_tensor(c_crossattn) else None}
    if call.references:
        x = references.enter(call, options, x, t, roles)
    streams.enter(call, options, x, c_concat, c_crossattn, roles, kwargs)
    x, t, c_crossattn, kwargs = joint_streams.enter(call, x, t, c_crossattn, roles, options, kwargs)
    _no_step_cache_for_newcomers(options)
    report = call.session.run.report
    with call.session.run.lock:
        report.network_calls += 1
        report.evaluations += len(chunks)
        report.by_kind.update(_kind(r) for r in roles)
    shadow = attention_hooks.shadow_rows(call, options, x, roles) if c_crossattn is not None else None
    network = getattr(getattr(executor, "class_obj", None), "diffusion_model", None)
    network = call.session.model.diffusion_model if network is None else network
    residuals = control
    control, errors = control_hooks.wrapped(call, control)
    with block_hooks.placed(call, options, network), unet_hooks.placed(call, options, network), joint_streams.placed(call, options, network), modules.placed(call, options, network, residuals), _named_sizes(call, x, network):
        if shadow is None:
            out = executor(x, t, c_concat, c_crossattn, control, options, **kwargs)
        else:
            out = executor(*shadow.expand(x, t, c_concat, c_crossattn, control, options), **shadow.expand_dict(kwargs))[:x.shape[0]]
    if errors:
        raise errors[0]
    attention_hooks.check_fired(call, options)
    return out


def _ours(error):
    """Whether the pack itself raised an error."""
    trace = error.__traceback__
    while trace.tb_next is not None:
        trace = trace.tb_next
    return trace.tb_frame.f_globals.get("__name__", "").startswith(__package__.rpartition(".")[0] + ".")


@contextlib.contextmanager
def _named_sizes(call, x, network):
    """Within it, a network that fails on another size than the sampled one says so: patches that do not fit, positions that it does not know."""
    try:
        yield
    except (RuntimeError, AssertionError, ZeroDivisionError, ValueError) as error:
        import comfy.model_management as management
        given = tuple(x.shape[-2:])
        full = given if call.step is None else tuple(call.step.x.shape[-2:])
        if given == full or isinstance(error, management.OOM_EXCEPTION) or "out of memory" in str(error).lower() or _ours(error):
            raise
        size = lambda cells: " x ".join(map(str, cells))
        raise ValueError(f"{type(network).__name__} cannot be run on {size(given)} latent cells, which a guidance node or a prompt with an area asks for (the picture has {size(full)}). "
                         f"Sample a larger picture, or one whose parts this network can divide into its patches. It said: {str(error) or type(error).__name__}") from error


def _no_step_cache_for_newcomers(options):
    """Older EasyCache fails where a conditioning comes in at a step that it would skip (a gate that opens, a branch's window): such a step is run."""
    cache = options.get("easycache")
    known = getattr(cache, "uuid_cache_diffs", None)
    if known is None or hasattr(cache, "can_apply_cache_diff") or getattr(cache, "skip_current_step", False):
        return
    if any(u not in known for u in options.get("uuids") or ()):
        cache.cumulative_change_rate = float("inf")      # the cache compares, does not skip, and starts counting anew


def _kind(role):
    if role == POSITIVE:
        return "positive"
    if role == NEGATIVE:
        return "negative"
    if isinstance(role, Branch) and role.source is not None:
        return "reference"
    return "branch" if isinstance(role, Branch) else "other"
