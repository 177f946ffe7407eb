"""The page of a bucket besides its objects: settings with editors, usage, access keys, and how clients connect."""

from collections.abc import Callable
from html import unescape

import pytest
from flask.testing import FlaskClient

from portal.settings import Settings
from portal.storage.metrics import metrics_sample
from tests.support.draining import TestWorker
from tests.support.people import People
from tests.support.web import Api, csrf_of

POLICY = '{"Version": "2012-10-17", "Statement": [{"Sid": "All", "Effect": "Allow", "Principal": "*", "Action": "s3:GetObject", "Resource": "arn:aws:s3:::a-bucket/*"}]}'


@pytest.fixture
def bucket(api: Api) -> str:
    """Its page."""
    return (
        f"/storage/buckets/{api.post('/storage/buckets', {'name': 'a-bucket', 'ownership': 'ObjectWriter', 'public_access': 'allowed'}).json['id']}"
    )


@pytest.fixture
def browser(client_for: Callable[..., FlaskClient]) -> FlaskClient:
    """A project admin's."""
    return client_for("project_admin")


@pytest.fixture
def send(browser: FlaskClient) -> Callable[..., tuple[int, str]]:
    """A form of theirs: (status, text)."""
    token = csrf_of(browser.get("/account"))

    def post(path: str, **form: str) -> tuple[int, str]:
        answer = browser.post(path, data={"csrf_token": token, **form})
        return answer.status_code, unescape(answer.text)

    return post


def test_documents_say_what_they_mean_before_they_are_saved(bucket: str, send: Callable[..., tuple[int, str]], api: Api) -> None:
    for name, document, says in (
        ("policy", POLICY, "All allows everybody s3:GetObject on a-bucket/*."),
        ("policy", POLICY, "All lets everybody in, also who has not signed in."),
        ("policy", POLICY.replace("a-bucket", "other"), "Statement[0].Resource: "),
        ("policy", "{", "is no JSON"),
        ("policy", "", "The bucket has no policy"),
        ("policy", "[1]", "must be an object"),
        ("lifecycle", '[{"expire_days": 1}]', "rule-1: all objects expire after 1 day."),
        ("lifecycle", '[{"expire_days": 1}]', "rule-1 expires everything in the bucket."),
        ("lifecycle", '[{"expire_days": -1}]', "expire_days must be a whole number"),
        (
            "lifecycle",
            '[{"id": "x", "noncurrent_days": 3, "noncurrent_keep": 2, "abort_days": 7}]',
            "3 days after they were replaced, the newest 2 are kept",
        ),
        ("lifecycle", "{}", "The portal deletes nothing by itself."),
        ("cors", '[{"origins": ["*"], "methods": ["GET", "PUT"]}]', "Pages of * may GET and PUT."),
        ("cors", '[{"origins": ["https://a.example"], "methods": ["PATCH"]}]', "PATCH is none of"),
        ("website", '{"index_document": "index.html"}', "Visitors see index.html for a folder."),
        ("website", '{"index": 1}', "It cannot be saved like this"),
        ("notifications", '[{"arn": "arn:nothing", "events": ["s3:ObjectCreated:*"]}]', "is no webhook of this project"),
        ("notifications", "", "Nobody is told of what happens here."),
        ("replication", "", "Nothing is written into another bucket as well."),
        ("replication", '[{"destination_bucket": "nobodys"}]', "must be another bucket of the same project"),
        ("replication", '[{"destination": 1}]', "It cannot be saved like this"),
    ):
        status, text = send(f"{bucket}/settings/{name}/check", document=document)
        assert (status, says in text) == (200, True), (name, document, text)
    assert send(f"{bucket}/settings/nothing/check", document="")[0] == 404
    assert api.get(f"{bucket}/policy").json == {}


def test_documents_are_saved_and_taken_away(bucket: str, send: Callable[..., tuple[int, str]], api: Api) -> None:
    assert send(f"{bucket}/settings/policy/document", document=POLICY)[0] == 303
    assert api.get(f"{bucket}/policy").json["Statement"][0]["Sid"] == "All"
    assert send(f"{bucket}/settings/lifecycle/document", document='[{"expire_days": 30}]')[0] == 303
    assert api.get(f"{bucket}/lifecycle").json["rules"][0]["expire_days"] == 30
    for name, wrong in (("policy", "{"), ("policy", "[]"), ("policy", '{"Statement": []}'), ("cors", "{}"), ("cors", '[{"origins": []}]')):
        status, text = send(f"{bucket}/settings/{name}/document", document=wrong)
        assert (status, wrong in text) == (422, True), (name, wrong)
    assert send(f"{bucket}/settings/policy/document", document=" ")[0] == 303
    assert api.get(f"{bucket}/policy").json == {}


def test_a_job_empties_the_bucket_or_a_folder(
    bucket: str, send: Callable[..., tuple[int, str]], api: Api, worker: TestWorker, browser: FlaskClient
) -> None:
    for key in ("a/1", "a/1", "a/2", "b"):
        api("PUT", f"{bucket}/objects/{key}", data=b"x")
    assert "Empty the bucket" in browser.get(f"{bucket}/settings").text
    assert "For good, with all versions" in send(f"{bucket}/removal", ids="p:a/")[1]
    assert send(f"{bucket}/empty", prefix="a/", confirm="a")[0] == 422
    assert send(f"{bucket}/empty", prefix="a/", confirm="a/")[0] == 303
    page = browser.get(bucket).text
    assert "A job is at work here" in page
    status, text = send(f"{bucket}/empty", confirm="a-bucket")
    assert (status, "has a job that is at work on it" in text) == (409, True)
    worker.drain()
    assert [each["key"] for each in api.get(f"{bucket}/objects").json["objects"]] == ["b"]
    assert send(f"{bucket}/empty", confirm="a-bucket")[0] == 303
    worker.drain()
    assert "The bucket is empty." in browser.get(f"{bucket}?versions=true").text


def test_switches(bucket: str, send: Callable[..., tuple[int, str]], api: Api) -> None:
    assert send(f"{bucket}/settings", versioning="false")[0] == 303
    assert api.get(bucket).json["versioning"] == "suspended"
    assert send(f"{bucket}/settings", versioning="true")[0] == 303
    assert send(f"{bucket}/settings", acl="public-read")[0] == 303
    assert (api.get(bucket).json["versioning"], api.get(bucket).json["acl"]) == ("enabled", "public-read")
    assert send(f"{bucket}/settings", acl="whatever")[0] == 422
    assert send(f"{bucket}/settings", public_access="true", block_public_acls="true", ignore_public_acls="true")[0] == 303
    block = api.get(f"{bucket}/public-access-block").json
    assert (block["block_public_acls"], block["ignore_public_acls"], block["block_public_policy"]) == (True, True, False)
    assert send(f"{bucket}/settings", lock="true", mode="COMPLIANCE", count="2", unit="years")[0] == 303
    page = send(f"{bucket}/settings", versioning="false")
    assert (page[0], "kept for 2 years (compliance)" in page[1]) == (409, True)


def test_encryption_is_chosen_on_the_page(bucket: str, send: Callable[..., tuple[int, str]], api: Api, browser: FlaskClient) -> None:
    key = api.post("/security/keys", {"name": "of-reports"}).json["key_id"]
    page = browser.get(f"{bucket}/settings").text
    assert '<option value="none" selected>Not encrypted' in page
    assert "Objects that are there stay as they are until" in page
    assert send(f"{bucket}/settings", encryption="sse-kms", kms_key=key)[0] == 303
    assert (api.get(bucket).json["encryption_type"], api.get(bucket).json["kms_key_id"]) == ("sse-kms", key)
    page = browser.get(f"{bucket}/settings").text
    assert ('<option value="sse-kms" selected>' in page, f'<option value="{key}" selected>of-reports' in page) == (True, True)
    # A key that cannot be chosen any more is still shown as the one that is set, and what was typed stays with the refusal.
    api.post(f"/security/keys/{key}/disable", {})
    assert f'<option value="{key}" selected>of-reports' in browser.get(f"{bucket}/settings").text
    status, text = send(f"{bucket}/settings", encryption="sse-kms", kms_key=key)
    assert (status, text.count("of-reports is disabled"), '<option value="sse-kms" selected>' in text) == (409, 1, True), text
    assert send(f"{bucket}/settings", encryption="rot13")[0] == 422
    assert send(f"{bucket}/settings", encryption="sse-s3", kms_key=key)[0] == 303
    assert api.get(bucket).json["kms_key_id"] is None
    assert send(f"{bucket}/settings", encryption="none")[0] == 303
    assert api.get(bucket).json["encryption_enabled"] is False


def test_log_and_ownership_show_what_is_set(
    bucket: str, send: Callable[..., tuple[int, str]], api: Api, browser: FlaskClient, client_for: Callable[..., FlaskClient]
) -> None:
    api.post("/storage/buckets", {"name": "logs"})
    assert '<option value="logs">' in browser.get(f"{bucket}/settings").text
    assert send(f"{bucket}/settings", log_target="logs", log_prefix="of-a/")[0] == 303
    page = browser.get(f"{bucket}/settings").text
    assert ('value="logs" list' in page, 'value="of-a/"' in page, "More settings" in page) == (True, True, False)
    status, text = send(f"{bucket}/settings", log_target="nobodys", log_prefix="x/")
    assert (status, "must be a bucket of the same project" in text, 'value="x/"' in text) == (422, True, True)
    assert "Requests are written down in logs, under of-a/." in client_for("viewer").get(f"{bucket}/settings").text
    assert send(f"{bucket}/settings", log_target="", log_prefix="of-a/")[0] == 303
    assert api.get(bucket).json["logging_enabled"] is False
    assert '<option value="ObjectWriter" selected>' in browser.get(f"{bucket}/settings").text
    assert send(f"{bucket}/settings", ownership="BucketOwnerEnforced")[0] == 303
    assert (api.get(bucket).json["ownership"], "lists of access do not count" in browser.get(f"{bucket}/settings").text) == (
        "BucketOwnerEnforced",
        True,
    )
    assert send(f"{bucket}/settings", ownership="Nobody")[0] == 422
    assert send(f"{bucket}/settings", nothing="x")[0] == 400
    assert 'name="encryption_type"' not in browser.get(f"{bucket}/actions/update").text


def test_replication_shows_its_rules_and_how_far_they_are(
    bucket: str, send: Callable[..., tuple[int, str]], api: Api, browser: FlaskClient, client_for: Callable[..., FlaskClient]
) -> None:
    api.post("/storage/buckets", {"name": "backup"})
    rules = '[{"destination_bucket": "backup", "prefix": "a/", "existing": false}, {"destination_bucket": "backup", "tags": {"x": "1"}}]'
    status, text = send(f"{bucket}/settings/replication/check", document=rules)
    assert (status, "rule-1: objects under a/ go to backup." in text) == (200, True)
    assert "rule-2: objects tagged x=1 go to backup, with what is there already." in text
    assert send(f"{bucket}/settings/replication/document", document=rules)[0] == 303
    page = unescape(browser.get(f"{bucket}/settings").text)
    assert ('"destination_bucket": "backup"' in page, "How far the rules are" in page, "Copying" in page) == (True, True, True)
    # Who may not write there may read what is said.
    page = client_for("viewer").get(f"{bucket}/settings").text
    assert ("objects under a/ go to backup." in page, "cannot be saved" in page) == (True, False)
    assert send(f"{bucket}/settings/replication/document", document="")[0] == 303
    assert api.get(f"{bucket}/replication").json["rules"] == []


def test_usage_is_drawn(bucket: str, api: Api, people: People, browser: FlaskClient) -> None:
    api("PUT", f"{bucket}/objects/k", data=b"x" * 5000)
    metrics_sample(people.context(None))
    page = browser.get(f"{bucket}/usage").text
    assert "Objects: objects between 1.0 and 1.0, now 1.0" in page
    assert browser.get(f"{bucket}/usage?hours=5").status_code == 400


def test_uploads_are_given_up(
    bucket: str, send: Callable[..., tuple[int, str]], api: Api, client_for: Callable[..., FlaskClient], browser: FlaskClient
) -> None:
    upload = api.post(f"{bucket}/multipart-uploads", {"key": "large"}).json["upload_id"]
    api("PUT", f"{bucket}/multipart-uploads/{upload}/parts/1", data=b"x" * 2048)
    assert "2.0 KiB<small> in 1 part</small>" in browser.get(f"{bucket}/usage").text
    assert "Discard" not in client_for("viewer").get(f"{bucket}/usage").text
    assert send(f"{bucket}/uploads/discard", key="large", upload_id=upload)[0] == 303
    assert api.get(f"{bucket}/multipart-uploads").json["uploads"] == []
    assert send(f"{bucket}/uploads/discard", key="large", upload_id=upload)[0] == 404


def test_keys_are_shown_once_and_end(
    bucket: str, send: Callable[..., tuple[int, str]], browser: FlaskClient, client_for: Callable[..., FlaskClient]
) -> None:
    status, text = send(f"{bucket}/keys", name="backup")
    assert (status, "shown only now" in text) == (201, True)
    key_id, secret = (part.split('"')[0] for part in text.split('data-copy="')[1:3])
    page = browser.get(f"{bucket}/keys").text
    assert (key_id in page, secret in page, key_id in text) == (True, False, True)
    assert key_id not in client_for("developer").get(f"{bucket}/keys").text
    assert send(f"{bucket}/keys/{key_id}/end")[0] == 303
    assert key_id not in browser.get(f"{bucket}/keys").text
    assert send(f"{bucket}/keys/{key_id}/end")[0] == 404
    assert send(f"{bucket}/keys", name="x" * 300)[0] == 422


def test_commands_are_ready_but_for_the_secret(
    bucket: str, send: Callable[..., tuple[int, str]], browser: FlaskClient, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert "The S3 interface is switched off" in browser.get(f"{bucket}/connect").text
    monkeypatch.setitem(settings.__dict__, "s3_public_url", "https://s3.example.org")
    page = unescape(browser.get(f"{bucket}/connect").text)
    for line in (
        "aws --endpoint-url https://s3.example.org s3 sync ./folder s3://a-bucket/folder", 'endpoint_url="https://s3.example.org"',
        "endpoint='https://s3.example.org':a-bucket/folder", "--host=s3.example.org --host-bucket=s3.example.org", "restic -r s3:https://s3.example.org/a-bucket init",
        "AWS_ACCESS_KEY_ID=YOUR_ACCESS_KEY",
    ):  # fmt: skip
        assert line in page, line
    assert "--no-ssl" not in page
    _, text = send(f"{bucket}/keys", name="mine")
    key_id, secret = (part.split('"')[0] for part in text.split('data-copy="')[1:3])
    page = browser.get(f"{bucket}/connect").text
    assert (f"AWS_ACCESS_KEY_ID={key_id}" in page, secret in page) == (True, False)


def test_who_may_not_change_settings_reads_why(bucket: str, client_for: Callable[..., FlaskClient]) -> None:
    viewer = client_for("viewer")
    page = viewer.get(f"{bucket}/settings").text
    assert (page.count("<textarea"), "Empty the bucket" in page) == (0, False)
    # Six documents, seven switches; and the actions in the page's head.
    assert page.count("no statement of it allows this") == 15
    for path, form in (
        ("/settings", {"versioning": "false"}),
        ("/settings", {"acl": "public-read"}),
        ("/settings/policy/document", {"document": POLICY}),
    ):
        assert viewer.post(f"{bucket}{path}", data={"csrf_token": csrf_of(viewer.get("/account")), **form}).status_code == 403
    stranger = client_for("")
    for tab in ("settings", "usage", "keys", "connect"):
        assert stranger.get(f"{bucket}/{tab}").status_code == 404
