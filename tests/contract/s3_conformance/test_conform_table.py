"""The table of operations: it names all that there are, what it promises is tested, and the page tells what it says."""

import ast
import os
from pathlib import Path

import boto3

from portal.settings import ROOT
from tests.support.s3_operations import ELSEWHERE, KNOWN, REFUSED, SUPPORTED, page

PAGE = ROOT / "docs" / "s3-conformance.md"


def held(directory: Path) -> set[str]:
    """The operations that tests say they hold against the documentation."""
    found: set[str] = set()
    for path in directory.rglob("test_*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            for call in getattr(node, "decorator_list", ()):
                if isinstance(call, ast.Call) and isinstance(call.func, ast.Name) and call.func.id == "conforms":
                    found |= {each.value for each in call.args if isinstance(each, ast.Constant) and isinstance(each.value, str)}
    return found


def test_every_operation_of_s3_is_in_the_table_once() -> None:
    s3 = boto3.client("s3", region_name="us-east-1", aws_access_key_id="x", aws_secret_access_key="x")
    assert set(s3.meta.service_model.operation_names) - KNOWN == set()
    listed = [name for table in (SUPPORTED, REFUSED) for names in table.values() for name in names] + list(ELSEWHERE)
    assert len(listed) == len(set(listed))


def test_what_is_supported_has_a_test() -> None:
    supported = {name for names in SUPPORTED.values() for name in names}
    found = held(ROOT / "tests" / "contract")
    assert supported - found == set()
    assert found - supported - set(ELSEWHERE) == set(), "move them to SUPPORTED"


def test_the_page_tells_the_table() -> None:
    if os.environ.get("UPDATE_GOLDEN"):
        PAGE.write_text(page())
    assert PAGE.read_text() == page(), "accept the change with UPDATE_GOLDEN=1"
