"""The fields of a request for chat completions that this service reads. The upstream judges all others."""

from __future__ import annotations

import re

import msgspec

from app.dialects.opaque_json import Opaque, let_others_run_after

__all__ = ["LIMITS", "Fields", "Message", "Options"]

LONGEST_MODEL = 200
LONGEST_OPTIONS_BYTES = 10_000
MOST_CHOICES = 128
MOST_WRONG = 20
LARGEST_DIGITS = 18
LARGEST: int = 10**LARGEST_DIGITS
"""An integer of more digits is not read, and counts as this."""

LONGEST_NUMBER = 1000
"""A longer number is none."""

READ = ("model", "messages", "stream", "stream_options", "max_tokens", "max_completion_tokens", "n")
"""The fields that are read. Some servers take `Model` for `model`, so no field may differ from these in case alone."""

LIMITS = ("max_completion_tokens", "max_tokens")
"""Both names of the limit of an answer's tokens. OpenAI knows the first, and other servers mostly the second."""

_INTEGER = re.compile(rb"-?(?:0|[1-9][0-9]*+)")
_ENTRY = re.compile(r"\$\[(\d+)\]`$")


class Message(msgspec.Struct, gc=False):
    """A message. Only its content is read, which is JSON."""

    content: msgspec.Raw = msgspec.Raw(b"null")


class Options(msgspec.Struct, gc=False):
    """The stream options that we care for, as JSON. Empty where the client has none."""

    include_usage: msgspec.Raw = msgspec.Raw(b"")
    include_obfuscation: msgspec.Raw = msgspec.Raw(b"")

    @property
    def asks_usage(self) -> bool:
        """The client asks for the usage. What is neither null nor false is left to the upstream, which may take it."""
        return bytes(self.include_usage) not in (b"", b"null", b"false")


_messages = msgspec.json.Decoder(list[Message])
_options = msgspec.json.Decoder(Options)
_text = msgspec.json.Decoder(str)


class Fields:
    """Reads the fields of a request, and notes in `wrong` what is wrong with them."""

    def __init__(self, found: Opaque) -> None:
        self._found = found
        self.wrong: dict[str, list[str]] = {}

    def check_names(self) -> None:
        """Check that no name is one of READ in another case."""
        wrong = [name for name in self._found.spans if name not in READ and name.casefold() in READ]
        self.wrong |= {name: [f"Differs from {name.casefold()} only in case."] for name in wrong[:MOST_WRONG]}

    def model(self) -> str:
        """Read the model."""
        raw = self._found.value("model")
        if raw is None:
            self.wrong["model"] = ["Missing data for required field."]
        elif not raw.startswith(b'"'):
            self.wrong["model"] = ["Not a valid string."]
        elif (
            len(raw) > LONGEST_MODEL * len(rb"\ud83d\ude00") + 2
            or not 1 <= len(name := self._name(raw)) <= LONGEST_MODEL
        ):
            self.wrong["model"] = [f"Length must be between 1 and {LONGEST_MODEL}."]
        else:
            return name
        return ""

    def _name(self, raw: bytes) -> str:
        try:
            return _text.decode(raw)
        except msgspec.DecodeError:
            self.wrong["model"] = ["Contains half a surrogate pair, which is not a character."]
            return "-"

    def messages(self, most: int) -> list[Message]:
        """Read the messages, of which there may be `most`."""
        span = self._found.spans.get("messages")
        if span is None:
            self.wrong["messages"] = ["Missing data for required field."]
            return []
        try:
            messages = _messages.decode(memoryview(self._found.readable)[span[0] : span[1]])
            let_others_run_after(self._found.body)
        except msgspec.ValidationError as error:
            entry = _ENTRY.search(str(error))
            if entry:
                self.wrong[f"messages.{entry[1]}"] = ["Not an object."]
            else:
                self.wrong["messages"] = ["Not a valid list."]
            return []
        if not messages:
            self.wrong["messages"] = ["Must have at least 1 message."]
        elif len(messages) > most:
            self.wrong["messages"] = [f"Must have at most {most} messages."]
        return messages

    def flag(self, name: str) -> bool:
        """Read true or false. Null is false."""
        raw = self._found.value(name)
        if raw not in (b"true", b"false", b"null", None):
            self.wrong[name] = ["Not a valid boolean."]
        return raw == b"true"

    def options(self) -> Options | None:
        """Read the stream options. None when there are none, also when they are something else: the upstream judges."""
        raw = self._found.value("stream_options")
        if raw is None or not raw.startswith(b"{"):
            return None
        if len(raw) > LONGEST_OPTIONS_BYTES:
            self.wrong["stream_options"] = [f"Must have at most {LONGEST_OPTIONS_BYTES} bytes."]
            return None
        start, end = self._found.spans["stream_options"]
        return _options.decode(self._found.readable[start:end])

    def limits(self, most: int | None) -> dict[str, int]:
        """Read the limits of an answer's tokens. Without `most` the upstream judges what they are."""
        limits = {}
        for name in LIMITS:
            raw = self._found.value(name)
            if raw in (None, b"null"):
                continue
            limit = _integer(raw)
            if limit is None:
                self.wrong[name] = ["Not a valid integer."]
            elif most is not None and not 1 <= limit <= most:
                self.wrong[name] = [f"Must be greater than or equal to 1 and less than or equal to {most}."]
            else:
                limits[name] = limit
        return limits

    def choices(self) -> int:
        """Read how many answers are asked for. An `n` that OpenAI does not take counts as 1. The upstream judges it."""
        raw = self._found.value("n") or b""
        number = _integer(raw)
        if number is None and raw[:1].isdigit() and len(raw) <= LARGEST_DIGITS:
            number = int(value) if (value := float(raw)).is_integer() else None
        return number if number is not None and 1 <= number <= MOST_CHOICES else 1


def _integer(raw: bytes) -> int | None:
    """Read a JSON integer. None for anything else, also for 1.0 and for 1e3."""
    if len(raw) > LONGEST_NUMBER or not _INTEGER.fullmatch(raw):
        return None
    if len(raw) <= LARGEST_DIGITS:
        return int(raw)
    return -LARGEST if raw.startswith(b"-") else LARGEST
