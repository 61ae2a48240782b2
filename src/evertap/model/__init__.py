"""What is wanted, what is, and what to do about the difference. Pure: no I/O, no clock."""
