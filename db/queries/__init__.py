"""The only place that builds statements: a module per noun, `session` first, `now` passed in, no commit inside."""
