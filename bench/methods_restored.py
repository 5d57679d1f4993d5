"""What is measured for restorers with weights of their own."""
from .plan import Claim, Comparison, Entry, Setup, use

_START = "samplers.restoration_start:RestorationStart"
_S3DIFF = "inverse.degradation_lora:DegradationGuidedLora"
_METRICS = ("psnr", "features", "accuracy", "evaluations")
_LEFT = Setup("as it is", 1.0, task="degraded")
_PLAIN = Setup("image to image", 1.0, task="refined")
_ONE = Setup("one step without it", 1.0, sampler=use(_START, noise=0.0), task="one step")


def _against(setup, **bases):
    """A restorer against each base, by name; it is to be nearer to the true picture."""
    return tuple(Comparison(setup, base, (Claim("psnr", "higher"), Claim("features", "lower")), _METRICS, name.replace("_", " "), generators=("unet",)) for name, base in bases.items())


_guided = lambda label, cfg=1.0, **values: Setup(label, cfg, (use(_S3DIFF, lora="$degradation_lora", **values),), sampler=use(_START, noise=0.0), task="one step")

ENTRIES = (
    Entry("LodestarDegradationGuidedLora",
          (*_against(_guided("Degradation-Guided LoRA", degradation="$degradation"), as_it_is=_LEFT, image_to_image=_PLAIN, one_step=_ONE),
           *_against(_guided("Degradation-Guided LoRA", degradation="$degradation"), wrong_scores=_guided("the LoRA, blur 0.5 and noise 0.5 for all", blur=0.5, noise=0.5)),
           *_against(_guided("the LoRA, cfg 1.5", 1.5, degradation="$degradation"), negative_prompt=_guided("Degradation-Guided LoRA", degradation="$degradation")))),
)
