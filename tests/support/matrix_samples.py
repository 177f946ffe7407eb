"""What the authorization matrix asks with: things that somebody else has, and for each route a request that fits, so that the permission decides."""

from collections.abc import Mapping
from datetime import timedelta
from io import BytesIO
from typing import Any

from portal.identity.factors import MfaDevice
from portal.identity.models import UserSession, digest
from portal.identity.oauth2.models import OAuthConsent
from portal.identity.sso import Identity
from portal.kernel.alerts import Alert
from portal.kernel.db import now, transaction
from tests.support.draining import TestWorker
from tests.support.oauth import CALLBACK, challenge_of
from tests.support.people import PASSWORD, People
from tests.support.web import Api, one_of_each

ANOTHERS = "it is another user's own: to everybody else it is not there"
PROOF = "what counts is the password, code or secret in the request, whoever sends it"
NO_PROVIDER = "nobody signs in elsewhere in this installation; test_sso.py has one that does"
IN_QUERY = "the key stands in the query, which requests of the matrix do not have; test_api_objects.py asks with one"
PASSKEY = "it takes a real passkey; test_passkeys.py has one"
FACTORS = "nobody sets up a factor of somebody else, whatever they may; test_factors.py has one's own"
# Rows whose answer is one and the same refusal for all who have signed in, with the reason.
SILENT = {
    **dict.fromkeys((
        "GET /account/factors/totp/<device_id>", "GET /api/v1/api-keys/<api_key_id>", "GET /api/v1/security/audit-exports/<export_id>",
        "GET /api/v1/security/audit-exports/<export_id>/file", "GET /audit/exports/<export_id>/file",
        "POST /account/applications/<client_id>/revoke", "POST /account/factors/<device_id>/remove", "POST /account/factors/totp/<device_id>",
        "POST /account/identities/<identity_id>/unlink", "POST /account/sessions/<session_id>/revoke", "POST /account/tokens/<token_id>/revoke",
        "POST /account/tokens/<token_id>/rotate", "POST /alerts/<alert_id>/dismiss", "POST /alerts/<alert_id>/read",
        "POST /api/v1/alerts/<alert_id>/read", "POST /api/v1/api-keys/<api_key_id>/rotate", "PATCH /api/v1/api-keys/<api_key_id>",
        "DELETE /api/v1/alerts/<alert_id>", "DELETE /api/v1/api-keys/<api_key_id>",
        "DELETE /api/v1/auth/sessions/<session_id>", "DELETE /api/v1/auth/s3-keys/<access_key_id>",
        "POST /storage/buckets/<bucket_id>/keys/<access_key_id>/end",
    ), ANOTHERS),
    **dict.fromkeys((
        "POST /api-token-auth/", "POST /api/v1/auth/login", "POST /api/v1/auth/refresh", "POST /confirm", "POST /invite", "POST /login",
        "POST /login/passkey", "POST /login/second", "POST /oauth2/introspect", "POST /oauth2/revoke", "POST /oauth2/token",
    ), PROOF),
    **dict.fromkeys(("GET /sso/<name>", "GET /sso/<name>/callback", "POST /account/identities/<name>/link", "POST /sso/<name>/logout"), NO_PROVIDER),
    **dict.fromkeys(("POST /api/v1/security/users/<user_id>/mfa", "POST /api/v1/security/users/<user_id>/mfa/<device_id>/confirm"), FACTORS),
    "PUT /api/v1/security/sign-in-rules": "a token alone changes nothing about signing in; test_factors.py does it in a session",
    "DELETE /api/v1/security/users/<user_id>/mfa": "a token alone takes nobody's second factor away; test_factors.py does it in a session",
    **dict.fromkeys(("PUT /api/v1/storage/buckets/<bucket_id>/object", "DELETE /api/v1/storage/buckets/<bucket_id>/object"), IN_QUERY),
    "GET /storage/buckets/<bucket_id>/engine/object": "the portal keeps the objects itself; tests/contract/object_engines asks an engine",
    "POST /account/factors/passkey": PASSKEY,
    "POST /account/factors/recovery": "whoever has no second factor has no recovery codes; test_factors.py has some",
}  # fmt: skip
# Asked by a user made for it, whose tokens and sessions it ends.
ENDING = {"/api/v1/auth/logout", "/logout", "/api/v1/auth/change-password", "/account/password"}
# Asked before and after all others, for those end what these are asked about, or these what those are.
FIRST = {
    "/security/roles/<role_id>/sessions/<session_id>/end", "/api/v1/security/roles/<role_id>/sessions/<session_id>",
    "/security/service-accounts/<account_id>/keys/<key_id>/rotate", "/api/v1/service-accounts/<service_account_id>/keys/<api_key_id>/rotate",
    "/api/v1/service-accounts/<service_account_id>/keys/<api_key_id>", "/api/v1/service-accounts/<service_account_id>/s3-keys/<access_key_id>",
}  # fmt: skip
LAST = "/projects/<project_id>/delete"
# Of what is named alike, the other one: part of the path, name in it → name among the ids.
OTHERWISE = {
    ("/security/service-accounts/<account_id>/s3-keys/", "key_id"): "other_access_key_id",
    ("/api/v1/security/roles/", "session_id"): "other_role_session_id", ("/security/roles/", "session_id"): "role_session_id",
    ("<rule_id>/remove", "rule_id"): "other_rule_id",
    ("service-accounts/", "api_key_id"): "other_account_key_id", ("service-accounts/", "key_id"): "account_key_id",
}  # fmt: skip
INSTANCE = "compute.instance"
NEW_PASSWORD = "another long enough passphrase"


def theirs(owner: Api, people: People, worker: TestWorker, column: str, project_id: str) -> dict[str, str]:
    """What somebody in a project has, by the names that paths use."""
    name = "theirs-" + column.replace(" ", "-").replace("_", "-")

    def made(path: str, body: Mapping[str, Any]) -> Mapping[str, Any]:
        answer = owner.post(path, dict(body))
        assert answer.status_code in {200, 201, 202}, answer.json
        return answer.json or {}

    member = people.user("viewer", project_id)
    export = made("/security/audit-logs/export", {})["export_id"]
    machine = {"flavor": "t3-micro", "image": "atonix-tiny"}
    several = {
        "ticked_id": made("/compute/instances", {"name": f"{name}-ticked", **machine})["id"],
        "bulk_instance_id": made("/compute/instances", {"name": f"{name}-bulk", **machine})["id"],
        "bulk_image_id": made("/compute/images", {"name": f"{name}-bulk"})["id"],
        "bulk_volume_id": made("/storage/volumes", {"name": f"{name}-bulk", "size_gb": 1})["id"],
        "bulk_webhook_id": made("/storage/webhooks", {"name": f"{name}-bulk", "url": "https://example.org/hook"})["id"],
        "bulk_key_pair_id": made("/compute/key-pairs", {"name": f"{name}-bulk"})["id"],
    }
    rows = one_of_each(owner, worker.drain, name)
    several["bulk_snapshot_id"] = made("/storage/snapshots", {"name": f"{name}-bulk", "volume": name})["id"]
    worker.drain()
    account = made("/service-accounts", {"name": f"{name}-robot", "role": "viewer"})["id"]
    for key in ("key", "other"):
        made(f"/service-accounts/{account}/keys", {"name": key})
    client = made("/oauth-clients", {"name": name, "redirect_uris": [CALLBACK], "grants": ["authorization_code"], "scopes": ["compute:read"]})[
        "client_id"
    ]
    mine = {"name": f"{name}-mine", "trust_policy": {"principals": [{"type": "user", "id": owner.user.id}]}}
    role = made("/security/roles", mine)["id"]
    for session in ("theirs", "other"):
        made(f"/security/roles/{role}/assume", {"session_name": session})
    keys, sessions = (owner.get(path).json["results"] for path in (f"/service-accounts/{account}/keys", f"/security/roles/{role}/sessions"))
    bucket = f"/storage/buckets/{rows['storage.bucket']}"
    written = owner("PUT", f"{bucket}/objects/file", data=b"x", headers={"Content-Type": "text/plain"}).json
    owner("PUT", f"{bucket}/objects/picture", data=b"\x89PNG\r\n\x1a\n", headers={"Content-Type": "image/png"})
    kinds = {"compute.instance": "instance_id", "compute.image": "image_id", "compute.flavor": "flavor_id", "compute.key_pair": "key_pair_id",
             "security.policy": "policy_id", "security.group": "group_id", "security.key": "key_id", "storage.bucket": "bucket_id"}  # fmt: skip
    kinds |= {key: f"{key.rpartition('.')[2]}_id" for key in rows if key.startswith(("networking.", "storage."))}
    several["bulk_subnet_id"] = made("/networking/subnets", {"name": f"{name}-bulk", "vpc": name, "cidr_block": "10.0.2.0/24"})["id"]
    several["bulk_security_group_id"] = made("/networking/security-groups", {"name": f"{name}-bulk", "vpc": name})["id"]
    group = f"/networking/security-groups/{rows['networking.security_group']}"
    other_rule = made(f"{group}/rules", {"from_port": 80, "cidr": "10.0.0.0/8"})["rule_id"]
    sealed = made(f"/security/keys/{rows['security.key']}/encrypt", {"plaintext": "c2VjcmV0"})
    return {
        "ciphertext": sealed["ciphertext"], "rule_id": next(each["rule_id"] for each in owner.get(group).json["rules"] if each["rule_id"] != other_rule), "other_rule_id": other_rule,
        "key": "file", "editor": "policy", "object_version": written["version_id"], "number": "1",
        "upload_id": made(f"{bucket}/multipart-uploads", {"key": "file"})["upload_id"],
        "other_upload_id": made(f"{bucket}/multipart-uploads", {"key": "file"})["upload_id"],
        "access_key_id": made(f"/service-accounts/{account}/s3-keys", {})["access_key_id"],
        "other_access_key_id": made(f"/service-accounts/{account}/s3-keys", {})["access_key_id"],
        "ticked_bucket_id": made("/storage/buckets", {"name": f"{name}-bulk"})["id"],
        **{kinds[key]: row_id for key, row_id in rows.items() if key in kinds}, "role_id": role, "service": "compute", "collection": "instances",
        "row_id": rows[INSTANCE], "tab": "activity", "verb": "stop", "project_id": project_id, "user_id": owner.user.id, "dimension": "instances",
        "resource_type": "instances", "api_key_id": owner.get("/auth/keys").json["results"][0]["id"], "account_id": account,
        "service_account_id": account, "client_id": client, "export_id": export, "kind": "csv",
        "job_id": owner.get(f"/jobs?resource_id={rows[INSTANCE]}").json["results"][0]["job_id"],
        "log_id": owner.get("/security/audit-logs").json["results"][0]["log_id"],
        "request_id": made("/quota-requests", {"resource_type": "instances", "limit": 500, "reason": "More machines are needed."})["request_id"],
        "account_key_id": keys[0]["id"], "other_account_key_id": keys[1]["id"],
        "role_session_id": sessions[0]["session_id"], "other_role_session_id": sessions[1]["session_id"], **several,
        "token_id": owner.get("/auth/keys").json["results"][0]["id"], "member": member.id, "member_name": member.username,
        "project_name": owner.get(f"/projects/{project_id}").json["name"], **_own(owner.user.id, people, client, name),
    }  # fmt: skip


def _own(user_id: str, people: People, client_id: str, name: str) -> dict[str, str]:
    """What nobody but the user sees, written as it is when it is there."""
    alert, device = Alert(user_id=user_id, title="Theirs"), MfaDevice(user_id=user_id, device_type="totp", name="Theirs")
    identity = Identity(user_id=user_id, provider="staff", issuer="https://id.example.org", subject=name)
    opened = UserSession(id_hash=digest(name), user_id=user_id, expires_at=now() + timedelta(hours=1))
    with people.sessions() as session, transaction(session):
        session.add_all([alert, device, identity, opened, OAuthConsent(user_id=user_id, client_id=client_id, scopes=["compute:read"])])
        session.flush()
        return {"alert_id": alert.id, "device_id": device.id, "identity_id": identity.id, "session_id": opened.session_id}


def samples(ids: Mapping[str, str], column: str) -> dict[str, dict[str, Any]]:
    """Route → the fields of a body, form or query that fits; what has none here gets the smallest that fits its schema."""
    new = "new-" + column.replace(" ", "-").replace("_", "-")
    member, row = {"principal_type": "user", "principal_id": ids["member"]}, {"ids": [ids["ticked_id"]]}
    question = {
        "response_type": "code", "client_id": ids["client_id"], "redirect_uri": CALLBACK, "scope": "compute:read", "state": "s",
        "code_challenge": challenge_of("v" * 43), "code_challenge_method": "S256",
    }  # fmt: skip
    client = {"redirect_uris": [CALLBACK], "grants": ["authorization_code"], "scopes": ["compute:read"]}
    decision = {"decision": "approve", "note": "Granted."}
    asked = {"user": ids["user_id"], "action": "compute.instance.stop"}
    return {
        "GET /<service>/<collection>/bulk/<verb>": row, "POST /<service>/<collection>/bulk/<verb>": row,
        "GET /api/v1/compute/flavors/by-vcpus": {"vcpus": 2},
        "GET /api/v1/security/who-can": {"action": asked["action"]}, "GET /api/v1/security/what-can": {"user": ids["user_id"]},
        "GET /oauth2/authorize": question, "POST /oauth2/authorize": {**question, "decision": "allow"},
        "POST /account/password": {"old": PASSWORD, "new": NEW_PASSWORD, "again": NEW_PASSWORD},
        "POST /account/tokens": {"name": new}, "POST /audit/exports": {"format": "csv"},
        "POST /api/v1/auth/change-password": {"old": PASSWORD, "new": NEW_PASSWORD},
        "POST /api/v1/compute/images/bulk-action": {"action": "delete", "ids": [ids["bulk_image_id"]]},
        "POST /api/v1/compute/instances": {"name": new, "flavor": "t3-micro", "image": "atonix-tiny"},
        "POST /api/v1/compute/instances/bulk-action": {"action": "stop", "ids": [ids["bulk_instance_id"]]},
        "POST /api/v1/compute/instances/<instance_id>/resize": {"flavor": "t3-small"},
        "POST /api/v1/compute/key-pairs/bulk-action": {"action": "delete", "ids": [ids["bulk_key_pair_id"]]},
        "POST /api/v1/networking/subnets/bulk-action": {"action": "delete", "ids": [ids["bulk_subnet_id"]]},
        "POST /api/v1/networking/route-tables/bulk-action": {"action": "delete", "ids": [ids["route_table_id"]]},
        "POST /api/v1/networking/elastic-ips/bulk-action": {"action": "delete", "ids": [ids["elastic_ip_id"]]},
        "POST /api/v1/networking/network-interfaces/bulk-action": {"action": "delete", "ids": [ids["network_interface_id"]]},
        "POST /api/v1/networking/security-groups/bulk-action": {"action": "delete", "ids": [ids["bulk_security_group_id"]]},
        "POST /api/v1/networking/reachability": {"source": ids["network_interface_id"], "target": "internet", "protocol": "tcp", "port": 443},
        "POST /api/v1/security/keys/<key_id>/encrypt": {"plaintext": "c2VjcmV0"},
        "POST /api/v1/security/keys/<key_id>/decrypt": {"ciphertext": ids["ciphertext"]},
        "POST /api/v1/storage/volumes": {"name": new, "size_gb": 1},
        "POST /api/v1/storage/volumes/bulk-action": {"action": "delete", "ids": [ids["bulk_volume_id"]]},
        "PUT /api/v1/storage/volumes/<volume_id>/snapshot-schedule": {"frequency": "daily", "retention_count": 7},
        "POST /api/v1/storage/volumes/<volume_id>/attach": {"instance": ids["instance_id"]},
        "POST /api/v1/storage/volumes/<volume_id>/resize": {"size_gb": 5},
        "POST /api/v1/storage/volumes/<volume_id>/restore": {"snapshot": ids["snapshot_id"]},
        "POST /api/v1/storage/volumes/<volume_id>/snapshots": {"name": f"{new}-taken"},
        "POST /api/v1/storage/snapshots": {"name": new, "volume": ids["volume_id"]},
        "POST /api/v1/storage/snapshots/bulk-action": {"action": "delete", "ids": [ids["bulk_snapshot_id"]]},
        "POST /api/v1/storage/snapshots/<snapshot_id>/copy": {"name": f"{new}-copy"},
        "POST /api/v1/storage/snapshots/<snapshot_id>/restore": {"name": f"{new}-restored"},
        "POST /api/v1/oauth-clients": {"name": f"{new}-api", **client},
        "POST /api/v1/projects": {"name": f"{new}-api"}, "POST /api/v1/projects/<project_id>/members": {"username": ids["member_name"], "role": "developer"},
        "POST /api/v1/quota-requests": {"resource_type": "cpus", "limit": 500, "reason": "More processors are needed."},
        "POST /api/v1/quota-requests/<request_id>/decide": decision, "POST /quotas/requests/<request_id>/decide": decision,
        "POST /api/v1/security/groups/<group_id>/add-member": {"user": ids["member"]},
        "POST /api/v1/security/groups/<group_id>/members": {"user_id": ids["member"]},
        "POST /api/v1/security/groups/<group_id>/remove-member": {"user": ids["member"]},
        "POST /api/v1/security/policies/<policy_id>/attach": member, "POST /api/v1/security/policies/<policy_id>/detach": member,
        "POST /api/v1/security/policies/simulate": asked,
        "POST /api/v1/security/users": {"username": f"{new}-api", "email": f"{new}-api@example.org"},
        "POST /networking/security-groups/<security_group_id>/rules": {"service": "ssh", "whom": "10.0.0.0/8"},
        "GET /api/v1/storage/buckets/<bucket_id>/object": {"key": ids["key"]},
        "POST /api/v1/storage/buckets": {"name": f"{new}-api"}, "POST /api/v1/storage/buckets/estimate": {"name": f"{new}-api"},
        "POST /api/v1/storage/buckets/bulk-action": {"action": "delete", "ids": [ids["ticked_bucket_id"]]},
        "POST /api/v1/storage/buckets/<bucket_id>/delete-objects": {"keys": ["none"]},
        "POST /api/v1/storage/buckets/<bucket_id>/set-policy": {"document": {}},
        "PUT /api/v1/storage/buckets/<bucket_id>/policy": {}, "POST /api/v1/storage/buckets/<bucket_id>/set-lifecycle": {"configuration": {"rules": []}},
        "POST /api/v1/storage/buckets/<bucket_id>/presigned-urls": {"key": ids["key"], "expires_in": 60},
        "POST /api/v1/storage/buckets/<bucket_id>/set-encryption": {"type": "none"},
        "PUT /api/v1/storage/buckets/<bucket_id>/encryption": {"type": "none"},
        "POST /api/v1/storage/buckets/<bucket_id>/set-cors": {"configuration": {"rules": []}},
        "POST /api/v1/storage/buckets/<bucket_id>/set-website": {"configuration": {}}, "PUT /api/v1/storage/buckets/<bucket_id>/logging": {"enabled": False},
        "POST /api/v1/storage/buckets/<bucket_id>/set-replication": {"configuration": {"rules": []}},
        "POST /api/v1/storage/buckets/<bucket_id>/replication": {"destination_bucket": ids["ticked_bucket_id"]},
        "POST /api/v1/storage/buckets/<bucket_id>/set-notifications": {"configuration": {"rules": []}},
        "POST /api/v1/storage/webhooks": {"name": new, "url": "https://example.org/hook"},
        "POST /api/v1/storage/webhooks/bulk-action": {"action": "delete", "ids": [ids["bulk_webhook_id"]]},
        "POST /api/v1/storage/webhooks/<webhook_id>/set-secret": {"secret": "a secret of sixteen"},
        "POST /api/v1/storage/buckets/<bucket_id>/set-acl": {"acl": "private"}, "PUT /api/v1/storage/buckets/<bucket_id>/acl": {"acl": "private"},
        "POST /api/v1/storage/buckets/<bucket_id>/set-object-lock": {"rule": {}}, "POST /api/v1/storage/buckets/<bucket_id>/set-public-access": {"block": {}},
        "PATCH /api/v1/storage/buckets/<bucket_id>/objects/<path:key>": {"tags": {"a": "b"}},
        "PUT /api/v1/storage/buckets/<bucket_id>/objects/<path:key>/storage-class": {"storage_class": "STANDARD"},
        "POST /api/v1/storage/buckets/<bucket_id>/objects/<path:key>/restore": {"version_id": ids["object_version"]},
        **_of_bucket_pages(ids, new),
        "POST /project": {"project_id": ids["project_id"]}, "POST /projects": {"name": new, "description": ""},
        "POST /projects/<project_id>/delete": {"confirm": ids["project_name"]},
        "POST /projects/<project_id>/members": {"username": ids["member_name"], "role": "viewer"},
        "POST /quotas/<dimension>": {"limit": "20"}, "POST /quotas/users": {"username": ids["user_id"], "dimension": "instances", "limit": "50"},
        "POST /quotas/requests/new": {"dimension": "memory_gb", "limit": "9000", "reason": "More memory is needed."},
        "POST /security/applications": {"name": new, **client, "redirect_uris": CALLBACK, "scopes": "compute:read"},
        "POST /security/roles/<role_id>/assume": {"session_name": "mine"},
        "POST /security/service-accounts": {"name": f"{new}-robot", "role": "viewer"},
        "POST /security/service-accounts/<account_id>/keys": {"name": "more"},
        "POST /users": {"username": new, "email": f"{new}@example.org"},
    }  # fmt: skip


def _of_bucket_pages(ids: Mapping[str, str], new: str) -> dict[str, dict[str, Any]]:
    """The forms on the page of a bucket."""
    base, key = "/storage/buckets/<bucket_id>", {"key": ids["key"]}
    ticked = {"ids": f"k:{ids['key']}"}
    return {
        f"GET {base}/object": key, f"GET {base}/object/image": {"key": "picture"}, f"POST {base}/files": {"prefix": "", "files": (BytesIO(b"x"), new)},
        f"POST {base}/folder": {"prefix": "", "name": new}, f"POST {base}/object/access": {**key, "public": "false"},
        f"POST {base}/object/lock": {**key, "hold": "false"}, f"POST {base}/object/copy": {**key, "way": "copy", "destination_key": f"{new}-copy"}, f"POST {base}/object/restore": {**key, "version_id": ids["object_version"]},
        f"POST {base}/object/say": {**key, "metadata": "", "tags": ""}, f"POST {base}/object/share": {**key, "expires_in": "900"},
        f"POST {base}/empty": {"prefix": "none/", "confirm": "none/"}, f"POST {base}/removal": ticked, f"POST {base}/removal/now": ticked, f"POST {base}/settings": {"versioning": "true"},
        f"POST {base}/uploads/discard": {**key, "upload_id": ids["other_upload_id"]}, f"POST {base}/keys": {"name": new},
    }  # fmt: skip
