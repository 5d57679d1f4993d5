"""Nodes that serve the methods which share features between pictures."""
from ..guidance.attention.style_aligned import StyleAligned
from ._define import Input, NodeDef, Output, category


def _prompts(clip, prompts):
    from ..guidance.host.prompt_batch import encode
    return (encode(clip, prompts),)


NODES = (NodeDef(
    node_id="LodestarPromptPerPicture",
    title="Prompt per Picture",
    category=category("attention"),
    description="One prompt for each picture of a batch, one in each line.",
    inputs=(
        Input("clip", "CLIP", "The text encoder."),
        Input("prompts", "STRING", "One prompt in each line: the first for the first picture of the batch, and so on. The latent's batch size should be the number of lines.", "",
              multiline=True),
    ),
    outputs=(Output("CONDITIONING", "conditioning", "For the sampler's positive or negative input."),),
    run=_prompts,
    help="""With fewer lines than pictures the last prompt serves the rest. Text encoders that give every text a length of its own (language models) need lines of equally many tokens.
""",
    part_of=StyleAligned.node_id,
),)
