"""Encoder and decoder of a still scene."""
