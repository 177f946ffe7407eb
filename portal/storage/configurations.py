"""Settings of buckets that come as documents: rules for pages of other origins, for the life of objects, and a policy of the bucket's own."""

from typing import Annotated, Any

from portal.kernel import fields as f
from portal.kernel.context import Context
from portal.kernel.declare import operation
from portal.kernel.errors import InvalidRequest
from portal.storage.engine_steps import ON_ENGINE
from portal.storage.object_models import Bucket

MOST_RULES = 100
METHODS = ("GET", "PUT", "POST", "DELETE", "HEAD")
RULES = f.FieldInfo(f.Document(), "Rules", 'An object with "rules", a list.')
Rules = list[dict[str, Any]]


def checked_rules(document: dict[str, Any]) -> Rules:
    """The rules in a document. Raises InvalidRequest."""
    found = document.get("rules")
    if set(document) != {"rules"} or not isinstance(found, list) or len(found) > MOST_RULES or not all(isinstance(each, dict) for each in found):
        raise InvalidRequest.fields({"rules": [f"must be a list of at most {MOST_RULES} objects."]})
    return found


def _texts(rule: dict[str, Any], name: str, place: int, *, needed: bool = False) -> list[str]:
    found = rule.get(name, [])
    if not isinstance(found, list) or not all(isinstance(each, str) and 0 < len(each) <= 255 for each in found) or (needed and not found):  # noqa: PLR2004 - a name's length
        raise InvalidRequest.fields({f"rules.{place}.{name}": ["must be a list of texts" + (", of one at least." if needed else ".")]})
    return found


def cors_rules_of(configuration: dict[str, Any]) -> Rules:
    """The rules for other origins in a document. Raises InvalidRequest with what is wrong."""
    kept = []
    for place, rule in enumerate(checked_rules(configuration)):
        if unknown := set(rule) - {"id", "methods", "origins", "headers", "expose_headers", "max_age_seconds"}:
            raise InvalidRequest.fields({f"rules.{place}": [f"has no {', '.join(sorted(unknown))}."]})
        methods, origins = _texts(rule, "methods", place, needed=True), _texts(rule, "origins", place, needed=True)
        if wrong := [each for each in methods if each not in METHODS]:
            raise InvalidRequest.fields({f"rules.{place}.methods": [f"{wrong[0]} is none of {', '.join(METHODS)}."]})
        if any(each.count("*") > 1 for each in (*origins, *_texts(rule, "headers", place))):
            raise InvalidRequest.fields({f"rules.{place}": ["an origin or header may have one * at most."]})
        age = rule.get("max_age_seconds")
        if age is not None and (not isinstance(age, int) or isinstance(age, bool) or not 0 <= age < 2**31):
            raise InvalidRequest.fields({f"rules.{place}.max_age_seconds": ["must be a number of seconds."]})
        kept.append({
            "id": str(rule.get("id", ""))[:255], "methods": methods, "origins": origins, "headers": _texts(rule, "headers", place),
            "expose_headers": _texts(rule, "expose_headers", place), "max_age_seconds": age,
        })  # fmt: skip
    return kept


@operation(Bucket, "set_cors", label="Set rules for other origins", needs="write", icon="globe", in_menu=False, **ON_ENGINE)
def bucket_set_cors(ctx: Context, bucket: Bucket, *, configuration: Annotated[dict[str, Any], RULES]) -> None:
    """Say which pages of other origins may read and write the bucket from a browser; without rules none may."""
    del ctx
    bucket.cors_rules = cors_rules_of(configuration)
