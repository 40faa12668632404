"""What a log looks like on the wire, one folder for each dialect. Pure: no network, no clock, no Flask."""
