"""Our own host: start, failure to start, port conflicts, and that nothing is left behind. The hosts here are small scripts."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time

import pytest
from lodestar.demo import runner_server
from lodestar.demo.runner_errors import Failure, HostFailed
from lodestar.demo.runner_server import ROOT, Server

HEAD = """
import argparse, http.server, json, os, subprocess, sys, time
p = argparse.ArgumentParser()
for flag in ("--listen", "--port", "--base-directory", "--front-end-root", "--database-url", "--extra-model-paths-config", "--input-directory"):
    p.add_argument(flag)
p.add_argument("--cpu", action="store_true"); p.add_argument("--disable-auto-launch", action="store_true")
a = p.parse_args()
print("booting", flush=True)
"""
SERVE = HEAD + """
class H(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200); self.end_headers(); self.wfile.write(json.dumps({"system": {}, "argv": sys.argv}).encode())
    def log_message(self, *a): pass
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(300)"])
open(os.path.join(a.base_directory, "child"), "w").write(str(child.pid))
http.server.HTTPServer(("127.0.0.1", int(a.port)), H).serve_forever()
"""


@pytest.fixture
def fake(tmp_path):
    def make(code):
        (tmp_path / "comfy").mkdir(exist_ok=True)
        (tmp_path / "comfy" / "cli_args.py").write_text('"--base-directory" "--disable-auto-launch" "--database-url"', encoding="utf-8")
        (tmp_path / "main.py").write_text(code, encoding="utf-8")
        return tmp_path
    return make


def gone(pid: int) -> bool:
    for _ in range(50):
        try:
            os.kill(pid, 0)
            with open(f"/proc/{pid}/stat", encoding="utf-8") as f:
                if f.read().rsplit(")", 1)[1].split()[0] == "Z":
                    return True
        except (ProcessLookupError, FileNotFoundError):
            return True
        time.sleep(0.1)
    return False


def test_starts_and_leaves_nothing(fake):
    with Server(fake(SERVE), cpu=True) as s:
        assert s.answers() and s.alive()
        base, pid, child = s.base, s.process.pid, int((s.base / "child").read_text())
        assert (base / "custom_nodes" / "lodestar").exists() == (ROOT / "__init__.py").is_file()
    assert not base.exists() and gone(pid) and gone(child)
    assert (ROOT / "demo" / "runner.py").is_file()  # the link was removed, not what it points to


def test_nothing_is_written_into_the_host(fake):
    path = fake(SERVE)
    before = sorted(p.name for p in path.iterdir())
    with Server(path, cpu=True):
        pass
    assert sorted(p.name for p in path.iterdir()) == before


def test_death_at_start_shows_the_log(fake):
    with pytest.raises(HostFailed, match="(?s)exit code 3.*no module named zebra"):
        with Server(fake(HEAD + "print('no module named zebra'); sys.exit(3)"), cpu=True):
            pass


def test_hang_at_start(fake):
    s = Server(fake(HEAD + "time.sleep(300)"), cpu=True, start_timeout=1.5)
    with pytest.raises(HostFailed, match="(?s)did not answer within 1.5 s.*booting"):
        with s:
            pass
    assert gone(s.process.pid) and s.base is None


def test_port_given_and_taken(fake):
    with socket.socket() as busy:
        busy.bind(("127.0.0.1", 0))
        busy.listen()
        with pytest.raises(Failure, match="Port .* is in use.*--port") as e:
            with Server(fake(SERVE), cpu=True, port=busy.getsockname()[1]):
                pass
        assert not isinstance(e.value, HostFailed)


def test_snatched_port_is_replaced(fake, monkeypatch):
    with socket.socket() as busy:
        busy.bind(("127.0.0.1", 0))
        busy.listen()
        ports = [busy.getsockname()[1], runner_server.free_port()]
        monkeypatch.setattr(runner_server, "free_port", lambda: ports.pop(0))
        with Server(fake(SERVE), cpu=True) as s:
            assert ports == [] and s.answers()


def test_no_disk(fake):
    with pytest.raises(Failure, match="disk space"):
        with Server(fake(HEAD + "raise OSError(28, 'No space left on device')"), cpu=True):
            pass


def test_not_a_host(tmp_path):
    with pytest.raises(Failure, match="no ComfyUI"):
        Server(tmp_path)


def test_models_of_a_users_host_stay_in_reach(fake):
    path = fake(SERVE)
    (path / "models" / "checkpoints").mkdir(parents=True)
    (path / "input").mkdir()
    with Server(path, cpu=True, users=True) as s:
        text = (s.base / "models.yaml").read_text(encoding="utf-8")
        assert str(path / "models") in text and "checkpoints" in text
        assert "--input-directory" in s.command()[0]


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="only Linux ends orphans for us")
def test_ended_even_if_we_are_killed(fake, tmp_path):
    path = fake(SERVE)
    code = (f"import sys; sys.path.append({str(ROOT / 'scripts')!r}); import _alias; _alias.install(); from lodestar.demo.runner_server import Server; "
            f"s = Server({str(path)!r}, cpu=True); s.start(); print(s.process.pid, s.base, flush=True); import time; time.sleep(300)")
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    try:
        pid, base = process.stdout.readline().split()
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
    assert gone(int(pid))
    subprocess.run(["rm", "-rf", base], check=True)
