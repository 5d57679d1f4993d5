"""What is measured for restorers with weights of their own."""
from .plan import Claim, Comparison, Entry, Setup, use

_START = "samplers.restoration_start:RestorationStart"
_S3DIFF = "inverse.degradation_lora:DegradationGuidedLora"
_METRICS = ("psnr", "features", "accuracy", "evaluations")
_LEFT = Setup("as it is", 1.0, task="degraded")
_PLAIN = Setup("image to image", 1.0, task="from the middle")
_ONE = Setup("one step without it", 1.0, sampler=use(_START, noise=0.0), task="one step")


def _against(setup, metrics=_METRICS, **bases):
    """A restorer against each base, by name; it is to be nearer to the true picture."""
    return tuple(Comparison(setup, base, (Claim("psnr", "higher"), Claim("features", "lower")), metrics, name.replace("_", " "), generators=("unet",)) for name, base in bases.items())


_guided = lambda label, cfg=1.0, task="one step", **values: Setup(label, cfg, (use(_S3DIFF, lora="$degradation_lora", **values),), sampler=use(_START, noise=0.0), task=task)

_PASD = "inverse.pixel_aware:PixelAwareAttention"
_aware = lambda label, noise=0.9, cfg=1.0, **values: Setup(label, cfg, (use(_PASD, weights="$pixel_attention", latent="$degraded", **values),), sampler=use(_START, noise=noise), task="restored")

_MEGA = "inverse.block_semantics:BlockWiseSemantics"
_blocks = lambda label, **values: Setup(label, 1.0, (use(_MEGA, weights="$block_semantics", image="$degraded_image", **values),), sampler=use(_START, noise=0.9), task="restored")

_WHOLE = ("whole_psnr", "whole_features", "psnr", "features", "accuracy", "evaluations")


def _by_the_branch(**bases):
    """Guided Decode behind the one-step LoRA against each base; what is saved is to be nearer to the scene."""
    setup = _guided("Guided Decode of one step with the LoRA", degradation="$degradation", task="guided")
    return tuple(Comparison(setup, base, (Claim("whole_psnr", "higher"), Claim("whole_features", "lower")), _WHOLE, name.replace("_", " "), generators=("unet",)) for name, base in bases.items())


ENTRIES = (
    Entry("LodestarGuidedDecode",
          _by_the_branch(VAE_Decode=_guided("the same step by VAE Decode", degradation="$degradation"), as_it_is=Setup("the degraded picture itself", 1.0, task="itself"), autoencoder=_LEFT,
                         branch_alone=Setup("Guided Decode of the degraded latent", 1.0, task="guided alone"))),
    Entry("LodestarPixelAwareAttention",
          (*_against(_aware("Pixel-Aware Attention"), as_it_is=_LEFT, image_to_image=_PLAIN, without_it=Setup("from 0.9 of the noise, without it", 1.0, sampler=use(_START, noise=0.9), task="restored")),
           *_against(_aware("Pixel-Aware Attention"), skip_connections_alone=_aware("its features in the skip connections alone", strength=0.0)))),
    Entry("LodestarBlockWiseSemantics",
          (*_against(_blocks("Block-Wise Semantics"), as_it_is=_LEFT, image_to_image=_PLAIN, without_it=Setup("from 0.9 of the noise, without it", 1.0, sampler=use(_START, noise=0.9), task="restored")),
           *_against(_blocks("Block-Wise Semantics"), guidance_alone=_blocks("its guidance alone", semantics=0.0), semantics_alone=_blocks("its semantics alone", guidance=0.0)),
           *_against(_blocks("with the scene's own maps", edges="$true_edges", depth="$true_depth", segmentation="$true_segmentation"), maps_found=_blocks("Block-Wise Semantics")),
           *_against(_blocks("Block-Wise Semantics"), pixel_aware=_aware("Pixel-Aware Attention")))),
    # without the evaluations, among which those of the training would be
    Entry("LodestarTrainRestorationPrior", _against(Setup("restoration prior, 40 steps", 2.0, task="prior"), _METRICS[:3], words_alone=Setup("the same words without the training", 2.0, task="words alone"), image_to_image=_PLAIN)),
    Entry("LodestarRestorationStart",
          _against(_aware("Pixel-Aware Attention from 0.9"), from_the_noise_alone=_aware("Pixel-Aware Attention from 1", 1.0))
          + _against(Setup("from 0.5 of the noise", 1.0, sampler=use(_START, noise=0.5), task="restored"), plain=Setup("from the noise", 1.0, sampler=use(_START, noise=1.0), task="restored"))),
    Entry("LodestarDegradationGuidedLora",
          (*_against(_guided("Degradation-Guided LoRA", degradation="$degradation"), as_it_is=_LEFT, image_to_image=_PLAIN, one_step=_ONE),
           *_against(_guided("Degradation-Guided LoRA", degradation="$degradation"), wrong_scores=_guided("the LoRA, blur 0.5 and noise 0.5 for all", blur=0.5, noise=0.5)),
           *_against(_guided("the LoRA, cfg 1.5", 1.5, degradation="$degradation"), negative_prompt=_guided("Degradation-Guided LoRA", degradation="$degradation")))),
)
