"""A bucket in the browser: a large file that breaks off and goes on, its versions, a link for others, and several objects deleted at once."""

import hashlib
from collections.abc import Callable
from pathlib import Path

import pytest
import requests
from playwright.sync_api import BrowserContext, Page, expect

from portal.kernel.ids import new_id
from tests.e2e.conftest import Running, sign_in
from tests.e2e.looks import SCREENS, Looked
from tests.support.servers import answers, until

pytestmark = pytest.mark.e2e
SIZE = 30 << 20
# The same bytes each time, none of them like its neighbours.
DROP = """([name, size, shift = 0]) => {
  const dropped = new DataTransfer();
  const bytes = Uint8Array.from({length: size}, (_, place) => (place + shift) % 251);
  dropped.items.add(new File([bytes], name, {type: "application/x-backup", lastModified: 1700000000000}));
  for (const kind of ["dragover", "drop"]) document.body.dispatchEvent(new DragEvent(kind, {bubbles: true, cancelable: true, dataTransfer: dropped}));
}"""
# The third part never leaves: the page is gone before.
HANG = """() => {
  const {open, send} = XMLHttpRequest.prototype;
  XMLHttpRequest.prototype.open = function (method, url) { this.url = url; open.call(this, method, url); };
  XMLHttpRequest.prototype.send = function (body) { if (!this.url.endsWith("/parts/3")) send.call(this, body); };
}"""
BYTES = (bytes(range(251)) * (SIZE // 251 + 1))[:SIZE]
EXPECTED = hashlib.sha256(BYTES).hexdigest()


def digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def download(page: Page) -> Path:
    """What the button of an object's page gives."""
    with page.expect_download() as started:
        page.get_by_role("link", name="Download").click()
    return started.value.path()


def new_bucket(page: Page, portal: Running) -> str:
    """Made as people do; gives its address."""
    name = new_id("files").lower().replace("_", "-")
    page.goto(f"{portal.url}/storage/buckets/new?name={name}")
    page.locator("#summary").get_by_role("button", name="Create bucket").click()
    expect(page.get_by_role("heading", name="Upload")).to_be_visible()
    # The script listens.
    expect(page.locator("[data-uploads] [data-scripted]").first).to_be_visible()
    return page.url


def test_a_file_is_dropped_breaks_off_and_goes_on(fake: Running, open_context: Callable[..., BrowserContext]) -> None:
    context = open_context()
    page = context.new_page()
    sign_in(page, fake)
    bucket = new_bucket(page, fake)
    page.evaluate(HANG)
    page.evaluate(DROP, ["backup.bin", SIZE])
    expect(page.locator("[data-uploads] [data-text]")).to_contain_text("of 30.0 MiB")
    # All but the third part have arrived.
    expect(page.locator("[data-uploads] [data-figure]")).to_have_text("73 %", timeout=60_000)
    page.close(run_before_unload=False)

    page = context.new_page()
    sent: list[str] = []
    page.on("request", lambda request: sent.append(request.url.rsplit("/", 1)[1]) if request.method == "PUT" else None)
    page.goto(bucket)
    expect(page.locator("[data-uploads] [data-problem]")).to_have_text("Stopped at 73 %. Choose the file again to go on.")
    with page.expect_file_chooser() as chooser:
        page.get_by_role("button", name="Resume backup.bin").click()
    chooser.value.set_files({"name": "backup.bin", "mimeType": "text/plain", "buffer": b"another one"})
    expect(page.locator("[data-uploads] [data-problem]")).to_contain_text("This is another file")
    page.evaluate(DROP, ["backup.bin", SIZE])
    expect(page.locator("[data-uploads] [data-figure]")).to_have_text("Stored", timeout=60_000)
    assert sent == ["3"]
    page.get_by_role("link", name="backup.bin", exact=True).click()
    expect(page.locator("main")).to_contain_text("31,457,280 bytes")
    assert digest(download(page)) == EXPECTED


def test_another_file_of_the_same_name_size_and_time_is_not_mixed_with_the_one_before(
    fake: Running, open_context: Callable[..., BrowserContext]
) -> None:
    context = open_context()
    page = context.new_page()
    sign_in(page, fake)
    bucket = new_bucket(page, fake)
    page.evaluate(HANG)
    page.evaluate(DROP, ["backup.bin", SIZE, 1])
    expect(page.locator("[data-uploads] [data-figure]")).to_have_text("73 %", timeout=60_000)
    page.close(run_before_unload=False)

    page = context.new_page()
    page.goto(bucket)
    page.evaluate(DROP, ["backup.bin", SIZE])
    expect(page.locator("[data-uploads] [data-figure]")).to_have_text("Stored", timeout=60_000)
    page.get_by_role("link", name="backup.bin", exact=True).click()
    assert digest(download(page)) == EXPECTED


def test_an_older_version_comes_back_and_is_shared(fake: Running, open_context: Callable[..., BrowserContext]) -> None:
    page = open_context().new_page()
    sign_in(page, fake)
    bucket = new_bucket(page, fake)
    page.evaluate(DROP, ["backup.bin", SIZE])
    expect(page.locator("[data-uploads] [data-figure]")).to_have_text("Stored", timeout=60_000)
    # A second version, smaller; then the first again.
    page.goto(bucket)
    page.locator("#files").set_input_files({"name": "backup.bin", "mimeType": "text/plain", "buffer": b"something else"})
    page.get_by_role("button", name="Upload").click()
    expect(page.locator("[data-uploads] [data-figure]")).to_have_text("Stored", timeout=60_000)
    expect(page.locator("#objects")).to_contain_text("14 B")
    page.get_by_role("link", name="backup.bin", exact=True).click()
    expect(page.get_by_label("Text of backup.bin")).to_have_text("something else")
    page.get_by_role("button", name="Restore version").click()
    expect(page.locator("main")).to_contain_text("31,457,280 bytes")
    assert digest(download(page)) == EXPECTED

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
    until(lambda: answers(fake.settings.s3_port), within_s=60, what="the gateway answers")
    answer = requests.get(link, timeout=60)
    assert (answer.status_code, hashlib.sha256(answer.content).hexdigest()) == (200, EXPECTED)
    assert requests.get(link.replace("backup", "other"), timeout=60).status_code == 403


def test_many_are_deleted_with_the_keyboard(fake: Running, open_context: Callable[..., BrowserContext]) -> None:
    page = open_context().new_page()
    sign_in(page, fake)
    bucket = new_bucket(page, fake)
    files = [{"name": f"line {number}.txt", "mimeType": "text/plain", "buffer": b"x" * number} for number in range(12)]
    page.locator("#files").set_input_files(files)
    page.get_by_role("button", name="Upload").click()
    expect(page.locator("[data-count]")).to_have_text("12 of 12 done", timeout=60_000)
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


@SCREENS
def test_every_page_of_a_bucket(fake: Running, screen: Callable[[], Page], tmp_path: Path) -> None:
    page, looked = screen(), Looked(tmp_path)
    sign_in(page, fake)
    bucket = new_bucket(page, fake)
    files = [{"name": name, "mimeType": "text/plain", "buffer": b"some text\n" * 50} for name in ("a file.txt", f"{'a long name ' * 15}.txt")]
    page.locator("#files").set_input_files(files)
    page.get_by_role("button", name="Upload").click()
    expect(page.locator("[data-count]")).to_have_text("2 of 2 done", timeout=60_000)
    looked.at(page)
    page.get_by_label("Select a file.txt").check()
    looked.at(page)
    page.get_by_role("toolbar").get_by_role("button", name="Delete").click()
    expect(page.get_by_role("heading", level=1)).to_have_text("Delete 1 object")
    looked.at(page)
    for path in (
        "?versions=true",
        "?prefix=nothing/",
        "/object?key=a+file.txt",
        "/settings",
        "/usage",
        "/connect",
        "/keys",
        "/activity",
        "/actions/delete",
    ):
        page.goto(f"{bucket}{path}")
        looked.at(page)
    page.goto(f"{bucket}/settings")
    page.locator("#d-policy").fill('{"Statement": []}')
    expect(page.locator("#r-policy")).to_contain_text("must be a list of at least one statement")
    looked.at(page)
    page.locator("#d-lifecycle").fill('[{"prefix": "logs/", "expire_days": 30}]')
    expect(page.locator("#r-lifecycle")).to_contain_text("objects under logs/ expire after 30 days")
    looked.at(page)
    assert looked.faults == []
