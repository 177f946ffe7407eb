"""The page of a service account: its access keys for the S3 interface."""

from collections.abc import Callable
from html import unescape
from typing import Any

import pytest
from flask.testing import FlaskClient

from tests.support.s3 import S3, client, refused
from tests.support.web import Api, csrf_of


@pytest.fixture
def account(api: Api) -> str:
    made = api.post("/service-accounts", {"name": "robot", "role": "developer"})
    assert made.status_code == 201, made.json
    return f"/security/service-accounts/{made.json['id']}"


@pytest.fixture
def browser(client_for: Callable[..., FlaskClient]) -> FlaskClient:
    return client_for("project_admin")


@pytest.fixture
def send(browser: FlaskClient) -> Callable[..., Any]:
    token = csrf_of(browser.get("/account"))

    def post(path: str, **form: str) -> tuple[int, str]:
        answer = browser.post(path, data={"csrf_token": token, **form})
        return answer.status_code, unescape(answer.text)

    return post


def test_its_s3_keys_are_shown_once_work_and_end(
    account: str, send: Callable[..., tuple[int, str]], s3: S3, api: Api, client_for: Callable[..., FlaskClient]
) -> None:
    browser = client_for("project_admin")
    status, text = send(f"{account}/s3-keys", s3_name="backup")
    assert (status, "shown only now" in text) == (201, True)
    key_id, secret = (part.split('"')[0] for part in text.split('aria-labelledby="s3-keys"')[1].split('data-copy="')[1:3])
    page = browser.get(account).text
    assert (key_id in page, "backup" in page, secret in page) == (True, True, False)
    robot = client(s3.url, key_id, secret)
    robot.create_bucket(Bucket="of-a-robot")
    # What it makes belongs to its project, and whoever looks at the key sees that it was used.
    assert [each["name"] for each in api.get("/storage/buckets").json["results"]] == ["of-a-robot"]
    # Who does not see the account makes no keys for it, and ends none.
    viewer = client_for("viewer")
    token = csrf_of(viewer.get("/account"))
    assert [viewer.post(f"{account}/s3-keys{rest}", data={"csrf_token": token}).status_code for rest in ("", f"/{key_id}/end")] == [404, 404]
    assert send(f"{account}/s3-keys/{key_id}/end")[0] == 303
    assert key_id not in browser.get(account).text
    refused(robot.list_buckets, "InvalidAccessKeyId")
    assert send(f"{account}/s3-keys/{key_id}/end")[0] == 404


def test_a_disabled_account_has_none(account: str, send: Callable[..., tuple[int, str]], browser: FlaskClient) -> None:
    for number in range(10):
        assert send(f"{account}/s3-keys", s3_name=f"key-{number}")[0] == 201
    status, text = send(f"{account}/s3-keys", s3_name="one-too-many")
    assert (status, 'value="one-too-many"' in text, "S3 access keys" in text) == (429, True, True)
    assert send(account, is_active="false")[0] == 303
    page = browser.get(account).text
    assert ("key-0" in page, "Disabled: it has no keys" in page) == (False, True)
    assert send(f"{account}/s3-keys", s3_name="x")[0] == 409
