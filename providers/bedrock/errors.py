"""AWS's errors as ours: every exception of botocore, boto3 and s3transfer (1.44), and every error code, has one meaning here.

| what AWS or the way to it says                                     | becomes            | retry      |
| ------------------------------------------------------------------ | ------------------ | ---------- |
| no, partial, wrong, expired credentials; AccessDenied; a 401, 403  | CredentialsError   | no         |
| a clock that is wrong (RequestTimeTooSkewed, "Signature expired")  | CredentialsError   | no         |
| the account may not call Bedrock at all                            | VendorClosedError  | no         |
| Throttling and its like; 429                                       | ProviderError      | rate_limit |
| quota used up or zero, Validation, Conflict, NotFound; other 4xx   | ProviderError      | no         |
| InternalServer, ServiceUnavailable and their like; 408, 424, 5xx   | ProviderError      | transient  |
| no connection, reset, timeout, an answer that cannot be read       | ProviderError      | transient  |
| a request that botocore itself refuses                             | ProviderError      | no         |
| no region, a faulty AWS configuration                              | UsageError         | no         |
| boto3 too old or damaged                                           | MissingExtraError  | no         |

Codes: the error shapes of botocore's service models bedrock and bedrock-runtime 2023-04-20, s3 2006-03-01, and AWS's common
errors. Messages are AWS's own wording, so what hangs on them only sharpens the remedy and the class, never the retry verdict.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from tuneport.core.errors import CredentialsError, MissingExtraError, ProviderError, TuneportError, UsageError, VendorClosedError
from tuneport.providers.answers import CLOCK_FIX, brief, certificate, is_page, retry_after

KEY_FIX = "set AWS_PROFILE, or AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY (aws configure, aws sso login)"
REGION_FIX = "set options.bedrock.region or AWS_REGION to a region that has Bedrock, e.g. us-east-1"
LATER_FIX = "try again later; health.aws.amazon.com shows disturbances"
NETWORK_FIX = "check the network, HTTPS_PROXY and the AWS_ENDPOINT_URL variables"
DOCTOR_FIX = "tuneport doctor bedrock names the missing permission or role"
MODEL_FIX = "choose another base model or region (tuneport models), or another provider (tuneport plan --provider all)"
CLOSED_FIX = "ask AWS support to open Bedrock for it, or move the job: tuneport plan --provider all shows who takes it"
QUOTA_FIX = "ask for a higher quota (Service Quotas, Amazon Bedrock), or wait until a running job ends; a new account may have 0"


@dataclass(frozen=True, slots=True)
class _Meaning:
    """What an error says, and what to do; ``kind`` is the class and verdict."""

    kind: str  # credentials, closed, usage, sdk, no, transient, rate_limit
    what: str
    fix: str


_CREDENTIALS = _Meaning("credentials", "AWS credentials cannot be used", KEY_FIX)
_WRONG_KEY = _Meaning("credentials", "AWS does not accept these credentials (wrong, revoked, or of another partition)", KEY_FIX)
_EXPIRED = _Meaning("credentials", "the AWS session has expired", "sign in again (aws sso login), or renew the session's keys")
_CLOCK = _Meaning("credentials", "AWS rejects the request's time: this machine's clock is wrong", CLOCK_FIX)
_DENIED = _Meaning("credentials", "AWS denies the access", DOCTOR_FIX)
_REGION = _Meaning("usage", "no usable AWS region is set", REGION_FIX)
_CONFIG = _Meaning("usage", "the AWS configuration is faulty", "correct ~/.aws/config or the AWS_ variables")
_SDK = _Meaning("sdk", "boto3 is too old or damaged", "")
_REQUEST = _Meaning("no", "the request was not sent, for it breaks the AWS service model", "correct the field that the message names")
_NETWORK = _Meaning("transient", "AWS cannot be reached", NETWORK_FIX)
_PROXY = _Meaning("transient", "the proxy on the way to AWS cannot be reached", "check HTTPS_PROXY")
_UNREADABLE = _Meaning("transient", "the answer of AWS cannot be read", NETWORK_FIX)
_THROTTLED = _Meaning("rate_limit", "AWS asks to slow down", "wait, or ask for a higher quota (Service Quotas, Amazon Bedrock)")
_QUOTA = _Meaning("no", "a quota of this AWS account is used up", QUOTA_FIX)
_SERVER = _Meaning("transient", "AWS failed", LATER_FIX)
_GONE = _Meaning("no", "AWS knows no such thing", "check region and account (tuneport doctor bedrock), and that it was not deleted")
_BUCKET = _Meaning("no", "the S3 bucket does not exist", "create it in the job's region, or correct options.bedrock.*_s3_uri")
_BUCKET_REGION = _Meaning("no", "the S3 bucket is in another region than the job", "use a bucket in the job's region, or move the job")
_CONFLICT = _Meaning("no", "AWS finds the request in conflict with what it holds", "look at the job's state first: tuneport status")
_INVALID = _Meaning("no", "AWS refuses the request", "change what the message names, then submit again")
_LARGE = _Meaning("no", "the file is too large for AWS", "train on fewer or shorter rows")
_TAGS = _Meaning("no", "the job has more tags than AWS takes", "remove some of the spec's tags")
_KMS = _Meaning("no", "the KMS key cannot be used", "enable it, and allow kms:Decrypt and kms:GenerateDataKey in its policy")
_ABSENT = _Meaning("no", "the service at this address has no such call", "check the AWS_ENDPOINT_URL variables, or update boto3")
_CLOSED = _Meaning("closed", "this AWS account may not use Bedrock", CLOSED_FIX)

_NO_KEY = _Meaning("credentials", "no AWS credentials were found (AWS_ACCESS_KEY_ID is not set)", KEY_FIX)
_BROKEN_OFF = _Meaning("transient", "the transfer to or from S3 broke off", NETWORK_FIX)


def _table(*rows: tuple[_Meaning, str]) -> dict[str, _Meaning]:
    return {name: meaning for meaning, names in rows for name in names.split()}


CLASSES: Mapping[str, _Meaning] = _table(
    (_NO_KEY, "NoCredentialsError"),
    (
        _CREDENTIALS,
        """PartialCredentialsError CredentialRetrievalError UnknownCredentialError NoAuthTokenError UnknownTokenProviderError
        ProfileNotFound MetadataRetrievalError RefreshWithMFAUnsupportedError InfiniteLoopConfigError SSOError LoginError
        InvalidIMDSEndpointError InvalidIMDSEndpointModeError""",
    ),
    (_EXPIRED, "TokenRetrievalError SSOTokenLoadError UnauthorizedSSOTokenError LoginRefreshRequired LoginTokenLoadError"),
    (_REGION, "BaseEndpointResolverError EndpointProviderError InvalidRegionError UnknownRegionError ServiceNotInRegionError"),
    (
        _CONFIG,
        """InvalidConfigError ConfigParseError ConfigNotFound InvalidRetryConfigurationError InvalidProxiesConfigError
        InvalidDefaultsMode InvalidEndpointConfigurationError InvalidEndpointDiscoveryConfigurationError
        InvalidChecksumConfigError InvalidS3AddressingStyleError InvalidS3UsEast1RegionalEndpointConfigError
        InvalidSTSRegionalEndpointsConfigError UnsupportedS3ConfigurationError UnsupportedS3ControlConfigurationError
        UnsupportedS3AccesspointConfigurationError UnsupportedTLSVersionWarning UnknownSignatureVersionError
        UnsupportedSignatureVersionError""",
    ),
    (
        _SDK,
        """DataNotFoundError ApiVersionNotFoundError UnknownServiceStyle UnsupportedServiceProtocolsError MissingDependencyException
        UndefinedModelAttributeError MD5UnavailableError UnknownClientMethodError OperationNotPageableError ImminentRemovalWarning
        PythonDeprecationWarning InvalidExpressionError WaiterConfigError StubResponseError ResourceLoadException NoVersionFound
        InvalidCrtTransferConfigError InvalidSubscriberMethodError DynamoDBOperationNotSupportedError DynamoDBNeedsConditionError
        DynamoDBNeedsKeyConditionError AwsChunkedWrapperError""",
    ),
    (
        _REQUEST,
        """ParamValidationError ValidationError MissingParametersError AliasConflictParameterError InvalidDNSNameError
        UnsupportedS3ArnError UnsupportedS3ControlArnError UnsupportedOutpostResourceError InvalidHostLabelError S3ValidationError""",
    ),
    (_NETWORK, "HTTPClientError ConnectionError CapacityNotAvailableError EndpointDiscoveryException WaiterError"),
    (_PROXY, "ProxyConnectionError"),
    (
        _UNREADABLE,
        """ResponseParserError ParserError ResponseStreamingError IncompleteReadError ChecksumError FlexibleChecksumError PaginationError
        UnseekableStreamError""",
    ),
    (
        _BROKEN_OFF,
        """RetriesExceededError S3TransferFailedError S3UploadFailedError S3DownloadFailedError S3CopyFailedError CancelledError
        TransferNotDoneError""",
    ),
)
"""Exception class, or the nearest class above it in this table, -> what it means."""

CODES: Mapping[str, _Meaning] = _table(
    (
        _WRONG_KEY,
        """UnrecognizedClientException InvalidClientTokenId InvalidAccessKeyId SignatureDoesNotMatch InvalidSignatureException
        IncompleteSignature IncompleteSignatureException MissingAuthenticationToken MissingAuthenticationTokenException AuthFailure
        InvalidToken 401""",
    ),
    (_EXPIRED, "ExpiredToken ExpiredTokenException TokenRefreshRequired"),
    (_CLOCK, "RequestTimeTooSkewed RequestExpired RequestInTheFuture"),
    (_DENIED, "AccessDenied AccessDeniedException UnauthorizedOperation AllAccessDisabled Forbidden 403"),
    (_CLOSED, "OptInRequired SubscriptionRequiredException AccountProblem"),
    (
        _THROTTLED,
        """Throttling ThrottlingException ThrottledException RequestThrottled RequestThrottledException TooManyRequestsException
        RequestLimitExceeded BandwidthLimitExceeded SlowDown ModelNotReadyException 429""",
    ),
    (_QUOTA, "ServiceQuotaExceededException LimitExceeded LimitExceededException QuotaExceededException"),
    (_GONE, "ResourceNotFoundException NoSuchKey NoSuchUpload NoSuchEntity 404"),
    (_BUCKET, "NoSuchBucket InvalidBucketName"),
    (_BUCKET_REGION, "PermanentRedirect TemporaryRedirect AuthorizationHeaderMalformed IllegalLocationConstraintException 301"),
    (_CONFLICT, "ConflictException ResourceInUseException OperationAborted PreconditionFailed"),
    (_INVALID, "ValidationException ValidationError InvalidRequest InvalidArgument MalformedXML 400"),
    (_LARGE, "EntityTooLarge RequestEntityTooLargeException MaxMessageLengthExceeded 413"),
    (_TAGS, "TooManyTagsException"),
    (_ABSENT, "NotImplemented UnknownOperationException MethodNotAllowed InvalidAction 501"),
    (
        _SERVER,
        """InternalServerException InternalServerError InternalError InternalFailure ServiceUnavailable ServiceUnavailableException
        RequestTimeout RequestTimeoutException ModelTimeoutException ModelErrorException ModelStreamErrorException BadDigest
        InvalidDigest XAmzContentSHA256Mismatch 500 502 503 504""",
    ),
)
"""Error code -> what it means. Codes that begin with KMS are the key's; any other code goes by its HTTP status."""

_ACTION = re.compile(r"not authorized to perform:? (?P<action>[\w-]+:\w+)(?:[^.]*?on (?:the )?resource:? (?P<resource>\S+))?")

WORDING: tuple[tuple[re.Pattern[str], _Meaning], ...] = (
    (re.compile(r"signature (?:expired|not yet current)|request (?:time|timestamp)|clock", re.I), _CLOCK),
    (re.compile(r"account is not (?:authorized|enabled|permitted)|account .{0,40}(?:suspended|restricted)", re.I), _CLOSED),
    (
        re.compile(r"(?:could not|cannot|unable to|not authorized to) assume|assume (?:the )?(?:provided )?(?:iam )?role", re.I),
        _Meaning("credentials", "Bedrock cannot assume the role", "it must exist and trust bedrock.amazonaws.com; " + DOCTOR_FIX),
    ),
    (
        re.compile(r"access to the model", re.I),
        _Meaning("credentials", "this AWS account has no access to the model", "request it in the Bedrock console under Model access"),
    ),
    (
        re.compile(r"\blegacy\b|end of (?:its|their) life|deprecated|no longer (?:available|supported)|retired", re.I),
        _Meaning("no", "Bedrock takes no new jobs for this model, for it is at the end of its life", MODEL_FIX),
    ),
    (
        re.compile(r"model (?:identifier|id).{0,60}(?:invalid|not (?:supported|found|exist))|customiz\w+ .{0,40}not supported", re.I),
        _Meaning("no", "this region does not offer the model for this", MODEL_FIX),
    ),
    (re.compile(r"bucket.{0,120}\bregion\b|\bregion\b.{0,120}bucket", re.I | re.S), _BUCKET_REGION),
    (re.compile(r"\b(?:data|file|size|records?)\b.{0,60}(?:exceeds?\b|too (?:large|many))", re.I), _LARGE),
    (re.compile(r"\bquota\b|limit.{0,30}exceeded", re.I), _QUOTA),
    (
        re.compile(r"(?:s3|bucket|object|training data|validation data).{0,120}(?:access|permission|exist|found|denied)", re.I | re.S),
        _Meaning("no", "Bedrock cannot read the job's files in S3", "submit again, and let the role read them; " + DOCTOR_FIX),
    ),
)
"""What a refusal's message adds to its code, first match first. Only for refusals: they keep their verdict "no"."""

_SDK_PARTS = frozenset({"boto3", "botocore", "s3transfer"})
_REFUSALS = frozenset({"no", "credentials"})


@contextmanager
def translated() -> Iterator[None]:
    """Raises what boto3 and its parts raise inside the block as an error of ours."""
    try:
        yield
    except Exception as error:
        if _part(error) not in _SDK_PARTS:
            raise
        raise mapped(error) from error


def mapped(error: BaseException) -> TuneportError:
    """The error of ours that says what an exception of botocore, boto3 or s3transfer means."""
    inner = getattr(error, "last_exception", None) or error.__cause__ or error.__context__
    response = getattr(error, "response", None)
    if isinstance(response, Mapping) and "Error" in response:
        return _answered(response)
    if _part(error) in ("boto3", "s3transfer") and isinstance(inner, Exception) and _part(inner) in _SDK_PARTS:
        return mapped(inner)  # they wrap what really happened
    names = {kind.__name__: kind for kind in type(error).__mro__}
    if "SSLError" in names:
        return certificate(str(error), "AWS", "AWS_CA_BUNDLE")
    meaning = next((CLASSES[name] for name in names if name in CLASSES), None)
    if meaning is None:
        return _made(_Meaning("transient", "AWS's SDK failed in a way unknown to tuneport", LATER_FIX), f"{type(error).__name__}: {error}")
    return _made(meaning, "" if type(error).__name__ == "NoCredentialsError" else str(error) or type(error).__name__)


def _part(error: BaseException) -> str:
    return type(error).__module__.partition(".")[0]


def code_of(error: BaseException) -> str:
    """AWS's code of an error that ``translated`` has translated, or of a ClientError; "" when AWS did not answer."""
    found = error.__cause__ if isinstance(error, TuneportError) else error
    response = getattr(found, "response", None)
    return str(response.get("Error", {}).get("Code") or "") if isinstance(response, Mapping) else ""


def unreadable(what: str) -> ProviderError:
    """An answer without what it must hold, e.g. a proxy's web page sent as success."""
    return ProviderError(f"the answer of AWS cannot be read ({what})", fix=NETWORK_FIX)


def _answered(response: Mapping[str, Any]) -> TuneportError:
    code = str(response["Error"].get("Code") or "")
    message = str(response["Error"].get("Message") or response["Error"].get("message") or "")
    metadata = response.get("ResponseMetadata") or {}
    status = int(metadata.get("HTTPStatusCode") or 0)
    headers = metadata.get("HTTPHeaders") or {}
    if is_page("", message):
        what = f"a web page came back in place of AWS's answer (HTTP {status}), from a proxy or gateway in between"
        return ProviderError(what, fix=NETWORK_FIX, retry="no" if 400 <= status < 500 and status not in (408, 429) else "transient")
    if not code.isdigit() and code not in CODES and "." in code:
        code = code.rpartition(".")[2]  # EventStreamError and some services qualify their codes
    meaning = _KMS if code.startswith("KMS") else CODES.get(code) or _by_status(status)
    said = ", ".join(part for part in (brief(message), code if code and not code.isdigit() else f"HTTP {status or code}") if part)
    if meaning.kind not in _REFUSALS:
        return _made(meaning, said, retry_after(headers))
    action = _ACTION.search(message)
    if action:
        where = f" on {action['resource'].rstrip('.,')}" if action["resource"] else ""
        passes = " (the caller hands the role to Bedrock)" if action["action"] == "iam:PassRole" else ""
        fix = f"allow it in a policy of the caller{passes}; {DOCTOR_FIX}"
        return CredentialsError(_sentence(f"AWS denies {action['action']}{where}", said), fix=fix)
    return _made(next((sharper for pattern, sharper in WORDING if pattern.search(message)), meaning), said)


def _by_status(status: int) -> _Meaning:
    if str(status) in CODES:
        return CODES[str(status)]
    if 400 <= status < 500 and status not in (408, 424):
        return _INVALID
    return _SERVER


def _made(meaning: _Meaning, said: str, retry_after: float | None = None) -> TuneportError:
    what = _sentence(meaning.what, brief(said))
    match meaning.kind:
        case "credentials":
            return CredentialsError(what, fix=meaning.fix)
        case "closed":
            return VendorClosedError(what, fix=meaning.fix)
        case "usage":
            return UsageError(what, fix=meaning.fix)
        case "sdk":
            return MissingExtraError(what, "bedrock")
        case "rate_limit":
            return ProviderError(what, fix=meaning.fix, retry="rate_limit", retry_after=retry_after)
        case "no":
            return ProviderError(what, fix=meaning.fix, retry="no")
    return ProviderError(what, fix=meaning.fix)


def _sentence(what: str, said: str) -> str:
    return f"{what} ({said})" if said else what
