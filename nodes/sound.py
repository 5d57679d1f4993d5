"""Sound: what is known of it, losses of it, and the sampler that follows them."""
import inspect

from ..guidance.loss.solvers.sound import SoundGuidance
from ..guidance.loss.sound import TASKS, SoundContext, SoundStyle, SpectralSound
from ._define import Input, NodeDef, Output, category, inputs_of
from .losses import TYPE
from .solvers import _node as solver_node

SERVES = SoundGuidance.node_id
_time = dict(min=0.0, max=36000.0, step=0.1)


def _context(latent, sound, seconds, task, begin, end, fade, second):
    import torch

    from ..guidance.loss.sound import context_mask, joined
    from ..guidance.method import BadInput
    title = "Sound Context"
    if seconds <= 0 or not 0 <= begin <= seconds or (task not in ("continuation", "regeneration") and not begin < end <= seconds):
        raise BadInput(title, "begin", begin, f"Of {seconds:g} seconds, begin has to come before end, and both inside.")
    if (task == "transition") != (second is not None):
        raise BadInput(title, "second", None if second is None else "connected", "A transition needs a second sound; the other tasks have none.")
    like, first = latent["samples"], sound["samples"]
    if first.ndim != like.ndim or first.shape[2:-1] != like.shape[2:-1]:      # an empty latent may have other channels: the host puts that right
        raise BadInput(title, "sound", list(first.shape), f"What is to be sampled is {list(like.shape)}; encode the sound with the same model's VAE.")
    length = like.shape[-1]
    a, b = begin / seconds, end / seconds
    with torch.inference_mode(False):
        if task == "transition":
            found = joined(first.clone().float(), second["samples"].clone().float(), length, a, b)
        else:
            found = torch.zeros(*first.shape[:-1], length)
            kept = min(length, first.shape[-1])
            found[..., :kept] = first[..., :kept].float()
        mask = context_mask(task, length, a, b, fade / seconds)
        if task != "transition":
            mask[first.shape[-1]:] = 0      # where the sound has ended nothing is known
    return {**latent, "samples": found}, mask.view(1, 1, length)


def _made(cls):
    def run(model, context=None, known=None, latent=None, vae=None, **values):
        import torch

        inward = model.get_model_object("latent_format").process_in
        with torch.inference_mode(False):
            if cls is SoundContext:
                values |= {"target": inward(context["samples"].clone().float()), "mask": known.clone()}
            else:
                values["target"] = inward(latent["samples"].clone().float())
            if vae is not None:
                from ..guidance.host.decode import SoundDecoder
                values["decoder"] = SoundDecoder(vae, model.get_model_object("latent_format"))
        return (cls(**values),)
    return run


def _loss(cls, description, more):
    return NodeDef(node_id="Lodestar" + cls.title.replace(" ", ""), title=cls.title, category=category("loss"), description=description,
                   inputs=(Input("model", "MODEL", "The model that will be guided: the sound is brought into its latent space."), *more, *inputs_of(cls)),
                   outputs=(Output(TYPE, "loss", "For Sound Guidance and other nodes that take a loss."),), run=_made(cls), part_of=SERVES, help=inspect.cleandoc(cls.__doc__).partition("\n\n")[2] + "\n")


NODES = (
    NodeDef(
        node_id="LodestarSoundContext",
        title="Sound Context",
        category=category("loss"),
        description="What is known of a sound that is to be made: its beginning, all but a hole, everything, or the ends of two pieces.",
        inputs=(Input("latent", "LATENT", "The empty latent that will be sampled: its length counts."), Input("sound", "LATENT", "The known sound, by the model's VAE (VAE Encode Audio)."),
                Input("seconds", "FLOAT", "Length of what will be sampled, in seconds.", default=10.0, **{**_time, "min": 0.1}),
                Input("task", "COMBO", "continuation: before begin is known. inpainting: all but begin to end. regeneration: everything, to be sung anew. transition: the sound's end before begin, the second one's beginning after end.",
                      "continuation", choices=TASKS),
                Input("begin", "FLOAT", "Seconds at which the unknown part begins.", default=5.0, **_time), Input("end", "FLOAT", "Seconds at which it ends (inpainting, transition).", default=7.5, **_time),
                Input("fade", "FLOAT", "Seconds over which the known part fades towards the unknown one.", default=0.5, **_time),
                Input("second", "LATENT", "The sound that a transition leads to.", optional=True)),
        outputs=(Output("LATENT", "context", "The known sound at its place, as long as what will be sampled."), Output("MASK", "known", "How much of each place is known; time along the width.")),
        run=_context,
        part_of=SERVES,
        aliases=("audio continuation", "audio inpainting", "crossfade"),
        help="For regeneration give the loss a small weight, or a window of late steps left out: the new sound then stays near the old one.\n",
    ),
    _loss(SoundContext, "How far sound is from what is known of it, as latents.", (Input("context", "LATENT", "From Sound Context."), Input("known", "MASK", "From Sound Context."))),
    _loss(SoundStyle, "How far the statistics of sound's latent are from those of another piece.", (Input("latent", "LATENT", "The other piece, by the model's VAE, of any length."),)),
    _loss(SpectralSound, "How far the decoded sound's spectra are from those of a given one, at several resolutions.",
          (Input("latent", "LATENT", "The sound to come close to, by the model's VAE (VAE Encode Audio)."), Input("vae", "VAE", "The model's VAE: decodes the estimate."))),
    solver_node(SoundGuidance),
)
