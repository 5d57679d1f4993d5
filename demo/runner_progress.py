"""Progress of a run on a terminal (one line, redrawn) or in a log (a line per node)."""

from __future__ import annotations

import shutil
import sys
import time


class Silent:
    """Shows nothing; the interface of the others."""

    def begin(self, title: str, nodes: dict[str, str]) -> None: ...

    def cached(self, node_ids) -> None: ...

    def node(self, node_id: str | None) -> None: ...

    def step(self, node_id: str, value: float, maximum: float) -> None: ...

    def end(self, ok: bool = True) -> None: ...


class Progress(Silent):
    """Counts the nodes that are done and the steps within the node at work."""

    def __init__(self, stream=None, width: int | None = None, patience: float = 5.0):
        self.stream = sys.stderr if stream is None else stream
        self.tty = bool(getattr(self.stream, "isatty", lambda: False)())
        self.width, self.patience = width, patience  # in a log, steps are told of after so many seconds of silence
        self.open, self.told = False, 0.0

    def begin(self, title: str, nodes: dict[str, str]) -> None:
        self.title, self.nodes = title, dict(nodes)
        self.finished: set[str] = set()
        self.current: str | None = None
        self.value, self.maximum = 0.0, 0.0
        self.start, self.drawn, self.quarter = time.monotonic(), 0.0, 0
        self.open = True
        if not self.tty:
            self._line(f"{title}: {len(self.nodes)} nodes")
        self._draw(force=True)

    def cached(self, node_ids) -> None:
        self.finished.update(i for i in map(str, node_ids) if i in self.nodes)
        self._draw()

    def node(self, node_id: str | None) -> None:
        if self.current is not None:
            self.finished.add(self.current)
        self.current = None if node_id is None else self._known(str(node_id))
        self.value, self.maximum, self.quarter = 0.0, 0.0, 0
        if self.current is not None and not self.tty:
            self._line(f"  [{min(len(self.finished) + 1, len(self.nodes))}/{len(self.nodes)}] {self.nodes[self.current]}")
        self._draw(force=True)

    def step(self, node_id: str, value: float, maximum: float) -> None:
        known = self._known(str(node_id))
        if known is not None and known != self.current:
            self.node(known)
        self.value, self.maximum = float(value), float(maximum)
        quarter = int(4 * value / maximum) if maximum else 0
        if not self.tty and maximum >= 4 and quarter > self.quarter and time.monotonic() - self.told >= self.patience:
            self.quarter = quarter
            self._line(f"      step {value:g}/{maximum:g}")
        self._draw(force=value >= maximum)

    def end(self, ok: bool = True) -> None:
        if not self.open:
            return
        self.open = False
        passed = time.monotonic() - self.start
        word = "done" if ok else "stopped"
        self._line(("\r\x1b[K" if self.tty else "") + f"{self.title}: {word} after {passed:.1f} s")

    def _known(self, node_id: str) -> str | None:
        """Nodes that expand at run time report ids such as 7.0.2 or 7:3; they count as the node they came from."""
        for candidate in (node_id, node_id.split(".")[0], node_id.split(":")[0]):
            if candidate in self.nodes:
                return candidate
        return None

    def _line(self, text: str) -> None:
        self.told = time.monotonic()
        self.stream.write(text + "\n")
        self.stream.flush()

    def bar(self) -> str:
        """The line as it stands."""
        total = max(1, len(self.nodes))
        within = self.value / self.maximum if self.maximum else 0.0
        share = min(1.0, (len(self.finished) + min(within, 1.0)) / total)
        cells = 24
        filled = int(round(share * cells))
        text = f"{self.title} [{'#' * filled}{'-' * (cells - filled)}] {len(self.finished)}/{total} nodes"
        if self.current is not None:
            text += f"  {self.nodes[self.current]}"
            if self.maximum:
                text += f" {self.value:g}/{self.maximum:g}"
        return text + f"  {time.monotonic() - self.start:.0f} s"

    def _draw(self, force: bool = False) -> None:
        if not self.tty or not self.open:
            return
        now = time.monotonic()
        if not force and now - self.drawn < 0.1:
            return
        self.drawn = now
        width = self.width or shutil.get_terminal_size().columns
        self.stream.write("\r\x1b[K" + self.bar()[: max(10, width - 1)])
        self.stream.flush()
