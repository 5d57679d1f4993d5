"""What is measured for the losses that look inside the network or at the noisy state."""
from .methods import COLOURLESS, EMPTY
from .methods_regions import placed
from .methods_sharing import against
from .plan import FREE_METRICS, Claim, Comparison, Cost, Entry, Setup, use

CLASSIFIER = "loss.classifier_guidance:ClassifierGuidance"
DISCRIMINATOR = "loss.discriminator_guidance:DiscriminatorGuidance"
MINORITY = "loss.minority:MinorityGuidance"
RETURNS = "loss.return_guidance:ReturnGuidance"
SEMANTIC = "loss.semantic_diffusion:SemanticDiffusionGuidance"
SELF = "attention.self_guidance:SelfGuidance"

_ratio = dict(classifier="$backgrounds", label="$grounds")


def _free(label, used, claims, *metrics, name=""):
    """A method against the model without a prompt."""
    return Comparison(Setup(f"{label}, no prompt", 1.0, (used,), prompts="empty"), EMPTY, claims, (*metrics, *(m for m in FREE_METRICS if m not in metrics)), name)


_styled = Setup("CFG, w = 4, no reference", 4.0, prompts="styled")
_trained = Setup("by a classifier of backgrounds that was trained for it, 400 steps", 4.0, (use(CLASSIFIER, scale=5.0, classifier="$trained", label="$grounds"),), prompts="styled")

ENTRIES = (
    Entry("LodestarClassifierGuidance",
          (against("styled", "Classifier Guidance to a background, scale 1", use(CLASSIFIER, **_ratio), (Claim("background", "higher"), Claim("accuracy", "not lower", 0.15)),
                   ("background", "accuracy", "clipped", "evaluations")),
           against("styled", "Classifier Guidance to a background, scale 5", use(CLASSIFIER, scale=5.0, **_ratio), (Claim("background", "higher"), Claim("accuracy", "not lower", 0.15)),
                   ("background", "accuracy", "clipped", "evaluations"), "scale 5")),
          (Cost("Classifier Guidance", methods=(use(CLASSIFIER, **_ratio),), limit=1.2),)),
    Entry("LodestarSemanticDiffusionGuidance",
          (Comparison(Setup("by the caption's text", 1.0, (use(SEMANTIC, encoder="$noisy_encoder", texts="$caption_texts"),), prompts="colourless"), COLOURLESS,
                      (Claim("accuracy", "higher"),), ("accuracy", "objects", "frechet", "clipped", "evaluations"), "text"),
           Comparison(Setup("by the wanted picture", 1.0, (use(SEMANTIC, encoder="$noisy_encoder", reference="$known"),), prompts="colourless"), COLOURLESS,
                      (Claim("accuracy", "higher"),), ("accuracy", "objects", "target_distance", "frechet", "clipped", "evaluations"), "picture")),
          (Cost("Semantic Diffusion Guidance, a text", methods=(use(SEMANTIC, encoder="$noisy_encoder", texts="$caption_texts"),), limit=1.2),)),
    Entry("LodestarDiscriminatorGuidance",
          (_free("Discriminator Guidance, scale 1", use(DISCRIMINATOR, classifier="$discriminator", scale=1.0), (Claim("frechet", "lower"),)),
           _free("Discriminator Guidance, scale 5", use(DISCRIMINATOR, classifier="$discriminator", scale=5.0), (Claim("frechet", "lower"),), name="scale 5"))),
    Entry("LodestarMinorityGuidance",
          (_free("Minority Guidance, scale 4", use(MINORITY, classifier="$rarities", scale=4.0), (Claim("rarity", "higher"),), "rarity"),
           _free("Minority Guidance, scale 40", use(MINORITY, classifier="$rarities", scale=40.0), (Claim("rarity", "higher"),), "rarity", name="scale 40"))),
    Entry("LodestarReturnGuidance",
          (_free("Return Guidance to contrast, eta 20", use(RETURNS, classifier="$contrasts", eta=20.0), (Claim("std_ratio", "higher"),)),)),
    Entry("LodestarTrainNoiseAwareClassifier",      # trained when it is measured, on 384 rendered scenes
          tuple(Comparison(Setup(f"by a classifier of backgrounds that was trained for it, {label}", 4.0, (use(CLASSIFIER, scale=5.0, classifier=trained, label="$grounds"),), prompts="styled"), base,
                           (Claim("background", "higher"),), ("background", "accuracy", "clipped", "evaluations"), name, ("unet",))
                for label, trained, name, base in (("400 steps", "$trained", "", _styled), ("4 experts, 200 + 4 x 50 steps", "$trained_experts", "4 experts against 1", _trained)))),
    Entry("LodestarSelfGuidance",
          (placed("Self-Guidance, position, scale 1", use(SELF, terms="$places", scale=1.0), (Claim("in_box", "higher"), Claim("iou", "higher"))),),
          (Cost("Self-Guidance, position", methods=(use(SELF, terms="$places", alternate_from=1.0),), heavy=False, peer=r"(?i)self.?guid"),)),
)
