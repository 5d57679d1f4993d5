"""Words of a prompt: which of its things a method is to care for."""
from ._define import Input, NodeDef, Output, category

TITLE = "Prompt Words"


def _words(clip, text, words):
    import uuid

    from ..guidance.attention.phrases import noun_phrases
    from ..guidance.attention.tokens import Words
    from ..guidance.attention.words import found, phrases_of
    from ..guidance.host.text import encode
    conditioning, mark = encode(clip, text), uuid.uuid4().hex
    known = Words(clip, text, conditioning[0][0].shape[1], TITLE)
    chosen = found(known, phrases_of(words) or noun_phrases(text), mark).need(TITLE)
    return [[t, {**d, "lodestar_prompt": mark}] for t, d in conditioning], chosen, ", ".join(chosen.phrases)


NODES = (
    NodeDef(
        node_id="LodestarPromptWords",
        title=TITLE,
        category=category("attention"),
        description="Encodes a prompt and finds phrases in it, for methods that raise the attention to them.",
        inputs=(
            Input("clip", "CLIP", "The model's text encoder."),
            Input("text", "STRING", "The whole prompt. Weights as in (red:1.2) are understood.", "", multiline=True),
            Input("words", "STRING", "Phrases of the prompt, separated by commas; \"ball[2]\" is the second ball. Empty: its noun phrases.", "")),
        outputs=(Output("CONDITIONING", "positive", "The encoded prompt, for the sampler."), Output("LODESTAR_WORDS", "words", "The phrases with their tokens, for the methods."),
                 Output("STRING", "phrases", "The phrases that were found.")),
        run=_words,
        aliases=("find tokens", "token indices"),
        part_of="LodestarAttendAndExcite",
        help="""The tokens of a phrase are found with the model's own tokenizer, in all streams of its text encoder. A phrase that the prompt does not contain is an error that names it.

Connect the same node's `positive` to the sampler: where several prompts are combined, methods keep to this one.
"""),
)
