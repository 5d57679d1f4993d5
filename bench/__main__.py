"""`python -m bench`: in the checkout, or through scripts/bench with a host on the path."""
import sys
from pathlib import Path

if "lodestar" not in sys.modules:
    sys.path.append(str(Path(__file__).resolve().parent.parent / "scripts"))
    import _alias

    sys.path.pop()
    _alias.install()
from lodestar.bench.main import main  # noqa: E402

raise SystemExit(main())
