"""A whole portal with the real engine, started as a user would, and a real browser in front of it."""

import json
import os
import re
import signal
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import requests
from playwright.sync_api import Browser, BrowserContext, Page, expect, sync_playwright

from portal.http.local import ask
from portal.settings import Settings
from tests.e2e.looks import AXE, Post
from tests.support.databases import ADMIN_PASSWORD, settings_for
from tests.support.hosts import clear, why_no_local_host
from tests.support.network import free_external
from tests.support.processes import portal_process
from tests.support.servers import answers, free_port, until

CHROMIUM = "/usr/bin/chromium"
START_S = 60
# What the browser and htmx print when the portal refuses something, which tests provoke.
REFUSAL = re.compile(r"status of 4\d\d|Status Error Code 4\d\d")
expect.set_options(timeout=15_000)


@dataclass(frozen=True)
class Running:
    """A portal that serves."""

    settings: Settings

    @property
    def url(self) -> str:
        """Where."""
        return f"http://127.0.0.1:{self.settings.portal_port}"

    def ready(self) -> dict[str, Any]:
        """What /ready says."""
        found: dict[str, Any] = json.loads(ask(self.settings, "/ready", timeout_s=5))
        return found


def serving(settings: Settings) -> Iterator[Running]:
    """`portal serve` for the length of a test."""
    with portal_process(settings, "serve"):
        until(lambda: answers(settings.portal_port), within_s=START_S, what="the portal answers")
        running = Running(settings)
        until(
            lambda: "compute" in running.ready()["checks"]["capabilities"], within_s=START_S, what="the worker has reported its engine", every_s=0.2
        )
        yield running


@pytest.fixture(scope="session")
def real(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    """With real guests, one for all tests: a process has one libvirt. Afterwards no guest runs, and no network is left."""
    if why := why_no_local_host():
        pytest.skip(f"no guests on this machine: {why}")
    data = tmp_path_factory.mktemp("e2e")
    settings = settings_for(
        data, portal_port=free_port(), metrics_port=free_port(), engine_compute="local", network_external_cidr=free_external(),
        reconcile_interval_s=2, metrics_interval_s=2, memory_reserved_mib=0, job_poll_ms=50, log_level="info",
    )  # fmt: skip
    yield from serving(settings)
    # In a thread of its own: the browser's event loop may go on in this one, and netlink wants one as well.
    with ThreadPoolExecutor(1) as apart:
        apart.submit(clear, data).result()


@pytest.fixture(scope="session")
def browser() -> Iterator[Browser]:
    """Debian's Chromium."""
    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox", "--disable-gpu"])
        yield chromium
        chromium.close()


@pytest.fixture
def open_context(browser: Browser, request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Callable[..., BrowserContext]]:
    """Makes browsers of their own; a page's errors fail the test, and where it fails there is a picture."""
    opened: list[BrowserContext] = []
    problems: list[str] = []

    def make(**options: object) -> BrowserContext:
        context = browser.new_context(**{"locale": "en-GB", "viewport": {"width": 1280, "height": 900}, **options})
        context.on("weberror", lambda error: problems.append(str(error.error)))
        context.on("console", lambda message: problems.append(message.text) if message.type == "error" and not REFUSAL.search(message.text) else None)
        opened.append(context)
        return context

    yield make
    for number, context in enumerate(opened):
        for page in context.pages:
            page.screenshot(path=tmp_path / f"last-{number}.png")
        context.close()
    assert problems == []


def sign_in(page: Page, portal: Running, username: str = "admin", password: str = ADMIN_PASSWORD) -> None:
    """Through the form, as people do."""
    page.goto(f"{portal.url}/login")
    page.get_by_label("User name or e-mail").fill(username)
    page.get_by_label("Password", exact=True).fill(password)
    page.get_by_role("button", name="Sign in").click()
    expect(page).to_have_url(f"{portal.url}/")
    # The address is there before the scripts are, and keys that are pressed between the two go nowhere.
    page.wait_for_load_state()


def interrupt(pid: int) -> None:
    """What Ctrl-C sends."""
    os.kill(pid, signal.SIGINT)


@pytest.fixture(scope="module")
def fake(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    """A portal whose machines are not real: only its pages matter here."""
    data = tmp_path_factory.mktemp("looks")
    settings = settings_for(data, portal_port=free_port(), metrics_port=free_port(), s3_port=free_port(), metrics_interval_s=1)
    yield from serving(settings)


@pytest.fixture
def post(fake: Running) -> Post:
    """`post(path, body)`: what the API answers to the administrator."""

    def send(path: str, body: dict[str, object], token: str = "") -> dict[str, str]:
        answer = requests.post(f"{fake.url}{path}", json=body, headers={"Authorization": f"Token {token}"} if token else {}, timeout=20)
        assert answer.ok, answer.text
        found: dict[str, str] = answer.json()
        return found

    token = send("/api-token-auth/", {"username": "admin", "password": ADMIN_PASSWORD})["token"]
    return lambda path, body: send(path, body, token)


@pytest.fixture
def screen(open_context: Callable[..., BrowserContext], theme: str, width: int) -> Callable[[], Page]:
    """Opens a browser of the size and theme that is looked at."""
    assert AXE.is_file(), "set-up installs axe-core"
    return lambda: open_context(color_scheme=theme, reduced_motion="reduce", viewport={"width": width, "height": 800}).new_page()
