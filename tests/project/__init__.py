"""What stands around `app/`: `make check` runs these tests."""
