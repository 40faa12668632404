"""gevent, the clock and the kernel. Other rooms use them through this one."""
