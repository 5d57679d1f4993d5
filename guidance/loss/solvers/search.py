"""Looking for the strengths of Training-Free Guidance: one of them doubled at a time, the best few kept."""
from __future__ import annotations

import math

FIELDS = ("rho", "mu", "smoothing")


def search(score, start, beam, rounds, report=None):
    """(best, table): best {field: value}; table [(values, score)] of all that was tried, the best first. score(values) -> float, lower is better (not finite: worst).

    From `start`, each of the `beam` best so far has one of FIELDS doubled (those that are 0 stay), `rounds` times or until no better one is found.
    """
    seen = {}

    def tried(values):
        key = tuple(values[f] for f in FIELDS)
        if key not in seen:
            found = float(score(values))
            seen[key] = found if math.isfinite(found) else math.inf
            if report is not None:
                report(values, seen[key])
        return seen[key]

    tried(start)
    kept = [tuple(start[f] for f in FIELDS)]
    for _ in range(rounds):
        new = []
        for key in kept:
            for i in range(len(FIELDS)):
                other = tuple(2 * v if i == j else v for j, v in enumerate(key))
                if other != key and other not in seen:
                    tried(dict(zip(FIELDS, other)))
                    new.append(other)
        best = sorted(seen, key=seen.get)[:beam]
        if not new or best == kept:
            break
        kept = best
    table = sorted(seen.items(), key=lambda item: item[1])
    return dict(zip(FIELDS, table[0][0])), [(dict(zip(FIELDS, key)), value) for key, value in table]


def written(table):
    """The table as text."""
    return "\n".join(["score: rho, mu, smoothing", *(f"{value:.5g}: " + ", ".join(f"{values[f]:g}" for f in FIELDS) for values, value in table)])
