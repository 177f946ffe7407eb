"""A bucket's own policy, in the language of S3: whom it lets in besides those whom IAM lets in, and whom it keeps out.

What it cannot express here is refused when it is set, so that nobody believes in a condition that nothing looks at.
"""

import ipaddress
import json
import re
from collections.abc import Mapping, Sequence
from typing import Annotated, Any

from sqlalchemy import select
from sqlalchemy.orm import Session

from portal.identity.models import User
from portal.kernel import fields as f
from portal.kernel.context import Context
from portal.kernel.declare import operation
from portal.kernel.errors import Forbidden, InvalidRequest
from portal.kernel.policy import is_like
from portal.storage.asked_encryption import BY_CUSTOMER, BY_KEY, BY_NAME, SENT, is_upload
from portal.storage.engine_steps import ON_ENGINE
from portal.storage.grants import blocks
from portal.storage.object_models import Bucket
from portal.storage.usage import usage_locked

MOST_BYTES = 20 << 10
# A network with fewer bits of prefix is the public.
WIDEST = {4: 8, 6: 32}
VERSIONS = ("2012-10-17", "2008-10-17")
ARN = "arn:aws:s3:::"
USER = re.compile(r"arn:aws:iam::[^:]*:user/(?:.*/)?([^/]+)")
# The portal's verb → what S3 calls its kinds. Where nobody says which it is, the first is what has to be allowed, and a denial of any of them denies it.
NAMES: Mapping[str, tuple[str, ...]] = {
    "list": ("s3:ListBucket", "s3:ListBucketVersions", "s3:ListBucketMultipartUploads"),
    "read": ("s3:GetObject", "s3:GetObjectVersion", "s3:GetObjectTagging", "s3:GetObjectVersionTagging", "s3:GetObjectAttributes",
             "s3:GetObjectVersionAttributes", "s3:GetObjectRetention", "s3:GetObjectLegalHold"),
    "write": (
        "s3:PutObject", "s3:PutObjectTagging", "s3:PutObjectVersionTagging", "s3:DeleteObjectTagging", "s3:DeleteObjectVersionTagging",
        "s3:AbortMultipartUpload", "s3:ListMultipartUploadParts",
    ), "delete": ("s3:DeleteObject", "s3:DeleteObjectVersion"),
    "read_acl": ("s3:GetObjectAcl", "s3:GetObjectVersionAcl"), "publish": ("s3:PutObjectAcl", "s3:PutObjectVersionAcl"), "retain": ("s3:PutObjectRetention",),
    "hold": ("s3:PutObjectLegalHold",),
    "bypass_retention": ("s3:BypassGovernanceRetention",),
}  # fmt: skip
# The same of the bucket itself.
OF_BUCKET: Mapping[str, tuple[str, ...]] = {"read_acl": ("s3:GetBucketAcl",), "publish": ("s3:PutBucketAcl",)}
PREFIX, SOURCE_IP = "s3:prefix", "aws:SourceIp"
TEXTS = ("StringEquals", "StringLike", "StringNotEquals", "StringNotLike")
ARNS = ("ArnEquals", "ArnLike", "ArnNotEquals", "ArnNotLike")
IF_EXISTS = "IfExists"


def _and_if_exists(*names: str) -> frozenset[str]:
    return frozenset({*names, *(f"{name}{IF_EXISTS}" for name in names)})


# What is known of a request → how it can be compared. Of encryption it is what the request itself says, as S3 has it.
CONDITIONS: Mapping[str, frozenset[str]] = {
    PREFIX: frozenset(TEXTS), SOURCE_IP: frozenset({"IpAddress", "NotIpAddress"}), BY_NAME: _and_if_exists(*TEXTS) | {"Null"},
    BY_KEY: _and_if_exists(*TEXTS, *ARNS) | {"Null"}, BY_CUSTOMER: _and_if_exists(*TEXTS) | {"Null"},
}  # fmt: skip
DOCUMENT = f.FieldInfo(f.Document(), "Policy", "Version and Statement, as S3 has it; an empty object takes the policy away.")


@operation(Bucket, "set_policy", label="Set a policy", needs="manage", icon="shield", in_menu=False, **ON_ENGINE)
def bucket_set_policy(ctx: Context, bucket: Bucket, *, document: Annotated[dict[str, Any], DOCUMENT]) -> None:
    """Let others in by a policy of the bucket's own, or keep somebody out of it; what it denies, nothing else allows."""
    # Writes see either all of it or nothing.
    usage_locked(ctx.db, bucket.id)
    policy = {"document": document, "statements": identified(ctx.db, statements_of(document, bucket.name))} if document else None
    if blocks(bucket, "block_public_policy") and policy_is_public(policy):
        raise Forbidden(f"{bucket.name} blocks policies that let everybody in: change its public-access block first.")
    bucket.policy = policy


def policy_is_public(policy: Mapping[str, Any] | None) -> bool:
    """Whether a policy lets everybody in: it allows something to all, from anywhere or from networks that are too wide to be somebody's."""
    return any(
        each["allows"] and "*" in each["principals"] and not _is_narrow(each["conditions"]) for each in (policy or {"statements": ()})["statements"]
    )


def _is_narrow(conditions: Sequence[Sequence[Any]]) -> bool:
    return any(operator == "IpAddress" and all(map(_is_small, values)) for operator, values, *_ in conditions)


def _is_small(network: str) -> bool:
    found = ipaddress.ip_network(network, strict=False)
    return found.prefixlen >= WIDEST[found.version]


def statements_of(document: Mapping[str, Any], bucket: str) -> list[dict[str, Any]]:
    """The statements in a form that is quick to look at. Raises InvalidRequest with what is wrong."""
    given = document.get("Statement")
    given = [given] if isinstance(given, dict) else given
    if len(json.dumps(document)) > MOST_BYTES:
        raise _wrong("Policy", f"may have {MOST_BYTES:,} bytes.")
    if document.get("Version", VERSIONS[1]) not in VERSIONS or set(document) - {"Version", "Id", "Statement"}:
        raise _wrong("Policy", f"has Version ({' or '.join(VERSIONS)}), Statement and perhaps Id.")
    if not isinstance(given, list) or not given:
        raise _wrong("Statement", "must be a list of at least one statement.")
    return [_statement(f"Statement[{number}]", each, bucket) for number, each in enumerate(given)]


def identified(session: Session, statements: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """The same with the ids of those whom they name: whoever has the name of one of them later is not meant. Raises InvalidRequest for nobody."""
    named = {each for statement in statements for each in statement["principals"]} - {"*"}
    rows = session.execute(select(User.id, User.username).where(User.id.in_(named) | User.username.in_(named))).all() if named else []
    by_name = {row.username: row.id for row in rows} | {row.id: row.id for row in rows} | {"*": "*"}
    if nobody := next((each for each in sorted(named) if each not in by_name), None):
        raise _wrong("Principal", f"Invalid principal in policy: nobody here has the id or name {nobody[:80]}.")
    return [{**each, "principals": [by_name[name] for name in each["principals"]]} for each in statements]


def _wrong(where: str, what: str) -> InvalidRequest:
    return InvalidRequest.fields({where: [what]})


def _statement(where: str, given: Any, bucket: str) -> dict[str, Any]:
    if not isinstance(given, dict) or set(given) - {"Sid", "Effect", "Principal", "Action", "Resource", "Condition"}:
        raise _wrong(where, "may have Sid, Effect, Principal, Action, Resource and Condition; others are not understood here.")
    if given.get("Effect") not in {"Allow", "Deny"}:
        raise _wrong(f"{where}.Effect", "must be Allow or Deny.")
    actions = _texts(f"{where}.Action", given.get("Action"))
    known = [name for names in (*NAMES.values(), *OF_BUCKET.values()) for name in names]
    if unknown := [each for each in actions if not any(_is_action(name, each) for name in known)]:
        raise _wrong(f"{where}.Action", f"{unknown[0][:80]} is not understood here; there are {', '.join(known)}.")
    resources = _texts(f"{where}.Resource", given.get("Resource"))
    if foreign := [each for each in resources if each.removeprefix(ARN).partition("/")[0] != bucket or not each.startswith(ARN)]:
        raise _wrong(f"{where}.Resource", f"{foreign[0][:80]} is not in this bucket; {ARN}{bucket} and {ARN}{bucket}/* are.")
    return {
        "sid": str(given.get("Sid", where))[:255], "allows": given["Effect"] == "Allow", "principals": _principals(where, given.get("Principal")),
        "actions": actions, "resources": resources, "conditions": _conditions(where, given.get("Condition", {}), actions),
    }  # fmt: skip


def _is_action(name: str, pattern: str) -> bool:
    """Whether a pattern is of this action; S3 takes no notice of case."""
    return is_like(name.lower(), pattern.lower())


def _texts(where: str, given: Any) -> list[str]:
    found = given if isinstance(given, list) else [given]
    if not found or not all(isinstance(each, str) and each for each in found):
        raise _wrong(where, "must be a text or a list of texts.")
    if any("${" in each for each in found):
        raise _wrong(where, "has a variable; variables are not understood here.")
    return found


def _principals(where: str, given: Any) -> list[str]:
    """Ids and names of users and service accounts, or `*` for everybody, signed in or not."""
    if isinstance(given, dict) and set(given) != {"AWS"}:
        raise _wrong(f"{where}.Principal", "must be * or an object with AWS.")
    found = _texts(f"{where}.Principal", given["AWS"] if isinstance(given, dict) else given)
    names = [found_[1] if (found_ := USER.fullmatch(each)) else each for each in found]
    if wild := [each for each in found if each != "*" and ("*" in each or "?" in each)]:
        raise _wrong(f"{where}.Principal", f"{wild[0][:80]}: a principal is * for everybody, or the whole name of one.")
    if odd := [each for each in names if each.startswith("arn:")]:
        raise _wrong(f"{where}.Principal", f"{odd[0][:80]} names nobody here: write the id or the name of a user, or arn:aws:iam:::user/<name>.")
    return names


def _conditions(where: str, given: Any, actions: Sequence[str]) -> list[list[Any]]:
    if not isinstance(given, dict) or not all(isinstance(pairs, dict) and pairs for pairs in given.values()):
        raise _wrong(f"{where}.Condition", "must be an object of objects.")
    found = []
    for operator, pairs in given.items():
        for key, value in pairs.items():
            if operator not in CONDITIONS.get(key, ()):
                known = "; ".join(f"{name} by {', '.join(sorted(operators))}" for name, operators in CONDITIONS.items())
                raise _wrong(f"{where}.Condition", f"{str(operator)[:80]} of {str(key)[:80]} is not understood here; there are {known}.")
            values = _texts(f"{where}.Condition.{operator}", ("true" if value else "false") if isinstance(value, bool) else value)
            _check_values(f"{where}.Condition.{operator}", operator, values)
            if key in SENT and not any(_is_action(NAMES["write"][0], each) for each in actions):
                raise _wrong(f"{where}.Condition", f"{key} is known of {NAMES['write'][0]} only.")
            found.append([operator, values, key])
    return found


def _check_values(where: str, operator: str, values: Sequence[str]) -> None:
    if "Ip" in operator and not all(map(_is_network, values)):
        raise _wrong(where, "must be addresses or networks such as 192.0.2.0/24.")
    if operator == "Null" and values not in (["true"], ["false"]):
        raise _wrong(where, "must be true or false.")


def _is_network(text: str) -> bool:
    try:
        ipaddress.ip_network(text, strict=False)
    except ValueError:
        return False
    return True


def verdict(
    policy: Mapping[str, Any] | None, ctx: Context, bucket: str, action: str, key: str, *, called: str = ""
) -> tuple[bool | None, str]:  # fmt: skip
    """(whether a bucket's policy allows or denies, None where it says nothing; the statement that decides).

    `called` is what S3 calls the action, where it tells kinds of it apart.
    """
    allowed = ""
    for each in policy["statements"] if policy else ():
        if _applies(each, ctx, bucket, action.rpartition(".")[2], key, called=called):
            if not each["allows"]:
                return False, each["sid"]
            allowed = allowed or each["sid"]
    return (True, allowed) if allowed else (None, "")


def _applies(statement: Mapping[str, Any], ctx: Context, bucket: str, verb: str, key: str, *, called: str) -> bool:
    known = NAMES[verb] if key or verb not in OF_BUCKET else OF_BUCKET[verb]
    names = (f"s3:{called}",) if called else known if not statement["allows"] else known[:1]
    # Names may have gone to somebody else since.
    who = {ctx.principal.user_id, "*"}
    about = f"{ARN}{bucket}" if verb == "list" or not key else f"{ARN}{bucket}/{key}"
    return (
        any(each in who for each in statement["principals"])
        and any(_is_action(name, each) for name in names for each in statement["actions"])
        and any(is_like(about, each) for each in statement["resources"])
        and all(_holds(*condition, ctx=ctx, prefix=key if verb == "list" else None, verb=verb) for condition in statement["conditions"])
    )


def _holds(operator: str, values: Sequence[str], about: str = "", *, ctx: Context, prefix: str | None, verb: str) -> bool:
    """Whether a condition holds; what is kept from before there were several says nothing of what it is `about`."""
    negated = "Not" in operator
    if "Ip" in operator:
        return (bool(ctx.source_ip) and any(_is_in(ctx.source_ip, each) for each in values)) is not negated
    if about in SENT:
        return verb == "write" and is_upload(ctx) and _is_sent_so(operator, values, about, ctx.inputs.get(about))
    if prefix is None:
        return negated
    like = operator.endswith("Like")
    return any(is_like(prefix, each) if like else prefix == each for each in values) is not negated


def _is_sent_so(operator: str, values: Sequence[str], about: str, known: str | None) -> bool:
    """What an upload says of its encryption; a statement with such a condition is about nothing else."""
    if operator == "Null":
        return (known is None) is (values[0] == "true")
    if known is None:
        return operator.endswith(IF_EXISTS) or "Not" in operator
    # A key is known by its id, and named in policies as in requests: by an address that ends with it as well.
    wanted = [each.rpartition("/")[2] for each in values] if about == BY_KEY else values
    like = "Like" in operator or operator.startswith("Arn")
    return any(is_like(known, each) if like else known == each for each in wanted) is not ("Not" in operator)


def _is_in(address: str, network: str) -> bool:
    found, inside = ipaddress.ip_address(address), ipaddress.ip_network(network, strict=False)
    return found.version == inside.version and found in inside
