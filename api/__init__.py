"""The REST API. Commits to PostgreSQL and is done: it never talks to the broker or the gateway."""
