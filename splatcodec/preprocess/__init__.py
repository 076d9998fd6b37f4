"""The encoder's free choices, never needed to decode."""
