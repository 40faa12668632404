"""The model's side: asks a server that speaks OpenAI's API, and reads its answer. `interface` is the specification.

No other room imports openai or its HTTP client.
"""
