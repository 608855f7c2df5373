"""What a person writes: frozen dataclasses, checked. Imports no torch."""
