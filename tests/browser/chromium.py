"""A headless Chromium that is spoken to over its own debugging protocol, with what every ComfyUI environment has (aiohttp)."""
from __future__ import annotations

import asyncio
import base64
import itertools
import json
import shutil
import subprocess
import tempfile
import time

import aiohttp

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
PATIENCE = 120.0      # seconds for the page on a busy machine


def installed():
    """The browser's path, or None."""
    return next((path for path in map(shutil.which, NAMES) if path), None)


class Page:
    """`with Page(url) as p:` p.run(javascript) is the value of an expression (promises are awaited); p.said: the console's errors and warnings."""

    def __init__(self, url):
        self.url, self.said = url, []
        self.loop = asyncio.new_event_loop()
        self.numbers = itertools.count(1)

    def __enter__(self):
        self.folder = tempfile.mkdtemp(prefix="lodestar-browser-")
        command = [installed(), "--headless=new", "--no-sandbox", "--disable-gpu", "--remote-debugging-port=0", "--window-size=1600,1000",
                   "--disable-dev-shm-usage", f"--user-data-dir={self.folder}", self.url]
        self.log = open(f"{self.folder}/log.txt", "w+", encoding="utf-8")
        self.process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=self.log, stderr=subprocess.STDOUT)
        try:
            self.loop.run_until_complete(self._connect())
            self.command("Runtime.enable")
            self.command("Page.enable")
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *exc):
        for name in ("socket", "session"):
            if hasattr(self, name):
                self.loop.run_until_complete(getattr(self, name).close())
        self.loop.close()
        self.process.terminate()
        try:
            self.process.wait(20)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        self.log.close()
        shutil.rmtree(self.folder, ignore_errors=True)

    async def _connect(self):
        end = time.monotonic() + PATIENCE
        self.session = aiohttp.ClientSession()
        while time.monotonic() < end:
            if self.process.poll() is not None:
                self.log.seek(0)
                raise RuntimeError(f"the browser ended with {self.process.returncode}: {self.log.read()[-2000:]}")
            try:
                with open(f"{self.folder}/DevToolsActivePort", encoding="utf-8") as f:
                    port = int(f.readline())
                async with self.session.get(f"http://127.0.0.1:{port}/json") as reply:
                    pages = [t for t in json.loads(await reply.text()) if t["type"] == "page"]
                if pages:
                    self.socket = await self.session.ws_connect(pages[0]["webSocketDebuggerUrl"], max_msg_size=0)
                    return
            except (OSError, ValueError, aiohttp.ClientError):
                pass
            await asyncio.sleep(0.2)
        raise RuntimeError("the browser offers no page")

    def command(self, method, **params):
        return self.loop.run_until_complete(asyncio.wait_for(self._command(method, params), PATIENCE))

    async def _command(self, method, params):
        number = next(self.numbers)
        await self.socket.send_json({"id": number, "method": method, "params": params})
        while True:
            message = json.loads((await self.socket.receive()).data)
            if message.get("id") == number:
                if "error" in message:
                    raise RuntimeError(f"{method}: {message['error']}")
                return message["result"]
            if message.get("method") == "Runtime.consoleAPICalled" and message["params"]["type"] in ("error", "warning"):
                self.said.append(" ".join(str(a.get("value", a.get("description", ""))) for a in message["params"]["args"]))
            elif message.get("method") == "Runtime.exceptionThrown":
                details = message["params"]["exceptionDetails"]
                self.said.append(f"{details.get('text')} {details.get('exception', {}).get('description', '')} {details.get('url', '')}")

    def run(self, javascript):
        result = self.command("Runtime.evaluate", expression=javascript, awaitPromise=True, returnByValue=True)
        if "exceptionDetails" in result:
            raise RuntimeError(result["exceptionDetails"].get("exception", {}).get("description", result["exceptionDetails"]["text"]))
        return result["result"].get("value")

    def until(self, javascript, patience=PATIENCE):
        """Waits until an expression is true."""
        end = time.monotonic() + patience
        while not self.run(javascript):
            assert time.monotonic() < end, f"never true: {javascript}"
            time.sleep(0.3)

    def picture(self, path):
        with open(path, "wb") as f:
            f.write(base64.b64decode(self.command("Page.captureScreenshot", format="png")["data"]))
