"""What is measured for the losses that look through an encoder: by Universal Guidance, with the bundled scene encoder and networks; the measuring network is another one."""
from .plan import Claim, Comparison, Cost, Entry, Setup, use

UNIVERSAL = "loss.universal:UniversalGuidance"
_seen, _drawn = dict(clip_vision="$vision", decoder="$decoder"), dict(decoder="$decoder")
_COLOURLESS, _STYLED, _TOGETHER = (Setup(f"CFG, w = 4, {words}", 4.0, prompts=kind) for words, kind in (("no colour named", "colourless"), ("no style", "styled"), ("each alone", "together")))
_PLACED, _EMPTY = Setup("CFG, w = 4, no region", 4.0, prompts="placed"), Setup("no prompt, no guidance", 1.0, prompts="empty")
_COUNTS = ("frechet", "clipped", "std_ratio", "evaluations")


def led(label, base, loss, claims, metrics, scale=1.0, name=""):
    """A loss against the same prompts without it."""
    method = use(UNIVERSAL, loss=loss, scale=scale)
    setup = Setup(f"{label}, scale {scale:g}", base.cfg, (method,), prompts=base.prompts)
    return Comparison(setup, base, claims, (*dict.fromkeys((*(c.metric for c in claims), *metrics, *_COUNTS)),), name)


def entry(node_id, *comparisons):
    return Entry(node_id, comparisons, (Cost(comparisons[0].setup.label, methods=comparisons[0].setup.methods, heavy=False),))


_HIGHER, _OBJECTS = (Claim("objects", "higher"),), ("accuracy", "binding_errors")

ENTRIES = (
    entry("LodestarCLIPTextLoss",      # the prompt names no colours, the loss is told the whole caption
          led("CLIP text, whole captions", _COLOURLESS, use("loss.clip:CLIPText", texts="$texts", each=True, **_seen), _HIGHER, _OBJECTS, 2.0)),
    entry("LodestarCLIPImageLoss",
          led("CLIP image, the wanted scenes", _COLOURLESS, use("loss.clip:CLIPImage", target="$scenes", each=True, **_seen), _HIGHER, _OBJECTS, 2.0)),
    entry("LodestarExemplarLoss",
          led("six good and six bad examples", _COLOURLESS, use("loss.exemplar:ExemplarSet", target="$good", bad="$bad", **_seen), (Claim("forbidden", "lower"),), ())),
    entry("LodestarStyleLoss",
          led("statistics, to a reference", _STYLED, use("loss.style:StyleLoss", target="$styles", each=True, mode="statistics", **_seen), (Claim("background", "higher"), Claim("palette", "higher")), ("accuracy",),
              name="reference"),
          led("batch, alike", _TOGETHER, use("loss.style:StyleLoss", against="batch, alike", mode="statistics", **_seen), (Claim("background_together", "higher"), Claim("palette_together", "higher")), ("accuracy",),
              name="in a batch")),
    entry("LodestarFeatureLoss",
          led("perceptual, the wanted scenes", _COLOURLESS, use("loss.feature:FeatureLoss", target="$scenes", network="$vgg", mode="perceptual", **_drawn), _HIGHER + (Claim("target_distance", "lower"),), _OBJECTS, 3.0)),
    entry("LodestarClassifierLoss",      # no prompt: the kind comes from the classifier alone
          led("log-probability of a kind", _EMPTY, use("loss.classifier:ClassifierLoss", classifier="$vgg", classes="$kinds", **_drawn), (Claim("recovered", "higher"),), ())),
    entry("LodestarSegmentationLoss",
          led("the first object's colour in its box", _PLACED, use("loss.classifier:SegmentationLoss", network="$vgg", label="$colours", region="$first_place", **_drawn),
              (Claim("in_box", "higher"), Claim("iou", "higher")), ("objects",))),
    entry("LodestarPreferenceLoss",
          led("a taste for warm colours", _COLOURLESS, use("loss.preference:PreferenceLoss", head="$taste", **_seen), (Claim("warmth", "higher"),), ())),
    entry("LodestarSemanticGuidanceLoss",      # text for the objects, the reference for the style
          led("text and style", _STYLED, use("loss.semantic:SemanticGuidance", texts="$texts", target="$styles", each=True, image_loss="style", **_seen),
              (Claim("background", "higher"), Claim("palette", "higher"), Claim("accuracy", "not lower", 0.1)), ())),
)
