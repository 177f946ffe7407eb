"""Buckets as websites: which document stands for a folder, what is shown where there is none, and where requests are sent instead."""

from collections.abc import Mapping
from typing import Annotated, Any, Literal
from urllib.parse import quote

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from portal.kernel import fields as f
from portal.kernel.context import Context
from portal.kernel.declare import operation
from portal.kernel.errors import InvalidRequest
from portal.storage.engine_steps import refuse_on_engine
from portal.storage.object_models import KEY_BYTES, Bucket

WEBSITE = f.FieldInfo(
    f.Document(), "Website", 'An object with "index_document", "error_document" and "routing_rules", or "redirect_all"; an empty one for no website.'
)
MOST_RULES = 50
HOST = r"^[A-Za-z0-9]([A-Za-z0-9.-]{0,251}[A-Za-z0-9])?(:[0-9]{1,5})?$"
Protocol = Literal["http", "https", ""]
# What a header can carry whole.
Text = Annotated[str, Field(max_length=KEY_BYTES, pattern=r"^[^\x00-\x1f\x7f]*$")]


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Everything(_Strict):
    """Another site that all requests are sent to."""

    host: str = Field(pattern=HOST)
    protocol: Protocol = ""


class When(_Strict):
    """Which requests a rule is about: those for keys that begin so, those that are refused so, or both."""

    key_prefix: Text = ""
    error_code: Annotated[int, Field(ge=400, le=599)] | None = None


class Redirect(_Strict):
    """Where a rule sends requests."""

    host: str = Field("", pattern=rf"{HOST}|^$")
    protocol: Protocol = ""
    code: Literal[301, 302, 303, 307, 308] = 301
    replace_prefix: Text | None = None
    replace_key: Text | None = None


class RoutingRule(_Strict):
    """One rule."""

    condition: When = When()
    redirect: Redirect

    def fits(self, key: str, error_code: int | None) -> bool:
        """Whether it is about a request, which was refused with a code or is yet to be answered."""
        return self.condition.error_code == error_code and key.startswith(self.condition.key_prefix)

    def location(self, key: str, protocol: str, host: str) -> str:
        """Where it sends a request for a key of a site."""
        to = self.redirect
        if to.replace_key is not None:
            key = to.replace_key
        elif to.replace_prefix is not None:
            key = to.replace_prefix + key.removeprefix(self.condition.key_prefix)
        return f"{to.protocol or protocol}://{to.host or host}/{quoted_path(key)}"


class Website(_Strict):
    """What makes a bucket a website."""

    index_document: Annotated[Text, Field(pattern=r"^[^/]*$")] = ""
    error_document: Text = ""
    redirect_all: Everything | None = None
    routing_rules: tuple[RoutingRule, ...] = Field((), max_length=MOST_RULES)


def quoted_path(key: str) -> str:
    """A key as it stands in an address."""
    return quote(key, safe="/-._~!$&'()*+,;=:@")


def website_of(kept: Mapping[str, Any]) -> Website:
    """The website in a document. Raises InvalidRequest."""
    try:
        found = Website.model_validate(kept)
    except ValidationError as error:
        problems: dict[str, list[str]] = {}
        for each in error.errors():
            problems.setdefault(".".join(map(str, each["loc"])) or "configuration", []).append(each["msg"])
        raise InvalidRequest.fields(problems) from error
    if found.redirect_all is not None and (found.index_document or found.error_document or found.routing_rules):
        raise InvalidRequest.fields({"redirect_all": ["stands alone: where everything is sent elsewhere there are no documents and rules."]})
    if found.redirect_all is None and not found.index_document:
        raise InvalidRequest.fields({"index_document": ["is missing: which document stands for a folder?"]})
    for number, rule in enumerate(found.routing_rules):
        if rule.redirect.replace_key is not None and rule.redirect.replace_prefix is not None:
            raise InvalidRequest.fields({f"routing_rules.{number}.redirect": ["may replace the key or the prefix of it, not both."]})
        if not (rule.redirect.model_fields_set - {"code"}):
            raise InvalidRequest.fields({f"routing_rules.{number}.redirect": ["must say what is different: host, protocol, key or prefix."]})
    return found


@operation(Bucket, "set_website", label="Set website", needs="write", icon="globe", in_menu=False)
def bucket_set_website(ctx: Context, bucket: Bucket, *, configuration: Annotated[dict[str, Any], WEBSITE]) -> None:
    """Make a bucket a website, or no website any more. Visitors read what policies and access lists let everybody read."""
    refuse_on_engine(ctx, "a website")
    bucket.website = website_of(configuration).model_dump(mode="json", exclude_unset=True) if configuration else None
