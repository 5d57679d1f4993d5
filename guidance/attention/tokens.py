"""Which tokens of a prompt belong to a phrase, found with the host's own tokenizer. No host import: a CLIP is whatever has `tokenize`.

Positions are those of the conditioning's token axis: the order in which the text encoder lays out its streams (CLIP chunks, T5, a language model behind
a template that is cut off) is told from their lengths, and an error says where it cannot be.
"""
from __future__ import annotations

import re

from ..method import BadInput

CLIPS = ("l", "g", "h")       # the host's names of CLIP's streams
_NUMBERED = re.compile(r"^(.*?)\s*\[(\d+)\]$")


def ids_of(clip, text):
    """{stream: token ids in order} of a text; entries that are no ids (embeddings, pictures) stay as they are."""
    tokens = clip.tokenize(text)
    tokens = tokens if isinstance(tokens, dict) else {"l": tokens}
    return {name: [t[0] for chunk in chunks for t in chunk] for name, chunks in tokens.items() if isinstance(chunks, (list, tuple)) and chunks}


def _is_id(value):
    return isinstance(value, int)


def _common(a, b):
    n = 0
    for x, y in zip(a, b):
        if not (_is_id(x) and _is_id(y) and x == y):
            break
        n += 1
    return n


def content(ids, empty):
    """(first, last + 1) of the tokens of a text's own, given those of the empty text: without begin, end, padding and template."""
    first = _common(ids, empty)
    rest, left = ids[first:], empty[first:]
    back = _common(rest[::-1], left[::-1])
    stop = len(ids) - back
    special = {t for t in left if _is_id(t)}
    while stop > first and _is_id(ids[stop - 1]) and ids[stop - 1] in special:
        stop -= 1
    return first, stop


def layout(streams, empties, length, node="Prompt with Regions"):
    """[(stream, shift)]: token i of a stream is at position i + shift of a conditioning of `length` tokens."""
    sizes = {name: len(ids) for name, ids in streams.items()}
    clips = [n for n in sizes if n in CLIPS]
    others = [n for n in sizes if n not in CLIPS]
    exact = [n for n in others if sizes[n] == length] or [n for n in clips if sizes[n] == length]
    if exact:
        return [(n, 0) for n in exact]
    if clips and others:
        ahead = max(sizes[n] for n in clips)
        behind = [n for n in others if ahead + sizes[n] == length]
        if behind:
            return [(n, 0) for n in clips] + [(n, ahead) for n in behind]
    cut = [n for n in others if sizes[n] > length and length <= sizes[n] - _common(streams[n], empties[n])]
    if len(cut) == 1:      # a language model's template is cut off in front of the prompt
        return [(cut[0], -_common(streams[cut[0]], empties[cut[0]]))]
    raise BadInput(node, "clip", ", ".join(f"{n}: {s} tokens" for n, s in sizes.items()),
                   f"The conditioning has {length} tokens, and it cannot be told which of this text encoder's they are. Words cannot be found with it.")


class Words:
    """The tokens of one encoded prompt. `length`: the conditioning's number of tokens."""

    def __init__(self, clip, text, length, node="Prompt with Regions"):
        self.clip, self.text, self.length, self.node = clip, text, length, node
        self.streams, self.empties = ids_of(clip, text), ids_of(clip, "")
        self.places = layout(self.streams, self.empties, length, node)

    def _own(self, name, text):
        """The ids of a text in a stream, without begin, end, padding and template."""
        ids = ids_of(self.clip, text)[name]
        first, stop = content(ids, self.empties[name])
        return ids[first:stop]

    @property
    def spans(self):
        """[(first, last + 1)] of the prompt's own words in the conditioning, one for each stream."""
        found = []
        for name, shift in self.places:
            first, stop = content(self.streams[name], self.empties[name])
            found.append((first + shift, stop + shift))
        return found

    def _variants(self, phrase):
        """The phrase as it may have been tokenized inside the prompt."""
        seen = re.search(re.escape(phrase), self.text, re.IGNORECASE)
        for p in dict.fromkeys((phrase, seen.group(0) if seen else phrase)):
            yield p
            yield " " + p

    def occurrences(self, phrase):
        """{stream: [(first, last + 1)]}: where the phrase stands in each stream, in positions of the conditioning."""
        found = {}
        for name, shift in self.places:
            ids, places = self.streams[name], []
            low, high = content(ids, self.empties[name])
            for wanted in dict.fromkeys(tuple(self._own(name, v)) for v in self._variants(phrase)):
                if not wanted or not all(map(_is_id, wanted)):
                    continue
                n, i = len(wanted), low
                while i + n <= high:
                    if tuple(ids[i:i + n]) == wanted:
                        places.append((i + shift, i + shift + n))
                        i += n
                    else:
                        i += 1
            found[name] = sorted(set(places))
        return found

    def spans_of(self, phrase, field="words"):
        """[(first, last + 1)] of a phrase; "ball[2]" is its second occurrence, "ball" are all. BadInput where the prompt does not have it."""
        numbered, text = _NUMBERED.match(phrase), plain(phrase)
        number = int(numbered.group(2)) if numbered else None
        found = self.occurrences(text)
        if not any(found.values()):
            known = any(self._own(name, text) for name, _ in self.places)
            why = "The prompt does not contain it" if known else "The text encoder knows none of its words"
            raise BadInput(self.node, field, text, f"{why}. The prompt is: {self.text!r}")
        if number is not None:
            most = max(map(len, found.values()))
            if not 1 <= number <= most:
                raise BadInput(self.node, field, phrase, f"The prompt contains it {most} time{'s' if most > 1 else ''}.")
            return sorted({places[number - 1] for places in found.values() if len(places) >= number})
        return sorted({p for places in found.values() for p in places})

    def find(self, phrase, field="words"):
        """The positions of a phrase's tokens, sorted."""
        return tuple(sorted({i for first, stop in self.spans_of(phrase, field) for i in range(first, stop)}))


def plain(phrase):
    """A phrase without the number of its occurrence."""
    numbered = _NUMBERED.match(phrase)
    return numbered.group(1) if numbered else phrase


def aligned(full, words, phrase, encode):
    """The prompt's embedding `full` [1, length, width] with the rows of a phrase replaced by those of the phrase encoded alone, in every place where it stands.

    encode(text) is the embedding [1, n, width] of a text.
    """
    chosen, alone = set(words.spans_of(phrase)), encode(plain(phrase)).to(full)
    own = Words(words.clip, plain(phrase), alone.shape[1], words.node)
    spans, out = dict(zip((name for name, _ in own.places), own.spans)), full.clone()
    for name, places in words.occurrences(plain(phrase)).items():
        if name not in spans:
            continue
        first, stop = spans[name]
        for begin, end in places:
            if (begin, end) in chosen and end - begin == stop - first:
                out[:, begin:end] = alone[:, first:stop]
    return out


def located(regions, words):
    """The regions with the tokens of their words in a prompt; those without words stay as they are."""
    from .regions import renewed
    items = []
    for i, region in enumerate(regions):
        field = f"words of region {i + 1}"
        items.append(renewed(region, tokens=tuple(sorted({t for p in region.phrases for t in words.find(p, field)}))))
    return regions.replace(items, text=words.text, length=words.length)
