"""A small grammar of prompts: noun phrases, and the relations between them. Closed classes of words alone, no dictionary of nouns or verbs.

A noun phrase is a run of words between words of the closed classes; a determiner may open it. Verbs are known by their place: what ends in "ing" after a
noun phrase ends it ("a cat sitting on a mat"). Where that is not enough the nodes take phrases written by hand.
"""
from __future__ import annotations

import re

DETERMINERS = frozenset("a an the this that these those some any each every no another both his her its their my your our one two three four five six several many".split())
CLOSED = frozenset("and or but with without of in on at by to from into onto over under above below beneath underneath behind between among beside besides near next inside outside "
                   "within around across through along against toward towards for as than like while during front top left right is are was were be being been has have had do does "
                   "who which whose where when there it they he she we you i not very wearing holding".split()) - {"top", "front", "left", "right"}
# the longest come first, so that "to the left of" is not read as "left of"
RELATIONS = tuple(sorted({
    "to the left of": "left of", "on the left of": "left of", "left of": "left of", "to the right of": "right of", "on the right of": "right of", "right of": "right of",
    "above": "above", "over": "above", "below": "below", "beneath": "below", "underneath": "below", "under": "below", "on top of": "on", "on": "on", "inside of": "inside",
    "inside": "inside", "within": "inside", "in": "inside", "next to": "next to", "beside": "next to", "near": "next to", "by": "next to", "in front of": "in front of",
    "behind": "behind"}.items(), key=lambda pair: -len(pair[0].split())))
NAMES = ("left of", "right of", "above", "below", "on", "inside", "next to", "in front of", "behind")
_WORD = re.compile(r"[^\W_]+(?:['\u2019-][^\W_]+)*")


def words_of(text):
    """[(word in lower case, start, end)] of a text; weights such as "(red:1.2)" are no words."""
    numbers = [m.span() for m in re.finditer(r":\s*-?\d+(\.\d+)?\s*\)", text)]
    return [(m.group().lower(), m.start(), m.end()) for m in _WORD.finditer(text) if not any(a <= m.start() < b for a, b in numbers)]


def _relation_at(words, i):
    """(relation, number of words) that begins at word i, or None."""
    for phrase, name in RELATIONS:
        parts = phrase.split()
        if [w for w, _, _ in words[i:i + len(parts)]] == parts:
            return name, len(parts)
    return None


def noun_phrases(text):
    """The noun phrases of a prompt in order, without determiners, each as it stands in the text: ["red car", "white sheep"]."""
    text = re.sub(r":\s*-?\d+(\.\d+)?\s*\)", lambda m: " " * len(m.group()), text).replace("(", " ").replace(")", " ")      # weights
    words, found, run = words_of(text), [], []

    def close():
        if run:
            found.append(" ".join(text[run[0][1]:run[-1][2]].split()))
            run.clear()

    i = 0
    while i < len(words):
        word, start, end = words[i]
        relation = _relation_at(words, i)
        if run and re.search(r"[,;.!?:\n]", text[run[-1][2]:start]):
            close()
        if relation is not None:
            close()
            i += relation[1]
            continue
        if word in DETERMINERS or word in CLOSED or (word.endswith("ing") and len(word) > 4 and run and not re.search(r"[-]", text[run[-1][2]:start])):
            close()
        else:
            run.append(words[i])
        i += 1
    close()
    return found


def conjunctions(text):
    """Whether the prompt joins noun phrases by "and", where the paper of Structured Diffusion replaces keys rather than values."""
    return any(w == "and" for w, _, _ in words_of(text))


def statements(text):
    """[(noun phrase, relation or None, noun phrase or None)] of a description: clauses are separated by line breaks, semicolons and full stops.

    "a red ball left of a cube and a cat on the cube" gives (red ball, left of, cube), (cat, on, cube). A thing that stands alone has no relation.
    """
    found = []
    for clause in re.split(r"[;.\n]+", text):
        words, thing, relation, run = words_of(clause), None, None, []

        def take():
            nonlocal thing, relation
            if not run:
                return
            name = " ".join(w for w, _, _ in run)
            run.clear()
            if thing is not None and relation is not None:
                found.append((thing, relation, name))
                thing, relation = name, None
            else:
                if thing is not None:
                    found.append((thing, None, None))
                thing = name

        i = 0
        while i < len(words):
            word = words[i][0]
            at = _relation_at(words, i)
            comma = run and "," in clause[run[-1][2]:words[i][1]]
            if at is not None:
                take()
                if thing is not None:
                    relation = at[0]
                i += at[1]
                continue
            if word in ("and", "with") or comma:
                take()
                thing, relation = (thing, relation) if thing is None or relation is not None else _alone(found, thing)
            if word not in DETERMINERS and word not in CLOSED and not (word.endswith("ing") and run):
                run.append(words[i])
            i += 1
        take()
        if thing is not None and (not found or thing not in found[-1]):
            found.append((thing, None, None))
        if relation is not None:
            found.append((thing, relation, None))
    return found


def _alone(found, thing):
    """What follows an "and" begins anew; a thing that no relation has named yet is noted alone."""
    if not any(thing in (a, b) for a, _, b in found):
        found.append((thing, None, None))
    return None, None
