"""Rules for pages of other origins: what browsers ask before they send something, and what they are told with every answer."""

from collections.abc import Mapping
from typing import Any

from sqlalchemy import select
from sqlalchemy.orm import Session

from portal.kernel.errors import InvalidRequest
from portal.kernel.ids import is_storable
from portal.kernel.lookup import find
from portal.kernel.operations import run
from portal.kernel.policy import is_like
from portal.s3 import xml
from portal.s3.errors import S3Error
from portal.s3.exchange import Answer, Exchange, document
from portal.s3.requests import S3Request
from portal.storage.buckets import BUCKET
from portal.storage.configurations import bucket_set_cors
from portal.storage.facts import bucket_named
from portal.storage.object_models import Bucket

Rule = Mapping[str, Any]


def rules_of(session: Session, bucket: str) -> list[Rule]:
    """The rules of a bucket; none for one that is not there."""
    query = select(Bucket.cors_rules).where(Bucket.name == bucket, Bucket.deleted_at.is_(None))
    return list(session.scalars(query).first() or ()) if is_storable(bucket) else []


def headers_for(session: Session, request: S3Request) -> dict[str, str]:
    """What an answer to a page of another origin says besides; empty where no rule lets the page in."""
    origin = request.header("origin")
    if not origin or not request.bucket:
        return {}
    method = request.header("access-control-request-method") or request.method
    asked = [each.strip().lower() for each in request.header("access-control-request-headers").split(",") if each.strip()]
    rule = next((each for each in rules_of(session, request.bucket) if _fits(each, origin, method, asked)), None)
    return _said(rule, origin, asked) if rule is not None else {}


def _fits(rule: Rule, origin: str, method: str, asked: list[str]) -> bool:
    return (
        method in rule["methods"]
        and any(is_like(origin, each) for each in rule["origins"])
        and all(any(is_like(name, each.lower()) for each in rule["headers"]) for name in asked)
    )


def _said(rule: Rule, origin: str, asked: list[str]) -> dict[str, str]:
    is_any = "*" in rule["origins"]
    found = {"Access-Control-Allow-Origin": "*" if is_any else origin, "Access-Control-Allow-Methods": ", ".join(rule["methods"]),
             "Vary": "Origin, Access-Control-Request-Headers, Access-Control-Request-Method"}  # fmt: skip
    found |= {} if is_any else {"Access-Control-Allow-Credentials": "true"}
    found |= {"Access-Control-Allow-Headers": ", ".join(asked)} if asked else {}
    found |= {"Access-Control-Expose-Headers": ", ".join(rule["expose_headers"])} if rule["expose_headers"] else {}
    return found | ({"Access-Control-Max-Age": str(rule["max_age_seconds"])} if rule["max_age_seconds"] is not None else {})


def preflight(x: Exchange) -> Answer:
    """Whether a page may send what it is about to; the headers say the rest."""
    if not x.request.header("origin") or not x.request.header("access-control-request-method"):
        raise S3Error("InvalidRequest", "Insufficient information. Origin request header needed.")
    if not headers_for(x.ctx.db, x.request):
        raise S3Error("AccessForbidden", "CORSResponse: This CORS request is not allowed. No rule of the bucket lets this origin do that.")
    return Answer()


def get(x: Exchange) -> Answer:
    """The rules of a bucket."""
    bucket: Bucket = find(x.ctx, BUCKET, bucket_named(x.ctx.db, x.bucket).id)
    rules = rules_of(x.ctx.db, bucket.name)
    if not rules:
        raise S3Error("NoSuchCORSConfiguration")
    return document("CORSConfiguration", *(_element(rule) for rule in rules))


ELEMENTS = {"origins": "AllowedOrigin", "methods": "AllowedMethod", "headers": "AllowedHeader", "expose_headers": "ExposeHeader"}


def _element(rule: Rule) -> str:
    parts = [xml.leaf("ID", rule["id"])] if rule["id"] else []
    parts += [xml.leaf(element, each) for name, element in ELEMENTS.items() for each in rule[name]]
    return xml.group("CORSRule", *parts, *([xml.leaf("MaxAgeSeconds", rule["max_age_seconds"])] if rule["max_age_seconds"] is not None else []))


def put(x: Exchange) -> Answer:
    """Set the rules of a bucket, in place of those it has."""
    found = list(x.document("CORSConfiguration").children_named("CORSRule"))
    if not found:
        raise S3Error("MalformedXML")
    return _set(x, [_rule(node) for node in found], 200)


def _rule(node: xml.Node) -> dict[str, Any]:
    age = node.value("MaxAgeSeconds")
    if age is not None and not (age.isascii() and age.isdigit()):
        raise S3Error("MalformedXML")
    lists = {name: [each.text for each in node.children_named(element)] for name, element in ELEMENTS.items()}
    return {"id": node.value("ID") or "", **lists, "max_age_seconds": int(age) if age is not None else None}


def delete(x: Exchange) -> Answer:
    """Take the rules of a bucket away."""
    return _set(x, [], 204)


def _set(x: Exchange, rules: list[dict[str, Any]], status: int) -> Answer:
    try:
        run(x.ctx, bucket_set_cors, bucket_named(x.ctx.db, x.bucket).id, {"configuration": {"rules": rules}})
    except InvalidRequest as error:
        raise S3Error("InvalidRequest", error.message) from error
    return Answer(status)
