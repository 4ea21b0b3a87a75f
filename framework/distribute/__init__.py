"""Devices and strategies of a run, the cluster of its processes, and the replicas that share a step."""
