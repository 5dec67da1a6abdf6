"""Networks: the generators, their recurrences, attention, dropout, precision and memory."""
