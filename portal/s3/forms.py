"""Forms by which browsers upload: fields first, then one file, which is read as it comes.

Stable: `open_form(request)` gives a `PostForm` (`.fields` by lower-case name, `.key`, `.file_name`), whose `open(...)` gives the `bodies.Body` of the file.
Before it is opened, `post_policy.verify_form` says whether the upload is allowed.
"""

from collections.abc import Iterator, Mapping

from werkzeug.exceptions import RequestEntityTooLarge
from werkzeug.http import parse_options_header
from werkzeug.sansio.multipart import Data, Epilogue, Event, Field, File, MultipartDecoder, NeedData

from portal.s3.bodies import MAX_OBJECT, Body, Expected, content_md5, declared_checksum
from portal.s3.checksums import DEFAULT, Algorithm, Block
from portal.s3.chunks import Wire
from portal.s3.errors import S3Error
from portal.s3.requests import S3Request, check_key

# All fields before the file together, as S3 has it.
MAX_FIELDS_BYTES = 20 * 1024
MAX_PARTS = 200
# What the decoder may hold at once: more than one read.
MAX_HELD_BYTES = 4 * 1024 * 1024


class PostForm:
    """What a browser sends: its fields, and the file that has not been read yet."""

    def __init__(self, fields: Mapping[str, str], file_name: str, events: Iterator[Event]) -> None:
        """`events` go on with the data of the file."""
        self.fields = fields
        # Some clients send the whole path; only the name counts.
        self.file_name = file_name.rpartition("/")[2]
        self.key = fields.get("key", "").replace("${filename}", self.file_name)
        self.trailers: Mapping[str, str] = {}
        self._events = events
        self._smallest, self._largest = 0, MAX_OBJECT
        check_key(self.key)
        if not self.key:
            raise S3Error(
                "InvalidArgument", "Bucket POST must contain a field named 'key'. If it is specified, please check the order of the fields."
            )

    def limit(self, smallest: int, largest: int) -> None:
        """Narrow down how many bytes the file may have."""
        self._smallest, self._largest = max(self._smallest, smallest), min(self._largest, largest)

    def open(self, *, limit_bytes: int = MAX_OBJECT, algorithm: Algorithm = DEFAULT, md5: bool = True) -> Body:
        """The file, checked like the body of a PUT; the form's fields stand for the headers."""
        self.limit(0, limit_bytes)
        digest = content_md5(self.fields["content-md5"]) if "content-md5" in self.fields else None
        expected = Expected(md5=digest, checksum=declared_checksum(self.fields))
        return Body(self, self._largest, expected, expected.algorithm or algorithm, md5=md5)

    def blocks(self) -> Iterator[Block]:
        """The bytes of the file, and then the rest of the form, which has to be complete and is not looked at."""
        size_bytes = 0
        for event in self._events:
            if isinstance(event, Data):
                size_bytes += len(event.data)
                yield event.data
                if not event.more_data:
                    break
        if size_bytes < self._smallest:
            raise S3Error("EntityTooSmall", ProposedSize=size_bytes, MinSizeAllowed=self._smallest)
        for event in self._events:
            if isinstance(event, File | Field) and _name_of(event) == "file":
                raise S3Error("IncorrectNumberOfFilesInPostRequest")


def open_form(request: S3Request) -> PostForm:
    """Read a form up to its file. Raises MalformedPOSTRequest and what else S3 says about forms."""
    kind, options = parse_options_header(request.headers.get("content-type", ""))
    if kind != "multipart/form-data" or not options.get("boundary"):
        raise S3Error("PreconditionFailed", "Bucket POST must be of the enclosure-type multipart/form-data", Condition="enclosure-type")
    length = request.content_length
    if length is None and not request.is_chunked:
        raise S3Error("MissingContentLength")
    events = _events(Wire(request.input, length), options["boundary"])
    fields: dict[str, str] = {}
    left = MAX_FIELDS_BYTES
    for event in events:
        if not isinstance(event, File | Field):
            continue
        name = _name_of(event)
        if name == "file":
            return PostForm(fields, event.filename if isinstance(event, File) else "", events)
        if name in fields:
            raise S3Error("InvalidArgument", "POST form has duplicate fields", ArgumentName=name[:64])
        value = _value(events, left)
        left -= len(name) + len(value)
        try:
            fields[name] = value.decode()
        except UnicodeDecodeError:
            raise S3Error("MalformedPOSTRequest") from None
    raise S3Error("InvalidArgument", "POST requires exactly one file upload per request.", ArgumentName="file", ArgumentValue="0")


def _value(events: Iterator[Event], limit_bytes: int) -> bytes:
    value = b""
    for event in events:
        if isinstance(event, Data):
            value += event.data
            if len(value) > limit_bytes:
                raise S3Error("MaxPostPreDataLengthExceededError")
            if not event.more_data:
                break
    return value


def _name_of(event: File | Field) -> str:
    # A part without a name has None here.
    return str(event.name or "").lower()


def _events(wire: Wire, boundary: str) -> Iterator[Event]:
    """What stands in the form, one after the other, to its end."""
    decoder = MultipartDecoder(boundary.encode("latin-1"), MAX_HELD_BYTES, max_parts=MAX_PARTS)
    blocks = wire.take(None)
    is_complete = False
    while True:
        try:
            event = decoder.next_event()
            if isinstance(event, NeedData):
                block = next(blocks, None)
                is_complete = block is None
                decoder.receive_data(None if block is None else bytes(block))
                continue
        except RequestEntityTooLarge:
            raise S3Error("MalformedPOSTRequest") from None
        except ValueError:
            raise S3Error("IncompleteBody" if is_complete else "MalformedPOSTRequest") from None
        if isinstance(event, Epilogue):
            return
        yield event
