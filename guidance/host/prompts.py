"""Conditionings that methods bring themselves: their hooks registered, the models they carry (ControlNets, GLIGEN) loaded for the run."""
from __future__ import annotations

import contextlib

from .attach import prompts_of


@contextlib.contextmanager
def prepared(session):
    """Makes the run's extra prompts ready as the host does for its own; yields the models that have to be loaded with the sampled one."""
    import comfy.sampler_helpers as helpers
    prompts = prompts_of(session.run.pipeline)
    if not prompts:
        yield []
        return
    conds = {p: helpers.convert_cond(p.cond) for p in prompts}
    _register_hooks(session.guider, conds)
    session.converted.update(conds)
    models, _ = helpers.get_additional_models(conds, session.guider.model_patcher.model_dtype())
    try:
        yield models
    finally:
        session.converted.clear()
        controls = [c for entries in conds.values() for c in helpers.get_models_from_cond(entries, "control")]
        helpers.cleanup_additional_models(dict.fromkeys(controls))


def _register_hooks(guider, conds):
    """Registers the weight hooks (LoRA) of extra prompts beside those of the guider's own; what cannot be registered any more is refused by name."""
    import comfy.hooks
    import comfy.samplers
    import comfy.sampler_helpers as helpers
    comfy.samplers.preprocess_conds_hooks(conds)
    wanted = comfy.hooks.HookGroup()
    for entries in conds.values():
        helpers.get_hooks_from_cond(entries, wanted)
    if not len(wanted):
        return
    weight = wanted.get_type(comfy.hooks.EnumHookType.Weight)
    before = guider.model_options.get("registered_hooks") or comfy.hooks.HookGroup()
    others = [h for h in wanted.hooks if h not in weight and not before.contains(h)]
    if others:
        raise ValueError(f"Lodestar: a prompt of a guidance node carries a hook of the kind {type(others[0]).__name__}, which the host takes from the "
                         "sampler's own prompts only. Put it on the positive prompt.")
    # in one go with the guider's own: registering begins by forgetting what was registered
    registered = comfy.hooks.HookGroup()
    for hook in before.hooks:
        (wanted if hook in before.get_type(comfy.hooks.EnumHookType.Weight) else registered).add(hook)
    target = comfy.hooks.create_target_dict(comfy.hooks.EnumWeightTarget.Model)
    guider.model_patcher.register_all_hook_patches(wanted, target, guider.model_options, registered)
    guider.model_options["registered_hooks"] = registered
    guider.model_patcher.hook_mode = comfy.hooks.EnumHookMode.MaxSpeed
    comfy.samplers.filter_registered_hooks_on_conds(conds, guider.model_options)
