"""Documents of buckets in plain words, as their editors show them while they are typed; nothing is saved here."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from portal.kernel.context import Context
from portal.kernel.errors import InvalidRequest, PortalError
from portal.storage.configurations import cors_rules_of
from portal.storage.lifecycle import lifecycle_rules_of
from portal.storage.notifications import notification_rules_of
from portal.storage.object_models import Bucket
from portal.storage.policies import ARN, identified, statements_of
from portal.storage.replication import replication_rules_of
from portal.storage.websites import website_of

SHOWN = 20
EVERYBODY = "*"


@dataclass(frozen=True, slots=True)
class Reading:
    """What a document says, sentence by sentence; what to look at before it is saved; or what is wrong with it. Without one nothing `is_set`."""

    sentences: Sequence[str] = ()
    warnings: Sequence[str] = ()
    problems: Sequence[str] = ()
    is_set: bool = True


def problems_of(error: PortalError) -> Reading:
    """What is wrong, each with its place in the document."""
    at = [f"{name}: {' '.join(map(str, texts))}" for name, texts in error.details.items() if isinstance(texts, list)]
    return Reading(problems=at or [error.message])


def cors_in_words(ctx: Context, bucket: Bucket, document: Any) -> Reading:
    """Rules for other origins."""
    del ctx, bucket
    rules = cors_rules_of({"rules": document})
    found = [f"Pages of {_listed(each['origins'])} may {_listed(each['methods'])}." for each in rules]
    open_to = [f"Rule {number} lets pages of every origin in." for number, each in enumerate(rules, 1) if EVERYBODY in each["origins"]]
    return Reading(found or ["Pages of other origins are not let in."], open_to, is_set=bool(found))


def lifecycle_in_words(ctx: Context, bucket: Bucket, document: Any) -> Reading:
    """Rules for the life of objects."""
    rules = lifecycle_rules_of(ctx, {"rules": document})
    found, warnings = [], []
    for each in rules:
        which = f"objects under {each['prefix']}" if each["prefix"] else "all objects"
        if each["tags"]:
            which += " tagged " + _listed([f"{name}={value}" for name, value in each["tags"].items()])
        done = _done(each, which)
        found.append(f"{each['id']}: {'; '.join(done)}." if each["enabled"] else f"{each['id']} is switched off.")
        if each["enabled"] and not each["prefix"] and not each["tags"] and (each.get("expire_days") or each.get("expire_at")):
            warnings.append(
                f"{each['id']} expires everything in the bucket." + ("" if bucket.versioning == "enabled" else " Older versions are not kept.")
            )
    return Reading(found or ["The portal deletes nothing by itself."], warnings, is_set=bool(found))


def _done(rule: Mapping[str, Any], which: str) -> list[str]:
    keeps = f", the newest {rule['noncurrent_keep']} are kept" if rule.get("noncurrent_keep") else ""
    said = {
        "expire_days": f"{which} expire after {_days(rule.get('expire_days'))}", "expire_at": f"{which} expire on {rule.get('expire_at')}",
        "expire_markers": "marks of deletion go once nothing is behind them",
        "noncurrent_days": f"older versions of {which} go {_days(rule.get('noncurrent_days'))} after they were replaced{keeps}",
        "abort_days": f"uploads that nobody finishes are given up after {_days(rule.get('abort_days'))}",
    }  # fmt: skip
    done = [text for name, text in said.items() if rule.get(name)]
    done += [f"{which} move to {each['storage_class']} {_when(each)}" for each in rule.get("transitions") or ()]
    later = rule.get("noncurrent_transitions") or ()
    done += [f"older versions of {which} move to {each['storage_class']} {_days(each.get('days'))} after they were replaced" for each in later]
    return done or ["something that this page has no words for"]


def _when(each: Mapping[str, Any]) -> str:
    return f"after {_days(each['days'])}" if "days" in each else f"on {each.get('at')}"


def _days(number: Any) -> str:
    return f"{number} day" if number == 1 else f"{number} days"


def policy_in_words(ctx: Context, bucket: Bucket, document: Any) -> Reading:
    """A policy of the bucket's own."""
    if not document:
        return Reading(["The bucket has no policy: the policies of the project decide, and access lists."], is_set=False)
    if not isinstance(document, dict):
        raise InvalidRequest.fields({"Policy": ["must be an object."]})
    found, warnings = [], []
    statements = statements_of(document, bucket.name)
    identified(ctx.db, statements)
    for each in statements:
        whom = "everybody" if EVERYBODY in each["principals"] else _listed(each["principals"])
        where = _listed([place.removeprefix(ARN) for place in each["resources"]])
        only = ", on conditions" if each["conditions"] else ""
        found.append(f"{each['sid']} {'allows' if each['allows'] else 'denies'} {whom} {_listed(each['actions'])} on {where}{only}.")
        if each["allows"] and EVERYBODY in each["principals"] and not each["conditions"]:
            warnings.append(f"{each['sid']} lets everybody in, also who has not signed in.")
        if not each["allows"] and EVERYBODY in each["principals"] and not each["conditions"]:
            warnings.append(f"{each['sid']} keeps everybody out, you as well.")
    return Reading(found, warnings)


def website_in_words(ctx: Context, bucket: Bucket, document: Any) -> Reading:
    """A website."""
    del ctx, bucket
    if not document:
        return Reading(["The bucket is no website."], is_set=False)
    if not isinstance(document, dict):
        raise InvalidRequest.fields({"website": ["must be an object."]})
    found = website_of(document)
    if found.redirect_all is not None:
        return Reading(["Every visitor is sent elsewhere."])
    error = f", {found.error_document} for what is not there" if found.error_document else ""
    rules = f" {len(found.routing_rules)} rules send visitors elsewhere." if found.routing_rules else ""
    return Reading(
        [f"Visitors see {found.index_document} for a folder{error}.{rules}"],
        ["Visitors read only what policies and access lists let everybody read."],
    )


def notifications_in_words(ctx: Context, bucket: Bucket, document: Any) -> Reading:
    """Which webhooks are told of what."""
    found = []
    for each in notification_rules_of(ctx, bucket, {"rules": document}):
        about = [f"beginning with {each['prefix']}"] * bool(each["prefix"]) + [f"ending with {each['suffix']}"] * bool(each["suffix"])
        which = f" of keys {' and '.join(about)}" if about else ""
        found.append(f"{each['arn']} is told of {_listed(each['events'])}{which}.")
    return Reading(found or ["Nobody is told of what happens here."], is_set=bool(found))


def replication_in_words(ctx: Context, bucket: Bucket, document: Any) -> Reading:
    """What is replicated to where."""
    found, rules = [], replication_rules_of(ctx, bucket, {"rules": document})
    for each in rules:
        about = [f"under {each['prefix']}"] * bool(each["prefix"])
        if each["tags"]:
            about.append("tagged " + _listed([f"{name}={value}" for name, value in each["tags"].items()]))
        which = " ".join(["objects", *about]) if about else "all objects"
        besides = ["what is there already"] * each["existing"] + ["marks of deletion"] * each["delete_markers"]
        text = f"{which} go to {each['bucket_name']}" + (f", with {_listed(besides)}" if besides else "")
        found.append(f"{each['id']}: {text}." if each["enabled"] else f"{each['id']} is switched off.")
    places = [each["bucket_id"] for each in rules if each["enabled"]]
    order = ["Where several rules for one bucket fit an object, the one that stands first here decides."] * (len(set(places)) < len(places))
    return Reading([*found, *order] or ["Nothing is written into another bucket as well."], is_set=bool(found))


def _listed(texts: Sequence[str]) -> str:
    shown = [*texts[:SHOWN], *([f"{len(texts) - SHOWN} more"] if len(texts) > SHOWN else [])]
    return ", ".join(shown[:-1]) + (f" and {shown[-1]}" if len(shown) > 1 else shown[0])
