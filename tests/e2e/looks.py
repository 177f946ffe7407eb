"""Looking at pages: what axe finds, what is wider than the screen, and what a panel cuts off."""

from collections.abc import Callable
from pathlib import Path

import pytest
from playwright.sync_api import Page

from portal.settings import ROOT

Post = Callable[..., dict[str, str]]
AXE = ROOT / ".venv/frontend/node_modules/axe-core/axe.min.js"
FINDINGS = """() => axe.run(document, {resultTypes: ["violations"]}).then((found) => found.violations
  .filter((each) => ["serious", "critical"].includes(each.impact))
  .map((each) => `${each.id}: ${each.nodes.map((node) => node.html).slice(0, 3).join(" ")}`))"""
# Panels clip what does not fit: a column that is cut off is not seen by the width of the page.
CLIPPED = """() => [...document.querySelectorAll(".panel > .tbl")].filter((each) => each.offsetWidth > each.parentElement.clientWidth + 1)
  .filter((each) => getComputedStyle(each.parentElement).overflowX !== "auto")
  .map((each) => `cut off: ${each.caption?.textContent}`)"""

# At the top of the page, no head of a table lies on its first row.
COVERED = """() => [...document.querySelectorAll(".tbl thead:not(.sr)")].filter((head) => {
  const [cell, row] = [head.querySelector("th, td"), head.parentElement.tBodies[0]?.rows[0]];
  return row && cell.getBoundingClientRect().bottom > row.getBoundingClientRect().top + 1;
}).map((each) => `under its head: ${each.parentElement.caption?.textContent}`)"""


class Looked:
    """What was wrong with the pages that were looked at."""

    def __init__(self, pictures: Path) -> None:
        self.pictures, self.faults = pictures, list[tuple[str, int, list[str]]]()

    def at(self, page: Page) -> None:
        """One more page, as it is shown now."""
        # Nothing is pointed at: colours of a hovered button are not what is looked at.
        page.mouse.move(0, 0)
        # Through the debugger: the page's own rules would not let a script in.
        page.evaluate(AXE.read_text())
        found = page.evaluate(FINDINGS) + page.evaluate(CLIPPED) + page.evaluate(COVERED)
        wider = page.evaluate("document.documentElement.scrollWidth - innerWidth")
        if found or wider > 0:
            page.screenshot(path=self.pictures / f"{len(self.faults)}.png", full_page=True)
            self.faults.append((page.url, wider, found))


SCREENS = pytest.mark.parametrize(("theme", "width"), [("light", 1280), ("dark", 1280), ("light", 390), ("dark", 320)])
