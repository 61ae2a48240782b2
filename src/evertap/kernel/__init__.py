"""The kernel's door: rtnetlink, taps and BPF programs. Knows model and ports only."""
