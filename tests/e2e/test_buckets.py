"""A bucket in the browser: a large file that breaks off and goes on, its versions, a link for others, and several objects deleted at once."""

import hashlib
from collections.abc import Callable
from pathlib import Path

import pytest
import requests
from playwright.sync_api import BrowserContext, Page, Route, expect

from portal.kernel.ids import new_id
from tests.e2e.conftest import Running, sign_in
from tests.e2e.looks import SCREENS, Looked, Post

pytestmark = pytest.mark.e2e
SIZE = 30 << 20
# The same bytes each time, none of them like its neighbours.
DROP = """([name, size]) => {
  const bytes = new Uint8Array(size);
  let seed = 42;
  for (let place = 0; place < size; place += 1) { seed = (seed * 1103515245 + 12345) & 0x7fffffff; bytes[place] = seed >> 16; }
  const dropped = new DataTransfer();
  dropped.items.add(new File([bytes], name, {type: "application/x-backup", lastModified: 1700000000000}));
  for (const kind of ["dragover", "drop"]) document.body.dispatchEvent(new DragEvent(kind, {bubbles: true, cancelable: true, dataTransfer: dropped}));
}"""


def expected() -> str:
    """The digest of what is dropped."""
    found, seed = bytearray(SIZE), 42
    for place in range(SIZE):
        seed = (seed * 1103515245 + 12345) & 0x7FFFFFFF
        found[place] = (seed >> 16) & 0xFF
    return hashlib.sha256(found).hexdigest()


def digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def download(page: Page) -> Path:
    """What the button of an object's page gives."""
    with page.expect_download() as started:
        page.get_by_role("link", name="Download").click()
    return started.value.path()


def new_bucket(page: Page, portal: Running) -> str:
    """Made as people do; gives its address."""
    page.goto(f"{portal.url}/storage/buckets/new")
    page.get_by_label("Name").fill(new_id("files").lower().replace("_", "-"))
    page.locator("#summary").get_by_role("button", name="Create bucket").click()
    expect(page.get_by_role("heading", name="Upload")).to_be_visible()
    return page.url


def test_a_file_is_dropped_breaks_off_goes_on_and_is_shared(fake: Running, open_context: Callable[..., BrowserContext]) -> None:
    context = open_context()
    page = context.new_page()
    sign_in(page, fake)
    bucket = new_bucket(page, fake)
    asked: list[str] = []

    def third(route: Route) -> None:
        # It never gets an answer: the page is gone before.
        asked.append(route.request.url)

    page.route("**/parts/3", third)
    page.evaluate(DROP, ["backup.bin", SIZE])
    expect(page.locator("[data-uploads] [data-text]")).to_contain_text("of 30.0 MiB")
    # All but the third part have arrived.
    expect(page.locator("[data-uploads] [data-figure]")).to_have_text("73 %", timeout=60_000)
    assert len(asked) == 1
    page.close(run_before_unload=False)

    page = context.new_page()
    sent: list[str] = []
    page.on("request", lambda request: sent.append(request.url.rsplit("/", 1)[1]) if request.method == "PUT" else None)
    page.goto(bucket)
    expect(page.locator("[data-uploads] [data-problem]")).to_have_text("Stopped at 73 %. Choose the file again to go on.")
    page.evaluate(DROP, ["backup.bin", SIZE - 1])
    expect(page.locator("[data-uploads] li")).to_have_count(2)
    page.get_by_role("button", name="Cancel backup.bin").last.click()
    sent.clear()
    page.evaluate(DROP, ["backup.bin", SIZE])
    expect(page.locator("[data-uploads] [data-figure]")).to_have_text("Stored", timeout=60_000)
    assert sent == ["3"]
    page.get_by_role("link", name="backup.bin", exact=True).click()
    expect(page.locator("main")).to_contain_text("31,457,280 bytes")
    assert digest(download(page)) == expected()

    # A second version, smaller; then the first again.
    page.goto(bucket)
    page.locator("#files").set_input_files({"name": "backup.bin", "mimeType": "text/plain", "buffer": b"something else"})
    page.get_by_role("button", name="Upload").click()
    expect(page.locator("[data-uploads] [data-figure]")).to_have_text("Stored")
    expect(page.locator("#objects")).to_contain_text("14 B")
    page.get_by_role("link", name="backup.bin", exact=True).click()
    expect(page.get_by_label("Text of backup.bin")).to_have_text("something else")
    page.get_by_role("button", name="Restore version").click()
    expect(page.locator("main")).to_contain_text("31,457,280 bytes")
    assert digest(download(page)) == expected()

    # Somebody without a session opens a link.
    page.get_by_role("button", name="Make a link").click()
    expect(page.get_by_role("alert")).to_contain_text("access key of your own")
    page.goto(f"{bucket}/keys")
    page.get_by_label("Name of the new key").fill("links")
    page.get_by_role("button", name="Create key").click()
    expect(page.get_by_text("shown only now")).to_be_visible()
    page.goto(bucket)
    page.get_by_role("link", name="backup.bin", exact=True).click()
    page.get_by_label("The link holds for").select_option("15 minutes")
    page.get_by_role("button", name="Make a link").click()
    link = page.locator("#link").inner_text().strip()
    answer = requests.get(link, timeout=60)
    assert (answer.status_code, hashlib.sha256(answer.content).hexdigest()) == (200, expected())
    assert requests.get(link.replace("backup", "other"), timeout=60).status_code == 403


def test_many_are_deleted_with_the_keyboard(fake: Running, open_context: Callable[..., BrowserContext]) -> None:
    page = open_context().new_page()
    sign_in(page, fake)
    bucket = new_bucket(page, fake)
    files = [{"name": f"line {number}.txt", "mimeType": "text/plain", "buffer": b"x" * number} for number in range(12)]
    page.locator("#files").set_input_files(files)
    page.get_by_role("button", name="Upload").click()
    expect(page.locator("[data-count]")).to_have_text("12 of 12 done", timeout=30_000)
    expect(page.locator("#objects tbody tr")).to_have_count(12)
    page.get_by_label("Select all 12 shown").focus()
    page.keyboard.press("Space")
    page.get_by_label("Select line 7.txt").focus()
    page.keyboard.press("Space")
    expect(page.locator("[data-selected]")).to_have_text("11 selected")
    page.get_by_role("toolbar").get_by_role("button", name="Delete").focus()
    page.keyboard.press("Enter")
    expect(page.get_by_role("heading", level=1)).to_have_text("Delete 11 objects")
    page.get_by_role("button", name="Delete 11 objects").focus()
    page.keyboard.press("Enter")
    expect(page).to_have_url(bucket)
    expect(page.locator("#objects tbody tr")).to_have_count(1)
    expect(page.locator("#objects")).to_contain_text("line 7.txt")
