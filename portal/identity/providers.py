"""Providers of single sign-on, as a YAML file describes them (SSO_CONFIG), and what one says of somebody."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, Self
from urllib.parse import urlsplit

import yaml
from pydantic import BaseModel, ConfigDict, Field, SecretStr, ValidationError, field_validator, model_validator

from portal.identity.iam import GROUP_ROLES
from portal.identity.projects import PROJECT_ROLES
from portal.identity.users import PLATFORM_ROLES
from portal.settings import SettingsError

LOOPBACK = ("localhost", "127.0.0.1", "::1")


class GroupRule(BaseModel):
    """What members of a group at the provider are here: a role on the platform, or a role or group in a project."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    group: str = Field(min_length=1)
    platform_role: str = ""
    project: str = ""
    role: str = ""
    iam_group: str = ""

    @model_validator(mode="after")
    def _one_thing(self) -> Self:
        if sum(bool(each) for each in (self.platform_role, self.role, self.iam_group)) != 1 or bool(self.project) == bool(self.platform_role):
            msg = "a rule gives either platform_role, or a project with role or iam_group"
            raise ValueError(msg)
        if self.platform_role not in PLATFORM_ROLES or self.role not in {"", *PROJECT_ROLES}:
            msg = f"platform_role is one of {', '.join(PLATFORM_ROLES[1:])}, role one of {', '.join(GROUP_ROLES[1:])}"
            raise ValueError(msg)
        return self


class Provider(BaseModel):
    """Somebody who vouches for users: OpenID Connect, or plain OAuth 2.0 with an address that tells who has signed in."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str = Field(pattern=r"^[a-z0-9][a-z0-9-]{0,31}$")
    label: str = Field(min_length=1, max_length=60)
    kind: Literal["oidc", "oauth2"] = "oidc"
    issuer: str
    client_id: str = Field(min_length=1)
    client_secret: SecretStr = SecretStr("")
    client_secret_file: Path | None = None
    scopes: str = "openid profile email"
    authorize_url: str = ""
    token_url: str = ""
    userinfo_url: str = ""
    subject_claim: str = "sub"
    username_claim: str = "preferred_username"
    email_claim: str = "email"
    groups_claim: str = "groups"
    # Values of the claim `amr` that stand for more than one factor.
    mfa_methods: tuple[str, ...] = ("mfa",)
    new_users: bool = True
    sign_out: bool = True
    groups: tuple[GroupRule, ...] = ()

    @field_validator("issuer", "authorize_url", "token_url", "userinfo_url")
    @classmethod
    def _is_safe(cls, value: str) -> str:
        parts = urlsplit(value)
        if value and parts.scheme != "https" and not (parts.scheme == "http" and parts.hostname in LOOPBACK):
            msg = "must begin with https://"
            raise ValueError(msg)
        return value

    @model_validator(mode="after")
    def _is_whole(self) -> Self:
        if self.kind == "oauth2" and not (self.authorize_url and self.token_url and self.userinfo_url):
            msg = "kind oauth2 needs authorize_url, token_url and userinfo_url"
            raise ValueError(msg)
        if self.kind == "oidc" and "openid" not in self.scopes.split():
            msg = "kind oidc needs the scope openid"
            raise ValueError(msg)
        return self

    @property
    def method(self) -> str:
        """How sessions that it let in are marked."""
        return f"sso:{self.name}"

    def secret(self) -> str:
        """The client's secret, from the file or as it stands; empty for a public client."""
        return self.client_secret_file.read_text().strip() if self.client_secret_file else self.client_secret.get_secret_value()


class _Config(BaseModel):
    model_config = ConfigDict(extra="forbid")

    providers: tuple[Provider, ...]


@dataclass(frozen=True, slots=True)
class Claims:
    """What a provider says of whoever signed in there. `issuer` and `subject` together are who it is."""

    issuer: str
    subject: str
    username: str = ""
    email: str = ""
    groups: Sequence[str] = field(default=())
    mfa: bool = False
    sid: str = ""


def providers_load(path: str) -> dict[str, Provider]:
    """The providers of a file by name; none without a file. Raises SettingsError that names file, place and problem."""
    if not path:
        return {}
    try:
        found = _Config.model_validate(yaml.safe_load(Path(path).read_text()))
        for provider in found.providers:
            provider.secret()
    except (OSError, yaml.YAMLError, UnicodeError) as error:
        msg = f"SSO_CONFIG={path!r} is not accepted: {' '.join(str(error).split())}"
        raise SettingsError(msg) from None
    except ValidationError as error:
        lines = [f"SSO_CONFIG={path!r}: {'.'.join(str(part) for part in each['loc'])}: {each['msg']}" for each in error.errors()]
        raise SettingsError("\n".join(lines)) from None
    names = [provider.name for provider in found.providers]
    if len(set(names)) != len(names):
        msg = f"SSO_CONFIG={path!r}: two providers have the same name"
        raise SettingsError(msg)
    return {provider.name: provider for provider in found.providers}


def claims_of(provider: Provider, given: dict[str, object]) -> Claims:
    """What a provider's claims mean here."""

    def text(name: str, longest: int) -> str:
        value = given.get(name)
        return str(value)[:longest] if isinstance(value, str | int) and not isinstance(value, bool) else ""

    groups, methods = given.get(provider.groups_claim), given.get("amr")
    return Claims(
        provider.issuer, text(provider.subject_claim, 255), text(provider.username_claim, 150), text(provider.email_claim, 254),
        tuple(str(group) for group in groups) if isinstance(groups, list | tuple) else (groups,) if isinstance(groups, str) else (),
        mfa=isinstance(methods, list) and any(method in provider.mfa_methods for method in methods), sid=text("sid", 255),
    )  # fmt: skip
