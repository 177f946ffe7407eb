"""What compute shows besides the derived pages: metrics and consoles of instances, the upload of image files."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from flask import Blueprint, current_app, request
from flask.typing import ResponseReturnValue

from portal.compute.images import upload
from portal.compute.metrics import Series, series
from portal.http.guard import Access, access, large_body
from portal.http.request import context
from portal.http.security import allow_inline_style
from portal.kernel.context import Context
from portal.kernel.errors import InvalidRequest
from portal.web.derived import Tab
from portal.web.page import go

pages = Blueprint("compute", __name__)
PERIODS = (1, 6, 24, 168)
LOG_BYTES = 64 << 10
WIDTH, HEIGHT = 600, 120


@dataclass(frozen=True, slots=True)
class Line:
    """One line of a chart, as an SVG path in a box of 600 × 120."""

    label: str
    css: str
    path: str
    now: float


@dataclass(frozen=True, slots=True)
class Chart:
    """A chart of measurements over a period; `unit` is what the axis counts."""

    title: str
    unit: str
    top: float
    lines: Sequence[Line]
    summary: str


def hours_asked() -> int:
    """How far back the page is to look, of a few periods. Raises InvalidRequest."""
    text = request.args.get("hours", "1")
    hours = int(text) if text.isascii() and text.isdigit() and len(text) < 4 else 0  # noqa: PLR2004 - a week has 168
    if hours not in PERIODS:
        raise InvalidRequest.fields({"hours": [f"must be one of {', '.join(map(str, PERIODS))}."]})
    return hours


def _load_metrics(ctx: Context, row: Any) -> Mapping[str, Any]:
    hours = hours_asked()
    found = series(ctx, row.id, hours=hours)
    return {"hours": hours, "periods": PERIODS, "series": found, "charts": charts(found) if found.points else []}


def charts(found: Series) -> list[Chart]:
    """The four charts of an instance."""
    points = found.points
    seconds = [max(point.interval_s, 1e-3) for point in points]

    def rate(name: str) -> list[float]:
        return [getattr(point, name) / taken / 1024 for point, taken in zip(points, seconds, strict=True)]

    return [
        chart_of("CPU", "%", [("used", "", [p.cpu_usage_percent for p in points])], top=100, points=points),
        chart_of("Memory", "%", [("used", "", [p.memory_usage_percent for p in points])], top=100, points=points),
        chart_of("Network", "KiB/s", [("out", "", rate("network_out_bytes")), ("in", "c2", rate("network_in_bytes"))], points=points),
        chart_of("Disk", "KiB/s", [("write", "", rate("io_write_bytes")), ("read", "c2", rate("io_read_bytes"))], points=points),
    ]


def chart_of(title: str, unit: str, values: Sequence[tuple[str, str, Sequence[float]]], *, points: Sequence[Any], top: float = 0) -> Chart:
    """A chart of lines, each a (label, class, numbers), measured `at` the times of the points. Its upper end is `top`, or what the numbers need."""
    top = top or _round_up(max(max(numbers) for _, _, numbers in values))
    start, end = points[0].at.timestamp(), points[-1].at.timestamp()
    span = max(end - start, 1)
    places = [(point.at.timestamp() - start) / span * WIDTH for point in points]
    lines = [Line(label, css, _path(places, numbers, top), numbers[-1]) for label, css, numbers in values]
    text = ", ".join(f"{label} between {min(numbers):.1f} and {max(numbers):.1f}, now {numbers[-1]:.1f} {unit}" for label, _, numbers in values)
    return Chart(title, unit, top, lines, f"{title}: {text}")


def _path(places: Sequence[float], numbers: Sequence[float], top: float) -> str:
    return "M" + "L".join(f"{x:.1f} {HEIGHT - min(number, top) / top * HEIGHT:.1f}" for x, number in zip(places, numbers, strict=True))


def _round_up(value: float) -> float:
    step = 1.0
    while step < value:
        step *= 2 if str(step)[0] in "15" else 2.5
    return step


def _load_console(ctx: Context, row: Any) -> Mapping[str, Any]:
    del ctx
    allow_inline_style(request)
    console = current_app.extensions["portal_engines"].console
    text = console.log_tail(row.id, max_bytes=LOG_BYTES).decode("utf-8", "replace") if console is not None else ""
    return {"log": text, "has_console": console is not None}


TABS: dict[str, Sequence[Tab]] = {
    "compute.instance": (
        Tab("console", "Console", "console.html", _load_console, needs="compute.instance.console"),
        Tab("metrics", "Metrics", "metrics.html", _load_metrics),
    ),
}


@pages.post("/compute/images/<image_id>/upload")
@access(Access.SIGNED_IN)
@large_body
def image_file(image_id: str) -> ResponseReturnValue:
    """Take an image's file: the body of a script's request, streamed to disk."""
    upload(context(), image_id, request.stream.read, length=request.content_length)
    return go(f"/compute/images/{image_id}", "The file has arrived and is being looked into.")
