"""The embedded model: SmolLM2-135M-Instruct behind llama.cpp's own server, started and looked after by a supervisor."""
