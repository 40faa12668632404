"""The logs of generations and the stores that keep them; a reader never touches the upstream."""
