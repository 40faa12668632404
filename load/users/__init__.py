"""The users of a load test, each of whom asks again as soon as it has its answer."""
