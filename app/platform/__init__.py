"""What depends on gevent, on the clock and on the kernel. Nothing else does."""
