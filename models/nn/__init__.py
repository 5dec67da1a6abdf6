"""Networks: the generators, their recurrences, attention, dropout, precision and memory."""

__all__ = ["custom", "memory", "network", "precision"]
