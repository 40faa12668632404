"""This service beside what people would use instead: the same lanes, interleaved, one core each."""
