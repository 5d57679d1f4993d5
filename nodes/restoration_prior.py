"""Training a restoration prior (RAP-SR): its examples, and the training itself."""
from ..guidance.training.restoration_prior import TrainRestorationPrior
from ._define import Input, NodeDef, Output, Shown, about, category, inputs_of

EXAMPLES = "LODESTAR_RESTORATION_EXAMPLES"


def _examples(good, degraded, good_prompt, degraded_prompt, examples=None):
    import torch

    from ..guidance.training.restoration_prior import RestorationExamples
    with torch.inference_mode(False):      # gradients go past these
        own = RestorationExamples(((good["samples"].clone(), degraded["samples"].clone(), good_prompt, degraded_prompt),))
    return (own if examples is None else examples + own,)


def _train(model, file="", **values):
    method = TrainRestorationPrior(**values).validate()
    if method.steps == 0:
        return Shown((model, {}, "no steps"), "no steps: the model is as it was")
    from ..guidance.host.prior_training import applied, train
    lora, before, after = train(method, model)
    text = f"loss {before:.4f} at first, {after:.4f} at last"
    if file.strip():
        from ..guidance.host.weight_files import save
        text += "\n" + save(method.title, "file", file, lora, {"trained_for": type(model.model.diffusion_model).__name__})
    return Shown((applied(model, lora), lora, text), text)


NODES = (
    NodeDef(
        **about(TrainRestorationPrior),
        inputs=(Input("model", "MODEL", "The model whose prior is refined."), *inputs_of(TrainRestorationPrior),
                Input("file", "STRING", "Writes the LoRA to this file of the output folder as well, for the host's Load LoRA; empty: it is not written.", "", optional=True)),
        outputs=(Output("MODEL", "model", "The model with the trained LoRA."), Output("LORA_MODEL", "lora", "The LoRA, for the host's own nodes (Save LoRA Weights)."), Output("STRING", "text", "The loss at first and at last.")),
        run=_train,
        output_node=True),
    NodeDef(
        node_id="LodestarRestorationExamples",
        title="Restoration Examples",
        category=category("training"),
        description="Good pictures and degraded ones, each kind with its prompt, for Train Restoration Prior.",
        inputs=(Input("good", "LATENT", "Good pictures, encoded, of one size."), Input("degraded", "LATENT", "The same pictures degraded, or others, encoded."),
                Input("good_prompt", "CONDITIONING", "Their prompt, with the word for good pictures: \"[X]. a castle beside a waterfall\"."),
                Input("degraded_prompt", "CONDITIONING", "The degraded ones' prompt, with the word for those: \"[V]. a castle beside a waterfall\"."),
                Input("examples", EXAMPLES, "Examples that come before these; chain the nodes for several prompts.", optional=True)),
        outputs=(Output(EXAMPLES, "examples", "The examples before these, and these; for Train Restoration Prior."),),
        run=_examples,
        aliases=("RAP-SR", "degraded pictures"),
        part_of=TrainRestorationPrior.node_id,
        help="""Degrade pictures with the operators of this pack (Apply Operator), encode them, and give both kinds prompts that differ in one word. Pictures of one prompt may stand in one batch; further prompts are
further nodes, chained. How often a node's pictures are seen goes by how many they are.
""",
    ),
)
