"""Synthetic traces: a stochastic process over tokens, its parameters, and their fit."""
