"""A record of a log of chunks: one chunk of OpenAI's chat completions, as every client gets it.

Most chunks of an answer differ in one string alone. What stands around that string is the chunk's envelope, which many
chunks share. Any other chunk is kept raw.
"""

from __future__ import annotations

from json.encoder import encode_basestring_ascii

import msgspec

__all__ = ["LONGEST_ENVELOPE_BYTES", "MOST_ENVELOPES", "Chunk", "Envelope"]

MOST_ENVELOPES = 16
"""How many envelopes one log has at most."""

LONGEST_ENVELOPE_BYTES = 4096
"""A chunk with more around its string is kept raw."""


class Envelope(msgspec.Struct, frozen=True):
    """What stands around the one string in which chunks differ: JSON of one line, in ASCII.

    `prefix` ends with the quote that begins the string, and `suffix` begins with the quote that ends it. `is_text`: the
    string is text of the log.
    """

    prefix: str
    suffix: str
    is_text: bool


class Chunk(msgspec.Struct, frozen=True, gc=False):
    """One chunk. `text` is what it adds to the log's text: the content or the refusal of choice 0, mostly.

    `value` is the string inside the envelope. Without an envelope it is the whole chunk: JSON of one line, in ASCII.
    """

    text: str
    value: str
    envelope: Envelope | None = None

    @property
    def data(self) -> str:
        """The chunk as JSON of one line, in ASCII."""
        envelope = self.envelope
        if envelope is None:
            return self.value
        return envelope.prefix + encode_basestring_ascii(self.value)[1:-1] + envelope.suffix
