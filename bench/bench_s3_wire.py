"""What it costs the S3 gateway to verify a request, and how fast a body passes its checks.

`python -m bench.bench_s3_wire`. No network and no disk: a request as boto3 signs it, and 256 MiB that are there already.
"""

import base64
import hashlib
import io
import os
import time
import zlib
from collections.abc import Callable, Iterable
from typing import Any

from portal.s3.bodies import open_body
from portal.s3.requests import read_request
from portal.s3.signatures import verify
from portal.s3.signing import Signed
from tests.support.s3_wire import HOST, environ_of, now, secret_of, sent_by_boto3, signed, v2, v2_query, v4, v4_query

ROUNDS, TIMES = 2_000, 5
LIMIT_US, AIM_MIB_S = 150, 500
DATA = os.urandom(256 * 1024 * 1024)
URL = f"http://{HOST}/bucket/some/longer/key-0001?partNumber=1&uploadId=0123456789abcdef"
HEADERS = {"x-amz-meta-a": "b", "Content-Type": "binary/octet-stream", "x-amz-checksum-crc32": "AAAAAA=="}


def main() -> None:
    """Measure and print."""
    moment = now()
    print(f"reading and verifying one request (limit {LIMIT_US} us)")
    for name, signer in (("V4 header", v4), ("V4 address", v4_query), ("V2 header", v2), ("V2 address", v2_query)):
        environ = signed(signer(), "PUT", URL, HEADERS if signer in {v4, v2} else {})
        seconds = _best(lambda environ=environ: [verify(read_request(environ), secret_of, moment) for _ in range(ROUNDS)])
        print(f"  {name:12} {seconds / ROUNDS * 1e6:6.1f} us")
    print(f"256 MiB through the checks of a body, without and with the MD5 of an ETag (aim {AIM_MIB_S} MiB/s without)")
    trailer = sent_by_boto3(lambda s3: s3.put_object(Bucket="b", Key="k", Body=io.BytesIO(DATA)), secure=True)
    crc32 = base64.b64encode(zlib.crc32(DATA).to_bytes(4, "big")).decode()
    plain = {"Content-Length": str(len(DATA))}
    _pass("unsigned, CRC32 in the trailer", trailer, trailer["wsgi.input"].getvalue())
    _pass("unsigned, CRC32 in the head", environ_of("PUT", URL, plain | {"x-amz-checksum-crc32": crc32}), DATA)
    _pass("signed SHA-256", environ_of("PUT", URL, plain | {"x-amz-content-sha256": hashlib.sha256(DATA).hexdigest()}), DATA)


def _pass(name: str, environ: dict[str, Any], data: bytes) -> None:
    whose = verify(read_request(environ), secret_of, now())
    rates = [len(DATA) / 2**20 / _best(lambda md5=md5: _exhaust(environ | {"wsgi.input": io.BytesIO(data)}, whose, md5=md5)) for md5 in (False, True)]
    print(f"  {name:32} {rates[0]:6.0f} MiB/s {rates[1]:6.0f} MiB/s")


def _exhaust(environ: dict[str, Any], whose: Signed | None, *, md5: bool) -> None:
    blocks: Iterable[object] = open_body(read_request(environ), whose, md5=md5)
    for _ in blocks:
        pass


def _best(work: Callable[[], object]) -> float:
    """Seconds of the quickest of several times."""
    taken = []
    for _ in range(TIMES):
        begun = time.perf_counter()
        work()
        taken.append(time.perf_counter() - begun)
    return min(taken)


if __name__ == "__main__":
    main()
