"""evertap keeps virtual machines' NICs connected to host interfaces that come and go."""

__version__ = "0.1.0"
