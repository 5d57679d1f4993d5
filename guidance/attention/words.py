"""Words of a prompt without a place, for methods that read or raise their attention."""
from __future__ import annotations

from dataclasses import replace

from ..frozen import frozen
from ..method import BadInput


@frozen
class PromptWords:
    """Phrases of a prompt and where their tokens are. content: positions of all of the prompt's own tokens (without begin, end and padding); tokens: those of
    each phrase; length: the conditioning's number of tokens; mark: what the conditioning carries as "lodestar_prompt"."""

    text: str
    phrases: tuple
    tokens: tuple
    content: tuple
    length: int
    mark: str | None = None

    def __deepcopy__(self, memo):
        return self

    def need(self, node, least=1):
        """BadInput of `node` where there are fewer than `least` phrases."""
        if len(self.phrases) < least:
            raise BadInput(node, "words", ", ".join(self.phrases) or "none", f"Name at least {least} phrase{'s' if least > 1 else ''} of the prompt.")
        return self


def chosen(words, phrases, node, field="phrases"):
    """The PromptWords with those of its phrases that a text names, separated by commas; all of them where it names none. BadInput for one that is not among them."""
    wanted = phrases_of(phrases)
    for p in wanted:
        if p not in words.phrases:
            raise BadInput(node, field, p, f"There are: {', '.join(words.phrases)}.")
    return replace(words, phrases=wanted, tokens=tuple(words.tokens[words.phrases.index(p)] for p in wanted)) if wanted else words


def found(words, phrases, mark=None):
    """The PromptWords of phrases in a prompt; `words` is guidance.attention.tokens.Words."""
    tokens = tuple(words.find(p) for p in phrases)
    content = tuple(sorted({i for first, stop in words.spans for i in range(first, stop)}))
    return PromptWords(words.text, tuple(phrases), tokens, content, words.length, mark)


def phrases_of(text):
    """The phrases of a text that separates them by commas."""
    return tuple(" ".join(p.split()) for p in text.split(",") if p.strip())
