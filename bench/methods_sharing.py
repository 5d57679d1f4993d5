"""What is measured for the methods that look at another picture's features or keys, and for Decoupled Guidance."""
from .plan import CAPTION_METRICS, Claim, Comparison, Cost, Entry, Setup, use

CTRL_X = "attention.ctrl_x:CtrlX"
DECOUPLED = "rules.decoupled:DecoupledGuidance"
MUTUAL = "attention.mutual:MutualSelfAttention"
REFERENCE = "attention.reference_attention:ReferenceAttention"
STYLE = "attention.style_aligned:StyleAligned"

CFG = Setup("CFG, w = 4", 4.0)
HIGH = Setup("CFG, w = 8", 8.0)
_told = dict(reference="$reference", reference_prompt="$reference_words")
_crossed = dict(structure="$reference", appearance="$appearance", structure_prompt="$reference_words", appearance_prompt="$appearance_words")
_AGREEING, _COUNTS = ("background", "palette"), ("accuracy", "clipped", "std_ratio", "evaluations")
_KEEPS = (Claim("background", "higher"), Claim("palette", "higher"), Claim("accuracy", "not lower", 0.15))


def against(kind, label, used, claims, metrics, name=""):
    """A method with references against the same prompts without."""
    return Comparison(Setup(label, 4.0, (used,), prompts=kind), Setup("CFG, w = 4, no reference", 4.0, prompts=kind), claims, metrics, name)


ENTRIES = (
    Entry(
        "LodestarStyleAligned",
        (against("together", "StyleAligned, 4 pictures in the first one's style", use(STYLE),
                 (Claim("background_together", "higher"), Claim("palette_together", "higher"), Claim("accuracy", "not lower", 0.15)),
                 ("background_together", "palette_together", *_COUNTS), "in a batch"),
         against("styled", "StyleAligned, to a reference", use(STYLE, **_told), _KEEPS, (*_AGREEING, *_COUNTS), "reference")),
        (Cost("StyleAligned, in a batch", methods=(use(STYLE),), peer=r"(?i)style.?align"),
         Cost("StyleAligned, reference", methods=(use(STYLE, **_told),), heavy=False))),
    Entry(
        "LodestarReferenceAttention",
        (against("styled", "Reference Attention", use(REFERENCE, **_told), _KEEPS, (*_AGREEING, *_COUNTS)),),
        (Cost("Reference Attention", methods=(use(REFERENCE, **_told),), peer=r"(?i)reference.?(only|att)"),)),
    Entry(
        "LodestarMutualSelfAttention",      # objects and background of the source, in the relation that the prompt wants
        (against("moved", "MasaCtrl", use(MUTUAL, **_told), _KEEPS, (*_AGREEING, *_COUNTS)),),
        (Cost("Mutual Self-Attention", methods=(use(MUTUAL, **_told),), peer=r"(?i)masactrl|mutual"),)),
    Entry(
        "LodestarCtrlX",
        (against("crossed", "Ctrl-X", use(CTRL_X, **_crossed),
                 (Claim("structure", "higher"), Claim("background", "higher"), Claim("palette", "higher"), Claim("accuracy", "not lower", 0.15)),
                 ("structure", *_AGREEING, *_COUNTS)),
         against("crossed", "Ctrl-X, structure alone", use(CTRL_X, structure="$reference", structure_prompt="$reference_words"), (Claim("structure", "higher"),),
                 ("structure", *_AGREEING, *_COUNTS), "structure alone"),
         against("crossed", "Ctrl-X, appearance alone", use(CTRL_X, appearance="$appearance", appearance_prompt="$appearance_words"),
                 (Claim("background", "higher"), Claim("palette", "higher")), ("structure", *_AGREEING, *_COUNTS), "appearance alone")),
        (Cost("Ctrl-X, without recurrence", methods=(use(CTRL_X, recurrence=0, structure_end=1.0, appearance_end=1.0, **_crossed),), peer=r"(?i)ctrl.?x"),
         Cost("Ctrl-X", methods=(use(CTRL_X, **_crossed),)))),
    Entry(
        "LodestarDecoupledGuidance",      # no adapter is bundled: without one it has to be CFG, and its rescale can be seen
        (Comparison(Setup("a = b = 4, no adapter", 1.0, (use(DECOUPLED, text_free="$empty", adapter="4", text="4", rescale=0.0),)), CFG,
                    (Claim("ssim", "at least", 0.999), Claim("evaluations", "ratio at most", 1.0)), ("ssim", "accuracy", "evaluations"), "is CFG"),
         Comparison(Setup("a = 1, b = 4, no adapter", 1.0, (use(DECOUPLED, text_free="$empty", adapter="1", text="4", rescale=0.0),)), CFG,
                    (Claim("ssim", "at least", 0.999), Claim("evaluations", "ratio at most", 1.5)), ("ssim", "accuracy", "evaluations"), "the adapter's part is 0"),
         Comparison(Setup("a = 1, b = 8, rescale 0.75, no adapter", 1.0, (use(DECOUPLED, text_free="$empty", adapter="1", text="8"),)), HIGH,
                    (Claim("clipped", "lower"), Claim("std_ratio", "lower"), Claim("accuracy", "not lower", 0.1)), CAPTION_METRICS, "rescale")),
        (Cost("Decoupled Guidance, a = b", methods=(use(DECOUPLED, text_free="$empty", adapter="4", text="4", rescale=0.0),), limit=1.02),
         Cost("Decoupled Guidance", methods=(use(DECOUPLED, text_free="$empty", adapter="1", text="4"),), limit=1.55))),
    Entry(
        "LodestarSideBySideCanvas",
        (Comparison(Setup("Side-by-Side Canvas", 4.0, prompts="styled", task="beside"), Setup("CFG, w = 4, no reference", 4.0, prompts="styled"), _KEEPS, (*_AGREEING, *_COUNTS)),)),
)
