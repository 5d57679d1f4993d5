"""What is measured for the methods that move the sample by energies of its attention."""
from .methods_regions import PLACED, placed
from .plan import Claim, Comparison, Cost, Entry, Setup, use

BOXDIFF = "attention.layout:BoxDiff"
EXCITE = "attention.excite:AttendAndExcite"
LAYOUT = "attention.layout:LayoutGuidance"
SCRIBBLE = "attention.scribble:ScribbleGuidance"

_INSIDE = (Claim("iou", "higher"), Claim("in_box", "higher"))
_MILD = Setup("CFG, w = 2, no boxes", 2.0, prompts="placed")

ENTRIES = (
    Entry("LodestarAttendAndExcite",
          (Comparison(Setup("Attend-and-Excite, w = 2", 2.0, (use(EXCITE, words="$named"),), prompts="placed"), _MILD, (Claim("objects", "higher"),),
                      ("objects", "binding_errors", "frechet", "clipped", "evaluations")),),
          (Cost("Attend-and-Excite", methods=(use(EXCITE, words="$named"),), heavy=False, peer=r"(?i)attend.?and.?excite"),)),
    Entry("LodestarLayoutGuidance",
          (placed("Layout Guidance", use(LAYOUT, regions="$words"), _INSIDE),),
          (Cost("Layout Guidance", methods=(use(LAYOUT, regions="$words"),), heavy=False, peer=r"(?i)layout.?guid"),)),
    Entry("LodestarBoxDiff",
          (placed("BoxDiff", use(BOXDIFF, regions="$words"), _INSIDE),),
          (Cost("BoxDiff", methods=(use(BOXDIFF, regions="$words"),), heavy=False, peer=r"(?i)boxdiff"),)),
    Entry("LodestarScribbleGuidance",
          (placed("Scribble Guidance, boxes as strokes", use(SCRIBBLE, regions="$words"), _INSIDE),),
          (Cost("Scribble Guidance", methods=(use(SCRIBBLE, regions="$words"),), heavy=False, peer=r"(?i)scribble.?diff"),)),
)
