"""The command line: one module a verb, rendering apart. A client of the API, it does nothing on its own."""
