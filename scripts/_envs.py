"""Python environments for the hosts: one shared folder in the cache, another only where two hosts contradict each other.
Standard library only."""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path

from _hosts import Host, cache, need_room
from _process import Failure, note, run_logged, tail

REQUIREMENTS = Path(__file__).resolve().parent / "requirements"
PINS = REQUIREMENTS / "pins.txt"
REFERENCE = REQUIREMENTS / "reference.txt"
# Only for the web page, different in every release, and large. Tests of the page fetch their own (see frontend()).
PAGE_ONLY = ("comfyui-frontend-package", "comfyui-workflow-templates", "comfyui-embedded-docs")
# Run inside an environment: is every requirement in the files met?
_CHECK = """
import sys
from importlib.metadata import version, PackageNotFoundError
try:
    from packaging.requirements import Requirement
except ImportError:
    from pip._vendor.packaging.requirements import Requirement
for name in sys.argv[1:]:
    for line in open(name, encoding="utf-8"):
        line = line.split("#")[0].strip()
        if not line or line.startswith("-"):
            continue
        wanted = Requirement(line)
        if wanted.marker and not wanted.marker.evaluate():
            continue
        try:
            have = version(wanted.name)
        except PackageNotFoundError:
            sys.exit("missing " + line)
        if not wanted.specifier.contains(have, prereleases=True):
            sys.exit(line + " (installed: " + have + ")")
"""


def scripts(environment: Path) -> Path:
    return environment / ("Scripts" if os.name == "nt" else "bin")


def python_of(environment: Path) -> Path:
    return scripts(environment) / ("python.exe" if os.name == "nt" else "python")


def _quiet(*command, timeout: float = 120) -> bool:
    try:
        return subprocess.run([str(c) for c in command], stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
                              timeout=timeout, start_new_session=True).returncode == 0
    except (OSError, subprocess.TimeoutExpired):
        return False


@contextmanager
def lock():
    """Two set-ups at once would trample on each other: the second waits."""
    try:
        import fcntl
    except ImportError:  # not on Windows
        yield
        return
    with open(cache() / "lock", "w") as f:
        try:
            fcntl.flock(f, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            note("Another set-up is running; waiting for it.")
            fcntl.flock(f, fcntl.LOCK_EX)
        yield


def explain(log: Path, what: str) -> str:
    """Why pip failed, in one paragraph."""
    text = tail(log, 400)
    if re.search(r"No space left on device|Errno 28|Disk quota exceeded", text):
        return f"No disk space left while installing {what}. Free some, or set LODESTAR_CACHE (and TMPDIR) to folders on another disk, and run this again."
    if re.search(r"name resolution|Could not resolve|NewConnectionError|ConnectTimeout|Connection refused|ProxyError|Network is unreachable"
                 r"|Max retries exceeded|ReadTimeoutError|No route to host", text):
        return (f"No network: {what} could not be downloaded. Connect this machine to a Python package index (or configure pip's), and run "
                f"this again; what is already here is kept. Details: {log}")
    return f"Installing {what} failed. The last lines of {log}:\n{tail(log)}"


def _make(environment: Path) -> None:
    """An empty environment, without the system's packages."""
    log = cache() / "venv.log"
    log.unlink(missing_ok=True)
    shutil.rmtree(environment, ignore_errors=True)
    code = run_logged("Creating the Python environment", [sys.executable, "-m", "venv", environment], log)
    if code != 0 or not _quiet(python_of(environment), "-m", "pip", "--version"):
        reason = explain(log, "the Python environment")
        shutil.rmtree(environment, ignore_errors=True)
        raise Failure(f"{reason}\nOn Debian and Ubuntu: sudo apt install python3-venv")


def _usable(environment: Path) -> bool:
    return python_of(environment).exists() and _quiet(python_of(environment), "-m", "pip", "--version")


def pip_python() -> str:
    """A Python that has pip: ours, else that of the shared environment."""
    if _quiet(sys.executable, "-m", "pip", "--version"):
        return sys.executable
    environment = cache() / "venv"
    if not _usable(environment):
        _make(environment)
    return str(python_of(environment))


def wanted(host: Host) -> str:
    """The requirements of this host, as the text of a requirements file."""
    if host.kind == "pypi":
        text = (REQUIREMENTS / "pypi-host.txt").read_text(encoding="utf-8")
    else:
        try:
            text = (host.path / "requirements.txt").read_text(encoding="utf-8")
        except OSError as e:
            raise Failure(f"{host} in {host.path} has no readable requirements.txt: {e.strerror}.") from e
    lines = [line.split("#")[0].strip() for line in (text + "\n" + (REQUIREMENTS / "tools.txt").read_text(encoding="utf-8")).splitlines()]
    return "\n".join(line for line in lines if line and not line.lower().replace("_", "-").startswith(PAGE_ONLY)) + "\n"


def _stamps(environment: Path) -> Path:
    return environment / "lodestar"


def _stamp(environment: Path, text: str) -> Path:
    pins = PINS.read_text(encoding="utf-8")
    return _stamps(environment) / (hashlib.sha256((text + "\0" + pins).encode()).hexdigest()[:16] + ".txt")


def _met(environment: Path, text: str) -> bool:
    """True if the environment has everything, whoever installed it; then it is stamped, and the next check is free."""
    stamp = _stamp(environment, text)
    if stamp.exists():
        return python_of(environment).exists()
    if not _usable(environment):
        return False
    stamp.parent.mkdir(exist_ok=True)
    probe = stamp.with_suffix(".probe")
    probe.write_text(text, encoding="utf-8")
    try:
        if _quiet(python_of(environment), "-c", _CHECK, probe) and _quiet(python_of(environment), "-c", "import torch, aiohttp"):
            probe.rename(stamp)
            return True
    finally:
        probe.unlink(missing_ok=True)
    return False


def _install(environment: Path, text: str, what: str) -> bool:
    """Install; False if that contradicts what the environment already holds."""
    log = cache() / f"{environment.name}.log"
    log.unlink(missing_ok=True)
    stamp = _stamp(environment, text)
    stamp.parent.mkdir(exist_ok=True)
    fresh = stamp.with_suffix(".new")
    fresh.write_text(text, encoding="utf-8")
    before = sorted(stamp.parent.glob("*.txt"))
    pip = [python_of(environment), "-m", "pip", "install", "--disable-pip-version-check", "-c", PINS]
    try:
        torch = [name for name in ("torch", "torchvision", "torchaudio") if re.search(rf"(?m)^{name}\b", text)]
        if not _quiet(python_of(environment), "-c", "import " + ", ".join(torch)):
            need_room(environment.parent, 9 if sys.platform.startswith("linux") else 3, "PyTorch and the packages of the host")
            if run_logged("Installing PyTorch (once, about 2 minutes)", pip + torch, log) != 0:
                raise Failure(explain(log, "PyTorch"))
        files = [argument for file in [*before, fresh] for argument in ("-r", file)]
        if run_logged(f"Installing the packages of {what}", pip + files, log) != 0:
            if before and re.search(r"ResolutionImpossible|conflicting dependencies", tail(log, 400)):
                return False
            raise Failure(explain(log, f"the packages of {what}"))
        fresh.rename(stamp)
        return True
    finally:
        fresh.unlink(missing_ok=True)


def _users_python(host: Host) -> str | None:
    """A Python of the user's that already runs this host; nothing is ever installed into it."""
    candidates = [host.path / name for name in ("venv", ".venv")]
    candidates += [Path(os.environ[name]) for name in ("VIRTUAL_ENV", "CONDA_PREFIX") if os.environ.get(name)]
    for python in [*map(python_of, candidates), Path(sys.executable)]:
        if python.exists() and _quiet(python, "-c", "import torch, aiohttp, safetensors, yaml, einops, transformers"):
            return str(python)
    return None


def prepare(host: Host) -> str:
    """A Python in which this host runs, installed if need be."""
    if host.users:
        python = _users_python(host)
        if python is not None:
            return python
    with lock():
        text = wanted(host)
        shared, own = cache() / "venv", cache() / f"venv-{host.version}"
        for environment in (shared, own):
            if _met(environment, text):
                return str(python_of(environment))
        for environment in (shared, own):
            if not _usable(environment):
                _make(environment)
            if _install(environment, text, f"ComfyUI {host.version}"):
                return str(python_of(environment))
            note("  they contradict those of another host: an environment of its own")
    raise Failure(f"The packages of {host} contradict each other. The last lines of {cache() / own.name}.log:\n{tail(cache() / (own.name + '.log'))}")


def pytest_path(python: str) -> str | None:
    """A folder to put on PYTHONPATH so that this Python has pytest; None if it has."""
    if _quiet(python, "-c", "import pytest"):
        return None
    target, log = cache() / "tools", cache() / "tools.log"
    with lock():
        if not (target / "pytest").is_dir():
            log.unlink(missing_ok=True)
            if run_logged("Installing pytest beside your Python", [pip_python(), "-m", "pip", "install", "--target", target, "pytest"], log) != 0:
                raise Failure(explain(log, "pytest"))
    return str(target)


def reference() -> str | None:
    """A folder with the implementation that the unit tests compare with (requirements/reference.txt), for LODESTAR_REFERENCE; None if it cannot be had.
    It is in no environment, and comes without its dependencies: what it needs of them is there with every host, in the host's versions."""
    wanted = REFERENCE.read_text(encoding="utf-8").split("#")[0].strip()
    target, log = cache() / "reference" / wanted.replace("==", "-"), cache() / "reference.log"
    done = target / "complete"
    with lock():
        if not done.is_file():
            log.unlink(missing_ok=True)
            shutil.rmtree(target, ignore_errors=True)
            target.parent.mkdir(exist_ok=True)
            command = [pip_python(), "-m", "pip", "install", "--disable-pip-version-check", "--no-deps", "--no-compile", "--target", target, wanted]
            if run_logged(f"Fetching {wanted} for the tests", command, log) == 0:
                done.touch()
    return str(target) if done.is_file() else None


def frontend(host: Host) -> str | None:
    """The web page this release was made for, as a folder for --front-end-root; None if it cannot be had."""
    if host.kind != "modern":
        return None
    try:
        found = re.search(r"(?m)^comfyui[-_]frontend[-_]package==(\S+)", (host.path / "requirements.txt").read_text(encoding="utf-8"))
    except OSError:
        return None
    if not found:
        return None
    target, log = cache() / "frontends" / found.group(1), cache() / "frontend.log"
    static = target / "comfyui_frontend_package" / "static"
    with lock():
        if not (static / "index.html").is_file():
            log.unlink(missing_ok=True)
            target.parent.mkdir(exist_ok=True)
            command = [pip_python(), "-m", "pip", "install", "--upgrade", "--no-deps", "--target", target, f"comfyui-frontend-package=={found.group(1)}"]
            run_logged(f"Fetching the web page of ComfyUI {host.version}", command, log)
    return str(static) if (static / "index.html").is_file() else None
