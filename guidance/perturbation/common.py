"""What the perturbation methods share."""


def rescaled(base, delta, cond, share):
    """delta', so that base + delta' has its standard deviation brought `share` of the way to cond's, per sample."""
    if not share:
        return delta
    result = base + delta
    axes = tuple(range(1, base.ndim))
    factor = cond.std(axes, keepdim=True) / result.std(axes, keepdim=True).clamp(min=1e-8)
    return result * (share * factor + 1 - share) - base
