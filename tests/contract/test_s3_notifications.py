"""Notifications: what happens in a bucket reaches a webhook at least once, signed, whoever is down meanwhile; and goes nowhere else."""

import json
import threading
from collections.abc import Iterator
from datetime import timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest
from sqlalchemy import func, select, update

from portal.kernel.context import Context
from portal.kernel.db import now, transaction
from portal.kernel.outbound import signature_of
from portal.settings import Settings
from portal.storage import objects
from portal.storage.lifecycle import lifecycle_follow
from portal.storage.notices import notices_send
from portal.storage.webhooks import Notice, Webhook
from tests.support.people import People
from tests.support.s3 import S3, fetch, refused
from tests.support.s3_operations import conforms
from tests.support.web import Api

BUCKET, SECRET = "a-bucket", "a secret of sixteen"


class Hook(ThreadingHTTPServer):
    """Somebody's webhook, which answers as it is told to."""

    daemon_threads = True

    def __init__(self) -> None:
        self.got: list[dict[str, Any]] = []
        self.status, self.refuses = 200, ""

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                signature = f"sha256={signature_of(SECRET, self.headers['X-Atonix-Timestamp'], body)}"
                hook = self.server
                assert isinstance(hook, Hook)
                status = hook.status if not hook.refuses or hook.refuses not in body.decode() else 500
                if self.headers["X-Atonix-Signature"] == signature and status == 200:
                    hook.got.append(json.loads(body))
                self.send_response(status)
                self.send_header("Location", "http://127.0.0.1:1/")
                self.end_headers()

            def log_message(self, *_args: object) -> None:
                """Say nothing."""

        super().__init__(("127.0.0.1", 0), Handler)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}/hook?a=b"

    def events(self) -> list[tuple[str, str]]:
        """(event, key) of everything that has arrived."""
        return [(each["eventName"], each["s3"]["object"]["key"]) for message in self.got for each in message.get("Records", [])]


@pytest.fixture
def hook() -> Iterator[Hook]:
    server = Hook()
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture
def settings(settings: Settings) -> Settings:
    return settings.model_copy(update={"webhook_hosts_allowed": "127.0.0.0/8"})


@pytest.fixture
def client(s3: S3) -> Any:
    made = s3.client()
    made.create_bucket(Bucket=BUCKET)
    return made


@pytest.fixture
def arn(api: Api, hook: Hook) -> str:
    made = api.post("/storage/webhooks", {"name": "mine", "url": hook.url, "secret": SECRET})
    assert made.status_code == 201, made.json
    assert SECRET not in json.dumps(made.json)
    return str(made.json["arn"])


@pytest.fixture
def system(people: People) -> Context:
    return people.context(None)


def tell(client: Any, arn: str, *events: str, **more: Any) -> None:
    rule = {"Id": "r", "TopicArn": arn, "Events": list(events) or ["s3:ObjectCreated:*", "s3:ObjectRemoved:*"], **more}
    client.put_bucket_notification_configuration(Bucket=BUCKET, NotificationConfiguration={"TopicConfigurations": [rule]})


def again(system: Context) -> int:
    """Send, without waiting for another try."""
    with transaction(system.db):
        system.db.execute(update(Webhook).values(next_try_at=now() - timedelta(seconds=1)))
    return notices_send(system)


@conforms("GetBucketNotificationConfiguration", "PutBucketNotificationConfiguration", "GetBucketNotification", "PutBucketNotification")
def test_configuration_comes_back_as_it_was_given(client: Any, arn: str) -> None:
    assert "TopicConfigurations" not in client.get_bucket_notification_configuration(Bucket=BUCKET)
    where = {"Key": {"FilterRules": [{"Name": "prefix", "Value": "in/"}, {"Name": "suffix", "Value": ".jpg"}]}}
    tell(client, arn, "s3:ObjectCreated:Put", Filter=where)
    found = client.get_bucket_notification_configuration(Bucket=BUCKET)
    assert found["TopicConfigurations"] == [{"Id": "r", "TopicArn": arn, "Events": ["s3:ObjectCreated:Put"], "Filter": where}]
    queue = {"QueueConfigurations": [{"Id": "q", "QueueArn": arn, "Events": ["s3:ObjectRemoved:*"]}]}
    client.put_bucket_notification_configuration(Bucket=BUCKET, NotificationConfiguration=queue)
    assert client.get_bucket_notification_configuration(Bucket=BUCKET)["QueueConfigurations"] == queue["QueueConfigurations"]
    client.put_bucket_notification_configuration(Bucket=BUCKET, NotificationConfiguration={})
    assert "QueueConfigurations" not in client.get_bucket_notification_configuration(Bucket=BUCKET)


def test_what_makes_no_sense_is_refused(client: Any, arn: str, s3: S3, people: People, api_for: Any) -> None:
    function = {"LambdaFunctionConfigurations": [{"LambdaFunctionArn": "arn:aws:lambda:::function:f", "Events": ["s3:ObjectCreated:*"]}]}
    told = refused(lambda: client.put_bucket_notification_configuration(Bucket=BUCKET, NotificationConfiguration=function), "InvalidArgument")
    assert "no functions in this product yet" in told["Error"]["Message"]
    theirs = api_for("project_admin", people.project()).post("/storage/webhooks", {"name": "theirs", "url": "https://example.org/"}).json["arn"]
    for wrong in (theirs, arn[:-1], arn.replace("arn:atonix", "arn:other"), "arn:aws:sns:us-east-1:1:t", ""):
        refused(lambda wrong=wrong: tell(client, wrong), "InvalidArgument")
    for event in ("s3:ObjectRestore:*", "ObjectCreated:Put", "s3:*", "s3:Object:*"):
        refused(lambda event=event: tell(client, arn, event), "InvalidArgument")
    refused(lambda: tell(client, arn, Filter={"Key": {"FilterRules": [{"Name": "middle", "Value": "x"}]}}), "InvalidArgument")
    refused(lambda: tell(s3.client(people.user("developer")), arn), "AccessDenied")


def test_everything_that_happens_is_told(client: Any, arn: str, hook: Hook, system: Context, s3: S3) -> None:
    every = ["s3:ObjectCreated:*", "s3:ObjectRemoved:*", "s3:ObjectTagging:*", "s3:ObjectAcl:Put", "s3:LifecycleExpiration:*"]
    tell(client, arn, *every)
    again(system)
    assert hook.got[0]["Event"] == "s3:TestEvent"
    client.put_object(Bucket=BUCKET, Key="a b", Body=b"12345")
    client.copy_object(Bucket=BUCKET, Key="copy", CopySource=f"{BUCKET}/a b")
    upload = client.create_multipart_upload(Bucket=BUCKET, Key="parts")["UploadId"]
    part = client.upload_part(Bucket=BUCKET, Key="parts", UploadId=upload, PartNumber=1, Body=b"x")["ETag"]
    whole = {"Parts": [{"PartNumber": 1, "ETag": part}]}
    client.complete_multipart_upload(Bucket=BUCKET, Key="parts", UploadId=upload, MultipartUpload=whole)
    client.put_object_tagging(Bucket=BUCKET, Key="copy", Tagging={"TagSet": [{"Key": "a", "Value": "b"}]})
    client.delete_object_tagging(Bucket=BUCKET, Key="copy")
    client.put_object_acl(Bucket=BUCKET, Key="copy", ACL="private")
    client.delete_object(Bucket=BUCKET, Key="copy")
    client.put_bucket_versioning(Bucket=BUCKET, VersioningConfiguration={"Status": "Enabled"})
    client.delete_objects(Bucket=BUCKET, Delete={"Objects": [{"Key": "parts"}]})
    rule = {"ID": "r", "Status": "Enabled", "Filter": {"Prefix": "a"}, "Expiration": {"Date": "2020-01-01T00:00:00Z"}}
    client.put_bucket_lifecycle_configuration(Bucket=BUCKET, LifecycleConfiguration={"Rules": [rule]})
    lifecycle_follow(system)
    again(system)
    assert hook.events() == [
        ("ObjectCreated:Put", "a+b"), ("ObjectCreated:Copy", "copy"), ("ObjectCreated:CompleteMultipartUpload", "parts"), ("ObjectTagging:Put", "copy"),
        ("ObjectTagging:Delete", "copy"), ("ObjectAcl:Put", "copy"), ("ObjectRemoved:Delete", "copy"), ("ObjectRemoved:DeleteMarkerCreated", "parts"),
        ("LifecycleExpiration:DeleteMarkerCreated", "a+b"),
    ]  # fmt: skip
    first = hook.got[1]["Records"][0]
    assert (first["eventVersion"], first["s3"]["bucket"]["name"], first["s3"]["object"]["size"]) == ("2.1", BUCKET, 5)
    assert (first["requestParameters"]["sourceIPAddress"], first["userIdentity"]["principalId"][:4]) == ("127.0.0.1", "usr-")
    sequence = [each["s3"]["object"]["sequencer"] for message in hook.got[1:] for each in message["Records"]]
    assert sequence[0] < sequence[1] < sequence[2]
    assert again(system) == 0


def test_only_what_fits_the_filter_is_told(client: Any, arn: str, hook: Hook, system: Context) -> None:
    where = {"Key": {"FilterRules": [{"Name": "Prefix", "Value": "in/"}, {"Name": "Suffix", "Value": ".jpg"}]}}
    tell(client, arn, "s3:ObjectCreated:Put", Filter=where)
    for key in ("in/a.jpg", "in/a.png", "out/a.jpg"):
        client.put_object(Bucket=BUCKET, Key=key, Body=b"")
    client.delete_object(Bucket=BUCKET, Key="in/a.jpg")
    again(system)
    assert hook.events() == [("ObjectCreated:Put", "in/a.jpg")]


def test_what_is_undone_is_not_told(client: Any, arn: str, hook: Hook, system: Context, monkeypatch: pytest.MonkeyPatch) -> None:
    tell(client, arn)
    tells = objects.note

    def fail(*args: Any) -> None:
        tells(*args)
        raise RuntimeError("broken after the message was written")

    monkeypatch.setattr(objects, "note", fail)
    refused(lambda: client.put_object(Bucket=BUCKET, Key="k", Body=b"x"), "InternalError")
    monkeypatch.undo()
    again(system)
    assert (hook.events(), client.list_objects_v2(Bucket=BUCKET)["KeyCount"]) == ([], 0)


def test_a_webhook_that_is_down_gets_everything_later(client: Any, arn: str, hook: Hook, system: Context, api: Api) -> None:
    tell(client, arn)
    hook.status = 302
    for number in range(3):
        client.put_object(Bucket=BUCKET, Key=f"k{number}", Body=b"")
    assert again(system) == 0
    webhook = f"/storage/webhooks/{arn.rpartition(':')[2]}"
    shown = api.get(webhook).json
    assert (shown["waiting"], shown["dead"], "answered 302" in shown["last_error"]) == (4, 0, True)
    # It is left alone for a while.
    assert notices_send(system) == 0
    hook.status = 200
    again(system)
    assert sorted(hook.events()) == [("ObjectCreated:Put", f"k{number}") for number in range(3)]
    assert api.get(webhook).json["waiting"] == 0


def test_one_message_that_is_never_taken_holds_up_nobody(client: Any, arn: str, hook: Hook, system: Context, api: Api) -> None:
    tell(client, arn)
    again(system)
    hook.refuses = "poison"
    for key in ("a", "poison", "b"):
        client.put_object(Bucket=BUCKET, Key=key, Body=b"")
    webhook = f"/storage/webhooks/{arn.rpartition(':')[2]}"
    for _ in range(30):
        again(system)
    assert sorted(hook.events()) == [("ObjectCreated:Put", "a"), ("ObjectCreated:Put", "b")]
    shown = api.get(webhook).json
    assert (shown["waiting"], shown["dead"]) == (0, 1)
    (dead,) = api.get(f"{webhook}/messages?state=dead").json["messages"]
    assert (dead["message"]["Records"][0]["s3"]["object"]["key"], dead["attempts"], "500" in dead["last_error"]) == ("poison", 12, True)
    hook.refuses = ""
    assert api.post(f"{webhook}/redeliver", {}).status_code == 200
    again(system)
    assert ("ObjectCreated:Put", "poison") in hook.events()
    assert api.get(f"{webhook}/messages").json["messages"] == []


def test_its_page_shows_what_waits_and_what_was_given_up(client: Any, arn: str, hook: Hook, system: Context, client_for: Any) -> None:
    tell(client, arn)
    hook.status = 500
    for key in ("one", "two"):
        client.put_object(Bucket=BUCKET, Key=key, Body=b"")
    with transaction(system.db):
        system.db.execute(
            update(Notice).where(Notice.id == system.db.scalar(select(func.max(Notice.id)))).values(created_at=now() - timedelta(days=2))
        )
    again(system)
    page = client_for("project_admin").get(f"/storage/webhooks/{arn.rpartition(':')[2]}/messages").get_data(as_text=True)
    assert all(text in page for text in ("ObjectCreated:Put", f"{BUCKET}/one", f"{BUCKET}/two", "answered 500", arn, "Given up"))


def test_what_waited_for_a_day_is_given_up(client: Any, arn: str, hook: Hook, system: Context) -> None:
    tell(client, arn)
    hook.status = 500
    client.put_object(Bucket=BUCKET, Key="k", Body=b"")
    with transaction(system.db):
        system.db.execute(update(Notice).values(created_at=now() - timedelta(days=2)))
    again(system)
    assert system.db.scalars(select(Notice.dead_at)).all().count(None) == 0
    with transaction(system.db):
        system.db.execute(update(Notice).values(dead_at=now() - timedelta(days=15)))
    again(system)
    assert system.db.scalars(select(Notice.id)).all() == []


@pytest.mark.parametrize("url", ["http://127.0.0.1:1/", "http://169.254.169.254/latest", "http://[::1]/", "http://localhost/"])
def test_private_addresses_are_not_told_unless_allowed(client: Any, api: Api, people: People, url: str) -> None:
    arn = api.post("/storage/webhooks", {"name": "inside", "url": url}).json["arn"]
    tell(client, arn)
    ctx = people.context(None)
    ctx.settings = ctx.settings.model_copy(update={"webhook_hosts_allowed": ""})
    assert notices_send(ctx) == 0
    assert "no public address" in ctx.db.scalars(select(Webhook.last_error)).one()


def test_webhooks(api: Api, api_for: Any, hook: Hook, client: Any, arn: str) -> None:
    for wrong in ({"url": "ftp://h/"}, {"url": "http://u:p@h/"}, {"url": hook.url, "secret": "short"}):
        assert api.post("/storage/webhooks", {"name": "wrong", **wrong}).status_code == 400, wrong
    assert len(api.post("/storage/webhooks", {"name": "made", "url": hook.url}).json["secret"]) > 30
    webhook = f"/storage/webhooks/{arn.rpartition(':')[2]}"
    assert api("PATCH", webhook, {"url": "http://u@h/"}).status_code == 400
    assert api.post(f"{webhook}/set-secret", {"secret": "another secret of more"}).status_code == 200
    assert api_for("developer").post("/storage/webhooks", {"name": "no", "url": hook.url}).status_code == 403
    tell(client, arn)
    assert api("DELETE", webhook).status_code == 409
    client.put_bucket_notification_configuration(Bucket=BUCKET, NotificationConfiguration={})
    assert api("DELETE", webhook).status_code == 204


def test_the_same_through_the_api(api: Api, arn: str, hook: Hook, system: Context) -> None:
    bucket = f"/storage/buckets/{api.post('/storage/buckets', {'name': 'another'}).json['id']}"
    rule = {"id": "r", "kind": "Topic", "arn": arn, "events": ["s3:ObjectCreated:Put"], "prefix": "", "suffix": ""}
    assert api("PUT", f"{bucket}/notifications", {"rules": [rule]}).json == {"rules": [rule]}
    assert api.get(f"{bucket}/notifications").json == {"rules": [rule]}
    assert api("PUT", f"{bucket}/notifications", {"rules": [{**rule, "events": []}]}).status_code == 400
    api("PUT", f"{bucket}/objects/k", data=b"x", headers={"Content-Type": "text/plain"})
    again(system)
    assert hook.events() == [("ObjectCreated:Put", "k")]


def test_a_form_is_told_as_a_form(client: Any, arn: str, hook: Hook, system: Context, s3: S3) -> None:
    tell(client, arn, "s3:ObjectCreated:Post")
    form = client.generate_presigned_post(Bucket=BUCKET, Key="posted")
    parts = "".join(f'--b\r\nContent-Disposition: form-data; name="{name}"\r\n\r\n{value}\r\n' for name, value in form["fields"].items())
    body = f'{parts}--b\r\nContent-Disposition: form-data; name="file"; filename="f"\r\n\r\nx\r\n--b--\r\n'.encode()
    assert fetch(f"{s3.url}/{BUCKET}", "POST", body, {"Content-Type": "multipart/form-data; boundary=b"})[0] == 204
    again(system)
    assert hook.events() == [("ObjectCreated:Post", "posted")]
