"""The `splatcodec` command; `main.py` runs it, `commands/` holds one module a command."""
