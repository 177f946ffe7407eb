"""The generated pages of docs/reference: what the code declares, as tables. A test fails if one of them is not what `portal docs` would write."""

import inspect
import json
import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from portal.catalogue import EVENTS, build_registry
from portal.http import exporter, probes
from portal.http.errors import body_of
from portal.kernel.authz import LEVELS, ROLES, role_matrix
from portal.kernel.declare import Operation
from portal.kernel.errors import ERRORS, PortalError, QuotaExceeded, StateConflict
from portal.kernel.limits import user_dimensions
from portal.kernel.resource import ResourceType
from portal.settings import ROOT, Settings
from portal.worker.tasks import TASKS

DIRECTORY = ROOT / "docs" / "reference"
MARKS = (("editable", "edit"), ("sortable", "sort"), ("filterable", "filter"))
ORIGIN = "This page is written by `make docs` from the code; change it there."


def write_all() -> Iterator[Path]:
    """Write every page; gives the paths of those that changed."""
    DIRECTORY.mkdir(parents=True, exist_ok=True)
    for name, page in PAGES.items():
        path, text = DIRECTORY / name, page()
        if not path.exists() or path.read_text() != text:
            path.write_text(text)
            yield path


def _page(title: str, *paragraphs: str) -> str:
    return "\n\n".join((f"# {title}", ORIGIN, *(p for p in paragraphs if p))) + "\n"


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(str(cell).replace("|", "\\|").replace("\n", " ") for cell in line) + " |" for line in lines)


def settings_page() -> str:
    """Every setting: variable, default, meaning."""
    rows = [
        (f"`{name.upper()}`", f"`{info.get_default()}`" if str(info.get_default()) not in {"", "**********"} else "", info.description or "")
        for name, info in Settings.model_fields.items()
    ]
    text = "Settings come from the environment. `portal settings` prints those in force, with their source and with secrets masked."
    return _page("Settings", text, _table(("Variable", "Default", "Meaning"), rows))


def permissions_page() -> str:
    """Every permission, its level, and which role has it."""
    permissions = build_registry().permissions
    matrix = role_matrix(list(permissions), list(permissions.values()))
    roles = _table(("Role", "Name", "May"), [(f"`{r.name}`", r.label, r.summary) for r in ROLES.values()])
    rows = [(f"`{action}`", permissions[action], *(answers[name] for name in ROLES)) for action, answers in sorted(matrix)]
    text = (
        f"A permission is named `service.type.action` and has a level: {', '.join(LEVELS)}. Roles are policies that allow levels. "
        "`own` means: for what the user created. Whatever no policy allows is denied."
    )
    return _page("Permissions", text, roles, _table(("Permission", "Level", *(r.label for r in ROLES.values())), rows))


def errors_page() -> str:
    """Every error code with its status."""
    kinds: list[type[PortalError]] = sorted({*ERRORS, StateConflict, QuotaExceeded}, key=lambda kind: (kind.status, kind.code, kind.__name__))
    rows = [(str(kind.status), f"`{kind.code}`", (inspect.getdoc(kind) or "").splitlines()[0]) for kind in kinds]
    text = (
        "The API answers every refusal with the same body, the console with the same words. `message` names cause, limit and way out; `details` maps "
        "a field or fact to its explanation; `request_id` is in the log."
    )
    shown = body_of(QuotaExceeded("cpus", limit=400, used=399, requested=2), "req-5f0c1d2e3a4b")
    sample = f"```json\n{json.dumps(shown, indent=2)}\n```"
    return _page("Errors", text, sample, _table(("Status", "Code", "When"), rows))


def events_page() -> str:
    """Every event and audit action of resources."""
    rows = []
    for rtype in build_registry():
        rows += [(f"`{rtype.key}.{op.verb}`", op.summary) for op in rtype.operations]
        settled = sorted({state for op in rtype.operations if op.steps for state in (op.settles, op.fails, op.cancelled) if state})
        rows += [(f"`{rtype.key}.{state}`", f"A job ended and left the {rtype.label.lower()} in this state.") for state in settled]
    rows += [(f"`{name}`", when) for name, when in EVENTS.items()]
    rows.append(("`security.audit.broken`", "A verification found the audit log broken; the payload names the entry and what is wrong with it."))
    text = (
        "Events are written in the transaction of the change they tell of, and read by live pages, `GET /api/v1/events` and webhooks. "
        "The audit log uses the same names for actions; it adds `.succeeded`, `.failed`, `.cancelled` or `.dead` when the job of an operation ends."
    )
    return _page("Events", text, _table(("Event", "When"), rows))


def metrics_page() -> str:
    """Every metric of the portal's own."""
    known = [
        probes.REQUESTS,
        probes.DURATION,
        probes.ACTIVE_REQUESTS,
        probes.ERRORS,
        probes.JOBS_WAITING,
        probes.HANGS,
        probes.REFUSED,
        *probes.AUDIT,
    ]
    families = [family for metric in known for family in metric.collect()] + list(exporter.ProcessTree(os.getpid()).collect())
    rows = [(f"`{family.name}{'_total' if family.type == 'counter' else ''}`", family.type, family.documentation) for family in families]
    return _page("Metrics", "Served at `/metrics`, on the main port and on `METRICS_PORT`.", _table(("Name", "Type", "Meaning"), rows))


def resources_page() -> str:
    """Every resource type: fields, operations, states."""
    parts = [text for rtype in build_registry() for text in _resource(rtype)]
    rows = [
        (f"`{d.name}`", f"{d.label} {d.unit}".strip(), f"{d.default:,} per {'project' if d.counted is None else 'user'}")
        for d in user_dimensions().values()
    ]
    dimensions = _table(("Quota", "Meaning", "Default"), rows)
    return _page("Resource types", *parts, "## Quotas", dimensions)


def _resource(rtype: ResourceType) -> Iterator[str]:
    yield f"## {rtype.label}"
    quotas = ", ".join(f"`{name}`" for name in rtype.quota) or "none"
    yield f"{rtype.summary} `/api/v1/{rtype.service}/{rtype.collection}`, ids begin with `{rtype.prefix}-`. Quotas: {quotas}."
    shown = [(name, info) for name, info in rtype.fields().items() if info.exposed]
    rows = [
        (
            f"`{name}`",
            type(info.kind).__name__.lower(),
            info.unit,
            ", ".join(word for mark, word in MARKS if getattr(info, mark)),
            info.help or info.label,
        )
        for name, info in shown
    ]
    yield _table(("Field", "Kind", "Unit", "May be used to", "Meaning"), rows)
    yield _table(("Operation", "Level", "Allowed in", "Ends in", "Does"), [_operation(op) for op in rtype.operations if not op.internal])


def _operation(op: Operation) -> tuple[str, ...]:
    ends = " or ".join(state for state in (op.settles, op.fails) if state)
    return f"`{op.verb}`", op.needs, ", ".join(sorted(op.when)) if op.when else "any state", ends, op.summary


def tasks_page() -> str:
    """Periodic work."""
    settings = Settings.model_construct()
    rows = [(f"`{task.name}`", f"{task.interval_s(settings):g} s", task.label) for task in TASKS.values()]
    return _page(
        "Periodic work", "Queued by the scheduler, once however many schedulers run; done by workers.", _table(("Name", "Every", "What"), rows)
    )


PAGES: dict[str, Callable[[], str]] = {
    "settings.md": settings_page,
    "permissions.md": permissions_page,
    "errors.md": errors_page,
    "events.md": events_page,
    "metrics.md": metrics_page,
    "resources.md": resources_page,
    "tasks.md": tasks_page,
}
