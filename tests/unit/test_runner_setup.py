"""Set-up: finding hosts, deciding what to install, and failures in one paragraph. Nothing is downloaded here."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
sys.path.append(str(ROOT / "scripts"))
import _envs  # noqa: E402
import _hosts  # noqa: E402
import _main  # noqa: E402
import _process  # noqa: E402

sys.path.remove(str(ROOT / "scripts"))


def modern(path: Path, version: str) -> Path:
    (path / "comfy").mkdir(parents=True)
    for name in ("main.py", "nodes.py"):
        (path / name).write_text("")
    (path / "comfyui_version.py").write_text(f'__version__ = "{version}"\n')
    (path / "requirements.txt").write_text("comfyui-frontend-package==1.2.3\ncomfyui_workflow_templates==9\ntorch\n# note\nnumpy>=1 # here\n\n")
    return path


def packaged(path: Path) -> Path:
    (path / "comfy" / "cmd").mkdir(parents=True)
    (path / "comfy" / "cmd" / "main.py").write_text("")
    (path / "comfyui-0.0.1.dist-info").mkdir()
    return path


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("LODESTAR_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("COMFYUI_PATH", raising=False)
    monkeypatch.setattr(_hosts, "ROOT", str(tmp_path / "lodestar"))
    return _hosts.cache()


def test_cache_folder(monkeypatch, tmp_path):
    assert _hosts.cache() == tmp_path / "cache"
    monkeypatch.delenv("LODESTAR_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert _hosts.cache() == tmp_path / "xdg" / "lodestar"
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("LODESTAR_CACHE", str(tmp_path / "file" / "below"))
    with pytest.raises(_process.Failure, match="LODESTAR_CACHE"):
        _hosts.cache()


def test_what_hosts_are_asked(tmp_path):
    hosts = [_hosts.inspect(modern(tmp_path / v, v), "cache") for v in ("0.29.0", "0.3.64", "0.8.0", "0.10.1")]
    hosts.append(_hosts.inspect(packaged(tmp_path / "p"), "PyPI"))
    assert [_hosts.place(h, hosts) for h in hosts] == ["newest", "oldest", "between", "between", "oldest"]
    assert _hosts.place(hosts[-1], hosts[-1:]) == "newest"
    mine = _hosts.inspect(modern(tmp_path / "mine", "0.9.0"), "COMFYUI_PATH")
    assert _hosts.place(mine, [*hosts, mine]) == "newest"


def test_order_of_hosts(cache, tmp_path, monkeypatch):
    for version in ("0.3.64", "0.29.0", "0.8.0"):
        modern(cache / "hosts" / f"comfyui-{version}", version)
    packaged(cache / "hosts" / "comfyui-0.0.1")
    (cache / "hosts" / "comfyui-broken").mkdir()
    monkeypatch.setenv("COMFYUI_PATH", str(modern(tmp_path / "mine", "0.9.9")))
    around = modern(tmp_path / "around", "0.7.0")
    monkeypatch.setattr(_hosts, "ROOT", str(around / "custom_nodes" / "lodestar"))
    assert [(h.version, h.origin, h.kind) for h in _hosts.present()] == [
        ("0.9.9", "COMFYUI_PATH", "modern"), ("0.7.0", "custom_nodes", "modern"), ("0.29.0", "cache", "modern"), ("0.8.0", "cache", "modern"),
        ("0.3.64", "cache", "modern"), ("0.0.1", "cache", "pypi")]
    assert [h.version for h in _hosts.for_demo()] == ["0.9.9"]  # the user's word is final
    assert len(_hosts.for_tests()[0]) == 6


def test_one_host_under_two_names_is_one(cache, monkeypatch):
    monkeypatch.setenv("COMFYUI_PATH", str(modern(cache / "hosts" / "comfyui-0.8.0", "0.8.0")))
    assert [h.origin for h in _hosts.present()] == ["COMFYUI_PATH"]


def test_comfyui_path_without_comfyui(monkeypatch, tmp_path):
    monkeypatch.setenv("COMFYUI_PATH", str(tmp_path))
    with pytest.raises(_process.Failure, match="COMFYUI_PATH is .* there is no ComfyUI"):
        _hosts.present()


def test_nothing_there_clone_then_pypi(monkeypatch, tmp_path):
    asked = []
    monkeypatch.setattr(_hosts, "clone", lambda: asked.append("clone"))
    monkeypatch.setattr(_hosts, "pypi", lambda: asked.append("pypi") or _hosts.inspect(packaged(tmp_path / "p"), "PyPI"))
    assert [h.kind for h in _hosts.for_demo()] == ["pypi"] and asked == ["clone", "pypi"]


def test_tests_go_on_without_what_cannot_be_had(cache, monkeypatch):
    def fail():
        raise _process.Failure("No network")

    modern(cache / "hosts" / "comfyui-0.8.0", "0.8.0")
    monkeypatch.setattr(_hosts, "pypi", fail)
    found, missing = _hosts.for_tests()
    assert [h.version for h in found] == ["0.8.0"] and missing == [("ComfyUI 0.0.1 (PyPI)", "No network")]


def test_clone_gives_up_in_time(cache, monkeypatch):
    """A git that hangs, asks for a password, or fails ends in None, and leaves no half a host."""
    folder = cache / "bin"
    folder.mkdir()
    for script in ("#!/bin/sh\nsleep 60\n", "#!/bin/sh\nexit 128\n"):
        (folder / "git").write_text(script)
        (folder / "git").chmod(0o755)
        monkeypatch.setenv("PATH", str(folder) + os.pathsep + os.environ["PATH"])
        monkeypatch.setattr(_hosts, "CLONE_LIMIT", 1.0)
        begin = time.monotonic()
        assert _hosts.clone() is None and time.monotonic() - begin < 10
        assert list((cache / "hosts").iterdir()) == []


def test_clone_takes_the_pinned_release(cache, monkeypatch, tmp_path):
    """From a repository with several releases: the pinned one, shallow; the second time nothing is fetched."""
    source = modern(tmp_path / "source", "0.1.0")

    def git(*arguments):
        subprocess.run(["git", "-c", "user.name=a", "-c", "user.email=a@b", *arguments], cwd=source, check=True, capture_output=True)

    git("init", "-q")
    (source / "comfy" / "x.py").write_text("")
    for version in ("0.1.0", _hosts.RELEASE, "99.0.0"):
        (source / "comfyui_version.py").write_text(f'__version__ = "{version}"\n')
        git("add", "-A")
        git("commit", "-q", "-m", version)
        git("tag", f"v{version}")
    monkeypatch.setattr(_hosts, "REPOSITORY", source.as_uri())
    host = _hosts.clone()
    assert (host.version, host.origin, host.kind) == (_hosts.RELEASE, "git", "modern")
    assert len(subprocess.run(["git", "-C", host.path, "log", "--oneline"], capture_output=True, text=True, check=True).stdout.splitlines()) == 1
    monkeypatch.setattr(_hosts, "REPOSITORY", "nowhere")
    assert _hosts.clone().path == host.path


def test_wanted_packages(tmp_path):
    text = _envs.wanted(_hosts.inspect(modern(tmp_path / "m", "1.0"), "cache"))
    assert "torch\nnumpy>=1\n" in text and "pytest" in text and "frontend" not in text and "templates" not in text
    assert "configargparse" in _envs.wanted(_hosts.inspect(packaged(tmp_path / "p"), "PyPI"))


def test_requirements_are_checked_inside_the_environment(tmp_path):
    def ok(*lines):
        file = tmp_path / "r.txt"
        file.write_text("\n".join(lines))
        return subprocess.run([sys.executable, "-c", _envs._CHECK, str(file)], capture_output=True).returncode == 0

    assert ok("pytest", "pytest>=8 # yes", "", "# c", "zebra>3; python_version < '3'")
    assert not ok("pytest<2") and not ok("no-such-package-at-all")


def test_stamped_environment_is_not_checked_again(cache):
    environment = cache / "venv"
    _envs.scripts(environment).mkdir(parents=True)
    _envs.python_of(environment).write_text("")
    stamp = _envs._stamp(environment, "torch\n")
    assert not _envs._met(environment, "torch\n")  # that is no Python
    stamp.parent.mkdir(exist_ok=True)
    stamp.write_text("torch\n")
    assert _envs._met(environment, "torch\n") and not _envs._met(environment, "torch\nnumpy\n")


@pytest.mark.parametrize("line, match", [
    ("OSError: [Errno 28] No space left on device", "No disk space"), ("Temporary failure in name resolution", "No network"),
    ("Max retries exceeded with url", "No network"), ("SyntaxError: zebra", "(?s)failed.*zebra"),
])
def test_pip_failures_in_words(tmp_path, line, match):
    log = tmp_path / "pip.log"
    log.write_text(f"Collecting x\n{line}\n")
    with pytest.raises(_process.Failure, match=match):
        raise _process.Failure(_envs.explain(log, "x"))


def test_room(tmp_path, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda p: type("U", (), {"free": 2_000_000_000})())
    with pytest.raises(_process.Failure, match="needs about 9 GB, .* has 2.0 GB left"):
        _hosts.need_room(tmp_path, 9, "x")


def test_tail_drops_redrawn_bars(tmp_path):
    (tmp_path / "l").write_text("\x1b[1ma\x1b[0m\n\n10%\r50%\r100% done\nb\n")
    assert _process.tail(tmp_path / "l") == "a\n100% done\nb" and _process.tail(tmp_path / "l", 1) == "b" and _process.tail(tmp_path / "none") == ""


def test_run_logged(tmp_path):
    log = tmp_path / "log"
    assert _process.run_logged("t", [sys.executable, "-c", "print('hello'); raise SystemExit(3)"], log) == 3
    assert _process.run_logged("t", ["sleep", "60"], log, limit=0.2) == 124
    assert "hello" in log.read_text()


def test_stop_ends_the_whole_family():
    process = _process.spawn(["sh", "-c", "trap '' TERM; sleep 60 & echo $!; wait; sleep 60"], stdout=subprocess.PIPE, text=True)
    child = int(process.stdout.readline())
    _process.stop(process, patience=0.3)
    assert process.returncode is not None
    time.sleep(0.2)
    assert not Path(f"/proc/{child}/cmdline").exists() or Path(f"/proc/{child}/cmdline").read_text() == ""


@pytest.mark.parametrize("sent, code", [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_signals_are_forwarded_and_tidied_up(tmp_path, sent, code):
    """The child gets the signal once, tidies up, and the caller ends with 128 + the signal; also where SIGINT was ignored at the start."""
    child = ("import signal, sys, time\n"
             f"def tidy(*a): open({str(tmp_path / 'tidy')!r}, 'a').write('x'); sys.exit(0)\n"
             "for s in (2, 15): signal.signal(s, tidy)\nprint('ready', flush=True); time.sleep(60)")
    parent = (f"import sys; sys.path.insert(0, {str(ROOT / 'scripts')!r}); import _process as p\n"
              "try:\n  with p.interruptible(): p.run_forwarding([sys.executable, '-c', sys.argv[1]])\n"
              "except KeyboardInterrupt as e: sys.exit(e.code)")
    process = subprocess.Popen([sys.executable, "-c", parent, child], stdout=subprocess.PIPE, text=True,
                               preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_IGN))
    assert process.stdout.readline() == "ready\n"
    process.send_signal(sent)
    assert process.wait(30) == code and (tmp_path / "tidy").read_text() == "x"


def _job(tmp_path, name, code):
    return name, [sys.executable, "-c", code], None, tmp_path / f"{name}.log"


def test_jobs_side_by_side(tmp_path, capsys):
    """Two at a time: a and b can only end together; c waits for one of them."""
    wait = "import pathlib,sys,time\nhere,other=map(pathlib.Path,sys.argv[1:]) if len(sys.argv)>1 else (None,None)\n"
    meet = wait + "here.touch()\nend=time.time()+30\nwhile not other.exists() and time.time()<end: time.sleep(0.02)\nprint('met')\nsys.exit(0 if other.exists() else 9)"
    jobs = [(n, [sys.executable, "-c", meet, str(tmp_path / n), str(tmp_path / o)], None, tmp_path / f"{n}.log") for n, o in (("a", "b"), ("b", "a"))]
    jobs.append(_job(tmp_path, "c", "import sys; print('three'); sys.exit(3)"))
    ended = {}
    _process.run_side_by_side(jobs, 2, ended.__setitem__)
    assert ended == {0: 0, 1: 0, 2: 3}
    assert [(tmp_path / f"{n}.log").read_text().strip() for n in "abc"] == ["met", "met", "three"]


def test_jobs_end_with_us(tmp_path):
    def fail(index, code):
        raise KeyboardInterrupt

    long = _job(tmp_path, "long", f"import os,pathlib,time; pathlib.Path({str(tmp_path / 'pid')!r}).write_text(str(os.getpid())); time.sleep(60)")
    short = _job(tmp_path, "short", f"import pathlib,time\nwhile not pathlib.Path({str(tmp_path / 'pid')!r}).exists(): time.sleep(0.02)\ntime.sleep(0.1)")
    with pytest.raises(KeyboardInterrupt):
        _process.run_side_by_side([long, short], 2, fail)
    with pytest.raises(ProcessLookupError):
        os.kill(int((tmp_path / "pid").read_text()), 0)


def test_tally(tmp_path):
    report = tmp_path / "r.xml"
    report.write_text('<testsuites><testsuite tests="10" failures="1" errors="1" skipped="3"/></testsuites>')
    tally = _main.Tally()
    assert tally.read(report, 1) == "5 passed, 2 failed, 3 skipped"
    assert tally.read(tmp_path / "none", 139) == "0 passed, 1 failed, 0 skipped"  # crashed
    assert tally.read(tmp_path / "none", 5) == "0 passed, 0 failed, 0 skipped"  # nothing selected
    assert (tally.passed, tally.failed, tally.skipped) == (5, 3, 3)


def test_arguments_of_the_test_script():
    here = os.path.relpath(__file__)
    unit, host = str(ROOT / "tests" / "unit"), str(ROOT / "tests" / "host")
    assert _main._split(["-k", "x", "-q"]) == (["-k", "x", "-q"], [unit], [host]) or (ROOT / "tests" / "browser").exists()
    assert _main._split([here + "::test_tally"]) == ([], [os.path.abspath(__file__) + "::test_tally"], None)
    assert _main._split([host]) == ([], None, [host])
    assert unit in _main._split([str(ROOT / "tests")])[1]
    halves = _main._shared_out([unit], 2)
    assert sorted(sum(halves, [])) == sorted(map(str, Path(unit).glob("test_*.py"))) and len(halves) == 2
    sizes = [sum(Path(f).stat().st_size for f in half) for half in halves]
    assert abs(sizes[0] - sizes[1]) < 0.05 * sum(sizes)
    assert _main._shared_out([unit], 1) == [[unit]] and _main._shared_out([here], 2) == [[here]] and _main._shared_out([unit, host], 2) == [[unit, host]]


def test_scripts_need_nothing_but_python():
    """The set-up must run before anything is installed: -I -S leaves the standard library."""
    code = f"import sys; sys.path.insert(0, {str(ROOT / 'scripts')!r}); sys.argv = ['x', 'demo', '--help']; import _main; _main.main()"
    done = subprocess.run([sys.executable, "-I", "-S", "-c", code], capture_output=True, text=True)
    assert done.returncode == 0 and "WORKFLOW.json" in done.stdout, done.stderr


@pytest.mark.parametrize("arguments, match", [
    (["nofile.json"], "There is no file nofile.json"), (["--set", "a.b=1"], "name the workflow's file"), (["--timeout", "-1"], "positive"),
    (["--server", "nope"], "no server address"), (["--out", __file__], "cannot be written"),
])
def test_wrong_arguments_end_before_anything_is_set_up(arguments, match, tmp_path):
    done = subprocess.run([sys.executable, "-S", str(ROOT / "scripts" / "_main.py"), "demo", *arguments], capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 1 and done.stderr.startswith("error: ") and match in done.stderr and "Traceback" not in done.stderr
    assert not (tmp_path / "cache" / "venv").exists()


def test_the_reference_is_fetched_once_and_may_be_missing(cache, monkeypatch):
    commands, codes = [], iter((1, 0))
    monkeypatch.setattr(_envs, "pip_python", lambda: "python")

    def run(title, command, log):
        commands.append([str(c) for c in command])
        command[command.index("--target") + 1].mkdir(parents=True)      # pip leaves a folder behind where it fails, too
        return next(codes)
    monkeypatch.setattr(_envs, "run_logged", run)
    assert _envs.reference() is None
    found = _envs.reference()
    assert found == _envs.reference() and len(commands) == 2 and Path(found).parent.name == "reference"
    assert re.fullmatch(r"diffusers==[\d.]+", commands[1][-1]) and "--no-deps" in commands[1]
