"""Facts about what happens, told once and written as JSON lines that hold nobody's words."""
