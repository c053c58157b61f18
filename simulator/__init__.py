"""A stand-in for the remote gateway, for development and tests: answers well, or badly on demand, and remembers all."""
