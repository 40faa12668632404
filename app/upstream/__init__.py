"""The model's side. The only importer of openai; nothing above sees the SDK, its client or its errors."""

from app.upstream import sdk as sdk  # before whatever imports openai
from app.upstream.client import Answer, OpenAIUpstream, Question, Upstream
from app.upstream.decoder import Part
from app.upstream.transport import Call

__all__ = ["Answer", "Call", "OpenAIUpstream", "Part", "Question", "Upstream"]
