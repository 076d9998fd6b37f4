"""Entropy coding: integer tables, context choice and interleaved rANS."""
