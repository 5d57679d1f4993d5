"""Talks to a ComfyUI server: queue a workflow, follow it, fetch what it made.

Plain HTTP through the standard library; the websocket for progress through aiohttp, which every ComfyUI environment
has. Without aiohttp the run is followed by asking the history, with less to see but the same result."""

from __future__ import annotations

import asyncio
import http.client
import json
import mimetypes
import os
import time
import urllib.error
import urllib.parse
import urllib.request
import uuid
from pathlib import Path

from .runner_errors import ExecutionFailed, Failure, ServerGone, TimedOut, WorkflowError, disk
from .runner_progress import Silent
from .runner_workflow import describe, render_validation

_LISTEN = 15.0  # seconds without a message until we look whether all is well


def address(server: str) -> str:
    """HOST:PORT or a URL, as a base URL without a slash at its end."""
    text = server.strip()
    if "://" not in text:
        text = "http://" + text
    parts = urllib.parse.urlsplit(text)
    try:
        port = parts.port
    except ValueError:
        port = None
    if parts.scheme not in ("http", "https") or not parts.hostname or (port is None and parts.netloc.endswith(":")) or "://" not in server and port is None:
        raise Failure(f"'{server}' is no server address: give HOST:PORT (for example 127.0.0.1:8188) or a URL.")
    return f"{parts.scheme}://{parts.netloc}{parts.path.rstrip('/')}"


class Client:
    """One server, one client id. `alive` says whether the process behind it still runs (True where unknown)."""

    def __init__(self, base: str, alive=lambda: True):
        self.base, self.alive = base, alive
        self.id = uuid.uuid4().hex
        local = urllib.parse.urlsplit(base).hostname in ("127.0.0.1", "localhost", "::1")
        self._opener = urllib.request.build_opener(*([urllib.request.ProxyHandler({})] if local else []))
        self._info: dict | None = None

    # --- plain HTTP ------------------------------------------------------------------------------------------------

    def request(self, path: str, data: bytes | None = None, headers: dict | None = None, timeout: float = 60.0) -> bytes:
        """The answer's bytes. HTTPError passes through; a server that is gone is a ServerGone."""
        request = urllib.request.Request(self.base + path, data=data, headers=headers or {})
        try:
            with self._opener.open(request, timeout=timeout) as reply:
                return reply.read()
        except urllib.error.HTTPError:
            raise
        except (OSError, http.client.HTTPException) as e:
            reason = getattr(e, "reason", None) or e
            raise ServerGone(f"The server at {self.base} does not answer ({reason}).") from e

    def get(self, path: str, timeout: float = 60.0):
        try:
            return json.loads(self.request(path, timeout=timeout))
        except urllib.error.HTTPError as e:
            raise ServerGone(f"{self.base}{path} answers {e.code}: is this a ComfyUI server?") from e
        except ValueError as e:
            raise ServerGone(f"{self.base}{path} does not answer in JSON: is this a ComfyUI server?") from e

    def post(self, path: str, value) -> bytes:
        return self.request(path, json.dumps(value).encode(), {"Content-Type": "application/json"})

    def version(self) -> str:
        """The version the server gives of itself ("" if it gives none), and proof that it is a ComfyUI."""
        stats = self.get("/system_stats", timeout=10.0)
        if not isinstance(stats, dict) or "system" not in stats:
            raise ServerGone(f"{self.base} answers, but not like a ComfyUI server.")
        return str(stats["system"].get("comfyui_version") or "")

    def object_info(self) -> dict:
        """Every node class of the server with its inputs."""
        if self._info is None:
            self._info = self.get("/object_info", timeout=120.0)
        return self._info

    def upload(self, path: Path) -> str:
        """Send an image to the server's input folder; the name it has there."""
        boundary = uuid.uuid4().hex
        kind = mimetypes.guess_type(path.name)[0] or "application/octet-stream"
        name = path.name.replace('"', "")
        body = (f'--{boundary}\r\nContent-Disposition: form-data; name="image"; filename="{name}"\r\nContent-Type: {kind}\r\n\r\n').encode()
        body += path.read_bytes() + f"\r\n--{boundary}--\r\n".encode()
        answer = json.loads(self.request("/upload/image", body, {"Content-Type": f"multipart/form-data; boundary={boundary}"}))
        return "/".join(p for p in (answer.get("subfolder"), answer["name"]) if p)

    # --- one run ---------------------------------------------------------------------------------------------------

    def queue(self, workflow: dict) -> str:
        """Queue it; its prompt id. What the server objects to is a WorkflowError."""
        try:
            answer = json.loads(self.post("/prompt", {"prompt": workflow, "client_id": self.id}))
        except urllib.error.HTTPError as e:
            text = e.read().decode("utf-8", "replace")
            try:
                refusal = json.loads(text)
            except ValueError:
                refusal = {"error": {"message": text or e.reason}}
            raise WorkflowError(render_validation(refusal, workflow)) from e
        if answer.get("node_errors"):  # part of the outputs would run; half a result is no result
            self.cancel(answer["prompt_id"])
            raise WorkflowError(render_validation(answer, workflow))
        return answer["prompt_id"]

    def cancel(self, prompt_id: str) -> None:
        """Take our prompt out of the queue, or interrupt it if it is the one at work. Never raises."""
        try:
            self.post("/queue", {"delete": [prompt_id]})
            running = json.loads(self.request("/queue", timeout=5.0)).get("queue_running", [])
            if any(prompt_id in item[:2] for item in running if isinstance(item, list)):
                self.post("/interrupt", {"prompt_id": prompt_id})
        except (Failure, OSError, ValueError, AttributeError):
            pass

    def run(self, workflow: dict, progress: Silent | None = None, timeout: float | None = None, title: str = "run") -> dict:
        """Queue, follow to the end, and return {node id: its outputs}."""
        progress = progress or Silent()
        try:
            import aiohttp  # noqa: F401

            follow = self._follow_socket
        except ImportError:
            follow = self._follow_history
        return asyncio.run(self._run(workflow, progress, timeout, title, follow))

    async def _run(self, workflow, progress, timeout, title, follow) -> dict:
        deadline = None if timeout is None else time.monotonic() + timeout
        state: dict = {"id": None}
        ok = False
        try:
            await follow(workflow, progress, deadline, title, state)
            outputs = await self._result(state["id"], workflow)
            ok = True
            return outputs
        except BaseException as e:
            if state["id"] is not None and not isinstance(e, (ExecutionFailed, ServerGone)):
                self.cancel(state["id"])
            if isinstance(e, TimedOut):
                raise TimedOut(f"The workflow was not done after {timeout:g} s (--timeout) and was interrupted.") from e
            raise
        finally:
            progress.end(ok)

    def _queue(self, workflow, progress, title, state) -> None:
        state["id"] = self.queue(workflow)
        progress.begin(title, {i: describe(i, workflow) for i in workflow})

    async def _follow_socket(self, workflow, progress, deadline, title, state) -> None:
        import aiohttp

        url = "ws" + self.base[4:] + "/ws?clientId=" + self.id
        tries = 0
        async with aiohttp.ClientSession() as session:
            while True:
                try:
                    async with session.ws_connect(url, max_msg_size=0) as socket:
                        if state["id"] is None:
                            self._queue(workflow, progress, title, state)
                        tries = 0
                        if await self._listen(socket, progress, deadline, state):
                            return
                except aiohttp.ClientError as e:
                    if tries >= 3:
                        raise ServerGone(f"The websocket of {self.base} does not open ({e}).") from e
                # the connection was lost: is the server still there, is the run perhaps over?
                if not self.alive():
                    raise ServerGone("The host ended while it worked on the workflow.")
                if state["id"] is not None and self._entry(state["id"]) is not None:
                    return
                tries += 1
                await asyncio.sleep(min(0.5 * tries, 2.0))

    async def _listen(self, socket, progress, deadline, state) -> bool:
        """Messages until the run is over (True) or the connection is (False)."""
        import aiohttp

        while True:
            left = _LISTEN if deadline is None else deadline - time.monotonic()
            if left <= 0:
                raise TimedOut("timeout")
            try:
                message = await socket.receive(timeout=min(left, _LISTEN))
            except asyncio.TimeoutError:
                if not self.alive():
                    return False
                if self._entry(state["id"]) is not None:
                    return True
                continue
            if message.type in (aiohttp.WSMsgType.CLOSE, aiohttp.WSMsgType.CLOSING, aiohttp.WSMsgType.CLOSED, aiohttp.WSMsgType.ERROR):
                return False
            if message.type is aiohttp.WSMsgType.TEXT and self._message(json.loads(message.data), progress, state["id"]):
                return True

    @staticmethod
    def _message(message: dict, progress, prompt_id: str) -> bool:
        """One event; True when the run is over."""
        kind, data = message.get("type"), message.get("data") or {}
        if data.get("prompt_id", prompt_id) != prompt_id:
            return False
        if kind == "execution_cached":
            progress.cached(data.get("nodes", []))
        elif kind == "executing":
            progress.node(data.get("node"))
            return data.get("node") is None and data.get("prompt_id") == prompt_id
        elif kind == "progress":
            progress.step(str(data.get("node") or ""), data.get("value", 0), data.get("max", 0))
        return kind in ("execution_success", "execution_error", "execution_interrupted") and data.get("prompt_id") == prompt_id

    async def _follow_history(self, workflow, progress, deadline, title, state) -> None:
        self._queue(workflow, progress, title, state)
        while self._entry(state["id"]) is None:
            if deadline is not None and time.monotonic() > deadline:
                raise TimedOut("timeout")
            await asyncio.sleep(1.0)

    def _entry(self, prompt_id: str) -> dict | None:
        """The finished run as the server's history keeps it, or None while it is not finished."""
        return self.get(f"/history/{prompt_id}").get(prompt_id)

    async def _result(self, prompt_id: str, workflow: dict) -> dict:
        for _ in range(100):  # the last event comes a moment before the history has the run
            entry = self._entry(prompt_id)
            if entry is not None:
                break
            if not self.alive():
                raise ServerGone("The host ended while it worked on the workflow.")
            await asyncio.sleep(0.1)
        else:
            raise ServerGone(f"The server at {self.base} does not say how the run ended.")
        status = entry.get("status") or {}
        for event, data in (m for m in status.get("messages", []) if isinstance(m, (list, tuple)) and len(m) == 2):
            if event == "execution_error":
                raise _execution_error(data, workflow)
            if event == "execution_interrupted":
                raise ExecutionFailed(f"The run was interrupted on the server, in {describe(str(data.get('node_id')), workflow)}.")
        if status.get("status_str") == "error":
            raise ExecutionFailed("The server reports that the run failed, without saying where. Its log has more.")
        return entry.get("outputs") or {}

    # --- results ---------------------------------------------------------------------------------------------------

    def fetch(self, item: dict) -> bytes:
        """The bytes of one file named in an output."""
        query = urllib.parse.urlencode({k: item.get(k, "") for k in ("filename", "subfolder", "type")})
        try:
            return self.request("/view?" + query, timeout=300.0)
        except urllib.error.HTTPError as e:
            raise ServerGone(f"The server does not hand out its result {item.get('filename')} ({e.code}).") from e

    def download(self, outputs: dict, folder: Path) -> list[Path]:
        """Write every file of the outputs into the folder, never over another file. Previews only if there is nothing else."""
        found = [item for node in outputs.values() for item in files_of(node)]
        kept = [item for item in found if item.get("type") != "temp"] or found
        return [write_new(folder / os.path.basename(item["filename"]), self.fetch(item)) for item in kept]


def files_of(output: dict) -> list[dict]:
    """The files among one node's outputs (images, audio, video, whatever has a file name)."""
    return [item for values in output.values() if isinstance(values, list) for item in values if isinstance(item, dict) and item.get("filename")]


def texts_of(output: dict) -> list[str]:
    """The texts among one node's outputs."""
    return [str(t) for key in ("text", "string") for t in (output.get(key) or []) if isinstance(t, (str, int, float))]


def write_new(path: Path, data: bytes) -> Path:
    """Write under this name, or the next free one; all or nothing."""
    target, n = path, 2
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        while target.exists():
            target, n = path.with_name(f"{path.stem}-{n}{path.suffix}"), n + 1
        part = target.with_name(target.name + ".part")
        try:
            part.write_bytes(data)
            part.replace(target)
        finally:
            part.unlink(missing_ok=True)
    except OSError as e:
        raise disk(e, path.parent) from e
    return target


def _execution_error(data: dict, workflow: dict) -> ExecutionFailed:
    node_id, kind = str(data.get("node_id")), str(data.get("node_type"))
    message = str(data.get("exception_message") or "").strip() or "no message"
    error = str(data.get("exception_type") or "an error").rsplit(".", 1)[-1]
    trace = "".join(data.get("traceback") or [])
    text = f"{describe(node_id, workflow, kind)} failed: {error}: {message}"
    if trace:
        text += "\nWhere: " + "\n".join(trace.strip().splitlines()[-6:])
    return ExecutionFailed(text, node_id, kind, trace)
