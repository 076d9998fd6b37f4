"""The container: header, table of contents, chunks and checksums."""
