"""Whatever bytes come in, the outcome is a value or evertap's own error, soon, with no memory kept."""
