"""The progress line."""

from __future__ import annotations

import io

from lodestar.demo.runner_progress import Progress


class Terminal(io.StringIO):
    def isatty(self):
        return True


def drive(progress):
    progress.begin("demo", {"1": "Load (1)", "2": "KSampler (2)", "3": "Save (3)"})
    progress.cached(["1", "unknown"])
    progress.node("2")
    for i in range(1, 9):
        progress.step("2", i, 8)
    progress.node("3")
    progress.node(None)
    assert progress.bar().startswith("demo [########################] 3/3 nodes")
    progress.end()


def test_log():
    out = io.StringIO()
    drive(Progress(out, patience=0.0))
    text = out.getvalue()
    assert "\r" not in text and "\x1b" not in text
    assert "[2/3] KSampler (2)" in text and "step 2/8" in text and "step 8/8" in text and "[3/3] Save (3)" in text and "demo: done after" in text
    assert text.count("step ") == 4


def test_log_of_quick_steps_is_short():
    out = io.StringIO()
    drive(Progress(out))
    assert "step" not in out.getvalue()


def test_terminal_stays_on_one_line():
    out = Terminal()
    drive(Progress(out, width=40))
    assert out.getvalue().count("\n") == 1
    assert all(len(part.replace("\x1b[K", "")) < 40 for part in out.getvalue().split("\r")[:-1])


def test_expanded_nodes_count_as_their_origin():
    progress = Progress(io.StringIO())
    progress.begin("demo", {"7": "Loop (7)"})
    progress.step("7.0.2", 1, 4)
    assert progress.current == "7"
    progress.step("unheard-of", 1, 4)
    assert progress.current == "7"
