"""What the running host offers. Asked by feature, never by version number."""
import functools


@functools.lru_cache(None)
def wrappers():
    """Whether the host has wrappers around sampling, predictions and network calls (December 2024 on)."""
    try:
        import comfy.patcher_extension
    except ImportError:
        return False
    return hasattr(comfy.patcher_extension, "WrappersMP")


def is_flow(model_sampling):
    """Whether x = (1 - s) x0 + s n (flow matching) rather than x = x0 + s n."""
    import comfy.model_sampling
    const = getattr(comfy.model_sampling, "CONST", None)
    return const is not None and isinstance(model_sampling, const)


def complete():
    """ComfyUI 0.0.1 forgets an import where it widens an Empty Latent Image to a model's channels."""
    import comfy.sample
    import comfy.utils
    vars(comfy.sample).setdefault("comfy", comfy)
