"""Maps errors of the SDK and of the wire to our errors. The upstream's texts are never passed on, unless a client's own
request was sent on: then the client gets to know what the upstream says of it (`Reported`)."""

from __future__ import annotations

import email.utils
import json
import re
import time
from collections.abc import Mapping
from typing import Any

from app import errors
from app.upstream import sdk
from app.upstream.rate_limits import rate_limits_of
from app.upstream.reports import JUDGING, ReportReader, status_in

__all__ = [
    "SAID",
    "from_report",
    "from_report_for_client",
    "from_sdk",
    "from_sdk_for_client",
    "read_body",
    "refused_parameter",
    "retry_after_seconds",
]

LONGEST_RETRY_AFTER_SECONDS = 3600
MOST_NODES = 200
"""How many lists and objects the JSON of an error may have. An error with more of them is read as text."""

SAID = "chatwait.said"
"""The extension of a response under which the whole body of its error is found. The SDK keeps a part of the body."""

_TOO_LONG = re.compile(
    r"context.?length|context.?size|context.?window|maximum context|too many tokens|prompt.{0,20}too long|"
    r"exceeds? the (available )?context|input.{0,20}too long|string_above_max_length",
    re.IGNORECASE,
)
_POLICY = re.compile(r"content.?(policy|filter|management)|safety|moderation|responsible.?ai", re.IGNORECASE)


def retry_after_seconds(headers: Mapping[str, str]) -> int | None:
    """Read Retry-After, in seconds or as a date. None when the value is absent, negative, absurd or unreadable."""
    value = headers.get("retry-after", "").strip()[:64]
    if not value:
        return None
    if re.fullmatch(r"[0-9]{1,9}(\.[0-9]+)?", value):
        seconds = float(value)
    else:
        try:
            seconds = email.utils.parsedate_to_datetime(value).timestamp() - time.time()
        except (ValueError, TypeError, OverflowError):
            return None
    if not 0 <= seconds <= LONGEST_RETRY_AFTER_SECONDS:
        return None
    return int(seconds) + (seconds % 1 > 0)


def read_body(content: bytes) -> object:
    """Read the body of an error as JSON, or else as text. The body is read as UTF-8, whatever charset is claimed."""
    text = content.decode("utf-8", "replace").strip()
    if text.count("[") + text.count("{") > MOST_NODES:
        return text
    try:
        return json.loads(text)
    except ValueError:
        return text


def from_sdk(error: sdk.OpenAIError) -> errors.UpstreamError:
    """Map every exception class of the SDK. A class that the SDK grows later becomes an upstream_error."""
    if isinstance(error, sdk.APITimeoutError):
        return errors.UpstreamTimeout("The model's server did not answer in time.")
    if isinstance(error, sdk.APIConnectionError):
        return errors.UpstreamUnavailable("The connection to the model's server failed.")
    if isinstance(error, sdk.APIStatusError):
        return from_status(error.status_code, error.body, error.response.headers)
    if isinstance(error, sdk.ContentFilterFinishReasonError):
        return errors.ContentFiltered()
    return errors.UpstreamError()


def from_sdk_for_client(error: sdk.OpenAIError, reader: ReportReader) -> errors.UpstreamError:
    """Map an error of a client's own request. What the upstream says of the request goes with it."""
    mapped = from_sdk(error)
    if not isinstance(error, sdk.APIStatusError):
        return mapped
    status = error.status_code
    if status in JUDGING:
        mapped = _final(mapped, status)
        said = reader.read(error.response.extensions.get(SAID), status)
        mapped.reported = said or errors.Reported(status, mapped.detail, code=mapped.error_code)
    mapped.rate_limits = rate_limits_of(error.response.headers)
    return mapped


def from_report_for_client(report: object, reader: ReportReader) -> errors.UpstreamError:
    """Map an error that came in place of a client's own answer, or in it. What the upstream says of the request goes
    with it. An error without a code of its own, or with the number of another status, is the upstream's own trouble."""
    mapped = from_report(report)
    status = status_in(report)
    if status is not None:
        mapped = _final(mapped, status)
    said = reader.read(report, status or mapped.status)
    if said is not None and (status is not None or not (said.code or "0").isdecimal()):
        mapped.reported = said
    return mapped


def _final(mapped: errors.UpstreamError, status: int) -> errors.UpstreamError:
    """A client's own request that was refused would be refused again, unless only the rate was too high."""
    if status == 429 or type(mapped) is not errors.UpstreamError:
        return mapped
    return errors.UpstreamRefused(mapped.detail)


def from_report(report: object) -> errors.UpstreamError:
    """Map an error that came inside a stream. No such error may be retried, whatever its code says."""
    text = _text(report)
    if _TOO_LONG.search(text):
        return errors.PromptRefusedAsTooLong()
    if _POLICY.search(text):
        return errors.ContentFiltered()
    return errors.UpstreamError("The model's server reported an error in the middle of its answer.")


def from_status(status: int, body: object, headers: Mapping[str, str]) -> errors.UpstreamError:
    """Map an answer that is no success."""
    after = retry_after_seconds(headers)
    if status == 429:
        return errors.UpstreamRateLimited(retry_after_seconds=after)
    if status in (401, 403):
        return errors.UpstreamAuthFailed()
    if status == 408:
        return errors.UpstreamTimeout("The model's server reported a timeout.", retry_after_seconds=after)
    if status >= 500:
        return errors.UpstreamUnavailable(retry_after_seconds=after)
    text = _text(body)
    if status in (400, 413, 422) and _TOO_LONG.search(text):
        return errors.PromptRefusedAsTooLong()
    if status == 400 and _POLICY.search(text):
        return errors.ContentFiltered()
    if status == 404:
        return errors.UpstreamError(
            "The model's server refused the request with status 404. It may not know the model or the address."
        )
    return errors.UpstreamError(f"The model's server refused the request with status {status}.")


def refused_parameter(error: sdk.OpenAIError) -> str | None:
    """Name the parameter that the upstream does not know. None when the error says something else."""
    if not isinstance(error, sdk.BadRequestError | sdk.UnprocessableEntityError):
        return None
    text = _text(error.body)
    if not re.search(r"unsupported|unknown|unrecognized|not (supported|permitted|allowed)|extra", text, re.IGNORECASE):
        return None
    # The longer name comes first: a complaint about `max_tokens` advises `max_completion_tokens`.
    param = error.body.get("param") if isinstance(error.body, dict) else None
    for name in ("stream_options", "max_completion_tokens", "max_tokens", "temperature"):
        if param == name:
            return name
    if isinstance(param, str) and param:
        return None
    found = [
        (text.find(name), name) for name in ("stream_options", "max_completion_tokens", "max_tokens") if name in text
    ]
    return min(found)[1] if found else None


def _text(report: Any) -> str:
    """Join the texts of an error's body, within bounds, so that they can be searched."""
    try:
        return _words(report)
    except RecursionError:  # nested absurdly deep
        return ""


def _words(report: Any) -> str:
    if isinstance(report, dict):
        parts = [report.get(name) for name in ("code", "type", "message", "param")]
        inner = report.get("innererror")
        if isinstance(inner, dict):
            parts.append(inner.get("code"))
        if isinstance(report.get("error"), dict):
            parts.append(_words(report["error"]))
        return " ".join(str(part)[:2000] for part in parts if part)
    return str(report)[:2000] if report else ""
