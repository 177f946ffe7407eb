"""Who signed a request, in whichever of the forms S3 knows.

Stable: `verify(request, secret_of, now)` gives a `signing.Signed`, or None where the request names nobody; everything else is a refusal.
`Signed.payload` says what the body has to be and `Signed.chain` signs its chunks: both are for `bodies`. Forms of a browser: `post_policy`.
"""

from datetime import datetime

from portal.s3 import signatures_v2, signatures_v4
from portal.s3.errors import S3Error
from portal.s3.requests import SIGNED_IN_QUERY, S3Request
from portal.s3.signing import SecretOf, Signed


def verify(request: S3Request, secret_of: SecretOf, now: datetime) -> Signed | None:
    """Whose request this is; None for nobody's. Raises S3Error where something is not right."""
    authorization = request.headers.get("authorization", "")
    if request.is_signed_in_query and authorization:
        raise S3Error("InvalidArgument", "Only one auth mechanism allowed", ArgumentName="Authorization")
    if request.header("x-amz-security-token"):
        raise S3Error("InvalidToken", "Session tokens are not used here: sign with an access key of the portal.")
    if authorization.startswith(signatures_v4.ALGORITHM):
        return signatures_v4.verify_header(request, authorization, secret_of, now)
    if authorization.startswith("AWS "):
        return signatures_v2.verify_header(request, authorization, secret_of, now)
    if authorization:
        raise S3Error("InvalidArgument", "Unsupported Authorization Type", ArgumentName="Authorization")
    if not request.is_signed_in_query:
        return None
    if any(name.startswith("X-Amz-") for name in SIGNED_IN_QUERY if name in request.parameters):
        return signatures_v4.verify_query(request, secret_of, now)
    return signatures_v2.verify_query(request, secret_of, now)
