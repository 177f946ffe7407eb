"""A new user's first day: sign in, create a machine, watch it boot, use it, stop it, terminate it, find every step in the audit log."""

import re
from collections.abc import Callable

import pytest
from playwright.sync_api import BrowserContext, Page, expect

from portal.http.local import ask
from tests.e2e.conftest import Running, sign_in

pytestmark = [pytest.mark.e2e, pytest.mark.vm]
BOOT_MS = 90_000


def create(page: Page, portal: Running, name: str) -> None:
    page.goto(f"{portal.url}/compute/instances/new")
    page.get_by_label("Name", exact=True).fill(name)
    page.get_by_role("radio", name=re.compile("t3.micro")).check()
    page.get_by_role("radio", name=re.compile("atonix-tiny")).check()
    expect(page.locator("#summary")).to_contain_text("0.0104")
    page.locator("#summary").get_by_role("button", name="Create instance").click()
    expect(page.get_by_role("heading", name=name, level=1)).to_be_visible()


def state_is(page: Page, word: str) -> None:
    expect(page.locator("#state")).to_have_text(word, timeout=BOOT_MS)


def act(page: Page, label: str, *, confirm: str = "") -> None:
    page.get_by_role("button", name="Actions").click()
    page.locator("#row-actions").get_by_role("link", name=label).click()
    dialog = page.get_by_role("dialog")
    if confirm:
        expect(dialog.get_by_role("button", name=re.compile(label))).to_be_enabled()
        dialog.get_by_label(re.compile("to confirm")).fill(confirm)
    dialog.get_by_role("button", name=re.compile(f"^{label}")).click()


def test_the_first_day(real: Running, open_context: Callable[..., BrowserContext]) -> None:
    page = open_context().new_page()
    sign_in(page, real)
    create(page, real, "first")
    state_is(page, "Running")
    instance_id = page.url.rsplit("/", 1)[-1]

    page.get_by_role("link", name="Console", exact=True).click()
    terminal = page.locator(".term")
    expect(terminal.locator("[data-status]")).to_have_text("Connected")
    expect(terminal.locator(".xterm-rows")).to_contain_text("#", timeout=BOOT_MS)
    terminal.locator(".xterm").click()
    page.keyboard.type("echo the-answer-is-$((6*7))\n")
    expect(terminal.locator(".xterm-rows")).to_contain_text("the-answer-is-42", timeout=BOOT_MS)

    terminal.get_by_role("button", name="Screen").click()
    expect(terminal.locator("[data-status]")).to_have_text("Connected")
    expect(terminal.locator("canvas")).to_be_visible()

    page.get_by_role("link", name="Metrics", exact=True).click()
    expect(page.get_by_role("img", name=re.compile("^CPU: used between"))).to_be_visible(timeout=30_000)

    page.goto(f"{real.url}/compute/instances/{instance_id}")
    act(page, "Stop")
    state_is(page, "Stopped")
    act(page, "Terminate", confirm="first")
    state_is(page, "Terminated")

    page.goto(f"{real.url}/audit?resource_id={instance_id}")
    actions = page.locator("tbody td.mono.md").all_inner_texts()
    told = [text.strip().removeprefix("compute.instance.") for text in reversed(actions)]
    assert [action for action in told if action != "console"] == [
        "create", "create.succeeded", "stop", "stop.succeeded", "terminate", "terminate.succeeded",
    ]  # fmt: skip
    assert "console" in told


def test_without_javascript(real: Running, open_context: Callable[..., BrowserContext]) -> None:
    page = open_context(java_script_enabled=False).new_page()
    sign_in(page, real)
    page.goto(f"{real.url}/compute/instances/new")
    page.get_by_label("Name", exact=True).fill("plain")
    page.get_by_role("radio", name=re.compile("t3.micro")).check()
    page.get_by_role("radio", name=re.compile("atonix-tiny")).check()
    page.get_by_role("button", name="Create instance").click()
    expect(page.get_by_role("heading", name="plain", level=1)).to_be_visible()
    url = page.url

    def wait_for(word: str) -> None:
        for _ in range(90):
            page.goto(url)
            if page.locator("#state").inner_text() == word:
                return
            page.wait_for_timeout(500)
        pytest.fail(f"not {word}, but {page.locator('#state').inner_text()}")

    wait_for("Running")
    page.goto(f"{url}/actions/terminate")
    page.get_by_label(re.compile("to confirm")).fill("another")
    page.get_by_role("button", name="Terminate instance").click()
    expect(page.get_by_text("Type plain to confirm.")).to_be_visible()
    page.get_by_label(re.compile("to confirm")).fill("plain")
    page.get_by_role("button", name="Terminate instance").click()
    wait_for("Terminated")


def test_a_form_outlives_its_session(real: Running, open_context: Callable[..., BrowserContext]) -> None:
    context = open_context()
    page = context.new_page()
    sign_in(page, real)
    page.goto(f"{real.url}/compute/key-pairs/new")
    page.get_by_label("Name", exact=True).fill("kept")
    context.clear_cookies(name=re.compile("session"))
    page.locator("#summary").get_by_role("button", name="Create key pair").click()
    dialog = page.get_by_role("dialog")
    expect(dialog).to_contain_text("Your session has ended")
    dialog.get_by_label("User name or e-mail").fill("admin")
    dialog.get_by_label("Password").fill(real.settings.admin_password.get_secret_value())
    dialog.get_by_role("button", name="Sign in").click()
    expect(page.get_by_text("Shown only now")).to_be_visible()
    expect(page.get_by_role("heading", name="kept")).to_be_visible()


def test_search_finds_and_keys_work(real: Running, open_context: Callable[..., BrowserContext]) -> None:
    page = open_context().new_page()
    sign_in(page, real)
    page.keyboard.press("Control+k")
    page.get_by_role("searchbox").fill("tiny")
    page.get_by_role("link", name=re.compile("atonix-tiny")).click()
    expect(page.get_by_role("heading", name="atonix-tiny", level=1)).to_be_visible()
    page.goto(f"{real.url}/compute/flavors")
    page.keyboard.press("/")
    page.keyboard.type("xlarge")
    expect(page.locator("#count")).to_have_text("5")
    expect(page).to_have_url(re.compile("search=xlarge"))


def test_probes_answer(real: Running) -> None:
    for path in ("/health", "/healthz", "/ready", "/metrics"):
        assert ask(real.settings, path, timeout_s=5)
    there = real.settings.model_copy(update={"portal_port": real.settings.metrics_port})
    assert b"http_requests_total" in ask(there, "/metrics", timeout_s=5)
