"""Behind scripts/demo, scripts/test and scripts/bench: set up what is missing, then hand over. Standard library only."""

from __future__ import annotations

import os
import shutil
import sys
import tempfile
import time
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import _alias
import _envs
import _hosts
import _process
from _alias import ROOT
from _process import EXIT_HOST, Failure, interruptible, note, run_forwarding, run_side_by_side

MODULE = os.path.join(ROOT, "scripts", "_module.py")


def _environment(host: _hosts.Host | None, **more: str) -> dict:
    env = {k: v for k, v in os.environ.items() if not k.startswith("LODESTAR_HOST")}
    if host is not None:
        env.update(LODESTAR_HOST_PATH=str(host.path), LODESTAR_HOST_KIND=host.kind, LODESTAR_HOST_VERSION=host.version, LODESTAR_HOST_ORIGIN=host.origin)
    if host is not None and not host.users:      # our own copy may keep its compiled modules: some hundred are loaded at every start
        env.pop("PYTHONDONTWRITEBYTECODE", None)
    env.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # threads that spin for work make a busy machine ten times slower
    env.update(more)
    return env


def demo(arguments: list[str]) -> int:
    """The first host that starts runs the workflow; --server needs no host at all."""
    _alias.install("demo", "scripts")
    sys.modules["lodestar.scripts._process"] = _process  # one module, one Failure
    from lodestar.demo import runner

    args = runner.parser().parse_args(arguments)
    runner.check(args)
    if args.server:
        shared = _envs.python_of(_hosts.cache() / "venv")
        python = str(shared) if shared.exists() else sys.executable
        return run_forwarding([python, MODULE, "lodestar.demo.runner", *arguments], _environment(None))
    code = EXIT_HOST
    for host in _hosts.for_demo():
        note(f"Host: {host} in {host.path}")
        code = run_forwarding([_envs.prepare(host), MODULE, "lodestar.demo.runner", *arguments], _environment(host))
        if code != EXIT_HOST:
            return code
        if not os.environ.get("COMFYUI_PATH"):
            note("Trying the next host.")
    return code


def bench(arguments: list[str]) -> int:
    """`python -m bench` with the first host on the path."""
    for host in _hosts.for_demo():
        note(f"Host: {host} in {host.path}")
        return run_forwarding([_envs.prepare(host), MODULE, "--host-first", "bench", *arguments], _environment(host))
    raise Failure("No ComfyUI was found.")


class Tally:
    """Counts from the reports of pytest."""

    def __init__(self):
        self.passed = self.failed = self.skipped = 0

    def read(self, report: Path, code: int) -> str:
        """Add one run; what it was, in words."""
        passed = failed = skipped = 0
        try:
            for suite in ElementTree.parse(report).getroot().iter("testsuite"):
                total, bad, out = (int(suite.get(k, 0)) for k in ("tests", "failures", "skipped"))
                bad += int(suite.get("errors", 0))
                passed, failed, skipped = passed + total - bad - out, failed + bad, skipped + out
        except (OSError, ElementTree.ParseError):
            pass
        if code not in (0, 5) and failed == 0:  # crashed, or could not collect
            failed = 1
        self.passed, self.failed, self.skipped = self.passed + passed, self.failed + failed, self.skipped + skipped
        return f"{passed} passed, {failed} failed, {skipped} skipped"


SERVED = (os.path.join("tests", "host", "test_workflows.py"), os.path.join("tests", "browser"))      # what asks a running server


def _split(arguments: list[str]) -> tuple[list[str], list[str] | None, list[str] | None]:
    """(options, unit paths, host paths); None where the user named paths, but none of that kind."""
    options, unit, host = [], [], []
    for argument in arguments:
        path = argument.split("::")[0]
        if argument.startswith("-") or not os.path.exists(path):
            options.append(argument)
            continue
        full = os.path.abspath(path)
        for folder, into in (("unit", unit), ("host", host), ("browser", host)):
            base = os.path.join(ROOT, "tests", folder)
            if full == base or full.startswith(base + os.sep):
                into.append(full + argument[len(path):])
            elif base.startswith(full + os.sep):
                into.append(base)
    if not unit and not host:
        unit = [os.path.join(ROOT, "tests", "unit")]
        host = [os.path.join(ROOT, "tests", d) for d in ("host", "browser")]
    unit, host = ([p for p in paths if os.path.exists(p.split("::")[0])] for paths in (unit, host))
    return options, unit or None, host or None


def _pytest(python: str, paths: list[str], options: list[str], report: Path, env: dict) -> list[str]:
    """The command; `env` gets what it needs."""
    extra = _envs.pytest_path(python)
    if extra:
        env["PYTHONPATH"] = os.pathsep.join(p for p in (extra, env.get("PYTHONPATH")) if p)
    return [python, MODULE, "pytest", f"--rootdir={ROOT}", "-c", os.path.join(ROOT, "pyproject.toml"), f"--junitxml={report}", *options, *paths]


def _cores() -> int:
    try:
        return len(os.sched_getaffinity(0))
    except AttributeError:
        return os.cpu_count() or 1


def _shared_out(paths: list[str], parts: int, without: tuple[str, ...] = ()) -> list[list[str]]:
    """The test files of a folder in groups of about equal size, to run side by side; paths that were named stay together."""
    if parts < 2 or len(paths) != 1 or not os.path.isdir(paths[0]):
        return [paths]
    files = sorted((f for f in Path(paths[0]).rglob("test_*.py") if str(f) not in without), key=lambda f: (-f.stat().st_size, f.name))
    groups, sizes = [[] for _ in range(parts)], [0] * parts
    for f in files:      # each to the smallest group so far
        least = sizes.index(min(sizes))
        groups[least].append(str(f))
        sizes[least] += f.stat().st_size
    return [g for g in groups if g]


def test(arguments: list[str]) -> int:
    """Unit tests once, host tests once per host, several at a time; a table and one line of totals at the end.

    The newest host runs all of them, the others what tests/conftest.py leaves them, unless paths are named."""
    begin = time.monotonic()
    options, unit, host_paths = _split(arguments)
    hosts, missing = _hosts.for_tests()
    tally, rows = Tally(), []
    for name, reason in missing:
        note(f"{name}: {reason}")
        rows.append((name, "NOT SET UP"))
        tally.failed += 1
    prepared = []
    for host in hosts:
        try:
            prepared.append((host, _envs.prepare(host)))
            note(f"Host: {host} in {host.path}")
        except Failure as e:
            note(f"{host}: {e}")
            rows.append((str(host), "NOT SET UP"))
            tally.failed += 1
    if not prepared:
        raise Failure("No host could be set up, so nothing was tested.")
    reports, jobs = Path(tempfile.mkdtemp(prefix="lodestar-reports-")), []
    named = any(os.path.exists(a.split("::")[0]) for a in arguments if not a.startswith("-"))
    many = len(prepared) > 1 and _cores() > 1
    one = {"OMP_NUM_THREADS": "1"} if many else {}      # the tests' networks are small: a host on each core is faster than a core more for each
    try:
        if unit:
            reference = _envs.reference()
            if reference is None:
                note(f"The tests that compare with {_envs.REFERENCE.read_text(encoding='utf-8').split('#')[0].strip()} are skipped: it could not be fetched.")
            groups = _shared_out(unit, min(2, _cores()) if many else 1)
            for i, group in enumerate(groups):
                env = _environment(None, **one, **({"LODESTAR_REFERENCE": reference} if reference else {}))
                jobs.append(("unit tests" + (f", {i + 1} of {len(groups)}" if len(groups) > 1 else ""), _pytest(prepared[0][1], group, options, reports / f"{i}.xml", env), env,
                             reports / f"{i}.log"))
        for host, python in prepared if host_paths else []:
            page = _envs.frontend(host) if os.path.isdir(os.path.join(ROOT, "tests", "browser")) else None
            place = "newest" if named else _hosts.place(host, [h for h, _ in prepared])
            env = _environment(host, **one, LODESTAR_HOST_PLACE=place, LODESTAR_CONFORMANCE="all" if named else "part", **({"LODESTAR_HOST_PAGE": page} if page else {}))
            parts = [(", in part" if place == "between" else "", host_paths, [])]
            if many and not named and place != "between":      # several jobs, so that no core is idle for long at the end
                served = tuple(os.path.join(ROOT, p) for p in SERVED)
                inside = _shared_out([os.path.join(ROOT, "tests", "host")], 2, served) if place == "newest" else [[*host_paths, *(f"--ignore={p}" for p in served)]]
                marks = [f", inside, {i + 1} of {len(inside)}" if len(inside) > 1 else ", inside" for i in range(len(inside))]
                parts = [*zip(marks, inside, [[]] * len(inside)), (", by its server and its page", [*served], [])]
            for mark, paths, more in parts:
                name = f"{len(jobs)}"
                jobs.append((f"{host}{mark}", _pytest(python, paths, [*options, *more], reports / f"{name}.xml", env), env, reports / f"{name}.log"))
        results = {}

        def done(index, code):
            results[index] = tally.read(reports / f"{index}.xml", code)
            note(f"\n--- {jobs[index][0]}")
            sys.stderr.write((reports / f"{index}.log").read_text(encoding="utf-8", errors="replace"))

        run_side_by_side(jobs, _cores() if many else 1, done, ROOT)
        rows[:0] = [(job[0], results[i]) for i, job in enumerate(jobs)]
    finally:
        shutil.rmtree(reports, ignore_errors=True)
    width = max(len(name) for name, _ in rows)
    print(f"\nTests on {len(prepared)} host{'s' if len(prepared) != 1 else ''}, {time.monotonic() - begin:.0f} s")
    for name, result in rows:
        print(f"  {name:<{width}}  {result}")
    print(f"{tally.passed} passed, {tally.failed} failed, {tally.skipped} skipped", flush=True)
    return 1 if tally.failed else 0


def main() -> int:
    if sys.version_info < (3, 10):
        note(f"error: Python 3.10 or newer is needed; this is {sys.version.split()[0]}.")
        return 1
    command, arguments = sys.argv[1], sys.argv[2:]
    try:
        with interruptible():
            return {"demo": demo, "test": test, "bench": bench}[command](arguments)
    except Failure as e:
        note(f"error: {e}")
        return e.code
    except KeyboardInterrupt as e:
        if not getattr(e, "told", False):
            note("\ninterrupted")
        return getattr(e, "code", 130)
    except OSError as e:
        note(f"error: {_os_error(e)}")
        return 1


def _os_error(e: OSError) -> str:
    import errno

    where = f" ({e.filename})" if e.filename else ""
    if e.errno == errno.ENOSPC:
        return f"No disk space left{where}. Free some, or set LODESTAR_CACHE and TMPDIR to folders on another disk."
    return f"{e.strerror or e}{where}"


if __name__ == "__main__":
    raise SystemExit(main())
