"""One answer: asked for, read into its log, and ended once."""
