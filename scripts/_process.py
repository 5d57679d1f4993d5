"""Child processes that never outlive us, and failures that are told in one paragraph. Standard library only."""

from __future__ import annotations

import ctypes
import os
import re
import signal
import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path

EXIT_HOST = 69  # the host could not be started: another one may work
_SIGNALS = [s for s in (getattr(signal, n, None) for n in ("SIGINT", "SIGTERM", "SIGHUP")) if s is not None]


class Failure(Exception):
    """A problem the user can act on; its text is the whole message."""

    def __init__(self, message: str, code: int = 1):
        super().__init__(message)
        self.code = code


class Interrupted(KeyboardInterrupt):
    """Ctrl-C, or a request to end from outside."""

    def __init__(self, signum: int = signal.SIGINT):
        super().__init__()
        self.code = 128 + int(signum)


def note(text: str = "") -> None:
    """A line about what is going on. Results go to stdout, everything else here."""
    print(text, file=sys.stderr, flush=True)


def _ignore_signals() -> None:
    for s in _SIGNALS:
        signal.signal(s, signal.SIG_IGN)


@contextmanager
def interruptible():
    """Turn the signals that ask us to end into one exception, and ignore the impatient ones after the first
    while things are tidied up. Also where the caller's shell started us with SIGINT ignored."""

    def handler(signum, frame):
        _ignore_signals()
        raise Interrupted(signum)

    before = {s: signal.signal(s, handler) for s in _SIGNALS}
    try:
        yield
    finally:
        for s, old in before.items():
            signal.signal(s, signal.SIG_DFL if old is None else old)


def _libc():
    if not sys.platform.startswith("linux"):
        return None
    try:
        return ctypes.CDLL(None, use_errno=True)
    except OSError:
        return None


_LIBC = _libc()


def spawn(command, parent_death: int = signal.SIGKILL, **options) -> subprocess.Popen:
    """Start a process in a group of its own; on Linux the kernel ends it when we die, whatever kills us."""

    def prepare():
        if _LIBC is not None:
            _LIBC.prctl(1, int(parent_death))  # PR_SET_PDEATHSIG
        for s in _SIGNALS:
            signal.signal(s, signal.SIG_DFL)

    options.setdefault("stdin", subprocess.DEVNULL)
    return subprocess.Popen([str(c) for c in command], start_new_session=True, preexec_fn=prepare, **options)


def _group_alive(pid: int) -> bool:
    try:
        os.killpg(pid, 0)
        return True
    except (ProcessLookupError, PermissionError):
        return False


def stop(process: subprocess.Popen, patience: float = 5.0, signum: int = signal.SIGTERM) -> None:
    """End the process and everything it started: ask first, then insist."""
    for sig, wait in ((signum, patience), (signal.SIGKILL, 5.0)):
        if process.poll() is not None and not _group_alive(process.pid):
            return
        try:
            os.killpg(process.pid, sig)
        except (ProcessLookupError, PermissionError):
            pass
        try:
            process.wait(timeout=wait)
        except subprocess.TimeoutExpired:
            continue


def tail(path, lines: int = 15) -> str:
    """The last lines of a log, without colours and redrawn progress bars."""
    try:
        with open(path, "rb") as f:
            f.seek(0, os.SEEK_END)
            f.seek(max(0, f.tell() - 64_000))
            text = f.read().decode("utf-8", "replace")
    except OSError:
        return ""
    text = re.sub(r"\x1b\[[0-9;]*[A-Za-z]", "", text)
    rows = [row.rsplit("\r", 1)[-1].rstrip() for row in text.replace("\r\n", "\n").split("\n")]
    return "\n".join([row for row in rows if row][-lines:])


def run_logged(title: str, command, log: Path, limit: float | None = None, env: dict | None = None) -> int:
    """Run a long step quietly, its output in `log`, the seconds counted on the screen. Returns the exit code,
    or 124 when it ran past `limit`."""
    tty = sys.stderr.isatty()
    begin = time.monotonic()
    if not tty:
        note(f"{title} ...")
    with open(log, "ab") as out:
        process = spawn(command, stdout=out, stderr=subprocess.STDOUT, env=env)
        try:
            while True:
                passed = time.monotonic() - begin
                if tty:
                    print(f"\r{title} ... {passed:.0f} s ", end="", file=sys.stderr, flush=True)
                try:
                    code = process.wait(timeout=1.0)
                    break
                except subprocess.TimeoutExpired:
                    if limit is not None and passed > limit:
                        code = 124
                        break
        finally:
            stop(process)
    passed = time.monotonic() - begin
    word = "done" if code == 0 else "failed"
    note(f"\r{title} ... {word} after {passed:.0f} s " if tty else f"  {word} after {passed:.0f} s")
    return code


def run_forwarding(command, env: dict | None = None, cwd=None) -> int:
    """Run a process on our terminal and hand it the signals we get, so that it can tidy up; its exit code."""
    process = spawn(command, parent_death=signal.SIGTERM, env=env, cwd=cwd)
    try:
        return process.wait()
    except KeyboardInterrupt as e:
        e.told = True  # the process says so itself
        signum = getattr(e, "code", 130) - 128
        _ignore_signals()
        if process.poll() is None:
            process.send_signal(signum)
            try:
                process.wait(timeout=20)
            except subprocess.TimeoutExpired:
                pass
        raise
    finally:
        stop(process)


def run_side_by_side(jobs, count: int, done, cwd=None, every: float = 60.0) -> None:
    """Run [(title, command, env, log)] with at most `count` at a time, each one's output in its log; done(index, code) is called as each ends.
    Every minute a line says what runs."""
    waiting, running, begin, told = list(enumerate(jobs)), {}, time.monotonic(), time.monotonic()
    try:
        while waiting or running:
            while waiting and len(running) < count:
                index, (title, command, env, log) = waiting.pop(0)
                note(f"{title} ...")
                with open(log, "ab") as out:
                    running[index] = spawn(command, stdout=out, stderr=subprocess.STDOUT, env=env, cwd=cwd)
            time.sleep(0.2)
            for index, process in list(running.items()):
                if process.poll() is not None:
                    del running[index]
                    stop(process)
                    done(index, process.returncode)
            if time.monotonic() - told >= every:
                told = time.monotonic()
                note(f"  {told - begin:.0f} s: " + "; ".join(f"{jobs[i][0]} {tail(jobs[i][3], 1)[-8:].strip()}" for i in running))
    finally:
        for process in running.values():
            stop(process)
