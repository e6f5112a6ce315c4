"""Traces: which experts every forward pass of a model run used."""
