"""Encryption keys over the API: what they do, who may have them do it, and what is told of it."""

import base64
from collections.abc import Callable
from typing import Any

import pytest
from sqlalchemy import select

from portal.kernel.audit import AuditEntry
from portal.kernel.policy_documents import VERSION
from portal.security.key_usage import USAGE_LOG
from tests.support.draining import TestWorker
from tests.support.people import People
from tests.support.web import Api


def text(data: bytes) -> str:
    return base64.b64encode(data).decode()


@pytest.fixture
def key(api: Api) -> Any:
    answer = api.post("/security/keys", {"name": "a-key", "rotation_period_days": 90})
    assert answer.status_code == 201, answer.json
    return answer.json


def test_a_key_is_described_without_what_it_consists_of(api: Api, key: Any) -> None:
    assert (key["key_state"], key["key_type"], key["algorithm"], key["current_version"]) == ("enabled", "symmetric", "AES_256", 1)
    assert not {"material", "master"} & set(key)
    listed = api.get("/security/keys?key_state=enabled&key_type=symmetric").json["results"]
    assert [each["id"] for each in listed] == [key["id"]]
    for path in ("/api/security/keys", "/api/v1/services/encryption-keys", "/api/v1/services/kms/keys"):
        assert api.get(f"{path}/{key['id']}").json["id"] == key["id"]


def test_what_was_encrypted_is_decrypted_with_the_same_context(api: Api, key: Any) -> None:
    base = f"/security/keys/{key['id']}"
    sealed = api.post(f"{base}/encrypt", {"plaintext": text(b"secret"), "context": {"a": "1", "b": "2"}})
    assert (sealed.status_code, sealed.json["key_version"], sealed.headers["Cache-Control"]) == (200, 1, "no-store")
    given = {"ciphertext": sealed.json["ciphertext"]}
    assert api.post(f"{base}/decrypt", {**given, "context": {"b": "2", "a": "1"}}).json == {"plaintext": text(b"secret")}
    assert api.post(f"{base}/decrypt", given).status_code == 400
    other = api.post("/security/keys", {"name": "another"}).json["id"]
    assert "was not encrypted by another" in api.post(f"/security/keys/{other}/decrypt", given).json["message"]


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("encrypt", {"plaintext": "not base64!"}),
        ("encrypt", {"plaintext": text(bytes(4097))}),
        ("encrypt", {}),
        ("encrypt", {"plaintext": "", "context": {str(number): "" for number in range(11)}}),
        ("decrypt", {"ciphertext": text(b"short")}),
        ("decrypt", {"ciphertext": text(b"\x01\x10" + bytes(100))}),
        ("data-key", {"length": 16}),
        ("schedule-deletion", {"window_days": 6}),
        ("schedule-deletion", {"window_days": 31}),
    ],
)
def test_wrong_input_is_refused(api: Api, key: Any, path: str, body: dict[str, Any]) -> None:
    answer = api.post(f"/security/keys/{key['id']}/{path}", body)
    assert answer.status_code == 400, answer.json


def test_a_data_key_is_given_plain_once_and_wrapped(api: Api, key: Any, worker: TestWorker) -> None:
    base = f"/security/keys/{key['id']}"
    made = api.post(f"{base}/data-key", {"context": {"for": "backups"}}).json
    assert len(base64.b64decode(made["plaintext"])) == 32
    assert api.post(f"{base}/rotate").status_code == 202
    worker.drain()
    again = api.post(f"{base}/decrypt", {"ciphertext": made["ciphertext"], "context": {"for": "backups"}}).json
    assert again == {"plaintext": made["plaintext"]}
    versions = api.get(f"{base}/rotations").json["results"]
    assert [(each["version"], each["type"], each["old_version"]) for each in versions] == [(2, "manual", 1), (1, "created", None)]


def test_a_key_that_is_disabled_or_going_refuses_with_a_way_out(api: Api, key: Any) -> None:
    base = f"/security/keys/{key['id']}"
    assert api.post(f"{base}/disable").json["key_state"] == "disabled"
    answer = api.post(f"{base}/encrypt", {"plaintext": ""})
    assert (answer.status_code, answer.json["message"]) == (
        409,
        "The encryption key a-key is disabled. Enable it to use what is encrypted with it.",
    )
    refusal = api("DELETE", base)
    assert (refusal.status_code, "schedule-deletion" in refusal.json["message"]) == (409, True)
    assert refusal.json["details"]["schedule"] == f"/api/v1{base}/schedule-deletion"
    going = api.post(f"{base}/schedule-deletion", {"window_days": 7}).json
    assert (going["key_state"], bool(going["scheduled_deletion_date"])) == ("pending-deletion", True)
    assert "going to be deleted" in api.post(f"{base}/data-key", {}).json["message"]
    assert "it ends at" in api("DELETE", base).json["message"]
    assert api.post(f"{base}/cancel-deletion").json["key_state"] == "disabled"
    assert api.post(f"{base}/enable").json["key_state"] == "enabled"


def test_every_use_is_audited_and_counted_refused_ones_as_well(api: Api, api_for: Callable[..., Api], key: Any, people: People) -> None:
    base, viewer = f"/security/keys/{key['id']}", api_for("viewer")
    for _ in range(3):
        api.post(f"{base}/encrypt", {"plaintext": text(b"secret")})
    assert viewer.post(f"{base}/encrypt", {"plaintext": text(b"secret")}).status_code == 403
    USAGE_LOG.flush()
    rows = api.get(f"{base}/usage").json["results"]
    assert sum(each["count"] for each in rows if each["outcome"] == "success") == 3
    assert [(each["actor"], each["outcome"]) for each in rows if each["outcome"] != "success"] == [(viewer.user.username, "denied")]
    assert api.get(base).json["encryption_operations_count"] == 4
    # From where others came is told to auditors and those who manage the key.
    assert viewer.get(f"{base}/usage").status_code == 403
    assert api.get(f"/api/v1/services/kms/keys/{key['id']}/usage_logs").json == api.get(f"{base}/usage").json
    assert api.get(f"{base}/usage?since=2999-01-01T00:00:00Z").json["results"] == []
    assert api.get(f"{base}/usage?since=yesterday").status_code == 400
    entries = people.context(None).db.scalars(select(AuditEntry).where(AuditEntry.action == "security.key.encrypt")).all()
    assert sorted(entry.status for entry in entries) == ["denied", "success", "success", "success"]
    assert not any(text(b"secret") in str(entry.details) for entry in entries)


def test_a_key_for_what_is_not_to_be_encrypted_is_refused(api: Api, key: Any) -> None:
    for path, body in (("/storage/volumes", {"name": "data", "size_gb": 1}), ("/storage/buckets", {"name": "some-data"})):
        answer = api.post(path, {**body, "kms_key_id": key["id"], "encryption_enabled": False})
        assert (answer.status_code, "encryption_enabled" in answer.json["details"]) == (400, True), answer.json
        assert api.post(path, {**body, "kms_key_id": key["id"]}).json["encryption_enabled"] is True


def test_keys_of_another_project_are_not_there(api: Api, api_for: Callable[..., Api], key: Any, people: People) -> None:
    stranger = api_for("project_admin", people.project())
    base = f"/security/keys/{key['id']}"
    for method, path, body in (("GET", "", None), ("GET", "/usage", None), ("POST", "/encrypt", {"plaintext": ""}), ("POST", "/data-key", {})):
        assert stranger(method, f"{base}{path}", body).status_code == 404, path


def test_who_is_denied_a_key_gets_nothing_of_what_it_encrypts(api: Api, api_for: Callable[..., Api], key: Any, worker: TestWorker) -> None:
    locked = api.post("/storage/volumes", {"name": "locked", "size_gb": 1, "kms_key_id": key["id"]}).json["id"]
    worker.drain()
    kept = api.post(f"/storage/volumes/{locked}/snapshots", {"name": "kept"}).json["id"]
    api.post("/compute/instances", {"name": "web", "flavor": "t3-micro", "image": "atonix-tiny"})
    worker.drain()
    developer = api_for("developer")
    denied = {"Effect": "Deny", "Action": "security.key.use", "Resource": f"security.key/{key['id']}"}
    policy = api.post("/security/policies", {"name": "no", "document": {"Version": VERSION, "Statement": [denied]}}).json["id"]
    assert api.post(f"/security/policies/{policy}/attach", {"principal_type": "user", "principal_id": developer.user.id}).status_code in {200, 201}
    for path, body in (
        ("/storage/volumes", {"name": "no", "size_gb": 1, "kms_key_id": key["id"]}),
        ("/storage/volumes", {"name": "no", "snapshot_id": kept}),
        ("/storage/volumes", {"name": "no", "source_volume_id": locked}),
        (f"/storage/volumes/{locked}/snapshots", {"name": "no"}),
        (f"/storage/volumes/{locked}/attach", {"instance_id": "web"}),
        (f"/storage/volumes/{locked}/restore", {"snapshot": kept}),
        (f"/security/keys/{key['id']}/encrypt", {"plaintext": ""}),
    ):
        assert developer.post(path, body).status_code == 403, path
    # The project's default key is everybody's who makes volumes.
    assert developer.post("/storage/volumes", {"name": "theirs", "size_gb": 1, "encryption_enabled": True}).status_code == 202
