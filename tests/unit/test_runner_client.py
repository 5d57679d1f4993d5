"""The client against a small server that speaks ComfyUI's protocol and misbehaves on demand."""

from __future__ import annotations

import asyncio
import builtins
import json
import threading
import time

import pytest
from lodestar.demo import runner_client
from lodestar.demo.runner_client import Client, address, files_of, texts_of, write_new
from lodestar.demo.runner_errors import ExecutionFailed, Failure, ServerGone, TimedOut, WorkflowError
from lodestar.demo.runner_progress import Silent

web = pytest.importorskip("aiohttp.web")

GRAPH = {"1": {"class_type": "Make", "inputs": {}}, "2": {"class_type": "SaveImage", "inputs": {"images": ["1", 0]}}}
OUTPUTS = {"2": {"images": [{"filename": "a.png", "subfolder": "", "type": "output"}]}}
ERROR = {"node_id": "1", "node_type": "Make", "exception_message": "bad size\n", "exception_type": "builtins.ValueError", "traceback": ["File x, line 1\n", "y\n"]}


class FakeComfy:
    """behaviour: ok, error, interrupted, hang, drop (closes the socket once), silent (no events), late (history comes late), refuse, partly"""

    def __init__(self, behaviour: str):
        self.behaviour, self.history, self.sockets, self.calls = behaviour, {}, {}, []
        self.base, self.task = "", None

    async def socket(self, request):
        ws = web.WebSocketResponse()
        await ws.prepare(request)
        self.sockets[request.query["clientId"]] = ws
        await ws.send_json({"type": "status", "data": {"status": {}}})
        await ws.send_bytes(b"\0\0\0\1preview")
        async for _ in ws:
            pass
        return ws

    async def prompt(self, request):
        data = await request.json()
        if self.behaviour == "refuse":
            return web.json_response({"error": {"message": "Prompt outputs failed validation"}, "node_errors": {"1": {"class_type": "Make", "errors": [
                {"message": "Required input is missing", "details": "size", "extra_info": {"input_name": "size"}}]}}}, status=400)
        self.task = asyncio.create_task(self.work("p", data["client_id"]))
        return web.json_response({"prompt_id": "p", "node_errors": {"1": {"class_type": "Make", "errors": [{"message": "no", "details": ""}]}}
                                  if self.behaviour == "partly" else {}})

    async def work(self, prompt_id, client):
        async def send(kind, **data):
            if self.behaviour != "silent":
                await self.sockets[client].send_json({"type": kind, "data": {"prompt_id": prompt_id, **data}})

        await asyncio.sleep(0.02)
        await send("execution_start")
        await send("executing", node="1", prompt_id="somebody-elses")
        await send("executing", node="1")
        for i in range(4):
            await send("progress", node="1", value=i + 1, max=4)
        if self.behaviour == "hang":
            await asyncio.sleep(60)
        if self.behaviour == "drop":
            await self.sockets[client].close()
            await asyncio.sleep(0.3)
        messages, outputs = [], OUTPUTS
        if self.behaviour == "error":
            messages, outputs = [["execution_error", ERROR]], {}
            await send("execution_error", **ERROR)
        if self.behaviour == "interrupted":
            messages, outputs = [["execution_interrupted", {"node_id": "1"}]], {}
            await send("execution_interrupted", node_id="1")
        if self.behaviour == "late":
            await send("execution_success")
            await asyncio.sleep(0.4)
        self.history[prompt_id] = {"outputs": outputs, "status": {"status_str": "success" if outputs else "error", "messages": messages}}
        if self.behaviour not in ("drop", "late", "error", "interrupted"):
            await send("executing", node=None)

    async def note(self, request):
        self.calls.append((request.path, await request.json()))
        return web.json_response({})

    def app(self):
        app = web.Application()
        app.add_routes([
            web.get("/ws", self.socket), web.post("/prompt", self.prompt), web.post("/queue", self.note), web.post("/interrupt", self.note),
            web.get("/history/{id}", lambda r: self.reply({k: v for k, v in self.history.items() if k == r.match_info["id"]})),
            web.get("/queue", lambda r: self.reply({"queue_running": [[0, "p", {}, {}, []]], "queue_pending": []})),
            web.get("/system_stats", lambda r: self.reply({"system": {"comfyui_version": "9.9"}})),
            web.get("/view", self.view),
        ])
        return app

    async def view(self, request):
        return web.Response(body=request.query["filename"].encode() + b"!")

    @staticmethod
    async def reply(value):
        return web.json_response(value)


@pytest.fixture
def comfy():
    stops = []

    def start(behaviour="ok"):
        fake, ready, loop = FakeComfy(behaviour), threading.Event(), asyncio.new_event_loop()

        async def serve():
            runner = web.AppRunner(fake.app(), shutdown_timeout=0.1)
            await runner.setup()
            site = web.TCPSite(runner, "127.0.0.1", 0)
            await site.start()
            fake.base = f"http://127.0.0.1:{site._server.sockets[0].getsockname()[1]}"
            fake.stop = asyncio.Event()
            ready.set()
            await fake.stop.wait()
            if fake.task is not None:
                fake.task.cancel()
            await runner.cleanup()

        thread = threading.Thread(target=lambda: loop.run_until_complete(serve()), daemon=True)
        thread.start()
        assert ready.wait(10)
        stops.append(lambda: (loop.call_soon_threadsafe(fake.stop.set), thread.join(5)))
        return fake

    yield start
    for stop in stops:
        stop()


class Record(Silent):
    def __init__(self):
        self.events = []

    def begin(self, title, nodes):
        self.events.append(("begin", len(nodes)))

    def node(self, node_id):
        self.events.append(("node", node_id))

    def step(self, node_id, value, maximum):
        self.events.append(("step", value))

    def end(self, ok=True):
        self.events.append(("end", ok))


@pytest.mark.parametrize("behaviour", ["ok", "late", "drop", "silent"])
def test_run(comfy, behaviour, monkeypatch):
    monkeypatch.setattr(runner_client, "_LISTEN", 0.3)
    record = Record()
    assert Client(comfy(behaviour).base).run(GRAPH, record, timeout=20) == OUTPUTS
    assert record.events[0] == ("begin", 2) and record.events[-1] == ("end", True)
    if behaviour == "ok":
        assert record.events.count(("node", "1")) == 1 and ("step", 4) in record.events


def test_run_without_aiohttp(comfy, monkeypatch):
    real = builtins.__import__
    monkeypatch.setattr(builtins, "__import__", lambda name, *a, **k: (_ for _ in ()).throw(ImportError(name)) if name == "aiohttp" else real(name, *a, **k))
    assert Client(comfy("silent").base).run(GRAPH, timeout=20) == OUTPUTS


def test_execution_error(comfy):
    with pytest.raises(ExecutionFailed, match=r"(?s)Make \(1\) failed: ValueError: bad size.*line 1") as e:
        Client(comfy("error").base).run(GRAPH)
    assert e.value.node_id == "1" and e.value.node_type == "Make"


def test_interrupted_elsewhere(comfy):
    with pytest.raises(ExecutionFailed, match="interrupted on the server, in Make"):
        Client(comfy("interrupted").base).run(GRAPH)


def test_timeout_interrupts_the_run(comfy):
    fake = comfy("hang")
    begin = time.monotonic()
    with pytest.raises(TimedOut, match="not done after 0.5 s"):
        Client(fake.base).run(GRAPH, timeout=0.5)
    assert time.monotonic() - begin < 10
    assert ("/queue", {"delete": ["p"]}) in fake.calls and ("/interrupt", {"prompt_id": "p"}) in fake.calls


def test_refused(comfy):
    with pytest.raises(WorkflowError, match=r"Make \(1\): Required input is missing \(size\)"):
        Client(comfy("refuse").base).run(GRAPH)


def test_half_accepted_is_refused(comfy):
    fake = comfy("partly")
    with pytest.raises(WorkflowError, match=r"Make \(1\): no"):
        Client(fake.base).run(GRAPH)
    assert ("/queue", {"delete": ["p"]}) in fake.calls


def test_dead_host(comfy, monkeypatch):
    monkeypatch.setattr(runner_client, "_LISTEN", 0.2)
    dead = iter([True, True, False])
    with pytest.raises(ServerGone, match="ended while it worked"):
        Client(comfy("hang").base, lambda: next(dead, False)).run(GRAPH, timeout=20)


def test_nobody_there():
    with pytest.raises(ServerGone, match="does not answer"):
        Client("http://127.0.0.1:9").version()
    with pytest.raises(ServerGone):
        Client("http://127.0.0.1:9").run(GRAPH)


def test_version_and_strangers(comfy):
    fake = comfy()
    assert Client(fake.base).version() == "9.9"
    with pytest.raises(ServerGone, match="ComfyUI"):
        Client(fake.base + "/view").version()


def test_download_never_overwrites(comfy, tmp_path):
    client = Client(comfy().base)
    first = client.download(OUTPUTS, tmp_path / "new")
    second = client.download(OUTPUTS, tmp_path / "new")
    assert [p.name for p in first + second] == ["a.png", "a-2.png"] and first[0].read_bytes() == b"a.png!"
    assert sorted(p.name for p in (tmp_path / "new").iterdir()) == ["a-2.png", "a.png"]


def test_previews_only_without_results(comfy, tmp_path):
    client = Client(comfy().base)
    temp = {"9": {"images": [{"filename": "t.png", "subfolder": "", "type": "temp"}]}}
    assert [p.name for p in client.download({**temp, **OUTPUTS}, tmp_path / "a")] == ["a.png"]
    assert [p.name for p in client.download(temp, tmp_path / "b")] == ["t.png"]


def test_names_cannot_leave_the_folder(comfy, tmp_path):
    client = Client(comfy().base)
    paths = client.download({"2": {"images": [{"filename": "../../x.png", "subfolder": "", "type": "output"}]}}, tmp_path / "in")
    assert paths == [tmp_path / "in" / "x.png"]


def test_full_disk(tmp_path, monkeypatch):
    def full(self, data):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("pathlib.Path.write_bytes", full)
    with pytest.raises(Failure, match="No disk space left"):
        write_new(tmp_path / "a.png", b"x")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("text, base", [("127.0.0.1:8188", "http://127.0.0.1:8188"), ("http://x:1/", "http://x:1"), ("https://x.org/comfy/", "https://x.org/comfy"),
                                        ("[::1]:80", "http://[::1]:80")])
def test_address(text, base):
    assert address(text) == base


@pytest.mark.parametrize("text", ["", "localhost", "x:99999999", "x:", "ftp://x:1", "x:port"])
def test_no_address(text):
    with pytest.raises(Failure, match="no server address"):
        address(text)


def test_outputs():
    assert files_of({"images": [{"filename": "a"}], "animated": [True], "text": ["t"], "n": 3, "gifs": [{"filename": "b"}]}) == [{"filename": "a"}, {"filename": "b"}]
    assert texts_of({"text": ["t", 3], "images": [{}]}) == ["t", "3"]
    assert json.dumps(OUTPUTS)
