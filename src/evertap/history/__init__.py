"""What happened to the NICs, kept in a file."""
