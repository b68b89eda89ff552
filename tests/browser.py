"""A headless Chromium that tests drive: the DevTools protocol over a pipe, so nothing listens and nothing is installed for it."""

import base64
import itertools
import json
import os
import select
import shutil
import subprocess
import sys
import tempfile
import time

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
FLAGS = (
    "--headless=new", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync", "--remote-debugging-pipe",
)  # fmt: skip
BECOME = """
import fcntl, os, sys
theirs, mine = (fcntl.fcntl(int(end), fcntl.F_DUPFD, 10) for end in sys.argv[1:3])
os.dup2(theirs, 3)
os.dup2(mine, 4)
os.execv(sys.argv[3], sys.argv[3:])
"""
"""Chromium reads what it is asked from 3 and answers on 4, whatever numbers the pipes have here."""


def executable() -> str | None:
    """Of a Chromium on this machine."""
    return next(filter(None, map(shutil.which, NAMES)), None)


class Browser:
    """One page of one browser; everything it said and asked for is in ``events``."""

    def __init__(self) -> None:
        name = executable()
        assert name is not None
        self.profile = tempfile.TemporaryDirectory(ignore_cleanup_errors=True)
        theirs, self.out = os.pipe()
        self.back, mine = os.pipe()
        words = [name, *FLAGS, f"--user-data-dir={self.profile.name}", "about:blank"]
        self.process = subprocess.Popen(
            [sys.executable, "-ISc", BECOME, str(theirs), str(mine), *words],
            pass_fds=(theirs, mine), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )  # fmt: skip
        os.close(theirs)
        os.close(mine)
        self.numbers, self.unread, self.events, self.session = itertools.count(1), b"", [], None
        page = self.send("Target.createTarget", url="about:blank")["targetId"]
        self.session = self.send("Target.attachToTarget", targetId=page, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Network", "Log"):
            self.send(f"{domain}.enable")

    def send(self, method: str, **parameters):
        """Ask for something, and wait for the answer."""
        number = next(self.numbers)
        asked = {"id": number, "method": method, "params": parameters}
        asked |= {"sessionId": self.session} if self.session else {}
        os.write(self.out, json.dumps(asked).encode() + b"\0")
        while True:
            said = self._read()
            if said.get("id") == number:
                assert "error" not in said, (method, said["error"])
                return said["result"]
            self.events.append(said)

    def _read(self, within_s: float = 60.0):
        until = time.monotonic() + within_s
        while b"\0" not in self.unread:
            ready, _, _ = select.select([self.back], [], [], max(0.0, until - time.monotonic()))
            assert ready, "Chromium says nothing"
            got = os.read(self.back, 1 << 20)
            assert got, "Chromium has ended"
            self.unread += got
        first, self.unread = self.unread.split(b"\0", 1)
        return json.loads(first)

    def open(self, address: str, *, width: int = 1200, height: int = 900, dark: bool = False) -> None:
        """Load a page and wait until it has drawn its timeline, if it has one."""
        self.events.clear()
        self.send(
            "Emulation.setDeviceMetricsOverride",
            width=width,
            height=height,
            deviceScaleFactor=1,
            mobile=False,
        )
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.send("Emulation.setEmulatedMedia", features=[scheme])
        self.send("Page.navigate", url=address)
        while not any(event.get("method") == "Page.loadEventFired" for event in self.events):
            self.events.append(self._read())
        self.wait("!data.timelines?.length || document.querySelector('canvas')?.dataset.from !== undefined")

    def run(self, script: str):
        """The value of an expression."""
        found = self.send("Runtime.evaluate", expression=script, awaitPromise=True, returnByValue=True)
        assert "exceptionDetails" not in found, found["exceptionDetails"]
        return found["result"].get("value")

    def wait(self, script: str, within_s: float = 20.0) -> None:
        """Until an expression is true."""
        until = time.monotonic() + within_s
        while not self.run(script):
            assert time.monotonic() < until, script
            time.sleep(0.05)

    def press(self, key: str) -> None:
        """A key."""
        text = {"text": key} if len(key) == 1 else {}
        self.send("Input.dispatchKeyEvent", type="keyDown", key=key, **text)
        self.send("Input.dispatchKeyEvent", type="keyUp", key=key)

    def mouse(self, kind: str, x: float, y: float, **more) -> None:
        """A movement, a button or the wheel."""
        self.send("Input.dispatchMouseEvent", type=kind, x=x, y=y, **more)

    def complaints(self) -> list:
        """Errors and warnings on the console, and every request that is not for the file itself."""
        self.run("1")  # what comes before its answer has been said
        found = []
        for event in self.events:
            method, said = event.get("method"), event.get("params", {})
            if method == "Runtime.exceptionThrown":
                found.append(said["exceptionDetails"])
            elif method == "Runtime.consoleAPICalled" and said["type"] in ("error", "warning", "assert"):
                found.append(said)
            elif method == "Log.entryAdded" and said["entry"]["level"] in ("error", "warning"):
                found.append(said["entry"])
            elif method == "Network.requestWillBeSent" and not said["request"]["url"].startswith(
                ("file:", "data:")
            ):
                found.append(said["request"]["url"])
        return found

    def requests(self) -> list[str]:
        """Addresses of all requests but ``data:`` ones."""
        asked = (event for event in self.events if event.get("method") == "Network.requestWillBeSent")
        addresses = [event["params"]["request"]["url"] for event in asked]
        return [address for address in addresses if not address.startswith("data:")]

    def picture(self, path) -> None:
        """The whole page as PNG."""
        wide, high = self.run("[innerWidth, document.documentElement.scrollHeight]")
        clip = {"x": 0, "y": 0, "width": wide, "height": high, "scale": 1}
        taken = self.send("Page.captureScreenshot", captureBeyondViewport=True, clip=clip)
        path.write_bytes(base64.b64decode(taken["data"]))

    def close(self) -> None:
        """End it."""
        self.session = None
        self.send("Browser.close")
        self.process.wait(20)
        os.close(self.out)
        os.close(self.back)
        self.profile.cleanup()
