"""What IAM says of a bucket, as a bucket policy of S3: for an engine that decides by itself, since clients talk to it and not to the portal.

Only what both languages can say is written: actions on keys that match patterns, from addresses, until or from a moment. What allows under another
condition is left out; what denies under one denies without it. So a key is never worth more there than here. Whoever may not do something is
told so expressly, because an engine lets the writer of an object do with it what they like.
"""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from portal.kernel.authz import access_of
from portal.kernel.context import Context, Principal
from portal.kernel.policy import Asked, Condition, Statement, Target, is_like, known_of
from portal.kernel.policy_index import Rule
from portal.storage.facts import BucketFacts
from portal.storage.grants import CANNED, ENFORCED, HARMLESS, blocks

VERBS: Mapping[str, tuple[str, ...]] = {
    "list": ("ListBucket", "ListBucketVersions", "ListBucketMultipartUploads"),
    "read": ("GetObject", "GetObjectVersion", "GetObjectTagging", "GetObjectVersionTagging"),
    "write": ("PutObject", "PutObjectTagging", "PutObjectVersionTagging", "AbortMultipartUpload", "ListMultipartUploadParts"),
    "delete": ("DeleteObject", "DeleteObjectVersion"),
    "publish": ("PutObjectAcl", "PutObjectVersionAcl"),
}  # fmt: skip
TYPE = "storage.object"
ARN = "arn:aws:s3:::"
ALL = ("*",)
# What is known of whoever comes with a key before they come.
SETTLED = ("principal.id", "principal.name", "principal.mfa", "principal.credential", "resource.project", "resource.shared")
EXPRESSIBLE = {("IpAddress", "request.ip"): "aws:SourceIp", ("NotIpAddress", "request.ip"): "aws:SourceIp"} | {
    (f"Date{how}", "request.time"): "aws:CurrentTime" for how in ("LessThan", "LessThanEquals", "GreaterThan", "GreaterThanEquals")
}
GRANTS = ("read", "write", "read-acp", "write-acp", "full-control")
# What a word gives everybody of a verb: nobody removes versions for good, or changes what is there, by it.
BY_WORD: Mapping[str, tuple[str, ...]] = {"list": VERBS["list"], "write": ("PutObject", "AbortMultipartUpload"), "delete": ("DeleteObject",)}
# A bucket's own word is about the bucket: whether its objects may be read they say themselves.
PUBLIC: Mapping[str, tuple[str, ...]] = {"public-read": ("list",), "public-read-write": ("list", "write", "delete"), "authenticated-read": ("list",)}


@dataclass(frozen=True, slots=True)
class Said:
    """One sentence: these keys, under these conditions as S3 writes them."""

    allows: bool
    patterns: tuple[str, ...]
    conditions: str = "{}"


@dataclass(slots=True)
class Rights:
    """What somebody may do with one verb, and which statements could not be said."""

    said: list[Said] = field(default_factory=list)
    left_out: list[str] = field(default_factory=list)

    @property
    def allowed(self) -> tuple[str, ...]:
        """Patterns of everything that is allowed under some condition or none."""
        return tuple(sorted({pattern for each in self.said if each.allows for pattern in each.patterns}))


def rest_of(pattern: str, text: str) -> set[str]:
    """What is left of a pattern once it has matched this text: patterns for whatever follows it; none if it cannot match."""
    places = {0}
    for character in text:
        after = set()
        for place in _over_stars(pattern, places):
            if place < len(pattern):
                if pattern[place] == "*":
                    after.add(place)
                elif pattern[place] in {"?", character}:
                    after.add(place + 1)
        places = after
    return {pattern[place:] for place in places}


def _over_stars(pattern: str, places: Iterable[int]) -> set[int]:
    found = set(places)
    for start in places:
        stars = len(pattern[start:]) - len(pattern[start:].lstrip("*"))
        found.update(range(start, start + stars + 1))
    return found


def rights(ctx: Context, principal: Principal, bucket: BucketFacts, verb: str) -> Rights:
    """What IAM lets somebody do in a bucket with one verb."""
    action = f"{TYPE}.{verb}"
    rules, limits = access_of(principal).of(action, ctx.registry.permissions[action])
    found = _of_rules([*rules.denies.rules, *rules.allows.rules], principal, bucket)
    for limit, its in limits:
        if limit.project_id in {None, bucket.project_id}:
            found = _both(found, _of_rules([*its.denies.rules, *its.allows.rules], principal, bucket))
    return found


def _of_rules(rules: Sequence[Rule], principal: Principal, bucket: BucketFacts) -> Rights:
    found = Rights()
    for rule in rules:
        if rule.scope in {None, bucket.project_id}:
            _say(found, rule.statement, principal, bucket)
    return found


def _both(mine: Rights, limit: Rights) -> Rights:
    """What both allow, as far as that can be said: one of them has to be for all keys."""
    denials = [each for each in (*mine.said, *limit.said) if not each.allows]
    one, other = ([each for each in part.said if each.allows] for part in (mine, limit))
    if Said(True, ALL) in other:
        kept = one
    elif Said(True, ALL) in one:
        kept = other
    else:
        kept = []
    return Rights([*denials, *kept], [*mine.left_out, *limit.left_out])


def _say(found: Rights, statement: Statement, principal: Principal, bucket: BucketFacts) -> None:
    ids = [wanted for kind, _, wanted in (each.partition("/") for each in statement.resources) if is_like(TYPE, kind)]
    if statement.resources and not ids:
        return
    patterns = {rest for each in ids or ALL for rest in rest_of(each, f"{bucket.name}/")}
    if "*" in patterns:
        patterns = {"*"}
    conditions: dict[str, dict[str, list[str]]] = {}
    for each in statement.conditions:
        if each.key in SETTLED:
            if not _holds(each, principal, bucket):
                return
        elif (key := EXPRESSIBLE.get((each.operator, each.key))) and conditions.get(each.operator) is None:
            conditions[each.operator] = {key: sorted(each.values)}
        else:
            found.left_out.append(f"{statement.sid or 'a statement'} ({each.operator} {each.key})")
            if statement.allows:
                return
    # Variables of S3 are none of ours.
    if any("${" in each for each in patterns):
        found.left_out.append(statement.sid)
        patterns = set() if statement.allows else {"*"}
    if patterns:
        found.said.append(Said(statement.allows, tuple(sorted(patterns)), json.dumps(conditions, sort_keys=True)))


def _holds(condition: Condition, principal: Principal, bucket: BucketFacts) -> bool:
    asked, target = Asked(principal.user_id, principal.username, credential="s3"), Target(bucket.project_id)
    return condition.holds(known_of(condition.key)(target, asked), asked)


# -- the document ----------------------------------------------------------------------------------------------------------------------------


@dataclass(slots=True)
class Document:
    """Statements, those that say the same of several people only once."""

    bucket: str
    by_saying: dict[str, set[str]] = field(default_factory=dict)

    def add(self, who: str, verb: str, said: Said, names: Sequence[str] = ()) -> None:
        """One sentence about somebody; `names` are those of S3 where not all of the verb are meant."""
        conditions = json.loads(said.conditions)
        effect = "Allow" if said.allows else "Deny"
        if verb == "list":
            if said.patterns != ALL:
                conditions.setdefault("StringLike", {})["s3:prefix"] = list(said.patterns)
            about = {"Resource": [f"{ARN}{self.bucket}"]}
        else:
            about = {"Resource": [*self._keys(said.patterns), *(self._several(verb) if said.allows else ())]}
        self._add(who, effect, verb, {**about, **({"Condition": conditions} if conditions else {})}, names)

    def keep_out(self, who: str, verb: str, patterns: Sequence[str], names: Sequence[str]) -> None:
        """Everything but these keys is refused, whatever ACLs of objects say; `names` are what is refused of the verb."""
        if verb == "list" or patterns == ALL:
            return
        about = {"NotResource": [*self._keys(patterns), *self._several(verb)]} if patterns else {"Resource": self._keys(ALL)}
        self._add(who, "Deny", verb, about, names)

    def _several(self, verb: str) -> list[str]:
        """RGW asks about the bucket before it asks about each of several keys that are to be deleted."""
        return [f"{ARN}{self.bucket}"] if verb == "delete" else []

    def _keys(self, patterns: Iterable[str]) -> list[str]:
        return [f"{ARN}{self.bucket}/{each}" for each in patterns]

    def _add(self, who: str, effect: str, verb: str, about: Mapping[str, Any], names: Sequence[str] = ()) -> None:
        saying = {"Effect": effect, "Action": [f"s3:{name}" for name in names or VERBS[verb]], **about}
        self.by_saying.setdefault(json.dumps(saying, sort_keys=True), set()).add(who)

    def close(self, who: str) -> None:
        """Nobody is let in by what a writer says with an upload: neither by a word nor by grants."""
        conditions = [{"StringEquals": {"s3:x-amz-acl": sorted(set(CANNED) - HARMLESS)}}]
        conditions += [{"StringLike": {f"s3:x-amz-grant-{name}": ["*"]}} for name in GRANTS]
        for each in conditions:
            self._add(who, "Deny", "write", {"Resource": self._keys(ALL), "Condition": each})

    def look(self, who: str) -> None:
        """Whoever may list something may ask where the bucket is and whether it keeps versions: clients do so first."""
        saying = {"Effect": "Allow", "Action": ["s3:GetBucketLocation", "s3:GetBucketVersioning"], "Resource": [f"{ARN}{self.bucket}"]}
        self.by_saying.setdefault(json.dumps(saying, sort_keys=True), set()).add(who)

    def statements(self) -> list[dict[str, Any]]:
        """In an order of their own, so that the same says the same."""
        return [{**json.loads(saying), "Principal": _principal(who)} for saying, who in sorted(self.by_saying.items())]


def _principal(who: Iterable[str]) -> Any:
    named = sorted(who)
    return "*" if "*" in named else {"AWS": named}


def document(
    ctx: Context, bucket: BucketFacts, owner: str, people: Mapping[str, Principal], arns: Mapping[str, str]
) -> dict[str, Any]:  # fmt: skip
    """The policy of a bucket: `owner` is how the engine calls the bucket's account, `people` are holders of keys by how it calls them.

    `arns` says how it calls users by id, for the bucket's own policy.
    """
    made = Document(bucket.name)
    # Whom the bucket lets in by a word counts as long as lists of access do.
    counts = bucket.ownership != ENFORCED and not blocks(bucket, "ignore_public_acls")
    public = PUBLIC.get(bucket.acl, ()) if counts else ()
    own = list((bucket.policy or {}).get("statements", ()))
    for arn, principal in sorted(people.items()):
        for verb in VERBS:
            found = rights(ctx, principal, bucket, verb) if verb != "publish" or counts else Rights()
            if verb == "publish" and found.allowed != ALL:
                made.close(arn)
            for said in found.said:
                made.add(arn, verb, said)
            if verb == "list" and found.allowed:
                made.look(arn)
            left = [name for name in VERBS[verb] if verb not in public or name not in BY_WORD[verb]]
            if left and not any(each["allows"] for each in own):
                made.keep_out(arn, verb, found.allowed, left)
    for verb in public:
        for who in people if bucket.acl == "authenticated-read" else ("*",):
            made.add(who, verb, Said(True, ALL), BY_WORD[verb])
    written = _listed((bucket.policy or {}).get("document", {}).get("Statement"))
    given = [_translated(each, kept["principals"], arns) for each, kept in zip(written, own, strict=True)]
    if blocks(bucket, "restrict_public_buckets"):
        given = [each for each in given if each["Effect"] == "Deny" or each["Principal"] != "*"]
    all_of_it = {"Effect": "Allow", "Principal": {"AWS": [owner]}, "Action": ["s3:*"], "Resource": [f"{ARN}{bucket.name}", f"{ARN}{bucket.name}/*"]}
    return {"Version": "2012-10-17", "Statement": [all_of_it, *made.statements(), *given]}


def _listed(given: Any) -> list[Any]:
    return given if isinstance(given, list) else [given] if given else []


def _translated(statement: Mapping[str, Any], principals: Sequence[str], arns: Mapping[str, str]) -> dict[str, Any]:
    """A statement that somebody wrote about principals with these ids, as the engine calls them; those without a key there are nobody."""
    if "*" in principals:
        return {**statement, "Principal": "*"}
    return {**statement, "Principal": {"AWS": sorted({arns.get(each, f"arn:aws:iam:::user/nobody-{each[:64]}") for each in principals})}}
