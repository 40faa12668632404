"""OpenAI's chat completions, as contracts/ describes them."""
