"""The model that answers when no other is configured: llama.cpp in a process of its own."""
