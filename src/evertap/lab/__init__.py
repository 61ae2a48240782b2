"""A private laboratory for the tests and `evertap demo`: namespaces, wires, guests and a pinger."""
