"""Speed, measured side by side with references on the same machine in the same run: `python -m bench --help`."""
