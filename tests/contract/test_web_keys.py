"""Encryption keys in the console: made, used, looked at, taken away."""

from collections.abc import Callable

from flask.testing import FlaskClient

from portal.security.key_usage import USAGE_LOG
from tests.support.draining import TestWorker
from tests.support.web import Api, csrf_of


def test_a_key_is_made_used_rotated_and_taken_away(api: Api, client_for: Callable[..., FlaskClient], worker: TestWorker) -> None:
    browser = client_for()

    def send(path: str, **form: str) -> None:
        answer = browser.post(path, data={"csrf_token": csrf_of(browser.get(path)), **form})
        assert answer.status_code == 303, answer.text
        worker.drain()

    send("/security/keys/new", name="records", rotation_enabled="true", rotation_period_days="90", key_type="symmetric")
    (row,) = api.get("/security/keys").json["results"]
    base = f"/security/keys/{row['id']}"
    assert "Nothing that you may see" in browser.get(f"{base}/resources").text
    assert "Nobody has used it" in browser.get(f"{base}/usage").text
    send("/storage/volumes/new", name="data", size_gb="5", kms_key=row["id"])
    (volume,) = api.get("/storage/volumes").json["results"]
    assert (volume["encryption_enabled"], volume["kms_key_id"]) == (True, row["id"])
    assert f'href="/storage/volumes/{volume["id"]}"' in browser.get(f"{base}/resources").text
    assert f'href="{base}"' in browser.get(f"/storage/volumes/{volume['id']}").text
    send(f"{base}/actions/rotate")
    versions = browser.get(f"{base}/versions").text
    assert "Somebody rotated it" in versions
    assert "The key was made" in versions
    USAGE_LOG.flush()
    assert "Generate data key" in browser.get(f"{base}/usage").text
    send(f"{base}/actions/disable")
    assert "do not start, until it is enabled" in browser.get(base).text
    send(f"{base}/actions/schedule_deletion", window_days="7", confirm="records")
    assert "nothing that it encrypted can be read again" in browser.get(base).text


def test_who_sees_no_keys_sees_none_of_their_pages(api: Api, client_for: Callable[..., FlaskClient]) -> None:
    key = api.post("/security/keys", {"name": "records"}).json["id"]
    assert client_for("").get(f"/security/keys/{key}/resources").status_code == 404
