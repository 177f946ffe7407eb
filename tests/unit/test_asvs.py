"""The table of OWASP ASVS in docs/security.md: nothing is missing, every test it names exists, and the documents it points to say what the code does."""

import ast
import re
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import pytest

from portal.identity import invitations, passwords, sign_in
from portal.settings import Settings

ROOT = Path(__file__).resolve().parents[2]
# Of ASVS 5.0.0, levels 1 and 2. What is left out, such as 6.3.5 and all of 6.7, is of level 3.
REQUIRED = {
    1: """6.1.1 6.2.1 6.2.2 6.2.3 6.2.4 6.2.5 6.2.6 6.2.7 6.2.8 6.3.1 6.3.2 6.4.1 6.4.2
          7.2.1 7.2.2 7.2.3 7.2.4 7.4.1 7.4.2 8.1.1 8.2.1 8.2.2 8.3.1 10.4.1 10.4.2 10.4.3 10.4.4 10.4.5""",
    2: """6.1.2 6.1.3 6.2.9 6.2.10 6.2.11 6.2.12 6.3.3 6.3.4 6.4.3 6.4.4 6.5.1 6.5.2 6.5.3 6.5.4 6.5.5 6.6.1 6.6.2 6.6.3 6.8.1 6.8.2 6.8.3 6.8.4
          7.1.1 7.1.2 7.1.3 7.3.1 7.3.2 7.4.3 7.4.4 7.4.5 7.5.1 7.5.2 7.6.1 7.6.2 8.1.2 8.2.3 8.4.1
          10.1.1 10.1.2 10.2.1 10.2.2 10.3.1 10.3.2 10.3.3 10.3.4 10.4.6 10.4.7 10.4.8 10.4.9 10.4.10 10.4.11
          10.5.1 10.5.2 10.5.3 10.5.4 10.5.5 10.6.1 10.6.2 10.7.1 10.7.2 10.7.3""",
}
CHAPTERS = {"6": "V6 Authentication", "7": "V7 Session management", "8": "V8 Authorization", "10": "V10 OAuth and OIDC"}
NAMED = re.compile(r"`(tests/[\w/]+\.py)::(test_\w+)`")
NOT_MET = "**Not met"
NO_TEST = ("Does not apply: ", "No test: ")


@dataclass(frozen=True)
class Line:
    """One requirement."""

    chapter: str
    id: str
    level: str
    asks: str
    here: str
    shown_by: str


@cache
def section() -> str:
    text = (ROOT / "docs" / "security.md").read_text()
    return text.split("\n## OWASP ASVS 5.0\n", 1)[1].split("\n## ", 1)[0]


@cache
def lines() -> list[Line]:
    found, chapter = [], ""
    for line in section().splitlines():
        if line.startswith("### "):
            chapter = line.removeprefix("### ")
        elif re.match(r"\| \d", line):
            found.append(Line(chapter, *(cell.strip() for cell in line.strip("|").split("|"))))
    return found


@cache
def functions_of(path: str) -> set[str]:
    tree = ast.parse((ROOT / path).read_text())
    return {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}


def test_every_requirement_is_there_once_with_its_level_in_its_chapter() -> None:
    wanted = sorted((name, str(level), CHAPTERS[name.partition(".")[0]]) for level, names in REQUIRED.items() for name in names.split())
    assert sorted((line.id, line.level, line.chapter) for line in lines()) == wanted
    assert len(wanted) == 89


@pytest.mark.parametrize("line", lines(), ids=lambda line: line.id)
def test_a_line_says_how_and_names_tests_that_exist(line: Line) -> None:
    assert line.asks
    assert line.here.endswith((".", ")"))
    named = NAMED.findall(line.shown_by)
    assert NAMED.sub("", line.shown_by).replace("<br>", "") == "", "nothing but tests"
    assert len(named) == len(set(named))
    for path, name in named:
        assert (ROOT / path).is_file(), path
        assert name in functions_of(path), f"{path}::{name}"
    if not named:
        assert line.here.startswith(NO_TEST), "a line without a test says why"


def test_what_is_not_met_is_said_above_the_table() -> None:
    said = section().split("###", 1)[0]
    for line in lines():
        assert (line.id in said) is line.here.startswith(NOT_MET), line.id


def test_the_documents_say_what_the_code_does() -> None:
    """Figures and words that the table points to, in the section that it points to."""
    guide, fields = (ROOT / "docs" / "sign-in.md").read_text(), Settings.model_fields

    def part(title: str, text: str = guide) -> str:
        return text.split(f"\n## {title}\n", 1)[1].split("\n## ", 1)[0]

    words = part("Passwords")
    for word in (*passwords.CONTEXT_WORDS, "user's name and e-mail address", "host name"):
        assert word in words, word
    for number in (passwords.MIN_LENGTH, passwords.MAX_LENGTH, passwords.JUDGED_LENGTH, passwords.BESIDE_WORDS):
        assert re.search(rf"\b{number}\b", words), number
    guessing = part("Guessing")
    assert f"the {passwords.FREE_TRIES}th wrong password" in guessing
    assert f"for {passwords.FIRST_DELAY.seconds} seconds" in guessing
    assert (passwords.LONGEST_DELAY.seconds, "at most for an hour" in guessing) == (3600, True)
    assert (sign_in.MAX_TRIES, sign_in.LIFETIME.seconds, "five codes or five minutes" in guessing) == (5, 300, True)
    sessions = part("Sessions")
    for name, place in (
        ("session_idle_minutes", sessions), ("session_absolute_hours", sessions), ("confirm_minutes", sessions),
        ("rate_limit_anonymous_per_minute", guessing), ("rate_limit_per_minute", guessing),
    ):  # fmt: skip
        assert f"`{name.upper()}` ({fields[name].default})" in place, name
    for decision in ("any number of sessions at once", "single sign-on", "NIST SP 800-63B", "back-channel logout"):
        assert decision in sessions, decision
    assert (invitations.LIFETIME.days, "good once and for seven days" in guide) == (7, True)
    ways = part("Ways in")
    public = (ROOT / "tests" / "golden" / "public_routes.txt").read_text().split()
    opening = [path for path in public if path.startswith(("/login", "/invite", "/api-token-auth", "/api/v1/auth", "/oauth2/token"))]
    steps = {"/login/again": "the form as a dialog", "/login/passkey/ask": "what a passkey is to sign", "/login/second": "the second step"}
    for path in opening:
        assert path in steps or f"`{path}`" in ways, path
    rules = part("Fields", (ROOT / "docs" / "iam.md").read_text())
    assert "**Reading.**" in rules
    assert "**Writing.**" in rules
