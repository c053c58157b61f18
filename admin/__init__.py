"""The admin UI: people run their mailings from a browser."""
