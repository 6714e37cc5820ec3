"""Asking the program again: replays with one value changed, smoothed slopes, Lyapunov spectra."""
