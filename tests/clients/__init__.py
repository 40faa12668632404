"""Real clients of OpenAI's interface, unmodified and in environments of their own, against the running service."""
