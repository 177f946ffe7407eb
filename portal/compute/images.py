"""Images: disks that instances are made from. A file is believed only after it was looked into, never for its name."""

import hashlib
import os
from collections.abc import Callable
from pathlib import Path
from typing import Annotated

from sqlalchemy import func, or_, select
from sqlalchemy.orm import Mapped, Session

from portal.compute.fetch import Limits, fetch
from portal.engines.ports import ComputeEngine, EngineRefused, EngineUnavailable, ImageInfo
from portal.kernel import fields as f
from portal.kernel.authz import reach
from portal.kernel.context import Context
from portal.kernel.db import Base
from portal.kernel.declare import Created, Effect, Outcome, Step, operation, update_operation
from portal.kernel.errors import Conflict, InvalidRequest, TooLarge
from portal.kernel.ids import new_id
from portal.kernel.lifecycle import Lifecycle
from portal.kernel.lookup import find, named
from portal.kernel.operations import refuse_unless_ready, run
from portal.kernel.outbound import problem_of
from portal.kernel.resource import Column, ResourceType, ShareableByName, Stateful
from portal.kernel.runner import StepRun
from portal.kernel.sharing import LIST_OF_IDS, share_operation, shared_accounts, veil_shares, visibility
from portal.settings import Settings

GIB = 1 << 30
CHUNK_BYTES = 1 << 20
TINY = "atonix-tiny"
OS_TYPES = ("linux", "windows", "custom")

LIFECYCLE = Lifecycle(
    "importing",
    {
        "awaiting_upload": frozenset({"importing", "deleting", "failed"}),
        "importing": frozenset({"available", "failed", "cancelled"}),
        "available": frozenset({"deleting"}),
        "catalogue": frozenset({"available", "deleting"}),
        "failed": frozenset({"importing", "deleting"}),
        "deleting": frozenset({"deleted", "failed"}),
    },
    transient=frozenset({"importing", "deleting"}),
    ended=frozenset({"deleted", "cancelled"}),
    tones={"failed": "bad", "awaiting_upload": "warn", "catalogue": "off"},
)


class Image(ShareableByName, Stateful, Base):
    """A disk that instances are made from; in state `catalogue` it is fetched from its publisher on first use."""

    __tablename__ = "images"

    os_type: Mapped[str] = f.field(f.Choice(OS_TYPES), label="OS type", default="linux", editable=True, filterable=True)
    os_name: Mapped[str] = f.field(f.Line(64), label="Operating system", default="", editable=True)
    os_version: Mapped[str] = f.field(f.Line(64), label="Version", default="", editable=True)
    size_gb: Mapped[int] = f.field(f.Int(1, 65_536), label="Smallest disk", unit="GiB", default=1)
    format: Mapped[str] = f.field(f.Line(16), label="Format", default="")
    file_size_bytes: Mapped[int] = f.field(f.Int(0, 2**53), label="File size", unit="B", default=0)
    checksum_sha256: Mapped[str] = f.field(
        f.Line(64, r"^([0-9a-fA-F]{64})?$", says="must be 64 hexadecimal digits"),
        label="SHA-256",
        default="",
        help="Of the file, in hex. With it, a changed or broken file is refused.",
    )
    source_url: Mapped[str] = f.field(
        f.Line(2048, r"^(https?://[^\s\x00-\x1f\x7f]+)?$", says="must begin with http:// or https:// and have no spaces"),
        label="URL",
        default="",
        help="Where the portal fetches the file.",
    )
    snapshot_id: Mapped[str | None] = f.field(f.Ref("storage.snapshot"), label="Made from snapshot", nullable=True)
    is_active: Mapped[bool] = f.field(f.Bool(), label="Active", default=True, editable=True, filterable=True)
    builtin: Mapped[bool] = f.field(f.Bool(), label="Built by the portal", default=False)


def staging_path(settings: Settings, image_id: str) -> Path:
    """Where the bytes of an image arrive before they are looked into."""
    directory = settings.data_dir.resolve() / "staging"
    directory.mkdir(parents=True, exist_ok=True, mode=0o700)
    path = (directory / image_id).resolve()
    if path.parent != directory:
        raise InvalidRequest("This id cannot name a file.")
    return path


def receive_upload(settings: Settings, image_id: str, read: Callable[[int], bytes], *, expected_bytes: int | None) -> str:
    """Stream an upload into staging under its size limit and give its SHA-256; what is cut short or too large leaves nothing behind."""
    limit = settings.image_max_gib * GIB
    target = staging_path(settings, image_id)
    partial = target.with_name(f"{image_id}.{new_id('part')}")
    sha, size = hashlib.sha256(), 0
    try:
        with partial.open("wb") as out:
            while chunk := read(CHUNK_BYTES):
                size += len(chunk)
                if size > limit:
                    raise TooLarge(f"The file is larger than {settings.image_max_gib} GiB, the most that is accepted (IMAGE_MAX_GIB).")
                sha.update(chunk)
                out.write(chunk)
            out.flush()
            os.fsync(out.fileno())
        if size == 0 or (expected_bytes is not None and size != expected_bytes):
            raise InvalidRequest.fields({"file": [f"The upload broke off: {size:,} of {expected_bytes or 0:,} bytes arrived. Send it again."]})
        partial.replace(target)
    finally:
        partial.unlink(missing_ok=True)
    return sha.hexdigest()


def upload(ctx: Context, image_id: str, read: Callable[[int], bytes], *, length: int | None) -> Outcome:
    """Take an image's file from a stream of `length` bytes, then let a worker look into it.

    Who may not, or comes at the wrong time, is refused before a byte is read. Raises InvalidRequest, TooLarge and what `run` raises.
    """
    refuse_unless_ready(ctx, image_upload, image_id)
    if length is None:
        raise InvalidRequest("Say how long the file is: send Content-Length.")
    row = find(ctx, IMAGE, image_id)
    sha256 = receive_upload(ctx.settings, row.id, read, expected_bytes=length)
    return run(ctx, image_upload, row.id, {"sha256": sha256})


# -- steps ---------------------------------------------------------------------------------------------------------------------------------


def compute_engine(run: StepRun) -> ComputeEngine:
    """The compute engine. Raises EngineUnavailable where the installation has none."""
    if run.engines.compute is None:
        raise EngineUnavailable("This worker has no compute engine (ENGINE_COMPUTE=none).")
    return run.engines.compute


def image_download(run: StepRun) -> None:
    """Fetch the file into staging, or write what a snapshot holds, unless it was uploaded."""
    image: Image = run.row
    if image.snapshot_id and run.registry.volumes is not None:
        run.registry.volumes.export(run, image.snapshot_id, staging_path(run.settings, image.id))
    elif image.source_url:
        download(run.settings, image, staging_path(run.settings, image.id))
    run.detail = "from a snapshot" if image.snapshot_id else "fetched" if image.source_url else "uploaded"


def image_store(run: StepRun) -> None:
    """Look into the file and take it into the image store."""
    info = take(compute_engine(run), run.row, staging_path(run.settings, run.row.id))
    run.save(**facts_of(info))
    run.detail = f"{info.format}, {info.virtual_size_bytes / GIB:.1f} GiB"


def image_unstage(run: StepRun) -> None:
    """Throw away what arrived."""
    staging_path(run.settings, run.row.id).unlink(missing_ok=True)


def image_erase(run: StepRun) -> None:
    """Remove the image from the store and from staging."""
    compute_engine(run).remove_image(run.row.id)
    image_unstage(run)


def download(settings: Settings, image: Image, staged: Path) -> None:
    """Fetch an image's file and compare its checksum. Raises EngineError or EngineRefused."""
    networks = tuple(part.strip() for part in settings.image_hosts_allowed.split(",") if part.strip())
    found = fetch(image.source_url, staged, Limits(settings.image_max_gib * GIB, networks))
    if image.checksum_sha256 and found != image.checksum_sha256.lower():
        staged.unlink(missing_ok=True)
        raise EngineRefused(f"The file has SHA-256 {found}, expected was {image.checksum_sha256}. It was thrown away.")


def take(engine: ComputeEngine, image: Image, staged: Path) -> ImageInfo:
    """Bring an image into the engine's store; one that is there stays as it is."""
    try:
        return engine.ensure_image(image.id, staged)
    except EngineRefused:
        staged.unlink(missing_ok=True)
        raise


def build_builtin(engine: ComputeEngine) -> None:
    """Have the portal's own guest ready before it is asked for."""
    engine.ensure_builtin_image(TINY)


def facts_of(info: ImageInfo) -> dict[str, object]:
    """Columns that tell what is really in the file."""
    return {
        "format": info.format.value, "file_size_bytes": info.file_size_bytes, "checksum_sha256": info.sha256,
        "size_gb": max(1, -(-info.virtual_size_bytes // GIB)),
    }  # fmt: skip


def ensure_image(run: StepRun, image: Image) -> None:
    """Have an image in the store before a machine is made from it: build it, or fetch it on first use."""
    engine = compute_engine(run)
    if engine.has_image(image.id):
        return
    if image.builtin:
        engine.ensure_builtin_image(image.id)
        return
    if not image.source_url:
        raise EngineRefused(f"The file of image {image.name} is not in this host's store.")
    # A file of this job's own: two machines may be made from the image at the same time.
    staged = staging_path(run.settings, f"{image.id}.{run.job_id}")
    try:
        download(run.settings, image, staged)
        take(engine, image, staged)
    finally:
        staged.unlink(missing_ok=True)


# -- operations ----------------------------------------------------------------------------------------------------------------------------

STORE = (
    Step(image_download, "Receive the file", undo=image_unstage),
    Step(image_store, "Check the file and store it", undo=image_erase),
)


SnapshotId = Annotated[str | None, f.FieldInfo(f.Ref("storage.snapshot"), "Snapshot", "Make the image from what it holds.", aliases=("snapshot_id",))]


@operation(
    Image, "create", label="Import", needs="write", effect=Effect.CREATE, steps=STORE, holds="importing", settles="available", fails="failed",
    cancelled="cancelled",
)  # fmt: skip
def image_create(
    ctx: Context, *, name: str, source_url: str = "", checksum_sha256: str = "", description: str = "", os_type: str = "linux", os_name: str = "",
    os_version: str = "", is_public: bool = False, snapshot: SnapshotId = None, tags: dict[str, str] | None = None,
) -> Created:  # fmt: skip
    """Import an image: from a URL or a snapshot at once, or as an upload that follows."""
    if is_public:
        refuse_unless_platform(ctx)
    if source_url and (problem := problem_of(source_url)):
        raise InvalidRequest.fields({"source_url": [problem]})
    kept = named(ctx, "storage.snapshot", snapshot, field="snapshot") if snapshot else None
    if kept is not None and (source_url or checksum_sha256):
        raise InvalidRequest.fields({"source_url": ["and a checksum are of files that are fetched; this image is made from a snapshot."]})
    if kept is not None and kept.state != "completed":
        raise InvalidRequest.fields({"snapshot": [f"{kept.name} is {kept.state}; it has to be completed."]})
    if kept is not None and kept.encryption_enabled:
        raise InvalidRequest.fields({"snapshot": [f"{kept.name} is encrypted, and images are not: everybody who may use an image can read it."]})
    image = Image(
        name=name, source_url=source_url, checksum_sha256=checksum_sha256.lower(), description=description, os_type=os_type, os_name=os_name,
        os_version=os_version, is_public=is_public, tags=tags or {}, snapshot_id=kept.id if kept is not None else None,
        state="importing" if source_url or kept is not None else "awaiting_upload",
    )  # fmt: skip
    return Created([image], queue=image.state == "importing")


def refuse_unless_platform(ctx: Context) -> None:
    """Raise Conflict unless the caller may share images with every project."""
    if not any(grant.role == "platform_admin" for grant in ctx.principal.grants) and not ctx.principal.is_system:
        raise InvalidRequest.fields({"is_public": ["Only a platform admin shares an image with every project."]})


@operation(
    Image, "upload", label="Upload", needs="write", steps=STORE, when={"awaiting_upload", "failed"}, holds="importing", settles="available",
    fails="failed", internal=True,
)  # fmt: skip
def image_upload(ctx: Context, image: Image, *, sha256: Annotated[str, f.FieldInfo(f.Line(64))]) -> None:
    """Take an uploaded file, unless its checksum is not the announced one."""
    del ctx
    if image.checksum_sha256 and image.checksum_sha256 != sha256:
        raise InvalidRequest.fields(
            {"checksum_sha256": [f"The file that arrived has SHA-256 {sha256}, announced was {image.checksum_sha256}. Send it again."]}
        )
    image.source_url = ""


@operation(
    Image, "delete", label="Delete", needs="delete", effect=Effect.REMOVE, icon="trash", danger=True, bulk=True,
    steps=(Step(image_erase, "Remove the file", because="a file that is half gone is gone"),),
    when={"available", "failed", "awaiting_upload", "catalogue"}, holds="deleting", settles="deleted", fails="failed",
)  # fmt: skip
def image_delete(ctx: Context, image: Image) -> None:
    """Delete an image that no instance uses."""
    instance = ctx.registry.model("compute.instance")
    using = (or_(instance.image_id == image.id, instance.rebuild_to_id == image.id), instance.deleted_at.is_(None))
    number = ctx.db.scalar(select(func.count()).select_from(instance).where(*using)) or 0
    if number:
        # A shared image is used in projects whose names of instances are not the caller's to know.
        known = reach(ctx, "compute.instance.read").rows(instance)
        names = ctx.db.scalars(select(instance.name).where(*using, known).order_by(instance.name).limit(3)).all()
        others = number - len(names)
        users = ", ".join(names) + (" and " if names and others else "") + (f"{others} other instance{'s' if others > 1 else ''}" if others else "")
        raise Conflict(
            f"{image.name} is used by {users}. Terminate or rebuild them first, or make the image inactive.", details={"instances": number}
        )
    if ctx.registry.volumes is not None and (number := ctx.registry.volumes.users_of_image(ctx, image.id)):
        what = f"{number} volume{'s' if number > 1 else ''} or snapshot{'s' if number > 1 else ''}"
        raise Conflict(f"{image.name} is what {what} began with. Delete them first, or make the image inactive.", details={"volumes": number})


def _refuse_platforms_own(image: Image) -> None:
    if image.project_id is None:
        raise Conflict(f"{image.name} is the platform's own, which everybody has.")


image_share = share_operation(Image, when=("available",), refuse=_refuse_platforms_own)


IMAGE = ResourceType(
    Image, service="compute", name="image", collection="images", prefix="ami", label="Image", plural="Images", icon="image",
    summary="Disks that instances are made from.",
    operations=[image_create, image_upload, image_share, image_delete, update_operation(Image)],
    columns=[Column("name", "Name", sort="name"), Column("state", "State", sort="state"), Column("system", "System", css="md"),
             Column("size", "Smallest disk", css="num lo"),
             Column("visibility", "Visible to", css="lo"), Column("created_at", "Created", sort="created_at", css="lo")],
    lifecycle=LIFECYCLE, quota={"images": 1}, aliases={"status": "state"},
    show={"system": lambda v: f"{v.os_name} {v.os_version}".strip(), "size": lambda v: f"{v.size_gb} GiB",
          "visibility": visibility, "shared_with_accounts": shared_accounts},
    shapes={"shared_with_accounts": LIST_OF_IDS}, veil=veil_shares,
    usable=lambda v: v.is_active and v.state in {"available", "catalogue"},
    describe=lambda v: (f"{v.os_name} {v.os_version}".strip() or v.os_type, f"{v.size_gb} GiB or more", "Fetched on first use" if v.state == "catalogue" else ""),
)  # fmt: skip

UBUNTU_2204 = "https://cloud-images.ubuntu.com/releases/22.04/release/ubuntu-22.04-server-cloudimg-amd64.img"
DEBIAN_12 = "https://cloud.debian.org/images/cloud/bookworm/latest/debian-12-genericcloud-amd64.qcow2"

# (id, name, operating system, version, smallest disk in GiB, publisher's URL; empty for the one that the portal builds)
CATALOGUE = (
    (TINY, "atonix-tiny", "Atonix Tiny", "1", 1, ""),
    ("ami-ubuntu2204", "ubuntu-22.04", "Ubuntu", "22.04", 3, UBUNTU_2204),
    ("ami-debian12", "debian-12", "Debian", "12", 3, DEBIAN_12),
)


def seed_images(session: Session) -> None:
    """The images of a fresh installation: one that the portal builds itself, and publishers' images that are fetched on first use."""
    for image_id, name, os_name, version, size_gb, url in CATALOGUE:
        if session.get(Image, image_id) is None:
            session.add(
                Image(
                    id=image_id, name=name, os_type="linux", os_name=os_name, os_version=version, size_gb=size_gb, is_public=True, source_url=url,
                    builtin=not url, state="catalogue" if url else "available",
                )
            )  # fmt: skip
