"""Who allowed a browser's upload, and which: the policy in a form, signed with V4 or V2.

Stable: `verify_form(form, bucket, secret_of, now)` gives a `signing.Signed`, or None for a form without policy; everything else is a refusal.
It also narrows the form down to the sizes that the policy allows. What a policy does not name may not stand in the form.
"""

import base64
import binascii
import hmac
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime

from portal.s3.errors import S3Error
from portal.s3.forms import PostForm
from portal.s3.signatures_v2 import signature_of
from portal.s3.signatures_v4 import ALGORITHM, parse_credential, signing_key
from portal.s3.signing import SecretOf, Signed, parse_basic, same, secret_for

# Fields that no policy has to name: they are the policy and its signature.
UNNAMED = frozenset({"policy", "x-amz-signature", "awsaccesskeyid", "signature", "file"})
IGNORED_PREFIX = "x-ignore-"


@dataclass(frozen=True, slots=True)
class Condition:
    """What a field has to be."""

    operator: str
    name: str
    value: str

    def holds(self, actual: str) -> bool:
        """Whether the field is so; several content types have to be so each."""
        if self.operator == "eq":
            return actual == self.value
        parts = actual.split(",") if self.name == "content-type" else [actual]
        return all(part.strip().startswith(self.value) if len(parts) > 1 else part.startswith(self.value) for part in parts)

    def __str__(self) -> str:
        return json.dumps([self.operator, f"${self.name}", self.value])


@dataclass(frozen=True, slots=True)
class Policy:
    """What somebody has signed for others to upload."""

    expires: datetime
    conditions: tuple[Condition, ...]
    # Least and greatest number of bytes, for each range that is given.
    ranges: tuple[tuple[int, int], ...]


def verify_form(form: PostForm, bucket: str, secret_of: SecretOf, now: datetime) -> Signed | None:
    """Whose upload this is; None for a form that claims nothing. Raises S3Error where something is not right."""
    fields = form.fields
    is_signed = any(name in fields for name in ("x-amz-signature", "x-amz-credential", "signature", "awsaccesskeyid"))
    if "policy" not in fields and not is_signed:
        return None
    if fields.get("x-amz-security-token"):
        raise S3Error("InvalidToken", "Session tokens are not used here: sign with an access key of the portal.")
    _require(fields, "policy")
    access_key = _verify_v4(fields, secret_of) if "x-amz-signature" in fields or "x-amz-algorithm" in fields else _verify_v2(fields, secret_of)
    policy = parse_policy(fields["policy"])
    if now > policy.expires:
        raise _against_policy("Policy expired.")
    check_conditions(policy, {**fields, "bucket": bucket, "key": form.key})
    for smallest, largest in policy.ranges:
        form.limit(smallest, largest)
    return Signed(access_key)


def _verify_v4(fields: Mapping[str, str], secret_of: SecretOf) -> str:
    for name in ("x-amz-algorithm", "x-amz-credential", "x-amz-date", "x-amz-signature"):
        _require(fields, name)
    if fields["x-amz-algorithm"] != ALGORITHM:
        raise _wrong_field(f'X-Amz-Algorithm only supports "{ALGORITHM}"')
    scope = parse_credential(fields["x-amz-credential"], _wrong_field)
    if parse_basic(fields["x-amz-date"]) is None or fields["x-amz-date"][:8] != scope.date:
        raise _wrong_field("X-Amz-Date must be in the ISO8601 Long Format, with the date of the credential.")
    key = signing_key(secret_for(scope.access_key, secret_of), scope.date, scope.region)
    _check_signature(hmac.digest(key, fields["policy"].encode(), "sha256").hex(), fields["x-amz-signature"], scope.access_key)
    return scope.access_key


def _verify_v2(fields: Mapping[str, str], secret_of: SecretOf) -> str:
    for name in ("awsaccesskeyid", "signature"):
        _require(fields, name)
    access_key = fields["awsaccesskeyid"]
    _check_signature(signature_of(secret_for(access_key, secret_of), fields["policy"].encode()), fields["signature"], access_key)
    return access_key


def _check_signature(calculated: str, given: str, access_key: str) -> None:
    if not same(calculated, given):
        raise S3Error("SignatureDoesNotMatch", AWSAccessKeyId=access_key[:128], SignatureProvided=given[:128])


def parse_policy(text: str) -> Policy:
    """The document in the field `policy`. Raises InvalidPolicyDocument."""
    try:
        document = json.loads(base64.b64decode(text, validate=True).decode())
    except (binascii.Error, ValueError, RecursionError):
        raise _malformed("Invalid JSON.") from None
    if not isinstance(document, dict) or not isinstance(document.get("conditions"), list):
        raise _malformed("Policy missing expiration or conditions.")
    conditions: list[Condition] = []
    ranges: list[tuple[int, int]] = []
    for one in document["conditions"]:
        if isinstance(one, list) and len(one) == 3 and str(one[0]).lower() == "content-length-range":  # noqa: PLR2004 - operator and two operands
            ranges.append((_size(one[1]), _size(one[2])))
        else:
            conditions.extend(_conditions(one))
    return Policy(_expiration(document.get("expiration")), tuple(conditions), tuple(ranges))


def _conditions(one: object) -> Iterator[Condition]:
    match one:
        case dict():
            for name, value in one.items():
                yield Condition("eq", str(name).lower(), _text(value))
        case [str(operator), str(name), value] if operator.lower() in {"eq", "starts-with"} and name.startswith("$"):
            yield Condition(operator.lower(), name[1:].lower(), _text(value))
        case _:
            raise _malformed("Invalid condition.")


def _text(value: object) -> str:
    if not isinstance(value, str):
        raise _malformed("Invalid condition: a value is no text.")
    return value


def _size(value: object) -> int:
    # Some clients write numbers as text.
    if isinstance(value, str) and value.isascii() and value.isdigit() and len(value) < 20:  # noqa: PLR2004 - digits of a 64 bit number
        return int(value)
    if isinstance(value, bool) or not isinstance(value, int) or value < 0:
        raise _malformed("Invalid content-length-range.")
    return value


def _expiration(value: object) -> datetime:
    try:
        found = datetime.fromisoformat(value) if isinstance(value, str) else None
    except ValueError:
        found = None
    if found is None:
        raise _malformed("Invalid expiration.")
    return found if found.tzinfo else found.replace(tzinfo=UTC)


def check_conditions(policy: Policy, fields: Mapping[str, str]) -> None:
    """Whether the form is what the policy allows. Raises AccessDenied."""
    for condition in policy.conditions:
        if not condition.holds(fields.get(condition.name, "")):
            raise _against_policy(f"Policy Condition failed: {condition}")
    named = {condition.name for condition in policy.conditions}
    # The bucket is of the address, and has to be named like a field: who signs for one does not sign for all.
    extra = sorted(name for name in fields if name not in named and name not in UNNAMED and not name.startswith(IGNORED_PREFIX))
    if extra:
        raise _against_policy(f"Extra input fields: {', '.join(extra)[:256]}")


def _require(fields: Mapping[str, str], name: str) -> None:
    if not fields.get(name):
        raise S3Error(
            "InvalidArgument",
            f"Bucket POST must contain a field named '{name}'. If it is specified, please check the order of the fields.",
            ArgumentName=name,
        )


def _wrong_field(message: str) -> S3Error:
    return S3Error("InvalidArgument", message)


def _against_policy(why: str) -> S3Error:
    return S3Error("AccessDenied", f"Invalid according to Policy: {why}")


def _malformed(why: str) -> S3Error:
    return S3Error("InvalidPolicyDocument", f"Invalid Policy: {why}")
