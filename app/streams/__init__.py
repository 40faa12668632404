"""The logs of generations, and the stores that keep them. A reader never touches the upstream."""
