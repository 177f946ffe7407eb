"""Every setting of the portal: typed, from the environment, documented, printable.

A wrong value stops the start with one line that names the variable, the value and what is accepted. `docs/settings.md` is generated from here.
"""

import base64
import binascii
import os
import re
import secrets
from collections.abc import Callable
from enum import StrEnum
from ipaddress import ip_network
from pathlib import Path
from typing import Annotated, Any, Self
from urllib.parse import quote

from pydantic import AfterValidator, BeforeValidator, Field, SecretStr, ValidationError
from pydantic_settings import BaseSettings, SettingsConfigDict

ROOT = Path(__file__).resolve().parent.parent

LOG_LEVELS = {
    "debug": "debug",
    "info": "info",
    "warn": "warn",
    "warning": "warn",
    "error": "error",
    "fatal": "fatal",
    "critical": "fatal",
}


IN_QUERY = re.compile(r"(?i)([?&][^=&]*(?:password|secret|token|key)[^=&]*=)[^&]*")


class SettingsError(Exception):
    """A setting has a value the portal cannot start with; the text is one line for the operator."""


class ComputeDriver(StrEnum):
    """Which engine runs instances."""

    LOCAL = "local"
    FAKE = "fake"
    NONE = "none"


class NetworkDriver(StrEnum):
    """Which engine makes networks."""

    AUTO = "auto"
    LOCAL = "local"
    FAKE = "fake"
    NONE = "none"


class ObjectsDriver(StrEnum):
    """Where objects are kept."""

    LOCAL = "local"
    S3 = "s3"


class ObjectsAdmin(StrEnum):
    """How users and keys are made at an external engine for objects."""

    RGW = "rgw"
    NONE = "none"


class Accelerator(StrEnum):
    """How QEMU executes guest code."""

    AUTO = "auto"
    KVM = "kvm"
    TCG = "tcg"


def _log_level(value: str) -> str:
    try:
        return LOG_LEVELS[value.lower()]
    except KeyError:
        msg = "one of " + ", ".join(LOG_LEVELS)
        raise ValueError(msg) from None


# Types of volumes, each a directory of its own.
POOLS = ("ssd", "hdd", "nvme")
# Storage classes that may have a directory of their own, from the one that is used most to the one that is used least.
TIERS = ("REDUCED_REDUNDANCY", "STANDARD_IA", "INTELLIGENT_TIERING", "ONEZONE_IA", "GLACIER_IR")
PRICE = re.compile(r"[0-9]{1,6}(\.[0-9]{1,6})?")
SECRET_LENGTH = 16
PASSWORD_LENGTH = 12
KEY_BYTES = 32


def _networks(value: str) -> str:
    for part in filter(None, (part.strip() for part in value.split(","))):
        try:
            ip_network(part)
        except ValueError:
            msg = "addresses such as 10.0.0.0/8, separated by commas"
            raise ValueError(msg) from None
    return value


def _external(value: str) -> str:
    try:
        found = ip_network(value)
    except ValueError:
        found = None
    if found is None or found.version != 4 or not 8 <= found.prefixlen <= 28:  # noqa: PLR2004 - the version, and room for addresses
        msg = "a network such as 100.64.0.0/16, IPv4, /8 to /28, without host bits"
        raise ValueError(msg)
    return value


def _address(value: str) -> str:
    name, _, host = value.partition("@")
    if not name or not host or "@" in host or not value.isprintable() or " " in value:
        msg = "an e-mail address such as admin@example.org"
        raise ValueError(msg)
    return value


def _host(value: str) -> str:
    if not re.fullmatch(r"[A-Za-z0-9._:-]*", value):
        msg = "an address such as 127.0.0.1, ::1 or 0.0.0.0, or a host name"
        raise ValueError(msg)
    return value


def _directory(value: Path) -> Path:
    present = next((path for path in (value, *value.absolute().parents) if path.exists()), Path("/"))
    if not present.is_dir():
        msg = f"a directory, or the name of one that can be made; {present} is a file"
        raise ValueError(msg)
    return value


def _checked_pairs(value: str, fits: Callable[[str, str], bool], wanted: str) -> str:
    for part in filter(None, (part.strip() for part in value.split(","))):
        name, _, given = part.partition("=")
        if not fits(name, given):
            raise ValueError(wanted)
    return value


def _pools(value: str) -> str:
    wanted = f"directories by type, such as ssd=/srv/ssd,hdd=/srv/hdd; types are {', '.join(POOLS)}"
    return _checked_pairs(value, lambda name, path: name in POOLS and path.startswith("/"), wanted)


def _pairs(value: str) -> dict[str, str]:
    """What stands in a list such as a=b,c=d."""
    return dict(part.strip().split("=", 1) for part in value.split(",") if part.strip())


def _tiers(value: str) -> str:
    wanted = f"directories by storage class, such as STANDARD_IA=/srv/cold; classes are {', '.join(TIERS)}"
    return _checked_pairs(value, lambda name, path: name in TIERS and path.startswith("/"), wanted)


def _prices(value: str) -> str:
    wanted = "prices in USD by storage class, such as STANDARD=0.02,STANDARD_IA=0.01"
    return _checked_pairs(value, lambda name, price: name in {"STANDARD", *TIERS} and PRICE.fullmatch(price) is not None, wanted)


def _one_of(*schemes: str) -> Any:
    def check(value: str) -> str:
        if value and not value.startswith(tuple(f"{scheme}:" for scheme in schemes)):
            msg = "a URL that starts with " + " or ".join(f"{scheme}:" for scheme in schemes)
            raise ValueError(msg)
        return value

    return AfterValidator(check)


def _signing_key(value: SecretStr) -> SecretStr:
    for part in filter(None, (part.strip() for part in value.get_secret_value().split(","))):
        try:
            is_key = len(base64.b64decode(part, validate=True)) == KEY_BYTES
        except binascii.Error:
            is_key = False
        if not is_key:
            msg = "32 bytes in base64, such as `openssl rand -base64 32` prints; several are separated by commas"
            raise ValueError(msg)
    return value


Port = Annotated[int, Field(ge=0, le=65535)]
LogLevel = Annotated[str, BeforeValidator(_log_level)]


class Settings(BaseSettings):
    """All settings; the attribute `data_dir` is the environment variable `DATA_DIR`, and so on."""

    model_config = SettingsConfigDict(env_prefix="", case_sensitive=False, extra="ignore", env_ignore_empty=True)

    portal_host: Annotated[str, AfterValidator(_host)] = Field("127.0.0.1", description="Address the web server listens on.")
    portal_port: Port = Field(8080, description="Port of the console and the API.")
    metrics_port: Port = Field(9090, description="Port that serves /metrics for Prometheus; 0 switches the extra listener off.")
    public_url: Annotated[str, _one_of("http", "https")] = Field(
        "", description="Address users type, such as https://cloud.example.org; empty trusts the Host header of loopback only."
    )
    s3_port: Port = Field(9000, description="Port of the S3 interface, at PORTAL_HOST; 0 switches it off.")
    s3_domain: Annotated[str, AfterValidator(_host)] = Field(
        "", description="Domain whose sub-domains are names of buckets, such as s3.example.org; paths name them in any case."
    )
    s3_website_domain: Annotated[str, AfterValidator(_host)] = Field(
        "",
        description="Domain whose sub-domains are websites of buckets, such as web.example.org, at S3_PORT; another one than S3_DOMAIN, empty for none.",
    )
    s3_public_url: Annotated[str, _one_of("http", "https")] = Field(
        "", description="Address of the S3 interface that users type; empty: the name that the portal was asked under, with S3_PORT."
    )
    s3_tls_cert: str = Field("", description="File with the certificate of the S3 interface; with S3_TLS_KEY it speaks https.")
    s3_tls_key: str = Field("", description="File with the key of that certificate.")
    s3_block_public_access: bool = Field(
        True, description="New buckets begin with all of the public-access block, so that neither lists of access nor policies let everybody in."
    )
    s3_rate_limit_per_minute: int = Field(
        300_000, ge=0, description="Requests of one access key at the S3 interface per minute; 0 switches the limit off."
    )
    s3_rate_limit_anonymous_per_minute: int = Field(
        12_000, ge=0, description="Requests per address and minute there without a signature, or with a wrong one; 0 switches the limit off."
    )
    s3_upload_days: int = Field(7, ge=1, le=3650, description="An upload in parts that is not finished after so many days is given up.")
    object_keep_hours: int = Field(
        0, ge=0, le=8_760, description="The bytes of deleted objects stay for so many hours: longer than copying DATA_DIR for a backup takes."
    )
    s3_lifecycle_day_s: int = Field(86_400, ge=1, le=86_400, description="How long a day of lifecycle rules lasts; shorter ones are for tests.")
    object_tiers: Annotated[str, AfterValidator(_tiers)] = Field(
        "",
        description="Directories of storage classes, such as STANDARD_IA=/srv/cold,GLACIER_IR=/srv/tape; objects of all others live under DATA_DIR/objects.",
    )
    object_prices: Annotated[str, AfterValidator(_prices)] = Field(
        "",
        description="What a GiB costs a month in USD, by storage class, such as STANDARD=0.02,STANDARD_IA=0.01: what reports of tiering reckon with.",
    )
    s3_workers: int = Field(0, ge=0, le=64, description="Processes that serve the S3 interface; 0 is one for each CPU, from 2 to 8.")
    s3_threads: int = Field(16, ge=1, le=1000, description="Threads of one such process: so many uploads and downloads at the same time.")
    trusted_proxies: int = Field(0, ge=0, le=10, description="How many reverse proxies in front add X-Forwarded-* headers.")
    head_timeout_s: int = Field(
        10, ge=1, le=600, description="How long a client may take to send the head of a request, to the console, the API and the S3 interface."
    )
    body_min_bytes_per_s: int = Field(
        1024,
        ge=0,
        description="How fast a body has to come at least, over 30 seconds; 32 times as fast, over 5 seconds, while others wait for a thread. 0: any pace.",
    )
    connections_per_address: int = Field(
        250, ge=0, description="Connections that one process has with one address; 0 switches the limit off, as TRUSTED_PROXIES does."
    )
    data_dir: Annotated[Path, AfterValidator(_directory)] = Field(
        Path("var"), description="Directory for the database, guest disks, images, logs and sockets."
    )
    database_url: Annotated[str, _one_of("sqlite", "postgresql+psycopg", "postgresql", "postgres")] = Field(
        "", description="Database; empty means DB_* if DB_NAME is set, else SQLite in DATA_DIR."
    )
    db_name: str = Field("", description="PostgreSQL database name, when DATABASE_URL is empty.")
    db_user: str = Field("", description="PostgreSQL user, when DATABASE_URL is empty.")
    db_password: SecretStr = Field(SecretStr(""), description="PostgreSQL password, when DATABASE_URL is empty.")
    db_host: str = Field("127.0.0.1", description="PostgreSQL host, when DATABASE_URL is empty.")
    db_port: Port = Field(5432, description="PostgreSQL port, when DATABASE_URL is empty.")
    db_pool_size: int = Field(10, ge=1, le=200, description="Database connections kept open by one process.")
    queue_url: Annotated[str, _one_of("amqp", "amqps", "redis", "rediss")] = Field(
        "", description="Broker that carries job ids (amqp:// or redis://); empty lets workers poll the jobs table."
    )
    audit_signing_key: Annotated[SecretStr, AfterValidator(_signing_key)] = Field(
        SecretStr(""),
        description="Signs checkpoints of the audit log: 32 random bytes in base64, then the public keys used before, separated by commas; empty makes a "
        "key and keeps it in DATA_DIR/audit_key.",
    )
    audit_checkpoint_minutes: int = Field(15, ge=1, le=1440, description="How often the end of the audit log is signed, if something was written.")
    audit_verify_days: int = Field(7, ge=1, le=90, description="How often, in days, the whole audit log is verified, files of archives included.")
    audit_retention_days: int = Field(
        0,
        ge=0,
        le=36_500,
        description="Entries of the audit log that are older are moved into signed files under DATA_DIR/audit-archive; 0 keeps all in the database.",
    )
    audit_syslog_url: Annotated[str, _one_of("udp", "tcp", "tls")] = Field(
        "",
        description="Syslog server that gets a copy of the audit log (RFC 5424), such as tls://logs.example.org:6514, tcp:// or udp://; empty for none.",
    )
    audit_webhook_url: Annotated[str, _one_of("http", "https")] = Field(
        "", description="Address that gets a copy of the audit log as JSON by POST; empty for none."
    )
    audit_webhook_secret: SecretStr = Field(SecretStr(""), description="Signs what is sent to AUDIT_WEBHOOK_URL (HMAC-SHA256).")
    encryption_master_key: Annotated[SecretStr, AfterValidator(_signing_key)] = Field(
        SecretStr(""),
        description="Wraps the encryption keys of projects: 32 random bytes in base64. Several are separated by commas: the first wraps, all unwrap.",
    )
    encryption_master_key_file: str = Field(
        "",
        description="File with such keys, one on a line, where ENCRYPTION_MASTER_KEY is empty; without either, one is made in DATA_DIR/master_key.",
    )
    secret_key: SecretStr = Field(SecretStr(""), description="Signs CSRF tokens and cursors; empty makes one and keeps it in DATA_DIR/secret_key.")
    admin_email: Annotated[str, AfterValidator(_address)] = Field(
        "admin@atonix.local", description="E-mail address of the first administrator, user name `admin`."
    )
    admin_password: SecretStr = Field(SecretStr(""), description="Password of the first administrator; empty makes one and prints it once.")
    log_level: LogLevel = Field("info", description="debug, info, warn, error or fatal.")
    environment: str = Field("production", description="Name of this installation in log lines.")
    engine_compute: ComputeDriver = Field(
        ComputeDriver.LOCAL, description="Engine for instances: local (libvirt and QEMU), fake (nothing real, for tests), none."
    )
    qemu_accel: Accelerator = Field(Accelerator.AUTO, description="auto proves that KVM works before it is used; kvm and tcg choose.")
    libvirt_uri: str = Field("", description="libvirt connection; empty runs libvirt's embedded driver under DATA_DIR.")
    engine_network: NetworkDriver = Field(
        NetworkDriver.AUTO,
        description="Engine for networks: local (network namespaces of this host), fake, none; auto is the one of the same name as the engine for instances.",
    )
    network_external_cidr: Annotated[str, AfterValidator(_external)] = Field(
        "100.64.0.0/16", description="Addresses of the external network, which elastic IPs and gateways are given; the first is the host's."
    )
    network_external_nat: bool = Field(
        True, description="The host passes on to the Internet what leaves the external network (nftables masquerade, ip_forward)."
    )
    engine_objects: ObjectsDriver = Field(
        ObjectsDriver.LOCAL, description="Engine for objects: local (files under DATA_DIR, and the S3 interface of the portal), s3 (an external S3)."
    )
    s3_engine_endpoint: Annotated[str, _one_of("http", "https")] = Field(
        "", description="Address of the external S3, which users and browsers get as well."
    )
    s3_engine_region: str = Field("us-east-1", description="Region that requests to the external S3 are signed for.")
    s3_engine_key_file: str = Field(
        "", description="File with the portal's own key there: JSON with access_key_id and secret_access_key; nobody else should be able to read it."
    )
    s3_engine_prefix: str = Field(
        "atonix",
        pattern=r"^[a-z0-9]{1,32}$",
        description="Ids of users that the portal makes there begin with it; two portals at one engine need two.",
    )
    s3_engine_admin: ObjectsAdmin = Field(
        ObjectsAdmin.RGW,
        description="How users and keys are made there: rgw (the admin interface of Ceph RGW), none (all is done with the portal's key).",
    )
    volume_pools: Annotated[str, AfterValidator(_pools)] = Field(
        "",
        description="Directories that volumes live in, by type, such as ssd=/srv/ssd,hdd=/srv/hdd; the others live under DATA_DIR/engine/volumes.",
    )
    volume_trash_days: int = Field(7, ge=1, le=365, description="How long a volume stays in the trash before it is deleted for good.")
    cpu_overcommit: float = Field(8.0, ge=1, le=64, description="How many vCPUs may be promised per CPU of the host.")
    memory_reserved_mib: int = Field(1024, ge=0, description="Memory of the host that is never promised to instances.")
    disk_reserved_gib: int = Field(2, ge=0, description="Free disk of the host below which nothing more is started.")
    object_reserved_mib: int = Field(
        256, ge=0, description="Free disk below which no more objects are taken, so that the database goes on and objects can be deleted."
    )
    image_max_gib: int = Field(50, ge=1, le=4096, description="Largest image that may be uploaded or fetched.")
    image_hosts_allowed: Annotated[str, AfterValidator(_networks)] = Field(
        "", description="Private addresses (CIDR, comma separated) that images may be fetched from besides the public Internet."
    )
    webhook_hosts_allowed: Annotated[str, AfterValidator(_networks)] = Field(
        "", description="Private addresses (CIDR, comma separated) that webhooks of projects may be at besides the public Internet."
    )
    web_workers: int = Field(2, ge=1, le=64, description="Web server processes.")
    web_threads: int = Field(64, ge=4, le=1000, description="Threads of one web server process; a console session holds one.")
    worker_threads: int = Field(4, ge=1, le=64, description="Jobs that one worker process runs at the same time.")
    job_poll_ms: int = Field(50, ge=5, le=10_000, description="How often an idle worker looks at the jobs table.")
    job_lease_s: int = Field(30, ge=2, le=3600, description="A job whose worker is silent for this long goes to another one.")
    job_retry_base_s: float = Field(
        2.0,
        ge=0,
        le=3600,
        description="Pause before a failed step is tried again, doubled each time, and between looks at jobs that another waits for.",
    )
    job_max_attempts: int = Field(3, ge=1, le=20, description="Tries of one step before the job is undone.")
    reconcile_interval_s: int = Field(10, ge=1, le=3600, description="How often desired and actual state are compared.")
    worker_hang_s: int = Field(
        300,
        ge=1,
        le=86_400,
        description="A worker whose comparison of desired and actual state has not come on for this long ends itself, so that another begins afresh.",
    )
    metrics_interval_s: int = Field(15, ge=1, le=3600, description="How often instances are measured.")
    metrics_retention_days: int = Field(7, ge=1, le=3650, description="How long measurements of instances are kept.")
    terminated_retention_days: int = Field(30, ge=0, le=3650, description="How long records of terminated instances and deleted networks are kept.")
    stop_timeout_s: int = Field(30, ge=0, le=600, description="How long a guest may take to shut down before the plug is pulled.")
    sso_config: str = Field("", description="YAML file that describes providers of single sign-on; docs/sign-in.md shows one.")
    quota_four_eyes: bool = Field(
        True,
        description="Nobody decides their own request for a higher quota, or raises a limit without one while another administrator could approve.",
    )
    session_idle_minutes: int = Field(60, ge=1, le=10_080, description="A session ends after this long without a request.")
    session_absolute_hours: int = Field(12, ge=1, le=720, description="A session ends after this long in any case.")
    confirm_minutes: int = Field(15, ge=1, le=1440, description="Dangerous actions ask again who one is if the last proof is older than this.")
    api_token_days: int = Field(90, ge=1, le=3650, description="Lifetime of tokens from POST /api-token-auth/.")
    oauth2_access_token_minutes: int = Field(10, ge=1, le=60, description="Lifetime of access tokens that applications get (OAuth2).")
    oauth2_refresh_token_days: int = Field(30, ge=1, le=365, description="How long an application keeps its access before the user signs in again.")
    oauth2_key_days: int = Field(90, ge=1, le=3650, description="A key that signs access tokens is replaced after this long.")
    rate_limit_per_minute: int = Field(1200, ge=0, description="API requests per user and minute; 0 switches the limit off.")
    rate_limit_anonymous_per_minute: int = Field(
        120, ge=0, description="Requests per address and minute without a credential; 0 switches the limit off."
    )
    rate_limit_storage: Annotated[str, _one_of("memory", "redis", "rediss")] = Field(
        "memory://", description="Where request counts are kept; redis:// shares them between replicas."
    )

    def network_driver(self) -> NetworkDriver:
        """ENGINE_NETWORK, where `auto` follows ENGINE_COMPUTE."""
        return NetworkDriver(self.engine_compute.value) if self.engine_network is NetworkDriver.AUTO else self.engine_network

    def has_gateway(self) -> bool:
        """Whether the portal has an S3 interface of its own: an external engine for objects has one itself."""
        return bool(self.s3_port) and self.engine_objects is ObjectsDriver.LOCAL

    def pools(self) -> dict[str, Path]:
        """The directory of each type of volumes."""
        given = _pairs(self.volume_pools)
        home = self.data_dir.resolve() / "engine" / "volumes"
        return {name: Path(given[name]).resolve() if name in given else home / name for name in POOLS}

    def tiers(self) -> dict[str, Path]:
        """The directory of each storage class that has one of its own."""
        return {name: Path(path).resolve() / "objects" for name, path in _pairs(self.object_tiers).items()}

    def prices(self) -> dict[str, float]:
        """What a GiB costs a month, of the storage classes of which that is said."""
        return {name: float(price) for name, price in _pairs(self.object_prices).items()}

    def database(self) -> str:
        """URL for SQLAlchemy: DATABASE_URL, else built from DB_*, else SQLite in DATA_DIR."""
        url = self.database_url
        if not url and self.db_name:
            password = quote(self.db_password.get_secret_value(), safe="")
            return f"postgresql+psycopg://{quote(self.db_user, safe='')}:{password}@{self.db_host}:{self.db_port}/{quote(self.db_name, safe='')}"
        for scheme in ("postgres://", "postgresql://"):
            if url.startswith(scheme):
                return "postgresql+psycopg://" + url.removeprefix(scheme)
        return url or f"sqlite:///{self.data_dir.resolve() / 'portal.db'}"

    def secret(self) -> str:
        """SECRET_KEY, else the one kept in DATA_DIR, made at first use; two processes that start at once agree on one."""
        if given := self.secret_key.get_secret_value():
            return given
        path = self.data_dir / "secret_key"
        self.data_dir.mkdir(parents=True, exist_ok=True)
        fresh = path.with_name(f".secret_key.{secrets.token_hex(8)}")
        if not path.exists():
            fresh.touch(mode=0o600)
            fresh.write_text(secrets.token_urlsafe(48))
            try:
                os.link(fresh, path)
            except FileExistsError:
                pass
            finally:
                fresh.unlink()
        return path.read_text()

    def weaknesses(self) -> list[str]:
        """What is accepted and should be better, a sentence each."""
        found = []
        if 0 < len(self.secret_key.get_secret_value().strip()) < SECRET_LENGTH:
            found.append(f"SECRET_KEY has fewer than {SECRET_LENGTH} characters and can be guessed.")
        if 0 < len(self.admin_password.get_secret_value()) < PASSWORD_LENGTH:
            found.append(f"ADMIN_PASSWORD has fewer than {PASSWORD_LENGTH} characters, less than users may choose for themselves.")
        if self.audit_webhook_url and not self.audit_webhook_secret.get_secret_value():
            found.append("AUDIT_WEBHOOK_SECRET is empty: the receiver of the audit log cannot tell who sends to it.")
        return found

    @classmethod
    def load(cls, **overrides: Any) -> Self:
        """Read the environment. Raises SettingsError with one line per wrong variable."""
        try:
            return cls(**overrides)
        except ValidationError as error:
            raise SettingsError("\n".join(_explain(item) for item in error.errors())) from None

    def rows(self) -> list[tuple[str, str, str, str]]:
        """(variable, value with secrets masked, source, description) of every setting."""
        return [
            (name.upper(), _masked(getattr(self, name)), "environment" if _in_environment(name) else "default", info.description or "")
            for name, info in type(self).model_fields.items()
        ]


def _in_environment(name: str) -> bool:
    return any(key.lower() == name and value for key, value in os.environ.items())


def _masked(value: object) -> str:
    if isinstance(value, SecretStr):
        return "********" if value.get_secret_value() else ""
    text = IN_QUERY.sub(r"\1********", str(value))
    head, at, tail = text.rpartition("@")
    scheme, colon, userinfo = head.partition(":")
    if at and colon:
        return f"{scheme}://{userinfo.removeprefix('//').partition(':')[0]}:********@{tail}"
    return text


def _explain(item: Any) -> str:
    name = str(item["loc"][0])
    accepted = item["msg"].removeprefix("Value error, ").removeprefix("Input should be ")
    info = Settings.model_fields.get(name)
    value = "********" if info is not None and info.annotation is SecretStr else _masked(item["input"])
    return f"{name.upper()}={value!r} is not accepted: {accepted}"
