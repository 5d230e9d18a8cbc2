"""A headless Chromium for the tests of the page, watched for errors and requests; tests skip where there is none."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

FLAGS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--disable-dev-shm-usage",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--force-color-profile=srgb",
)


class Page:
    """One page, open."""

    def __init__(self, driver: Any) -> None:
        self.driver = driver

    def open(self, path: Path, wait: float = 60) -> None:
        """Open a file and wait until its charts are drawn."""
        from selenium.webdriver.support.ui import WebDriverWait

        self.driver.get(path.resolve().as_uri())
        WebDriverWait(self.driver, wait, 0.1).until(
            lambda driver: driver.execute_script("return document.documentElement.dataset.ready") == "yes"
        )

    def run(self, script: str, *args: Any) -> Any:
        """What a script returns."""
        return self.driver.execute_script(script, *args)

    def text(self, selector: str) -> str:
        """The text of the first element."""
        return self.run("return document.querySelector(arguments[0]).textContent", selector).strip()

    def mouse(self, kind: str, x: float, y: float) -> None:
        """A real mouse event, in page coordinates."""
        options = {"x": x, "y": y, "type": kind, "button": "none" if kind == "mouseMoved" else "left", "clickCount": 1}
        if kind == "mouseMoved" and getattr(self, "_pressed", False):
            options |= {"button": "left", "buttons": 1}
        self._pressed = kind == "mousePressed" or (kind == "mouseMoved" and getattr(self, "_pressed", False))
        self.driver.execute_cdp_cmd("Input.dispatchMouseEvent", options)

    def dark(self, dark: bool) -> None:
        """Prefer a colour scheme."""
        features = [{"name": "prefers-color-scheme", "value": "dark" if dark else "light"}]
        self.driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": features})

    def errors(self) -> list[str]:
        """Everything that the console has said since the last look, at any level."""
        return [f"{entry['level']}: {entry['message']}" for entry in self.driver.get_log("browser")]

    def requests(self) -> list[str]:
        """Addresses that the page asked for since the last look, other than itself and what it carries."""
        found = []
        for entry in self.driver.get_log("performance"):
            message = json.loads(entry["message"])["message"]
            if message["method"] == "Network.requestWillBeSent":
                address = message["params"]["request"]["url"]
                if not address.startswith(("file:", "data:", "blob:")):
                    found.append(address)
        return found


@contextmanager
def chromium(folder: Path, width: int = 1300, height: int = 1000) -> Iterator[Page]:
    """A browser with a profile of its own."""
    webdriver = pytest.importorskip("selenium.webdriver", reason="selenium is not installed")
    program, driver_program = shutil.which("chromium"), shutil.which("chromedriver")
    if program is None or driver_program is None:
        pytest.skip("no chromium and chromedriver here (Debian: apt-get install chromium chromium-driver)")
    options = webdriver.ChromeOptions()
    options.binary_location = program
    for flag in (*FLAGS, f"--user-data-dir={folder}", f"--window-size={width},{height}"):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    driver = webdriver.Chrome(options=options, service=webdriver.ChromeService(driver_program))
    try:
        driver.get("about:blank")
        driver.get_log("performance")  # the new tab's own
        yield Page(driver)
    finally:
        driver.quit()
