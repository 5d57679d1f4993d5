"""A ComfyUI of our own: started headless on a free port of this machine, in a private base folder, and always ended.

The pack is linked into the private folder's custom_nodes; nothing is written into the host."""

from __future__ import annotations

import json
import os
import re
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from pathlib import Path

from ..scripts._process import Failure, spawn, stop, tail
from .runner_errors import HostFailed

ROOT = Path(__file__).resolve().parent.parent
# the folders of models a host of the user's offers to workflows
_MODEL_FOLDERS = ("checkpoints", "clip", "clip_vision", "configs", "controlnet", "diffusion_models", "embeddings", "gligen", "hypernetworks", "loras",
                  "model_patches", "style_models", "text_encoders", "unet", "upscale_models", "vae", "vae_approx")
# The page's templates come in a package whose layout differs between releases: a wrong one stops older hosts at their
# start. We need none, so the host sees this one.
_TEMPLATES = """from pathlib import Path
from types import SimpleNamespace
def iter_templates(): return [SimpleNamespace(template_id="none", assets=[SimpleNamespace(filename="index.json")])]
def get_asset_path(template_id, filename): return str(Path(__file__).parent / "templates" / "index.json")
"""
# ask for no proxy: the server is on this machine
_OPENER = urllib.request.build_opener(urllib.request.ProxyHandler({}))


def free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


def port_taken(port: int) -> bool:
    with socket.socket() as s:
        s.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            s.bind(("127.0.0.1", port))
        except OSError:
            return True
    return False


def kind_of(path: Path) -> str:
    """"modern" (a checkout) or "pypi" (the packaged build)."""
    if (path / "main.py").is_file():
        return "modern"
    if (path / "comfy" / "cmd" / "main.py").is_file():
        return "pypi"
    raise Failure(f"There is no ComfyUI in {path}.")


def has_accelerator(python: str = sys.executable) -> bool:
    """Whether PyTorch of this environment can use a GPU. Asks PyTorch only where there may be one."""
    devices = ("/dev/nvidiactl", "/dev/nvidia0", "/dev/kfd", "/dev/dxg", "/dev/dri/renderD128")
    if sys.platform.startswith("linux") and not any(os.path.exists(d) for d in devices):
        return False
    code = ("import sys, torch; a = torch.cuda.is_available() or torch.backends.mps.is_available() or "
            "(hasattr(torch, 'xpu') and torch.xpu.is_available()); sys.exit(0 if a else 1)")
    try:
        return subprocess.run([python, "-c", code], stdin=subprocess.DEVNULL, capture_output=True, timeout=120).returncode == 0
    except (OSError, subprocess.TimeoutExpired):
        return False


class Server:
    """`with Server(path) as s:` s.url answers inside the block, and no process is left after it."""

    def __init__(self, path, python: str = sys.executable, port: int | None = None, cpu: bool | None = None, start_timeout: float = 300.0,
                 page: str | None = None, users: bool = False, link_pack: bool = True, arguments=(), environment: dict | None = None):
        self.path = Path(path).resolve()
        self.kind = kind_of(self.path)
        self.python, self.wish, self.cpu, self.start_timeout = python, port, cpu, start_timeout
        self.page, self.users, self.link_pack, self.arguments = page, users, link_pack, list(arguments)
        self.environment = environment or {}
        self.process: subprocess.Popen | None = None
        self.base: Path | None = None
        self.port = 0
        self.start_seconds = 0.0

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def log_path(self) -> Path:
        return self.base / "host.log"

    def log(self) -> str:
        return self.log_path.read_text(encoding="utf-8", errors="replace") if self.base and self.log_path.exists() else ""

    def tail(self, lines: int = 15) -> str:
        return tail(self.log_path, lines) if self.base else ""

    def alive(self) -> bool:
        return self.process is not None and self.process.poll() is None

    def death(self, patience: float = 2.0) -> str | None:
        """How the process ended ("exit code 1", "killed by signal 9"); None while it runs."""
        try:
            code = self.process.wait(timeout=patience)
        except subprocess.TimeoutExpired:
            return None
        return f"killed by signal {-code}" if code < 0 else f"exit code {code}"

    def __enter__(self) -> "Server":
        try:
            self.start()
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(self, *exc) -> None:
        self.stop()

    def start(self) -> None:
        self._make_base()
        if self.cpu is None:
            self.cpu = not has_accelerator(self.python)
        if self.wish is not None and port_taken(self.wish):
            raise Failure(f"Port {self.wish} is in use by another program. Choose another one with --port, or leave --port out: a free one is found. "
                          f"To use a ComfyUI that already runs there: --server 127.0.0.1:{self.wish}")
        for attempt in range(3):
            self.port = self.wish or free_port()
            if self._try() or self.wish is not None:
                break
        else:
            raise HostFailed("Three free ports in a row were taken by other programs before the host could use them. Try again, or choose one with --port.")

    def _make_base(self) -> None:
        try:
            self.base = Path(tempfile.mkdtemp(prefix="lodestar-"))
            for name in ("custom_nodes", "models", "input", "output", "temp", "user", "page"):
                (self.base / name).mkdir()
            (self.base / "page" / "index.html").write_text("<!doctype html><title>headless</title>", encoding="utf-8")
            templates = self.base / "packages" / "comfyui_workflow_templates"
            (templates / "templates").mkdir(parents=True)
            (templates / "templates" / "index.json").write_text("[]", encoding="utf-8")
            (templates / "__init__.py").write_text(_TEMPLATES, encoding="utf-8")
            if self.link_pack and (ROOT / "__init__.py").is_file():
                (self.base / "custom_nodes" / "lodestar").symlink_to(ROOT, target_is_directory=True)
        except OSError as e:
            raise Failure(f"No temporary folder could be made in {tempfile.gettempdir()}: {e.strerror or e}. Set TMPDIR to a folder with room.") from e

    def command(self) -> tuple[list[str], dict]:
        """The command line and environment of the host."""
        env = {k: v for k, v in os.environ.items() if k != "PYTHONPATH" and not (self.kind == "pypi" and k.startswith("COMFYUI_"))}
        env.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # threads that spin for work make a busy machine ten times slower
        env.update(PYTHONUNBUFFERED="1", PYTHONIOENCODING="utf-8", DO_NOT_TRACK="1", HF_HUB_DISABLE_TELEMETRY="1", **self.environment)
        common = ["--listen", "127.0.0.1", "--port", str(self.port)] + (["--cpu"] if self.cpu else [])
        if self.kind == "pypi":
            env["PYTHONPATH"] = str(self.path)
            models = self.base / "huggingface"      # its nodes that list downloaded models fail where there is no such folder
            models.mkdir(exist_ok=True)
            env.setdefault("HF_HUB_CACHE", str(models))
            entry = ["-c", "from comfy.cmd.main import entrypoint; entrypoint()"]
            return [self.python, *entry, *common, "--cwd", str(self.base), "--disable-known-models", *self.arguments], env
        try:
            known = (self.path / "comfy" / "cli_args.py").read_text(encoding="utf-8")
        except OSError as e:
            raise Failure(f"{self.path} is not a complete ComfyUI: comfy/cli_args.py cannot be read.") from e
        if '"--base-directory"' not in known:
            raise HostFailed(f"The ComfyUI in {self.path} is too old: it has no --base-directory (0.3.10 or newer is needed).")
        env["PYTHONPATH"] = str(self.base / "packages")
        options = ["--base-directory", str(self.base), "--front-end-root", self.page or str(self.base / "page")]
        for flag, value in (("--disable-auto-launch", None), ("--disable-api-nodes", None), ("--database-url", "sqlite:///:memory:")):
            if f'"{flag}"' in known:
                options += [flag] if value is None else [flag, value]
        if self.users:
            options += self._users_files()
        return [self.python, "main.py", *common, *options, *self.arguments], env

    def _users_files(self) -> list[str]:
        """The models and input files of the user's host stay in reach, read only."""
        options = []
        models = self.path / "models"
        if models.is_dir():
            rows = "\n".join(f"    {name}: {json.dumps(name)}" for name in _MODEL_FOLDERS if (models / name).is_dir())
            if rows:
                config = self.base / "models.yaml"
                config.write_text(f"user:\n    base_path: {json.dumps(str(models))}\n{rows}\n", encoding="utf-8")
                options += ["--extra-model-paths-config", str(config)]
        if (self.path / "input").is_dir():
            options += ["--input-directory", str(self.path / "input")]
        return options

    def _try(self) -> bool:
        """Start and wait until it answers; False if the port was snatched away."""
        command, env = self.command()
        begin = time.monotonic()
        try:
            with open(self.log_path, "wb") as log:
                self.process = spawn(command, cwd=str(self.path if self.kind == "modern" else self.base), env=env, stdout=log, stderr=subprocess.STDOUT)
        except OSError as e:
            raise HostFailed(f"The host could not be started: {e.strerror or e} ({command[0]}).") from e
        while True:
            if not self.alive():
                return self._explain_death()
            if self.answers():
                self.start_seconds = time.monotonic() - begin
                return True
            if time.monotonic() - begin > self.start_timeout:
                stop(self.process)
                raise HostFailed(f"The host in {self.path} did not answer within {self.start_timeout:g} s of its start and was ended. "
                                 f"--start-timeout gives it longer. The last lines of its log:\n{self.tail()}")
            time.sleep(0.25)

    def _explain_death(self) -> bool:
        how, text = self.death(), self.log()
        stop(self.process)
        if re.search(r"address already in use|EADDRINUSE|\[Errno (98|48|10048)\]|port \d+ is already in use", text, re.I):
            if self.wish is None:
                return False
            raise Failure(f"Port {self.port} is in use by another program. Choose another one with --port, or leave --port out.")
        if re.search(r"No space left on device|\[Errno 28\]", text):
            raise Failure(f"The host in {self.path} stopped for want of disk space. Free some, or set TMPDIR to another disk. "
                          f"The last lines of its log:\n{self.tail(5)}")
        raise HostFailed(f"The host in {self.path} ended at its start ({how}). The last lines of its log:\n{self.tail()}")

    def answers(self) -> bool:
        try:
            with _OPENER.open(self.url + "/system_stats", timeout=5) as reply:
                return reply.status == 200
        except OSError:
            return False

    def stop(self) -> None:
        if self.process is not None:
            stop(self.process)
        if self.base is not None:
            shutil.rmtree(self.base, ignore_errors=True)
            self.base = None
