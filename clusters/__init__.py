"""Where a command runs. A job is an opaque command: nothing here knows what it computes."""
