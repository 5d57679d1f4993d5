"""Fixtures for all tests.

Modules of the pack are imported as `lodestar.guidance...`, `lodestar.demo...` whatever the folder is called; that runs
no registration. The fixture `pack` registers the nodes as ComfyUI does. Host tests take `host` (ComfyUI imported into
this process) or `server` (a real server process); both skip where LODESTAR_HOST_PATH names none."""

from __future__ import annotations

import asyncio
import gc
import importlib
import importlib.util
import io
import os
import re
import signal
import sys
import types
from dataclasses import dataclass, field
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
THREADS = 1      # the networks of the tests are small: one thread is as fast, and does not spin beside other work
os.environ.setdefault("OMP_NUM_THREADS", str(THREADS))  # for the server too
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # threads that spin for work make a busy machine ten times slower
# our own folders `nodes` and `tests` must not hide a host's modules
sys.path[:] = [p for p in sys.path if os.path.abspath(p or os.getcwd()) != str(ROOT)]


def _alias():
    spec = importlib.util.spec_from_file_location("_lodestar_alias", ROOT / "scripts" / "_alias.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    module.install()


_alias()
try:
    import torch

    torch.set_num_threads(THREADS)
except ImportError:
    pass


def pytest_configure():
    """A request to end (a time limit, a closed terminal) ends like Ctrl-C: servers are stopped, their folders removed."""
    def stop(signum, frame):
        raise KeyboardInterrupt

    for name in ("SIGTERM", "SIGHUP"):
        if hasattr(signal, name):
            signal.signal(getattr(signal, name), stop)


# What ./scripts/test asks of a host (LODESTAR_HOST_PLACE). The newest: everything. The others: not what is marked `newest` (costly, and the hosts do not differ
# in it) and not NEWEST (methods on further networks, trainings, what stands on loops that other tests ask of all; the examples run everywhere, and test_architectures.py is asked of all) but for
# what they have to say that they cannot do ("old_hosts"); those between the newest and the oldest: these files alone, which tell whether the engine works there.
NEWEST = ("test_correspondence_architectures.py", "test_further_architectures.py", "test_perturbation_families.py", "test_regions_architectures.py",
          "test_sharing_architectures.py", "test_encoder_losses_host.py", "test_frames_host.py", "test_optimise_host.py", "test_restoring_host.py", "test_restorers_host.py",
          "test_restoration_prior_host.py", "test_unicon_host.py", "test_readout_host.py", "test_distillation_host.py", "test_multi_scale_host.py", "test_noisy_host.py", "test_noisy_encoder_host.py",
          "test_loss_solvers_host.py", "test_guided_decode_host.py", "test_energy_host.py", "test_correspondence_host.py")
MODERN = ("test_inverse_host.py", "test_particles_host.py", "test_loss_host.py")      # of the newest and of the one from PyPI, whose engine is another; the hosts between them are like the newest in what these ask
ALIKE = ("areas_and_masks", "half_precision", "interrupted_run", "controlnet")      # tests of what the engine does for every method alike: older hosts are asked in the files of BETWEEN alone
SINGLY = "acts_and_batch_equals_singles"      # each method by itself: the hosts between are asked for all methods together, the oldest modern one for those of test_engine.py
BETWEEN = ("test_boot.py", "test_engine.py", "test_nodes_host.py", "test_prompts_host.py", "test_together.py")


def pytest_collection_modifyitems(config, items):
    for item in items:
        for folder in ("unit", "host", "browser"):
            if (ROOT / "tests" / folder) in Path(item.fspath).parents:
                item.add_marker(getattr(pytest.mark, folder))
    place = os.environ.get("LODESTAR_HOST_PLACE", "newest")
    if place != "newest":
        alike = NEWEST if os.environ.get("LODESTAR_HOST_KIND") == "pypi" else NEWEST + MODERN
        left = [i for i in items if "unit" not in i.keywords
                and ("newest" in i.keywords or (SINGLY in i.name and (place == "between" or Path(i.fspath).name not in BETWEEN and os.environ.get("LODESTAR_HOST_KIND") != "pypi")) or (Path(i.fspath).name in alike and (place == "between" or "old_hosts" not in i.name)) or (Path(i.fspath).name not in BETWEEN and (place == "between" or any(part in i.name for part in ALIKE))))]
        items[:] = [i for i in items if i not in left]
        config.hook.pytest_deselected(items=left)


def pytest_report_header():
    path = os.environ.get("LODESTAR_HOST_PATH")
    return f"host: ComfyUI {os.environ.get('LODESTAR_HOST_VERSION', '')} ({os.environ.get('LODESTAR_HOST_KIND', '')}) in {path}" if path else "host: none"


def _host_path() -> Path:
    path = os.environ.get("LODESTAR_HOST_PATH")
    if not path:
        pytest.skip("no host: LODESTAR_HOST_PATH is not set (./scripts/test sets it)")
    return Path(path)


def _cpu() -> bool:
    return os.environ.get("LODESTAR_TEST_GPU") != "1"


@dataclass
class HostInProcess:
    """A ComfyUI imported into this process, on the CPU, with a private base folder."""

    path: Path
    kind: str
    version: str
    comfy: types.ModuleType
    base: Path
    _nodes: dict = field(default_factory=dict)

    def nodes(self) -> dict:
        """NODE_CLASS_MAPPINGS of the host's own nodes, extras included (no custom nodes)."""
        if self._nodes:
            return self._nodes
        if self.kind == "pypi":
            from comfy.nodes.package import import_all_nodes_in_workspace

            self._nodes = dict(import_all_nodes_in_workspace(vanilla_custom_nodes=False).NODE_CLASS_MAPPINGS)
        else:
            import nodes

            asyncio.run(nodes.init_builtin_extra_nodes())
            self._nodes = dict(nodes.NODE_CLASS_MAPPINGS)
        return self._nodes


@pytest.fixture(scope="session")
def host(tmp_path_factory):
    """ComfyUI in this process: .comfy (the package), .version, .kind ("modern" or "pypi"), .path, .nodes()."""
    path, kind = _host_path(), os.environ.get("LODESTAR_HOST_KIND", "modern")
    base = tmp_path_factory.mktemp("base")
    for name in ("models", "input", "output", "temp", "user", "custom_nodes"):
        (base / name).mkdir()
    sys.path.insert(0, str(path))
    argv, environment = sys.argv, {k: os.environ.pop(k) for k in list(os.environ) if k.startswith("COMFYUI_")}
    sys.argv = ["main"]
    try:
        comfy = importlib.import_module("comfy")
        args = importlib.import_module("comfy.cli_args").args
        args.cpu = _cpu()
        if kind == "pypi":
            args.cwd, args.disable_known_models = str(base), True
            importlib.import_module("comfy.cmd.main_pre")
        else:
            args.base_directory = str(base)
        for name in ("model_management", "samplers", "sample", "sd", "utils", "model_patcher"):
            importlib.import_module("comfy." + name)
    finally:
        sys.argv = argv
        os.environ.update(environment)
    if torch.get_num_threads() != THREADS:
        torch.set_num_threads(THREADS)
    gc.collect()
    gc.freeze()      # the host collects garbage at every run; half a second each with all that was imported
    return HostInProcess(path, kind, os.environ.get("LODESTAR_HOST_VERSION", "unknown"), comfy, base)


@pytest.fixture(scope="session")
def pack(request):
    """This checkout as the package `lodestar`, its __init__.py run as ComfyUI runs it (with the host, if one is named)."""
    entry = ROOT / "__init__.py"
    if not entry.is_file():
        pytest.skip("the pack has no __init__.py")
    if os.environ.get("LODESTAR_HOST_PATH"):
        request.getfixturevalue("host")
    module = sys.modules["lodestar"]
    if getattr(module, "__spec__", None) is None:
        spec = importlib.util.spec_from_file_location("lodestar", entry, submodule_search_locations=[str(ROOT)])
        module.__spec__, module.__file__, module.__package__, module.__loader__ = spec, str(entry), "lodestar", spec.loader
        try:
            spec.loader.exec_module(module)
        except BaseException:
            module.__spec__ = None
            raise
    return module


class RunningServer:
    """A real ComfyUI server with the pack linked into it."""

    def __init__(self, server, client):
        self.process, self.client = server, client
        self.url, self.kind, self.path = server.url, server.kind, server.path
        self.version = os.environ.get("LODESTAR_HOST_VERSION", "unknown")
        client.object_info()
        self.boot_log = server.log()

    def object_info(self) -> dict:
        return self.client.object_info()

    def run(self, workflow: dict, timeout: float = 600.0) -> dict:
        """Queue a workflow in API format and wait; {node id: outputs}. Errors are the runner's (WorkflowError, ExecutionFailed ...)."""
        return self.client.run(workflow, timeout=timeout)

    def image(self, outputs: dict, node_id: str, index: int = 0):
        """A picture that a node saved, as a PIL image."""
        from lodestar.demo.runner_client import files_of
        from PIL import Image

        return Image.open(io.BytesIO(self.client.fetch(files_of(outputs[node_id])[index])))

    def log(self) -> str:
        return self.process.log()

    def complaints(self, log: str | None = None) -> list[str]:
        """What in the log (of the start, if no other is given) is a warning or an error that has to do with the pack."""
        places = {self.process.base / "custom_nodes" / "lodestar": "<pack>", self.process.base: "<base>", self.path: "<host>", sys.prefix: "<env>", ROOT: "<pack>"}
        return complaints(self.boot_log if log is None else log, places)


def complaints(log: str, places: dict) -> list[str]:
    """Lines with a warning or an error that name the pack, and tracebacks that go through it. `places` gives paths their meaning:
    a folder such as ~/.cache/lodestar must not make every line ours."""
    log = re.sub(r"\x1b\[[0-9;]*[A-Za-z]", "", log)
    for path, name in sorted(places.items(), key=lambda p: -len(str(p[0]))):
        log = re.sub(re.escape(str(path)) + r"(?![\w-]|\.\w)", lambda _, name=name: name, log)      # whole folders: /x/lodestar is not a part of /x/lodestar-home
    ours = re.compile(r"lodestar|<pack>", re.I)
    bad = re.compile(r"warn|error|traceback|failed|cannot|exception|deprecat|skip |conflict|invalid", re.I)
    found, block = [], []
    for line in log.splitlines():
        if block and (line.startswith((" ", "\t")) or not line.strip()):
            block.append(line)
            continue
        if block:  # the line that names the exception
            text = "\n".join([*block, line])
            if ours.search(text):
                found.append(text)
            block = []
        if line.startswith("Traceback (most recent call last)"):
            block = [line]
        elif ours.search(line) and bad.search(line):
            found.append(line)
    return found


@pytest.fixture(scope="session")
def server():
    """A real server of the host under test, once per run: .url, .run(workflow), .image(outputs, node), .object_info(), .log(), .complaints()."""
    path = _host_path()
    from lodestar.demo.runner_client import Client
    from lodestar.demo.runner_server import Server

    process = Server(path, cpu=True if _cpu() else None, page=os.environ.get("LODESTAR_HOST_PAGE"))
    with process:
        yield RunningServer(process, Client(process.url, process.alive))
